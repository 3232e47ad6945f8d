"""Binance's trade sockets: spot `@trade` (raw trades) and USD-M `@aggTrade` (aggregates of up to 100 ms). REST is in `binance_rest`.

Ids count without holes per symbol: `t` on spot, `a` on USD-M. The first and last raw ids of an aggregate skip trades that are not market
trades: they give the number of fills, and no gap follows from them (binance-public-data issue 378).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

from wadm_mcp.exchanges.binance_archive import BinanceAggregates, BinanceSpotTrades
from wadm_mcp.exchanges.binance_rest import ROWS_PER_REPLY, BinanceRest
from wadm_mcp.exchanges.exchange import (
    Acknowledged,
    ArchiveFormat,
    Decoder,
    Host,
    Hosts,
    Limits,
    MarketTraits,
    Message,
    Refused,
    ShuttingDown,
    Trades,
)
from wadm_mcp.exchanges.wire import MAX_FILLS, UNREADABLE, Code, Count, Millis, SymbolScale, figure, frame_error, is_zero
from wadm_mcp.model import HOUR, Listing, Scale, Trade, TradeType
from wadm_mcp.texts import one_line

_BUY: Final = TradeType.BUY
_SELL: Final = TradeType.SELL


class _Spot(msgspec.Struct, frozen=True, gc=False, tag_field="e", tag="trade"):
    """`<symbol>@trade`. Until 2024 it also had the order ids `b` and `a`."""

    event_time: Millis = msgspec.field(name="E")
    symbol: str = msgspec.field(name="s")
    id: Count = msgspec.field(name="t")
    price: str = msgspec.field(name="p")
    quantity: str = msgspec.field(name="q")
    timestamp: Millis = msgspec.field(name="T")
    buyer_is_maker: bool = msgspec.field(name="m")

    @property
    def fills(self) -> int:
        return 1


class _Aggregate(msgspec.Struct, frozen=True, gc=False, tag_field="e", tag="aggTrade"):
    """`<symbol>@aggTrade`: fills of one taker side at one price."""

    event_time: Millis = msgspec.field(name="E")
    symbol: str = msgspec.field(name="s")
    id: Count = msgspec.field(name="a")
    price: str = msgspec.field(name="p")
    quantity: str = msgspec.field(name="q")
    first: Count = msgspec.field(name="f")
    last: Count = msgspec.field(name="l")
    timestamp: Millis = msgspec.field(name="T")
    buyer_is_maker: bool = msgspec.field(name="m")

    @property
    def fills(self) -> int:
        return self.last - self.first + 1


class _WrappedSpot(msgspec.Struct, frozen=True):
    """The event in the frame of a combined stream."""

    stream: str
    data: _Spot


class _WrappedAggregate(msgspec.Struct, frozen=True):
    """The event in the frame of a combined stream."""

    stream: str
    data: _Aggregate


class _Any(msgspec.Struct, frozen=True):
    """The parts of a frame that show its kind."""

    e: str = ""
    stream: str = ""
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Error(msgspec.Struct, frozen=True):
    code: Code = 0
    msg: str = ""


class _Reply(msgspec.Struct, frozen=True):
    """The answer to a request. The documentation has an error's fields at the top level, real replies nest them in `error`."""

    id: int | str | None = None
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: _Error | None = None
    code: Code | None = None
    msg: str = ""


class _Wire(NamedTuple):
    """The trade socket of one market: types of its events, stream name, path and limits."""

    event: type[_Spot] | type[_Aggregate]
    wrapped: type[_WrappedSpot] | type[_WrappedAggregate]
    kind: str
    path: str
    limits: Limits

    @property
    def suffix(self) -> str:
        return f"@{self.kind}"


# Binance drops a client frame of more than about 4,000 bytes without an answer (Binance.Net issue 974). 30 names stay below that even if
# each has 40 letters of three bytes.
_NAMES_PER_REQUEST: Final = 30
_DAY_SECONDS: Final = 86_400.0

