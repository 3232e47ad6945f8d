"""The evidence a waickoff report rests on, in one answer: session, profile and value, flow, range, swings, event candidates.

Everything but the session's own figures rests on closed bars; what a gap may have changed is null or silent, bar by bar. Here it is
gathered; `structure_figures` tells it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Final

from anyio import to_thread

from wadm_mcp.analytics.footprint import Bar
from wadm_mcp.analytics.market_structure.events import Event, events
from wadm_mcp.analytics.market_structure.parameters import DEFAULT
from wadm_mcp.analytics.market_structure.series import CoveredBar, Series
from wadm_mcp.analytics.market_structure.swings import pivots
from wadm_mcp.analytics.market_structure.zones import LargePrint, beyond, large, orders
from wadm_mcp.analytics.volume_profile import MAX_ROWS, default_row, row_count, smallest_row
from wadm_mcp.coverage.judge import Judgement
from wadm_mcp.model import DAY, HOUR, Instrument, Scale, Timeframe, Window, at_decimals, to_decimal
from wadm_mcp.queries.arguments import ALL, Call, read_detail, read_timeframe
from wadm_mcp.queries.coverage import LISTED, coverage, coverage_inputs, expired_bars, expired_trades
from wadm_mcp.queries.figures import Ticks, merged_bars, merged_footprint, read_row_size, refuse_row_size
from wadm_mcp.queries.scope import SESSION, Scope, ask, read_scope
from wadm_mcp.queries.structure_figures import Day, Evidence, Levels, Outside, levels, tell
from wadm_mcp.queries.view import View

BARS: Final = 2 * DEFAULT.baseline
"""Closed bars that are judged: the newest baseline's, and as many before them to compare with."""
SESSIONS: Final = 5
"""Sessions before the open one that value is compared with."""
INSIDE: Final = 8
"""Newest closed bars that are looked into row by row."""
SAMPLED: Final = 10_000
"""Newest trades of each instrument, of the last hour at most, that the threshold of large trades is taken from."""

GAPS: Final = 3
"""Gaps of each exchange that any but the full detail lists."""

BROKEN: Final = ("session", "profile", "value", "flow")
"""What a gap in the session makes wrong. Swings, range and events say nothing of the bars that a gap touches."""


async def market_structure(
    view: View,
    *,
    symbol: object,
    exchange: object = ALL,
    market: object = None,
    as_of: object = None,
    timeframe: object = "15m",
    row_size: object = None,
    detail: object = "standard",
) -> dict[str, Any]:
    """The structure of a market now, or at `as_of`: the session since 00:00 UTC, and the last closed bars of a timeframe.

    A range is frozen before the bar that tests it, and an event is told from the close of the bar that makes it known (`known_after`
    bars after its own), so that the same `as_of` tells the same later. `row_size` is shared by all sessions; the default cuts the
    wider of this session and the one before into about a hundred rows. Nothing here names a phase or an intent.
    """
    call = ask(view, "get_market_structure", timeframe="15m")
    scope = read_scope(view, call, symbol=symbol, exchange=exchange, market=market, window=SESSION, as_of=as_of)
    length = read_timeframe(scope.call, timeframe, Timeframe.M15)
    shown = read_detail(scope.call, detail)
    ticks = Ticks.of(scope.listings)
    size = read_row_size(scope.call, row_size, ticks)
    session, last = scope.window, length.floor(scope.now)
    lost = expired_bars(view.retention, view.clock(), session, Timeframe.H1)
    covered = await coverage(view, scope, lost, figures=BROKEN, listed=LISTED if shown == "full" else GAPS)
    if shown != "full" and scope.merged:
        covered["parts"] = {name: {"ratio": part["ratio"], "lag_ms": part["lag_ms"]} for name, part in covered["parts"].items()}
    stretch = Window(last - BARS * length.ms, last)
    days = [Window(session.start - count * DAY, session.start - (count - 1) * DAY) for count in range(SESSIONS, 0, -1)]
    whole = Window(min(stretch.start, days[0].start), session.end)
    seen = [await coverage_inputs(view, scope, instrument, whole) for instrument in (*scope.instruments, *scope.awaited)]

    def judged(window: Window, unit: Timeframe) -> list[Judgement]:
        lost = expired_bars(view.retention, view.clock(), window, unit)
        return [one.judge(window, lost) for one in seen]

    footprint = await merged_footprint(view, scope, session)
    before = [(await merged_bars(view, scope, Timeframe.D1, day)).get(day.start, Bar(Scale(0, 0))) for day in days]
    bars = await merged_bars(view, scope, length, stretch)
    scale = _finest([*before, footprint.bar], bars.values(), [Bar(one.scale) for one in scope.listings])
    row = _row(scope.call, row_size, size, ticks, [bar.rescaled(scale) for bar in (before[-1], footprint.bar)])
    tick = at_decimals(ticks.finest, scale.price)
    told = _told(bars, stretch, length, judged(stretch, length))

    def detected() -> tuple[Series, list[Event]]:
        series = Series(told, scale)
        return series, events(series, len(series) - DEFAULT.baseline)

    series, found = await to_thread.run_sync(detected)
    evidence = Evidence(
        scope=scope,
        timeframe=length,
        scale=scale,
        tick=tick,
        row=row,
        stretch=stretch,
        told=told,
        series=series,
        pivots=pivots(series),
        events=found,
        outside=[await _outside(view, scope, series, event) for event in found],
        inside=[
            (start, await merged_footprint(view, scope, Window(start, start + length.ms)))
            for start in range(last - INSIDE * length.ms, last, length.ms)
        ],
        large=await _large(view, scope),
        footprint=footprint.at(scale),
        session=Day(session, footprint.bar.rescaled(scale), judged(session, Timeframe.H1)),
        days=[
            Day(day, bar.rescaled(scale), judged(day, Timeframe.H1), await _levels(view, scope, day, bar.rescaled(scale), tick, row))
            for day, bar in zip(days, before, strict=True)
        ],
        last_hour=await _last_hour(view, scope),
    )
    return {**scope.heading(covered), **await to_thread.run_sync(tell, evidence, covered, shown)}


