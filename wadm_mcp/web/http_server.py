"""uvicorn's server with a listener of our own, because asyncio's has no bound: it accepts up to 2,048 connections before any of them can be
closed, and without a free descriptor it logs and retries each of these attempts for itself."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Final

import anyio
import uvicorn

from wadm_mcp.logs import RateLimitedWarning
from wadm_mcp.web.connections import Connections, HttpConnection

_FAILURE_PAUSE_SECONDS: Final = 0.01
_BACKLOG: Final = 4_096
"""Connections that the system holds until they are accepted. Where it has no room for one, its client tries again only after a second."""
_MAX_ACCEPTED: Final = 256
"""Connections accepted at once; fewer where few may be open."""
_MAX_OPENED: Final = 32
"""Connections that are opened in one turn of the event loop. Opening one, reading from it and closing it again takes 0.2 to 0.4 ms."""
_MAX_PEEKED: Final = 4_096
"""Bytes in which the end of a request's head is looked for."""
_ACCEPT_PAUSE_SECONDS: Final = 0.5
"""Pause after a connection could not be accepted."""


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers, which would raise the signal again after the stop. `connections` bounds its connections."""

    def __init__(self, config: uvicorn.Config, connections: Connections, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._connections = connections
        self._at_once = max(1, min(_MAX_ACCEPTED, connections.limit // 4))
        self._on_started = started
        self._listeners: Sequence[socket.socket] = ()
        self._warn_not_accepted = RateLimitedWarning("connections.not_accepted")

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        self._listeners = sockets or []
        for listener in self._listeners:
            listener.listen(_BACKLOG)
        # A runtime that failed while it was entered reports it during this pause; the server then counts as not started.
        await anyio.sleep(_FAILURE_PAUSE_SECONDS)
        if not self.should_exit:
            self._on_started()

    async def main_loop(self) -> None:
        async with anyio.create_task_group() as tasks:
            for listener in self._listeners:
                tasks.start_soon(self._listen, listener)
            await super().main_loop()
            tasks.cancel_scope.cancel()

    async def on_tick(self, counter: int) -> bool:
        self._connections.close_overdue()
        return await super().on_tick(counter)

    async def _listen(self, listener: socket.socket) -> None:
        many_before = False
        while True:
            await anyio.wait_readable(listener)
            accepted, error = _accept_waiting(listener, self._at_once)
            many = len(accepted) == self._at_once
            waiting = self._choose(accepted, flood=many and many_before)
            many_before = many
            try:
                while waiting:
                    async with anyio.create_task_group() as tasks:
                        for _ in range(min(_MAX_OPENED, len(waiting))):
                            tasks.start_soon(self._open, waiting.popleft())
            finally:
                for connection in waiting:
                    connection.close()
            if error is not None:
                self._warn_not_accepted(error=error.strerror or error)
                self._connections.make_room()
                await anyio.sleep(_ACCEPT_PAUSE_SECONDS)

    def _choose(self, accepted: list[socket.socket], *, flood: bool) -> deque[socket.socket]:
        """Which of the connections accepted at once are opened, in this order: those whose request is there, then the newest others.

        In a flood, with all connections in use, only the newest others are opened, and the older ones are closed at once: they would soon
        make room for the newer ones, and opening thousands takes seconds, for which a health probe behind them would wait.
        """
        if len(accepted) <= _MAX_OPENED:
            return deque(accepted)
        asking: deque[socket.socket] = deque()
        others: list[socket.socket] = []
        for connection in reversed(accepted):
            if _has_request(connection):
                asking.appendleft(connection)
            elif len(others) < _MAX_OPENED or not (flood and self._connections.full):
                others.append(connection)
            else:
                connection.close()
                self._connections.health.count("connections.evicted")
        asking.extend(others)
        return asking

    async def _open(self, accepted: socket.socket) -> None:
        def connection() -> HttpConnection:
            return HttpConnection(self._connections, self.config, self.server_state, self.lifespan.state)

        try:
            await asyncio.get_running_loop().connect_accepted_socket(connection, accepted)
        except OSError:  # its client is gone already
            accepted.close()


def _has_request(connection: socket.socket) -> bool:
    """Whether the whole head of a request has arrived."""
    try:
        return b"\r\n\r\n" in connection.recv(_MAX_PEEKED, socket.MSG_PEEK)
    except OSError:  # nothing has arrived, or its client is gone already
        return False


def _accept_waiting(listener: socket.socket, limit: int) -> tuple[list[socket.socket], OSError | None]:
    """The connections that wait, at most so many, and the error for which no more were accepted."""
    accepted: list[socket.socket] = []
    try:
        while len(accepted) < limit:
            connection, _ = listener.accept()
            connection.setblocking(False)
            accepted.append(connection)
    except (BlockingIOError, InterruptedError, ConnectionAbortedError):
        pass
    except OSError as error:
        return accepted, error
    return accepted, None
