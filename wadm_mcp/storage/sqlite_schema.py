"""The file of the SQLite store: its tables, how it is opened and migrated, and the text of its errors.

A file of another program, a damaged one, or one of a newer WADM is refused by name and not changed.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from wadm_mcp.errors import StoreError

APPLICATION_ID: Final = int.from_bytes(b"WADM", "big")
SCHEMA_VERSION: Final = 6

CHECK_SECONDS: Final = 1.0
"""Time limit of the check when a file is opened: a small file is checked completely, a huge one in part."""

BUSY_SECONDS: Final = 2.0
"""How long a statement waits for another process that is writing."""

_COVERAGE: Final = """CREATE TABLE IF NOT EXISTS coverage (
        instrument INTEGER NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL, first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL,
        basis TEXT NOT NULL, reason TEXT NOT NULL, opened_by TEXT NOT NULL, raw INTEGER NOT NULL,
        PRIMARY KEY (instrument, start, first_seq)) WITHOUT ROWID"""
_COVERAGE_BY_END: Final = "CREATE INDEX IF NOT EXISTS coverage_by_end ON coverage (instrument, end)"

_PIECES: Final = """CREATE TABLE IF NOT EXISTS pieces (
        instrument INTEGER NOT NULL, minute INTEGER NOT NULL, first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, packed BLOB NOT NULL,
        PRIMARY KEY (instrument, minute, first_seq))"""

_TRACKED: Final = """CREATE TABLE IF NOT EXISTS tracked (
        exchange TEXT NOT NULL, market TEXT NOT NULL, symbol TEXT NOT NULL, PRIMARY KEY (exchange, market, symbol)) WITHOUT ROWID"""

_EXPIRED: Final = """CREATE TABLE IF NOT EXISTS expired (
        instrument INTEGER NOT NULL, kind TEXT NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL,
        PRIMARY KEY (instrument, kind, start)) WITHOUT ROWID"""

_IDENTITY: Final = "CREATE TABLE IF NOT EXISTS identity (id INTEGER PRIMARY KEY CHECK (id = 1), name TEXT NOT NULL)"
NEW_IDENTITY: Final = "INSERT OR REPLACE INTO identity VALUES (1, lower(hex(randomblob(8))))"

# Key columns have the order in which every query uses them. The key of `trades` contains only what never changes: the price integer
# does, when a decoder widens the scale between two deliveries of the same trade. The sign of the price is the side, and an empty
# `trade_id` means that it equals the seq, which saves ten bytes a trade. Packed footprints and profiles are too big for a clustered
# key (WITHOUT ROWID needs rows well below a page).
_TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS instruments (
        id INTEGER PRIMARY KEY, exchange TEXT NOT NULL, market TEXT NOT NULL, symbol TEXT NOT NULL,
        tick TEXT, lot TEXT, trading INTEGER, status TEXT, UNIQUE (exchange, market, symbol))""",
    """CREATE TABLE IF NOT EXISTS trades (
        instrument INTEGER NOT NULL, timestamp INTEGER NOT NULL, seq INTEGER NOT NULL, trade_id TEXT NOT NULL, price INTEGER NOT NULL,
        quantity INTEGER NOT NULL, fills INTEGER NOT NULL, scale INTEGER NOT NULL,
        PRIMARY KEY (instrument, timestamp, seq, trade_id)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS marks (
        minute INTEGER NOT NULL, instrument INTEGER NOT NULL, writes INTEGER NOT NULL,
        PRIMARY KEY (minute, instrument)) WITHOUT ROWID""",
    _PIECES,
    # One row. Marks take their `writes` from it, so that a new mark never repeats a number that was already cleared.
    "CREATE TABLE IF NOT EXISTS counter (id INTEGER PRIMARY KEY CHECK (id = 1), writes INTEGER NOT NULL)",
    "INSERT OR IGNORE INTO counter (id, writes) VALUES (1, 0)",
    _IDENTITY,
    NEW_IDENTITY,
    """CREATE TABLE IF NOT EXISTS footprints (
        instrument INTEGER NOT NULL, timeframe INTEGER NOT NULL, start INTEGER NOT NULL, packed BLOB NOT NULL, revision INTEGER NOT NULL,
        PRIMARY KEY (instrument, timeframe, start))""",
    """CREATE TABLE IF NOT EXISTS profiles (
        instrument INTEGER NOT NULL, timeframe INTEGER NOT NULL, start INTEGER NOT NULL, packed BLOB, revision INTEGER NOT NULL,
        PRIMARY KEY (instrument, timeframe, start))""",
    """CREATE TABLE IF NOT EXISTS order_flow (
        instrument INTEGER NOT NULL, timeframe INTEGER NOT NULL, start INTEGER NOT NULL, bar BLOB NOT NULL,
        cumulative_delta TEXT NOT NULL, revision INTEGER NOT NULL,
        PRIMARY KEY (instrument, timeframe, start)) WITHOUT ROWID""",
    _COVERAGE,
    _COVERAGE_BY_END,
    _TRACKED,
    _EXPIRED,
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

