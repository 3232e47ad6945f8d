"""Binance REST, spot and USD-M: listings, trade history by id, and minutes (docs/exchanges.md 4.1, 4.2 and 6). Sockets are in `binance`.

Spot serves raw trades by id, and a cheaper history of aggregates. USD-M serves without a key only aggregates, those of the last 48 hours:
the very rows of its trade socket.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Final, NamedTuple, TypeVar

import msgspec

from wadm_mcp.exchanges.exchange import Aggregate, Allowance, Candle, Request
from wadm_mcp.exchanges.wire import (
    LISTED,
    MOST_FILLS,
    Code,
    Count,
    Millis,
    Minute,
    Minutes,
    Name,
    Rows,
    candle,
    named,
    read_records,
    reading,
    refused,
    step,
    unreadable,
)
from wadm_mcp.model import Instrument, Listing, Trade, TradeType, Window

_ROWS: Final = 1_000
"""Most rows of one reply."""

_USED: Final = "X-MBX-USED-WEIGHT-1M"
_CONTRACTS: Final = frozenset(("", "PERPETUAL", "TRADIFI_PERPETUAL"))
"""Kinds of contract that have no delivery date; those of metals and stocks have a name of their own."""


class _Market(NamedTuple):
    """What one market's REST is called and costs."""

    prefix: str
    allowance: Allowance
    listings: int
    trades: str
    weight: int
    aggregates_weight: int
    minutes: Sequence[tuple[int, int]]
    """What fewer minutes than the first number cost, for one such number after another."""


_MARKETS: Final[Mapping[str, _Market]] = MappingProxyType(
    {
        "spot": _Market("/api/v3", Allowance(6_000, 60.0, _USED), 20, "historicalTrades", 25, 4, ((1_001, 2),)),
        "linear": _Market("/fapi/v1", Allowance(2_400, 60.0, _USED), 1, "aggTrades", 20, 20, ((100, 1), (500, 2), (1_001, 5))),
    }
)


class _Error(msgspec.Struct, frozen=True):
    code: Code
    msg: str = ""


class _Trade(msgspec.Struct, frozen=True, gc=False):
    """A row of `historicalTrades`."""

    id: Count
    price: str
    quantity: str = msgspec.field(name="qty")
    timestamp: Millis = msgspec.field(name="time")
    buyer_is_maker: bool = msgspec.field(name="isBuyerMaker")


_RawId = Annotated[int, msgspec.Meta(ge=-1, le=(1 << 63) - 1)]


class _Aggregate(msgspec.Struct, frozen=True, gc=False):
    """A row of `aggTrades`."""

    number: Count = msgspec.field(name="a")
    price: str = msgspec.field(name="p")
    quantity: str = msgspec.field(name="q")
    first: _RawId = msgspec.field(name="f")
    last: _RawId = msgspec.field(name="l")
    timestamp: Millis = msgspec.field(name="T")
    buyer_is_maker: bool = msgspec.field(name="m")

    @property
    def emptied(self) -> bool:
        """Repeats that an audit of 2022 found in the history were marked invalid rather than removed (spot changelog 2022-04-12)."""
        return self.first < 0 and self.last < 0


