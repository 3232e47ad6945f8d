"""What is held of one instrument, and what is missing. A pure state machine: no clock, no I/O.

Where the exchange counts its trades (`Counted`), the ids alone prove what is held, whichever connection brought them. Where it
does not (`Observed`), the tape is complete only while a connection that has already delivered goes on living.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, Protocol

from wadm_mcp.model import Basis, Span, Trade

REMEMBERED_SPANS: Final = 500
"""Spans kept in memory; older ones rest in the store."""
REMEMBERED_IDS: Final = 20_000
"""Trade ids remembered to drop repeats where ids do not count; the store's identity is the net below."""


class Continuity(Protocol):
    """What is held of one instrument."""

    def take(self, trade: Trade) -> bool:
        """Is this trade new? If so it is held from now on."""
        ...

    def heard(self, connection: int, event_time: int) -> None:
        """A frame of trades came in: its time at the exchange, never before its connection. Called before its trades are taken."""
        ...

    def lost(self, connection: int, reason: str) -> None:
        """A connection ended (`disconnect`) or proved mute (`mute`)."""
        ...

    @property
    def spans(self) -> list[Span]:
        """What is held, oldest first."""
        ...

    def changed(self) -> list[Span]:
        """Spans that grew or came up since the last call."""
        ...

    @property
    def living(self) -> bool:
        """Is a connection alive that has delivered?"""
        ...


class _Held:
    """One span while it may still grow."""

    __slots__ = ("changed", "end", "first", "last", "opened_by", "start")

    def __init__(self, start: int, end: int, first: int, last: int, opened_by: str) -> None:
        self.start = start
        self.end = end
        self.first = first
        self.last = last
        self.opened_by = opened_by
        self.changed = True

    def span(self, basis: Basis) -> Span:
        return Span(self.start, max(self.start, self.end), self.first, self.last, basis, "live", self.opened_by)


class _Spans:
    """The spans of an instrument, bounded in number."""

    basis: Basis

    def __init__(self, known: Iterable[Span]) -> None:
        mine = sorted((span for span in known if span.basis is self.basis), key=lambda span: (span.first_seq, span.start))
        self._held = [_Held(span.start, span.end, span.first_seq, span.last_seq, span.opened_by) for span in mine][-REMEMBERED_SPANS:]
        for held in self._held:
            held.changed = False
        self._connections: set[int] = set()
        self._opened_by = "start"

    @property
    def spans(self) -> list[Span]:
        return [held.span(self.basis) for held in self._held]

    @property
    def living(self) -> bool:
        return bool(self._connections)

    def changed(self) -> list[Span]:
        fresh = [held for held in self._held if held.changed]
        for held in fresh:
            held.changed = False
        del self._held[: max(0, len(self._held) - REMEMBERED_SPANS)]
        return [held.span(self.basis) for held in fresh]


class Counted(_Spans):
    """Continuity by ids that the exchange counts without holes: `seq` of a trade is its id.

    A span's time runs from just after its first trade (others of that very millisecond may be missing) to its last.
    """

    basis = Basis.EXACT

    def take(self, trade: Trade) -> bool:
        number, at = trade.seq, trade.timestamp
        held = self._held
        if held and held[-1].last + 1 == number:
            newest = held[-1]
            newest.last = number
            if at > newest.end:
                newest.end = at
            newest.changed = True
            self._opened_by = "missing_ids"
            return True
        return self._take_out_of_turn(number, at)

    def _take_out_of_turn(self, number: int, at: int) -> bool:
        held = self._held
        place = bisect_right(held, number, key=lambda span: span.first)
        before = held[place - 1] if place else None
        after = held[place] if place < len(held) else None
        if before is not None and number <= before.last:
            return False
        if before is not None and before.last + 1 == number:
            before.last, before.end, before.changed = number, max(before.end, at), True
        elif after is not None and after.first - 1 == number:
            after.first, after.start, after.changed = number, min(after.start, at + 1), True
            return True
        else:
            start = max(at + 1, before.end) if before is not None else at + 1
            held.insert(place, _Held(start, at, number, number, self._opened_by if after is None else "missing_ids"))
            self._opened_by = "missing_ids"
            return True
        if after is not None and before.last + 1 == after.first:
            before.last, before.end = after.last, max(before.end, after.end)
            del held[place]
        return True

    def heard(self, connection: int, event_time: int) -> None:
        self._connections.add(connection)

    def lost(self, connection: int, reason: str) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._opened_by = reason


class Observed(_Spans):
    """Continuity by living connections, where ids do not count.

    A span opens when the first frame of a connection was sent, never with its acknowledgement, and ends with the last trade
    seen before the last living connection was lost. A connection that has not delivered yet covers nothing.
    """

    basis = Basis.OBSERVED

    def __init__(self, known: Iterable[Span], recent: Iterable[Trade] = ()) -> None:
        super().__init__(known)
        self._ids: dict[str, None] = dict.fromkeys(trade.trade_id for trade in recent)
        self._open: _Held | None = None

    def take(self, trade: Trade) -> bool:
        if trade.trade_id in self._ids:
            return False
        self._ids[trade.trade_id] = None
        if len(self._ids) > REMEMBERED_IDS:
            del self._ids[next(iter(self._ids))]
        span = self._open
        if span is not None and trade.timestamp >= span.start:
            span.first = trade.seq if span.first < 0 else min(span.first, trade.seq)
            span.last = max(span.last, trade.seq)
            span.end = max(span.end, trade.timestamp)
            span.changed = True
        return True

    def heard(self, connection: int, event_time: int) -> None:
        self._connections.add(connection)
        if self._open is None:
            start = max(event_time, self._held[-1].end) if self._held else event_time
            self._open = _Held(start, start, -1, -1, self._opened_by)
            self._held.append(self._open)

    def lost(self, connection: int, reason: str) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            if not self._connections:
                self._open = None
                self._opened_by = reason
