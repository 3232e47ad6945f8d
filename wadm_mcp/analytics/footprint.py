"""The mergeable aggregate: what one stretch of one instrument's tape leaves behind.

A `Bar` holds the figures that depend on the order of trades, a `Footprint` adds volume and fills by price and side.
Everything else (profiles, order flow, longer bars) is a merge of these. All numbers are exact integers at the bar's
`Scale`; a finer price or quantity rescales the whole, nothing is ever rounded.
"""

from __future__ import annotations

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
"""What traded at one price: `[buy_volume, sell_volume, buy_fills, sell_fills]`."""

_Columns: TypeAlias = tuple[list[int], ...]
"""Of the packed form: the differences of the prices, then buy volume, sell volume, buy fills, sell fills."""

VERSION: Final = 1
"""Of the packed form. A reader refuses every other."""

_BUY: Final = TradeType.BUY


class Bar(msgspec.Struct, gc=False, array_like=True, forbid_unknown_fields=True):
    """The figures of one stretch of trades. With `trade_count` 0 it is empty and its prices are None.

    `trade_count` is a sum of fills. `notional` is the sum of price times quantity, at `scale.price + scale.quantity` decimals.
    `first_at`, `first_seq`, `last_at`, `last_seq` are time and seq of the outermost trades.
    `min_delta` and `max_delta` are the extremes of the delta after each matching event, in the exchange's order, the start value 0 not
    counted; None in a bar that is not empty means that they cannot be computed. Trades of one timestamp and seq are one event: one
    aggressor made them, and in which order nobody says, so that only the first event of a bar must be seen whole.
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
        """Count trades, one after the other. Open and close are exact whatever the order of arrival.

        A trade that lies before the last one by (timestamp, seq) makes `min_delta` and `max_delta` None for good: the path
        between is unknown.
        """
        self._fold(self._alike(trades))

    def _alike(self, trades: Sequence[Trade]) -> Sequence[Trade]:
        """The trades at the scale of the bar, which becomes the finest of all."""
        scale = self.scale
        for trade in trades:
            if trade.scale is not scale and trade.scale != scale:
                break
        else:
            return trades
        for trade in trades:
            self._refine(trade.scale)
        return [_at(trade, self.scale) for trade in trades]

    def _fold(self, trades: Iterable[Trade]) -> None:
        """Count trades at the bar's scale. Hot: every trade comes through here, so the figures are locals meanwhile."""
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
        """A copy with more decimals; `ValueError` where the bar has more decimals than `scale`."""
        _check_finer(self.scale, scale)
        bar = copy(self)
        bar._refine(scale)
        return bar

    def then(self, later: Bar) -> Bar:
        """This stretch and the one that follows it on the same instrument, as one. Associative; an empty bar changes nothing."""
        one, two = self._aligned(later)
        if one.high is None or two.high is None:
            return two if one.high is None else one
        delta, lowest, highest = one.delta, one.min_delta, one.max_delta
        one._include(two)
        one.close, one.last_at, one.last_seq = two.close, two.last_at, two.last_seq
        if lowest is not None and two.min_delta is not None:
            one.min_delta = min(lowest, delta + two.min_delta)
        if highest is not None and two.max_delta is not None:
            one.max_delta = max(highest, delta + two.max_delta)
        return one

    def beside(self, other: Bar) -> Bar:
        """The same stretch on two instruments, as one: exchanges order their own trades only, so min and max delta are lost.

        Open comes from the side that traded first, close from the one that traded last; on equal times from this one.
        """
        one, two = self._aligned(other)
        if one.high is None or two.high is None:
            return two if one.high is None else one
        one._include(two)
        if two.first_at < one.first_at:
            one.open, one.first_at, one.first_seq = two.open, two.first_at, two.first_seq
        if two.last_at > one.last_at:
            one.close, one.last_at, one.last_seq = two.close, two.last_at, two.last_seq
        return one

    def pack(self) -> bytes:
        """The bar as MessagePack; `Bar.unpack` reads it back equal."""
        return pack(_bar_row(self))

    @classmethod
    def unpack(cls, data: bytes) -> Bar:
        """A packed bar; `ValueError` with one line for anything else."""
        return _read_bar(unpack(data, _BAR, "bar"))

    def _refine(self, scale: Scale) -> None:
        """Take on the finest of both scales, in place."""
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

    def _include(self, other: Bar) -> None:
        """Take in, in place, what does not depend on order. Neither bar is empty; min and max delta are left unknown."""
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

    One that was unpacked keeps its columns until somebody asks for a cell: most are merged into another and never looked into.
    """

    __slots__ = ("_cells", "_columns", "bar")

    def __init__(self, scale: Scale) -> None:
        self.bar = Bar(scale)
        self._cells: dict[int, Cell] | None = {}
        self._columns: _Columns | None = None

    @property
    def cells(self) -> dict[int, Cell]:
        """What traded at each price."""
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
        """Prices at which it traded."""
        return len(self.cells) if self._columns is None else len(self._columns[0])

    @property
    def scale(self) -> Scale:
        """What the integers of bar and cells stand for."""
        return self.bar.scale

    def add(self, *trades: Trade) -> None:
        """Count trades, one after the other; see `Bar.add`."""
        before = self.scale
        bar = self.bar
        alike = bar._alike(trades)
        cells = self.cells
        if bar.scale != before:
            cells = self.cells = _refined(cells, before, bar.scale)
        bar._fold(alike)
        for trade in alike:
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
        """The same footprint with more decimals, sharing nothing with this one; `ValueError` for fewer decimals."""
        _check_finer(self.scale, scale)
        footprint = Footprint(scale)
        footprint._include(self)
        footprint.bar = self.bar.rescaled(scale)
        return footprint

    def at(self, scale: Scale) -> Footprint:
        """This footprint where it is at that scale, else a copy with more decimals; for those who change neither."""
        return self if self.scale == scale else self.rescaled(scale)

    def then(self, later: Footprint) -> Footprint:
        """This stretch and the one that follows it on the same instrument, as one; see `Bar.then`."""
        footprint = self.rescaled(self.scale.finest(later.scale))
        footprint._include(later)
        footprint.bar = footprint.bar.then(later.bar)
        return footprint

    def beside(self, other: Footprint) -> Footprint:
        """The same stretch on two instruments, as one; see `Bar.beside`."""
        footprint = self.rescaled(self.scale.finest(other.scale))
        footprint._include(other)
        footprint.bar = footprint.bar.beside(other.bar)
        return footprint

    def take_beside(self, other: Footprint) -> None:
        """As `beside`, in place; `other` is left as it is."""
        self._refine(other.scale)
        self._include(other)
        self.bar = self.bar.beside(other.bar)

    @classmethod
    def consecutive(cls, footprints: Iterable[Footprint], scale: Scale, *, row: Decimal | None = None, give_up: bool = False) -> Footprint:
        """Many stretches of one instrument, given in time order, as one at the finest scale of `scale` and theirs. Who gives them up lets
        the merge grow in the largest of them.

        With `row` (in price units) each cell is a row of that size, at the multiple of it from which on it reaches: all that a profile of
        such rows needs, for a tenth of the time. Bar and sums are those of the single prices.
        """
        stretches = list(footprints)
        for footprint in stretches:
            scale = scale.finest(footprint.scale)
        merged = cls(scale)
        if row is not None:
            size = at_decimals(row, scale.price)
            for footprint in stretches:
                merged._fold(footprint.at(scale), size)
                merged.bar = merged.bar.then(footprint.bar)
            return merged
        largest = max((one for one in stretches if one.scale == scale), key=lambda one: one.levels, default=None) if give_up else None
        if largest is not None:
            merged.cells = largest.cells
        for footprint in stretches:
            if footprint is not largest:
                merged._include(footprint)
            merged.bar = merged.bar.then(footprint.bar)
        return merged

    def _fold(self, other: Footprint, row: int) -> None:
        """Add the cells of a footprint of the same scale to those of the rows they lie in; the bar is left to the caller."""
        prices, columns = other._sorted()
        held, place, count = self.cells, 0, len(prices)
        while place < count:
            bottom = prices[place] - prices[place] % row
            end = bisect_left(prices, bottom + row, place)
            added = [sum(column[place:end]) for column in columns]
            mine = held.get(bottom)
            held[bottom] = added if mine is None else [*map(add, mine, added)]
            place = end

    def _sorted(self) -> tuple[list[int], Sequence[Sequence[int]]]:
        """Prices from low to high, and their columns."""
        if self._columns is not None:
            steps, *columns = self._columns
            return list(accumulate(steps)), columns
        prices = sorted(self.cells)
        return prices, list(zip(*map(self.cells.__getitem__, prices), strict=True))

    def _include(self, other: Footprint) -> None:
        """Add the cells of a footprint at a scale that is no finer, in place; the bar is left to the caller."""
        held, finest = self.cells, self.scale
        if other._columns is not None and other.scale == finest:
            steps, *columns = other._columns
            for price, buy, sell, buy_fills, sell_fills in zip(accumulate(steps), *columns, strict=True):
                mine = held.get(price)
                if mine is None:
                    held[price] = [buy, sell, buy_fills, sell_fills]
                else:
                    mine[0] += buy
                    mine[1] += sell
                    mine[2] += buy_fills
                    mine[3] += sell_fills
            return
        for price, cell in (other.cells if other.scale == finest else _refined(other.cells, other.scale, finest)).items():
            mine = held.get(price)
            if mine is None:
                held[price] = cell.copy()
            else:
                mine[0] += cell[0]
                mine[1] += cell[1]
                mine[2] += cell[2]
                mine[3] += cell[3]

    def _refine(self, scale: Scale) -> None:
        """Take on the finest of both scales, in place."""
        before = self.scale
        self.bar._refine(scale)
        if self.scale != before:
            self.cells = _refined(self.cells, before, self.scale)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Footprint) and self.bar == other.bar and self.cells == other.cells

    def __repr__(self) -> str:
        return f"Footprint({self.bar!r}, {self.levels} prices)"

    def pack(self) -> bytes:
        """The footprint as MessagePack: the bar, then columns of the cells sorted by price, prices as differences."""
        if self._columns is not None:
            return pack((_bar_row(self.bar), *self._columns))
        cells = self.cells
        prices = sorted(cells)
        steps = [*prices[:1], *map(sub, prices[1:], prices)]
        columns = zip(*map(cells.__getitem__, prices), strict=True) if prices else ((), (), (), ())
        return pack((_bar_row(self.bar), steps, *map(list, columns)))

    @classmethod
    def unpack(cls, data: bytes, row: Decimal | None = None) -> Self:
        """A packed footprint; `ValueError` with one line for anything else, and for cells that do not add up to their bar. `row` is the
        one that its cells were made by in `consecutive`."""
        outline, *packed = unpack(data, _FOOTPRINT, "footprint")
        steps, *columns = (integers(column) for column in packed)
        footprint = cls(Scale(0, 0))
        bar = footprint.bar = _read_bar(outline)
        if any(len(column) != len(steps) for column in columns):
            raise ValueError(f"a packed footprint is malformed: {len(steps)} prices, but columns of {[len(column) for column in columns]}")
        if min(steps[1:], default=1) <= 0 or any(min(column, default=0) < 0 for column in columns):
            raise ValueError("a packed footprint is malformed: prices must ascend, volumes and counts must not be negative")
        buys, sells, buy_fills, sell_fills = map(sum, columns)
        outermost = [steps[0], sum(steps)] if steps else [None, None]
        if row is not None and bar.low is not None and bar.high is not None:
            size = at_decimals(row, bar.scale.price)
            if outermost == [bar.low - bar.low % size, bar.high - bar.high % size]:
                outermost = [bar.low, bar.high]
        found = (*outermost, buys, sells, buy_fills + sell_fills)
        if found != (bar.low, bar.high, bar.buy_volume, bar.sell_volume, bar.trade_count):
            raise ValueError("a packed footprint is malformed: its cells do not add up to its bar")
        footprint._cells, footprint._columns = None, (steps, *columns)
        return footprint


def _check_finer(scale: Scale, finer: Scale) -> None:
    if scale.finest(finer) != finer:
        raise ValueError(f"{scale} cannot be written at {finer} without rounding; give a scale at least as fine in both")


def _at(trade: Trade, scale: Scale) -> Trade:
    return msgspec.structs.replace(
        trade,
        price=rescale(trade.price, trade.scale.price, scale.price),
        quantity=rescale(trade.quantity, trade.scale.quantity, scale.quantity),
        scale=scale,
    )


def _refined(cells: dict[int, Cell], scale: Scale, finer: Scale) -> dict[int, Cell]:
    by_price, by_quantity = 10 ** (finer.price - scale.price), 10 ** (finer.quantity - scale.quantity)
    return {price * by_price: [buy * by_quantity, sell * by_quantity, *fills] for price, (buy, sell, *fills) in cells.items()}


Packed: TypeAlias = int | bytes
"""An integer in MessagePack: its own form up to 64 bits, beyond that big-endian two's complement bytes."""

