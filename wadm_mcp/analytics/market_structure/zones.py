"""Detectors that need price rows or single trades: stacked imbalances, fading rows, large orders, volume beyond a price."""

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

MIN_ORDERS: Final = 1_000
"""With fewer orders there is no threshold of large orders, because it is reached by about one order in a thousand."""


class Stack(NamedTuple):
    """Adjacent rows with an imbalance on the same side. `low` and `high` are the low prices of the lowest and the highest row."""

    side: Imbalance
    low: int
    high: int
    rows: int


class TakerOrder(NamedTuple):
    """Consecutive trades of one millisecond and one aggressor's side: probably one taker's order.

    `price` is the price of the last trade. `notional` is exact, at `scale.price + scale.quantity` decimals.
    """

    timestamp: int
    side: TradeType
    price: int
    quantity: int
    notional: int
    fills: int
    scale: Scale


def stacks(footprint: Footprint, *, tick: int, row: int, parameters: Parameters = DEFAULT) -> list[Stack]:
    """Runs of at least `parameters.stacked` adjacent rows with an imbalance on one side, low to high."""
    profile = volume_profile(footprint, tick=tick, row=row)
    if profile is None:
        return []
    imbalances = diagonal_imbalances(profile.nodes, row, parameters.diagonal)
    by_price = {node.price: imbalance for node, imbalance in zip(profile.nodes, imbalances, strict=True)}
    found: list[Stack] = []
    for side in ("buy", "sell"):
        run: list[int] = []
        for price in (*sorted(by_price), None):
            if run and (price is None or price != run[-1] + row or by_price[price] not in (side, "both")):
                found += [Stack(side, run[0], run[-1], len(run))] if len(run) >= parameters.stacked else []
                run = []
            if price is not None and by_price[price] in (side, "both"):
                run.append(price)
    return sorted(found, key=lambda stack: (stack.low, stack.side))


def fading_edges(footprint: Footprint, *, tick: int, row: int) -> Iterator[str]:
    """The edges (`high`, `low`) of a bar at which aggressive volume fades out.

    At the high, buy volume falls over the three highest rows, and the highest row has at most a quarter of the mean row's buy volume. At
    the low the same holds for sell volume and the three lowest rows. A bar of fewer than four rows has no fading edge.
    """
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


def traded_beyond(footprint: Footprint, edge: int, *, above: bool) -> tuple[int, int]:
    """Volume and delta of the trades above (or below) a price, without the price itself. `edge` is at the footprint's scale."""
    outside = [cell for price, cell in footprint.cells.items() if (price > edge if above else price < edge)]
    return sum(cell[0] + cell[1] for cell in outside), sum(cell[0] - cell[1] for cell in outside)


def taker_orders(trades: Sequence[Trade]) -> list[TakerOrder]:
    """Taker orders, assembled from trades of one instrument in `Trade.order`.

    An order that executes at several prices arrives as several trades; some exchanges even send one trade for every resting order.
    """
    orders: list[TakerOrder] = []
    last: Trade | None = None
    for trade in trades:
        notional = trade.price * trade.quantity
        joined = last is not None and (last.timestamp, last.trade_type, last.scale) == (trade.timestamp, trade.trade_type, trade.scale)
        last = trade
        if joined:
            one = orders[-1]
            orders[-1] = one._replace(
                price=trade.price, quantity=one.quantity + trade.quantity, notional=one.notional + notional, fills=one.fills + trade.fills
            )
        else:
            orders.append(TakerOrder(trade.timestamp, trade.trade_type, trade.price, trade.quantity, notional, trade.fills, trade.scale))
    return orders


def large_orders(orders: Sequence[TakerOrder], parameters: Parameters = DEFAULT) -> tuple[TakerOrder, list[TakerOrder]] | None:
    """The order at the percentile `parameters.large` (nearest rank), and all orders of at least its notional, largest first.

    None with fewer than `MIN_ORDERS` orders.
    """
    if len(orders) < MIN_ORDERS:
        return None
    finest = Scale(0, 0)
    for order in orders:
        finest = finest.finest(order.scale)

    def size(order: TakerOrder) -> int:
        return order.notional * 10 ** (finest.price + finest.quantity - order.scale.price - order.scale.quantity)

    ranked = sorted(orders, key=size)
    threshold = ranked[ceil(Fraction(str(parameters.large)) * len(ranked) / 100) - 1]
    least = size(threshold)
    return threshold, [*takewhile(lambda order: size(order) >= least, reversed(ranked))]