class _Minute(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A row of `klines`, up to the last figure that is read."""

    start: Minute
    open: str
    high: str
    low: str
    close: str
    volume: str
    end: int
    notional: str
    trade_count: Count
    buy_volume: str


class _Filter(msgspec.Struct, frozen=True):
    kind: str = msgspec.field(name="filterType")
    tick: str = msgspec.field(name="tickSize", default="")
    step: str = msgspec.field(name="stepSize", default="")


class _Record(msgspec.Struct, frozen=True):
    """One symbol of `exchangeInfo`. Only futures have a `contractType`; a contract that is not launched yet has an empty one."""

    symbol: Name
    filters: list[_Filter]
    status: str = ""
    contract: str = msgspec.field(name="contractType", default="")


class _Listings(msgspec.Struct, frozen=True):
    symbols: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    code: Code | None = None
    msg: str = ""


_Row = TypeVar("_Row")
_read_trades: Final = msgspec.json.Decoder(list[_Trade] | _Error).decode
_read_aggregates: Final = msgspec.json.Decoder(list[_Aggregate] | _Error).decode
_read_minutes: Final = msgspec.json.Decoder(list[_Minute] | _Error).decode
_read_listings: Final = msgspec.json.Decoder(_Listings).decode
_read_record: Final = msgspec.json.Decoder(_Record).decode


class BinanceRest:
    """The REST half of `Exchange`. No request needs a key."""

    name: str = "binance"

    def allowance(self, market: str) -> Allowance:
        """Spot takes a weight of 6,000 a minute from one address, USD-M 2,400; every reply says how much the minute has used."""
        return _MARKETS[market].allowance

    def listings_request(self, market: str, cursor: str) -> Request:
        """One reply holds every symbol; there is no cursor."""
        rest = _MARKETS[market]
        return Request(f"{rest.prefix}/exchangeInfo", {}, rest.listings)

    def read_listings(self, market: str, body: bytes) -> tuple[list[Listing], str]:
        """Every spot symbol, or every perpetual; contracts with a delivery date are left out."""
        who = f"{self.name} {market}"
        with reading(who, LISTED):
            reply = _read_listings(body)
        if reply.code is not None:
            raise refused(who, LISTED, reply.code, reply.msg)
        if isinstance(reply.symbols, msgspec.UnsetType):
            raise unreadable(who, LISTED, "it has no `symbols`")
        return read_records(who, reply.symbols, lambda record: _listing(market, record)), ""

    def trades_request(self, market: str, symbol: str, first: int | None = None) -> Request:
        """Ids count, so `first` is inclusive. A trade just printed may not be served yet: both endpoints read a database that lags."""
        rest = _MARKETS[market]
        return Request(f"{rest.prefix}/{rest.trades}", _page(symbol, fromId=first), rest.weight)

    def read_trades(self, listing: Listing, body: bytes) -> list[Trade]:
        """By id, ascending."""
        who, what = named(listing, "trades")
        with reading(who, what):
            if listing.instrument.market == "linear":
                rows = Rows(listing, "$", "p", "q")
                held = _whole(_read_aggregates(body), who, what)
                trades = [_fold(rows, place, row, row.number) for place, row in enumerate(held) if not row.emptied]
            else:
                rows = Rows(listing, "$", "price", "qty")
                trades = [
                    rows.trade(place, row.timestamp, row.id, str(row.id), row.price, row.quantity, _side(row.buyer_is_maker))
                    for place, row in enumerate(_whole(_read_trades(body), who, what))
                ]
        return sorted(trades, key=lambda trade: trade.seq)

    def aggregates_request(self, market: str, symbol: str, *, start: int | None = None, first: int | None = None) -> Request:
        """On spot cheaper than rows; on USD-M they are the rows, of the last 48 hours."""
        rest = _MARKETS[market]
        return Request(f"{rest.prefix}/aggTrades", _page(symbol, startTime=start, fromId=first), rest.aggregates_weight)

    def read_aggregates(self, listing: Listing, body: bytes) -> list[Aggregate]:
        """By the aggregate's id. On spot its trade goes by the first of the raw ids, so that an aggregate of one fill is that very trade;
        on USD-M by the aggregate's, as the socket has it."""
        who, what = named(listing, "aggregates")
        spot = listing.instrument.market == "spot"
        with reading(who, what):
            rows = Rows(listing, "$", "p", "q")
            folded = [
                Aggregate(row.number, row.last if spot else row.number, _fold(rows, place, row, row.first if spot else row.number))
                for place, row in enumerate(_whole(_read_aggregates(body), who, what))
                if not row.emptied
            ]
        return sorted(folded, key=lambda aggregate: aggregate.number)

    def candles_request(self, market: str, symbol: str, window: Window) -> Request:
        """USD-M weighs a request by its limit."""
        minutes = Minutes.of(window)
        weight = next(weight for below, weight in _MARKETS[market].minutes if minutes.limit < below)
        span = {"startTime": str(minutes.start), "endTime": str(minutes.last), "limit": str(minutes.limit)}
        return Request(f"{_MARKETS[market].prefix}/klines", {"symbol": symbol, "interval": "1m", **span}, weight)

    def read_candles(self, listing: Listing, body: bytes) -> list[Candle]:
        """Minutes with their count of raw trades and the volume that takers bought."""
        who, what = named(listing, "minutes")
        with reading(who, what):
            rows = _whole(_read_minutes(body), who, what)
            minutes = [candle(listing, row.start, row.volume, row.trade_count, row.buy_volume) for row in rows]
        return sorted(minutes, key=lambda minute: minute.start)


def _page(symbol: str, **places: int | None) -> dict[str, str]:
    """The parameters of a page of history that begins at one of the places; without any it is the newest page."""
    return {"symbol": symbol, "limit": str(_ROWS), **{name: str(place) for name, place in places.items() if place is not None}}


def _whole(reply: list[_Row] | _Error, who: str, what: str) -> list[_Row]:
    if isinstance(reply, _Error):
        raise refused(who, what, reply.code, reply.msg)
    return reply


def _fold(rows: Rows, place: int, row: _Aggregate, seq: int) -> Trade:
    fills = row.last - row.first + 1
    if row.first < 0 or not 0 < fills <= MOST_FILLS:
        raise ValueError(f"an aggregate cannot have {fills} fills - at `$[{place}].l`")
    return rows.trade(place, row.timestamp, seq, str(seq), row.price, row.quantity, _side(row.buyer_is_maker), fills)


def _side(buyer_is_maker: bool) -> TradeType:
    return TradeType.SELL if buyer_is_maker else TradeType.BUY


def _listing(market: str, raw: msgspec.Raw) -> Listing | None:
    record = _read_record(raw)
    if record.contract not in _CONTRACTS:
        return None
    tick = next((each.tick for each in record.filters if each.kind == "PRICE_FILTER"), "")
    lot = next((each.step for each in record.filters if each.kind == "LOT_SIZE"), "")
    return Listing(Instrument("binance", market, record.symbol), step(tick), step(lot), record.status == "TRADING")