# What a file that recorded no deletions has lost: what its spans claim before its oldest trade, or before its oldest figures. Minutes
# that are not derived yet are not lost.
_COVERED_FROM: Final = """SELECT instrument, min(start) AS since, max(end) AS until FROM coverage
    WHERE reason NOT IN ('absent', 'differs') AND raw >= {raw} GROUP BY instrument"""
_OLDEST_LEFT: Final = """SELECT min(start) AS at FROM order_flow
        WHERE order_flow.instrument = covered.instrument AND timeframe IN ({timeframes})
    UNION ALL SELECT min(minute) FROM marks WHERE marks.instrument = covered.instrument"""
_OLDEST_TRADE: Final = "SELECT min(timestamp) AS at FROM trades WHERE trades.instrument = covered.instrument"
_FIND_EXPIRED: Final = tuple(
    f"""INSERT INTO expired SELECT instrument, '{kind}', since, oldest FROM (
        SELECT instrument, since, coalesce((SELECT min(at) FROM ({left})), until) AS oldest
        FROM ({_COVERED_FROM.format(raw=raw)}) AS covered) WHERE since < oldest"""
    for kind, left, raw in (
        ("trades", _OLDEST_TRADE, 1),
        ("minutes", _OLDEST_LEFT.format(timeframes=60_000), 0),
        ("hours", _OLDEST_LEFT.format(timeframes="60000, 3600000"), 0),
    )
)

# Statements that migrate a file from one version to the next. All spans of version 1 have rows.
_MIGRATIONS: Final = {
    1: (
        _PIECES,
        "ALTER TABLE coverage RENAME TO coverage_1",
        "DROP INDEX coverage_by_end",
        _COVERAGE,
        "INSERT INTO coverage SELECT instrument, start, end, first_seq, last_seq, basis, reason, opened_by, 1 FROM coverage_1",
        "DROP TABLE coverage_1",
        _COVERAGE_BY_END,
    ),
    2: (_TRACKED,),
    3: ("ALTER TABLE instruments ADD COLUMN status TEXT",),
    4: (_EXPIRED, *_FIND_EXPIRED),
    5: (_IDENTITY, NEW_IDENTITY),
}

_OTHER_FOLDER: Final = "or set WADM_DATA_DIR to another folder"
_NOT_CHANGED: Final = f"it was not changed; move it away, restore a backup, {_OTHER_FOLDER}"


def open_writer(path: Path) -> sqlite3.Connection:
    """The only writing connection. Creates the folder, the file and its tables if missing, and migrates an older file. Blocks.

    Raises `StoreError` for a file that is damaged, of another program, of a newer WADM, or cannot be reached.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        exists = path.exists() and (path.is_dir() or path.stat().st_size > 0)
    except OSError as error:
        raise StoreError(f"{path} cannot be opened ({error.strerror}): make its folder writable, {_OTHER_FOLDER}") from None
    with translate_errors(path):
        if exists:
            _inspect(path)
        db = _connect(path, "rwc")
        try:
            # Has an effect only while the file is empty; without it the file would not shrink after deletes.
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                raise StoreError(
                    f"{path}: the file system does not support SQLite's WAL mode (a network folder?); set WADM_DATA_DIR to a local folder"
                )
            for pragma in ("synchronous = FULL", "fullfsync = ON", "cache_size = -16384", f"journal_size_limit = {8 << 20}"):
                db.execute(f"PRAGMA {pragma}")
            if _is_empty(db):
                with transaction(db, "BEGIN IMMEDIATE"):
                    for statement in _TABLES:
                        db.execute(statement)
            if _version(db) < SCHEMA_VERSION:
                with transaction(db, "BEGIN IMMEDIATE"):
                    # The version is read again, as another process may have migrated the file meanwhile.
                    for older in range(_version(db), SCHEMA_VERSION):
                        for statement in (*_MIGRATIONS[older], f"PRAGMA user_version = {older + 1}"):
                            db.execute(statement)
        except BaseException:
            db.close()
            raise
    return db


def open_readers(path: Path, count: int, *, check: bool) -> list[sqlite3.Connection]:
    """Read-only connections, which never create or change the file. With `check` the file is inspected first. Blocks.

    Raises `StoreError` as `open_writer` does, and also if nothing was recorded yet or the file of an older WADM is not migrated yet.
    """
    readers: list[sqlite3.Connection] = []
    with translate_errors(path):
        try:
            if check and not (path.exists() and _inspect(path, oldest=SCHEMA_VERSION)):
                raise StoreError(
                    f"nothing was recorded in {path} yet: start `wadm-mcp serve` to record, or set WADM_DATA_DIR to the folder of the data"
                )
            for _ in range(count):
                readers.append(_connect(path, "ro"))
                readers[-1].execute("PRAGMA cache_size = -1024")
        except BaseException:
            for db in readers:
                db.close()
            raise
    return readers


@contextmanager
def transaction(db: sqlite3.Connection, begin: str) -> Generator[None]:
    """Runs the block in a transaction, which is rolled back when the block or the commit fails."""
    db.execute(begin)
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # SQLite may have rolled back by itself, for example on a full disk.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def translate_errors(path: Path) -> Generator[None]:
    """Translates errors of SQLite and of the operating system into a `StoreError` that says what to do."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        raise StoreError(_explain(error, path)) from error
    except OSError as error:
        raise StoreError(f"{path} cannot be reached ({error.strerror}): make its folder readable, {_OTHER_FOLDER}") from error
    except OverflowError as error:
        raise StoreError(f"{path} stores integers of up to 64 bits, and one of these is larger; nothing was changed") from error


