"""What is seen inside bars and in single trades: stacked imbalances, fading rows, large orders, what traded beyond an edge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import takewhile
from math import ceil
from typing import Final, NamedTuple

from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.analytics.market_structure.parameters import DEFAULT, Parameters
from wadm_mcp.analytics.order_flow import Imbalance, diagonal_imbalances
from wadm_mcp.analytics.volume_profile import volume_profile
from wadm_mcp.model import Scale, Trade, TradeType

FEWEST_ORDERS: Final = 1_000
"""Orders without which no threshold is told: one in a thousand would be a guess."""


class Stack(NamedTuple):
    """Adjacent rows in which one side outweighs its diagonal opposite, from the low price of the lowest to the low price of the highest."""

    side: Imbalance
    low: int
    high: int
    rows: int


class LargePrint(NamedTuple):
    """Consecutive trades of one millisecond and one aggressor's side: one taker's order, as far as the tape tells. `notional` is exact, at
    `scale.price + scale.quantity` decimals; `price` is the last one it reached."""

    timestamp: int
    side: TradeType
    price: int
    quantity: int
    notional: int
    fills: int
    scale: Scale


def stacks(footprint: Footprint, *, tick: int, row: int, parameters: Parameters = DEFAULT) -> list[Stack]:
    """Runs of at least `parameters.stacked` rows, low to high."""
    profile = volume_profile(footprint, tick=tick, row=row)
    if profile is None:
        return []
    marks = dict(zip((node.price for node in profile.nodes), diagonal_imbalances(profile.nodes, row, parameters.diagonal), strict=True))
    found: list[Stack] = []
    for side in ("buy", "sell"):
        run: list[int] = []
        for price in (*sorted(marks), None):
            if run and (price is None or price != run[-1] + row or marks[price] not in (side, "both")):
                found += [Stack(side, run[0], run[-1], len(run))] if len(run) >= parameters.stacked else []
                run = []
            if price is not None and marks[price] in (side, "both"):
                run.append(price)
    return sorted(found, key=lambda stack: (stack.low, stack.side))


def fading(footprint: Footprint, *, tick: int, row: int) -> Iterator[str]:
    """`high` where takers who bought thin out over the three highest rows, to at most a quarter of a row's mean in the highest; `low` the
    same of sellers. A bar of fewer than four rows says nothing."""
    profile = volume_profile(footprint, tick=tick, row=row)
    if profile is None:
        return
    bottom, top = profile.nodes[0].price, profile.nodes[-1].price
    rows = (top - bottom) // row + 1
    if rows < 4:
        return
    bought = {node.price: node.buy_volume for node in profile.nodes}
    sold = {node.price: node.sell_volume for node in profile.nodes}
    for side, volumes, edge, step in (("high", bought, top, -row), ("low", sold, bottom, row)):
        last, middle, inner = (volumes.get(edge + count * step, 0) for count in range(3))
        if inner > middle > last and last * rows * 4 <= sum(volumes.values()):
            yield side


def beyond(footprint: Footprint, edge: int, *, above: bool) -> tuple[int, int]:
    """Volume and delta of what traded beyond a price (at the footprint's scale), not at it."""
    outside = [cell for price, cell in footprint.cells.items() if (price > edge if above else price < edge)]
    return sum(cell[0] + cell[1] for cell in outside), sum(cell[0] - cell[1] for cell in outside)


def orders(trades: Sequence[Trade]) -> list[LargePrint]:
    """Taker orders put together from trades of one instrument in `Trade.order`. One order at several prices arrives as several trades, and
    on some exchanges every resting order that it met is one of its own."""
    found: list[LargePrint] = []
    last: Trade | None = None
    for trade in trades:
        notional = trade.price * trade.quantity
        joined = last is not None and (last.timestamp, last.trade_type, last.scale) == (trade.timestamp, trade.trade_type, trade.scale)
        last = trade
        if joined:
            one = found[-1]
            found[-1] = one._replace(
                price=trade.price, quantity=one.quantity + trade.quantity, notional=one.notional + notional, fills=one.fills + trade.fills
            )
        else:
            found.append(LargePrint(trade.timestamp, trade.trade_type, trade.price, trade.quantity, notional, trade.fills, trade.scale))
    return found


def large(found: Sequence[LargePrint], parameters: Parameters = DEFAULT) -> tuple[LargePrint, list[LargePrint]] | None:
    """The order at the threshold, which `parameters.large` percent of all do not pass (nearest rank), and those that reach it, largest
    first. None where they are too few."""
    if len(found) < FEWEST_ORDERS:
        return None
    finest = Scale(0, 0)
    for order in found:
        finest = finest.finest(order.scale)

    def size(order: LargePrint) -> int:
        return order.notional * 10 ** (finest.price + finest.quantity - order.scale.price - order.scale.quantity)

    ranked = sorted(found, key=size)
    threshold = ranked[ceil(Fraction(str(parameters.large)) * len(ranked) / 100) - 1]
    least = size(threshold)
    return threshold, [*takewhile(lambda order: size(order) >= least, reversed(ranked))]
