"""Every candidate: when it fires, when it just does not, what silences it, and that nothing looks ahead."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics.market_structure.tape import MIDDLE, Row, kinds, least, mirror_kind, mirrored, path, quiet, series, wave
from wadm_mcp.analytics.market_structure.events import Event, events
from wadm_mcp.analytics.market_structure.parameters import DEFAULT
from wadm_mcp.analytics.market_structure.swings import pivots
from wadm_mcp.analytics.market_structure.trading_range import range_before

_LAST = 60
"""Place of the bar that is put behind the quiet ones."""
_AT = 61
"""Where the wave stands one step above its low, with three highs and three lows behind it."""
_LOW, _HIGH = MIDDLE - 101, MIDDLE + 101
"""Edges of the wave's range."""


def _climax(volume: int, reach: int = 40) -> list[Row]:
    return [*quiet(), Row(MIDDLE, MIDDLE + 1, MIDDLE - reach, MIDDLE - reach // 2, volume // 4, volume - volume // 4)]


def _spring(low: int, close: int = MIDDLE - 90) -> list[Row]:
    return [*wave(_AT), Row(MIDDLE - 80, MIDDLE - 78, low, close, 150, 90)]


def _absorbed(delta: int, move: int = 0) -> list[Row]:
    return [*quiet(), Row(MIDDLE, MIDDLE + 3, MIDDLE - 3, MIDDLE + move, 200 + delta, 200)]


def _effort(volume: int, move: int) -> list[Row]:
    return [*quiet(), Row(MIDDLE, MIDDLE + 2 + max(0, move), MIDDLE - 2, MIDDLE + move, volume // 2, volume - volume // 2)]


def _retested(price: int, volume: int = 100) -> list[Row]:
    """A climax below the wave's range, a rally, and a second low at a price."""
    fall = Row(MIDDLE - 80, MIDDLE - 79, MIDDLE - 300, MIDDLE - 250, 2_000, 8_000)
    up = path([MIDDLE - 250 + 30 * step for step in range(7)])
    down = path([MIDDLE - 70 - (MIDDLE - 71 - price) * step // 6 for step in range(7)])
    lowest = down[-1]
    down[-1] = lowest._replace(low=price, close=max(price, lowest.close), buy=volume // 2, sell=volume - volume // 2)
    back = path([down[-1].close + 30 * step for step in range(7)])
    return [*wave(_AT), fall, *up, *down, *back]


def _pulled_back(price: int) -> list[Row]:
    """A break above the range, one more step up, and the first low after it at a price."""
    rows = [*wave(50), Row(MIDDLE + 100, MIDDLE + 181, MIDDLE + 99, MIDDLE + 180, 3_000, 100)]
    up = path([MIDDLE + 180, MIDDLE + 200, MIDDLE + 220, MIDDLE + 240, MIDDLE + 260, MIDDLE + 280])
    down = path([MIDDLE + 280 - (MIDDLE + 281 - price) * step // 6 for step in range(7)])
    down[-1] = down[-1]._replace(low=price, close=price + 1)
    return [*rows, *up, *down, *path([price + 1 + 15 * step for step in range(7)])]


def _two_highs(second: int, *, bought: int = 100, sold: int = 100, fallen: int = 100) -> list[Row]:
    """A high at 10,120, a fall, and a second high; what was bought on the way down and on the way up again."""
    up = path([MIDDLE + 20 * step for step in range(7)], buy=150, sell=100)
    down = path([MIDDLE + 120 - 15 * step for step in range(7)], buy=100, sell=fallen)
    again = path([MIDDLE + 30 + (second - MIDDLE - 31) * step // 6 for step in range(7)], buy=bought, sell=sold)
    again[-1] = again[-1]._replace(high=second)
    after = path([again[-1].close - 20 * step for step in range(7)])
    before = path([MIDDLE + 60 - 10 * step for step in range(7)])
    return [*before, *up, *down, *again, *after]


_FIRES: dict[str, Callable[[], list[Row]]] = {
    "climax_down": lambda: _climax(3_000),
    "effort_without_result": lambda: _effort(3_000, 1),
    "ease_of_movement": lambda: _effort(120, 30),
    "absorbed_buying": lambda: _absorbed(400),
    "spring": lambda: _spring(_LOW - 10),
    "break_up": lambda: [*wave(50), Row(MIDDLE + 100, MIDDLE + 181, MIDDLE + 99, MIDDLE + 180, 3_000, 100)],
    "retest_climax_low": lambda: _retested(MIDDLE - 290),
    "retest_break_low": lambda: _pulled_back(MIDDLE + 110),
    "delta_divergence_high": lambda: _two_highs(MIDDLE + 140, sold=200),
    "exhaustion_high": lambda: _two_highs(MIDDLE + 140, bought=120),
}


@pytest.mark.parametrize("kind", _FIRES)
def test_it_fires_and_its_mirror_image_fires_the_mirrored(kind: str) -> None:
    rows = _FIRES[kind]()
    (event,) = kinds(rows, kind)
    (other,) = kinds(mirrored(rows), mirror_kind(kind))
    assert (other.place, other.known, other.price, other.delta) == (event.place, event.known, 2 * MIDDLE - event.price, -event.delta)
    if "close_position" in event.figures:
        assert other.figures["close_position"] == pytest.approx(1 - event.figures["close_position"])
    assert other.edge is event.edge or (event.edge is not None and other.edge == 2 * MIDDLE - event.edge)


@pytest.mark.parametrize("kind", _FIRES)
def test_a_gap_in_what_it_rests_on_silences_it(kind: str) -> None:
    rows = _FIRES[kind]()
    (event,) = kinds(rows, kind)
    assert kinds(rows, kind, unusable=[event.place]) == []
    before = event.place - 1 if event.first is None else event.first
    if kind not in ("effort_without_result", "ease_of_movement", "absorbed_buying"):
        assert kinds(rows, kind, unusable=[before]) == []


def test_a_climax_is_an_extreme_of_volume_range_and_price() -> None:
    (event,) = kinds(_climax(3_000), "climax_down")
    assert (event.place, event.known, event.price, event.delta) == (_LAST, _LAST, MIDDLE - 40, -1_500)
    volume = least(lambda volume: bool(kinds(_climax(volume), "climax_down")), 200, 3_000)
    one = series(_climax(volume))
    z = one.volume_z(_LAST)
    assert z is not None
    assert z >= DEFAULT.climax_volume > (series(_climax(volume - 1)).volume_z(_LAST) or 0)
    reach = least(lambda reach: bool(kinds(_climax(3_000, reach), "climax_down")), 3, 40)
    assert (
        (series(_climax(3_000, reach)).range_z(_LAST) or 0)
        >= DEFAULT.climax_range
        > (series(_climax(3_000, reach - 1)).range_z(_LAST) or 0)
    )


def test_a_climax_that_is_no_new_extreme_is_none() -> None:
    lower = Row(MIDDLE, MIDDLE + 1, MIDDLE - 40, MIDDLE - 1, 100, 100)
    assert kinds([*quiet(59), lower, _climax(3_000)[-1]], "climax_down") == []
    assert kinds([*quiet(59), lower._replace(low=MIDDLE - 39), _climax(3_000)[-1]], "climax_down")


def test_nothing_is_compared_with_fewer_than_its_least_bars() -> None:
    enough, few = _climax(3_000)[_LAST - DEFAULT.least :], _climax(3_000)[_LAST - DEFAULT.least + 1 :]
    assert kinds(enough, "climax_down")
    assert kinds(few, "climax_down") == []


@pytest.mark.parametrize(("kind", "volume", "move"), [("effort_without_result", 3_000, 1), ("ease_of_movement", 120, 30)])
def test_effort_and_its_result_are_weighed_by_their_scores(kind: str, volume: int, move: int) -> None:
    (event,) = kinds(_effort(volume, move), kind)
    assert event.price == MIDDLE + move
    one = series(_effort(volume, move))
    assert event.figures["progress_z"] == one.progress_z(_LAST)
    if kind == "effort_without_result":
        edge = least(lambda volume: bool(kinds(_effort(volume, 1), kind)), 200, 3_000)
        assert (series(_effort(edge - 1, 1)).volume_z(_LAST) or 0) < DEFAULT.effort <= (series(_effort(edge, 1)).volume_z(_LAST) or 0)
        assert kinds(_effort(3_000, 30), kind) == []
    else:
        edge = least(lambda move: bool(kinds(_effort(120, move), kind)), 2, 30)
        assert (series(_effort(120, edge)).progress_z(_LAST) or 0) >= DEFAULT.effort
        assert (series(_effort(120, edge - 1)).progress_z(_LAST) or 0) < DEFAULT.effort
        assert kinds(_effort(3_000, 30), kind) == []


def test_absorption_needs_a_large_delta_and_no_progress() -> None:
    rows = quiet()
    large = sorted(abs(row.buy - row.sell) for row in rows)[57 - 1]
    assert least(lambda delta: bool(kinds(_absorbed(delta), "absorbed_buying")), 0, 400) == large
    small = sorted(abs(row.close - row.open) for row in rows)[15 - 1]
    assert kinds(_absorbed(400, small), "absorbed_buying")
    assert kinds(_absorbed(400, small + 1), "absorbed_buying") == []
    assert kinds(_absorbed(400, -30), "absorbed_buying")
    assert kinds(_absorbed(400), "absorbed_buying", torn=[_LAST]) == []


def test_a_spring_goes_below_the_edge_and_closes_above_it() -> None:
    (event,) = kinds(_spring(_LOW - 10), "spring")
    assert (event.place, event.known, event.price, event.edge, event.first, event.delta) == (_AT, _AT, _LOW - 10, _LOW, _AT, 60)
    assert event.figures["bars"] == 1
    assert event.figures["penetration_atr"] == pytest.approx(10 / (series(_spring(_LOW - 10)).atr(_AT) or 0))
    assert kinds(_spring(_LOW - 1), "spring")
    assert kinds(_spring(_LOW), "spring") == []
    assert kinds(_spring(_LOW - 10, _LOW + 1), "spring")
    assert kinds(_spring(_LOW - 10, _LOW), "spring") == []


@pytest.mark.parametrize(("outside", "fires"), [(1, True), (2, True), (3, False)])
def test_a_spring_is_back_inside_within_three_bars(outside: int, fires: bool) -> None:
    more = Row(_LOW - 5, _LOW, _LOW - 20, _LOW - 5, 90, 120)
    below = [Row(MIDDLE - 80, MIDDLE - 79, _LOW - 30, _LOW - 5, 90, 120), *[more] * (outside - 1)]
    rows = [*wave(_AT), *below, Row(_LOW - 5, MIDDLE, _LOW - 6, MIDDLE - 50, 300, 90)]
    found = kinds(rows, "spring")
    assert bool(found) is fires
    if fires:
        (event,) = found
        assert (event.place, event.known, event.price, event.first) == (_AT, _AT + outside, _LOW - 30, _AT)
        assert event.figures["bars"] == outside + 1
        assert event.delta == -30 * outside + 210


def test_the_first_bar_outside_follows_one_that_was_not() -> None:
    again = [*_spring(_LOW - 10), Row(MIDDLE - 90, MIDDLE - 80, _LOW - 20, MIDDLE - 85, 100, 100)]
    assert [event.place for event in kinds(again, "spring")] == [_AT]


def test_a_break_closes_clearly_beyond_the_edge() -> None:
    def rows(close: int, volume: int = 3_000, sold: int = 100) -> list[Row]:
        return [*wave(50), Row(MIDDLE + 100, max(close, MIDDLE + 180) + 1, MIDDLE + 99, close, volume, sold)]

    close = least(lambda close: bool(kinds(rows(close), "break_up")), MIDDLE + 100, MIDDLE + 180)
    one = series(rows(close))
    beyond = DEFAULT.break_atr * (one.atr(50) or 0)
    assert close - 1 - _HIGH < beyond <= close - _HIGH
    (event,) = kinds(rows(close), "break_up")
    assert (event.edge, event.price) == (_HIGH, close)
    volume = least(lambda volume: bool(kinds(rows(MIDDLE + 180, volume), "break_up")), 110, 3_000)
    assert (series(rows(MIDDLE + 180, volume)).volume_z(50) or 0) >= DEFAULT.break_volume
    assert kinds(rows(MIDDLE + 180, 3_000, 3_000), "break_up") == []
    assert kinds(rows(MIDDLE + 180, 3_000, 2_999), "break_up")


def test_the_range_that_is_tested_is_the_one_before_the_bar() -> None:
    one = series(_FIRES["break_up"]())
    frozen = range_before(one, pivots(one), 50)
    assert frozen is not None
    assert (frozen.high, frozen.low, frozen.tests_high, frozen.tests_low, frozen.frozen) == (_HIGH, _LOW, 2, 2, 49)


def test_a_climax_is_retested_near_its_extreme_on_less_volume_and_range() -> None:
    (event,) = kinds(_retested(MIDDLE - 290), "retest_climax_low")
    assert (event.price, event.edge, event.known - event.place) == (MIDDLE - 290, MIDDLE - 300, DEFAULT.swing)
    assert event.figures["volume_ratio"] == pytest.approx(0.01)
    rows = _retested(MIDDLE - 290)
    one = series(rows)
    frozen = range_before(one, pivots(one), event.place)
    assert frozen is not None
    nearest = int(MIDDLE - 300 + DEFAULT.retest * frozen.width)
    assert kinds(_retested(nearest), "retest_climax_low")
    assert kinds(_retested(nearest + 1), "retest_climax_low") == []
    assert kinds(_retested(MIDDLE - 290, 9_999), "retest_climax_low")
    assert kinds(_retested(MIDDLE - 290, 10_000), "retest_climax_low") == []


def test_a_break_is_retested_at_its_edge() -> None:
    (event,) = kinds(_pulled_back(MIDDLE + 110), "retest_break_low")
    assert (event.price, event.edge) == (MIDDLE + 110, _HIGH)
    highest = int(_HIGH + DEFAULT.retest * (_HIGH - _LOW))
    assert kinds(_pulled_back(highest), "retest_break_low")
    assert kinds(_pulled_back(highest + 1), "retest_break_low") == []
    assert kinds(_pulled_back(MIDDLE), "retest_break_low")
    assert kinds(_pulled_back(MIDDLE - 1), "retest_break_low") == []


def test_a_divergence_is_a_new_extreme_against_the_delta_since_the_last() -> None:
    rows = _two_highs(MIDDLE + 140, sold=200)
    (event,) = kinds(rows, "delta_divergence_high")
    way = rows[event.first or 0 : event.place + 1]
    assert event.delta == sum(row.buy - row.sell for row in way) < 0
    assert (event.price, event.edge) == (MIDDLE + 140, MIDDLE + 121)
    level = kinds(_two_highs(MIDDLE + 121, sold=200), "delta_divergence_high")
    assert level == []
    assert kinds(_two_highs(MIDDLE + 122, sold=200), "delta_divergence_high")
    bought = least(lambda bought: not kinds(_two_highs(MIDDLE + 140, bought=bought), "delta_divergence_high"), 80, 200)
    at_edge = _two_highs(MIDDLE + 140, bought=bought)[event.first or 0 : event.place + 1]
    assert 0 <= sum(row.buy - row.sell for row in at_edge) < 7
    assert kinds(rows, "delta_divergence_high", torn=[event.place - 3]) == []


def test_a_divergence_does_not_span_two_sessions() -> None:
    rows = _two_highs(MIDDLE + 140, sold=200)
    (event,) = kinds(rows, "delta_divergence_high")
    early = [*quiet(96 - event.place + 3)]
    assert not [one for one in events(series([*early, *rows])) if one.kind == "delta_divergence_high" and one.price == event.price]


def test_exhaustion_is_a_new_extreme_on_a_weaker_leg() -> None:
    def rows(bought: int) -> list[Row]:
        return _two_highs(MIDDLE + 140, bought=bought)

    bought = least(lambda bought: not kinds(rows(bought), "exhaustion_high"), 120, 200)
    (event,) = kinds(rows(bought - 1), "exhaustion_high")
    assert 0 < 1 - event.figures["delta_ratio"] < 0.05
    assert kinds(rows(120), "exhaustion_high", torn=[event.place - 2]) == []


def _random(seed: int, count: int = 130) -> list[Row]:
    chance, price, rows = random.Random(seed), MIDDLE, list[Row]()
    for _ in range(count):
        steps = [price]
        for _ in range(12):
            steps.append(steps[-1] + chance.randint(-6, 6))
        buy, sell = round(chance.lognormvariate(5, 1)), round(chance.lognormvariate(5, 1))
        rows.append(Row(price, max(steps), min(steps), steps[-1], buy, sell))
        price = steps[-1]
    return rows


@given(st.integers(0, 10**6), st.sets(st.integers(0, 129), max_size=4), st.integers(40, 129))
@settings(max_examples=25, deadline=None)
def test_later_bars_change_nothing_of_what_was_told(seed: int, unusable: set[int], cut: int) -> None:
    one = series(_random(seed), unusable=unusable)
    assert events(one.until(cut)) == [event for event in events(one) if event.known <= cut]


@given(st.integers(0, 10**6), st.sets(st.integers(0, 129), max_size=3))
@settings(max_examples=15, deadline=None)
def test_the_mirrored_market_has_the_mirrored_events(seed: int, torn: set[int]) -> None:
    def told(found: list[Event]) -> set[tuple[str, int, int]]:
        # The lower median is the upper one in the mirror: what rests on a range's edge may differ by it.
        apart = ("spring", "upthrust", "break", "retest")
        return {(event.kind, event.place, event.known) for event in found if not event.kind.startswith(apart)}

    rows = _random(seed)
    mirror = events(series(mirrored(rows), torn=torn))
    assert told(events(series(rows, torn=torn))) == told([event._replace(kind=mirror_kind(event.kind)) for event in mirror])


def test_only_what_became_known_since_is_told() -> None:
    one = series(_random(3))
    every = events(one)
    since = every[len(every) // 2].known
    assert events(one, since) == [event for event in every if event.known >= since]
