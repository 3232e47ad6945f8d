"""Imports days from an exchange's archive files: downloads, checks and takes in what the tape lacks.

A file stays on disk until the store has all of it, so that an interrupted import does not download it again. Where the exchange counts
its trades the file joins the tape exactly, by id; where it does not, a minute comes whole from the file or from the tape.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

import anyio
from anyio import from_thread, to_thread

from wadm_mcp.clock import Clock
from wadm_mcp.collection.backfill import archive_file
from wadm_mcp.collection.backfill.archive_minutes import PackedPartial, Pauses, bounded, by_id, by_minute, counted_minutes, whole_minutes
from wadm_mcp.collection.backfill.archive_order import OutOfOrder, SortedRows
from wadm_mcp.collection.backfill.history_plan import ImportStep
from wadm_mcp.collection.disk_reserve import DiskReserve
from wadm_mcp.collection.recording.recorded_instrument import RecordedInstrument
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.collection.rest.downloads import MAX_ARCHIVE_BYTES
from wadm_mcp.coverage.judge import uncovered
from wadm_mcp.coverage.spans import GapReason
from wadm_mcp.errors import ArchiveError
from wadm_mcp.exchanges.exchange import Aggregate, ArchiveFormat, Unreadable, Venue
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import MINUTE, Listing, Trade, Window
from wadm_mcp.storage.store import PartialFootprint, Store

PARTIALS_AT_ONCE: Final = 30
"""Partial footprints that wait for the store at once: unpacked, each is as large as its minute was busy."""
_BYTES_AT_ONCE: Final = 1_000_000
"""Their packed bytes: unpacked they take twenty to sixty times as many."""
_ROWS_AT_ONCE: Final = 1_000
_MAX_BAD_LINES: Final = 100
"""Lines of a file that are left out because they cannot be read, before the file is refused."""
_MAX_CHECKSUM_BYTES: Final = 1_024

_Item = TypeVar("_Item")


class ArchiveImport:
    """Imports archive days of one market.

    With `raw` single trades are stored as well, where the file carries the instrument's own ids and they are younger than
    `trades_retention` (ms). `folder` holds files while they are being imported, which leave `reserve` free.
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
        raw: bool,
        trades_retention: int,
        folder: Path,
        reserve: DiskReserve,
    ) -> None:
        self._venue = venue
        self._rest = rest
        self._recorder = recorder
        self._store = store
        self._health = health
        self._clock = clock
        self._raw = raw
        self._trades_retention = trades_retention
        self._reserve = reserve
        self._folder = folder / f"{venue.exchange.name}-{venue.market}"
        self._part = f"{venue.name} history"

    def stores_rows(self, start: int) -> bool:
        """True if single trades from `start` (ms) on are stored, provided that their source has the exchange's trade ids."""
        return self._raw and start >= self._clock.now() - self._trades_retention

    async def take_day(self, step: ImportStep) -> int | None:
        """Import a day from its archive file; how many trades were new, None where the archive has no file.

        `ArchiveError`, and nothing taken, where the file is damaged.
        """
        form = self._venue.traits.archive
        assert form is not None
        file = await self._fetch(form, step.instrument.symbol, step.date)
        if file is None:
            return None
        try:
            new = await self.take_file(step.recorded, file, step.day, form)
        except ArchiveError:
            await _delete(file)
            raise
        # Not in a finally block: a cancelled import continues from this file.
        await _delete(file)
        return new

    async def take_file(self, recorded: RecordedInstrument, file: Path, day: Window, form: ArchiveFormat) -> int:
        """Import what the tape lacks of a day from its file; how many trades were new.

        A file whose rows are out of order is sorted first. A few lines that cannot be read are left out, and what they may hide is not
        covered. `ArchiveError`, and nothing taken, where the file is damaged, contradicts
        itself, or is of another day or symbol. `OSError` or `DiskReserved` where there is no room to sort a file.
        """
        listing, counted = recorded.tape.listing, self._venue.traits.has_gapless_ids
        covered = recorded.coverage.covered
        gaps = uncovered(covered, day)
        wanted = {minute for gap in gaps for minute in range(gap.start - gap.start % MINUTE, gap.end, MINUTE)}
        tape_trades = {} if counted else await self._tape_trades(recorded, form, gaps)

        file_rows, spoiled = _FileRows(form, listing, file), dict[int, GapReason]()

        def partials_of(rows: Iterable[Aggregate]) -> list[PackedPartial]:
            if counted:
                return bounded(listing, counted_minutes(listing, rows, day, covered))
            pauses, unreadable = Pauses(listing, rows), set[int]()
            found = bounded(listing, whole_minutes(listing, pauses, day, wanted, tape_trades, file_rows.bad_lines, unreadable))
            spoiled.update(dict.fromkeys(pauses.suspect(day), GapReason.SILENCE))
            spoiled.update(dict.fromkeys(unreadable, GapReason.UNREADABLE))
            return [partial for partial in found if partial.minute not in spoiled]

        def read() -> tuple[Iterable[Aggregate], list[PackedPartial]]:
            try:
                return file_rows, partials_of(file_rows)
            except OutOfOrder as error:
                log.warning("archive.unsorted", file=file.name, reason=error)
            # Beside the folder of downloads, which is deleted while nothing is being downloaded.
            key = by_id if counted else by_minute
            ordered = stack.enter_context(SortedRows(listing, file_rows, key, self._folder.parent, self._reserve))
            if file_rows.bad_lines and not counted:
                # Without order the neighbours of a line do not say to which minute it belongs.
                raise file_rows.bad_lines[0]
            return ordered, partials_of(_cancellable(ordered))

        with ExitStack() as stack:
            rows, partials = await to_thread.run_sync(read)
            if file_rows.bad_lines:
                self._recorder.row_unreadable(recorded.instrument, [Unreadable(0, None, str(error)) for error in file_rows.bad_lines])
            rows_too = form.carries_live_ids and self.stores_rows(day.start)
            if rows_too:
                known = {trade.trade_id for trades in tape_trades.values() for trade in trades}
                new = await self._take_rows(recorded, rows, gaps, known)
                if counted:
                    return new
                # The whole minutes replace these rows in every figure: the archive does not have them in the exchange's own order.
        return await self._take_partials(recorded, partials, day, spoiled, raw=rows_too)

    async def sweep(self) -> None:
        """Nothing is being imported: delete what an earlier process left behind."""
        folder = anyio.Path(self._folder)
        if await folder.exists():
            async for file in folder.iterdir():
                await _delete(file)
            with suppress(OSError):
                # It is not empty where a file could not be deleted.
                await folder.rmdir()

    async def _fetch(self, form: ArchiveFormat, symbol: str, day: date) -> Path | None:
        """The day's file on this disk, verified where a checksum is published; None where the archive has none."""
        name = form.path(symbol, day).rpartition("/")[2]
        file = self._folder / name
        if await anyio.Path(file).exists():
            return file
        await anyio.Path(file.parent).mkdir(parents=True, exist_ok=True)
        checksum, published = file.with_name(f"{name}.CHECKSUM"), form.checksum_path(symbol, day)
        if published is not None and not await self._download(published, checksum, symbol, day, _MAX_CHECKSUM_BYTES):
            return None
        fresh = file.with_name(f"{name}.new")
        if not await self._download(form.path(symbol, day), fresh, symbol, day):
            return None
        if published is not None:
            try:
                text = await anyio.Path(checksum).read_text("ascii", "replace")
                await to_thread.run_sync(archive_file.verify, fresh, text)
            except ArchiveError:
                await anyio.Path(fresh).unlink()
                await anyio.Path(checksum).unlink()
                raise
        # The checksum goes last: an import that is killed in between needs it to verify the file again.
        await anyio.Path(fresh).replace(file)
        await anyio.Path(checksum).unlink(missing_ok=True)
        return file

    async def _download(self, path: str, file: Path, symbol: str, day: date, most: int = MAX_ARCHIVE_BYTES) -> bool:
        def progress(here: int, of: int) -> None:
            detail = f"{symbol}: {here / 1e6:,.1f} of {of / 1e6:,.1f} MB of {day} are downloaded"
            self._health.report(self._part, State.OK, detail)

        # A file has its name only once it is complete.
        return await anyio.Path(file).exists() or await self._rest.archives.download(
            self._venue, path, file, progress, reserve=self._reserve, most=most
        )

    async def _take_partials(
        self, recorded: RecordedInstrument, partials: Sequence[PackedPartial], day: Window, spoiled: Mapping[int, GapReason], *, raw: bool
    ) -> int:
        """Import partial footprints. Where they are whole minutes the day is covered, without the `spoiled` minutes."""
        new, instrument, listing = 0, recorded.instrument, recorded.tape.listing
        parts = list(_in_parts(sorted(partials)))
        reached = day.start
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            whole = Window(reached, following[0].minute if following is not None else day.end)
            unpacked = await to_thread.run_sync(_unpacked, part, listing)
            for window in _without(whole, spoiled) or [Window(whole.start, whole.start)]:
                opened_by = spoiled.get(window.start - MINUTE, GapReason.START)
                new += await self._recorder.record_imported(instrument, (), unpacked, window, raw=raw, opened_by=opened_by)
                unpacked = []
            await self._recorder.until_stored(instrument, [packed.minute for packed in part])
            reached = whole.end
        return new

    async def _take_rows(
        self, recorded: RecordedInstrument, file_rows: Iterable[Aggregate], gaps: Sequence[Window], known: set[str]
    ) -> int:
        """Import the single trades of a file that was read to its end before."""
        listing, counted = recorded.tape.listing, self._venue.traits.has_gapless_ids
        rows = iter(file_rows)
        new, minutes = 0, set[int]()
        while part := await to_thread.run_sync(lambda: [row.trade for row in islice(rows, _ROWS_AT_ONCE)]):
            if not counted:
                part = [trade for trade in part if trade.trade_id not in known and any(trade.timestamp in gap for gap in gaps)]
            new += await self._recorder.record_imported(listing.instrument, part)
            minutes.update(trade.timestamp - trade.timestamp % MINUTE for trade in part)
        await self._recorder.until_stored(listing.instrument, minutes)
        return new

    async def _tape_trades(self, recorded: RecordedInstrument, form: ArchiveFormat, gaps: Sequence[Window]) -> dict[int, list[Trade]]:
        """The tape's trades of the minutes in which gaps begin and end: an archive with the live ids is joined to them by id."""
        if not form.carries_live_ids:
            return {}
        edges = {at - at % MINUTE for gap in gaps for at in (gap.start, gap.end - 1)}
        instrument = recorded.instrument
        return {minute: await self._store.trades(instrument, Window(minute, minute + MINUTE), limit=100_000) for minute in sorted(edges)}


