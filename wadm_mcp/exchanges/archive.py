"""What the formats of daily archive files share (docs/exchanges.md 4.4): their contract is `ArchiveFormat`.

Pure: lines in, rows out. Downloading, checksums and unpacking are in `collection/backfill`.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Final

from wadm_mcp.errors import ArchiveError, printable
from wadm_mcp.exchanges.wire import MAX_FILLS, MAX_TIME, MIN_TIME, figure
from wadm_mcp.model import Listing, Scale, Trade, TradeType

_SHOWN_CHARS: Final = 80
_CACHED_TEXTS: Final = 20_000
"""Texts of prices, and of quantities, whose parsed values are kept."""


class Fields:
    """Makes trades of one listing from the texts of a line: at the listing's scale, or at a finer one where the texts need it."""

    def __init__(self, listing: Listing) -> None:
        self._instrument = listing.instrument
        self._scale = listing.scale
        # A day has millions of rows, but few prices and many round quantities.
        self._prices: dict[str, int] = {}
        self._quantities: dict[str, int] = {}

    def trade(self, timestamp: int, seq: int, trade_id: str, price: str, quantity: str, side: TradeType, fills: int = 1) -> Trade:
        """The trade. `ValueError` for a price or quantity that is no number above 0, a time outside 2009 to 2100, or impossible fills."""
        if not MIN_TIME <= timestamp <= MAX_TIME:
            raise ValueError(f"time {timestamp} is not a time in milliseconds from 2009 to 2100")
        if not 0 < fills <= MAX_FILLS:
            raise ValueError(f"{fills} fills are impossible, 1 or more are needed")
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
        for cache, text, parsed in ((self._prices, price, value), (self._quantities, quantity, size)):
            if len(cache) >= _CACHED_TEXTS:
                cache.clear()
            cache[text] = parsed
        return value, size, scale


def number(text: str) -> int:
    """A whole number of at most 18 digits, which every store has room for; `ValueError` for any other text."""
    if not text.isdecimal() or len(text) > 18 or not text.isascii():
        raise ValueError(f"{text[:_SHOWN_CHARS]!r} is not a whole number")
    return int(text)


def line_error(listing: Listing, place: int, line: str, why: object) -> ArchiveError:
    """The error of the line at `place`, counted from 1."""
    return ArchiveError(f"{listing.instrument} archive, line {place:,}: {why} ({printable(line.rstrip(), _SHOWN_CHARS)})")


def match_name(pattern: re.Pattern[str], name: str) -> tuple[str, date] | None:
    """Symbol and day in a file's name, by a pattern with these two groups; None where the name does not match."""
    found = pattern.fullmatch(name)
    if found is None:
        return None
    try:
        return found[1], date.fromisoformat(found[2])
    except ValueError:
        return None
