"""What reading the wire formats of all exchanges has in common: bounds of valid values, exact numbers at a widening scale, errors."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import lru_cache
from html import unescape
from typing import Annotated, Final, NamedTuple, TypeVar

import msgspec

from wadm_mcp.errors import ExchangeError, FrameError, RequestRefused
from wadm_mcp.exchanges.exchange import Candle, Listed, Page, Unreadable
from wadm_mcp.model import (
    MAX_SYMBOL_CHARS,
    MINUTE,
    Instrument,
    Listing,
    Scale,
    Trade,
    TradeType,
    Window,
    is_symbol,
    parse_decimal,
    rescale,
    to_decimal,
)
from wadm_mcp.texts import one_line, quoted

MIN_TIME: Final = 1_230_768_000_000
MAX_TIME: Final = 4_102_444_800_000
"""Bounds of a valid time in milliseconds, 2009 to 2100. A number outside is in another unit, or is no time."""

Millis = Annotated[int, msgspec.Meta(ge=MIN_TIME, le=MAX_TIME)]
"""A time in milliseconds."""

Minute = Annotated[int, msgspec.Meta(ge=MIN_TIME, le=MAX_TIME, multiple_of=MINUTE)]
"""The start of a minute in milliseconds."""

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""An id or a sequence number that fits 63 bits, as every store needs."""

Code = Annotated[int, msgspec.Meta(ge=-(1 << 31), le=(1 << 31) - 1)]
"""The code of an exchange's error."""

TradeId = Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,64}\Z")]
"""An id that is no number, or a number too long for `Count`. Answers repeat it, so it cannot be any text."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_SYMBOL_CHARS)]
"""A symbol of a listing. `read_records` skips one that is not `is_symbol`."""

MAX_FILLS: Final = (1 << 31) - 1
"""Most fills of one row: documents store them in 32 bits."""

_MAX_CANDLES: Final = 1_000
"""Minutes in one reply of Binance or Bybit at most."""

LISTINGS: Final = "a list of symbols"
"""The name of a listings reply in errors."""

UNREADABLE: Final = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What decoding untrusted bytes may raise."""


_HTML: Final = re.compile(r"<(?:!doctype|html|head|body)\b", re.IGNORECASE)
_HTML_SEARCHED: Final = 1_000
"""Characters of a reply in which a page of HTML begins."""
_NOT_SHOWN: Final = ("title", "script", "style")


class SymbolScale(NamedTuple):
    """An instrument in a decoder: its scale now, and the scale of its listing."""

    instrument: Instrument
    scale: Scale
    listed: Scale

    @classmethod
    def by_symbol(cls, listings: Sequence[Listing]) -> dict[str, SymbolScale]:
        """The start of a decoder, by the exchange's symbol."""
        return {listing.instrument.symbol: cls(listing.instrument, listing.scale, listing.scale) for listing in listings}


class _Start(msgspec.Struct, frozen=True, array_like=True):
    """The first column of a row of minutes, in Bybit's rows in quotes."""

    start: Minute


_read_start: Final = msgspec.json.Decoder(_Start, strict=False).decode


class _Symbol(msgspec.Struct, frozen=True):
    """The symbol of a listing's record."""

    symbol: str


_read_symbol: Final = msgspec.json.Decoder(_Symbol).decode


@lru_cache(maxsize=16_384)
def figure(text: str, decimals: int, listed: int) -> tuple[int, int]:
    """Parse a price or quantity above zero into an exact `(integer, decimals)`; `ValueError` for any other text.

    The result has more decimals than `decimals` if the text does. If it then exceeds 64 bits, the `listed` decimals are used again, so that
    one trade with very many decimals does not block later ones.
    """
    # Cached: in real data three of four values occurred shortly before (price levels and round lots repeat).
    try:
        value, finest = parse_decimal(text, decimals)
    except ValueError:
        if decimals == listed:
            raise
        value, finest = parse_decimal(text, listed)
    if not value:
        raise ValueError(f"{text!r} is not above zero")
    return value, finest


def is_zero(text: str) -> bool:
    """True for a quantity of exactly zero: a row with it carries no volume (docs/exchanges.md 8.25)."""
    if text[:1] != "0":
        return False
    try:
        return not parse_decimal(text, 0)[0]
    except ValueError:
        return False


