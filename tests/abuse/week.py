"""A stored week of a busy market, which costly questions are asked about. Building it takes a while, so it is kept between runs."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Mapping
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Final

from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.clock import now_ms
from wadm_mcp.coverage.spans import Basis, Span
from wadm_mcp.model import DAY, HOUR, MINUTE, Instrument, Listing, Timeframe, Trade, TradeType
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Derived, OrderFlow, StoredFootprint

SYMBOL: Final = "WEEKUSDT"
"""No exchange lists it, so nothing is recorded or repaired beside the questions."""
LISTINGS: Final = [Listing(Instrument(name, "spot", SYMBOL), Decimal("0.01"), Decimal("0.00001")) for name in ("binance", "bybit")]
DAYS: Final = 8
TRADES_A_MINUTE: Final = 460
"""As on BTCUSDT: some 300 price levels a minute."""
_VERSION: Final = 1


async def stored_week(folder: Path) -> int:
    """Copy the week into the data folder of a server that is not started yet. Returns its end (ms), a full hour at most a day ago."""
    end = now_ms() // DAY * DAY
    kept = Path(tempfile.gettempdir()) / f"wadm-abuse-week-{os.getuid()}" / f"{_VERSION}-{end}.sqlite"
    if not kept.exists():
        shutil.rmtree(kept.parent, ignore_errors=True)
        kept.parent.mkdir(mode=0o700)
        fresh = kept.with_suffix(".new")
        async with SqliteStore(fresh) as store:
            await _fill(store, end)
        fresh.rename(kept)
    folder.mkdir(parents=True)
    shutil.copy(kept, folder / "wadm.sqlite")
    return end


async def _fill(store: SqliteStore, end: int) -> None:
    """Days that repeat one computed day, as rollup would store them."""
    minutes = busy_day()
    hours = [Footprint.merge_consecutive(minutes[first : first + 60], LISTINGS[0].scale) for first in range(0, 24 * 60, 60)]
    day = Footprint.merge_consecutive(hours, LISTINGS[0].scale)
    await store.save_listings(LISTINGS)
    await store.track([one.instrument for one in LISTINGS])
    for listing in LISTINGS:
        for start in range(end - DAYS * DAY, end, DAY):
            await store_bars(store, listing, Timeframe.M1, {start + place * MINUTE: one for place, one in enumerate(minutes)})
            for length in (Timeframe.M5, Timeframe.M15, Timeframe.M30):
                step = length.ms // MINUTE
                bars = [
                    (start + place * MINUTE, Footprint.merge_consecutive(minutes[place : place + step], listing.scale).bar)
                    for place in range(0, 24 * 60, step)
                ]
                await store.derive(Derived(order_flow=[OrderFlow(listing.instrument, length, at, bar, 0) for at, bar in bars]))
            await store_bars(store, listing, Timeframe.H1, {start + place * HOUR: one for place, one in enumerate(hours)})
            await store_bars(store, listing, Timeframe.D1, {start: day})
        await store.write([], [(listing.instrument, Span(end - DAYS * DAY, end, 0, 0, Basis.OBSERVED))])


def busy_day() -> list[Footprint]:
    """The minutes of a day at the scale of `LISTINGS`, always the same."""
    draw, middle, seq = random.Random(1), 6_000_000.0, 0
    minutes: list[Footprint] = []
    for minute in range(24 * 60):
        middle += draw.gauss(0, 700)
        footprint = Footprint(LISTINGS[0].scale)
        for step in range(TRADES_A_MINUTE):
            seq += 1
            price, quantity = int(draw.gauss(middle, 600)), int(draw.expovariate(0.0002)) + 1
            side = TradeType.BUY if draw.random() < 0.5 else TradeType.SELL
            at = minute * MINUTE + step * 130
            footprint.add(Trade(LISTINGS[0].instrument, at, seq, str(seq), price, quantity, side, 1, LISTINGS[0].scale))
        minutes.append(footprint)
    return minutes


async def store_bars(store: SqliteStore, listing: Listing, timeframe: Timeframe, bars: Mapping[int, Footprint]) -> None:
    """Store bars by their start, as footprints and as order flow."""
    rows = iter(bars.items())
    while some := list(islice(rows, 200)):
        await store.derive(
            Derived(
                footprints=[StoredFootprint(listing.instrument, timeframe, at, one) for at, one in some],
                order_flow=[OrderFlow(listing.instrument, timeframe, at, one.bar, 0) for at, one in some],
            )
        )
