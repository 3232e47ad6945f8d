"""The bounds on HTTP connections: how many are open, how many of them from one address, and how long a request may take to arrive.

When there are too many, the one that has waited longest for its client is closed, so that a new client gets in while any does. An answer
under way, which an event stream is too, is never ended by a deadline, and to make room only where its client has stopped reading it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from enum import Enum, auto
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import anyio
import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from wadm_mcp.health import Health
from wadm_mcp.logs import RateLimitedWarning
from wadm_mcp.process.descriptors import descriptor_limit
from wadm_mcp.queries.callers import shared_address
from wadm_mcp.web.guard import is_open
from wadm_mcp.web.responses import error_response

if TYPE_CHECKING:
    import asyncio

_MAX_CONNECTIONS: Final = 1_000
_DESCRIPTOR_SHARE: Final = 2
"""One of so many descriptors may be a connection. The others are for recording: sockets, store, journal, archives."""
_ADDRESS_SHARE: Final = 4
"""One of so many connections may come from one address."""
_MAX_SPARE: Final = 32
"""Connections that never carry an answer of a question, so that health probes get in. At most a quarter of the connections."""
_HEAD_SECONDS: Final = 10.0
_BODY_SECONDS: Final = 30.0
_RETRY_SECONDS: Final = 5
"""What a client is told to wait that comes while too many requests are answered."""

# uvicorn warns of each invalid request. One client could fill a disk with that; here they are counted.
_uvicorn_log: Final = logging.getLogger("uvicorn.error.connections")
_uvicorn_log.setLevel(logging.ERROR)


class Stage(Enum):
    """What a connection waits for."""

    HEAD = auto()
    """The head of a request: of the first one, or of a later one whose first byte has arrived."""
    IDLE = auto()
    """The first byte of another request. uvicorn closes it after 5 s."""
    BODY = auto()
    """The rest of a request's body."""
    UNREAD = auto()
    """A client that does not read: more than 64 KiB of the answer are waiting for it."""
    ANSWER = auto()
    """The application."""


_CLOSED_FOR_ROOM: Final = ((Stage.HEAD, Stage.IDLE, Stage.BODY), (Stage.UNREAD,))
"""Stages in which a connection may be closed to make room: first the one that has been longest in any of the first three."""


