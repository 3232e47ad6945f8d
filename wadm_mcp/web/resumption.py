"""Resuming a broken Streamable HTTP stream: a client of 2025-11-25 comes back with the last event it has and is sent the rest.

A stream is named by its request's id, which is unique in a session only, while the SDK keeps one store of events for all sessions.
Here each session has its own, or one client would be sent another's answer.
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

_SESSIONS: Final = 1_000
"""Sessions at once; a client beyond them gets 503."""
_KEPT: Final = 256
"""Newest events of all sessions; a call makes two or more. What has gone can be asked for again."""
_RETRY: Final = 1_000
"""Milliseconds a client is told to wait before it comes back."""


class _Event(NamedTuple):
    session: Sent
    id: str
    stream: str
    message: JSONRPCMessage | None


class Sent(EventStore):
    """What one session was sent. Of a stream it listens on (GET) nothing is kept: an update is a cue to read again."""

    def __init__(self, kept: deque[_Event], numbers: count[int]) -> None:
        self._kept = kept
        self._numbers = numbers

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        """The id of an event that is sent now; without a message it only opens its stream."""
        if stream_id == GET_STREAM_KEY:
            return GET_STREAM_KEY
        event = _Event(self, str(next(self._numbers)), stream_id, message)
        self._kept.append(event)
        return event.id

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        """Send what followed on the stream of that event. The stream, if more is to come on it."""
        if last_event_id == GET_STREAM_KEY:
            return GET_STREAM_KEY
        stream = None
        for event in [event for event in self._kept if event.session is self]:
            if event.id == last_event_id:
                stream = event.stream
            elif event.stream == stream and event.message is not None:
                await send_callback(EventMessage(event.message, event.id))
            if event.stream == stream and isinstance(event.message, JSONRPCResponse | JSONRPCError):
                return None
        return stream


class Sessions(StreamableHTTPSessionManager):
    """The sessions of `/mcp`, each of which remembers what it was sent."""

    def __init__(self, server: Server[Any], security: TransportSecuritySettings) -> None:
        super().__init__(server, security_settings=security, retry_interval=_RETRY, max_sessions=_SESSIONS)
        self._kept: deque[_Event] = deque(maxlen=_KEPT)
        self._numbers = count(1)

    def _admit_session(self, requestor: Any) -> StreamableHTTPServerTransport | None:
        transport = super()._admit_session(requestor)
        if transport is not None:
            transport._event_store = Sent(self._kept, self._numbers)
        return transport
