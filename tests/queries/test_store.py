"""The questions upon the embedded store: what the in-memory double of these tests says is what a real store says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.market import BYBIT, NOON, SPOT
from tests.queries.test_figures import random_tape
from tests.queries.world import World
from wadm_mcp.coverage.spans import Basis, GapReason, Span, SpanReason
from wadm_mcp.health import Health
from wadm_mcp.model import DAY, HOUR, MINUTE
from wadm_mcp.queries.footprint import footprint
from wadm_mcp.queries.markets import markets
from wadm_mcp.queries.order_flow import order_flow
from wadm_mcp.queries.trades import trades
from wadm_mcp.queries.view import View
from wadm_mcp.queries.volume_profile import volume_profile
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Derived, OrderFlow, StoredFootprint

pytestmark = pytest.mark.anyio


async def test_a_real_store_gives_the_same_answers_to_every_question(tmp_path: Path) -> None:
    now = NOON + 25_000
    world = World(now=now).add(random_tape(5, 500, now - 30 * HOUR, now), durable_until=now - HOUR, settled_until=NOON)
    for instrument in (SPOT, BYBIT):
        world.store.held[instrument] = [
            Span(NOON - 9 * DAY, NOON - 8 * DAY, 1, 5, Basis.EXACT),
            Span(NOON - 2 * DAY, NOON - HOUR, 9, 20, Basis.EXACT, SpanReason.LIVE, GapReason.DISCONNECT),
            Span(NOON - HOUR + MINUTE, now, 24, 30, Basis.EXACT, SpanReason.LIVE, GapReason.MUTE),
        ]
    bars = [StoredFootprint(*of, start, made) for of, found in world.store.bars.items() for start, made in found.items()]
    async with SqliteStore(tmp_path / "tape.sqlite") as store:
        spans = [(instrument, span) for instrument, held in world.store.held.items() for span in held]
        await store.write([one for kept in world.store.kept.values() for one in kept], spans)
        await store.derive(
            Derived(
                footprints=[bar for bar in bars if bar.timeframe in ("1m", "1h", "1d")],
                order_flow=[OrderFlow(bar.instrument, bar.timeframe, bar.start, bar.footprint.bar, 0) for bar in bars],
                settles=[mark for mark in await store.dirty_minutes() if mark.minute < NOON],
            )
        )
        view = View(store, world.tape, world.clock.now, ("spot",), ("binance", "bybit"))
        questions: list[tuple[Any, dict[str, Any]]] = [
            (volume_profile, {"window": "24h", "detail": "full"}),
            (volume_profile, {"window": "15m", "exchange": "bybit"}),
            (order_flow, {"window": "24h", "timeframe": "1m"}),
            (order_flow, {"start": NOON - 25 * HOUR, "end": NOON - MINUTE, "timeframe": "4h"}),
            (footprint, {"window": "24h", "timeframe": "1h"}),
            (trades, {"window": "24h", "limit": 30, "min_notional": 1000}),
            (trades, {"window": "24h", "limit": 1000, "as_of": NOON - HOUR}),
        ]
        for question, arguments in questions:
            expected = await question(world.view, symbol="BTCUSDT", **arguments)
            assert await question(view, symbol="BTCUSDT", **arguments) == expected
            assert 0 < expected["coverage"]["ratio"] <= 1
        assert await markets(view, Health(world.clock.now)) == await markets(world.view, Health(world.clock.now))
        page = await trades(view, symbol="BTCUSDT", window="24h", limit=7)
        seen = list(page["trades"]["rows"])
        while page["next_cursor"] is not None:
            page = await trades(view, symbol="BTCUSDT", window="24h", limit=7, cursor=page["next_cursor"])
            seen += page["trades"]["rows"]
        assert seen == (await trades(view, symbol="BTCUSDT", window="24h", limit=1000))["trades"]["rows"]
