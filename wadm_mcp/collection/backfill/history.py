"""Brings in the past of one market's instruments, newest first: what the exchange's archive has of finished days, the rest from REST.

It comes behind live collection and repair in each host's budget, and takes the recorder's one road. What is to be done follows at every
step from what is held, so that it can end at any point and go on from there: a file stays on disk until the store has all of it, pages
come in chunks that end where the tape begins. Where the exchange numbers its trades the seam is exact by id, and the ids that an
aggregate straddles it with are left for repair to ask for; where it does not, a minute comes whole from the archive or from the tape.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from itertools import islice, pairwise
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import anyio
from anyio import from_thread, to_thread

from wadm_mcp.clock import Clock
from wadm_mcp.collection.backfill import archive_file
from wadm_mcp.collection.backfill.archive_minutes import PackedPiece, numbered_minutes, whole_minutes
from wadm_mcp.collection.backfill.gap_repair import LONG_GAP, REACH
from wadm_mcp.collection.recording.minute import pieces_of
from wadm_mcp.collection.recording.recorded_instrument import RecordedInstrument
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.collection.rest.rate_limit import Priority
from wadm_mcp.coverage.spans import ABSENT
from wadm_mcp.errors import ArchiveError, ExchangeError
from wadm_mcp.exchanges.exchange import Aggregate, ArchiveFormat, Venue
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import DAY, HOUR, MINUTE, SECOND, Basis, Instrument, Span, Trade, Window
from wadm_mcp.storage.store import Store
from wadm_mcp.tape import Importing

_MARGIN: Final = 20 * MINUTE
"""History reaches this much further back than is asked for, so that a question of just that length finds all of it."""
_CHUNK: Final = HOUR
"""Market time whose pages are fetched in a row, oldest first within it."""
_PAGE: Final = 1_000
_PIECES: Final = 30
"""Pieces that wait for the store at once: unpacked, each is as large as its minute was busy."""
_ROWS: Final = 1_000
_EVERY: Final = 2.0
_AGAIN: Final = 15 * 60.0
"""Seconds before an archive is asked again for a day that it lacked, or that was damaged. Yesterday's may appear hours late."""
_DONE_FOR: Final = 24 * 3_600.0
"""Seconds before a day's file is fetched again that was imported: what it lacked, it will hardly have sooner."""
_PAUSE: Final = 5.0
_LONGEST_PAUSE: Final = 60.0
"""Seconds before what failed is tried again, longer each time; after the first of them something else has its turn."""
_SKEW: Final = 5 * SECOND
_FILLS_PER_AGGREGATE: Final = 2
_DAY_SECONDS: Final = 30.0
"""What a day's file is taken to need, until one was imported. For the time left, nothing else."""


class _Stretch(NamedTuple):
    """A part of the past that is not held: times `[start, end)`, and of numbered trades the ids `first` (None: unknown) to `last`."""

    window: Window
    first: int | None = None
    last: int | None = None


_Key: TypeAlias = tuple[Instrument, int, int | None]


class _Job(NamedTuple):
    followed: RecordedInstrument
    stretch: _Stretch
    """Within one day."""
    day: Window
    from_archive: bool

    @property
    def instrument(self) -> Instrument:
        return self.followed.tape.instrument

    @property
    def date(self) -> date:
        return _date(self.day.start)

    @property
    def key(self) -> _Key:
        return self.instrument, self.stretch.window.end, self.stretch.last


