"""Binance's REST, spot and USD-M: listings, trades by id, and minutes (docs/exchanges.md 4.1, 4.2 and 6). Sockets are in `binance`.

Spot serves raw trades by id, and aggregates at a lower weight. Without a key USD-M serves only aggregates of the last 48 hours: the same
rows as its trade socket.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Final, NamedTuple, TypeVar

import msgspec

from wadm_mcp.exchanges.exchange import Aggregate, Allowance, Candle, Listed, Page, Request
from wadm_mcp.exchanges.wire import (
    LISTINGS,
    UNREADABLE,
    CandlePage,
    Code,
    Count,
    Millis,
    Minute,
    Name,
    Rows,
    candle,
    read_candle_rows,
    read_records,
    read_rows,
    reading,
    refusal,
    request_names,
    step,
    unreadable,
)
from wadm_mcp.model import MAX_STATUS_CHARS, Instrument, Listing, Trade, TradeType, Window
from wadm_mcp.texts import one_line

ROWS_PER_REPLY: Final = 1_000
"""Rows of one reply at most, on every endpoint of trades."""
_USED_WEIGHT: Final = "X-MBX-USED-WEIGHT-1M"
BAN_END: Final = re.compile(rb"until ([0-9]{13})(?![0-9])")
"""The end of a ban in the text of its reply, in ms."""
_CONTRACTS: Final = frozenset(("", "PERPETUAL", "TRADIFI_PERPETUAL", "PERPETUAL_DELIVERING", "PERPETUAL DELIVERING"))
"""Contract types without a delivery date from the start; perpetuals of metals and stocks have a type of their own, and so have those that
are being delisted."""


class _Market(NamedTuple):
    """Paths and request weights of one market's REST."""

    prefix: str
    allowance: Allowance
    listings_weight: int
    trades_path: str
    newest_path: str
    """Serves the newest trades, in the same rows; the hosts of market data have it too."""
    trades_weight: int
    """Of a request to either path."""
    aggregates_weight: int
    candles_weights: Sequence[tuple[int, int]]
    """`(below, weight)`: the weight of a request for fewer minutes than `below`, ascending."""


_MARKETS: Final[Mapping[str, _Market]] = MappingProxyType(
    {
        "spot": _Market(
            "/api/v3",
            Allowance(6_000, 60.0, _USED_WEIGHT, ban_end=BAN_END),
            listings_weight=20,
            trades_path="historicalTrades",
            newest_path="trades",
            trades_weight=25,
            aggregates_weight=4,
            candles_weights=((1_001, 2),),
        ),
        "linear": _Market(
            "/fapi/v1",
            Allowance(2_400, 60.0, _USED_WEIGHT, ban_end=BAN_END),
            listings_weight=1,
            trades_path="aggTrades",
            newest_path="aggTrades",
            trades_weight=20,
            aggregates_weight=20,
            candles_weights=((100, 1), (500, 2), (1_001, 5)),
        ),
    }
)


class _Error(msgspec.Struct, frozen=True):
    code: Code
    msg: str = ""


class _Trade(msgspec.Struct, frozen=True, gc=False):
    """A row of `historicalTrades` and of `trades`."""

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
        """Duplicates that an audit of 2022 found in the history are marked invalid instead of removed (spot changelog 2022-04-12)."""
        return self.first < 0 and self.last < 0


class _TradeId(msgspec.Struct, frozen=True):
    """A row of `historicalTrades` of which only the id is read."""

    id: Count


class _AggregateId(msgspec.Struct, frozen=True):
    """A row of `aggTrades` of which only the id is read."""

    id: Count = msgspec.field(name="a")


