"""`wadm-mcp import`: hands an import job to the process that records on the data directory and shows its progress.

Where no process records there, the command records itself until the job is done.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from wadm_mcp.clock import now_ms
from wadm_mcp.collection.backfill import import_jobs as imports
from wadm_mcp.collection.backfill.history import expired_text
from wadm_mcp.collection.backfill.import_jobs import ImportJob, ImportProgress
from wadm_mcp.collection.recorder_lock import RecorderLock
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.commands.audit import Choice
from wadm_mcp.coverage.judge import judge, uncovered, without
from wadm_mcp.coverage.spans import COVERS_NOTHING, Span
from wadm_mcp.errors import ArchiveError, ExchangeError, QueryError, SettingError, StoreError, WadmError
from wadm_mcp.exchanges.formats import recognise
from wadm_mcp.model import DAY, HOUR, MINUTE, SECOND, Instrument, Timeframe, Window, is_symbol
from wadm_mcp.process.signals import stop_signals
from wadm_mcp.process.standard_streams import print_lines
from wadm_mcp.queries.arguments import Call, read_time
from wadm_mcp.queries.numbers import iso
from wadm_mcp.runtime import Runtime
from wadm_mcp.settings import Settings, unusable_folder
from wadm_mcp.storage.opening import open_store, sqlite_path
from wadm_mcp.texts import printable

_POLL_SECONDS: Final = 0.25
_LINE_SECONDS: Final = 10.0
"""Time between progress lines where stderr is not a terminal."""
_ACCEPT_SECONDS: Final = 30.0
"""Time within which a recorder must accept the job."""
_BAR_CHARS: Final = 24
_SHOWN_CHARS: Final = 80
_ROWS_PER_SECOND: Final = 100_000
_BYTES_PER_ROW: Final = 18
"""Of a compressed spot file. Both rates only estimate the time of the plan."""
_CALL: Final = Call("wadm-mcp import", (("--from", "2026-06-01"), ("--to", "2026-06-02")))


async def import_history(settings: Settings, choice: Choice, files: Sequence[Path], *, plan: bool, suffix: str = "") -> int:
    """Import, and return the exit status: 0 when the job is done, 1 where a file was refused.

    `SettingError` for an invalid argument; `WadmError` where no recorder accepts the job, and as of the runtime.
    """
    now = now_ms()
    job = _job_of_files(settings, choice, files, now) if files else _job_of_window(settings, choice, now)
    with _progress_line() as show:
        lines = await _plan(settings, job, now, suffix, show)
    print_lines(lines)
    if plan:
        return 0
    name, folder = f"{now}-{os.getpid()}", settings.WADM_DATA_DIR / "import"
    try:
        await to_thread.run_sync(imports.leave_job, folder, name, job)
    except OSError as error:
        raise unusable_folder(settings.WADM_DATA_DIR, error) from error
    results: list[ImportProgress] = []
    try:
        with stop_signals() as next_signal:
            async with AsyncExitStack() as stack:
                tasks = await stack.enter_async_context(anyio.create_task_group())
                stack.callback(tasks.cancel_scope.cancel)
                tasks.start_soon(_cancel_on_signal, next_signal, tasks.cancel_scope)
                if not _is_recorded(settings):
                    runtime = await stack.enter_async_context(Runtime(settings, suffix=suffix))
                    tasks.start_soon(_raise_failure, runtime)
                results.append(await _watch(folder, name))
    finally:
        imports.withdraw_job(folder, name)
    if not results:
        print_lines(["stopped; imported trades stay, and the same command continues from there"])
        return 0
    (result,) = results
    print_lines(result.lines)
    return 1 if result.refused else 0


def _job_of_files(settings: Settings, choice: Choice, files: Sequence[Path], now: int) -> ImportJob:
    for path in files:
        try:
            _, _, day = recognise(path.absolute(), choice.exchange, choice.market)
            end = round(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * SECOND + DAY
            _refuse_what_is_not_kept(settings, str(path.absolute()), end, now)
            if not path.is_file():
                raise ArchiveError(f"{path.absolute()}: no such file")
        except ArchiveError as error:
            raise SettingError(str(error)) from None
    return ImportJob(0, 0, choice.exchange, choice.market, files=[str(path.absolute()) for path in files])


def _job_of_window(settings: Settings, choice: Choice, now: int) -> ImportJob:
    try:
        start = read_time(_CALL, "--from", choice.start)
        end = read_time(_CALL, "--to", choice.end)
    except QueryError as error:
        raise SettingError(str(error)) from None
    end = now if end is None else min(end, now)
    start = end - max(1, settings.WADM_HISTORY_HOURS) * HOUR if start is None else start
    start, end = start - start % MINUTE, end - end % MINUTE
    if start >= end:
        raise SettingError(f"--from {choice.start or iso(start)} --to {choice.end or iso(end)}: the window has no whole minute before now")
    _refuse_what_is_not_kept(settings, f"--to {choice.end or iso(end)}", end, now)
    symbol = None if choice.symbol is None else choice.symbol.upper()
    if symbol is not None and not is_symbol(symbol):
        # It becomes a part of the archive's URLs.
        raise SettingError(f"--symbol {printable(choice.symbol, _SHOWN_CHARS)}: an exchange's own name is needed, such as BTCUSDT")
    return ImportJob(start, end, choice.exchange, choice.market, symbol)


def _refuse_what_is_not_kept(settings: Settings, subject: str, end: int, now: int) -> None:
    """`SettingError` if data up to `end` (ms) would be deleted as soon as it is imported."""
    kept = now - settings.retention.hours
    if end <= kept:
        raise SettingError(
            f"{subject}: data from before {iso(kept)} is older than WADM_HOURS_TTL_DAYS={settings.WADM_HOURS_TTL_DAYS} and would be "
            "deleted at once; nothing is imported; raise it and WADM_MINUTES_TTL_DAYS, or choose later days"
        )


async def _plan(settings: Settings, job: ImportJob, now: int, suffix: str, show: Callable[[str], None]) -> list[str]:
    """Lines on the days, bytes and time of what a job has left to import. `show` is called with the progress."""
    if job.files:
        size = sum([(await anyio.Path(file).stat()).st_size for file in job.files])
        return [f"{len(job.files)} files, {size / 1e6:,.1f} MB, about {_duration(size / _BYTES_PER_ROW / _ROWS_PER_SECOND)}"]
    lines = [f"{iso(job.start)} to {iso(job.end)}, where it is not stored yet:"]
    for name, length in (("WADM_HOURS_TTL_DAYS", settings.retention.hours), ("WADM_MINUTES_TTL_DAYS", settings.retention.minutes)):
        if job.start < now - length:
            what = "nothing" if length == settings.retention.hours else "nothing below one hour"
            lines.append(f"  {what} from before {iso(now - length)} is kept ({name}={length // DAY}): it is deleted again within minutes")
    window = Window(job.start, job.end)
    instruments = _instruments(settings, job)
    stored, deleted = await _stored(settings, suffix, instruments, window, lines)
    async with RestClient(proxied=not settings.stays_on_loopback) as rest:
        for instrument in instruments:
            venue = settings.venue(instrument.exchange, instrument.market)
            archive = venue.traits.archive
            days, unavailable, size, paged = 0, 0, 0, 0
            starts = range(window.start - window.start % DAY, window.end, DAY)
            for number, start in enumerate(starts, 1):
                show(f"plan: {instrument}, day {number} of {len(starts)}")
                gaps = judge(stored.get(instrument, ()), Window(max(window.start, start), min(window.end, start + DAY)), now).gaps
                length = sum(gap.end - gap.start for gap in gaps)
                # Where ids count, coverage begins and ends with a trade, and not where an imported day does.
                if length <= (MINUTE if venue.traits.has_gapless_ids else 0):
                    continue
                file_bytes = None
                if archive is not None and start + DAY <= now:
                    day = datetime.fromtimestamp(start / SECOND, UTC).date()
                    try:
                        file_bytes = await rest.archives.size(venue, archive.path(instrument.symbol, day))
                    except ExchangeError as error:
                        lines.append(f"  {instrument}: {error}")
                if file_bytes is not None:
                    days, size = days + 1, size + file_bytes
                elif venue.traits.has_gapless_ids:
                    paged += length
                else:
                    unavailable += length
            parts = [f"{days} days from the archive, {size / 1e6:,.1f} MB"]
            if paged:
                parts.append(f"{paged / HOUR:,.1f} hours in REST pages, as the rate limit allows")
            if unavailable:
                parts.append(f"{unavailable / HOUR:,.1f} hours not available yet")
            parts.append(f"about {_duration(size / _BYTES_PER_ROW / _ROWS_PER_SECOND)}, plus the time of the pages")
            if (expired := expired_text(deleted.get(instrument, 0))) != "":
                parts.append(expired.removeprefix("; "))
            left = expired or days or paged or unavailable
            lines.append(f"  {instrument}: {'; '.join(parts) if left else 'all of it is stored already'}")
    return lines


async def _stored(
    settings: Settings, suffix: str, instruments: Sequence[Instrument], window: Window, lines: list[str]
) -> tuple[dict[Instrument, list[Span]], dict[Instrument, int]]:
    """What the store covers of a window, and how much of that (ms) is deleted. Adds a line where there is a store that cannot be read; then
    nothing counts as stored."""
    if settings.MONGODB_URL is None and not await anyio.Path(sqlite_path(settings)).exists():
        return {}, {}
    spans: dict[Instrument, list[Span]] = {}
    deleted: dict[Instrument, int] = {}
    try:
        async with open_store(settings, suffix, read_only=True) as store:
            for instrument in instruments:
                spans[instrument] = await store.spans(instrument, window)
                covered = [span for span in spans[instrument] if span.reason not in COVERS_NOTHING]
                gaps, expired = uncovered(covered, window), (await store.expired(instrument)).of_bars(window, Timeframe.M1)
                deleted[instrument] = sum(part.length for part in without(window, gaps))
                deleted[instrument] -= sum(part.length for part in without(window, [*gaps, *expired]))
    except StoreError as error:
        lines.append(f"  what is stored already is counted too: {error}")
        return {}, {}
    return spans, deleted


def _instruments(settings: Settings, job: ImportJob) -> list[Instrument]:
    every = [venue.instrument(symbol) for venue in settings.venues for symbol in settings.WADM_SYMBOLS]
    found = [instrument for instrument in every if job.matches(instrument)]
    if not found and job.symbol is not None and job.exchange is not None and job.market is not None:
        # It may be tracked; the settings do not name tracked instruments.
        return [Instrument(job.exchange, job.market, job.symbol)]
    if not found:
        raise SettingError(f"no followed instrument matches --exchange, --market and --symbol. Followed: {', '.join(map(str, every))}")
    return found


def _is_recorded(settings: Settings) -> bool:
    """Whether another process records on the data directory."""
    with RecorderLock(settings.WADM_DATA_DIR) as lock:
        return not lock.take()


async def _cancel_on_signal(next_signal: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
    await next_signal()
    scope.cancel()


async def _raise_failure(runtime: Runtime) -> None:
    raise await runtime.failed()


async def _watch(folder: Path, name: str) -> ImportProgress:
    """Show the progress of a job until it is done. `WadmError` where no recorder accepts it."""
    began = time.monotonic()
    with _progress_line() as show:
        while True:
            progress = await to_thread.run_sync(imports.read_progress, folder, name)
            if progress is not None and progress.done:
                return progress
            if progress is None and time.monotonic() - began > _ACCEPT_SECONDS:
                raise WadmError(
                    f"no recorder accepted the import job within {_ACCEPT_SECONDS:.0f} s; check the process that uses {folder.parent}"
                )
            if progress is not None:
                show(_line(progress))
            await anyio.sleep(_POLL_SECONDS)


@contextmanager
def _progress_line() -> Generator[Callable[[str], None]]:
    """Yields a function that shows how far the work is: on one line of a terminal, else on a line of its own every ten seconds."""
    terminal, printed_at = sys.stderr.isatty(), time.monotonic()

    def show(text: str) -> None:
        nonlocal printed_at
        if terminal:
            _write_stderr(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
        elif time.monotonic() - printed_at >= _LINE_SECONDS:
            printed_at = time.monotonic()
            _write_stderr(f"{text}\n")

    try:
        yield show
    finally:
        if terminal:
            _write_stderr("\r\x1b[K")


def _write_stderr(text: str) -> None:
    with suppress(OSError):  # the terminal went away
        sys.stderr.write(text)
        sys.stderr.flush()


def _line(progress: ImportProgress) -> str:
    done = int(progress.part * _BAR_CHARS)
    bar = "#" * done + "-" * (_BAR_CHARS - done)
    rate = f"{progress.rate:,} trades/s" if progress.rate else ""
    left = f"about {_duration(progress.seconds)} left" if progress.seconds is not None else ""
    return f"[{bar}] {progress.part:4.0%}  {', '.join(filter(None, (progress.doing, rate, left)))}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
