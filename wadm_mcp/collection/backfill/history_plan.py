"""What history of an instrument is missing, and in which steps it can be imported. No I/O.

A step is a part of one day, from its archive file or from REST pages. What is to be done follows each time from what is covered, so the
import can stop anywhere and continue from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from wadm_mcp.clock import Clock
from wadm_mcp.collection.backfill.gap_repair import FILLS_PER_AGGREGATE, LONG_GAP
from wadm_mcp.collection.recording.recorded_instrument import RecordedInstrument
from wadm_mcp.coverage.judge import uncovered
from wadm_mcp.exchanges.exchange import Venue
from wadm_mcp.model import DAY, MINUTE, SECOND, Instrument, Window
from wadm_mcp.tape import Importing


class MissingStretch(NamedTuple):
    """A time range `[start, end)` without coverage and, where ids are gapless, its ids `first` (None: unknown) to `last`."""

    window: Window
    first: int | None = None
    last: int | None = None

    def by_days(self) -> Iterator[MissingStretch]:
        """Its parts by UTC day, newest first."""
        window = self.window
        cuts = [window.start, *range(window.start - window.start % DAY + DAY, window.end, DAY), window.end]
        for start, end in reversed(list(pairwise(cuts))):
            if start < end:
                yield self._replace(window=Window(start, end))


StepKey: TypeAlias = tuple[Instrument, int, int | None]
"""Instrument, end of the stretch (ms) and its last id."""


_EmptyKey: TypeAlias = tuple[Instrument, int, int | None]
"""Instrument, start of a day (ms), and the last id of a stretch."""


class ImportStep(NamedTuple):
    """One step of an import: a part of one day of one instrument."""

    recorded: RecordedInstrument
    stretch: MissingStretch
    day: Window
    from_archive: bool

    @property
    def instrument(self) -> Instrument:
        return self.recorded.instrument

    @property
    def date(self) -> date:
        return date_of(self.day.start)

    @property
    def key(self) -> StepKey:
        return self.instrument, self.stretch.window.end, self.stretch.last


class HistoryPlan:
    """Plans the import of one market's history. It remembers what an attempt has shown: files that are not there, empty days, speeds.

    `weight_per_window` is the request weight that the rate limiter allows per window.
    """

    def __init__(self, venue: Venue, clock: Clock, weight_per_window: int) -> None:
        self._venue = venue
        self._traits = venue.traits
        self._clock = clock
        self._weight_per_window = weight_per_window
        self._not_before: dict[tuple[Instrument, int], float] = {}
        """When (monotonic seconds) the archive may be asked again for a day."""
        self._empty_since: dict[_EmptyKey, int] = {}
        """The time (ms) from which on the exchange has nothing of a day before an id."""
        self._rates: dict[Instrument, int] = {}
        self._day_seconds: float | None = None
        """What the last imported day's file took."""

    # What attempts have shown.

    def postpone(self, step: ImportStep, seconds: float) -> None:
        """Do not ask the archive for this day again for some time."""
        self._not_before[step.instrument, step.day.start] = self._clock.monotonic() + seconds

    def mark_empty(self, step: ImportStep) -> None:
        """The exchange has nothing between the start of the stretch, which is a part of one day, and its last id."""
        key = _empty_key(step.recorded, step.stretch)
        self._empty_since[key] = min(step.stretch.window.start, self._empty_since.get(key, step.stretch.window.start))

    def learn_speed(self, step: ImportStep, trades: int, seconds: float) -> None:
        """A step brought this many trades in this time."""
        self._rates[step.instrument] = round(trades / seconds)
        if step.from_archive:
            self._day_seconds = seconds

    # The plan.

    def stretches(self, recorded: RecordedInstrument, windows: Sequence[Window]) -> list[MissingStretch]:
        """What is missing of these windows and is not for gap repair, by days, each once, newest first within a window."""
        parts = [part for window in windows for stretch in self._missing(recorded, window) for part in stretch.by_days()]
        return list(dict.fromkeys(parts))

    def steps(self, recorded: RecordedInstrument, stretches: Sequence[MissingStretch]) -> list[ImportStep]:
        """The steps that can be taken now."""
        return [step for stretch in stretches if (step := self._step(recorded, stretch)) is not None]

    def unpublished(self, recorded: RecordedInstrument, stretches: Sequence[MissingStretch]) -> date | None:
        """The newest finished day of these that could not be imported, and is not known to be empty."""
        if self._traits.archive is None:
            return None
        today = self._clock.now() // DAY
        days = [part.window.start for part in stretches if part.window.start // DAY < today and not self._is_empty(recorded, part)]
        return date_of(max(days)) if days else None

    def progress(self, recorded: RecordedInstrument, target: int, steps: Sequence[ImportStep]) -> Importing | None:
        """How far an import back to `target` (ms) is, None where there is no step to take. The time left is unknown until a day's file was
        imported, if files are left."""
        if not steps:
            return None
        reached = max(step.stretch.window.end for step in steps)
        # One file has every stretch of its day.
        files = {step.day.start for step in steps if step.from_archive}
        pages = sum(self._page_seconds(recorded, step.stretch.window) for step in steps if not step.from_archive)
        seconds = pages if not files else None if self._day_seconds is None else len(files) * self._day_seconds + pages
        return Importing(target, reached, self._rates.get(recorded.instrument), seconds)

    def _missing(self, recorded: RecordedInstrument, window: Window) -> list[MissingStretch]:
        covered = recorded.coverage.covered
        if not self._traits.has_gapless_ids:
            return [MissingStretch(gap) for gap in reversed(uncovered(covered, window))]
        if not covered:
            return []
        found = [
            MissingStretch(Window(max(gap.start, window.start), min(gap.end, window.end)), gap.first, gap.last)
            for gap in reversed(recorded.coverage.missing())
            if gap.end - gap.start > LONG_GAP and gap.start < window.end and gap.end > window.start
        ]
        oldest = covered[0]
        if oldest.start > window.start:
            found.append(MissingStretch(Window(window.start, min(window.end, oldest.start)), None, oldest.first_seq - 1))
        return found

    def _step(self, recorded: RecordedInstrument, part: MissingStretch) -> ImportStep | None:
        """How a part of one day can be imported now, None where it cannot."""
        traits, window, now = self._traits, part.window, self._clock.now()
        start = window.start - window.start % DAY
        day = Window(start, start + DAY)
        postponed = self._not_before.get((recorded.instrument, start), 0.0) > self._clock.monotonic()
        archived = traits.archive is not None and day.end <= now and not postponed
        if not traits.has_gapless_ids:
            return ImportStep(recorded, part, day, True) if archived else None
        if self._is_empty(recorded, part):
            return None
        empty_since = self._empty_since.get(_empty_key(recorded, part))
        if empty_since is not None:
            # What was asked of this day before had nothing; only the time before that is left to be asked.
            window = Window(window.start, min(window.end, empty_since))
            part = part._replace(window=window)
        served = traits.rest_reach is None or window.end > now - traits.rest_reach
        if archived and (window.length >= LONG_GAP or not served):
            return ImportStep(recorded, part, day, True)
        return ImportStep(recorded, part, day, False) if served else None

    def _is_empty(self, recorded: RecordedInstrument, part: MissingStretch) -> bool:
        empty_since = self._empty_since.get(_empty_key(recorded, part))
        return empty_since is not None and empty_since <= part.window.start

    def _page_seconds(self, recorded: RecordedInstrument, window: Window) -> float:
        """Time that REST pages need within the rate limit, if the market traded as in what is covered."""
        covered = recorded.coverage.covered
        ids = sum(span.last_seq - span.first_seq + 1 for span in covered)
        lasted = max(MINUTE, sum(span.end - span.start for span in covered))
        fold = FILLS_PER_AGGREGATE if self._traits.folds_history else 1
        pages = ids * window.length / lasted / fold / self._traits.page_rows
        exchange, market = self._venue.exchange, self._venue.market
        weight = exchange.aggregates_request(market, recorded.instrument.symbol, start=0).weight
        return max(1.0, pages * weight * exchange.allowance(market).seconds / self._weight_per_window)


def _empty_key(recorded: RecordedInstrument, part: MissingStretch) -> _EmptyKey:
    return recorded.instrument, part.window.start // DAY * DAY, part.last


def date_of(at: int) -> date:
    """The UTC day of a time (ms)."""
    return datetime.fromtimestamp(at / SECOND, UTC).date()
