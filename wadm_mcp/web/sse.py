"""MCP over SSE, the transport before Streamable HTTP: a session is an open response of `/sse`, and its client posts to `/messages/`.

As with the sessions of `/mcp`, their number is bounded, and at the limit the address with most sessions makes room: with the one that was
not used for longest.
"""

from __future__ import annotations

from collections import Counter
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

import anyio
from mcp.server.lowlevel import Server
from mcp.server.sse import SseServerTransport
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from wadm_mcp.logs import RateLimitedWarning
from wadm_mcp.queries.callers import Caller, Shares
from wadm_mcp.server.backpressure import CountedWrites, PacedReads
from wadm_mcp.web.responses import error_response
from wadm_mcp.web.sessions import MAX_POSTS, client_address, too_many_posts
from wadm_mcp.web.streams import Streams

MAX_SSE_SESSIONS: Final = 256


class SseSessions:
    """The sessions of one server."""

    def __init__(self, server: Server[Any], transport: SseServerTransport, streams: Streams, max_sessions: int = MAX_SSE_SESSIONS) -> None:
        self._server = server
        self._transport = transport
        self._streams = streams
        self._max_sessions = max_sessions
        self._open: dict[anyio.CancelScope, CountedWrites] = {}
        self._shares = Shares[anyio.CancelScope]()
        """The open sessions, by address."""
        self._posts: Counter[UUID] = Counter()
        self._log_eviction = RateLimitedWarning("session.evicted")

    async def listen(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a session. A bare ASGI application: nothing may be sent after the stream."""
        caller = Caller(client_address(scope))
        async with self._transport.connect_sse(scope, receive, send) as (read, write):
            writes = CountedWrites(write)
            if len(self._open) >= self._max_sessions:
                self._make_room(caller)
            # Only the session is ended, so that the transport closes.
            with self._streams.cancellable_scope() as session:
                self._open[session] = writes
                self._shares.add(session, caller)
                try:
                    await self._server.run(PacedReads(read, writes), writes, self._server.create_initialization_options())
                finally:
                    self._forget(session)

    def _make_room(self, caller: Caller) -> None:
        """End the session that was not used for longest, of the address with most of them. It takes a while to end, and counts no more."""
        greediest = self._shares.makes_room_for(caller)
        shared = self._open if greediest is None else self._shares.of(greediest)
        session = min(shared, key=lambda each: self._open[each].used_at)
        self._forget(session)
        session.cancel()
        self._log_eviction(sessions=self._max_sessions)

    def _forget(self, session: anyio.CancelScope) -> None:
        self._open.pop(session, None)
        self._shares.discard(session)

    async def post(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a message. It waits while its session reads no more, so that a client may not have many of them."""
        try:
            session = UUID(hex=Request(scope).query_params.get("session_id", ""))
        except ValueError:
            # The transport would log what was given.
            response = error_response(HTTPStatus.BAD_REQUEST, "session_id is missing or not an id; post to the address that /sse announced")
            await response(scope, receive, send)
            return
        if self._posts[session] >= MAX_POSTS:
            await too_many_posts()(scope, receive, send)
            return
        self._posts[session] += 1
        try:
            await self._transport.handle_post_message(scope, receive, send)
        finally:
            self._posts[session] -= 1
            if not self._posts[session]:
                del self._posts[session]
