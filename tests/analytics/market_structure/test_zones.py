"""Detectors that need price rows or single trades: when they fire, when they just do not, and a comparison with oracles."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics import structure_oracles as oracles
from tests.analytics.oracles import SCALE, SCALES, footprint_of, price_of, quantity_of, tapes, trade
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.analytics.market_structure.parameters import Parameters
from wadm_mcp.analytics.market_structure.zones import (
    MIN_ORDERS,
    TakerOrder,
    fading_edges,
    large_orders,
    stacks,
    taker_orders,
    traded_beyond,
)
from wadm_mcp.model import Scale, Trade

_Ladder = list[tuple[int, int]]


def _ladder(rows: _Ladder) -> Footprint:
    """Buy and sell volume of neighbouring prices, low to high, from 100."""
    trades = [trade(100 + place, buy, "BUY", seq=place) for place, (buy, _) in enumerate(rows) if buy]
    return footprint_of([*trades, *(trade(100 + place, sell, "SELL", seq=99) for place, (_, sell) in enumerate(rows) if sell)])


def _turned(rows: _Ladder) -> _Ladder:
    return [(sell, buy) for buy, sell in reversed(rows)]


def _stacked(rows: _Ladder, **more: int) -> list[tuple[str, int, int, int]]:
    return [(one.side, one.low, one.high, one.rows) for one in stacks(_ladder(rows), tick=1, row=1, parameters=Parameters(**more))]


_BOUGHT: _Ladder = [(1, 10), (30, 10), (30, 10), (30, 5), (1, 5)]


def test_three_rows_in_which_one_side_outweighs_its_diagonal_are_a_zone() -> None:
    assert _stacked(_BOUGHT) == [("buy", 101, 103, 3)]
    assert _stacked(_turned(_BOUGHT)) == [("sell", 101, 103, 3)]


@pytest.mark.parametrize("place", [1, 2, 3])
@pytest.mark.parametrize("bought", [29, 0])
def test_a_row_that_just_does_not_outweigh_it_breaks_the_zone(place: int, bought: int) -> None:
    rows = [(bought, sell) if at == place else (buy, sell) for at, (buy, sell) in enumerate(_BOUGHT)]
    assert _stacked(rows) == []
    assert _stacked(_turned(rows)) == []


@pytest.mark.parametrize("turn", [list, _turned])
def test_a_row_nobody_traded_at_ends_a_zone(turn: type[_Ladder]) -> None:
    rows: _Ladder = [(1, 10), (30, 10), (30, 10), (0, 0), (30, 10), (30, 10), (30, 1)]
    assert _stacked(turn(rows)) == []
    assert [one[3] for one in _stacked(turn([*rows, (30, 1)]))] == [3]
    assert _stacked(turn(rows), stacked=2, diagonal=4) == []
    assert len(_stacked(turn(rows), stacked=2)) == 2


def test_a_zone_is_measured_in_rows_of_the_size_asked_for() -> None:
    fine = [(buy, sell) if half else (0, 0) for buy, sell in _BOUGHT for half in (0, 1)]
    assert [tuple(one) for one in stacks(_ladder(fine), tick=1, row=2)] == [("buy", 102, 106, 3)]
    assert list(stacks(_ladder(fine), tick=1, row=1)) == []


def test_a_row_that_outweighs_both_its_diagonals_belongs_to_both_zones() -> None:
    both: _Ladder = [(1, 90), (30, 90), (270, 90), (270, 30), (30, 9), (3, 1)]
    assert _stacked(both, stacked=2) == [("buy", 102, 103, 2)]
    assert _stacked(_turned(both), stacked=2) == [("sell", 102, 103, 2)]
    crossed: _Ladder = [(0, 9), (30, 30), (9, 9), (0, 3)]
    assert _stacked(crossed, stacked=1) == [("buy", 101, 101, 1), ("sell", 101, 101, 1)]


def test_nothing_traded_has_neither_zones_nor_fading_rows() -> None:
    assert list(stacks(footprint_of([]), tick=1, row=1)) == []
    assert list(fading_edges(footprint_of([]), tick=1, row=1)) == []


_FADED: _Ladder = [(40, 1), (40, 1), (40, 1), (20, 1), (10, 1), (6, 1)]


@pytest.mark.parametrize(
    ("rows", "fades"),
    [
        (_FADED, True),
        ([*_FADED[:-1], (7, 1)], False),
        ([*_FADED[:4], (20, 1), (6, 1)], False),
        ([*_FADED[:4], (19, 1), (6, 1)], True),
        ([*_FADED[:4], (6, 1), (6, 1)], False),
        ([*_FADED[:4], (7, 1), (6, 1)], True),
        ([*_FADED[:5], (0, 1)], True),
        ([*_FADED[:4], (0, 0), (0, 1)], False),
        ([(40, 1), (40, 1), (5, 1), (20, 1), (10, 1), (5, 1)], True),
        ([(40, 1), (40, 1), (4, 1), (20, 1), (10, 1), (5, 1)], False),
        ([(99, 1), (20, 1), (10, 1), (6, 1)], True),
        ([(20, 1), (10, 1), (1, 1)], False),
    ],
)
def test_an_edge_fades_if_volume_falls_over_three_rows_to_a_quarter_of_the_mean(rows: _Ladder, fades: bool) -> None:
    assert list(fading_edges(_ladder(rows), tick=1, row=1)) == ["high"] * fades
    assert list(fading_edges(_ladder(_turned(rows)), tick=1, row=1)) == ["low"] * fades


def test_fading_counts_the_untraded_rows_between() -> None:
    rows: _Ladder = [(40, 1), (0, 0), (40, 1), (20, 1), (10, 1), (5, 1)]
    assert list(fading_edges(_ladder(rows), tick=1, row=1)) == []
    assert list(fading_edges(_ladder([*rows[:-1], (4, 1)]), tick=1, row=1)) == ["high"]


@given(tapes(scales=SCALES), st.integers(1, 80), st.booleans())
@settings(max_examples=40, deadline=None)
def test_volume_beyond_an_edge_equals_a_count_of_its_trades(trades: list[Trade], edge: int, above: bool) -> None:
    footprint = footprint_of(trades)
    bound = Fraction(edge, 10**footprint.scale.price)
    outside = [one for one in trades if (price_of(one) > bound if above else price_of(one) < bound)]
    lots = 10**footprint.scale.quantity
    volume = sum((quantity_of(one) for one in outside), Fraction(0)) * lots
    delta = sum((quantity_of(one) * (1 if one.trade_type == "BUY" else -1) for one in outside), Fraction(0)) * lots
    assert traded_beyond(footprint, edge, above=above) == (volume, delta)


def test_what_traded_at_an_edge_is_not_beyond_it() -> None:
    footprint = _ladder([(1, 2), (4, 8), (16, 32)])
    assert traded_beyond(footprint, 101, above=True) == (48, -16)
    assert traded_beyond(footprint, 101, above=False) == (3, -1)


@given(tapes(scales=SCALES))
@settings(max_examples=60, deadline=None)
def test_trades_of_one_millisecond_and_side_in_a_row_are_one_order(trades: list[Trade]) -> None:
    assert [_written(one) for one in taker_orders(trades)] == oracles.taker_orders(trades)


def _written(one: TakerOrder) -> oracles.TakerOrder:
    prices, lots = one.scale
    notional = Fraction(one.notional, 10 ** (prices + lots))
    return oracles.TakerOrder(
        one.timestamp, one.side.value, Fraction(one.price, 10**prices), Fraction(one.quantity, 10**lots), notional, one.fills
    )


def test_an_order_ends_with_its_millisecond_and_with_its_side() -> None:
    tape = [trade(10, 1, "BUY", at=5), trade(12, 2, "BUY", at=5, fills=3), trade(11, 4, "SELL", at=5), trade(12, 8, "BUY", at=5)]
    found = taker_orders([*tape, trade(13, 16, "BUY", at=6)])
    assert [(one.price, one.quantity, one.notional, one.fills) for one in found] == [
        (12, 3, 34, 4),
        (11, 4, 44, 1),
        (12, 8, 96, 1),
        (13, 16, 208, 1),
    ]


def _large(sizes: list[int]) -> tuple[int, list[int]] | None:
    found = large_orders(taker_orders([trade(10, size, at=place) for place, size in enumerate(sizes)]))
    return None if found is None else (found[0].quantity, [one.quantity for one in found[1]])


@given(st.integers(1_000, 2_500), st.integers(2, 4_000), st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_large_orders_reach_the_99_9th_percentile(count: int, most: int, shift: int) -> None:
    sizes = [(place * 7_919 + shift) % most + 1 for place in range(count)]
    least = oracles.nearest_rank(sizes, Fraction(999, 10))
    assert _large(sizes) == (least, sorted((size for size in sizes if size >= least), reverse=True))


@pytest.mark.parametrize("count", [1_000, 2_000, 41_000])
def test_one_order_in_a_thousand_and_the_one_at_the_threshold_are_large(count: int) -> None:
    assert _large(list(range(1, count + 1))) == (count * 999 // 1000, list(range(count, count * 999 // 1000 - 1, -1)))


def test_large_orders_need_a_sample_of_1000_orders() -> None:
    sizes = list(range(1, MIN_ORDERS + 1))
    assert _large(sizes) == (999, [1_000, 999])
    assert _large(sizes[:-1]) is None


def test_orders_of_different_scales_are_ranked_by_what_they_are_worth() -> None:
    fine = [trade(100, 100 * size, at=size) for size in range(1, MIN_ORDERS)]
    for coarse, reached in ((1_995, [999, 998]), (1_997, [999, 1_997]), (1_999, [1_999, 999])):
        found = large_orders(taker_orders([*fine, trade(5, coarse, at=MIN_ORDERS, scale=Scale(0, 0))]))
        assert found is not None
        assert found[0] == found[1][-1]
        assert [one.quantity // 100 if one.scale == SCALE else one.quantity for one in found[1]] == reached
