"""Recorded volumes compared with those of the exchange's candles. Pure arithmetic on integers; the caller gives all of one side and scale.

Where a trade has the time of its execution, a minute and its candle have the same volume (`exact_disagreements`).

Where the exchange merges fills of several milliseconds into one trade that has the time of the first (docs/exchanges.md 2.2), the last
trades of a minute may reach into the next candle. This part is the *carry* over the end of the minute. The carry over the end of minute k
is that over the end of minute k-1, plus the recorded volume of minute k, minus its candle's. It is at least 0, and at most the volume of
the trades that may reach over the end (`carry_limit`). The first carry of consecutive minutes is unknown, so what follows is an
interval (`Carry`): minutes agree while it is not empty (`carry_disagreements`). Over any number of minutes nothing is lost in it: volumes
may move by one minute, and no further.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from wadm_mcp.model import MINUTE


class CandleMinute(NamedTuple):
    """The recorded volume of the minute that begins at `start` (ms), and its candle's.

    `carry_limit` is the volume of those of its trades that may reach into the next minute; None where it is not known.
    """

    start: int
    recorded: int
    candle: int
    carry_limit: int | None = 0


class Disagreement(NamedTuple):
    """A minute whose candle is not one of those that the recorded volume allows: `least` to `most`, None where there is no highest one."""

    minute: CandleMinute
    least: int
    most: int | None


class Carry(NamedTuple):
    """What the trades before the end of a minute may have in the candles after it: `least` to `most`, None where that is not known."""

    least: int
    most: int | None

    def across(self, minute: CandleMinute) -> Carry | None:
        """The carry over the end of this minute, if this is the one over its start. None if the minute disagrees with its candle."""
        surplus = minute.recorded - minute.candle
        least = max(0, self.least + surplus)
        highest = [bound for bound in (None if self.most is None else self.most + surplus, minute.carry_limit) if bound is not None]
        most = min(highest, default=None)
        return None if most is not None and most < least else Carry(least, most)

    def disagreement(self, minute: CandleMinute) -> Disagreement:
        """A minute whose candle this carry over its start cannot explain, with the candles that it could."""
        most = None if self.most is None else minute.recorded + self.most
        least = 0 if minute.carry_limit is None else max(0, minute.recorded + self.least - minute.carry_limit)
        return Disagreement(minute, least, most)


def carry_disagreements(minutes: Iterable[CandleMinute], entering: int | None) -> list[Disagreement]:
    """Which of some consecutive minutes disagree with their candles, where trades have the time of the first fill.

    `entering` is the carry limit of the minute before the first one, None where it is not known. After a minute that disagrees the carry is
    as unknown as at the start.
    """
    found: list[Disagreement] = []
    carry = Carry(0, entering)
    for minute in minutes:
        following = carry.across(minute)
        if following is None:
            found.append(carry.disagreement(minute))
            following = Carry(0, minute.carry_limit)
        carry = following
    return found


def exact_disagreements(minutes: Iterable[CandleMinute]) -> list[Disagreement]:
    """Which minutes disagree with their candles, where trades have the time of their execution."""
    return [Disagreement(minute, minute.recorded, minute.recorded) for minute in minutes if minute.recorded != minute.candle]


def without_boundaries(disagreements: Sequence[Disagreement]) -> list[Disagreement]:
    """These `exact_disagreements`, oldest first, without neighbouring minutes that differ by the same volume in opposite directions.

    There, the exchange counted a trade at the boundary in the other minute, and no volume is missing.
    """
    moved: set[int] = set()
    for (one, *_), (two, *_) in pairwise(disagreements):
        opposite = one.recorded - one.candle == two.candle - two.recorded
        if opposite and two.start - one.start == MINUTE and one.start not in moved:
            moved |= {one.start, two.start}
    return [each for each in disagreements if each.minute.start not in moved]


def consecutive(minutes: Iterable[int]) -> Iterator[list[int]]:
    """Ascending starts of minutes, in runs without a minute between them."""
    run: list[int] = []
    for minute in minutes:
        if run and minute != run[-1] + MINUTE:
            yield run
            run = []
        run.append(minute)
    if run:
        yield run
