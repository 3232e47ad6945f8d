"""What takers did, bar by bar: volume by side, delta, cumulative delta since 00:00 UTC."""

from __future__ import annotations

from itertools import groupby
from typing import Any, Final

from wadm_mcp.analytics.footprint import Bar
from wadm_mcp.analytics.order_flow import cumulative, imbalance_ratio, session_start
from wadm_mcp.model import Scale, Timeframe, Window, rescale
from wadm_mcp.queries.arguments import ALL, Call, read_timeframe
from wadm_mcp.queries.coverage import CUMULATIVE, coverage, lost_bars
from wadm_mcp.queries.figures import table
from wadm_mcp.queries.numbers import decimal_number, iso, maybe, number
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

BROKEN: Final = tuple(column for column in COLUMNS if column not in ("timestamp", CUMULATIVE))
"""What a gap makes wrong of the bars that it touches: volumes and counts are too low, extremes may have been missed."""

MOST: Final = 1_500
"""Bars of one answer."""


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
) -> dict[str, Any]:
    """Every bar of a window, empty ones included, oldest first, the first and the last clipped to the window.

    `cumulative_delta` counts from 00:00 UTC of each bar's day, so that it does not depend on where the window begins;
    `coverage.anchor` says how much of the tape since then is held. Merged bars have no min and max delta: the path between
    exchanges is unknown.
    """
    call = ask(view, "get_order_flow", timeframe="5m", window="1h")
    scope = read_scope(view, call, symbol=symbol, exchange=exchange, market=market, window=window, start=start, end=end, as_of=as_of)
    length = read_timeframe(scope.call, timeframe)
    starts = bar_starts(scope.call, length, scope.window, MOST)
    before, now = Window(session_start(scope.window.start), scope.window.start), view.clock()
    lost = lost_bars(view.lives, now, scope.window, length)
    covered = await coverage(
        view,
        scope,
        lost,
        anchor=Window(before.start, scope.window.end),
        anchor_lost=[*lost_bars(view.lives, now, before, Timeframe.H1), *lost],
        figures=BROKEN,
    )
    bars, earlier = await _bars(view, scope, length, scope.window), await _bars(view, scope, Timeframe.H1, before)
    scale = Scale(0, 0)
    for bar in (*bars.values(), *earlier.values()):
        scale = scale.finest(bar.scale)
    base = sum(rescale(bar.delta, bar.scale.quantity, scale.quantity) for bar in earlier.values())
    rows: list[list[Any]] = []
    for session, of_day in groupby(starts, session_start):
        day, empty = list(of_day), Bar(scale)
        held = [bars.get(start, empty) for start in day]
        sums = cumulative(held, base if session == before.start else 0, scale)
        rows += [_row(start, bar, total, scale) for start, bar, total in zip(day, held, sums, strict=True)]
    return {**scope.heading(covered), "timeframe": length.value, "bars": table(COLUMNS, rows)}


def bar_starts(call: Call, timeframe: Timeframe, window: Window, most: int) -> range:
    """Starts of the bars that a window touches. `QueryError` for more than `most`, naming a timeframe that fits."""

    def starts(length: Timeframe) -> range:
        return range(length.floor(window.start), window.end, length.ms) if window.length else range(0)

    if len(starts(timeframe)) > most:
        fits = next((length for length in Timeframe if len(starts(length)) <= most), None)
        count = f"this window has {len(starts(timeframe)):,} such bars, at most {most:,} are told at once"
        if fits is None:
            raise call.refuse("timeframe", timeframe.value, f"{count}; choose a shorter window", timeframe=timeframe.value, window="1h")
        raise call.refuse("timeframe", timeframe.value, f"{count}; {fits} fits", timeframe=fits.value)
    return starts(timeframe)


async def _bars(view: View, scope: Scope, timeframe: Timeframe, window: Window) -> dict[int, Bar]:
    """The bars of all instruments beside each other, by start; those without trades are left out."""
    if not window.length:
        return {}
    merged: dict[int, Bar] = {}
    for instrument in scope.instruments:
        for start, bar in (await view.bars(instrument, timeframe, window)).items():
            merged[start] = merged[start].beside(bar) if start in merged else bar
    if len(scope.instruments) > 1:
        for start, bar in merged.items():
            merged[start] = bar.rescaled(bar.scale)
            merged[start].min_delta = merged[start].max_delta = None
    return merged


def _row(start: int, bar: Bar, total: int, scale: Scale) -> list[Any]:
    prices, quantities = bar.scale
    return [
        iso(start),
        maybe(bar.open, prices),
        maybe(bar.high, prices),
        maybe(bar.low, prices),
        maybe(bar.close, prices),
        number(bar.volume, quantities),
        number(bar.buy_volume, quantities),
        number(bar.sell_volume, quantities),
        number(bar.delta, quantities),
        number(total, scale.quantity),
        decimal_number(imbalance_ratio(bar.buy_volume, bar.sell_volume)),
        bar.trade_count,
        maybe(bar.min_delta, quantities),
        maybe(bar.max_delta, quantities),
    ]
