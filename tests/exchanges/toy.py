"""A third venue: an exchange in one file, and a small server of it on the loopback.

It writes its symbols `BTC-USDT`, its trade ids are not gapless, it publishes no archive, and its REST has the newest trades only. Nothing
in `wadm_mcp/` knows of it: `register(Toy())` is all that it takes.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from types import MappingProxyType
from typing import Final, Literal
from urllib.parse import parse_qs, urlsplit

import anyio
import msgspec
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HandshakeRequest
from websockets.http11 import Response

from wadm_mcp.exchanges.exchange import (
    Acknowledged,
    Aggregate,
    Allowance,
    ArchiveFormat,
    Candle,
    Decoder,
    Host,
    Hosts,
    Limits,
    Listed,
    MarketTraits,
    Message,
    Page,
    Request,
    Trades,
)
from wadm_mcp.exchanges.wire import (
    LISTINGS,
    UNREADABLE,
    Count,
    Millis,
    Name,
    Rows,
    TradeId,
    candle,
    frame_error,
    reading,
    request_names,
    step,
)
from wadm_mcp.model import MINUTE, Instrument, Listing, Trade, TradeType, Window

_NEWEST: Final = 100
"""Trades of one REST reply."""
_SIDES: Final = {"buy": TradeType.BUY, "sell": TradeType.SELL}


class _Row(msgspec.Struct, frozen=True, array_like=True):
    """A trade, on the socket and by REST. `place` orders trades and has holes."""

    id: TradeId
    place: Count
    timestamp: Millis
    price: str
    quantity: str
    side: Literal["buy", "sell"]


class _Frame(msgspec.Struct, frozen=True):
    symbol: str = ""
    at: int = 0
    trades: list[_Row] = []
    subscribed: str | None = None


class _Listed(msgspec.Struct, frozen=True):
    name: Name
    tick: str
    lot: str


_read_frame: Final = msgspec.json.Decoder(_Frame).decode
_read_rows: Final = msgspec.json.Decoder(list[_Row]).decode
_read_listings: Final = msgspec.json.Decoder(list[_Listed]).decode
_read_minutes: Final = msgspec.json.Decoder(list[tuple[int, str]]).decode


def _trades(listing: Listing, rows: Sequence[_Row]) -> list[Trade]:
    made = Rows(listing, "$.trades", "3", "4")
    return [
        made.trade(place, row.timestamp, row.place, row.id, row.price, row.quantity, _SIDES[row.side]) for place, row in enumerate(rows)
    ]


class ToyDecoder:
    """Frames of one connection into messages."""

    def __init__(self, listings: Sequence[Listing]) -> None:
        self._listings = {listing.instrument.symbol: listing for listing in listings}

    def decode(self, frame: str | bytes) -> Message | None:
        """See `Decoder.decode`."""
        try:
            read = _read_frame(frame)
            if read.subscribed is not None:
                return Acknowledged(read.subscribed)
            listing = self._listings[read.symbol]
            return Trades(listing.instrument, _trades(listing, read.trades), read.at)
        except (*UNREADABLE, ValueError, KeyError) as error:
            raise frame_error("toy spot", error) from None


class Toy:
    """The exchange, as `Exchange` asks for it: spot alone."""

    name = "toy"
    title = "Toy"
    traits: Mapping[str, MarketTraits] = MappingProxyType(
        {
            "spot": MarketTraits(
                has_gapless_ids=False, folds_history=False, archive=None, rest_reach=0, page_rows=_NEWEST, redundant_connections=False
            )
        }
    )
    hosts: Mapping[str, Hosts] = MappingProxyType(
        {"spot": Hosts(Host("WADM_TOY_WS", "wss://stream.toy.invalid"), Host("WADM_TOY_REST", "https://api.toy.invalid"), None)}
    )
    file_formats: Sequence[ArchiveFormat] = ()

    def canonical_symbol(self, symbol: str) -> str:
        return symbol.replace("-", "")

    def limits(self, market: str) -> Limits:
        return Limits(10, 5, 20.0, None, None, 10.0, 60.0)

    def stream_path(self, market: str) -> str:
        return "/stream"

    def subscribe(self, market: str, symbols: Sequence[str], request_id: int) -> str:
        return json.dumps({"subscribe": list(symbols), "id": str(request_id)})

    def unsubscribe(self, market: str, symbols: Sequence[str], request_id: int) -> str:
        return json.dumps({"unsubscribe": list(symbols), "id": str(request_id)})

    def ping(self, request_id: int) -> str:
        raise NotImplementedError("the server pings")

    def decoder(self, market: str, listings: Sequence[Listing]) -> Decoder:
        return ToyDecoder(listings)

    def listing_states(self, market: str) -> Sequence[str]:
        return ("",)

    def listings_request(self, market: str, cursor: str, state: str = "") -> Request:
        return Request("/symbols", {})

    def read_listings(self, market: str, body: bytes) -> tuple[Listed, str]:
        with reading("toy spot", LISTINGS):
            listed = _read_listings(body)
            return Listed(Listing(Instrument("toy", market, one.name), step(one.tick), step(one.lot)) for one in listed), ""

    def allowance(self, market: str) -> Allowance:
        return Allowance(600, 5.0)

    def trades_request(self, market: str, symbol: str, first: int | None = None) -> Request:
        return Request("/trades", {"symbol": symbol})

    def read_trades(self, listing: Listing, body: bytes) -> Page[Trade]:
        with reading(*request_names(listing, "trades")):
            return Page(sorted(_trades(listing, _read_rows(body)), key=lambda trade: trade.order))

    def aggregates_request(self, market: str, symbol: str, *, start: int | None = None, first: int | None = None) -> Request:
        raise NotImplementedError("there are no aggregates")

    def read_aggregates(self, listing: Listing, body: bytes) -> Page[Aggregate]:
        raise NotImplementedError("there are no aggregates")

    def candles_request(self, market: str, symbol: str, window: Window) -> Request:
        return Request("/minutes", {"symbol": symbol, "start": str(window.start), "end": str(window.end)})

    def read_candles(self, listing: Listing, body: bytes) -> Page[Candle]:
        with reading(*request_names(listing, "minutes")):
            return Page([candle(listing, start, volume) for start, volume in _read_minutes(body)])


class ToyServer:
    """The exchange's sockets and REST on one loopback port. What is pushed is sent to the subscribers and served by REST."""

    def __init__(self, *symbols: str) -> None:
        self.trades: dict[str, list[_Row]] = {symbol: [] for symbol in symbols}
        self.lags = False
        """Does REST still serve what it had when this was set?"""
        self._served: dict[str, list[_Row]] = {}
        self._subscribers: dict[ServerConnection, set[str]] = {}
        self._port = 0

    @property
    def settings(self) -> dict[str, str]:
        """The settings that lead here."""
        return {"WADM_TOY_WS": f"ws://127.0.0.1:{self._port}", "WADM_TOY_REST": f"http://127.0.0.1:{self._port}"}

    def subscribers(self, symbol: str) -> int:
        return sum(symbol in symbols for symbols in self._subscribers.values())

    async def push(self, symbol: str, timestamp: int) -> None:
        """A buy of 0.25 at 61000.5."""
        rows = self.trades[symbol]
        row = _Row(f"{symbol}/{len(rows) * 7919 % 10_007:x}", 10 * len(rows), timestamp, "61000.5", "0.25", "buy")
        rows.append(row)
        frame = msgspec.json.encode({"symbol": symbol, "at": timestamp + 1, "trades": [row]}).decode()
        for connection in [connection for connection, symbols in self._subscribers.items() if symbol in symbols]:
            try:
                await connection.send(frame)
            except ConnectionClosed:
                self._subscribers.pop(connection, None)

    def lag(self) -> None:
        """From now on REST does not gain a trade, until `lags` is false again."""
        self._served = {symbol: list(rows) for symbol, rows in self.trades.items()}
        self.lags = True

    def drop_connections(self) -> None:
        """Cut every connection without a closing handshake."""
        for connection in list(self._subscribers):
            connection.transport.abort()
        self._subscribers.clear()

    async def _converse(self, connection: ServerConnection) -> None:
        self._subscribers[connection] = set()
        try:
            async for frame in connection:
                asked = json.loads(frame)
                self._subscribers[connection].difference_update(asked.get("unsubscribe", ()))
                self._subscribers[connection].update(asked.get("subscribe", ()))
                await connection.send(json.dumps({"subscribed": asked["id"]}))
        except (ConnectionClosed, KeyError):
            pass
        finally:
            self._subscribers.pop(connection, None)

    def _rest(self, path: str, query: Mapping[str, list[str]]) -> object:
        if path == "/symbols":
            return [{"name": symbol, "tick": "0.5", "lot": "0.001"} for symbol in self.trades]
        (symbol,) = query["symbol"]
        rows = self._served[symbol] if self.lags else self.trades[symbol]
        if path == "/trades":
            return rows[-_NEWEST:]
        start, end = int(query["start"][0]), int(query["end"][0])
        sums = dict.fromkeys(range(start, end, MINUTE), 0.0)
        for row in rows:
            if start <= row.timestamp < end:
                sums[row.timestamp - row.timestamp % MINUTE] += float(row.quantity)
        return [[minute, f"{volume:.3f}"] for minute, volume in sums.items()]

    def _answer(self, connection: ServerConnection, request: HandshakeRequest) -> Response | None:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return None
        url = urlsplit(request.path)
        body = msgspec.json.encode(self._rest(url.path, parse_qs(url.query)))
        headers = Headers({"Content-Length": str(len(body)), "Connection": "close"})
        return Response(HTTPStatus.OK, "OK", headers, body)

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        """Serve on a free port for as long as the block lasts."""
        server = await serve(self._converse, "127.0.0.1", 0, process_request=self._answer, compression=None, close_timeout=1)
        self._port = next(iter(server.sockets)).getsockname()[1]
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                self.drop_connections()
                server.close()
                await server.wait_closed()
