"""The exchanges' archives of finished days: the contract of a file's format, and what all formats share (exchanges.md 4.4).

Pure: lines in, rows out. Who fetches a file, proves its checksum and unpacks it stands elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date
from typing import Final, Protocol

from wadm_mcp.errors import ArchiveError, printable
from wadm_mcp.exchanges.exchange import Aggregate
from wadm_mcp.exchanges.wire import EARLIEST, LATEST, MOST_FILLS, figure
from wadm_mcp.model import Listing, Scale, Trade, TradeType

_LINE: Final = 80


class ArchiveFormat(Protocol):
    """One kind of daily file of one market."""

    exchange: str
    market: str
    numbers_trades: bool
    """Do its rows carry the instrument's own ids? Then they join the live tape by id, else by whole minutes or by `trade_id`."""

    def path(self, symbol: str, day: date) -> str:
        """Where a day's file lies behind the archive's base URL."""
        ...

    def checksum_path(self, symbol: str, day: date) -> str | None:
        """Where its SHA-256 lies, None where the exchange publishes none."""
        ...

    def rows(self, listing: Listing, lines: Iterable[str]) -> Iterator[Aggregate]:
        """The rows of a file in its own order, its header skipped. An `Aggregate` of one fill is a single trade.

        `ArchiveError` names the line that is not this format's, or not this symbol's.
        """
        ...


class Fields:
    """Turns the texts of a line into a trade of one listing, at its scale or, where its own figures are finer, at theirs."""

    def __init__(self, listing: Listing) -> None:
        self._instrument = listing.instrument
        self._scale = listing.scale

    def trade(self, timestamp: int, seq: int, trade_id: str, price: str, quantity: str, side: TradeType, fills: int = 1) -> Trade:
        """`ValueError` for a figure that is not one, a time outside 2009 to 2100, or fills that no row can have."""
        if not EARLIEST <= timestamp <= LATEST:
            raise ValueError(f"time {timestamp} is no time in milliseconds")
        if not 0 < fills <= MOST_FILLS:
            raise ValueError(f"{fills} fills cannot be")
        scale = self._scale
        value, price_decimals = figure(price, scale.price, scale.price)
        size, quantity_decimals = figure(quantity, scale.quantity, scale.quantity)
        if price_decimals != scale.price or quantity_decimals != scale.quantity:
            scale = Scale(price_decimals, quantity_decimals)
        return Trade(self._instrument, timestamp, seq, trade_id, value, size, side, fills, scale)


def number(text: str) -> int:
    """A whole number above or equal to zero that every store can hold; `ValueError` for any other text."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise ValueError(f"{text[:_LINE]!r} is not a whole number")
    return int(text)


def wrong_line(listing: Listing, place: int, line: str, why: object) -> ArchiveError:
    """The error of the line at `place`, counted from 1."""
    return ArchiveError(f"{listing.instrument} archive, line {place:,}: {why} ({printable(line.rstrip(), _LINE)})")
