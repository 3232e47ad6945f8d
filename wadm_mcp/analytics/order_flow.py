"""Order flow: what takers did, bar by bar. Imbalance ratio, cumulative delta, diagonal imbalance. Exact integers inside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Literal, TypeAlias

from wadm_mcp.analytics.footprint import Bar
from wadm_mcp.analytics.volume_profile import Node
from wadm_mcp.model import DAY, Scale, rescale, to_decimal

Imbalance: TypeAlias = Literal["buy", "sell", "both"]
"""Which side outweighs its diagonal opposite in a row."""


def imbalance_ratio(buy: int, sell: int) -> Decimal | None:
    """`(buy - sell) / (buy + sell)`, from -1 to 1, rounded once, half to even, to six decimals. None without volume."""
    if not buy + sell:
        return None
    return to_decimal(round(Fraction((buy - sell) * 1_000_000, buy + sell)), 6)


def session_start(timestamp: int) -> int:
    """00:00 UTC of the day that holds `timestamp`, in milliseconds: where cumulative delta starts from 0."""
    return timestamp - timestamp % DAY


def cumulative(bars: Iterable[Bar], base: int, scale: Scale) -> Iterator[int]:
    """Cumulative delta after each bar, `base` being what stood before the first, all at `scale.quantity` decimals.

    The caller starts anew at a session's start. `ValueError` for a bar with more decimals than `scale`.
    """
    for bar in bars:
        if bar.scale.quantity > scale.quantity:
            raise ValueError(f"a delta with {bar.scale.quantity} decimals cannot be summed at {scale.quantity} without rounding")
        base += rescale(bar.delta, bar.scale.quantity, scale.quantity)
        yield base


def diagonal_imbalances(nodes: Sequence[Node], row: int, ratio: int = 3) -> list[Imbalance | None]:
    """For each node, which side is at least `ratio` times its diagonal opposite.

    Buyers lift the ask while sellers hit the bid one row lower: buy volume is weighed against the sell volume of the row below,
    sell volume against the buy volume of the row above. An opposite of zero is no imbalance (freqtrade, flowsurface: 3, zeros ignored).
    `nodes` are rows of size `row`; rows that are not among them traded nothing.
    """
    buys = {node.price: node.buy_volume for node in nodes}
    sells = {node.price: node.sell_volume for node in nodes}
    found: list[Imbalance | None] = []
    for node in nodes:
        below, above = sells.get(node.price - row, 0), buys.get(node.price + row, 0)
        buy = below > 0 and node.buy_volume >= ratio * below
        sell = above > 0 and node.sell_volume >= ratio * above
        found.append("both" if buy and sell else "buy" if buy else "sell" if sell else None)
    return found
