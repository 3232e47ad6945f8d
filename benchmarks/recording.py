"""The cost of recording, compared with cryptofeed's `TradeMongo` in the same run, and the time of a profile of a busy day.

    python -m benchmarks.recording              runs all; prints rows, table and targets; writes benchmarks/results.json and the table
    python -m benchmarks.recording paced burst  runs some scenarios and writes nothing; with --write it updates their results

Measures CPU of process and database, memory, lost trades, latency and stalls of the event loop. The exit status is 1 if a target is missed.

The recording process has a core to itself; the loopback exchange (`feed`), MongoDB and the querying client share another. cryptofeed runs
in an environment of its own (`make .venv-peers/ready`). Only figures of one run are comparable, not those of different machines.
"""

from __future__ import annotations

import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from itertools import cycle, product
from pathlib import Path
from typing import Any, Final

import anyio
import pymongo
from mcp.client import Client

from benchmarks import day, table
from benchmarks.feed import symbols
from benchmarks.table import RESULTS, ROOT, SYSTEMS
from benchmarks.targets import judge
from benchmarks.tools import machine
from tests.abuse.week import store_bars
from tests.servers import Mongod, free_port, own_mongod
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.coverage.spans import Basis, Span
from wadm_mcp.model import DAY, HOUR, MINUTE, Instrument, Listing, Timeframe, Trade, TradeType
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Derived

