"""Imports the history of one market's instruments, newest first: finished days from the exchange's archive, the rest from REST pages.

It has the lowest priority at each host's rate limiter, after live collection and gap repair, and its trades go through the recorder.
Pages come in chunks that end where the tape begins. Where ids are gapless they join the tape exactly, by id. If an aggregate contains ids
on both sides of the boundary, gap repair fetches those ids.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

import anyio

from wadm_mcp.backoff import Backoff
from wadm_mcp.clock import CLOCK_SKEW, Clock, utc_text
from wadm_mcp.collection.backfill.archive_import import PARTIALS_AT_ONCE, ArchiveImport
from wadm_mcp.collection.backfill.history_plan import HistoryPlan, ImportStep, StepKey
from wadm_mcp.collection.disk_reserve import DiskReserve
from wadm_mcp.collection.recording.minute import partial_footprints
from wadm_mcp.collection.recording.recorded_instrument import RecordedInstrument
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.collection.rest.rate_limit import Priority
from wadm_mcp.coverage.judge import uncovered, without
from wadm_mcp.errors import ArchiveError, DiskReserved, ExchangeError
from wadm_mcp.exchanges.exchange import Aggregate, ArchiveFormat, Page, Venue
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import DAY, HOUR, MINUTE, Instrument, Timeframe, Window
from wadm_mcp.storage.store import Store

_MARGIN_MS: Final = 20 * MINUTE
"""History goes back this much further than configured, so that a query of exactly that length is covered completely."""
_CHUNK_MS: Final = HOUR
"""Market time whose pages are fetched in a row, oldest first within it."""
_POLL_SECONDS: Final = 2.0
_ARCHIVE_RETRY_SECONDS: Final = 15 * 60.0
"""Before an archive is asked again for a day that it lacked, or whose file was damaged. Yesterday's file may appear hours late."""
_ARCHIVE_DONE_SECONDS: Final = 24 * 3_600.0
"""Before a day's file is downloaded again after its import: exchanges rarely complete a file earlier."""
_FIRST_PAUSE_SECONDS: Final = 5.0
_MAX_PAUSE_SECONDS: Final = 60.0
"""Backoff of a step that failed; after the first pause other steps have their turn."""


def expired_text(length: int) -> str:
    """What is said of covered time (ms) whose minutes are deleted; nothing where there is none."""
    return f"; {length / HOUR:,.1f} hours were recorded and have expired, and are not imported again" if length else ""


class Remaining(NamedTuple):
    """What is still to be imported of a window: milliseconds of market time, estimated seconds (None: unknown), trades a second."""

    length: int
    seconds: float | None
    rate: int


def known_sum(seconds: Iterable[float | None]) -> float | None:
    """The sum, None if one of them is unknown."""
    known = list(seconds)
    return None if None in known else sum(filter(None, known))


class _Failure(NamedTuple):
    backoff: Backoff
    retry_at: float
    """Monotonic seconds."""
    why: str


