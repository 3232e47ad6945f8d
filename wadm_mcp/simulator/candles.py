"""Minute candles as the exchanges' REST serves them, computed from the simulated trades.

A minute without trades has the last price before it as all four prices; here that price is searched in the hour before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Final, NamedTuple

from wadm_mcp.model import MINUTE
from wadm_mcp.simulator.tape import MARKET_PRINTS, Aggregate, Print, Tape

_LOOK_BACK_MINUTES: Final = 60
_KEPT_MINUTES: Final = 180
_ZERO: Final = Decimal(0)


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


class _Sums:
    """What a candle is made of, trade by trade in their order."""

    def __init__(self) -> None:
        self._open = self._high = self._low = self._close = _ZERO
        self._volume = self._turnover = self._bought = self._paid = _ZERO
        self._fills = 0

    def add(self, row: Print | Aggregate, fills: int) -> None:
        """Add a trade of so many fills. One without volume counts for nothing."""
        price, quantity = Decimal(row.price), Decimal(row.quantity)
        if not quantity:
            return
        if not self._fills:
            self._open = self._high = self._low = price
        self._high, self._low, self._close = max(self._high, price), min(self._low, price), price
        self._volume, self._turnover, self._fills = self._volume + quantity, self._turnover + price * quantity, self._fills + fills
        if row.buy:
            self._bought, self._paid = self._bought + quantity, self._paid + price * quantity

    def candle(self, start: int) -> Candle | None:
        """The candle of the minute; None without a trade."""
        prices = self._open, self._high, self._low, self._close
        return Candle(start, *prices, self._volume, self._turnover, self._fills, self._bought, self._paid) if self._fills else None


class PublishedCandles:
    """The newest candles of one instrument, made as its trades are published: to compute an hour of a busy market again takes a minute."""

    def __init__(self) -> None:
        self._since = self._reached = 0
        self._minutes: dict[int, _Sums] = defaultdict(_Sums)

    def add(self, prints: Iterable[Print], start: int, end: int) -> None:
        """All trades with `start <= time < end`. Where they do not follow those before, the minute of `start` is not whole."""
        if start != self._reached:
            self._minutes.clear()
            self._since = start
        self._reached = end
        for row in prints:
            if row.kind in MARKET_PRINTS:
                self._minutes[row.time - row.time % MINUTE].add(row, 1)
        for minute in [minute for minute in self._minutes if minute < end - _KEPT_MINUTES * MINUTE]:
            self._since = max(self._since, minute + MINUTE)
            del self._minutes[minute]

    def has(self, minute: int) -> bool:
        """Whether all trades of a minute were published here."""
        return self._since <= minute and minute + MINUTE <= self._reached

    def candle(self, minute: int) -> Candle | None:
        """The candle of a minute; None without a trade."""
        return self._minutes[minute].candle(minute) if minute in self._minutes else None


def candles(tape: Tape, starts: Iterable[int], now: int, published: PublishedCandles | None = None) -> Iterator[Candle]:
    """The candles of the minutes that begin at `starts`; the last may still be open at `now`. Those `published` are not computed again."""

    def at(minute: int) -> Candle | None:
        if published is not None and published.has(minute) and minute + MINUTE <= now:
            return published.candle(minute)
        return _candle(tape, minute, min(now, minute + MINUTE))

    close: Decimal | None = None
    for start in starts:
        found = at(start)
        if found is None:
            before = range(start - MINUTE, start - (_LOOK_BACK_MINUTES + 1) * MINUTE, -MINUTE)
            close = close if close is not None else next((earlier.close for minute in before if (earlier := at(minute)) is not None), None)
            if close is not None:
                yield Candle(start, close, close, close, close, _ZERO, _ZERO, 0, _ZERO, _ZERO)
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
    sums, traded = _Sums(), False
    for row in tape.prints(start, end):
        if row.kind in MARKET_PRINTS:
            traded = True
            sums.add(row, 1)
    if not traded:
        # A replay of USD-M has only aggregates.
        for whole in tape.aggregates(start, end):
            if start <= whole.time < end:
                sums.add(whole, whole.last - whole.first + 1)
    return sums.candle(start)
