"""Imports by hand: orders that `wadm-mcp import` leaves in a folder of the data directory, for whoever records there.

An order is a file, so that it outlives both processes: whoever records takes it up again after a restart. How far it is stands in
another file beside it. Both are replaced whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import anyio
import msgspec
from anyio import to_thread

from wadm_mcp.collection.backfill.history import History
from wadm_mcp.collection.recording.recorded_instrument import RecordedInstrument
from wadm_mcp.errors import ArchiveError, StoreError, printable
from wadm_mcp.exchanges.formats import FORMATS, recognise
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import DAY, SECOND, Instrument, Window

_EVERY: Final = 0.5
_SETTLED: Final = 4
"""Looks in a row that find nothing to do, before an order is fulfilled."""
_PATIENCE: Final = 60.0
"""Seconds that an order waits for instruments of which nothing has come in yet: only then is it known where their past ends."""


_LISTED_WITHIN: Final = 10.0
"""Seconds that a file waits for its instrument to be recorded at all, as a start looks every symbol up first."""


class ImportJob(msgspec.Struct, frozen=True):
    """What to import: of the instruments that match, the days of a window (ms), or the files at these paths alone."""

    start: int
    end: int
    exchange: str | None = None
    market: str | None = None
    symbol: str | None = None
    files: list[str] = []

    def matches(self, instrument: Instrument) -> bool:
        wanted = (self.exchange, self.market, self.symbol)
        return all(one in (None, other) for one, other in zip(wanted, instrument, strict=True))


class ImportProgress(msgspec.Struct, frozen=True):
    """How far an order is: the part of it done, trades a second, seconds left, what is to be told; is it fulfilled, and was any of it
    refused?"""

    part: float
    rate: int
    seconds: float
    lines: list[str]
    done: bool = False
    refused: bool = False


def leave(folder: Path, name: str, order: ImportJob) -> None:
    """Leave an order for whoever records."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / f"{name}.order", msgspec.json.encode(order))


def withdraw(folder: Path, name: str) -> None:
    """Take an order back, and what is told of it."""
    for kind in ("order", "progress"):
        (folder / f"{name}.{kind}").unlink(missing_ok=True)


def progress(folder: Path, name: str) -> ImportProgress | None:
    """How far an order is; None where nobody took it up yet."""
    try:
        return msgspec.json.decode((folder / f"{name}.progress").read_bytes(), type=ImportProgress)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


class ImportJobRunner:
    """Fulfils the orders in a folder until cancelled, through the histories of the markets that are followed."""

    def __init__(self, folder: Path, histories: Callable[[], Sequence[History]], health: Health) -> None:
        self._folder = folder
        self._histories = histories
        self._health = health

    async def run(self) -> None:
        """Take up one order after another."""
        while True:
            for path in await to_thread.run_sync(lambda: sorted(self._folder.glob("*.order"))):
                await self._fulfil(path)
            await anyio.sleep(_EVERY)

    async def _fulfil(self, path: Path) -> None:
        try:
            order = msgspec.json.decode(await anyio.Path(path).read_bytes(), type=ImportJob)
        except FileNotFoundError:
            return
        except msgspec.DecodeError as error:
            log.warning("import.unreadable", order=path.name, error=printable(error, 160))
            await anyio.Path(path).unlink(missing_ok=True)
            return
        log.info("import.begins", order=path.stem, files=len(order.files))
        self._health.report("import", State.OK, f"{path.stem} is being fulfilled")
        try:
            lines, refused = await self._files(path, order) if order.files else (await self._window(path, order), False)
        except StoreError as error:
            lines, refused = [str(error)], True
        await self._tell(path, ImportProgress(1.0, 0, 0.0, lines, done=True, refused=refused))
        await anyio.Path(path).unlink(missing_ok=True)
        self._health.forget("import")
        log.info("import.ends", order=path.stem)

    async def _files(self, path: Path, order: ImportJob) -> tuple[list[str], bool]:
        """A line for each file, and was any refused?"""
        lines: list[str] = []
        refused = False
        for place, name in enumerate(order.files):
            if not await anyio.Path(path).exists():
                break
            await self._tell(path, ImportProgress(place / len(order.files), 0, 0.0, lines))
            file = Path(name)
            try:
                new = await self._file(file, order)
                lines.append(f"{file.name}: {new:,} trades were new")
            except ArchiveError as error:
                refused = True
                lines.append(f"{file.name}: nothing is imported of it. {error}")
        return lines, refused

    async def _file(self, file: Path, order: ImportJob) -> int:
        """How many trades of a file were new; `ArchiveError` where it cannot be taken."""
        form, symbol, day = recognise(file, order.exchange, order.market)
        instrument = Instrument(FORMATS[form].exchange, FORMATS[form].market, symbol)
        began, found = anyio.current_time(), self._followed(instrument)
        while found is None and anyio.current_time() - began < (_PATIENCE if self._awaited(instrument) else _LISTED_WITHIN):
            await anyio.sleep(_EVERY)
            found = self._followed(instrument)
        if found is None:
            raise ArchiveError(f"{instrument} is not followed here; add its symbol to WADM_SYMBOLS, or track it, and import again")
        history, followed = found
        start = round(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * SECOND
        window = Window(start, start + DAY)
        await history.know(followed, window)
        return await history.take_file(followed, file, window, FORMATS[form])

    def _awaited(self, instrument: Instrument) -> bool:
        return any(instrument in history.recorded for history in self._histories())

    def _followed(self, instrument: Instrument) -> tuple[History, RecordedInstrument] | None:
        for history in self._histories():
            followed = history.followed(instrument)
            if followed is not None:
                return history, followed
        return None

    async def _window(self, path: Path, order: ImportJob) -> list[str]:
        window = Window(order.start, order.end)
        whole, quiet, began = 0, 0, anyio.current_time()
        taken: set[History] = set()
        try:
            while quiet < _SETTLED and await anyio.Path(path).exists():
                for history in self._histories():
                    if history not in taken:
                        taken.add(history)
                        history.wanted.append((order.matches, window))
                for history in taken:
                    for instrument in history.instruments:
                        followed = history.followed(instrument)
                        if order.matches(instrument) and followed is not None and followed.tape.resumed:
                            await history.know(followed, window)
                looks = [history.left(order.matches, window) for history in taken]
                left, seconds, rate = (sum(look[place] for look in looks) for place in range(3))
                whole = max(whole, left)
                due = [instrument for history in taken for instrument in history.recorded if order.matches(instrument)]
                ready = [instrument for history in taken for instrument in history.instruments if order.matches(instrument)]
                waits = (not due or len(ready) < len(due)) and anyio.current_time() - began < _PATIENCE
                quiet = quiet + 1 if not left and not waits else 0
                await self._tell(path, ImportProgress(1 - left / whole if whole else 0.0, round(rate), seconds, []))
                await anyio.sleep(_EVERY)
            return [line for history in taken for line in history.told(order.matches, window)] or ["no instrument matches"]
        finally:
            for history in taken:
                history.wanted.remove((order.matches, window))

    async def _tell(self, path: Path, how: ImportProgress) -> None:
        if await anyio.Path(path).exists():
            await to_thread.run_sync(_replace, path.with_suffix(".progress"), msgspec.json.encode(how))


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".tmp")
    fresh.write_bytes(content)
    fresh.replace(path)