class History:
    """Imports the last `reach` ms of every recorded instrument of a market until cancelled.

    `raw`, `trades_retention`, `folder` and `reserve` as of `ArchiveImport`.
    """

    def __init__(
        self,
        venue: Venue,
        rest: RestClient,
        recorder: Recorder,
        store: Store,
        health: Health,
        clock: Clock,
        *,
        reach: int,
        raw: bool,
        trades_retention: int,
        folder: Path,
        reserve: DiskReserve,
    ) -> None:
        self._venue = venue
        self._traits = venue.traits
        self._rest = rest
        self._recorder = recorder
        self._store = store
        self._health = health
        self._clock = clock
        self._reach = reach
        self._folder = folder
        self._plan = HistoryPlan(venue, clock, rest.limiter(venue).allowed)
        self._archive = ArchiveImport(
            venue, rest, recorder, store, health, clock, raw=raw, trades_retention=trades_retention, folder=folder, reserve=reserve
        )
        self._part = f"{venue.name} history"
        self.idle = anyio.Event()
        """Set while there is nothing that can be imported now; a new one each time there is."""
        self.requested: list[tuple[Callable[[Instrument], bool], Window]] = []
        """Windows that import jobs request beside `reach`, and of which instruments."""
        self._known_since: dict[Instrument, int] = {}
        self._failures: dict[StepKey, _Failure] = {}
        """Steps that failed; the others go on meanwhile."""
        self._empty_chunks: dict[Instrument, int] = {}
        """Consecutive empty chunks, n: the next chunk is 2**n times as long."""

    async def run(self) -> None:
        """Import what is missing, one day or chunk at a time, for ever."""
        while True:
            steps = self._steps()
            if not steps:
                # Before the first trade of an instrument it is not known what it lacks, and so which files are still needed.
                if self.instruments == self.recorded:
                    await self._archive.sweep()
                    self.idle.set()
                await anyio.sleep(_POLL_SECONDS)
                continue
            self._failures = {step.key: self._failures[step.key] for step in steps if step.key in self._failures}
            now = self._clock.monotonic()
            step = next((step for step in steps if step.key not in self._failures or self._failures[step.key].retry_at <= now), None)
            if step is None:
                await anyio.sleep(_POLL_SECONDS)
                continue
            if self.idle.is_set():
                self.idle = anyio.Event()
            await self._try(step)

    @property
    def recorded(self) -> list[Instrument]:
        """The recorded instruments of this market."""
        return [each.instrument for each in self._recorder.recorded if self._venue.trades_here(each.instrument)]

    @property
    def instruments(self) -> list[Instrument]:
        """The recorded instruments whose first recorded minute is known, so that an import knows where to end."""
        tapes = [self._recorder[instrument].tape for instrument in self.recorded]
        return [tape.instrument for tape in tapes if tape.resumed and tape.settled_until]

    def find(self, instrument: Instrument) -> RecordedInstrument | None:
        """One of `instruments`, None for any other."""
        return self._recorder[instrument] if instrument in self.instruments else None

    async def load_coverage(self, recorded: RecordedInstrument, window: Window) -> None:
        """Load the stored coverage of a window that may be older than the coverage loaded at start."""
        instrument, since = recorded.instrument, window.start
        if self._known_since.get(instrument, self._clock.now() - DAY) > since:
            recorded.add_stored(await self._store.spans(instrument, window))
            self._known_since[instrument] = since

    def remaining(self, matches: Callable[[Instrument], bool], window: Window) -> Remaining:
        """What is still to be imported of a window."""
        length, seconds, rate = 0, list[float | None](), 0
        for instrument in filter(matches, self.instruments):
            recorded = self._recorder[instrument]
            steps = self._plan.steps(recorded, self._plan.stretches(recorded, [window]))
            progress = self._plan.progress(recorded, window.start, steps)
            length += sum(step.stretch.window.length for step in steps)
            seconds.append(progress.seconds if progress is not None else 0.0)
            rate += (progress.rate or 0) if progress is not None else 0
        return Remaining(length, known_sum(seconds), rate)

    async def report(self, matches: Callable[[Instrument], bool], window: Window) -> list[str]:
        """A line for each instrument: how much of a window is covered now, and how much of what was covered is deleted."""
        lines: list[str] = []
        for instrument in filter(matches, self.instruments):
            gaps = uncovered(self._recorder[instrument].coverage.covered, window)
            deleted = (await self._store.expired(instrument)).of_bars(window, Timeframe.M1)
            covered = sum(part.length for part in without(window, [*gaps, *deleted]))
            expired = sum(part.length for part in without(window, gaps)) - covered
            lines.append(f"{instrument}: {covered / HOUR:,.1f} of {window.length / HOUR:,.1f} hours are covered{expired_text(expired)}")
        return lines

    async def take_file(self, recorded: RecordedInstrument, file: Path, day: Window, form: ArchiveFormat) -> int:
        """Import a file by hand; see `ArchiveImport.take_file`."""
        return await self._archive.take_file(recorded, file, day, form)

    def _steps(self) -> list[ImportStep]:
        """The steps to take, newest first. Reports progress on the way."""
        steps: dict[StepKey, ImportStep] = {}
        lines: list[str] = []
        now = self._clock.now()
        configured = Window((now - self._reach) // MINUTE * MINUTE - _MARGIN_MS, now)
        for instrument in self.instruments:
            recorded = self._recorder[instrument]
            windows = [configured] if self._reach else []
            windows += [window for matches, window in self.requested if matches(instrument)]
            stretches = self._plan.stretches(recorded, windows)
            mine = self._plan.steps(recorded, stretches)
            progress = self._plan.progress(recorded, min((window.start for window in windows), default=now), mine)
            recorded.tape.report_import(progress)
            if progress is not None:
                lines.append(f"{instrument.symbol}: {progress.text}")
            elif (day := self._plan.unpublished(recorded, stretches)) is not None:
                lines.append(f"{instrument.symbol}: the archive has no file of {day} yet")
            steps.update({step.key: step for step in mine})
        lines += dict.fromkeys(f"waits: {failure.why}" for key, failure in self._failures.items() if key in steps)
        self._health.report(self._part, State.OK, "; ".join(lines))
        return sorted(steps.values(), key=lambda step: step.stretch.window.end, reverse=True)

    async def _try(self, step: ImportStep) -> None:
        """Take a step; one that fails is retried later."""
        try:
            await self._import(step)
            self._failures.pop(step.key, None)
        except ArchiveError as error:
            # The next source is tried at once, where there is one.
            self._plan.postpone(step, _ARCHIVE_RETRY_SECONDS)
            self._health.count("history.damaged")
            log.warning("history.damaged", instrument=step.instrument, day=step.date, error=error)
        except (ExchangeError, DiskReserved, OSError) as error:
            why = f"{self._folder} cannot be written ({error.strerror}); make room there" if isinstance(error, OSError) else str(error)
            self._health.count("history.failures")
            self._health.report(self._part, State.OK, f"waits: {why}")
            log.warning("history.failed", **self._venue.log_fields, error=why)
            failed = self._failures.get(step.key)
            backoff = failed.backoff if failed is not None else Backoff(_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS)
            # A host that refuses delays what is requested of it alone: archives are other hosts.
            closed_for = 0.0 if step.from_archive else self._rest.closed_for(self._venue)
            self._failures[step.key] = _Failure(backoff, self._clock.monotonic() + max(backoff.next(), closed_for), why)
            await anyio.sleep(_FIRST_PAUSE_SECONDS)

    async def _import(self, step: ImportStep) -> None:
        began = self._clock.monotonic()
        step.recorded.being_imported = step.day if step.from_archive else step.stretch.window
        try:
            new = await (self._take_day(step) if step.from_archive else self._take_pages(step))
        finally:
            step.recorded.being_imported = None
        seconds = max(0.001, self._clock.monotonic() - began)
        if new:
            self._plan.learn_speed(step, new, seconds)
            since = utc_text(step.stretch.window.start)
            log.info("history.imported", instrument=step.instrument, since=since, trades=new, seconds=round(seconds, 1))

    async def _take_day(self, step: ImportStep) -> int:
        """Import a day from the archive; how many trades were new."""
        new = await self._archive.take_day(step)
        self._plan.postpone(step, _ARCHIVE_RETRY_SECONDS if new is None else _ARCHIVE_DONE_SECONDS)
        if new is None:
            log.info("history.not_published", instrument=step.instrument, day=step.date)
        return new or 0

    async def _take_pages(self, step: ImportStep) -> int:
        """Import the newest chunk of a stretch, page after page; how many trades were new."""
        instrument, window = step.instrument, step.stretch.window
        doubled = self._empty_chunks.get(instrument, 0)
        start = max(window.start, (window.end - (_CHUNK_MS << doubled)) // MINUTE * MINUTE)
        new = 0
        # Decided once a chunk: rows and aggregates are paged by ids of their own.
        as_rows = self._archive.stores_rows(start) and not self._rest.lacks_trades(self._venue)
        async for rows in self._pages(step, Window(start, window.end), as_rows=as_rows):
            if as_rows:
                new += await self._recorder.record_imported(instrument, [row.trade for row in rows])
            else:
                partials = partial_footprints(instrument, rows)
                new += await self._recorder.record_imported(instrument, (), partials)
                if len(partials) >= PARTIALS_AT_ONCE:
                    await self._recorder.until_stored(instrument, [partial.minute for partial in partials])
        if new:
            self._empty_chunks.pop(instrument, None)
        elif start > window.start:
            self._empty_chunks[instrument] = doubled + 1
        else:
            self._empty_chunks.pop(instrument, None)
            self._plan.mark_empty(step)
        return new

    async def _pages(self, step: ImportStep, chunk: Window, *, as_rows: bool) -> AsyncIterator[list[Aggregate]]:
        """Rows of a chunk that the stretch lacks, ascending, each minute whole in one list."""
        listing, (_, first, last) = step.recorded.tape.listing, step.stretch
        pending: list[Aggregate] = []
        page = await self._rest.aggregates(self._venue, listing, start=chunk.start)
        # A market that folds its history has its rows elsewhere; in another the aggregates are the rows.
        other_rows = as_rows and self._traits.folds_history
        if page and other_rows:
            page = await self._rows_from(step, page[0].trade.seq)
        while page:
            self._health.count("history.pages")
            if page.unreadable:
                # Their ids stay missing, and repair requests them.
                self._recorder.row_unreadable(step.instrument, page.unreadable)
            least, most, end = first or 0, last if last is not None else page[-1].last, chunk.end + CLOCK_SKEW
            pending += [row for row in page if row.trade.seq >= least and row.last <= most and row.trade.timestamp < end]
            newest = page[-1]
            complete = newest.trade.timestamp >= chunk.end or (last is not None and newest.last >= last)
            if complete or page.served < self._venue.traits.page_rows:
                break
            minute = newest.trade.timestamp - newest.trade.timestamp % MINUTE
            whole = [row for row in pending if row.trade.timestamp < minute]
            if whole:
                pending = pending[len(whole) :]
                yield whole
            if other_rows:
                page = await self._rows_from(step, newest.last + 1)
            else:
                page = await self._rest.aggregates(self._venue, listing, first=newest.number + 1)
        if pending:
            yield pending

    async def _rows_from(self, step: ImportStep, first: int) -> Page[Aggregate]:
        rows = await self._rest.trades(self._venue, step.recorded.tape.listing, first=first, priority=Priority.HISTORY)
        return Page([Aggregate(row.seq, row.seq, row) for row in rows], rows.served, rows.unreadable)
