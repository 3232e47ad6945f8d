"""The one place that turns values into rows of the SQLite store and back, beside the statements whose columns they are.

A row that cannot be read raises `ValueError` or `TypeError`; the store says which row that was.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any, Final, TypeAlias

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.model import Basis, Instrument, Listing, Scale, Span, Timeframe, Trade, TradeType, Window
from wadm_mcp.storage.store import OrderFlow, PartialFootprint, Profile, StoredFootprint

Row: TypeAlias = tuple[Any, ...]

_LEVELS: Final = 100
"""A scale is one small integer a person can read: 205 is two decimals of price, five of quantity."""

# `trade_id` rests as '' where it is the seq; ties must still sort by the id itself, as `Trade.order` has it.
_ID: Final = "CASE trade_id WHEN '' THEN CAST(seq AS TEXT) ELSE trade_id END"

KEEP_TRADE: Final = """INSERT INTO trades
    (instrument, timestamp, seq, trade_id, price, quantity, fills, scale) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (instrument, timestamp, seq, trade_id) DO NOTHING"""

KEEP_PIECE: Final = """INSERT INTO pieces (instrument, minute, first_seq, last_seq, packed) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (instrument, minute, first_seq) DO NOTHING"""

KEEP_MARK: Final = """INSERT INTO marks (minute, instrument, writes) VALUES (?, ?, ?)
    ON CONFLICT (minute, instrument) DO UPDATE SET writes = excluded.writes"""

# As `grown` has it.
KEEP_SPAN: Final = """INSERT INTO coverage
    (instrument, start, end, first_seq, last_seq, basis, reason, opened_by, raw) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (instrument, start, first_seq) DO UPDATE SET
    end = max(coverage.end, excluded.end), last_seq = max(coverage.last_seq, excluded.last_seq),
    basis = excluded.basis, reason = excluded.reason, opened_by = excluded.opened_by, raw = excluded.raw"""

# Compare-and-set, each of these: a row that is no newer than the stored one changes nothing.
KEEP_FOOTPRINT: Final = """INSERT INTO footprints (instrument, timeframe, start, packed, revision) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (instrument, timeframe, start) DO UPDATE SET packed = excluded.packed, revision = excluded.revision
    WHERE excluded.revision > footprints.revision"""

KEEP_PROFILE: Final = """INSERT INTO profiles (instrument, timeframe, start, packed, revision) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (instrument, timeframe, start) DO UPDATE SET packed = excluded.packed, revision = excluded.revision
    WHERE excluded.revision > profiles.revision"""

KEEP_ORDER_FLOW: Final = """INSERT INTO order_flow (instrument, timeframe, start, bar, cumulative_delta, revision) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (instrument, timeframe, start) DO UPDATE
    SET bar = excluded.bar, cumulative_delta = excluded.cumulative_delta, revision = excluded.revision
    WHERE excluded.revision > order_flow.revision"""

FIND_PIECES: Final = """SELECT minute, first_seq, last_seq, packed FROM pieces WHERE instrument = ? AND minute >= ? AND minute < ?
    ORDER BY minute, first_seq"""

_DERIVED: Final = "WHERE instrument = ? AND timeframe = ? AND start >= ? AND start < ? ORDER BY start"
FIND_FOOTPRINTS: Final = f"SELECT start, packed, revision FROM footprints {_DERIVED}"
FIND_ORDER_FLOW: Final = f"SELECT start, bar, cumulative_delta, revision FROM order_flow {_DERIVED}"

_SPAN: Final = "start, end, first_seq, last_seq, basis, reason, opened_by, raw"
FIND_SPANS: Final = f"""SELECT {_SPAN} FROM (
    SELECT * FROM (SELECT {_SPAN} FROM coverage WHERE instrument = :instrument AND end < :start
        ORDER BY end DESC, start DESC, first_seq DESC LIMIT 1)
    UNION ALL SELECT {_SPAN} FROM coverage WHERE instrument = :instrument AND end >= :start AND start <= :end
    UNION ALL SELECT * FROM (SELECT {_SPAN} FROM coverage WHERE instrument = :instrument AND start > :end
        ORDER BY start, first_seq LIMIT 1))
    ORDER BY start, first_seq"""
"""Start and end of a span are both indexed with their instrument, since spans may overlap."""

COUNT: Final = """SELECT
    (SELECT COUNT(*) FROM trades WHERE instrument = :instrument AND timestamp >= :start AND timestamp < :end)
    + (SELECT COUNT(*) FROM pieces WHERE instrument = :instrument AND minute >= :start AND minute < :end)"""

FIND_MARKS: Final = """SELECT minute, writes, exchange, market, symbol FROM marks JOIN instruments ON instruments.id = marks.instrument
    ORDER BY minute, marks.instrument"""

FIND_LISTINGS: Final = "SELECT exchange, market, symbol, tick, lot, trading FROM instruments WHERE tick IS NOT NULL ORDER BY id"


def find_trades(
    instrument: int, window: Window, after: tuple[int, int, int, str] | None, limit: int, newest: bool
) -> tuple[str, tuple[object, ...]]:
    """The statement that finds trades and its arguments; rows come newest first where `newest` is set."""
    columns = "SELECT timestamp, seq, trade_id, price, quantity, fills, scale FROM trades WHERE instrument = ? AND timestamp < ?"
    down = " DESC" if newest else ""
    order = f"ORDER BY timestamp{down}, seq{down}, price{down}, {_ID}{down} LIMIT ?"
    if after is None or after[0] < window.start:
        return f"{columns} AND timestamp >= ? {order}", (instrument, window.end, window.start, limit)
    # The first comparison is where the key is entered, the second decides among equals.
    later = f"(timestamp, seq) >= (?, ?) AND (timestamp, seq, price, {_ID}) > (?, ?, ?, ?)"
    return f"{columns} AND {later} {order}", (instrument, window.end, *after[:2], *after, limit)


def trade_row(instrument: int, trade: Trade) -> Row:
    """For `KEEP_TRADE`. The price is positive where the aggressor bought, negative where he sold, as in `Trade.order`."""
    price = trade.price if trade.trade_type is TradeType.BUY else -trade.price
    trade_id = "" if trade.trade_id == str(trade.seq) else trade.trade_id
    scale = trade.scale.price * _LEVELS + trade.scale.quantity
    return instrument, trade.timestamp, trade.seq, trade_id, price, trade.quantity, trade.fills, scale


def trade_of(instrument: Instrument, row: Row) -> Trade:
    """A trade from a row of `find_trades`."""
    timestamp, seq, trade_id, price, quantity, fills, scale = row
    side = TradeType.BUY if price >= 0 else TradeType.SELL
    at = _SCALES.get(scale) or Scale(*divmod(scale, _LEVELS))
    return Trade(instrument, timestamp, seq, trade_id or str(seq), abs(price), quantity, side, fills, at)


_SCALES: Final = {scale: Scale(*divmod(scale, _LEVELS)) for scale in range(19 * _LEVELS)}
"""Shared, for a page of trades holds thousands of them."""


def piece_row(instrument: int, piece: PartialFootprint) -> Row:
    """For `KEEP_PIECE`."""
    return instrument, piece.minute, piece.first_seq, piece.last_seq, piece.footprint.pack()


def piece_of(instrument: Instrument, row: Row) -> PartialFootprint:
    """A piece from a row of `FIND_PIECES`."""
    minute, first_seq, last_seq, packed = row
    return PartialFootprint(instrument, minute, first_seq, last_seq, Footprint.unpack(packed))


def span_row(instrument: int, span: Span) -> Row:
    """For `KEEP_SPAN`."""
    return instrument, span.start, span.end, span.first_seq, span.last_seq, span.basis.value, span.reason, span.opened_by, span.raw


def span_of(row: Row) -> Span:
    """A span from a row of `FIND_SPANS`."""
    start, end, first_seq, last_seq, basis, reason, opened_by, raw = row
    return Span(start, end, first_seq, last_seq, Basis(basis), reason, opened_by, bool(raw))


def footprint_row(instrument: int, stored: StoredFootprint) -> Row:
    """For `KEEP_FOOTPRINT`."""
    return instrument, stored.timeframe.ms, stored.start, stored.footprint.pack(), stored.revision


def footprint_of(instrument: Instrument, timeframe: Timeframe, row: Row) -> StoredFootprint:
    """A footprint from a row of `FIND_FOOTPRINTS`."""
    start, packed, revision = row
    return StoredFootprint(instrument, timeframe, start, Footprint.unpack(packed), revision)


def profile_row(instrument: int, stored: Profile) -> Row:
    """For `KEEP_PROFILE`; a profile of nothing is NULL."""
    packed = None if stored.profile is None else stored.profile.pack()
    return instrument, stored.timeframe.ms, stored.start, packed, stored.revision


def order_flow_row(instrument: int, flow: OrderFlow) -> Row:
    """For `KEEP_ORDER_FLOW`; a cumulative delta may pass 64 bits, so it rests as text."""
    return instrument, flow.timeframe.ms, flow.start, flow.bar.pack(), str(flow.cumulative_delta), flow.revision


def order_flow_of(instrument: Instrument, timeframe: Timeframe, row: Row) -> OrderFlow:
    """Order flow from a row of `FIND_ORDER_FLOW`."""
    start, bar, cumulative_delta, revision = row
    return OrderFlow(instrument, timeframe, start, Bar.unpack(bar), int(cumulative_delta), revision)


def listing_of(row: Row) -> Listing:
    """A listing from a row of `FIND_LISTINGS`."""
    exchange, market, symbol, tick, lot, trading = row
    try:
        return Listing(Instrument(exchange, market, symbol), Decimal(tick), Decimal(lot), bool(trading))
    except InvalidOperation:
        raise ValueError(f"{tick!r} and {lot!r} are not decimals") from None
