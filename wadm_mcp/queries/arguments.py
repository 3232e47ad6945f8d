"""Readers of loosely typed arguments: tools send JSON values, HTTP queries send text.

Every reader takes the given value, None if there is none, and either returns the exact value or raises a `QueryError` of one line: the
argument, the given value, what is allowed, and a call that works. No input causes any other error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

from wadm_mcp.errors import QueryError, UnknownSymbol
from wadm_mcp.exchanges.names import MARKET_WORDS, InstrumentName, never, read_name
from wadm_mcp.exchanges.registry import exchange_names
from wadm_mcp.model import DAY, HOUR, MARKETS, MINUTE, SECOND, Instrument, Timeframe
from wadm_mcp.queries.numbers import decimal_text
from wadm_mcp.suggest import nearest
from wadm_mcp.texts import is_visible

WINDOWS: Final = {"15m": 15 * MINUTE, "1h": HOUR, "4h": 4 * HOUR, "24h": 24 * HOUR, "7d": 7 * 24 * HOUR}
"""Length of the named windows in milliseconds, except `session`."""

SESSION: Final = "session"
"""The window that begins at 00:00 UTC."""

ALL: Final = "all"
"""The value of `exchange` that means every exchange on which the symbol is followed."""

MAX_TEXT_CHARS: Final = 1_000
"""Characters of one argument. Readers of shorter ones refuse what is longer than they need."""
_MAX_GIVEN_CHARS: Final = 131_072
"""Characters of all arguments of a request."""
_VALUE_CHARS: Final = 8
"""Characters that a value counts beside its text."""
_SHOWN_CHARS: Final = 60
_LISTED_NAMES: Final = 20
_MAX_CHARS: Final = 100
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MIN_TIME_MS: Final = 946_684_800 * SECOND
_MAX_TIME_MS: Final = 4_102_444_800 * SECOND
_MS_FROM: Final = 100_000_000_000
"""Epoch numbers from here on are milliseconds: as seconds they would be after the year 5000."""

_LENGTH: Final = re.compile(r"([0-9]{1,5})\s*(m|mins?|minutes?|h|hrs?|hours?|d|days?|w|weeks?)", re.ASCII | re.IGNORECASE)
_UNITS: Final = {"m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}
_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_OFFSET_AFTER_A_SPACE: Final = re.compile(r"(?<=[0-9]) (?=[0-9]{2}:?[0-9]{2}\Z)")
_MAX_DIGITS: Final = 18

_Choice = TypeVar("_Choice", bound=str)

Example: TypeAlias = str | int | Decimal
"""An argument's value in an example call."""


@dataclass(frozen=True, slots=True)
class Call:
    """A question, for error messages: its name, and arguments that work, in the order of the example."""

    name: str
    examples: tuple[tuple[str, Example], ...] = ()
    how_to_follow: str = ""
    """Sentence that explains how to follow a symbol."""
    fixed: bool = False
    """Whether it is another question than the refused one, so that arguments of that one are not for it."""

    def example(self, **instead: Example | None) -> str:
        """A call that works, as text. `instead` replaces or adds arguments; None leaves one out."""
        arguments = {**dict(self.examples), **({} if self.fixed else instead)}
        listing = ", ".join(f"{name}={_quoted(value)}" for name, value in arguments.items() if value is not None)
        return f"{self.name}({listing})"

    def about(self, symbol: str, **place: str) -> Call:
        """The same question with `symbol`, and `place` (the exchange, the market), in its examples."""
        if self.fixed:
            return self
        others = {name: value for name, value in self.examples if name != "symbol"}
        return Call(self.name, tuple({"symbol": symbol, **place, **others}.items()), self.how_to_follow)

    def refuse(self, argument: str, given: object, allowed: str, **instead: Example | None) -> QueryError:
        """The error for a value that cannot be used: the argument, the value, what is allowed, and an example with `instead`."""
        return QueryError(f"{argument}={shown(given)}: {allowed}. Try {self.example(**instead)}")


