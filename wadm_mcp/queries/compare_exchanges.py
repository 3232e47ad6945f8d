"""Compares all followed instruments of a symbol: volume share, delta, lead and lag of flow, basis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from typing import Any, Final, NamedTuple

from wadm_mcp.analytics.footprint import Bar
from wadm_mcp.analytics.lead_lag import lead_lag
from wadm_mcp.analytics.order_flow import imbalance_ratio
from wadm_mcp.analytics.volume_profile import vwap
from wadm_mcp.coverage.judge import Judgement
from wadm_mcp.exchanges.registry import canonical_instrument
from wadm_mcp.model import MARKETS, Scale, Timeframe, rescale
from wadm_mcp.queries.arguments import ALL, read_detail, read_timeframe
from wadm_mcp.queries.coverage import coverage, coverage_inputs, nothing_recorded, ratio
from wadm_mcp.queries.figures import merged_bars, table
from wadm_mcp.queries.numbers import Number, decimal_number, number, optional_number
from wadm_mcp.queries.order_flow import bar_starts
from wadm_mcp.queries.scope import Scope, ask, read_scope
from wadm_mcp.queries.view import View

VENUES: Final = (
    "instrument",
    "coverage",
    "volume",
    "volume_share",
    "delta",
    "imbalance_ratio",
    "trade_count",
    "vwap",
    "close",
    "change_percent",
)
PAIRS: Final = (
    "first",
    "second",
    "basis_bps",
    "mean_basis_bps",
    "flow_correlation",
    "lead_bars",
    "lead_correlation",
    "noise",
    "bars_compared",
)
BROKEN: Final = ("venues", "pairs")

MAX_BARS: Final = 1_500
"""Most bars that are compared."""
MAX_LEAD_BARS: Final = 5
"""Most bars by which the flow of one instrument is tested to lead the other's."""


class _Venue(NamedTuple):
    """One instrument: its coverage, its bars by start, the starts of the bars without a gap, and all bars merged."""

    name: str
    judgement: Judgement
    bars: Mapping[int, Bar]
    complete: frozenset[int]
    total: Bar


async def compare_exchanges(
    view: View,
    *,
    symbol: object,
    window: object = None,
    start: object = None,
    end: object = None,
    as_of: object = None,
    timeframe: object = "1m",
    detail: object = "standard",
) -> dict[str, Any]:
    """Every followed instrument of a symbol over the same window: every market of every exchange.

    `volume_share` is the share of the volume of all of them. `basis_bps` is the distance of the second instrument's newest close above the
    first one's, in hundredths of a percent; `mean_basis_bps` is its mean over the bars in which both traded. Only bars that are completely
    covered on both sides are compared. `flow_correlation` is the correlation of their deltas. `lead_bars` above 0 means that the first
    one's delta comes that many bars before the second one's. A correlation smaller than `noise` is not significant. Correlations are null
    if fewer than 30 bars can be compared. The detail `brief` leaves out the pairs.
    """
    call = ask(view, "compare_exchanges", window="4h")
    every = read_scope(view, call, symbol=symbol, exchange=ALL, market=None, window=window, start=start, end=end, as_of=as_of)
    length = read_timeframe(every.call, timeframe, Timeframe.M1)
    chosen_detail = read_detail(every.call, detail)
    starts = bar_starts(every.call, length, every.window, MAX_BARS)
    scopes = _venues(view, every)
    coverages: list[dict[str, Any]] = []
    venues: list[_Venue] = []
    for scope in scopes:
        coverages.append(await coverage(view, scope, length, figures=BROKEN))
        inputs = await coverage_inputs(view, scope, (*scope.instruments, *scope.awaited)[0], scope.window)
        bars = await merged_bars(view, scope, length, scope.window)
        judgement = inputs.judge(scope.window, inputs.expired.of_bars(scope.window, length))
        total = Bar(Scale(0, 0))
        for bar_start in sorted(bars):
            total = total.merge_later(bars[bar_start])
        venues.append(_Venue(scope.name, judgement, bars, _complete_bars(starts, length, judgement), total))
    worst = min(range(len(venues)), key=lambda index: venues[index].judgement.millionths)
    names = [venue.name for venue in venues]
    covered = {**coverages[worst], "broken": [*BROKEN] if any(one["broken"] for one in coverages) else []}
    covered |= {"worst": names[worst], "parts": dict(zip(names, coverages, strict=True))}
    for part in coverages:
        del part["broken"]
    rows = [_row(venue, venues) for venue in venues]
    pairs = [_pair(one, two, starts) for one, two in combinations(venues, 2)]
    heading = {**every.heading(covered), "instrument": f"{ALL}:{ALL}:{canonical_instrument(every.instruments[0]).symbol}"}
    figures = {"timeframe": length.value, "venues": table(VENUES, rows), "pairs": None if chosen_detail == "brief" else table(PAIRS, pairs)}
    return {**heading, **figures, "reading": _reading(rows, covered)}


