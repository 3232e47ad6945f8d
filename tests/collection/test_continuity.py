from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.market import BYBIT, NOON, trade
from wadm_mcp.collection.continuity import REMEMBERED_IDS, REMEMBERED_SPANS, Counted, Observed
from wadm_mcp.model import Basis, Span


def counted(*ids: int) -> Counted:
    continuity = Counted(())
    continuity.heard(1, NOON)
    for number in ids:
        continuity.take(trade(number, NOON + number))
    return continuity


def test_ids_in_a_row_are_one_span() -> None:
    assert counted(5, 6, 7).spans == [Span(NOON + 6, NOON + 7, 5, 7, Basis.EXACT, "live", "start")]


def test_the_millisecond_of_a_spans_first_trade_is_not_claimed() -> None:
    (span,) = counted(5).spans
    assert span.start == span.end == NOON + 6


def test_a_missing_id_opens_a_new_span() -> None:
    first, second = counted(5, 6, 9).spans
    assert (first.last_seq, second.first_seq, second.opened_by) == (6, 9, "missing_ids")


def test_a_missing_id_that_comes_late_closes_the_gap() -> None:
    (span,) = counted(5, 6, 8, 9, 7).spans
    assert (span.first_seq, span.last_seq) == (5, 9)


def test_a_repeated_id_is_not_new() -> None:
    continuity = counted(5, 6, 9)
    assert not any(continuity.take(trade(number)) for number in (5, 6, 9))
    assert continuity.take(trade(7))


def test_a_reconnect_that_missed_nothing_leaves_one_span() -> None:
    continuity = counted(5, 6)
    continuity.lost(1, "disconnect")
    continuity.heard(2, NOON + 100)
    continuity.take(trade(7, NOON + 100))
    assert len(continuity.spans) == 1


def test_a_reconnect_that_missed_trades_says_what_opened_the_gap() -> None:
    continuity = counted(5, 6)
    continuity.lost(1, "mute")
    continuity.heard(2, NOON + 100)
    continuity.take(trade(9, NOON + 100))
    assert [span.opened_by for span in continuity.spans] == ["start", "mute"]


def test_a_restart_goes_on_from_the_stored_span() -> None:
    continuity = Counted([Span(NOON, NOON + 50, 1, 50, Basis.EXACT)])
    assert not continuity.take(trade(50))
    assert continuity.take(trade(51, NOON + 900))
    assert continuity.spans == [Span(NOON, NOON + 900, 1, 51, Basis.EXACT)]


def test_only_what_changed_is_written_again() -> None:
    continuity = counted(5, 6, 9)
    assert len(continuity.changed()) == 2
    assert continuity.changed() == []
    continuity.take(trade(10, NOON + 20))
    assert [span.last_seq for span in continuity.changed()] == [10]


def test_a_feed_that_loses_every_other_id_does_not_fill_the_memory() -> None:
    continuity = counted(*range(0, 4 * REMEMBERED_SPANS, 2))
    continuity.changed()
    assert len(continuity.spans) == REMEMBERED_SPANS


@given(st.lists(st.integers(1, 60), max_size=120))
def test_spans_are_the_runs_of_the_ids_seen_whatever_their_order(ids: list[int]) -> None:
    continuity = Counted(())
    seen: set[int] = set()
    for number in ids:
        assert continuity.take(trade(number, NOON + number)) == (number not in seen)
        seen.add(number)
    runs = [number for number in sorted(seen) if number - 1 not in seen]
    assert [span.first_seq for span in continuity.spans] == runs
    assert {number for span in continuity.spans for number in range(span.first_seq, span.last_seq + 1)} == seen
    assert all(span.start == NOON + span.first_seq + 1 and span.end == max(span.start, NOON + span.last_seq) for span in continuity.spans)


def observed() -> Observed:
    continuity = Observed(())
    continuity.heard(1, NOON)
    continuity.take(trade(1, NOON + 5, instrument=BYBIT))
    return continuity


def test_a_connection_covers_from_its_first_frame_to_the_last_trade() -> None:
    assert observed().spans == [Span(NOON, NOON + 5, 1, 1, Basis.OBSERVED, "live", "start")]


def test_an_old_trade_repeated_at_subscribe_claims_no_time_before_the_frame() -> None:
    continuity = Observed(())
    continuity.heard(1, NOON)
    assert continuity.take(trade(1, NOON - 42_000, instrument=BYBIT))
    assert continuity.spans == [Span(NOON, NOON, -1, -1, Basis.OBSERVED, "live", "start")]


def test_every_reconnect_is_a_gap_where_ids_do_not_count() -> None:
    continuity = observed()
    continuity.lost(1, "disconnect")
    assert not continuity.living
    continuity.heard(2, NOON + 900)
    continuity.take(trade(2, NOON + 901, instrument=BYBIT))
    first, second = continuity.spans
    assert (first.end, second.start, second.opened_by) == (NOON + 5, NOON + 900, "disconnect")


def test_overlapping_connections_leave_no_gap() -> None:
    continuity = observed()
    continuity.heard(2, NOON + 10)
    continuity.lost(1, "disconnect")
    continuity.take(trade(2, NOON + 20, instrument=BYBIT))
    assert [(span.start, span.end) for span in continuity.spans] == [(NOON, NOON + 20)]


def test_a_connection_that_never_delivered_covers_nothing_and_ends_nothing() -> None:
    continuity = observed()
    continuity.lost(7, "disconnect")
    assert continuity.living


def test_repeats_are_known_by_their_id_also_after_a_restart() -> None:
    continuity = Observed((), [trade(1, instrument=BYBIT)])
    assert not continuity.take(trade(1, instrument=BYBIT))
    assert continuity.take(trade(2, instrument=BYBIT))


def test_remembered_ids_are_bounded() -> None:
    continuity = observed()
    for number in range(REMEMBERED_IDS + 50):
        continuity.take(trade(number, instrument=BYBIT))
    assert len(continuity._ids) == REMEMBERED_IDS