LIST_MARKETS: Final = Call("list_markets", fixed=True)
"""The call that always works, where no other one fits what was asked."""


def shown(given: object) -> str:
    """The given value for an error message: one line, at most 60 characters of it, with control characters escaped."""
    if given is None or isinstance(given, bool):
        return {None: "null", True: "true", False: "false"}[given]
    if isinstance(given, str):
        return f'"{_plain(given)}"'
    if isinstance(given, int):
        return str(given) if given.bit_length() < 190 else f"(an integer of {given.bit_length()} bits)"
    if isinstance(given, float | Decimal):
        return _plain(str(given))
    if isinstance(given, dict):
        return "(an object)"
    return "(a list)" if isinstance(given, list | tuple) else f"(a {_plain(type(given).__name__)})"


def too_large(given: Mapping[str, Any], *, text: bool = True) -> str | None:
    """What is too large in given arguments, as one line for an error: all of them together, or with `text` one text. None if nothing is.

    It is the one place that bounds what a client writes, asked before any argument is read. `_meta` is not the caller's text.
    """
    left = _MAX_GIVEN_CHARS
    found: list[tuple[str, Any, bool]] = [("the arguments", given, text)]
    while found:
        name, value, bounded = found.pop()
        if isinstance(value, str):
            left -= len(value)
            if bounded and len(value) > MAX_TEXT_CHARS:
                return f"{_plain(name)}={shown(value)} has {len(value):,} characters; at most {MAX_TEXT_CHARS:,} are allowed"
        elif isinstance(value, Mapping):
            left -= sum(_VALUE_CHARS + len(key) for key in value)
            for key in value if left >= 0 else ():
                if bounded and len(key) > MAX_TEXT_CHARS:
                    return f"{shown(key)} has {len(key):,} characters; the name of an argument has at most {MAX_TEXT_CHARS:,}"
                found.append((key, value[key], key == "progressToken" or (bounded and key != "_meta")))
        elif isinstance(value, list | tuple):
            left -= _VALUE_CHARS * len(value)
            found.extend((name, each, bounded) for each in (value if left >= 0 else ()))
        if left < 0:
            return f"the arguments are too large: together they have at most {_MAX_GIVEN_CHARS:,} characters"
    return None


def read_symbol(call: Call, given: object, followed: Sequence[str], is_symbol: Callable[[str], bool] = never) -> InstrumentName:
    """What the argument `symbol` names, in any form that `exchanges/names.py` knows. `followed` are the symbols that an error lists."""
    if given is None:
        raise QueryError(f"symbol is missing. Followed: {listed(followed)}. Try {call.example()}")
    if not isinstance(given, str):
        raise call.refuse("symbol", given, f'must be a string such as "BTCUSDT". Followed: {listed(followed)}')
    return read_name(given, is_symbol)


class Place(NamedTuple):
    """An exchange and a market. None means every exchange, and the default market."""

    exchange: str | None = None
    market: str | None = None

    def contradiction(self, named: InstrumentName) -> str:
        """Which argument says something else than the name of the instrument, as a clause; empty if none does."""
        for argument, given in self._asdict().items():
            said = getattr(named, argument)
            if None not in (said, given) and said != given:
                return f'{argument}="{given}": the symbol names {said}'
        return ""

    def has(self, instrument: Instrument) -> bool:
        """Whether an instrument is at this place; at None is every one."""
        return self.exchange in (None, instrument.exchange) and self.market in (None, instrument.market)

    def completed_by(self, named: InstrumentName) -> Place:
        """This place, and what the name of the instrument says beyond it."""
        return Place(self.exchange or named.exchange, self.market or named.market)


def read_place(call: Call, exchange: object, market: object, followed: Sequence[str]) -> Place:
    """The arguments `exchange` and `market`. An error suggests the first of the `followed` markets."""
    named = read_exchange(call, exchange)
    return Place(None if named == ALL else named, read_market(call, market, followed))


