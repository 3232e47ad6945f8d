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
                # Some programs begin what they write with a byte-order mark.
                await process.stdin.send(b"\xef\xbb\xbf" + json.dumps(_INITIALIZE).encode() + b"\n")
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


_CALL = b'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":'
REFUSED = [
    (_CALL + rb'{"name":"\ud800"}}', 2, -32700, "not valid JSON"),
    (_CALL + b"9" * 6_000 + b"}", 2, -32700, "not valid JSON"),
    (_CALL + b"[" * 20_000 + b"]" * 20_000 + b"}", 2, -32700, "not valid JSON"),
    (_CALL + b'"' + b"x" * (4 << 20) + b'"}', 2, -32600, "4,194,362 bytes long, and at most 4,194,304 are read"),
    (b'{"jsonrpc":"2.0","id":2', None, -32700, "not valid JSON"),
    (b"\xff\xfe\x00", None, -32700, "not valid JSON"),
    (b"[" * 100_000, None, -32700, "not valid JSON"),
    (b'{"id":2,"method":"ping"}', 2, -32600, "not a JSON-RPC 2.0 message"),
    (b"[1]", None, -32600, "not a JSON-RPC 2.0 message"),
]


async def test_an_invalid_line_is_answered_with_the_id_of_its_request_and_the_next_one_is_served() -> None:
    async with _started() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers = BufferedByteReceiveStream(process.stdout)
        for line, request_id, code, problem in REFUSED:
            await process.stdin.send(b"\r\n" + line + b"\n")
            refused = json.loads(await answers.receive_until(b"\n", 1 << 20))
            assert (refused["id"], refused["error"]["code"]) == (request_id, code)
            assert refused["error"]["message"] == f"the line is {problem}; each line must be one JSON-RPC 2.0 message in UTF-8"
            await process.stdin.send(b'{"jsonrpc":"2.0","id":3,"method":"ping"}\n')
            served = json.loads(await answers.receive_until(b"\n", 1 << 20))
            assert served == {"jsonrpc": "2.0", "id": 3, "result": {}}
        await process.stdin.aclose()
        status, said, _ = await _ended(process)
    assert status == 0
    assert said.count("stdio.line_refused") == 1


async def test_more_requests_than_may_be_answered_at_once_are_all_answered_in_the_end() -> None:
    numbers = range(2, 202)
    lists = [json.dumps({"jsonrpc": "2.0", "id": number, "method": "tools/list", "params": {}}).encode() + b"\n" for number in numbers]
    answered: set[int] = set()
    async with _started() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        answers = BufferedByteReceiveStream(process.stdout)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.stdin.send, b"".join(lists))
            with anyio.fail_after(20):
                while len(answered) < len(numbers):
                    answered.add(json.loads(await answers.receive_until(b"\n", 1 << 20))["id"])
    assert answered == {*numbers}
