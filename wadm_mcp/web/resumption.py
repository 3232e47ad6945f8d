"""Resuming a broken Streamable HTTP stream: a client of 2025-11-25 reconnects with the id of its last event and receives the rest.

A stream is named by its request's id, which is unique only within a session, while the SDK keeps one event store for all sessions.
Here each session has its own store, so that no client receives the answer of another.
"""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import Any, Final, NamedTuple

from mcp.server.lowlevel import Server
from mcp.server.streamable_http import GET_STREAM_KEY, EventCallback, EventMessage, EventStore, StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import JSONRPCError, JSONRPCMessage, JSONRPCResponse

_MAX_SESSIONS: Final = 1_000
"""Sessions at once; a further client gets 503."""
_MAX_EVENTS: Final = 256
"""Events kept, the newest of all sessions; a call makes two or more. A client whose events were dropped must ask again."""
_RETRY_MS: Final = 1_000
"""Time after which a client is asked to reconnect."""


class _Event(NamedTuple):
    session: SessionEvents
    id: str
    stream: str
    message: JSONRPCMessage | None


class SessionEvents(EventStore):
    """The events sent to one session. Those of its listening stream (GET) are not kept: after a resource update the client reads again."""

    def __init__(self, events: deque[_Event], numbers: count[int]) -> None:
        self._events = events
        self._numbers = numbers

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        """Keep an event that is being sent and return its id. Without a message the event only opens its stream."""
        if stream_id == GET_STREAM_KEY:
            return GET_STREAM_KEY
        event = _Event(self, str(next(self._numbers)), stream_id, message)
        self._events.append(event)
        return event.id

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        """Send the events that followed on the stream of that event. Returns the stream's name while it is still open."""
        if last_event_id == GET_STREAM_KEY:
            return GET_STREAM_KEY
        stream = None
        for event in [event for event in self._events if event.session is self]:
            if event.id == last_event_id:
                stream = event.stream
            elif event.stream == stream and event.message is not None:
                await send_callback(EventMessage(event.message, event.id))
            if event.stream == stream and isinstance(event.message, JSONRPCResponse | JSONRPCError):
                return None
        return stream


class Sessions(StreamableHTTPSessionManager):
    """The sessions of `/mcp`, each with its own event store."""

    def __init__(self, server: Server[Any], security: TransportSecuritySettings) -> None:
        super().__init__(server, security_settings=security, retry_interval=_RETRY_MS, max_sessions=_MAX_SESSIONS)
        self._events: deque[_Event] = deque(maxlen=_MAX_EVENTS)
        self._numbers = count(1)

    def _admit_session(self, requestor: Any) -> StreamableHTTPServerTransport | None:
        transport = super()._admit_session(requestor)
        if transport is not None:
            transport._event_store = SessionEvents(self._events, self._numbers)
        return transport
