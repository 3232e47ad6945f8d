"""The trading range that was known before a bar began, so that no bar is compared with a range that it helped to define."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import log
from statistics import median, median_high, median_low
from typing import NamedTuple

from wadm_mcp.analytics.market_structure.series import Series
from wadm_mcp.analytics.market_structure.swings import Pivot, Side


class TradingRange(NamedTuple):
    """A range with its edges at the series' scale. It reaches from the bar of its oldest pivot to the last bar before it was determined."""

    high: int
    low: int
    tests_high: int
    tests_low: int
    first_index: int
    last_index: int

    @property
    def width(self) -> int:
        """High minus low."""
        return self.high - self.low

    def position(self, price: int) -> float:
        """The position of a price in the range: 0 at the low edge, 1 at the high edge."""
        return (price - self.low) / self.width


def range_before(series: Series, all_pivots: Sequence[Pivot], index: int) -> TradingRange | None:
    """The range known when the bar at `index` began, or None. `all_pivots` are oldest first.

    Each edge is the median of the newest pivots of its side within the baseline; of two middle pivots the one nearer to the other edge.
    There is no range without enough tests of both edges (after niyoh120's range finder, with counts of our own). Pivots before a bar that
    is not usable are ignored: a gap ends the range.
    """
    parameters = series.parameters
    begin = max(0, index - parameters.baseline)
    gap = next((one for one in range(index - 1, begin - 1, -1) if not series.usable(one)), begin - 1)
    known = [pivot for pivot in all_pivots if pivot.bar_index > gap and pivot.known_index < index]
    highs, lows = _newest(known, "high", parameters.pivots), _newest(known, "low", parameters.pivots)
    if len(highs) < parameters.tests or len(lows) < parameters.tests:
        return None
    high, low = median_low([pivot.price for pivot in highs]), median_high([pivot.price for pivot in lows])
    near = (high - low) * parameters.edge
    tests_high = sum(abs(pivot.price - high) <= near for pivot in highs)
    tests_low = sum(abs(pivot.price - low) <= near for pivot in lows)
    if high <= low or tests_high < parameters.tests or tests_low < parameters.tests:
        return None
    return TradingRange(high, low, tests_high, tests_low, min(highs[0].bar_index, lows[0].bar_index), index - 1)


def drift(series: Series, trading_range: TradingRange) -> float:
    """The move of the close from the range's first bar to its last, in widths of the range."""
    return (series[trading_range.last_index].close - series[trading_range.first_index].close) / trading_range.width


def volume_slope(series: Series, trading_range: TradingRange) -> float | None:
    """Theil-Sen slope of the logarithm of volume per bar: the median of the slopes between all pairs of bars with volume.

    None with fewer than two such bars.
    """
    indexes = range(trading_range.first_index, trading_range.last_index + 1)
    points = [(index, log(series[index].volume)) for index in indexes if series[index].volume]
    slopes = [(two[1] - one[1]) / (two[0] - one[0]) for one, two in combinations(points, 2)]
    return median(slopes) if slopes else None


def _newest(known: Sequence[Pivot], side: Side, count: int) -> list[Pivot]:
    return [pivot for pivot in known if pivot.side == side][-count:]
