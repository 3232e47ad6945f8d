"""The sessions of `/mcp` before protocol 2026-07-28, which has none. Their number is bounded, and a new client gets in unless each address
has one session and all of them have calls in progress.

A client that leaves without DELETE leaves its session behind. At the limit the address with most sessions makes room, with the one that it
needs least: the one that has been idle for longest, if one is. Its client receives 404 and opens a new session, as the protocol demands.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from mcp.server.lowlevel import Server
from mcp.server.streamable_http import GET_STREAM_KEY, MCP_SESSION_ID_HEADER, StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared._stream_protocols import ReadStream, WriteStream
from mcp.shared.message import SessionMessage
from mcp_types import INTERNAL_ERROR, ErrorData, JSONRPCError
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from wadm_mcp.logs import RateLimitedWarning
from wadm_mcp.queries.callers import Caller, Shares, asked_by, current_caller, shared_address
from wadm_mcp.server.backpressure import CountedWrites, PacedReads
from wadm_mcp.web.resumption import KeptEvents, SessionEvents

_sdk_log: Final = logging.getLogger("mcp.server.streamable_http")
_Pair: TypeAlias = tuple[ReadStream[SessionMessage | Exception], WriteStream[SessionMessage]]

MAX_SESSIONS: Final = 256
"""Sessions at once."""
_IDLE_SECONDS: Final = 1_800.0
"""Time without a request after which a session ends."""
_RETRY_MS: Final = 1_000
"""Time after which a client is asked to reconnect."""
MAX_POSTS: Final = 64
"""HTTP requests of one session at once. Beyond `limits.MAX_REQUESTS` they are answered with an error at once, unless their client does not
read."""
_POSTS_SECONDS: Final = 5
_ROOM_SECONDS: Final = 30


class Sessions(StreamableHTTPSessionManager):
    """The sessions of `/mcp`, each with its own event store. `busy(session_id)` is whether a call of the session is being answered."""

    def __init__(
        self, server: Server[Any], security: TransportSecuritySettings, busy: Callable[[str], bool], max_sessions: int = MAX_SESSIONS
    ) -> None:
        super().__init__(
            server,
            security_settings=security,
            retry_interval=_RETRY_MS,
            session_idle_timeout=_IDLE_SECONDS,
            max_sessions=max_sessions,
        )
        _sdk_log.addFilter(_is_fault)
        self._busy = busy
        self._shares = Shares[str]()
        """The IDs of the sessions, by address."""
        self._kept = KeptEvents()
        self._log_eviction = RateLimitedWarning("session.evicted")

    def listens(self, session_id: str) -> bool:
        """Whether a session has an open listening stream (GET), on which notifications reach its client."""
        transport = self._server_instances.get(session_id)
        return transport is not None and GET_STREAM_KEY in transport._request_streams

    def end(self) -> None:
        """End all sessions, each in its own task. Their calls are answered with an error, for which the SDK would wait a second once their
        streams are gone."""
        for transport in self._server_instances.values():
            if transport.idle_scope is not None:
                transport.idle_scope.cancel()

    async def _handle_stateful_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        session_id = Headers(scope=scope).get(MCP_SESSION_ID_HEADER, "")
        transport = self._server_instances.get(session_id)
        if transport is not None and transport._requests_in_flight >= MAX_POSTS and scope["method"] == "POST":
            return await too_many_posts()(scope, receive, send)
        self._shares.use(session_id)
        with asked_by(client_address(scope)):
            try:
                await super()._handle_stateful_request(scope, receive, send)
            except _NoRoom:
                text = f"busy: {self.max_sessions} sessions are open, as many as are served at once, and each has a call in progress"
                await _refused(HTTPStatus.SERVICE_UNAVAILABLE, text, _ROOM_SECONDS)(scope, receive, send)

    def _admit_session(self, requestor: Any) -> StreamableHTTPServerTransport | None:
        caller = current_caller()
        if self.max_sessions is not None and len(self._server_instances) >= self.max_sessions:
            self._make_room(caller)
        transport = super()._admit_session(requestor)
        if transport is not None:
            self._shares.add(transport.mcp_session_id or "", caller)
            transport._event_store = SessionEvents(self._kept)
            transport.connect = partial(_paced, transport.connect)
        return transport

    async def _discard_session(self, session_id: str, transport: StreamableHTTPServerTransport) -> None:
        self._shares.discard(session_id)
        if isinstance(transport._event_store, SessionEvents):
            transport._event_store.close()
        await super()._discard_session(session_id, transport)

    def _make_room(self, caller: Caller) -> None:
        """End a session of the address with most of them. Where each has one, end one without a call in progress, or raise `_NoRoom`."""
        greediest = self._shares.makes_room_for(caller)
        found = self._least_needed(list(self._server_instances) if greediest is None else self._shares.of(greediest))
        if found is None or (greediest is None and self._busy(found)):
            raise _NoRoom
        transport = self._server_instances.pop(found)
        # Its ID answers 404 from now on; the session's own task ends it.
        self._session_owners.pop(found, None)
        self._shares.discard(found)
        if transport.idle_scope is not None:
            transport.idle_scope.cancel()
        self._log_eviction(sessions=self.max_sessions)

    def _least_needed(self, keys: Sequence[str]) -> str | None:
        """Of sessions, the longest unused first: the one that has been idle for longest, else one that only listens, else one whose client
        does not read its answers, else one with a call in progress. None where all are being opened."""
        opened = {key: self._server_instances[key] for key in keys if self._server_instances[key].idle_scope is not None}
        without_call = {key: one for key, one in opened.items() if not self._busy(key)}
        idle = {key: since for key, one in without_call.items() if (since := _idle_since(one)) is not None}
        if idle:
            return min(idle, key=lambda key: idle[key])
        listening = [key for key, one in without_call.items() if _only_listens(one)]
        return next(iter([*listening, *without_call, *opened]), None)


class _NoRoom(Exception):
    """There is no session that could make room for another one."""


def client_address(scope: Scope) -> str:
    """The address, or the network, that a request comes from, whose sessions are counted together."""
    client = scope.get("client")
    return shared_address(client[0] if client else "")


def _is_fault(record: logging.LogRecord) -> bool:
    """False for the SDK's traceback of a client that left while it sent its request."""
    return record.exc_info is None or not isinstance(record.exc_info[1], ClientDisconnect)


