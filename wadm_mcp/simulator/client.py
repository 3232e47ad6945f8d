"""One WebSocket connection of a simulated venue: its send queue, its tasks, and the rate limit on the client's frames."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Protocol

import anyio
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from wadm_mcp.simulator.faults import Cut
from wadm_mcp.simulator.state import Route, SimulatorState


class Host(Protocol):
    """The part of a venue that a connection uses."""

    exchange: str
    state: SimulatorState
    connections: int

    async def receive(self, client: Client, message: bytes) -> None: ...

    async def heartbeat(self, client: Client) -> None: ...

    def forget(self, client: Client) -> None: ...


class Connection(ServerConnection):
    """A server connection that counts all frames of the client: messages, pings and pongs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.flooded = anyio.Event()
        self.arrivals: deque[float] = deque(maxlen=1)

    def allow(self, per_second: int) -> None:
        """Sets how many frames a second are allowed."""
        self.arrivals = deque(maxlen=per_second + 1)

    def process_event(self, event: Any) -> None:
        now, limit = time.monotonic(), self.arrivals.maxlen or 1
        # The first event is the request of the handshake.
        if self.request is not None and limit > 1:
            self.arrivals.append(now)
            if len(self.arrivals) == limit and now - self.arrivals[0] < 1:
                self.flooded.set()
        super().process_event(event)


class Client:
    """One WebSocket connection of a venue."""

    def __init__(self, connection: ServerConnection, route: Route, venue: Host) -> None:
        self.connection = connection
        self.route = route
        self.combined = route.combined
        self.topics: dict[str, None] = {}
        self.last_used = anyio.current_time()
        venue.connections += 1
        self.number = venue.connections
        self._venue = venue
        self._queue, self._unsent = anyio.create_memory_object_stream[str | bytes](venue.state.queue)

    def offer(self, frame: str | bytes) -> bool:
        """Queues a frame; a client whose queue is full is dropped. Returns whether the frame was queued."""
        queued = self._put(frame)
        if queued is None:
            self.drop()
        return queued is True

    async def wait_to_offer(self, frame: str | bytes, timeout_seconds: float) -> bool:
        """Queues a frame as soon as the queue has room; a client whose queue stays full for `timeout_seconds` is dropped."""
        queued = self._put(frame)
        if queued is not None:
            return queued
        with anyio.move_on_after(timeout_seconds):
            try:
                await self._queue.send(frame)
            except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                return False
            return True
        self.drop()
        return False

    def _put(self, frame: str | bytes) -> bool | None:
        """True when queued, None when the queue is full, False when the connection has ended."""
        try:
            self._queue.send_nowait(frame)
        except anyio.WouldBlock:
            return None
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            return False
        return True

    def drop(self) -> None:
        """Ends the TCP connection at once, without a closing handshake; nothing is delivered to it any more."""
        self._venue.forget(self)
        self.connection.transport.abort()

    async def close(self, code: int, reason: str) -> None:
        """Ends the connection with a closing handshake; nothing is delivered to it any more."""
        self._venue.forget(self)
        await self.connection.close(code, reason)

    async def serve(self) -> None:
        """Serves the connection until it ends."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write)
                tasks.start_soon(self._watch)
                tasks.start_soon(self._venue.heartbeat, self)
                await self._read()
                tasks.cancel_scope.cancel()
        finally:
            self._queue.close()
            self._unsent.close()

    async def _read(self) -> None:
        try:
            while True:
                message = await self.connection.recv(decode=False)
                self.last_used = anyio.current_time()
                await self._venue.receive(self, message)
        except ConnectionClosed:
            return

    async def _write(self) -> None:
        sending, exchange, market = self._venue.state.faults.sending, self._venue.exchange, self.route.market
        try:
            async for queued in self._unsent:
                for frame in await sending(exchange, market, self.number, queued):
                    await self.connection.send(frame)
                self.last_used = anyio.current_time()
        except ConnectionClosed:
            return
        except Cut as cut:
            if cut.code is None:
                self.drop()
            else:
                await self.close(cut.code, cut.reason)

    async def _watch(self) -> None:
        """Closes the connection when the client exceeds its message limit."""
        assert isinstance(self.connection, Connection)
        await self.connection.flooded.wait()
        await self.close(1008, "Too many requests")
