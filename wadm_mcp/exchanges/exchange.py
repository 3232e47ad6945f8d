"""The contract every venue fulfils: pure translation between its wire and WADM's own words. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple, Protocol

import msgspec

from wadm_mcp.model import Instrument, Listing, Trade, Window


class Trades(msgspec.Struct, frozen=True, gc=False):
    """A frame of trades of one instrument, in the exchange's order.

    `event_time` is when the exchange sent it (ms). `set_aside` counts prints that are not trades of the book
    (block trades): accounted for, kept out of every figure.
    """

    instrument: Instrument
    trades: Sequence[Trade]
    event_time: int
    set_aside: int = 0


class Acknowledged(msgspec.Struct, frozen=True):
    """The exchange took a request. It proves nothing: a stream on the wrong route is acknowledged and silent."""

    request_id: str


class Pong(msgspec.Struct, frozen=True):
    """The answer to our heartbeat: the connection was alive and empty up to here."""


class Refused(msgspec.Struct, frozen=True):
    """The exchange refused a request; on Bybit one bad topic voids its whole batch."""

    request_id: str
    message: str


class ShuttingDown(msgspec.Struct, frozen=True):
    """The exchange announced that this connection ends soon, with no fixed lead time: open its replacement now."""


Message = Trades | Acknowledged | Pong | Refused | ShuttingDown


class Limits(NamedTuple):
    """What one connection may do, by the exchange's documents. Times in seconds."""

    streams: int
    """Instruments on one connection."""
    names_per_request: int
    """Instruments in one subscribe request."""
    requests_per_second: float
    """Client messages a second, pongs counted; kept well below the documented limit."""
    lifetime: float | None
    """The exchange cuts a connection after this long; None where it states no limit."""
    ping_every: float | None
    """How often the client must send `Exchange.ping`; None where the server pings."""
    pong_within: float
    """How long an answer to our ping may take before the connection is taken for dead."""
    bytes_within: float | None = None
    """Where the server pings: how long nothing at all may come in before the connection is taken for dead."""


class Request(NamedTuple):
    """A REST request: path and query, to be put behind the market's REST base URL, and what it costs of the market's `Allowance`."""

    path: str
    params: Mapping[str, str]
    weight: int = 1


class Allowance(NamedTuple):
    """What one address may ask of a market's REST host, by the exchange's documents: `weight` in every `seconds`.

    `used_header` is the response header that tells how much of it the address has used since the last whole multiple of `seconds`, empty
    where there is none. `forbidden` is how many seconds an HTTP 403 asks one to stay away.
    """

    weight: int
    seconds: float
    used_header: str = ""
    forbidden: float = 60.0


class Aggregate(NamedTuple):
    """Executions that the exchange folded into one row of its history: the raw ids `trade.seq` to `last`, `trade.fills` of them.

    `number` is the aggregate's own id, by which the history is paged; `trade` has price, quantity, side and time of the whole.
    """

    number: int
    last: int
    trade: Trade


class Candle(NamedTuple):
    """One minute as the exchange itself states it. `start` in ms; volumes are integers at `decimals` of the quantity.

    What a venue does not state is None: `trade_count` and `buy_volume` on Bybit.
    """

    start: int
    volume: int
    decimals: int
    trade_count: int | None = None
    buy_volume: int | None = None


class ArchiveFormat(Protocol):
    """One kind of daily file of one market, as its exchange's archive has it."""

    exchange: str
    market: str
    folder: str
    """A folder above its published files that sets them apart from files of the same name; empty where no other file is called so."""
    carries_live_ids: bool
    """Does a row have the `trade_id` that the trade socket gives the same trade? Only then can rows of both stand in one tape."""

    def path(self, symbol: str, day: date) -> str:
        """Where a day's file lies behind the archive's base URL."""
        ...

    def checksum_path(self, symbol: str, day: date) -> str | None:
        """Where its SHA-256 lies, None where the exchange publishes none."""
        ...

    def named(self, name: str) -> tuple[str, date] | None:
        """The symbol and the day of the file of this name, None where it is of another kind."""
        ...

    def rows(self, listing: Listing, lines: Iterable[str]) -> Iterator[Aggregate]:
        """The rows of a file in its own order, its header skipped. An `Aggregate` of one fill is a single trade.

        `ArchiveError` names the line that is not this format's, or not this symbol's.
        """
        ...


@dataclass(frozen=True)
class MarketTraits:
    """How one market of an exchange works, as far as recording, repair and history depend on it."""

    counts_trades: bool
    """Does `Trade.seq` count trades without holes? Then a missing seq is a missing trade, and REST serves trades by it."""
    folds_history: bool
    """Does REST serve, beside single trades, a cheaper history of `Aggregate`s?"""
    archive: ArchiveFormat | None
    """The daily files that history is imported from; None where the exchange publishes none. Where `counts_trades`, their rows have
    the seq that counts."""
    rest_reach: int | None
    """How far back (ms) REST serves trades by seq; None: all of them. 0 where it serves the newest trades only."""
    redundant_connections: bool
    """Do several connections cover each other? They do where a missed trade cannot be noticed on one connection alone."""


