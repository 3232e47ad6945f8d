"""Volume profiles: the volume of a footprint by price, with point of control, value area and nodes.

Pure integer arithmetic at the footprint's scale. Rows start at multiples of the row size, so that profiles of different windows and
exchanges have the same rows. Rows are contiguous; a row without trades has volume 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate
from operator import sub
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from wadm_mcp.analytics.footprint import Bar, Footprint, Packed, integer, integers, pack, unpack
from wadm_mcp.model import Scale, to_decimal

Method: TypeAlias = Literal["two_row", "one_row"]
"""How many rows the value area adds at a time."""

RULE_VERSION: Final = 1
"""Version of the rules that place the point of control and the value area. Every stored profile and cached level has it; the first version
is not written out.

Raise it whenever `point_of_control`, `value_area` or `default_row` gives another result for the same trades: stored profiles then state
which rule made them, and cached levels of the rule before are not used.
"""

MAX_ROWS: Final = 200_000
"""Most rows of a profile, from its lowest to its highest price, rows without trades included."""


class Node(NamedTuple):
    """A row with trades. `price` is its low price, `trade_count` the sum of fills."""

    price: int
    buy_volume: int
    sell_volume: int
    trade_count: int

    @property
    def volume(self) -> int:
        """Quantity traded on both sides."""
        return self.buy_volume + self.sell_volume


class VolumeProfile(msgspec.Struct, frozen=True):
    """The profile of one window. Prices are integers at `scale.price`, volumes at `scale.quantity`, `notional` at both together.

    `poc` and `val` are the low prices of their rows, `vah` is the top tick of the highest row of the value area.
    `value_area` is the percentage asked for; `nodes` are the rows where something traded, low to high. `rule_version` is the
    `RULE_VERSION` that placed `poc`, `vah` and `val`.
    """

    scale: Scale
    tick: int
    row: int
    method: Method
    value_area: int
    poc: int
    vah: int
    val: int
    volume: int
    buy_volume: int
    sell_volume: int
    trade_count: int
    notional: int
    nodes: tuple[Node, ...]
    rule_version: int = RULE_VERSION

    @property
    def delta(self) -> int:
        """Taker buy volume minus taker sell volume."""
        return self.buy_volume - self.sell_volume

    def pack(self) -> bytes:
        """The profile as MessagePack; `VolumeProfile.unpack` reads it back equal.

        The first rule version is not written, so that releases from before rule versions read these profiles too.
        """
        figures = msgspec.structs.astuple(self)[1:-2]
        rows = [node.price // self.row for node in self.nodes]
        columns = ([node[column] for node in self.nodes] for column in range(1, 4))
        version = () if self.rule_version == _UNWRITTEN_VERSION else (self.rule_version,)
        return pack((self.scale, figures, [*rows[:1], *map(sub, rows[1:], rows)], *columns, *version))

    @classmethod
    def unpack(cls, data: bytes) -> VolumeProfile:
        """A packed profile; `ValueError` with one line for anything else, and for nodes that do not add up to their profile."""
        content = unpack(data, _PROFILE, "profile")
        packed_tick, packed_row, method, *packed_figures = content.outline
        packed = content.steps, content.buy_volumes, content.sell_volumes, content.trade_counts
        tick, row, figures = integer(packed_tick), integer(packed_row), integers(packed_figures)
        steps, *columns = (integers(column) for column in packed)
        if tick <= 0 or row <= 0 or row % tick:
            raise ValueError(f"a packed profile is malformed: a row of {row} is not a positive multiple of the tick {tick}")
        if any(len(column) != len(steps) for column in columns):
            raise ValueError(f"a packed profile is malformed: {len(steps)} rows, but columns of {[len(column) for column in columns]}")
        if min(steps[1:], default=1) <= 0 or any(min(column, default=0) < 0 for column in columns):
            raise ValueError("a packed profile is malformed: rows must ascend, volumes and counts must not be negative")
        prices = (index * row for index in accumulate(steps))
        nodes = tuple(map(Node, prices, *columns))
        profile = cls(content.scale, tick, row, method, *figures, nodes=nodes, rule_version=content.rule_version)
        totals = [profile.buy_volume, profile.sell_volume, profile.trade_count]
        if totals != [sum(column) for column in columns] or profile.volume != profile.buy_volume + profile.sell_volume:
            raise ValueError("a packed profile is malformed: its nodes do not add up to its totals")
        return profile


_UNWRITTEN_VERSION: Final = 1
"""Rule version of a packed profile that states none."""


class _PackedProfile(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The content of a packed profile; `rule_version` is left out where it is the first one."""

    scale: Scale
    outline: tuple[Packed, Packed, Method, Packed, Packed, Packed, Packed, Packed, Packed, Packed, Packed, Packed]
    steps: list[Packed]
    buy_volumes: list[Packed]
    sell_volumes: list[Packed]
    trade_counts: list[Packed]
    rule_version: int = _UNWRITTEN_VERSION


_PROFILE: Final = msgspec.msgpack.Decoder(_PackedProfile)


