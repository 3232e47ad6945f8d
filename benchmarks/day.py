"""Times of the 24-hour profile of a market with five million trades a day, with rows of one basis point.

    python -m benchmarks.day            prints a row for each of three days

The first day is measured cold and warm, next to a tool that does nothing. The other two have a tenth of the trades, and ten times that
tenth at the same prices. Trades are added one by one to their minutes; the store is SQLite, the client uses Streamable HTTP.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import anyio

from benchmarks import tools
from tests.abuse.week import store_bars
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.coverage.spans import Basis, Span
from wadm_mcp.model import DAY, HOUR, MINUTE, Timeframe, Trade, TradeType
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Derived

TRADES: Final = 5_000_000
ASKED: Final[dict[str, Any]] = {"exchange": "binance", "symbol": "BTCUSDT", "window": "24h", "row_size": 6, "detail": "standard"}
LISTING: Final = tools.LISTINGS[0]
FIRST: Final = tools.NOW - 25 * HOUR


def minutes(trades: int, times: int) -> dict[int, Footprint]:
    """25 hours of minutes: the price moves some 3,000 dollars a day, trades spread around it as in a busy minute.

    Each trade is added `times` times.
    """
    draw = random.Random(3)
    a_minute, middle, seq = trades // 1_440, 6_000_000.0, 0
    made: dict[int, Footprint] = {}
    for start in range(FIRST, tools.NOW, MINUTE):
        footprint = made[start] = Footprint(LISTING.scale)
        middle += draw.gauss(0, 1_500)
        for number in range(a_minute):
            seq += 1
            side = TradeType.BUY if draw.random() < 0.5 else TradeType.SELL
            price, quantity = int(middle + draw.gauss(0, 95)), int(10 ** draw.uniform(1, 5))
            trade = Trade(LISTING.instrument, start + number * MINUTE // a_minute, seq, "", price, quantity, side, 1, LISTING.scale)
            footprint.add(*[trade] * times)
    return made


async def record(store: SqliteStore, trades: int, times: int) -> dict[str, int]:
    """Fill the store as rollup would; returns the number of trades, and of price levels per minute (median) and in total."""
    made = minutes(trades, times)
    await store.save_listings([LISTING])
    await store_bars(store, LISTING, Timeframe.M1, made)
    hours = {
        hour: Footprint.merge_consecutive([made[at] for at in range(hour, hour + HOUR, MINUTE)], LISTING.scale)
        for hour in range(-(-FIRST // HOUR) * HOUR, tools.NOW - HOUR, HOUR)
    }
    await store_bars(store, LISTING, Timeframe.H1, hours)
    await store.write([], [(LISTING.instrument, Span(FIRST, tools.NOW, 0, 0, Basis.OBSERVED))])
    await store.derive(Derived(settles=await store.dirty_minutes()))
    day = Footprint.merge_consecutive([made[at] for at in range(tools.NOW - DAY, tools.NOW, MINUTE)], LISTING.scale)
    levels = sorted(each.levels for each in made.values())
    return {"trades": day.bar.trade_count, "levels_minute": levels[len(levels) // 2], "levels_day": day.levels}


async def measure(*days: tuple[int, int]) -> list[dict[str, Any]]:
    """Measured times in milliseconds; each day is given as trades and repetitions. Days are measured in turn, for a fair comparison."""
    rows: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        watches: list[tools.Stopwatch] = []
        for trades, times in days:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="wadm-bench-"))
            async with SqliteStore(Path(folder) / "tape.sqlite") as store:
                rows.append({"scenario": "24-hour profile", **await record(store, trades, times)})
            watch = tools.Stopwatch(await stack.enter_async_context(tools.connected("http", folder)))
            for _ in range(50):
                await watch.asked("ping", {})
            await watch.asked("get_volume_profile", ASKED)
            watches.append(watch)
        for kind, forget, count in (("warm", "answers", 25), ("cold", "everything", 15)):
            took: list[list[float]] = [[] for _ in days]
            for _ in range(count):
                for place, watch in enumerate(watches):
                    took[place] += await watch.timed("get_volume_profile", ASKED, 1, forget)
            for row, each in zip(rows, took, strict=True):
                row |= {f"{kind}_ms": tools.percentile(each, 50), f"{kind}_p99_ms": tools.percentile(each, 99)}
    for row, watch in zip(rows, watches, strict=True):
        row["trivial_ms"] = tools.percentile(watch.trivial, 50)
    return rows


def rows() -> Iterator[dict[str, Any]]:
    """The rows of the busy day, of a tenth of it, and of ten times that tenth."""
    yield from anyio.run(measure, (TRADES, 1))
    yield from anyio.run(measure, (TRADES // 10, 1), (TRADES // 10, 10))


if __name__ == "__main__":
    for row in rows():
        print(json.dumps({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}), flush=True)
