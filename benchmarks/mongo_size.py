"""Disk space in MongoDB: bytes a trade, and megabytes of footprints, profiles and bars per instrument and day.

    python -m benchmarks.mongo_size [binance-spot binance-linear bybit-spot bybit-linear day]

A million trades of each kind of instrument, and a day as busy as one of BTCUSDT, are written through the store into a server of its own
(or the one at `WADM_TEST_MONGODB_URL`). Sizes are measured after a checkpoint and include indexes. Values that are irregular in real data
are random: quantities, sides, ids, times within a burst.
"""

from __future__ import annotations

import random
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final

import anyio
import pymongo

from tests.servers import mongodb_url
from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.volume_profile import volume_profile
from wadm_mcp.coverage.spans import Basis, Span
from wadm_mcp.model import DAY, HOUR, MINUTE, Instrument, Retention, Scale, Timeframe, Trade, TradeType
from wadm_mcp.storage.mongo import MongoStore
from wadm_mcp.storage.store import Derived, OrderFlow, Profile, StoredFootprint

TRADES: Final = 1_000_000
RATE: Final = 35
"""Trades a second of BTCUSDT on a busy exchange: three million a day."""
LEVELS: Final = 460
"""Price levels of a busy minute of BTCUSDT."""
START: Final = 20_660 * DAY
SPOT, LINEAR = Scale(2, 5), Scale(1, 3)
KINDS: Final[Mapping[str, tuple[Instrument, Scale]]] = {
    "binance-spot": (Instrument("binance", "spot", "BTCUSDT"), SPOT),
    "binance-linear": (Instrument("binance", "linear", "BTCUSDT"), LINEAR),
    "bybit-spot": (Instrument("bybit", "spot", "BTCUSDT"), Scale(2, 6)),
    "bybit-linear": (Instrument("bybit", "linear", "BTCUSDT"), LINEAR),
}
LIVES: Final = Retention(3_650 * DAY, 3_650 * DAY, 3_650 * DAY)


def tape(kind: str, count: int) -> Iterator[Trade]:
    """Trades in bursts: some have one millisecond and one side, like the fills of one taker order."""
    instrument, scale = KINDS[kind]
    draw = random.Random(kind)
    at, price, seq, side = float(START), 61_837 * 10**scale.price, 4_210_000_000, TradeType.BUY
    for _ in range(count):
        if draw.random() < 0.5:
            at += draw.expovariate(RATE / 2_000)
            side = draw.choice((TradeType.BUY, TradeType.SELL))
            seq += 1 if instrument.exchange == "binance" else draw.randint(1, 900)
        seq += instrument.exchange == "binance"
        price += int(draw.gauss(0, 12))
        quantity = max(1, int(10 ** draw.uniform(0.3, scale.quantity)))
        trade_id = str(seq)
        if kind == "bybit-linear":
            trade_id = str(uuid.UUID(int=draw.getrandbits(128), version=4))
        elif kind == "bybit-spot":
            trade_id = str(2_290_000_000_000_000_000 + seq * 1_000 + draw.randrange(1_000))
        fills = 1 if kind == "binance-spot" else min(40, int(draw.expovariate(0.7)) + 1)
        yield Trade(instrument, int(at), seq, trade_id, price, quantity, side, fills, scale)


def minutes() -> Iterator[tuple[int, Footprint]]:
    """A day of minutes with 460 price levels each, around a random walk."""
    draw = random.Random(1)
    middle, seq = 6_183_700, 1
    for start in range(START, START + DAY, MINUTE):
        footprint = Footprint(SPOT)
        middle += int(draw.gauss(0, 1_500))
        for price in draw.sample(range(middle - 900, middle + 900), LEVELS):
            volumes = [int(10 ** draw.uniform(0.3, 5.5)) if draw.random() < 0.75 else 0 for _ in range(2)]
            footprint.cells[price] = [*volumes, *((draw.randint(1, 9) if volume else 0) for volume in volumes)]
        buys, sells, buy_fills, sell_fills = map(sum, zip(*footprint.cells.values(), strict=True))
        seq += buy_fills + sell_fills
        notional = sum(price * (cell[0] + cell[1]) for price, cell in footprint.cells.items())
        swing = draw.randint(1, buys + sells)
        footprint.bar = Bar(
            SPOT,
            *(middle, max(footprint.cells), min(footprint.cells), middle + 7, buys, sells, buy_fills + sell_fills, notional),
            *(min(buys - sells, -swing), max(buys - sells, swing), start + 9, seq - buy_fills - sell_fills, start + MINUTE - 5, seq),
        )
        yield start, footprint


