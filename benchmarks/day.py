"""The 24-hour profile of a market of five million trades a day, at a row of one basis point: cold and warm, beside a tool that does
nothing; and the same for a tenth of the trades beside ten times as many at the very same prices.

    python -m benchmarks.day            prints a row for each of the three days

Every trade is folded one by one into its minute, along the same path of prices; the store is SQLite, the client speaks Streamable HTTP.
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
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.model import DAY, HOUR, MINUTE, Basis, Span, Timeframe, Trade, TradeType
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Derived

TRADES: Final = 5_000_000
ASKED: Final[dict[str, Any]] = {"exchange": "binance", "symbol": "BTCUSDT", "window": "24h", "row_size": 6, "detail": "standard"}
LISTING: Final = tools.LISTINGS[0]
FIRST: Final = tools.NOW - 25 * HOUR


def minutes(trades: int, times: int) -> dict[int, Footprint]:
    """25 hours of minutes: a price that walks some 3,000 dollars a day, prints around it as wide as a busy minute's, each of them so
    many times."""
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
    """The day, as rollup would leave it; its levels of price by minute (median) and in all."""
    made = minutes(trades, times)
    await store.save_listings([LISTING])
    keep = tools.keep
    await keep(store, LISTING, Timeframe.M1, made)
    hours = {
        hour: Footprint.consecutive([made[at] for at in range(hour, hour + HOUR, MINUTE)], LISTING.scale)
        for hour in range(-(-FIRST // HOUR) * HOUR, tools.NOW - HOUR, HOUR)
    }
    await keep(store, LISTING, Timeframe.H1, hours)
    await store.write([], [(LISTING.instrument, Span(FIRST, tools.NOW, 0, 0, Basis.OBSERVED))])
    await store.derive(Derived(settles=await store.dirty_minutes()))
    day = Footprint.consecutive([made[at] for at in range(tools.NOW - DAY, tools.NOW, MINUTE)], LISTING.scale)
    levels = sorted(each.levels for each in made.values())
    return {"trades": day.bar.trade_count, "levels_minute": levels[len(levels) // 2], "levels_day": day.levels}


async def measure(*days: tuple[int, int]) -> list[dict[str, Any]]:
    """The figures of days, in milliseconds, each given as trades and how often; they are asked in turn, so that they compare."""
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
    """The busy day; then a tenth of it, and that ten times over."""
    yield from anyio.run(measure, (TRADES, 1))
    yield from anyio.run(measure, (TRADES // 10, 1), (TRADES // 10, 10))


if __name__ == "__main__":
    for row in rows():
        print(json.dumps({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}), flush=True)
