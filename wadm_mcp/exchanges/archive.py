"""What the formats of daily archive files share (docs/exchanges.md 4.4): their contract is `ArchiveFormat`.

Pure: lines in, rows out. Downloading, checksums and unpacking are in `collection/backfill`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from typing import Final
from urllib.parse import unquote

from wadm_mcp.errors import ArchiveError
from wadm_mcp.exchanges.exchange import LineErrors
from wadm_mcp.exchanges.wire import MAX_FILLS, MAX_TIME, MIN_TIME, figure, is_zero
from wadm_mcp.model import Listing, Scale, Trade, TradeType, is_symbol
from wadm_mcp.texts import printable

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
        """The trade; one of quantity 0 where the row carries no volume, whatever its price and fills.

        `ValueError` for a price or quantity that is no number above 0, a time outside 2009 to 2100, or impossible fills.
        """
        if not MIN_TIME <= timestamp <= MAX_TIME:
            raise ValueError(f"time {timestamp} is not a time in milliseconds from 2009 to 2100")
        value, size, scale = self._prices.get(price), self._quantities.get(quantity), self._scale
        if value is None or size is None:
            if is_zero(quantity):
                return Trade(self._instrument, timestamp, seq, trade_id, 0, 0, side, 0, scale)
            value, size, scale = self._read(price, quantity)
        if not 0 < fills <= MAX_FILLS:
            raise ValueError(f"{fills} fills are impossible, 1 or more are needed")
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


def columns(
    listing: Listing, lines: Iterable[str], names: Sequence[Sequence[str]], order: Sequence[str], bad_line: LineErrors
) -> Iterator[tuple[int, str, list[str]]]:
    """Number (from 1), line, and the texts of the columns that are used, for each line but a header.

    `names` has the names of each used column, its documented one first. A header finds them, in any order and among any others; capitals
    and underscores do not matter. A file without a header has the documented `order`. Columns that follow are ignored. `bad_line` gets the
    error of a line with fewer columns than that, or with another number than the first. `ArchiveError` for a header without one of them.
    """
    width, least = 0, 0
    used: list[int] = []
    for place, line in enumerate(lines, 1):
        texts = line.rstrip("\r\n").split(",")
        if not used:
            headed = texts[0].strip('" ')[:1].isalpha()
            header = [_folded(name) for name in (texts if headed else order)]
            used = [_place(listing, place, line, header, each) for each in names]
            least = len(header)
            if headed:
                continue
        if not width and len(texts) >= least:
            width = len(texts)
        if len(texts) != width:
            bad_line(line_error(listing, place, line, f"it has {len(texts)} columns, {width or least} are needed"))
            continue
        yield place, line, [texts[column] for column in used]


def _place(listing: Listing, place: int, line: str, header: Sequence[str], names: Sequence[str]) -> int:
    found = [header.index(name) for name in map(_folded, names) if name in header]
    if not found:
        raise line_error(listing, place, line, f"the header lacks {names[0]}")
    return found[0]


def _folded(name: str) -> str:
    return name.strip('" ').replace("_", "").lower()


def number(text: str) -> int:
    """A whole number of at most 18 digits, which every store has room for; `ValueError` for any other text."""
    if not text.isdecimal() or len(text) > 18 or not text.isascii():
        raise ValueError(f"{text[:_SHOWN_CHARS]!r} is not a whole number")
    return int(text)


def line_error(listing: Listing, place: int, line: str, why: object) -> ArchiveError:
    """The error of the line at `place`, counted from 1."""
    return ArchiveError(f"{listing.instrument} archive, line {place:,}: {why} ({printable(line.rstrip(), _SHOWN_CHARS)})")


def match_name(pattern: re.Pattern[str], name: str) -> tuple[str, date] | None:
    """Symbol and day in a file's name, by a pattern with these two groups; None where the name does not match.

    The name may be percent-encoded, as a URL and some download programs have it.
    """
    found = pattern.fullmatch(unquote(name))
    if found is None or not is_symbol(found[1]) or found[1] != found[1].upper():
        return None
    try:
        return found[1], date.fromisoformat(found[2])
    except ValueError:
        return None
