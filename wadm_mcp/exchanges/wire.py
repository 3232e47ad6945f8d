"""What the wires of all venues share: the bounds of lawful values, exact figures at a widening scale, errors in one line."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Final, NamedTuple

import msgspec

from wadm_mcp.errors import ExchangeError, FrameError
from wadm_mcp.exchanges.exchange import Candle
from wadm_mcp.model import MINUTE, Instrument, Listing, Scale, Trade, TradeType, Window, parse_decimal, rescale, to_decimal

EARLIEST: Final = 1_230_768_000_000
LATEST: Final = 4_102_444_800_000
"""Bounds of a time in milliseconds. Before 2009 or after 2100 it is another unit, or no time at all."""

Millis = Annotated[int, msgspec.Meta(ge=EARLIEST, le=LATEST)]
"""A time in milliseconds."""

Minute = Annotated[int, msgspec.Meta(ge=EARLIEST, le=LATEST, multiple_of=MINUTE)]
"""The start of a minute in milliseconds."""

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""An id or a sequence number that every store can hold."""

Code = Annotated[int, msgspec.Meta(ge=-(1 << 31), le=(1 << 31) - 1)]
"""The number of an exchange's error."""

TradeId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
"""An id that is no number, or a number too long to be held as one."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[^\s:/]+$")]
"""A symbol as a listing states it: free of what separates an instrument's parts."""

MOST_FILLS: Final = (1 << 31) - 1
"""Fills of one row: documents keep them in 32 bits."""

_MINUTES: Final = 1_000
"""Minutes that one reply of either exchange holds."""

LISTED: Final = "a list of symbols"
"""What errors call a reply to a request for listings."""

UNREADABLE: Final = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""What decoding bytes of a stranger may raise."""


class SymbolScale(NamedTuple):
    """What a decoder remembers of an instrument: the scale now, and the one its listing gives."""

    instrument: Instrument
    scale: Scale
    listed: Scale

    @classmethod
    def by_symbol(cls, listings: Sequence[Listing]) -> dict[str, SymbolScale]:
        return {listing.instrument.symbol: cls(listing.instrument, listing.scale, listing.scale) for listing in listings}


@lru_cache(maxsize=16_384)
def figure(text: str, decimals: int, listed: int) -> tuple[int, int]:
    """A price or a quantity above zero as `(integer, decimals)`, exact; `ValueError` for any other text.

    A value finer than `decimals` widens them. One that no longer fits 64 bits there is read at the `listed` decimals again: a single
    print of absurd fineness must not put every later trade out of reach.
    """
    # Cached: on a real tape three figures of four were seen shortly before (price levels and round lots repeat).
    try:
        value, finest = parse_decimal(text, decimals)
    except ValueError:
        if decimals == listed:
            raise
        value, finest = parse_decimal(text, listed)
    if not value:
        raise ValueError(f"{text!r} is not above zero")
    return value, finest


def step(text: str) -> Decimal:
    """A tick or a lot of a listing; `ValueError` when it is not a plain decimal above zero."""
    return to_decimal(*figure(text, 0, 0))


def wrong(who: str, why: object, path: str = "") -> FrameError:
    """The error of a frame of `who` (`binance spot`): one bounded line that ends in the path of the wrong value."""
    return FrameError(one_line(f"{who} frame: {why}" + (f" - at `{path}`" if path else "")))


def one_line(text: str, most: int = 240) -> str:
    """A stranger's text in one bounded line of printable characters."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 4 * most]).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def refused(who: str, what: str, code: int, text: str) -> ExchangeError:
    """The error of a reply in which the exchange says no to `what` (`trades of BTCUSDT`)."""
    said = one_line(text, 160) or "no reason given"
    return ExchangeError(
        f"{who} refused {one_line(what, 80)}: {said} (code {code}). Wait if it speaks of limits; otherwise check the REST base URL"
    )


def unreadable(who: str, what: str, why: object) -> ExchangeError:
    """The error of a reply that is not `what` was asked for."""
    return ExchangeError(
        f"{who} sent {one_line(what, 80)} that cannot be read: {one_line(str(why), 160)}. Check that the REST base URL leads to it"
    )


def named(listing: Listing, what: str) -> tuple[str, str]:
    """What errors of REST call the market (`binance spot`), and what it was asked for (`trades of BTCUSDT`)."""
    exchange, market, symbol = listing.instrument
    return f"{exchange} {market}", f"{what} of {symbol}"


@contextmanager
def reading(who: str, what: str) -> Generator[None]:
    """Whatever is wrong with the bytes that the block reads is one `ExchangeError`."""
    try:
        yield
    except (*UNREADABLE, ValueError) as error:
        raise unreadable(who, what, error) from None


class Rows:
    """Rows of a reply made into trades of one listing, each at the listing's scale or, where its own figures are finer, at theirs.

    `path` leads to the rows, `price` and `quantity` are the keys of the two: errors end in the place of what is wrong.
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
        """The trade of the row at `place`; `ValueError` when its price or quantity is none."""
        scale = self._scale
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


class Minutes(NamedTuple):
    """The minutes of a window that one reply holds: the first start, the last millisecond, and how many they are."""

    start: int
    last: int
    limit: int

    @classmethod
    def of(cls, window: Window) -> Minutes:
        """The window widened to whole minutes, and cut after as many as a reply of either exchange holds."""
        start = window.start - window.start % MINUTE
        limit = min(_MINUTES, max(1, -(-(window.end - start) // MINUTE)))
        return cls(start, start + limit * MINUTE - 1, limit)


def candle(listing: Listing, start: int, volume: str, trade_count: int | None = None, buy_volume: str | None = None) -> Candle:
    """A minute with its volumes at the listing's quantity decimals, or finer where either is; `ValueError` when one is no number."""
    whole, decimals = parse_decimal(volume, listing.scale.quantity)
    if buy_volume is None:
        return Candle(start, whole, decimals, trade_count)
    bought, finest = parse_decimal(buy_volume, decimals)
    return Candle(start, rescale(whole, decimals, finest), finest, trade_count, bought)


def read_records(who: str, records: Sequence[msgspec.Raw], read: Callable[[msgspec.Raw], Listing | None]) -> list[Listing]:
    """The listings of a reply's records. `read` gives None for a record of no interest, and raises for a malformed one, which is skipped.

    `ExchangeError` when every single record is malformed: then it is the reply that cannot be read.
    """
    listings: list[Listing] = []
    malformed = 0
    why: Exception | None = None
    for record in records:
        try:
            listing = read(record)
        except (*UNREADABLE, ValueError) as error:
            malformed, why = malformed + 1, error
            continue
        if listing is not None:
            listings.append(listing)
    if malformed and malformed == len(records):
        raise unreadable(who, LISTED, f"none of its {malformed} records is whole, the last one: {why}")
    return listings
