from __future__ import annotations

from itertools import accumulate, count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.market import BYBIT, NOON, SPOT, listing
from tests.queries.world import Held, World, made
from wadm_mcp.coverage.judge import IN_TRANSIT, Gap, Judgement, judge
from wadm_mcp.model import DAY, HOUR, MINUTE, Basis, GapReason, Retention, Span, SpanReason, Timeframe, Window
from wadm_mcp.queries.coverage import LISTED, coverage, expired_bars, expired_trades, ratio
from wadm_mcp.queries.scope import ask, read_scope
from wadm_mcp.tape import Importing

anyio_test = pytest.mark.anyio

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
def watched(draw: st.DrawFn) -> list[Span]:
    pairs = draw(st.lists(st.tuples(_MOMENTS, _MOMENTS), max_size=8))
    return [observed(min(pair), max(pair)) for pair in pairs]


@st.composite
def counted(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]]]:
    """Times of trades 0, 1, 2, ... and stretches of ids that are held."""
    times = list(accumulate(draw(st.lists(st.integers(0, 9), min_size=1, max_size=12))))
    ids = st.integers(0, len(times) - 1)
    held = draw(st.lists(st.tuples(ids, ids), max_size=6))
    return times, [(min(pair), max(pair)) for pair in held]


@given(watched(), windows(), _MOMENTS, st.none() | _MOMENTS)
def test_every_millisecond_is_covered_or_in_a_gap(spans: list[Span], window: Window, now: int, alive_until: int | None) -> None:
    covered = {moment for span in spans for moment in range(span.start, span.end)}
    if spans and alive_until is not None:
        covered |= set(range(max(span.end for span in spans), min(alive_until, now)))
    told = now
    if spans and alive_until is not None and window.end > now:
        # An open window is judged as far as the living tape has come; these moments are all within IN_TRANSIT.
        told = min(now, max([min(alive_until, now), *(span.end for span in spans)]))
    asked = range(window.start, min(window.end, told))
    judgement = judge(spans, window, now, alive_until)
    missing = [moment for gap in judgement.gaps for moment in range(gap.start, gap.end)]
    assert sorted(missing) == sorted(set(asked) - covered)
    assert (judgement.covered, judgement.judged) == (len(covered & set(asked)), len(asked))
    assert all(gap.missing_trades is None for gap in judgement.gaps)


@given(counted(), windows(), _MOMENTS)
def test_ids_that_follow_each_other_leave_no_gap_whatever_time_lies_between(
    tape: tuple[list[int], list[tuple[int, int]]], window: Window, now: int
) -> None:
    times, stretches = tape
    # Of a first trade's millisecond others may be missing.
    spans = [exact(times[first] + 1, max(times[first] + 1, times[last]), first, last) for first, last in stretches]
    held = {number for first, last in stretches for number in range(first, last + 1)}
    runs = [(number, next(last for last in count(number) if last + 1 not in held)) for number in held if number - 1 not in held]
    # A span of no length does not tell whether its last trade came in the millisecond after its first.
    reached = [max(span.reached for span in spans if first <= span.first_seq <= last) for first, last in runs]
    covered = {moment for (first, _), end in zip(runs, reached, strict=True) for moment in range(times[first] + 1, end)}
    asked = range(window.start, min(window.end, now))
    judgement = judge(spans, window, now)
    missing = [moment for gap in judgement.gaps for moment in range(gap.start, gap.end)]
    assert sorted(missing) == sorted(set(asked) - covered)
    everything = judge(spans, Window(0, 1_000), 1_000)
    lost = set(range(min(held), max(held))) - held if held else set()
    assert sum(gap.missing_trades or 0 for gap in everything.gaps) == len(lost)


@given(watched(), windows(), _MOMENTS, st.lists(windows(), max_size=3))
def test_what_outlived_its_life_is_told_as_expired_and_counted_once(
    spans: list[Span], window: Window, now: int, lost: list[Window]
) -> None:
    judgement = judge(spans, window, now, None, lost)
    asked = set(range(window.start, min(window.end, now)))
    held = {moment for span in spans for moment in range(span.start, span.end)} & asked
    gone = {moment for stretch in lost for moment in range(stretch.start, stretch.end)} & held
    expired = [moment for gap in judgement.gaps if gap.reason is GapReason.EXPIRED for moment in range(gap.start, gap.end)]
    assert sorted(expired) == sorted(gone)
    assert judgement.covered == len(held - gone)