def step(text: str) -> Decimal:
    """A tick or a lot of a listing; `ValueError` when it is not a plain decimal above zero."""
    return to_decimal(*figure(text, 0, 0))


def frame_error(venue: str, why: object, path: str = "") -> FrameError:
    """The error of a frame of `venue` (`binance spot`): one bounded line that ends with the path of the wrong value."""
    return FrameError(one_line(f"{venue} frame: {why}" + (f" - at `{path}`" if path else "")))


def plain_text(body: bytes) -> str:
    """The text of a reply. Of an HTML page the text that a browser would show, without markup, title and scripts."""
    text = body.decode("utf-8", "replace")
    if _HTML.search(text[:_HTML_SEARCHED]) is None:
        return text
    # One pass over the tags, which no page makes fail or take long, as parsers and backtracking may.
    before, *parts = text.split("<")
    shown, hidden = [before], ""
    for part in parts:
        tag, _, after = part.partition(">")
        name = tag.split(maxsplit=1)[0].lower() if tag.strip() else ""
        if hidden:
            hidden = "" if name == f"/{hidden}" else hidden
        elif name in _NOT_SHOWN:
            hidden = name
        if not hidden:
            shown.append(after)
    return unescape(" ".join(shown))


def refusal(venue: str, what: str, code: int, text: str) -> ExchangeError:
    """The error of a reply in which the exchange refuses `what` (`trades of BTCUSDT`)."""
    reason = f"and says: {quoted(text)}" if one_line(text) else "without a reason"
    return RequestRefused(
        f"{venue} refused {one_line(what, 80)} {reason} (code {code}). Wait if it names a limit; otherwise check the REST base URL"
    )


def unreadable(venue: str, what: str, why: object) -> ExchangeError:
    """The error of a reply that cannot be read as `what` was requested."""
    return ExchangeError(
        f"{venue} sent {one_line(what, 80)} that cannot be read: {one_line(str(why), 160)}. Check that the REST base URL leads to it"
    )


def request_names(listing: Listing, what: str) -> tuple[str, str]:
    """How errors of REST name the market (`binance spot`) and the request (`trades of BTCUSDT`)."""
    exchange, market, symbol = listing.instrument
    return f"{exchange} {market}", f"{what} of {symbol}"


@contextmanager
def reading(venue: str, what: str) -> Generator[None]:
    """Turns every error of reading a reply's bytes in the block into one `ExchangeError`."""
    try:
        yield
    except (*UNREADABLE, ValueError) as error:
        raise unreadable(venue, what, error) from None


_Row = TypeVar("_Row")


def read_rows(
    path: str, rows: Sequence[msgspec.Raw], read: Callable[[int, msgspec.Raw], _Row | None], seq_of: Callable[[msgspec.Raw], int | None]
) -> Page[_Row]:
    """The rows of a reply, in its order; `path` leads to them.

    `read` gets each with its place (from 0), and returns None for one of no use. A row for which it raises is set aside with
    its `seq_of`, so that it costs no other row anything. `ValueError` when all rows are unreadable: then the reply has another form.
    """
    found: list[_Row] = []
    unreadable: list[Unreadable] = []
    for place, raw in enumerate(rows):
        try:
            row = read(place, raw)
        except (*UNREADABLE, ValueError) as error:
            why = str(error).replace("`$", f"`{path}[{place}]") if isinstance(error, msgspec.MsgspecError) else str(error)
            unreadable.append(Unreadable(len(found), seq_of(raw), one_line(why, 160)))
            continue
        if row is not None:
            found.append(row)
    if unreadable and len(unreadable) == len(rows):
        raise ValueError(unreadable[0].why)
    return Page(found, len(rows), unreadable)


