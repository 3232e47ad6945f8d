"""Resuming a broken Streamable HTTP stream: a client of 2025-11-25 reconnects with the id of its last event and receives the rest.

A stream is named by its request's id, which is unique only within a session, while the SDK keeps one event store for all sessions.
Here each session has its own store, so that no client receives the answer of another. All sessions share one limit in bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import count
from typing import Final, NamedTuple

from mcp.server.streamable_http import GET_STREAM_KEY, EventCallback, EventMessage, EventStore
from mcp_types import INTERNAL_ERROR, ErrorData, JSONRPCError, JSONRPCMessage, JSONRPCResponse, jsonrpc_message_adapter

MAX_BYTES: Final = 16_000_000
"""Bytes of the events that are kept, the newest of all sessions. A client whose events were dropped must ask again."""
MAX_EVENT_BYTES: Final = 512_000
"""Bytes of the largest event that is kept. In place of a larger answer its client receives an error that says to ask again."""
_EVENT_OVERHEAD_BYTES: Final = 500
"""Memory of an event beside its message."""


class _Event(NamedTuple):
    session: SessionEvents
    stream: str
    message: bytes | None
    ends: bool
    """Is this the last event of its stream, the answer?"""

    @property
    def size(self) -> int:
        return _EVENT_OVERHEAD_BYTES + len(self.message or b"")


class KeptEvents:
    """The events of all sessions, oldest first, up to `max_bytes`."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._events: OrderedDict[int, _Event] = OrderedDict()
        self._numbers = count(1)
        self.size = 0
        """Bytes of the kept events."""

    def add(self, event: _Event) -> int:
        """Keep an event and drop the oldest ones beyond the limit. Returns its number."""
        number = next(self._numbers)
        self._events[number] = event
        event.session.numbers[number] = None
        self.size += event.size
        while self.size > self._max_bytes:
            self.drop(next(iter(self._events)))
        return number

    def get(self, number: int) -> _Event:
        """A kept event."""
        return self._events[number]

    def drop(self, number: int) -> None:
        """Forget an event."""
        event = self._events.pop(number)
        del event.session.numbers[number]
        self.size -= event.size


class SessionEvents(EventStore):
    """The events sent to one session. Those of its listening stream (GET) are not kept: after a resource update the client reads again."""

    def __init__(self, kept: KeptEvents) -> None:
        self._kept = kept
        self._closed = False
        self.numbers: dict[int, None] = {}
        """The numbers of the events that are kept, oldest first."""

    def close(self) -> None:
        """Forget all events of the session, which has ended, and keep no further one."""
        self._closed = True
        for number in list(self.numbers):
            self._kept.drop(number)

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        """Keep an event that is being sent and return its id. Without a message the event only opens its stream."""
        if stream_id == GET_STREAM_KEY or self._closed:
            return GET_STREAM_KEY
        ends = isinstance(message, JSONRPCResponse | JSONRPCError)
        packed = None if message is None else _packed(message)
        if packed is not None and len(packed) > MAX_EVENT_BYTES:
            packed = _packed(_too_large(message, len(packed))) if ends else None
        return str(self._kept.add(_Event(self, stream_id, packed, ends)))

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        """Send the events that followed on the stream of that event. Returns the stream's name while it is still open."""
        if last_event_id == GET_STREAM_KEY:
            return GET_STREAM_KEY
        last = next((number for number in self.numbers if str(number) == last_event_id), None)
        if last is None:
            return None
        stream = self._kept.get(last).stream
        for number in list(self.numbers):
            # An event may be dropped while an earlier one is being sent.
            event = self._kept.get(number) if number in self.numbers else None
            if event is None or event.stream != stream or number < last:
                continue
            if number > last and event.message is not None:
                await send_callback(EventMessage(jsonrpc_message_adapter.validate_json(event.message), str(number)))
            if event.ends:
                return None
        return stream


def _packed(message: JSONRPCMessage) -> bytes:
    return message.model_dump_json(by_alias=True, exclude_unset=True).encode()


def _too_large(answer: JSONRPCMessage | None, size: int) -> JSONRPCError:
    text = f"the connection broke before the answer had arrived, and an answer of {size:,} bytes is not kept. Ask again"
    answered = answer.id if isinstance(answer, JSONRPCResponse | JSONRPCError) else None
    return JSONRPCError(jsonrpc="2.0", id=answered, error=ErrorData(code=INTERNAL_ERROR, message=text))
