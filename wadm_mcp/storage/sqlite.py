"""The default store: one SQLite file in the data directory.

One process writes; others may read the same file at the same time (`read_only`). Every statement runs in a worker thread, one at a time
on the writing connection and on each of the reading ones. A running statement is always awaited, also on cancellation.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from anyio import CancelScope, CapacityLimiter, to_thread

from wadm_mcp.coverage.expired import Expired
from wadm_mcp.coverage.spans import Span
from wadm_mcp.errors import StoreError, StoreLost
from wadm_mcp.model import MINUTE, Instrument, Listing, Timeframe, Trade, Window
from wadm_mcp.storage import sqlite_expiry, sqlite_rows
from wadm_mcp.storage.sqlite_rows import Row
from wadm_mcp.storage.sqlite_schema import NEW_IDENTITY, damaged_message, open_readers, open_writer, transaction, translate_errors
from wadm_mcp.storage.store import (
    CommitBarrier,
    Derived,
    DirtyMinute,
    OrderFlow,
    PartialFootprint,
    Retention,
    Store,
    StoredFootprint,
    StoreState,
    StoreVersion,
    no_barrier,
)

_READER_COUNT: Final = 3
"""One more than costly questions that are answered at once, so that a cheap one does not wait for their reads."""
_SELECT_INSTRUMENT: Final = "SELECT id FROM instruments WHERE exchange = ? AND market = ? AND symbol = ?"

T = TypeVar("T")


class SqliteStore(Store):
    """A `Store` in the file at `path`, whose folder is created if missing.

    With `read_only` the file must exist; commits of another process are seen, and every method that writes raises `StoreError`.
    Prices of trades must not be 0, and their ids not empty.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._read_only = read_only
        self._file: tuple[int, int] | None = None
        """Device and inode of the open file."""
        self._version: StoreVersion | None = None
        self._writer: sqlite3.Connection | None = None
        self._readers: list[sqlite3.Connection] = []
        """Connections that are not in use."""

    async def __aenter__(self) -> Self:
        self._writing, self._reading = CapacityLimiter(1), CapacityLimiter(_READER_COUNT)
        try:
            await to_thread.run_sync(self._open, limiter=self._writing)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self._close()

    @property
    def version(self) -> StoreVersion:
        if self._version is None:
            raise StoreError(f"{self._path} is not open for writing: nothing is known of it")
        return self._version

    async def renew_identity(self) -> None:
        def renew(db: sqlite3.Connection) -> StoreVersion:
            db.execute(NEW_IDENTITY)
            return _read_version(db)

        self._version = await self._write(renew)

    async def check(self) -> None:
        await to_thread.run_sync(self._check_file)

    async def write(
        self,
        trades: Sequence[Trade],
        spans: Sequence[tuple[Instrument, Span]],
        pieces: Sequence[PartialFootprint] = (),
        *,
        barrier: CommitBarrier = no_barrier,
    ) -> None:
        def insert(db: sqlite3.Connection) -> StoreVersion:
            instruments = chain((row.instrument for row in chain(trades, pieces)), (instrument for instrument, _ in spans))
            ids = _register_instruments(db, instruments)
            db.executemany(sqlite_rows.INSERT_TRADE, (sqlite_rows.trade_row(ids[trade.instrument], trade) for trade in trades))
            db.executemany(sqlite_rows.INSERT_PIECE, (sqlite_rows.piece_row(ids[piece.instrument], piece) for piece in pieces))
            minutes = {(trade.timestamp - trade.timestamp % MINUTE, ids[trade.instrument]) for trade in trades}
            minutes.update((piece.minute, ids[piece.instrument]) for piece in pieces)
            if minutes:
                db.execute("UPDATE counter SET writes = writes + 1 WHERE id = 1")
                (writes,) = db.execute("SELECT writes FROM counter WHERE id = 1").fetchone()
                db.executemany(sqlite_rows.UPSERT_MARK, ((*minute, writes) for minute in sorted(minutes)))
            db.executemany(sqlite_rows.UPSERT_SPAN, (sqlite_rows.span_row(ids[instrument], span) for instrument, span in spans))
            return _read_version(db)

        await barrier()
        if trades or spans or pieces:
            version = await self._write(insert)
            # Of two writes the first may return last.
            self._version = max(self.version, version)

    async def pieces(self, instrument: Instrument, window: Window) -> list[PartialFootprint]:
        def find(db: sqlite3.Connection) -> list[PartialFootprint]:
            rows = db.execute(sqlite_rows.SELECT_PIECES, (_instrument_id(db, instrument), window.start, window.end)).fetchall()
            return self._decode_rows("pieces", instrument, rows, partial(sqlite_rows.piece_of, instrument))

        return await self._read(find)

    async def derive(self, derived: Derived) -> None:
        """As the contract says, in one transaction. A footprint or profile without a bar in this pass is compared by its own revision."""

        def replace(db: sqlite3.Connection) -> None:
            derived_rows = chain(derived.footprints, derived.profiles, derived.order_flow)
            ids = _register_instruments(db, chain((row.instrument for row in derived_rows), (mark.instrument for mark in derived.settles)))
            bars = (sqlite_rows.order_flow_row(ids[bar.instrument], bar) for bar in derived.order_flow)
            footprints = (sqlite_rows.footprint_row(ids[row.instrument], row) for row in derived.footprints)
            profiles = (sqlite_rows.profile_row(ids[row.instrument], row) for row in derived.profiles)
            rejected = _rejected(db, sqlite_rows.UPSERT_ORDER_FLOW, bars)
            stale = bool(rejected)
            for statement, rows in ((sqlite_rows.UPSERT_FOOTPRINT, footprints), (sqlite_rows.UPSERT_PROFILE, profiles)):
                stale |= bool(_rejected(db, statement, (row for row in rows if row[:3] not in rejected)))
            if not stale:
                settled = ((mark.minute, ids[mark.instrument], mark.writes) for mark in derived.settles)
                db.executemany("DELETE FROM marks WHERE minute = ? AND instrument = ? AND writes = ?", settled)

        if derived.footprints or derived.profiles or derived.order_flow or derived.settles:
            await self._write(replace)

    async def dirty_minutes(self) -> list[DirtyMinute]:
        rows = await self._read(lambda db: db.execute(sqlite_rows.SELECT_MARKS).fetchall())
        return [DirtyMinute(Instrument(*names), minute, writes) for minute, writes, *names in rows]

    async def save_listings(self, listings: Sequence[Listing]) -> None:
        def update(db: sqlite3.Connection) -> None:
            ids = _register_instruments(db, (listing.instrument for listing in listings))
            rows = ((*listing.stored_steps(), listing.trading, listing.status or None, ids[listing.instrument]) for listing in listings)
            db.executemany("UPDATE instruments SET tick = ?, lot = ?, trading = ?, status = ? WHERE id = ?", rows)

        if listings:
            await self._write(update)

    async def listings(self) -> list[Listing]:
        def find(db: sqlite3.Connection) -> list[Listing]:
            rows = db.execute(sqlite_rows.SELECT_LISTINGS).fetchall()
            return self._decode_rows("instruments", "every exchange", rows, sqlite_rows.listing_of)

        return await self._read(find)

    async def track(self, instruments: Sequence[Instrument]) -> None:
        await self._write(lambda db: db.executemany("INSERT INTO tracked VALUES (?, ?, ?) ON CONFLICT DO NOTHING", instruments))

    async def untrack(self, instruments: Sequence[Instrument]) -> None:
        statement = "DELETE FROM tracked WHERE exchange = ? AND market = ? AND symbol = ?"
        await self._write(lambda db: db.executemany(statement, instruments))

    async def tracked(self) -> list[Instrument]:
        rows = await self._read(lambda db: db.execute("SELECT exchange, market, symbol FROM tracked").fetchall())
        return [Instrument(*row) for row in rows]

    async def trades(
        self,
        instrument: Instrument,
        window: Window,
        *,
        after: tuple[int, int, int, str] | None = None,
        limit: int,
        newest: bool = False,
    ) -> list[Trade]:
        def find(db: sqlite3.Connection) -> list[Trade]:
            instrument_id = _instrument_id(db, instrument)
            if instrument_id is None:
                return []
            rows = db.execute(*sqlite_rows.select_trades(instrument_id, window, after, limit, newest)).fetchall()
            return self._decode_rows("trades", instrument, reversed(rows) if newest else rows, partial(sqlite_rows.trade_of, instrument))

        return await self._read(find) if limit > 0 else []

    async def count(self, instrument: Instrument, window: Window) -> int:
        def find(db: sqlite3.Connection) -> int:
            key = {"instrument": _instrument_id(db, instrument), "start": window.start, "end": window.end}
            return int(db.execute(sqlite_rows.COUNT_TRADES, key).fetchone()[0])

        return await self._read(find)

    async def footprints(
        self, instrument: Instrument, timeframe: Timeframe, window: Window, *, max_bytes: int | None = None
    ) -> list[StoredFootprint]:
        statement, decode = sqlite_rows.SELECT_FOOTPRINTS, sqlite_rows.footprint_of
        return await self._read_bars("footprints", statement, decode, instrument, timeframe, window, max_bytes)

    async def order_flow(self, instrument: Instrument, timeframe: Timeframe, window: Window) -> list[OrderFlow]:
        return await self._read_bars("order_flow", sqlite_rows.SELECT_ORDER_FLOW, sqlite_rows.order_flow_of, instrument, timeframe, window)

    async def spans(self, instrument: Instrument, window: Window) -> list[Span]:
        def find(db: sqlite3.Connection) -> list[Span]:
            key = {"instrument": _instrument_id(db, instrument), "start": window.start, "end": window.end}
            return self._decode_rows("coverage", instrument, db.execute(sqlite_rows.SELECT_SPANS, key).fetchall(), sqlite_rows.span_of)

        return await self._read(find)

    async def expire(self, now: int | None, retention: Retention, latest: int | None = None) -> int:
        """As the contract says, and shrinks the file. Trades and pieces of a minute that still has a mark are kept."""
        if now is None:
            return 0
        deleted = await self._write(lambda db: sqlite_expiry.delete(db, now, retention))
        await self._write(sqlite_expiry.shrink, atomic=False)
        return deleted

    async def expired(self, instrument: Instrument) -> Expired:
        return await self._read(lambda db: sqlite_expiry.expired(db, _instrument_id(db, instrument)))

    async def acquire_leases(self, owner: str, instruments: Sequence[Instrument], seconds: float) -> set[Instrument]:
        """All of them: the lock on the data directory lets one process record."""
        return set(instruments)

    async def release_leases(self, owner: str) -> None:
        """Does nothing: the lock on the data directory stands for all leases."""

    async def state(self) -> StoreState:
        def measure(db: sqlite3.Connection) -> StoreState:
            db.execute("SELECT id FROM instruments LIMIT 1").fetchone()
            wal = self._path.with_name(f"{self._path.name}-wal")
            log_bytes = wal.stat().st_size if wal.exists() else 0
            return StoreState("sqlite", str(self._path), self._path.stat().st_size + log_bytes, log_bytes)

        return await self._read(measure)

    async def _read_bars(
        self,
        table: str,
        statement: str,
        decode: Callable[[Instrument, Timeframe, Row], T],
        instrument: Instrument,
        timeframe: Timeframe,
        window: Window,
        max_bytes: int | None = None,
    ) -> list[T]:
        def find(db: sqlite3.Connection) -> list[T]:
            found: Iterable[Row] = db.execute(statement, (_instrument_id(db, instrument), timeframe.ms, window.start, window.end))
            rows = list(found if max_bytes is None else _first_rows(found, max_bytes))
            return self._decode_rows(f"{table} {timeframe}", instrument, rows, partial(decode, instrument, timeframe))

        return await self._read(find)

    def _decode_rows(self, table: str, subject: object, rows: Iterable[Row], decode: Callable[[Row], T]) -> list[T]:
        values: list[T] = []
        for row in rows:
            try:
                values.append(decode(row))
            except (ValueError, TypeError) as error:
                raise StoreError(damaged_message(self._path, f"{table} of {subject}, row {row[0]}: {error}")) from error
        return values

    async def _write(self, work: Callable[[sqlite3.Connection], T], atomic: bool = True) -> T:
        def run() -> T:
            if self._writer is None:
                raise StoreError(f"{self._path} {'was opened for reading only' if self._read_only else 'is closed'}: nothing was written")
            self._check_file()
            with translate_errors(self._path), transaction(self._writer, "BEGIN IMMEDIATE") if atomic else nullcontext():
                return work(self._writer)

        return await to_thread.run_sync(run, limiter=self._writing)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            if not self._readers:
                raise StoreError(f"{self._path} is closed: nothing can be read from it")
            db = self._readers.pop()
            try:
                # One snapshot for all statements of one read.
                with translate_errors(self._path), transaction(db, "BEGIN"):
                    return work(db)
            finally:
                self._readers.append(db)

        return await to_thread.run_sync(run, limiter=self._reading)

    def _check_file(self) -> None:
        """Raise `StoreLost` if the file at the path is not the open one any more. What is written to a file without a name is lost."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            found = None
        except OSError:
            return
        else:
            found = status.st_dev, status.st_ino
        if self._file is not None and found != self._file:
            raise StoreLost(
                f"{self._path} was deleted or replaced while WADM was recording into it: what it had is gone, and nothing more is "
                "stored; start WADM again to record into a new file"
            )

    def _open(self) -> None:
        if not self._read_only:
            self._writer = open_writer(self._path)
            self._version = _read_version(self._writer)
            status = self._path.stat()
            self._file = status.st_dev, status.st_ino
        self._readers = open_readers(self._path, _READER_COUNT, check=self._read_only)

    async def _close(self) -> None:
        with CancelScope(shield=True):
            for _ in range(_READER_COUNT):
                await to_thread.run_sync(self._close_reader, limiter=self._reading)
            await to_thread.run_sync(self._close_writer, limiter=self._writing)

    def _close_reader(self) -> None:
        # The limiter has as many tokens as there are readers, so a task with a token finds a reader until all are closed.
        if self._readers:
            self._readers.pop().close()

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _read_version(db: sqlite3.Connection) -> StoreVersion:
    return StoreVersion(*db.execute("SELECT name, writes FROM identity, counter").fetchone())


def _instrument_id(db: sqlite3.Connection, instrument: Instrument) -> int | None:
    row = db.execute(_SELECT_INSTRUMENT, instrument).fetchone()
    return None if row is None else int(row[0])


def _first_rows(rows: Iterable[Row], max_bytes: int) -> Iterator[Row]:
    """The first rows of `SELECT_FOOTPRINTS`, up to the one with which what is packed in them has `max_bytes` bytes."""
    for row in rows:
        yield row
        max_bytes -= len(row[1])
        if max_bytes <= 0:
            return


def _rejected(db: sqlite3.Connection, statement: str, rows: Iterable[Row]) -> set[Row]:
    """Writes rows and returns the keys (instrument, timeframe, start) of those that are not newer than the stored row."""
    return {row[:3] for row in rows if not db.execute(statement, row).rowcount}


def _register_instruments(db: sqlite3.Connection, instruments: Iterable[Instrument]) -> dict[Instrument, int]:
    """The ids of these instruments; new ones are inserted. Not cached, because a transaction that fails removes the new ids again."""
    ids: dict[Instrument, int] = {}
    for instrument in dict.fromkeys(instruments):
        db.execute("INSERT INTO instruments (exchange, market, symbol) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", instrument)
        (ids[instrument],) = db.execute(_SELECT_INSTRUMENT, instrument).fetchone()
    return ids
