"""Closed bars in a row, what may be said of each, and how it compares with those before it.

Everything that judges a bar looks at earlier bars alone: the bar itself is no part of its own baseline.
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
"""Makes the median absolute deviation of a normal distribution its standard deviation."""


class Candle(NamedTuple):
    """One closed bar `[start, end)`: integers at the series' scale. A bar without trades stands still at the close before it.

    `covered` is the share of its time that the tape holds, `whole` says that not one trade of it is known to be missing.
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
    whole: bool
    lowest_delta: int | None = None
    highest_delta: int | None = None

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
        """Where it closed, 0 at its low and 1 at its high; the middle of a bar without range."""
        return (self.close - self.low) / self.range if self.range else 0.5


class CoveredBar(NamedTuple):
    """A bar of the tape and how much of it is held. `bar` is None, or empty, where nothing traded."""

    start: int
    end: int
    bar: Bar | None
    covered: float
    whole: bool


class Series:
    """Consecutive bars of one timeframe, oldest first, with the statistics detectors ask for. Every one is null rather than a guess."""

    def __init__(self, told: Sequence[CoveredBar], scale: Scale, parameters: Parameters = DEFAULT) -> None:
        """Bars at `scale`. Those before the first trade are left out: they have no price to stand still at."""
        self.scale = scale
        self.parameters = parameters
        self.candles: list[Candle] = []
        for one in told:
            if one.bar is not None and one.bar.trade_count:
                self.candles.append(_candle(one, one.bar.rescaled(scale)))
            elif self.candles:
                close = self.candles[-1].close
                self.candles.append(Candle(one.start, one.end, close, close, close, close, 0, 0, one.covered, one.whole, 0, 0))

    def __len__(self) -> int:
        return len(self.candles)

    def __getitem__(self, place: int) -> Candle:
        return self.candles[place]

    def until(self, place: int) -> Series:
        """The series as it was when the bar at `place` closed."""
        earlier = Series((), self.scale, self.parameters)
        earlier.candles = self.candles[: place + 1]
        return earlier

    def usable(self, place: int) -> bool:
        """Is enough of the bar held to be compared?"""
        return self.candles[place].covered >= self.parameters.usable

    def all_usable(self, first: int, last: int) -> bool:
        """Are the bars from `first` to `last`, both included?"""
        return first >= 0 and all(map(self.usable, range(first, last + 1)))

    def all_whole(self, first: int, last: int) -> bool:
        """Is not one trade missing from `first` to `last`, both included?"""
        return first >= 0 and all(candle.whole for candle in self.candles[first : last + 1])

    def volume_z(self, place: int) -> float | None:
        """Volume against the baseline, in robust standard deviations of its logarithm."""
        return self._z(place, lambda candle: candle.volume)

    def range_z(self, place: int) -> float | None:
        """High minus low, likewise."""
        return self._z(place, lambda candle: candle.range)

    def progress_z(self, place: int) -> float | None:
        """The distance from open to close, whatever its direction, likewise."""
        return self._z(place, lambda candle: abs(candle.move))

    def percentile(self, place: int, percent: int, figure: Callable[[Candle], int]) -> int | None:
        """The smallest figure of the baseline that `percent` of it do not pass (nearest rank)."""
        held = self._baseline(place)
        if held is None:
            return None
        figures = sorted(map(figure, held))
        return figures[ceil(percent * len(figures) / 100) - 1]

    def atr(self, place: int) -> float | None:
        """Mean true range of the bars before this one (Wilder's true range, a plain mean). None where one of them is not usable or flat."""
        length = self.parameters.atr
        if not self.all_usable(place - length - 1, place - 1):
            return None
        total = 0
        for candle, before in zip(self.candles[place - length : place], self.candles[place - length - 1 :], strict=False):
            total += max(candle.high, before.close) - min(candle.low, before.close)
        return total / length if total else None

    def cumulative_delta(self, place: int) -> int | None:
        """Delta since 00:00 UTC at the bar's close. None where the series does not reach back so far or a trade since then is missing."""
        first = self.session(place)
        if first is None or not self.all_whole(first, place):
            return None
        return sum(candle.delta for candle in self.candles[first : place + 1])

    def session(self, place: int) -> int | None:
        """Place of the first bar of this bar's day, None where the series begins later."""
        start = session_start(self.candles[place].start)
        first = place
        while first > 0 and self.candles[first - 1].start >= start:
            first -= 1
        return first if self.candles[first].start == start else None

    def _z(self, place: int, figure: Callable[[Candle], int]) -> float | None:
        """`(ln(1 + x) - median) / (1.4826 MAD)`, x in the smallest steps of price or quantity."""
        held = self._baseline(place)
        if held is None:
            return None
        logs = [log1p(figure(candle)) for candle in held]
        middle = median(logs)
        spread = median(abs(value - middle) for value in logs)
        if not spread:
            return None
        return (log1p(figure(self.candles[place])) - middle) / (_MAD_TO_SIGMA * spread)

    def _baseline(self, place: int) -> list[Candle] | None:
        """The usable bars that this one is compared with; None where they are too few or it is not usable itself."""
        if not self.usable(place):
            return None
        first = max(0, place - self.parameters.baseline)
        held = [self.candles[one] for one in range(first, place) if self.usable(one)]
        return held if len(held) >= self.parameters.least else None


def _candle(one: CoveredBar, bar: Bar) -> Candle:
    assert bar.open is not None
    assert bar.high is not None
    assert bar.low is not None
    assert bar.close is not None
    return Candle(
        one.start,
        one.end,
        bar.open,
        bar.high,
        bar.low,
        bar.close,
        bar.volume,
        bar.delta,
        one.covered,
        one.whole,
        bar.min_delta,
        bar.max_delta,
    )
