"""Order flow: ratios rounded once, deltas that add up, imbalances read along the diagonal."""

from __future__ import annotations

from decimal import Decimal
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wadm_mcp.analytics.order_flow import cumulative, diagonal_imbalances, imbalance_ratio, session_start
from wadm_mcp.analytics.volume_profile import Node, volume_profile
from wadm_mcp.model import DAY, Scale, Trade

from . import oracles
from .oracles import SCALE, footprint_of, tapes

volumes = st.integers(0, 50) | st.integers(0, 10**30)


@pytest.mark.parametrize(
    ("buy", "sell", "written"),
    [
        (3, 1, "0.500000"),
        (0, 7, "-1.000000"),
        (7, 0, "1.000000"),
        (5, 5, "0.000000"),
        (2, 1, "0.333333"),
        (1, 2, "-0.333333"),
        (1_000_001, 999_999, "0.000001"),
        (2_000_001, 1_999_999, "0.000000"),
        (2_000_003, 1_999_997, "0.000002"),
    ],
)
def test_the_imbalance_ratio_is_rounded_once_half_to_even(buy: int, sell: int, written: str) -> None:
    assert imbalance_ratio(buy, sell) == Decimal(written)


def test_without_volume_there_is_no_imbalance_ratio() -> None:
    assert imbalance_ratio(0, 0) is None


@given(volumes, volumes)
def test_the_imbalance_ratio_agrees_with_long_division(buy: int, sell: int) -> None:
    found = imbalance_ratio(buy, sell)
    if buy + sell:
        assert found == oracles.ratio(buy - sell, buy + sell, 6)
        assert found == -(imbalance_ratio(sell, buy) or 0)


def test_a_session_starts_at_midnight_utc() -> None:
    assert session_start(0) == 0
    assert session_start(DAY - 1) == 0
    assert session_start(DAY) == DAY
    assert session_start(1_795_356_000_123) == 1_795_305_600_000


@given(st.lists(tapes(), max_size=5), st.integers(-100, 100))
def test_cumulative_delta_is_what_the_tape_adds_up_to(tape_of_bars: list[list[Trade]], base: int) -> None:
    bars = [footprint_of(tape).bar for tape in tape_of_bars]
    deltas = [sum(one.quantity if one.trade_type == "BUY" else -one.quantity for one in tape) for tape in tape_of_bars]
    assert list(cumulative(bars, base, SCALE)) == list(accumulate(deltas, initial=base))[1:]
    finer = Scale(1, 5)
    assert list(cumulative(bars, base * 1000, finer)) == [value * 1000 for value in cumulative(bars, base, SCALE)]


def test_a_delta_is_never_rounded_to_fit() -> None:
    with pytest.raises(ValueError, match="without rounding"):
        list(cumulative([footprint_of([]).bar], 0, Scale(1, 1)))


def test_buying_is_weighed_against_selling_one_row_lower() -> None:
    nodes = [Node(100, 0, 10, 1), Node(105, 30, 0, 1)]
    assert diagonal_imbalances(nodes, 5) == [None, "buy"]
    assert diagonal_imbalances(nodes, 5, ratio=4) == [None, None]


def test_selling_is_weighed_against_buying_one_row_higher() -> None:
    assert diagonal_imbalances([Node(100, 0, 30, 1), Node(105, 10, 0, 1)], 5) == ["sell", None]


def test_a_row_may_outweigh_both_its_neighbours() -> None:
    assert diagonal_imbalances([Node(0, 9, 1, 1), Node(1, 3, 3, 1), Node(2, 1, 9, 1)], 1) == [None, "both", None]


def test_an_untraded_row_between_is_not_jumped_and_zero_is_no_opposite() -> None:
    assert diagonal_imbalances([Node(0, 0, 1, 1), Node(2, 50, 0, 1)], 1) == [None, None]
    assert diagonal_imbalances([Node(0, 1, 0, 1), Node(1, 50, 0, 1)], 1) == [None, None]
    assert diagonal_imbalances([], 1) == []


@given(tapes(least=1, largest=12), st.integers(1, 3), st.integers(1, 4))
def test_imbalances_agree_with_a_dense_ladder(tape: list[Trade], row: int, ratio: int) -> None:
    profile = volume_profile(footprint_of(tape), tick=1, row=row)
    assert profile is not None
    # One untraded row on either end, so that every traded row has neighbours.
    ladder = [[0, 0] for _ in range(15)]
    for one in tape:
        ladder[one.price // row + 1][one.trade_type == "SELL"] += one.quantity
    wanted = {
        (index - 1) * row: {
            *(["buy"] if buy >= ratio * ladder[index - 1][1] > 0 else []),
            *(["sell"] if sell >= ratio * ladder[index + 1][0] > 0 else []),
        }
        for index, (buy, sell) in enumerate(ladder[:-1])
        if buy or sell
    }
    names = {frozenset[str](): None, frozenset({"buy"}): "buy", frozenset({"sell"}): "sell", frozenset({"buy", "sell"}): "both"}
    assert diagonal_imbalances(profile.nodes, row, ratio) == [names[frozenset(wanted[node.price])] for node in profile.nodes]