@given(watched(), windows(), _MOMENTS)
def test_the_ratio_is_truncated_and_one_only_when_nothing_is_missing(spans: list[Span], window: Window, now: int) -> None:
    judgement = judge(spans, window, now)
    if judgement.judged:
        assert (judgement.millionths == 1_000_000) == (not judgement.gaps)
        assert judgement.millionths <= judgement.covered * 1_000_000 / judgement.judged
    else:
        assert judgement.millionths == 0


def test_a_hundred_percent_is_a_whole_one_and_nothing_is_a_whole_zero() -> None:
    full, empty = judge([observed(0, 60)], Window(10, 20), 30), judge([], Window(10, 20), 30)
    assert (ratio(full), full.basis, full.gaps) == (1, Basis.OBSERVED, ())
    assert isinstance(ratio(full), int)
    assert (ratio(empty), empty.basis, empty.gaps) == (0, None, (Gap(10, 20, None, GapReason.NOT_RECORDED),))
    assert isinstance(ratio(empty), int)


def test_an_empty_window_has_ratio_zero_and_no_gap() -> None:
    assert ratio(judge([observed(0, 60)], Window(10, 10), 30)) == 0
    assert judge([observed(0, 60)], Window(40, 50), 30) == (0, 0, None, ())


def test_a_third_is_truncated_to_six_decimals() -> None:
    assert ratio(judge([observed(0, 2)], Window(0, 3), 3)) == 0.666666


def test_a_missing_id_between_spans_that_touch_lowers_a_full_window() -> None:
    spans = [exact(0, 10, 1, 5), exact(10, 20, 8, 9, GapReason.MISSING_IDS)]
    judgement = judge(spans, Window(0, 20), 20)
    assert judgement.gaps == (Gap(10, 10, 2, GapReason.MISSING_IDS),)
    assert judgement.covered == judgement.judged
    assert ratio(judgement) == 0.999999


@pytest.mark.parametrize("window", [Window(5, 10), Window(10, 15)])
def test_a_gap_without_length_counts_in_the_windows_on_both_its_sides(window: Window) -> None:
    assert ratio(judge([exact(0, 10, 1, 5), exact(10, 20, 8, 9)], window, 20)) == 0.999999


def test_spans_that_overlap_in_time_and_miss_ids_have_a_gap() -> None:
    assert judge([exact(0, 10, 1, 5), exact(8, 20, 7, 9, GapReason.MUTE)], Window(0, 20), 20).gaps == (Gap(8, 8, 1, GapReason.MUTE),)


def test_a_gap_counts_its_missing_trades_and_names_what_opened_it() -> None:
    judgement = judge([exact(0, 10, 1, 5), exact(12, 20, 9, 12, GapReason.DISCONNECT)], Window(0, 20), 20)
    assert judgement.gaps == (Gap(10, 12, 3, GapReason.DISCONNECT),)
    assert ratio(judgement) == 0.9


def test_a_gap_that_lies_partly_in_the_window_cannot_be_counted() -> None:
    assert judge([exact(0, 10, 1, 5), exact(20, 30, 9, 12)], Window(15, 30), 30).gaps == (Gap(15, 20, None, GapReason.DISCONNECT),)


def test_before_the_first_span_nothing_was_recorded_and_behind_the_last_it_depends_on_a_living_connection() -> None:
    spans, window = [exact(10, 20, 1, 5, GapReason.START)], Window(0, 40)
    assert [gap[:2] + gap[3:] for gap in judge(spans, window, 30).gaps] == [(0, 10, "not_recorded"), (20, 30, "not_recorded")]
    assert judge(spans, Window(0, 30), 30, 25).gaps[-1] == Gap(25, 30, None, GapReason.NOT_YET_SEEN)
    assert judge(spans, window, 30, 99).gaps == (Gap(0, 10, None, GapReason.NOT_RECORDED),)


def test_an_open_window_is_judged_as_far_as_a_living_tape_has_come() -> None:
    spans = [exact(0, 20, 1, 5, GapReason.START)]
    assert judge(spans, Window(10, 60_000), 30, 25) == Judgement(15, 15, Basis.EXACT, ())


def test_a_living_tape_far_behind_now_is_missing_what_lies_between() -> None:
    spans, now = [exact(0, 20, 1, 5, GapReason.START)], 25 + IN_TRANSIT + 1
    assert judge(spans, Window(0, 60_000), now, 25).gaps == (Gap(25, now, None, GapReason.NOT_YET_SEEN),)


