"""Coverage of one instrument: what is recorded completely, and what is missing.

`InstrumentCoverage` is the interface. It has two implementations, and nothing outside this package needs to know which one an
instrument has: `by_id` where the exchange counts its trades (the ids alone prove what is complete), `by_connection` where it does not
(the tape is complete between two frames of one connection). Both are pure state machines: no clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from wadm_mcp.model import Basis, GapReason, Span, SpanReason, Trade, Window

REMEMBERED_SPANS: Final = 2_000
"""Spans kept in memory; older ones are in the store alone."""


class MissingRange(NamedTuple):
    """A gap between two spans: the ids `first` to `last` where they count, else -1, and the times `[start, end]` it lies between (ms)."""

    first: int
    last: int
    start: int
    end: int

    @property
    def trades(self) -> int:
        """How many ids are missing; 0 where they do not count."""
        return self.last - self.first + 1 if self.first >= 0 else 0


class InstrumentCoverage(Protocol):
    """Coverage of one instrument while it is recorded."""

    breaks: int
    """Grows whenever a gap may have opened, so that gap repair need not look at every trade."""

    @property
    def counts_trades(self) -> bool:
        """Do the exchange's ids count the trades, so that a missing id is a missing trade?"""
        ...

    @property
    def alive(self) -> bool:
        """Is there a connection that has delivered a frame and has not ended?"""
        ...

    @property
    def spans(self) -> list[Span]:
        """Every span, oldest first, those of absent ids included."""
        ...

    @property
    def covered(self) -> list[Span]:
        """The spans that cover something: by id where ids count, else by time."""
        ...

    def changed(self) -> list[Span]:
        """Spans that are new or have grown since the last call."""
        ...

    def missing(self) -> list[MissingRange]:
        """The gaps between spans, oldest first, without those that the exchange itself does not have."""
        ...

    def add_stored(self, spans: Iterable[Span], recent: Sequence[Trade] = ()) -> None:
        """Take over spans from the store; `recent` are the newest stored trades, oldest first."""
        ...

    def frame_received(self, connection: int, event_time: int) -> None:
        """A frame of trades came in, sent by the exchange at `event_time` (ms), never before the connection began. Its trades follow."""
        ...

    def frame_unreadable(self, connection: int) -> None:
        """A frame of the connection could not be read; it may have contained trades."""
        ...

    def connection_lost(self, connection: int, reason: GapReason) -> None:
        """The connection ended (`disconnect`) or was given up as stale (`mute`)."""
        ...

    def take(self, trade: Trade, reason: SpanReason = SpanReason.LIVE) -> bool:
        """Cover a trade. False where it is a repeat. A live trade belongs to the last frame received."""
        ...

    def take_folded(self, first: int, last: int, first_at: int, last_at: int, reason: SpanReason) -> bool:
        """Cover the ids of a partial footprint, traded from `first_at` to `last_at` (ms). False, and nothing covered, where one of them
        is covered already. Always true where ids do not count."""
        ...

    def cover(self, window: Window, reason: SpanReason, *, raw: bool) -> None:
        """A complete record of a window (a day's archive file) was taken in. Changes nothing where ids count: they prove it themselves."""
        ...

    def mark_absent(self, first: int, last: int) -> None:
        """The exchange itself does not have these ids, all of one gap: nobody asks for them again. Needs ids that count."""
        ...

    def unclaimed(self, newest: Sequence[Trade]) -> list[Trade]:
        """Those of the exchange's newest trades that may be new. Where ids count, `take` decides on each."""
        ...

    def prove(self, newest: Sequence[Trade]) -> bool:
        """Close gaps that the exchange's newest trades bridge, after these were taken. True when trying again cannot close more."""
        ...


class OpenSpan:
    """A span in memory, which may still grow. Not frozen: it grows with every trade."""

    __slots__ = ("changed", "end", "first", "last", "opened_by", "raw", "reason", "start")

    def __init__(
        self,
        start: int,
        end: int,
        first: int,
        last: int,
        opened_by: GapReason,
        reason: SpanReason = SpanReason.LIVE,
        *,
        raw: bool = True,
        changed: bool = True,
    ) -> None:
        self.start = start
        self.end = end
        self.first = first
        self.last = last
        self.opened_by = opened_by
        self.reason = reason
        self.raw = raw
        self.changed = changed

    def extendable_by(self, reason: SpanReason, raw: bool) -> bool:
        """May a trade with this reason extend the span?"""
        return self.reason is reason and self.raw is raw

    def span(self, basis: Basis) -> Span:
        """The span as it is now."""
        return Span(self.start, max(self.start, self.end), self.first, self.last, basis, self.reason, self.opened_by, self.raw)

    @classmethod
    def of(cls, span: Span) -> OpenSpan:
        """A stored span."""
        return cls(span.start, span.reached, span.first_seq, span.last_seq, span.opened_by, span.reason, raw=span.raw, changed=False)


class SpanList:
    """What both kinds of coverage share: spans of an instrument, oldest first, bounded in number."""

    basis: Basis

    def __init__(self) -> None:
        self._spans: list[OpenSpan] = []
        self._opened_by = GapReason.START
        """Why the next span does not continue the last one."""
        self.breaks = 0

    @property
    def counts_trades(self) -> bool:
        return self.basis is Basis.EXACT

    @property
    def spans(self) -> list[Span]:
        return [span.span(self.basis) for span in self._spans]

    @property
    def covered(self) -> list[Span]:
        return [span.span(self.basis) for span in self._spans]

    def changed(self) -> list[Span]:
        fresh = [span for span in self._spans if span.changed]
        for span in fresh:
            span.changed = False
        del self._spans[: max(0, len(self._spans) - REMEMBERED_SPANS)]
        return [span.span(self.basis) for span in fresh]