class Host(NamedTuple):
    """A base URL without path: the setting that may replace it (`WADM_BINANCE_SPOT_WS`), and the exchange's own."""

    setting: str
    url: str


class Hosts(NamedTuple):
    """The hosts of one market. Markets may share them; `archive` is None where the exchange publishes no daily files."""

    socket: Host
    rest: Host
    archive: Host | None


class Decoder(Protocol):
    """Frames of one connection into messages.

    It keeps the listings' scales and widens one when a finer price or quantity arrives. A value too large for the widened scale is written
    at the listing's own again, so scales may shrink: every trade states the scale it is written at. A `FrameError` changes no scale.
    """

    def decode(self, frame: str | bytes) -> Message | None:
        """The frame's meaning; None for a lawful frame that concerns nobody here. `FrameError` for anything else.

        A frame that names a symbol the decoder was not given is a `FrameError`.
        """
        ...


class Exchange(Protocol):
    """One venue. Stateless; its decoders hold what a connection must remember."""

    name: str
    traits: Mapping[str, MarketTraits]
    """How each market works. A market that the exchange does not have is absent."""
    hosts: Mapping[str, Hosts]
    """Where each of these markets is reached."""
    file_formats: Sequence[ArchiveFormat]
    """Every kind of daily file that can be imported by hand, those of `traits` among them."""

    def canonical_symbol(self, symbol: str) -> str:
        """The name under which instruments of several exchanges are merged: `BTCUSDT` for a `BTC-USDT`. A canonical symbol is its own."""
        ...

    def limits(self, market: str) -> Limits: ...

    def stream_path(self, market: str) -> str:
        """Path of the trade socket, put behind the market's WebSocket base URL."""
        ...

    def subscribe(self, market: str, symbols: Sequence[str], request_id: int) -> str:
        """The request that subscribes trades of `symbols`; the caller keeps to `Limits.names_per_request`."""
        ...

    def ping(self, request_id: int) -> str:
        """The heartbeat frame of a venue whose clients must ping."""
        ...

    def decoder(self, market: str, listings: Sequence[Listing]) -> Decoder: ...

    def listings_request(self, market: str, cursor: str) -> Request:
        """Asks for every listing of the market; `cursor` is empty at first, then what `read_listings` returned."""
        ...

    def read_listings(self, market: str, body: bytes) -> tuple[list[Listing], str]:
        """Listings of a reply, and the cursor of the next page (empty at the end).

        One malformed record is skipped. `ExchangeError` for an error body or one that cannot be read.
        """
        ...

    def allowance(self, market: str) -> Allowance:
        """What REST of the market allows one address."""
        ...

    def trades_request(self, market: str, symbol: str, first: int | None = None) -> Request:
        """Asks for rows like those of the trade socket, the most that one reply holds: from the id `first` on where the exchange
        numbers its trades, else (and without `first`) the newest."""
        ...

    def read_trades(self, listing: Listing, body: bytes) -> list[Trade]:
        """The trades of a reply to `trades_request`, in `Trade.order`; block trades are left out.

        `ExchangeError` for an error body or one that cannot be read; a reply is taken whole or not at all.
        """
        ...

    def aggregates_request(self, market: str, symbol: str, *, start: int | None = None, first: int | None = None) -> Request:
        """Asks for aggregates where the exchange numbers its trades: those from `start` (ms) on, or from the aggregate id `first` on."""
        ...

    def read_aggregates(self, listing: Listing, body: bytes) -> list[Aggregate]:
        """The aggregates of a reply, ascending; rows that the exchange marks invalid are left out. `ExchangeError` as of `read_trades`."""
        ...

    def candles_request(self, market: str, symbol: str, window: Window) -> Request:
        """Asks for the minutes of a window, as many of the first ones as one reply holds."""
        ...

    def read_candles(self, listing: Listing, body: bytes) -> list[Candle]:
        """The minutes of a reply, oldest first. `ExchangeError` as of `read_trades`."""
        ...


@dataclass(frozen=True)
class Venue:
    """One market of one exchange, and the base URLs that lead to it. `archive_url` is empty where there is no archive."""

    exchange: Exchange
    market: str
    socket_url: str
    rest_url: str
    archive_url: str

    @property
    def name(self) -> str:
        """How logs and errors call it: `binance spot`."""
        return f"{self.exchange.name} {self.market}"

    @property
    def traits(self) -> MarketTraits:
        """How this market works."""
        return self.exchange.traits[self.market]

    @property
    def log_fields(self) -> dict[str, str]:
        """Exchange and market, as log lines name them."""
        return {"exchange": self.exchange.name, "market": self.market}

    def instrument(self, symbol: str) -> Instrument:
        """The instrument of this symbol here."""
        return Instrument(self.exchange.name, self.market, symbol)

    def by_symbol(self, listings: Iterable[Listing]) -> dict[str, Listing]:
        """Listings of this market by their canonical symbol and by the exchange's own, which goes first."""
        own = {listing.instrument.symbol: listing for listing in listings}
        return {self.exchange.canonical_symbol(symbol): listing for symbol, listing in own.items()} | own

    def trades_here(self, instrument: Instrument) -> bool:
        """Is this instrument one of this market?"""
        return instrument[:2] == (self.exchange.name, self.market)
