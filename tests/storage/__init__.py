"""Values and helpers that the storage tests share."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.analytics.volume_profile import VolumeProfile, volume_profile
from wadm_mcp.coverage.spans import Basis, Span, SpanReason
from wadm_mcp.model import DAY, Instrument, Scale, Timeframe, Trade, TradeType, Window
from wadm_mcp.storage.store import OrderFlow, PartialFootprint, Profile, Store, StoredFootprint

T0 = 20_660 * DAY
"""A midnight, UTC."""

EVER = Window(0, T0 + 1_000 * DAY)
BTC = Instrument("binance", "spot", "BTCUSDT")
ETH = Instrument("bybit", "linear", "ETHUSDT")
SCALE = Scale(2, 5)


def trade(
    seq: int,
    at: int = T0,
    *,
    instrument: Instrument = BTC,
    trade_id: str | None = None,
    price: int = 6_183_763,
    quantity: int = 1_500,
    trade_type: TradeType = TradeType.BUY,
    fills: int = 1,
    scale: Scale = SCALE,
) -> Trade:
    """A trade at `at`; without `trade_id` its id is its seq, as on Binance."""
    return Trade(instrument, at, seq, str(seq) if trade_id is None else trade_id, price, quantity, trade_type, fills, scale)


def span(
    start: int, end: int, first_seq: int = 1, last_seq: int = 2, *, basis: Basis = Basis.EXACT, reason: SpanReason = SpanReason.LIVE
) -> Span:
    return Span(start, end, first_seq, last_seq, basis, reason)


def stored_footprint(
    start: int, trades: Sequence[Trade] = (), *, instrument: Instrument = BTC, timeframe: Timeframe = Timeframe.M1, revision: int = 0
) -> StoredFootprint:
    footprint = Footprint(SCALE)
    for one in trades:
        footprint.add(one)
    return StoredFootprint(instrument, timeframe, start, footprint, revision)


def profile(
    start: int, trades: Sequence[Trade] = (), *, instrument: Instrument = BTC, timeframe: Timeframe = Timeframe.M1, revision: int = 0
) -> Profile:
    stored = stored_footprint(start, trades)
    return Profile(instrument, timeframe, start, volume_profile(stored.footprint, tick=1), revision)


def order_flow(
    start: int,
    trades: Sequence[Trade] = (),
    *,
    instrument: Instrument = BTC,
    timeframe: Timeframe = Timeframe.M1,
    cumulative_delta: int = 0,
    revision: int = 0,
) -> OrderFlow:
    stored = stored_footprint(start, trades)
    return OrderFlow(instrument, timeframe, start, stored.footprint.bar, cumulative_delta, revision)


def piece(minute: int, first_seq: int, count: int = 3, *, instrument: Instrument = BTC) -> PartialFootprint:
    """A piece of `count` trades at the start of a minute."""
    trades = [trade(seq, minute) for seq in range(first_seq, first_seq + count)]
    return PartialFootprint(instrument, minute, first_seq, first_seq + count - 1, stored_footprint(minute, trades).footprint)


def sqlite_profiles(path: Path, instrument: Instrument = BTC, timeframe: Timeframe = Timeframe.M1) -> list[Profile]:
    """Volume profiles as they stand in a SQLite file, oldest first. The store writes them and never reads them."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        rows = db.execute(
            """SELECT start, packed, revision FROM profiles JOIN instruments ON instruments.id = profiles.instrument
            WHERE exchange = ? AND market = ? AND symbol = ? AND timeframe = ? ORDER BY start""",
            (*instrument, timeframe.ms),
        ).fetchall()
    return [
        Profile(instrument, timeframe, start, None if packed is None else VolumeProfile.unpack(packed), revision)
        for start, packed, revision in rows
    ]


async def every_trade(store: Store, instrument: Instrument = BTC, window: Window = EVER) -> list[Trade]:
    return await store.trades(instrument, window, limit=1_000_000)
