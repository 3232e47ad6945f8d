"""Retention of the SQLite store: deletes expired rows in bounded steps along the keys, oldest first, and shrinks the file.

What was deleted is recorded in the same transaction, in the table `expired`: a stretch of time for each instrument and kind of data.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from wadm_mcp.coverage.expired import Expired
from wadm_mcp.model import HOUR, MINUTE, Timeframe, Window
from wadm_mcp.storage.store import Retention

MAX_ROWS: Final = 4_000
"""Most rows that one call deletes from one table."""

MAX_PAGES: Final = 4_000
"""Most free pages that one call returns to the file system; 16 MiB."""

_FREE_PAGE_SHARE: Final = 16
"""One page in this many stays free for new rows, so that pages are not released and allocated again all the time."""

_DELETE_BARS: Final = {
    table: f"""DELETE FROM {table} WHERE instrument = :instrument AND timeframe = :timeframe AND start IN (
        SELECT start FROM {table} WHERE instrument = :instrument AND timeframe = :timeframe AND start < :cutoff
        ORDER BY start LIMIT :rows)"""
    for table in ("footprints", "profiles", "order_flow")
}

# Pieces of a minute with a mark are kept, as trades are: its figures are not derived yet.
_DELETE_PIECES: Final = """DELETE FROM pieces WHERE rowid IN (
    SELECT rowid FROM pieces WHERE instrument = :instrument AND minute < :cutoff AND NOT EXISTS (
        SELECT 1 FROM marks WHERE marks.minute = pieces.minute AND marks.instrument = pieces.instrument)
    ORDER BY minute LIMIT :rows)"""

# A span that reaches over the cutoff still covers data that is kept.
_DELETE_COVERAGE: Final = """DELETE FROM coverage WHERE instrument = :instrument AND (start, first_seq) IN (
    SELECT start, first_seq FROM coverage WHERE instrument = :instrument AND end <= :cutoff ORDER BY end LIMIT :rows)"""

_OLDEST_TRADE: Final = "SELECT timestamp FROM trades WHERE instrument = ? AND timestamp < ? ORDER BY timestamp LIMIT 1"
_OLDEST_BAR: Final = {
    table: f"SELECT start FROM {table} WHERE instrument = :instrument AND timeframe = :timeframe AND start < :cutoff ORDER BY start LIMIT 1"
    for table in _DELETE_BARS
}
_STRETCHES: Final = """SELECT min(CASE WHEN start <= :oldest THEN start END), max(end) FROM expired
    WHERE instrument = :instrument AND kind = :kind AND start <= :cutoff"""

_RANGE: Final = "instrument = ? AND timestamp >= ? AND timestamp < ?"
_KEY: Final = "timestamp, seq, trade_id"
_NTH_TRADE: Final = f"SELECT {_KEY} FROM trades WHERE {_RANGE} ORDER BY {_KEY} LIMIT 1 OFFSET ?"
_DELETE_TRADES: Final = f"DELETE FROM trades WHERE {_RANGE}"
_DELETE_TRADES_BEFORE_KEY: Final = f"DELETE FROM trades WHERE instrument = ? AND timestamp >= ? AND ({_KEY}) < (?, ?, ?)"


def delete(db: sqlite3.Connection, now: int, retention: Retention) -> int:
    """Deletes a bounded number of rows that are older than their retention, and records of what; returns how many.

    Must run within a transaction, so that nothing is deleted without being recorded.
    """
    instruments = [int(row[0]) for row in db.execute("SELECT id FROM instruments ORDER BY id")]
    left, cutoff = MAX_ROWS, now - retention.trades
    for instrument in instruments:
        oldest = db.execute(_OLDEST_TRADE, (instrument, cutoff)).fetchone()
        if oldest is not None and left > 0 and (deleted := _delete_trades(db, instrument, cutoff, left)):
            _record(db, instrument, "trades", oldest[0], cutoff)
            left -= deleted
    total = MAX_ROWS - left
    for table, statement in _DELETE_BARS.items():
        left = MAX_ROWS
        for instrument in instruments:
            for timeframe in Timeframe:
                kind, cutoff = ("minutes", now - retention.minutes) if timeframe.ms < HOUR else ("hours", now - retention.hours)
                key = {"instrument": instrument, "timeframe": timeframe.ms, "cutoff": cutoff}
                oldest = db.execute(_OLDEST_BAR[table], key).fetchone()
                if oldest is not None and left > 0:
                    left -= db.execute(statement, key | {"rows": left}).rowcount
                    _record(db, instrument, kind, oldest[0], cutoff)
        total += MAX_ROWS - left
    for statement, cutoff in ((_DELETE_PIECES, now - retention.minutes), (_DELETE_COVERAGE, now - retention.hours)):
        left = MAX_ROWS
        for instrument in instruments:
            left -= db.execute(statement, {"instrument": instrument, "cutoff": cutoff, "rows": left}).rowcount
        total += MAX_ROWS - left
    return total


def expired(db: sqlite3.Connection, instrument: int | None) -> Expired:
    """What was deleted of an instrument."""
    found: dict[str, list[Window]] = {kind: [] for kind in Expired._fields}
    for kind, start, end in db.execute("SELECT kind, start, end FROM expired WHERE instrument = ?", (instrument,)):
        found[kind].append(Window(start, end))
    return Expired(**{kind: tuple(stretches) for kind, stretches in found.items()})


def shrink(db: sqlite3.Connection) -> None:
    """Returns a bounded number of free pages to the file system. Must not run within a transaction."""
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    (free,) = db.execute("PRAGMA freelist_count").fetchone()
    spare = free - pages // _FREE_PAGE_SHARE
    if spare > 0:
        # This pragma frees one page per result row, and `execute` stops at the first row because it has no columns.
        db.executescript(f"PRAGMA incremental_vacuum({min(spare, MAX_PAGES)})")
        # A checkpoint truncates the file itself.
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def _record(db: sqlite3.Connection, instrument: int, kind: str, oldest: int, cutoff: int) -> None:
    """Records that rows of a kind from `oldest` on, before which there was none, are deleted up to the cutoff.

    It extends the stretches that it meets, and the one before it: between them there is nothing.
    """
    key = {"instrument": instrument, "kind": kind, "oldest": oldest, "cutoff": cutoff}
    start, end = db.execute(_STRETCHES, key).fetchone()
    start, end = min(start or oldest, oldest), max(end or cutoff, cutoff)
    db.execute("DELETE FROM expired WHERE instrument = ? AND kind = ? AND start >= ? AND start <= ?", (instrument, kind, start, cutoff))
    db.execute("INSERT INTO expired VALUES (?, ?, ?, ?)", (instrument, kind, start, end))


def _delete_trades(db: sqlite3.Connection, instrument: int, cutoff: int, rows: int) -> int:
    # A minute with a mark is not derived yet and needs its trades, even if they are expired (an import can be that old).
    found = db.execute("SELECT minute FROM marks WHERE minute < ? AND instrument = ? ORDER BY minute", (cutoff, instrument))
    marked = [int(row[0]) for row in found]
    left = rows
    for start, end in zip([0, *(minute + MINUTE for minute in marked)], [*marked, cutoff], strict=True):
        if left <= 0:
            break
        if start < end:
            beyond = db.execute(_NTH_TRADE, (instrument, start, end, left)).fetchone()
            if beyond is None:
                left -= db.execute(_DELETE_TRADES, (instrument, start, end)).rowcount
            else:
                left -= db.execute(_DELETE_TRADES_BEFORE_KEY, (instrument, start, *beyond)).rowcount
    return rows - left
