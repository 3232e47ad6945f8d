"""One run recorded into SQLite and into MongoDB, with and without a real Redis: every answer is the same, byte for byte."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from tests.market import NOON, ManualClock, listing, trade
from tests.recording import Recording
from tests.redis_server import RedisServer, redis_binary
from tests.servers import mongodb_url
from wadm_mcp.collection.recording.journal import Journal
from wadm_mcp.exchanges.exchange import Trades
from wadm_mcp.health import Health
from wadm_mcp.model import HOUR, Instrument, Trade
from wadm_mcp.queries.footprint import footprint
from wadm_mcp.queries.order_flow import order_flow
from wadm_mcp.queries.trades import trades
from wadm_mcp.queries.view import View
from wadm_mcp.queries.volume_profile import volume_profile
from wadm_mcp.storage.cache import InProcessCache
from wadm_mcp.storage.cached import CachedFootprints
from wadm_mcp.storage.mongo import MongoStore
from wadm_mcp.storage.redis_cache import RedisCache
from wadm_mcp.storage.sqlite import SqliteStore

from .conftest import LIVES

pytestmark = pytest.mark.anyio

START = NOON - 14 * HOUR
"""Before a midnight, so that the run contains a midnight and parts of two sessions."""
INSTRUMENTS = [Instrument(exchange, market, "BTCUSDT") for exchange in ("binance", "bybit") for market in ("spot", "linear")]
SCOPES = [{"exchange": exchange, "market": market} for exchange in ("binance", "bybit", "all") for market in ("spot", "linear")]
CLOSED = [(START + hour * HOUR, START + (hour + 1) * HOUR) for hour in (0, 1, 2, 7, 13)]
"""Hours on both sides of the midnight, one within the session and the last one."""
QUESTIONS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (volume_profile, {"start": START, "end": NOON, "detail": "full"}),
    (volume_profile, {"start": START + HOUR, "end": START + 2 * HOUR, "row_size": "0.05", "method": "one_row"}),
    (volume_profile, {"start": START + 90_000, "end": NOON - 333_000}),
    *((order_flow, {"start": START, "end": NOON, "timeframe": timeframe}) for timeframe in ("1m", "5m", "15m", "30m", "1h", "4h", "1d")),
    (footprint, {"start": START, "end": START + 4 * HOUR, "timeframe": "15m"}),
    (trades, {"start": START, "end": NOON, "limit": 1000}),
    (trades, {"start": START, "end": NOON, "limit": 100, "min_notional": "500000"}),
    *((volume_profile, {"start": start, "end": end, "detail": detail}) for start, end in CLOSED for detail in ("brief", "standard")),
    *((order_flow, {"start": start, "end": end, "timeframe": "1m"}) for start, end in CLOSED),
    *((footprint, {"start": start, "end": end, "timeframe": "30m"}) for start, end in CLOSED),
]


def run() -> list[Trade]:
    """Trades of every kind of instrument with bursts in one millisecond, missing ids, ids that are no numbers, and a few that come late."""
    every: list[tuple[int, Trade]] = []
    for seed, instrument in enumerate(INSTRUMENTS):
        dice, made, at, number, price = random.Random(seed), list[Trade](), START, 0, 6_000_000
        while at < NOON - 60_000:
            at += dice.choice((0, 0, 0, 40, 900, 7_000, 45_000, 60_000))
            number += 1 if dice.random() < 0.999 else 4
            price += dice.randint(-30, 30)
            fills = dice.randint(1, 4) if instrument[:2] == ("binance", "linear") else 1
            one = trade(number, at, price, dice.randint(1, 10**7), dice.choice(("BUY", "SELL")), instrument, fills)
            if instrument[:2] == ("bybit", "linear"):
                one = msgspec.structs.replace(one, trade_id=str(UUID(int=dice.getrandbits(128))))
            made.append(one)
        for place in dice.sample(range(len(made) - 400), 5):
            made.insert(place + dice.randint(100, 300), made.pop(place))
        arrives = 0
        for one in made:
            arrives = max(arrives, one.timestamp)
            every.append((arrives, one))
    return [one for _, one in sorted(every, key=lambda pair: pair[0])]


class Run(Recording):
    """A recording of every instrument."""

    async def begin(self) -> None:
        for instrument in INSTRUMENTS:
            followed = self.recorder.start(listing(instrument), has_gapless_ids=instrument.exchange == "binance")
            await self.maintenance.resume(followed)

    async def trade(self, *trades: Trade) -> None:
        for one in trades:
            await self.recorder.take(1, Trades(one.instrument, (one,), max(self.clock.now(), one.timestamp)))


async def test_sqlite_and_mongodb_with_redis_give_equal_answers(tmp_path: Path) -> None:
    made = run()
    answers: list[list[bytes]] = []
    with mongodb_url() as url, RedisServer(redis_binary()) as redis:
        for kind in ("sqlite", "mongodb"):
            clock = ManualClock(START)
            async with AsyncExitStack() as stack:
                store = SqliteStore(tmp_path / "wadm.sqlite") if kind == "sqlite" else MongoStore(f"{url}/same", LIVES)
                cache = InProcessCache() if kind == "sqlite" else RedisCache(redis.url, "same", Health(clock.now))
                await stack.enter_async_context(store)
                await stack.enter_async_context(cache)
                journal = await stack.enter_async_context(Journal(tmp_path / f"{kind}-journal", 1 << 30))
                one = Run(store, journal, clock)
                await one.begin()
                for first in range(0, len(made), 400):
                    for each in made[first : first + 400]:
                        clock.at = max(clock.at, each.timestamp)
                        await one.trade(each)
                    await one.write()
                clock.at = NOON + 5_000
                await one.write()
                view = View(store, one.tape, clock.now, ["spot", "linear"], ["binance", "bybit"], LIVES, CachedFootprints(cache))
                # Twice, so that the second round is answered from the cache where possible.
                for _ in range(2):
                    encoded = [
                        _encoded(await ask(view.reading(), symbol="BTCUSDT", **asked, **scope))
                        for scope in SCOPES
                        for ask, asked in QUESTIONS
                    ]
                    answers.append(encoded)
                assert cache.state.hits > 0
    assert answers[0] == answers[1] == answers[2] == answers[3]
    counted = [json.loads(answers[0][place * len(QUESTIONS)])["trade_count"] for place in range(len(SCOPES))]
    fills = [sum(each.fills for each in made if each.instrument == instrument) for instrument in INSTRUMENTS]
    assert counted == [*fills, fills[0] + fills[2], fills[1] + fills[3]]


def _encoded(answer: dict[str, Any]) -> bytes:
    """An answer as it is sent, without the age of its newest trade."""
    for coverage in (answer["coverage"], *answer["coverage"].get("parts", {}).values()):
        coverage.pop("lag_ms")
    return json.dumps(answer).encode()
