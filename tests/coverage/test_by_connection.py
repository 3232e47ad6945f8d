from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import permutations
from typing import NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.coverage.test_silence import random_times
from tests.market import BYBIT, NOON, trade
from wadm_mcp.coverage import by_connection as by_connection_module
from wadm_mcp.coverage import silence as silence_module
from wadm_mcp.coverage.by_connection import ConnectionCoverage
from wadm_mcp.coverage.judge import is_covered, judge
from wadm_mcp.coverage.spans import Basis, GapReason, IdRange, Span, SpanReason
from wadm_mcp.model import HOUR, MINUTE, SECOND, Trade, Window
from wadm_mcp.storage.store import WHOLE


def trade_at(number: int, at: int) -> Trade:
    return trade(number, at, instrument=BYBIT)


def deliver_frame(coverage: ConnectionCoverage, connection: int, *trades: Trade, at: int | None = None) -> None:
    """A connection delivers one frame."""
    coverage.frame_received(connection, trades[-1].timestamp if at is None else at)
    for each in trades:
        coverage.take(each)


def two_trades_on_one_connection() -> ConnectionCoverage:
    coverage = ConnectionCoverage()
    deliver_frame(coverage, 1, trade_at(1, NOON + 5))
    deliver_frame(coverage, 1, trade_at(2, NOON + 50))
    return coverage


def stretches(coverage: ConnectionCoverage) -> list[tuple[int, int]]:
    return [(span.start - NOON, span.end - NOON) for span in coverage.spans]


def test_a_connection_covers_the_time_between_its_first_and_its_last_trade() -> None:
    assert two_trades_on_one_connection().spans == [Span(NOON + 6, NOON + 50, 1, 2, Basis.OBSERVED, SpanReason.LIVE, GapReason.START)]


def test_an_old_trade_repeated_at_subscribe_is_recorded_and_covers_no_time() -> None:
    coverage = ConnectionCoverage()
    coverage.frame_received(1, NOON)
    assert coverage.take(trade_at(1, NOON - 42_000))
    assert coverage.spans == []


def test_every_reconnect_is_a_gap_where_ids_do_not_count() -> None:
    coverage = two_trades_on_one_connection()
    coverage.connection_lost(1, GapReason.DISCONNECT)
    assert not coverage.alive
    deliver_frame(coverage, 2, trade_at(3, NOON + 900))
    first, second = coverage.spans
    assert (first.end, second.start, second.opened_by) == (NOON + 50, NOON + 901, "disconnect")
    assert [(gap.first, gap.last, gap.start, gap.end) for gap in coverage.missing()] == [(-1, -1, NOON + 50, NOON + 901)]


def test_connections_that_overlap_leave_no_gap() -> None:
    coverage = two_trades_on_one_connection()
    deliver_frame(coverage, 2, trade_at(3, NOON + 60))
    deliver_frame(coverage, 1, trade_at(3, NOON + 60))
    coverage.connection_lost(1, GapReason.DISCONNECT)
    deliver_frame(coverage, 2, trade_at(4, NOON + 90))
    assert stretches(coverage) == [(6, 90)]


def test_connections_that_share_only_one_trade_overlap() -> None:
    coverage = two_trades_on_one_connection()
    deliver_frame(coverage, 2, trade_at(3, NOON + 60))
    assert stretches(coverage) == [(6, 50), (61, 61)]
    deliver_frame(coverage, 1, trade_at(3, NOON + 60))
    assert stretches(coverage) == [(6, 60)]


def test_a_stale_connection_beside_a_live_one_is_no_gap() -> None:
    coverage = two_trades_on_one_connection()
    deliver_frame(coverage, 2, trade_at(2, NOON + 50))
    deliver_frame(coverage, 2, trade_at(3, NOON + 900))
    coverage.connection_lost(1, GapReason.MUTE)
    assert stretches(coverage) == [(6, 900)]


def test_newest_trades_that_span_a_gap_close_it() -> None:
    coverage = two_trades_on_one_connection()
    coverage.connection_lost(1, GapReason.DISCONNECT)
    deliver_frame(coverage, 2, trade_at(5, NOON + 900), trade_at(6, NOON + 950))
    newest = [trade_at(2, NOON + 50), trade_at(3, NOON + 70), trade_at(4, NOON + 200), trade_at(5, NOON + 900)]
    assert coverage.prove(newest)
    assert coverage.missing() == []
    assert [span.reason for span in coverage.spans] == ["live", "repaired", "live"]


def test_newest_trades_that_span_a_part_of_a_gap_close_that_part() -> None:
    coverage = two_trades_on_one_connection()
    coverage.connection_lost(1, GapReason.DISCONNECT)
    deliver_frame(coverage, 2, trade_at(5, NOON + 900), trade_at(6, NOON + 950))
    assert coverage.prove([trade_at(4, NOON + 200), trade_at(5, NOON + 900)])
    assert [(gap.start - NOON, gap.end - NOON) for gap in coverage.missing()] == [(50, 201)]


