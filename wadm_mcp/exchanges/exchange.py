"""The contract of an exchange: pure translation between its wire formats and WADM's values. No I/O, no clock."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import msgspec

from wadm_mcp.errors import ArchiveError
from wadm_mcp.model import Instrument, Listing, Trade, Window


class Unreadable(NamedTuple):
    """A row among others that cannot be read, and may hide volume.

    `place` is how many readable rows come before it in the exchange's order; `seq` (of a minute its start) is None unless the row shows it.
    """

    place: int
    seq: int | None
    why: str


class Trades(msgspec.Struct, frozen=True, gc=False):
    """A frame of trades of one instrument, in the exchange's order.

    `event_time` is when the exchange sent it (ms). `set_aside` counts block trades, which were not matched in the order book: they are
    counted here and kept out of every figure. `unreadable` are rows of the frame that could not be read, in order.
    """

    instrument: Instrument
    trades: Sequence[Trade]
    event_time: int
    set_aside: int = 0
    unreadable: Sequence[Unreadable] = ()

    @property
    def runs(self) -> list[Sequence[Trade]]:
        """The trades, parted where rows could not be read."""
        cuts = [0, *(row.place for row in self.unreadable), len(self.trades)]
        return [self.trades[start:end] for start, end in pairwise(cuts)]


class Acknowledged(msgspec.Struct, frozen=True):
    """The exchange accepted a request. It proves nothing: a stream on the wrong route is acknowledged and stays silent."""

    request_id: str


class Pong(msgspec.Struct, frozen=True):
    """The answer to our ping: the connection was alive up to here."""


class Refused(msgspec.Struct, frozen=True):
    """The exchange refused a request; on Bybit one bad topic voids its whole batch.

    With `already_subscribed` it did so because the subscription exists: nothing is wrong.
    """

    request_id: str
    message: str
    already_subscribed: bool = False


class ShuttingDown(msgspec.Struct, frozen=True):
    """The exchange announced that this connection ends soon, without saying when: open its replacement now."""


Message = Trades | Acknowledged | Pong | Refused | ShuttingDown


class Limits(NamedTuple):
    """What one connection may do, by the exchange's documentation. Times are in seconds."""

    streams: int
    """Instruments on one connection."""
    names_per_request: int
    """Instruments in one subscribe request."""
    requests_per_second: float
    """Client messages a second, pongs included; kept well below the documented limit."""
    lifetime: float | None
    """Age at which the exchange closes a connection; None where it states no limit."""
    ping_every: float | None
    """Interval at which the client must send `Exchange.ping`; None where the server pings."""
    pong_within: float
    """Longest time to a pong before the connection counts as dead."""
    bytes_within: float | None = None
    """Where the server pings: longest time without a byte before the connection counts as dead."""


class Request(NamedTuple):
    """A REST request: path and query, appended to the market's REST base URL, and its weight in the market's `Allowance`.

    `optional` is True if a host that serves the market otherwise may not serve this path.
    """

    path: str
    params: Mapping[str, str]
    weight: int = 1
    optional: bool = False


class Allowance(NamedTuple):
    """The rate limit of a market's REST host for one address, by the exchange's documentation: `weight` in every `seconds`.

    `used_header` is the response header with the weight that the address has used since the last whole multiple of `seconds`, empty
    where there is none. `forbidden` is how many seconds to stay away after an HTTP 403. `ban_end` finds, in the body of a ban, when it
    ends (its group 1, in ms); None where the body does not say. `region` is how many seconds to stay away after an HTTP 451: the answer
    changes only with the network.
    """

    weight: int
    seconds: float
    used_header: str = ""
    forbidden: float = 60.0
    ban_end: re.Pattern[bytes] | None = None
    region: float = 300.0


class Aggregate(NamedTuple):
    """Executions that the exchange reports as one row of its history: the raw ids `trade.seq` to `last`, `trade.fills` of them.

    `number` is the aggregate's own id, by which history is paged; `trade` has the price, quantity, side and time of the whole.
    """

    number: int
    last: int
    trade: Trade


_Row = TypeVar("_Row")


class Page(list[_Row]):
    """The rows of a REST reply that can be used. `served` is how many the reply had; those in `unreadable` were set aside."""

    def __init__(self, rows: Iterable[_Row] = (), served: int | None = None, unreadable: Sequence[Unreadable] = ()) -> None:
        super().__init__(rows)
        self.served = len(self) if served is None else served
        self.unreadable = unreadable

    @property
    def unbroken(self) -> Sequence[_Row]:
        """The rows after the last one that could not be read."""
        return self[max((row.place for row in self.unreadable), default=0) :]