PEERS: Final = ROOT / ".venv-peers" / "bin" / "python"
FLOOD: Final = 1_000_000
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Recording:
    """A running recorder with its feed and its database, and their resource usage."""

    def __init__(self, system: str, phases: list[str], count: int, folder: Path, server: Mongod, exchange: str = "binance") -> None:
        self.system = system
        self.exchange = exchange
        self.folder = folder
        self.names = symbols(count)
        self._server = server
        self._client = pymongo.MongoClient[dict[str, Any]](server.url)
        self._server_pid = next(iter(_children_named("mongod")), 0)
        port = free_port()
        self.feed = subprocess.Popen(
            _on_core(1, [sys.executable, "-m", "benchmarks.feed", exchange, str(port), str(count), *phases]),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "listening"
        self.port = free_port()
        self.process = subprocess.Popen(
            _on_core(0, self._command(port)),
            # cryptofeed writes a log into its working directory.
            cwd=folder if system.startswith("cryptofeed") else ROOT,
            env={**os.environ, **self._settings(port)},
            stdout=subprocess.DEVNULL,
            stderr=(folder / "log").open("w"),
        )

    def _command(self, port: int) -> list[str]:
        if self.system.startswith("cryptofeed"):
            script = str(ROOT / "benchmarks" / "peers" / "cryptofeed_mongo.py")
            return [str(PEERS), script, f"ws://127.0.0.1:{port}", str(self._server.port), "tape", ",".join(self.names)]
        return [sys.executable, "-m", "tests.abuse.launch", "--loop", str(self.folder / "stalls"), "--", "serve"]

    def _settings(self, port: int) -> dict[str, str]:
        base = f"127.0.0.1:{port}"
        settings = {
            "WADM_SYMBOLS": ",".join(self.names),
            "WADM_EXCHANGES": self.exchange,
            "WADM_MARKETS": "linear",
            "WADM_HISTORY_HOURS": "0",
            "WADM_BINANCE_LINEAR_WS": f"ws://{base}",
            "WADM_BINANCE_LINEAR_REST": f"http://{base}",
            "WADM_BYBIT_WS": f"ws://{base}",
            "WADM_BYBIT_REST": f"http://{base}",
            "WADM_DATA_DIR": str(self.folder / "data"),
            "WADM_PORT": str(self.port),
            "WADM_MAX_INSTRUMENTS": "500",
        }
        return settings | ({"MONGODB_URL": f"{self._server.url}/tape"} if "MongoDB" in self.system else {})

    def line(self) -> str:
        """The next line that the feed prints."""
        assert self.feed.stdout is not None
        return self.feed.stdout.readline().strip()

    @property
    def cpu(self) -> tuple[float, float]:
        """CPU seconds used so far by the recorder and by MongoDB."""
        return _cpu(self.process.pid), _cpu(self._server_pid)

    @property
    def memory(self) -> float:
        """Resident megabytes of the recorder now."""
        return self._status("VmRSS")

    @property
    def highest_memory(self) -> float:
        """Peak of the recorder's resident memory in megabytes, as recorded by the kernel."""
        return self._status("VmHWM")

    def _status(self, name: str) -> float:
        found = re.search(rf"{name}:\s*(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0

    @property
    def stored(self) -> int:
        """Trades in the store."""
        if "MongoDB" in self.system:
            return self._client["tape"]["trades"].estimated_document_count()
        with sqlite3.connect(f"file:{self.folder}/data/wadm.sqlite?mode=ro", uri=True) as db:
            # Ids are consecutive; counting rows would take time from the recorder.
            return db.execute("SELECT coalesce(sum(last_seq - first_seq + 1), 0) FROM coverage").fetchone()[0]

    def stall(self, since: float) -> float:
        """The longest stall of the event loop since an epoch second, in milliseconds."""
        lines = (self.folder / "stalls").read_text().split("\n")[:-1]
        return max((float(line.split()[1]) for line in lines if float(line.split()[0]) >= since), default=0.0)

    def watch(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        """Wait until a time or a condition; returns the peak of memory (MB) meanwhile."""
        peak, end = 0.0, time.monotonic() + seconds
        while time.monotonic() < end and not until():
            peak = max(peak, self.memory)
            time.sleep(0.25)
        return peak

    def stop(self) -> None:
        """Stop the recorder and the feed."""
        self._client.close()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.feed.kill()
        self.feed.wait()


@contextmanager
def recording(system: str, phases: list[str], count: int = 5, exchange: str = "binance") -> Generator[Recording]:
    """A recorder whose feed has begun."""
    with own_mongod() as server, tempfile.TemporaryDirectory(prefix="wadm-bench-") as folder:
        for pid in _children_named("mongod"):
            subprocess.run(["taskset", "-acp", "1", str(pid)], check=True, stdout=subprocess.DEVNULL)
        one = Recording(system, phases, count, Path(folder), server, exchange)
        try:
            assert one.line() == "begun"
            yield one
        finally:
            one.stop()


def paced(rate: int, seconds: float = 25) -> Iterator[dict[str, Any]]:
    """Trades at a realistic rate, one per frame: cores used by process and database."""
    for system in SYSTEMS:
        with recording(system, [f"{rate}:{seconds + 15:.0f}"]) as one:
            time.sleep(8)
            before, began, resting = one.cpu, time.monotonic(), one.memory
            peak = one.watch(seconds)
            passed = time.monotonic() - began
            process, database = ((after - was) / passed for after, was in zip(one.cpu, before, strict=True))
            row = {"scenario": f"paced {rate}/s", "system": system, "process_cores": process, "mongod_cores": 0.0}
            if "MongoDB" in system:
                row["mongod_cores"] = database
            yield row | {"cores": row["process_cores"] + row["mongod_cores"], "memory_start": resting, "memory_peak": peak}


def flood() -> Iterator[dict[str, Any]]:
    """Trades as fast as the recorder takes them, until all are stored.

    Of three rounds it reports the median, because a machine's speed varies by a tenth between runs, with the highest memory and the
    longest stall of all three.
    """
    rounds = [row for _ in range(3) for row in flood_once()]
    for system in SYSTEMS:
        mine = sorted((row for row in rounds if row["system"] == system), key=lambda row: row["stored_per_s"])
        yield mine[1] | {key: max(row[key] for row in mine) for key in ("memory_peak", "stall_ms") if key in mine[1]}


def flood_once() -> Iterator[dict[str, Any]]:
    """One round of `flood`."""
    for system in SYSTEMS:
        with recording(system, [f"0:{FLOOD}"]) as one:
            resting, began, before, since = one.memory, time.monotonic(), one.cpu, time.time()
            one.watch(300, lambda: one.stored >= FLOOD)
            passed = time.monotonic() - began
            process, database = ((after - was) / FLOOD * 1e6 for after, was in zip(one.cpu, before, strict=True))
            row = {"scenario": "flood", "system": system, "stored_per_s": one.stored / passed, "process_us": process, "mongod_us": 0.0}
            if "MongoDB" in system:
                row["mongod_us"] = database
            row |= {"memory_start": resting, "memory_peak": one.highest_memory}
            yield row | ({"stall_ms": one.stall(since)} if system.startswith("WADM") else {})


def asked() -> Iterator[dict[str, Any]]:
    """The same flood while one client requests the newest trade and a profile in turn."""
    for system in SYSTEMS[1:]:
        with recording(system, [f"0:{FLOOD}"]) as one:
            resting, since = one.memory, time.time()
            time.sleep(2)
            took = anyio.run(_ask_in_turn, one, 6.0)
            assert one.stored < FLOOD, "all trades were stored before the client was done"
            one.watch(300, lambda: one.stored >= FLOOD)
            row = {"scenario": "flood, asked", "system": system, "stored": one.stored, "answers": len(took)}
            row |= {"answer_p50_ms": _percentile(took, 50), "answer_p99_ms": _percentile(took, 99), "stall_ms": one.stall(since)}
            yield row | {"memory_start": resting, "memory_peak": one.highest_memory}


def burst() -> Iterator[dict[str, Any]]:
    """20,000 trades in one second on top of 2,000/s, while one client requests the newest trade continuously."""
    for system in SYSTEMS[1:]:
        with recording(system, ["2000:25", "22000:1", "2000:14"]) as one:
            time.sleep(8)
            resting, since = one.memory, time.time()
            lateness, took = anyio.run(_ask, one, 15.0)
            quiet = {"late_p50_ms": _percentile(lateness, 50), "late_p99_ms": _percentile(lateness, 99)}
            sent_at: list[str] = []
            burst_took = anyio.run(_ask, one, 8.0)[1]
            for _ in range(3):
                sent_at.append(one.line())
            time.sleep(2)
            total = sum(int(line.split()[1]) for line in sent_at)
            gaps = anyio.run(_gaps, one)
            row = {"scenario": "burst", "system": system, **quiet, "answer_p99_ms": _percentile(took, 99)}
            row |= {"burst_answer_p99_ms": _percentile(burst_took, 99), "sent": total, "gaps": gaps}
            yield row | {"memory_start": resting, "memory_peak": one.highest_memory, "stall_ms": one.stall(since)}


def many() -> Iterator[dict[str, Any]]:
    """400 instruments with 5,000 trades/s in total. Trades of Bybit are received twice, on two connections."""
    for exchange, system in product(("binance", "bybit"), SYSTEMS[1:]):
        with recording(system, ["5000:60"], 400, exchange) as one:
            since = time.time()
            time.sleep(5)
            before, began, resting = one.cpu, time.monotonic(), one.memory
            peak = one.watch(45)
            passed = time.monotonic() - began
            process, database = ((after - was) / passed for after, was in zip(one.cpu, before, strict=True))
            row = {"scenario": f"400 instruments of {exchange}, 5,000/s", "system": system, "process_cores": process}
            row |= {"mongod_cores": database, "memory_start": resting, "memory_peak": peak}
            yield row | {"stall_ms": one.stall(since + 5), "gaps": anyio.run(_gaps, one)}


def long() -> Iterator[dict[str, Any]]:
    """The same for ten minutes: memory minute by minute."""
    for exchange in ("binance", "bybit"):
        with recording(SYSTEMS[1], ["5000:660"], 400, exchange) as one:
            since = time.time()
            time.sleep(5)
            resting = one.memory
            minutes = [one.watch(60) for _ in range(10)]
            row = {"scenario": f"400 instruments of {exchange}, ten minutes", "system": SYSTEMS[1], "memory_start": resting}
            row |= {"memory_minutes": minutes, "memory_peak": one.highest_memory}
            yield row | {"stall_ms": one.stall(since + 5), "gaps": anyio.run(_gaps, one)}


def start() -> Iterator[dict[str, Any]]:
    """Time from the start of the process to its first 24-hour profile, with 30 days of minutes, hours and days in the store."""
    with tempfile.TemporaryDirectory(prefix="wadm-bench-") as folder, own_mongod() as server:
        anyio.run(_fill, Path(folder))
        took: list[float] = []
        for _ in range(3):
            one = Recording(SYSTEMS[2], ["100:60"], 1, Path(folder), server)
            began = time.perf_counter()
            anyio.run(_first_answer, one)
            took.append(time.perf_counter() - began)
            one.stop()
        yield {"scenario": "start with 30 days", "system": SYSTEMS[2], "first_answer_s": _percentile(took, 50)}


async def _fill(folder: Path) -> None:
    listing = Listing(Instrument("binance", "linear", "BTCUSDT"), Decimal("0.1"), Decimal("0.001"))
    draw, made = random.Random(5), list[Footprint]()
    for minute in range(1_440):
        footprint = Footprint(listing.scale)
        for number in range(460):
            price, side = 600_000 + minute + draw.randrange(900), draw.choice(list(TradeType))
            footprint.add(Trade(listing.instrument, number, number, "", price, draw.randint(1, 5_000), side, 1, listing.scale))
        made.append(footprint)
    hours = [Footprint.merge_consecutive(made[first : first + 60], listing.scale) for first in range(0, 1_440, 60)]
    whole = Footprint.merge_consecutive(hours, listing.scale)
    today = Timeframe.D1.floor(time.time_ns() // 1_000_000)
    (folder / "data").mkdir()
    async with SqliteStore(folder / "data" / "wadm.sqlite") as store:
        await store.save_listings([listing])
        for day in range(today - 30 * DAY, today, DAY):
            await store_bars(store, listing, Timeframe.M1, {day + number * MINUTE: each for number, each in enumerate(made)})
            await store_bars(store, listing, Timeframe.H1, {day + number * HOUR: each for number, each in enumerate(hours)})
            await store_bars(store, listing, Timeframe.D1, {day: whole})
        await store.write([], [(listing.instrument, Span(today - 30 * DAY, today, 1, 1_000, Basis.EXACT))])
        await store.derive(Derived(settles=await store.dirty_minutes()))


async def _first_answer(one: Recording) -> None:
    """Returns after the first answer without an error."""
    with anyio.fail_after(30):
        while True:
            try:
                async with Client(f"http://127.0.0.1:{one.port}/mcp") as client:
                    result = await client.call_tool("get_volume_profile", {"symbol": "BTCUSDT", "window": "24h"})
                    if not result.is_error:
                        return
            except Exception:  # noqa: BLE001 - the server does not listen yet
                await anyio.sleep(0.02)


async def _ask(one: Recording, seconds: float) -> tuple[list[float], list[float]]:
    """Latencies in milliseconds: of every trade, from sending it to the end of the first answer with it; and of every answer."""
    lateness: list[float] = []
    took: list[float] = []
    asked = {"exchange": "binance", "market": "linear", "symbol": one.names[0], "limit": 1}
    async with Client(f"http://127.0.0.1:{one.port}/mcp") as client:
        end, seen = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            began = time.perf_counter()
            result = await client.call_tool("get_trades", asked)
            took.append((time.perf_counter() - began) * 1e3)
            now = time.time() * 1e3
            assert not result.is_error, result.content
            newest = _newest(result.structured_content)
            if seen:
                # Assumes that trades between two answers were sent at a constant rate.
                lateness += [now - (seen + (newest - seen) * part / 20) for part in range(1, 21) if newest > seen]
            seen = newest
    return lateness, took


async def _ask_in_turn(one: Recording, seconds: float) -> list[float]:
    """Latency of each answer in milliseconds."""
    took: list[float] = []
    asked = {"exchange": "binance", "market": "linear", "symbol": one.names[0]}
    questions = cycle([("get_trades", asked | {"limit": 1}), ("get_volume_profile", asked | {"window": "1h"})])
    async with Client(f"http://127.0.0.1:{one.port}/mcp") as client:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            result = await client.call_tool(*next(questions))
            took.append((time.perf_counter() - began) * 1e3)
            assert not result.is_error, result.content
    return took


def _newest(answer: Any) -> int:
    return int(datetime.fromisoformat(answer["coverage"]["newest_trade_at"]).timestamp() * 1e3)


async def _gaps(one: Recording) -> int:
    """Gaps since the recorder started; each market has one gap before that."""
    async with Client(f"http://127.0.0.1:{one.port}/mcp") as client:
        result = await client.call_tool("list_markets", {})
        table = (result.structured_content or {})["markets"]
        gaps = table["columns"].index("open_gaps")
        return sum(row[gaps] - 1 for row in table["rows"])


def _percentile(figures: list[float], percent: int) -> float:
    return sorted(figures)[-(-len(figures) * percent // 100) - 1] if figures else 0.0


def _on_core(core: int, command: list[str]) -> list[str]:
    return ["taskset", "-c", str(core), *command]


def _children_named(name: str) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(os.getpid()), name], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


SCENARIOS: Final[dict[str, Callable[[], Iterator[dict[str, Any]]]]] = {
    "paced": lambda: (row for rate in (2_000, 10_000) for row in paced(rate)),
    "flood": flood,
    "asked": asked,
    "burst": burst,
    "many": many,
    "long": long,
    "start": start,
    "profile": day.rows,
}


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 3) if isinstance(value, float) else value


def main() -> None:
    """Run the named scenarios, or all."""
    some = [name for name in sys.argv[1:] if name != "--write"]
    found: dict[str, list[dict[str, Any]]] = {}
    for name in some or SCENARIOS:
        for row in SCENARIOS[name]():
            found.setdefault(name, []).append({"run": name, **{key: _rounded(value) for key, value in row.items()}})
            print(json.dumps(found[name][-1]), flush=True)
    if not some or "--write" in sys.argv:
        known: list[dict[str, Any]] = json.loads(RESULTS.read_text())["recording"] if some else []
        for name in SCENARIOS.keys() - found.keys():
            found[name] = [row for row in known if row["run"] == name]
        rows = [row for name in SCENARIOS for row in found[name]]
        results = {"machine": machine(), "recording": rows}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        table.write(results)
        print(table.table(results))
        sys.exit(1 if judge(rows) else 0)


if __name__ == "__main__":
    main()
