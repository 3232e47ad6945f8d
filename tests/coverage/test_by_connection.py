from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import permutations
from typing import NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.market import BYBIT, NOON, trade
from wadm_mcp.coverage import by_connection as by_connection_module
from wadm_mcp.coverage.by_connection import ConnectionCoverage
from wadm_mcp.model import SECOND, Basis, GapReason, Span, SpanReason, Trade


def made(number: int, at: int) -> Trade:
    return trade(number, at, instrument=BYBIT)


def heard(continuity: ConnectionCoverage, connection: int, *trades: Trade, at: int | None = None) -> None:
    """One frame."""
    continuity.frame_received(connection, trades[-1].timestamp if at is None else at)
    for each in trades:
        continuity.take(each)


def observed() -> ConnectionCoverage:
    continuity = ConnectionCoverage()
    heard(continuity, 1, made(1, NOON + 5))
    heard(continuity, 1, made(2, NOON + 50))
    return continuity


def stretches(continuity: ConnectionCoverage) -> list[tuple[int, int]]:
    return [(span.start - NOON, span.end - NOON) for span in continuity.spans]


def test_a_connection_covers_from_just_after_its_first_trade_to_its_last() -> None:
    assert observed().spans == [Span(NOON + 6, NOON + 50, 1, 2, Basis.OBSERVED, SpanReason.LIVE, GapReason.START)]


def test_an_old_trade_repeated_at_subscribe_is_held_and_claims_no_time() -> None:
    continuity = ConnectionCoverage()
    continuity.frame_received(1, NOON)
    assert continuity.take(made(1, NOON - 42_000))
    assert continuity.spans == []


def test_every_reconnect_is_a_gap_where_ids_do_not_count() -> None:
    continuity = observed()
    continuity.connection_lost(1, GapReason.DISCONNECT)
    assert not continuity.alive
    heard(continuity, 2, made(3, NOON + 900))
    first, second = continuity.spans
    assert (first.end, second.start, second.opened_by) == (NOON + 50, NOON + 901, "disconnect")
    assert [(gap.first, gap.last, gap.start, gap.end) for gap in continuity.missing()] == [(-1, -1, NOON + 50, NOON + 901)]


def test_connections_that_overlap_leave_no_gap() -> None:
    continuity = observed()
    heard(continuity, 2, made(3, NOON + 60))
    heard(continuity, 1, made(3, NOON + 60))
    continuity.connection_lost(1, GapReason.DISCONNECT)
    heard(continuity, 2, made(4, NOON + 90))
    assert stretches(continuity) == [(6, 90)]


def test_connections_that_met_in_one_trade_alone_overlap() -> None:
    continuity = observed()
    heard(continuity, 2, made(3, NOON + 60))
    assert stretches(continuity) == [(6, 50), (61, 61)]
    heard(continuity, 1, made(3, NOON + 60))
    assert stretches(continuity) == [(6, 60)]


def test_a_connection_that_went_mute_beside_a_living_one_is_no_gap() -> None:
    continuity = observed()
    heard(continuity, 2, made(2, NOON + 50))
    heard(continuity, 2, made(3, NOON + 900))
    continuity.connection_lost(1, GapReason.MUTE)
    assert stretches(continuity) == [(6, 900)]


def test_the_newest_trades_of_the_exchange_that_reach_over_a_gap_close_it() -> None:
    continuity = observed()
    continuity.connection_lost(1, GapReason.DISCONNECT)
    heard(continuity, 2, made(5, NOON + 900), made(6, NOON + 950))
    newest = [made(2, NOON + 50), made(3, NOON + 70), made(4, NOON + 200), made(5, NOON + 900)]
    assert continuity.prove(newest)
    assert continuity.missing() == []
    assert [span.reason for span in continuity.spans] == ["live", "repaired", "live"]


