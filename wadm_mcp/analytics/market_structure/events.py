"""Event candidates: the moments that Wyckoff-style reports look for, each with the figures it is based on.

A candidate is a fact about bars, not an interpretation. Every detector uses only what was known when a bar closed (`known_index`), so that
later bars never change or remove a candidate. A detector finds nothing if a bar that it needs is not usable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from wadm_mcp.analytics.market_structure.series import Series, SeriesBar
from wadm_mcp.analytics.market_structure.swings import Pivot, alternating, legs, pivots
from wadm_mcp.analytics.market_structure.trading_range import TradingRange, range_before


class Event(NamedTuple):
    """A candidate.

    `bar_index` is the bar of its price, `known_index` the bar at whose close it became known. `price` and `delta` are at the series' scale,
    `figures` have no unit. `delta` is None if a trade of the event's bars is missing.
    """

    bar_index: int
    known_index: int
    kind: str
    price: int
    delta: int | None
    figures: dict[str, float]
    edge: int | None = None
    """The price that was tested or broken: the edge of a range, or an earlier extreme."""
    first_index: int | None = None
    """The bar where an event of several bars began; `delta` is summed from there."""


def events(series: Series, since: int = 0) -> list[Event]:
    """Every candidate that became known at the close of bar `since` or later, in the order in which they became known."""
    all_pivots = pivots(series)
    ranges = _RangeCache(series, all_pivots)
    found: list[Event] = []
    for index in range(len(series)):
        for detector in _BAR_DETECTORS:
            found += detector(series, index)
        found += springs(series, ranges.before, index)
        found += breaks(series, ranges.before, index)
    found += retests(series, ranges.before, all_pivots, found)
    found += pivot_events(series, all_pivots)
    return sorted(
        (event for event in found if event.known_index >= since), key=lambda event: (event.known_index, event.bar_index, event.kind)
    )


class _RangeCache:
    """The range before each bar, computed once."""

    def __init__(self, series: Series, all_pivots: Sequence[Pivot]) -> None:
        self._series, self._pivots = series, all_pivots
        self._ranges: dict[int, TradingRange | None] = {}

    def before(self, index: int) -> TradingRange | None:
        if index not in self._ranges:
            self._ranges[index] = range_before(self._series, self._pivots, index)
        return self._ranges[index]


def climaxes(series: Series, index: int) -> Iterator[Event]:
    """`climax_down`, `climax_up`: a falling (rising) bar of extreme volume and range that is the lowest (highest) of its baseline.

    After the selling and buying climax of the Wyckoff tutorials. Whether it really is a climax is left to the reader.
    """
    bar, parameters = series[index], series.parameters
    volume_z, range_z = series.volume_z(index), series.range_z(index)
    first = max(0, index - parameters.baseline)
    if volume_z is None or range_z is None or not bar.move or not series.all_usable(first, index):
        return
    if volume_z < parameters.climax_volume or range_z < parameters.climax_range:
        return
    earlier = series.bars[first:index]
    if bar.move < 0 and bar.low < min(one.low for one in earlier):
        yield _bar_event(series, index, "climax_down", bar.low)
    elif bar.move > 0 and bar.high > max(one.high for one in earlier):
        yield _bar_event(series, index, "climax_up", bar.high)


def efforts(series: Series, index: int) -> Iterator[Event]:
    """`effort_without_result`: high volume, little progress. `ease_of_movement`: much progress on low volume. (Wyckoff's third law.)"""
    volume_z, progress_z = series.volume_z(index), series.progress_z(index)
    if volume_z is None or progress_z is None:
        return
    threshold = series.parameters.effort
    if volume_z >= threshold and progress_z <= 0:
        yield _bar_event(series, index, "effort_without_result", series[index].close, progress_z=progress_z)
    elif progress_z >= threshold and volume_z <= 0:
        yield _bar_event(series, index, "ease_of_movement", series[index].close, progress_z=progress_z)


def absorptions(series: Series, index: int) -> Iterator[Event]:
    """`absorbed_buying`, `absorbed_selling`: delta is among the largest of the baseline, but price hardly moved or closed against it."""
    bar, parameters = series[index], series.parameters
    large = series.percentile(index, parameters.absorbed_delta, lambda one: abs(one.delta))
    small = series.percentile(index, parameters.absorbed_move, lambda one: abs(one.move))
    if large is None or small is None or not bar.delta or not bar.complete or abs(bar.delta) < large:
        return
    if abs(bar.move) > small and bar.move * bar.delta > 0:
        return
    yield _bar_event(series, index, "absorbed_buying" if bar.delta > 0 else "absorbed_selling", bar.close)


_BAR_DETECTORS: Final[tuple[Callable[[Series, int], Iterator[Event]], ...]] = (climaxes, efforts, absorptions)


def springs(series: Series, known_range: Callable[[int], TradingRange | None], index: int) -> Iterator[Event]:
    """`spring`, `upthrust`: price left the range and the bar at `index` closes inside again, within `back_within` bars.

    `known_range` gives the range known before a bar. The range is the one before the first bar outside, and the bar before that one was
    inside. `penetration_atr` is the largest distance from the edge, in ATR. If more than one range was left, the newest counts.
    """
    reported: set[str] = set()
    for first in range(index, max(0, index - series.parameters.back_within), -1):
        left = known_range(first)
        atr = series.atr(first)
        if left is None or atr is None or not series.all_usable(first - 1, index):
            continue
        bars = series.bars[first : index + 1]
        if not left.low < bars[-1].close < left.high:
            continue
        previous = series[first - 1]
        if "spring" not in reported and bars[0].low < left.low <= previous.low and all(bar.close <= left.low for bar in bars[:-1]):
            reported.add("spring")
            lowest = min(range(first, index + 1), key=lambda one: series[one].low)
            yield _excursion_event(series, first, index, lowest, "spring", series[lowest].low, left.low, atr)
        if "upthrust" not in reported and bars[0].high > left.high >= previous.high and all(bar.close >= left.high for bar in bars[:-1]):
            reported.add("upthrust")
            highest = max(range(first, index + 1), key=lambda one: series[one].high)
            yield _excursion_event(series, first, index, highest, "upthrust", series[highest].high, left.high, atr)


def breaks(series: Series, known_range: Callable[[int], TradingRange | None], index: int) -> Iterator[Event]:
    """`break_up`, `break_down`: the first close clearly outside the known range, with high volume, a wide bar and a matching delta.

    A bar with a missing trade is not a break, because its delta may have the other sign.
    """
    broken, atr, parameters = known_range(index), series.atr(index), series.parameters
    volume_z, range_z = series.volume_z(index), series.range_z(index)
    if broken is None or atr is None or volume_z is None or range_z is None or not series.all_usable(index - 1, index):
        return
    if not series[index].complete or volume_z < parameters.break_volume or range_z < parameters.break_range:
        return
    bar, previous = series[index], series[index - 1]
    beyond = parameters.break_atr * atr
    if bar.close >= broken.high + beyond > previous.close and bar.delta > 0:
        event = _bar_event(series, index, "break_up", bar.close, beyond_atr=(bar.close - broken.high) / atr)
        yield event._replace(edge=broken.high)
    elif bar.close <= broken.low - beyond < previous.close and bar.delta < 0:
        event = _bar_event(series, index, "break_down", bar.close, beyond_atr=(broken.low - bar.close) / atr)
        yield event._replace(edge=broken.low)


def retests(
    series: Series, known_range: Callable[[int], TradingRange | None], all_pivots: Sequence[Pivot], tested: Sequence[Event]
) -> Iterator[Event]:
    """`retest_climax`: a later pivot near a climax's extreme, with less volume and range. `retest_break`: the first pivot after a break,
    if it returns to the broken edge and stays above (below) the middle of the range.

    `volume_ratio` and `range_ratio` compare the pivot's bar with the tested bar.
    """
    for event in tested:
        down = event.kind in ("climax_down", "break_up")
        later = [pivot for pivot in all_pivots if pivot.side == ("low" if down else "high") and pivot.bar_index > event.bar_index]
        if event.kind.startswith("climax"):
            for pivot in later:
                around = known_range(pivot.bar_index)
                if around is not None and abs(pivot.price - event.price) <= series.parameters.retest * around.width:
                    yield from _retest(series, event, pivot, "retest_climax", less=True)
        elif event.kind.startswith("break") and later and event.edge is not None:
            broken = known_range(event.bar_index)
            if broken is None:
                continue
            pivot, near = later[0], series.parameters.retest * broken.width
            middle = (broken.high + broken.low) / 2
            returned = middle <= pivot.price <= event.edge + near if down else event.edge - near <= pivot.price <= middle
            if returned:
                yield from _retest(series, event, pivot, "retest_break", less=False)


def pivot_events(series: Series, all_pivots: Sequence[Pivot]) -> Iterator[Event]:
    """`delta_divergence_high` (`_low`): a higher high although delta since the previous high is negative. Both highs are in one session and
    no trade in between is missing. `exhaustion_high` (`_low`): a new extreme whose leg has less delta than the leg to the previous extreme.

    Each pivot is compared only with the pivots known when it became known, so that later pivots do not change the result.
    """
    for count, newest in enumerate(all_pivots, 1):
        turns = alternating(all_pivots[:count])
        if turns[-1] is not newest or len(turns) < 3:
            continue
        before, sign = turns[-3], 1 if newest.side == "high" else -1
        if (newest.price - before.price) * sign <= 0:
            continue
        if series.all_complete(before.bar_index + 1, newest.bar_index) and _session(series, newest) == _session(series, before):
            delta = sum(one.delta for one in series.bars[before.bar_index + 1 : newest.bar_index + 1])
            if delta * sign < 0:
                kind = f"delta_divergence_{newest.side}"
                yield Event(newest.bar_index, newest.known_index, kind, newest.price, delta, {}, before.price, before.bar_index + 1)
        all_legs = legs(series, turns)
        this, earlier = all_legs[-1].delta, all_legs[-3].delta
        if len(turns) >= 4 and this is not None and earlier is not None and 0 < earlier * sign > this * sign:
            figures = {"delta_ratio": this / earlier}
            yield Event(
                newest.bar_index,
                newest.known_index,
                f"exhaustion_{newest.side}",
                newest.price,
                this,
                figures,
                before.price,
                turns[-2].bar_index + 1,
            )


def _session(series: Series, pivot: Pivot) -> int | None:
    """Index of the first bar of the pivot's day, or of the series if the day began earlier."""
    return series.session_first(pivot.bar_index) or 0


def _retest(series: Series, event: Event, pivot: Pivot, kind: str, *, less: bool) -> Iterator[Event]:
    then, now = series[event.bar_index], series[pivot.bar_index]
    if not series.all_usable(event.bar_index, pivot.bar_index) or not then.volume or not then.range:
        return
    if less and (now.volume >= then.volume or now.range >= then.range):
        return
    figures = {"volume_ratio": now.volume / then.volume, "range_ratio": now.range / then.range}
    edge = event.price if event.edge is None else event.edge
    yield Event(pivot.bar_index, pivot.known_index, f"{kind}_{pivot.side}", pivot.price, now.delta if now.complete else None, figures, edge)


def _bar_event(series: Series, index: int, kind: str, price: int, **figures: float) -> Event:
    bar = series[index]
    return Event(index, index, kind, price, bar.delta if bar.complete else None, {**baseline_scores(series, index, bar), **figures})


def _excursion_event(series: Series, first: int, index: int, extreme: int, kind: str, price: int, edge: int, atr: float) -> Event:
    delta = sum(one.delta for one in series.bars[first : index + 1]) if series.all_complete(first, index) else None
    figures = {
        **baseline_scores(series, extreme, series[extreme]),
        "penetration_atr": abs(price - edge) / atr,
        "bars": index - first + 1,
    }
    return Event(extreme, index, kind, price, delta, figures, edge, first)


def baseline_scores(series: Series, index: int, bar: SeriesBar) -> dict[str, float]:
    """The scores of a bar against its baseline, without those that cannot be computed."""
    scores = {"volume_z": series.volume_z(index), "range_z": series.range_z(index)}
    return {**{name: value for name, value in scores.items() if value is not None}, "close_position": bar.close_position}
