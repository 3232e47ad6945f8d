"""What leaves the SQLite store and how: bounded deletes along the keys, oldest first, and a file that shrinks with them."""

from __future__ import annotations

import sqlite3
from typing import Final

from wadm_mcp.model import HOUR, MINUTE, Timeframe
from wadm_mcp.storage.store import Retention

ROWS: Final = 4_000
"""Rows that one call deletes from one table at most."""

PAGES: Final = 4_000
"""Free pages that one call gives back to the disk at most; 16 MiB."""

_SPARE: Final = 16
"""One page in so many stays free: new rows take them at once, and nothing is moved about to give them back before."""

_DELETE_DERIVED: Final = {
    table: f"""DELETE FROM {table} WHERE instrument = :instrument AND timeframe = :timeframe AND start IN (
        SELECT start FROM {table} WHERE instrument = :instrument AND timeframe = :timeframe AND start < :horizon
        ORDER BY start LIMIT :rows)"""
    for table in ("footprints", "profiles", "order_flow")
}

# As of trades, what a mark stands for needs its pieces.
_DELETE_PIECES: Final = """DELETE FROM pieces WHERE rowid IN (
    SELECT rowid FROM pieces WHERE instrument = :instrument AND minute < :horizon AND NOT EXISTS (
        SELECT 1 FROM marks WHERE marks.minute = pieces.minute AND marks.instrument = pieces.instrument)
    ORDER BY minute LIMIT :rows)"""

# A span that straddles the horizon still says something of what is kept.
_DELETE_COVERAGE: Final = """DELETE FROM coverage WHERE instrument = :instrument AND start IN (
    SELECT start FROM coverage WHERE instrument = :instrument AND end <= :horizon ORDER BY end LIMIT :rows)"""

_RANGE: Final = "instrument = ? AND timestamp >= ? AND timestamp < ?"
_KEY: Final = "timestamp, seq, trade_id"
_NTH_TRADE: Final = f"SELECT {_KEY} FROM trades WHERE {_RANGE} ORDER BY {_KEY} LIMIT 1 OFFSET ?"
_DELETE_TRADES: Final = f"DELETE FROM trades WHERE {_RANGE}"
_DELETE_TRADES_BEFORE: Final = f"DELETE FROM trades WHERE instrument = ? AND timestamp >= ? AND ({_KEY}) < (?, ?, ?)"


def delete(db: sqlite3.Connection, now: int, lives: Retention) -> int:
    """Deletes a bounded amount of what outlived its life; how many rows went."""
    instruments = [int(row[0]) for row in db.execute("SELECT id FROM instruments ORDER BY id")]
    left = ROWS
    for instrument in instruments:
        left -= _delete_trades(db, instrument, now - lives.trades, left)
    deleted = ROWS - left
    for statement in _DELETE_DERIVED.values():
        left = ROWS
        for instrument in instruments:
            for timeframe in Timeframe:
                horizon = now - (lives.minutes if timeframe.ms < HOUR else lives.hours)
                key = {"instrument": instrument, "timeframe": timeframe.ms, "horizon": horizon, "rows": left}
                left -= db.execute(statement, key).rowcount
        deleted += ROWS - left
    for statement, horizon in ((_DELETE_PIECES, now - lives.minutes), (_DELETE_COVERAGE, now - lives.hours)):
        left = ROWS
        for instrument in instruments:
            left -= db.execute(statement, {"instrument": instrument, "horizon": horizon, "rows": left}).rowcount
        deleted += ROWS - left
    return deleted


def shrink(db: sqlite3.Connection) -> None:
    """Gives a bounded amount of free pages back to the disk. Not within a transaction."""
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    (free,) = db.execute("PRAGMA freelist_count").fetchone()
    spare = free - pages // _SPARE
    if spare > 0:
        # It frees one page a step and its steps are rows without columns, at the first of which `execute` stops.
        db.executescript(f"PRAGMA incremental_vacuum({min(spare, PAGES)})")
        # The file itself is cut by a checkpoint.
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def _delete_trades(db: sqlite3.Connection, instrument: int, horizon: int, rows: int) -> int:
    # What a mark stands for was not derived yet, as in an import older than a trade's life: it needs its trades.
    found = db.execute("SELECT minute FROM marks WHERE minute < ? AND instrument = ? ORDER BY minute", (horizon, instrument))
    marked = [int(row[0]) for row in found]
    left = rows
    for start, end in zip([0, *(minute + MINUTE for minute in marked)], [*marked, horizon], strict=True):
        if left <= 0:
            break
        if start < end:
            beyond = db.execute(_NTH_TRADE, (instrument, start, end, left)).fetchone()
            if beyond is None:
                left -= db.execute(_DELETE_TRADES, (instrument, start, end)).rowcount
            else:
                left -= db.execute(_DELETE_TRADES_BEFORE, (instrument, start, *beyond)).rowcount
    return rows - left
