"""What a profile looks like: nodes that stand out, and the shape traders name it by."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from math import isqrt
from typing import Final, Literal, NamedTuple, TypeAlias

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.volume_profile import VolumeProfile
from wadm_mcp.model import to_decimal

Shape: TypeAlias = Literal["P", "b", "D", "B"]
"""P: the POC lies in the upper third, b: in the lower, D: in the middle, B: two high nodes with a low one between."""

_HIGH: Final = Fraction(6, 5)
"""Of the mean smoothed row, from which a peak is a high volume node."""
_LOW: Final = Fraction(1, 2)
"""Of it, up to which a valley is a low volume node."""
_MOST: Final = 5


class Standing(NamedTuple):
    """A node that stands out: the low price of its row, and the row's share of the profile's volume."""

    price: int
    share: float


class ProfileShape(NamedTuple):
    """High and low volume nodes, largest (smallest) first, at most five of each. `skew` is the distance from the middle to the VWAP, in
    ranges; None for a profile without range."""

    high_nodes: tuple[Standing, ...]
    low_nodes: tuple[Standing, ...]
    skew: float | None
    shape: Shape


def profile_shape(profile: VolumeProfile, bar: Bar) -> ProfileShape:
    """The shape of a profile of the trades of `bar`, from rows smoothed by (1, 2, 1) and compared with their neighbours on either side.

    No standard exists for nodes. A peak is the strict maximum over a twentieth of the rows (at least two) on each side and at least 1.2
    times the mean row; a plateau stands for its middle, the lower one of two. A low node mirrors that at half the mean, and lies between
    two high ones, so that a tail is none.
    """
    row, bottom = profile.row, profile.nodes[0].price
    count = (profile.nodes[-1].price - bottom) // row + 1
    volumes = [0] * count
    for node in profile.nodes:
        volumes[(node.price - bottom) // row] = node.volume
    padded = [0, *volumes, 0]
    smooth = [padded[place] + 2 * padded[place + 1] + padded[place + 2] for place in range(count)]
    reach, mean = max(2, count // 20), Fraction(sum(smooth), count)
    high = [place for place in _peaks(smooth, reach) if smooth[place] >= _HIGH * mean]
    low = [
        place
        for place in _peaks([-value for value in smooth], reach)
        if smooth[place] <= _LOW * mean and any(one < place for one in high) and any(one > place for one in high)
    ]
    high.sort(key=lambda place: -smooth[place])
    low.sort(key=lambda place: smooth[place])
    third = Fraction((profile.poc - bottom) // row * 2 + 1, count * 2)
    shape: Shape = "B" if len(high) > 1 and low else "P" if third > Fraction(2, 3) else "b" if third < Fraction(1, 3) else "D"

    def standing(places: Iterable[int]) -> tuple[Standing, ...]:
        return tuple(Standing(bottom + place * row, volumes[place] / profile.volume if profile.volume else 0.0) for place in places)

    return ProfileShape(standing(high[:_MOST]), standing(low[:_MOST]), _skew(bar), shape)


def deviation(footprint: Footprint) -> Decimal | None:
    """Volume-weighted standard deviation of price, `sqrt(E[p^2] - E[p]^2)` over every trade, truncated to two decimals more than prices
    have. None without volume."""
    volume = footprint.bar.volume
    if not volume:
        return None
    squares = sum(price * price * (cell[0] + cell[1]) for price, cell in footprint.cells.items())
    variance = volume * squares - footprint.bar.notional**2
    return to_decimal(isqrt(variance * 10_000) // volume, footprint.scale.price + 2)


def _skew(bar: Bar) -> float | None:
    """`(VWAP - middle) / (high - low)`."""
    if bar.high is None or bar.low is None or bar.high == bar.low or not bar.volume:
        return None
    return float((Fraction(bar.notional, bar.volume) - Fraction(bar.high + bar.low, 2)) / (bar.high - bar.low))


def _peaks(values: list[int], reach: int) -> list[int]:
    """Middles of the plateaus that are higher than everything within `reach` of them."""
    found: list[int] = []
    first = 0
    while first < len(values):
        last = first
        while last + 1 < len(values) and values[last + 1] == values[first]:
            last += 1
        around = [*values[max(0, first - reach) : first], *values[last + 1 : last + 1 + reach]]
        if all(value < values[first] for value in around) and around:
            found.append((first + last) // 2)
        first = last + 1
    return found
