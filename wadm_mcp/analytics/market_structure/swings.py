"""Pivots and the legs between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from wadm_mcp.analytics.market_structure.series import Series

Side: TypeAlias = Literal["high", "low"]


class Pivot(NamedTuple):
    """A bar that stands out of its neighbours. It is known once as many bars have closed after it: at the close of bar `known`."""

    place: int
    side: Side
    price: int
    known: int


class Leg(NamedTuple):
    """A pivot and the way to it from the pivot before: the bars after that one, this one's included.

    Volume and delta are None where a trade on the way is missing.
    """

    pivot: Pivot
    bars: int | None
    volume: int | None
    delta: int | None


def pivots(series: Series) -> list[Pivot]:
    """Every pivot known at the series' end, oldest first.

    A high is higher than the bars before it and no lower than those after it, so that the first of equals is the pivot; a low mirrors
    that. Where one of its neighbours is not usable it is not evaluated: the missing trades may have gone further. Of a bar that is both, a
    falling one is taken to have been at its high first, any other at its low.
    """
    reach = series.parameters.swing
    found: list[Pivot] = []
    for place in range(reach, len(series) - reach):
        if not series.all_usable(place - reach, place + reach):
            continue
        candle = series[place]
        before, after = series.candles[place - reach : place], series.candles[place + 1 : place + reach + 1]
        here: list[Pivot] = []
        if candle.high > max(one.high for one in before) and candle.high >= max(one.high for one in after):
            here.append(Pivot(place, "high", candle.high, place + reach))
        if candle.low < min(one.low for one in before) and candle.low <= min(one.low for one in after):
            here.append(Pivot(place, "low", candle.low, place + reach))
        found += here if candle.move < 0 else reversed(here)
    return found


def alternating(found: Sequence[Pivot]) -> list[Pivot]:
    """Highs and lows in turn: of neighbours on one side the further one stays, the first of equals."""
    turns: list[Pivot] = []
    for pivot in found:
        if not turns or turns[-1].side != pivot.side:
            turns.append(pivot)
        elif (pivot.price > turns[-1].price) if pivot.side == "high" else (pivot.price < turns[-1].price):
            turns[-1] = pivot
    return turns


def legs(series: Series, turns: Sequence[Pivot]) -> list[Leg]:
    """The leg that ends at each pivot; the first has no beginning."""
    found: list[Leg] = []
    for pivot, before in zip(turns, (None, *turns), strict=False):
        if before is None or not series.all_whole(before.place + 1, pivot.place):
            found.append(Leg(pivot, None if before is None else pivot.place - before.place, None, None))
            continue
        way = series.candles[before.place + 1 : pivot.place + 1]
        found.append(Leg(pivot, len(way), sum(one.volume for one in way), sum(one.delta for one in way)))
    return found
