"""The shape of a volume profile: its high and low volume nodes, and the letter by which traders call it."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from math import isqrt
from operator import add, mul
from typing import Final, Literal, NamedTuple, TypeAlias

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.volume_profile import VolumeProfile
from wadm_mcp.model import to_decimal

Shape: TypeAlias = Literal["P", "b", "D", "B"]
"""P: the POC is in the upper third. b: in the lower third. D: in the middle third. B: two high nodes with a low node in between."""

_HIGH_NODE_RATIO: Final = Fraction(6, 5)
"""Multiple of the mean smoothed row from which a peak is a high volume node."""
_LOW_NODE_RATIO: Final = Fraction(1, 2)
"""Multiple of the mean smoothed row up to which a valley is a low volume node."""
_MAX_NODES: Final = 5


class ProminentNode(NamedTuple):
    """A high or low volume node: the low price of its row, and the row's share of the profile's volume."""

    price: int
    share: float


class ProfileShape(NamedTuple):
    """Up to five high volume nodes, largest first, and up to five low ones, smallest first.

    `skew` is the distance from the middle of the range to the VWAP, as a fraction of the range; None if high and low are equal.
    """

    high_nodes: tuple[ProminentNode, ...]
    low_nodes: tuple[ProminentNode, ...]
    skew: float | None
    shape: Shape


def profile_shape(profile: VolumeProfile, bar: Bar) -> ProfileShape:
    """The shape of a profile of the trades of `bar`. Rows are smoothed by (1, 2, 1) and compared with their neighbours on both sides.

    No standard definition of nodes exists; this is ours. A high node is the strict maximum among a twentieth of the rows (at least two) on
    each side, and at least 1.2 times the mean row. A plateau counts as its middle row, the lower one of two. A low node is the strict
    minimum, at most half the mean row, and must lie between two high nodes, so that a tail of the profile is not a low node.
    """
    row, bottom = profile.row, profile.nodes[0].price
    count = (profile.nodes[-1].price - bottom) // row + 1
    volumes = [0] * count
    for node in profile.nodes:
        volumes[(node.price - bottom) // row] = node.volume
    padded = [0, *volumes, 0]
    smooth = [padded[index] + 2 * padded[index + 1] + padded[index + 2] for index in range(count)]
    reach, mean = max(2, count // 20), Fraction(sum(smooth), count)
    high = [index for index in _peaks(smooth, reach) if smooth[index] >= _HIGH_NODE_RATIO * mean]
    low = [
        index
        for index in _peaks([-value for value in smooth], reach)
        if smooth[index] <= _LOW_NODE_RATIO * mean and any(one < index for one in high) and any(one > index for one in high)
    ]
    high.sort(key=lambda index: -smooth[index])
    low.sort(key=lambda index: smooth[index])
    third = Fraction((profile.poc - bottom) // row * 2 + 1, count * 2)
    shape: Shape = "B" if len(high) > 1 and low else "P" if third > Fraction(2, 3) else "b" if third < Fraction(1, 3) else "D"

    def nodes(indexes: Iterable[int]) -> tuple[ProminentNode, ...]:
        return tuple(ProminentNode(bottom + index * row, volumes[index] / profile.volume if profile.volume else 0.0) for index in indexes)

    return ProfileShape(nodes(high[:_MAX_NODES]), nodes(low[:_MAX_NODES]), _skew(bar), shape)


def price_squares(footprint: Footprint) -> int:
    """The sum of price squared times volume, at twice the price decimals and the quantity decimals of the footprint's scale.

    It needs the cells of every price, not rows. Those of consecutive or parallel footprints add up.
    """
    prices, (bought, sold, *_) = footprint.columns()
    return sum(map(mul, map(mul, prices, prices), map(add, bought, sold)))


def deviation(bar: Bar, squares: int) -> Decimal | None:
    """Volume-weighted standard deviation of price, `sqrt(E[p^2] - E[p]^2)`, truncated to two decimals more than prices have.

    `squares` are the `price_squares` of the bar's trades at its scale. None without volume.
    """
    if not bar.volume:
        return None
    variance = bar.volume * squares - bar.notional**2
    return to_decimal(isqrt(variance * 10_000) // bar.volume, bar.scale.price + 2)


def _skew(bar: Bar) -> float | None:
    """`(VWAP - middle) / (high - low)`."""
    if bar.high is None or bar.low is None or bar.high == bar.low or not bar.volume:
        return None
    return float((Fraction(bar.notional, bar.volume) - Fraction(bar.high + bar.low, 2)) / (bar.high - bar.low))


def _peaks(values: list[int], reach: int) -> list[int]:
    """Middle indexes of the plateaus (of one row or more) that are higher than all values within `reach` of them."""
    peaks: list[int] = []
    first = 0
    while first < len(values):
        last = first
        while last + 1 < len(values) and values[last + 1] == values[first]:
            last += 1
        around = [*values[max(0, first - reach) : first], *values[last + 1 : last + 1 + reach]]
        if all(value < values[first] for value in around) and around:
            peaks.append((first + last) // 2)
        first = last + 1
    return peaks
