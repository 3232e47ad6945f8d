"""Coverage of one instrument: what is recorded completely, and what is missing.

`InstrumentCoverage` is the interface. It has two implementations, and nothing outside this package needs to know which one an
instrument has: `by_id` where trade ids are gapless (the ids alone prove what is complete), `by_connection` where they are not
(the tape is complete between two frames of one connection). Both are pure state machines: no clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple, Protocol, Self

import msgspec

from wadm_mcp.coverage.silence import SHORTEST_PAUSE, SilenceLimit
from wadm_mcp.model import Trade, Window

REMEMBERED_SPANS: Final = 2_000
"""Spans kept in memory; older ones are in the store alone."""


class Basis(StrEnum):
    """What proves a span of coverage."""

    EXACT = "exact"
    """Gapless ids."""
    OBSERVED = "observed"
    """A connection that delivered before and after."""


class SpanReason(StrEnum):
    """How a span came to be covered."""

    LIVE = "live"
    REPAIRED = "repaired"
    IMPORTED = "imported"
    ABSENT = "absent"
    """Ids that the exchange itself does not have. Such a span covers nothing; it only prevents further requests."""
    DIFFERS = "differs"
    """A minute whose candle has more volume than was recorded, where ids do not count trades. Such a span covers nothing: it makes the
    minute a gap, whatever other spans say. A later span of the same minute from a complete source is stored in its place."""


COVERS_NOTHING: Final = frozenset({SpanReason.ABSENT, SpanReason.DIFFERS})
"""Reasons of spans that say what is missing."""
DIFFERING_SEQ: Final = -2
"""`first_seq` and `last_seq` of a minute whose candle differs, so that no other span is stored in its place."""


class GapReason(StrEnum):
    """Why a stretch is not covered, as spans store it and answers report it. `meaning` explains it, in docs/answers.md too."""

    _value_: str
    meaning: str

    def __new__(cls, value: str, meaning: str) -> Self:
        """A member with its explanation."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    START = "start", "No process was recording at this time: WADM was not running, or it had just started and no trade had arrived yet."
    DISCONNECT = "disconnect", "The connection closed. The gap ends with the first trade of the next connection."
    MUTE = "mute", "The connection stayed open but delivered no data, so WADM closed it or subscribed again."
    SILENCE = (
        "silence",
        "The connections stayed open and delivered no trade for much longer than this instrument pauses, so trades may have been lost. "
        "The gap closes once the exchange's recent trades or its archive show what was traded.",
    )
    BAD_FRAME = (
        "bad_frame",
        "WADM could not decode a frame, or a row of one, that may have contained trades, and the exchange's trade ids are not gapless.",
    )
    MISSING_IDS = "missing_ids", "The exchange's trade ids show that trades are missing. WADM is requesting them from the exchange."
    ABSENT = "absent", "The exchange itself does not have these trade ids, so this gap cannot be repaired."
    UNREADABLE = (
        "unreadable",
        "The exchange has these trades, but serves at least one of them in a form that WADM cannot read, so this gap cannot be repaired.",
    )
    CANDLE_DIFFERS = (
        "candle_differs",
        "The exchange's own candle of this minute has more volume than was recorded: trades are missing although the connection delivered "
        "data. The exchange's trade ids are not gapless, so only an archive file can bring them.",
    )
    NOT_RECORDED = "not_recorded", "The time lies before recording began, or after it ended and no connection is live."
    NOT_YET_SEEN = "not_yet_seen", "The most recent moments of a live recording: no trade has confirmed them yet."
    IMPORTING = "importing", "History of this time is being imported."
    EXPIRED = "expired", "The data was recorded and has been deleted because its retention period is over."
    BEING_REVISED = "being_revised", "Late trades are being added to the figures of this minute. This takes a few seconds."
    WITHOUT_ROWS = (
        "without_rows",
        "In `get_trades` only: the figures of this time are complete, but it was imported or repaired as aggregates without single trades.",
    )
    EXCHANGE_UNREACHABLE = (
        "exchange_unreachable",
        "The exchange has not answered since WADM was first started, so WADM does not know whether it lists the symbol.",
    )
    STORE_UNREACHABLE = (
        "store_unreachable",
        "The store does not answer. Only the live data in memory is available, and it does not reach back this far.",
    )


class Span(msgspec.Struct, frozen=True):
    """A stretch `[start, end)` (ms) in which the tape of one instrument is complete.

    With basis `exact` every id from `first_seq` to `last_seq` is recorded; with `observed` they are the smallest and largest `seq` seen.
    `reason` says how the span came to be covered, `opened_by` why there is a gap before it. Without `raw` only the figures of its trades
    are stored, not the single trades. The store identifies a span by instrument, `start` and `first_seq` (several may begin in one
    millisecond); a span that is stored again only ever grows.
    """

    start: int
    end: int
    first_seq: int
    last_seq: int
    basis: Basis
    reason: SpanReason = SpanReason.LIVE
    opened_by: GapReason = GapReason.START
    raw: bool = True

    @property
    def reached(self) -> int:
        """Latest time (ms) of a trade in it, as far as it is known: a span without length ends with a trade one millisecond earlier."""
        return self.end if self.end > self.start else self.start - 1