class Listed(list[Listing]):
    """The listings of a market, or of a part of its list.

    `missing` says why any others may be missing; empty where the list is complete. `malformed` are the symbols whose own record could not
    be read, with the reason: those alone may be missing all the same.
    """

    def __init__(self, listings: Iterable[Listing] = (), missing: str = "", malformed: Mapping[str, str] = {}) -> None:
        super().__init__(listings)
        self.missing = missing
        self.malformed = malformed

    def doubt(self, symbol: str) -> str:
        """Why the symbol may be listed although it is not here; empty if it is here, or is not listed."""
        if any(listing.instrument.symbol == symbol for listing in self):
            return ""
        return self.malformed.get(symbol, self.missing)


class Candle(NamedTuple):
    """One minute as the exchange itself states it. `start` is in ms; volumes are integers at `decimals` decimals.

    `trade_count` and `buy_volume` are None where the exchange does not state them, as on Bybit.
    """

    start: int
    volume: int
    decimals: int
    trade_count: int | None = None
    buy_volume: int | None = None


LineErrors: TypeAlias = Callable[[ArchiveError], None]
"""Called for a line that cannot be read. It raises the error, or returns so that the line is left out."""


def refuse_line(error: ArchiveError) -> None:
    """Refuse the whole file for one line that cannot be read."""
    raise error


class ArchiveFormat(Protocol):
    """One kind of daily file of one market, as its exchange's archive has it."""

    exchange: str
    market: str
    folder: str
    """A folder in the path of its published files that no file of the same name and another format has; empty where names differ."""
    carries_live_ids: bool
    """True if a row has the same `trade_id` as the trade socket gives that trade. Only then can rows of both be in one tape."""

    def path(self, symbol: str, day: date) -> str:
        """Path of a day's file, below the archive's base URL."""
        ...

    def checksum_path(self, symbol: str, day: date) -> str | None:
        """Path of the SHA-256 of a day's file, None where the exchange publishes none."""
        ...

    def named(self, name: str) -> tuple[str, date] | None:
        """The symbol and the day in a file's name, None for a name of another kind."""
        ...

    def rows(self, listing: Listing, lines: Iterable[str], bad_line: LineErrors = refuse_line) -> Iterator[Aggregate]:
        """The rows of a file in its order, without the header. A single trade is an `Aggregate` of one fill.

        `bad_line` gets the error of each line that cannot be read. `ArchiveError` for a header of another format, and for a line of another
        symbol.
        """
        ...


@dataclass(frozen=True)
class MarketTraits:
    """How one market of an exchange works, as far as recording, repair and history depend on it."""

    has_gapless_ids: bool
    """True if `Trade.seq` is gapless: a missing seq is a missing trade, and REST serves trades by it."""
    folds_history: bool
    """True if REST also serves history as `Aggregate`s, at a lower weight."""
    archive: ArchiveFormat | None
    """The daily files that history is imported from; None where the exchange publishes none. Where `has_gapless_ids`, their rows have
    the gapless seq."""
    rest_reach: int | None
    """How far back (ms) REST serves trades by seq; None: all of them. 0 where it serves the newest trades only."""
    page_rows: int
    """Trades, or aggregates, in one REST reply at most."""
    redundant_connections: bool
    """True if several connections are opened, because one connection alone cannot show that it missed a trade."""
    merges_fills_ms: int = 0
    """Where a recorded trade merges fills of several milliseconds: the longest time (ms) from the first fill, whose time it has, to the
    last. Part of its volume may then be in the candle of the next minute, and its `fills` is an upper bound. 0 where each trade has the
    time of all its fills: its minute has the volume of the candle."""


class Host(NamedTuple):
    """A base URL without path: the setting that may replace it (`WADM_BINANCE_SPOT_WS`), and the exchange's own.

    `market_data` is the exchange's host for public market data alone, which also serves regions that `url` refuses. Empty where there is
    none.
    """

    setting: str
    url: str
    market_data: str = ""

    def way_on(self, refused: str) -> str:
        """What an operator can do where the base URL `refused` does not serve this address."""
        proxy = "HTTPS_PROXY to a proxy in a region that the exchange serves"
        return f"Set {self.setting}={self.market_data}, or {proxy}" if self.market_data not in ("", refused) else f"Set {proxy}"


class Hosts(NamedTuple):
    """The hosts of one market. Markets may share them; `archive` is None where the exchange publishes no daily files."""

    socket: Host
    rest: Host
    archive: Host | None


class Decoder(Protocol):
    """Frames of one connection into messages.

    It starts with the listings' scales and widens one when a finer price or quantity arrives. A value too large for the widened scale is
    written at the listing's scale again, so scales may also shrink: every trade states its scale. A `FrameError` changes no scale.
    """

    def decode(self, frame: str | bytes) -> Message | None:
        """The message in a frame; None for a valid message that is of no use here.

        `FrameError` for a frame that is not valid, or that names a symbol without a listing in this decoder.
        """
        ...


