from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.market import NOON, trade
from wadm_mcp.coverage.by_id import SequenceCoverage
from wadm_mcp.coverage.spans import REMEMBERED_SPANS
from wadm_mcp.model import Basis, GapReason, Span, SpanReason
from wadm_mcp.storage.store import merge_spans


def counted(*ids: int) -> SequenceCoverage:
    continuity = SequenceCoverage(())
    continuity.frame_received(1, NOON)
    for number in ids:
        continuity.take(trade(number, NOON + number))
    return continuity


def test_ids_in_a_row_are_one_span() -> None:
    assert counted(5, 6, 7).spans == [Span(NOON + 6, NOON + 7, 5, 7, Basis.EXACT, SpanReason.LIVE, GapReason.START)]


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
    continuity.connection_lost(1, GapReason.DISCONNECT)
    continuity.frame_received(2, NOON + 100)
    continuity.take(trade(7, NOON + 100))
    assert len(continuity.spans) == 1


def test_a_reconnect_that_missed_trades_says_what_opened_the_gap() -> None:
    continuity = counted(5, 6)
    continuity.connection_lost(1, GapReason.MUTE)
    continuity.frame_received(2, NOON + 100)
    continuity.take(trade(9, NOON + 100))
    assert [span.opened_by for span in continuity.spans] == ["start", "mute"]


def test_a_restart_goes_on_from_the_stored_span() -> None:
    continuity = SequenceCoverage([Span(NOON, NOON + 50, 1, 50, Basis.EXACT)])
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
    continuity = SequenceCoverage(())
    seen: set[int] = set()
    for number in ids:
        assert continuity.take(trade(number, NOON + number)) == (number not in seen)
        seen.add(number)
    runs = [number for number in sorted(seen) if number - 1 not in seen]
    assert [span.first_seq for span in continuity.spans] == runs
    assert {number for span in continuity.spans for number in range(span.first_seq, span.last_seq + 1)} == seen
    assert all(span.start == NOON + span.first_seq + 1 and span.end == max(span.start, NOON + span.last_seq) for span in continuity.spans)


def test_two_spans_of_different_reasons_that_follow_one_another_are_no_gap() -> None:
    continuity = counted(5, 6, 9)
    for number in (7, 8):
        assert continuity.take(trade(number, NOON + number), SpanReason.REPAIRED)
    assert [(span.first_seq, span.last_seq, span.reason) for span in continuity.spans] == [
        (5, 6, "live"),
        (7, 8, "repaired"),
        (9, 9, "live"),
    ]
    assert continuity.missing() == []


def test_a_run_without_rows_is_held_as_one_and_says_so() -> None:
    continuity = counted(5, 9)
    assert continuity.take_folded(6, 8, NOON + 6, NOON + 8, SpanReason.REPAIRED)
    assert not continuity.take_folded(8, 8, NOON + 8, NOON + 8, SpanReason.REPAIRED)
    assert [(span.first_seq, span.last_seq, span.raw) for span in continuity.spans] == [(5, 5, True), (6, 8, False), (9, 9, True)]


def test_what_the_exchange_lacks_is_asked_for_no_more_and_claimed_by_nobody() -> None:
    continuity = counted(5, 12)
    continuity.mark_absent(7, 8)
    assert [(gap.first, gap.last) for gap in continuity.missing()] == [(6, 6), (9, 11)]
    assert [(span.first_seq, span.last_seq, span.reason) for span in continuity.spans if span.reason == "absent"] == [(7, 8, "absent")]
    assert continuity.take(trade(7, NOON + 7), SpanReason.REPAIRED)


def test_what_a_store_held_is_adopted_beside_what_came_in_meanwhile() -> None:
    continuity = counted(60, 61)
    continuity.add_stored(
        [Span(NOON, NOON + 50, 1, 50, Basis.EXACT), Span(NOON, NOON + 55, 52, 55, Basis.EXACT, SpanReason.ABSENT, GapReason.ABSENT)]
    )
    assert not continuity.take(trade(50))
    assert [(gap.first, gap.last) for gap in continuity.missing()] == [(51, 51), (56, 59)]


