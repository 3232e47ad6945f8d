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
    await store.keep_listings([LISTING])
    keep = tools.keep
    await keep(store, LISTING, Timeframe.M1, made)
    hours = {
        hour: Footprint.consecutive([made[at] for at in range(hour, hour + HOUR, MINUTE)], LISTING.scale)
        for hour in range(-(-FIRST // HOUR) * HOUR, tools.NOW - HOUR, HOUR)
    }
    await keep(store, LISTING, Timeframe.H1, hours)
    await store.write([], [(LISTING.instrument, Span(FIRST, tools.NOW, 0, 0, Basis.OBSERVED))])
    await store.derive(Derived(settles=await store.marks()))
    day = Footprint.consecutive([made[at] for at in range(tools.NOW - DAY, tools.NOW, MINUTE)], LISTING.scale)
    levels = sorted(each.levels for each in made.values())
    return {"trades": day.bar.trade_count, "levels_minute": levels[len(levels) // 2], "levels_day": day.levels}


async def measure(trades: int, times: int = 1) -> dict[str, Any]:
    """One day's figures, in milliseconds."""
    with tempfile.TemporaryDirectory(prefix="wadm-bench-") as folder:
        async with SqliteStore(Path(folder) / "tape.sqlite") as store:
            told = await record(store, trades, times)
        async with tools.connected("http", folder) as client:
            watch = tools.Stopwatch(client)
            for _ in range(50):
                await watch.asked("ping", {})
            await watch.asked("get_volume_profile", ASKED)
            warm = await watch.timed("get_volume_profile", ASKED, 25, "answers")
            cold = await watch.timed("get_volume_profile", ASKED, 15, "everything")
    row = {"scenario": "24-hour profile", **told, "cold_ms": tools.percentile(cold, 50), "cold_p99_ms": tools.percentile(cold, 99)}
    return row | {"warm_ms": tools.percentile(warm, 50), "trivial_ms": tools.percentile(watch.trivial, 50)}


def rows() -> Iterator[dict[str, Any]]:
    """The busy day; then a tenth of it, and that ten times over."""
    for trades, times in ((TRADES, 1), (TRADES // 10, 1), (TRADES // 10, 10)):
        yield anyio.run(measure, trades, times)


if __name__ == "__main__":
    for row in rows():
        print(json.dumps({key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}), flush=True)