class MissingRange(NamedTuple):
    """A gap between two spans: its ids `first` to `last` (-1 where ids are not gapless), and the times `[start, end]` around it (ms)."""

    first: int
    last: int
    start: int
    end: int

    @property
    def trades(self) -> int:
        """How many ids are missing; 0 where ids are not gapless."""
        return self.last - self.first + 1 if self.first >= 0 else 0


class IdRange(NamedTuple):
    """Consecutive ids `first` to `last`, traded from `first_at` to `last_at` (ms)."""

    first: int
    last: int
    first_at: int
    last_at: int


class InstrumentCoverage(Protocol):
    """Coverage of one instrument while it is recorded."""

    breaks: int
    """Grows with every new span and whenever stored spans are added. Only then can a new gap exist, so gap repair compares this number."""
    silence_limit: SilenceLimit
    """How long the instrument may be silent before nothing is claimed of that time."""

    @property
    def has_gapless_ids(self) -> bool:
        """True if the exchange's ids are gapless, so that a missing id is a missing trade."""
        ...

    @property
    def alive(self) -> bool:
        """True while there is a connection that has delivered a frame and has not ended."""
        ...

    @property
    def continuing(self) -> bool:
        """True while a connection will extend the newest span with its next trade, or show that trades are missing before it. A connection
        that has only repeated an old trade, or whose last frame was unreadable, will not."""
        ...

    @property
    def spans(self) -> list[Span]:
        """Every span: first those of absent ids, then those of `covered`."""
        ...

    @property
    def covered(self) -> list[Span]:
        """The spans that cover something, in order of their ids where these are gapless, otherwise in order of time."""
        ...

    def covers(self, window: Window) -> bool:
        """True if one span covers the window's time."""
        ...

    def changed(self) -> list[Span]:
        """Spans that are new or have grown since the last call."""
        ...

    def missing(self) -> list[MissingRange]:
        """The gaps between spans, oldest first, without those that the exchange itself does not have."""
        ...

    def add_stored(self, spans: Iterable[Span], recent: Sequence[Trade] = ()) -> None:
        """Add spans from the store; `recent` are the newest stored trades, oldest first."""
        ...

    def add_stored_trades(self, trades: Iterable[Trade], folded: Iterable[IdRange] = ()) -> None:
        """Add what the store has although no stored span covers it, after `add_stored`: the process that stored it ended before it stored
        its coverage. `folded` are the ids of partial footprints. Changes nothing where ids are not gapless."""
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
        """Add a trade to the coverage. Returns False if it is a repeat. With reason `live` it is a trade of the last `frame_received`."""
        ...

    def take_folded(self, ids: IdRange, reason: SpanReason) -> bool:
        """Add the ids of a partial footprint.

        Returns False, and adds nothing, if any of them is covered already. Always True where ids are not gapless.
        """
        ...

    def cover(self, window: Window, reason: SpanReason, *, raw: bool, opened_by: GapReason = GapReason.START) -> None:
        """Add a window that was imported from a complete source (a day's archive file); `opened_by` is why there may be a gap before it.

        Changes nothing where ids are gapless.
        """
        ...

    def mark_absent(self, first: int, last: int, reason: GapReason = GapReason.ABSENT) -> None:
        """Note ids, all of one gap, that the exchange itself does not have (`absent`) or serves in no readable form (`unreadable`).

        They are not requested again. Needs gapless ids.
        """
        ...

    def mark_differing(self, minute: int) -> None:
        """Note that the candle of a minute (by start) has more volume than was recorded: it is a gap until `cover` covers the whole minute.
        Needs ids that are not gapless."""
        ...

    def unclaimed(self, newest: Sequence[Trade]) -> list[Trade]:
        """The trades of the exchange's newest ones that may be missing here. With gapless ids these are all; `take` drops repeats."""
        ...

    def prove(self, newest: Sequence[Trade], *, cut: bool = False) -> bool:
        """Close gaps that the exchange's newest trades bridge; `take` must have added them. True if trying again cannot close more.

        `cut` says that older ones of the exchange's reply could not be read.
        """
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
        """True if a trade with this reason may extend the span."""
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

    def __init__(self, silence_limit: SilenceLimit) -> None:
        self.silence_limit = silence_limit
        self._spans: list[OpenSpan] = []
        self._opened_by = GapReason.START
        """Why the next span does not continue the last one."""
        self.breaks = 0

    @property
    def has_gapless_ids(self) -> bool:
        return self.basis is Basis.EXACT

    @property
    def spans(self) -> list[Span]:
        return [span.span(self.basis) for span in self._spans]

    @property
    def covered(self) -> list[Span]:
        return [span.span(self.basis) for span in self._spans]

    def covers(self, window: Window) -> bool:
        return any(span.start <= window.start and window.end <= span.end for span in reversed(self._spans))

    def changed(self) -> list[Span]:
        fresh = [span for span in self._spans if span.changed]
        for span in fresh:
            span.changed = False
        del self._spans[: max(0, len(self._spans) - REMEMBERED_SPANS)]
        return [span.span(self.basis) for span in fresh]

    def _learn_stored_pauses(self, recent: Sequence[Trade]) -> None:
        """Learn the pauses between the newest stored trades, oldest first, that lie within one span: no trade is missing there."""
        place = 0
        for before, after in pairwise(trade.timestamp for trade in recent):
            if after - before < SHORTEST_PAUSE:
                continue
            while place < len(self._spans) and self._spans[place].end < after:
                place += 1
            if place < len(self._spans) and self._spans[place].start <= before + 1:
                self.silence_limit.learn(before, after)