def _in_parts(partials: Iterable[PackedPartial]) -> Iterator[list[PackedPartial]]:
    """Those that are unpacked at once; one empty part where there is none."""
    part: list[PackedPartial] = []
    weight = 0
    for partial in partials:
        if part and (len(part) == PARTIALS_AT_ONCE or weight + partial.weight > _BYTES_AT_ONCE):
            yield part
            part, weight = [], 0
        part.append(partial)
        weight += partial.weight
    yield part


def _unpacked(partials: Sequence[PackedPartial], listing: Listing) -> list[PartialFootprint]:
    return [partial.unpack(listing) for partial in partials]


async def _delete(file: Path | anyio.Path) -> None:
    try:
        await anyio.Path(file).unlink(missing_ok=True)
    except OSError as error:
        # Its trades are stored; a file that stays only takes room.
        log.warning("archive.not_deleted", file=file.name, error=error)


def _without(window: Window, minutes: Collection[int]) -> list[Window]:
    """The parts of a window beside these minutes (by start)."""
    parts: list[Window] = []
    start = window.start
    for minute in sorted(minute for minute in minutes if minute in window):
        if start < minute:
            parts.append(Window(start, minute))
        start = minute + MINUTE
    return [*parts, Window(start, window.end)] if start < window.end else parts


class _FileRows:
    """The rows of a day's file in its own order, iterable several times, each time from the disk. For a worker thread.

    `bad_lines` are the errors of lines that could not be read so far. `ArchiveError` when they are many, or come before any row: then the
    file has another format.
    """

    def __init__(self, form: ArchiveFormat, listing: Listing, file: Path) -> None:
        self._form = form
        self._listing = listing
        self._file = file
        self._begun = False
        self.bad_lines: list[ArchiveError] = []

    def __iter__(self) -> Iterator[Aggregate]:
        # A file may have lines without rows.
        lines = _cancellable(archive_file.lines(self._file, self._listing.instrument.symbol))
        self.bad_lines.clear()
        self._begun = False
        for row in self._form.rows(self._listing, lines, self._leave_out):
            self._begun = True
            yield row

    def _leave_out(self, error: ArchiveError) -> None:
        if not self._begun or len(self.bad_lines) == _MAX_BAD_LINES:
            raise error
        self.bad_lines.append(error)


def _cancellable(items: Iterable[_Item]) -> Iterator[_Item]:
    """In a worker thread: ends when the task that waits for it is cancelled."""
    for place, item in enumerate(items):
        if place % _ROWS_AT_ONCE == 0:
            from_thread.check_cancelled()
        yield item