def _finest(*bars: Iterable[Bar]) -> Scale:
    scale = Scale(0, 0)
    for some in bars:
        for bar in some:
            scale = scale.finest(bar.scale)
    return scale


def _row(call: Call, given: object, size: Decimal | None, ticks: Ticks, bars: Sequence[Bar]) -> int | None:
    """The row of every session at the scale of all bars: the one asked for, or the default of the wider of the newest two sessions."""
    decimals = bars[-1].scale.price
    spans = [(bar.low, bar.high) for bar in bars if bar.low is not None and bar.high is not None]
    if not spans:
        return None
    low, high = max(spans, key=lambda span: span[1] - span[0])
    common = at_decimals(ticks.common, decimals)
    if size is None:
        return default_row(low, high, common)
    row = at_decimals(size, decimals)
    if row_count(low, high, row) > MAX_ROWS:
        smallest = to_decimal(smallest_row(low, high, common), decimals)
        raise refuse_row_size(call, given, f"it cuts a session into {row_count(low, high, row):,} rows", [smallest])
    return row


async def _levels(view: View, scope: Scope, day: Window, bar: Bar, tick: int, row: int | None) -> Levels | None:
    """POC and value area of a closed day, None where nothing traded or the row cuts it too finely."""
    if row is None or bar.low is None or bar.high is None or row_count(bar.low, bar.high, row) > MAX_ROWS:
        return None

    async def made() -> list[int]:
        footprint = (await merged_footprint(view, scope, day)).at(bar.scale)
        return [*await to_thread.run_sync(lambda: levels(footprint, tick, row))]

    key = f"levels:{scope.name}:{day.start}:{bar.scale.price}:{tick}:{row}"
    return Levels(*await view.figures(key, bar, made))


def _told(bars: dict[int, Bar], stretch: Window, length: Timeframe, judged: Sequence[Judgement]) -> list[CoveredBar]:
    """Every bar of the stretch with how much of it is held: by the exchange that holds the least."""
    starts = range(stretch.start, stretch.end, length.ms)
    missing = [dict.fromkeys(starts, 0) for _ in judged]
    touched: set[int] = set()
    for lacks, judgement in zip(missing, judged, strict=True):
        for gap in judgement.gaps:
            first = max(stretch.start, length.floor(gap.start))
            for start in range(first, min(stretch.end, max(gap.end, gap.start + 1)), length.ms):
                lacks[start] += max(0, min(gap.end, start + length.ms) - max(gap.start, start))
                touched.add(start)
    return [
        CoveredBar(start, start + length.ms, bars.get(start), 1 - max(lacks[start] for lacks in missing) / length.ms, start not in touched)
        for start in starts
    ]


async def _outside(view: View, scope: Scope, series: Series, event: Event) -> Outside | None:
    """What traded beyond the edge that a spring or an upthrust passed."""
    if event.kind not in ("spring", "upthrust") or event.first is None or event.edge is None:
        return None
    footprint = await merged_footprint(view, scope, Window(series[event.first].start, series[event.known].end))
    finest = footprint.at(series.scale.finest(footprint.scale))
    volume, delta = beyond(finest, event.edge, above=event.kind == "upthrust")
    return Outside(volume / finest.bar.volume if finest.bar.volume else 0.0, delta)


async def _large(view: View, scope: Scope) -> list[tuple[Instrument, LargePrint]] | None:
    """The orders of the last hour that reach the threshold, largest first; None where a trade of the sample is missing."""
    found: list[LargePrint] = []
    homes: dict[int, Instrument] = {}
    hour = Window(scope.now - HOUR, scope.now)
    for instrument in (*scope.instruments, *scope.awaited):
        trades = [] if instrument in scope.awaited else await view.trades(instrument, hour, limit=SAMPLED, newest=True)
        sample = Window(trades[0].timestamp, hour.end) if len(trades) == SAMPLED else hour
        seen = await coverage_inputs(view, scope, instrument, sample, raw=True)
        if seen.judge(sample, expired_trades(view.retention, view.clock(), sample), raw=True).gaps:
            return None
        for order in orders(trades):
            homes[id(order)] = instrument
            found.append(order)
    ranked = large(found)
    return None if ranked is None else [(homes[id(order)], order) for order in ranked[1]]


async def _last_hour(view: View, scope: Scope) -> Bar:
    """The minutes of the last hour as one bar."""
    end = Timeframe.M1.floor(scope.now)
    merged = Bar(Scale(0, 0))
    for _, bar in sorted((await merged_bars(view, scope, Timeframe.M1, Window(end - HOUR, end))).items()):
        merged = merged.then(bar)
    return merged
