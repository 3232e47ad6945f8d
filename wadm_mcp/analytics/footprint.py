"""Bars and footprints: the aggregates of trades from which every other figure is derived.

A `Bar` has the figures that depend on the order of trades, a `Footprint` adds volume and fills by price and side. Profiles, order flow and
longer bars are merges of these. All numbers are exact integers at the bar's `Scale`. A trade with more decimals rescales the whole bar;
nothing is ever rounded.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from copy import copy
from decimal import Decimal
from itertools import accumulate
from operator import add, sub
from typing import Final, Self, TypeAlias, TypeVar, cast

import msgspec

from wadm_mcp.model import Scale, Trade, TradeType, at_decimals, rescale

Cell: TypeAlias = list[int]
"""The trades at one price: `[buy_volume, sell_volume, buy_fills, sell_fills]`."""

_Columns: TypeAlias = tuple[Sequence[int], ...]
"""The columns of the packed form: differences of the prices, buy volume, sell volume, buy fills, sell fills."""

VERSION: Final = 1
"""Version of the packed form. `unpack` refuses any other."""

_BUY: Final = TradeType.BUY


class Bar(msgspec.Struct, gc=False, array_like=True, forbid_unknown_fields=True):
    """The figures of consecutive trades of one instrument. A bar with `trade_count` 0 is empty and its prices are None.

    `trade_count` is the sum of fills. `notional` is the sum of price times quantity, at `scale.price + scale.quantity` decimals.
    `first_at`, `first_seq`, `last_at` and `last_seq` are time and seq of the first and the last trade.
    `min_delta` and `max_delta` are the extremes of the delta after each matching event, in the exchange's order, without the start value 0.
    None in a bar with trades means that they cannot be computed. Trades with the same timestamp and seq are one event of one aggressor:
    within it the delta moves in one direction, so that only the first event of a bar has to be complete before its delta counts.
    """

    scale: Scale
    open: int | None = None
    high: int | None = None
    low: int | None = None
    close: int | None = None
    buy_volume: int = 0
    sell_volume: int = 0
    trade_count: int = 0
    notional: int = 0
    min_delta: int | None = None
    max_delta: int | None = None
    first_at: int = 0
    first_seq: int = 0
    last_at: int = 0
    last_seq: int = 0

    @property
    def volume(self) -> int:
        """Quantity traded on both sides."""
        return self.buy_volume + self.sell_volume

    @property
    def delta(self) -> int:
        """Taker buy volume minus taker sell volume."""
        return self.buy_volume - self.sell_volume

    def add(self, *trades: Trade) -> None:
        """Adds trades. Open and close are exact in any order of arrival.

        A trade before the last one by (timestamp, seq) sets `min_delta` and `max_delta` to None permanently: the bar does not keep the
        delta in between.
        """
        self._count(self._at_own_scale(trades))

    def _at_own_scale(self, trades: Sequence[Trade]) -> Sequence[Trade]:
        """The trades at the bar's scale, after the bar took the finest scale of all of them."""
        scale = self.scale
        for trade in trades:
            if trade.scale is not scale and trade.scale != scale:
                break
        else:
            return trades
        for trade in trades:
            self._refine(trade.scale)
        return [_rescaled_trade(trade, self.scale) for trade in trades]

    def _count(self, trades: Iterable[Trade]) -> None:
        """Adds trades that have the bar's scale. Hot path of every trade: the figures are local variables for speed."""
        high, low, close, fills, notional = self.high, self.low, self.close, self.trade_count, self.notional
        buys, sells, lowest, highest = self.buy_volume, self.sell_volume, self.min_delta, self.max_delta
        first_at, first_seq, last_at, last_seq = self.first_at, self.first_seq, self.last_at, self.last_seq
        for trade in trades:
            price, quantity, at, seq = trade.price, trade.quantity, trade.timestamp, trade.seq
            if trade.trade_type is _BUY:
                buys += quantity
            else:
                sells += quantity
            notional += price * quantity
            fills += trade.fills
            if high is None or low is None:
                self.open = high = low = close = price
                lowest = highest = buys - sells
                first_at, first_seq, last_at, last_seq = at, seq, at, seq
                continue
            if price > high:
                high = price
            elif price < low:
                low = price
            if at > last_at or (at == last_at and seq >= last_seq):
                close, last_at, last_seq = price, at, seq
                if lowest is not None and highest is not None:
                    delta = buys - sells
                    if seq == first_seq and at == first_at:
                        lowest = highest = delta
                    elif delta < lowest:
                        lowest = delta
                    elif delta > highest:
                        highest = delta
                continue
            lowest = highest = None
            if at < first_at or (at == first_at and seq < first_seq):
                self.open, first_at, first_seq = price, at, seq
        self.high, self.low, self.close, self.trade_count, self.notional = high, low, close, fills, notional
        self.buy_volume, self.sell_volume, self.min_delta, self.max_delta = buys, sells, lowest, highest
        self.first_at, self.first_seq, self.last_at, self.last_seq = first_at, first_seq, last_at, last_seq

    def rescaled(self, scale: Scale) -> Bar:
        """A copy at a finer scale. `ValueError` if the bar has more decimals than `scale`."""
        _check_finer(self.scale, scale)
        bar = copy(self)
        bar._refine(scale)
        return bar

    def merge_later(self, later: Bar) -> Bar:
        """This bar and a later one of the same instrument merged into one. Associative; an empty bar changes nothing."""
        one, two = self._aligned(later)
        if one.high is None or two.high is None:
            return two if one.high is None else one
        delta, lowest, highest = one.delta, one.min_delta, one.max_delta
        one._merge_unordered(two)
        one.close, one.last_at, one.last_seq = two.close, two.last_at, two.last_seq
        if lowest is not None and two.min_delta is not None:
            one.min_delta = min(lowest, delta + two.min_delta)
        if highest is not None and two.max_delta is not None:
            one.max_delta = max(highest, delta + two.max_delta)
        return one

    def merge_parallel(self, other: Bar) -> Bar:
        """Two bars of the same time on two instruments merged into one.

        Open comes from the bar that traded first, close from the bar that traded last; on equal times both come from this bar. Min and max
        delta become None, because no common order of the trades of two exchanges exists.
        """
        one, two = self._aligned(other)
        if one.high is None or two.high is None:
            return two if one.high is None else one
        one._merge_unordered(two)
        if two.first_at < one.first_at:
            one.open, one.first_at, one.first_seq = two.open, two.first_at, two.first_seq
        if two.last_at > one.last_at:
            one.close, one.last_at, one.last_seq = two.close, two.last_at, two.last_seq
        return one

    def pack(self) -> bytes:
        """The bar as MessagePack, for `Bar.unpack`."""
        return pack(_bar_row(self))

    @classmethod
    def unpack(cls, data: bytes) -> Bar:
        """The bar that `pack` wrote. `ValueError` with one line for other data."""
        return _read_bar(unpack(data, _BAR, "bar"))

    def _refine(self, scale: Scale) -> None:
        """Takes the finest of both scales, in place."""
        finest = self.scale.finest(scale)
        if finest == self.scale:
            return
        by_price, by_quantity = 10 ** (finest.price - self.scale.price), 10 ** (finest.quantity - self.scale.quantity)
        self.open, self.high, self.low, self.close = (
            None if price is None else price * by_price for price in (self.open, self.high, self.low, self.close)
        )
        self.min_delta = None if self.min_delta is None else self.min_delta * by_quantity
        self.max_delta = None if self.max_delta is None else self.max_delta * by_quantity
        self.buy_volume *= by_quantity
        self.sell_volume *= by_quantity
        self.notional *= by_price * by_quantity
        self.scale = finest

    def _aligned(self, other: Bar) -> tuple[Bar, Bar]:
        """Copies of both bars at one scale."""
        finest = self.scale.finest(other.scale)
        return self.rescaled(finest), other.rescaled(finest)

    def _merge_unordered(self, other: Bar) -> None:
        """Adds, in place, the figures of `other` that do not depend on order. Neither bar is empty. Min and max delta become None."""
        if self.high is not None and other.high is not None:
            self.high = max(self.high, other.high)
        if self.low is not None and other.low is not None:
            self.low = min(self.low, other.low)
        self.buy_volume += other.buy_volume
        self.sell_volume += other.sell_volume
        self.trade_count += other.trade_count
        self.notional += other.notional
        self.min_delta = self.max_delta = None