class History:
    """Imports the last `reach` ms of every followed instrument of a market until cancelled.

    With `raw` single trades are kept as well, where their source has the instrument's own ids and they are younger than `trades_life`
    (ms). `folder` holds files while they are being imported.
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
        trades_life: int,
        folder: Path,
    ) -> None:
        self._venue = venue
        self._rest = rest
        self._recorder = recorder
        self._store = store
        self._health = health
        self._clock = clock
        self._reach = reach
        self._raw = raw
        self._trades_life = trades_life
        self._folder = folder
        self._form = venue.exchange.archives[venue.market]
        self._numbered = venue.exchange.numbers_trades[venue.market]
        self._budget = rest.budget(venue)
        self._part = f"{venue.name} history"
        self.idle = anyio.Event()
        """Set as long as there is nothing that can be brought in now; another one each time it has to do."""
        self.wanted: list[tuple[Callable[[Instrument], bool], Window]] = []
        """Windows that somebody ordered beside, and of which instruments."""
        self._known_since: dict[Instrument, int] = {}
        self._not_before: dict[tuple[Instrument, int], float] = {}
        """When (monotonic) an archive may be asked again for a day."""
        self._emptied: set[tuple[Instrument, int, int | None]] = set()
        """Days of stretches, with their last id, that turned out to hold nothing before it."""
        self._failed: dict[_Key, tuple[float, float]] = {}
        """Seconds that a job which failed is left alone, and until when (monotonic); the others go on meanwhile."""
        self._widened: dict[Instrument, int] = {}
        """How often in a row an instrument's chunk held nothing: the next is so many times twice as long."""
        self._rates: dict[Instrument, int] = {}
        self._day_seconds = _DAY_SECONDS

    async def run(self) -> None:
        """Bring in what is missing, one day or chunk at a time, for ever."""
        while True:
            jobs = self._jobs()
            if not jobs:
                # While nothing has come in of an instrument it is not known what it lacks, and so which files are still of use.
                if self.instruments == self.recorded:
                    await self._sweep()
                    self.idle.set()
                await anyio.sleep(_EVERY)
                continue
            self._failed = {job.key: self._failed[job.key] for job in jobs if job.key in self._failed}
            now = self._clock.monotonic()
            job = next((job for job in jobs if self._failed.get(job.key, (0.0, 0.0))[1] <= now), None)
            if job is None:
                await anyio.sleep(_EVERY)
                continue
            if self.idle.is_set():
                self.idle = anyio.Event()
            try:
                await self._import(job)
                self._failed.pop(job.key, None)
            except ArchiveError as error:
                # The next source is tried at once, where there is one.
                self._not_before[job.instrument, job.day.start] = self._clock.monotonic() + _AGAIN
                self._health.count("history.damaged")
                log.warning("history.damaged", instrument=job.instrument, day=job.date, error=error)
            except (ExchangeError, OSError) as error:
                why = error if isinstance(error, ExchangeError) else f"{self._folder} cannot be written ({error.strerror}); make room there"
                self._health.count("history.failures")
                self._health.report(self._part, State.OK, f"waits: {why}")
                log.warning("history.failed", **self._venue.log_fields, error=why)
                pause = min(_LONGEST_PAUSE, self._failed[job.key][0] * 2) if job.key in self._failed else _PAUSE
                self._failed[job.key] = pause, self._clock.monotonic() + pause
                await anyio.sleep(max(_PAUSE, self._budget.state.closed_for))

    def _jobs(self) -> list[_Job]:
        """What is to be done, newest first. Tells on the way how far it is."""
        jobs: dict[_Key, _Job] = {}
        told: list[str] = []
        now = self._clock.now()
        base = Window((now - self._reach) // MINUTE * MINUTE - _MARGIN, now)
        for instrument in self.instruments:
            followed = self._recorder[instrument]
            tape = followed.tape
            windows = [base] if self._reach else []
            windows += [window for matches, window in self.wanted if matches(instrument)]
            parts = self._parts(followed, windows)
            mine = [job for part in parts if (job := self._job(followed, part)) is not None]
            tape.importing = self._progress(followed, min((window.start for window in windows), default=now), mine)
            if tape.importing is not None:
                reached = datetime.fromtimestamp(tape.importing.reached / SECOND, UTC).strftime("%Y-%m-%dT%H:%MZ")
                left = f"{tape.importing.rate:,} trades/s, about {tape.importing.seconds:,.0f} s are left"
                told.append(f"{instrument.symbol}: imported back to {reached}, {left}")
            elif finished := [
                part.window.start for part in parts if part.window.start // DAY < now // DAY and not self._is_empty(followed, part)
            ]:
                told.append(f"{instrument.symbol}: the archive has no file of {_date(finished[0])} yet")
            jobs.update({job.key: job for job in mine})
        self._health.report(self._part, State.OK, "; ".join(told))
        return sorted(jobs.values(), key=lambda job: job.stretch.window.end, reverse=True)

    @property
    def recorded(self) -> list[Instrument]:
        """Those of this market that are recorded."""
        every = [followed.tape.instrument for followed in self._recorder.recorded]
        return [instrument for instrument in every if self._venue.trades_here(instrument)]

    @property
    def instruments(self) -> list[Instrument]:
        """Those of them of which the tape knows where it begins."""
        tapes = [self._recorder[instrument].tape for instrument in self.recorded]
        return [tape.instrument for tape in tapes if tape.resumed and tape.settled_until]

    def followed(self, instrument: Instrument) -> RecordedInstrument | None:
        """What the recorder knows of an instrument of this market."""
        return self._recorder[instrument] if instrument in self.instruments else None

    async def know(self, followed: RecordedInstrument, window: Window) -> None:
        """Learn what the store holds of a window that lies before what a start looks at."""
        instrument, since = followed.tape.instrument, window.start
        if self._known_since.get(instrument, self._clock.now() - DAY) > since:
            followed.add_stored(await self._store.spans(instrument, window), ())
            self._known_since[instrument] = since

    def left(self, matches: Callable[[Instrument], bool], window: Window) -> tuple[int, float, int]:
        """What is still to be imported of a window: milliseconds of market time, about how many seconds that takes, and trades a second."""
        length, seconds, rate = 0, 0.0, 0
        for instrument in [instrument for instrument in self.instruments if matches(instrument)]:
            followed = self._recorder[instrument]
            jobs = [job for part in self._parts(followed, [window]) if (job := self._job(followed, part)) is not None]
            how = self._progress(followed, window.start, jobs)
            length += sum(job.stretch.window.length for job in jobs)
            seconds += how.seconds if how is not None else 0.0
            rate += how.rate if how is not None else 0
        return length, seconds, rate

    def told(self, matches: Callable[[Instrument], bool], window: Window) -> list[str]:
        """A line for each instrument: how much of a window is held now."""
        lines: list[str] = []
        for instrument in [instrument for instrument in self.instruments if matches(instrument)]:
            missing = sum(gap.length for gap in _between(_held(self._recorder[instrument]), window))
            lines.append(f"{instrument}: {(window.length - missing) / HOUR:,.1f} of {window.length / HOUR:,.1f} hours are held")
        return lines

    def _parts(self, followed: RecordedInstrument, windows: Sequence[Window]) -> list[_Stretch]:
        """What is missing of these windows, by days, each once."""
        parts = [part for window in windows for stretch in self._stretches(followed, window) for part in _days(stretch)]
        return list(dict.fromkeys(parts))

    def _stretches(self, followed: RecordedInstrument, window: Window) -> list[_Stretch]:
        """What is not held of a window and is not for repair to bring, newest first."""
        if not self._numbered:
            gaps = _between(_held(followed), window)
            return [_Stretch(gap) for gap in reversed(gaps)]
        held = _held(followed)
        if not held:
            return []
        oldest = held[0]
        found = [
            _Stretch(Window(max(gap.start, window.start), min(gap.end, window.end)), gap.first, gap.last)
            for gap in reversed(followed.coverage.missing())
            if gap.end - gap.start > LONG_GAP and gap.start < window.end and gap.end > window.start
        ]
        if oldest.start > window.start:
            found.append(_Stretch(Window(window.start, min(window.end, oldest.start)), None, oldest.first_seq - 1))
        return found

    def _job(self, followed: RecordedInstrument, part: _Stretch) -> _Job | None:
        """How a part of one day may be brought in now, None where it cannot be."""
        instrument, window, now = followed.tape.instrument, part.window, self._clock.now()
        start = window.start - window.start % DAY
        day = Window(start, start + DAY)
        archived = day.end <= now and self._not_before.get((instrument, start), 0.0) <= self._clock.monotonic()
        if not self._numbered:
            return _Job(followed, part, day, True) if archived else None
        if self._is_empty(followed, part):
            return None
        served = self._venue.market == "spot" or window.end > now - REACH
        if archived and (window.length >= LONG_GAP or not served):
            return _Job(followed, part, day, True)
        return _Job(followed, part, day, False) if served else None

    def _is_empty(self, followed: RecordedInstrument, part: _Stretch) -> bool:
        return (followed.tape.instrument, part.window.start // DAY * DAY, part.last) in self._emptied

    def _progress(self, followed: RecordedInstrument, target: int, jobs: Sequence[_Job]) -> Importing | None:
        if not jobs:
            return None
        reached = max(job.stretch.window.end for job in jobs)
        seconds = 0.0
        for job in jobs:
            seconds += self._day_seconds if job.from_archive else self._seconds(followed, job.stretch.window)
        return Importing(target, reached, self._rates.get(followed.tape.instrument, 0), seconds)

    def _seconds(self, followed: RecordedInstrument, window: Window) -> float:
        """Time that pages need within our share of the allowance, if it traded as it does in what is held."""
        held = _held(followed)
        ids = sum(span.last_seq - span.first_seq + 1 for span in held)
        lasted = max(MINUTE, sum(span.end - span.start for span in held))
        fold = _FILLS_PER_AGGREGATE if self._venue.exchange.folds_history[self._venue.market] else 1
        pages = ids * window.length / lasted / fold / _PAGE
        weight = self._venue.exchange.aggregates_request(self._venue.market, followed.tape.instrument.symbol, start=0).weight
        return max(1.0, pages * weight * self._venue.exchange.allowance(self._venue.market).seconds / self._budget.allowed)

    async def _import(self, job: _Job) -> None:
        began = self._clock.monotonic()
        job.followed.being_imported = job.day if job.from_archive else job.stretch.window
        try:
            new = await (self._archived(job) if job.from_archive else self._paged(job))
        finally:
            job.followed.being_imported = None
        seconds = max(0.001, self._clock.monotonic() - began)
        if new:
            self._rates[job.instrument] = round(new / seconds)
            if job.from_archive:
                self._day_seconds = seconds
            log.info("history.imported", instrument=job.instrument, since=job.stretch.window.start, trades=new, seconds=round(seconds, 1))

    # Pages of REST.

    async def _paged(self, job: _Job) -> int:
        """The newest chunk of a stretch, page after page; how many trades of it were new."""
        instrument, window = job.instrument, job.stretch.window
        longer = self._widened.get(instrument, 0)
        start = max(window.start, (window.end - (_CHUNK << longer)) // MINUTE * MINUTE)
        new = 0
        # Decided once: rows and aggregates are paged by ids of their own.
        raw = self._keeps_rows(start)
        async for rows in self._pages(job, Window(start, window.end), raw=raw):
            if raw:
                new += await self._recorder.record_imported(instrument, [row.trade for row in rows])
            else:
                pieces = pieces_of(instrument, rows)
                new += await self._recorder.record_imported(instrument, (), pieces)
                if len(pieces) >= _PIECES:
                    await self._recorder.until_stored(instrument, [piece.minute for piece in pieces])
        if new:
            self._widened.pop(instrument, None)
        elif start > window.start:
            self._widened[instrument] = longer + 1
        else:
            self._widened.pop(instrument, None)
            self._emptied.add((instrument, job.day.start, job.stretch.last))
        return new

    async def _pages(self, job: _Job, chunk: Window, *, raw: bool) -> AsyncIterator[list[Aggregate]]:
        """Rows of a chunk that the stretch lacks, ascending, each minute whole in one list."""
        listing, (_, first, last) = job.followed.tape.listing, job.stretch
        waiting: list[Aggregate] = []
        page = await self._rest.aggregates(self._venue, listing, start=chunk.start)
        # Spot has its rows elsewhere; on USD-M the aggregates are the rows.
        single = raw and self._venue.exchange.folds_history[self._venue.market]
        if page and single:
            page = await self._rows_from(job, page[0].trade.seq)
        while page:
            self._health.count("history.pages")
            least, most, end = first or 0, last if last is not None else page[-1].last, chunk.end + _SKEW
            waiting += [row for row in page if row.trade.seq >= least and row.last <= most and row.trade.timestamp < end]
            newest = page[-1]
            if len(page) < _PAGE or (last is not None and newest.last >= last) or newest.trade.timestamp >= chunk.end:
                break
            minute = newest.trade.timestamp - newest.trade.timestamp % MINUTE
            whole = [row for row in waiting if row.trade.timestamp < minute]
            if whole:
                waiting = waiting[len(whole) :]
                yield whole
            if single:
                page = await self._rows_from(job, newest.last + 1)
            else:
                page = await self._rest.aggregates(self._venue, listing, first=newest.number + 1)
        if waiting:
            yield waiting

    async def _rows_from(self, job: _Job, first: int) -> list[Aggregate]:
        rows = await self._rest.trades(self._venue, job.followed.tape.listing, first=first, priority=Priority.HISTORY)
        return [Aggregate(row.seq, row.seq, row) for row in rows]

    # Files of an archive.

    async def _archived(self, job: _Job) -> int:
        """A day from its file; how many trades of it were new."""
        file = await self._fetched(job)
        if file is None:
            self._not_before[job.instrument, job.day.start] = self._clock.monotonic() + _AGAIN
            log.info("history.not_published", instrument=job.instrument, day=job.date)
            return 0
        try:
            new = await self.take_file(job.followed, file, job.day)
        except ArchiveError:
            await anyio.Path(file).unlink(missing_ok=True)
            raise
        self._not_before[job.instrument, job.day.start] = self._clock.monotonic() + _DONE_FOR
        await anyio.Path(file).unlink(missing_ok=True)
        return new

    async def _fetched(self, job: _Job) -> Path | None:
        """The day's file on this disk, proven by its checksum where there is one; None where the archive has none."""
        symbol, name = job.instrument.symbol, self._form.path(job.instrument.symbol, job.date).rpartition("/")[2]
        file = self._folder / f"{self._venue.exchange.name}-{self._venue.market}" / name
        if await anyio.Path(file).exists():
            return file
        await anyio.Path(file.parent).mkdir(parents=True, exist_ok=True)
        checksum, stated = file.with_name(f"{name}.CHECKSUM"), self._form.checksum_path(symbol, job.date)
        if stated is not None and not await self._download(job, stated, checksum):
            return None
        fresh = file.with_name(f"{name}.new")
        if not await self._download(job, self._form.path(symbol, job.date), fresh):
            return None
        if stated is not None:
            try:
                text = await anyio.Path(checksum).read_text("ascii", "replace")
                await to_thread.run_sync(archive_file.verify, fresh, text)
            except ArchiveError:
                await anyio.Path(fresh).unlink()
                raise
            finally:
                await anyio.Path(checksum).unlink()
        await anyio.Path(fresh).replace(file)
        return file

    async def _download(self, job: _Job, path: str, file: Path) -> bool:
        def told(here: int, of: int) -> None:
            detail = f"{job.instrument.symbol}: {here / 1e6:,.1f} of {of / 1e6:,.1f} MB of {job.date} are here"
            self._health.report(self._part, State.OK, detail)

        # A file has its name only once all of it is here.
        return await anyio.Path(file).exists() or await self._rest.download(self._venue, path, file, told)

    async def take_file(self, followed: RecordedInstrument, file: Path, day: Window, form: ArchiveFormat | None = None) -> int:
        """What the tape lacks of a day, from its file; how many trades that were. `ArchiveError`, and nothing taken, if it is not whole.

        `form` is what the file is, if not what the archive of the market is read in.
        """
        form = form or self._form
        listing = followed.tape.listing
        gaps = _between(_held(followed), day)
        wanted = {minute for gap in gaps for minute in range(gap.start - gap.start % MINUTE, gap.end, MINUTE)}
        beside = {} if self._numbered else await self._beside(followed, gaps)
        held = _held(followed)

        def read() -> list[PackedPiece]:
            lines = archive_file.lines(file, listing.instrument.symbol)
            if self._numbered:
                found = numbered_minutes(form, listing, lines, day, held)
            else:
                found = whole_minutes(form, listing, lines, day, wanted, beside)
            return list(_cancellable(found))

        pieces = await to_thread.run_sync(read)
        own_ids = type(form) is type(self._form) and (self._numbered or self._venue.market == "linear")
        keeps_rows = own_ids and self._keeps_rows(day.start)
        if keeps_rows:
            known = {trade.trade_id for rows in beside.values() for trade in rows}
            new = await self._take_rows(followed, form, file, gaps, known)
            if self._numbered:
                return new
            # Whole minutes stand above the rows: the archive orders them, their rows have no place in the exchange's own order.
        return await self._take_pieces(followed, pieces, day, raw=keeps_rows)

    async def _take_pieces(self, followed: RecordedInstrument, pieces: Sequence[PackedPiece], day: Window, *, raw: bool) -> int:
        new, instrument = 0, followed.tape.instrument
        listing = followed.tape.listing
        ordered = sorted(pieces)
        reached = day.start
        for place in range(0, len(ordered), _PIECES) or (0,):
            part = ordered[place : place + _PIECES]
            following = ordered[place + _PIECES : place + _PIECES + 1]
            whole = Window(reached, following[0].minute if following else day.end)
            new += await self._recorder.record_imported(instrument, (), [packed.piece(listing) for packed in part], whole, raw=raw)
            await self._recorder.until_stored(instrument, [packed.minute for packed in part])
            reached = whole.end
        return new

    async def _take_rows(
        self, followed: RecordedInstrument, form: ArchiveFormat, file: Path, gaps: Sequence[Window], known: set[str]
    ) -> int:
        """The single trades of a file that was read to its end before."""
        listing = followed.tape.listing
        rows = form.rows(listing, archive_file.lines(file, listing.instrument.symbol))
        new, minutes = 0, set[int]()
        while part := await to_thread.run_sync(lambda: [row.trade for row in islice(rows, _ROWS)]):
            if not self._numbered:
                part = [trade for trade in part if trade.trade_id not in known and any(trade.timestamp in gap for gap in gaps)]
            new += await self._recorder.record_imported(listing.instrument, part)
            minutes.update(trade.timestamp - trade.timestamp % MINUTE for trade in part)
        await self._recorder.until_stored(listing.instrument, minutes)
        return new

    async def _beside(self, followed: RecordedInstrument, gaps: Sequence[Window]) -> dict[int, list[Trade]]:
        """What the tape holds of the minutes in which gaps begin and end: an archive with its own ids is joined to it by them."""
        if self._venue.market != "linear":
            return {}
        edges = {at - at % MINUTE for gap in gaps for at in (gap.start, gap.end - 1)}
        instrument = followed.tape.instrument
        return {minute: await self._store.trades(instrument, Window(minute, minute + MINUTE), limit=100_000) for minute in sorted(edges)}

    def _keeps_rows(self, start: int) -> bool:
        return self._raw and start >= self._clock.now() - self._trades_life

    async def _sweep(self) -> None:
        """Nothing is being imported: what an earlier process left behind is of no use any more."""
        folder = anyio.Path(self._folder / f"{self._venue.exchange.name}-{self._venue.market}")
        if await folder.exists():
            async for file in folder.iterdir():
                await file.unlink(missing_ok=True)
            await folder.rmdir()


def _date(at: int) -> date:
    return datetime.fromtimestamp(at / SECOND, UTC).date()


def _held(followed: RecordedInstrument) -> list[Span]:
    """What is held of an instrument; by id where ids count."""
    spans = [span for span in followed.coverage.spans if span.reason != ABSENT]
    return sorted(spans, key=lambda span: span.first_seq) if spans and spans[0].basis is Basis.EXACT else spans


def _between(held: Sequence[Span], window: Window) -> list[Window]:
    """The parts of a window that no span holds, oldest first."""
    gaps: list[Window] = []
    reached = window.start
    for span in sorted(held, key=lambda span: span.start):
        if span.start > reached and reached < window.end:
            gaps.append(Window(reached, min(span.start, window.end)))
        reached = max(reached, span.end)
    if reached < window.end:
        gaps.append(Window(reached, window.end))
    return gaps


def _days(stretch: _Stretch) -> Iterator[_Stretch]:
    """A stretch by UTC days, newest first."""
    window = stretch.window
    cuts = [window.start, *range(window.start - window.start % DAY + DAY, window.end, DAY), window.end]
    for start, end in reversed(list(pairwise(cuts))):
        if start < end:
            yield stretch._replace(window=Window(start, end))


def _cancellable(found: Iterator[PackedPiece]) -> Iterator[PackedPiece]:
    """In a worker thread: ends with the task that waits for it."""
    for packed in found:
        from_thread.check_cancelled()
        yield packed
