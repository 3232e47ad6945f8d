"""Binance's daily archive of aggregates, spot and USD-M (exchanges.md 4.4).

Columns: aggregate id, price, quantity, first and last trade id, time, buyer is maker, and on spot whether it was the best match. Spot
counts time in microseconds since 2025-01-01 and in milliseconds before; recent USD-M files begin with a header.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date
from typing import Final

from wadm_mcp.exchanges.archive import ArchiveFormat, Fields, number, wrong_line
from wadm_mcp.exchanges.exchange import Aggregate
from wadm_mcp.model import Listing, TradeType

_SIDES: Final = {"True": TradeType.SELL, "true": TradeType.SELL, "False": TradeType.BUY, "false": TradeType.BUY}
"""The taker's side by whether the buyer was the maker."""
_COLUMNS: Final = {"spot": 8, "linear": 7}
_MICROSECONDS: Final = 100_000_000_000_000
"""Times above this are microseconds: as milliseconds they would lie in the year 5138."""


class BinanceAggregates(ArchiveFormat):
    """`aggTrades` of one market. Spot rows are told by the raw ids they fold, USD-M rows by the aggregate id: as its socket has them."""

    exchange = "binance"
    numbers_trades = True

    def __init__(self, market: str) -> None:
        self.market = market
        self._folder = "spot" if market == "spot" else "futures/um"

    def path(self, symbol: str, day: date) -> str:
        return f"/data/{self._folder}/daily/aggTrades/{symbol}/{symbol}-aggTrades-{day.isoformat()}.zip"

    def checksum_path(self, symbol: str, day: date) -> str:
        return f"{self.path(symbol, day)}.CHECKSUM"

    def rows(self, listing: Listing, lines: Iterable[str]) -> Iterator[Aggregate]:
        """As the contract says. A row whose first id is negative was emptied by the exchange and is left out."""
        fields, columns, spot = Fields(listing), _COLUMNS[self.market], self.market == "spot"
        for place, line in enumerate(lines, 1):
            if place == 1 and not line[:1].isdigit():
                continue
            try:
                texts = line.rstrip("\r\n").split(",")
                if len(texts) != columns:
                    raise ValueError(f"it has {len(texts)} columns, {columns} are needed")
                if texts[3].startswith("-"):
                    continue
                aggregate, first, last, at = number(texts[0]), number(texts[3]), number(texts[4]), number(texts[5])
                side = _SIDES.get(texts[6])
                if side is None:
                    raise ValueError(f"{texts[6][:20]!r} is neither true nor false")
                if at > _MICROSECONDS:
                    at //= 1_000
                seq = first if spot else aggregate
                trade = fields.trade(at, seq, str(seq), texts[1], texts[2], side, last - first + 1)
            except ValueError as error:
                raise wrong_line(listing, place, line, error) from None
            yield Aggregate(aggregate, last if spot else aggregate, trade)