class Footprint:
    """A bar and its cells: volume and fills by price and side. Prices are integers at `bar.scale.price`.

    An unpacked footprint keeps its columns until its cells are read: most are only merged into another one. In columns a price takes 40
    bytes, in cells about 300.
    """

    __slots__ = ("_cells", "_columns", "bar")

    def __init__(self, scale: Scale) -> None:
        self.bar = Bar(scale)
        self._cells: dict[int, Cell] | None = {}
        self._columns: _Columns | None = None

    @property
    def cells(self) -> dict[int, Cell]:
        """The cell of each price with trades."""
        cells = self._cells
        if cells is None:
            assert self._columns is not None
            steps, *columns = self._columns
            cells = self._cells = dict(zip(accumulate(steps), map(list, zip(*columns, strict=True)), strict=True))
            self._columns = None
        return cells

    @cells.setter
    def cells(self, cells: dict[int, Cell]) -> None:
        self._cells, self._columns = cells, None

    @property
    def levels(self) -> int:
        """Number of prices with trades."""
        return len(self.cells) if self._columns is None else len(self._columns[0])

    @property
    def scale(self) -> Scale:
        """Scale of the integers of bar and cells."""
        return self.bar.scale

    def add(self, *trades: Trade) -> None:
        """Adds trades; see `Bar.add`."""
        before = self.scale
        bar = self.bar
        rescaled = bar._at_own_scale(trades)
        cells = self.cells
        if bar.scale != before:
            cells = self.cells = _rescaled_cells(cells, before, bar.scale)
        bar._count(rescaled)
        for trade in rescaled:
            try:
                cell = cells[trade.price]
            except KeyError:
                cell = cells[trade.price] = [0, 0, 0, 0]
            if trade.trade_type is _BUY:
                cell[0] += trade.quantity
                cell[2] += trade.fills
            else:
                cell[1] += trade.quantity
                cell[3] += trade.fills

    def rescaled(self, scale: Scale) -> Footprint:
        """A copy at a finer scale that shares nothing with this footprint. `ValueError` if the footprint has more decimals than `scale`."""
        _check_finer(self.scale, scale)
        footprint = Footprint(scale)
        footprint._add_cells(self)
        footprint.bar = self.bar.rescaled(scale)
        return footprint

    def at(self, scale: Scale) -> Footprint:
        """This footprint if it has that scale, else a copy at it. Only for callers that change neither."""
        return self if self.scale == scale else self.rescaled(scale)

    def merge_later(self, later: Footprint) -> Footprint:
        """This footprint and a later one of the same instrument merged into one; see `Bar.merge_later`."""
        footprint = self.rescaled(self.scale.finest(later.scale))
        footprint._add_cells(later)
        footprint.bar = footprint.bar.merge_later(later.bar)
        return footprint

    def merge_parallel(self, other: Footprint) -> Footprint:
        """Two footprints of the same time on two instruments merged into one; see `Bar.merge_parallel`."""
        footprint = self.rescaled(self.scale.finest(other.scale))
        footprint._add_cells(other)
        footprint.bar = footprint.bar.merge_parallel(other.bar)
        return footprint

    def merge_parallel_in_place(self, other: Footprint) -> None:
        """`merge_parallel` in place: merges `other` into this footprint and leaves `other` unchanged."""
        self._refine(other.scale)
        self._add_cells(other)
        self.bar = self.bar.merge_parallel(other.bar)

    @classmethod
    def merge_consecutive(
        cls, footprints: Iterable[Footprint], scale: Scale, *, row: Decimal | None = None, give_up: bool = False
    ) -> Footprint:
        """Merges footprints of one instrument, given in time order, at the finest scale of `scale` and theirs.

        With `row` (in price units) each cell of the result is a row of that size, named by its low price. This is all that a profile with
        such rows needs, in a tenth of the time. The bar is the same as without `row`.

        With `give_up` the caller does not use the footprints afterwards: the result takes over the cells of the largest one.
        """
        parts = list(footprints)
        for footprint in parts:
            scale = scale.finest(footprint.scale)
        merged = cls(scale)
        if row is not None:
            size = at_decimals(row, scale.price)
            for footprint in parts:
                merged._add_rows(footprint.at(scale), size)
                merged.bar = merged.bar.merge_later(footprint.bar)
            return merged
        largest = max((one for one in parts if one.scale == scale), key=lambda one: one.levels, default=None) if give_up else None
        if largest is not None:
            merged.cells = largest.cells
        for footprint in parts:
            if footprint is not largest:
                merged._add_cells(footprint)
            merged.bar = merged.bar.merge_later(footprint.bar)
        return merged

    def merge_later_in_place(self, later: Iterable[Footprint], row: Decimal | None = None) -> None:
        """Merges later footprints of the same instrument, in time order, into this one. They stay unchanged.

        With `row` as in `merge_consecutive`: the cells of this footprint are, or become, rows of that size.
        """
        for footprint in later:
            self._refine(footprint.scale)
            if row is None:
                self._add_cells(footprint)
            else:
                self._add_rows(footprint.at(self.scale), at_decimals(row, self.scale.price))
            self.bar = self.bar.merge_later(footprint.bar)

    def _add_rows(self, other: Footprint, row: int) -> None:
        """Adds the cells of a footprint of the same scale to the cells of their rows. The caller merges the bars."""
        prices, columns = other.columns()
        rows, start, count = self.cells, 0, len(prices)
        while start < count:
            bottom = prices[start] - prices[start] % row
            end = bisect_left(prices, bottom + row, start)
            added = [sum(column[start:end]) for column in columns]
            cell = rows.get(bottom)
            rows[bottom] = added if cell is None else [*map(add, cell, added)]
            start = end

    def columns(self) -> tuple[list[int], Sequence[Sequence[int]]]:
        """The prices from low to high, and the columns of their cells: buy volume, sell volume, buy fills, sell fills."""
        if self._columns is not None:
            steps, *columns = self._columns
            return list(accumulate(steps)), columns
        prices = sorted(self.cells)
        return prices, list(zip(*map(self.cells.__getitem__, prices), strict=True)) if prices else ((), (), (), ())

    def _add_cells(self, other: Footprint) -> None:
        """Adds, in place, the cells of a footprint whose scale is not finer than this one's. The caller merges the bars."""
        mine, finest = self.cells, self.scale
        if other._columns is not None and other.scale == finest:
            steps, *columns = other._columns
            for price, buy, sell, buy_fills, sell_fills in zip(accumulate(steps), *columns, strict=True):
                cell = mine.get(price)
                if cell is None:
                    mine[price] = [buy, sell, buy_fills, sell_fills]
                else:
                    cell[0] += buy
                    cell[1] += sell
                    cell[2] += buy_fills
                    cell[3] += sell_fills
            return
        for price, added in (other.cells if other.scale == finest else _rescaled_cells(other.cells, other.scale, finest)).items():
            cell = mine.get(price)
            if cell is None:
                mine[price] = added.copy()
            else:
                cell[0] += added[0]
                cell[1] += added[1]
                cell[2] += added[2]
                cell[3] += added[3]

    def _refine(self, scale: Scale) -> None:
        """Takes the finest of both scales, in place."""
        before = self.scale
        self.bar._refine(scale)
        if self.scale != before:
            self.cells = _rescaled_cells(self.cells, before, self.scale)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Footprint) and self.bar == other.bar and self.cells == other.cells

    def __repr__(self) -> str:
        return f"Footprint({self.bar!r}, {self.levels} prices)"

    def pack(self) -> bytes:
        """The footprint as MessagePack: the bar, then columns of the cells sorted by price, prices as differences."""
        if self._columns is not None:
            return pack((_bar_row(self.bar), *map(list, self._columns)))
        cells = self.cells
        prices = sorted(cells)
        steps = [*prices[:1], *map(sub, prices[1:], prices)]
        columns = zip(*map(cells.__getitem__, prices), strict=True) if prices else ((), (), (), ())
        return pack((_bar_row(self.bar), steps, *map(list, columns)))

    @classmethod
    def unpack(cls, data: bytes, row: Decimal | None = None) -> Self:
        """The footprint that `pack` wrote. `row` is the row size that `merge_consecutive` was given, if any.

        `ValueError` with one line for other data, and for cells that do not add up to their bar.
        """
        bar_row, *packed = unpack(data, _FOOTPRINT, "footprint")
        columns: list[Sequence[int]] = []
        least: list[int] = []
        sums: list[int] = []
        # One column at a time: as Python integers, those of a day take megabytes.
        for number, column in enumerate(packed):
            values, kept = _compact(_decoded(column, _COLUMN, data, "footprint"))
            least.append(min(values[1:] if number == 0 else values, default=1))
            sums.append(sum(values))
            columns.append(kept)
        steps = columns[0]
        footprint = cls(Scale(0, 0))
        bar = footprint.bar = _read_bar(bar_row)
        if any(len(column) != len(steps) for column in columns):
            raise ValueError(
                f"a packed footprint is malformed: {len(steps)} prices, but columns of {[len(column) for column in columns[1:]]}"
            )
        if least[0] <= 0 or min(least[1:]) < 0:
            raise ValueError("a packed footprint is malformed: prices must ascend, volumes and counts must not be negative")
        highest, buys, sells, buy_fills, sell_fills = sums
        outermost = [steps[0], highest] if steps else [None, None]
        if row is not None and bar.low is not None and bar.high is not None:
            size = at_decimals(row, bar.scale.price)
            if outermost == [bar.low - bar.low % size, bar.high - bar.high % size]:
                outermost = [bar.low, bar.high]
        totals = (*outermost, buys, sells, buy_fills + sell_fills)
        if totals != (bar.low, bar.high, bar.buy_volume, bar.sell_volume, bar.trade_count):
            raise ValueError("a packed footprint is malformed: its cells do not add up to its bar")
        footprint._cells, footprint._columns = None, tuple(columns)
        return footprint


