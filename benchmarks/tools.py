"""The latency of each tool, compared with a tool that does nothing, on the same transport in the same run.

    python -m benchmarks.tools          prints the table
    python -m benchmarks.tools --write  also writes it into docs/tools.md

SQLite contains a market as busy as BTCUSDT on two exchanges: 460 trades a minute each, a week of days, two days of minutes, an hour of
single trades. The server runs in a process of its own; clients use protocol version 2026-07-28. `hot` is a question repeated within a
second, `warm` one whose answer is computed again, `cold` one for which all caches of WADM are empty (the file cache of the system is not).
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp_types import CallToolResult, TextContent

from tests.abuse.week import TRADES_A_MINUTE, busy_day, store_bars
from tests.queries.world import Held
from tests.server.fake import FakeRuntime
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.cli import tune_garbage_collector, tune_threads
from wadm_mcp.coverage.spans import Basis, Span
from wadm_mcp.health import Health
from wadm_mcp.model import DAY, HOUR, MINUTE, Instrument, Listing, Timeframe, Trade, TradeType
from wadm_mcp.process.memory import share_heap
from wadm_mcp.queries.arguments import DETAILS
from wadm_mcp.queries.view import View
from wadm_mcp.server.server import WadmServer, build_server
from wadm_mcp.server.stdio import serve_stdio
from wadm_mcp.storage.cache import InProcessCache
from wadm_mcp.storage.cached import ANSWER_TTL_SECONDS, CachedAnswers, CachedFootprints
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Derived, OrderFlow
from wadm_mcp.tape import Tape
from wadm_mcp.web.app import build_app
from wadm_mcp.web.serve import serve_http

PAGE = Path(__file__).parents[1] / "docs" / "tools.md"
LISTINGS = [Listing(Instrument(name, "spot", "BTCUSDT"), Decimal("0.01"), Decimal("0.00001")) for name in ("binance", "bybit")]
MIDNIGHT = 20_660 * DAY
NOW = MIDNIGHT + 10 * HOUR + 17 * MINUTE
ERA = "2026-07-28"
HOT_SAMPLES, WARM_SAMPLES, COLD_SAMPLES = 100, 25, 10
HOT_ROUNDS = 20
"""Most answers that are computed to be reused; one that takes a whole second to compute is not reused at all."""
CALLS: dict[str, dict[str, Any]] = {
    "list_markets": {},
    "get_market_structure": {"symbol": "BTCUSDT"},
    "get_volume_profile": {"symbol": "BTCUSDT", "window": "24h"},
    "get_order_flow": {"symbol": "BTCUSDT", "window": "24h", "timeframe": "15m"},
    "get_footprint": {"symbol": "BTCUSDT", "window": "1h", "timeframe": "15m"},
    "get_trades": {"symbol": "BTCUSDT", "window": "1h"},
    "compare_exchanges": {"symbol": "BTCUSDT", "window": "4h"},
    "wait_for": {"symbol": "BTCUSDT", "condition": "coverage_back"},
}


async def record(store: SqliteStore) -> None:
    """Fill the store with the market, as rollup would."""
    minutes = busy_day()
    hours = [Footprint.merge_consecutive(minutes[first : first + 60], LISTINGS[0].scale) for first in range(0, 24 * 60, 60)]
    day = Footprint.merge_consecutive(hours, LISTINGS[0].scale)
    for listing in LISTINGS:
        for start in range(MIDNIGHT - 7 * DAY, MIDNIGHT, DAY):
            await store_bars(store, listing, Timeframe.D1, {start: day})
            await store_bars(store, listing, Timeframe.H1, {start + hour * HOUR: hours[hour] for hour in range(24)})
        await store_bars(store, listing, Timeframe.H1, {MIDNIGHT + hour * HOUR: hours[hour] for hour in range(10)})
        known = {start: minutes[start % DAY // MINUTE] for start in range(NOW - 51 * HOUR, NOW, MINUTE)}
        await store_bars(store, listing, Timeframe.M1, known)
        for length in (Timeframe.M5, Timeframe.M15):
            bars = {
                start: Footprint.merge_consecutive(
                    [minutes[at % DAY // MINUTE] for at in range(start, start + length.ms, MINUTE)], listing.scale
                )
                for start in range(length.floor(NOW - 50 * HOUR), length.floor(NOW), length.ms)
            }
            await store.derive(Derived(order_flow=[OrderFlow(listing.instrument, length, at, one.bar, 0) for at, one in bars.items()]))
        trades = [
            _trade(listing, at, at, 6_000_000 + at % 977, 1 + at % 9_973, at % 3 > 0)
            for at in range(NOW - HOUR, NOW, MINUTE // TRADES_A_MINUTE)
        ]
        await store.write(trades, [(listing.instrument, Span(MIDNIGHT - 7 * DAY, NOW, 0, 0, Basis.OBSERVED))])
    await store.derive(Derived(settles=await store.dirty_minutes()))


def _trade(listing: Listing, at: int, seq: int, price: int, quantity: int, bought: bool) -> Trade:
    side = TradeType.BUY if bought else TradeType.SELL
    return Trade(listing.instrument, at, seq, str(seq), price, quantity, side, 1, listing.scale)


class _Runtime(FakeRuntime):
    """WADM's view of the store, at a fixed time."""

    def __init__(self, store: SqliteStore) -> None:
        super().__init__()
        self.store = store  # pyright: ignore[reportAttributeAccessIssue]
        self.clock.at = NOW
        self.tape = Tape()
        self.tape.mark_listings_attempted()
        self.health = Health(self.clock.now)
        for listing in LISTINGS:
            self.tape.follow(listing).start_recording(Held([Span(MIDNIGHT - 7 * DAY, NOW, 0, 0, Basis.OBSERVED)], NOW))
        self.cache = InProcessCache(64 << 20)
        self.forget("everything")

    def forget(self, what: str) -> None:
        """Empty the cache of answers, or every cache."""
        self.answers = CachedAnswers(InProcessCache())
        if what == "everything":
            footprints = CachedFootprints(InProcessCache(64 << 20))
            self.view = View(self.store, self.tape, self.clock.now, ("spot",), ("binance", "bybit"), cached=footprints)