def _venues(view: View, every: Scope) -> list[Scope]:
    """A scope for each instrument of the symbol: spot before linear, in the order of the exchanges."""
    symbol = canonical_instrument(every.instruments[0]).symbol
    listings = {one.instrument: one for one in view.listings if canonical_instrument(one.instrument).symbol == symbol}
    awaited = [one for one in view.awaited if one.symbol == symbol and one not in listings]
    found = sorted([*listings, *awaited], key=lambda one: (MARKETS.index(one.market), _place(one.exchange, view.exchanges)))
    return [
        replace(
            every,
            name=str(one),
            listings=(listings[one],) if one in listings else (),
            awaited=() if one in listings else (one,),
        )
        for one in found
    ]


def _place(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


def _complete_bars(starts: Sequence[int], length: Timeframe, judgement: Judgement) -> frozenset[int]:
    """Starts of the bars that no gap touches."""
    touched: set[int] = set()
    for gap in judgement.gaps:
        touched.update(range(length.floor(gap.start), max(gap.end, gap.start + 1), length.ms))
    return frozenset(starts) - touched if judgement.judged else frozenset()


def _row(venue: _Venue, venues: Sequence[_Venue]) -> list[Any]:
    bar = venue.total
    prices, quantities = bar.scale
    finest = max(one.total.scale.quantity for one in venues)
    every = sum(rescale(one.total.volume, one.total.scale.quantity, finest) for one in venues)
    share = rescale(bar.volume, quantities, finest) / every if every else None
    change = None if bar.open is None or bar.close is None else (bar.close - bar.open) / bar.open * 100
    return [
        venue.name,
        ratio(venue.judgement),
        number(bar.volume, quantities),
        None if share is None else round(share, 4),
        number(bar.delta, quantities),
        decimal_number(imbalance_ratio(bar.buy_volume, bar.sell_volume)),
        bar.trade_count,
        decimal_number(vwap(bar)),
        optional_number(bar.close, prices),
        None if change is None else _rounded(change, 4),
    ]


def _pair(one: _Venue, two: _Venue, starts: Sequence[int]) -> list[Any]:
    complete = one.complete & two.complete
    basis = [bps for at in starts if at in complete and (bps := _basis_bps(one.bars.get(at), two.bars.get(at))) is not None]
    first, second = ([_delta(venue, at) if at in complete else None for at in starts] for venue in (one, two))
    flow = lead_lag(first, second, MAX_LEAD_BARS)
    correlations: list[Number | None] = [None] * 4
    if flow is not None:
        correlations = [_rounded(flow.same, 3), flow.shift, _rounded(flow.shifted, 3), _rounded(flow.noise, 3)]
    return [
        one.name,
        two.name,
        _rounded(basis[-1], 2) if basis else None,
        _rounded(fmean(basis), 2) if basis else None,
        *correlations,
        len(complete),
    ]


def _basis_bps(one: Bar | None, two: Bar | None) -> float | None:
    if one is None or two is None or one.close is None or two.close is None:
        return None
    finest = max(one.scale.price, two.scale.price)
    first, second = rescale(one.close, one.scale.price, finest), rescale(two.close, two.scale.price, finest)
    return (second - first) / first * 10_000


def _rounded(value: float, digits: int) -> float:
    """The rounded value, never -0.0."""
    return round(value, digits) + 0.0


def _delta(venue: _Venue, at: int) -> float:
    """The delta of the bar at `at`, 0 for a covered bar without trades."""
    bar = venue.bars.get(at)
    return 0.0 if bar is None else bar.delta / 10**bar.scale.quantity


def _reading(rows: Sequence[Sequence[Any]], covered: Mapping[str, Any]) -> str:
    traded = [row for row in rows if row[3]]
    if not traded:
        return f"{nothing_recorded(covered)}; coverage {covered['ratio']}."
    most = max(traded, key=lambda row: row[3])
    least = f"least covered is {covered['worst']} with {covered['ratio']}"
    return f"{len(rows)} instruments; {most[0]} traded most, {most[3]} of the volume; {least}."
