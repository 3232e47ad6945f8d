"""MCP over stdin and stdout, for the client that launched this process. Only MCP goes to stdout.

Serving ends at the end of input, on a stop signal, when the process that launched this one has ended, or when the runtime fails. The
runtime is closed and flushed before the transport, so that a client that stops reading cannot cause data loss.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn, cast

import anyio
from anyio.from_thread import BlockingPortal
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp_types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError, jsonrpc_message_adapter
from pydantic import ValidationError

from wadm_mcp.errors import WadmError, leaves, ungrouped
from wadm_mcp.logs import RateLimitedWarning, log
from wadm_mcp.process.signals import stop_signals
from wadm_mcp.process.standard_streams import print_stderr
from wadm_mcp.server.backpressure import CountedWrites
from wadm_mcp.server.context import ServedRuntime, running
from wadm_mcp.server.lines import MAX_LINE_BYTES, Line, read_lines
from wadm_mcp.server.server import WadmServer
from wadm_mcp.texts import printable

_STDIN: Final = 0
_PARENT_SECONDS: Final = 1.0
"""Time between two looks whether the parent process lives."""
_CLOSE_SECONDS: Final = 0.5
"""Time the transport may take to end once everything is flushed."""


async def serve_stdio(server: WadmServer, runtime: ServedRuntime) -> None:
    """Serve one client over stdin and stdout until it leaves or ends, or a signal arrives; then return.

    Enters the runtime, once. Raises the `WadmError` that the runtime failed with.
    """
    failures: list[WadmError] = []
    with ungrouped(), stop_signals() as next_signal:
        # A thread may hang in a write to stdout that the client does not read; only ending the process ends that.
        forced_exit = threading.Timer(_CLOSE_SECONDS, _exit_now, (failures,))
        forced_exit.daemon = True
        async with anyio.create_task_group() as session:
            async with running(runtime, server.publisher.run):
                ended = anyio.Event()

                async def run_session() -> None:
                    try:
                        await _run_session(server)
                    except WadmError as error:
                        failures.append(error)
                    finally:
                        ended.set()

                async def stop_on_signal() -> None:
                    while True:
                        await next_signal()
                        ended.set()

                async def stop_on_failure() -> None:
                    failures.append(await runtime.failed())
                    ended.set()

                async def stop_without_parent() -> None:
                    await _parent_ended()
                    log.info("stdio.closed", by="parent")
                    ended.set()

                for task in (run_session, stop_on_signal, stop_on_failure, stop_without_parent):
                    session.start_soon(task)
                await ended.wait()
            session.cancel_scope.cancel()
            forced_exit.start()
        forced_exit.cancel()
    if failures:
        raise failures[0]


async def _parent_ended() -> None:
    """Wait until the process that launched this one has ended. Another process may have a copy of the client's end of stdin, so that the
    client's end is not the end of input."""
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - no event says that a parent has ended
        await anyio.sleep(_PARENT_SECONDS)


async def _run_session(server: WadmServer) -> None:
    """Run one session. It ends when the client closes its end of stdin or of stdout.

    `WadmError` when stdout cannot be written for another reason.
    """
    lowlevel = server._lowlevel_server
    failed: OSError | None = None
    try:
        # The SDK writes; what it reads it would ignore where it is invalid, and keep whatever its length.
        async with (
            _lines(_STDIN) as lines,
            stdio_server(stdin=cast(Any, _Nothing())) as (read, write),
            read,
            anyio.create_task_group() as tasks,
        ):
            send, messages = anyio.create_memory_object_stream[SessionMessage | Exception]()
            with messages, send:
                counted = CountedWrites(write)
                tasks.start_soon(_read_messages, lines, send, counted)
                await lowlevel.run(messages, counted, lowlevel.create_initialization_options())
                tasks.cancel_scope.cancel()
    except* BrokenPipeError:
        log.info("stdio.closed", by="client")
    except* OSError as group:
        failed = next(each for each in leaves(group) if isinstance(each, OSError))
    if failed is not None:
        raise WadmError(f"standard output cannot be written ({failed.strerror}), and MCP needs it")


class _Nothing:
    """An input without lines."""

    def __aiter__(self) -> _Nothing:
        return self

    async def __anext__(self) -> str:
        raise StopAsyncIteration


async def _read_messages(
    lines: AsyncIterable[Line], send: MemoryObjectSendStream[SessionMessage | Exception], answers: CountedWrites
) -> None:
    """Pass on the client's messages while it takes its answers. A line that is no message is answered with an error, and logged."""
    log_refusal = RateLimitedWarning("stdio.line_refused")
    try:
        async with send:
            async for line in lines:
                message = _message(line)
                if isinstance(message, JSONRPCError):
                    log_refusal(code=message.error.code, reason=message.error.message)
                    await answers.send(SessionMessage(message))
                else:
                    await answers.wait_for_room()
                    await send.send(message)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return  # The session has ended.


def _message(line: Line) -> SessionMessage | JSONRPCError:
    """The message of a line, or the error that answers it."""
    if not line.whole:
        return _refusal(line, INVALID_REQUEST, f"{line.size:,} bytes long, and at most {MAX_LINE_BYTES:,} are read")
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line.text, by_name=False))
    except ValidationError as error:
        # pydantic's error says whether the line is not JSON, or JSON but not a message of the protocol.
        if error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid":
            return _refusal(line, PARSE_ERROR, "not valid JSON")
        return _refusal(line, INVALID_REQUEST, "not a JSON-RPC 2.0 message")


def _refusal(line: Line, code: int, problem: str) -> JSONRPCError:
    message = f"the line is {problem}; each line must be one JSON-RPC 2.0 message in UTF-8"
    return JSONRPCError(jsonrpc="2.0", id=line.request_id, error=ErrorData(code=code, message=message))


def _exit_now(failures: Sequence[WadmError]) -> NoReturn:
    for failure in failures[:1]:
        print_stderr(f"wadm-mcp: {printable(failure)}")
    os._exit(failures[0].status if failures else 0)


@asynccontextmanager
async def _lines(fd: int) -> AsyncGenerator[MemoryObjectReceiveStream[Line]]:
    """Lines of a file descriptor. A daemon thread reads them: a blocked read cannot be interrupted, and must not delay the exit."""
    send, receive = anyio.create_memory_object_stream[Line]()
    async with BlockingPortal() as portal:
        threading.Thread(target=_pump, args=(fd, portal, send), name="stdin", daemon=True).start()
        try:
            yield receive
        finally:
            receive.close()
            send.close()
            await portal.stop(cancel_remaining=True)


def _pump(fd: int, portal: BlockingPortal, send: MemoryObjectSendStream[Line]) -> None:
    try:
        for line in read_lines(fd):
            portal.call(send.send, line)
        portal.call(send.aclose)
    except (RuntimeError, CancelledError, anyio.ClosedResourceError, anyio.BrokenResourceError):
        return  # The session and its portal have ended.
