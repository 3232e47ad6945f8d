"""Bars opened up: what takers bought and sold at each price, and where one side outweighs its diagonal opposite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from anyio import to_thread

from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.analytics.order_flow import diagonal_imbalances
from wadm_mcp.analytics.volume_profile import MAX_ROWS, default_row, row_count, volume_profile
from wadm_mcp.model import Scale, Window, at_decimals, to_decimal
from wadm_mcp.queries.arguments import ALL, Call, read_detail, read_timeframe, read_whole
from wadm_mcp.queries.coverage import coverage, expired_bars, nothing_traded
from wadm_mcp.queries.figures import ON_LOOP, Ticks, merged_footprint, read_row_size, refuse_row_size, table
from wadm_mcp.queries.numbers import decimal_number, iso, maybe, number
from wadm_mcp.queries.order_flow import bar_starts
from wadm_mcp.queries.scope import Scope, ask, read_scope
from wadm_mcp.queries.view import View

BROKEN: Final = ("open", "high", "low", "close", "delta", "poc", "nodes")
"""What a gap makes wrong of the bars that it touches."""

COLUMNS: Final = ("price_level", "buy_volume", "sell_volume", "imbalance")

MOST_BARS: Final = 100
"""Bars of one answer."""

MOST_NODES: Final = 4_000
"""Rows over all bars of one answer."""


async def footprint(
    view: View,
    *,
    symbol: object,
    exchange: object = ALL,
    market: object = None,
    window: object = None,
    start: object = None,
    end: object = None,
    as_of: object = None,
    timeframe: object = "5m",
    row_size: object = None,
    limit: object = MOST_BARS,
    detail: object = "standard",
) -> dict[str, Any]:
    """The footprint of every bar of a window, oldest first, the first and the last clipped to the window.

    All bars share one `row_size`; when it is not given it cuts the whole window's range into about a hundred rows, or fewer
    where the answer would be too long. `imbalance` is the side with at least three times its diagonal opposite. Of more than
    `limit` bars the newest are told; `brief` tells no rows.
    """
    call = ask(view, "get_footprint", timeframe="5m", window="1h")
    scope = read_scope(view, call, symbol=symbol, exchange=exchange, market=market, window=window, start=start, end=end, as_of=as_of)
    length = read_timeframe(scope.call, timeframe)
    ticks = Ticks.of(scope.listings)
    size = read_row_size(scope.call, row_size, ticks)
    most, shown = read_whole(scope.call, "limit", limit, 1, MOST_BARS, MOST_BARS), read_detail(scope.call, detail)
    starts = bar_starts(scope.call, length, scope.window, MOST_BARS)
    lost = expired_bars(view.retention, view.clock(), scope.window, length)
    covered = await coverage(view, scope, lost, figures=BROKEN)
    bars: dict[int, Footprint] = {}
    for begin in starts[-most:]:
        clipped = Window(max(begin, scope.window.start), min(begin + length.ms, scope.window.end))
        bars[begin] = await merged_footprint(view, scope, clipped)

    def figures() -> dict[str, Any]:
        return _figures(scope.call, bars, ticks, row_size, size)

    cells = sum(bar.levels for bar in bars.values())
    told = figures() if cells <= ON_LOOP else await to_thread.run_sync(figures)
    if shown == "brief":
        for bar in told["bars"]:
            bar["nodes"] = None
    omitted = len(starts) - len(told["bars"])
    more = {"omitted": omitted} if omitted else {}
    return {**scope.heading(covered), "timeframe": length.value, **told, **more, "reading": _reading(scope, covered, told["bars"])}


def _figures(call: Call, bars: Mapping[int, Footprint], ticks: Ticks, given: object, size: Decimal | None) -> dict[str, Any]:
    scale = Scale(0, 0)
    for bar in bars.values():
        scale = scale.finest(bar.scale)
    aligned = {start: bar if bar.scale == scale else bar.rescaled(scale) for start, bar in bars.items()}
    traded = [bar for bar in aligned.values() if bar.bar.trade_count]
    if not traded:
        return {"row_size": decimal_number(size), "bars": [_empty(start) for start in aligned]}
    row = _row(call, traded, scale, ticks, given, size)
    tick = at_decimals(ticks.finest, scale.price)
    told = [_bar(start, bar, tick, row) if bar.bar.trade_count else _empty(start) for start, bar in aligned.items()]
    return {"row_size": number(row, scale.price), "bars": told}


def _row(call: Call, bars: Sequence[Footprint], scale: Scale, ticks: Ticks, given: object, size: Decimal | None) -> int:
    """The row at the scale of all bars: the one asked for, or the finest default that keeps the answer short enough."""
    low = min(bar.bar.low for bar in bars if bar.bar.low is not None)
    high = max(bar.bar.high for bar in bars if bar.bar.high is not None)
    common = at_decimals(ticks.common, scale.price)
    row = asked = at_decimals(size, scale.price) if size is not None else default_row(low, high, common)
    while not _short_enough(bars, row):
        row = default_row(0, row * 2, common, 1)
    if row != asked and size is not None:
        why = f"it cuts these bars into more than {MOST_NODES:,} rows in all"
        raise refuse_row_size(call, given, why, [to_decimal(row, scale.price)])
    return row


def _short_enough(bars: Sequence[Footprint], row: int) -> bool:
    nodes = 0
    for bar in bars:
        low, high = bar.bar.low, bar.bar.high
        if low is not None and high is not None and row_count(low, high, row) > MAX_ROWS:
            return False
        nodes += len({price // row for price in bar.cells})
        if nodes > MOST_NODES:
            return False
    return True


def _bar(start: int, footprint: Footprint, tick: int, row: int) -> dict[str, Any]:
    profile = volume_profile(footprint, tick=tick, row=row)
    assert profile is not None
    prices, quantities = footprint.scale
    bar = footprint.bar
    marks = diagonal_imbalances(profile.nodes, row)
    rows: list[list[Any]] = [
        [number(node.price, prices), number(node.buy_volume, quantities), number(node.sell_volume, quantities), mark]
        for node, mark in zip(profile.nodes, marks, strict=True)
    ]
    return {
        "timestamp": iso(start),
        "open": maybe(bar.open, prices),
        "high": maybe(bar.high, prices),
        "low": maybe(bar.low, prices),
        "close": maybe(bar.close, prices),
        "delta": number(bar.delta, quantities),
        "poc": number(profile.poc, prices),
        "nodes": table(COLUMNS, rows),
    }


def _empty(start: int) -> dict[str, Any]:
    none = dict.fromkeys(("open", "high", "low", "close"))
    return {"timestamp": iso(start), **none, "delta": 0, "poc": None, "nodes": table(COLUMNS, [])}


def _reading(scope: Scope, covered: Mapping[str, Any], bars: Sequence[Mapping[str, Any]]) -> str:
    traded = [bar for bar in bars if bar["close"] is not None]
    if not traded:
        return nothing_traded(scope, covered)
    largest = max(traded, key=lambda bar: abs(Decimal(str(bar["delta"]))))
    return (
        f"{scope.name}: {len(traded)} traded bars; the largest delta is {largest['delta']} in the bar of {largest['timestamp']}, its POC "
        f"{largest['poc']}; coverage {covered['ratio']}."
    )
