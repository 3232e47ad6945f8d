"""What is held of one instrument, and what is missing: the contract, and the spans that both kinds of continuity keep.

Pure state machines: no clock, no I/O. Where the exchange counts its trades (`counted.py`), the ids alone prove what is held, whichever
connection brought them. Where it does not (`observed.py`), the tape is complete only where one connection delivered before and after.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from wadm_mcp.model import Basis, Span, Trade

REMEMBERED_SPANS: Final = 2_000
"""Spans kept in memory; older ones rest in the store."""

LIVE: Final = "live"
REPAIRED: Final = "repaired"
IMPORTED: Final = "imported"
ABSENT: Final = "absent"


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


class Continuity(Protocol):
    """What is held of one instrument."""

    breaks: int
    """Grows whenever a gap comes up, so that whoever repairs need not look at every trade."""

    def heard(self, connection: int, event_time: int) -> None:
        """A frame of trades came in: its time at the exchange, never before its connection. Called before its trades are taken."""
        ...

    def take(self, trade: Trade, reason: str = LIVE) -> bool:
        """Is this trade new? If so it is held from now on. A live one belongs to the frame last heard."""
        ...

    def doubt(self, connection: int) -> None:
        """Something of a connection could not be read: there may have been trades in it."""
        ...

    def lost(self, connection: int, reason: str) -> None:
        """A connection ended (`disconnect`) or proved mute (`mute`)."""
        ...

    def missing(self) -> list[MissingRange]:
        """The gaps between what is held, oldest first; those that the exchange itself does not have are left out."""
        ...

    @property
    def spans(self) -> list[Span]:
        """What is held, oldest first, and what is known to be absent."""
        ...

    def changed(self) -> list[Span]:
        """Spans that grew or came up since the last call."""
        ...

    @property
    def living(self) -> bool:
        """Is a connection alive that has delivered?"""
        ...


class OpenSpan:
    """One span while it may still grow."""

    __slots__ = ("changed", "end", "first", "last", "opened_by", "raw", "reason", "start")

    def __init__(
        self, start: int, end: int, first: int, last: int, opened_by: str, reason: str = LIVE, *, raw: bool = True, changed: bool = True
    ) -> None:
        self.start = start
        self.end = end
        self.first = first
        self.last = last
        self.opened_by = opened_by
        self.reason = reason
        self.raw = raw
        self.changed = changed

    def like(self, reason: str, raw: bool) -> bool:
        """May a trade held for this reason prolong the span?"""
        return self.reason == reason and self.raw is raw

    def span(self, basis: Basis) -> Span:
        return Span(self.start, max(self.start, self.end), self.first, self.last, basis, self.reason, self.opened_by, self.raw)

    @classmethod
    def of(cls, span: Span) -> OpenSpan:
        """A span as it was stored."""
        return cls(span.start, span.reached, span.first_seq, span.last_seq, span.opened_by, span.reason, raw=span.raw, changed=False)


class Spans:
    """The spans of an instrument, bounded in number, oldest first."""

    basis: Basis

    def __init__(self) -> None:
        self._held: list[OpenSpan] = []
        self._opened_by = "start"
        self.breaks = 0

    @property
    def spans(self) -> list[Span]:
        return [held.span(self.basis) for held in self._held]

    def changed(self) -> list[Span]:
        fresh = [held for held in self._held if held.changed]
        for held in fresh:
            held.changed = False
        del self._held[: max(0, len(self._held) - REMEMBERED_SPANS)]
        return [held.span(self.basis) for held in fresh]
