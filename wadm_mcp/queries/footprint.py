"""The footprint of bars: buy and sell volume at each price, and the rows where one side outweighs its diagonal opposite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from anyio import to_thread

from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.analytics.order_flow import diagonal_imbalances
from wadm_mcp.analytics.volume_profile import MAX_ROWS, default_row, row_count, volume_profile
from wadm_mcp.model import Scale, Window, to_decimal
from wadm_mcp.queries.arguments import ALL, read_detail, read_timeframe, read_whole
from wadm_mcp.queries.coverage import coverage, expired_bars, nothing_traded
from wadm_mcp.queries.figures import MAX_PRICES_ON_LOOP, RowChoice, merged_footprint, table
from wadm_mcp.queries.numbers import decimal_number, iso, number, optional_number
from wadm_mcp.queries.order_flow import bar_starts
from wadm_mcp.queries.scope import Scope, ask, read_scope
from wadm_mcp.queries.view import View

BROKEN: Final = ("open", "high", "low", "close", "delta", "poc", "nodes")
"""Figures that a gap makes wrong, in the bars that it touches."""

COLUMNS: Final = ("price_level", "buy_volume", "sell_volume", "imbalance")

MAX_BARS: Final = 100
"""Most bars of one answer."""

MAX_NODES: Final = 4_000
"""Most rows of all bars of one answer together."""


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
    limit: object = MAX_BARS,
    detail: object = "standard",
) -> dict[str, Any]:
    """The footprint of every bar of a window, oldest first. The first and the last bar are clipped to the window.

    All bars share one `row_size`. The default divides the range of the whole window into about a hundred rows, or into fewer if the answer
    would be too long. `imbalance` is the side with at least three times its diagonal opposite. Of more than `limit` bars the newest are
    returned; the detail `brief` leaves out the rows.
    """
    call = ask(view, "get_footprint", timeframe="5m", window="1h")
    scope = read_scope(view, call, symbol=symbol, exchange=exchange, market=market, window=window, start=start, end=end, as_of=as_of)
    length = read_timeframe(scope.call, timeframe)
    choice = RowChoice.read(scope.call, row_size, scope.listings)
    max_bars, chosen_detail = read_whole(scope.call, "limit", limit, 1, MAX_BARS, MAX_BARS), read_detail(scope.call, detail)
    starts = bar_starts(scope.call, length, scope.window, MAX_BARS)
    expired = expired_bars(view.retention, view.clock(), scope.window, length)
    covered = await coverage(view, scope, expired, figures=BROKEN)
    bars: dict[int, Footprint] = {}
    for bar_start in starts[-max_bars:]:
        clipped = Window(max(bar_start, scope.window.start), min(bar_start + length.ms, scope.window.end))
        bars[bar_start] = await merged_footprint(view, scope, clipped)

    def figures() -> dict[str, Any]:
        return _figures(bars, choice)

    cells = sum(bar.levels for bar in bars.values())
    answer = figures() if cells <= MAX_PRICES_ON_LOOP else await to_thread.run_sync(figures)
    if chosen_detail == "brief":
        for bar in answer["bars"]:
            bar["nodes"] = None
    omitted = len(starts) - len(answer["bars"])
    more = {"omitted": omitted} if omitted else {}
    return {**scope.heading(covered), "timeframe": length.value, **answer, **more, "reading": _reading(scope, covered, answer["bars"])}


def _figures(bars: Mapping[int, Footprint], choice: RowChoice) -> dict[str, Any]:
    scale = Scale(0, 0)
    for bar in bars.values():
        scale = scale.finest(bar.scale)
    aligned = {start: bar if bar.scale == scale else bar.rescaled(scale) for start, bar in bars.items()}
    traded = [bar for bar in aligned.values() if bar.bar.trade_count]
    if not traded:
        return {"row_size": decimal_number(choice.asked), "bars": [_empty(start) for start in aligned]}
    row = _row(traded, scale, choice)
    tick = choice.tick(scale.price)
    rows = [_bar(start, bar, tick, row) if bar.bar.trade_count else _empty(start) for start, bar in aligned.items()]
    return {"row_size": number(row, scale.price), "bars": rows}


def _row(bars: Sequence[Footprint], scale: Scale, choice: RowChoice) -> int:
    """The row at the scale of all bars: the one that was asked for, or the smallest default that keeps the answer short enough."""
    low = min(bar.bar.low for bar in bars if bar.bar.low is not None)
    high = max(bar.bar.high for bar in bars if bar.bar.high is not None)
    row = preferred = choice.row(low, high, scale.price)
    while not _short_enough(bars, row):
        row = default_row(0, row * 2, choice.common(scale.price), 1)
    if row != preferred and choice.asked is not None:
        raise choice.refuse(f"it divides these bars into more than {MAX_NODES:,} rows in total", to_decimal(row, scale.price))
    return row


def _short_enough(bars: Sequence[Footprint], row: int) -> bool:
    """Whether all bars together have at most `MAX_NODES` rows with trades, and each at most `MAX_ROWS` rows."""
    nodes = 0
    for bar in bars:
        low, high = bar.bar.low, bar.bar.high
        if low is not None and high is not None and row_count(low, high, row) > MAX_ROWS:
            return False
        nodes += len({price // row for price in bar.cells})
        if nodes > MAX_NODES:
            return False
    return True


def _bar(start: int, footprint: Footprint, tick: int, row: int) -> dict[str, Any]:
    profile = volume_profile(footprint, tick=tick, row=row)
    assert profile is not None
    prices, quantities = footprint.scale
    bar = footprint.bar
    imbalances = diagonal_imbalances(profile.nodes, row)
    rows: list[list[Any]] = [
        [number(node.price, prices), number(node.buy_volume, quantities), number(node.sell_volume, quantities), imbalance]
        for node, imbalance in zip(profile.nodes, imbalances, strict=True)
    ]
    return {
        "timestamp": iso(start),
        "open": optional_number(bar.open, prices),
        "high": optional_number(bar.high, prices),
        "low": optional_number(bar.low, prices),
        "close": optional_number(bar.close, prices),
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
