"""Order flow: imbalance ratio, cumulative delta and diagonal imbalance of bars. Integers inside, so that every figure is exact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Literal, TypeAlias

from wadm_mcp.analytics.footprint import Bar
from wadm_mcp.analytics.volume_profile import Node
from wadm_mcp.model import DAY, Scale, rescale, to_decimal

Imbalance: TypeAlias = Literal["buy", "sell", "both"]
"""The side of a row whose volume outweighs its diagonal opposite."""


def imbalance_ratio(buy: int, sell: int) -> Decimal | None:
    """`(buy - sell) / (buy + sell)`, from -1 to 1, rounded half to even to six decimals. None without volume."""
    if not buy + sell:
        return None
    return to_decimal(round(Fraction((buy - sell) * 1_000_000, buy + sell)), 6)


def session_start(timestamp: int) -> int:
    """00:00 UTC of the day of `timestamp`, in milliseconds. Cumulative delta starts from 0 there."""
    return timestamp - timestamp % DAY


def cumulative(bars: Iterable[Bar], base: int, scale: Scale) -> Iterator[int]:
    """Cumulative delta after each bar. `base` is the cumulative delta before the first bar; all values have `scale.quantity` decimals.

    The caller passes the bars of one session only. `ValueError` for a bar with more decimals than `scale`.
    """
    for bar in bars:
        if bar.scale.quantity > scale.quantity:
            raise ValueError(f"a delta with {bar.scale.quantity} decimals cannot be summed at {scale.quantity} decimals without rounding")
        base += rescale(bar.delta, bar.scale.quantity, scale.quantity)
        yield base


def diagonal_imbalances(nodes: Sequence[Node], row: int, ratio: int = 3) -> list[Imbalance | None]:
    """For each node, the side whose volume is at least `ratio` times its diagonal opposite, None where there is none.

    Buyers lift the ask while sellers hit the bid one row lower. Therefore buy volume is compared with the sell volume of the row below,
    and sell volume with the buy volume of the row above. An opposite of zero is not an imbalance (freqtrade and flowsurface also use a
    ratio of 3 and ignore zeros). `nodes` are rows of size `row`; rows without trades may be absent.
    """
    buys = {node.price: node.buy_volume for node in nodes}
    sells = {node.price: node.sell_volume for node in nodes}
    imbalances: list[Imbalance | None] = []
    for node in nodes:
        below, above = sells.get(node.price - row, 0), buys.get(node.price + row, 0)
        buy = below > 0 and node.buy_volume >= ratio * below
        sell = above > 0 and node.sell_volume >= ratio * above
        imbalances.append("both" if buy and sell else "buy" if buy else "sell" if sell else None)
    return imbalances
