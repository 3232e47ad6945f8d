from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics.oracles import footprint_of, tapes, trade
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.analytics.market_structure.zones import FEWEST_ORDERS, beyond, fading, large, orders, stacks
from wadm_mcp.model import Trade


def _ladder(rows: list[tuple[int, int]]) -> Footprint:
    """Buy and sell volume of neighbouring prices, low to high, from 100."""
    trades = [trade(100 + place, buy, "BUY", seq=place) for place, (buy, _) in enumerate(rows) if buy]
    return footprint_of([*trades, *(trade(100 + place, sell, "SELL", seq=99) for place, (_, sell) in enumerate(rows) if sell)])


def _stacked(ladder: Footprint) -> list[tuple[str, int, int, int]]:
    return [(one.side, one.low, one.high, one.rows) for one in stacks(ladder, tick=1, row=1)]


def test_three_rows_in_which_buyers_outweigh_their_diagonal_are_a_zone() -> None:
    rows = [(1, 10), (30, 10), (30, 10), (30, 5), (1, 5)]
    assert _stacked(_ladder(rows)) == [("buy", 101, 103, 3)]


@pytest.mark.parametrize("broken", [(29, 10), (0, 10)])
def test_a_row_that_just_does_not_outweigh_it_breaks_the_zone(broken: tuple[int, int]) -> None:
    assert _stacked(_ladder([(1, 10), (30, 10), broken, (30, 5), (1, 5)])) == []


def test_sellers_are_weighed_against_the_row_above() -> None:
    rows = [(1, 30), (10, 30), (10, 30), (10, 1)]
    assert _stacked(_ladder(rows)) == [("sell", 100, 102, 3)]


def test_a_row_nobody_traded_at_ends_a_zone() -> None:
    rows = [(1, 10), (30, 10), (30, 10), (0, 0), (30, 10), (30, 1)]
    assert _stacked(_ladder(rows)) == []


def test_buyers_that_thin_out_toward_the_high_are_fading() -> None:
    rows = [(40, 1), (40, 1), (40, 1), (20, 1), (10, 1), (5, 1)]
    assert list(fading(_ladder(rows), tick=1, row=1)) == ["high"]
    assert list(fading(_ladder([*rows[:-1], (7, 1)]), tick=1, row=1)) == []
    assert list(fading(_ladder([*rows[:3], (10, 1), (10, 1), (5, 1)]), tick=1, row=1)) == []
    assert list(fading(_ladder(rows[3:]), tick=1, row=1)) == []
    assert list(fading(_ladder([(sell, buy) for buy, sell in reversed(rows)]), tick=1, row=1)) == ["low"]


@given(tapes(), st.integers(1, 80), st.booleans())
def test_what_traded_beyond_an_edge_is_what_traded_there(trades: list[Trade], edge: int, above: bool) -> None:
    outside = [one for one in trades if (one.price > edge if above else one.price < edge)]
    volume = sum(one.quantity for one in outside)
    delta = sum(one.quantity if one.trade_type == "BUY" else -one.quantity for one in outside)
    assert beyond(footprint_of(trades), edge, above=above) == (volume, delta)


@given(tapes())
def test_trades_of_one_millisecond_and_side_in_a_row_are_one_order(trades: list[Trade]) -> None:
    expected = [list(group) for _, group in groupby(trades, key=lambda one: (one.timestamp, one.trade_type))]
    found = orders(trades)
    assert [(one.timestamp, one.side) for one in found] == [(group[0].timestamp, group[0].trade_type) for group in expected]
    for one, group in zip(found, expected, strict=True):
        assert one.notional == sum(each.price * each.quantity for each in group)
        assert (one.price, one.fills) == (group[-1].price, sum(each.fills for each in group))


@given(st.integers(0, 30), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_a_large_order_reaches_what_all_but_one_in_a_thousand_do_not_pass(more: int, shift: int) -> None:
    count = FEWEST_ORDERS + 40 * more
    sizes = [(place * 7_919 + shift) % count + 1 for place in range(count)]
    found = large(orders([trade(10, size, at=place) for place, size in enumerate(sizes)]))
    assert found is not None
    threshold, reached = found
    passing = [size for size in sizes if sum(other <= size for other in sizes) * 1_000 >= 999 * count]
    assert threshold.quantity == min(passing)
    assert [order.quantity for order in reached] == sorted(passing, reverse=True)


def test_one_in_a_thousand_needs_a_thousand() -> None:
    assert large(orders([trade(10, place + 1, at=place) for place in range(FEWEST_ORDERS - 1)])) is None