class CountedMachine(RuleBasedStateMachine):
    """`Counted` against a set of ids: whatever comes in whatever order, what is held and what is missing are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.continuity = SequenceCoverage()
        self.held: dict[int, tuple[str, bool]] = {}
        self.absent: set[int] = set()
        self.stored: dict[tuple[int, int], Span] = {}

    def at(self, number: int) -> int:
        return NOON + number // 3

    @rule(number=st.integers(1, 60), reason=st.sampled_from([SpanReason.LIVE, SpanReason.REPAIRED]))
    def take(self, number: int, reason: SpanReason) -> None:
        assert self.continuity.take(trade(number, self.at(number)), reason) == (number not in self.held)
        self.held.setdefault(number, (reason, True))

    @rule(count=st.integers(1, 9))
    def go_on(self, count: int) -> None:
        newest = max(self.held, default=0)
        for number in range(newest + 1, newest + count + 1):
            self.take(number, "live")

    @rule(first=st.integers(1, 60), count=st.integers(1, 12))
    def fold(self, first: int, count: int) -> None:
        ids = range(first, first + count)
        free = not any(number in self.held for number in ids)
        assert self.continuity.take_folded(ids[0], ids[-1], self.at(ids[0]), self.at(ids[-1]), SpanReason.REPAIRED) == free
        if free:
            self.held.update(dict.fromkeys(ids, ("repaired", False)))

    @precondition(lambda self: self.continuity.missing())
    @rule(data=st.data())
    def lack(self, data: st.DataObject) -> None:
        gap = data.draw(st.sampled_from(self.continuity.missing()))
        first = data.draw(st.integers(gap.first, gap.last))
        last = data.draw(st.integers(first, gap.last))
        self.continuity.mark_absent(first, last)
        self.absent.update(range(first, last + 1))

    @rule()
    def save(self) -> None:
        for span in self.continuity.changed():
            key = span.start, span.first_seq
            self.stored[key] = merge_spans(self.stored[key], span) if key in self.stored else span

    @rule()
    def restart(self) -> None:
        """Only what is saved survives."""
        self.save()
        self.continuity = SequenceCoverage()
        self.continuity.add_stored(self.stored.values())

    @rule(numbers=st.lists(st.integers(50, 90), max_size=8))
    def be_late_to_adopt(self, numbers: list[int]) -> None:
        """A process that begins without its store takes trades first, and repeats of what is stored among them."""
        self.save()
        self.continuity = SequenceCoverage()
        for number in numbers:
            self.continuity.take(trade(number, self.at(number)), SpanReason.LIVE)
            self.held.setdefault(number, ("live", True))
        self.continuity.add_stored(self.stored.values())

    @invariant()
    def spans_are_what_is_held(self) -> None:
        spans = [span for span in self.continuity.spans if span.reason != "absent"]
        ids = [number for span in spans for number in range(span.first_seq, span.last_seq + 1)]
        assert sorted(ids) == sorted(self.held)

    @invariant()
    def what_is_missing_lies_between(self) -> None:
        wanted = set(range(min(self.held, default=0), max(self.held, default=0))) - set(self.held) - self.absent
        gaps = self.continuity.missing()
        assert {number for gap in gaps for number in range(gap.first, gap.last + 1)} == wanted
        for gap in gaps:
            assert gap.start <= self.at(gap.last) + 1
            assert gap.end >= self.at(gap.first)

    @invariant()
    def time_is_claimed_only_where_all_of_its_trades_are_held(self) -> None:
        for span in self.continuity.spans:
            if span.reason != "absent":
                ids = [number for number in range(1, 120) if span.start <= self.at(number) < span.end]
                assert all(number in self.held for number in ids)


TestCounted = CountedMachine.TestCase
