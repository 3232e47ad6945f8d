"""Bybit's trade sockets, v5: `publicTrade` of spot and linear. REST is in `bybit_rest`.

No number in these frames counts trades: `i` identifies a trade, `seq` orders trades and skips a number with every event of the order book.
A request with one bad topic is refused as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Final, Literal

import msgspec

from wadm_mcp.errors import FrameError
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
    Unreadable,
)
from wadm_mcp.exchanges.wire import UNREADABLE, Count, Millis, SymbolScale, TradeId, figure, frame_error, is_zero
from wadm_mcp.model import Listing, Scale, Trade
from wadm_mcp.texts import one_line

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


class _RawFrame(msgspec.Struct, frozen=True):
    """A frame of trades of which some row cannot be read."""

    topic: str
    ts: Millis
    data: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1)]


class _Other(msgspec.Struct, frozen=True):
    """A frame without trades. In the answer to a ping `op` is `ping` on spot and linear, `pong` in other categories."""

    topic: str = ""
    success: bool | None = None
    ret_msg: str = ""
    req_id: str = ""
    op: str = ""


_read_frame: Final = msgspec.json.Decoder(_Frame).decode
_read_raw_frame: Final = msgspec.json.Decoder(_RawFrame).decode
_read_row: Final = msgspec.json.Decoder(_Row).decode
_read_other: Final = msgspec.json.Decoder(_Other).decode


class BybitDecoder:
    """Frames of one Bybit connection into messages."""

    def __init__(self, market: str, listings: Sequence[Listing]) -> None:
        self._venue = f"bybit {market}"
        self._scales = {_TOPIC + symbol: scale for symbol, scale in SymbolScale.by_symbol(listings).items()}

    def decode(self, frame: str | bytes) -> Message | None:
        """See `Decoder.decode`. A row that cannot be read is set aside; a frame of which no row can be read is a `FrameError`."""
        try:
            read = _read_frame(frame)
        except UNREADABLE as error:
            return self._other(frame, error)
        known = self._scales.get(read.topic)
        if known is not None:
            return self._trades(read.topic, read.ts, read.data, known)
        if read.topic.startswith(_TOPIC):
            raise self._not_subscribed(read.topic)
        return None

    def _trades(self, topic: str, sent_at: int, rows: Sequence[_Row | str], known: SymbolScale) -> Trades:
        """`rows` have, in place of one that cannot be read, why."""
        instrument, scale, listed = known
        symbol = instrument.symbol
        trades: list[Trade] = []
        unreadable: list[Unreadable] = []
        blocks = 0
        for place, row in enumerate(rows):
            if isinstance(row, str):
                unreadable.append(Unreadable(len(trades), None, row))
                continue
            if row.symbol != symbol:
                why = f"topic {topic!r} carries symbol {row.symbol[:40]!r}"
                raise frame_error(self._venue, why, f"$.data[{place}].s")
            if row.block:
                blocks += 1
                continue
            seq = row.timestamp if row.seq is None else row.seq
            key = "v"
            try:
                quantity, quantity_decimals = figure(row.quantity, scale.quantity, listed.quantity)
                key = "p"
                price, price_decimals = figure(row.price, scale.price, listed.price)
            except ValueError as error:
                if is_zero(row.quantity):
                    trades.append(Trade(instrument, row.timestamp, seq, row.id, 0, 0, SIDES[row.side], 0, scale))
                else:
                    unreadable.append(Unreadable(len(trades), None, _located(error, f"$.data[{place}].{key}")))
                continue
            if price_decimals != scale.price or quantity_decimals != scale.quantity:
                scale = Scale(price_decimals, quantity_decimals)
            trades.append(Trade(instrument, row.timestamp, seq, row.id, price, quantity, SIDES[row.side], 1, scale))
        if len(unreadable) == len(rows):
            raise frame_error(self._venue, unreadable[0].why)
        if scale is not known.scale:
            self._scales[topic] = SymbolScale(instrument, scale, listed)
        return Trades(instrument, trades, sent_at, blocks, unreadable)

    def _partly(self, frame: str | bytes, not_trades: Exception) -> Trades:
        """A frame of trades of which some row cannot be read."""
        try:
            read = _read_raw_frame(frame)
        except UNREADABLE:
            raise frame_error(self._venue, not_trades) from None
        known = self._scales.get(read.topic)
        if known is None:
            raise self._not_subscribed(read.topic)
        return self._trades(read.topic, read.ts, [_row_of(place, raw) for place, raw in enumerate(read.data)], known)

    def _not_subscribed(self, topic: str) -> FrameError:
        return frame_error(self._venue, f"topic {topic[:40]!r} is not subscribed here", "$.topic")

    def _other(self, frame: str | bytes, not_trades: Exception) -> Message | None:
        """A frame without trades: an answer, a pong, another topic, or not valid."""
        try:
            read = _read_other(frame)
        except UNREADABLE as error:
            raise frame_error(self._venue, error) from None
        if read.topic.startswith(_TOPIC):
            return self._partly(frame, not_trades)
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


def _row_of(place: int, raw: msgspec.Raw) -> _Row | str:
    """A row, or why it cannot be read."""
    try:
        return _read_row(raw)
    except UNREADABLE as error:
        return one_line(str(error).replace("`$", f"`$.data[{place}]"))


def _located(why: object, path: str) -> str:
    return one_line(f"{why} - at `{path}`")


def _control(op: str, symbols: Sequence[str], request_id: int) -> str:
    topics = [_TOPIC + symbol for symbol in symbols]
    return msgspec.json.encode({"req_id": str(request_id), "op": op, "args": topics}).decode()


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
        return _control("subscribe", symbols, request_id)

    def unsubscribe(self, market: str, symbols: Sequence[str], request_id: int) -> str:
        return _control("unsubscribe", symbols, request_id)

    def ping(self, request_id: int) -> str:
        return msgspec.json.encode({"req_id": str(request_id), "op": "ping"}).decode()

    def decoder(self, market: str, listings: Sequence[Listing]) -> Decoder:
        return BybitDecoder(market, listings)
