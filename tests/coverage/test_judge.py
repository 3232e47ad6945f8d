from __future__ import annotations

from itertools import accumulate, count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.market import NOON
from wadm_mcp.coverage.judge import IN_TRANSIT, Gap, Judgement, is_covered, judge, uncovered, without
from wadm_mcp.coverage.spans import DIFFERING_SEQ, Basis, GapReason, Span, SpanReason
from wadm_mcp.model import Window

_MOMENTS = st.integers(0, 60)


def exact(
    start: int, end: int, first: int, last: int, opened_by: GapReason = GapReason.DISCONNECT, reason: SpanReason = SpanReason.LIVE
) -> Span:
    return Span(start, end, first, last, Basis.EXACT, reason, opened_by)


def observed(start: int, end: int, opened_by: GapReason = GapReason.DISCONNECT, reason: SpanReason = SpanReason.LIVE) -> Span:
    return Span(start, end, -1, -1, Basis.OBSERVED, reason, opened_by)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    start, end = sorted((draw(_MOMENTS), draw(_MOMENTS)))
    return Window(start, end)


@st.composite
def observed_spans(draw: st.DrawFn) -> list[Span]:
    pairs = draw(st.lists(st.tuples(_MOMENTS, _MOMENTS), max_size=8))
    return [observed(min(pair), max(pair)) for pair in pairs]


@st.composite
def recorded_ids(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]]]:
    """Times of trades 0, 1, 2, ... and stretches of recorded ids, first and last included."""
    times = list(accumulate(draw(st.lists(st.integers(0, 9), min_size=1, max_size=12))))
    ids = st.integers(0, len(times) - 1)
    stretches = draw(st.lists(st.tuples(ids, ids), max_size=6))
    return times, [(min(pair), max(pair)) for pair in stretches]


def exact_spans(times: list[int], stretches: list[tuple[int, int]]) -> list[Span]:
    """The spans of stretches of ids. A span begins after the millisecond of its first trade, in which earlier trades may be missing."""
    return [exact(times[first] + 1, max(times[first] + 1, times[last]), first, last) for first, last in stretches]


