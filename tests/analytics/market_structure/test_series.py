"""Statistics of bars against a second coding in fractions and explicit sets, and where they are null."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics.market_structure.tape import DAY, MIDDLE, Row, path, quiet, series, wave
from wadm_mcp.analytics.market_structure.parameters import DEFAULT
from wadm_mcp.analytics.market_structure.series import Series
from wadm_mcp.analytics.market_structure.swings import Pivot, alternating, legs, pivots
from wadm_mcp.analytics.market_structure.trading_range import TradingRange, range_before, volume_slope

_ROW = st.builds(
    lambda open, up, down, close, buy, sell: Row(
        MIDDLE + open, MIDDLE + max(open, close) + up, MIDDLE + min(open, close) - down, MIDDLE + close, buy, sell
    ),
    *(st.integers(-30, 30), st.integers(0, 9), st.integers(0, 9), st.integers(-30, 30), st.integers(0, 500), st.integers(1, 500)),
)
_ROWS = st.lists(_ROW, min_size=60, max_size=110)
_SOME = st.sets(st.integers(0, 109), max_size=6)


def _middle(values: list[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


@given(_ROWS, _SOME)
@settings(max_examples=30, deadline=None)
def test_a_score_is_the_distance_from_the_median_in_robust_deviations(rows: list[Row], unusable: set[int]) -> None:
    one, last = series(rows, unusable=unusable), len(rows) - 1
    before = [row for place, row in enumerate(rows[:last]) if place >= last - 96 and place not in unusable]
    for told, figure in (
        (one.volume_z(last), lambda row: row.buy + row.sell),
        (one.range_z(last), lambda row: row.high - row.low),
        (one.progress_z(last), lambda row: abs(row.close - row.open)),
    ):
        logs = [math.log(1 + figure(row)) for row in before]
        spread = 1.4826 * _middle([abs(value - _middle(logs)) for value in logs]) if logs else 0
        if len(before) < 48 or last in unusable or spread == 0:
            assert told is None
        else:
            assert told == pytest.approx((math.log(1 + figure(rows[last])) - _middle(logs)) / spread)


@given(_ROWS, st.integers(1, 100))
@settings(max_examples=30, deadline=None)
def test_a_percentile_is_the_smallest_figure_that_so_many_do_not_pass(rows: list[Row], percent: int) -> None:
    last = len(rows) - 1
    volumes = [row.buy + row.sell for row in rows[max(0, last - 96) : last]]
    reached = [value for value in volumes if Fraction(sum(other <= value for other in volumes), len(volumes)) >= Fraction(percent, 100)]
    assert series(rows).percentile(last, percent, lambda candle: candle.volume) == min(reached)


@given(_ROWS, _SOME)
@settings(max_examples=30, deadline=None)
def test_the_true_range_counts_the_way_from_the_close_before(rows: list[Row], unusable: set[int]) -> None:
    one, place = series(rows, unusable=unusable), len(rows) - 1
    span = range(place - 14, place)
    true = [
        max(rows[at].high - rows[at].low, abs(rows[at].high - rows[at - 1].close), abs(rows[at].low - rows[at - 1].close)) for at in span
    ]
    told = one.atr(place)
    if unusable & {*span, place - 15}:
        assert told is None
    else:
        assert told == (pytest.approx(sum(true) / 14) if sum(true) else None)


@given(_ROWS, _SOME)
@settings(max_examples=30, deadline=None)
def test_pivots_stand_out_of_five_bars_on_each_side(rows: list[Row], unusable: set[int]) -> None:
    expected: list[tuple[int, str]] = []
    for place in range(len(rows)):
        around = [place + step for step in range(-5, 6)]
        if around[0] < 0 or around[-1] >= len(rows) or unusable & set(around):
            continue
        highs, lows = {at: rows[at].high for at in around}, {at: rows[at].low for at in around}
        if min(at for at in around if highs[at] == max(highs.values())) == place:
            expected.append((place, "high"))
        if min(at for at in around if lows[at] == min(lows.values())) == place:
            expected.append((place, "low"))
    found = pivots(series(rows, unusable=unusable))
    assert [(pivot.place, pivot.side) for pivot in found] == expected
    assert all(pivot.known == pivot.place + 5 for pivot in found)


@given(_ROWS, _SOME)
@settings(max_examples=30, deadline=None)
def test_legs_run_from_extreme_to_extreme_and_hold_what_traded_between(rows: list[Row], torn: set[int]) -> None:
    one = series(rows, torn=torn)
    turns = alternating(pivots(one))
    assert all(left.side != right.side for left, right in pairwise(turns))
    for before, leg in zip(turns, legs(one, turns)[1:], strict=False):
        way = set(range(before.place + 1, leg.pivot.place + 1))
        assert leg.bars == len(way)
        assert leg.volume == (None if way & torn else sum(rows[at].buy + rows[at].sell for at in way))
        assert leg.delta == (None if way & torn else sum(rows[at].buy - rows[at].sell for at in way))


@given(st.lists(st.tuples(st.sampled_from(("high", "low")), st.integers(1, 9)), max_size=12))
def test_of_neighbours_on_one_side_the_furthest_stays(given_: list[tuple[str, int]]) -> None:
    found = [Pivot(place, side, price, place + 5) for place, (side, price) in enumerate(given_)]  # pyright: ignore[reportArgumentType]
    runs: list[list[Pivot]] = []
    for pivot in found:
        if runs and runs[-1][0].side == pivot.side:
            runs[-1].append(pivot)
        else:
            runs.append([pivot])
    furthest = [max(run, key=lambda one: one.price if one.side == "high" else -one.price) for run in runs]
    assert alternating(found) == furthest


@given(_ROWS, _SOME)
@settings(max_examples=30, deadline=None)
def test_a_range_lies_between_the_medians_of_the_newest_pivots_before_it(rows: list[Row], unusable: set[int]) -> None:
    one, place = series(rows, unusable=unusable), len(rows)
    found = pivots(one)
    told = range_before(one, found, place)
    gaps = [at for at in unusable if place - 96 <= at < place]
    known = [pivot for pivot in found if pivot.known < place and pivot.place >= place - 96 and all(pivot.place > gap for gap in gaps)]
    edges: list[int] = []
    tested = True
    sides = [sorted([pivot.price for pivot in known if pivot.side == side][-5:]) for side in ("high", "low")]
    if all(len(side) >= 2 for side in sides):
        edges = [side[(len(side) - 1) // 2] for side in sides]
        width = Fraction(edges[0] - edges[1])
        tested = all(sum(abs(price - edge) <= width / 10 for price in side) >= 2 for side, edge in zip(sides, edges, strict=True))
    if not edges or edges[0] <= edges[1] or not tested:
        assert told is None
    else:
        assert told is not None
        assert [told.high, told.low] == edges


@given(_ROWS)
@settings(max_examples=10, deadline=None)
def test_the_slope_of_volume_is_the_median_of_all_slopes(rows: list[Row]) -> None:
    one = series(rows)
    told = volume_slope(one, TradingRange(1, 0, 2, 2, 10, len(rows) - 1))
    points = [(at, math.log(row.buy + row.sell)) for at, row in enumerate(rows) if at >= 10]
    slopes = [(right[1] - left[1]) / (right[0] - left[0]) for left, right in combinations(points, 2)]
    assert told == pytest.approx(_middle(slopes))


def test_a_bar_without_trades_stands_still_at_the_close_before() -> None:
    one = series([None, *quiet(2), None, *quiet(1)])
    assert len(one) == 4
    still = one[2]
    assert (still.open, still.high, still.low, still.close) == (one[1].close,) * 4
    assert (still.volume, still.delta, still.close_position) == (0, 0, 0.5)


def test_cumulative_delta_counts_from_midnight_and_is_null_behind_a_missing_trade() -> None:
    rows = wave(100)
    one = series(rows, torn=[97])
    assert one.cumulative_delta(95) == sum(row.buy - row.sell for row in rows[:96])
    assert one.cumulative_delta(96) == rows[96].buy - rows[96].sell
    assert [one.cumulative_delta(place) for place in (97, 99)] == [None, None]
    assert series(rows, start=DAY + 900_000).cumulative_delta(3) is None


def test_nothing_is_said_where_all_bars_are_alike() -> None:
    one = series([Row(MIDDLE, MIDDLE + 1, MIDDLE - 1, MIDDLE, 5, 5)] * 60)
    assert (one.volume_z(59), one.range_z(59), one.progress_z(59)) == (None, None, None)


def test_a_range_ends_at_a_gap() -> None:
    rows = wave(70)
    assert range_before(series(rows), pivots(series(rows)), 70) is not None
    torn = series(rows, unusable=[45])
    assert range_before(torn, pivots(torn), 70) is None


def test_a_series_until_a_bar_knows_nothing_later() -> None:
    one = series(path([MIDDLE + place for place in range(30)]))
    assert isinstance(one.until(9), Series)
    assert one.until(9).candles == one.candles[:10]
    assert DEFAULT.baseline == 96
