"""The attacked server: a `wadm-mcp serve` of its own, how much memory it takes, how fast it answers beside an attack, and what it lost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import anyio
import httpx2

from tests.abuse.verdict import SEED
from tests.end_to_end.process import Served, serving
from tests.soak.verdict import ledger, ms, returned
from wadm_mcp.clock import now_ms
from wadm_mcp.model import SECOND, Instrument
from wadm_mcp.simulator.simulator import Simulator

HERE: Final = Path(__file__).parent
SPOT: Final = Instrument("binance", "spot", "BTCUSDT")
INSTRUMENTS: Final = [SPOT, Instrument("bybit", "spot", "BTCUSDT")]
MEMORY_MB: Final = 3_000
"""Address space of an attacked process, so that the machine survives what the process does not."""
DEAD: Final = (OSError, httpx2.HTTPError, TimeoutError)
"""What asking a server raises that does not answer."""


def command(
    *,
    descriptors: int | None = None,
    memory: int | None = MEMORY_MB,
    clock: Path | None = None,
    expiry: float | None = None,
    loop: Path | None = None,
) -> list[str]:
    """`wadm-mcp`, bounded; see `launch`."""
    options = {"--descriptors": descriptors, "--memory": memory, "--clock": clock, "--expiry": expiry, "--loop": loop}
    given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return [sys.executable, str(HERE / "launch.py"), *given, "--"]


class Target:
    """One attacked process. Sizes are in MB, times in ms."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.pid = served.process.pid
        self.rest = 0.0
        self._peak = 0.0

    @property
    def url(self) -> str:
        return self.served.url

    @property
    def alive(self) -> bool:
        return self.served.process.returncode is None

    def memory(self, name: str = "VmRSS") -> float:
        """Resident memory now, or its peak (`VmHWM`); 0 once the process has ended."""
        try:
            found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        except OSError:
            return 0.0
        return int(found[1]) / 1024 if found else 0.0

    async def settle(self) -> None:
        """Wait until memory is stable, and take that as its rest."""
        before = 0.0
        with anyio.move_on_after(8):
            while abs(self.memory() - before) > 0.5:
                before = self.memory()
                await anyio.sleep(1)
        self.rest = self.memory()
        with suppress(OSError):
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    @property
    def peak(self) -> float:
        """Highest resident memory above rest since `settle`, as far as it was watched."""
        self._peak = max(self._peak, self.memory("VmHWM"))
        return self._peak - self.rest

    @asynccontextmanager
    async def watched(self) -> AsyncGenerator[None]:
        """Watch the peak all along: a process that dies takes its figures with it."""

        async def watch() -> None:
            while True:
                _ = self.peak
                await anyio.sleep(0.1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def back_at_rest(self, within: float, margin: float) -> float:
        """MB above rest, once at most `margin`, or after `within` seconds."""
        with anyio.move_on_after(within):
            while self.memory() - self.rest > margin:
                await anyio.sleep(1)
        return self.memory() - self.rest

    @property
    def log_bytes(self) -> int:
        return self.served.log.stat().st_size


@asynccontextmanager
async def target(
    folder: Path, simulator: Simulator, settings: Mapping[str, str] | None = None, *, name: str = "data", bounded: list[str] | None = None
) -> AsyncGenerator[Target]:
    """A server on the simulated exchanges, with one symbol on both unless `settings` say otherwise."""
    urls = {f"WADM_{key.upper()}": url for key, url in simulator.urls.items()}
    common = {**urls, "WADM_SYMBOLS": "BTCUSDT", "WADM_MARKETS": "spot"}
    async with serving(folder / name, "serve", settings={**common, **(settings or {})}, command=bounded or command()) as served:
        yield Target(served)


@asynccontextmanager
async def attacked(
    folder: Path, settings: Mapping[str, str] | None = None, *, activity: float = 1.0, bounded: list[str] | None = None
) -> AsyncGenerator[tuple[Target, Simulator]]:
    """A server on simulated exchanges of its own."""
    async with (
        Simulator(seed=SEED, instruments=INSTRUMENTS, activity=activity) as simulator,
        target(folder, simulator, settings, bounded=bounded) as at,
    ):
        yield at, simulator


class Latencies:
    """How long the answers of a probe took (ms); None is no answer."""

    def __init__(self) -> None:
        self.all: list[float | None] = []

    def percentile(self, share: float) -> float | None:
        """The value below which this share of the answers lies; None if that many did not come."""
        ordered = sorted(float("inf") if one is None else one for one in self.all)
        if not ordered:
            return None
        value = ordered[min(len(ordered) - 1, int(len(ordered) * share))]
        return None if value == float("inf") else value

    @property
    def unanswered(self) -> int:
        return sum(one is None for one in self.all)


@asynccontextmanager
async def probing(url: str, headers: Mapping[str, str] | None = None) -> AsyncGenerator[Latencies]:
    """Ask a light question over and over from another process; the result is there when the block has ended."""
    lines = [f"{name}: {value}" for name, value in (headers or {}).items()]
    found = Latencies()
    async with await anyio.open_process([sys.executable, str(HERE / "probe.py"), url, *lines], stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield found
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(10):
                await process.stdin.aclose()
                found.all = json.loads(b"".join([part async for part in process.stdout]) or b"[]")


async def live(at: Target, instrument: Instrument, within: float = 30) -> None:
    """Wait until trades of an instrument arrive."""
    since = now_ms() + SECOND
    with anyio.fail_after(within):
        while await newest(at, instrument) < since:
            await anyio.sleep(0.2)


async def newest(at: Target, instrument: Instrument) -> int:
    """Time of the newest trade (ms), 0 without one."""
    markets = (await at.served.get("/api/markets"))["markets"]
    rows = [dict(zip(markets["columns"], row, strict=True)) for row in markets["rows"]]
    at_times = [row["last_trade_at"] for row in rows if (row["exchange"], row["market"], row["symbol"]) == tuple(instrument)]
    return max((ms(time) for time in at_times if time), default=0)


async def lost(at: Target, simulator: Simulator, instrument: Instrument, start: int, end: int) -> tuple[int, int]:
    """Trades of the exchange in the window that are not returned, once later ones have arrived; and how many there were."""
    with anyio.move_on_after(20):
        while await newest(at, instrument) <= end + 2 * SECOND:
            await anyio.sleep(0.3)
    traded = [one.trade_id for one in ledger(simulator, instrument, start, end)]
    missing = set(traded)
    with anyio.move_on_after(20):
        # What a repair still fetches is not lost.
        while missing := set(traded) - {one.trade_id for one in await returned(at.served, instrument, start, end)}:
            await anyio.sleep(1)
    return len(missing), len(traded)


def cpu_seconds(at: Target) -> float:
    """Processor time that the process has taken."""
    fields = Path(f"/proc/{at.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def loop_held(file: Path, since: int, share: float = 0.99) -> float | None:
    """For how long the event loop was held at a time (ms of processor time) at this percentile; `since` as of `loop_turns`."""
    turns = sorted(float(line.split()[2]) for line in file.read_text().splitlines()[since:-1])
    return turns[int(len(turns) * share)] if turns else None


def loop_turns(file: Path) -> int:
    """Number of turns of the event loop that were watched so far; see `launch`."""
    return file.read_text().count("\n")


def arguments_of(instrument: Instrument) -> dict[str, Any]:
    """A question's arguments for one instrument."""
    return {"exchange": instrument.exchange, "market": instrument.market, "symbol": instrument.symbol}
