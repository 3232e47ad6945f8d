"""Bybit v5: `publicTrade` of spot and linear, as `Exchange` asks for it. REST is in `bybit_rest`.

Nothing on this wire counts trades: `i` names one, `seq` orders them and jumps with every event of the book. A request with one bad topic
is refused whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Final, Literal

import msgspec

from wadm_mcp.exchanges.bybit_archive import BybitLinearTrades, BybitSpotTrades
from wadm_mcp.exchanges.bybit_rest import SIDES, BybitRest
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
from wadm_mcp.exchanges.wire import UNREADABLE, Count, Millis, SymbolScale, TradeId, figure, one_line, wrong
from wadm_mcp.model import Listing, Scale, Trade

_TOPIC: Final = "publicTrade."

# Spot takes 10 topics a request. All topics of a connection may be 21,000 characters together: 500 of up to 42, quotes and comma included.
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
    """A frame without trades. Its `op` in the answer to a ping is `ping` on spot and linear, `pong` elsewhere."""

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
        self._who = f"bybit {market}"
        self._held = {_TOPIC + symbol: held for symbol, held in SymbolScale.by_symbol(listings).items()}

    def decode(self, frame: str | bytes) -> Message | None:
        """See `Decoder.decode`. A frame is taken whole or not at all."""
        try:
            read = _read_frame(frame)
        except UNREADABLE as error:
            return self._other(frame, error)
        held = self._held.get(read.topic)
        if held is not None:
            return self._trades(read, held)
        if read.topic.startswith(_TOPIC):
            raise wrong(self._who, f"topic {read.topic[:40]!r} was not asked for here", "$.topic")
        return None

    def _trades(self, frame: _Frame, held: SymbolScale) -> Trades:
        instrument, scale, listed = held
        symbol = instrument.symbol
        trades: list[Trade] = []
        for row in frame.data:
            if row.symbol != symbol:
                raise self._wrong_row(frame, row, f"topic {frame.topic!r} carries symbol {row.symbol[:40]!r}", "s")
            if row.block:
                continue
            try:
                price, price_decimals = figure(row.price, scale.price, listed.price)
            except ValueError as error:
                raise self._wrong_row(frame, row, error, "p") from None
            try:
                quantity, quantity_decimals = figure(row.quantity, scale.quantity, listed.quantity)
            except ValueError as error:
                raise self._wrong_row(frame, row, error, "v") from None
            if price_decimals != scale.price or quantity_decimals != scale.quantity:
                scale = Scale(price_decimals, quantity_decimals)
            seq = row.timestamp if row.seq is None else row.seq
            trades.append(Trade(instrument, row.timestamp, seq, row.id, price, quantity, SIDES[row.side], 1, scale))
        if scale is not held.scale:
            self._held[frame.topic] = SymbolScale(instrument, scale, listed)
        return Trades(instrument, trades, frame.ts, len(frame.data) - len(trades))

    def _wrong_row(self, frame: _Frame, row: _Row, why: object, key: str) -> Exception:
        place = next(place for place, each in enumerate(frame.data) if each is row)
        return wrong(self._who, why, f"$.data[{place}].{key}")

    def _other(self, frame: str | bytes, not_trades: Exception) -> Message | None:
        """A frame that holds no trades: an answer, a pong, another topic, or not lawful at all."""
        try:
            read = _read_other(frame)
        except UNREADABLE as error:
            raise wrong(self._who, error) from None
        if read.topic.startswith(_TOPIC):
            raise wrong(self._who, not_trades) from None
        if read.topic:
            return None
        if read.success is False:
            return Refused(read.req_id[:64], one_line(read.ret_msg) or "no reason given")
        if read.op == "pong" or (read.op == "ping" and read.success):
            return Pong()
        if read.success:
            return Acknowledged(read.req_id[:64])
        raise wrong(self._who, "neither trades nor an answer", "$")


_SPOT_TRADES: Final = BybitSpotTrades()
_LINEAR_TRADES: Final = BybitLinearTrades()
_HOSTS: Final = Hosts(
    Host("WADM_BYBIT_WS", "wss://stream.bybit.com"),
    Host("WADM_BYBIT_REST", "https://api.bybit.com"),
    Host("WADM_BYBIT_ARCHIVE", "https://public.bybit.com"),
)


class Bybit(BybitRest):
    """Bybit v5 spot and linear, as `Exchange` asks."""

    traits: Mapping[str, MarketTraits] = MappingProxyType(
        {
            market: MarketTraits(counts_trades=False, folds_history=False, archive=archive, rest_reach=0, redundant_connections=True)
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
        """The path alone tells the markets apart: topics and payloads do not name them."""
        return f"/v5/public/{market}"

    def subscribe(self, market: str, symbols: Sequence[str], request_id: int) -> str:
        topics = [_TOPIC + symbol for symbol in symbols]
        return msgspec.json.encode({"req_id": str(request_id), "op": "subscribe", "args": topics}).decode()

    def ping(self, request_id: int) -> str:
        return msgspec.json.encode({"req_id": str(request_id), "op": "ping"}).decode()

    def decoder(self, market: str, listings: Sequence[Listing]) -> Decoder:
        return BybitDecoder(market, listings)