def _check_finer(scale: Scale, finer: Scale) -> None:
    if scale.finest(finer) != finer:
        raise ValueError(f"{scale} cannot be converted to {finer} without rounding; both numbers of decimals must be at least as large")


def _rescaled_trade(trade: Trade, scale: Scale) -> Trade:
    return msgspec.structs.replace(
        trade,
        price=rescale(trade.price, trade.scale.price, scale.price),
        quantity=rescale(trade.quantity, trade.scale.quantity, scale.quantity),
        scale=scale,
    )


def _rescaled_cells(cells: dict[int, Cell], scale: Scale, finer: Scale) -> dict[int, Cell]:
    by_price, by_quantity = 10 ** (finer.price - scale.price), 10 ** (finer.quantity - scale.quantity)
    return {price * by_price: [buy * by_quantity, sell * by_quantity, *fills] for price, (buy, sell, *fills) in cells.items()}


Packed: TypeAlias = int | bytes
"""An integer in MessagePack: an integer up to 64 bits, big-endian two's complement bytes beyond that."""

_Row: TypeAlias = list[Packed | None]
_Column: TypeAlias = list[Packed]
_MAX_INTEGER_BYTES: Final = 128
"""Longest packed integer that is read: more than any sum of prices times quantities needs, and short enough to be harmless."""
_MAX_DECIMALS: Final = 255
"""Most decimals of a scale that is read."""