def test_the_millisecond_of_a_first_trade_is_not_covered_until_its_connection_delivers_a_later_one() -> None:
    coverage = two_trades_on_one_connection()
    coverage.connection_lost(1, GapReason.DISCONNECT)
    deliver_frame(coverage, 2, trade_at(5, NOON + 900))
    assert coverage.prove([trade_at(2, NOON + 50), trade_at(5, NOON + 900)])
    assert coverage.missing() == []
    assert stretches(coverage) == [(6, 50), (50, 900), (900, 900)]
    deliver_frame(coverage, 2, trade_at(6, NOON + 901))
    assert stretches(coverage) == [(6, 50), (50, 900), (900, 901)]


def test_a_connection_that_ends_with_its_first_trade_leaves_the_millisecond_of_that_trade_a_gap() -> None:
    coverage = two_trades_on_one_connection()
    coverage.connection_lost(1, GapReason.DISCONNECT)
    deliver_frame(coverage, 2, trade_at(5, NOON + 900))
    coverage.connection_lost(2, GapReason.DISCONNECT)
    coverage.prove([trade_at(2, NOON + 50), trade_at(5, NOON + 900)])
    deliver_frame(coverage, 3, trade_at(7, NOON + 1_000))
    assert [(gap.start - NOON, gap.end - NOON) for gap in coverage.missing()] == [(900, 1_001)]


