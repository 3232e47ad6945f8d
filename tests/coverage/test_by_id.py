from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.market import NOON, trade
from wadm_mcp.coverage.by_id import SequenceCoverage
from wadm_mcp.coverage.spans import REMEMBERED_SPANS, Basis, GapReason, IdRange, Span, SpanReason
from wadm_mcp.storage.store import merge_spans


def recorded(*ids: int) -> SequenceCoverage:
    coverage = SequenceCoverage(())
    coverage.frame_received(1, NOON)
    for number in ids:
        coverage.take(trade(number, NOON + number))
    return coverage


def test_consecutive_ids_are_one_span() -> None:
    assert recorded(5, 6, 7).spans == [Span(NOON + 6, NOON + 7, 5, 7, Basis.EXACT, SpanReason.LIVE, GapReason.START)]


def test_the_millisecond_of_a_spans_first_trade_is_not_covered() -> None:
    (span,) = recorded(5).spans
    assert span.start == span.end == NOON + 6


def test_a_missing_id_opens_a_new_span() -> None:
    first, second = recorded(5, 6, 9).spans
    assert (first.last_seq, second.first_seq, second.opened_by) == (6, 9, "missing_ids")


def test_a_missing_id_that_arrives_late_closes_the_gap() -> None:
    (span,) = recorded(5, 6, 8, 9, 7).spans
    assert (span.first_seq, span.last_seq) == (5, 9)


def test_a_repeated_id_is_not_new() -> None:
    coverage = recorded(5, 6, 9)
    assert not any(coverage.take(trade(number)) for number in (5, 6, 9))
    assert coverage.take(trade(7))


def test_a_reconnect_that_missed_nothing_leaves_one_span() -> None:
    coverage = recorded(5, 6)
    coverage.connection_lost(1, GapReason.DISCONNECT)
    coverage.frame_received(2, NOON + 100)
    coverage.take(trade(7, NOON + 100))
    assert len(coverage.spans) == 1


def test_the_gap_of_a_reconnect_states_its_reason() -> None:
    coverage = recorded(5, 6)
    coverage.connection_lost(1, GapReason.MUTE)
    coverage.frame_received(2, NOON + 100)
    coverage.take(trade(9, NOON + 100))
    assert [span.opened_by for span in coverage.spans] == ["start", "mute"]


def test_a_restart_continues_the_stored_span() -> None:
    coverage = SequenceCoverage([Span(NOON, NOON + 50, 1, 50, Basis.EXACT)])
    assert not coverage.take(trade(50))
    assert coverage.take(trade(51, NOON + 900))
    assert coverage.spans == [Span(NOON, NOON + 900, 1, 51, Basis.EXACT)]


def test_only_what_changed_is_written_again() -> None:
    coverage = recorded(5, 6, 9)
    assert len(coverage.changed()) == 2
    assert coverage.changed() == []
    coverage.take(trade(10, NOON + 20))
    assert [span.last_seq for span in coverage.changed()] == [10]


def test_a_feed_that_loses_every_other_id_takes_bounded_memory() -> None:
    coverage = recorded(*range(0, 4 * REMEMBERED_SPANS, 2))
    coverage.changed()
    assert len(coverage.spans) == REMEMBERED_SPANS


@given(st.lists(st.integers(1, 60), max_size=120))
def test_spans_are_the_runs_of_the_ids_taken_in_any_order(ids: list[int]) -> None:
    coverage = SequenceCoverage(())
    seen: set[int] = set()
    for number in ids:
        assert coverage.take(trade(number, NOON + number)) == (number not in seen)
        seen.add(number)
    runs = [number for number in sorted(seen) if number - 1 not in seen]
    assert [span.first_seq for span in coverage.spans] == runs
    assert {number for span in coverage.spans for number in range(span.first_seq, span.last_seq + 1)} == seen
    assert all(span.start == NOON + span.first_seq + 1 and span.end == max(span.start, NOON + span.last_seq) for span in coverage.spans)


def test_consecutive_spans_with_different_reasons_have_no_gap() -> None:
    coverage = recorded(5, 6, 9)
    for number in (7, 8):
        assert coverage.take(trade(number, NOON + number), SpanReason.REPAIRED)
    assert [(span.first_seq, span.last_seq, span.reason) for span in coverage.spans] == [
        (5, 6, "live"),
        (7, 8, "repaired"),
        (9, 9, "live"),
    ]
    assert coverage.missing() == []


def test_a_run_of_ids_without_rows_is_one_span_that_is_not_raw() -> None:
    coverage = recorded(5, 9)
    assert coverage.take_folded(IdRange(6, 8, NOON + 6, NOON + 8), SpanReason.REPAIRED)
    assert not coverage.take_folded(IdRange(8, 8, NOON + 8, NOON + 8), SpanReason.REPAIRED)
    assert [(span.first_seq, span.last_seq, span.raw) for span in coverage.spans] == [(5, 5, True), (6, 8, False), (9, 9, True)]


def test_absent_ids_are_neither_missing_nor_covered() -> None:
    coverage = recorded(5, 12)
    coverage.mark_absent(7, 8)
    assert [(gap.first, gap.last) for gap in coverage.missing()] == [(6, 6), (9, 11)]
    assert [(span.first_seq, span.last_seq, span.reason) for span in coverage.spans if span.reason == "absent"] == [(7, 8, "absent")]
    assert coverage.take(trade(7, NOON + 7), SpanReason.REPAIRED)


def test_no_candle_says_what_the_ids_say() -> None:
    with pytest.raises(NotImplementedError, match="without gapless ids"):
        recorded(5).mark_differing(NOON)


