"""The trades of one simulated instrument, as text ready to send: computed from the market, or pushed by a test or a replay."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from itertools import islice
from typing import Final, NamedTuple, Protocol, TypeVar

from wadm_mcp.model import DAY, MINUTE
from wadm_mcp.simulator.market import BURNT, EPOCH, Fill, Market, MarketAggregate

MARKET_PRINTS: Final = ("MARKET", "RPI")
"""USD-M prints that are trades of the book; others take an id but are not in aggregates or REST (docs/exchanges.md 2.2, 4.2)."""

_MAX_ROWS: Final = 200_000
_MAX_QUIET_MINUTES: Final = 24 * 60
_LONGEST_WINDOW_MS: Final = 100
"""Within which USD-M aggregates."""


class Print(NamedTuple):
    """One execution as the exchange sends it. `number` counts without gaps; `trade_id` and `seq` are the ones that are sent."""

    number: int
    trade_id: str
    seq: int
    time: int
    price: str
    quantity: str
    buy: bool
    kind: str = "MARKET"
    best: bool = True


class Aggregate(NamedTuple):
    """An aggregate trade of Binance. `plain` is the quantity without retail-price-improvement fills (`nq`)."""

    number: int
    time: int
    price: str
    quantity: str
    plain: str
    first: int
    last: int
    buy: bool


_Row = TypeVar("_Row")
_Numbered = TypeVar("_Numbered", Print, Aggregate)
IdsOfFill = Callable[[str, Fill], tuple[str, int]]
"""Gives the id and the seq that are sent for a symbol's fill."""


class Tape(Protocol):
    """The history of one instrument. Times are ms, half-open `[start, end)`; results are in the exchange's order."""

    def prints(self, start: int, end: int) -> Iterator[Print]: ...

    def aggregates(self, start: int, end: int) -> Iterator[Aggregate]:
        """Aggregates whose window has ended by `end`, but not by `start`."""
        ...

    def prints_from(self, number: int, end: int) -> Iterator[Print]: ...

    def aggregates_from(self, number: int, end: int) -> Iterator[Aggregate]: ...

    def newest_prints(self, limit: int, end: int) -> list[Print]: ...

    def newest_aggregates(self, limit: int, end: int) -> list[Aggregate]: ...

    def copy(self) -> Tape:
        """The same history for another thread or process."""
        ...

    @property
    def prints_per_day(self) -> float:
        """Approximate number of prints a day."""
        ...


