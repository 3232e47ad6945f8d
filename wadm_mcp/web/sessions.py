"""The sessions of `/mcp` before protocol 2026-07-28, which has none. Their number is bounded, and a new client always gets in.

A client that leaves without DELETE leaves its session behind. At the limit the session that has been idle for longest makes room: one
without a request in progress, else one that only listens. Its client receives 404 and opens a new session, as the protocol demands.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from mcp.server.lowlevel import Server
from mcp.server.streamable_http import GET_STREAM_KEY, StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings

from wadm_mcp.logs import RateLimitedWarning
from wadm_mcp.web.resumption import KeptEvents, SessionEvents

MAX_SESSIONS: Final = 512
"""Sessions at once."""
_IDLE_SECONDS: Final = 1_800.0
"""Time without a request after which a session ends."""
_RETRY_MS: Final = 1_000
"""Time after which a client is asked to reconnect."""


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
        self._busy = busy
        self._kept = KeptEvents()
        self._log_eviction = RateLimitedWarning("session.evicted")

    def listens(self, session_id: str) -> bool:
        """Whether a session has an open listening stream (GET), on which notifications reach its client."""
        transport = self._server_instances.get(session_id)
        return transport is not None and GET_STREAM_KEY in transport._request_streams

    def _admit_session(self, requestor: Any) -> StreamableHTTPServerTransport | None:
        if self.max_sessions is not None and len(self._server_instances) >= self.max_sessions:
            self._evict()
        transport = super()._admit_session(requestor)
        if transport is not None:
            transport._event_store = SessionEvents(self._kept)
        return transport

    async def _discard_session(self, session_id: str, transport: StreamableHTTPServerTransport) -> None:
        if isinstance(transport._event_store, SessionEvents):
            transport._event_store.close()
        await super()._discard_session(session_id, transport)

    def _evict(self) -> None:
        """End the session that has been idle for longest. None is ended while every one has a call in progress."""
        without_call = [(key, one) for key, one in self._server_instances.items() if not self._busy(key)]
        idle = [(key, one) for key, one in without_call if _idle_since(one) is not None]
        found = min(idle, key=lambda each: _idle_since(each[1]) or 0.0, default=None)
        found = found or next(((key, one) for key, one in without_call if _only_listens(one)), None)
        if found is None:
            return
        session_id, transport = found
        # Its ID answers 404 from now on; the session's own task ends it.
        self._server_instances.pop(session_id, None)
        self._session_owners.pop(session_id, None)
        if transport.idle_scope is not None:
            transport.idle_scope.cancel()
        self._log_eviction(sessions=self.max_sessions)


def _idle_since(transport: StreamableHTTPServerTransport) -> float | None:
    """The time at which the last request ended. None while one is in progress, the opening one included."""
    scope = transport.idle_scope
    return None if scope is None or scope.deadline == math.inf else scope.deadline - _IDLE_SECONDS


def _only_listens(transport: StreamableHTTPServerTransport) -> bool:
    return transport._requests_in_flight == 1 and GET_STREAM_KEY in transport._request_streams
