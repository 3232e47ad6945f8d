"""Retention is lowered and raised again, and each time random windows are asked about: what was deleted is never called complete."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import AbstractAsyncContextManager
from decimal import Decimal
from pathlib import Path

import anyio
import pytest

from tests.abuse.target import Target, arguments_of, command, target
from tests.abuse.verdict import ABUSE, SEED, attack
from tests.servers import mongodb_url
from tests.soak.verdict import exact, ms, returned
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.clock import now_ms
from wadm_mcp.coverage.spans import Basis, Span
from wadm_mcp.model import DAY, HOUR, MINUTE, Instrument, Listing, Retention, Timeframe, Trade, TradeType
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.storage.mongo import MongoStore
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Derived, OrderFlow, Store, StoredFootprint

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not ABUSE, reason="full size; run with WADM_ABUSE=1")]

DAYS = 60
EVERY = 10 * MINUTE
"""One trade each time."""
LISTINGS = [Listing(Instrument(name, "spot", "OLDUSDT"), Decimal("0.01"), Decimal("0.00001")) for name in ("binance", "bybit")]
"""Listed by no exchange, so that nothing is recorded or repaired beside the questions."""
ROUNDS, WINDOWS = 10, 12
HIGHEST = {"WADM_TRADES_TTL_HOURS": 24 * DAYS * 2, "WADM_MINUTES_TTL_DAYS": DAYS * 2, "WADM_HOURS_TTL_DAYS": DAYS * 2}


@pytest.fixture(params=["sqlite", "mongodb"])
def store_url(request: pytest.FixtureRequest) -> Generator[str]:
    if request.param == "sqlite":
        yield ""
        return
    with mongodb_url() as url:
        yield f"{url}/wadm_abuse_retention"


async def test_no_window_is_claimed_whose_data_is_gone(tmp_path: Path, store_url: str) -> None:
    draw = random.Random(SEED)
    end = now_ms() // HOUR * HOUR
    folder = tmp_path / "data"
    folder.mkdir()
    kept = Retention(2 * DAYS * DAY, 2 * DAYS * DAY, 2 * DAYS * DAY)
    opening: AbstractAsyncContextManager[Store] = MongoStore(store_url, kept) if store_url else SqliteStore(folder / "wadm.sqlite")
    async with opening as store:
        trades = {listing.instrument: await _fill(store, listing, end) for listing in LISTINGS}
    name = "MongoDB" if store_url else "SQLite"
    found: Counter[str] = Counter()
    with attack(f"retention lowered and raised {ROUNDS} times, {name}") as verdict, anyio.fail_after(240):
        async with Simulator(seed=SEED, instruments=["binance:spot:BTCUSDT", "bybit:spot:BTCUSDT"], activity=0.1) as simulator:
            for number in range(ROUNDS + 1):
                settings = {key: str(value if number % 2 == 0 else _lowered(draw, key)) for key, value in HIGHEST.items()}
                extra = {"MONGODB_URL": store_url} if store_url else {}
                async with target(tmp_path, simulator, {**settings, **extra}, bounded=command(expiry=0.5)) as at:
                    await anyio.sleep(2.5)
                    for _ in range(WINDOWS):
                        listing = draw.choice(LISTINGS)
                        start = end - draw.randrange(DAYS * DAY // MINUTE) * MINUTE
                        until = min(end, start + draw.choice((30, 600, 1_440, 4_000, 10_000)) * MINUTE)
                        if start < until:
                            found += await _asked(at, listing.instrument, trades[listing.instrument], start, until)
                            found["windows"] += 1
                    if number == 0:
                        assert not found["profiles not complete"], "the stored data is not complete before anything was deleted"
                    await at.served.stop()
        verdict.note("windows asked", found["windows"])
        verdict.holds("complete profiles with other volume than was traded", found["false profiles"], not found["false profiles"])
        verdict.holds("trades missing outside reported gaps", found["false trades"], not found["false trades"])
        verdict.holds("gaps around deleted data with another reason", found["other reasons"], not found["other reasons"])


def _lowered(draw: random.Random, setting: str) -> int:
    return draw.randrange(1, DAYS * (24 if setting.endswith("HOURS") else 1))


async def _asked(at: Target, instrument: Instrument, trades: Sequence[Trade], start: int, until: int) -> Counter[str]:
    found: Counter[str] = Counter()
    inside = [one for one in trades if start <= one.timestamp < until]
    window = {**arguments_of(instrument), "start": start, "end": until}
    profile = await at.served.get("/api/volume-profile", **window, detail="brief")
    volume = sum((Decimal(one.quantity).scaleb(-5) for one in inside), Decimal(0))
    if profile["coverage"]["ratio"] == 1:
        found["false profiles"] += exact(profile["volume"] or 0) != volume
    else:
        found["profiles not complete"] += 1
        found["other reasons"] += sum(gap[3] != "expired" for gap in profile["coverage"]["gaps"])
    answer = (await at.served.get("/api/trades", **window, limit=1))["coverage"]
    gaps = [(ms(first), ms(last)) for first, last, *_ in answer["gaps"]]
    known = {one.trade_id for one in await returned(at.served, instrument, start, until)}
    missing = [one for one in inside if one.trade_id not in known]
    if "more_gaps" not in answer:
        found["false trades"] += sum(not any(first <= one.timestamp < last for first, last in gaps) for one in missing)
    found["false trades"] += bool(missing) and answer["ratio"] == 1
    return found


async def _fill(store: Store, listing: Listing, end: int) -> list[Trade]:
    """Trades, and the figures that rollup would have derived of them."""
    draw = random.Random(str(listing.instrument))
    trades: list[Trade] = []
    for number, at in enumerate(range(end - DAYS * DAY, end, EVERY), 1):
        side = TradeType.BUY if draw.random() < 0.5 else TradeType.SELL
        price, quantity = 6_000_000 + draw.randrange(2_000), draw.randrange(1, 100_000)
        trades.append(Trade(listing.instrument, at + draw.randrange(MINUTE), number, str(number), price, quantity, side, 1, listing.scale))
    await store.save_listings([listing])
    await store.track([listing.instrument])
    basis = Basis.EXACT if listing.instrument.exchange == "binance" else Basis.OBSERVED
    span = Span(end - DAYS * DAY, end, 1, len(trades), basis)
    for first in range(0, len(trades), 1_000):
        await store.write(trades[first : first + 1_000], [])
    await store.write([], [(listing.instrument, span)])
    for length in Timeframe:
        bars: dict[int, Footprint] = {}
        for one in trades:
            bars.setdefault(length.floor(one.timestamp), Footprint(listing.scale)).add(one)
        rows = list(bars.items())
        for first in range(0, len(rows), 500):
            some = rows[first : first + 500]
            whole = length in (Timeframe.M1, Timeframe.H1, Timeframe.D1)
            await store.derive(
                Derived(
                    footprints=[StoredFootprint(listing.instrument, length, at, one) for at, one in some] if whole else (),
                    order_flow=[OrderFlow(listing.instrument, length, at, one.bar, 0) for at, one in some],
                )
            )
    await store.derive(Derived(settles=[one for one in await store.dirty_minutes() if one.instrument == listing.instrument]))
    return trades
