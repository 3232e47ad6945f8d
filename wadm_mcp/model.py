"""The values that all modules share: instruments, trades, timeframes, windows.

Times are integers: milliseconds since the epoch, UTC. Prices and quantities are integers at a `Scale`;
they are parsed exactly from the exchange's text and never pass through float.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Final, NamedTuple, Self

import msgspec

from wadm_mcp.texts import is_visible, one_line

SECOND: Final = 1_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

MARKETS: Final = ("spot", "linear")

MAX_SYMBOL_CHARS: Final = 40
"""Characters of a symbol at most. In UTF-8 they are 160 bytes at most, so that its daily files have valid names on every disk."""
MAX_STATUS_CHARS: Final = 40
"""Longest status of a listing: an exchange's own word, which answers repeat."""
UNLISTED: Final = "UNLISTED"
"""`Listing.status` of an instrument that its exchange does not list, or not any more. It is WADM's own word: no exchange uses it."""

_DECIMAL: Final = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,18}))?(?:[eE]([+-]?[0-9]{1,2}))?", re.ASCII)
_MAX_DECIMALS: Final = 18
_INTEGER_LIMIT: Final = 1 << 63
"""Single prices and quantities stay below this, so that every store can keep one as a 64-bit integer. Sums may exceed it."""


def is_symbol_letter(letter: str) -> bool:
    """True for a character that names an asset: a letter or digit of any script and, beyond ASCII, its marks and signs."""
    return is_visible(letter) and (letter.isalnum() or (not letter.isascii() and unicodedata.category(letter)[0] in "MS"))


def is_symbol(text: str) -> bool:
    """True for a name that a symbol may have: letters and digits of any script (`币安人生USDT`), `-` and `_`, 1 to 40 characters.

    It has no blank, control character, dot, slash or colon, so it can stand in a path, a URI and the name of an instrument. An exchange's
    listing with another name is skipped as malformed.
    """
    return 0 < len(text) <= MAX_SYMBOL_CHARS and text[0] not in "-_" and all(one in "-_" or is_symbol_letter(one) for one in text)


class TradeType(StrEnum):
    """The aggressor's (taker's) side."""

    BUY = "BUY"
    SELL = "SELL"


class Instrument(NamedTuple):
    """One symbol of one market of one exchange, written `binance:spot:BTCUSDT`."""

    exchange: str
    market: str
    symbol: str

    def __str__(self) -> str:
        return f"{self.exchange}:{self.market}:{self.symbol}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `binance:spot:BTCUSDT`. `ValueError` for a text of another form."""
        exchange, market, symbol = text.split(":")
        return cls(exchange, market, symbol)


class Scale(NamedTuple):
    """The decimals of integer prices and quantities: a price of 6183763 at scale 2 is 61837.63."""

    price: int
    quantity: int

    def finest(self, other: Scale) -> Scale:
        """The scale at which values of both can be written without rounding."""
        return Scale(max(self.price, other.price), max(self.quantity, other.quantity))


class Listing(msgspec.Struct, frozen=True):
    """How an exchange lists an instrument today: its price step (tick), quantity step (lot) and status.

    `trading` is false while it does not trade, and then it sends nothing. `status` is the exchange's own word for that (`TRADING`, `BREAK`,
    `Delivering`), empty where it is not known: an older WADM did not store it. Tick and lot of a provisional listing are None: the exchange
    has not said yet whether it lists the instrument.
    """

    instrument: Instrument
    tick: Decimal | None
    lot: Decimal | None
    trading: bool = True
    status: str = ""

    @classmethod
    def none(cls, instrument: Instrument) -> Self:
        """The placeholder for an instrument that its exchange does not list, so that all processes on a store know it."""
        return cls(instrument, Decimal(0), Decimal(0), False, UNLISTED)

    def unlisted(self) -> Self:
        """The same instrument once its exchange does not list it any more: its steps stay, because recorded data has them."""
        return msgspec.structs.replace(self, trading=False, status=UNLISTED)

    @classmethod
    def unconfirmed(cls, instrument: Instrument) -> Self:
        """The provisional listing of an instrument, with which it is recorded until its exchange returns its symbol list."""
        return cls(instrument, None, None)

    @property
    def provisional(self) -> bool:
        """Whether the exchange has not confirmed yet that it lists the instrument. Its tick is unknown then."""
        return self.tick is None

    @property
    def listed(self) -> bool:
        """Whether the exchange lists it, or listed it while WADM followed it; a provisional listing counts as listed."""
        return self.tick is None or self.tick > 0

    @property
    def scale(self) -> Scale:
        """The coarsest scale that writes the tick and the lot exactly; whole numbers, which trades widen, while they are unknown."""
        return Scale(decimals_of(self.tick or Decimal(0)), decimals_of(self.lot or Decimal(0)))

    def tick_at(self, decimals: int) -> int:
        """The tick as an integer at so many decimals. While it is unknown it is 1: the finest step that prices at this scale have."""
        return 1 if self.tick is None else int(self.tick.scaleb(decimals))

    def stored_steps(self) -> tuple[str, str]:
        """Tick and lot as a store keeps them. Unknown ones are 0, as of an instrument that is not listed, but it counts as trading.

        Versions that do not know provisional listings then ignore the instrument.
        """
        return str(self.tick or 0), str(self.lot or 0)

    @classmethod
    def from_store(cls, instrument: Instrument, tick: str, lot: str, trading: bool, status: str = "") -> Self:
        """A listing from what `stored_steps` returned; `ValueError` where tick or lot is no decimal."""
        try:
            listing = cls(instrument, Decimal(tick), Decimal(lot), trading, one_line(status, MAX_STATUS_CHARS))
        except InvalidOperation:
            raise ValueError(f"{tick!r} and {lot!r} are not decimals") from None
        return cls.unconfirmed(instrument) if trading and not listing.tick else listing


