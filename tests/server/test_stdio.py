from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

pytestmark = pytest.mark.anyio

_ROOT = Path(__file__).parents[2]
_COMMAND = [sys.executable, "-W", "error", "-m", "tests.server.stdio_process"]
_INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


@asynccontextmanager
async def _started(*arguments: str) -> AsyncGenerator[Process]:
    """The process once it has answered `initialize`; with arguments, at once."""
    process = await anyio.open_process([*_COMMAND, *arguments], cwd=_ROOT, stdin=subprocess.PIPE)
    try:
        with anyio.fail_after(30):
            if not arguments:
                assert process.stdin is not None
                assert process.stdout is not None
                await process.stdin.send(json.dumps(_INITIALIZE).encode() + b"\n")
                answer = json.loads(await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", 1 << 20))
                assert answer["result"]["serverInfo"]["name"] == "wadm"
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.aclose()


async def _ended(process: Process) -> tuple[int, str, bytes]:
    """Exit status, stderr and the rest of stdout of a process, which must end within three seconds."""
    assert process.stdout is not None
    assert process.stderr is not None
    with anyio.fail_after(3):
        said = b"".join([chunk async for chunk in process.stderr])
        rest = b"".join([chunk async for chunk in process.stdout])
        return await process.wait(), said.decode(), rest


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_with_status_0_while_stdin_stays_open(asked: signal.Signals) -> None:
    async with _started() as process:
        process.send_signal(asked)
        assert await _ended(process) == (0, "entered\nleft\n", b"")


async def test_the_end_of_input_ends_the_process_with_status_0() -> None:
    async with _started() as process:
        assert process.stdin is not None
        await process.stdin.aclose()
        assert await _ended(process) == (0, "entered\nleft\n", b"")


async def test_a_failed_runtime_ends_the_process_with_its_error_while_stdin_stays_open() -> None:
    async with _started("broken") as process:
        with anyio.fail_after(20):
            status = await process.wait()
        assert (status, (await _ended(process))[1]) == (1, "entered\nleft\nthe store is of another schema\n")


async def test_a_client_that_does_not_read_cannot_keep_the_process_alive() -> None:
    async with _started() as process:
        assert process.stdin is not None
        call = {"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {}}
        flood = (json.dumps(call) + "\n").encode() * 40
        await process.stdin.send(flood)
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(3):
            assert await process.wait() == 0


REFUSED = [
    (rb'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"\ud800"}}', -32700),
    (b'{"jsonrpc":"2.0","id":2', -32700),
    (b"\xff\xfe\x00", -32700),
    (b"[" * 100_000, -32700),
    (b'{"id":2}', -32600),
    (b"[1]", -32600),
]


@pytest.mark.parametrize(("line", "code"), REFUSED, ids=["lone surrogate", "cut off", "no text", "too deep", "no message", "a batch"])
async def test_an_invalid_line_is_answered_with_an_error_and_logged_and_the_next_one_is_served(line: bytes, code: int) -> None:
    async with _started() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers = BufferedByteReceiveStream(process.stdout)
        await process.stdin.send(b"\r\n" + line + b"\n")
        refused = json.loads(await answers.receive_until(b"\n", 1 << 20))
        await process.stdin.send(b'{"jsonrpc":"2.0","id":3,"method":"ping"}\n')
        served = json.loads(await answers.receive_until(b"\n", 1 << 20))
        await process.stdin.aclose()
        status, said, _ = await _ended(process)
    assert (refused["id"], refused["error"]["code"]) == (None, code)
    assert served == {"jsonrpc": "2.0", "id": 3, "result": {}}
    assert status == 0
    assert said.count("stdio.line_refused") == 1