# Spot pings every 20 s, USD-M every 3 minutes (docs/exchanges.md 1.4, 2.3): more than two missing pings in a row are no coincidence.
# USD-M serves aggTrade on its /market route only: on another route it acknowledges the stream and sends nothing.
_WIRES: Final[Mapping[str, _Wire]] = MappingProxyType(
    {
        "spot": _Wire(
            _Spot,
            _WrappedSpot,
            "trade",
            "/ws",
            Limits(1024, _NAMES_PER_REQUEST, 2.0, lifetime=_DAY_SECONDS, ping_every=None, pong_within=10.0, bytes_within=65.0),
        ),
        "linear": _Wire(
            _Aggregate,
            _WrappedAggregate,
            "aggTrade",
            "/market/ws",
            Limits(200, _NAMES_PER_REQUEST, 4.0, lifetime=_DAY_SECONDS, ping_every=None, pong_within=10.0, bytes_within=400.0),
        ),
    }
)

_read_any: Final = msgspec.json.Decoder(_Any).decode
_read_reply: Final = msgspec.json.Decoder(_Reply).decode


class BinanceDecoder:
    """Frames of one Binance connection into messages."""

    def __init__(self, market: str, listings: Sequence[Listing]) -> None:
        wire = _WIRES[market]
        self._venue = f"binance {market}"
        self._kind = wire.kind
        self._suffix = wire.suffix
        self._read = msgspec.json.Decoder(wire.event).decode
        self._read_wrapped = msgspec.json.Decoder(wire.wrapped).decode
        self._scales = SymbolScale.by_symbol(listings)

    def decode(self, frame: str | bytes) -> Message | None:
        """See `Decoder.decode`."""
        try:
            event = self._read(frame)
        except UNREADABLE as error:
            return self._other(frame, error)
        return self._trades(event, "$")

    def _trades(self, event: _Spot | _Aggregate, at: str) -> Trades:
        known = self._scales.get(event.symbol)
        if known is None:
            raise frame_error(self._venue, f"symbol {event.symbol[:40]!r} is not subscribed here", f"{at}.s")
        instrument, scale, listed = known
        # `m` says that the buyer was the maker: then the taker sold.
        side = _SELL if event.buyer_is_maker else _BUY
        key = "q"
        try:
            quantity, quantity_decimals = figure(event.quantity, scale.quantity, listed.quantity)
            key = "p"
            price, price_decimals = figure(event.price, scale.price, listed.price)
        except ValueError as error:
            if not is_zero(event.quantity):
                raise frame_error(self._venue, error, f"{at}.{key}") from None
            empty = Trade(instrument, event.timestamp, event.id, str(event.id), 0, 0, side, 0, scale)
            return Trades(instrument, (empty,), event.event_time)
        fills = event.fills
        if not 0 < fills <= MAX_FILLS:
            raise frame_error(self._venue, f"an aggregate cannot have {fills} fills", f"{at}.l")
        if price_decimals != scale.price or quantity_decimals != scale.quantity:
            scale = Scale(price_decimals, quantity_decimals)
            self._scales[event.symbol] = SymbolScale(instrument, scale, listed)
        trade = Trade(instrument, event.timestamp, event.id, str(event.id), price, quantity, side, fills, scale)
        return Trades(instrument, (trade,), event.event_time)

    def _other(self, frame: str | bytes, not_a_trade: Exception) -> Message | None:
        """A frame that is no plain trade event: wrapped, an answer, a notice, an event of another kind, or not valid."""
        try:
            frame_kind = _read_any(frame)
        except UNREADABLE as error:
            raise frame_error(self._venue, error) from None
        if frame_kind.stream:
            return self._wrapped(frame, frame_kind)
        if frame_kind.e == self._kind:
            raise frame_error(self._venue, not_a_trade) from None
        if frame_kind.e:
            return ShuttingDown() if frame_kind.e == "serverShutdown" else None
        return self._reply(frame)

    def _wrapped(self, frame: str | bytes, kind: _Any) -> Message | None:
        if isinstance(kind.data, msgspec.UnsetType):
            raise frame_error(self._venue, "a combined frame without data", "$.data")
        if kind.stream == "!serverShutdown":
            return ShuttingDown()
        if not kind.stream.endswith(self._suffix):
            return None
        try:
            event = self._read_wrapped(frame).data
        except UNREADABLE as error:
            raise frame_error(self._venue, error) from None
        if kind.stream != event.symbol.lower() + self._suffix:
            raise frame_error(self._venue, f"stream {kind.stream[:40]!r} carries symbol {event.symbol[:40]!r}", "$.data.s")
        return self._trades(event, "$.data")

    def _reply(self, frame: str | bytes) -> Message:
        try:
            reply = _read_reply(frame)
        except UNREADABLE as error:
            raise frame_error(self._venue, error) from None
        request_id = "" if reply.id is None else str(reply.id)[:64]
        if reply.error is not None:
            return Refused(request_id, _reason(reply.error.code, reply.error.msg))
        if reply.code is not None:
            return Refused(request_id, _reason(reply.code, reply.msg))
        if isinstance(reply.result, msgspec.UnsetType):
            raise frame_error(self._venue, "neither an event nor an answer", "$")
        return Acknowledged(request_id)


