"""Event candidates: moments that the reports this server is for look for, each with the figures it rests on.

A candidate is a fact about bars, not a reading of it. Every detector looks at a bar with what was known when that bar closed (`known`):
adding later bars never changes or removes what was found. Where a bar it needs is not held well enough it says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from wadm_mcp.analytics.market_structure.series import Candle, Series
from wadm_mcp.analytics.market_structure.swings import Pivot, alternating, legs, pivots
from wadm_mcp.analytics.market_structure.trading_range import TradingRange, range_before


class Event(NamedTuple):
    """A candidate. `place` is the bar of its price, `known` the bar at whose close it could be told; `delta` and `price` are at the
    series' scale, `figures` have no unit. `delta` is None where a trade of its bars is missing."""

    place: int
    known: int
    kind: str
    price: int
    delta: int | None
    figures: dict[str, float]
    edge: int | None = None
    """Of a range that was tested: the edge."""
    first: int | None = None
    """Where the event began: the bar that `delta` sums from."""


def events(series: Series, since: int = 0) -> list[Event]:
    """Every candidate that became known at the close of bar `since` or later, by `known`."""
    found = pivots(series)
    ranges = _Ranges(series, found)
    everything: list[Event] = []
    for place in range(len(series)):
        for detector in _OF_A_BAR:
            everything += detector(series, place)
        everything += springs(series, ranges.before, place)
        everything += breaks(series, ranges.before, place)
    everything += retests(series, ranges.before, found, everything)
    everything += of_pivots(series, found)
    return sorted((event for event in everything if event.known >= since), key=lambda event: (event.known, event.place, event.kind))


class _Ranges:
    """The range before each bar, worked out once."""

    def __init__(self, series: Series, found: Sequence[Pivot]) -> None:
        self._series, self._pivots = series, found
        self._known: dict[int, TradingRange | None] = {}

    def before(self, place: int) -> TradingRange | None:
        if place not in self._known:
            self._known[place] = range_before(self._series, self._pivots, place)
        return self._known[place]


def climaxes(series: Series, place: int) -> Iterator[Event]:
    """`climax_down`, `climax_up`: a falling (rising) bar of extreme volume and range that is the extreme of its baseline.

    After the selling and buying climax of the Wyckoff tutorials; whether it is one, the reader judges.
    """
    candle, parameters = series[place], series.parameters
    volume_z, range_z = series.volume_z(place), series.range_z(place)
    first = max(0, place - parameters.baseline)
    if volume_z is None or range_z is None or not candle.move or not series.all_usable(first, place):
        return
    if volume_z < parameters.climax_volume or range_z < parameters.climax_range:
        return
    earlier = series.candles[first:place]
    if candle.move < 0 and candle.low < min(one.low for one in earlier):
        yield _of_bar(series, place, "climax_down", candle.low)
    elif candle.move > 0 and candle.high > max(one.high for one in earlier):
        yield _of_bar(series, place, "climax_up", candle.high)


def efforts(series: Series, place: int) -> Iterator[Event]:
    """`effort_without_result`: much volume, little progress. `ease_of_movement`: much progress on little volume. (Wyckoff's third law.)"""
    volume_z, progress_z = series.volume_z(place), series.progress_z(place)
    if volume_z is None or progress_z is None:
        return
    much = series.parameters.effort
    if volume_z >= much and progress_z <= 0:
        yield _of_bar(series, place, "effort_without_result", series[place].close, progress_z=progress_z)
    elif progress_z >= much and volume_z <= 0:
        yield _of_bar(series, place, "ease_of_movement", series[place].close, progress_z=progress_z)


def absorptions(series: Series, place: int) -> Iterator[Event]:
    """`absorbed_buying`, `absorbed_selling`: delta among the largest of the baseline, and price hardly moved or closed against it."""
    candle, parameters = series[place], series.parameters
    large = series.percentile(place, parameters.absorbed_delta, lambda one: abs(one.delta))
    small = series.percentile(place, parameters.absorbed_move, lambda one: abs(one.move))
    if large is None or small is None or not candle.delta or not candle.whole or abs(candle.delta) < large:
        return
    if abs(candle.move) > small and candle.move * candle.delta > 0:
        return
    yield _of_bar(series, place, "absorbed_buying" if candle.delta > 0 else "absorbed_selling", candle.close)


_OF_A_BAR: Final[tuple[Callable[[Series, int], Iterator[Event]], ...]] = (climaxes, efforts, absorptions)


def springs(series: Series, before: Callable[[int], TradingRange | None], place: int) -> Iterator[Event]:
    """`spring`, `upthrust`: price went out of the frozen range and the bar at `place` closes inside again, within `back_within` bars.

    The first bar outside follows one that was not; `penetration_atr` is how far the furthest went, in ATR. Where more than one frozen range
    was left, the newest is told of.
    """
    told: set[str] = set()
    for first in range(place, max(0, place - series.parameters.back_within), -1):
        found = before(first)
        atr = series.atr(first)
        if found is None or atr is None or not series.all_usable(first - 1, place):
            continue
        way = series.candles[first : place + 1]
        if not found.low < way[-1].close < found.high:
            continue
        previous = series[first - 1]
        if "spring" not in told and way[0].low < found.low <= previous.low and all(one.close <= found.low for one in way[:-1]):
            told.add("spring")
            lowest = min(range(first, place + 1), key=lambda one: series[one].low)
            yield _of_way(series, first, place, lowest, "spring", series[lowest].low, found.low, atr)
        if "upthrust" not in told and way[0].high > found.high >= previous.high and all(one.close >= found.high for one in way[:-1]):
            told.add("upthrust")
            highest = max(range(first, place + 1), key=lambda one: series[one].high)
            yield _of_way(series, first, place, highest, "upthrust", series[highest].high, found.high, atr)


