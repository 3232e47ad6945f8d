"""The trading range compared with an oracle: what defines it, what ends it, and that later bars do not change it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics import structure_oracles as oracles
from tests.analytics.market_structure.tape import MIDDLE, SOME_ROWS, Row, mirrored, prices, series, walk, wave
from wadm_mcp.analytics.market_structure.swings import Pivot, pivots
from wadm_mcp.analytics.market_structure.trading_range import TradingRange, drift, range_before, volume_slope

_AFTER = 40


def _drawn(highs: list[int], lows: list[int], *, place: int = _AFTER, unusable: tuple[int, ...] = ()) -> tuple[int, int, int, int] | None:
    """Edges (as distances from the middle) and tests of the range between pivots at these distances."""
    found = [Pivot(place, "high", MIDDLE + price, place + 5) for place, price in enumerate(highs, 3)]
    found += [Pivot(place, "low", MIDDLE - price, place + 5) for place, price in enumerate(lows, 3)]
    found_range = range_before(series(wave(130), unusable=unusable), sorted(found), place)
    return (
        None
        if found_range is None
        else (found_range.high - MIDDLE, MIDDLE - found_range.low, found_range.tests_high, found_range.tests_low)
    )


@given(st.integers(0, 10**6), st.sets(st.integers(0, 129), max_size=2), st.integers(20, 130))
@settings(max_examples=40, deadline=None)
def test_a_range_lies_between_the_medians_of_the_newest_pivots_before_it(seed: int, unusable: set[int], place: int) -> None:
    rows = walk(seed)
    one = series(rows, unusable=unusable)
    found_range = range_before(one, pivots(one), place)
    expected = oracles.range_before(oracles.turns(prices(rows), unusable), place, unusable)
    assert (None if found_range is None else found_range[:5]) == expected
    assert found_range is None or found_range.last_index == place - 1


def test_each_edge_is_the_inner_one_of_two_middle_pivots() -> None:
    assert _drawn([100, 101, 103, 104], [100, 101, 103, 104]) == (101, 101, 4, 4)
    assert _drawn([104, 100, 102], [100, 104, 102]) == (102, 102, 3, 3)


def test_only_the_five_newest_pivots_of_a_side_draw_its_edge() -> None:
    assert _drawn([500, 100, 101, 102, 103, 104], [100, 100]) == (102, 100, 5, 2)
    assert _drawn([104, 103, 102, 101, 100, 500], [100, 100]) == (102, 100, 4, 2)


def test_an_edge_is_tested_twice_within_a_tenth_of_the_width() -> None:
    assert _drawn([100, 120], [100, 100]) == (100, 100, 2, 2)
    assert _drawn([100, 121], [100, 100]) is None
    assert _drawn([100, 100], [100, 121]) is None
    assert _drawn([100], [100, 100]) is None
    assert _drawn([100, 100], [100]) is None
    assert _drawn([], [100, 100]) is None
    assert _drawn([100, 100], []) is None


def test_a_high_edge_that_does_not_stand_above_the_low_one_is_no_range() -> None:
    assert _drawn([1, 1], [0, 0]) == (1, 0, 2, 2)
    assert _drawn([1, 1], [-1, -1]) is None
    assert _drawn([1, 1], [-2, -2]) is None


def test_a_pivot_that_is_not_yet_known_draws_nothing() -> None:
    assert _drawn([100, 100], [100, 100], place=10) == (100, 100, 2, 2)
    assert _drawn([100, 100], [100, 100], place=9) is None


def test_pivots_older_than_the_baseline_are_forgotten() -> None:
    assert _drawn([100, 100], [100, 100], place=99) == (100, 100, 2, 2)
    assert _drawn([100, 100], [100, 100], place=100) is None


@pytest.mark.parametrize(("gap", "stands"), [(2, True), (3, False), (20, False), (_AFTER - 1, False), (_AFTER, True)])
def test_a_gap_ends_the_range_it_lies_in(gap: int, stands: bool) -> None:
    assert (_drawn([100, 100], [100, 100], unusable=(gap,)) is not None) is stands


@given(st.integers(0, 10**6), st.integers(20, 130))
@settings(max_examples=20, deadline=None)
def test_the_mirrored_market_has_the_mirrored_range(seed: int, place: int) -> None:
    rows = walk(seed)
    one, other = series(rows), series(mirrored(rows))
    found_range, turned = range_before(one, pivots(one), place), range_before(other, pivots(other), place)
    if found_range is None or turned is None:
        assert found_range is turned
    else:
        assert turned == TradingRange(
            2 * MIDDLE - found_range.low, 2 * MIDDLE - found_range.high, found_range.tests_low, found_range.tests_high, *found_range[4:]
        )


def test_position_and_drift_are_in_widths() -> None:
    found = TradingRange(MIDDLE + 60, MIDDLE - 40, 2, 2, 3, 9)
    assert (found.width, found.position(MIDDLE - 40), found.position(MIDDLE + 85)) == (100, 0, 1.25)
    rows = wave(12)
    assert drift(series(rows), found) == (rows[9].close - rows[3].close) / 100 != 0


@given(SOME_ROWS, st.sets(st.integers(10, 59), max_size=20))
@settings(max_examples=10, deadline=None)
def test_the_slope_of_volume_is_the_median_of_all_slopes(rows: list[Row], empty: set[int]) -> None:
    slope = volume_slope(series([None if at in empty else row for at, row in enumerate(rows)]), TradingRange(1, 0, 2, 2, 10, 59))
    assert slope == pytest.approx(
        oracles.median_slope((at, math.log(row.volume)) for at, row in enumerate(rows[:60]) if at >= 10 and at not in empty)
    )


def test_one_bar_that_traded_has_no_slope() -> None:
    rows = wave(12)
    assert volume_slope(series([*rows[:4], *[None] * 8]), TradingRange(1, 0, 2, 2, 3, 9)) is None
    two = volume_slope(series([*rows[:5], *[None] * 7]), TradingRange(1, 0, 2, 2, 3, 9))
    assert two == pytest.approx(math.log(rows[4].volume / rows[3].volume))
