"""A stop by a signal or the end of input: status 0 within three seconds, no acknowledged trade lost, no traceback."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from anyio.abc import Process

from tests.end_to_end.process import COMMAND, ended, serving, started, until
from wadm_mcp.clock import now_ms
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


@pytest.mark.parametrize("insisting", [False, True], ids=["once", "again and again"])
@pytest.mark.parametrize("number", SIGNALS)
async def test_serve_stops_on_a_signal_with_every_recorded_trade_stored(tmp_path: Path, number: signal.Signals, insisting: bool) -> None:
    async with Simulator(manual=True) as simulator:
        settings = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()} | {"WADM_EXCHANGES": "binance"}
        async with serving(tmp_path / "data", "serve", settings=settings) as served:
            with anyio.fail_after(20):
                await simulator.subscribed("binance", "spot", "BTCUSDT")
            pushed = 0
            while pushed < 500:
                await simulator.push("binance", "spot", "BTCUSDT", [(now_ms(), "61000.5", "0.1", "BUY")] * 50)
                pushed += 50

            async def taken() -> bool:
                page = await served.get("/api/trades", symbol="BTCUSDT", window="15m", limit=1000)
                return len(page["trades"]["rows"]) == pushed

            await until(taken)
            assert await (insist(served.process, number) if insisting else served.stop(number)) == 0
            assert "Traceback" not in served.stderr
        assert stored(tmp_path / "data") == pushed


@pytest.mark.parametrize("number", SIGNALS)
async def test_serve_stops_while_clients_hold_streams_open(tmp_path: Path, number: signal.Signals) -> None:
    async with serving(tmp_path / "data", "serve", "--demo") as served, served.client.stream("GET", "/sse") as stream:
        assert stream.status_code == 200
        assert await served.stop(number) == 0
        assert "Traceback" not in served.stderr


@asynccontextmanager
async def speaking(folder: Path) -> AsyncGenerator[Process]:
    async with started(folder, "--demo") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send(INITIALIZE)
        with anyio.fail_after(30):
            assert b'"serverInfo"' in await process.stdout.receive()
        yield process


@pytest.mark.parametrize("number", SIGNALS)
async def test_stdio_stops_on_a_signal_although_its_input_stays_open(tmp_path: Path, number: signal.Signals) -> None:
    async with speaking(tmp_path) as process:
        process.send_signal(number)
        with anyio.fail_after(4):
            assert await process.wait() == 0
        assert process.stderr is not None
        stderr = b"".join([part async for part in process.stderr])
        assert b"Traceback" not in stderr
        assert b"recorder.begins" in stderr


@pytest.fixture
def hangup_ends() -> Generator[None]:
    """A process begins with what its parent does on SIGHUP, and the tests may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup_ends")
async def test_a_hangup_stops_stdio_like_any_other_stop_signal(tmp_path: Path) -> None:
    async with speaking(tmp_path) as process:
        process.send_signal(signal.SIGHUP)
        status, stderr = await ended(process)
    assert status == 0
    assert "Traceback" not in stderr


@pytest.mark.usefixtures("hangup_ends")
async def test_a_hangup_stops_serve_and_does_not_if_nohup_started_it(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", "serve", "--demo") as served:
        assert await served.stop(signal.SIGHUP) == 0
        assert "Traceback" not in served.stderr
    async with serving(tmp_path / "data", "serve", "--demo", command=("nohup", *COMMAND), name="nohup") as served:
        served.process.send_signal(signal.SIGHUP)
        assert await served.get("/health/live")
        assert await served.stop() == 0


LAUNCHER = "import subprocess, sys; subprocess.run(sys.argv[1:])"


async def test_stdio_stops_when_its_parent_has_ended_although_another_process_holds_its_input_open(tmp_path: Path) -> None:
    async with started(tmp_path, "--demo", command=[sys.executable, "-c", LAUNCHER, *COMMAND]) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stderr is not None
        await parent.stdin.send(INITIALIZE)
        with anyio.fail_after(30):
            assert b'"serverInfo"' in await parent.stdout.receive()
        parent.kill()
        with anyio.fail_after(6):
            stderr = b"".join([part async for part in parent.stderr]).decode()
    assert "stdio.closed by=parent" in stderr
    assert "Traceback" not in stderr


async def test_stdio_stops_at_the_end_of_its_input(tmp_path: Path) -> None:
    async with speaking(tmp_path) as process:
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


MODES = [("serve", "--demo"), ("--demo",), ("doctor",), ("replay", "absent")]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("arguments", MODES, ids=lambda mode: mode[0])
async def test_a_signal_while_the_program_is_still_loading_ends_it_with_status_0(
    tmp_path: Path, arguments: tuple[str, ...], number: signal.Signals
) -> None:
    loading = [sys.executable, "-X", "importtime", "-m", "wadm_mcp"]
    async with started(tmp_path, *arguments, command=loading) as process:
        assert process.stderr is not None
        stderr = b""
        with anyio.fail_after(10):
            while not re.search(rb"\| +anyio\n", stderr):
                stderr += await process.stderr.receive()
        process.send_signal(number)
        status, rest = await ended(process)
    assert status == 0
    assert "Traceback" not in rest


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_signal_while_replay_reads_its_files_ends_it_with_status_0(tmp_path: Path, number: signal.Signals) -> None:
    recording = tmp_path / "recording"
    os.mkfifo(recording)
    async with started(tmp_path, "replay", str(recording)) as process:

        async def opened() -> int | None:
            try:
                return os.open(recording, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                return None

        writer = await until(opened, within=20, every=0.02)
        try:
            process.send_signal(number)
            assert await ended(process) == (0, "")
        finally:
            os.close(writer)


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_signal_while_doctor_waits_for_an_exchange_ends_it_with_status_0(tmp_path: Path, number: signal.Signals) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        mute.settimeout(20)
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        async with started(tmp_path, "doctor", WADM_EXCHANGES="bybit", WADM_BYBIT_REST=url) as process:
            one, _ = await to_thread.run_sync(mute.accept)
            with closing(one):
                process.send_signal(number)
                assert await ended(process) == (0, "")


async def insist(process: Process, number: signal.Signals) -> int:
    """Send a signal again and again until the process has ended; its exit status."""
    with anyio.fail_after(5):
        while process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)  # Popen's own way would reap what the event loop waits for
            await anyio.sleep(0.001)
    return process.returncode


@pytest.mark.parametrize("number", SIGNALS)
async def test_stdio_ends_with_status_0_however_often_a_signal_comes(tmp_path: Path, number: signal.Signals) -> None:
    async with speaking(tmp_path) as process:
        assert await insist(process, number) == 0
        assert process.stderr is not None
        assert b"Traceback" not in b"".join([part async for part in process.stderr])
