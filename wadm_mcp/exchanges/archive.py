"""What the formats of the exchanges' daily archives share (docs/exchanges.md 4.4): `ArchiveFormat` is their contract.

Pure: lines in, rows out. Who fetches a file, proves its checksum and unpacks it stands elsewhere.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Final

from wadm_mcp.errors import ArchiveError, printable
from wadm_mcp.exchanges.wire import EARLIEST, LATEST, MOST_FILLS, figure
from wadm_mcp.model import Listing, Scale, Trade, TradeType

_LINE: Final = 80
_REMEMBERED: Final = 20_000
"""Texts of prices, and of quantities, whose figures are kept."""


class Fields:
    """Turns the texts of a line into a trade of one listing, at its scale or, where its own figures are finer, at theirs."""

    def __init__(self, listing: Listing) -> None:
        self._instrument = listing.instrument
        self._scale = listing.scale
        # A day has millions of rows, but few prices and many round quantities.
        self._prices: dict[str, int] = {}
        self._quantities: dict[str, int] = {}

    def trade(self, timestamp: int, seq: int, trade_id: str, price: str, quantity: str, side: TradeType, fills: int = 1) -> Trade:
        """`ValueError` for a figure that is not one, a time outside 2009 to 2100, or fills that no row can have."""
        if not EARLIEST <= timestamp <= LATEST:
            raise ValueError(f"time {timestamp} is no time in milliseconds")
        if not 0 < fills <= MOST_FILLS:
            raise ValueError(f"{fills} fills cannot be")
        value, size, scale = self._prices.get(price), self._quantities.get(quantity), self._scale
        if value is None or size is None:
            value, size, scale = self._read(price, quantity)
        return Trade(self._instrument, timestamp, seq, trade_id, value, size, side, fills, scale)

    def _read(self, price: str, quantity: str) -> tuple[int, int, Scale]:
        scale = self._scale
        value, price_decimals = figure(price, scale.price, scale.price)
        size, quantity_decimals = figure(quantity, scale.quantity, scale.quantity)
        if price_decimals != scale.price or quantity_decimals != scale.quantity:
            return value, size, Scale(price_decimals, quantity_decimals)
        for known, text, figured in ((self._prices, price, value), (self._quantities, quantity, size)):
            if len(known) >= _REMEMBERED:
                known.clear()
            known[text] = figured
        return value, size, scale


def number(text: str) -> int:
    """A whole number above or equal to zero that every store can hold; `ValueError` for any other text."""
    if not text.isdecimal() or len(text) > 18 or not text.isascii():
        raise ValueError(f"{text[:_LINE]!r} is not a whole number")
    return int(text)


def wrong_line(listing: Listing, place: int, line: str, why: object) -> ArchiveError:
    """The error of the line at `place`, counted from 1."""
    return ArchiveError(f"{listing.instrument} archive, line {place:,}: {why} ({printable(line.rstrip(), _LINE)})")


def named(pattern: re.Pattern[str], name: str) -> tuple[str, date] | None:
    """The symbol and the day that a file's name tells by a pattern of two groups, None where it is no such name."""
    found = pattern.fullmatch(name)
    if found is None:
        return None
    try:
        return found[1], date.fromisoformat(found[2])
    except ValueError:
        return None
