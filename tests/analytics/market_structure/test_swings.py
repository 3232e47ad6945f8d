"""Pivots and legs compared with oracles, and the effect of a gap on them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics import structure_oracles as oracles
from tests.analytics.market_structure.tape import MIDDLE, PLACES, SOME_ROWS, Row, mirrored, path, prices, series
from wadm_mcp.analytics.market_structure.swings import Pivot, Side, alternating, legs, pivots


def _peak(*tops: int, unusable: tuple[int, ...] = ()) -> list[tuple[int, str, int]]:
    """The pivots among bars whose highs are these, and whose lows fall."""
    rows = [Row(MIDDLE, MIDDLE + top, MIDDLE - 1 - place, MIDDLE, 1, 1) for place, top in enumerate(tops)]
    return [(one.bar_index, one.side, one.price - MIDDLE) for one in pivots(series(rows, unusable=unusable))]


@given(SOME_ROWS, PLACES)
@settings(max_examples=20, deadline=None)
def test_pivots_stand_out_of_five_bars_on_each_side(rows: list[Row], unusable: set[int]) -> None:
    found = pivots(series(rows, unusable=unusable))
    assert [(one.bar_index, one.side, one.price) for one in found] == oracles.turns(prices(rows), unusable)
    assert all(one.known_index == one.bar_index + 5 for one in found)


def test_the_first_of_equals_is_the_pivot() -> None:
    assert _peak(0, 1, 2, 3, 4, 9, 9, 3, 2, 1, 0, 0) == [(5, "high", 9)]
    assert _peak(9, 1, 2, 3, 4, 9, 8, 3, 2, 1, 0) == []
    assert _peak(8, 1, 2, 3, 4, 9, 8, 3, 2, 1, 10) == []


def test_a_pivot_is_known_once_five_bars_have_closed_after_it() -> None:
    tops = (0, 1, 2, 3, 4, 9, 4, 3, 2, 1, 0)
    assert _peak(*tops) == [(5, "high", 9)]
    assert _peak(*tops[:-1]) == []
    assert _peak(*tops[1:]) == []


@pytest.mark.parametrize("gap", [1, 6, 11])
def test_a_gap_within_five_bars_prevents_a_pivot(gap: int) -> None:
    tops = (0, 0, 1, 2, 3, 4, 9, 4, 3, 2, 1, 0, 0)
    assert _peak(*tops, unusable=(0, 12)) == [(6, "high", 9)]
    assert _peak(*tops, unusable=(gap,)) == []


def test_a_falling_bar_reaches_its_high_first_and_a_rising_bar_its_low() -> None:
    quiet = [Row(MIDDLE, MIDDLE + 2, MIDDLE - 2, MIDDLE + 1, 1, 1)] * 5
    rows = [*quiet, Row(MIDDLE + 3, MIDDLE + 9, MIDDLE - 9, MIDDLE - 3, 1, 1), *quiet]
    assert [one.side for one in pivots(series(rows))] == ["high", "low"]
    assert [one.side for one in pivots(series(mirrored(rows)))] == ["low", "high"]


@given(st.lists(st.tuples(st.sampled_from(("high", "low")), st.integers(1, 9)), max_size=12))
def test_of_neighbours_on_one_side_the_furthest_stays(sides: list[tuple[Side, int]]) -> None:
    found = [Pivot(place, side, price, place + 5) for place, (side, price) in enumerate(sides)]
    assert [(one.bar_index, one.side, one.price) for one in alternating(found)] == oracles.furthest(
        [oracles.Turn(*one[:3]) for one in found]
    )


@given(SOME_ROWS, PLACES)
@settings(max_examples=20, deadline=None)
def test_legs_run_from_extreme_to_extreme_and_hold_what_traded_between(rows: list[Row], torn: set[int]) -> None:
    one = series(rows, torn=torn)
    turns = alternating(pivots(one))
    found = legs(one, turns)
    assert [leg.pivot for leg in found] == turns
    assert [(leg.bars, leg.volume, leg.delta) for leg in found[:1]] == [(None, None, None)] * len(turns[:1])
    for (before, pivot), leg in zip(pairwise(turns), found[1:], strict=True):
        way = set(range(before.bar_index + 1, pivot.bar_index + 1))
        assert leg.bars == len(way)
        assert leg.volume == (None if way & torn else sum(rows[at].volume for at in way))
        assert leg.delta == (None if way & torn else sum(rows[at].delta for at in way))


def test_a_missing_trade_in_the_previous_pivots_bar_does_not_affect_the_leg() -> None:
    rows = [*path(range(MIDDLE, MIDDLE + 8)), *path(range(MIDDLE + 7, MIDDLE - 3, -1)), *path(range(MIDDLE - 2, MIDDLE + 8))]
    high, low = (one.bar_index for one in pivots(series(rows)))
    for torn, expected in ((high, True), (high + 1, False), (low, False), (low + 1, True)):
        one = series(rows, torn=[torn])
        assert (legs(one, pivots(one))[1].volume is not None) is expected
