"""The trading range as it stood before a bar, so that a bar is never tested against a range it helped to draw."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import log
from statistics import median, median_high, median_low
from typing import NamedTuple

from wadm_mcp.analytics.market_structure.series import Series
from wadm_mcp.analytics.market_structure.swings import Pivot, Side


class TradingRange(NamedTuple):
    """Edges at the series' scale. `first` is the bar of its oldest pivot, `frozen` the last bar that it knows."""

    high: int
    low: int
    tests_high: int
    tests_low: int
    first: int
    frozen: int

    @property
    def width(self) -> int:
        """High minus low."""
        return self.high - self.low

    def position(self, price: int) -> float:
        """Where a price stands, 0 at the low edge and 1 at the high one."""
        return (price - self.low) / self.width


def range_before(series: Series, found: Sequence[Pivot], place: int) -> TradingRange | None:
    """The range known when the bar at `place` began; `found` are pivots, oldest first.

    Each edge is the median of its side's newest pivots among the bars of the baseline, of two middle ones the inner. None without enough
    tests of both edges (the structure of niyoh120's range finder, its counts ours), and behind a bar that is not usable: a gap ends the
    range it lies in.
    """
    parameters = series.parameters
    begin = max(0, place - parameters.baseline)
    gap = next((one for one in range(place - 1, begin - 1, -1) if not series.usable(one)), begin - 1)
    known = [pivot for pivot in found if pivot.place > gap and pivot.known < place]
    highs, lows = _newest(known, "high", parameters.pivots), _newest(known, "low", parameters.pivots)
    if len(highs) < parameters.tests or len(lows) < parameters.tests:
        return None
    high, low = median_low([pivot.price for pivot in highs]), median_high([pivot.price for pivot in lows])
    near = (high - low) * parameters.edge
    tests_high = sum(abs(pivot.price - high) <= near for pivot in highs)
    tests_low = sum(abs(pivot.price - low) <= near for pivot in lows)
    if high <= low or tests_high < parameters.tests or tests_low < parameters.tests:
        return None
    return TradingRange(high, low, tests_high, tests_low, min(highs[0].place, lows[0].place), place - 1)


def drift(series: Series, found: TradingRange) -> float:
    """How far the close has moved from the range's first bar to its last, in widths."""
    return (series[found.frozen].close - series[found.first].close) / found.width


def volume_slope(series: Series, found: TradingRange) -> float | None:
    """Theil-Sen slope of the logarithm of volume per bar: the median of the slopes between all pairs. Bars without volume have none."""
    points = [(place, log(series[place].volume)) for place in range(found.first, found.frozen + 1) if series[place].volume]
    slopes = [(two[1] - one[1]) / (two[0] - one[0]) for one, two in combinations(points, 2)]
    return median(slopes) if slopes else None


def _newest(known: Sequence[Pivot], side: Side, most: int) -> list[Pivot]:
    return [pivot for pivot in known if pivot.side == side][-most:]