class Rows:
    """Makes trades of one listing from the rows of a reply: at the listing's scale, or at a finer one where a row needs it.

    `path` leads to the rows, `price` and `quantity` are their keys in a row: errors end with the path of the wrong value.
    """

    def __init__(self, listing: Listing, path: str, price: str, quantity: str) -> None:
        self._instrument = listing.instrument
        self._scale = listing.scale
        self._path = path
        self._price = price
        self._quantity = quantity

    def trade(
        self, place: int, timestamp: int, seq: int, trade_id: str, price: str, quantity: str, side: TradeType, fills: int = 1
    ) -> Trade:
        """The trade of the row at `place` (from 0), of quantity 0 where the row carries no volume.

        `ValueError` when its price or quantity is no number above 0, or its fills are impossible.
        """
        scale = self._scale
        if is_zero(quantity):
            return Trade(self._instrument, timestamp, seq, trade_id, 0, 0, side, 0, scale)
        if not 0 < fills <= MAX_FILLS:
            raise ValueError(f"an aggregate cannot have {fills} fills - at `{self._path}[{place}].l`")
        value, price_decimals = self._figure(place, self._price, price, scale.price)
        size, quantity_decimals = self._figure(place, self._quantity, quantity, scale.quantity)
        if price_decimals != scale.price or quantity_decimals != scale.quantity:
            scale = Scale(price_decimals, quantity_decimals)
        return Trade(self._instrument, timestamp, seq, trade_id, value, size, side, fills, scale)

    def _figure(self, place: int, key: str, text: str, decimals: int) -> tuple[int, int]:
        try:
            return figure(text, decimals, decimals)
        except ValueError as error:
            raise ValueError(f"{error} - at `{self._path}[{place}].{key}`") from None


class CandlePage(NamedTuple):
    """The minutes to request in one reply: start of the first, last millisecond, and their number."""

    start: int
    last: int
    limit: int

    @classmethod
    def of(cls, window: Window) -> CandlePage:
        """The window widened to whole minutes and cut to what one reply has."""
        start = window.start - window.start % MINUTE
        limit = min(_MAX_CANDLES, max(1, -(-(window.end - start) // MINUTE)))
        return cls(start, start + limit * MINUTE - 1, limit)


def candle(listing: Listing, start: int, volume: str, trade_count: int | None = None, buy_volume: str | None = None) -> Candle:
    """A minute, its volumes at the listing's quantity decimals or finer where either is; `ValueError` when one is no number."""
    whole, decimals = parse_decimal(volume, listing.scale.quantity)
    if buy_volume is None:
        return Candle(start, whole, decimals, trade_count)
    bought, finest = parse_decimal(buy_volume, decimals)
    return Candle(start, rescale(whole, decimals, finest), finest, trade_count, bought)


def read_candle_rows(path: str, rows: Sequence[msgspec.Raw], read: Callable[[msgspec.Raw], Candle]) -> Page[Candle]:
    """The minutes of a reply's rows, oldest first; `path` leads to the rows. Those that cannot be read are set aside, as in `read_rows`."""
    page = read_rows(path, rows, lambda _, raw: read(raw), _start)
    page.sort(key=lambda minute: minute.start)
    starts = [minute.start for minute in page]
    page.unreadable = [row if row.seq is None else row._replace(place=bisect_left(starts, row.seq)) for row in page.unreadable]
    return page


def _start(raw: msgspec.Raw) -> int | None:
    """The minute of a row that cannot be read as a whole; None where even that cannot."""
    try:
        return _read_start(raw).start
    except UNREADABLE:
        return None


def read_records(venue: str, records: Sequence[msgspec.Raw], read: Callable[[msgspec.Raw], Listing | None]) -> Listed:
    """The listings of a reply's records. `read` returns None for a record of no use, and raises for a malformed one, which is skipped:
    it costs its own symbol, and others only where it names none (`Listed.missing`).

    `ExchangeError` when all records are malformed: then the reply cannot be read.
    """
    listings: list[Listing] = []
    named: dict[str, str] = {}
    malformed, nameless, missing, why = 0, 0, "", ""
    for record in records:
        try:
            listing = read(record)
            if listing is not None and not is_symbol(listing.instrument.symbol):
                raise ValueError(f"{listing.instrument.symbol[:MAX_SYMBOL_CHARS]!r} cannot be a symbol")
        except (*UNREADABLE, ValueError) as error:
            why = one_line(str(error), 160)
            if symbol := _symbol_of(record):
                named[symbol] = why
            else:
                nameless += 1
                missing = f"{nameless} of {len(records)} records are malformed, the last one: {why}"
            malformed += 1
            continue
        if listing is not None:
            listings.append(listing)
    if malformed and malformed == len(records):
        raise unreadable(venue, LISTINGS, f"all {malformed} records are malformed, the last one: {why}")
    return Listed(listings, missing, named)


def _symbol_of(record: msgspec.Raw) -> str:
    """The symbol of a record of which nothing else may be readable; empty if it has none."""
    try:
        symbol = _read_symbol(record).symbol
    except UNREADABLE:
        return ""
    return symbol if is_symbol(symbol) else ""
