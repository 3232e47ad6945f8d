"""Halts of a computed market: nothing trades meanwhile, and the ids go on afterwards without a hole, as at a real exchange."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final, TypeVar

from wadm_mcp.simulator.tape import Aggregate, Print, Tape

_ALIGNED_MS: Final = 100
"""Halts begin and end near whole multiples of this."""
_AROUND_MS: Final = 400
"""Longer than any window in which fills are aggregated, twice over."""

_Row = TypeVar("_Row", Print, Aggregate)


@dataclass(slots=True)
class Halt:
    """One halt `[start, end)` (ms), how many rows of the computed market are left out of it, and the first of their numbers. Without an end
    it lasts."""

    start: int
    end: int | None = None
    prints: int = 0
    aggregates: int = 0
    first_print: int = 0
    first_aggregate: int = 0


class HaltingTape:
    """A tape of which the halts are left out, from the moment at which they are ordered."""

    def __init__(self, tape: Tape, halts: Iterable[Halt] = ()) -> None:
        self._tape = tape
        self.halts = list(halts)
        """The halts so far, oldest first."""
        self._latest = 0
        """The latest time so far. The clock of the exchanges may be set back, and what was left out stays left out."""
        self._note_halts()

    def _note_halts(self) -> None:
        """Note when each halt begins, and how many rows are left out before it, since every row asks."""
        self._starts = [halt.start for halt in self.halts]
        self._prints_before = list(accumulate((halt.prints for halt in self.halts), initial=0))
        self._aggregates_before = list(accumulate((halt.aggregates for halt in self.halts), initial=0))

    def copy(self) -> HaltingTape:
        return HaltingTape(self._tape.copy(), [replace(halt) for halt in self.halts])

    @property
    def prints_per_day(self) -> float:
        return self._tape.prints_per_day

    def halt(self, halted: bool, now: int) -> None:
        """Begin or end a halt within the next two tenths of a second; does nothing if that is its state. The feed calls it all the time."""
        self._latest = now = max(self._latest, now)
        last = self.halts[-1] if self.halts else None
        if halted == (last is not None and last.end is None):
            return
        at = self._between_aggregates(now - now % _ALIGNED_MS + _ALIGNED_MS)
        if halted:
            self.halts.append(Halt(at))
        elif last is not None:
            last.end = max(at, last.start)
            prints = [row.number for row in self._tape.prints(last.start, last.end)]
            # Aggregates are published once their window has ended.
            published = self._tape.aggregates(last.start, last.end + _AROUND_MS)
            aggregates = [row.number for row in published if last.start <= row.time < last.end]
            last.prints, last.first_print = len(prints), min(prints, default=0)
            last.aggregates, last.first_aggregate = len(aggregates), min(aggregates, default=0)
        self._note_halts()

    def _between_aggregates(self, at: int) -> int:
        """The first moment from `at` on that splits no aggregate."""
        times = {row.number: row.time for row in self._tape.prints(at - _AROUND_MS, at + _AROUND_MS)}
        for row in self._tape.aggregates(at - _AROUND_MS, at + _AROUND_MS):
            if row.time < at <= times.get(row.last, row.time):
                at = times[row.last] + 1
        return at

    def prints(self, start: int, end: int) -> Iterator[Print]:
        return self._traded(self._tape.prints(start, end))

    def aggregates(self, start: int, end: int) -> Iterator[Aggregate]:
        return self._traded(self._tape.aggregates(start, end))

    def prints_from(self, number: int, end: int) -> Iterator[Print]:
        first = _computed(number, ((halt.first_print, halt.prints) for halt in self.halts))
        return (row for row in self._traded(self._tape.prints_from(first, end)) if row.number >= number)

    def aggregates_from(self, number: int, end: int) -> Iterator[Aggregate]:
        first = _computed(number, ((halt.first_aggregate, halt.aggregates) for halt in self.halts))
        return (row for row in self._traded(self._tape.aggregates_from(first, end)) if row.number >= number)

    def newest_prints(self, limit: int, end: int) -> list[Print]:
        return self._newest(self._tape.newest_prints, limit, end)

    def newest_aggregates(self, limit: int, end: int) -> list[Aggregate]:
        return self._newest(self._tape.newest_aggregates, limit, end)

    def _newest(self, read: Callable[[int, int], list[_Row]], limit: int, end: int) -> list[_Row]:
        """The newest rows that were traded. There may have been many halts, of which few are recent."""
        many = limit
        while True:
            rows = read(many, end)
            traded = list(self._traded(rows))
            if len(traded) >= limit or len(rows) < many:
                return traded[-limit:]
            many *= 2

    def _traded(self, rows: Iterable[_Row]) -> Iterator[_Row]:
        """The rows outside the halts, numbered as if the halts had never been computed."""
        if not self.halts:
            return iter(rows)
        return (moved for row in rows if (moved := self._moved(row)) is not None)

    def _moved(self, row: _Row) -> _Row | None:
        begun = bisect_right(self._starts, row.time)
        if begun:
            last = self.halts[begun - 1]
            if last.end is None or row.time < last.end:
                return None
        prints, aggregates = self._prints_before[begun], self._aggregates_before[begun]
        if not prints:
            return row
        if isinstance(row, Aggregate):
            return row._replace(number=row.number - aggregates, first=row.first - prints, last=row.last - prints)
        number = row.number - prints
        # The ids of Bybit do not count.
        return row._replace(number=number, trade_id=str(number), seq=number) if row.seq == row.number else row._replace(number=number)


def _computed(number: int, left_out: Iterable[tuple[int, int]]) -> int:
    """The number in the computed market of the row that has this one. `left_out` are the first and the count of each halt, oldest first."""
    before = 0
    for first, count in left_out:
        if count and first - before <= number:
            before += count
    return number + before