async def serve(transport: str, folder: str) -> None:
    """WADM's server with two more tools: one that does nothing, one that empties caches."""
    tune_garbage_collector()
    tune_threads()
    share_heap()
    async with SqliteStore(Path(folder) / "tape.sqlite") as store:
        runtime = _Runtime(store)
        server = _with_more(build_server(runtime), runtime)
        if transport == "stdio":
            await serve_stdio(server, runtime)
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runtime.admission.give_memory_back)
                await serve_http(build_app(server, runtime), runtime.settings, on_started=lambda url: print(url, flush=True))
                tasks.cancel_scope.cancel()


def _with_more(server: WadmServer, runtime: _Runtime) -> WadmServer:
    pong = CallToolResult(content=[TextContent(type="text", text='{"pong":true}')], structured_content={"pong": True})

    @server.tool()
    async def ping() -> CallToolResult:
        return pong

    @server.tool()
    async def forget(what: str) -> CallToolResult:
        runtime.forget(what)
        return pong

    return server


@asynccontextmanager
async def connected(transport: str, folder: str) -> AsyncGenerator[Client]:
    """A client of a server in a process of its own."""
    arguments = ["-m", "benchmarks.tools", "serve", transport, folder]
    if transport == "stdio":
        async with Client(StdioServerParameters(command=sys.executable, args=arguments), mode=ERA) as client:
            yield client
        return
    async with await anyio.open_process([sys.executable, *arguments], stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            url = (await process.stdout.receive()).decode().strip()
            async with Client(f"{url}/mcp", mode=ERA) as client:
                yield client
        finally:
            process.terminate()


class Stopwatch:
    """Measures calls, and after each one a call of the tool that does nothing, so that both see the same load of the machine."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.trivial: list[float] = []

    async def timed(self, name: str, arguments: dict[str, Any], count: int, forget: str = "") -> list[float]:
        """Latency of each call in milliseconds; `forget` names what is emptied before each call, which is not measured."""
        took: list[float] = []
        for _ in range(count):
            if forget:
                await self._client.call_tool("forget", {"what": forget})
            took.append(await self._pair(name, arguments))
        return took

    async def hot(self, name: str, arguments: dict[str, Any]) -> list[float]:
        """Latencies in milliseconds of calls that are answered from the cached answer of an earlier call."""
        took: list[float] = []
        for _ in range(HOT_ROUNDS):
            if len(took) == HOT_SAMPLES:
                break
            await self._client.call_tool("forget", {"what": "answers"})
            until = time.perf_counter() + 0.9 * ANSWER_TTL_SECONDS
            await self.asked(name, arguments)
            while time.perf_counter() < until and len(took) < HOT_SAMPLES:
                took.append(await self._pair(name, arguments))
        return took

    async def asked(self, name: str, arguments: dict[str, Any]) -> float:
        """Latency of one call in milliseconds."""
        began = time.perf_counter()
        result = await self._client.call_tool(name, arguments)
        took = (time.perf_counter() - began) * 1e3
        assert not result.is_error, result.content
        return took

    async def _pair(self, name: str, arguments: dict[str, Any]) -> float:
        took = await self.asked(name, arguments)
        self.trivial.append(await self.asked("ping", {}))
        return took


async def measure(transport: str, folder: str) -> list[str]:
    """A line for each tool at each detail, and a last one for the tool that does nothing."""
    lines: list[str] = []
    trivial: list[float] = []

    def print_row(name: str, detail: str, *cells: str) -> None:
        lines.append(f"| {' | '.join((transport, name, detail, *cells))} |")
        print(lines[-1], flush=True)

    async with connected(transport, folder) as client:
        for _ in range(200):
            await Stopwatch(client).asked("ping", {})
        for name, arguments in CALLS.items():
            for detail in DETAILS:
                asked, watch = {**arguments, "detail": detail}, Stopwatch(client)
                for _ in range(3):
                    await watch.asked(name, asked)
                hot = await watch.hot(name, asked)
                warm = await watch.timed(name, asked, WARM_SAMPLES, "answers")
                cold = await watch.timed(name, asked, COLD_SAMPLES, "everything")
                print_row(f"`{name}`", detail, *(_cell(one, watch.trivial) for one in (hot, warm, cold)))
                trivial += watch.trivial
        print_row("a tool that does nothing", "", _cell(trivial, trivial), "", "")
    return lines


def _cell(took: Sequence[float], trivial: Sequence[float]) -> str:
    if not took:
        return ""
    middle, last = percentile(took, 50), percentile(took, 99)
    return f"{middle:.1f} / {last:.1f} ms ({middle / percentile(trivial, 50):.1f} / {last / percentile(trivial, 99):.1f})"


def percentile(took: Sequence[float], percent: int) -> float:
    """The smallest value that this percentage of the values does not exceed."""
    return sorted(took)[-(-len(took) * percent // 100) - 1]


def machine() -> str:
    """Processor, cores, Python version and date of this run."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
    model = found[1] if found else platform.processor()
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}"


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="wadm-bench-") as folder:
        async with SqliteStore(Path(folder) / "tape.sqlite") as store:
            await record(store)
        lines = ["| transport | tool | detail | hot | warm | cold |", "| --- | --- | --- | --- | --- | --- |"]
        print("\n".join(lines))
        for transport in ("http", "stdio"):
            lines += await measure(transport, folder)
    note = (
        "Each cell: p50 / p99 latency, and in parentheses its ratio to a no-op tool called right after. "
        f"{HOT_SAMPLES} hot, {WARM_SAMPLES} warm and {COLD_SAMPLES} cold calls; for warm and cold, p99 is therefore the "
        f"slowest call. {machine()}."
    )
    print(note)
    if "--write" in sys.argv:
        table = "\n".join((note, "", *lines, ""))
        PAGE.write_text(re.sub(r"(<!-- latency -->\n).*?(<!-- /latency -->)", rf"\g<1>{table}\g<2>", PAGE.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        anyio.run(serve, sys.argv[2], sys.argv[3])
    else:
        anyio.run(main)
