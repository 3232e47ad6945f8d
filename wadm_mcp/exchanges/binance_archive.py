"""Binance's daily archives: raw trades of spot, aggregates of spot and USD-M (docs/exchanges.md 4.4).

Columns of aggregates: id, price, quantity, first and last trade id, time, buyer is maker, and on spot whether it was the best match.
Columns of trades: id, price, quantity, quote quantity, time, and the same two. Times of spot are in microseconds since 2025-01-01 and in
milliseconds before. Recent USD-M files begin with a header, which finds the columns; others may follow in any file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import date
from typing import Final

from wadm_mcp.exchanges.archive import Fields, columns, line_error, match_name, number
from wadm_mcp.exchanges.exchange import Aggregate, ArchiveFormat, LineErrors, refuse_line
from wadm_mcp.model import Listing, TradeType

_SIDES: Final = {"True": TradeType.SELL, "true": TradeType.SELL, "False": TradeType.BUY, "false": TradeType.BUY}
"""The taker's side by the column "buyer is maker"."""
_ID: Final = ("agg_trade_id", "id")
_PRICE: Final = ("price",)
_QUANTITY: Final = ("quantity", "qty")
_FIRST: Final = ("first_trade_id",)
_LAST: Final = ("last_trade_id",)
_TIME: Final = ("transact_time", "time", "timestamp")
_MAKER: Final = ("is_buyer_maker",)
_BEST: Final = "is_best_match"
_AGGREGATES_ORDER: Final = ("agg_trade_id", "price", "quantity", "first_trade_id", "last_trade_id", "transact_time", "is_buyer_maker")
_TRADES_ORDER: Final = ("id", "price", "qty", "quote_qty", "time", "is_buyer_maker", _BEST)
"""Columns of a file without a header."""
_NAME: Final = r"([^-]+)-%s-([0-9]{4}-[0-9]{2}-[0-9]{2})\.(?:zip|csv)"
_AGGREGATES_NAME: Final = re.compile(_NAME % "aggTrades", re.ASCII)
_TRADES_NAME: Final = re.compile(_NAME % "trades", re.ASCII)
_MICROSECONDS: Final = 100_000_000_000_000
"""Times above this are in microseconds: as milliseconds they would be in the year 5138."""


class BinanceAggregates(ArchiveFormat):
    """`aggTrades` of one market. The seq of a spot row is its first raw id, that of a USD-M row the aggregate id, as on the sockets."""

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
        """Files of spot and USD-M have the same names."""
        return match_name(_AGGREGATES_NAME, name)

    def rows(self, listing: Listing, lines: Iterable[str], bad_line: LineErrors = refuse_line) -> Iterator[Aggregate]:
        """See `ArchiveFormat.rows`. A row whose first id is negative was emptied: it carries no volume, and on spot no id."""
        fields, spot = Fields(listing), self.market == "spot"
        names = (_ID, _PRICE, _QUANTITY, _FIRST, _LAST, _TIME, _MAKER)
        order = (*_AGGREGATES_ORDER, _BEST) if spot else _AGGREGATES_ORDER
        for place, line, (aggregate_id, price, quantity, first_id, last_id, time, maker) in columns(listing, lines, names, order, bad_line):
            try:
                if first_id.startswith("-"):
                    if spot:
                        continue
                    first_id = last_id = aggregate_id
                    quantity = "0"
                if place == 1 and not spot and line.count(",") == len(_AGGREGATES_ORDER) and line.rstrip().rpartition(",")[2] in _SIDES:
                    raise ValueError(f"its last column is {_BEST}, which files of spot have")
                aggregate, first, last, at = number(aggregate_id), number(first_id), number(last_id), number(time)
                seq = first if spot else aggregate
                trade = fields.trade(_milliseconds(at), seq, str(seq), price, quantity, _side(maker), last - first + 1)
            except ValueError as error:
                bad_line(line_error(listing, place, line, error))
                continue
            yield Aggregate(aggregate, last if spot else aggregate, trade)


class BinanceSpotTrades(ArchiveFormat):
    """`trades` of spot: every raw trade, as on the socket. About twice the size of the aggregates, and exact in every figure."""

    exchange = "binance"
    market = "spot"
    folder = "spot"
    carries_live_ids = True

    def path(self, symbol: str, day: date) -> str:
        return f"/data/spot/daily/trades/{symbol}/{symbol}-trades-{day.isoformat()}.zip"

    def checksum_path(self, symbol: str, day: date) -> str:
        return f"{self.path(symbol, day)}.CHECKSUM"

    def named(self, name: str) -> tuple[str, date] | None:
        return match_name(_TRADES_NAME, name)

    def rows(self, listing: Listing, lines: Iterable[str], bad_line: LineErrors = refuse_line) -> Iterator[Aggregate]:
        """See `ArchiveFormat.rows`: each row is an aggregate of one trade."""
        fields, names = Fields(listing), (_ID, _PRICE, _QUANTITY, _TIME, _MAKER)
        for place, line, (trade_id, price, quantity, time, maker) in columns(listing, lines, names, _TRADES_ORDER, bad_line):
            try:
                seq = number(trade_id)
                trade = fields.trade(_milliseconds(number(time)), seq, str(seq), price, quantity, _side(maker))
            except ValueError as error:
                bad_line(line_error(listing, place, line, error))
                continue
            yield Aggregate(seq, seq, trade)


def _side(buyer_is_maker: str) -> TradeType:
    side = _SIDES.get(buyer_is_maker)
    if side is None:
        raise ValueError(f"{buyer_is_maker[:20]!r} is neither true nor false")
    return side


def _milliseconds(at: int) -> int:
    return at // 1_000 if at > _MICROSECONDS else at