def unknown_symbol(call: Call, given: object, named: InstrumentName, followed: Sequence[str]) -> UnknownSymbol:
    """The error for a symbol that is not followed. The example of `call` is the call to try where one that is followed has a near name."""
    near = nearest(named.symbol, followed)
    nearby, example = (f" Nearest: {', '.join(near)}.", call.example()) if near else ("", LIST_MARKETS.example())
    why = f": {named.problem}" if named.problem else ""
    more = f" {call.how_to_follow}" if call.how_to_follow else ""
    return UnknownSymbol(f"symbol {shown(given)} is not followed{why}.{nearby} Followed: {listed(followed)}.{more} Try {example}")


def read_choice(
    call: Call, argument: str, given: object, allowed: Sequence[_Choice], default: _Choice, *, fold: bool = True, says: str | None = None
) -> _Choice:
    """One of the `allowed` names; with `fold` in any case. `says` is the name in the example of an error, instead of `default`."""
    if given is None:
        return default
    if isinstance(given, str) and len(given) <= _MAX_CHARS:
        text = given.strip().lower() if fold else given.strip()
        for name in allowed:
            if name == text:
                return name
    raise call.refuse(argument, given, f"allowed are {', '.join(allowed)}", **{argument: says or default})


Detail: TypeAlias = Literal["brief", "standard", "full"]
"""How much an answer contains."""

DETAILS: Final[tuple[Detail, ...]] = ("brief", "standard", "full")


def read_detail(call: Call, given: object) -> Detail:
    """How much the answer contains; `standard` if nothing is given."""
    return read_choice(call, "detail", given, DETAILS, DETAILS[1])


def read_exchange(call: Call, given: object) -> str:
    """The name of an exchange, or `all`; `all` if nothing is given."""
    return read_choice(call, "exchange", given, (*exchange_names(), ALL), ALL)


def read_market(call: Call, given: object, followed: Sequence[str]) -> str | None:
    """A followed market, or None if nothing is given. `perp` and similar names mean `linear`. An error suggests the first one followed."""
    allowed = [market for market in MARKETS if market in followed] or MARKETS
    works = followed[0] if followed else allowed[0]
    if given is None:
        return None
    meant = MARKET_WORDS.get(given.strip().lower()) if isinstance(given, str) and len(given) <= _MAX_CHARS else None
    if meant is not None and meant not in allowed:
        here = f"the market {meant} is not followed here; followed: {', '.join(allowed)}"
        raise call.refuse("market", given, here, market=works)
    return read_choice(call, "market", meant or given, allowed, allowed[0], says=works)


def read_timeframe(call: Call, given: object, default: Timeframe = Timeframe.M5) -> Timeframe:
    """A bar length, also written as `4H`, `60m` or `15 min`. `1M` is refused because it may mean a month."""
    length = read_length(given)
    for timeframe in Timeframe:
        if timeframe.ms == length:
            return timeframe
    return read_choice(call, "timeframe", given, tuple(Timeframe), default, fold=False)


def read_window(call: Call, given: object, default: str) -> str:
    """The name of a window, also written as `4H`, `1d` or `1 week`."""
    length = read_length(given)
    name = next((name for name, ms in WINDOWS.items() if ms == length), given)
    return read_choice(call, "window", name, (*WINDOWS, SESSION), default)


def read_length(given: object) -> int | None:
    """A length of time, given as a number and a unit, in milliseconds. None for other values and for `1M`, which may mean a month."""
    found = _LENGTH.fullmatch(given.strip()) if isinstance(given, str) and len(given) <= _MAX_CHARS else None
    if found is None or found[0] == "1M":
        return None
    return int(found[1]) * _UNITS[found[2][0].lower()]


def read_whole(call: Call, argument: str, given: object, low: int, high: int, default: int) -> int:
    """A whole number from `low` to `high`, as a number or as text."""
    if given is None:
        return default
    value = _decimal(given)
    if value is None or value != value.to_integral_value() or not low <= value <= high:
        raise call.refuse(argument, given, f"a whole number from {low:,} to {high:,} is needed", **{argument: default})
    return int(value)