def point_of_control(volumes: Sequence[int]) -> int:
    """Index of the row with the greatest volume. Of equal rows the one nearest to the middle of the profile wins, then the lower one.

    `volumes` are contiguous rows, low to high, at least one.
    """
    greatest, middle = max(volumes), len(volumes) - 1
    return min((row for row, volume in enumerate(volumes) if volume == greatest), key=lambda row: abs(2 * row - middle))


def value_area(volumes: Sequence[int], poc: int, percent: int = 70, method: Method = "two_row") -> tuple[int, int]:
    """The rows around the POC with at least `percent` of the volume, grown two rows at a time (`one_row`: one at a time).

    `volumes` are contiguous rows, low to high, 0 where nothing traded. Returns the indexes of the lowest and the highest row, both
    inclusive. Each step adds the next rows of the side where they have more volume, the upper side if they are equal. If a side has only
    one row left, that row is compared alone. Reaching exactly `percent` is enough (Dalton, *Mind over Markets*).
    """
    step = 1 if method == "one_row" else 2
    low = high = poc
    top = len(volumes) - 1
    inside, target = volumes[poc], sum(volumes) * percent
    while inside * 100 < target:
        above = sum(volumes[high + 1 : high + 1 + step])
        below = sum(volumes[max(0, low - step) : low])
        if high < top and (low == 0 or above >= below):
            inside, high = inside + above, min(top, high + step)
        else:
            inside, low = inside + below, max(0, low - step)
    return low, high


def default_row(low: int, high: int, tick: int, rows: int = 100) -> int:
    """The smallest row of 1, 2 or 5 times a power of ten ticks of which at most `rows` fit between `low` and `high`."""
    power = 1
    while True:
        for step in (1, 2, 5):
            if high - low <= rows * step * power * tick:
                return step * power * tick
        power *= 10


def row_count(low: int, high: int, row: int) -> int:
    """Number of rows from the one with price `low` to the one with price `high`, both included."""
    return high // row - low // row + 1


def smallest_row(low: int, high: int, tick: int) -> int:
    """The row size, a multiple of `tick`, from which on `low` to `high` has at most `MAX_ROWS` rows."""
    return max(1, -((low - high) // ((MAX_ROWS - 2) * tick))) * tick


def volume_profile(
    footprint: Footprint, *, tick: int, row: int | None = None, percent: int = 70, method: Method = "two_row"
) -> VolumeProfile | None:
    """The profile of a footprint, None where nothing traded.

    `tick` and `row` are integers at `footprint.scale.price`; `row` defaults to `default_row`. `ValueError` for a row that is not a
    positive multiple of the tick, for more than `MAX_ROWS` rows, and for a percentage outside 1 to 100.
    """
    bar = footprint.bar
    decimals = bar.scale.price
    if not 1 <= percent <= 100:
        raise ValueError(f"a value area of {percent} percent is outside 1 to 100; 70 is usual")
    if tick <= 0:
        raise ValueError(f"a tick of {to_decimal(tick, decimals)} is not a price step; it must be above 0")
    if row is not None and (row <= 0 or row % tick):
        raise ValueError(f"a row of {to_decimal(row, decimals)} is not a positive multiple of the tick {to_decimal(tick, decimals)}")
    if bar.low is None or bar.high is None:
        return None
    row = row or default_row(bar.low, bar.high, tick)
    rows = row_count(bar.low, bar.high, row)
    if rows > MAX_ROWS:
        fits = to_decimal(smallest_row(bar.low, bar.high, tick), decimals)
        raise ValueError(
            f"a row of {to_decimal(row, decimals)} divides this window into {rows} rows, at most {MAX_ROWS} are allowed; use {fits} or more"
        )
    bottom = bar.low // row
    volumes = [0] * rows
    traded: dict[int, list[int]] = {}
    for price, (buy, sell, buy_fills, sell_fills) in footprint.cells.items():
        index = price // row
        volumes[index - bottom] += buy + sell
        node = traded.get(index)
        if node is None:
            traded[index] = [buy, sell, buy_fills + sell_fills]
        else:
            node[0] += buy
            node[1] += sell
            node[2] += buy_fills + sell_fills
    poc = point_of_control(volumes)
    lowest, highest = value_area(volumes, poc, percent, method)
    return VolumeProfile(
        scale=bar.scale,
        tick=tick,
        row=row,
        method=method,
        value_area=percent,
        poc=(bottom + poc) * row,
        vah=(bottom + highest + 1) * row - tick,
        val=(bottom + lowest) * row,
        volume=bar.volume,
        buy_volume=bar.buy_volume,
        sell_volume=bar.sell_volume,
        trade_count=bar.trade_count,
        notional=bar.notional,
        rule_version=RULE_VERSION,
        nodes=tuple(Node(index * row, *traded[index]) for index in sorted(traded)),
    )


def vwap(figures: Bar | VolumeProfile) -> Decimal | None:
    """Volume-weighted average price, rounded half to even to two decimals more than prices have. None without volume."""
    if not figures.volume:
        return None
    return to_decimal(round(Fraction(figures.notional * 100, figures.volume)), figures.scale.price + 2)