def runs_of(stretches: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """First and last id of each run of recorded ids."""
    ids = {number for first, last in stretches for number in range(first, last + 1)}
    return [(number, next(last for last in count(number) if last + 1 not in ids)) for number in sorted(ids) if number - 1 not in ids]


def covered_moments(times: list[int], spans: list[Span], runs: list[tuple[int, int]]) -> set[int]:
    """The milliseconds that runs of exact spans cover."""
    # A span without length does not show whether its last trade came in the millisecond after its first.
    ends = [max(span.reached for span in spans if first <= span.first_seq <= last) for first, last in runs]
    return {moment for (first, _), end in zip(runs, ends, strict=True) for moment in range(times[first] + 1, end)}


@given(observed_spans(), windows(), _MOMENTS, st.none() | _MOMENTS)
def test_every_millisecond_is_covered_or_in_a_gap(spans: list[Span], window: Window, now: int, alive_until: int | None) -> None:
    covered = {moment for span in spans for moment in range(span.start, span.end)}
    if spans and alive_until is not None:
        covered |= set(range(max(span.end for span in spans), min(alive_until, now)))
    horizon = now
    if spans and alive_until is not None and window.end > now:
        # An open window is judged as far as the live tape reaches; all moments here are within IN_TRANSIT.
        horizon = min(now, max([min(alive_until, now), *(span.end for span in spans)]))
    judged = range(window.start, min(window.end, horizon))
    judgement = judge(spans, window, now, alive_until)
    missing = [moment for gap in judgement.gaps for moment in range(gap.start, gap.end)]
    assert sorted(missing) == sorted(set(judged) - covered)
    assert (judgement.covered, judgement.judged) == (len(covered & set(judged)), len(judged))
    assert all(gap.missing_trades is None for gap in judgement.gaps)


@given(recorded_ids(), windows(), _MOMENTS)
def test_consecutive_ids_leave_no_gap_whatever_time_lies_between_them(
    tape: tuple[list[int], list[tuple[int, int]]], window: Window, now: int
) -> None:
    times, stretches = tape
    spans, runs = exact_spans(times, stretches), runs_of(stretches)
    covered = covered_moments(times, spans, runs)
    judged = range(window.start, min(window.end, now))
    judgement = judge(spans, window, now)
    missing = [moment for gap in judgement.gaps for moment in range(gap.start, gap.end)]
    assert sorted(missing) == sorted(set(judged) - covered)
    everything = judge(spans, Window(0, 1_000), 1_000)
    missing_ids = sum(later[0] - earlier[1] - 1 for earlier, later in pairwise(runs))
    assert sum(gap.missing_trades or 0 for gap in everything.gaps) == missing_ids


@given(observed_spans(), windows(), _MOMENTS, st.lists(windows(), max_size=3))
def test_data_beyond_its_retention_is_a_gap_with_reason_expired_and_counted_once(
    spans: list[Span], window: Window, now: int, lost: list[Window]
) -> None:
    judgement = judge(spans, window, now, None, lost)
    judged = set(range(window.start, min(window.end, now)))
    covered = {moment for span in spans for moment in range(span.start, span.end)} & judged
    deleted = {moment for stretch in lost for moment in range(stretch.start, stretch.end)} & covered
    expired = [moment for gap in judgement.gaps if gap.reason is GapReason.EXPIRED for moment in range(gap.start, gap.end)]
    assert sorted(expired) == sorted(deleted)
    assert judgement.covered == len(covered - deleted)


@given(observed_spans(), windows(), _MOMENTS)
def test_the_covered_share_is_truncated_and_a_million_only_if_nothing_is_missing(spans: list[Span], window: Window, now: int) -> None:
    judgement = judge(spans, window, now)
    if judgement.judged:
        assert (judgement.millionths == 1_000_000) == (not judgement.gaps)
        assert judgement.millionths <= judgement.covered * 1_000_000 / judgement.judged
    else:
        assert judgement.millionths == 0


def test_an_empty_window_is_not_covered_and_has_no_gap() -> None:
    assert judge([observed(0, 60)], Window(10, 10), 30).millionths == 0
    assert judge([observed(0, 60)], Window(40, 50), 30) == (0, 0, None, ())


def test_a_missing_id_between_spans_that_touch_lowers_a_full_window() -> None:
    spans = [exact(0, 10, 1, 5), exact(10, 20, 8, 9, GapReason.MISSING_IDS)]
    judgement = judge(spans, Window(0, 20), 20)
    assert judgement.gaps == (Gap(10, 10, 2, GapReason.MISSING_IDS),)
    assert judgement.covered == judgement.judged
    assert judgement.millionths == 999_999


@pytest.mark.parametrize("window", [Window(5, 10), Window(10, 15)])
def test_a_gap_without_length_counts_in_the_windows_on_both_sides_of_it(window: Window) -> None:
    assert judge([exact(0, 10, 1, 5), exact(10, 20, 8, 9)], window, 20).millionths == 999_999


def test_spans_that_overlap_in_time_and_miss_ids_have_a_gap() -> None:
    assert judge([exact(0, 10, 1, 5), exact(8, 20, 7, 9, GapReason.MUTE)], Window(0, 20), 20).gaps == (Gap(8, 8, 1, GapReason.MUTE),)


def test_a_gap_has_its_missing_trades_and_the_reason_that_opened_it() -> None:
    judgement = judge([exact(0, 10, 1, 5), exact(12, 20, 9, 12, GapReason.DISCONNECT)], Window(0, 20), 20)
    assert judgement.gaps == (Gap(10, 12, 3, GapReason.DISCONNECT),)
    assert judgement.millionths == 900_000


def test_a_gap_that_is_partly_in_the_window_has_no_number_of_missing_trades() -> None:
    assert judge([exact(0, 10, 1, 5), exact(20, 30, 9, 12)], Window(15, 30), 30).gaps == (Gap(15, 20, None, GapReason.DISCONNECT),)


def test_the_gap_before_the_first_span_is_not_recorded_and_the_one_after_the_last_depends_on_a_live_connection() -> None:
    spans, window = [exact(10, 20, 1, 5, GapReason.START)], Window(0, 40)
    assert [gap[:2] + gap[3:] for gap in judge(spans, window, 30).gaps] == [(0, 10, "not_recorded"), (20, 30, "not_recorded")]
    assert judge(spans, Window(0, 30), 30, 25).gaps[-1] == Gap(25, 30, None, GapReason.NOT_YET_SEEN)
    assert judge(spans, window, 30, 99).gaps == (Gap(0, 10, None, GapReason.NOT_RECORDED),)


def test_ids_that_no_reply_has_in_readable_form_are_a_gap_of_their_own_reason() -> None:
    def lost(first: int, last: int, reason: GapReason) -> Span:
        return Span(10, 20, first, last, Basis.EXACT, SpanReason.ABSENT, reason)

    spans = [exact(0, 10, 1, 5), exact(20, 30, 9, 12)]
    for parts, reason in (
        ([lost(6, 8, GapReason.ABSENT)], GapReason.ABSENT),
        ([lost(6, 8, GapReason.UNREADABLE)], GapReason.UNREADABLE),
        ([lost(6, 6, GapReason.ABSENT), lost(7, 7, GapReason.UNREADABLE), lost(8, 8, GapReason.ABSENT)], GapReason.UNREADABLE),
        ([lost(6, 7, GapReason.UNREADABLE)], GapReason.DISCONNECT),
    ):
        assert judge([*spans, *parts], Window(0, 30), 30).gaps == (Gap(10, 20, 3, reason),)


def test_an_open_window_is_judged_as_far_as_the_live_tape_reaches() -> None:
    spans = [exact(0, 20, 1, 5, GapReason.START)]
    assert judge(spans, Window(10, 60_000), 30, 25) == Judgement(15, 15, Basis.EXACT, ())


def test_a_live_tape_that_lags_too_far_behind_now_has_a_gap_up_to_now() -> None:
    spans, now = [exact(0, 20, 1, 5, GapReason.START)], 25 + IN_TRANSIT + 1
    assert judge(spans, Window(0, 60_000), now, 25).gaps == (Gap(25, now, None, GapReason.NOT_YET_SEEN),)


def test_a_live_connection_does_not_extend_an_imported_span() -> None:
    gaps = judge([exact(0, 10, 1, 5, reason=SpanReason.IMPORTED)], Window(0, 20), 20, 20).gaps
    assert gaps == (Gap(10, 20, None, GapReason.NOT_YET_SEEN),)


def test_older_versions_of_a_span_from_the_store_change_nothing() -> None:
    assert judge([exact(0, 10, 1, 5), exact(0, 20, 1, 9), exact(0, 4, 1, 2)], Window(0, 20), 20).millionths == 1_000_000


def test_one_observed_span_makes_the_whole_basis_observed() -> None:
    assert judge([exact(0, 10, 1, 5), observed(10, 20)], Window(0, 20), 20).basis is Basis.OBSERVED
    assert judge([exact(0, 10, 1, 5), observed(10, 20)], Window(0, 10), 20).basis is Basis.EXACT


def test_the_millisecond_of_a_single_trade_is_not_covered_by_the_span_that_follows_it_by_id() -> None:
    # 87 traded at NOON - 1 with 88, which is missing: nobody knows that millisecond whole.
    spans = [
        Span(NOON - 50, NOON - 9, 1, 86, Basis.EXACT),
        Span(NOON, NOON, 87, 87, Basis.EXACT),
        Span(NOON + 9, NOON + 20, 89, 99, Basis.EXACT),
    ]
    assert judge(spans, Window(NOON - 50, NOON), NOON).gaps == (Gap(NOON - 1, NOON, None, GapReason.START),)


def test_a_span_without_single_trades_is_a_gap_in_raw_coverage() -> None:
    spans = [
        Span(NOON - 90, NOON - 50, 1, 9, Basis.EXACT),
        Span(NOON - 49, NOON - 20, 10, 19, Basis.EXACT, SpanReason.REPAIRED, GapReason.MISSING_IDS, raw=False),
        Span(NOON - 19, NOON, 20, 29, Basis.EXACT, SpanReason.LIVE, GapReason.MISSING_IDS),
    ]
    window = Window(NOON - 80, NOON - 5)
    assert judge(spans, window, NOON).gaps == ()
    assert judge(spans, window, NOON, raw=True).gaps == (Gap(NOON - 50, NOON - 19, 10, GapReason.WITHOUT_ROWS),)


@given(observed_spans(), windows())
def test_uncovered_stretches_are_every_millisecond_outside_all_spans(spans: list[Span], window: Window) -> None:
    stretches = uncovered(spans, window)
    covered = {moment for span in spans for moment in range(span.start, span.end)}
    missing = [moment for moment in range(window.start, window.end) if moment not in covered]
    assert [moment for stretch in stretches for moment in range(stretch.start, stretch.end)] == missing
    assert all(stretch.length for stretch in stretches)


def test_uncovered_ignores_missing_ids() -> None:
    assert uncovered([exact(0, 10, 1, 5), exact(10, 20, 8, 9)], Window(0, 20)) == []
    assert uncovered([exact(0, 10, 1, 5), exact(12, 20, 6, 9)], Window(0, 20)) == [Window(10, 12)]


@given(observed_spans(), windows(), _MOMENTS)
def test_a_past_window_of_observed_spans_is_covered_if_every_millisecond_is(spans: list[Span], window: Window, now: int) -> None:
    covered = {moment for span in spans for moment in range(span.start, span.end)}
    complete = window.end <= now and covered >= set(range(window.start, window.end))
    assert is_covered(spans, window, now) == (complete or not window.length)


@given(recorded_ids(), windows(), _MOMENTS)
def test_a_past_window_of_exact_spans_is_covered_if_every_millisecond_is_and_no_id_is_missing(
    tape: tuple[list[int], list[tuple[int, int]]], window: Window, now: int
) -> None:
    times, stretches = tape
    spans, runs = exact_spans(times, stretches), runs_of(stretches)
    covered = covered_moments(times, spans, runs)
    complete = window.end <= now and covered >= set(range(window.start, window.end))
    found = is_covered(spans, window, now)
    if not window.length or len(runs) < 2:
        assert found == (complete or not window.length)
    elif found:
        recorded = {number for first, last in runs for number in range(first, last + 1)}
        assert complete
        assert all(number in recorded for number, at in enumerate(times) if at in window)


def test_a_window_with_a_missing_id_between_spans_that_touch_is_not_covered() -> None:
    spans = [exact(0, 10, 1, 5), exact(10, 20, 8, 9)]
    assert not is_covered(spans, Window(5, 15), 20)
    assert is_covered(spans, Window(5, 9), 20)
    assert is_covered([exact(0, 10, 1, 5), exact(10, 20, 6, 9)], Window(5, 15), 20)


def test_a_window_that_is_not_over_is_not_covered() -> None:
    assert is_covered([observed(0, 20)], Window(5, 15), 15)
    assert not is_covered([observed(0, 20)], Window(5, 15), 14)


def differing(start: int, end: int) -> Span:
    return Span(start, end, DIFFERING_SEQ, DIFFERING_SEQ, Basis.OBSERVED, SpanReason.DIFFERS, GapReason.CANDLE_DIFFERS)


@pytest.mark.parametrize("raw", [False, True])
def test_a_minute_whose_candle_differs_is_a_gap_whatever_covers_it(raw: bool) -> None:
    spans = [differing(10, 20), observed(0, 40)]
    judgement = judge(spans, Window(0, 40), 40, raw=raw)
    assert judgement == (30, 40, Basis.OBSERVED, (Gap(10, 20, None, GapReason.CANDLE_DIFFERS),))
    assert not is_covered(spans, Window(15, 25), 40)
    assert is_covered(spans, Window(20, 40), 40)


def test_a_minute_whose_candle_differs_is_reported_once_and_only_where_nothing_else_is_the_reason() -> None:
    spans = [differing(10, 20), observed(0, 12), observed(15, 40, GapReason.MUTE)]
    assert judge(spans, Window(0, 40), 40).gaps == (
        Gap(10, 12, None, GapReason.CANDLE_DIFFERS),
        Gap(12, 15, None, GapReason.MUTE),
        Gap(15, 20, None, GapReason.CANDLE_DIFFERS),
    )
    assert judge([differing(10, 20), observed(0, 40)], Window(0, 40), 40, expired=[Window(0, 20)]).gaps == (
        Gap(0, 20, None, GapReason.EXPIRED),
    )


def test_a_minute_whose_candle_differs_covers_nothing() -> None:
    assert judge([differing(10, 20)], Window(10, 20), 40).covered == 0


def test_gaps_that_touch_and_have_the_same_reason_are_one() -> None:
    spans = [observed(0, 10), observed(20, 20, GapReason.SILENCE), observed(30, 40, GapReason.SILENCE)]
    judgement = judge(spans, Window(0, 40), 40)
    assert judgement.gaps == (Gap(10, 30, None, GapReason.SILENCE),)
    assert (judgement.covered, judgement.judged) == (20, 40)
    spans = [observed(0, 10), observed(20, 20, GapReason.DISCONNECT), observed(30, 40, GapReason.SILENCE)]
    assert len(judge(spans, Window(0, 40), 40).gaps) == 2


def test_the_missing_trades_of_gaps_that_touch_are_added_where_both_are_known() -> None:
    spans = [exact(0, 10, 1, 5), exact(20, 20, 9, 9), exact(30, 40, 12, 15)]
    assert judge(spans, Window(0, 40), 40).gaps == (Gap(10, 30, 5, GapReason.DISCONNECT),)
    # Of the part of a gap that lies in the window it is not known how many trades are missing.
    assert judge(spans, Window(12, 40), 40).gaps == (Gap(12, 20, None, GapReason.DISCONNECT), Gap(20, 30, 2, GapReason.DISCONNECT))


def test_a_gap_without_length_is_not_joined_to_the_one_before_since_its_trades_may_be_after_it() -> None:
    spans = [exact(0, 10, 1, 5), exact(20, 20, 9, 9), exact(20, 40, 12, 15)]
    assert judge(spans, Window(0, 40), 40).gaps == (Gap(10, 20, 3, GapReason.DISCONNECT), Gap(20, 20, 2, GapReason.DISCONNECT))


def test_what_is_left_of_a_window_lies_in_none_of_the_gaps_in_any_order() -> None:
    gaps = [Window(50, 60), Window(-5, 10), Window(55, 70), Window(95, 120)]
    assert without(Window(0, 100), gaps) == [Window(10, 50), Window(70, 95)]
    assert without(Window(0, 100), []) == [Window(0, 100)]
    assert without(Window(0, 100), [Window(0, 100)]) == []
