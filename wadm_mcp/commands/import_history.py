"""`wadm-mcp import`: leaves an order with whoever records on the data directory, or records meanwhile, and shows how far it is."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from wadm_mcp.clock import now_ms
from wadm_mcp.collection.backfill import import_jobs as imports
from wadm_mcp.collection.backfill.import_jobs import ImportJob, ImportProgress
from wadm_mcp.collection.recorder_lock import RecorderLock
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.commands.audit import Choice
from wadm_mcp.errors import ArchiveError, ExchangeError, QueryError, SettingError, WadmError
from wadm_mcp.exchanges.formats import recognise
from wadm_mcp.model import DAY, HOUR, MINUTE, SECOND, Instrument, Window
from wadm_mcp.process.signals import stop_signals
from wadm_mcp.process.standard_streams import print_lines
from wadm_mcp.queries.arguments import Call, read_time
from wadm_mcp.queries.numbers import iso
from wadm_mcp.runtime import Runtime
from wadm_mcp.settings import Settings, unusable_folder

_EVERY: Final = 0.25
_SAID_EVERY: Final = 10.0
"""Seconds between lines where there is no terminal."""
_PATIENCE: Final = 30.0
_BAR: Final = 24
_ROWS_A_SECOND: Final = 100_000
_BYTES_A_ROW: Final = 18
"""Packed, as spot files have them; for the plan's time, nothing else."""
_CALL: Final = Call("wadm-mcp import", (("--from", "2026-06-01"), ("--to", "2026-06-02")))


async def import_history(settings: Settings, choice: Choice, files: Sequence[Path], *, plan: bool, suffix: str = "") -> int:
    """Import, and return the exit status: 0 when the order is fulfilled, 1 where a file was refused or nobody took the order up.

    `SettingError` for an argument that cannot be used; `WadmError` as of the runtime.
    """
    now = now_ms()
    order = _of_files(choice, files) if files else _of_window(settings, choice, now)
    lines = await _planned(settings, order, now)
    print_lines(lines)
    if plan:
        return 0
    name, folder = f"{now}-{os.getpid()}", settings.WADM_DATA_DIR / "import"
    try:
        await to_thread.run_sync(imports.leave_job, folder, name, order)
    except OSError as error:
        raise unusable_folder(settings.WADM_DATA_DIR, error) from error
    found: list[ImportProgress] = []
    try:
        with stop_signals() as asked:
            async with AsyncExitStack() as stack:
                tasks = await stack.enter_async_context(anyio.create_task_group())
                stack.callback(tasks.cancel_scope.cancel)
                tasks.start_soon(_until_asked, asked, tasks.cancel_scope)
                if not _somebody_records(settings):
                    runtime = await stack.enter_async_context(Runtime(settings, suffix=suffix))
                    tasks.start_soon(_until_failed, runtime)
                found.append(await _watch(folder, name))
    finally:
        imports.withdraw_job(folder, name)
    if not found:
        print_lines(["stopped; what is imported stays, and the same command goes on from there"])
        return 0
    (fulfilled,) = found
    print_lines(fulfilled.lines)
    return 1 if fulfilled.refused else 0


def _of_files(choice: Choice, files: Sequence[Path]) -> ImportJob:
    for path in files:
        try:
            recognise(path.absolute(), choice.exchange, choice.market)
            if not path.is_file():
                raise ArchiveError(f"{path.name}: there is no such file")
        except ArchiveError as error:
            raise SettingError(str(error)) from None
    return ImportJob(0, 0, choice.exchange, choice.market, files=[str(path.absolute()) for path in files])


def _of_window(settings: Settings, choice: Choice, now: int) -> ImportJob:
    try:
        start = read_time(_CALL, "--from", choice.start)
        end = read_time(_CALL, "--to", choice.end)
    except QueryError as error:
        raise SettingError(str(error)) from None
    end = now if end is None else min(end, now)
    start = end - max(1, settings.WADM_HISTORY_HOURS) * HOUR if start is None else start
    start, end = start - start % MINUTE, end - end % MINUTE
    if start >= end:
        raise SettingError(f"--from {choice.start or iso(start)} --to {choice.end or iso(end)}: no whole minute lies between, before now")
    symbol = None if choice.symbol is None else choice.symbol.upper()
    return ImportJob(start, end, choice.exchange, choice.market, symbol)


