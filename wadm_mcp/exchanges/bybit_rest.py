"""Bybit's REST v5, spot and linear: listings, the newest trades, and minutes (docs/exchanges.md 4.3 and 6). Sockets are in `bybit`.

There is no history by id or time: `recent-trade` has only the newest rows. Its numbers are strings, and an error has HTTP status 200 and a
`retCode`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal
from urllib.parse import unquote

import msgspec

from wadm_mcp.exchanges.exchange import Aggregate, Allowance, Candle, Listed, Page, Request
from wadm_mcp.exchanges.wire import (
    LISTINGS,
    CandlePage,
    Code,
    Count,
    Millis,
    Minute,
    Name,
    Rows,
    TradeId,
    candle,
    read_candle_rows,
    read_records,
    read_rows,
    reading,
    refusal,
    request_names,
    step,
)
from wadm_mcp.model import MAX_STATUS_CHARS, Instrument, Listing, Trade, TradeType, Window
from wadm_mcp.texts import one_line

SIDES: Final = {"Buy": TradeType.BUY, "Sell": TradeType.SELL}
"""The taker's side, as socket and REST call it."""

ROWS_PER_REPLY: Final = {"spot": 60, "linear": 1_000}
"""Rows of `recent-trade` at most."""

_STATES: Final = {"spot": ("",), "linear": ("PreLaunch", "", "Delivering")}
"""The `status` of each list that is requested: without one it has the symbols that trade. They are in the order of a contract's life, so
that one whose status changes between two requests is in one of the replies, and the last reply holds. A closed contract is not listed."""

# One address has 600 requests in 5 s for the whole host; after more than that it answers 403 until ten minutes pass without a request.
_ALLOWANCE: Final = Allowance(600, 5.0, forbidden=600.0)


class _Reply(msgspec.Struct, frozen=True):
    """The envelope of every reply. The `result` of an error may be anything."""

    code: Code = msgspec.field(name="retCode")
    text: str = msgspec.field(name="retMsg", default="")
    result: msgspec.Raw = msgspec.Raw(b"{}")


class _Row(msgspec.Struct, frozen=True, gc=False):
    """One trade of `recent-trade`: `execId` is the `i` of the socket. `seq` is absent before August 2025."""

    id: TradeId = msgspec.field(name="execId")
    symbol: str
    price: str
    quantity: str = msgspec.field(name="size")
    side: Literal["Buy", "Sell"]
    timestamp: Millis = msgspec.field(name="time")
    block: bool = msgspec.field(name="isBlockTrade", default=False)
    seq: Count | None = None


class _Recent(msgspec.Struct, frozen=True):
    rows: list[msgspec.Raw] = msgspec.field(name="list")
    category: str = ""