def test_newest_trades_that_reach_over_a_part_of_a_gap_close_that_part() -> None:
    continuity = observed()
    continuity.connection_lost(1, GapReason.DISCONNECT)
    heard(continuity, 2, made(5, NOON + 900), made(6, NOON + 950))
    assert continuity.prove([made(4, NOON + 200), made(5, NOON + 900)])
    assert [(gap.start - NOON, gap.end - NOON) for gap in continuity.missing()] == [(50, 201)]


def test_while_nothing_followed_a_first_trade_its_millisecond_is_not_proven() -> None:
    continuity = observed()
    continuity.connection_lost(1, GapReason.DISCONNECT)
    heard(continuity, 2, made(5, NOON + 900))
    assert not continuity.prove([made(2, NOON + 50), made(5, NOON + 900)])
    heard(continuity, 2, made(6, NOON + 901))
    assert continuity.prove([made(2, NOON + 50), made(5, NOON + 900), made(6, NOON + 901)])
    assert continuity.missing() == []


def test_of_two_connections_that_met_in_a_millisecond_each_may_have_missed_what_lies_between() -> None:
    continuity = observed()
    heard(continuity, 2, made(4, NOON + 50))
    continuity.connection_lost(1, GapReason.DISCONNECT)
    heard(continuity, 2, made(5, NOON + 90))
    assert stretches(continuity) == [(6, 50), (51, 90)]


def test_newest_trades_that_lag_behind_the_stream_prove_nothing_yet() -> None:
    continuity = observed()
    continuity.connection_lost(1, GapReason.DISCONNECT)
    heard(continuity, 2, made(5, NOON + 900))
    assert not continuity.prove([made(2, NOON + 50), made(3, NOON + 70)])
    assert len(continuity.missing()) == 1


def test_a_frame_that_could_not_be_read_may_have_held_trades() -> None:
    continuity = observed()
    continuity.frame_unreadable(1)
    heard(continuity, 1, made(4, NOON + 90))
    heard(continuity, 1, made(5, NOON + 99))
    assert stretches(continuity) == [(6, 50), (91, 99)]
    assert [span.opened_by for span in continuity.spans] == ["start", "bad_frame"]


def test_a_frame_that_could_not_be_read_beside_another_connection_is_no_gap() -> None:
    continuity = observed()
    heard(continuity, 2, made(2, NOON + 50))
    continuity.frame_unreadable(1)
    heard(continuity, 2, made(3, NOON + 70))
    heard(continuity, 1, made(4, NOON + 90))
    heard(continuity, 2, made(4, NOON + 90))
    heard(continuity, 1, made(5, NOON + 99))
    assert stretches(continuity) == [(6, 99)]


def test_a_connection_that_never_delivered_covers_nothing_and_ends_nothing() -> None:
    continuity = observed()
    continuity.connection_lost(7, GapReason.DISCONNECT)
    assert continuity.alive


def test_repeats_are_known_by_their_id_also_after_a_restart() -> None:
    continuity = ConnectionCoverage((), [made(1, NOON)])
    assert not continuity.take(made(1, NOON))
    assert continuity.take(made(2, NOON))


def remembered(continuity: ConnectionCoverage) -> int:
    return len(continuity._recent_ids) + len(continuity._older_ids)


def test_repeats_are_dropped_for_as_long_as_connections_may_be_apart_and_no_longer() -> None:
    continuity = ConnectionCoverage()
    for number in range(1_000):
        continuity.frame_received(1, NOON + 100 * number)
        assert continuity.take(made(number, NOON + 100 * number))
        behind = max(0, number - 199)
        assert not continuity.take(made(behind, NOON + 100 * behind))
        # Two times twenty seconds of ten trades each.
        assert remembered(continuity) <= 400


def test_of_a_quiet_instrument_the_newest_repeats_are_dropped_however_old() -> None:
    continuity = ConnectionCoverage()
    for number in range(500):
        continuity.frame_received(1, NOON + 60_000 * number)
        assert continuity.take(made(number, NOON + 60_000 * number))
        assert not continuity.take(made(max(0, number - 49), NOON))
    assert remembered(continuity) <= 100


