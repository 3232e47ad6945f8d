"""Pivots (swing highs and lows) and the legs between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from wadm_mcp.analytics.market_structure.series import Series

Side: TypeAlias = Literal["high", "low"]


class Pivot(NamedTuple):
    """A swing high or low. It becomes known at the close of bar `known_index`, when enough bars have closed after it."""

    bar_index: int
    side: Side
    price: int
    known_index: int


class Leg(NamedTuple):
    """A pivot and the bars that lead to it: from the bar after the previous pivot to the pivot's own bar.

    Volume and delta are None if a trade of these bars is missing. The first leg has no previous pivot and no `bars`.
    """

    pivot: Pivot
    bars: int | None
    volume: int | None
    delta: int | None


def pivots(series: Series) -> list[Pivot]:
    """Every pivot known at the series' end, oldest first.

    A high is higher than the bars before it and not lower than the bars after it, so that the first of equal bars is the pivot. A low is
    the mirror image. A bar with a neighbour that is not usable cannot be a pivot, because the missing trades may have gone further. If a
    bar is both a high and a low, a falling bar is assumed to have reached its high first, any other bar its low.
    """
    reach = series.parameters.swing
    found: list[Pivot] = []
    for index in range(reach, len(series) - reach):
        if not series.all_usable(index - reach, index + reach):
            continue
        bar = series[index]
        before, after = series.bars[index - reach : index], series.bars[index + 1 : index + reach + 1]
        here: list[Pivot] = []
        if bar.high > max(one.high for one in before) and bar.high >= max(one.high for one in after):
            here.append(Pivot(index, "high", bar.high, index + reach))
        if bar.low < min(one.low for one in before) and bar.low <= min(one.low for one in after):
            here.append(Pivot(index, "low", bar.low, index + reach))
        found += here if bar.move < 0 else reversed(here)
    return found


def alternating(all_pivots: Sequence[Pivot]) -> list[Pivot]:
    """Alternating highs and lows: of consecutive highs only the highest stays, of consecutive lows the lowest, of equal ones the first."""
    turns: list[Pivot] = []
    for pivot in all_pivots:
        if not turns or turns[-1].side != pivot.side:
            turns.append(pivot)
        elif (pivot.price > turns[-1].price) if pivot.side == "high" else (pivot.price < turns[-1].price):
            turns[-1] = pivot
    return turns


def legs(series: Series, turns: Sequence[Pivot]) -> list[Leg]:
    """The leg that ends at each of the alternating pivots."""
    found: list[Leg] = []
    for pivot, before in zip(turns, (None, *turns), strict=False):
        if before is None or not series.all_complete(before.bar_index + 1, pivot.bar_index):
            found.append(Leg(pivot, None if before is None else pivot.bar_index - before.bar_index, None, None))
            continue
        bars = series.bars[before.bar_index + 1 : pivot.bar_index + 1]
        found.append(Leg(pivot, len(bars), sum(bar.volume for bar in bars), sum(bar.delta for bar in bars)))
    return found
