"""CPU cost of the hot path in one process: decoding, recording and storing a trade, compared with the simplest implementation.

    python -m benchmarks

Ratios compare the rows of one run; absolute times depend on the machine.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path

import anyio

from wadm_mcp.analytics.volume_profile import volume_profile
from wadm_mcp.clock import SYSTEM_CLOCK, now_ms
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.exchanges.binance import Binance
from wadm_mcp.exchanges.exchange import Trades
from wadm_mcp.health import Health
from wadm_mcp.model import HOUR, MINUTE, Instrument, Listing, Window
from wadm_mcp.simulator.market import Market
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.tape import Tape

LISTING = Listing(Instrument("binance", "spot", "BTCUSDT"), Decimal("0.01"), Decimal("0.00001"))
TRADES = 200_000


def frames() -> list[bytes]:
    """Frames of the simulated market, as Binance sends them."""
    # They begin an hour ago, because the recorder rejects frames that are more than an hour ahead of its clock.
    minute = (now_ms() - HOUR) // MINUTE * MINUTE
    market, made = Market("binance", "spot", "BTCUSDT", rate=5_000), list[bytes]()
    while len(made) < TRADES:
        for fill in market.trades(minute):
            price, quantity = f"{fill.price / 100:.8f}", f"{fill.quantity / 100_000:.8f}"
            event = {"e": "trade", "E": fill.time + 1, "s": "BTCUSDT", "t": fill.id, "p": price, "q": quantity}
            made.append(json.dumps({**event, "T": fill.time, "m": not fill.buy, "M": True}, separators=(",", ":")).encode())
        minute += MINUTE
    return made[:TRADES]


def plain(made: list[bytes]) -> None:
    """The baseline: json, Decimal and a dictionary."""
    cells: dict[tuple[int, Decimal], list[Decimal]] = {}
    for frame in made:
        row = json.loads(frame)
        cell = cells.setdefault((row["T"] // MINUTE, Decimal(row["p"])), [Decimal(0), Decimal(0)])
        cell[row["m"]] += Decimal(row["q"])


async def timed(name: str, step: Callable[[], Awaitable[object]], base: float | None = None) -> float:
    """Run a step once and print its CPU time."""
    began = time.process_time()
    await step()
    spent = time.process_time() - began
    ratio = f"  {spent / base:5.2f} x plain" if base else ""
    print(f"{name:<42} {spent / TRADES * 1e6:7.2f} µs CPU a trade{ratio}")
    return spent


async def main() -> None:
    """Run every row."""
    made = frames()
    decoder = Binance().decoder("spot", [LISTING])
    messages: list[Trades] = []

    async def simple() -> None:
        plain(made)

    async def decode() -> None:
        messages.extend(message for frame in made if isinstance(message := decoder.decode(frame), Trades))

    base = await timed("plain: json, Decimal, dictionary", simple)
    await timed("decode", decode, base)
    tape = Tape()
    recorder = Recorder(tape, Health(now_ms), SYSTEM_CLOCK)
    recorder.start(LISTING, has_gapless_ids=True)

    async def record() -> None:
        for first in range(0, TRADES, 128):
            await recorder.take(1, *messages[first : first + 128])

    # All trades stay pending here; a live writer takes a batch every 250 ms.
    await timed("record: continuity, tape, footprint", record, base)
    with tempfile.TemporaryDirectory() as folder:
        async with SqliteStore(Path(folder) / "wadm.sqlite") as store:
            pending = recorder.take_batch()

            async def write() -> None:
                for first in range(0, TRADES, 1_000):
                    await store.write(pending.trades[first : first + 1_000], pending.spans if first + 1_000 >= TRADES else ())

            await timed("store: SQLite, durable, batches of 1,000", write, base)
            state = await store.state()
            print(f"{'stored':<42} {state.bytes / TRADES:7.1f} bytes a trade")
            began = time.perf_counter()
            await store.trades(LISTING.instrument, Window(0, 1 << 52), limit=1_000)
            print(f"{'query: 1,000 trades':<42} {(time.perf_counter() - began) * 1e3:7.2f} ms")
    minutes = list(tape[LISTING.instrument].minutes.values())
    began = time.perf_counter()
    merged = type(minutes[0]).merge_consecutive(minutes, LISTING.scale)
    print(f"{f'merge {len(minutes)} minutes, {len(merged.cells):,} levels':<42} {(time.perf_counter() - began) * 1e3:7.2f} ms")
    began = time.perf_counter()
    volume_profile(merged, tick=1)
    print(f"{'profile of these':<42} {(time.perf_counter() - began) * 1e3:7.2f} ms")


if __name__ == "__main__":
    anyio.run(main)
