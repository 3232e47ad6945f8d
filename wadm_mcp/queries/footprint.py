"""The footprint of bars: buy and sell volume at each price, and the rows where one side outweighs its diagonal opposite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from anyio import to_thread

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.order_flow import diagonal_imbalances
from wadm_mcp.analytics.volume_profile import MAX_ROWS, default_row, row_count, volume_profile
from wadm_mcp.model import Scale, Timeframe, Window, at_decimals, rescale, to_decimal
from wadm_mcp.queries.arguments import ALL, read_detail, read_timeframe, read_whole
from wadm_mcp.queries.coverage import coverage, nothing_traded
from wadm_mcp.queries.figures import MAX_PRICES_ON_LOOP, RowChoice, merged_bars, merged_footprint, table
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
    covered = await coverage(view, scope, length, figures=BROKEN)
    windows = {at: Window(max(at, scope.window.start), min(at + length.ms, scope.window.end)) for at in starts[-max_bars:]}
    bars, row = await _bars_in_rows(view, scope, length, windows, choice)

    def figures() -> dict[str, Any]:
        return _figures(bars, row, choice)

    cells = sum(bar.levels for bar in bars.values())
    answer = figures() if cells <= MAX_PRICES_ON_LOOP else await to_thread.run_sync(figures)
    if chosen_detail == "brief":
        for bar in answer["bars"]:
            bar["nodes"] = None
    omitted = len(starts) - len(answer["bars"])
    more = {"omitted": omitted} if omitted else {}
    return {**scope.heading(covered), "timeframe": length.value, **answer, **more, "reading": _reading(scope, covered, answer["bars"])}


async def _bars_in_rows(
    view: View, scope: Scope, length: Timeframe, windows: Mapping[int, Window], choice: RowChoice
) -> tuple[dict[int, Footprint], Decimal | None]:
    """The footprints of bars in rows, and their row size: the one that was asked for, or the smallest default that keeps the answer short
    enough; None if nothing traded.

    They are reduced to rows as they are read: at the exchange's tick, a bar of some hours has tens of thousands of prices.
    """
    # A bar without trades stands for the scale of each listing, which is at least as fine as its tick.
    listed = [Bar(listing.scale) for listing in scope.listings]
    ends = [window.end for window in windows.values()]
    everything = Window(min((window.start for window in windows.values()), default=0), max(ends, default=0))
    outlines = [*listed, *(await merged_bars(view, scope, length, everything)).values()]
    while True:
        preferred = _preferred_row(outlines, choice)
        bars, row = await _short_enough(view, scope, windows, outlines, choice, preferred)
        outlines = [*listed, *(footprint.bar for footprint in bars.values())]
        # Trades that came since the outlines were read may have widened the range, and with it the default row.
        if _preferred_row(outlines, choice) == preferred and (row is None or _few_rows(outlines, row)):
            break
    if row is not None and row != preferred and choice.asked is not None:
        raise choice.refuse(f"it divides these bars into more than {MAX_NODES:,} rows in total", row)
    return bars, row


async def _short_enough(
    view: View, scope: Scope, windows: Mapping[int, Window], outlines: Sequence[Bar], choice: RowChoice, preferred: Decimal | None
) -> tuple[dict[int, Footprint], Decimal | None]:
    """The footprints of bars in rows of the preferred size, or of the smallest larger default with which there are at most `MAX_NODES`."""
    row = preferred
    if row is None or (choice.asked is not None and _few_rows(outlines, row)):
        found = await _read_bars(view, scope, windows, row, MAX_NODES)
        if found is not None:
            return found, row
    assert row is not None
    row = row if choice.asked is None else _next_row(row, outlines, choice)
    while not _few_rows(outlines, row):
        row = _next_row(row, outlines, choice)
    while True:
        # The larger defaults are multiples of the unit, but not of each other: in units, the bars are read once for all of them. With more
        # than five times as many rows, none of the defaults up to five units has few enough.
        unit = _unit(row, outlines, choice)
        found = await _read_bars(view, scope, windows, unit, 5 * MAX_NODES)
        if found is not None:
            break
        row = 10 * unit
    while True:
        bars = {start: Footprint.merge_consecutive([bar], bar.scale, row=row) for start, bar in found.items()}
        if sum(bar.levels for bar in bars.values()) <= MAX_NODES:
            return bars, row
        row = _next_row(row, outlines, choice)


async def _read_bars(
    view: View, scope: Scope, windows: Mapping[int, Window], row: Decimal | None, max_nodes: int
) -> dict[int, Footprint] | None:
    """The footprints of bars in rows; None if they have more than `max_nodes` rows with trades together."""
    bars: dict[int, Footprint] = {}
    nodes = 0
    for start, window in windows.items():
        bars[start] = await merged_footprint(view, scope, window, row)
        nodes += bars[start].levels
        if row is not None and nodes > max_nodes:
            return None
    return bars


def _preferred_row(outlines: Sequence[Bar], choice: RowChoice) -> Decimal | None:
    """The row that was asked for, or the default for the range of all bars; None if nothing traded."""
    scale = _finest(outlines)
    low = min((rescale(bar.low, bar.scale.price, scale.price) for bar in outlines if bar.low is not None), default=None)
    high = max((rescale(bar.high, bar.scale.price, scale.price) for bar in outlines if bar.high is not None), default=None)
    return None if low is None or high is None else to_decimal(choice.row(low, high, scale.price), scale.price)


def _next_row(row: Decimal, outlines: Sequence[Bar], choice: RowChoice) -> Decimal:
    """The smallest default row of at least twice the size."""
    decimals = _finest(outlines).price
    return to_decimal(default_row(0, 2 * at_decimals(row, decimals), choice.common(decimals), 1), decimals)


def _unit(row: Decimal, outlines: Sequence[Bar], choice: RowChoice) -> Decimal:
    """The largest size of which a default row and all larger ones are multiples: defaults are 1, 2 or 5 times a power of ten steps."""
    decimals = _finest(outlines).price
    steps = at_decimals(row, decimals) // choice.common(decimals)
    return row / 2 if str(steps).startswith("2") else row


def _few_rows(outlines: Sequence[Bar], row: Decimal) -> bool:
    """Whether each bar has at most `MAX_ROWS` rows, from its lowest to its highest price."""
    decimals = _finest(outlines).price
    size = at_decimals(row, decimals)

    def rows(low: int, high: int, bar: Bar) -> int:
        return row_count(rescale(low, bar.scale.price, decimals), rescale(high, bar.scale.price, decimals), size)

    return all(bar.low is None or bar.high is None or rows(bar.low, bar.high, bar) <= MAX_ROWS for bar in outlines)


def _finest(bars: Iterable[Bar]) -> Scale:
    scale = Scale(0, 0)
    for bar in bars:
        scale = scale.finest(bar.scale)
    return scale


def _figures(bars: Mapping[int, Footprint], row: Decimal | None, choice: RowChoice) -> dict[str, Any]:
    scale = _finest(footprint.bar for footprint in bars.values())
    if row is None:
        return {"row_size": decimal_number(choice.asked), "bars": [_empty(start) for start in bars]}
    tick, size = choice.tick(scale.price), at_decimals(row, scale.price)
    rows = [_bar(start, bar.at(scale), tick, size) if bar.bar.trade_count else _empty(start) for start, bar in bars.items()]
    return {"row_size": decimal_number(row), "bars": rows}


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
