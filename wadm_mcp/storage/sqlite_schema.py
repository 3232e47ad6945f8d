"""The file under the SQLite store: its tables, how it is opened, and what its troubles mean in plain words.

A file that is not ours, is damaged or comes from a newer WADM is refused by name and left exactly as it is.
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
SCHEMA_VERSION: Final = 3

CHECK_SECONDS: Final = 1.0
"""How long an opening file is checked: a small one is checked whole, a huge one as far as this goes."""

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

# Key columns stand in the order every question asks by. The key of `trades` holds what never changes of a trade: its price does,
# by its scale, when a finer price made a decoder widen it between two deliveries. The price carries the side as its sign, and an
# empty `trade_id` stands for one that is the seq, ten bytes less a trade. Packed footprints and profiles are too big for a
# clustered key (WITHOUT ROWID wants rows well below a page).
_TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS instruments (
        id INTEGER PRIMARY KEY, exchange TEXT NOT NULL, market TEXT NOT NULL, symbol TEXT NOT NULL,
        tick TEXT, lot TEXT, trading INTEGER, UNIQUE (exchange, market, symbol))""",
    """CREATE TABLE IF NOT EXISTS trades (
        instrument INTEGER NOT NULL, timestamp INTEGER NOT NULL, seq INTEGER NOT NULL, trade_id TEXT NOT NULL, price INTEGER NOT NULL,
        quantity INTEGER NOT NULL, fills INTEGER NOT NULL, scale INTEGER NOT NULL,
        PRIMARY KEY (instrument, timestamp, seq, trade_id)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS marks (
        minute INTEGER NOT NULL, instrument INTEGER NOT NULL, writes INTEGER NOT NULL,
        PRIMARY KEY (minute, instrument)) WITHOUT ROWID""",
    _PIECES,
    # One row. Marks take their `writes` from it, so that a mark set anew never repeats a number that was already settled.
    "CREATE TABLE IF NOT EXISTS counter (id INTEGER PRIMARY KEY CHECK (id = 1), writes INTEGER NOT NULL)",
    "INSERT OR IGNORE INTO counter (id, writes) VALUES (1, 0)",
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
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

# What turns a file of one version into the next. All spans of version 1 have rows.
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
}

_ELSEWHERE: Final = "or set WADM_DATA_DIR to another folder"
_UNTOUCHED: Final = f"it was left as it is; move it away, restore a backup, {_ELSEWHERE}"


def open_writer(path: Path) -> sqlite3.Connection:
    """The one connection that writes; makes the folder, the file and its tables where they are missing, and migrates an older file.

    `StoreError` for a file that is damaged, foreign, from a newer WADM, or out of reach. Blocks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        exists = path.exists() and (path.is_dir() or path.stat().st_size > 0)
    except OSError as error:
        raise StoreError(f"{path} cannot be opened ({error.strerror}): make its folder writable, {_ELSEWHERE}") from None
    with plain_words(path):
        if exists:
            _inspect(path)
        db = _connect(path, "rwc")
        try:
            # Takes effect only while the file is empty; it is what lets the file shrink after deletes.
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                raise StoreError(f"{path} lies where files cannot be shared (a network folder?): set WADM_DATA_DIR to a local folder")
            for pragma in ("synchronous = FULL", "fullfsync = ON", "cache_size = -16384", f"journal_size_limit = {8 << 20}"):
                db.execute(f"PRAGMA {pragma}")
            if _is_fresh(db):
                with transaction(db, "BEGIN IMMEDIATE"):
                    for statement in _TABLES:
                        db.execute(statement)
            if _version(db) < SCHEMA_VERSION:
                with transaction(db, "BEGIN IMMEDIATE"):
                    # Looked at again: another process may have been faster.
                    for older in range(_version(db), SCHEMA_VERSION):
                        for statement in (*_MIGRATIONS[older], f"PRAGMA user_version = {older + 1}"):
                            db.execute(statement)
        except BaseException:
            db.close()
            raise
    return db


def open_readers(path: Path, count: int, *, check: bool) -> list[sqlite3.Connection]:
    """Connections that only read; they never create or change the file. With `check` the file is first looked over.

    `StoreError` as of `open_writer`, and where nothing was recorded yet or an older WADM's file was not migrated yet. Blocks.
    """
    readers: list[sqlite3.Connection] = []
    with plain_words(path):
        try:
            if check and not (path.exists() and _inspect(path, oldest=SCHEMA_VERSION)):
                raise StoreError(f"nothing was recorded in {path} yet: start a WADM that records there, {_ELSEWHERE}")
            for _ in range(count):
                readers.append(_connect(path, "ro"))
                readers[-1].execute("PRAGMA cache_size = -4096")
        except BaseException:
            for db in readers:
                db.close()
            raise
    return readers


@contextmanager
def transaction(db: sqlite3.Connection, begin: str) -> Generator[None]:
    """All or nothing, also when the commit itself fails."""
    db.execute(begin)
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # A full disk may have ended the transaction already.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def plain_words(path: Path) -> Generator[None]:
    """Turns what the file's library or the system says into a `StoreError` for the reader."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        raise StoreError(_explained(error, path)) from error
    except OSError as error:
        raise StoreError(f"{path} cannot be reached ({error.strerror}): make its folder readable, {_ELSEWHERE}") from error
    except OverflowError as error:
        raise StoreError(f"{path} holds whole numbers of up to 64 bits, and one of these is larger; nothing was changed") from error


