"""Bybit's daily archives of trades, linear and spot (docs/exchanges.md 4.4). Bybit publishes no checksums of them.

Columns are found by the names in the header, since some come and go (`RPI` is recent); a file without a header has the documented order.
Linear rows have the socket's trade id, spot rows only the number of their line. Neither has a cross sequence, so trades are ordered by
time and, within a millisecond, as in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import date
from typing import Final

from wadm_mcp.exchanges.archive import Fields, columns, line_error, match_name, number
from wadm_mcp.exchanges.exchange import Aggregate, ArchiveFormat, LineErrors, refuse_line
from wadm_mcp.model import Listing, TradeType

_SIDES: Final = {"Buy": TradeType.BUY, "buy": TradeType.BUY, "Sell": TradeType.SELL, "sell": TradeType.SELL}
_LINEAR_NAME: Final = re.compile(r"([^-_]+)([0-9]{4}-[0-9]{2}-[0-9]{2})\.csv(?:\.gz)?", re.ASCII)
_SPOT_NAME: Final = re.compile(r"([^-_]+)_([0-9]{4}-[0-9]{2}-[0-9]{2})\.csv(?:\.gz)?", re.ASCII)
_TRADE_ID: Final = re.compile(r"[!-~]{1,64}")
_LINEAR: Final = (("timestamp",), ("symbol",), ("side",), ("size",), ("price",), ("trdMatchID",))
_SPOT: Final = (("timestamp",), ("side",), ("volume", "size"), ("price",), ("id",))
_LINEAR_ORDER: Final = ("timestamp", "symbol", "side", "size", "price", "tickDirection", "trdMatchID")
_SPOT_ORDER: Final = ("id", "timestamp", "price", "volume", "side")
"""Columns of a file without a header, up to the last one that is used."""


class BybitLinearTrades(ArchiveFormat):
    """`trading`: times in seconds with up to four decimals, finer than the socket. Old files have whole seconds, or are newest first."""

    exchange = "bybit"
    market = "linear"
    folder = ""
    carries_live_ids = True

    def path(self, symbol: str, day: date) -> str:
        return f"/trading/{symbol}/{symbol}{day.isoformat()}.csv.gz"

    def checksum_path(self, symbol: str, day: date) -> None:
        return None

    def named(self, name: str) -> tuple[str, date] | None:
        return match_name(_LINEAR_NAME, name)

    def rows(self, listing: Listing, lines: Iterable[str], bad_line: LineErrors = refuse_line) -> Iterator[Aggregate]:
        """See `ArchiveFormat.rows`. Each line names its symbol: a line of another one is an `ArchiveError`."""
        fields, symbol = Fields(listing), listing.instrument.symbol
        for place, line, (at, name, side, size, price, trade_id) in columns(listing, lines, _LINEAR, _LINEAR_ORDER, bad_line):
            if name != symbol:
                raise line_error(listing, place, line, f"symbol {name[:40]!r} instead of {symbol!r}")
            try:
                if not _TRADE_ID.fullmatch(trade_id):
                    raise ValueError("it has no trade id")
                timestamp = _milliseconds(at)
                trade = fields.trade(timestamp, timestamp, trade_id, price, size, _side(side))
            except ValueError as error:
                bad_line(line_error(listing, place, line, error))
                continue
            yield Aggregate(place, place, trade)


class BybitSpotTrades(ArchiveFormat):
    """`spot`: times in milliseconds; `id` is the number of the line and identifies no trade."""

    exchange = "bybit"
    market = "spot"
    folder = ""
    carries_live_ids = False

    def path(self, symbol: str, day: date) -> str:
        return f"/spot/{symbol}/{symbol}_{day.isoformat()}.csv.gz"

    def checksum_path(self, symbol: str, day: date) -> None:
        return None

    def named(self, name: str) -> tuple[str, date] | None:
        return match_name(_SPOT_NAME, name)

    def rows(self, listing: Listing, lines: Iterable[str], bad_line: LineErrors = refuse_line) -> Iterator[Aggregate]:
        """See `ArchiveFormat.rows`. The file does not name its symbol."""
        fields = Fields(listing)
        for place, line, (at, side, size, price, row) in columns(listing, lines, _SPOT, _SPOT_ORDER, bad_line):
            try:
                timestamp = number(at)
                trade = fields.trade(timestamp, timestamp, row, price, size, _side(side))
                line_number = number(row)
            except ValueError as error:
                bad_line(line_error(listing, place, line, error))
                continue
            yield Aggregate(line_number, line_number, trade)


def _side(text: str) -> TradeType:
    side = _SIDES.get(text)
    if side is None:
        raise ValueError(f"side {text[:20]!r} is neither Buy nor Sell")
    return side


def _milliseconds(seconds: str) -> int:
    """Seconds with or without decimals, cut to the millisecond that the socket states."""
    whole, _, fraction = seconds.partition(".")
    return number(whole) * 1_000 + (number(fraction[:3].ljust(3, "0")) if fraction else 0)
