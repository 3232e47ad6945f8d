"""MCP over standard input and output: what an MCP client launches. Only MCP goes to stdout.

It ends on end of input, on SIGTERM or SIGINT, or when the runtime cannot go on. The runtime is left, and so has flushed, before
the transport is waited for: a client that neither reads nor closes must not cost a trade.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn, cast

import anyio
from anyio.from_thread import BlockingPortal
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp_types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError
from pydantic import ValidationError

from wadm_mcp.errors import WadmError, printable
from wadm_mcp.logs import RateLimitedWarning, log
from wadm_mcp.process.signals import stop_signals
from wadm_mcp.process.standard_streams import say
from wadm_mcp.server.context import Runtime, one_error, running
from wadm_mcp.server.server import WadmServer

_STDIN: Final = 0
_CHUNK: Final = 1 << 16
_WAITING_LINES: Final = 16
_LAST_WORDS: Final = 0.5
"""Seconds the transport may take to end once everything is flushed."""


async def serve_stdio(server: WadmServer, runtime: Runtime) -> None:
    """Serve one client over stdin and stdout until it leaves or a signal asks to stop; then return.

    Enters the runtime, once. Raises the `WadmError` the runtime failed with.
    """
    failures: list[WadmError] = []
    with one_error(), stop_signals() as asked:
        leave = threading.Timer(_LAST_WORDS, _leave, (failures,))
        leave.daemon = True
        async with anyio.create_task_group() as session:
            async with running(runtime, server.publisher.run):
                ended = anyio.Event()

                async def talk() -> None:
                    try:
                        await _talk(server)
                    except WadmError as error:
                        failures.append(error)
                    finally:
                        ended.set()

                async def heed_signals() -> None:
                    while True:
                        await asked()
                        ended.set()

                async def heed_failure() -> None:
                    failures.append(await runtime.failed())
                    ended.set()

                for task in (talk, heed_signals, heed_failure):
                    session.start_soon(task)
                await ended.wait()
            session.cancel_scope.cancel()
            leave.start()
        leave.cancel()
    if failures:
        raise failures[0]


async def _talk(server: WadmServer) -> None:
    """One session. A client that closed its end of stdout has left, as one that closed stdin has.

    `WadmError` when stdout cannot be written for another reason.
    """
    lowlevel = server._lowlevel_server
    failed: OSError | None = None
    try:
        async with (
            _lines(_STDIN) as lines,
            stdio_server(stdin=cast(Any, lines)) as (read, write),
            read,
            anyio.create_task_group() as tasks,
        ):
            pass_on, messages = anyio.create_memory_object_stream[SessionMessage | Exception]()
            with messages, pass_on:
                tasks.start_soon(_screen, read, pass_on, write.send)
                await lowlevel.run(messages, write, lowlevel.create_initialization_options())
                tasks.cancel_scope.cancel()
    except* BrokenPipeError:
        log.info("stdio.closed", by="client")
    except* OSError as group:
        failed = next(each for each in _leaves(group) if isinstance(each, OSError))
    if failed is not None:
        raise WadmError(f"standard output cannot be written ({failed.strerror}), and MCP is spoken over it")


async def _screen(
    read: AsyncIterable[SessionMessage | Exception],
    pass_on: MemoryObjectSendStream[SessionMessage | Exception],
    answer: Callable[[SessionMessage], Awaitable[None]],
) -> None:
    """Pass a client's messages on. A line that is none is answered and logged, where the SDK would pass over it without a word."""
    tell = RateLimitedWarning("stdio.line_refused")
    try:
        async with pass_on:
            async for item in read:
                if isinstance(item, Exception):
                    refusal = _refusal(item)
                    tell(code=refusal.error.code, why=refusal.error.message)
                    await answer(SessionMessage(refusal))
                else:
                    await pass_on.send(item)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return  # The session is over.


def _refusal(error: Exception) -> JSONRPCError:
    # The SDK hands on what pydantic found: either a line is no JSON, or it is JSON and no message of the protocol.
    unparsed = isinstance(error, ValidationError) and error.errors()[0]["type"] == "json_invalid"
    code, text = (PARSE_ERROR, "no JSON text") if unparsed else (INVALID_REQUEST, "no JSON-RPC 2.0 message")
    message = f"a line is {text}; each line has to be one JSON-RPC 2.0 message in UTF-8"
    return JSONRPCError(jsonrpc="2.0", id=None, error=ErrorData(code=code, message=message))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _leave(failures: Sequence[WadmError]) -> NoReturn:
    for failure in failures[:1]:
        say(f"wadm-mcp: {printable(failure)}")
    os._exit(failures[0].status if failures else 0)


@asynccontextmanager
async def _lines(fd: int) -> AsyncGenerator[MemoryObjectReceiveStream[str]]:
    """Lines of a file descriptor, read by a daemon thread: nothing can interrupt a read, and no exit may wait for one."""
    send, receive = anyio.create_memory_object_stream[str](_WAITING_LINES)
    async with BlockingPortal() as portal:
        threading.Thread(target=_pump, args=(fd, portal, send), name="stdin", daemon=True).start()
        try:
            yield receive
        finally:
            receive.close()
            send.close()
            await portal.stop(cancel_remaining=True)


def _pump(fd: int, portal: BlockingPortal, send: MemoryObjectSendStream[str]) -> None:
    try:
        for line in _read_lines(fd):
            if line and not line.isspace():
                portal.call(send.send, line)
        portal.call(send.aclose)
    except (RuntimeError, CancelledError, anyio.ClosedResourceError, anyio.BrokenResourceError):
        return  # The session is over, and with it the portal.


def _read_lines(fd: int) -> Iterator[str]:
    rest: list[bytes] = []
    while chunk := _read(fd):
        *ends, tail = chunk.split(b"\n")
        for end in ends:
            yield b"".join((*rest, end)).decode(errors="replace")
            rest.clear()
        rest.append(tail)
    if last := b"".join(rest):
        yield last.decode(errors="replace")


def _read(fd: int) -> bytes:
    """What there is to read; nothing at the end, and nothing where there is no such descriptor or its terminal went away."""
    try:
        return os.read(fd, _CHUNK)
    except OSError:
        return b""
