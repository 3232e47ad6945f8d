"""Oracles of market structure, written from the definitions alone: fractions, explicit sets, and walks from trade to trade."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import combinations, pairwise
from typing import NamedTuple

from tests.analytics.oracles import price_of, quantity_of
from wadm_mcp.model import Trade


class Ohlc(NamedTuple):
    """A bar as prices alone."""

    open: int
    high: int
    low: int
    close: int


class Turn(NamedTuple):
    """A pivot: its index, its side and its price."""

    place: int
    side: str
    price: int


class Range(NamedTuple):
    high: int
    low: int
    tests_high: int
    tests_low: int
    first: int


def halfway(values: Iterable[float]) -> float:
    """The median: what remains after the outermost values are removed pair by pair."""
    left = sorted(values)
    while len(left) > 2:
        left = left[1:-1]
    return sum(left) / len(left)


def robust_z(before: Sequence[int], value: int) -> float | None:
    """The robust z-score of a figure against those before it; None with fewer than 48 of them, or if most are equal."""
    logs = [math.log(1 + one) for one in before]
    if len(logs) < 48:
        return None
    spread = 1.4826 * halfway(abs(one - halfway(logs)) for one in logs)
    return (math.log(1 + value) - halfway(logs)) / spread if spread else None


def nearest_rank(values: Collection[int], percent: Fraction) -> int:
    """The smallest value that at least this percentage of all values does not exceed."""
    held = sorted(values)
    return next(value for value in held if 100 * bisect_right(held, value) >= percent * len(held))


def average_true_range(bars: Sequence[Ohlc], place: int) -> Fraction:
    """The mean true range of the fourteen bars before an index, each with the close before it."""
    true = [
        max(bar.high - bar.low, abs(bar.high - before.close), abs(bar.low - before.close))
        for before, bar in pairwise(bars[place - 15 : place])
    ]
    return Fraction(sum(true), 14)


def turns(bars: Sequence[Ohlc], unusable: Collection[int] = ()) -> list[Turn]:
    """Bars with the first of the highest highs (lowest lows) of the eleven bars around them, none of which is unusable."""
    found: list[Turn] = []
    for place in range(5, len(bars) - 5):
        around = range(place - 5, place + 6)
        if set(around) & set(unusable):
            continue
        here = [
            Turn(place, "high", bars[place].high) if max(around, key=lambda at: (bars[at].high, -at)) == place else None,
            Turn(place, "low", bars[place].low) if min(around, key=lambda at: (bars[at].low, at)) == place else None,
        ]
        if bars[place].close >= bars[place].open:
            here.reverse()
        found += [one for one in here if one is not None]
    return found


def furthest(found: Sequence[Turn]) -> list[Turn]:
    """The furthest pivot of each run on one side, the first of equal ones."""
    runs: list[list[Turn]] = []
    for one in found:
        if runs and runs[-1][0].side == one.side:
            runs[-1].append(one)
        else:
            runs.append([one])
    return [max(run, key=lambda one: one.price if one.side == "high" else -one.price) for run in runs]


def range_before(found: Sequence[Turn], place: int, unusable: Collection[int] = ()) -> Range | None:
    """The range from pivots followed by five closed bars, in the 96 bars before an index, with no unusable bar since."""
    gaps = [at for at in unusable if place - 96 <= at < place]
    known = [one for one in found if place - 96 <= one.place < place - 5 and all(gap < one.place for gap in gaps)]
    highs, lows = ([one for one in known if one.side == side][-5:] for side in ("high", "low"))
    if not highs or not lows:
        return None
    high = sorted(one.price for one in highs)[(len(highs) - 1) // 2]
    low = sorted((one.price for one in lows), reverse=True)[(len(lows) - 1) // 2]
    tenth = Fraction(high - low, 10)
    tests_high = len({one for one in highs if abs(one.price - high) <= tenth})
    tests_low = len({one for one in lows if abs(one.price - low) <= tenth})
    if high <= low or min(tests_high, tests_low) < 2:
        return None
    return Range(high, low, tests_high, tests_low, min(one.place for one in (*highs, *lows)))


def median_slope(points: Iterable[tuple[int, float]]) -> float:
    """Theil-Sen: the median of the slopes of all pairs."""
    return halfway((right[1] - left[1]) / (right[0] - left[0]) for left, right in combinations(sorted(points), 2))


def nodes(volumes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Rows of all high nodes, largest first, and of all low nodes, smallest first; of equal ones the lower first."""
    rows = range(len(volumes))
    held = dict(enumerate(volumes))
    smooth = {row: Fraction(held.get(row - 1, 0) + 2 * held[row] + held.get(row + 1, 0), 4) for row in rows}
    mean, reach = sum(smooth.values(), Fraction(0)) / len(smooth), max(2, len(volumes) // 20)

    def stands_out(row: int, sign: int) -> bool:
        plateau = {row}
        while more := {one for one in rows if one not in plateau and {one - 1, one + 1} & plateau and smooth[one] == smooth[row]}:
            plateau |= more
        near = {one for one in rows if min(abs(one - other) for other in plateau) <= reach} - plateau
        middle = sorted(plateau)[: (len(plateau) + 1) // 2][-1]
        return row == middle and bool(near) and all(sign * smooth[one] < sign * smooth[row] for one in near)

    high = [row for row in rows if smooth[row] * 5 >= mean * 6 and stands_out(row, 1)]
    low = [row for row in rows if smooth[row] * 2 <= mean and stands_out(row, -1) and high and high[0] < row < high[-1]]
    return sorted(high, key=lambda row: (-smooth[row], row)), sorted(low, key=lambda row: (smooth[row], row))


def deviation(tape: Sequence[Trade], places: int) -> Decimal:
    """The largest figure with so many decimals whose square is not more than `E[p^2] - E[p]^2`."""
    weight = sum((quantity_of(one) for one in tape), Fraction(0))
    mean = sum((price_of(one) * quantity_of(one) for one in tape), Fraction(0)) / weight
    variance = sum((price_of(one) ** 2 * quantity_of(one) for one in tape), Fraction(0)) / weight - mean**2
    step, steps = Fraction(1, 10**places), 0
    for jump in reversed(range(64)):
        if ((steps + 2**jump) * step) ** 2 <= variance:
            steps += 2**jump
    return Decimal(steps).scaleb(-places)


def value_relation(now: tuple[int, int], before: tuple[int, int]) -> str:
    """The relation of two value areas (VAL, VAH) as sets of ticks."""
    ours, theirs = (set(range(val, vah + 1)) for val, vah in (now, before))
    if not ours & theirs:
        return "higher" if min(ours) > max(theirs) else "lower"
    if ours == theirs:
        return "unchanged"
    if ours < theirs or ours > theirs:
        return "inside" if ours < theirs else "outside"
    return "overlapping_higher" if max(ours - theirs) > max(theirs) else "overlapping_lower"


def value_overlap(now: tuple[int, int], before: tuple[int, int]) -> Fraction:
    """The share of the narrower area's tick steps that both areas have; for a single tick, whether both have it."""
    ours, theirs = (set(pairwise(range(val, vah + 1))) for val, vah in (now, before))
    narrower = min(len(ours), len(theirs))
    if not narrower:
        return Fraction(bool(set(range(now[0], now[1] + 1)) & set(range(before[0], before[1] + 1))))
    return Fraction(len(ours & theirs), narrower)


def untouched(row: range, path: Sequence[int]) -> bool:
    """Does price never touch or jump across the row?"""
    return not any(set(row) & set(range(min(pair), max(pair) + 1)) for pair in pairwise(path))


class TakerOrder(NamedTuple):
    timestamp: int
    side: str
    price: Fraction
    quantity: Fraction
    notional: Fraction
    fills: int


def taker_orders(tape: Sequence[Trade]) -> list[TakerOrder]:
    """The tape divided wherever millisecond, side or scale change."""
    cuts = [0, *(at + 1 for at, (one, two) in enumerate(pairwise(tape)) if _taker(one) != _taker(two)), len(tape)]
    parts = [tape[begin:end] for begin, end in pairwise(cuts) if begin < end]
    return [
        TakerOrder(
            part[0].timestamp,
            part[0].trade_type.value,
            price_of(part[-1]),
            sum(map(quantity_of, part), Fraction(0)),
            sum((price_of(one) * quantity_of(one) for one in part), Fraction(0)),
            sum(one.fills for one in part),
        )
        for part in parts
    ]


def _taker(one: Trade) -> tuple[object, ...]:
    return one.timestamp, one.trade_type, one.scale