def damaged(path: Path, what: str) -> str:
    """What to say of a damaged file."""
    return f"{path} is damaged ({what}): {_UNTOUCHED}"


def _explained(error: sqlite3.Error, path: Path) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    match code:
        case sqlite3.SQLITE_FULL:
            return f"the disk that holds {path} is full: nothing of this write was kept; free some space, {_ELSEWHERE}"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return f"{path} cannot be written, its file or file system is read-only: nothing was changed; make it writable, {_ELSEWHERE}"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"{path} is locked by another program: nothing was changed; wait for it or stop it, {_ELSEWHERE}"
        case sqlite3.SQLITE_NOTADB:
            return f"{path} is not a database, or its beginning is damaged: {_UNTOUCHED}"
        case sqlite3.SQLITE_CORRUPT:
            return damaged(path, str(error))
        case sqlite3.SQLITE_CANTOPEN:
            return f"{path} cannot be opened: make its folder readable and writable, {_ELSEWHERE}"
        case sqlite3.SQLITE_IOERR:
            return f"the disk failed to read or write {path} ({error}): nothing was changed; check the disk, {_ELSEWHERE}"
        case _:
            return f"{path} cannot be used ({error}): {_UNTOUCHED}"


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


def _is_fresh(db: sqlite3.Connection) -> bool:
    """Has nobody made tables here yet?"""
    return db.execute("PRAGMA application_id").fetchone()[0] == 0 and _count_tables(db) == 0


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _count_tables(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])


def _inspect(path: Path, oldest: int = 1) -> bool:
    """Looks a file over without changing it: are our tables in it? `StoreError` when WADM must not use it.

    `oldest` is the schema that is old enough for whoever opens it: one who writes migrates, one who only reads cannot.
    """
    with closing(_connect(path, "ro")) as db:
        if _is_fresh(db):
            return False
        (application,) = db.execute("PRAGMA application_id").fetchone()
        version = _version(db)
        if application != APPLICATION_ID:
            raise StoreError(f"{path} is another program's database: {_UNTOUCHED}")
        if version > SCHEMA_VERSION:
            known = f"its schema is {version}, this one knows {SCHEMA_VERSION}"
            raise StoreError(f"{path} was written by a newer WADM ({known}): upgrade wadm-mcp, {_ELSEWHERE}")
        if version < 1:
            raise StoreError(damaged(path, f"schema {version}"))
        if version < oldest:
            known = f"its schema is {version}, this one reads {SCHEMA_VERSION}"
            raise StoreError(f"{path} was written by an older WADM ({known}): start a WADM that records there once, {_ELSEWHERE}")
        _check(db, path)
    return True


def _check(db: sqlite3.Connection, path: Path) -> None:
    # A timer rather than a progress handler: older SQLite does not call that one while it walks a table's pages.
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
        raise StoreError(damaged(path, " ".join(str(finding).split())))
