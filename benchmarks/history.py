"""Imports a day of five million trades from its file, during live collection, on one core.

    python -m benchmarks.history

Prints the trades a second from file to store, the memory above the process at rest, and the delay of frames of a live feed.
"""

from __future__ import annotations

import gc
import os
import random
import tempfile
import time
import zipfile
from decimal import Decimal
from pathlib import Path

import anyio

from wadm_mcp.clock import SYSTEM_CLOCK, now_ms
from wadm_mcp.collection.backfill.history import History
from wadm_mcp.collection.disk_reserve import DiskReserve
from wadm_mcp.collection.recording.journal import Journal
from wadm_mcp.collection.recording.maintenance import Maintenance
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.collection.recording.rollup import Rollup
from wadm_mcp.collection.recording.writer import Writer
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.exchanges.binance import Binance
from wadm_mcp.exchanges.binance_archive import BinanceSpotTrades
from wadm_mcp.exchanges.exchange import Trades, Venue
from wadm_mcp.health import Health
from wadm_mcp.model import DAY, HOUR, Instrument, Listing, Retention, Trade, TradeType, Window
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.tape import Tape

ROWS = 5_000_000
NOWHERE = "http://127.0.0.1:1"
LISTING = Listing(Instrument("binance", "spot", "BTCUSDT"), Decimal("0.01"), Decimal("0.00001"))
LIVES = Retention(72 * HOUR, 30 * DAY, 365 * DAY)
FRAMES_A_SECOND = 200


def write_day(path: Path, start: int) -> None:
    """Write a file as Binance publishes it, with some hundred price levels a minute and mostly distinct quantities."""
    chance, price = random.Random(1), 6_000_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed, packed.open("BTCUSDT-trades.csv", "w") as member:
        for first in range(0, ROWS, 50_000):
            lines: list[str] = []
            for row in range(first, first + 50_000):
                price += chance.choice((-9, -1, 0, 0, 0, 0, 1, 9))
                quantity = chance.randrange(1, 20_000)
                at, sold = (start + row * DAY // ROWS) * 1_000, row % 3 == 0
                figures = f"{price // 100}.{price % 100:02d}000000,0.{quantity:05d}000,{price * quantity / 1e7:.8f}"
                lines.append(f"{1_000_000 + row},{figures},{at},{sold},True\n")
            member.write("".join(lines).encode())


def resident(kind: str) -> float:
    """Resident memory in megabytes: `VmRSS` is the present, `VmHWM` the peak."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(f"{kind}:")) / 1024


async def live(recorder: Recorder, waits: list[float], number: int) -> None:
    """Records a frame every few milliseconds and appends its delay (including its own processing) to `waits`."""
    due = anyio.current_time()
    while True:
        due += 1 / FRAMES_A_SECOND
        await anyio.sleep_until(due)
        number, now = number + 1, now_ms()
        trade = Trade(LISTING.instrument, now, number, str(number), 6_000_000, 1, TradeType.BUY, 1, LISTING.scale)
        await recorder.take(1, Trades(LISTING.instrument, (trade,), now))
        waits.append(anyio.current_time() - due)


async def measure(folder: Path) -> None:
    today = now_ms() // DAY * DAY
    file = folder / "BTCUSDT-trades.zip"
    write_day(file, today - DAY)
    print(f"{ROWS:,} rows, {file.stat().st_size / 1e6:.0f} MB")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    health, tape = Health(now_ms), Tape()
    recorder = Recorder(tape, health, SYSTEM_CLOCK)
    async with (
        SqliteStore(folder / "wadm.sqlite") as store,
        Journal(folder / "journal", 1 << 30) as journal,
        RestClient(proxied=False) as rest,
    ):
        rollup = Rollup(store, health, SYSTEM_CLOCK, LIVES.trades)
        writer = Writer(recorder, journal, store, health)
        maintenance = Maintenance(recorder, writer, rollup, store, health, LIVES, SYSTEM_CLOCK)
        followed = recorder.start(LISTING, has_gapless_ids=True)
        await maintenance.resume(followed)
        history = History(
            Venue(Binance(), "spot", NOWHERE, NOWHERE, NOWHERE),
            rest,
            recorder,
            store,
            health,
            SYSTEM_CLOCK,
            reach=DAY,
            raw=False,
            trades_retention=LIVES.trades,
            folder=folder / "archive",
            reserve=DiskReserve(folder, 0),
        )
        waits: list[float] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.run)
            tasks.start_soon(maintenance.run)
            tasks.start_soon(live, recorder, waits, 10_000_000)
            await anyio.sleep(5)
            resting = resident("VmRSS")
            await anyio.Path("/proc/self/clear_refs").write_text("5")
            waits.clear()
            began = time.monotonic()
            new = await history.take_file(followed, file, Window(today - DAY, today), BinanceSpotTrades())
            spent = time.monotonic() - began
            peak = resident("VmHWM")
            assert new == ROWS
            while any(mark.minute < today for mark in await store.dirty_minutes()):  # noqa: ASYNC110 - the store has no event for this
                await anyio.sleep(0.5)
            derived = time.monotonic() - began
            waits = sorted(waits)
            tasks.cancel_scope.cancel()
        more, most = peak - resting, resident("VmHWM") - resting
        p50, p99, longest = (waits[min(len(waits) - 1, len(waits) * part // 1_000)] * 1e3 for part in (500, 990, 1_000))
        print(f"stored           {new / spent:>9,.0f} trades/s ({spent:.1f} s; every bar is derived after {derived:.1f} s)")
        print(f"memory           {resting:>9.0f} MB resting, {more:.0f} MB more until stored, {most:.0f} until derived")
        print(f"live frames late {p50:>9.1f} ms p50, {p99:.1f} p99, {longest:.1f} at most")


if __name__ == "__main__":
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    with tempfile.TemporaryDirectory() as made:
        anyio.run(measure, Path(made))