class Exchange(Protocol):
    """One exchange. Stateless: what a connection must remember is in its decoder."""

    name: str
    title: str
    """The name in sentences, such as Binance."""
    traits: Mapping[str, MarketTraits]
    """How each market works. A market that the exchange does not have is absent."""
    hosts: Mapping[str, Hosts]
    """Where each of these markets is reached."""
    file_formats: Sequence[ArchiveFormat]
    """Every kind of daily file that can be imported by hand, those of `traits` among them."""

    def canonical_symbol(self, symbol: str) -> str:
        """The name under which instruments of several exchanges are merged: `BTCUSDT` for a `BTC-USDT`. A canonical symbol is its own."""
        ...

    def limits(self, market: str) -> Limits:
        """What one connection to the market may do."""
        ...

    def stream_path(self, market: str) -> str:
        """Path of the trade socket, appended to the market's WebSocket base URL."""
        ...

    def subscribe(self, market: str, symbols: Sequence[str], request_id: int) -> str:
        """The request that subscribes to trades of `symbols`: at most `Limits.names_per_request` of them."""
        ...

    def unsubscribe(self, market: str, symbols: Sequence[str], request_id: int) -> str:
        """The request that ends subscriptions, as `subscribe` begins them."""
        ...

    def ping(self, request_id: int) -> str:
        """The ping frame, where clients must ping (`Limits.ping_every`)."""
        ...

    def decoder(self, market: str, listings: Sequence[Listing]) -> Decoder:
        """The decoder of a new connection that subscribes to these listings."""
        ...

    def listing_states(self, market: str) -> Sequence[str]:
        """The lists that together have every instrument of the market, each by the `state` of its `listings_request`. One is the empty
        `state`, the list of what trades. Where an instrument is in several, the last one holds."""
        ...

    def listings_request(self, market: str, cursor: str, state: str = "") -> Request:
        """The request for a page of one of the market's lists; `cursor` is empty at first, then the one that `read_listings` returned."""
        ...

    def read_listings(self, market: str, body: bytes) -> tuple[Listed, str]:
        """Listings of a reply, and the cursor of the next page (empty at the end).

        A malformed record is skipped and named in `missing`. `ExchangeError` for an error reply and for one that cannot be read.
        """
        ...

    def allowance(self, market: str) -> Allowance:
        """The rate limit of the market's REST host."""
        ...

    def trades_request(self, market: str, symbol: str, first: int | None = None) -> Request:
        """The request for trades like those of the trade socket, as many as one reply has: from the seq `first` on where the market
        `has_gapless_ids`, else (and without `first`) the newest. Where a market `folds_history`, a host may lack the trades by seq."""
        ...

    def read_trades(self, listing: Listing, body: bytes) -> Page[Trade]:
        """The trades of a reply to `trades_request`, in `Trade.order`, without block trades.

        A row without volume is a trade of quantity 0; one that cannot be read is set aside. `ExchangeError` for an error reply, for one
        that is not a list of rows, and for one whose rows are all unreadable.
        """
        ...

    def aggregates_request(self, market: str, symbol: str, *, start: int | None = None, first: int | None = None) -> Request:
        """The request for aggregates from `start` (ms) on, or from the aggregate id `first` on, where the market `has_gapless_ids`."""
        ...

    def read_aggregates(self, listing: Listing, body: bytes) -> Page[Aggregate]:
        """The aggregates of a reply, ascending, without rows that cover no id. Rows without volume, rows that cannot be read, and
        `ExchangeError`: as for `read_trades`."""
        ...

    def candles_request(self, market: str, symbol: str, window: Window) -> Request:
        """The request for a window's minutes: the first of them, as many as one reply has."""
        ...

    def read_candles(self, listing: Listing, body: bytes) -> Page[Candle]:
        """The minutes of a reply, oldest first. Rows that cannot be read, and `ExchangeError`: as for `read_trades`."""
        ...


@dataclass(frozen=True)
class Venue:
    """One market of one exchange, and the base URLs that lead to it. `archive_url` is empty where there is no archive.

    `socket_fallback` and `rest_fallback` are base URLs to use where the first ones do not serve this address; empty where there is none,
    and where the operator set the first one.
    """

    exchange: Exchange
    market: str
    socket_url: str
    rest_url: str
    archive_url: str
    socket_fallback: str = ""
    rest_fallback: str = ""

    @property
    def name(self) -> str:
        """The name in logs and errors: `binance spot`."""
        return f"{self.exchange.name} {self.market}"

    @property
    def traits(self) -> MarketTraits:
        """How this market works."""
        return self.exchange.traits[self.market]

    @property
    def hosts(self) -> Hosts:
        """The settings that may replace the base URLs, with the exchange's own URLs."""
        return self.exchange.hosts[self.market]

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
        """True if the instrument belongs to this market."""
        return instrument[:2] == (self.exchange.name, self.market)
