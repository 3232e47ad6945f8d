"""Bybit's trade sockets, v5: `publicTrade` of spot and linear. REST is in `bybit_rest`.

No number in these frames counts trades: `i` identifies a trade, `seq` orders trades and skips a number with every event of the order book.
A request with one bad topic is refused as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Final, Literal

import msgspec

from wadm_mcp.exchanges.bybit_archive import BybitLinearTrades, BybitSpotTrades
from wadm_mcp.exchanges.bybit_rest import ROWS_PER_REPLY, SIDES, BybitRest
from wadm_mcp.exchanges.exchange import (
    Acknowledged,
    ArchiveFormat,
    Decoder,
    Host,
    Hosts,
    Limits,
    MarketTraits,
    Message,
    Pong,
    Refused,
    Trades,
)
from wadm_mcp.exchanges.wire import UNREADABLE, Count, Millis, SymbolScale, TradeId, figure, frame_error, one_line
from wadm_mcp.model import Listing, Scale, Trade

_TOPIC: Final = "publicTrade."
_ALREADY_SUBSCRIBED: Final = "already subscribed"
"""In the answer to a request with a topic that the connection has."""

# Spot accepts 10 topics a request. All topics of a connection together may have 21,000 characters: 500 topics of up to 42, with quotes and
# comma.
_LIMITS: Final[Mapping[str, Limits]] = MappingProxyType(
    {
        "spot": Limits(500, 10, 5.0, None, 20.0, 10.0),
        "linear": Limits(500, 100, 5.0, None, 20.0, 10.0),
    }
)


class _Row(msgspec.Struct, frozen=True, gc=False):
    """One trade. `seq` is absent before August 2025. A retail-price-improvement trade (`RPI`) is an ordinary trade."""

    timestamp: Millis = msgspec.field(name="T")
    symbol: str = msgspec.field(name="s")
    side: Literal["Buy", "Sell"] = msgspec.field(name="S")
    quantity: str = msgspec.field(name="v")
    price: str = msgspec.field(name="p")
    id: TradeId = msgspec.field(name="i")
    block: bool = msgspec.field(name="BT", default=False)
    seq: Count | None = None


class _Frame(msgspec.Struct, frozen=True):
    topic: str
    ts: Millis
    data: Annotated[list[_Row], msgspec.Meta(min_length=1)]


class _Other(msgspec.Struct, frozen=True):
    """A frame without trades. In the answer to a ping `op` is `ping` on spot and linear, `pong` in other categories."""

    topic: str = ""
    success: bool | None = None
    ret_msg: str = ""
    req_id: str = ""
    op: str = ""


_read_frame: Final = msgspec.json.Decoder(_Frame).decode
_read_other: Final = msgspec.json.Decoder(_Other).decode


class BybitDecoder:
    """Frames of one Bybit connection into messages."""

    def __init__(self, market: str, listings: Sequence[Listing]) -> None:
        self._venue = f"bybit {market}"
        self._scales = {_TOPIC + symbol: scale for symbol, scale in SymbolScale.by_symbol(listings).items()}

    def decode(self, frame: str | bytes) -> Message | None:
        """See `Decoder.decode`. One bad row makes the whole frame a `FrameError`."""
        try:
            read = _read_frame(frame)
        except UNREADABLE as error:
            return self._other(frame, error)
        known = self._scales.get(read.topic)
        if known is not None:
            return self._trades(read, known)
        if read.topic.startswith(_TOPIC):
            raise frame_error(self._venue, f"topic {read.topic[:40]!r} is not subscribed here", "$.topic")
        return None

    def _trades(self, frame: _Frame, known: SymbolScale) -> Trades:
        instrument, scale, listed = known
        symbol = instrument.symbol
        trades: list[Trade] = []
        for row in frame.data:
            if row.symbol != symbol:
                raise self._row_error(frame, row, f"topic {frame.topic!r} carries symbol {row.symbol[:40]!r}", "s")
            if row.block:
                continue
            try:
                price, price_decimals = figure(row.price, scale.price, listed.price)
            except ValueError as error:
                raise self._row_error(frame, row, error, "p") from None
            try:
                quantity, quantity_decimals = figure(row.quantity, scale.quantity, listed.quantity)
            except ValueError as error:
                raise self._row_error(frame, row, error, "v") from None
            if price_decimals != scale.price or quantity_decimals != scale.quantity:
                scale = Scale(price_decimals, quantity_decimals)
            seq = row.timestamp if row.seq is None else row.seq
            trades.append(Trade(instrument, row.timestamp, seq, row.id, price, quantity, SIDES[row.side], 1, scale))
        if scale is not known.scale:
            self._scales[frame.topic] = SymbolScale(instrument, scale, listed)
        return Trades(instrument, trades, frame.ts, len(frame.data) - len(trades))

    def _row_error(self, frame: _Frame, row: _Row, why: object, key: str) -> Exception:
        place = next(place for place, each in enumerate(frame.data) if each is row)
        return frame_error(self._venue, why, f"$.data[{place}].{key}")

    def _other(self, frame: str | bytes, not_trades: Exception) -> Message | None:
        """A frame without trades: an answer, a pong, another topic, or not valid."""
        try:
            read = _read_other(frame)
        except UNREADABLE as error:
            raise frame_error(self._venue, error) from None
        if read.topic.startswith(_TOPIC):
            raise frame_error(self._venue, not_trades) from None
        if read.topic:
            return None
        if read.success is False:
            reason = one_line(read.ret_msg) or "no reason given"
            return Refused(read.req_id[:64], reason, already_subscribed=_ALREADY_SUBSCRIBED in reason)
        if read.op == "pong" or (read.op == "ping" and read.success):
            return Pong()
        if read.success:
            return Acknowledged(read.req_id[:64])
        raise frame_error(self._venue, "neither trades nor an answer", "$")


_SPOT_TRADES: Final = BybitSpotTrades()
_LINEAR_TRADES: Final = BybitLinearTrades()
_HOSTS: Final = Hosts(
    Host("WADM_BYBIT_WS", "wss://stream.bybit.com"),
    Host("WADM_BYBIT_REST", "https://api.bybit.com"),
    Host("WADM_BYBIT_ARCHIVE", "https://public.bybit.com"),
)


class Bybit(BybitRest):
    """Bybit v5, spot and linear."""

    traits: Mapping[str, MarketTraits] = MappingProxyType(
        {
            market: MarketTraits(
                has_gapless_ids=False,
                folds_history=False,
                archive=archive,
                rest_reach=0,
                page_rows=ROWS_PER_REPLY[market],
                redundant_connections=True,
            )
            for market, archive in (("spot", _SPOT_TRADES), ("linear", _LINEAR_TRADES))
        }
    )

    hosts: Mapping[str, Hosts] = MappingProxyType({"spot": _HOSTS, "linear": _HOSTS})
    file_formats: Sequence[ArchiveFormat] = (_LINEAR_TRADES, _SPOT_TRADES)

    def canonical_symbol(self, symbol: str) -> str:
        """Bybit writes symbols without a separator: each is its own."""
        return symbol

    def limits(self, market: str) -> Limits:
        return _LIMITS[market]

    def stream_path(self, market: str) -> str:
        """Only the path names the market: topics and payloads do not."""
        return f"/v5/public/{market}"

    def subscribe(self, market: str, symbols: Sequence[str], request_id: int) -> str:
        topics = [_TOPIC + symbol for symbol in symbols]
        return msgspec.json.encode({"req_id": str(request_id), "op": "subscribe", "args": topics}).decode()

    def ping(self, request_id: int) -> str:
        return msgspec.json.encode({"req_id": str(request_id), "op": "ping"}).decode()

    def decoder(self, market: str, listings: Sequence[Listing]) -> Decoder:
        return BybitDecoder(market, listings)
