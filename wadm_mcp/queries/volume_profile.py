"""Where the volume of a window lies by price: point of control, value area, nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from heapq import nlargest
from typing import Any, Final

from anyio import to_thread

from wadm_mcp.analytics import volume_profile as analytics
from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.volume_profile import MAX_ROWS, Method, Node, VolumeProfile, default_row, row_count, smallest_row, vwap
from wadm_mcp.model import Timeframe, at_decimals, to_decimal
from wadm_mcp.queries.arguments import ALL, Call, Detail, read_choice, read_detail, read_whole
from wadm_mcp.queries.coverage import coverage, expired_bars, nothing_traded
from wadm_mcp.queries.figures import ON_LOOP, Ticks, merged_bars, merged_footprint, read_row_size, refuse_row_size, table
from wadm_mcp.queries.numbers import decimal_number, number
from wadm_mcp.queries.scope import Scope, ask, read_scope
from wadm_mcp.queries.view import View

COLUMNS: Final = ("price_level", "volume", "buy_volume", "sell_volume", "trade_count")
METHODS: Final[tuple[Method, ...]] = ("two_row", "one_row")

BROKEN: Final = ("poc", "vah", "val", "volume", "buy_volume", "sell_volume", "delta", "trade_count", "vwap", "nodes")
"""What a gap makes wrong: volumes and counts are too low, levels may lie elsewhere."""

OUTSIDE: Final = 10
"""Nodes outside the value area that `standard` lists: the largest."""


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
    """The volume profile of a window; prices and nodes are null where nothing traded.

    `row_size` is in price units, about a hundred rows when it is not given. `detail` decides which nodes are listed: `brief` none,
    `standard` those of the value area and the ten largest outside it, `full` all. A node is named by its low price.
    """
    call = ask(view, "get_volume_profile", window="24h")
    scope = read_scope(view, call, symbol=symbol, exchange=exchange, market=market, window=window, start=start, end=end, as_of=as_of)
    ticks = Ticks.of(scope.listings)
    size = read_row_size(scope.call, row_size, ticks)
    percent = read_whole(scope.call, "value_area", value_area, 1, 100, 70)
    chosen: Method = read_choice(scope.call, "method", method, METHODS, METHODS[0])
    shown = read_detail(scope.call, detail)
    lost = expired_bars(view.retention, view.clock(), scope.window, Timeframe.H1)
    covered = await coverage(view, scope, lost, figures=BROKEN)
    outline = Bar(max(listing.scale for listing in scope.listings))
    for bar in (await merged_bars(view, scope, Timeframe.D1, scope.window)).values():
        outline = outline.beside(bar)
    row = _row(scope.call, row_size, size, ticks, outline)
    while True:
        rows = None if row is None else to_decimal(row, outline.scale.price)
        footprint = await merged_footprint(view, scope, scope.window, rows)
        row = _row(scope.call, row_size, size, ticks, footprint.bar)
        if rows is None or row is None or to_decimal(row, footprint.scale.price) == rows:
            break
        # The market moved meanwhile, so that its rows are others.
        outline = footprint.bar
    tick = at_decimals(ticks.finest, footprint.scale.price)

    def figures() -> dict[str, Any]:
        profile = analytics.volume_profile(footprint, tick=tick, row=row, percent=percent, method=chosen)
        return _figures(footprint, profile, size, chosen, shown)

    told = figures() if footprint.levels <= ON_LOOP else await to_thread.run_sync(figures)
    return {**scope.heading(covered), **told, "reading": _reading(scope, covered, told)}


def _row(call: Call, given: object, size: Decimal | None, ticks: Ticks, bar: Bar) -> int | None:
    """The row at the bar's scale, None where nothing traded and none was asked for."""
    low, high, decimals = bar.low, bar.high, bar.scale.price
    if low is None or high is None:
        return None
    common = at_decimals(ticks.common, decimals)
    if size is None:
        return default_row(low, high, common)
    row = at_decimals(size, decimals)
    if row_count(low, high, row) > MAX_ROWS:
        smallest = to_decimal(smallest_row(low, high, common), decimals)
        why = f"it cuts this window into {row_count(low, high, row):,} rows, at most {MAX_ROWS:,} are allowed"
        raise refuse_row_size(call, given, why, [smallest])
    return row


def _figures(footprint: Footprint, profile: VolumeProfile | None, size: Decimal | None, method: Method, detail: Detail) -> dict[str, Any]:
    prices, quantities, bar = footprint.scale.price, footprint.scale.quantity, footprint.bar
    if profile is None:
        levels = [None, None, None, decimal_number(size)]
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
    every = profile.nodes if profile is not None else ()
    listed = every if profile is None or detail == "full" else _standard(profile)
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
    omitted = len(every) - len(listed)
    return table(COLUMNS, rows) | ({"omitted": omitted} if omitted else {})


def _standard(profile: VolumeProfile) -> Sequence[Node]:
    """The nodes of the value area and the largest outside it, low to high."""
    outside = [node for node in profile.nodes if not profile.val <= node.price <= profile.vah]
    kept = {node.price for node in nlargest(OUTSIDE, outside, key=lambda node: node.volume)}
    return [node for node in profile.nodes if profile.val <= node.price <= profile.vah or node.price in kept]


def _reading(scope: Scope, covered: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    if told["poc"] is None:
        return nothing_traded(scope, covered)
    levels = f"POC {told['poc']}, value area {told['val']} to {told['vah']} in rows of {told['row_size']}"
    return f"{scope.name}: {levels}; delta {told['delta']} of volume {told['volume']}; coverage {covered['ratio']}."