def test_stored_spans_are_added_to_those_recorded_meanwhile() -> None:
    coverage = recorded(60, 61)
    coverage.add_stored(
        [Span(NOON, NOON + 50, 1, 50, Basis.EXACT), Span(NOON, NOON + 55, 52, 55, Basis.EXACT, SpanReason.ABSENT, GapReason.ABSENT)]
    )
    assert not coverage.take(trade(50))
    assert [(gap.first, gap.last) for gap in coverage.missing()] == [(51, 51), (56, 59)]


def test_stored_trades_that_no_stored_span_covers_are_covered() -> None:
    coverage = recorded(60, 61)
    coverage.connection_lost(1, GapReason.DISCONNECT)
    coverage.add_stored([Span(NOON, NOON + 50, 1, 50, Basis.EXACT)])
    rows = [trade(number, NOON + number) for number in (49, 50, 51, 52, 60, 62, 70)]
    coverage.add_stored_trades(rows, [IdRange(53, 55, NOON + 53, NOON + 55)])
    assert [(gap.first, gap.last) for gap in coverage.missing()] == [(56, 59), (63, 69)]
    assert coverage.take(trade(80, NOON + 80))
    assert coverage.spans[-1].opened_by == "disconnect"


class SequenceCoverageMachine(RuleBasedStateMachine):
    """`SequenceCoverage` against a set of ids: in whatever order they arrive, covered and missing ids are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.coverage = SequenceCoverage()
        self.taken: dict[int, tuple[str, bool]] = {}
        self.absent: set[int] = set()
        self.stored: dict[tuple[int, int], Span] = {}

    def at(self, number: int) -> int:
        return NOON + number // 3

    @rule(number=st.integers(1, 60), reason=st.sampled_from([SpanReason.LIVE, SpanReason.REPAIRED]))
    def take(self, number: int, reason: SpanReason) -> None:
        assert self.coverage.take(trade(number, self.at(number)), reason) == (number not in self.taken)
        self.taken.setdefault(number, (reason, True))

    @rule(count=st.integers(1, 9))
    def take_next(self, count: int) -> None:
        newest = max(self.taken, default=0)
        for number in range(newest + 1, newest + count + 1):
            self.take(number, "live")

    @rule(first=st.integers(1, 60), count=st.integers(1, 12))
    def fold(self, first: int, count: int) -> None:
        ids = range(first, first + count)
        new = not any(number in self.taken for number in ids)
        assert self.coverage.take_folded(IdRange(ids[0], ids[-1], self.at(ids[0]), self.at(ids[-1])), SpanReason.REPAIRED) == new
        if new:
            self.taken.update(dict.fromkeys(ids, ("repaired", False)))

    @precondition(lambda self: self.coverage.missing())
    @rule(data=st.data())
    def mark_absent(self, data: st.DataObject) -> None:
        gap = data.draw(st.sampled_from(self.coverage.missing()))
        first = data.draw(st.integers(gap.first, gap.last))
        last = data.draw(st.integers(first, gap.last))
        self.coverage.mark_absent(first, last)
        self.absent.update(range(first, last + 1))

    @rule()
    def save(self) -> None:
        for span in self.coverage.changed():
            key = span.start, span.first_seq
            self.stored[key] = merge_spans(self.stored[key], span) if key in self.stored else span

    @rule()
    def restart(self) -> None:
        """A new process knows only the spans that were saved."""
        self.save()
        self.coverage = SequenceCoverage()
        self.coverage.add_stored(self.stored.values())

    @rule()
    def restart_after_a_kill(self) -> None:
        """A new process finds every trade stored, and only the spans that were saved before the last trades."""
        self.coverage = SequenceCoverage()
        self.coverage.add_stored(self.stored.values())
        self.absent = {number for span in self.coverage.spans if span.reason == "absent" for number in _ids(span)}
        covered = {number for span in self.coverage.covered for number in _ids(span)}
        rows = [trade(number, self.at(number)) for number, (_, raw) in self.taken.items() if raw]
        folded = [number for number, (_, raw) in self.taken.items() if not raw and number not in covered]
        self.coverage.add_stored_trades(rows, [IdRange(number, number, self.at(number), self.at(number)) for number in folded])

    @rule(numbers=st.lists(st.integers(50, 90), max_size=8))
    def start_before_the_store(self, numbers: list[int]) -> None:
        """A process that starts without its store takes trades first, and among them some that are stored already."""
        self.save()
        self.coverage = SequenceCoverage()
        for number in numbers:
            self.coverage.take(trade(number, self.at(number)), SpanReason.LIVE)
            self.taken.setdefault(number, ("live", True))
        self.coverage.add_stored(self.stored.values())

    @invariant()
    def spans_are_the_ids_that_were_taken(self) -> None:
        spans = [span for span in self.coverage.spans if span.reason != "absent"]
        ids = [number for span in spans for number in range(span.first_seq, span.last_seq + 1)]
        assert sorted(ids) == sorted(self.taken)

    @invariant()
    def missing_ids_are_those_between_that_were_not_taken(self) -> None:
        expected = set(range(min(self.taken, default=0), max(self.taken, default=0))) - set(self.taken) - self.absent
        gaps = self.coverage.missing()
        assert {number for gap in gaps for number in range(gap.first, gap.last + 1)} == expected
        for gap in gaps:
            assert gap.start <= self.at(gap.last) + 1
            assert gap.end >= self.at(gap.first)

    @invariant()
    def time_is_covered_only_where_all_of_its_trades_were_taken(self) -> None:
        for span in self.coverage.spans:
            if span.reason != "absent":
                ids = [number for number in range(1, 120) if span.start <= self.at(number) < span.end]
                assert all(number in self.taken for number in ids)


def _ids(span: Span) -> range:
    return range(span.first_seq, span.last_seq + 1)


TestSequenceCoverage = SequenceCoverageMachine.TestCase