def test_what_is_remembered_is_bounded_however_fast_trades_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_connection_module, "_REMEMBERED_MAX", 300)
    continuity = ConnectionCoverage()
    for number in range(5_000):
        assert continuity.take(made(number, NOON))
        assert not continuity.take(made(max(0, number - 299), NOON))
    assert remembered(continuity) <= 600


def test_an_old_trade_that_the_exchange_tells_late_is_new() -> None:
    continuity = ConnectionCoverage()
    for number in range(1_000):
        heard(continuity, 1, made(number, NOON + 100 * number))
    assert continuity.take(made(2_000, NOON + 50))


def test_of_the_newest_trades_those_are_wanted_that_no_span_claims_and_each_once() -> None:
    continuity = observed()
    heard(continuity, 1, made(3, NOON + 60_000))
    continuity.connection_lost(1, GapReason.DISCONNECT)
    heard(continuity, 2, made(5, NOON + 90_000))
    heard(continuity, 2, made(6, NOON + 120_000))
    newest = [made(10 + number, NOON + at) for number, at in enumerate((2, 5, 6, 30_000, 60_000, 75_000, 90_000, 90_001, 120_000, 130_000))]
    newest += [made(3, NOON + 60_000), made(5, NOON + 90_000), made(6, NOON + 120_000)]
    assert [trade.timestamp - NOON for trade in continuity.unclaimed(newest)] == [2, 5, 60_000, 75_000, 90_000, 120_000, 130_000]
    later = made(30, NOON + 140_000)
    assert continuity.unclaimed([*newest, later]) == [later]
    assert ConnectionCoverage().unclaimed(newest) == newest


def test_a_repair_that_has_to_be_tried_again_brings_each_trade_once() -> None:
    """A slow instrument, an outage of minutes, and newest trades that reach over it before they prove anything."""
    continuity = ConnectionCoverage()
    for number in range(60):
        heard(continuity, 1, made(number, NOON + 1_000 * number))
    continuity.connection_lost(1, GapReason.DISCONNECT)
    heard(continuity, 2, made(180, NOON + 180_000))
    newest = [made(number, NOON + 1_000 * number) for number in range(20, 181)]
    assert sum(continuity.take(each, SpanReason.REPAIRED) for each in continuity.unclaimed(newest)) == 120
    assert not continuity.prove(newest)
    heard(continuity, 2, made(181, NOON + 181_000))
    continuity.frame_received(3, NOON + 181_000)
    assert not continuity.take(made(180, NOON + 180_000))
    newest.append(made(181, NOON + 181_000))
    assert sum(continuity.take(each, SpanReason.REPAIRED) for each in continuity.unclaimed(newest)) == 0
    assert continuity.prove(newest)
    assert continuity._reported_ids == set()


