"""Imports by hand: orders that `wadm-mcp import` leaves in a folder of the data directory, for whoever records there.

An order is a file, so that it outlives both processes: whoever records takes it up again after a restart. How far it is stands in
another file beside it. Both are replaced whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import anyio
import msgspec
from anyio import to_thread

from wadm_mcp.collection.history import History
from wadm_mcp.errors import ArchiveError, StoreError, printable
from wadm_mcp.exchanges.formats import FORMATS
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import DAY, Instrument, Window

_EVERY: Final = 0.5
_SETTLED: Final = 4
"""Looks in a row that find nothing to do, before an order is fulfilled."""
_PATIENCE: Final = 60.0
"""Seconds that an order waits for instruments of which nothing has come in yet: only then is it known where their past ends."""


class ArchiveFile(msgspec.Struct, frozen=True):
    """A file on this disk: of which format (by its place in `FORMATS`), instrument and day (ms)."""

    path: str
    form: int
    instrument: Instrument
    day: int


class Order(msgspec.Struct, frozen=True):
    """What to import: of the instruments that match, the days of a window, or these files alone."""

    start: int
    end: int
    exchange: str | None = None
    market: str | None = None
    symbol: str | None = None
    files: list[ArchiveFile] = []

    def matches(self, instrument: Instrument) -> bool:
        wanted = (self.exchange, self.market, self.symbol)
        return all(one in (None, other) for one, other in zip(wanted, instrument, strict=True))


class Progress(msgspec.Struct, frozen=True):
    """How far an order is: the part of it done, trades a second, seconds left, what is to be told, and is it fulfilled."""

    part: float
    rate: int
    seconds: float
    lines: list[str]
    done: bool = False


def leave(folder: Path, name: str, order: Order) -> None:
    """Leave an order for whoever records."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / f"{name}.order", msgspec.json.encode(order))


def withdraw(folder: Path, name: str) -> None:
    """Take an order back, and what is told of it."""
    for kind in ("order", "progress"):
        (folder / f"{name}.{kind}").unlink(missing_ok=True)


def progress(folder: Path, name: str) -> Progress | None:
    """How far an order is; None where nobody took it up yet."""
    try:
        return msgspec.json.decode((folder / f"{name}.progress").read_bytes(), type=Progress)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


class Imports:
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
            order = msgspec.json.decode(await anyio.Path(path).read_bytes(), type=Order)
        except FileNotFoundError:
            return
        except msgspec.DecodeError as error:
            log.warning("import.unreadable", order=path.name, error=printable(error, 160))
            await anyio.Path(path).unlink(missing_ok=True)
            return
        log.info("import.begins", order=path.stem, files=len(order.files))
        self._health.report("import", State.OK, f"{path.stem} is being fulfilled")
        try:
            lines = await self._files(path, order) if order.files else await self._window(path, order)
        except StoreError as error:
            lines = [str(error)]
        await self._tell(path, Progress(1.0, 0, 0.0, lines, done=True))
        await anyio.Path(path).unlink(missing_ok=True)
        self._health.forget("import")
        log.info("import.ends", order=path.stem)

    async def _files(self, path: Path, order: Order) -> list[str]:
        lines: list[str] = []
        for place, file in enumerate(order.files):
            if not await anyio.Path(path).exists():
                break
            await self._tell(path, Progress(place / len(order.files), 0, 0.0, lines))
            lines.append(f"{Path(file.path).name}: {await self._file(file)}")
        return lines

    async def _file(self, file: ArchiveFile) -> str:
        for history in self._histories():
            followed = history.followed(file.instrument)
            if followed is None:
                continue
            day = Window(file.day, file.day + DAY)
            try:
                await history.know(followed, day)
                new = await history.take_file(followed, Path(file.path), day, FORMATS[file.form])
            except ArchiveError as error:
                return f"nothing is imported of it. {error}"
            return f"{new:,} trades were new"
        return f"{file.instrument} is not followed here; add its symbol to WADM_SYMBOLS, or track it, and import again"

    async def _window(self, path: Path, order: Order) -> list[str]:
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
                        if order.matches(instrument) and followed is not None and followed.tape.adopted:
                            await history.know(followed, window)
                looks = [history.left(order.matches, window) for history in taken]
                left, seconds, rate = (sum(look[place] for look in looks) for place in range(3))
                whole = max(whole, left)
                due = [instrument for history in taken for instrument in history.recorded if order.matches(instrument)]
                ready = [instrument for history in taken for instrument in history.instruments if order.matches(instrument)]
                waits = (not due or len(ready) < len(due)) and anyio.current_time() - began < _PATIENCE
                quiet = quiet + 1 if not left and not waits else 0
                await self._tell(path, Progress(1 - left / whole if whole else 0.0, round(rate), seconds, []))
                await anyio.sleep(_EVERY)
            return [line for history in taken for line in history.told(order.matches, window)] or ["no instrument matches"]
        finally:
            for history in taken:
                history.wanted.remove((order.matches, window))

    async def _tell(self, path: Path, how: Progress) -> None:
        if await anyio.Path(path).exists():
            await to_thread.run_sync(_replace, path.with_suffix(".progress"), msgspec.json.encode(how))


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".tmp")
    fresh.write_bytes(content)
    fresh.replace(path)
