"""A stop asked for by a signal or by the end of input: status 0, within three seconds, nothing acknowledged lost, no traceback."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process

from tests.end_to_end.process import COMMAND, environment, serving, until
from wadm_mcp.runtime import now_ms
from wadm_mcp.simulator.simulator import Simulator

pytestmark = pytest.mark.anyio

SIGNALS = [signal.SIGTERM, signal.SIGINT]
INITIALIZE = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},'
    b'"clientInfo":{"name":"test","version":"0"}}}\n'
)


def stored(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "wadm.sqlite")) as database:
        return database.execute("SELECT count(*) FROM trades").fetchone()[0]


@pytest.mark.parametrize("number", SIGNALS)
async def test_serve_stops_on_a_signal_with_everything_it_took_stored(tmp_path: Path, number: signal.Signals) -> None:
    async with Simulator(manual=True) as simulator:
        settings = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()} | {"WADM_EXCHANGES": "binance"}
        async with serving(tmp_path / "data", "serve", settings=settings) as served:
            with anyio.fail_after(20):
                await simulator.subscribed("binance", "spot", "BTCUSDT")
            told = 0
            while told < 500:
                await simulator.push("binance", "spot", "BTCUSDT", [(now_ms(), "61000.5", "0.1", "BUY")] * 50)
                told += 50

            async def taken() -> bool:
                page = await served.get("/api/trades", symbol="BTCUSDT", window="15m", limit=1000)
                return len(page["trades"]["rows"]) == told

            await until(taken)
            assert await served.stop(number) == 0
            assert "Traceback" not in served.stderr
        assert stored(tmp_path / "data") == told


@pytest.mark.parametrize("number", SIGNALS)
async def test_serve_stops_while_clients_hold_streams_open(tmp_path: Path, number: signal.Signals) -> None:
    async with serving(tmp_path / "data", "serve", "--demo") as served, served.client.stream("GET", "/sse") as stream:
        assert stream.status_code == 200
        assert await served.stop(number) == 0
        assert "Traceback" not in served.stderr


async def speaking(folder: Path) -> Process:
    command, pipe = [*COMMAND, "--demo"], subprocess.PIPE
    process = await anyio.open_process(command, env=environment(folder), cwd=folder, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    await process.stdin.send(INITIALIZE)
    with anyio.fail_after(30):
        assert b'"serverInfo"' in await process.stdout.receive()
    return process


@pytest.mark.parametrize("number", SIGNALS)
async def test_stdio_stops_on_a_signal_although_its_input_stays_open(tmp_path: Path, number: signal.Signals) -> None:
    async with await speaking(tmp_path) as process:
        process.send_signal(number)
        with anyio.fail_after(4):
            assert await process.wait() == 0
        assert process.stderr is not None
        told = b"".join([part async for part in process.stderr])
        assert b"Traceback" not in told
        assert b"recorder.begins" in told


async def test_stdio_stops_at_the_end_of_its_input(tmp_path: Path) -> None:
    async with await speaking(tmp_path) as process:
        assert process.stdin is not None
        await process.stdin.aclose()
        with anyio.fail_after(4):
            assert await process.wait() == 0


async def test_replay_stops_on_a_signal_in_the_middle(tmp_path: Path, captures: Path) -> None:
    file = str(captures / "binance-spot" / "btcusdt_20240808.gz")
    async with serving(tmp_path / "data", "replay", file) as served:

        async def begun() -> bool:
            return (await served.client.get("/health")).status_code == 200

        await until(begun)
        assert await served.stop() == 0
        assert "Traceback" not in served.stderr