def read_amount(
    call: Call, argument: str, given: object, *, zero: bool, example: Example | None, **instead: Example | None
) -> Decimal | None:
    """An exact amount above 0, as a number or as text; None if nothing is given. With `zero`, 0 is allowed too."""
    if given is None:
        return None
    value = _decimal(given)
    if value is None or value < 0 or (not zero and value == 0):
        kind = "0 or more" if zero else "above 0"
        allowed = f"a number {kind} is needed, at most {_MAX_DIGITS} digits on either side of the point"
        raise call.refuse(argument, given, allowed, **{argument: example}, **instead)
    return value


def read_signed(call: Call, argument: str, given: object, *, example: Example | None, **instead: Example | None) -> Decimal:
    """An exact amount other than 0."""
    value = _decimal(given)
    if not value:
        allowed = f"a number other than 0 is needed, at most {_MAX_DIGITS} digits on either side of the point"
        raise call.refuse(argument, given, allowed, **{argument: example}, **instead)
    return value


def read_time(call: Call, argument: str, given: object, **instead: Example | None) -> int | None:
    """A point in time in milliseconds, None if nothing is given.

    Accepts ISO 8601 with an offset or `Z` (without either it is UTC), and epoch seconds or milliseconds as a number or as digits.
    """
    if given is None:
        return None
    timestamp = _time(given)
    if timestamp is None or not _MIN_TIME_MS <= timestamp < _MAX_TIME_MS:
        allowed = "ISO 8601 (UTC unless it has an offset) and epoch seconds or milliseconds"
        raise call.refuse(argument, given, f"not a time from 2000 to 2099; allowed are {allowed}", **instead)
    return timestamp


def listed(names: Sequence[str]) -> str:
    """Names for a sentence; of many names the first, and the number of the others."""
    more = len(names) - _LISTED_NAMES
    return f"{', '.join(names[:_LISTED_NAMES])} and {more} more" if more > 0 else ", ".join(names) or "none yet"


def _time(given: object) -> int | None:
    number = _decimal(given)
    if number is not None:
        return int(number if number >= _MS_FROM else number * SECOND)
    if not isinstance(given, str) or len(given) > _MAX_CHARS:
        return None
    try:
        # A plus sign that was not escaped in a query string arrives as a space.
        moment = datetime.fromisoformat(_OFFSET_AFTER_A_SPACE.sub("+", given.strip()) if "T" in given else given.strip())
    except ValueError:
        return None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // timedelta(milliseconds=1)


def _decimal(given: object) -> Decimal | None:
    """The exact decimal of a number or its text. None for values that are not plain numbers or are too large or too fine."""
    if isinstance(given, bool) or not isinstance(given, int | float | str | Decimal):
        return None
    if isinstance(given, int):
        return Decimal(given) if abs(given) < 10**_MAX_DIGITS else None
    if isinstance(given, str) and len(given) > _MAX_CHARS:
        return None
    text = str(given).strip()
    if not _DECIMAL.fullmatch(text):
        return None
    value = Decimal(text)
    digits = value.as_tuple()
    exponent = int(digits.exponent)
    if value and (value.adjusted() >= _MAX_DIGITS or exponent < -_MAX_DIGITS):
        return None
    return value if value else Decimal(0)


def _plain(text: str) -> str:
    cut = text[:_SHOWN_CHARS]
    safe = "".join(
        letter if is_visible(letter) and letter not in '"\\' else letter.encode("unicode_escape").decode() if letter != '"' else '\\"'
        for letter in cut
    )
    return f"{safe}..." if len(text) > _SHOWN_CHARS else safe


def _quoted(value: Example) -> str:
    return f'"{value}"' if isinstance(value, str) else decimal_text(value) if isinstance(value, Decimal) else str(value)
