"""Imports by hand: jobs that `wadm-mcp import` leaves in a folder of the data directory, for the process that records there.

A job is a file, so that it outlives both processes: after a restart the recording process takes it up again. Its progress is another file
beside it. Both are replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import msgspec
from anyio import to_thread

from wadm_mcp.collection.backfill.history import History, known_sum
from wadm_mcp.collection.recording.recorded_instrument import RecordedInstrument
from wadm_mcp.errors import ArchiveError, DiskReserved, StoreError
from wadm_mcp.exchanges.exchange import ArchiveFormat
from wadm_mcp.exchanges.formats import recognise
from wadm_mcp.exchanges.registry import is_called
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import DAY, SECOND, Instrument, Window
from wadm_mcp.texts import printable

_POLL_SECONDS: Final = 0.5
_IDLE_LOOKS: Final = 4
"""Looks in a row that find nothing left to import, before a job is done."""
_FIRST_TRADE_SECONDS: Final = 60.0
"""How long a job waits for the first trade of its instruments: only then it is known where their history ends."""
_LISTED_SECONDS: Final = 10.0
"""How long a file waits for its instrument to be recorded at all, since a start looks every symbol up first."""
_JOB_SUFFIX: Final = ".order"
_PROGRESS_SUFFIX: Final = ".progress"


class ImportJob(msgspec.Struct, frozen=True):
    """What to import: of the instruments that match, the days of a window (ms), or only the files at these paths."""

    start: int
    end: int
    exchange: str | None = None
    market: str | None = None
    symbol: str | None = None
    files: list[str] = []

    def matches(self, instrument: Instrument) -> bool:
        here = self.exchange in (None, instrument.exchange) and self.market in (None, instrument.market)
        return here and (self.symbol is None or is_called(instrument, self.symbol))


class ImportProgress(msgspec.Struct, frozen=True):
    """How far a job is: the part that is done (0 to 1), trades a second, estimated seconds left, lines to print, and
    whether it is `done` and whether any of it was `refused`.

    `seconds` is None while nothing is known about it, and `rate` is then 0. `doing` says what is under way.
    """

    part: float
    rate: int
    seconds: float | None
    lines: list[str]
    done: bool = False
    refused: bool = False
    doing: str = ""


def leave_job(folder: Path, name: str, job: ImportJob) -> None:
    """Leave a job for the process that records."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / f"{name}{_JOB_SUFFIX}", msgspec.json.encode(job))


def withdraw_job(folder: Path, name: str) -> None:
    """Remove a job and its progress."""
    for suffix in (_JOB_SUFFIX, _PROGRESS_SUFFIX):
        (folder / f"{name}{suffix}").unlink(missing_ok=True)


def read_progress(folder: Path, name: str) -> ImportProgress | None:
    """How far a job is; None where no process has taken it up yet."""
    try:
        return msgspec.json.decode((folder / f"{name}{_PROGRESS_SUFFIX}").read_bytes(), type=ImportProgress)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


