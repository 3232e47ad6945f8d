"""Retention of the SQLite store: deletes expired rows in bounded steps along the keys, oldest first, and shrinks the file."""

from __future__ import annotations

import sqlite3
from typing import Final

from wadm_mcp.model import HOUR, MINUTE, Timeframe
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

_RANGE: Final = "instrument = ? AND timestamp >= ? AND timestamp < ?"
_KEY: Final = "timestamp, seq, trade_id"
_NTH_TRADE: Final = f"SELECT {_KEY} FROM trades WHERE {_RANGE} ORDER BY {_KEY} LIMIT 1 OFFSET ?"
_DELETE_TRADES: Final = f"DELETE FROM trades WHERE {_RANGE}"
_DELETE_TRADES_BEFORE_KEY: Final = f"DELETE FROM trades WHERE instrument = ? AND timestamp >= ? AND ({_KEY}) < (?, ?, ?)"


def delete(db: sqlite3.Connection, now: int, retention: Retention) -> int:
    """Deletes a bounded number of rows that are older than their retention; returns how many."""
    instruments = [int(row[0]) for row in db.execute("SELECT id FROM instruments ORDER BY id")]
    left = MAX_ROWS
    for instrument in instruments:
        left -= _delete_trades(db, instrument, now - retention.trades, left)
    deleted = MAX_ROWS - left
    for statement in _DELETE_BARS.values():
        left = MAX_ROWS
        for instrument in instruments:
            for timeframe in Timeframe:
                cutoff = now - (retention.minutes if timeframe.ms < HOUR else retention.hours)
                key = {"instrument": instrument, "timeframe": timeframe.ms, "cutoff": cutoff, "rows": left}
                left -= db.execute(statement, key).rowcount
        deleted += MAX_ROWS - left
    for statement, cutoff in ((_DELETE_PIECES, now - retention.minutes), (_DELETE_COVERAGE, now - retention.hours)):
        left = MAX_ROWS
        for instrument in instruments:
            left -= db.execute(statement, {"instrument": instrument, "cutoff": cutoff, "rows": left}).rowcount
        deleted += MAX_ROWS - left
    return deleted


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
