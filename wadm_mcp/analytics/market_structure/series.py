"""A series of closed bars, with statistics that compare each bar with the bars before it.

The baseline of a bar never contains the bar itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, log1p
from statistics import median
from typing import Final, NamedTuple

from wadm_mcp.analytics.footprint import Bar
from wadm_mcp.analytics.market_structure.parameters import DEFAULT, Parameters
from wadm_mcp.analytics.order_flow import session_start
from wadm_mcp.model import Scale

_MAD_TO_SIGMA: Final = 1.4826
"""Factor from the median absolute deviation of a normal distribution to its standard deviation."""


class SeriesBar(NamedTuple):
    """One closed bar `[start, end)`, integers at the series' scale. The prices of a bar without trades are the close before it.

    `covered` is the share of its time that is recorded completely. `complete` is true if no trade is known to be missing. `min_delta` and
    `max_delta` are those of the trades' bar; None where they cannot be computed.
    """

    start: int
    end: int
    open: int
    high: int
    low: int
    close: int
    volume: int
    delta: int
    covered: float
    complete: bool
    min_delta: int | None = None
    max_delta: int | None = None

    @property
    def range(self) -> int:
        """High minus low."""
        return self.high - self.low

    @property
    def move(self) -> int:
        """Close minus open."""
        return self.close - self.open

    @property
    def close_position(self) -> float:
        """The position of the close in the range: 0 at the low, 1 at the high, 0.5 in a bar without range."""
        return (self.close - self.low) / self.range if self.range else 0.5


class CoveredBar(NamedTuple):
    """A bar of the tape and its coverage. `bar` is None, or empty, where nothing traded."""

    start: int
    end: int
    bar: Bar | None
    covered: float
    complete: bool


class Series:
    """Consecutive bars of one timeframe, oldest first, with the statistics that detectors need.

    A statistic is None where the coverage is too low to compute it.
    """

    def __init__(self, covered_bars: Sequence[CoveredBar], scale: Scale, parameters: Parameters = DEFAULT) -> None:
        """Takes bars at `scale`. Bars before the first trade are left out because they have no price."""
        self.scale = scale
        self.parameters = parameters
        self.bars: list[SeriesBar] = []
        for one in covered_bars:
            if one.bar is not None and one.bar.trade_count:
                self.bars.append(_series_bar(one, one.bar.rescaled(scale)))
            elif self.bars:
                close = self.bars[-1].close
                self.bars.append(SeriesBar(one.start, one.end, close, close, close, close, 0, 0, one.covered, one.complete, 0, 0))

    def __len__(self) -> int:
        return len(self.bars)

    def __getitem__(self, index: int) -> SeriesBar:
        return self.bars[index]

    def until(self, index: int) -> Series:
        """The series as it was when the bar at `index` closed."""
        earlier = Series((), self.scale, self.parameters)
        earlier.bars = self.bars[: index + 1]
        return earlier

    def usable(self, index: int) -> bool:
        """Whether enough of the bar is covered to compare it with others."""
        return self.bars[index].covered >= self.parameters.usable

    def all_usable(self, first: int, last: int) -> bool:
        """Whether all bars from `first` to `last` are usable, both included."""
        return first >= 0 and all(map(self.usable, range(first, last + 1)))

    def all_complete(self, first: int, last: int) -> bool:
        """Whether all bars from `first` to `last` are complete, both included."""
        return first >= 0 and all(bar.complete for bar in self.bars[first : last + 1])

    def volume_z(self, index: int) -> float | None:
        """Difference of the volume from the baseline, in robust standard deviations of the logarithm."""
        return self._z(index, lambda bar: bar.volume)

    def range_z(self, index: int) -> float | None:
        """Difference of the range (high minus low) from the baseline, in the unit of `volume_z`."""
        return self._z(index, lambda bar: bar.range)

    def progress_z(self, index: int) -> float | None:
        """Difference of the absolute move (open to close) from the baseline, in the unit of `volume_z`."""
        return self._z(index, lambda bar: abs(bar.move))

    def percentile(self, index: int, percent: int, figure: Callable[[SeriesBar], int]) -> int | None:
        """Percentile of a figure over the baseline, by nearest rank."""
        baseline = self._baseline(index)
        if baseline is None:
            return None
        figures = sorted(map(figure, baseline))
        return figures[ceil(percent * len(figures) / 100) - 1]

    def atr(self, index: int) -> float | None:
        """Mean true range of the bars before this one (Wilder's true range, arithmetic mean).

        None if one of those bars is not usable, or if all of them are flat.
        """
        length = self.parameters.atr
        if not self.all_usable(index - length - 1, index - 1):
            return None
        total = 0
        for bar, before in zip(self.bars[index - length : index], self.bars[index - length - 1 :], strict=False):
            total += max(bar.high, before.close) - min(bar.low, before.close)
        return total / length if total else None

    def cumulative_delta(self, index: int) -> int | None:
        """Delta from 00:00 UTC to the bar's close. None if the series begins later, or if a trade since then is missing."""
        first = self.session_first(index)
        if first is None or not self.all_complete(first, index):
            return None
        return sum(bar.delta for bar in self.bars[first : index + 1])

    def session_first(self, index: int) -> int | None:
        """Index of the first bar of this bar's day. None if the series begins after the start of the day."""
        start = session_start(self.bars[index].start)
        first = index
        while first > 0 and self.bars[first - 1].start >= start:
            first -= 1
        return first if self.bars[first].start == start else None

    def _z(self, index: int, figure: Callable[[SeriesBar], int]) -> float | None:
        """`(ln(1 + x) - median) / (1.4826 MAD)`, x in the smallest steps of price or quantity."""
        baseline = self._baseline(index)
        if baseline is None:
            return None
        logs = [log1p(figure(bar)) for bar in baseline]
        middle = median(logs)
        spread = median(abs(value - middle) for value in logs)
        if not spread:
            return None
        return (log1p(figure(self.bars[index])) - middle) / (_MAD_TO_SIGMA * spread)

    def _baseline(self, index: int) -> list[SeriesBar] | None:
        """The usable bars that this bar is compared with. None if they are too few, or if this bar is not usable."""
        if not self.usable(index):
            return None
        first = max(0, index - self.parameters.baseline)
        bars = [self.bars[one] for one in range(first, index) if self.usable(one)]
        return bars if len(bars) >= self.parameters.least else None


def _series_bar(one: CoveredBar, bar: Bar) -> SeriesBar:
    assert bar.open is not None
    assert bar.high is not None
    assert bar.low is not None
    assert bar.close is not None
    return SeriesBar(
        one.start,
        one.end,
        bar.open,
        bar.high,
        bar.low,
        bar.close,
        bar.volume,
        bar.delta,
        one.covered,
        one.complete,
        bar.min_delta,
        bar.max_delta,
    )