class ImportJobRunner:
    """Runs the jobs in a folder until cancelled, through the history imports of the recorded markets."""

    def __init__(self, folder: Path, histories: Callable[[], Sequence[History]], health: Health) -> None:
        self._folder = folder
        self._histories = histories
        self._health = health

    async def run(self) -> None:
        """Run one job after another."""
        while True:
            for path in await to_thread.run_sync(lambda: sorted(self._folder.glob(f"*{_JOB_SUFFIX}"))):
                await self._run_job(path)
            await anyio.sleep(_POLL_SECONDS)

    async def _run_job(self, path: Path) -> None:
        try:
            job = msgspec.json.decode(await anyio.Path(path).read_bytes(), type=ImportJob)
        except FileNotFoundError:
            return
        except msgspec.DecodeError as error:
            log.warning("import.unreadable", job=path.name, error=printable(error, 160))
            await anyio.Path(path).unlink(missing_ok=True)
            return
        log.info("import.begins", job=path.stem, files=len(job.files))
        self._health.report("import", State.OK, f"{path.stem} is running")
        try:
            lines, refused = await self._import_files(path, job) if job.files else (await self._import_window(path, job), False)
        except StoreError as error:
            lines, refused = [str(error)], True
        await self._report(path, ImportProgress(1.0, 0, 0.0, lines, done=True, refused=refused))
        await anyio.Path(path).unlink(missing_ok=True)
        self._health.forget("import")
        log.info("import.ends", job=path.stem)

    async def _import_files(self, path: Path, job: ImportJob) -> tuple[list[str], bool]:
        """A line for each file, and whether any was refused."""
        lines: list[str] = []
        refused = False
        sizes = [await _size(Path(name)) for name in job.files]
        busy = 0.0
        for place, name in enumerate(job.files):
            if not await anyio.Path(path).exists():
                break
            file, done, whole = Path(name), sum(sizes[:place]), sum(sizes)
            left = busy * (whole - done) / done if done else None
            report = partial(self._report_step, path, f"file {place + 1} of {len(sizes)}", done / whole if whole else 0.0, left, lines)
            try:
                history, recorded, form, window = await self._await_instrument(file, job, report)
                await report(f"reading {file.name}")
                began = anyio.current_time()
                await history.load_coverage(recorded, window)
                new = await history.take_file(recorded, file, window, form)
                busy += anyio.current_time() - began
                lines.append(f"{file.name}: {new:,} trades were new")
            except (ArchiveError, DiskReserved) as error:
                refused = True
                lines.append(f"{file.name}: nothing is imported of it. {error}")
            except OSError as error:
                refused = True
                lines.append(f"{file.name}: nothing is imported of it. It has to be sorted on disk ({error.strerror}); make room there")
        return lines, refused

    async def _report_step(self, path: Path, file: str, part: float, left: float | None, lines: list[str], doing: str) -> None:
        await self._report(path, ImportProgress(part, 0, left, lines, doing=f"{file}: {doing}"))

    async def _await_instrument(
        self, file: Path, job: ImportJob, report: Callable[[str], Awaitable[None]]
    ) -> tuple[History, RecordedInstrument, ArchiveFormat, Window]:
        """What a file is imported into, its format and its day, once the first trade of its instrument is known.

        `ArchiveError` where the file cannot be imported.
        """
        form, symbol, day = recognise(file, job.exchange, job.market)
        instrument = Instrument(form.exchange, form.market, symbol)
        began, found = anyio.current_time(), self._find(instrument)
        while found is None and anyio.current_time() - began < (_FIRST_TRADE_SECONDS if self._is_recorded(instrument) else _LISTED_SECONDS):
            await report(f"waiting for the first trade of {instrument}")
            await anyio.sleep(_POLL_SECONDS)
            found = self._find(instrument)
        if found is None:
            raise ArchiveError(f"{instrument} is not followed here; add its symbol to WADM_SYMBOLS, or track it, and import again")
        start = round(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * SECOND
        return *found, form, Window(start, start + DAY)

    def _is_recorded(self, instrument: Instrument) -> bool:
        return any(instrument in history.recorded for history in self._histories())

    def _find(self, instrument: Instrument) -> tuple[History, RecordedInstrument] | None:
        for history in self._histories():
            recorded = history.find(instrument)
            if recorded is not None:
                return history, recorded
        return None

    async def _import_window(self, path: Path, job: ImportJob) -> list[str]:
        """Lines on what is covered once nothing is left to import."""
        window = Window(job.start, job.end)
        whole, idle, began = 0, 0, anyio.current_time()
        taken: set[History] = set()
        try:
            while idle < _IDLE_LOOKS and await anyio.Path(path).exists():
                for history in self._histories():
                    if history not in taken:
                        taken.add(history)
                        history.requested.append((job.matches, window))
                for history in taken:
                    for instrument in filter(job.matches, history.instruments):
                        recorded = history.find(instrument)
                        if recorded is not None and recorded.tape.resumed:
                            await history.load_coverage(recorded, window)
                remaining = [history.remaining(job.matches, window) for history in taken]
                left = sum(each.length for each in remaining)
                whole = max(whole, left)
                due = [instrument for history in taken for instrument in filter(job.matches, history.recorded)]
                ready = [instrument for history in taken for instrument in filter(job.matches, history.instruments)]
                waits = (not due or len(ready) < len(due)) and anyio.current_time() - began < _FIRST_TRADE_SECONDS
                idle = idle + 1 if not left and not waits else 0
                seconds, rate = known_sum(each.seconds for each in remaining), sum(each.rate for each in remaining)
                part = 1 - left / whole if whole else 0.0
                awaited = ", ".join(str(instrument) for instrument in due if instrument not in ready)
                doing = f"waiting for the first trade of {awaited}" if waits and awaited else ""
                await self._report(path, ImportProgress(part, rate, seconds if left else None, [], doing=doing))
                await anyio.sleep(_POLL_SECONDS)
            return [line for history in taken for line in await history.report(job.matches, window)] or ["no instrument matches"]
        finally:
            for history in taken:
                history.requested.remove((job.matches, window))

    async def _report(self, path: Path, progress: ImportProgress) -> None:
        if await anyio.Path(path).exists():
            await to_thread.run_sync(_replace, path.with_suffix(_PROGRESS_SUFFIX), msgspec.json.encode(progress))


async def _size(file: Path) -> int:
    """The size of a file; 0 for one that cannot be read, which its import reports."""
    try:
        return (await anyio.Path(file).stat()).st_size
    except OSError:
        return 0


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".tmp")
    fresh.write_bytes(content)
    fresh.replace(path)