_VERSIONED: Final = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw])
_BAR: Final = msgspec.msgpack.Decoder(_Row)
_FOOTPRINT: Final = msgspec.msgpack.Decoder(tuple[_Row, msgspec.Raw, msgspec.Raw, msgspec.Raw, msgspec.Raw, msgspec.Raw])
_COLUMN: Final = msgspec.msgpack.Decoder(_Column)
_encode: Final = msgspec.msgpack.Encoder().encode


def pack(content: object) -> bytes:
    """Encodes lists, texts and integers of any size as MessagePack, preceded by the version."""
    try:
        return _encode((VERSION, content))
    except OverflowError:
        return _encode((VERSION, _widened(content)))


T = TypeVar("T")


def unpack(data: bytes, decoder: msgspec.msgpack.Decoder[T], what: str) -> T:
    """Decodes packed data with `decoder`. `ValueError` with one line for malformed data and other versions; it names `what` was packed."""
    version, content = _decoded(data, _VERSIONED, data, what)
    if version == VERSION:
        return _decoded(content, decoder, data, what)
    raise ValueError(f"a packed {what} has version {version}; this release reads version {VERSION}")


def _decoded(part: bytes | msgspec.Raw, decoder: msgspec.msgpack.Decoder[T], data: bytes, what: str) -> T:
    """A part of `data`, in which a `what` is packed; `ValueError` where it is malformed."""
    try:
        return decoder.decode(part)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"a packed {what} of {len(data)} bytes is malformed: {error}") from error


