"""The plan of an import, computed by hand: which history is missing, from where each part comes and in which order, how long it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from types import MappingProxyType
from typing import Final

import pytest

from tests.market import NOON, ManualClock, listing
from tests.venues import venue
from wadm_mcp.collection.backfill.history_plan import HistoryPlan, ImportStep, MissingStretch, date_of
from wadm_mcp.collection.recording.recorded_instrument import RecordedInstrument
from wadm_mcp.coverage.by_connection import ConnectionCoverage
from wadm_mcp.coverage.by_id import SequenceCoverage
from wadm_mcp.coverage.spans import Basis, Span, SpanReason
from wadm_mcp.exchanges.binance import Binance
from wadm_mcp.exchanges.bybit import Bybit
from wadm_mcp.exchanges.exchange import Exchange, MarketTraits, Venue
from wadm_mcp.model import DAY, HOUR, SECOND, Instrument, Window
from wadm_mcp.tape import Importing, Tape

SPOT: Final = Instrument("binance", "spot", "BTCUSDT")
OTHER_SPOT: Final = Instrument("binance", "spot", "ETHUSDT")
LINEAR: Final = Instrument("binance", "linear", "BTCUSDT")
BYBIT: Final = Instrument("bybit", "spot", "BTCUSDT")
MIDNIGHT: Final = NOON - 12 * HOUR
"""2026-06-01T00:00Z. The clock of these tests stands at 12:00 of this day; hours are counted from here."""
WEIGHT_PER_WINDOW: Final = 1_200


class BinanceWithoutArchive(Binance):
    traits: Mapping[str, MarketTraits] = MappingProxyType({name: replace(each, archive=None) for name, each in Binance.traits.items()})


class BybitWithoutArchive(Bybit):
    traits: Mapping[str, MarketTraits] = MappingProxyType({name: replace(each, archive=None) for name, each in Bybit.traits.items()})


def venue_of(instrument: Instrument, *, archive: bool = True) -> Venue:
    exchanges: dict[tuple[str, bool], Exchange] = {
        ("binance", True): Binance(),
        ("binance", False): BinanceWithoutArchive(),
        ("bybit", True): Bybit(),
        ("bybit", False): BybitWithoutArchive(),
    }
    return venue(exchanges[instrument.exchange, archive], instrument.market)


def window(start: float, end: float) -> Window:
    """A window in hours from midnight; hours before 0 are of earlier days."""
    return Window(MIDNIGHT + round(start * HOUR), MIDNIGHT + round(end * HOUR))


def part(start: float, end: float, first: int | None = None, last: int | None = None) -> MissingStretch:
    return MissingStretch(window(start, end), first, last)


def exact(start: float, end: float, first: int, last: int) -> Span:
    return Span(*times(start, end), first, last, Basis.EXACT)


def observed(start: float, end: float) -> Span:
    return Span(*times(start, end), -1, -1, Basis.OBSERVED)


def times(start: float, end: float) -> tuple[int, int]:
    covered = window(start, end)
    return covered.start, covered.end


class Planned:
    """A plan of one market, and one of its instruments with what is covered of it."""

    def __init__(self, instrument: Instrument, covered: Sequence[Span] = (), *, archive: bool = True) -> None:
        self.clock = ManualClock(NOON)
        self.venue = venue_of(instrument, archive=archive)
        self.plan = HistoryPlan(self.venue, self.clock, WEIGHT_PER_WINDOW)
        self.recorded = self.record(instrument, covered)

    def record(self, instrument: Instrument, covered: Sequence[Span]) -> RecordedInstrument:
        coverage = SequenceCoverage(covered) if self.venue.traits.has_gapless_ids else ConnectionCoverage(covered)
        return RecordedInstrument(Tape().follow(listing(instrument)), coverage, self.clock)

    def stretches(self, *windows: Window) -> list[MissingStretch]:
        return self.plan.stretches(self.recorded, windows)

    def steps(self, *parts: MissingStretch) -> list[ImportStep]:
        return self.plan.steps(self.recorded, parts)

    def step(self, wanted: MissingStretch) -> ImportStep:
        (step,) = self.steps(wanted)
        return step

    def source(self, wanted: MissingStretch) -> str:
        steps = self.steps(wanted)
        assert len(steps) <= 1
        return "nowhere" if not steps else "archive" if steps[0].from_archive else "pages"

    def unpublished(self, *parts: MissingStretch) -> date | None:
        return self.plan.unpublished(self.recorded, parts)

    def progress(self, *parts: MissingStretch, target: int = MIDNIGHT - DAY) -> Importing | None:
        return self.plan.progress(self.recorded, target, self.steps(*parts))


# Which stretches are wanted.

MILLISECOND: Final = 1 / HOUR

WANTED_WHERE_IDS_COUNT: Final[list[tuple[str, list[Span], Window, list[MissingStretch]]]] = [
    ("nothing before the first trade, since no id is known", [], window(-24, 12), []),
    ("all before the first recorded trade", [exact(10, 12, 500, 900)], window(7, 12), [part(7, 10, None, 499)]),
    ("nothing where the tape reaches back as far", [exact(7, 12, 500, 900)], window(7, 12), []),
    ("nothing where the tape reaches back further", [exact(3, 12, 500, 900)], window(7, 12), []),
    (
        "a millisecond before the first recorded trade",
        [exact(7 + MILLISECOND, 12, 500, 900)],
        window(7, 12),
        [part(7, 7 + MILLISECOND, None, 499)],
    ),
    ("only the window, where it ends before the tape begins", [exact(10, 12, 500, 900)], window(2, 4), [part(2, 4, None, 499)]),
    ("no gap of two hours: gap repair closes it", [exact(2, 4, 1, 100), exact(6, 12, 151, 900)], window(2, 12), []),
    (
        "a gap that is longer than two hours, with its ids",
        [exact(2, 4, 1, 100), exact(6 + MILLISECOND, 12, 151, 900)],
        window(2, 12),
        [part(4, 6 + MILLISECOND, 101, 150)],
    ),
    ("a long gap as far as the window has it", [exact(1, 2, 1, 100), exact(9, 12, 151, 900)], window(3, 5), [part(3, 5, 101, 150)]),
    (
        "a long gap although the window has only a minute of it",
        [exact(1, 2, 1, 100), exact(9, 12, 151, 900)],
        window(9 - 1 / 60, 12),
        [part(9 - 1 / 60, 9, 101, 150)],
    ),
    ("no gap that ends where the window begins", [exact(1, 2, 1, 100), exact(9, 12, 151, 900)], window(9, 12), []),
    ("no gap that begins where the window ends", [exact(1, 2, 1, 100), exact(9, 12, 151, 900)], window(1, 2), []),
    ("no time without trades, since no id is missing", [exact(1, 2, 1, 100), exact(9, 12, 101, 900)], window(1, 12), []),
    ("nothing after the newest trade", [exact(1, 2, 1, 100)], window(1, 12), []),
    (
        "gaps and the past, newest first",
        [exact(-2, -1, 201, 300), exact(3, 4, 401, 500), exact(9, 12, 601, 900)],
        window(-4, 12),
        [part(4, 9, 501, 600), part(0, 3, 301, 400), part(-1, 0, 301, 400), part(-4, -2, None, 200)],
    ),
]


@pytest.mark.parametrize(
    ("covered", "of", "wanted"), [each[1:] for each in WANTED_WHERE_IDS_COUNT], ids=[e[0] for e in WANTED_WHERE_IDS_COUNT]
)
def test_where_ids_count_history_wants(covered: list[Span], of: Window, wanted: list[MissingStretch]) -> None:
    assert Planned(SPOT, covered).stretches(of) == wanted


WANTED_WHERE_IDS_DO_NOT_COUNT: Final[list[tuple[str, list[Span], Window, list[MissingStretch]]]] = [
    ("everything before the first trade", [], window(-30, 12), [part(0, 12), part(-24, 0), part(-30, -24)]),
    ("all before the first recorded minute", [observed(10, 12)], window(7, 12), [part(7, 10)]),
    ("nothing where all of it is covered", [observed(6, 12)], window(7, 12), []),
    (
        "gaps of any length, newest first, and the time after the newest trade",
        [observed(2, 4), observed(4 + 1 / 60, 11)],
        window(1, 12),
        [part(11, 12), part(4, 4 + 1 / 60), part(1, 2)],
    ),
    ("only the window's part of a gap", [observed(1, 2), observed(9, 12)], window(3, 5), [part(3, 5)]),
]


@pytest.mark.parametrize(
    ("covered", "of", "wanted"), [each[1:] for each in WANTED_WHERE_IDS_DO_NOT_COUNT], ids=[e[0] for e in WANTED_WHERE_IDS_DO_NOT_COUNT]
)
def test_where_ids_do_not_count_history_wants(covered: list[Span], of: Window, wanted: list[MissingStretch]) -> None:
    assert Planned(BYBIT, covered).stretches(of) == wanted


def test_ids_that_the_exchange_does_not_have_are_not_wanted() -> None:
    planned = Planned(SPOT, [exact(1, 2, 1, 100), exact(9, 12, 151, 900)])
    planned.recorded.coverage.mark_absent(101, 150)
    assert planned.stretches(window(1, 12)) == []


def test_a_stretch_that_two_windows_want_is_planned_once() -> None:
    planned = Planned(SPOT, [exact(10, 12, 500, 900)])
    configured, requested = window(-24, 12), window(-48, 11)
    assert planned.stretches(configured, requested) == [part(0, 10, None, 499), part(-24, 0, None, 499), part(-48, -24, None, 499)]


def test_no_window_wants_nothing() -> None:
    assert Planned(SPOT, [exact(10, 12, 500, 900)]).stretches() == []


DAYS: Final[list[tuple[str, MissingStretch, list[MissingStretch]]]] = [
    ("a stretch within a day stays whole", part(3, 5, 7, 9), [part(3, 5, 7, 9)]),
    ("a whole day stays whole", part(-24, 0, 7, 9), [part(-24, 0, 7, 9)]),
    ("a stretch over midnight is cut there", part(-2, 3, 7, 9), [part(0, 3, 7, 9), part(-2, 0, 7, 9)]),
    ("a millisecond of another day is a part", part(-24, MILLISECOND), [part(0, MILLISECOND), part(-24, 0)]),
    ("the newest of several days is first", part(-50, 12), [part(0, 12), part(-24, 0), part(-48, -24), part(-50, -48)]),
    ("a stretch without length has no parts", part(3, 3), []),
]


@pytest.mark.parametrize(("whole", "parts"), [each[1:] for each in DAYS], ids=[each[0] for each in DAYS])
def test_a_stretch_is_divided_by_utc_days(whole: MissingStretch, parts: list[MissingStretch]) -> None:
    assert list(whole.by_days()) == parts


# From where a part comes.

ANY_REACH, SHORT_REACH, NO_REACH = SPOT, LINEAR, BYBIT
"""REST serves all ids, those of the last 47 hours, none."""
EDGE: Final = 12 - 47
"""Where the reach of REST ends, in hours."""

SOURCES: Final[list[tuple[str, Instrument, MissingStretch, bool, str]]] = [
    ("a finished day: its file", ANY_REACH, part(-24, 0, None, 9), True, "archive"),
    ("today: pages", ANY_REACH, part(0, 12, None, 9), True, "pages"),
    ("two hours of a finished day: its file", ANY_REACH, part(-2, 0, None, 9), True, "archive"),
    ("less than two hours: pages", ANY_REACH, part(-2 + MILLISECOND, 0, None, 9), True, "pages"),
    ("a finished day without an archive: pages", ANY_REACH, part(-24, 0, None, 9), False, "pages"),
    ("an old day without an archive: pages", ANY_REACH, part(-24_024, -24_000, None, 9), False, "pages"),
    ("little of an old day: pages", ANY_REACH, part(-24_001, -24_000, None, 9), True, "pages"),
    ("today with a short reach: pages", SHORT_REACH, part(0, 12, None, 9), True, "pages"),
    ("little within the short reach: pages", SHORT_REACH, part(-1, 0, None, 9), True, "pages"),
    ("little that ends within the reach: pages", SHORT_REACH, part(EDGE - 1, EDGE + MILLISECOND, None, 9), True, "pages"),
    ("little that ends where the reach begins: the file", SHORT_REACH, part(EDGE - 1, EDGE, None, 9), True, "archive"),
    ("an hour beyond the reach without an archive: nowhere", SHORT_REACH, part(EDGE - 1, EDGE, None, 9), False, "nowhere"),
    ("within the reach without an archive: pages", SHORT_REACH, part(-24, 0, None, 9), False, "pages"),
    ("a finished day without ids: its file", NO_REACH, part(-24, 0), True, "archive"),
    ("a minute of a finished day without ids: its file", NO_REACH, part(-1 / 60, 0), True, "archive"),
    ("today without ids: nowhere", NO_REACH, part(0, 12), True, "nowhere"),
    ("a finished day without ids or archive: nowhere", NO_REACH, part(-24, 0), False, "nowhere"),
]


@pytest.mark.parametrize(("instrument", "wanted", "archive", "source"), [each[1:] for each in SOURCES], ids=[each[0] for each in SOURCES])
def test_a_part_comes_from(instrument: Instrument, wanted: MissingStretch, archive: bool, source: str) -> None:
    assert Planned(instrument, archive=archive).source(wanted) == source


@pytest.mark.parametrize(("instrument", "before"), [(SPOT, "pages"), (BYBIT, "nowhere")], ids=str)
def test_the_archive_has_a_day_from_the_millisecond_on_in_which_it_ends(instrument: Instrument, before: str) -> None:
    planned = Planned(instrument)
    day = part(-24, 0, None, 9 if instrument is SPOT else None)
    planned.clock.at = MIDNIGHT - 1
    assert planned.source(day) == before
    planned.clock.at = MIDNIGHT
    assert planned.source(day) == "archive"


def test_a_step_states_its_whole_day_and_is_known_by_the_end_of_its_stretch_and_its_last_id() -> None:
    planned = Planned(SPOT)
    step = planned.step(part(-20, -3, 5, 9))
    assert step == ImportStep(planned.recorded, part(-20, -3, 5, 9), window(-24, 0), True)
    assert step.instrument == SPOT
    assert step.date == date(2026, 5, 31)
    assert step.key == (SPOT, MIDNIGHT - 3 * HOUR, 9)
    # A stretch that shrinks from its start is the same step: what failed is remembered of it.
    assert planned.step(part(-10, -3, 5, 9)).key == step.key
    assert planned.step(part(-20, -4, 5, 9)).key != step.key
    assert planned.step(part(-20, -3, 5, 8)).key != step.key


def test_a_day_begins_at_midnight_utc() -> None:
    assert date_of(MIDNIGHT - 1) == date(2026, 5, 31)
    assert date_of(MIDNIGHT) == date(2026, 6, 1)


def test_steps_keep_the_order_of_their_stretches_and_leave_out_what_has_no_source() -> None:
    planned = Planned(BYBIT)
    steps = planned.steps(*planned.stretches(window(-60, 12)))
    assert [(step.stretch, step.day) for step in steps] == [
        (part(-24, 0), window(-24, 0)),
        (part(-48, -24), window(-48, -24)),
        (part(-60, -48), window(-72, -48)),
    ]


# What attempts have shown.


@pytest.mark.parametrize(("instrument", "meanwhile"), [(SPOT, "pages"), (LINEAR, "pages"), (BYBIT, "nowhere")], ids=str)
def test_a_postponed_day_is_not_asked_of_the_archive_until_its_time_has_passed(instrument: Instrument, meanwhile: str) -> None:
    planned = Planned(instrument)
    day = part(-24, 0, None, None if instrument is BYBIT else 9)
    planned.plan.postpone(planned.step(day), 900.0)
    assert planned.source(day) == meanwhile
    planned.clock.pass_seconds(899.999)
    assert planned.source(day) == meanwhile
    planned.clock.pass_seconds(0.001)
    assert planned.source(day) == "archive"


def test_a_postponed_day_beyond_the_reach_of_rest_comes_from_nowhere() -> None:
    planned = Planned(LINEAR)
    day = part(-48, EDGE, None, 9)
    planned.plan.postpone(planned.step(day), 900.0)
    assert planned.source(day) == "nowhere"
    assert planned.source(part(-48, EDGE + MILLISECOND, None, 9)) == "pages"


def test_every_part_of_a_postponed_day_is_postponed_and_no_other_day_or_instrument() -> None:
    planned = Planned(SPOT)
    planned.plan.postpone(planned.step(part(-24, -12, None, 9)), 900.0)
    assert planned.source(part(-6, 0, 20, 30)) == "pages"
    assert planned.source(part(-48, -24, None, 9)) == "archive"
    other = planned.record(OTHER_SPOT, [])
    assert [step.from_archive for step in planned.plan.steps(other, [part(-24, -12, None, 9)])] == [True]


def test_a_day_that_is_postponed_again_waits_for_the_later_time() -> None:
    planned = Planned(BYBIT)
    step = planned.step(part(-24, 0))
    planned.plan.postpone(step, 900.0)
    planned.clock.pass_seconds(600)
    planned.plan.postpone(step, 900.0)
    planned.clock.pass_seconds(600)
    assert planned.source(part(-24, 0)) == "nowhere"


def test_an_empty_day_is_not_asked_for_again_from_pages_or_archive() -> None:
    planned = Planned(SPOT)
    planned.plan.mark_empty(planned.step(part(-20, -19, None, 9)))
    assert planned.source(part(-20, -19, None, 9)) == "nowhere"
    assert planned.source(part(-20, 0, None, 9)) == "nowhere"
    # The window begins later as time passes.
    assert planned.source(part(-19.5, -19, None, 9)) == "nowhere"


def test_a_part_of_a_day_before_the_empty_one_is_still_wanted() -> None:
    planned = Planned(SPOT)
    planned.plan.mark_empty(planned.step(part(5, 10, None, 9)))
    # A later job asks for more of that day: what had nothing is not asked for again.
    (step,) = planned.steps(part(0, 10, None, 9))
    assert (step.stretch, step.day, step.from_archive) == (part(0, 5, None, 9), window(0, 24), False)
    planned.plan.mark_empty(step)
    assert planned.source(part(0, 10, None, 9)) == "nowhere"
    assert planned.source(part(5, 10, None, 9)) == "nowhere"


def test_the_day_before_an_empty_one_is_still_wanted_and_so_is_another_instruments() -> None:
    planned = Planned(SPOT)
    planned.plan.mark_empty(planned.step(part(0, 10, None, 9)))
    assert planned.steps(part(0, 10, None, 9), part(-24, 0, None, 9)) == [planned.step(part(-24, 0, None, 9))]
    other = planned.record(OTHER_SPOT, [])
    assert len(planned.plan.steps(other, [part(0, 10, None, 9)])) == 1


def test_an_empty_day_is_wanted_again_before_another_id() -> None:
    planned = Planned(SPOT)
    planned.plan.mark_empty(planned.step(part(0, 10, None, 9)))
    assert planned.source(part(0, 10, None, 8)) == "pages"


# Days that the archive has not published.


def test_the_newest_finished_day_that_waits_for_the_archive_is_stated() -> None:
    planned = Planned(BYBIT)
    assert planned.unpublished(*planned.stretches(window(-60, 12))) == date(2026, 5, 31)


def test_the_newest_day_that_waits_is_stated_whichever_window_wants_it() -> None:
    planned = Planned(BYBIT)
    assert planned.unpublished(*planned.stretches(window(-72, -48), window(-30, 12))) == date(2026, 5, 31)


def test_today_does_not_wait_for_the_archive() -> None:
    assert Planned(BYBIT).unpublished(part(0, 12)) is None


def test_a_day_that_is_known_to_be_empty_does_not_wait_for_the_archive() -> None:
    planned = Planned(SPOT)
    planned.plan.mark_empty(planned.step(part(-24, 0, None, 9)))
    assert planned.unpublished(part(-24, 0, None, 9)) is None
    assert planned.unpublished(part(-24, 0, None, 9), part(-48, -24, None, 9)) == date(2026, 5, 30)


def test_nothing_waits_where_there_is_no_archive_or_nothing_is_missing() -> None:
    assert Planned(BYBIT, archive=False).unpublished(part(-24, 0)) is None
    assert Planned(BYBIT).unpublished() is None


# How far an import is.


def test_there_is_no_progress_where_there_is_no_step() -> None:
    assert Planned(BYBIT).progress(part(0, 12)) is None


def test_progress_states_the_target_and_the_end_of_the_newest_step() -> None:
    progress = Planned(SPOT, [exact(11, 12, 10, 19)]).progress(part(-48, -24, None, 9), part(0, 11, None, 9), target=MIDNIGHT - 2 * DAY)
    assert progress is not None
    assert (progress.target, progress.reached) == (MIDNIGHT - 2 * DAY, MIDNIGHT + 11 * HOUR)


def test_nothing_is_said_of_the_time_that_days_take_until_one_was_imported_and_then_each_takes_as_long_as_the_last_one() -> None:
    planned = Planned(BYBIT)
    days = [part(-24, 0), part(-48, -24), part(-60, -48)]
    assert planned.progress(*days) == Importing(MIDNIGHT - DAY, MIDNIGHT, None, None)
    planned.plan.learn_speed(planned.step(days[0]), 1_000_000, 50.0)
    assert planned.progress(*days[1:]) == Importing(MIDNIGHT - DAY, MIDNIGHT - DAY, 20_000, 100.0)
    planned.plan.learn_speed(planned.step(days[1]), 8, 3.0)
    assert planned.progress(*days[2:]) == Importing(MIDNIGHT - DAY, MIDNIGHT - 2 * DAY, 3, 3.0)


def test_one_file_is_estimated_once_however_many_stretches_it_has() -> None:
    planned = Planned(BYBIT)
    parts = [part(-2, -1), part(-5, -4), part(-24, -20), part(-26, -25)]
    planned.plan.learn_speed(planned.step(part(-48, -47)), 3_000, 30.0)
    assert planned.progress(*parts) == Importing(MIDNIGHT - DAY, MIDNIGHT - HOUR, 100, 60.0)


def test_pages_tell_the_speed_of_their_instrument_and_not_how_long_a_day_from_the_archive_takes() -> None:
    planned = Planned(SPOT)
    planned.plan.learn_speed(planned.step(part(0, 10, None, 9)), 3_000, 2.0)
    assert planned.progress(part(-24, 0, None, 9)) == Importing(MIDNIGHT - DAY, MIDNIGHT, 1_500, None)
    other = planned.record(OTHER_SPOT, [])
    progress = planned.plan.progress(other, MIDNIGHT - DAY, planned.plan.steps(other, [part(-24, 0, None, 9)]))
    assert progress == Importing(MIDNIGHT - DAY, MIDNIGHT, None, None)


SECOND_OF_HOUR: Final = SECOND / HOUR

PAGE_SECONDS: Final[list[tuple[str, Instrument, list[Span], MissingStretch, float]]] = [
    # 7.2 million ids an hour, two of which make an aggregate: in two hours 7,200 pages of 1,000. Each weighs 4, and 1,200 fit a minute.
    ("folded trades at their rate", SPOT, [exact(11, 12, 1, 7_200_000)], part(9, 11, None, 0), 1_440.0),
    # The ids are not folded: 14,400 pages, each of which weighs 20.
    ("single trades at their rate", LINEAR, [exact(11, 12, 1, 7_200_000)], part(9, 11, None, 0), 14_400.0),
    # 7.2 million ids in two hours of three: the hour between them, which is not covered, does not count.
    (
        "the rate of what is covered, without its gaps",
        SPOT,
        [exact(9, 10, 1, 3_600_000), exact(11, 12, 9_000_001, 12_600_000)],
        part(7, 9, None, 0),
        720.0,
    ),
    # 600 ids in six seconds count as 600 in a minute: 36,000 in an hour, which are 18 pages of weight 4.
    ("a tape of six seconds as if it were a minute", SPOT, [exact(12 - 6 * SECOND_OF_HOUR, 12, 1, 600)], part(10, 11, None, 0), 3.6),
    ("a second at least", SPOT, [exact(11, 12, 1, 100)], part(9, 11, None, 0), 1.0),
]


@pytest.mark.parametrize(
    ("instrument", "covered", "wanted", "seconds"), [each[1:] for each in PAGE_SECONDS], ids=[each[0] for each in PAGE_SECONDS]
)
def test_the_time_that_pages_take_is_estimated_by(
    instrument: Instrument, covered: list[Span], wanted: MissingStretch, seconds: float
) -> None:
    progress = Planned(instrument, covered).progress(wanted)
    assert progress is not None
    assert progress.seconds == pytest.approx(seconds, rel=1e-9)


def test_the_time_left_is_that_of_all_steps() -> None:
    planned = Planned(SPOT, [exact(11, 12, 1, 7_200_000)])
    planned.plan.learn_speed(planned.step(part(-72, -48, None, 0)), 3_000, 30.0)
    progress = planned.progress(part(9, 11, None, 0), part(-24, 0, None, 0), part(-48, -24, None, 0))
    assert progress is not None
    assert progress.seconds == pytest.approx(1_440 + 30 + 30, rel=1e-9)


def test_an_import_that_follows_the_plan_takes_each_day_once_and_ends() -> None:
    """Each step covers what it was for, and the next plan wants the rest."""
    planned = Planned(BYBIT, [observed(-30, -29), observed(-1, 12)])
    wanted = window(-30, 12)
    taken: list[tuple[Window, bool]] = []
    while steps := planned.steps(*planned.stretches(wanted)):
        taken.append((steps[0].day, steps[0].from_archive))
        planned.recorded.coverage.cover(steps[0].day, SpanReason.IMPORTED, raw=True)
    assert taken == [(window(-24, 0), True), (window(-48, -24), True)]
    assert planned.stretches(wanted) == []