def _reason(code: int, text: str) -> str:
    return f"{one_line(text) or 'no reason given'} (code {code})"


def _control(method: str, market: str, symbols: Sequence[str], request_id: int) -> str:
    names = [symbol.lower() + _WIRES[market].suffix for symbol in symbols]
    return msgspec.json.encode({"method": method, "params": names, "id": request_id}).decode()


_SPOT_TRADES: Final = BinanceSpotTrades()
_SPOT_AGGREGATES: Final = BinanceAggregates("spot")
_LINEAR_AGGREGATES: Final = BinanceAggregates("linear")
_ARCHIVE: Final = Host("WADM_BINANCE_ARCHIVE", "https://data.binance.vision")


class Binance(BinanceRest):
    """Binance spot and USD-M."""

    traits: Mapping[str, MarketTraits] = MappingProxyType(
        {
            "spot": MarketTraits(
                has_gapless_ids=True,
                folds_history=True,
                archive=_SPOT_TRADES,
                rest_reach=None,
                page_rows=ROWS_PER_REPLY,
                redundant_connections=False,
            ),
            # REST serves the last 48 hours (docs/exchanges.md 4.2). One hour less leaves time for the requests themselves.
            "linear": MarketTraits(
                has_gapless_ids=True,
                folds_history=False,
                archive=_LINEAR_AGGREGATES,
                rest_reach=47 * HOUR,
                page_rows=ROWS_PER_REPLY,
                redundant_connections=False,
                merges_fills_ms=100,
            ),
        }
    )

    hosts: Mapping[str, Hosts] = MappingProxyType(
        {
            "spot": Hosts(
                # The hosts of market data serve regions that the others refuse (docs/exchanges.md 4.6).
                Host("WADM_BINANCE_SPOT_WS", "wss://stream.binance.com:9443", "wss://data-stream.binance.vision"),
                Host("WADM_BINANCE_SPOT_REST", "https://api.binance.com", "https://data-api.binance.vision"),
                _ARCHIVE,
            ),
            "linear": Hosts(
                Host("WADM_BINANCE_LINEAR_WS", "wss://fstream.binance.com"),
                Host("WADM_BINANCE_LINEAR_REST", "https://fapi.binance.com"),
                _ARCHIVE,
            ),
        }
    )
    file_formats: Sequence[ArchiveFormat] = (_SPOT_TRADES, _SPOT_AGGREGATES, _LINEAR_AGGREGATES)

    def canonical_symbol(self, symbol: str) -> str:
        """Binance writes symbols without a separator: each is its own."""
        return symbol

    def limits(self, market: str) -> Limits:
        """Spot accepts 5 client messages a second, USD-M 10; 1,024 streams (USD-M: 200 in its older text); both close after 24 h."""
        return _WIRES[market].limits

    def stream_path(self, market: str) -> str:
        return _WIRES[market].path

    def subscribe(self, market: str, symbols: Sequence[str], request_id: int) -> str:
        """Stream names are in lower case: upper-case ones are accepted and deliver nothing."""
        return _control("SUBSCRIBE", market, symbols, request_id)

    def unsubscribe(self, market: str, symbols: Sequence[str], request_id: int) -> str:
        return _control("UNSUBSCRIBE", market, symbols, request_id)

    def ping(self, request_id: int) -> str:
        """Never called: Binance sends WebSocket pings, which the socket answers itself."""
        raise NotImplementedError("Binance clients do not send pings; `ping_every` must be None")

    def decoder(self, market: str, listings: Sequence[Listing]) -> Decoder:
        return BinanceDecoder(market, listings)
