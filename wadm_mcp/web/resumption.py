"""Resuming a broken Streamable HTTP stream: a client of 2025-11-25 reconnects with the id of its last event and receives the rest.

A stream is named by its request's id, which is unique only within a session, while the SDK keeps one event store for all sessions.
Here each session has its own store, so that no client receives the answer of another. All sessions share one limit in bytes; beyond it
the session that has most of them loses its oldest events. A client that asks for events that are not kept receives an error.
"""

from __future__ import annotations

import re
from itertools import count
from typing import Final, NamedTuple

from mcp.server.streamable_http import GET_STREAM_KEY, EventCallback, EventMessage, EventStore
from mcp_types import INTERNAL_ERROR, ErrorData, JSONRPCError, JSONRPCMessage, JSONRPCResponse, jsonrpc_message_adapter

MAX_BYTES: Final = 16_000_000
"""Bytes of the events that are kept of all sessions. A client whose events were dropped must ask again."""
MAX_EVENT_BYTES: Final = 512_000
"""Bytes of the largest event that is kept. In place of a larger answer its client receives an error that says to ask again."""
_EVENT_OVERHEAD_BYTES: Final = 500
"""Memory of an event beside its message."""
_STREAM_IN_ID: Final = re.compile(r"-?[0-9]{1,18}", re.ASCII)
"""A stream, which is the id of a request, that is part of the ids of its events: an error can name it after they are dropped."""
_EVENT_ID: Final = re.compile(rf"([0-9]{{1,18}})(?:/({_STREAM_IN_ID.pattern}))?", re.ASCII)


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
    """The events of all sessions, up to `max_bytes`."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._events: dict[int, _Event] = {}
        self._sessions: set[SessionEvents] = set()
        """The sessions that have events."""
        self._numbers = count(1)
        self.size = 0
        """Bytes of the kept events."""

    def add(self, event: _Event) -> int:
        """Keep an event, and drop the oldest ones of the session with most bytes beyond the limit. Returns its number."""
        number = next(self._numbers)
        self._events[number] = event
        event.session.numbers[number] = None
        event.session.size += event.size
        self._sessions.add(event.session)
        self.size += event.size
        while self.size > self._max_bytes:
            greediest = max(self._sessions, key=lambda session: session.size)
            self.drop(next(iter(greediest.numbers)))
        return number

    def get(self, number: int) -> _Event:
        """A kept event."""
        return self._events[number]

    def drop(self, number: int) -> None:
        """Forget an event."""
        event = self._events.pop(number)
        del event.session.numbers[number]
        event.session.size -= event.size
        if not event.session.numbers:
            self._sessions.discard(event.session)
        self.size -= event.size


class SessionEvents(EventStore):
    """The events sent to one session. Those of its listening stream (GET) are not kept: after a resource update the client reads again."""

    def __init__(self, kept: KeptEvents) -> None:
        self._kept = kept
        self._closed = False
        self.numbers: dict[int, None] = {}
        """The numbers of the events that are kept, oldest first."""
        self.size = 0
        """Their bytes."""

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
        return _event_id(self._kept.add(_Event(self, stream_id, packed, ends)), stream_id)

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        """Send the events that followed on the stream of that event, or an error where they are not kept. Returns the stream's name while
        it is still open."""
        if last_event_id == GET_STREAM_KEY:
            return GET_STREAM_KEY
        parts = _EVENT_ID.fullmatch(last_event_id)
        last, named = (int(parts[1]), parts[2]) if parts is not None else (0, None)
        if last not in self.numbers:
            return await send_callback(_not_kept(named))
        stream = self._kept.get(last).stream
        for number in [each for each in self.numbers if each >= last and self._kept.get(each).stream == stream]:
            if number not in self.numbers:  # dropped while an earlier one was being sent
                return await send_callback(_not_kept(named))
            event = self._kept.get(number)
            if number > last and event.message is not None:
                await send_callback(EventMessage(jsonrpc_message_adapter.validate_json(event.message), _event_id(number, stream)))
            if event.ends:
                return None
        return stream


def _event_id(number: int, stream: str) -> str:
    return f"{number}/{stream}" if _STREAM_IN_ID.fullmatch(stream) else f"{number}"


def _packed(message: JSONRPCMessage) -> bytes:
    return message.model_dump_json(by_alias=True, exclude_unset=True).encode()


def _too_large(answer: JSONRPCMessage | None, size: int) -> JSONRPCError:
    text = f"the connection broke before the answer had arrived, and an answer of {size:,} bytes is not kept. Ask again"
    answered = answer.id if isinstance(answer, JSONRPCResponse | JSONRPCError) else None
    return JSONRPCError(jsonrpc="2.0", id=answered, error=ErrorData(code=INTERNAL_ERROR, message=text))


def _not_kept(stream: str | None) -> EventMessage:
    """The answer in place of events that were dropped, with the id of the request where the stream names it."""
    text = "the connection broke before the answer had arrived, and what was sent meanwhile is not kept any more. Ask again"
    answered = None if stream is None else int(stream)
    return EventMessage(JSONRPCError(jsonrpc="2.0", id=answered, error=ErrorData(code=INTERNAL_ERROR, message=text)))