class Trade(msgspec.Struct, frozen=True, gc=False):
    """One public execution, or (linear Binance) one aggregate of `fills` executions.

    `price` and `quantity` are integers at `scale`; `timestamp` is the exchange's match time in milliseconds. A row with `quantity` 0
    carries no volume: its id counts as covered, and it is part of no figure (docs/exchanges.md 8.25).
    `seq` is the exchange's own order within the instrument: the trade's id on Binance, the cross sequence on Bybit.
    """

    instrument: Instrument
    timestamp: int
    seq: int
    trade_id: str
    price: int
    quantity: int
    trade_type: TradeType
    fills: int
    scale: Scale

    @property
    def order(self) -> tuple[int, int, int, str]:
        """Sort key of trades within an instrument: time, seq, then price in the aggressor's direction, then trade_id."""
        return (self.timestamp, self.seq, self.price if self.trade_type is TradeType.BUY else -self.price, self.trade_id)


class Timeframe(StrEnum):
    """A bar length. Bars are aligned to UTC, half-open `[start, end)`."""

    M1 = "1m"
    M5 = "5m"
    M15 = "15m"
    M30 = "30m"
    H1 = "1h"
    H4 = "4h"
    D1 = "1d"

    @property
    def ms(self) -> int:
        """Length in milliseconds."""
        return _LENGTHS[self]

    def floor(self, timestamp: int) -> int:
        """Start of the bar that contains `timestamp`."""
        return timestamp - timestamp % _LENGTHS[self]


_LENGTHS: Final = {
    Timeframe.M1: MINUTE,
    Timeframe.M5: 5 * MINUTE,
    Timeframe.M15: 15 * MINUTE,
    Timeframe.M30: 30 * MINUTE,
    Timeframe.H1: HOUR,
    Timeframe.H4: 4 * HOUR,
    Timeframe.D1: DAY,
}


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of market time, half-open `[start, end)`, in milliseconds."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if self.start > self.end:
            raise ValueError(f"a window's start {self.start} is after its end {self.end}")

    @property
    def length(self) -> int:
        """Milliseconds from start to end."""
        return self.end - self.start

    def __contains__(self, timestamp: int) -> bool:
        return self.start <= timestamp < self.end


class Retention(NamedTuple):
    """How long each kind of data is kept, in milliseconds."""

    trades: int
    minutes: int
    """Footprints, profiles and order flow of timeframes below one hour."""
    hours: int
    """The same from one hour up, and coverage."""


def decimals_of(value: Decimal) -> int:
    """Decimals needed to write `value` exactly, trailing zeros left out."""
    exponent = value.normalize().as_tuple().exponent
    return max(0, -int(exponent))


def parse_decimal(text: str, decimals: int) -> tuple[int, int]:
    """An exchange's decimal text as `(integer, decimals)`, exact.

    The result has `decimals` decimals, or more where the text is finer: it is rescaled, never rounded. An exponent (`1.25e-05`) is as exact
    as the digits. `ValueError` for anything but digits with one point and an exponent, more than 18 decimals, or a value that does not fit
    64 bits.
    """
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a plain decimal number")
    whole, fraction, exponent = match.groups(default="")
    if exponent:
        whole, fraction = _point_moved(whole, fraction, int(exponent))
    if len(fraction) > decimals:
        fraction = fraction.rstrip("0")
        if len(fraction) > _MAX_DECIMALS:
            raise ValueError(f"{text} has more than {_MAX_DECIMALS} decimals")
        decimals = max(decimals, len(fraction))
    value = int(whole + fraction.ljust(decimals, "0"))
    if value >= _INTEGER_LIMIT:
        raise ValueError(f"{text} at {decimals} decimals does not fit 64 bits")
    return value, decimals


def _point_moved(whole: str, fraction: str, places: int) -> tuple[str, str]:
    """The digits before and after the decimal point, once it is moved to the right by so many places (to the left where negative)."""
    digits, point = whole + fraction, len(whole) + places
    if point <= 0:
        return "0", "0" * -point + digits
    digits = digits.ljust(point, "0")
    return digits[:point], digits[point:]


def rescale(value: int, decimals: int, finer: int) -> int:
    """An integer at `decimals` as an integer at `finer` decimals; `finer` must not be smaller."""
    return value if finer == decimals else value * 10 ** (finer - decimals)


def to_decimal(value: int, decimals: int) -> Decimal:
    """The exact decimal of an integer at a scale."""
    return Decimal(value).scaleb(-decimals) if abs(value) < 10**28 else Decimal(f"{value}e-{decimals}")


def at_decimals(value: Decimal, decimals: int) -> int:
    """The exact integer of a decimal at a scale. `ValueError` where the scale has too few decimals."""
    sign, digits, exponent = value.as_tuple()
    mantissa, shift = int("".join(map(str, digits))), int(exponent) + decimals
    whole, rest = (mantissa * 10**shift, 0) if shift >= 0 else divmod(mantissa, 10**-shift)
    if rest:
        raise ValueError(f"{value} cannot be written with {decimals} decimals")
    return -whole if sign else whole
