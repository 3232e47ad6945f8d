"""Nodes and shape of a profile, compared with oracles that use fractions and sets of rows."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics import structure_oracles as oracles
from tests.analytics.oracles import SCALES, footprint_of, tapes, trade
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.analytics.market_structure.profile_shape import ProfileShape, ProminentNode, deviation, price_squares, profile_shape
from wadm_mcp.analytics.volume_profile import volume_profile
from wadm_mcp.model import Trade


def _shape(volumes: list[int]) -> ProfileShape:
    """The shape of rows of ten ticks with these volumes."""
    trades = [trade(100 + 10 * place, quantity, seq=place) for place, quantity in enumerate(volumes) if quantity]
    footprint = footprint_of(trades)
    profile = volume_profile(footprint, tick=1, row=10)
    assert profile is not None
    return profile_shape(profile, footprint.bar)


def _rows(nodes: tuple[ProminentNode, ...]) -> list[int]:
    return [(one.price - 100) // 10 for one in nodes]


_SMOOTH = st.lists(st.integers(0, 60), min_size=3, max_size=40)
_LUMPS = st.lists(st.sampled_from((0, 0, 1, 9, 60)).flatmap(lambda volume: st.just([volume] * 4)), min_size=2, max_size=25).map(
    lambda runs: [volume for run in runs for volume in run]
)


@given((_SMOOTH | _LUMPS).filter(lambda volumes: volumes[0] > 0 < volumes[-1]))
@settings(max_examples=60, deadline=None)
def test_nodes_are_those_that_a_second_coding_finds(volumes: list[int]) -> None:
    high, low = oracles.nodes(volumes)
    shape = _shape(volumes)
    assert (_rows(shape.high_nodes), _rows(shape.low_nodes)) == (high[:5], low[:5])
    for one in (*shape.high_nodes, *shape.low_nodes):
        assert one.share == pytest.approx(volumes[(one.price - 100) // 10] / sum(volumes))


def test_a_high_node_reaches_six_fifths_of_the_mean_row() -> None:
    assert _rows(_shape([2, 2, 2, 3, 2, 2, 2]).high_nodes) == [3]
    assert _rows(_shape([4, 4, 4, 5, 4, 4, 4]).high_nodes) == []
    assert _rows(_shape([2, 2, 2, 2, 3, 2, 2, 2, 2]).high_nodes) == [4]


def test_a_low_node_lies_between_two_high_ones() -> None:
    assert _rows(_shape([0, 1, 9, 12, 9, 1, 0, 0, 1, 9, 12, 9, 2][1:]).low_nodes) == [5]
    assert _rows(_shape([1, 9, 12, 9, 1, 0, 0, 1]).low_nodes) == []


def test_rows_that_are_all_alike_have_no_node() -> None:
    assert (_shape([5]).high_nodes, _shape([5]).low_nodes) == ((), ())


def test_at_most_five_nodes_are_returned_largest_first() -> None:
    shape = _shape([10 + place if place % 4 == 0 else 1 for place in range(33)])
    assert _rows(shape.high_nodes) == [32, 28, 24, 20, 16]
    assert len(shape.low_nodes) == 5


def test_a_plateau_counts_as_its_middle_row() -> None:
    assert _rows(_shape([1, 1, 1, 9, 9, 9, 9, 1, 1, 1]).high_nodes) == [4]
    assert _rows(_shape([1, 1, 1, 9, 9, 9, 9, 9, 1, 1, 1]).high_nodes) == [5]


def test_a_peak_stands_out_of_a_twentieth_of_the_rows_at_least_two() -> None:
    near = [1] * 59
    near[20], near[23] = 60, 50
    assert _rows(_shape(near).high_nodes) == [20, 23]
    assert _rows(_shape([*near, 1]).high_nodes) == [20]


@pytest.mark.parametrize(
    ("volumes", "shape"),
    [
        ([1, 2, 3, 9, 3, 2, 1], "D"),
        ([1, 1, 1, 1, 2, 9, 3], "P"),
        ([3, 9, 2, 1, 1, 1, 1], "b"),
        ([2, 9, 12, 9, 1, 0, 0, 1, 9, 12, 9, 2], "B"),
        ([1, 1, 1, 1, 9, 1], "P"),
        ([1, 1, 1, 9, 1, 1], "D"),
        ([1, 9, 1, 1, 1, 1], "b"),
        ([1, 1, 9, 1, 1, 1], "D"),
        ([4, 12, 4, 4, 4, 4, 14, 4, 4], "P"),
        ([5], "D"),
    ],
)
def test_a_shape_is_named_by_where_the_volume_lies(volumes: list[int], shape: str) -> None:
    assert _shape(volumes).shape == shape


def test_skew_is_the_distance_of_the_vwap_from_the_middle_of_what_traded() -> None:
    skew = _shape([3, 0, 1]).skew
    assert skew == pytest.approx((Fraction(100 * 3 + 120, 4) - Fraction(100 + 120, 2)) / 20)
    assert _shape([5]).skew is None


@given(tapes(least=1, scales=SCALES))
@settings(max_examples=60, deadline=None)
def test_the_deviation_is_truncated_two_decimals_behind_the_price(tape: list[Trade]) -> None:
    footprint = footprint_of(tape)
    assert deviation_of(footprint) == oracles.deviation(tape, footprint.scale.price + 2)


def deviation_of(footprint: Footprint) -> Decimal | None:
    return deviation(footprint.bar, price_squares(footprint))


def test_the_deviation_of_two_prices_is_half_their_distance() -> None:
    assert deviation_of(footprint_of([trade(100, 3), trade(105, 3)])) == Decimal("0.250")
    assert deviation_of(footprint_of([trade(100, 3), trade(100, 9)])) == 0
    assert deviation_of(footprint_of([trade(100, 1), trade(100, 1), trade(101, 1)])) == Decimal("0.047")


def test_nothing_traded_has_no_deviation() -> None:
    assert deviation_of(footprint_of([])) is None