_Row: TypeAlias = list[Packed | None]
_Column: TypeAlias = list[Packed]
_LONGEST: Final = 128
"""Bytes of the largest integer that is read: far beyond any sum of prices times quantities, small enough to be harmless."""
_FINEST: Final = 255
"""Decimals of the finest scale that is read."""

_SEALED: Final = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw])
_BAR: Final = msgspec.msgpack.Decoder(_Row)
_FOOTPRINT: Final = msgspec.msgpack.Decoder(tuple[_Row, _Column, _Column, _Column, _Column, _Column])
_encode: Final = msgspec.msgpack.Encoder().encode


def pack(content: object) -> bytes:
    """Lists, texts and integers of any size as versioned MessagePack."""
    try:
        return _encode((VERSION, content))
    except OverflowError:
        return _encode((VERSION, _widened(content)))


T = TypeVar("T")


def unpack(data: bytes, decoder: msgspec.msgpack.Decoder[T], what: str) -> T:
    """The content that `decoder` expects of `what`; `ValueError` with one line for an unknown version and anything malformed."""
    try:
        version, content = _SEALED.decode(data)
        if version == VERSION:
            return decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"a packed {what} of {len(data)} bytes is malformed: {error}") from error
    raise ValueError(f"a packed {what} has version {version}; this release reads version {VERSION}")


def integer(value: Packed) -> int:
    """An integer as it was before `pack`."""
    if isinstance(value, int):
        return value
    if len(value) > _LONGEST:
        raise ValueError(f"a packed integer of {len(value)} bytes is malformed: at most {_LONGEST} are read")
    return int.from_bytes(value, signed=True)


def integers(column: list[Packed]) -> list[int]:
    """A column of integers as it was before `pack`."""
    return [integer(value) for value in column] if bytes in map(type, column) else cast("list[int]", column)


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
        raise ValueError(f"a packed bar is malformed: {len(values)} figures where {1 + len(Bar.__struct_fields__)} belong")
    try:
        bar = msgspec.convert([values[:2], *values[2:]], Bar)
    except msgspec.ValidationError as error:
        raise ValueError(f"a packed bar is malformed: {error}") from error
    if not all(0 <= decimals <= _FINEST for decimals in bar.scale):
        raise ValueError(f"a packed bar is malformed: {bar.scale} lies outside 0 to {_FINEST} decimals")
    if (bar.high is None) != (bar.low is None) or (bar.high is None and bar.volume):
        raise ValueError("a packed bar is malformed: it has volume without prices")
    return bar
