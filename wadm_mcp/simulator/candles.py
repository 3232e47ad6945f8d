"""Minute candles as the exchanges' REST serves them, computed from the simulated trades.

A minute without trades has the last price before it as all four prices; here that price is searched in the hour before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import NamedTuple

from wadm_mcp.model import MINUTE
from wadm_mcp.simulator.tape import MARKET_PRINTS, Aggregate, Print, Tape

_LOOK_BACK_MINUTES = 60


class Candle(NamedTuple):
    """One minute: prices, volume (base asset), turnover (quote asset), number of fills, and takers' buys of both (`bought`, `paid`)."""

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
    """The candles of the minutes that begin at `starts`; the last may still be open at `now`."""
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
    """A row of Binance's `klines`. It has no trade ids."""
    texts = [f"{value:f}" for value in candle[1:7]]
    return [candle.start, *texts[:5], candle.start + MINUTE - 1, texts[5], candle.fills, f"{candle.bought:f}", f"{candle.paid:f}", "0"]


def bybit_row(candle: Candle) -> list[str]:
    """A row of Bybit's `kline`. Every figure is text."""
    return [str(candle.start), *(f"{value:f}" for value in candle[1:7])]


def _candle(tape: Tape, start: int, end: int) -> Candle | None:
    # A replay of USD-M has only aggregates.
    rows: list[tuple[Print | Aggregate, int]] = [(row, 1) for row in tape.prints(start, end) if row.kind in MARKET_PRINTS]
    rows = rows or [(row, row.last - row.first + 1) for row in tape.aggregates(start, end) if start <= row.time < end]
    rows = [(row, fills) for row, fills in rows if Decimal(row.quantity)]
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
    for minute in range(start - MINUTE, start - (_LOOK_BACK_MINUTES + 1) * MINUTE, -MINUTE):
        found = _candle(tape, minute, min(now, minute + MINUTE))
        if found is not None:
            return found.close
    return None
