"""Converts values to rows of the SQLite store and back, next to the SQL statements that use those columns.

A row that cannot be read raises `ValueError` or `TypeError`; the store adds which row it was.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.coverage.spans import Basis, GapReason, Span, SpanReason
from wadm_mcp.model import Instrument, Listing, Scale, Timeframe, Trade, TradeType, Window
from wadm_mcp.storage.store import OrderFlow, PartialFootprint, Profile, StoredFootprint

Row: TypeAlias = tuple[Any, ...]

_SCALE_FACTOR: Final = 100
"""A scale is stored as one readable integer: 205 means two decimals of price and five of quantity."""

# `trade_id` is stored as '' where it equals the seq; ties still sort by the id itself, as in `Trade.order`.
_TRADE_ID: Final = "CASE trade_id WHEN '' THEN CAST(seq AS TEXT) ELSE trade_id END"

INSERT_TRADE: Final = """INSERT INTO trades
    (instrument, timestamp, seq, trade_id, price, quantity, fills, scale) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (instrument, timestamp, seq, trade_id) DO NOTHING"""

INSERT_PIECE: Final = """INSERT INTO pieces (instrument, minute, first_seq, last_seq, packed) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (instrument, minute, first_seq) DO UPDATE SET last_seq = excluded.last_seq, packed = excluded.packed
    WHERE excluded.last_seq > last_seq"""

UPSERT_MARK: Final = """INSERT INTO marks (minute, instrument, writes) VALUES (?, ?, ?)
    ON CONFLICT (minute, instrument) DO UPDATE SET writes = excluded.writes"""

# Merges like `merge_spans`.
UPSERT_SPAN: Final = """INSERT INTO coverage
    (instrument, start, end, first_seq, last_seq, basis, reason, opened_by, raw) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (instrument, start, first_seq) DO UPDATE SET
    end = max(coverage.end, excluded.end), last_seq = max(coverage.last_seq, excluded.last_seq),
    basis = excluded.basis, reason = excluded.reason, opened_by = excluded.opened_by, raw = excluded.raw"""

# Compare-and-set: a row whose revision is not higher than the stored one changes nothing.
UPSERT_FOOTPRINT: Final = """INSERT INTO footprints (instrument, timeframe, start, packed, revision) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (instrument, timeframe, start) DO UPDATE SET packed = excluded.packed, revision = excluded.revision
    WHERE excluded.revision > footprints.revision"""

UPSERT_PROFILE: Final = """INSERT INTO profiles (instrument, timeframe, start, packed, revision) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (instrument, timeframe, start) DO UPDATE SET packed = excluded.packed, revision = excluded.revision
    WHERE excluded.revision > profiles.revision"""

UPSERT_ORDER_FLOW: Final = """INSERT INTO order_flow
    (instrument, timeframe, start, bar, cumulative_delta, revision) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (instrument, timeframe, start) DO UPDATE
    SET bar = excluded.bar, cumulative_delta = excluded.cumulative_delta, revision = excluded.revision
    WHERE excluded.revision > order_flow.revision"""

SELECT_PIECES: Final = """SELECT minute, first_seq, last_seq, packed FROM pieces WHERE instrument = ? AND minute >= ? AND minute < ?
    ORDER BY minute, first_seq"""

_BARS_IN_WINDOW: Final = "WHERE instrument = ? AND timeframe = ? AND start >= ? AND start < ? ORDER BY start"
SELECT_FOOTPRINTS: Final = f"SELECT start, packed, revision FROM footprints {_BARS_IN_WINDOW}"
SELECT_ORDER_FLOW: Final = f"SELECT start, bar, cumulative_delta, revision FROM order_flow {_BARS_IN_WINDOW}"

_SPAN_COLUMNS: Final = "start, end, first_seq, last_seq, basis, reason, opened_by, raw"
SELECT_SPANS: Final = f"""SELECT {_SPAN_COLUMNS} FROM (
    SELECT * FROM (SELECT {_SPAN_COLUMNS} FROM coverage WHERE instrument = :instrument AND end < :start
        ORDER BY end DESC, start DESC, first_seq DESC LIMIT 1)
    UNION ALL SELECT {_SPAN_COLUMNS} FROM coverage WHERE instrument = :instrument AND end >= :start AND start <= :end
    UNION ALL SELECT * FROM (SELECT {_SPAN_COLUMNS} FROM coverage WHERE instrument = :instrument AND start > :end
        ORDER BY start, first_seq LIMIT 1))
    ORDER BY start, first_seq"""
"""Spans may overlap, so both their start and their end are indexed (with the instrument)."""

COUNT_TRADES: Final = """SELECT
    (SELECT COUNT(*) FROM trades WHERE instrument = :instrument AND timestamp >= :start AND timestamp < :end)
    + (SELECT COUNT(*) FROM pieces WHERE instrument = :instrument AND minute >= :start AND minute < :end)"""

SELECT_MARKS: Final = """SELECT minute, writes, exchange, market, symbol FROM marks JOIN instruments ON instruments.id = marks.instrument
    ORDER BY minute, marks.instrument"""

SELECT_LISTINGS: Final = "SELECT exchange, market, symbol, tick, lot, trading, status FROM instruments WHERE tick IS NOT NULL ORDER BY id"


def select_trades(
    instrument: int, window: Window, after: tuple[int, int, int, str] | None, limit: int, newest: bool
) -> tuple[str, tuple[object, ...]]:
    """The statement that selects trades, and its arguments. Rows come newest first if `newest` is set."""
    columns = "SELECT timestamp, seq, trade_id, price, quantity, fills, scale FROM trades WHERE instrument = ? AND timestamp < ?"
    down = " DESC" if newest else ""
    order = f"ORDER BY timestamp{down}, seq{down}, price{down}, {_TRADE_ID}{down} LIMIT ?"
    if after is None or after[0] < window.start:
        return f"{columns} AND timestamp >= ? {order}", (instrument, window.end, window.start, limit)
    # The first comparison uses the index, the second decides between trades with equal time and seq.
    later = f"(timestamp, seq) >= (?, ?) AND (timestamp, seq, price, {_TRADE_ID}) > (?, ?, ?, ?)"
    return f"{columns} AND {later} {order}", (instrument, window.end, *after[:2], *after, limit)


def trade_row(instrument: int, trade: Trade) -> Row:
    """For `INSERT_TRADE`. The price is positive if the aggressor bought and negative if it sold, as in `Trade.order`."""
    price = trade.price if trade.trade_type is TradeType.BUY else -trade.price
    trade_id = "" if trade.trade_id == str(trade.seq) else trade.trade_id
    scale = trade.scale.price * _SCALE_FACTOR + trade.scale.quantity
    return instrument, trade.timestamp, trade.seq, trade_id, price, trade.quantity, trade.fills, scale


def trade_of(instrument: Instrument, row: Row) -> Trade:
    """A trade from a row of `select_trades`."""
    timestamp, seq, trade_id, price, quantity, fills, scale = row
    side = TradeType.BUY if price >= 0 else TradeType.SELL
    at = _SCALES.get(scale) or Scale(*divmod(scale, _SCALE_FACTOR))
    return Trade(instrument, timestamp, seq, trade_id or str(seq), abs(price), quantity, side, fills, at)


_SCALES: Final = {scale: Scale(*divmod(scale, _SCALE_FACTOR)) for scale in range(19 * _SCALE_FACTOR)}
"""Shared objects, as a page of trades needs thousands of scales."""


def piece_row(instrument: int, piece: PartialFootprint) -> Row:
    """For `INSERT_PIECE`."""
    return instrument, piece.minute, piece.first_seq, piece.last_seq, piece.footprint.pack()


def piece_of(instrument: Instrument, row: Row) -> PartialFootprint:
    """A piece from a row of `SELECT_PIECES`."""
    minute, first_seq, last_seq, packed = row
    return PartialFootprint(instrument, minute, first_seq, last_seq, Footprint.unpack(packed))


def span_row(instrument: int, span: Span) -> Row:
    """For `UPSERT_SPAN`."""
    return (
        instrument,
        span.start,
        span.end,
        span.first_seq,
        span.last_seq,
        span.basis.value,
        span.reason.value,
        span.opened_by.value,
        span.raw,
    )


def span_of(row: Row) -> Span:
    """A span from a row of `SELECT_SPANS`."""
    start, end, first_seq, last_seq, basis, reason, opened_by, raw = row
    return Span(start, end, first_seq, last_seq, Basis(basis), SpanReason(reason), GapReason(opened_by), bool(raw))


def footprint_row(instrument: int, stored: StoredFootprint) -> Row:
    """For `UPSERT_FOOTPRINT`."""
    return instrument, stored.timeframe.ms, stored.start, stored.footprint.pack(), stored.revision


def footprint_of(instrument: Instrument, timeframe: Timeframe, row: Row) -> StoredFootprint:
    """A footprint from a row of `SELECT_FOOTPRINTS`."""
    start, packed, revision = row
    return StoredFootprint(instrument, timeframe, start, Footprint.unpack(packed), revision)


def profile_row(instrument: int, stored: Profile) -> Row:
    """For `UPSERT_PROFILE`. The profile of a bar without trades is NULL; any other states its rule version in `packed`."""
    packed = None if stored.profile is None else stored.profile.pack()
    return instrument, stored.timeframe.ms, stored.start, packed, stored.revision


def order_flow_row(instrument: int, flow: OrderFlow) -> Row:
    """For `UPSERT_ORDER_FLOW`. A cumulative delta may exceed 64 bits, so it is stored as text."""
    return instrument, flow.timeframe.ms, flow.start, flow.bar.pack(), str(flow.cumulative_delta), flow.revision


def order_flow_of(instrument: Instrument, timeframe: Timeframe, row: Row) -> OrderFlow:
    """Order flow from a row of `SELECT_ORDER_FLOW`."""
    start, bar, cumulative_delta, revision = row
    return OrderFlow(instrument, timeframe, start, Bar.unpack(bar), int(cumulative_delta), revision)


def listing_of(row: Row) -> Listing:
    """A listing from a row of `SELECT_LISTINGS`."""
    exchange, market, symbol, tick, lot, trading, status = row
    return Listing.from_store(Instrument(exchange, market, symbol), tick, lot, bool(trading), status or "")
