"""Statistics of bars compared with oracles, and when they are null."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics import structure_oracles as oracles
from tests.analytics.market_structure.tape import DAY, LENGTH, MIDDLE, PLACES, SCALE, SOME_ROWS, Row, bar, prices, quiet, series, wave
from wadm_mcp.analytics.footprint import Bar
from wadm_mcp.analytics.market_structure.parameters import Parameters
from wadm_mcp.analytics.market_structure.series import CoveredBar, Series, SeriesBar
from wadm_mcp.model import Scale


@given(SOME_ROWS, PLACES)
@settings(max_examples=20, deadline=None)
def test_a_score_is_the_distance_from_the_median_in_robust_deviations(rows: list[Row], unusable: set[int]) -> None:
    one, last = series(rows, unusable=unusable), len(rows) - 1
    before = [row for place, row in enumerate(rows[:last]) if place >= last - 96 and place not in unusable]
    for value, figure in (
        (one.volume_z(last), lambda row: row.volume),
        (one.range_z(last), lambda row: row.high - row.low),
        (one.progress_z(last), lambda row: abs(row.close - row.open)),
    ):
        expected = None if last in unusable else oracles.robust_z([figure(row) for row in before], figure(rows[last]))
        assert value == (None if expected is None else pytest.approx(expected))


@given(SOME_ROWS, PLACES, st.integers(1, 100))
@settings(max_examples=20, deadline=None)
def test_percentile_uses_nearest_rank(rows: list[Row], unusable: set[int], percent: int) -> None:
    one, last = series(rows, unusable=unusable), len(rows) - 1
    before = [row.volume for place, row in enumerate(rows[:last]) if place >= last - 96 and place not in unusable]
    expected = oracles.nearest_rank(before, Fraction(percent)) if len(before) >= 48 and last not in unusable else None
    assert one.percentile(last, percent, lambda one: one.volume) == expected


@given(SOME_ROWS, PLACES)
@settings(max_examples=20, deadline=None)
def test_the_true_range_counts_the_way_from_the_close_before(rows: list[Row], unusable: set[int]) -> None:
    atr, expected = series(rows, unusable=unusable).atr(len(rows) - 1), oracles.average_true_range(prices(rows), len(rows) - 1)
    if not expected or unusable & set(range(len(rows) - 16, len(rows) - 1)):
        assert atr is None
    else:
        assert atr == pytest.approx(float(expected))


def test_the_true_range_needs_fourteen_bars_and_the_close_before_them() -> None:
    one = series(quiet(20))
    assert [one.atr(place) is None for place in (14, 15)] == [True, False]
    assert [series(quiet(20), unusable=[gap]).atr(19) is None for gap in (3, 4, 18, 19)] == [False, True, True, False]
    assert series([Row(MIDDLE, MIDDLE, MIDDLE, MIDDLE, 1, 1)] * 20).atr(19) is None


def test_a_baseline_has_the_96_usable_bars_before_the_judged_one() -> None:
    loud = Row(MIDDLE, MIDDLE + 90, MIDDLE - 90, MIDDLE, 9_000, 9_000)
    inside, outside = [loud, *quiet(96)], [loud, *quiet(97)]
    for rows, reached in ((inside, True), (outside, False)):
        assert (series(rows).percentile(len(rows) - 1, 100, lambda one: one.volume) == 18_000) is reached
        assert series(rows, unusable=[0]).percentile(len(rows) - 1, 100, lambda one: one.volume) != 18_000


def test_nothing_is_compared_with_fewer_than_48_usable_bars_or_in_an_unusable_one() -> None:
    def scores(unusable: range | list[int]) -> tuple[bool, ...]:
        one = series(quiet(60), unusable=unusable)
        return tuple(
            value is None for value in (one.volume_z(59), one.range_z(59), one.progress_z(59), one.percentile(59, 50, lambda _: 1))
        )

    assert scores(range(11)) == (False,) * 4
    assert scores(range(12)) == (True,) * 4
    assert scores([59]) == (True,) * 4


def test_scores_are_none_if_the_median_deviation_is_zero() -> None:
    one = series([*[Row(MIDDLE, MIDDLE + 1, MIDDLE - 1, MIDDLE, 5, 5)] * 59, Row(MIDDLE, MIDDLE + 50, MIDDLE, MIDDLE + 40, 900, 5)])
    assert (one.volume_z(59), one.range_z(59), one.progress_z(59)) == (None, None, None)


def test_a_bar_is_usable_from_95_percent_of_its_time_on() -> None:
    covered_bars = [CoveredBar(DAY + place, DAY + place + 1, bar(row), 0.95 - 0.0001 * place, False) for place, row in enumerate(quiet(2))]
    one = Series(covered_bars, SCALE)
    assert [one.usable(0), one.usable(1)] == [True, False]
    assert [one.all_usable(0, 0), one.all_usable(0, 1), one.all_usable(-1, 0)] == [True, False, False]


def test_bars_are_whole_only_where_not_one_trade_is_missing() -> None:
    one = series(quiet(4), torn=[2])
    assert [one.all_complete(*ends) for ends in ((0, 1), (0, 2), (2, 3), (3, 3), (-1, 1))] == [True, False, False, True, False]
    assert one.all_usable(0, 3)


def test_a_bar_without_trades_stands_still_at_the_close_before() -> None:
    one = series([None, *quiet(2), None, *quiet(1)], unusable=[3])
    assert len(one) == 4
    close = quiet(2)[1].close
    assert one[2] == SeriesBar(DAY + 3 * LENGTH, DAY + 4 * LENGTH, close, close, close, close, 0, 0, 0.9, False, 0, 0)
    assert (one[2].range, one[2].move, one[2].close_position) == (0, 0, 0.5)


def test_an_empty_bar_counts_as_one_without_trades() -> None:
    covered_bars = [CoveredBar(DAY, DAY + 1, Bar(SCALE), 1.0, True), CoveredBar(DAY + 1, DAY + 2, bar(quiet(1)[0]), 1.0, True)]
    assert [one.start for one in Series(covered_bars, SCALE).bars] == [DAY + 1]
    assert [one.volume for one in Series(covered_bars[::-1], SCALE).bars] == [quiet(1)[0].volume, 0]


def test_bars_are_written_at_the_series_scale() -> None:
    row = Row(MIDDLE, MIDDLE + 4, MIDDLE - 6, MIDDLE + 2, 30, 50)
    (only,) = Series([CoveredBar(DAY, DAY + LENGTH, bar(row), 1.0, True)], Scale(3, 5)).bars
    assert only[2:8] == (10 * row.open, 10 * row.high, 10 * row.low, 10 * row.close, 100 * row.volume, 100 * row.delta)
    assert (only.range, only.move, only.close_position) == (100, 20, 0.8)


def test_cumulative_delta_counts_from_midnight_and_is_null_behind_a_missing_trade() -> None:
    rows = wave(100)
    one = series(rows, torn=[97])
    assert one.cumulative_delta(95) == sum(row.delta for row in rows[:96])
    assert one.cumulative_delta(96) == rows[96].delta
    assert [one.cumulative_delta(place) for place in (97, 99)] == [None, None]


def test_a_day_the_series_did_not_see_begin_has_no_cumulative_delta() -> None:
    one = series(wave(100), start=DAY + LENGTH)
    assert [one.session_first(place) for place in (0, 94, 95, 99)] == [None, None, 95, 95]
    assert [one.cumulative_delta(place) for place in (0, 94)] == [None, None]
    assert one.cumulative_delta(95) == wave(100)[95].delta


def test_a_series_until_a_bar_knows_nothing_later() -> None:
    one = Series(
        [CoveredBar(DAY + place, DAY + place + 1, bar(row), 1.0, True) for place, row in enumerate(quiet(30))], SCALE, Parameters(swing=2)
    )
    earlier = one.until(9)
    assert earlier.bars == one.bars[:10]
    assert (earlier.scale, earlier.parameters) == (SCALE, Parameters(swing=2))
    assert len(one) == 30
