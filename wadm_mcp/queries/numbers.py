"""Exact figures as JSON values: numbers from exact decimals, times as ISO 8601."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, TypeAlias

from wadm_mcp.model import SECOND, at_decimals

Number: TypeAlias = int | float | str

_EXACT: Final = 10**15
"""Decimals of up to 15 significant digits survive the conversion to a double and back."""


def number(value: int, decimals: int) -> Number:
    """An integer with a number of decimals as a JSON value that reads back as exactly that decimal.

    Whole values become an int, others the float whose shortest text is the decimal. With more than 15 significant digits, which a double
    cannot represent exactly, the result is the decimal as text.
    """
    divisor = 10**decimals
    if -_EXACT < value < _EXACT:
        return value // divisor if value % divisor == 0 else value / divisor
    while decimals and value % 10 == 0:
        value, decimals, divisor = value // 10, decimals - 1, divisor // 10
    if -_EXACT < value < _EXACT:
        return value if not decimals else value / divisor
    digits = str(abs(value)).rjust(decimals + 1, "0")
    text = f"{digits[:-decimals]}.{digits[-decimals:]}" if decimals else digits
    return f"-{text}" if value < 0 else text


def optional_number(value: int | None, decimals: int) -> Number | None:
    """As `number`; None stays None (null in JSON)."""
    return None if value is None else number(value, decimals)


def decimal_number(value: Decimal | None) -> Number | None:
    """A decimal as `number` returns it; None stays None."""
    if value is None:
        return None
    decimals = places(value)
    return number(at_decimals(value, decimals), decimals)


def places(value: Decimal) -> int:
    """Number of decimals that a value is written with, trailing zeros included."""
    return max(0, -int(value.as_tuple().exponent))


def decimal_text(value: Decimal) -> str:
    """A decimal in plain digits without trailing zeros, for sentences."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def iso(timestamp: int) -> str:
    """A time (ms) as ISO 8601 with `Z`; with milliseconds only if it is not a whole second."""
    return iso_ms(timestamp) if timestamp % SECOND else f"{_seconds(timestamp)}Z"


def iso_minute(timestamp: int) -> str:
    """A time (ms) on a whole minute as the shortest ISO 8601 with `Z`."""
    return f"{_seconds(timestamp)[:16]}Z"


def iso_ms(timestamp: int) -> str:
    """A time (ms) as ISO 8601 with `Z`, always with milliseconds."""
    return f"{_seconds(timestamp)}.{timestamp % SECOND:03}Z"


def _seconds(timestamp: int) -> str:
    return datetime.fromtimestamp(timestamp // SECOND, UTC).isoformat(timespec="seconds")[:19]