class MarketTape:
    """A tape computed from a `Market`, back to its first id."""

    def __init__(self, market: Market, naming: IdsOfFill) -> None:
        self.market = market
        self._naming = naming

    def copy(self) -> MarketTape:
        return MarketTape(self.market.copy(), self._naming)

    @property
    def prints_per_day(self) -> float:
        return self.market.rate * (DAY // MINUTE)

    def prints(self, start: int, end: int) -> Iterator[Print]:
        """Prints with `start <= time < end`."""
        # The last fills of a minute may have been traded in the next one.
        for minute in _minutes(start - self.market.window, end):
            for fill in self._published(minute, start, end):
                yield self._print(fill)

    def aggregates(self, start: int, end: int) -> Iterator[Aggregate]:
        """Aggregates whose window has ended in `(start, end]`."""
        start, end = self._closed(start), self._closed(end)
        for minute in _minutes(start, end):
            for folded in self.market.folded_slice_of(minute, start, end):
                yield self._aggregate(folded)

    def prints_from(self, number: int, end: int) -> Iterator[Print]:
        """Prints from an id, inclusive, with `time < end`."""
        start = self.market.minute_of_trade(number)
        return (one for one in self.prints(start, end) if one.number >= number)

    def aggregates_from(self, number: int, end: int) -> Iterator[Aggregate]:
        """Aggregates from an id, inclusive, whose window has ended by `end`."""
        start = self.market.minute_of_aggregate(number)
        return (one for one in self.aggregates(start, end) if one.number >= number)

    def newest_prints(self, limit: int, end: int) -> list[Print]:
        """The last `limit` prints before `end`, oldest first."""
        found: list[Fill] = []
        for minute in _backwards(end):
            found = self._published(minute, minute, end)[-limit:] + found
            if len(found) >= limit:
                break
        return [self._print(fill) for fill in found[-limit:]]

    def newest_aggregates(self, limit: int, end: int) -> list[Aggregate]:
        """The last `limit` aggregates whose window has ended by `end`, oldest first."""
        found: list[MarketAggregate] = []
        end = self._closed(end)
        for minute in _backwards(end):
            found = self.market.folded_slice_of(minute, minute, end)[-limit:] + found
            if len(found) >= limit:
                break
        return [self._aggregate(folded) for folded in found[-limit:]]

    def _closed(self, time: int) -> int:
        """The window of aggregates before this time has ended by `time`."""
        return time - self.market.window + 1

    def _published(self, minute: int, start: int, end: int) -> list[Fill]:
        return [fill for fill in self.market.slice_of(minute, start, end) if fill.kind != BURNT]

    def _print(self, fill: Fill) -> Print:
        steps = self.market.steps
        trade_id, seq = self._naming(self.market.instrument.symbol, fill)
        price, quantity = ("0", "0") if fill.kind == "NA" else (steps.price(fill.price), steps.quantity(fill.quantity))
        return Print(fill.id, trade_id, seq, fill.time, price, quantity, fill.buy, fill.kind)

    def _aggregate(self, folded: MarketAggregate) -> Aggregate:
        price, quantity, plain = (
            self.market.steps.price,
            self.market.steps.quantity(folded.quantity),
            self.market.steps.quantity(folded.plain),
        )
        return Aggregate(folded.id, folded.time, price(folded.price), quantity, plain, folded.first, folded.last, folded.buy)


class PushedTape:
    """The newest pushed rows, at most 200,000 of each kind, with the text of their push.

    Pushed rows are visible whatever their time: `end` limits only ranges of time, not pages by id and not the newest rows.
    Prints are aggregated within `window` ms as they are added; with None aggregates are added by the caller.
    """

    def __init__(self, window: int | None = 1) -> None:
        self.window = window
        self._prints: deque[Print] = deque(maxlen=_MAX_ROWS)
        self._aggregates: deque[Aggregate] = deque(maxlen=_MAX_ROWS)
        self._aggregate_number = 1

    def copy(self) -> PushedTape:
        """A copy of the present rows."""
        copy = PushedTape(self.window)
        copy._prints, copy._aggregates = self._prints.copy(), self._aggregates.copy()
        return copy

    @property
    def prints_per_day(self) -> float:
        return 0.0

    def add(self, row: Print) -> None:
        """Appends a print, and adds it to the aggregates."""
        self._prints.append(row)
        if self.window is not None:
            last = self._aggregates[-1] if self._aggregates else None
            if last is not None and extends(last, row, self.window):
                self._aggregates[-1] = extended(last, row)
            else:
                self._aggregates.append(aggregate_of(self._aggregate_number, row))
                self._aggregate_number += 1

    def add_aggregate(self, row: Aggregate) -> None:
        """Appends an aggregate."""
        self._aggregates.append(row)

    def prints(self, start: int, end: int) -> Iterator[Print]:
        return (row for row in self._prints if start <= row.time < end)

    def aggregates(self, start: int, end: int) -> Iterator[Aggregate]:
        return (row for row in self._aggregates if start <= row.time < end)

    def prints_from(self, number: int, end: int) -> Iterator[Print]:
        return (row for row in self._prints if row.number >= number)

    def aggregates_from(self, number: int, end: int) -> Iterator[Aggregate]:
        return (row for row in self._aggregates if row.number >= number)

    def newest_prints(self, limit: int, end: int) -> list[Print]:
        return _last(self._prints, limit)

    def newest_aggregates(self, limit: int, end: int) -> list[Aggregate]:
        return _last(self._aggregates, limit)


class TapeWithMissingIds:
    """A tape whose exchange lacks every id that is a multiple of `every`."""

    def __init__(self, tape: Tape, every: int) -> None:
        self._tape = tape
        self._every = every

    def copy(self) -> TapeWithMissingIds:
        return TapeWithMissingIds(self._tape.copy(), self._every)

    @property
    def prints_per_day(self) -> float:
        return self._tape.prints_per_day

    def prints(self, start: int, end: int) -> Iterator[Print]:
        return self._existing(self._tape.prints(start, end))

    def aggregates(self, start: int, end: int) -> Iterator[Aggregate]:
        return self._existing(self._tape.aggregates(start, end))

    def prints_from(self, number: int, end: int) -> Iterator[Print]:
        return self._existing(self._tape.prints_from(number, end))

    def aggregates_from(self, number: int, end: int) -> Iterator[Aggregate]:
        return self._existing(self._tape.aggregates_from(number, end))

    def newest_prints(self, limit: int, end: int) -> list[Print]:
        return list(self._existing(self._tape.newest_prints(limit + limit // self._every + 1, end)))[-limit:]

    def newest_aggregates(self, limit: int, end: int) -> list[Aggregate]:
        return list(self._existing(self._tape.newest_aggregates(limit + limit // self._every + 1, end)))[-limit:]

    def _existing(self, rows: Iterable[_Numbered]) -> Iterator[_Numbered]:
        return (row for row in rows if row.number % self._every)


class TapeWithEmptyRows:
    """A tape whose exchange serves every print that is a multiple of `every` without volume, if it is in no aggregate with others.

    `aggregated` says whether the exchange has aggregates.
    """

    def __init__(self, tape: Tape, every: int, *, aggregated: bool) -> None:
        self._tape = tape
        self._every = every
        self._aggregated = aggregated

    def copy(self) -> TapeWithEmptyRows:
        return TapeWithEmptyRows(self._tape.copy(), self._every, aggregated=self._aggregated)

    @property
    def prints_per_day(self) -> float:
        return self._tape.prints_per_day

    def prints(self, start: int, end: int) -> Iterator[Print]:
        return map(self._print, self._tape.prints(start, end))

    def aggregates(self, start: int, end: int) -> Iterator[Aggregate]:
        return map(self._aggregate, self._tape.aggregates(start, end))

    def prints_from(self, number: int, end: int) -> Iterator[Print]:
        return map(self._print, self._tape.prints_from(number, end))

    def aggregates_from(self, number: int, end: int) -> Iterator[Aggregate]:
        return map(self._aggregate, self._tape.aggregates_from(number, end))

    def newest_prints(self, limit: int, end: int) -> list[Print]:
        return [self._print(row) for row in self._tape.newest_prints(limit, end)]

    def newest_aggregates(self, limit: int, end: int) -> list[Aggregate]:
        return [self._aggregate(row) for row in self._tape.newest_aggregates(limit, end)]

    def _print(self, row: Print) -> Print:
        if row.number % self._every or (self._aggregated and not self._is_alone(row)):
            return row
        return row._replace(quantity=_zero(row.quantity))

    def _aggregate(self, row: Aggregate) -> Aggregate:
        if row.first % self._every or row.first != row.last:
            return row
        return row._replace(quantity=_zero(row.quantity), plain=_zero(row.plain))

    def _is_alone(self, row: Print) -> bool:
        near = self._tape.aggregates(row.time, row.time + _LONGEST_WINDOW_MS)
        return any(one.first == one.last == row.number for one in near)


def _zero(quantity: str) -> str:
    return f"{Decimal(quantity) * 0:f}"


def extends(whole: Aggregate, row: Print, window: int) -> bool:
    """Whether a print continues the aggregate: same price and side, the next id, within one aligned window of `window` ms."""
    same = (whole.price, whole.buy, whole.time // window) == (row.price, row.buy, row.time // window)
    return same and row.number == whole.last + 1


def extended(whole: Aggregate, row: Print) -> Aggregate:
    """The aggregate with one more print; its time stays that of its first print."""
    quantity = Decimal(whole.quantity) + Decimal(row.quantity)
    plain = Decimal(whole.plain) + (0 if row.kind == "RPI" else Decimal(row.quantity))
    return whole._replace(quantity=f"{quantity:f}", plain=f"{plain:f}", last=row.number)


def aggregate_of(number: int, row: Print) -> Aggregate:
    """An aggregate of one print."""
    plain = f"{Decimal(row.quantity) * 0:f}" if row.kind == "RPI" else row.quantity
    return Aggregate(number, row.time, row.price, row.quantity, plain, row.number, row.number, row.buy)


def _last(rows: deque[_Row], limit: int) -> list[_Row]:
    return list(islice(rows, max(0, len(rows) - limit), None))


def _minutes(start: int, end: int) -> range:
    start = max(start, EPOCH)
    return range(start - start % MINUTE, end, MINUTE)


def _backwards(end: int) -> range:
    """Starts of the minutes before `end`, newest first, at most one day."""
    newest = (end - 1) - (end - 1) % MINUTE
    return range(newest, max(EPOCH, newest - _MAX_QUIET_MINUTES * MINUTE) - 1, -MINUTE)
