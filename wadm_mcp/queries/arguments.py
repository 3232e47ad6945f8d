"""Readers of loosely typed arguments: a tool gives JSON values, an HTTP query gives texts.

Every reader takes what was given, None for nothing, and either returns the exact value or raises a `QueryError` of one line: the
argument, what was given, what is allowed, and a call that would work. Nothing a caller can send ends in any other error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, TypeAlias, TypeVar

from wadm_mcp.errors import QueryError, UnknownSymbol
from wadm_mcp.model import EXCHANGES, HOUR, MARKETS, MINUTE, SECOND, Timeframe
from wadm_mcp.near import nearest
from wadm_mcp.queries.numbers import decimal_text

WINDOWS: Final = {"15m": 15 * MINUTE, "1h": HOUR, "4h": 4 * HOUR, "24h": 24 * HOUR, "7d": 7 * 24 * HOUR}
"""Windows by name, in milliseconds; beside them stands `session`."""

SESSION: Final = "session"
"""The window from 00:00 UTC."""

ALL: Final = "all"
"""The exchange argument that asks for every exchange that follows the symbol."""

_SHOWN: Final = 60
_NAMED: Final = 20
_LONGEST: Final = 100
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST: Final = 946_684_800 * SECOND
_LATEST: Final = 4_102_444_800 * SECOND
_MS_FROM: Final = 100_000_000_000
"""An epoch number from here on is milliseconds: as seconds it would lie beyond the year 5000."""

_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_OFFSET_AFTER_A_SPACE: Final = re.compile(r"(?<=[0-9]) (?=[0-9]{2}:?[0-9]{2}\Z)")
_DECIMALS: Final = 18

_Choice = TypeVar("_Choice", bound=str)

Example: TypeAlias = str | int | Decimal
"""A value in a call that would work."""


@dataclass(frozen=True, slots=True)
class Call:
    """The question being asked: its name, and arguments that would work, in the order in which an example shows them."""

    name: str
    examples: tuple[tuple[str, Example], ...] = ()
    how_to_follow: str = ""
    """How somebody gets a symbol followed that is not."""

    def example(self, **instead: Example | None) -> str:
        """A call that would work; `instead` replaces arguments of the examples, with None it leaves one out."""
        arguments = {**dict(self.examples), **instead}
        shown = ", ".join(f"{name}={_quoted(value)}" for name, value in arguments.items() if value is not None)
        return f"{self.name}({shown})"

    def about(self, symbol: str) -> Call:
        """The same question, its examples about `symbol`."""
        return Call(self.name, tuple({**dict(self.examples), "symbol": symbol}.items()), self.how_to_follow)

    def refuse(self, argument: str, given: object, allowed: str, **instead: Example | None) -> QueryError:
        """The error that says why `given` cannot be used as `argument`."""
        return QueryError(f"{argument}={shown(given)}: {allowed}. Try {self.example(**instead)}")


def shown(given: object) -> str:
    """What was given, in one short line whatever it was: control characters escaped, at most 60 characters of it."""
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


def read_symbol(call: Call, given: object, followed: Iterable[str]) -> str:
    """A followed symbol, upper-cased. `UnknownSymbol` with near matches for any other."""
    known = sorted(set(followed))
    if given is None:
        raise QueryError(f"symbol is needed. Followed: {listed(known)}. Try {call.example()}")
    if not isinstance(given, str):
        raise call.refuse("symbol", given, f"a text is needed. Followed: {listed(known)}")
    symbol = given[: _LONGEST + 1].strip().upper()
    if symbol not in known or len(given) > _LONGEST:
        raise _unknown_symbol(call, given, known)
    return symbol


def _unknown_symbol(call: Call, given: str, known: Sequence[str]) -> UnknownSymbol:
    near = nearest(given[:_SHOWN], known)
    meant = {"symbol": near[0]} if near else {}
    nearby = f" Nearest: {', '.join(near)}." if near else ""
    more = f" {call.how_to_follow}" if call.how_to_follow else ""
    return UnknownSymbol(
        f"symbol {shown(given)} is not followed.{nearby} Followed: {listed(known)}.{more} Try {call.example(**meant)}"
        if known
        else f"symbol {shown(given)} is not followed. Followed: none yet.{more} Try list_markets()"
    )


def read_choice(
    call: Call, argument: str, given: object, allowed: Sequence[_Choice], default: _Choice, *, fold: bool = True, says: str | None = None
) -> _Choice:
    """One of the `allowed` names; with `fold` capitals do not matter. `says` is the name an example shows when `default` would not do."""
    if given is None:
        return default
    if isinstance(given, str) and len(given) <= _LONGEST:
        text = given.strip().lower() if fold else given.strip()
        for name in allowed:
            if name == text:
                return name
    raise call.refuse(argument, given, f"allowed are {', '.join(allowed)}", **{argument: says or default})


def read_exchange(call: Call, given: object) -> str:
    """`binance`, `bybit` or `all`; `all` when nothing is given."""
    return read_choice(call, "exchange", given, (*EXCHANGES, ALL), ALL)


def read_market(call: Call, given: object, followed: Sequence[str]) -> str | None:
    """A followed market, or None when nothing is given."""
    allowed = [market for market in MARKETS if market in followed] or MARKETS
    return None if given is None else read_choice(call, "market", given, allowed, allowed[0])


def read_timeframe(call: Call, given: object, default: Timeframe = Timeframe.M5) -> Timeframe:
    """A bar length. Capitals matter: `1M` is a month elsewhere, never a minute."""
    return read_choice(call, "timeframe", given, tuple(Timeframe), default, fold=False)


def read_whole(call: Call, argument: str, given: object, low: int, high: int, default: int) -> int:
    """A whole number from `low` to `high`, as a number or as text."""
    if given is None:
        return default
    value = _decimal(given)
    if value is None or value != value.to_integral_value() or not low <= value <= high:
        raise call.refuse(argument, given, f"a whole number from {low:,} to {high:,} is needed", **{argument: default})
    return int(value)


def read_amount(call: Call, argument: str, given: object, *, zero: bool, example: Example) -> Decimal | None:
    """An exact amount, as a number or as text, None when nothing is given; with `zero` 0 is one too."""
    if given is None:
        return None
    value = _decimal(given)
    if value is None or value < 0 or (not zero and value == 0):
        kind = "0 or more" if zero else "above 0"
        raise call.refuse(
            argument, given, f"a number {kind} is needed, at most {_DECIMALS} digits on either side of the point", **{argument: example}
        )
    return value


def read_time(call: Call, argument: str, given: object, **instead: Example | None) -> int | None:
    """A point in time in milliseconds, None when nothing is given.

    ISO 8601 with offset or `Z` (without either it is UTC), or epoch seconds or milliseconds as a number or as digits.
    """
    if given is None:
        return None
    timestamp = _time(given)
    if timestamp is None or not _EARLIEST <= timestamp < _LATEST:
        allowed = "ISO 8601 with offset or Z, or epoch seconds or milliseconds, from 2000 to 2099"
        raise call.refuse(argument, given, f"a time is needed: {allowed}", **instead)
    return timestamp


def listed(names: Sequence[str]) -> str:
    """Names for a sentence, cut short where they are many."""
    more = len(names) - _NAMED
    return f"{', '.join(names[:_NAMED])} and {more} more" if more > 0 else ", ".join(names) or "none yet"


def _time(given: object) -> int | None:
    number = _decimal(given)
    if number is not None:
        return int(number if number >= _MS_FROM else number * SECOND)
    if not isinstance(given, str) or len(given) > _LONGEST:
        return None
    try:
        # A plus sign that a query string was not escaped for arrives as a space.
        moment = datetime.fromisoformat(_OFFSET_AFTER_A_SPACE.sub("+", given.strip()) if "T" in given else given.strip())
    except ValueError:
        return None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // timedelta(milliseconds=1)


def _decimal(given: object) -> Decimal | None:
    """The exact decimal of a number or of its text, None for anything that is no plain number of sensible size."""
    if isinstance(given, bool) or not isinstance(given, int | float | str | Decimal):
        return None
    if isinstance(given, int):
        return Decimal(given) if abs(given) < 10**_DECIMALS else None
    if isinstance(given, str) and len(given) > _LONGEST:
        return None
    text = str(given).strip()
    if not _DECIMAL.fullmatch(text):
        return None
    value = Decimal(text)
    digits = value.as_tuple()
    exponent = int(digits.exponent)
    if value and (value.adjusted() >= _DECIMALS or exponent < -_DECIMALS):
        return None
    return value if value else Decimal(0)


def _plain(text: str) -> str:
    cut = text[:_SHOWN]
    safe = "".join(
        letter if letter.isprintable() and letter not in '"\\' else letter.encode("unicode_escape").decode() if letter != '"' else '\\"'
        for letter in cut
    )
    return f"{safe}..." if len(text) > _SHOWN else safe


def _quoted(value: Example) -> str:
    return f'"{value}"' if isinstance(value, str) else decimal_text(value) if isinstance(value, Decimal) else str(value)