def test_a_living_connection_says_nothing_of_what_was_imported() -> None:
    gaps = judge([exact(0, 10, 1, 5, reason=SpanReason.IMPORTED)], Window(0, 20), 20, 20).gaps
    assert gaps == (Gap(10, 20, None, GapReason.NOT_YET_SEEN),)


def test_a_live_span_stands_beside_the_older_state_of_it_in_the_store() -> None:
    assert ratio(judge([exact(0, 10, 1, 5), exact(0, 20, 1, 9), exact(0, 4, 1, 2)], Window(0, 20), 20)) == 1


def test_one_observed_span_makes_the_whole_basis_observed() -> None:
    assert judge([exact(0, 10, 1, 5), observed(10, 20)], Window(0, 20), 20).basis is Basis.OBSERVED
    assert judge([exact(0, 10, 1, 5), observed(10, 20)], Window(0, 10), 20).basis is Basis.EXACT


_LIVES = Retention(HOUR, DAY, 10 * DAY)


@pytest.mark.parametrize(
    ("window", "unit", "lost"),
    [
        (Window(NOON - 2 * HOUR, NOON), Timeframe.M5, []),
        (Window(NOON - 26 * HOUR, NOON), Timeframe.M5, [Window(NOON - 26 * HOUR, NOON - DAY)]),
        (Window(NOON - 26 * HOUR, NOON), Timeframe.H1, []),
        (Window(NOON - 26 * HOUR - MINUTE, NOON - 25 * HOUR), Timeframe.H1, [Window(NOON - 26 * HOUR - MINUTE, NOON - 26 * HOUR)]),
        (Window(NOON - 26 * HOUR, NOON - 25 * HOUR + MINUTE), Timeframe.H1, [Window(NOON - 25 * HOUR, NOON - 25 * HOUR + MINUTE)]),
        (
            Window(NOON - 26 * HOUR + MINUTE, NOON - 26 * HOUR + 2 * MINUTE),
            Timeframe.H1,
            [Window(NOON - 26 * HOUR + MINUTE, NOON - 26 * HOUR + 2 * MINUTE)],
        ),
        (Window(NOON - 11 * DAY, NOON), Timeframe.H1, [Window(NOON - 11 * DAY, NOON - 10 * DAY)]),
    ],
)
def test_old_minutes_are_lost_where_no_whole_hour_stands_for_them(window: Window, unit: Timeframe, lost: list[Window]) -> None:
    assert expired_bars(_LIVES, NOON, window, unit) == lost
    assert expired_bars(None, NOON, window, unit) == []


def test_raw_trades_are_lost_after_their_life() -> None:
    assert expired_trades(_LIVES, NOON, Window(NOON - 2 * HOUR, NOON)) == [Window(NOON - 2 * HOUR, NOON - HOUR)]
    assert expired_trades(_LIVES, NOON, Window(NOON - HOUR, NOON)) == []
    assert expired_trades(None, NOON, Window(0, NOON)) == []


