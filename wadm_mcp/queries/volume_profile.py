"""The volume profile of a window: volume by price, point of control, value area, nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from heapq import nlargest
from typing import Any, Final

from anyio import to_thread

from wadm_mcp.analytics import volume_profile as analytics
from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.volume_profile import Method, Node, VolumeProfile, vwap
from wadm_mcp.model import Timeframe
from wadm_mcp.queries.arguments import ALL, Detail, read_choice, read_detail, read_whole
from wadm_mcp.queries.coverage import coverage, nothing_traded
from wadm_mcp.queries.figures import MAX_PRICES_ON_LOOP, RowChoice, footprint_in_rows, merged_bars, merged_footprint, table
from wadm_mcp.queries.numbers import decimal_number, number
from wadm_mcp.queries.scope import Scope, ask, read_scope
from wadm_mcp.queries.view import View

COLUMNS: Final = ("price_level", "volume", "buy_volume", "sell_volume", "trade_count")
METHODS: Final[tuple[Method, ...]] = ("two_row", "one_row")

BROKEN: Final = ("poc", "vah", "val", "volume", "buy_volume", "sell_volume", "delta", "trade_count", "vwap", "nodes")
"""Figures that a gap makes wrong: volumes and counts are too low, levels may be at other prices."""

OUTSIDE_NODES: Final = 10
"""Largest nodes outside the value area that the detail `standard` lists."""


async def volume_profile(
    view: View,
    *,
    symbol: object,
    exchange: object = ALL,
    market: object = None,
    window: object = None,
    start: object = None,
    end: object = None,
    as_of: object = None,
    row_size: object = None,
    value_area: object = 70,
    method: object = "two_row",
    detail: object = "standard",
) -> dict[str, Any]:
    """The volume profile of a window. Prices and nodes are null if nothing traded.

    `row_size` is in price units; the default divides the window's range into about a hundred rows. `detail` decides which nodes are
    listed: `brief` none, `standard` those of the value area and the ten largest outside it, `full` all. A node is named by its low price.
    """
    call = ask(view, "get_volume_profile", window="24h")
    scope = read_scope(view, call, symbol=symbol, exchange=exchange, market=market, window=window, start=start, end=end, as_of=as_of)
    choice = RowChoice.read(scope.call, row_size, scope.listings)
    percent = read_whole(scope.call, "value_area", value_area, 1, 100, 70)
    chosen_method: Method = read_choice(scope.call, "method", method, METHODS, METHODS[0])
    chosen_detail = read_detail(scope.call, detail)
    covered = await coverage(view, scope, Timeframe.H1, figures=BROKEN)
    outline = Bar(max(listing.scale for listing in scope.listings))
    for bar in (await merged_bars(view, scope, Timeframe.D1, scope.window)).values():
        outline = outline.merge_parallel(bar)
    footprint, row = await footprint_in_rows(
        outline, lambda bar: _row(choice, bar), lambda size: merged_footprint(view, scope, scope.window, size)
    )
    tick = choice.tick(footprint.scale.price)

    def figures() -> dict[str, Any]:
        profile = analytics.volume_profile(footprint, tick=tick, row=row, percent=percent, method=chosen_method)
        return _figures(footprint, profile, choice.asked, chosen_method, chosen_detail)

    answer = figures() if footprint.levels <= MAX_PRICES_ON_LOOP else await to_thread.run_sync(figures)
    return {**scope.heading(covered), **answer, "reading": _reading(scope, covered, answer)}


def _row(choice: RowChoice, bar: Bar) -> int | None:
    """The row at the bar's scale, None if nothing traded."""
    if bar.low is None or bar.high is None:
        return None
    return choice.row_within_limit(bar.low, bar.high, bar.scale.price, "this window")


def _figures(footprint: Footprint, profile: VolumeProfile | None, asked: Decimal | None, method: Method, detail: Detail) -> dict[str, Any]:
    prices, quantities, bar = footprint.scale.price, footprint.scale.quantity, footprint.bar
    if profile is None:
        levels = [None, None, None, decimal_number(asked)]
    else:
        levels = [number(price, prices) for price in (profile.poc, profile.vah, profile.val, profile.row)]
    return {
        **dict(zip(("poc", "vah", "val", "row_size"), levels, strict=True)),
        "method": method,
        "volume": number(bar.volume, quantities),
        "buy_volume": number(bar.buy_volume, quantities),
        "sell_volume": number(bar.sell_volume, quantities),
        "delta": number(bar.delta, quantities),
        "trade_count": bar.trade_count,
        "vwap": decimal_number(vwap(bar)),
        "nodes": None if detail == "brief" else _nodes(profile, detail, prices, quantities),
    }


def _nodes(profile: VolumeProfile | None, detail: Detail, prices: int, quantities: int) -> dict[str, Any]:
    nodes = profile.nodes if profile is not None else ()
    listed = nodes if profile is None or detail == "full" else _standard_nodes(profile)
    rows = [
        [
            number(node.price, prices),
            number(node.volume, quantities),
            number(node.buy_volume, quantities),
            number(node.sell_volume, quantities),
            node.trade_count,
        ]
        for node in listed
    ]
    omitted = len(nodes) - len(listed)
    return table(COLUMNS, rows) | ({"omitted": omitted} if omitted else {})


def _standard_nodes(profile: VolumeProfile) -> Sequence[Node]:
    """The nodes of the value area and the largest nodes outside it, low to high."""
    outside = [node for node in profile.nodes if not profile.val <= node.price <= profile.vah]
    largest = {node.price for node in nlargest(OUTSIDE_NODES, outside, key=lambda node: node.volume)}
    return [node for node in profile.nodes if profile.val <= node.price <= profile.vah or node.price in largest]


def _reading(scope: Scope, covered: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    if answer["poc"] is None:
        return nothing_traded(scope, covered)
    levels = f"POC {answer['poc']}, value area {answer['val']} to {answer['vah']} in rows of {answer['row_size']}"
    return f"{scope.name}: {levels}; delta {answer['delta']} of volume {answer['volume']}; coverage {covered['ratio']}."
