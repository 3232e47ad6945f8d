"""Every event candidate, in both directions: when it fires and with which figures, when it just does not fire, which missing data
suppresses it, and that no detector looks ahead."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics import structure_oracles as oracles
from tests.analytics.market_structure.tape import (
    DAY,
    LENGTH,
    MIDDLE,
    Row,
    first_that,
    kinds,
    mirror_kind,
    mirrored,
    of_kind,
    path,
    prices,
    quiet,
    series,
    walk,
    wave,
)
from wadm_mcp.analytics.market_structure.events import Event, events, springs
from wadm_mcp.analytics.market_structure.swings import pivots
from wadm_mcp.analytics.market_structure.trading_range import TradingRange

_LAST = 60
"""Index of the bar that is added after the quiet bars."""
_AT = 61
"""Index at which the wave is one step above its low, after three highs and three lows."""
_TOP = 50
"""Index at which the wave is at its high."""
_LOW, _HIGH = MIDDLE - 101, MIDDLE + 101
"""Edges of the wave's range."""


def _climax(volume: int = 3_000, reach: int = 40) -> list[Row]:
    return [*quiet(_LAST), Row(MIDDLE, MIDDLE + 1, MIDDLE - reach, MIDDLE - reach // 2, volume // 4, volume - volume // 4)]


def _under(low: int, close: int = MIDDLE - 20) -> list[Row]:
    """A climax after a bar with this low."""
    rows = _climax()
    return [*rows[:58], Row(MIDDLE, MIDDLE + 1, low, MIDDLE - 1, 100, 100), rows[59], rows[_LAST]._replace(close=close)]


def _effort(volume: int, move: int) -> list[Row]:
    return [*quiet(_LAST), Row(MIDDLE, MIDDLE + 2 + max(0, move), MIDDLE - 2, MIDDLE + move, volume // 2, volume - volume // 2)]


def _absorbed(delta: int = 400, move: int = 0) -> list[Row]:
    return [*quiet(_LAST), Row(MIDDLE, MIDDLE + 3, MIDDLE - 40, MIDDLE + move, 200 + delta, 200)]


def _spring(low: int = _LOW - 10, close: int = MIDDLE - 90) -> list[Row]:
    return [*wave(_AT), Row(MIDDLE - 80, max(close, MIDDLE - 78), low, close, 150, 90)]


def _returned(closes: Sequence[int], back: int = MIDDLE - 50, first_low: int = _LOW - 30) -> list[Row]:
    """Bars that close below the edge, the first of them the lowest, and one that closes inside."""
    rows = [*wave(_AT)]
    for place, close in enumerate(closes):
        rows.append(Row(rows[-1].close, rows[-1].close + 1, first_low + 5 * place, close, 90, 120))
    return [*rows, Row(closes[-1], back + 1, closes[-1] - 1, back, 300, 90)]


def _followed(low: int) -> list[Row]:
    """A spring after a bar with this low."""
    rows = _spring()
    rows[_AT - 1] = rows[_AT - 1]._replace(low=low)
    return rows


def _break(
    close: int = MIDDLE + 180, *, bought: int = 3_000, sold: int = 100, low: int = MIDDLE + 99, before: int = MIDDLE + 100
) -> list[Row]:
    rows = wave(_TOP)
    rows[-1] = rows[-1]._replace(high=max(rows[-1].high, before), close=before)
    return [*rows, Row(max(low, MIDDLE + 100), close + 1, low, close, bought, sold)]


def _slow_break(low: int) -> list[Row]:
    """A break whose bar is just high enough and begins at this low."""
    return _break(MIDDLE + 118, low=low)


def _climax_retested(price: int = MIDDLE - 290, volume: int = 100, reach: int = 30) -> list[Row]:
    """A climax below the wave's range, a rally, and a second low at a price."""
    fall = Row(MIDDLE - 80, MIDDLE - 79, MIDDLE - 300, MIDDLE - 250, 2_000, 8_000)
    up = path([MIDDLE - 250 + 30 * step for step in range(7)])
    down = path([MIDDLE - 70 - (MIDDLE - 71 - price) * step // 6 for step in range(7)])
    down[-1] = Row(price + reach, price + reach, price, price + 1, volume // 2, volume - volume // 2)
    back = path([price + 1 + 30 * step for step in range(7)])
    return [*wave(_AT), fall, *up, *down, *back]


def _break_retested(price: int = MIDDLE + 110) -> list[Row]:
    """A break above the range, more of it, and the first low after it at a price."""
    up = path(range(MIDDLE + 180, MIDDLE + 281, 20))
    down = path([MIDDLE + 280 - (MIDDLE + 281 - price) * step // 6 for step in range(7)])
    down[-1] = down[-1]._replace(low=price, close=price + 1)
    return [*_break(), *up, *down, *path([price + 1 + 15 * step for step in range(7)])]


def _two_highs(second: int = MIDDLE + 140, *, up: int = 150, bought: int = 100, sold: int = 100) -> list[Row]:
    """A high at 10,121, a fall, and a second high; what is bought and sold on the way up to each."""
    rows = [*path([MIDDLE + 60 - 10 * step for step in range(7)]), *path([MIDDLE + 20 * step for step in range(7)], buy=up, sell=100)]
    rows += path([MIDDLE + 120 - 15 * step for step in range(7)], buy=100, sell=101)
    again = path([MIDDLE + 30 + (second - MIDDLE - 31) * step // 6 for step in range(7)], buy=bought, sell=sold)
    again[-1] = again[-1]._replace(high=second)
    return [*rows, *again, *path([again[-1].close - 20 * step for step in range(7)])]


def _score(rows: list[Row], place: int, figure: Callable[[Row], int]) -> float:
    z = oracles.robust_z([figure(row) for row in rows[:place]], figure(rows[place]))
    assert z is not None
    return z


def _volume_z(rows: list[Row], place: int = _LAST) -> float:
    return _score(rows, place, lambda row: row.volume)


def _range_z(rows: list[Row], place: int = _LAST) -> float:
    return _score(rows, place, lambda row: row.high - row.low)


def _progress_z(rows: list[Row], place: int = _LAST) -> float:
    return _score(rows, place, lambda row: abs(row.close - row.open))


def _rank(rows: list[Row], percent: int, figure: Callable[[Row], int]) -> int:
    return oracles.nearest_rank([figure(row) for row in rows[:_LAST]], Fraction(percent))


def _atr(rows: list[Row], place: int) -> Fraction:
    return oracles.average_true_range(prices(rows), place)


def _ratio(rows: list[Row], figure: Callable[[Row], int], place: int, tested: int) -> float:
    return figure(rows[place]) / figure(rows[tested])


def _strength(rows: list[Row], place: int) -> dict[str, float]:
    row = rows[place]
    return {
        "volume_z": _volume_z(rows, place),
        "range_z": _range_z(rows, place),
        "close_position": (row.close - row.low) / (row.high - row.low),
    }


def _ratios(rows: list[Row], place: int, tested: int) -> dict[str, float]:
    return {
        "volume_ratio": _ratio(rows, lambda row: row.volume, place, tested),
        "range_ratio": _ratio(rows, lambda row: row.high - row.low, place, tested),
    }


class _Fires(NamedTuple):
    """Bars in which one event of a kind is found, and all that is expected of it."""

    rows: list[Row]
    place: int
    known: int
    price: int
    delta: int
    figures: dict[str, float]
    edge: int | None = None
    first: int | None = None


def _sum(rows: list[Row], first: int, last: int) -> int:
    return sum(row.delta for row in rows[first : last + 1])


_FIRST_HIGH, _FALLEN, _SECOND_HIGH = 11, 17, 23
_DIVERGING, _TIRED = _two_highs(sold=200), _two_highs(bought=120)
_THREE_OUT = _returned([_LOW - 5, _LOW - 5])

_FIRES: dict[str, list[_Fires]] = {
    "climax_down": [_Fires(_climax(), _LAST, _LAST, MIDDLE - 40, -1_500, _strength(_climax(), _LAST))],
    "effort_without_result": [
        _Fires(
            *(_effort(3_000, 1), _LAST, _LAST, MIDDLE + 1, 0),
            {**_strength(_effort(3_000, 1), _LAST), "progress_z": _progress_z(_effort(3_000, 1))},
        )
    ],
    "ease_of_movement": [
        _Fires(
            *(_effort(121, 30), _LAST, _LAST, MIDDLE + 30, -1),
            {**_strength(_effort(121, 30), _LAST), "progress_z": _progress_z(_effort(121, 30))},
        )
    ],
    "absorbed_buying": [
        _Fires(_absorbed(), _LAST, _LAST, MIDDLE, 400, _strength(_absorbed(), _LAST)),
        _Fires(_absorbed(400, -30), _LAST, _LAST, MIDDLE - 30, 400, _strength(_absorbed(400, -30), _LAST)),
    ],
    "spring": [
        _Fires(
            *(_spring(), _AT, _AT, _LOW - 10, 60),
            {**_strength(_spring(), _AT), "penetration_atr": float(10 / _atr(_spring(), _AT)), "bars": 1},
            *(_LOW, _AT),
        ),
        _Fires(
            *(_THREE_OUT, _AT, _AT + 2, _LOW - 30, -60 + 210),
            {**_strength(_THREE_OUT, _AT), "penetration_atr": float(30 / _atr(_THREE_OUT, _AT)), "bars": 3},
            *(_LOW, _AT),
        ),
    ],
    "break_up": [
        _Fires(
            *(_break(), _TOP, _TOP, MIDDLE + 180, 2_900),
            {**_strength(_break(), _TOP), "beyond_atr": float(79 / _atr(_break(), _TOP))},
            _HIGH,
        )
    ],
    "retest_climax_low": [
        _Fires(*(_climax_retested(), 73, 78, MIDDLE - 290, 0), _ratios(_climax_retested(), 73, _AT), MIDDLE - 300),
    ],
    "retest_break_low": [
        _Fires(*(_break_retested(), 61, 66, MIDDLE + 110, _break_retested()[61].delta), _ratios(_break_retested(), 61, _TOP), _HIGH)
    ],
    "delta_divergence_high": [
        _Fires(
            *(_DIVERGING, _SECOND_HIGH, _SECOND_HIGH + 5, MIDDLE + 140),
            *(_sum(_DIVERGING, _FIRST_HIGH + 1, _SECOND_HIGH), {}, MIDDLE + 121, _FIRST_HIGH + 1),
        )
    ],
    "exhaustion_high": [
        _Fires(
            *(_TIRED, _SECOND_HIGH, _SECOND_HIGH + 5, MIDDLE + 140, _sum(_TIRED, _FALLEN + 1, _SECOND_HIGH)),
            {"delta_ratio": _sum(_TIRED, _FALLEN + 1, _SECOND_HIGH) / _sum(_TIRED, 6, _FIRST_HIGH)},
            *(MIDDLE + 121, _FALLEN + 1),
        )
    ],
}


@pytest.mark.parametrize(("kind", "fires"), [(kind, one) for kind, every in _FIRES.items() for one in every])
def test_each_detector_returns_its_event_with_its_figures(kind: str, fires: _Fires) -> None:
    (event,) = kinds(fires.rows, kind)
    assert event._replace(figures={}) == Event(fires.place, fires.known, kind, fires.price, fires.delta, {}, fires.edge, fires.first)
    assert event.figures == pytest.approx(fires.figures)


@pytest.mark.parametrize(("kind", "fires"), [(kind, one) for kind, every in _FIRES.items() for one in every])
def test_its_mirror_image_fires_with_the_mirrored_figures(kind: str, fires: _Fires) -> None:
    (event,) = kinds(mirrored(fires.rows), mirror_kind(kind))
    edge = None if fires.edge is None else 2 * MIDDLE - fires.edge
    figures = {name: 1 - value if name == "close_position" else value for name, value in fires.figures.items()}
    assert event._replace(figures={}) == Event(
        fires.place, fires.known, mirror_kind(kind), 2 * MIDDLE - fires.price, -fires.delta, {}, edge, fires.first
    )
    assert event.figures == pytest.approx(figures)


class _Bound(NamedTuple):
    """The smallest figure between `silent` and `firing` at which a kind fires, and the rule that it follows."""

    kind: str
    rows: Callable[[int], list[Row]]
    silent: int
    firing: int
    rule: Callable[[list[Row]], bool]


_BOUNDS: dict[str, _Bound] = {
    "a climax has volume": _Bound("climax_down", _climax, 200, 3_000, lambda rows: _volume_z(rows) >= 3),
    "a climax has range": _Bound("climax_down", lambda reach: _climax(reach=reach), 3, 40, lambda rows: _range_z(rows) >= 2),
    "a climax is lower than the bars before": _Bound(
        "climax_down", _under, MIDDLE - 45, MIDDLE - 30, lambda rows: rows[_LAST].low < rows[58].low
    ),
    "a climax falls": _Bound(
        "climax_down", lambda close: _under(MIDDLE - 3, close), MIDDLE + 1, MIDDLE - 20, lambda rows: rows[_LAST].close < rows[_LAST].open
    ),
    "an effort has volume": _Bound(
        "effort_without_result", lambda volume: _effort(volume, 1), 200, 3_000, lambda rows: _volume_z(rows) >= 1.5
    ),
    "an effort has no result": _Bound(
        "effort_without_result", lambda move: _effort(3_000, move), 30, 1, lambda rows: _progress_z(rows) <= 0
    ),
    "ease moves": _Bound("ease_of_movement", lambda move: _effort(121, move), 2, 30, lambda rows: _progress_z(rows) >= 1.5),
    "ease has no volume": _Bound("ease_of_movement", lambda volume: _effort(volume, 30), 3_000, 121, lambda rows: _volume_z(rows) <= 0),
    "absorbed delta is large": _Bound(
        "absorbed_buying", _absorbed, 0, 400, lambda rows: rows[_LAST].delta >= _rank(rows, 95, lambda row: abs(row.delta))
    ),
    "absorbed delta hardly moves": _Bound(
        *("absorbed_buying", lambda move: _absorbed(400, move), 30, 0),
        lambda rows: rows[_LAST].close - rows[_LAST].open <= _rank(rows, 25, lambda row: abs(row.close - row.open)),
    ),
    "a spring goes out of the range": _Bound("spring", _spring, _LOW + 5, _LOW - 10, lambda rows: rows[_AT].low < _LOW),
    "a spring closes above the edge": _Bound(
        "spring", lambda close: _spring(close=close), _LOW - 5, _LOW + 10, lambda rows: rows[_AT].close > _LOW
    ),
    "a spring closes below the other edge": _Bound(
        "spring", lambda close: _spring(close=close), _HIGH + 5, _HIGH - 5, lambda rows: rows[_AT].close < _HIGH
    ),
    "a spring takes at most three bars": _Bound(
        "spring", lambda outside: _returned([_LOW - 5] * outside), 3, 1, lambda rows: len(rows) - _AT <= 3
    ),
    "a break closes beyond the edge": _Bound(
        *("break_up", lambda close: _break(close, low=MIDDLE + 20), MIDDLE + 100, MIDDLE + 180),
        lambda rows: rows[_TOP].close - _HIGH >= _atr(rows, _TOP) / 4,
    ),
    "a break has volume": _Bound("break_up", lambda bought: _break(bought=bought), 101, 3_000, lambda rows: _volume_z(rows, _TOP) >= 1),
    "a break has range": _Bound("break_up", _slow_break, MIDDLE + 110, MIDDLE + 50, lambda rows: _range_z(rows, _TOP) >= 1),
    "a break has delta with it": _Bound("break_up", lambda sold: _break(sold=sold), 4_000, 100, lambda rows: rows[_TOP].delta > 0),
    "a break is the first close beyond": _Bound(
        "break_up",
        lambda before: _break(before=before),
        MIDDLE + 110,
        MIDDLE + 95,
        lambda rows: rows[_TOP - 1].close - _HIGH < _atr(rows, _TOP) / 4,
    ),
    "a climax is retested near its extreme": _Bound(
        "retest_climax_low", _climax_retested, MIDDLE - 200, MIDDLE - 290, lambda rows: rows[73].low - (MIDDLE - 300) <= (_HIGH - _LOW) / 4
    ),
    "a climax is retested on less volume": _Bound(
        *("retest_climax_low", lambda volume: _climax_retested(volume=volume), 10_100, 100),
        lambda rows: rows[73].volume < rows[_AT].volume,
    ),
    "a climax is retested on less range": _Bound(
        *("retest_climax_low", lambda reach: _climax_retested(reach=reach), 250, 30),
        lambda rows: rows[73].high - rows[73].low < rows[_AT].high - rows[_AT].low,
    ),
    "a break is retested at its edge": _Bound(
        "retest_break_low", _break_retested, MIDDLE + 170, MIDDLE + 110, lambda rows: rows[61].low <= _HIGH + (_HIGH - _LOW) / 4
    ),
    "a break that is retested holds the middle": _Bound(
        "retest_break_low", _break_retested, MIDDLE - 10, MIDDLE + 110, lambda rows: rows[61].low >= MIDDLE
    ),
    "a divergence is a higher high": _Bound(
        *("delta_divergence_high", lambda second: _two_highs(second, sold=200), MIDDLE + 115, MIDDLE + 140),
        lambda rows: rows[_SECOND_HIGH].high > rows[_FIRST_HIGH].high,
    ),
    "a divergence has delta against it": _Bound(
        *("delta_divergence_high", lambda bought: _two_highs(bought=bought), 200, 50),
        lambda rows: _sum(rows, _FIRST_HIGH + 1, _SECOND_HIGH) < 0,
    ),
    "an exhaustion is a higher high": _Bound(
        *("exhaustion_high", lambda second: _two_highs(second, bought=120), MIDDLE + 115, MIDDLE + 140),
        lambda rows: rows[_SECOND_HIGH].high > rows[_FIRST_HIGH].high,
    ),
    "an exhaustion has less delta": _Bound(
        *("exhaustion_high", lambda bought: _two_highs(bought=bought), 200, 120),
        lambda rows: _sum(rows, _FALLEN + 1, _SECOND_HIGH) < _sum(rows, 6, _FIRST_HIGH),
    ),
    "an exhaustion follows delta that went with it": _Bound(
        *("exhaustion_high", lambda up: _two_highs(up=up, sold=200), 50, 150),
        lambda rows: _sum(rows, 6, _FIRST_HIGH) > 0,
    ),
}


@pytest.mark.parametrize("turned", [False, True], ids=["", "mirrored"])
@pytest.mark.parametrize("name", _BOUNDS)
def test_no_event_is_found_one_step_below_a_threshold(name: str, turned: bool) -> None:
    bound = _BOUNDS[name]
    kind = mirror_kind(bound.kind) if turned else bound.kind

    def fires(figure: int) -> bool:
        rows = bound.rows(figure)
        return bool(kinds(mirrored(rows) if turned else rows, kind))

    firing = first_that(fires, bound.silent, bound.firing)
    silent = firing + (1 if bound.silent > bound.firing else -1)
    assert (bound.rule(bound.rows(firing)), bound.rule(bound.rows(silent))) == (True, False)


_RESTS_ON: dict[str, tuple[Collection[int], Collection[int]]] = {
    "climax_down": ((0, 30, _LAST - 1, _LAST), ()),
    "effort_without_result": ((_LAST,), (0, 30, _LAST - 1)),
    "ease_of_movement": ((_LAST,), (0, 30, _LAST - 1)),
    "absorbed_buying": ((_LAST,), (0, 30, _LAST - 1)),
    "spring": ((_AT, _AT - 1, _AT - 15, 20), (0, 1)),
    "break_up": ((_TOP, _TOP - 1, _TOP - 15, 20), (0, 1)),
    "retest_climax_low": ((0, _AT, _AT + 1, 73, 78), (79,)),
    "retest_break_low": ((_TOP, _TOP + 1, 61, 66), (0, 67)),
    "delta_divergence_high": ((_FIRST_HIGH - 5, _FIRST_HIGH + 1, _SECOND_HIGH, _SECOND_HIGH + 5), (_FIRST_HIGH - 11, _SECOND_HIGH + 6)),
    "exhaustion_high": ((0, _FIRST_HIGH, _SECOND_HIGH, _SECOND_HIGH + 5), (_SECOND_HIGH + 6,)),
}
"""Bars of the first case that a kind needs to be usable, and bars that it does not need."""
_WHOLE: dict[str, tuple[Collection[int], Collection[int]]] = {
    "absorbed_buying": ((_LAST,), (_LAST - 1,)),
    "delta_divergence_high": ((_FIRST_HIGH + 1, _FALLEN, _SECOND_HIGH), (_FIRST_HIGH, _SECOND_HIGH + 1)),
    "exhaustion_high": ((6, _FIRST_HIGH, _FALLEN + 1, _SECOND_HIGH), (5, _FIRST_HIGH + 1, _FALLEN, _SECOND_HIGH + 1)),
}
"""Bars of the first case that must be complete, and bars that need not be."""


@pytest.mark.parametrize("turned", [False, True], ids=["", "mirrored"])
@pytest.mark.parametrize("kind", _FIRES)
def test_an_event_is_not_found_if_a_bar_that_it_needs_is_unusable(kind: str, turned: bool) -> None:
    rows, silent = _FIRES[kind][0].rows, _RESTS_ON[kind][0]
    rows, kind = (mirrored(rows), mirror_kind(kind)) if turned else (rows, kind)
    assert [gap for gap in silent if kinds(rows, kind, unusable=[gap])] == []


@pytest.mark.parametrize("kind", _FIRES)
def test_an_unusable_bar_outside_an_event_does_not_remove_it(kind: str) -> None:
    rows, heard = _FIRES[kind][0].rows, _RESTS_ON[kind][1]
    assert [gap for gap in heard if not kinds(rows, kind, unusable=[gap])] == []


@pytest.mark.parametrize("turned", [False, True], ids=["", "mirrored"])
@pytest.mark.parametrize("kind", _WHOLE)
def test_an_event_is_not_found_if_a_trade_of_its_delta_is_missing(kind: str, turned: bool) -> None:
    rows, (silent, heard) = _FIRES[kind][0].rows, _WHOLE[kind]
    rows, kind = (mirrored(rows), mirror_kind(kind)) if turned else (rows, kind)
    assert [gap for gap in silent if kinds(rows, kind, torn=[gap])] == []
    assert [gap for gap in heard if not kinds(rows, kind, torn=[gap])] == []


def test_a_gap_in_the_96_bars_before_a_climax_may_hide_a_lower_low() -> None:
    rows = [*quiet(97), _climax()[_LAST]]
    assert kinds(rows, "climax_down", unusable=[0])
    assert kinds(rows, "climax_down", unusable=[1]) == []


def test_nothing_is_compared_with_fewer_than_48_bars() -> None:
    assert kinds(_climax()[_LAST - 48 :], "climax_down")
    assert kinds(_climax()[_LAST - 47 :], "climax_down") == []


@pytest.mark.parametrize(
    ("kind", "alike"),
    [
        ("climax_down", lambda row: row._replace(buy=100, sell=100)),
        ("climax_down", lambda row: row._replace(high=row.close + 3, low=row.close - 3)),
        ("effort_without_result", lambda row: row._replace(buy=100, sell=100)),
        ("effort_without_result", lambda row: row._replace(open=row.close)),
        ("ease_of_movement", lambda row: row._replace(buy=100, sell=100)),
        ("ease_of_movement", lambda row: row._replace(open=row.close)),
        ("break_up", lambda row: row._replace(buy=100, sell=100)),
        ("break_up", lambda row: row._replace(high=max(row.open, row.close) + 1, low=min(row.open, row.close) - 1)),
    ],
)
def test_no_event_is_found_if_the_baseline_has_no_deviation(kind: str, alike: Callable[[Row], Row]) -> None:
    fires = _FIRES[kind][0]
    rows = [alike(row) if place < fires.place else row for place, row in enumerate(fires.rows)]
    assert kinds(rows, kind) == []


def test_bars_without_delta_are_not_absorption() -> None:
    for delta, expected in ((0, []), (1, ["absorbed_buying"])):
        rows = [row._replace(buy=row.sell) for row in quiet(_LAST)]
        found = events(series([*rows, Row(MIDDLE, MIDDLE + 3, MIDDLE - 3, MIDDLE, 100 + delta, 100)]), _LAST)
        assert [event.kind for event in found if event.kind.startswith("absorbed")] == expected


def test_a_break_may_be_retested_on_more_volume_and_range() -> None:
    rows = _break_retested()
    rows[61] = rows[61]._replace(high=MIDDLE + 279, buy=4_000)
    (event,) = kinds(rows, "retest_break_low")
    assert min(event.figures.values()) > 1


@pytest.mark.parametrize("kind", ["spring", "upthrust"])
def test_only_the_bar_that_closes_inside_again_is_an_event(kind: str) -> None:
    rows = [*_spring(), Row(MIDDLE - 90, MIDDLE - 80, _LOW - 20, MIDDLE - 85, 100, 100), *path([MIDDLE - 85, MIDDLE - 60])]
    assert [one.known_index for one in kinds(rows if kind == "spring" else mirrored(rows), kind)] == [_AT]


def test_the_extreme_of_a_spring_is_its_furthest_price() -> None:
    rows = _returned([_LOW - 5, _LOW - 5])
    rows[_AT + 1] = rows[_AT + 1]._replace(low=_LOW - 31)
    (event,) = kinds(rows, "spring")
    assert (event.bar_index, event.price, event.first_index) == (_AT + 1, _LOW - 31, _AT)
    rows[_AT + 1] = rows[_AT + 1]._replace(low=_LOW - 30)
    assert [one.bar_index for one in kinds(rows, "spring")] == [_AT]


@pytest.mark.parametrize("kind", ["spring", "upthrust"])
def test_a_close_at_the_edge_does_not_complete_a_spring(kind: str) -> None:
    for close, expected in ((_LOW, [(_AT + 1, _AT)]), (_LOW + 1, [(_AT, _AT)])):
        rows = _returned([close])
        assert [(one.known_index, one.first_index) for one in kinds(rows if kind == "spring" else mirrored(rows), kind)] == expected


@pytest.mark.parametrize("kind", ["spring", "upthrust"])
def test_the_first_bar_outside_follows_one_that_was_not(kind: str) -> None:
    for low, expected in ((_LOW, [_AT]), (_LOW - 1, [_AT - 1])):
        rows = _followed(low)
        assert [one.first_index for one in kinds(rows if kind == "spring" else mirrored(rows), kind)] == expected


_STEPPED = [
    *path([MIDDLE] * 21),
    Row(MIDDLE, MIDDLE, MIDDLE - 15, MIDDLE - 12, 10, 20),
    Row(MIDDLE - 12, MIDDLE, MIDDLE - 17, MIDDLE - 5, 9, 3),
]
"""A bar that closes below, and one that goes lower still and comes back."""


@pytest.mark.parametrize(
    ("first_edge", "second_edge", "edge", "first"),
    [
        (MIDDLE - 10, MIDDLE - 10, MIDDLE - 10, 20),
        (MIDDLE - 10, MIDDLE - 4, MIDDLE - 10, 20),
        (MIDDLE - 10, MIDDLE - 16, MIDDLE - 16, 21),
        (MIDDLE - 16, MIDDLE - 16, MIDDLE - 16, 21),
    ],
)
@pytest.mark.parametrize("turned", [False, True], ids=["", "mirrored"])
def test_a_spring_comes_back_into_the_range_that_was_frozen_before_it_left(
    first_edge: int, second_edge: int, edge: int, first: int, turned: bool
) -> None:
    def before(place: int) -> TradingRange:
        low = second_edge if place == 21 else first_edge
        high = MIDDLE + 50
        return TradingRange(*((2 * MIDDLE - low, 2 * MIDDLE - high) if turned else (high, low)), 2, 2, 0, place - 1)

    (event,) = springs(series(mirrored(_STEPPED) if turned else _STEPPED), before, 21)
    assert (event.kind, event.first_index) == ("upthrust" if turned else "spring", first)
    assert event.edge == (2 * MIDDLE - edge if turned else edge)


@pytest.mark.parametrize(("gap", "expected"), [(4, True), (5, False), (19, False), (20, False), (21, False)])
def test_a_spring_is_measured_by_bars_that_are_all_usable(gap: int, expected: bool) -> None:
    frozen = TradingRange(MIDDLE + 50, MIDDLE - 10, 2, 2, 0, 19)
    assert bool(list(springs(series(_STEPPED, unusable=[gap]), lambda _: frozen, 21))) is expected


def test_of_two_pivots_after_a_break_only_the_first_tests_it() -> None:
    for price, expected in ((MIDDLE + 151, [MIDDLE + 151]), (MIDDLE + 160, [])):
        rows = _break_retested(price)
        again = path([rows[-1].close - 14 * step for step in range(9)])
        rows += [*again, *path([again[-1].close + 15 * step for step in range(7)])]
        assert _HIGH < again[-1].low < MIDDLE + 151
        assert [event.price for event in kinds(rows, "retest_break_low")] == expected


@pytest.mark.parametrize("kind", ["retest_break_high", "retest_break_low"])
def test_a_spring_is_no_break_that_could_be_retested(kind: str) -> None:
    rows = [*_spring(), *path(range(MIDDLE - 90, MIDDLE - 29, 10)), *path(range(MIDDLE - 30, MIDDLE - 91, -10))]
    assert pivots(series(rows))[-1][1:3] == ("high", MIDDLE - 29)
    assert kinds(rows if kind.endswith("high") else mirrored(rows), kind) == []


def test_a_divergence_does_not_span_two_sessions() -> None:
    rows = _FIRES["delta_divergence_high"][0].rows
    for bars, expected in ((_FIRST_HIGH, True), (_FIRST_HIGH + 1, False), (_SECOND_HIGH, False), (_SECOND_HIGH + 1, True)):
        one = series(rows, start=DAY - bars * LENGTH)
        assert bool(of_kind(one, "delta_divergence_high")) is expected
        one = series([*quiet(97, rows[0].open), *rows], start=DAY - (97 + bars) * LENGTH)
        assert (MIDDLE + 140 in [event.price for event in of_kind(one, "delta_divergence_high")]) is expected


@given(st.integers(0, 10**6), st.sets(st.integers(0, 129), max_size=4), st.sets(st.integers(0, 129), max_size=4), st.integers(40, 129))
@settings(max_examples=20, deadline=None)
def test_later_bars_do_not_change_earlier_events(seed: int, unusable: set[int], torn: set[int], cut: int) -> None:
    one = series(walk(seed), unusable=unusable, torn=torn)
    assert events(one.until(cut)) == [event for event in events(one) if event.known_index <= cut]


@pytest.mark.parametrize("kind", _FIRES)
def test_an_event_appears_at_the_close_of_the_bar_that_makes_it_known(kind: str) -> None:
    fires = _FIRES[kind][0]
    one = series([*fires.rows, *quiet(6, fires.rows[-1].close)])
    assert fires.known in [event.known_index for event in of_kind(one.until(fires.known), kind)]
    assert fires.known not in [event.known_index for event in of_kind(one.until(fires.known - 1), kind)]


def _turned(event: Event) -> Event:
    figures = {name: 1 - value if name == "close_position" else value for name, value in event.figures.items()}
    edge = None if event.edge is None else 2 * MIDDLE - event.edge
    delta = None if event.delta is None else -event.delta
    return event._replace(kind=mirror_kind(event.kind), price=2 * MIDDLE - event.price, delta=delta, figures=figures, edge=edge)


@given(st.integers(0, 10**6), st.sets(st.integers(0, 129), max_size=3), st.sets(st.integers(0, 129), max_size=3))
@settings(max_examples=15, deadline=None)
def test_the_mirrored_market_has_the_mirrored_events(seed: int, unusable: set[int], torn: set[int]) -> None:
    rows = walk(seed)
    found = events(series(rows, unusable=unusable, torn=torn))
    mirror = sorted(
        map(_turned, events(series(mirrored(rows), unusable=unusable, torn=torn))),
        key=lambda event: (event.known_index, event.bar_index, event.kind),
    )
    assert [event._replace(figures={}) for event in mirror] == [event._replace(figures={}) for event in found]
    for one, other in zip(mirror, found, strict=True):
        assert one.figures == pytest.approx(other.figures)


def test_only_events_that_became_known_since_a_bar_are_returned() -> None:
    one = series(walk(3))
    every = events(one)
    assert [event.known_index for event in every] == sorted(event.known_index for event in every)
    since = every[len(every) // 2].known_index
    assert events(one, since) == [event for event in every if event.known_index >= since] != every


def test_a_bar_that_lacks_a_trade_has_no_delta_and_is_no_break() -> None:
    (climax,) = of_kind(series(_climax(), torn=[_LAST]), "climax_down")
    assert climax.delta is None
    (spring,) = of_kind(series(_spring(), torn=[_AT]), "spring")
    assert spring.delta is None
    assert of_kind(series(_break(), torn=[_TOP]), "break_up") == []
