"""Bybit's daily archives of trades, linear and spot (docs/exchanges.md 4.4). Bybit publishes no checksum of them.

Columns go by the names of the header, some of which come and go (`RPI` is recent); without one they are in the documented order. Linear
rows carry the socket's own trade id, spot rows only the number of their line; neither has a cross sequence, so trades are ordered by time
and, within a millisecond, as the file has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import date
from typing import Final

from wadm_mcp.exchanges.archive import Fields, named, number, wrong_line
from wadm_mcp.exchanges.exchange import Aggregate, ArchiveFormat
from wadm_mcp.model import Listing, TradeType

_SIDES: Final = {"Buy": TradeType.BUY, "buy": TradeType.BUY, "Sell": TradeType.SELL, "sell": TradeType.SELL}
_LINEAR_NAME: Final = re.compile(r"([A-Z0-9]{1,40})([0-9]{4}-[0-9]{2}-[0-9]{2})\.csv(?:\.gz)?", re.ASCII)
_SPOT_NAME: Final = re.compile(r"([A-Z0-9]{1,40})_([0-9]{4}-[0-9]{2}-[0-9]{2})\.csv(?:\.gz)?", re.ASCII)
_LINEAR: Final = ("timestamp", "symbol", "side", "size", "price", "trdMatchID")
_SPOT: Final = ("timestamp", "side", "volume", "price", "id")
_LINEAR_ORDER: Final = ("timestamp", "symbol", "side", "size", "price", "tickDirection", "trdMatchID")
_SPOT_ORDER: Final = ("id", "timestamp", "price", "volume", "side")
"""Columns of a file without a header, as far as they are read."""


class BybitLinearTrades(ArchiveFormat):
    """`trading`: seconds with up to four decimals, finer than the stream; old files have whole seconds, or run newest first."""

    exchange = "bybit"
    market = "linear"
    folder = ""
    carries_live_ids = True

    def path(self, symbol: str, day: date) -> str:
        return f"/trading/{symbol}/{symbol}{day.isoformat()}.csv.gz"

    def checksum_path(self, symbol: str, day: date) -> None:
        return None

    def named(self, name: str) -> tuple[str, date] | None:
        return named(_LINEAR_NAME, name)

    def rows(self, listing: Listing, lines: Iterable[str]) -> Iterator[Aggregate]:
        """As the contract says. The file names its symbol in each line: another one's is an `ArchiveError`."""
        fields, symbol = Fields(listing), listing.instrument.symbol
        for place, line, (at, name, side, size, price, trade_id) in _named(listing, lines, _LINEAR, _LINEAR_ORDER):
            try:
                if name != symbol:
                    raise ValueError(f"it is of {name[:40]!r}")
                if not 0 < len(trade_id) <= 64:
                    raise ValueError("it has no trade id")
                timestamp = _milliseconds(at)
                trade = fields.trade(timestamp, timestamp, trade_id, price, size, _side(side))
            except ValueError as error:
                raise wrong_line(listing, place, line, error) from None
            yield Aggregate(place, place, trade)


class BybitSpotTrades(ArchiveFormat):
    """`spot`: milliseconds; `id` counts the lines of the file and is no trade's id."""

    exchange = "bybit"
    market = "spot"
    folder = ""
    carries_live_ids = False

    def path(self, symbol: str, day: date) -> str:
        return f"/spot/{symbol}/{symbol}_{day.isoformat()}.csv.gz"

    def checksum_path(self, symbol: str, day: date) -> None:
        return None

    def named(self, name: str) -> tuple[str, date] | None:
        return named(_SPOT_NAME, name)

    def rows(self, listing: Listing, lines: Iterable[str]) -> Iterator[Aggregate]:
        """As the contract says. Nothing in the file tells its symbol."""
        fields = Fields(listing)
        for place, line, (at, side, size, price, row) in _named(listing, lines, _SPOT, _SPOT_ORDER):
            try:
                timestamp = number(at)
                trade = fields.trade(timestamp, timestamp, row, price, size, _side(side))
                line_number = number(row)
            except ValueError as error:
                raise wrong_line(listing, place, line, error) from None
            yield Aggregate(line_number, line_number, trade)


def _named(listing: Listing, lines: Iterable[str], names: tuple[str, ...], order: tuple[str, ...]) -> Iterator[tuple[int, str, list[str]]]:
    """Place, line and the texts of the columns of these names, found by the header or, without one, by their order."""
    columns: list[int] = []
    width = 0
    for place, line in enumerate(lines, 1):
        texts = line.rstrip("\r\n").split(",")
        if place == 1:
            headed = texts[0][:1].isalpha()
            header = texts if headed else order
            missing = [name for name in names if name not in header]
            if missing:
                raise wrong_line(listing, place, line, f"the header lacks {', '.join(missing)}")
            columns, width = [header.index(name) for name in names], len(texts)
            if headed:
                continue
        if len(texts) != width or width <= max(columns):
            raise wrong_line(listing, place, line, f"it has {len(texts)} columns, {max(width, max(columns) + 1)} are needed")
        yield place, line, [texts[column] for column in columns]


def _side(text: str) -> TradeType:
    side = _SIDES.get(text)
    if side is None:
        raise ValueError(f"side {text[:20]!r} is neither Buy nor Sell")
    return side


def _milliseconds(seconds: str) -> int:
    """Seconds with or without decimals, cut to the millisecond that the stream would have told."""
    whole, _, fraction = seconds.partition(".")
    return number(whole) * 1_000 + (number(fraction[:3].ljust(3, "0")) if fraction else 0)