def busy(coverage: ConnectionCoverage, *connections: int, until: int = NOON + 2_000) -> int:
    """Every connection delivers twenty trades a second for two seconds; returns the number of the last one."""
    for at in range(until - 2_000, until, 50):
        for connection in connections:
            deliver_frame(coverage, connection, trade_at((at - NOON) // 50, at))
    return (until - NOON) // 50 - 1


def test_a_suspect_silence_of_every_connection_is_a_gap_although_none_of_them_ended() -> None:
    coverage = ConnectionCoverage()
    last = busy(coverage, 1, 2)
    end = coverage.spans[0].end
    for number, at in ((last + 500, NOON + 40_000), (last + 501, NOON + 40_050)):
        deliver_frame(coverage, 1, trade_at(number, at))
        deliver_frame(coverage, 2, trade_at(number, at))
    (gap,) = coverage.missing()
    assert (gap.start, gap.end) == (end, NOON + 40_001)
    assert [span.opened_by for span in coverage.spans] == ["start", "silence"]


def test_a_silence_that_is_not_suspect_is_covered() -> None:
    coverage = ConnectionCoverage()
    last = busy(coverage, 1, 2)
    deliver_frame(coverage, 2, trade_at(last + 1, NOON + 1_950 + coverage.silence_limit.ms))
    assert coverage.missing() == []


def test_a_silent_connection_beside_one_that_delivers_is_no_gap() -> None:
    coverage = ConnectionCoverage()
    busy(coverage, 1, 2)
    last = 0
    for until in range(NOON + 4_000, NOON + 42_000, 2_000):
        last = busy(coverage, 2, until=until)
    breaks = coverage.breaks
    deliver_frame(coverage, 1, trade_at(last, NOON + 39_950))
    deliver_frame(coverage, 1, trade_at(last + 1, NOON + 40_000))
    assert coverage.missing() == []
    assert coverage.breaks == breaks


def test_a_connection_that_was_silent_continues_no_other_one() -> None:
    """Connection 1 was silent while 2 delivered, and speaks just after 2 fell silent: nobody knows what came between."""
    coverage = ConnectionCoverage()
    busy(coverage, 1, 2)
    last = 0
    for until in range(NOON + 4_000, NOON + 12_000, 2_000):
        last = busy(coverage, 2, until=until)
    deliver_frame(coverage, 1, trade_at(last + 2, NOON + 10_050))
    assert [(gap.start - NOON, gap.end - NOON) for gap in coverage.missing()] == [(9_950, 10_051)]
    # It was not lost after all.
    deliver_frame(coverage, 2, trade_at(last + 1, NOON + 10_000))
    deliver_frame(coverage, 2, trade_at(last + 2, NOON + 10_050))
    assert coverage.missing() == []


def test_a_connection_given_up_as_stale_does_not_make_the_silence_of_the_other_one_pass() -> None:
    coverage = ConnectionCoverage()
    last = busy(coverage, 1, 2)
    coverage.connection_lost(1, GapReason.MUTE)
    deliver_frame(coverage, 3, trade_at(last + 400, NOON + 35_000))
    deliver_frame(coverage, 2, trade_at(last + 500, NOON + 40_000))
    deliver_frame(coverage, 3, trade_at(last + 500, NOON + 40_000))
    deliver_frame(coverage, 2, trade_at(last + 501, NOON + 40_050))
    assert coverage.missing()[0][2:] == (NOON + 1_950, NOON + 35_001)


def test_a_frame_that_arrives_late_is_no_silence() -> None:
    coverage = ConnectionCoverage()
    last = busy(coverage, 1)
    coverage.frame_received(1, NOON + 60_000)
    for number in range(1, 1_000):
        coverage.take(trade_at(last + number, NOON + 1_950 + 50 * number))
    assert coverage.missing() == []


def hourly(*numbers: int) -> list[Trade]:
    return [trade_at(number, NOON + HOUR * number) for number in numbers]


def test_an_instrument_that_trades_once_an_hour_is_covered_once_its_pace_is_known() -> None:
    coverage = ConnectionCoverage()
    deliver_frame(coverage, 1, *hourly(60))
    coverage.prove(hourly(*range(61)))
    deliver_frame(coverage, 1, *hourly(61))
    deliver_frame(coverage, 1, *hourly(62))
    assert coverage.missing() == []
    assert coverage.silence_limit.ms > 6 * HOUR


def test_one_list_of_recent_trades_proves_a_silence_while_the_pace_is_unknown() -> None:
    coverage = ConnectionCoverage()
    deliver_frame(coverage, 1, *hourly(0))
    coverage.prove(hourly(0))
    for number in range(1, 4):
        deliver_frame(coverage, 1, *hourly(number))
        assert [span.opened_by for span in coverage.spans][-1] == "silence"
        assert coverage.prove(hourly(*range(number + 1)))
        assert coverage.missing() == []
    assert is_covered(coverage.spans, Window(NOON + 1, NOON + 3 * HOUR), NOON + 3 * HOUR)


class Unusual:
    """A connection that delivered two trades, then nothing for an unusual time within the limit, and then two more."""

    def __init__(self) -> None:
        self.coverage = coverage = ConnectionCoverage()
        coverage.silence_limit.learn_all(random_times(1, 500, seed=1, since=NOON - HOUR))
        self.lasts = (coverage.silence_limit.unusual + coverage.silence_limit.ms) // 2
        self.before = [trade_at(1, NOON), trade_at(2, NOON + 900)]
        self.lost = [trade_at(3, NOON + 900), trade_at(4, NOON + 1_700), trade_at(5, NOON + 900 + self.lasts)]
        self.after = [trade_at(6, NOON + 900 + self.lasts), trade_at(7, NOON + 950 + self.lasts)]
        deliver_frame(coverage, 1, *self.before)
        breaks = coverage.breaks
        deliver_frame(coverage, 1, *self.after)
        assert coverage.breaks == breaks + 1

    @property
    def gaps(self) -> list[tuple[int, int]]:
        return [(gap.start - NOON, gap.end - NOON) for gap in self.coverage.missing()]


def test_a_gap_after_an_unusual_silence_closes_when_the_newest_trades_have_none_in_it() -> None:
    s = Unusual()
    limit = s.coverage.silence_limit.ms
    assert s.gaps == [(900, 901 + s.lasts)]
    assert not s.coverage.prove(s.before)
    assert s.coverage.prove([*s.before, *s.after])
    assert stretches(s.coverage) == [(1, 950 + s.lasts)]
    assert s.coverage.silence_limit.ms > limit


def test_trades_that_were_lost_in_an_unusual_silence_are_repaired() -> None:
    s = Unusual()
    newest = [*s.before, *s.lost, *s.after]
    assert s.coverage.unclaimed(newest) == s.lost
    assert s.coverage.prove(newest)
    assert s.gaps == []
    assert [span.reason for span in s.coverage.spans] == ["live", "repaired", "live"]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_gap_in_which_the_newest_trades_show_a_loss_stays_as_far_as_they_do_not_reach(number: int) -> None:
    s = Unusual()
    s.coverage.prove([s.lost[number], *s.after])
    s.coverage.frame_received(1, NOON + HOUR)
    oldest = s.lost[number].timestamp - NOON
    assert s.gaps == [(900, oldest + 1)]


def test_a_gap_after_an_unusual_silence_closes_by_itself_when_nothing_shows_a_loss() -> None:
    s, asked = Unusual(), Unusual()
    # Of a burst the list has only what came after the silence.
    assert asked.coverage.prove(asked.after)
    assert asked.gaps == []
    s.coverage.frame_received(1, s.after[0].timestamp + 19_999)
    assert len(s.gaps) == 1
    s.coverage.frame_received(1, s.after[0].timestamp + 20_000)
    assert s.gaps == []


def test_a_gap_after_an_unusual_silence_stays_where_the_list_had_a_row_that_cannot_be_read() -> None:
    s = Unusual()
    # Of the trades before, and one in the silence, nothing is left but what followed the unreadable row.
    s.coverage.prove(s.after, cut=True)
    s.coverage.frame_received(1, NOON + HOUR)
    assert len(s.gaps) == 1
    whole_list = Unusual()
    whole_list.coverage.prove([*whole_list.before, *whole_list.after], cut=True)
    assert whole_list.gaps == []


def test_a_gap_after_an_unusual_silence_with_an_unreadable_frame_in_it_stays() -> None:
    coverage = ConnectionCoverage()
    coverage.silence_limit.learn_all(random_times(1, 500, seed=1, since=NOON - HOUR))
    lasts = (coverage.silence_limit.unusual + coverage.silence_limit.ms) // 2
    for connection in (1, 2):
        deliver_frame(coverage, connection, trade_at(1, NOON), trade_at(2, NOON + 900))
    coverage.frame_unreadable(1)
    deliver_frame(coverage, 2, trade_at(3, NOON + 900 + lasts), trade_at(4, NOON + 950 + lasts))
    coverage.frame_received(2, NOON + HOUR)
    assert len(coverage.missing()) == 1


def test_a_suspect_silence_never_closes_by_itself() -> None:
    coverage = ConnectionCoverage()
    coverage.silence_limit.learn_all(random_times(1, 500, seed=1, since=NOON - HOUR))
    deliver_frame(coverage, 1, trade_at(1, NOON))
    deliver_frame(coverage, 1, trade_at(2, NOON + coverage.silence_limit.ms + 1))
    coverage.prove([trade_at(2, NOON + coverage.silence_limit.ms + 1)])
    coverage.frame_received(1, NOON + HOUR)
    assert len(coverage.missing()) == 1


def test_a_list_that_lags_behind_the_trade_after_a_silence_proves_nothing() -> None:
    coverage = ConnectionCoverage()
    deliver_frame(coverage, 1, *hourly(0))
    deliver_frame(coverage, 1, *hourly(2))
    assert not coverage.prove(hourly(0))
    assert not coverage.prove(hourly(0, 1))
    assert len(coverage.missing()) == 1
    assert coverage.prove(hourly(0, 1, 2))
    assert coverage.missing() == []


def test_the_pace_is_learned_from_stored_trades_without_their_gaps() -> None:
    stored = [trade_at(number, NOON + 60_000 * number) for number in range(30)]
    later = [trade_at(100 + number, NOON + 2 * HOUR + 60_000 * number) for number in range(30)]
    spans = [Span(run[0].timestamp + 1, run[-1].timestamp, run[0].seq, run[-1].seq, Basis.OBSERVED) for run in (stored, later)]
    coverage = ConnectionCoverage(spans, [*stored, *later])
    alone = ConnectionCoverage(spans[1:], later)
    assert coverage.silence_limit.known
    assert coverage.silence_limit.ms == pytest.approx(alone.silence_limit.ms, rel=0.1)


def test_the_millisecond_of_a_single_trade_is_not_proven_by_a_list_that_begins_with_it() -> None:
    coverage = ConnectionCoverage()
    deliver_frame(coverage, 1, trade_at(2, NOON))
    coverage.connection_lost(1, GapReason.DISCONNECT)
    deliver_frame(coverage, 2, trade_at(3, NOON + 900), trade_at(4, NOON + 950))
    coverage.prove([trade_at(2, NOON), trade_at(3, NOON + 900)])
    assert not is_covered(coverage.spans, Window(NOON, NOON + 1), NOON + HOUR)
    assert is_covered(coverage.spans, Window(NOON + 1, NOON + 950), NOON + HOUR)


def test_connections_that_share_only_a_millisecond_leave_a_gap() -> None:
    coverage = two_trades_on_one_connection()
    deliver_frame(coverage, 2, trade_at(4, NOON + 50))
    coverage.connection_lost(1, GapReason.DISCONNECT)
    deliver_frame(coverage, 2, trade_at(5, NOON + 90))
    assert stretches(coverage) == [(6, 50), (51, 90)]


def test_newest_trades_that_lag_behind_the_stream_prove_nothing() -> None:
    coverage = two_trades_on_one_connection()
    coverage.connection_lost(1, GapReason.DISCONNECT)
    deliver_frame(coverage, 2, trade_at(5, NOON + 900))
    assert not coverage.prove([trade_at(2, NOON + 50), trade_at(3, NOON + 70)])
    assert len(coverage.missing()) == 1


def test_a_list_that_does_not_reach_a_gap_proves_nothing_of_a_span_whose_last_trades_are_unknown() -> None:
    coverage = ConnectionCoverage([Span(NOON, NOON + 1_000, -1, -1, Basis.OBSERVED, SpanReason.IMPORTED)])
    deliver_frame(coverage, 1, trade_at(5, NOON + 900))
    coverage.connection_lost(1, GapReason.DISCONNECT)
    deliver_frame(coverage, 2, trade_at(90, NOON + 9_000), trade_at(91, NOON + 9_100))
    coverage.prove([trade_at(89, NOON + 8_900), trade_at(90, NOON + 9_000)])
    assert [(gap.start - NOON, gap.end - NOON) for gap in coverage.missing()] == [(1_000, 8_901)]


def test_an_unreadable_frame_is_a_gap_since_it_may_have_contained_trades() -> None:
    coverage = two_trades_on_one_connection()
    coverage.frame_unreadable(1)
    deliver_frame(coverage, 1, trade_at(4, NOON + 90))
    deliver_frame(coverage, 1, trade_at(5, NOON + 99))
    assert stretches(coverage) == [(6, 50), (91, 99)]
    assert [span.opened_by for span in coverage.spans] == ["start", "bad_frame"]


def test_an_unreadable_frame_beside_another_connection_is_no_gap() -> None:
    coverage = two_trades_on_one_connection()
    deliver_frame(coverage, 2, trade_at(2, NOON + 50))
    coverage.frame_unreadable(1)
    deliver_frame(coverage, 2, trade_at(3, NOON + 70))
    deliver_frame(coverage, 1, trade_at(4, NOON + 90))
    deliver_frame(coverage, 2, trade_at(4, NOON + 90))
    deliver_frame(coverage, 1, trade_at(5, NOON + 99))
    assert stretches(coverage) == [(6, 99)]


def test_the_end_of_a_connection_that_never_delivered_changes_nothing() -> None:
    coverage = two_trades_on_one_connection()
    coverage.connection_lost(7, GapReason.DISCONNECT)
    assert coverage.alive


def test_repeated_trades_are_recognised_by_their_id_also_after_a_restart() -> None:
    coverage = ConnectionCoverage((), [trade_at(1, NOON)])
    assert not coverage.take(trade_at(1, NOON))
    assert coverage.take(trade_at(2, NOON))


def remembered(coverage: ConnectionCoverage) -> int:
    return len(coverage._recent_ids) + len(coverage._older_ids)


def test_ids_are_remembered_for_as_long_as_connections_may_lag_and_no_longer() -> None:
    coverage = ConnectionCoverage()
    for number in range(1_000):
        coverage.frame_received(1, NOON + 100 * number)
        assert coverage.take(trade_at(number, NOON + 100 * number))
        behind = max(0, number - 199)
        assert not coverage.take(trade_at(behind, NOON + 100 * behind))
        # Two times twenty seconds of ten trades each.
        assert remembered(coverage) <= 400


def test_stored_ids_are_remembered_when_rest_answers_before_the_first_frame() -> None:
    stored = [trade_at(number, NOON + number) for number in range(100)]
    coverage = ConnectionCoverage([Span(NOON, NOON + 99, 0, 99, Basis.OBSERVED)], stored)
    for number in range(100, 160):
        assert coverage.take(trade_at(number, NOON + number), SpanReason.REPAIRED)
    coverage.frame_received(1, NOON + 1_000)
    assert coverage.take(trade_at(200, NOON + 900))
    assert not any(coverage.take(each) for each in stored)


def test_the_newest_ids_of_a_quiet_instrument_are_remembered_at_any_age() -> None:
    coverage = ConnectionCoverage()
    for number in range(500):
        coverage.frame_received(1, NOON + 60_000 * number)
        assert coverage.take(trade_at(number, NOON + 60_000 * number))
        assert not coverage.take(trade_at(max(0, number - 49), NOON))
    assert remembered(coverage) <= 100


def test_the_number_of_remembered_ids_is_bounded_at_any_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_connection_module, "_REMEMBERED_MAX", 300)
    coverage = ConnectionCoverage()
    for number in range(5_000):
        assert coverage.take(trade_at(number, NOON))
        assert not coverage.take(trade_at(max(0, number - 299), NOON))
    assert remembered(coverage) <= 600


def test_an_old_trade_that_arrives_late_is_new() -> None:
    coverage = ConnectionCoverage()
    for number in range(1_000):
        deliver_frame(coverage, 1, trade_at(number, NOON + 100 * number))
    assert coverage.take(trade_at(2_000, NOON + 50))


def test_unclaimed_returns_each_trade_outside_all_spans_once() -> None:
    coverage = two_trades_on_one_connection()
    coverage.silence_limit.learn_all(range(NOON - 2 * HOUR, NOON, MINUTE))
    deliver_frame(coverage, 1, trade_at(3, NOON + 60_000))
    coverage.connection_lost(1, GapReason.DISCONNECT)
    deliver_frame(coverage, 2, trade_at(5, NOON + 90_000))
    deliver_frame(coverage, 2, trade_at(6, NOON + 120_000))
    newest = [
        trade_at(10 + number, NOON + at) for number, at in enumerate((2, 5, 6, 30_000, 60_000, 75_000, 90_000, 90_001, 120_000, 130_000))
    ]
    newest += [trade_at(3, NOON + 60_000), trade_at(5, NOON + 90_000), trade_at(6, NOON + 120_000)]
    assert [trade.timestamp - NOON for trade in coverage.unclaimed(newest)] == [2, 5, 60_000, 75_000, 90_000, 120_000, 130_000]
    later = trade_at(30, NOON + 140_000)
    assert coverage.unclaimed([*newest, later]) == [later]
    assert ConnectionCoverage().unclaimed(newest) == newest


def test_a_repair_that_is_retried_records_each_trade_once() -> None:
    """After an outage of minutes the newest trades span the gap of a slow instrument, but at first they lag behind the stream."""
    coverage = ConnectionCoverage()
    for number in range(60):
        deliver_frame(coverage, 1, trade_at(number, NOON + 1_000 * number))
    coverage.connection_lost(1, GapReason.DISCONNECT)
    deliver_frame(coverage, 2, trade_at(180, NOON + 180_000))
    newest = [trade_at(number, NOON + 1_000 * number) for number in range(20, 180)]
    assert sum(coverage.take(each, SpanReason.REPAIRED) for each in coverage.unclaimed(newest)) == 120
    assert not coverage.prove(newest)
    deliver_frame(coverage, 2, trade_at(181, NOON + 181_000))
    coverage.frame_received(3, NOON + 181_000)
    assert not coverage.take(trade_at(180, NOON + 180_000))
    newest += [trade_at(180, NOON + 180_000), trade_at(181, NOON + 181_000)]
    assert sum(coverage.take(each, SpanReason.REPAIRED) for each in coverage.unclaimed(newest)) == 0
    assert coverage.prove(newest)
    assert coverage._reported_ids == set()


MINUTE_ONE = NOON + MINUTE


def three_minutes() -> ConnectionCoverage:
    coverage = ConnectionCoverage()
    coverage.silence_limit.ms = coverage.silence_limit.unusual = HOUR
    deliver_frame(coverage, 1, trade_at(1, NOON))
    deliver_frame(coverage, 1, trade_at(2, NOON + 3 * MINUTE))
    return coverage


def whole(minute: int) -> Window:
    return Window(minute, minute + MINUTE)


def take_whole(coverage: ConnectionCoverage, *minutes: int) -> None:
    """A complete source delivers these minutes."""
    for minute in minutes:
        assert coverage.take_folded(IdRange(WHOLE, WHOLE, minute + 1, minute + 2), SpanReason.IMPORTED)


def test_a_minute_that_a_source_was_not_read_for_still_differs_although_the_source_covers_its_time() -> None:
    coverage = three_minutes()
    take_whole(coverage, MINUTE_ONE)
    # The audit found it while the file was being read.
    coverage.mark_differing(MINUTE_ONE)
    coverage.cover(Window(NOON, NOON + HOUR), SpanReason.IMPORTED, raw=False)
    assert missing(coverage) == [whole(MINUTE_ONE)]


def missing(coverage: ConnectionCoverage) -> list[Window]:
    return [Window(gap.start, gap.end) for gap in coverage.missing()]


def test_a_minute_whose_candle_differs_is_a_gap_inside_a_span() -> None:
    coverage = three_minutes()
    coverage.changed()
    coverage.mark_differing(MINUTE_ONE)
    (marked,) = coverage.changed()
    assert (Window(marked.start, marked.end), marked.reason, marked.opened_by) == (whole(MINUTE_ONE), "differs", "candle_differs")
    assert not is_covered(coverage.spans, whole(MINUTE_ONE), NOON + HOUR)
    assert is_covered(coverage.spans, whole(MINUTE_ONE + MINUTE), NOON + HOUR)
    assert [(span.start, span.end) for span in coverage.covered] == [
        (NOON + 1, MINUTE_ONE),
        (MINUTE_ONE + MINUTE, NOON + 3 * MINUTE),
    ]
    assert missing(coverage) == [whole(MINUTE_ONE)]
    coverage.mark_differing(MINUTE_ONE)
    assert coverage.changed() == []


def test_a_minute_whose_candle_differs_is_no_gap_that_the_newest_trades_could_bridge() -> None:
    coverage = three_minutes()
    coverage.mark_differing(MINUTE_ONE)
    deliver_frame(coverage, 1, trade_at(3, NOON + 3 * MINUTE + 5))
    assert coverage.prove([trade_at(number, NOON + number) for number in range(1, 4)])
    assert missing(coverage) == [whole(MINUTE_ONE)]


@pytest.mark.parametrize("raw", [False, True])
def test_a_complete_source_covers_a_minute_whose_candle_differs_for_every_process(raw: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_connection_module, "SHORTEST_SILENCE", HOUR)
    coverage = three_minutes()
    coverage.mark_differing(MINUTE_ONE)
    coverage.mark_differing(MINUTE_ONE + MINUTE)
    stored = coverage.changed()
    take_whole(coverage, MINUTE_ONE, MINUTE_ONE + MINUTE)
    coverage.cover(Window(MINUTE_ONE, MINUTE_ONE + MINUTE + 9), SpanReason.IMPORTED, raw=raw)
    assert is_covered(coverage.spans, whole(MINUTE_ONE), NOON + HOUR)
    assert not is_covered(coverage.spans, whole(MINUTE_ONE + MINUTE), NOON + HOUR), "only a part of this minute was covered"
    # The connection goes on over it, and what is stored afterwards takes the place of what was stored before.
    deliver_frame(coverage, 1, trade_at(4, NOON + 4 * MINUTE))
    by_key = {(span.start, span.first_seq): span for span in (*stored, *coverage.changed())}
    assert is_covered(by_key.values(), whole(MINUTE_ONE), NOON + HOUR)
    assert judge(by_key.values(), whole(MINUTE_ONE), NOON + HOUR, raw=True).millionths == (1_000_000 if raw else 0)
    again = ConnectionCoverage(by_key.values())
    assert missing(again) == [whole(MINUTE_ONE + MINUTE)]
    assert is_covered(again.covered, whole(MINUTE_ONE), NOON + HOUR)


def test_a_minute_that_was_covered_may_differ_again() -> None:
    coverage = three_minutes()
    coverage.mark_differing(MINUTE_ONE)
    take_whole(coverage, MINUTE_ONE)
    coverage.cover(whole(MINUTE_ONE), SpanReason.IMPORTED, raw=False)
    coverage.mark_differing(MINUTE_ONE)
    assert not is_covered(ConnectionCoverage(coverage.changed()).spans, whole(MINUTE_ONE), NOON + HOUR)


def test_few_minutes_whose_candle_differs_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_connection_module, "REMEMBERED_SPANS", 3)
    coverage = ConnectionCoverage()
    for number in range(5):
        coverage.mark_differing(NOON + number * MINUTE)
    assert len(coverage.changed()) == 5
    assert [span.start for span in coverage.spans] == [NOON + number * MINUTE for number in (2, 3, 4)]