async def write_day(store: MongoStore) -> None:
    """Write the day as rollup does: each bar once, footprints of minutes, hours and the day."""
    instrument, total = KINDS["binance-spot"][0], 0
    day = dict(minutes())
    hours: dict[int, Footprint] = {}
    for timeframe in Timeframe:
        parts = hours if timeframe.ms > HOUR else day
        for start in range(START, START + DAY, timeframe.ms):
            footprint = Footprint.merge_consecutive((part for at, part in parts.items() if start <= at < start + timeframe.ms), SPOT)
            if timeframe is Timeframe.H1:
                hours[start] = footprint
            total += footprint.bar.delta
            await store.derive(
                Derived(
                    [StoredFootprint(instrument, timeframe, start, footprint)]
                    if timeframe in (Timeframe.M1, Timeframe.H1, Timeframe.D1)
                    else [],
                    [Profile(instrument, timeframe, start, volume_profile(footprint, tick=1))],
                    [OrderFlow(instrument, timeframe, start, footprint.bar, total)],
                )
            )


async def write_trades(store: MongoStore, kind: str) -> float:
    """Write a million trades; returns this process's CPU time per trade in microseconds."""
    trades = list(tape(kind, TRADES))
    began = time.process_time()
    for first in range(0, TRADES, 1_000):
        chunk = trades[first : first + 1_000]
        span = Span(START, chunk[-1].timestamp, trades[0].seq, chunk[-1].seq, Basis.EXACT)
        await store.write(chunk, [(chunk[0].instrument, span)])
    return (time.process_time() - began) / TRADES * 1e6


async def measure(url: str, client: pymongo.MongoClient[dict[str, Any]], kind: str) -> None:
    """Write one kind into a database of its own, and print its size on disk."""
    name = f"wadm_size_{kind.replace('-', '_')}"
    client.drop_database(name)
    try:
        async with MongoStore(f"{url}/{name}", LIVES) as store:
            if kind == "day":
                await write_day(store)
            else:
                began = time.perf_counter()
                spent = await write_trades(store, kind)
                print(f"{kind:<16} {TRADES / (time.perf_counter() - began):9,.0f} trades/s, {spent:.1f} µs CPU a trade")
            client.admin.command("fsync")
            bytes_of = {each.name: each.bytes for each in (await store.describe()).collections}
        if kind == "day":
            sizes = {name: bytes_of[name] / 1e6 for name in ("footprints", "volume_profiles", "bars", "order_flow")}
            parts = ", ".join(f"{name} {size:.1f}" for name, size in sizes.items())
            print(f"{kind:<16} {sum(sizes.values()):9.1f} MB an instrument-day ({parts})")
        else:
            stats = client[name].command("collStats", "trades")
            parts = f"documents {stats['storageSize'] / TRADES:.1f}, " + ", ".join(
                f"{index} {size / TRADES:.1f}" for index, size in stats["indexSizes"].items()
            )
            print(f"{kind:<16} {bytes_of['trades'] / TRADES:9.1f} bytes a trade ({parts})")
    finally:
        client.drop_database(name)


def main() -> None:
    """Measure the named kinds, or all."""
    kinds = sys.argv[1:] or [*KINDS, "day"]
    unknown = [kind for kind in kinds if kind not in (*KINDS, "day")]
    if unknown:
        sys.exit(f"{unknown[0]}: allowed are {', '.join((*KINDS, 'day'))}")
    with mongodb_url() as url, pymongo.MongoClient[dict[str, Any]](url) as client:
        print(f"MongoDB {client.server_info()['version']}")
        for kind in kinds:
            anyio.run(measure, url, client, kind)


if __name__ == "__main__":
    main()