class _Minute(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A row of `klines`, up to the last column that is used."""

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
_read_rows: Final = msgspec.json.Decoder(list[msgspec.Raw] | _Error).decode
_read_trade: Final = msgspec.json.Decoder(_Trade).decode
_read_aggregate: Final = msgspec.json.Decoder(_Aggregate).decode
_read_trade_id: Final = msgspec.json.Decoder(_TradeId).decode
_read_aggregate_id: Final = msgspec.json.Decoder(_AggregateId).decode
_read_minute: Final = msgspec.json.Decoder(_Minute).decode
_read_listings: Final = msgspec.json.Decoder(_Listings).decode
_read_record: Final = msgspec.json.Decoder(_Record).decode


class BinanceRest:
    """The REST part of `Exchange` for Binance. No request needs a key."""

    name: str = "binance"
    title: str = "Binance"

    def allowance(self, market: str) -> Allowance:
        """One address has a weight of 6,000 a minute on spot and 2,400 on USD-M; every reply states the weight used in this minute."""
        return _MARKETS[market].allowance

    def listing_states(self, market: str) -> Sequence[str]:
        """One list has every symbol, whatever its status."""
        return ("",)

    def listings_request(self, market: str, cursor: str, state: str = "") -> Request:
        """One reply has every symbol; there is no cursor."""
        rest = _MARKETS[market]
        return Request(f"{rest.prefix}/exchangeInfo", {}, rest.listings_weight)

    def read_listings(self, market: str, body: bytes) -> tuple[Listed, str]:
        """Every spot symbol, or every perpetual, without contracts that have a delivery date."""
        venue = f"{self.name} {market}"
        with reading(venue, LISTINGS):
            reply = _read_listings(body)
        if reply.code is not None:
            raise refusal(venue, LISTINGS, reply.code, reply.msg)
        if isinstance(reply.symbols, msgspec.UnsetType):
            raise unreadable(venue, LISTINGS, "it has no `symbols`")
        return read_records(venue, reply.symbols, lambda record: _listing(market, record)), ""

    def trades_request(self, market: str, symbol: str, first: int | None = None) -> Request:
        """`first` is inclusive. A trade of the last moment may be missing: endpoints with history read a database that lags."""
        rest = _MARKETS[market]
        path = rest.newest_path if first is None else rest.trades_path
        by_id = first is not None and market == "spot"
        return Request(f"{rest.prefix}/{path}", _page(symbol, fromId=first), rest.trades_weight, optional=by_id)

    def read_trades(self, listing: Listing, body: bytes) -> Page[Trade]:
        """Ascending by id."""
        if listing.instrument.market == "linear":
            page = self._aggregates(listing, body, "trades")
            return Page([row.trade for row in page], page.served, page.unreadable)
        venue, what = request_names(listing, "trades")
        rows = Rows(listing, "$", "price", "qty")

        def read(place: int, raw: msgspec.Raw) -> Trade:
            row = _read_trade(raw)
            return rows.trade(place, row.timestamp, row.id, str(row.id), row.price, row.quantity, _side(row.buyer_is_maker))

        with reading(venue, what):
            page = read_rows("$", _rows(_read_rows(body), venue, what), read, lambda raw: _id(_read_trade_id, raw))
        page.sort(key=lambda trade: trade.seq)
        return page

    def aggregates_request(self, market: str, symbol: str, *, start: int | None = None, first: int | None = None) -> Request:
        """On spot they weigh less than trades; on USD-M they are the trades, of the last 48 hours."""
        rest = _MARKETS[market]
        return Request(f"{rest.prefix}/aggTrades", _page(symbol, startTime=start, fromId=first), rest.aggregates_weight)

    def read_aggregates(self, listing: Listing, body: bytes) -> Page[Aggregate]:
        """Ascending by the aggregate's id. On spot the seq of its trade is the first raw id, so that an aggregate of one fill equals that
        trade; on USD-M it is the aggregate's id, as on the socket."""
        return self._aggregates(listing, body, "aggregates")

    def _aggregates(self, listing: Listing, body: bytes, name: str) -> Page[Aggregate]:
        venue, what = request_names(listing, name)
        spot = listing.instrument.market == "spot"
        rows = Rows(listing, "$", "p", "q")

        def read(place: int, raw: msgspec.Raw) -> Aggregate | None:
            row = _read_aggregate(raw)
            if row.emptied and spot:
                # It names no trade ids. On USD-M its own id is the one that counts.
                return None
            if not row.emptied and row.first < 0:
                raise ValueError(f"an aggregate cannot begin with id {row.first} - at `$[{place}].l`")
            seq, last = (row.first, row.last) if spot else (row.number, row.number)
            quantity, fills = ("0", 0) if row.emptied else (row.quantity, row.last - row.first + 1)
            trade = rows.trade(place, row.timestamp, seq, str(seq), row.price, quantity, _side(row.buyer_is_maker), fills)
            return Aggregate(row.number, last, trade)

        with reading(venue, what):
            page = read_rows("$", _rows(_read_rows(body), venue, what), read, lambda raw: _id(_read_aggregate_id, raw))
        page.sort(key=lambda aggregate: aggregate.number)
        return page

    def candles_request(self, market: str, symbol: str, window: Window) -> Request:
        """On USD-M the weight depends on the limit."""
        page = CandlePage.of(window)
        weight = next(weight for below, weight in _MARKETS[market].candles_weights if page.limit < below)
        span = {"startTime": str(page.start), "endTime": str(page.last), "limit": str(page.limit)}
        return Request(f"{_MARKETS[market].prefix}/klines", {"symbol": symbol, "interval": "1m", **span}, weight)

    def read_candles(self, listing: Listing, body: bytes) -> Page[Candle]:
        """Minutes with the number of raw trades and the volume that takers bought."""
        venue, what = request_names(listing, "minutes")

        def read(raw: msgspec.Raw) -> Candle:
            row = _read_minute(raw)
            return candle(listing, row.start, row.volume, row.trade_count, row.buy_volume)

        with reading(venue, what):
            return read_candle_rows("$", _rows(_read_rows(body), venue, what), read)


def _page(symbol: str, **places: int | None) -> dict[str, str]:
    """The parameters of a page of history from one of the `places` on; without any it is the newest page."""
    return {"symbol": symbol, "limit": str(ROWS_PER_REPLY), **{name: str(place) for name, place in places.items() if place is not None}}


def _rows(reply: list[_Row] | _Error, venue: str, what: str) -> list[_Row]:
    """The rows of a reply; `ExchangeError` where it is an error."""
    if isinstance(reply, _Error):
        raise refusal(venue, what, reply.code, reply.msg)
    return reply


def _id(read: Callable[[msgspec.Raw], _TradeId | _AggregateId], raw: msgspec.Raw) -> int | None:
    """The id of a row that cannot be read as a whole; None where even that cannot."""
    try:
        return read(raw).id
    except UNREADABLE:
        return None


def _side(buyer_is_maker: bool) -> TradeType:
    return TradeType.SELL if buyer_is_maker else TradeType.BUY


def _listing(market: str, raw: msgspec.Raw) -> Listing | None:
    record = _read_record(raw)
    if record.contract not in _CONTRACTS:
        return None
    tick = next((each.tick for each in record.filters if each.kind == "PRICE_FILTER"), "")
    lot = next((each.step for each in record.filters if each.kind == "LOT_SIZE"), "")
    return Listing(
        Instrument("binance", market, record.symbol),
        step(tick),
        step(lot),
        record.status == "TRADING",
        one_line(record.status, MAX_STATUS_CHARS),
    )