def integer(value: Packed) -> int:
    """The integer that `pack` was given."""
    if isinstance(value, int):
        return value
    if len(value) > _MAX_INTEGER_BYTES:
        raise ValueError(f"a packed integer of {len(value)} bytes is malformed: at most {_MAX_INTEGER_BYTES} bytes are allowed")
    return int.from_bytes(value, signed=True)


def integers(column: list[Packed]) -> list[int]:
    """The column of integers that `pack` was given."""
    return [integer(value) for value in column] if bytes in map(type, column) else cast("list[int]", column)


def _compact(column: list[Packed]) -> tuple[list[int], Sequence[int]]:
    """The column of integers that `pack` was given, and the same in eight bytes each, unless one of them has more than 64 bits."""
    try:
        return cast("list[int]", column), array("q", cast("list[int]", column))
    except (TypeError, OverflowError):
        values = integers(column)
        return values, values


def _widened(content: object) -> object:
    if isinstance(content, int):
        return content if -(1 << 63) <= content < 1 << 63 else content.to_bytes(content.bit_length() // 8 + 1, signed=True)
    return [_widened(item) for item in content] if isinstance(content, list | tuple) else content


def _bar_row(bar: Bar) -> list[int | None]:
    scale, *figures = msgspec.structs.astuple(bar)
    return [*scale, *figures]


def _read_bar(row: _Row) -> Bar:
    values = [None if value is None else integer(value) for value in row]
    if len(values) != 1 + len(Bar.__struct_fields__):
        raise ValueError(f"a packed bar is malformed: {len(values)} figures, expected {1 + len(Bar.__struct_fields__)}")
    try:
        bar = msgspec.convert([values[:2], *values[2:]], Bar)
    except msgspec.ValidationError as error:
        raise ValueError(f"a packed bar is malformed: {error}") from error
    if not all(0 <= decimals <= _MAX_DECIMALS for decimals in bar.scale):
        raise ValueError(f"a packed bar is malformed: {bar.scale} is outside 0 to {_MAX_DECIMALS} decimals")
    if (bar.high is None) != (bar.low is None) or (bar.high is None and bar.volume):
        raise ValueError("a packed bar is malformed: it has volume without prices")
    return bar