async def _planned(settings: Settings, order: ImportJob, now: int) -> list[str]:
    """Days, bytes, requests and time that an order may take, were nothing of it held yet."""
    if order.files:
        size = sum([(await anyio.Path(file).stat()).st_size for file in order.files])
        return [f"{len(order.files)} files, {size / 1e6:,.1f} MB, about {_duration(size / _BYTES_A_ROW / _ROWS_A_SECOND)}"]
    lines = [f"{iso(order.start)} to {iso(order.end)}, as far as it is not held yet:"]
    window = Window(order.start, order.end)
    async with RestClient(proxied=not settings.stays_on_loopback) as rest:
        for instrument in _instruments(settings, order):
            venue = settings.venue(instrument.exchange, instrument.market)
            archive = venue.traits.archive
            days, missing, size, paged = 0, 0, 0, 0
            for start in range(window.start - window.start % DAY, window.end, DAY):
                length = min(window.end, start + DAY) - max(window.start, start)
                found = None
                if archive is not None and start + DAY <= now:
                    day = datetime.fromtimestamp(start / SECOND, UTC).date()
                    try:
                        found = await rest.size(venue, archive.path(instrument.symbol, day))
                    except ExchangeError as error:
                        lines.append(f"  {instrument}: {error}")
                if found is not None:
                    days, size = days + 1, size + found
                elif venue.traits.counts_trades:
                    paged += length
                else:
                    missing += length
            told = [f"{days} days from the archive, {size / 1e6:,.1f} MB"]
            if paged:
                told.append(f"{paged / HOUR:,.1f} hours in pages, as its budget allows")
            if missing:
                told.append(f"{missing / HOUR:,.1f} hours that nobody serves yet")
            told.append(f"about {_duration(size / _BYTES_A_ROW / _ROWS_A_SECOND)} and what pages take")
            lines.append(f"  {instrument}: {'; '.join(told)}")
    return lines


def _instruments(settings: Settings, order: ImportJob) -> list[Instrument]:
    every = [venue.instrument(symbol) for venue in settings.venues for symbol in settings.WADM_SYMBOLS]
    found = [instrument for instrument in every if order.matches(instrument)]
    if not found and order.symbol is not None and order.exchange is not None and order.market is not None:
        # A tracked one, which the settings do not name.
        return [Instrument(order.exchange, order.market, order.symbol)]
    if not found:
        raise SettingError(f"nothing that is followed matches. Followed: {', '.join(map(str, every))}")
    return found


def _somebody_records(settings: Settings) -> bool:
    with RecorderLock(settings.WADM_DATA_DIR) as lease:
        return not lease.take()


async def _until_asked(asked: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
    await asked()
    scope.cancel()


async def _until_failed(runtime: Runtime) -> None:
    raise await runtime.failed()


async def _watch(folder: Path, name: str) -> ImportProgress:
    """Show how far an order is until it is fulfilled. `WadmError` where nobody takes it up."""
    began, said, shown = time.monotonic(), 0.0, False
    terminal = sys.stderr.isatty()
    try:
        while True:
            how = await to_thread.run_sync(imports.read_progress, folder, name)
            if how is not None and how.done:
                return how
            if how is None and time.monotonic() - began > _PATIENCE:
                raise WadmError(f"nobody took the order up within {_PATIENCE:.0f} s; is the process that records on {folder.parent} well?")
            if how is not None and (terminal or time.monotonic() - said >= _SAID_EVERY):
                said = time.monotonic()
                shown = terminal
                line = _line(how)
                sys.stderr.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}" if terminal else f"{line}\n")
                sys.stderr.flush()
            await anyio.sleep(_EVERY)
    finally:
        if shown:
            with suppress(OSError):
                sys.stderr.write("\r\x1b[K")


def _line(how: ImportProgress) -> str:
    done = int(how.part * _BAR)
    return f"[{'#' * done}{'-' * (_BAR - done)}] {how.part:4.0%}  {how.rate:,} trades/s, about {_duration(how.seconds)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