def damaged_message(path: Path, what: str) -> str:
    """The error text for a damaged file."""
    return f"{path} is damaged ({what}): {_NOT_CHANGED}"


def _explain(error: sqlite3.Error, path: Path) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    match code:
        case sqlite3.SQLITE_FULL:
            return f"the disk of {path} is full: nothing of this write was stored; free some space, {_OTHER_FOLDER}"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return f"{path} cannot be written, its file or file system is read-only: nothing was changed; make it writable, {_OTHER_FOLDER}"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"{path} is locked by another program: nothing was changed; wait for it or stop it, {_OTHER_FOLDER}"
        case sqlite3.SQLITE_NOTADB:
            return f"{path} is not a database, or its beginning is damaged: {_NOT_CHANGED}"
        case sqlite3.SQLITE_CORRUPT:
            return damaged_message(path, str(error))
        case sqlite3.SQLITE_CANTOPEN:
            return f"{path} cannot be opened: make its folder readable and writable, {_OTHER_FOLDER}"
        case sqlite3.SQLITE_IOERR:
            return f"the disk failed to read or write {path} ({error}): nothing was changed; check the disk, {_OTHER_FOLDER}"
        case _:
            return f"{path} cannot be used ({error}): {_NOT_CHANGED}"


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # The store's own limiters let one thread at a time use a connection.
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        db.execute("PRAGMA cell_size_check = ON")
        db.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        db.close()
        raise
    return db


def _is_empty(db: sqlite3.Connection) -> bool:
    """Whether the file has no tables and no owner yet."""
    return db.execute("PRAGMA application_id").fetchone()[0] == 0 and _count_tables(db) == 0


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _count_tables(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])


def _inspect(path: Path, oldest: int = 1) -> bool:
    """Inspects a file without changing it. Returns whether it has our tables; raises `StoreError` if WADM must not use it.

    `oldest` is the lowest schema version that the caller can use: a writer migrates older ones, a reader cannot.
    """
    with closing(_connect(path, "ro")) as db:
        if _is_empty(db):
            return False
        (application,) = db.execute("PRAGMA application_id").fetchone()
        version = _version(db)
        if application != APPLICATION_ID:
            raise StoreError(f"{path} is another program's database: {_NOT_CHANGED}")
        if version > SCHEMA_VERSION:
            known = f"its schema is {version}, this one knows {SCHEMA_VERSION}"
            raise StoreError(f"{path} was written by a newer WADM ({known}): upgrade wadm-mcp, {_OTHER_FOLDER}")
        if version < 1:
            raise StoreError(damaged_message(path, f"schema {version}"))
        if version < oldest:
            raise StoreError(
                f"{path} has schema {version}, this version needs {SCHEMA_VERSION}: "
                f"run `wadm-mcp serve` once to migrate it, {_OTHER_FOLDER}"
            )
        _check(db, path)
    return True


def _check(db: sqlite3.Connection, path: Path) -> None:
    # A timer, not a progress handler: older versions of SQLite do not call the handler while they check a table's pages.
    timer = threading.Timer(CHECK_SECONDS, db.interrupt)
    timer.start()
    try:
        (finding,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        finding = "ok"
    finally:
        timer.cancel()
        timer.join()
    if finding != "ok":
        raise StoreError(damaged_message(path, " ".join(str(finding).split())))