class ConnectionCoverageMachine(RuleBasedStateMachine):
    """`ConnectionCoverage` against an exchange that knows all its trades and which of them each connection delivered.

    Connections deliver in order, each at its own pace. When one ends, the frames that it has not delivered are lost. A silent one stays
    open and loses what is traded.
    """

    def __init__(self) -> None:
        super().__init__()
        # Provisional gaps have tests of their own.
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(silence_module, "_UNUSUAL_SCALES", silence_module._SUSPECT_SCALES)
        self.coverage = ConnectionCoverage()
        self.now = NOON
        self.traded: list[Trade] = []
        self.taken: set[str] = set()
        self.pipes: dict[int, deque[Trade]] = {}
        self.delivered: dict[int, list[Trade]] = {}
        """Trades that each connection delivered, by connection, ended ones included."""
        self.ended: list[list[Trade]] = []
        self.silent: set[int] = set()
        self.lost: set[str] = set()
        """Trades that some connection lost in a silence that was not suspect: such a loss cannot be seen."""
        self.missed: dict[int, set[str]] = {}
        """What each silent connection has lost since its last trade."""
        self.connections = 0
        self.proven = False
        self.stored: dict[tuple[int, int], Span] = {}

    def teardown(self) -> None:
        self.patch.undo()

    @rule(gap=st.sampled_from([0, 0, 1, 40, 700, 2_500, 2_950, 10_000, 40_000]))
    def trade(self, gap: int) -> None:
        self.now += gap
        self.traded.append(trade_at(len(self.traded) + 1, self.now))
        for name, pipe in self.pipes.items():
            if name in self.silent:
                self.missed.setdefault(name, set()).add(self.traded[-1].trade_id)
            else:
                pipe.append(self.traded[-1])

    @precondition(lambda self: self.pipes)
    @rule(data=st.data())
    def fall_silent(self, data: st.DataObject) -> None:
        """Some connections deliver what they have, and then nothing."""
        for name in data.draw(st.sets(st.sampled_from(sorted(self.pipes)))):
            if self.pipes[name]:
                self.deliver_from(name, len(self.pipes[name]))
            self.silent.add(name)

    @precondition(lambda self: self.pipes)
    @rule(data=st.data(), before=st.sampled_from([1, 700, 10_000, 40_000]), after=st.sampled_from([0, 1, 700, 10_000, 40_000]))
    def lose_one_trade(self, data: st.DataObject, before: int, after: int) -> None:
        """Some connections are silent for one trade, and all deliver the next one."""
        self.deliver_all()
        silent = data.draw(st.sets(st.sampled_from(sorted(self.pipes)), min_size=1))
        self.silent |= silent
        self.trade(before)
        self.silent -= silent
        self.trade(after)
        self.deliver_all()

    def deliver_all(self) -> None:
        for name in sorted(self.pipes):
            if self.pipes[name]:
                self.deliver_from(name, len(self.pipes[name]))

    @precondition(lambda self: self.silent)
    @rule()
    def speak(self) -> None:
        self.silent.clear()

    @precondition(lambda self: len(self.pipes) < 3)
    @rule(replays=st.booleans())
    def connect(self, replays: bool) -> None:
        self.connections += 1
        pipe = self.pipes[self.connections] = deque()
        self.delivered[self.connections] = []
        if replays and self.traded:
            pipe.append(self.traded[-1])

    @precondition(lambda self: any(self.pipes.values()))
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        connection = data.draw(st.sampled_from([name for name, pipe in self.pipes.items() if pipe]))
        self.deliver_from(connection, data.draw(st.integers(1, len(self.pipes[connection]))))

    def deliver_from(self, connection: int, count: int) -> None:
        self.coverage.frame_received(connection, self.now)
        for _ in range(count):
            each, run = self.pipes[connection].popleft(), self.delivered[connection]
            missed, began = self.missed.pop(connection, set()), bool(run)
            if began and each.timestamp - run[-1].timestamp > self.coverage.silence_limit.ms:
                # What it delivers after a suspect silence is a stretch of its own.
                self.ended.append(run)
                run = self.delivered[connection] = []
            elif began:
                self.lost |= missed
            assert self.coverage.take(each) == (each.trade_id not in self.taken)
            self.taken.add(each.trade_id)
            if began or self.now - each.timestamp <= 2 * SECOND:
                run.append(each)

    @precondition(lambda self: self.pipes)
    @rule(data=st.data(), reason=st.sampled_from([GapReason.DISCONNECT, GapReason.MUTE]))
    def cut(self, data: st.DataObject, reason: GapReason) -> None:
        connection = data.draw(st.sampled_from(sorted(self.pipes)))
        del self.pipes[connection]
        self.silent.discard(connection)
        self.missed.pop(connection, None)
        self.coverage.connection_lost(connection, reason)

    @precondition(lambda self: any(self.pipes.values()))
    @rule(data=st.data())
    def deliver_unreadable_frame(self, data: st.DataObject) -> None:
        """A frame that cannot be read, so that its trade is unknown."""
        connection = data.draw(st.sampled_from([name for name, pipe in self.pipes.items() if pipe]))
        self.pipes[connection].popleft()
        self.coverage.frame_unreadable(connection)
        # What it delivers from now on is a stretch of its own.
        self.ended.append(self.delivered[connection])
        self.delivered[connection] = []

    @precondition(lambda self: self.traded)
    @rule(count=st.integers(1, 8), lags=st.integers(0, 4))
    def prove(self, count: int, lags: int) -> None:
        """The newest trades as REST returns them, which may lag behind the stream."""
        newest = self.traded[: len(self.traded) - lags][-count:]
        for each in newest:
            self.coverage.take(each, SpanReason.REPAIRED)
            self.taken.add(each.trade_id)
        self.coverage.prove(newest)
        self.proven = True

    @rule()
    def restart(self) -> None:
        for span in self.coverage.changed():
            self.stored[span.start, span.first_seq] = span
        recent = sorted((each for each in self.traded if each.trade_id in self.taken), key=lambda each: each.order)
        self.pipes.clear()
        self.silent.clear()
        self.missed.clear()
        self.delivered.clear()
        self.ended.clear()
        self.coverage = ConnectionCoverage(self.stored.values(), recent)
        self.proven = True

    @invariant()
    def time_is_covered_only_where_all_of_its_trades_were_taken_or_lost_in_a_silence_within_the_limit(self) -> None:
        for span in self.coverage.spans:
            missing = [each for each in self.traded if span.start <= each.timestamp < span.end and each.trade_id not in self.taken]
            assert {each.trade_id for each in missing} <= self.lost, (span, missing)

    @invariant()
    def covered_time_is_exactly_what_connections_delivered(self) -> None:
        if self.proven:
            return
        groups = [
            _Delivered({each.trade_id for each in run}, {run[0].trade_id}, run[0].timestamp + 1, run[-1].timestamp)
            for run in (*self.delivered.values(), *self.ended)
            if run
        ]
        while (pair := next((pair for pair in permutations(groups, 2) if pair[0].joins(pair[1])), None)) is not None:
            one, other = pair
            groups = [group for group in groups if group is not one and group is not other]
            groups.append(_Delivered(one.ids | other.ids, one.first | other.first, min(one[2], other[2]), max(one[3], other[3])))
        spans = [(span.start, span.end) for span in self.coverage.spans]
        assert _milliseconds(spans) == _milliseconds([(group.start, group.end) for group in groups])


class _Delivered(NamedTuple):
    """What overlapping connections delivered: all ids, the first id of each, and the time that they cover."""

    ids: set[str]
    first: set[str]
    start: int
    end: int

    def joins(self, other: _Delivered) -> bool:
        return bool(self.ids & other.first) or self.start <= other.start <= self.end


def _milliseconds(stretches: Iterable[tuple[int, int]]) -> set[int]:
    return {at for start, end in stretches for at in range(start, end)}


class ProvisionalGapsMachine(ConnectionCoverageMachine):
    """The same with a known pace, so that silences may be unusual and within the limit. Of these the model knows only what may be lost."""

    def __init__(self) -> None:
        super().__init__()
        self.patch.undo()
        self.coverage.silence_limit.learn_all(random_times(1, 500, seed=1, since=NOON - HOUR))
        self.proven = True


TestConnectionCoverage = ConnectionCoverageMachine.TestCase
TestProvisionalGaps = ProvisionalGapsMachine.TestCase
