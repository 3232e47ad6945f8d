"""Minutes as the exchanges' REST states them, summed from the ledger. Binance's rows carry no trade ids; of Bybit's every figure is text.

A minute without a trade has the last price before it in all its prices (docs/exchanges.md 4.5), here the one it finds in the hour before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import NamedTuple

from wadm_mcp.model import MINUTE
from wadm_mcp.simulator.tape import MARKET_PRINTS, Aggregate, Print, Tape

_LOOK_BACK = 60


class Candle(NamedTuple):
    """One minute: prices, volume in base and turnover in quote units, number of executions, and what takers bought of both."""

    start: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    turnover: Decimal
    fills: int
    bought: Decimal
    paid: Decimal


def candles(tape: Tape, starts: Iterable[int], now: int) -> Iterator[Candle]:
    """The minutes that begin at `starts`, the last perhaps still open `now`."""
    close: Decimal | None = None
    for start in starts:
        found = _candle(tape, start, min(now, start + MINUTE))
        if found is None:
            close = close if close is not None else _close_before(tape, start, now)
            if close is not None:
                yield Candle(start, close, close, close, close, Decimal(0), Decimal(0), 0, Decimal(0), Decimal(0))
            continue
        close = found.close
        yield found


def binance_row(candle: Candle) -> list[object]:
    """A row of `klines`."""
    texts = [f"{value:f}" for value in candle[1:7]]
    return [candle.start, *texts[:5], candle.start + MINUTE - 1, texts[5], candle.fills, f"{candle.bought:f}", f"{candle.paid:f}", "0"]


def bybit_row(candle: Candle) -> list[str]:
    """A row of `kline`."""
    return [str(candle.start), *(f"{value:f}" for value in candle[1:7])]


def _candle(tape: Tape, start: int, end: int) -> Candle | None:
    # What is replayed on USD-M has aggregates alone.
    rows: list[tuple[Print | Aggregate, int]] = [(row, 1) for row in tape.prints(start, end) if row.kind in MARKET_PRINTS]
    rows = rows or [(row, row.last - row.first + 1) for row in tape.aggregates(start, end) if start <= row.time < end]
    if not rows:
        return None
    trades = [(Decimal(row.price), Decimal(row.quantity), row.buy) for row, _ in rows]
    prices = [price for price, _, _ in trades]
    zero = Decimal(0)
    return Candle(
        start,
        prices[0],
        max(prices),
        min(prices),
        prices[-1],
        sum((quantity for _, quantity, _ in trades), zero),
        sum((price * quantity for price, quantity, _ in trades), zero),
        sum(fills for _, fills in rows),
        sum((quantity for _, quantity, buy in trades if buy), zero),
        sum((price * quantity for price, quantity, buy in trades if buy), zero),
    )


def _close_before(tape: Tape, start: int, now: int) -> Decimal | None:
    for minute in range(start - MINUTE, start - (_LOOK_BACK + 1) * MINUTE, -MINUTE):
        found = _candle(tape, minute, min(now, minute + MINUTE))
        if found is not None:
            return found.close
    return None