def connection_limit() -> int:
    """How many connections this process accepts: at most half of its descriptors."""
    return max(1, min(_MAX_CONNECTIONS, descriptor_limit() // _DESCRIPTOR_SHARE))


class _Group:
    """Connections that share a limit, by stage; within a stage in the order in which they entered it."""

    def __init__(self, limit: int, address: str = "") -> None:
        self.limit = limit
        self.address = address
        """The address that they come from; empty where it does not matter."""
        self._stages: dict[Stage, dict[HttpConnection, float]] = {stage: {} for stage in Stage}

    def __len__(self) -> int:
        return sum(len(stage) for stage in self._stages.values())

    def put(self, connection: HttpConnection, stage: Stage) -> None:
        self._stages[stage][connection] = anyio.current_time()

    def remove(self, connection: HttpConnection) -> None:
        del self._stages[connection.stage][connection]

    def longest_waiting(self) -> HttpConnection | None:
        """The next one to close for another; None where all are being answered."""
        for stages in _CLOSED_FOR_ROOM:
            longest = [next(iter(self._stages[stage].items())) for stage in stages if self._stages[stage]]
            if longest:
                return min(longest, key=itemgetter(1))[0]
        return None

    def overdue(self, stage: Stage, seconds: float) -> Iterator[HttpConnection]:
        """Those that have been in the stage for so long."""
        latest = anyio.current_time() - seconds
        for connection, entered in self._stages[stage].items():
            if entered > latest:
                return
            yield connection


class Connections:
    """The open connections of a server, at most `limit`. `health` counts those that are closed early or refused."""

    def __init__(self, limit: int, health: Health) -> None:
        self.limit = limit
        self.health = health
        self._everyone = _Group(limit)
        self._by_address: dict[str, _Group] = {}
        self._requests = 0
        self._max_requests = limit - min(_MAX_SPARE, limit // 4)
        self._warn_full = RateLimitedWarning("connections.full")

    def __len__(self) -> int:
        return len(self._everyone)

    @property
    def full(self) -> bool:
        """Whether one has to be closed for the next."""
        return len(self) >= self.limit

    def admit(self, connection: HttpConnection) -> bool:
        """Take a new connection. False where there is no room for it and none can be made."""
        groups, address = [self._everyone], shared_address(connection.client[0]) if connection.client is not None else ""
        if address:
            groups.append(self._by_address.get(address) or _Group(max(1, self._everyone.limit // _ADDRESS_SHARE), address))
        for group in reversed(groups):
            if len(group) < group.limit:
                continue
            self._warn_full(limit=group.limit, address=group.address or "any")
            if not self._close_longest_waiting(group):
                self.health.count("connections.refused")
                return False
        for group in groups:
            group.put(connection, connection.stage)
        if address:
            self._by_address[address] = groups[-1]
        connection.groups = groups
        return True

    def move(self, connection: HttpConnection, stage: Stage) -> None:
        """Note the stage that a connection is in. One that stays in its stage keeps its place there."""
        if stage is connection.stage:
            return
        for group in connection.groups:
            group.remove(connection)
            group.put(connection, stage)
        connection.stage = stage

    def forget(self, connection: HttpConnection) -> None:
        """Remove a connection that is closed."""
        for group in connection.groups:
            group.remove(connection)
            if group.address and not group:
                del self._by_address[group.address]
        connection.groups = []

    def make_room(self) -> None:
        """Close the connection that has waited longest for its client, if one waits."""
        self._close_longest_waiting(self._everyone)

    def close_overdue(self) -> None:
        """Close the connections whose request has not arrived in time."""
        for stage, seconds in ((Stage.HEAD, _HEAD_SECONDS), (Stage.BODY, _BODY_SECONDS)):
            for connection in list(self._everyone.overdue(stage, seconds)):
                self._close(connection, "connections.overdue")

    def bounded(self, app: ASGIApp) -> ASGIApp:
        """The application, which refuses a request while too many others are under way. The health routes are always answered."""

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or is_open(scope):
                return await app(scope, receive, send)
            if self._requests >= self._max_requests:
                self.health.count("requests.refused")
                text = f"busy: {self._max_requests:,} requests and event streams are open; ask again in {_RETRY_SECONDS} s"
                return await error_response(503, text, {"Retry-After": str(_RETRY_SECONDS)})(scope, receive, send)
            self._requests += 1
            try:
                await app(scope, receive, send)
            finally:
                self._requests -= 1

        return call

    def _close_longest_waiting(self, group: _Group) -> bool:
        longest = group.longest_waiting()
        if longest is not None:
            self._close(longest, "connections.evicted")
        return longest is not None

    def _close(self, connection: HttpConnection, event: str) -> None:
        self.health.count(event)
        self.forget(connection)
        connection.transport.abort()


class HttpConnection(H11Protocol):
    """uvicorn's HTTP/1.1 connection, which tells `Connections` what it waits for."""

    def __init__(self, connections: Connections, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        super().__init__(config, server_state, app_state)
        self.logger = _uvicorn_log
        self.stage = Stage.HEAD
        self.groups: list[_Group] = []
        """The groups that it counts in; none before it is admitted and after it is closed."""
        self._open = connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - as uvicorn's
        super().connection_made(transport)
        if not self._open.admit(self):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._open.forget(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_stage()

    def handle_events(self) -> None:
        try:
            super().handle_events()
        except h11.ProtocolError:
            # The 400 of uvicorn has a body, which the answer to HEAD has not.
            self._drop_answer()
            self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update_stage()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._update_stage()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._update_stage()

    def send_400_response(self, msg: str) -> None:
        self._open.health.count("requests.invalid")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
            self._drop_answer()
        else:
            # The body is invalid of a request that is answered already: uvicorn would log a traceback.
            self.transport.abort()

    def _drop_answer(self) -> None:
        """The body of the request in progress, if any, is invalid. Its answer is a 400; h11 would raise at the application's own."""
        if self._begun and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _update_stage(self) -> None:
        self._open.move(self, self._current_stage())

    def _current_stage(self) -> Stage:
        if self.flow.write_paused:
            return Stage.UNREAD
        answering = self._begun and not self.cycle.response_complete
        if self.conn.their_state is h11.SEND_BODY and not (answering and self.cycle.response_started):
            return Stage.BODY
        if answering:
            return Stage.ANSWER
        return Stage.IDLE if self._begun and not self.conn.trailing_data[0] else Stage.HEAD

    @property
    def _begun(self) -> bool:
        """Has there been a request? Before the first one uvicorn has no `cycle`, whatever its type says."""
        return bool(self.cycle)