@anyio_test
async def test_a_merged_answer_carries_the_worst_part_on_top() -> None:
    world = World(now=NOON)
    world.cover(SPOT, NOON - 2 * HOUR, NOON).cover(BYBIT, NOON - HOUR // 2, NOON)
    world.add([made(1, NOON - 5), made(2, NOON - 700, instrument=BYBIT)])
    told = await coverage(world.view, read_scope(world.view, ask(world.view, "q"), symbol="BTCUSDT"))
    assert list(told) == ["ratio", "basis", "gaps", "newest_trade_at", "lag_ms", "broken", "worst", "parts"]
    assert {name: part["ratio"] for name, part in told["parts"].items()} == {"binance": 1, "bybit": 0.5}
    assert told["worst"] == "bybit"
    assert {**told["parts"]["bybit"], "broken": [], "worst": "bybit", "parts": told["parts"]} == told
    assert told["lag_ms"] == 700
    assert told["gaps"] == [["2026-06-01T11:00:00Z", "2026-06-01T11:30:00Z", None, "not_recorded"]]


@anyio_test
async def test_a_window_that_reaches_into_what_is_being_imported_says_so_and_for_how_long() -> None:
    world = World(listing(SPOT), now=NOON).cover(SPOT, NOON - HOUR, NOON)
    world.tape[SPOT].report_import(Importing(NOON - DAY, NOON - HOUR, 50_000, 41.6))
    call = ask(world.view, "q")
    told = await coverage(world.view, read_scope(world.view, call, symbol="BTCUSDT", exchange="binance", window="4h"))
    assert told["importing"] == {"from": "2026-05-31T12:00:00Z", "reached": "2026-06-01T11:00:00Z", "seconds": 42}
    assert told["gaps"] == [["2026-06-01T08:00:00Z", "2026-06-01T11:00:00Z", None, "importing"]]
    for window in ("1h", "15m"):
        told = await coverage(world.view, read_scope(world.view, call, symbol="BTCUSDT", exchange="binance", window=window))
        assert "importing" not in told
        assert told["gaps"] == []


def test_the_millisecond_of_a_single_trade_is_not_claimed_by_what_follows_it_by_id() -> None:
    # 87 traded at NOON - 1 with 88, which is missing: nobody knows that millisecond whole.
    spans = [
        Span(NOON - 50, NOON - 9, 1, 86, Basis.EXACT),
        Span(NOON, NOON, 87, 87, Basis.EXACT),
        Span(NOON + 9, NOON + 20, 89, 99, Basis.EXACT),
    ]
    assert judge(spans, Window(NOON - 50, NOON), NOON).gaps == (Gap(NOON - 1, NOON, None, GapReason.START),)


@anyio_test
async def test_of_equally_covered_parts_the_one_that_lags_most_is_on_top() -> None:
    world = World(now=NOON)
    world.cover(SPOT, NOON - 2 * HOUR, NOON).cover(BYBIT, NOON - 2 * HOUR, NOON)
    world.add([made(1, NOON - 5_000), made(2, NOON - 700, instrument=BYBIT)])
    scope = read_scope(world.view, ask(world.view, "q"), symbol="BTCUSDT")
    assert (await coverage(world.view, scope))["lag_ms"] == 5_000
    world.tape[BYBIT].newest = None
    world.tape[BYBIT].pending.clear()
    assert (await coverage(world.view, scope))["lag_ms"] is None


@anyio_test
async def test_the_newest_trade_comes_from_the_store_when_memory_is_empty_and_as_of_hides_later_ones() -> None:
    world = World(listing(SPOT), now=NOON).cover(SPOT, 0, NOON)
    world.add([made(1, NOON - 2 * HOUR - 1), made(2, NOON - HOUR)], durable_until=NOON)
    call = ask(world.view, "q")
    for newest in (world.tape[SPOT].newest, None):
        world.tape[SPOT].newest = newest
        told = await coverage(world.view, read_scope(world.view, call, symbol="BTCUSDT", exchange="binance"))
        assert (told["newest_trade_at"], told["lag_ms"]) == ("2026-06-01T11:00:00Z", HOUR)
        then = await coverage(world.view, read_scope(world.view, call, symbol="BTCUSDT", exchange="binance", as_of=NOON - HOUR))
        assert (then["newest_trade_at"], then["lag_ms"]) == ("2026-06-01T09:59:59.999Z", HOUR + 1)


@anyio_test
async def test_of_many_gaps_the_newest_are_listed_and_the_others_counted() -> None:
    world = World(listing(SPOT), now=NOON)
    spans = [observed(NOON - (index + 1) * MINUTE, NOON - index * MINUTE - 1_000) for index in reversed(range(60))]
    world.tape[SPOT].start_recording(Held(spans))
    told = await coverage(world.view, read_scope(world.view, ask(world.view, "q"), symbol="BTCUSDT", exchange="binance"))
    assert list(told)[2:4] == ["gaps", "more_gaps"]
    assert (len(told["gaps"]), told["more_gaps"]) == (LISTED, 60 - LISTED)
    assert told["gaps"][-1] == ["2026-06-01T11:59:59Z", "2026-06-01T12:00:00Z", None, "not_recorded"]


def test_for_rows_a_stretch_held_as_figures_alone_is_a_gap_with_the_milliseconds_of_its_outermost_trades() -> None:
    spans = [
        Span(NOON - 90, NOON - 50, 1, 9, Basis.EXACT),
        Span(NOON - 49, NOON - 20, 10, 19, Basis.EXACT, SpanReason.REPAIRED, GapReason.MISSING_IDS, raw=False),
        Span(NOON - 19, NOON, 20, 29, Basis.EXACT, SpanReason.LIVE, GapReason.MISSING_IDS),
    ]
    window = Window(NOON - 80, NOON - 5)
    assert judge(spans, window, NOON).gaps == ()
    assert judge(spans, window, NOON, raw=True).gaps == (Gap(NOON - 50, NOON - 19, 10, GapReason.WITHOUT_ROWS),)
