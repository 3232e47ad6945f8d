"""Continuity by ids that the exchange counts without holes: a missing id is a missing trade, and nothing else is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from wadm_mcp.coverage.spans import ABSENT, LIVE, REMEMBERED_SPANS, MissingRange, OpenSpan, Spans
from wadm_mcp.model import Basis, Span, Trade


class SequenceCoverage(Spans):
    """What is held where `seq` of a trade is its id.

    A span's time runs from just after its first trade (others of that very millisecond may be missing) to its last. Neighbours whose
    ids follow one another are one stretch, however many spans tell it: each keeps the reason for which it is held.
    """

    basis = Basis.EXACT

    def __init__(self, known: Iterable[Span] = ()) -> None:
        super().__init__()
        self._absent: list[OpenSpan] = []
        self._connections: set[int] = set()
        self.adopt(known)

    def adopt(self, known: Iterable[Span]) -> None:
        """Hold from now on what a store has held all along."""
        mine = [OpenSpan.of(span) for span in known if span.basis is self.basis]
        self._held = _apart([*(held for held in mine if held.reason != ABSENT), *self._held])
        told = {(held.first, held.last) for held in self._absent}
        self._absent += [held for held in mine if held.reason == ABSENT and (held.first, held.last) not in told]
        self.breaks += 1

    @property
    def spans(self) -> list[Span]:
        return [*(held.span(self.basis) for held in self._absent), *super().spans]

    def changed(self) -> list[Span]:
        fresh = [held for held in self._absent if held.changed]
        for held in fresh:
            held.changed = False
        del self._absent[: max(0, len(self._absent) - REMEMBERED_SPANS)]
        return [*(held.span(self.basis) for held in fresh), *super().changed()]

    @property
    def living(self) -> bool:
        return bool(self._connections)

    def heard(self, connection: int, event_time: int) -> None:
        self._connections.add(connection)

    def doubt(self, connection: int) -> None:
        """Nothing: an id that was in it will be missing."""

    def lost(self, connection: int, reason: str) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._opened_by = reason

    def take(self, trade: Trade, reason: str = LIVE) -> bool:
        number, at = trade.seq, trade.timestamp
        held = self._held
        if held:
            newest = held[-1]
            if newest.last + 1 == number and newest.reason == reason and newest.raw:
                newest.last = number
                if at > newest.end:
                    newest.end = at
                newest.changed = True
                self._opened_by = "missing_ids"
                return True
        return self._insert(number, number, at + 1, at, reason, raw=True)

    def fold(self, first: int, last: int, first_at: int, last_at: int, reason: str) -> bool:
        """Hold a run of ids whose rows nobody keeps, traded from `first_at` to `last_at`. False, holding nothing, where any is held."""
        place = bisect_right(self._held, last, key=lambda span: span.first)
        if place and self._held[place - 1].last >= first:
            return False
        return self._insert(first, last, first_at + 1, last_at, reason, raw=False)

    def lack(self, first: int, last: int) -> None:
        """The exchange itself does not have these ids, which all lie in one gap: nobody shall ask for them again."""
        place = bisect_right(self._held, first, key=lambda span: span.first)
        if 0 < place < len(self._held):
            before, after = self._held[place - 1], self._held[place]
            start = min(before.end, after.start)
            self._absent.append(OpenSpan(start, after.start, first, last, ABSENT, ABSENT))

    def missing(self) -> list[MissingRange]:
        gaps: list[MissingRange] = []
        absent = sorted((held.first, held.last) for held in self._absent)
        for before, after in zip(self._held, self._held[1:], strict=False):
            first = before.last + 1
            start, end = min(before.end, after.start), after.start
            for lacks_from, lacks_to in absent:
                if lacks_to < first or lacks_from >= after.first:
                    continue
                if lacks_from > first:
                    gaps.append(MissingRange(first, lacks_from - 1, start, end))
                first = lacks_to + 1
            if first < after.first:
                gaps.append(MissingRange(first, after.first - 1, start, end))
        return gaps

    def _insert(self, first: int, last: int, start: int, end: int, reason: str, *, raw: bool) -> bool:
        """Hold a run of ids; False where its first one is held already. `start` is just after its first trade's time."""
        held = self._held
        place = bisect_right(held, first, key=lambda span: span.first)
        before = held[place - 1] if place else None
        after = held[place] if place < len(held) else None
        if before is not None and first <= before.last:
            return False
        opened_by = self._opened_by if after is None else "missing_ids"
        self._opened_by = "missing_ids"
        grown: OpenSpan | None = None
        if before is not None and before.last + 1 == first and before.like(reason, raw):
            before.last, before.end, before.changed = last, max(before.end, end), True
            grown = before
        if after is not None and after.first - 1 == last and after.like(reason, raw):
            if grown is None:
                after.first, after.start, after.changed = first, min(after.start, start), True
                return True
            grown.last, grown.end = after.last, max(grown.end, after.end)
            del held[place]
            return True
        if grown is None:
            if before is not None:
                start = max(start, before.end)
            held.insert(place, OpenSpan(start, end, first, last, opened_by, reason, raw=raw))
            self.breaks += 1
        return True


def _apart(known: Iterable[OpenSpan]) -> list[OpenSpan]:
    """Spans as a store has them, which keeps what they grew from, made to lie apart: by id, each id in one of them."""
    apart: list[OpenSpan] = []
    for held in sorted(known, key=lambda span: (span.first, -span.last)):
        before = apart[-1] if apart else None
        if before is None or held.first > before.last:
            follows = before is not None and held.first == before.last + 1
            if before is not None and follows and before.like(held.reason, held.raw):
                before.last, before.end, before.changed = held.last, max(before.end, held.end), before.changed or held.changed
            else:
                apart.append(held)
        elif held.last > before.last:
            if before.like(held.reason, held.raw):
                before.last, before.end, before.changed = held.last, max(before.end, held.end), before.changed or held.changed
            else:
                held.first, held.start = before.last + 1, max(held.start, before.end)
                apart.append(held)
    return apart