def too_many_posts() -> Response:
    """The answer to a request of a session that has `MAX_POSTS` of them."""
    text = f"busy: {MAX_POSTS} requests of this session are in progress; read their answers"
    return _refused(HTTPStatus.TOO_MANY_REQUESTS, text, _POSTS_SECONDS)


def _refused(status: HTTPStatus, text: str, again_in: int) -> Response:
    body = JSONRPCError(jsonrpc="2.0", id=None, error=ErrorData(code=INTERNAL_ERROR, message=f"{text}; ask again in {again_in} s"))
    return Response(body.model_dump_json(by_alias=True), status, {"Retry-After": str(again_in)}, "application/json")


@asynccontextmanager
async def _paced(connect: Callable[[], AbstractAsyncContextManager[_Pair]]) -> AsyncGenerator[_Pair]:
    """The streams of a session, which reads no more while its client does not read."""
    async with connect() as (read, write):
        writes = CountedWrites(write)
        yield PacedReads(read, writes), writes


def _idle_since(transport: StreamableHTTPServerTransport) -> float | None:
    """The time at which the last request ended. None while one is in progress, the opening one included."""
    scope = transport.idle_scope
    return None if scope is None or scope.deadline == math.inf else scope.deadline - _IDLE_SECONDS


def _only_listens(transport: StreamableHTTPServerTransport) -> bool:
    return transport._requests_in_flight == 1 and GET_STREAM_KEY in transport._request_streams