class _Minute(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A row of `kline`, up to the last column that is used."""

    start: Minute
    open: str
    high: str
    low: str
    close: str
    volume: str


class _Minutes(msgspec.Struct, frozen=True):
    rows: list[msgspec.Raw] = msgspec.field(name="list")
    category: str = ""
    symbol: str = ""


class _PriceFilter(msgspec.Struct, frozen=True):
    tick: str = msgspec.field(name="tickSize")


class _LotFilter(msgspec.Struct, frozen=True):
    """The quantity step is `basePrecision` on spot and `qtyStep` on linear."""

    base: str = msgspec.field(name="basePrecision", default="")
    step: str = msgspec.field(name="qtyStep", default="")


class _Record(msgspec.Struct, frozen=True):
    """One symbol of `instruments-info`. Only contracts have a `contractType`."""

    symbol: Name
    prices: _PriceFilter = msgspec.field(name="priceFilter")
    lots: _LotFilter = msgspec.field(name="lotSizeFilter")
    status: str = ""
    contract: str = msgspec.field(name="contractType", default="")


class _Page(msgspec.Struct, frozen=True):
    records: list[msgspec.Raw] = msgspec.field(name="list")
    cursor: str | None = msgspec.field(name="nextPageCursor", default=None)


_read_reply: Final = msgspec.json.Decoder(_Reply).decode
_read_page: Final = msgspec.json.Decoder(_Page).decode
_read_record: Final = msgspec.json.Decoder(_Record).decode

# Not strict, so that a number in quotes is read as a number.
_read_recent: Final = msgspec.json.Decoder(_Recent, strict=False).decode
_read_row: Final = msgspec.json.Decoder(_Row, strict=False).decode
_read_minutes: Final = msgspec.json.Decoder(_Minutes, strict=False).decode
_read_minute: Final = msgspec.json.Decoder(_Minute, strict=False).decode


class BybitRest:
    """The REST part of `Exchange` for Bybit."""

    name: str = "bybit"
    title: str = "Bybit"

    def allowance(self, market: str) -> Allowance:
        """One address has 600 requests in 5 s for both markets together; no reply states how many are used."""
        return _ALLOWANCE

    def listing_states(self, market: str) -> Sequence[str]:
        """Linear contracts before their launch and during their delivery are in lists of their own; spot only lists what trades."""
        return _STATES[market]

    def listings_request(self, market: str, cursor: str, state: str = "") -> Request:
        """A cursor comes percent-encoded. As a parameter it is encoded again, so that it leaves as it came (docs/exchanges.md 6)."""
        params = {"category": market, "limit": "1000", **({"status": state} if state else {})}
        return Request("/v5/market/instruments-info", {**params, "cursor": unquote(cursor)} if cursor else params)

    def read_listings(self, market: str, body: bytes) -> tuple[Listed, str]:
        """Every spot symbol, or every linear perpetual, without contracts that have a delivery date."""
        venue = f"{self.name} {market}"
        with reading(venue, LISTINGS):
            page = _read_page(_result(venue, LISTINGS, body))
        return read_records(venue, page.records, lambda record: _listing(market, record)), page.cursor or ""

    def trades_request(self, market: str, symbol: str, first: int | None = None) -> Request:
        """The newest trades, with or without `first`: at most 60 of spot, 1,000 of linear."""
        return Request("/v5/market/recent-trade", {"category": market, "symbol": symbol, "limit": str(ROWS_PER_REPLY[market])})

    def read_trades(self, listing: Listing, body: bytes) -> Page[Trade]:
        """Ordered by time and cross sequence, trades with the same sequence as in the list.

        The order of the list is not documented: linear lists were newest first, spot lists oldest first.
        """
        venue, what = request_names(listing, "trades")
        path = "$.result.list"
        rows, symbols = Rows(listing, path, "price", "size"), set[str]()

        def read(place: int, raw: msgspec.Raw) -> Trade | None:
            row = _read_row(raw)
            symbols.add(row.symbol)
            if row.block:
                return None
            return rows.trade(place, row.timestamp, _seq(row), row.id, row.price, row.quantity, SIDES[row.side])

        with reading(venue, what):
            recent = _read_recent(_result(venue, what, body))
            # These rows have no number that counts.
            page = read_rows(path, recent.rows, read, lambda raw: None)
            _check(listing, recent.category, symbols)
        first, last = (_moment(page[0]), _moment(page[-1])) if page else ((0, 0), (0, 0))
        if first > last:
            page.reverse()
            page.unreadable = [row._replace(place=len(page) - row.place) for row in reversed(page.unreadable)]
        elif first == last:
            # The list's direction is unknown: a row that cannot be read may be newer than all others.
            page.unreadable = [row._replace(place=len(page)) for row in page.unreadable]
        page.sort(key=_moment)
        return page

    def aggregates_request(self, market: str, symbol: str, *, start: int | None = None, first: int | None = None) -> Request:
        """Never called: Bybit has no aggregates."""
        raise NotImplementedError(f"bybit {market} has no history of aggregates")

    def read_aggregates(self, listing: Listing, body: bytes) -> Page[Aggregate]:
        """Never called: Bybit has no aggregates."""
        raise NotImplementedError(f"{listing.instrument} has no history of aggregates")

    def candles_request(self, market: str, symbol: str, window: Window) -> Request:
        """For a window of more minutes than the limit Bybit replies with the last ones, so the window is cut to the limit."""
        page = CandlePage.of(window)
        span = {"start": str(page.start), "end": str(page.last), "limit": str(page.limit)}
        return Request("/v5/market/kline", {"category": market, "symbol": symbol, "interval": "1", **span})

    def read_candles(self, listing: Listing, body: bytes) -> Page[Candle]:
        """Minutes with their volume and nothing else; the list is newest first."""
        venue, what = request_names(listing, "minutes")

        def read(raw: msgspec.Raw) -> Candle:
            row = _read_minute(raw)
            return candle(listing, row.start, row.volume)

        with reading(venue, what):
            reply = _read_minutes(_result(venue, what, body))
            _check(listing, reply.category, {reply.symbol})
            return read_candle_rows("$.result.list", reply.rows, read)


def _result(venue: str, what: str, body: bytes) -> msgspec.Raw:
    reply = _read_reply(body)
    if reply.code != 0:
        raise refusal(venue, what, reply.code, reply.text)
    return reply.result


def _check(listing: Listing, category: str, symbols: set[str]) -> None:
    """Spot and linear use the same symbols: refuse a reply of the other market."""
    _, market, symbol = listing.instrument
    if category not in ("", market):
        raise ValueError(f"it is of category {category[:40]!r} - at `$.result.category`")
    for other in symbols - {"", symbol}:
        raise ValueError(f"it carries symbol {other[:40]!r} - at `$.result.list`")


def _seq(row: _Row) -> int:
    """As on the socket: a row without cross sequence is ordered by its time."""
    return row.timestamp if row.seq is None else row.seq


def _moment(trade: Trade) -> tuple[int, int]:
    return trade.timestamp, trade.seq


def _listing(market: str, raw: msgspec.Raw) -> Listing | None:
    record = _read_record(raw)
    if record.contract not in ("", "LinearPerpetual"):
        return None
    lot = record.lots.base if market == "spot" else record.lots.step
    return Listing(
        Instrument("bybit", market, record.symbol),
        step(record.prices.tick),
        step(lot),
        record.status == "Trading",
        one_line(record.status, MAX_STATUS_CHARS),
    )
