"""Coverage by gapless ids: a missing id is a missing trade, and nothing else is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

from wadm_mcp.coverage.silence import SHORTEST_PAUSE, SilenceLimit
from wadm_mcp.coverage.spans import REMEMBERED_SPANS, Basis, GapReason, IdRange, MissingRange, OpenSpan, Span, SpanList, SpanReason
from wadm_mcp.model import SECOND, Trade, Window

_LIVE: Final = SpanReason.LIVE
_MISSING_IDS: Final = GapReason.MISSING_IDS
# Constants, since every trade reads them: looking a member up in its enum takes three times as long.
_UNKNOWN_SILENCE: Final = 30 * SECOND
"""The limit while the pace is unknown. It decides only what is claimed beyond the newest trade: across a silence the next id decides."""


class SequenceCoverage(SpanList):
    """Coverage where `seq` of a trade is its id.

    A span lasts from just after its first trade (others of that very millisecond may be missing) to its last one. Two spans may follow
    each other without a missing id, because each keeps its own reason.
    """

    basis = Basis.EXACT

    def __init__(self, stored: Iterable[Span] = ()) -> None:
        super().__init__(SilenceLimit(_UNKNOWN_SILENCE))
        self._absent: list[OpenSpan] = []
        self._connections: set[int] = set()
        self.add_stored(stored)

    def add_stored(self, spans: Iterable[Span], recent: Sequence[Trade] = ()) -> None:
        mine = [OpenSpan.of(span) for span in spans if span.basis is self.basis]
        self._spans = _disjoint([*(span for span in mine if span.reason is not SpanReason.ABSENT), *self._spans])
        known = {(span.first, span.last) for span in self._absent}
        self._absent += [span for span in mine if span.reason is SpanReason.ABSENT and (span.first, span.last) not in known]
        self.breaks += 1

    def add_stored_trades(self, trades: Iterable[Trade], folded: Iterable[IdRange] = ()) -> None:
        # They say nothing of why the next live trade may not follow them.
        opened_by = self._opened_by
        for trade in trades:
            self.take(trade)
        for ids in folded:
            self.take_folded(ids, SpanReason.REPAIRED)
        self._opened_by = opened_by

    @property
    def spans(self) -> list[Span]:
        return [*(span.span(self.basis) for span in self._absent), *super().spans]

    def changed(self) -> list[Span]:
        fresh = [span for span in self._absent if span.changed]
        for span in fresh:
            span.changed = False
        del self._absent[: max(0, len(self._absent) - REMEMBERED_SPANS)]
        return [*(span.span(self.basis) for span in fresh), *super().changed()]

    @property
    def alive(self) -> bool:
        return bool(self._connections)

    @property
    def continuing(self) -> bool:
        return self.alive

    def frame_received(self, connection: int, event_time: int) -> None:
        self._connections.add(connection)

    def frame_unreadable(self, connection: int) -> None:
        """Changes nothing: the ids of its trades will be missing."""

    def connection_lost(self, connection: int, reason: GapReason) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._opened_by = reason

    def take(self, trade: Trade, reason: SpanReason = _LIVE) -> bool:
        number, at = trade.seq, trade.timestamp
        spans = self._spans
        if spans:
            newest = spans[-1]
            if newest.last + 1 == number and newest.reason is reason and newest.raw:
                newest.last = number
                if at > newest.end:
                    if at - newest.end >= SHORTEST_PAUSE:
                        self.silence_limit.learn(newest.end, at)
                    newest.end = at
                newest.changed = True
                self._opened_by = _MISSING_IDS
                return True
        return self._insert(number, number, at + 1, at, reason, raw=True)

    def take_folded(self, ids: IdRange, reason: SpanReason) -> bool:
        place = bisect_right(self._spans, ids.last, key=lambda span: span.first)
        if place and self._spans[place - 1].last >= ids.first:
            return False
        return self._insert(ids.first, ids.last, ids.first_at + 1, ids.last_at, reason, raw=False)

    def cover(self, window: Window, reason: SpanReason, *, raw: bool, opened_by: GapReason = GapReason.START) -> None:
        """Changes nothing: the ids of the record prove what it covers."""

    def mark_absent(self, first: int, last: int, reason: GapReason = GapReason.ABSENT) -> None:
        place = bisect_right(self._spans, first, key=lambda span: span.first)
        if 0 < place < len(self._spans):
            before, after = self._spans[place - 1], self._spans[place]
            start = min(before.end, after.start)
            self._absent.append(OpenSpan(start, after.start, first, last, reason, SpanReason.ABSENT))

    def mark_differing(self, minute: int) -> None:
        raise NotImplementedError("mark_differing is for trades without gapless ids; here the ids show what is missing")

    def unclaimed(self, newest: Sequence[Trade]) -> list[Trade]:
        return list(newest)

    def prove(self, newest: Sequence[Trade], *, cut: bool = False) -> bool:
        """Nothing is left to prove: the ids of the trades did when they were taken."""
        return True

    def missing(self) -> list[MissingRange]:
        gaps: list[MissingRange] = []
        absent = sorted((span.first, span.last) for span in self._absent)
        for before, after in zip(self._spans, self._spans[1:], strict=False):
            first = before.last + 1
            start, end = min(before.end, after.start), after.start
            for absent_from, absent_to in absent:
                if absent_to < first or absent_from >= after.first:
                    continue
                if absent_from > first:
                    gaps.append(MissingRange(first, absent_from - 1, start, end))
                first = absent_to + 1
            if first < after.first:
                gaps.append(MissingRange(first, after.first - 1, start, end))
        return gaps

    def _insert(self, first: int, last: int, start: int, end: int, reason: SpanReason, *, raw: bool) -> bool:
        """Cover the ids `first` to `last`, traded until `end`. False where `first` is covered already.

        The run extends a neighbouring span or begins a new one. Where it does not follow the span before it, a gap has opened between them.
        `start` is one millisecond after the run's first trade.
        """
        spans = self._spans
        place = bisect_right(spans, first, key=lambda span: span.first)
        before = spans[place - 1] if place else None
        after = spans[place] if place < len(spans) else None
        if before is not None and first <= before.last:
            return False
        # Within the tape only ids can be missing; at its end a lost connection may be the reason.
        opened_by = self._opened_by if after is None else GapReason.MISSING_IDS
        self._opened_by = GapReason.MISSING_IDS
        grown: OpenSpan | None = None
        if before is not None and before.last + 1 == first and before.extendable_by(reason, raw):
            before.last, before.end, before.changed = last, max(before.end, end), True
            grown = before
        if after is not None and after.first - 1 == last and after.extendable_by(reason, raw):
            if grown is None:
                after.first, after.start, after.changed = first, min(after.start, start), True
                return True
            grown.last, grown.end = after.last, max(grown.end, after.end)
            del spans[place]
            return True
        if grown is None:
            if before is not None:
                start = max(start, before.end)
            spans.insert(place, OpenSpan(start, end, first, last, opened_by, reason, raw=raw))
            self.breaks += 1
        return True


def _disjoint(spans: Iterable[OpenSpan]) -> list[OpenSpan]:
    """Spans by id, each id in one of them. A store also has earlier, shorter versions of a span."""
    apart: list[OpenSpan] = []
    for span in sorted(spans, key=lambda span: (span.first, -span.last)):
        before = apart[-1] if apart else None
        if before is None or span.first > before.last:
            if before is not None and span.first == before.last + 1 and before.extendable_by(span.reason, span.raw):
                _merge(before, span)
            else:
                apart.append(span)
        elif span.last > before.last:
            if before.extendable_by(span.reason, span.raw):
                _merge(before, span)
            else:
                span.first, span.start = before.last + 1, max(span.start, before.end)
                apart.append(span)
    return apart


def _merge(before: OpenSpan, span: OpenSpan) -> None:
    """Extend a span by the one that follows or overlaps it."""
    before.last, before.end, before.changed = span.last, max(before.end, span.end), before.changed or span.changed