def breaks(series: Series, before: Callable[[int], TradingRange | None], place: int) -> Iterator[Event]:
    """`break_up`, `break_down`: the first close clearly beyond the frozen range, on volume, range and delta that go with it. A bar of which
    a trade is missing is none: its delta may have another sign."""
    found, atr, parameters = before(place), series.atr(place), series.parameters
    volume_z, range_z = series.volume_z(place), series.range_z(place)
    if found is None or atr is None or volume_z is None or range_z is None or not series.all_usable(place - 1, place):
        return
    if not series[place].whole or volume_z < parameters.break_volume or range_z < parameters.break_range:
        return
    candle, previous = series[place], series[place - 1]
    beyond = parameters.break_atr * atr
    if candle.close >= found.high + beyond > previous.close and candle.delta > 0:
        event = _of_bar(series, place, "break_up", candle.close, beyond_atr=(candle.close - found.high) / atr)
        yield event._replace(edge=found.high)
    elif candle.close <= found.low - beyond < previous.close and candle.delta < 0:
        event = _of_bar(series, place, "break_down", candle.close, beyond_atr=(found.low - candle.close) / atr)
        yield event._replace(edge=found.low)


def retests(
    series: Series, before: Callable[[int], TradingRange | None], found: Sequence[Pivot], tested: Sequence[Event]
) -> Iterator[Event]:
    """`retest_climax`: a later pivot near a climax's extreme on less volume and range. `retest_break`: the first pivot after a break that
    comes back to the broken edge and holds above (below) the middle of the range.

    `volume_ratio` and `range_ratio` compare the pivot's bar with the one it tests.
    """
    for event in tested:
        down = event.kind in ("climax_down", "break_up")
        later = [pivot for pivot in found if pivot.side == ("low" if down else "high") and pivot.place > event.place]
        if event.kind.startswith("climax"):
            for pivot in later:
                width = before(pivot.place)
                if width is not None and abs(pivot.price - event.price) <= series.parameters.retest * width.width:
                    yield from _retest(series, event, pivot, "retest_climax", less=True)
        elif event.kind.startswith("break") and later and event.edge is not None:
            frozen = before(event.place)
            if frozen is None:
                continue
            pivot, near = later[0], series.parameters.retest * frozen.width
            middle = (frozen.high + frozen.low) / 2
            holds = middle <= pivot.price <= event.edge + near if down else event.edge - near <= pivot.price <= middle
            if holds:
                yield from _retest(series, event, pivot, "retest_break", less=False)


def of_pivots(series: Series, found: Sequence[Pivot]) -> Iterator[Event]:
    """`delta_divergence_high` (`_low`): a higher high though delta since the high before is negative; both in one session, and not a
    trade missing between. `exhaustion_high` (`_low`): a new extreme whose leg has less delta than the leg to the extreme before.

    Each pivot is compared with those known when it became known, so that what was told then stands.
    """
    for count, newest in enumerate(found, 1):
        turns = alternating(found[:count])
        if turns[-1] is not newest or len(turns) < 3:
            continue
        before, sign = turns[-3], 1 if newest.side == "high" else -1
        if (newest.price - before.price) * sign <= 0:
            continue
        if series.all_whole(before.place + 1, newest.place) and _session(series, newest) == _session(series, before):
            delta = sum(one.delta for one in series.candles[before.place + 1 : newest.place + 1])
            if delta * sign < 0:
                kind = f"delta_divergence_{newest.side}"
                yield Event(newest.place, newest.known, kind, newest.price, delta, {}, before.price, before.place + 1)
        ways = legs(series, turns)
        this, earlier = ways[-1].delta, ways[-3].delta
        if len(turns) >= 4 and this is not None and earlier is not None and 0 < earlier * sign > this * sign:
            figures = {"delta_ratio": this / earlier}
            yield Event(
                newest.place, newest.known, f"exhaustion_{newest.side}", newest.price, this, figures, before.price, turns[-2].place + 1
            )


def _session(series: Series, pivot: Pivot) -> int | None:
    """Where the pivot's day begins; the series' first bar where that lies before it."""
    return series.session(pivot.place) or 0


def _retest(series: Series, event: Event, pivot: Pivot, kind: str, *, less: bool) -> Iterator[Event]:
    then, now = series[event.place], series[pivot.place]
    if not series.all_usable(event.place, pivot.place) or not then.volume or not then.range:
        return
    if less and (now.volume >= then.volume or now.range >= then.range):
        return
    figures = {"volume_ratio": now.volume / then.volume, "range_ratio": now.range / then.range}
    edge = event.price if event.edge is None else event.edge
    yield Event(pivot.place, pivot.known, f"{kind}_{pivot.side}", pivot.price, now.delta if now.whole else None, figures, edge)


def _of_bar(series: Series, place: int, kind: str, price: int, **figures: float) -> Event:
    candle = series[place]
    return Event(place, place, kind, price, candle.delta if candle.whole else None, {**strength(series, place, candle), **figures})


def _of_way(series: Series, first: int, place: int, extreme: int, kind: str, price: int, edge: int, atr: float) -> Event:
    delta = sum(one.delta for one in series.candles[first : place + 1]) if series.all_whole(first, place) else None
    figures = {
        **strength(series, extreme, series[extreme]),
        "penetration_atr": abs(price - edge) / atr,
        "bars": place - first + 1,
    }
    return Event(extreme, place, kind, price, delta, figures, edge, first)


def strength(series: Series, place: int, candle: Candle) -> dict[str, float]:
    """How a bar compares with its baseline; what cannot be told is left out."""
    told = {"volume_z": series.volume_z(place), "range_z": series.range_z(place)}
    return {**{name: value for name, value in told.items() if value is not None}, "close_position": candle.close_position}
