"""Volumes and candles of a simulated market, whose fills have times of their own and whose trades have the time of their first fill."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wadm_mcp.coverage.candles import (
    CandleMinute,
    Carry,
    carry_disagreements,
    consecutive,
    exact_disagreements,
    without_boundaries,
)
from wadm_mcp.model import MINUTE

MINUTES = 4
MERGED_MS = 100


class Fill(NamedTuple):
    """An execution. Fills of one `price` and side within 100 ms of the first of them are one trade."""

    at: int
    price: int
    buys: bool
    quantity: int


class Merged(NamedTuple):
    """A trade as the exchange publishes it."""

    at: int
    buys: bool
    quantity: int
    fills: int


@st.composite
def fills(draw: st.DrawFn) -> list[Fill]:
    near = st.builds(lambda minute, offset: minute * MINUTE + offset, st.integers(1, MINUTES - 1), st.integers(-130, 130))
    times = draw(st.lists(st.one_of(near, near, st.integers(0, MINUTES * MINUTE - 1)), max_size=30))
    return [Fill(at, draw(st.integers(1, 2)), draw(st.booleans()), draw(st.integers(1, 40))) for at in sorted(times)]


def merged(rows: Iterable[Fill], burnt: int = 0) -> list[Merged]:
    """The trades of these fills, several of which may be open at once. Each third one has `burnt` ids inside that were no fills."""
    opened: dict[tuple[int, bool], int] = {}
    trades: list[Merged] = []
    for row in rows:
        place = opened.get((row.price, row.buys))
        if place is None or row.at - trades[place].at >= MERGED_MS:
            opened[row.price, row.buys] = len(trades)
            trades.append(Merged(row.at, row.buys, row.quantity, 1))
        else:
            known = trades[place]
            trades[place] = known._replace(quantity=known.quantity + row.quantity, fills=known.fills + 1)
    return [one._replace(fills=one.fills + burnt) if one.fills > 1 and number % 3 == 0 else one for number, one in enumerate(trades)]


def minutes_of(trades: Sequence[Merged], rows: Sequence[Fill], *, buys: bool) -> list[CandleMinute]:
    """One side of each minute: recorded by the time of the trades, the candle by the time of the fills."""
    found: list[CandleMinute] = []
    for start in range(0, MINUTES * MINUTE, MINUTE):
        mine = [one for one in trades if one.buys is buys and start <= one.at < start + MINUTE]
        candle = sum(one.quantity for one in rows if one.buys is buys and start <= one.at < start + MINUTE)
        limit = sum(one.quantity for one in mine if one.fills > 1 and one.at >= start + MINUTE - MERGED_MS)
        found.append(CandleMinute(start, sum(one.quantity for one in mine), candle, limit))
    return found


@given(fills(), st.booleans(), st.integers(0, 3), st.integers(0, 3))
def test_a_perfect_tape_agrees_with_its_candles_wherever_the_comparison_begins(
    rows: list[Fill], buys: bool, first: int, burnt: int
) -> None:
    minutes = minutes_of(merged(rows, burnt), rows, buys=buys)
    entering = minutes[first - 1].carry_limit if first else 0
    assert carry_disagreements(minutes[first:], entering) == []
    assert carry_disagreements(minutes[first:], None) == []


@given(fills(), st.booleans())
def test_a_perfect_tape_agrees_also_where_only_the_volume_of_a_minute_limits_its_carry(rows: list[Fill], buys: bool) -> None:
    minutes = [each._replace(carry_limit=each.recorded) for each in minutes_of(merged(rows), rows, buys=buys)]
    assert carry_disagreements(minutes, 0) == []
    assert carry_disagreements([each._replace(carry_limit=None) for each in minutes], None) == []


@given(fills(), st.data())
def test_a_lost_trade_is_found_in_its_minute_if_it_is_larger_than_what_may_be_carried(rows: list[Fill], data: st.DataObject) -> None:
    trades = merged(rows)
    assume(trades)
    lost = data.draw(st.sampled_from(trades))
    larger = lost._replace(quantity=sum(one.quantity for one in trades) + 1, fills=1)
    # The trade was executed at once; its fills are all in its own candle.
    minutes = minutes_of(trades, [*rows, Fill(larger.at, 9, larger.buys, larger.quantity)], buys=larger.buys)
    (found,) = carry_disagreements(minutes, 0)
    assert found.minute.start == larger.at - larger.at % MINUTE
    assert found.most is not None
    assert found.most < found.minute.candle


@given(fills(), st.data())
def test_every_lost_trade_is_found_between_two_minutes_over_whose_ends_nothing_is_carried(rows: list[Fill], data: st.DataObject) -> None:
    trades = merged(rows)
    assume(trades)
    place = data.draw(st.integers(0, len(trades) - 1))
    buys = trades[place].buys
    left = [*trades[:place], *trades[place + 1 :]]
    assume(minutes_of(left, rows, buys=buys)[-1].carry_limit == 0)
    found = carry_disagreements(minutes_of(left, rows, buys=buys), 0)
    assert found
    assert found[0].minute.start >= trades[place].at - trades[place].at % MINUTE


sides = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 4)).map(lambda row: CandleMinute(0, *row)), min_size=1, max_size=6
).map(lambda rows: [row._replace(start=number * MINUTE) for number, row in enumerate(rows)])


@given(sides, st.integers(0, 4))
def test_the_intervals_are_those_of_every_single_carry_tried_out(minutes: list[CandleMinute], entering: int) -> None:
    expected: list[tuple[int, int, int]] = []
    possible = set(range(entering + 1))
    for start, recorded, candle, limit in minutes:
        assert limit is not None
        following = {carry + recorded - candle for carry in possible} & set(range(limit + 1))
        if not following:
            agreeing = [volume for volume in range(40) if any(0 <= carry + recorded - volume <= limit for carry in possible)]
            expected.append((start, agreeing[0], agreeing[-1]))
            following = set(range(limit + 1))
        possible = following
    found = carry_disagreements(minutes, entering)
    assert [(each.minute.start, each.least, each.most) for each in found] == expected


def test_without_a_known_limit_the_carry_has_no_upper_bound() -> None:
    minute = CandleMinute(0, recorded=5, candle=9, carry_limit=None)
    assert Carry(0, None).across(minute) == Carry(0, None)
    assert Carry(3, None).across(minute) == Carry(0, None)
    assert Carry(7, 8).across(minute) == Carry(3, 4)
    assert Carry(0, 3).across(minute) is None
    assert Carry(0, 3).disagreement(minute)[1:] == (0, 8)
    assert Carry(0, None).disagreement(CandleMinute(0, 9, 5, 1))[1:] == (8, None)


def test_after_a_minute_that_disagrees_a_new_run_begins() -> None:
    minutes = [CandleMinute(0, 5, 5), CandleMinute(MINUTE, 5, 8, 2), CandleMinute(2 * MINUTE, 5, 7), CandleMinute(3 * MINUTE, 5, 6)]
    assert [each.minute.start for each in carry_disagreements(minutes, 0)] == [MINUTE, 3 * MINUTE]


def minute(number: int, recorded: int, candle: int) -> CandleMinute:
    return CandleMinute(number * MINUTE, recorded, candle)


@pytest.mark.parametrize(
    ("minutes", "differing"),
    [
        ([minute(0, 5, 5), minute(1, 5, 5)], []),
        ([minute(0, 5, 7), minute(1, 7, 5)], []),
        ([minute(0, 5, 7), minute(1, 6, 5)], [0, 1]),
        ([minute(0, 5, 7), minute(1, 5, 7)], [0, 1]),
        ([minute(0, 5, 7), minute(2, 7, 5)], [0, 2]),
        ([minute(0, 5, 7), minute(1, 7, 5), minute(2, 5, 7)], [2]),
        ([minute(0, 7, 5), minute(1, 5, 7), minute(2, 7, 5), minute(3, 5, 7)], []),
    ],
)
def test_opposite_differences_of_neighbouring_minutes_are_a_boundary(minutes: list[CandleMinute], differing: list[int]) -> None:
    assert [each.minute.start // MINUTE for each in without_boundaries(exact_disagreements(minutes))] == differing


def test_minutes_fall_into_runs_without_a_minute_between_them() -> None:
    assert list(consecutive([0, MINUTE, 3 * MINUTE, 5 * MINUTE, 6 * MINUTE])) == [[0, MINUTE], [3 * MINUTE], [5 * MINUTE, 6 * MINUTE]]
    assert list(consecutive([])) == []
