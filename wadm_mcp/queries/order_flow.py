"""Order flow bar by bar: volume by side, delta, cumulative delta since 00:00 UTC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from wadm_mcp.analytics.footprint import Bar
from wadm_mcp.analytics.order_flow import cumulative, imbalance_ratio, session_start
from wadm_mcp.model import Scale, Timeframe, Window, rescale
from wadm_mcp.queries.arguments import ALL, Call, read_detail, read_timeframe, read_whole
from wadm_mcp.queries.coverage import CUMULATIVE, coverage, nothing_traded
from wadm_mcp.queries.figures import merged_bars, table
from wadm_mcp.queries.numbers import decimal_number, iso, number, optional_number
from wadm_mcp.queries.scope import Scope, ask, read_scope
from wadm_mcp.queries.view import View

COLUMNS: Final = (
    "timestamp",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "buy_volume",
    "sell_volume",
    "delta",
    "cumulative_delta",
    "imbalance_ratio",
    "trade_count",
    "min_delta",
    "max_delta",
)

BRIEF: Final = ("timestamp", "close", "volume", "delta", "cumulative_delta")

BROKEN: Final = tuple(column for column in COLUMNS if column not in ("timestamp", CUMULATIVE))
"""Columns that a gap makes wrong in the bars that it touches: volumes and counts are too low, extremes may be missing."""

MAX_BARS: Final = 1_500
"""Most bars of one answer."""


async def order_flow(
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
    limit: object = MAX_BARS,
    detail: object = "standard",
) -> dict[str, Any]:
    """Every bar of a window, empty ones included, oldest first. The first and the last bar are clipped to the window.

    `cumulative_delta` starts from 0 at 00:00 UTC of each bar's day, whatever the window; `coverage.anchor` is the coverage since then.
    Merged bars have no min and max delta, because the order of trades between exchanges is unknown. Of more than `limit` bars the newest
    are returned; the detail `brief` has fewer columns.
    """
    call = ask(view, "get_order_flow", timeframe="5m", window="1h")
    scope = read_scope(view, call, symbol=symbol, exchange=exchange, market=market, window=window, start=start, end=end, as_of=as_of)
    length = read_timeframe(scope.call, timeframe)
    max_bars, chosen_detail = read_whole(scope.call, "limit", limit, 1, MAX_BARS, MAX_BARS), read_detail(scope.call, detail)
    starts = bar_starts(scope.call, length, scope.window, MAX_BARS)
    before = Window(session_start(scope.window.start), scope.window.start)
    covered = await coverage(view, scope, length, anchor=Window(before.start, scope.window.end), figures=BROKEN)
    bars, earlier = await merged_bars(view, scope, length, scope.window), await merged_bars(view, scope, Timeframe.H1, before)
    scale = Scale(0, 0)
    for bar in (*bars.values(), *earlier.values()):
        scale = scale.finest(bar.scale)
    base = sum(rescale(bar.delta, bar.scale.quantity, scale.quantity) for bar in earlier.values())
    rows: list[list[Any]] = []
    for session, session_starts in groupby(starts, session_start):
        day_starts, empty = list(session_starts), Bar(scale)
        day_bars = [bars.get(start, empty) for start in day_starts]
        totals = cumulative(day_bars, base if session == before.start else 0, scale)
        rows += [_row(start, bar, total, scale) for start, bar, total in zip(day_starts, day_bars, totals, strict=True)]
    columns = BRIEF if chosen_detail == "brief" else None
    answer = {"timeframe": length.value, "bars": table(COLUMNS, rows, only=columns, newest=max_bars)}
    return {**scope.heading(covered), **answer, "reading": _reading(scope, covered, rows)}


def bar_starts(call: Call, timeframe: Timeframe, window: Window, max_bars: int) -> range:
    """Starts of the bars that a window touches. `QueryError` for more than `max_bars`; it names a timeframe that fits."""

    def starts(length: Timeframe) -> range:
        return range(length.floor(window.start), window.end, length.ms) if window.length else range(0)

    if len(starts(timeframe)) > max_bars:
        fits = next((length for length in Timeframe if len(starts(length)) <= max_bars), None)
        count = f"this window has {len(starts(timeframe)):,} such bars, at most {max_bars:,} are returned at once"
        if fits is None:
            raise call.refuse("timeframe", timeframe.value, f"{count}; choose a shorter window", timeframe=timeframe.value, window="1h")
        raise call.refuse(
            "timeframe", timeframe.value, f'{count}; use timeframe="{fits}" or longer, or a shorter window', timeframe=fits.value
        )
    return starts(timeframe)


def _row(start: int, bar: Bar, total: int, scale: Scale) -> list[Any]:
    prices, quantities = bar.scale
    return [
        iso(start),
        optional_number(bar.open, prices),
        optional_number(bar.high, prices),
        optional_number(bar.low, prices),
        optional_number(bar.close, prices),
        number(bar.volume, quantities),
        number(bar.buy_volume, quantities),
        number(bar.sell_volume, quantities),
        number(bar.delta, quantities),
        number(total, scale.quantity),
        decimal_number(imbalance_ratio(bar.buy_volume, bar.sell_volume)),
        bar.trade_count,
        optional_number(bar.min_delta, quantities),
        optional_number(bar.max_delta, quantities),
    ]


def _reading(scope: Scope, covered: Mapping[str, Any], rows: Sequence[Sequence[Any]]) -> str:
    traded = [row for row in rows if row[11]]
    if not traded:
        return nothing_traded(scope, covered)
    rising = sum(not str(row[8]).startswith("-") and row[8] != 0 for row in traded)
    last = f"last close {traded[-1][4]}, cumulative delta {traded[-1][9]}"
    return f"{scope.name}: {rising} of {len(traded)} traded bars with delta above 0; {last}; coverage {covered['ratio']}."