class ObservedMachine(RuleBasedStateMachine):
    """`Observed` against an exchange that knows every trade it made, and the stretch that each connection really brought.

    Connections deliver in order, each at its own pace; they are cut with frames on their way, or go mute and lose what comes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.continuity = ConnectionCoverage()
        self.now = NOON
        self.made: list[Trade] = []
        self.held: set[str] = set()
        self.pipes: dict[int, deque[Trade]] = {}
        self.brought: dict[int, list[Trade]] = {}
        """What each connection brought, ended ones included."""
        self.ended: list[list[Trade]] = []
        self.connections = 0
        self.proven = False
        self.stored: dict[tuple[int, int], Span] = {}

    @rule(gap=st.sampled_from([0, 0, 1, 40, 700, 2_500]))
    def trade(self, gap: int) -> None:
        self.now += gap
        self.made.append(made(len(self.made) + 1, self.now))
        for pipe in self.pipes.values():
            pipe.append(self.made[-1])

    @precondition(lambda self: len(self.pipes) < 3)
    @rule(replays=st.booleans())
    def connect(self, replays: bool) -> None:
        self.connections += 1
        pipe = self.pipes[self.connections] = deque()
        self.brought[self.connections] = []
        if replays and self.made:
            pipe.append(self.made[-1])

    @precondition(lambda self: any(self.pipes.values()))
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        connection = data.draw(st.sampled_from([name for name, pipe in self.pipes.items() if pipe]))
        pipe = self.pipes[connection]
        count = data.draw(st.integers(1, len(pipe)))
        self.continuity.frame_received(connection, self.now)
        for _ in range(count):
            each = pipe.popleft()
            assert self.continuity.take(each) == (each.trade_id not in self.held)
            self.held.add(each.trade_id)
            if self.brought[connection] or self.now - each.timestamp <= 2 * SECOND:
                self.brought[connection].append(each)

    @precondition(lambda self: self.pipes)
    @rule(data=st.data(), reason=st.sampled_from([GapReason.DISCONNECT, GapReason.MUTE]))
    def cut(self, data: st.DataObject, reason: GapReason) -> None:
        connection = data.draw(st.sampled_from(sorted(self.pipes)))
        del self.pipes[connection]
        self.continuity.connection_lost(connection, reason)

    @precondition(lambda self: any(self.pipes.values()))
    @rule(data=st.data())
    def garble(self, data: st.DataObject) -> None:
        """A frame that cannot be read: nobody knows what was in it."""
        connection = data.draw(st.sampled_from([name for name, pipe in self.pipes.items() if pipe]))
        self.pipes[connection].popleft()
        self.continuity.frame_unreadable(connection)
        # What it brings from now on is a stretch of its own.
        self.ended.append(self.brought[connection])
        self.brought[connection] = []

    @precondition(lambda self: self.made)
    @rule(count=st.integers(1, 8), lags=st.integers(0, 4))
    def prove(self, count: int, lags: int) -> None:
        """The exchange's newest trades as its REST tells them, behind the stream or not."""
        newest = self.made[: len(self.made) - lags][-count:]
        for each in newest:
            self.continuity.take(each, SpanReason.REPAIRED)
            self.held.add(each.trade_id)
        self.continuity.prove(newest)
        self.proven = True

    @rule()
    def restart(self) -> None:
        for span in self.continuity.changed():
            self.stored[span.start, span.first_seq] = span
        recent = sorted((each for each in self.made if each.trade_id in self.held), key=lambda each: each.order)
        self.pipes.clear()
        self.brought.clear()
        self.ended.clear()
        self.continuity = ConnectionCoverage(self.stored.values(), recent)
        self.proven = True

    @invariant()
    def time_is_claimed_only_where_all_of_its_trades_are_held(self) -> None:
        for span in self.continuity.spans:
            lacking = [each for each in self.made if span.start <= each.timestamp < span.end and each.trade_id not in self.held]
            assert not lacking, (span, lacking)

    @invariant()
    def what_connections_brought_is_claimed_and_nothing_else(self) -> None:
        if self.proven:
            return
        groups = [
            _Brought({each.trade_id for each in run}, {run[0].trade_id}, run[0].timestamp + 1, run[-1].timestamp)
            for run in (*self.brought.values(), *self.ended)
            if run
        ]
        while (pair := next((pair for pair in permutations(groups, 2) if pair[0].joins(pair[1])), None)) is not None:
            one, other = pair
            groups = [group for group in groups if group is not one and group is not other]
            groups.append(_Brought(one.ids | other.ids, one.first | other.first, min(one[2], other[2]), max(one[3], other[3])))
        told = [(span.start, span.end) for span in self.continuity.spans]
        assert _milliseconds(told) == _milliseconds([(group.start, group.end) for group in groups])


class _Brought(NamedTuple):
    """What connections brought that overlap: all ids, those that each began with, and the time they vouch for."""

    ids: set[str]
    first: set[str]
    start: int
    end: int

    def joins(self, other: _Brought) -> bool:
        return bool(self.ids & other.first) or self.start <= other.start <= self.end


def _milliseconds(stretches: Iterable[tuple[int, int]]) -> set[int]:
    return {at for start, end in stretches for at in range(start, end)}


TestObserved = ObservedMachine.TestCase
