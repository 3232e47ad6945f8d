"""Binance's daily archives: raw trades of spot, aggregates of spot and USD-M (docs/exchanges.md 4.4).

Aggregates: id, price, quantity, first and last trade id, time, buyer is maker, and on spot whether it was the best match. Trades: id,
price, quantity, quote quantity, time, and the same two. Spot counts time in microseconds since 2025-01-01 and in milliseconds before;
recent USD-M files begin with a header.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import date
from typing import Final

from wadm_mcp.exchanges.archive import Fields, named, number, wrong_line
from wadm_mcp.exchanges.exchange import Aggregate, ArchiveFormat
from wadm_mcp.model import Listing, TradeType

_SIDES: Final = {"True": TradeType.SELL, "true": TradeType.SELL, "False": TradeType.BUY, "false": TradeType.BUY}
"""The taker's side by whether the buyer was the maker."""
_COLUMNS: Final = {"spot": 8, "linear": 7}
_TRADE_COLUMNS: Final = 7
_NAME: Final = r"([A-Z0-9]{1,40})-%s-([0-9]{4}-[0-9]{2}-[0-9]{2})\.(?:zip|csv)"
_AGGREGATES_NAME: Final = re.compile(_NAME % "aggTrades", re.ASCII)
_TRADES_NAME: Final = re.compile(_NAME % "trades", re.ASCII)
_MICROSECONDS: Final = 100_000_000_000_000
"""Times above this are microseconds: as milliseconds they would lie in the year 5138."""


class BinanceAggregates(ArchiveFormat):
    """`aggTrades` of one market. Spot rows are told by the raw ids they fold, USD-M rows by the aggregate id: as its socket has them."""

    exchange = "binance"

    def __init__(self, market: str) -> None:
        self.market = market
        self.carries_live_ids = market == "linear"
        self.folder = "spot" if market == "spot" else "um"
        self._path = "spot" if market == "spot" else "futures/um"

    def path(self, symbol: str, day: date) -> str:
        return f"/data/{self._path}/daily/aggTrades/{symbol}/{symbol}-aggTrades-{day.isoformat()}.zip"

    def checksum_path(self, symbol: str, day: date) -> str:
        return f"{self.path(symbol, day)}.CHECKSUM"

    def named(self, name: str) -> tuple[str, date] | None:
        """Spot and USD-M call their files alike."""
        return named(_AGGREGATES_NAME, name)

    def rows(self, listing: Listing, lines: Iterable[str]) -> Iterator[Aggregate]:
        """As the contract says. A row whose first id is negative was emptied by the exchange and is left out."""
        fields, columns, spot = Fields(listing), _COLUMNS[self.market], self.market == "spot"
        for place, line in enumerate(lines, 1):
            if place == 1 and line[:1].isalpha():
                continue
            try:
                texts = line.rstrip("\r\n").split(",")
                if len(texts) != columns:
                    raise ValueError(f"it has {len(texts)} columns, {columns} are needed")
                if texts[3].startswith("-"):
                    continue
                aggregate, first, last, at = number(texts[0]), number(texts[3]), number(texts[4]), number(texts[5])
                seq = first if spot else aggregate
                trade = fields.trade(_milliseconds(at), seq, str(seq), texts[1], texts[2], _side(texts[6]), last - first + 1)
            except ValueError as error:
                raise wrong_line(listing, place, line, error) from None
            yield Aggregate(aggregate, last if spot else aggregate, trade)


class BinanceSpotTrades(ArchiveFormat):
    """`trades` of spot: every raw trade, as the socket told it. About twice the size of the aggregates, and exact in every figure."""

    exchange = "binance"
    market = "spot"
    folder = "spot"
    carries_live_ids = True

    def path(self, symbol: str, day: date) -> str:
        return f"/data/spot/daily/trades/{symbol}/{symbol}-trades-{day.isoformat()}.zip"

    def checksum_path(self, symbol: str, day: date) -> str:
        return f"{self.path(symbol, day)}.CHECKSUM"

    def named(self, name: str) -> tuple[str, date] | None:
        return named(_TRADES_NAME, name)

    def rows(self, listing: Listing, lines: Iterable[str]) -> Iterator[Aggregate]:
        """As the contract says: each row is an aggregate of itself alone."""
        fields = Fields(listing)
        for place, line in enumerate(lines, 1):
            if place == 1 and line[:1].isalpha():
                continue
            try:
                texts = line.rstrip("\r\n").split(",")
                if len(texts) != _TRADE_COLUMNS:
                    raise ValueError(f"it has {len(texts)} columns, {_TRADE_COLUMNS} are needed")
                seq = number(texts[0])
                trade = fields.trade(_milliseconds(number(texts[4])), seq, str(seq), texts[1], texts[2], _side(texts[5]))
            except ValueError as error:
                raise wrong_line(listing, place, line, error) from None
            yield Aggregate(seq, seq, trade)


def _side(buyer_is_maker: str) -> TradeType:
    side = _SIDES.get(buyer_is_maker)
    if side is None:
        raise ValueError(f"{buyer_is_maker[:20]!r} is neither true nor false")
    return side


def _milliseconds(at: int) -> int:
    return at // 1_000 if at > _MICROSECONDS else at
