"""The market structure for a waickoff report in one answer: session, profile, value, flow, range, swings and event candidates.

All figures except the session's own are computed from closed bars. A figure that a gap may have changed is null, and a bar that a gap
touches takes part in no event. This module collects the evidence; `structure_figures` turns it into the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Final

from anyio import to_thread

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.market_structure.events import Event, events
from wadm_mcp.analytics.market_structure.parameters import DEFAULT
from wadm_mcp.analytics.market_structure.profile_shape import deviation, price_squares
from wadm_mcp.analytics.market_structure.series import CoveredBar, Series
from wadm_mcp.analytics.market_structure.swings import pivots
from wadm_mcp.analytics.market_structure.zones import TakerOrder, large_orders, taker_orders, traded_beyond
from wadm_mcp.analytics.volume_profile import MAX_ROWS, row_count
from wadm_mcp.coverage.judge import Judgement
from wadm_mcp.model import DAY, HOUR, Instrument, Scale, Timeframe, Window, to_decimal
from wadm_mcp.queries.arguments import ALL, read_detail, read_timeframe
from wadm_mcp.queries.coverage import MAX_LISTED_GAPS, coverage, coverage_inputs
from wadm_mcp.queries.figures import RowChoice, footprint_in_rows, merged_bars, merged_footprint
from wadm_mcp.queries.scope import SESSION, Scope, ask, read_scope
from wadm_mcp.queries.structure_figures import Day, Evidence, Levels, OutsideVolume, levels, structure_answer
from wadm_mcp.queries.view import View

CLOSED_BARS: Final = 2 * DEFAULT.baseline
"""Closed bars that are read: those in which events are detected, and as many before them as a baseline."""
PRIOR_SESSIONS: Final = 5
"""Sessions before the open one whose value areas are compared."""
INSPECTED_BARS: Final = 8
"""Newest closed bars whose rows are searched for imbalances."""
SAMPLED_TRADES: Final = 10_000
"""Newest trades of each instrument, of the last hour at most, from which the threshold of large orders is computed."""

LISTED_GAPS: Final = 3
"""Gaps of each exchange that the details `brief` and `standard` list."""

BROKEN: Final = ("session", "profile", "value", "flow")
"""Figures that a gap in the session makes wrong. Swings, range and events leave out the bars that a gap touches."""


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

    A range contains only bars before the bar that tests it, and an event appears with the close of the bar that makes it known
    (`known_after` bars after its own). The answer for an `as_of` is therefore the same whenever it is asked for. All sessions share one
    `row_size`; the default divides the wider of this session and the previous one into about a hundred rows. The answer does not name
    phases or intentions.
    """
    call = ask(view, "get_market_structure", timeframe="15m")
    scope = read_scope(view, call, symbol=symbol, exchange=exchange, market=market, window=SESSION, as_of=as_of)
    length = read_timeframe(scope.call, timeframe, Timeframe.M15)
    chosen_detail = read_detail(scope.call, detail)
    choice = RowChoice.read(scope.call, row_size, scope.listings)
    session, bars_end = scope.window, length.floor(scope.now)
    max_gaps = MAX_LISTED_GAPS if chosen_detail == "full" else LISTED_GAPS
    covered = await coverage(view, scope, Timeframe.H1, figures=BROKEN, max_gaps=max_gaps)
    if chosen_detail != "full" and scope.merged:
        covered["parts"] = {name: {"ratio": part["ratio"], "lag_ms": part["lag_ms"]} for name, part in covered["parts"].items()}
    bars_window = Window(bars_end - CLOSED_BARS * length.ms, bars_end)
    days = [Window(session.start - count * DAY, session.start - (count - 1) * DAY) for count in range(PRIOR_SESSIONS, 0, -1)]
    everything = Window(min(bars_window.start, days[0].start), session.end)
    inputs = [await coverage_inputs(view, scope, instrument, everything) for instrument in (*scope.instruments, *scope.awaited)]

    def judgements(window: Window, unit: Timeframe) -> list[Judgement]:
        return [one.judge(window, one.expired.of_bars(window, unit)) for one in inputs]

    prior = [(await merged_bars(view, scope, Timeframe.D1, day)).get(day.start, Bar(Scale(0, 0))) for day in days]
    bars = await merged_bars(view, scope, length, bars_window)
    known = _finest_scale(prior, bars.values(), [Bar(one.scale) for one in scope.listings])

    def row_of(bar: Bar) -> int | None:
        return _row(choice, [one.rescaled(known.finest(bar.scale)) for one in (prior[-1], bar)])

    outline = (await merged_bars(view, scope, Timeframe.D1, session)).get(session.start, Bar(Scale(0, 0)))
    outline = outline.rescaled(known.finest(outline.scale))
    squares = 0

    async def read_session(row: Decimal | None) -> Footprint:
        nonlocal squares
        read, squares = await _session(view, scope, session, row, known)
        return read

    footprint, _ = await footprint_in_rows(outline, row_of, read_session)
    scale = known.finest(footprint.scale)
    row, tick = row_of(footprint.bar.rescaled(scale)), choice.tick(scale.price)
    size = None if row is None else to_decimal(row, scale.price)
    covered_bars = _covered_bars(bars, bars_window, length, judgements(bars_window, length))

    def detect() -> tuple[Series, list[Event]]:
        series = Series(covered_bars, scale)
        return series, events(series, len(series) - DEFAULT.baseline)

    series, found = await to_thread.run_sync(detect)
    evidence = Evidence(
        scope=scope,
        timeframe=length,
        scale=scale,
        tick=tick,
        row=row,
        covered_bars=covered_bars,
        series=series,
        pivots=pivots(series),
        events=found,
        outside=[await _volume_outside(view, scope, series, event) for event in found],
        inside=[
            (start, await merged_footprint(view, scope, Window(start, start + length.ms), size))
            for start in range(bars_end - INSPECTED_BARS * length.ms, bars_end, length.ms)
        ],
        large=await _large_orders(view, scope),
        footprint=footprint.at(scale),
        deviation=deviation(footprint.bar, squares),
        session=Day(session, footprint.bar.rescaled(scale), judgements(session, Timeframe.H1)),
        days=[
            Day(day, bar.rescaled(scale), judgements(day, Timeframe.H1), await _levels(view, scope, day, bar.rescaled(scale), tick, row))
            for day, bar in zip(days, prior, strict=True)
        ],
        last_hour=await _last_hour(view, scope),
    )
    return {**scope.heading(covered), **await to_thread.run_sync(structure_answer, evidence, covered, chosen_detail)}


def _finest_scale(*groups: Iterable[Bar]) -> Scale:
    scale = Scale(0, 0)
    for bars in groups:
        for bar in bars:
            scale = scale.finest(bar.scale)
    return scale


def _row(choice: RowChoice, bars: Sequence[Bar]) -> int | None:
    """The row of every session at the scale of the bars, which are those of the newest two sessions. The default suits the wider one."""
    ranges = [(bar.low, bar.high) for bar in bars if bar.low is not None and bar.high is not None]
    if not ranges:
        return None
    low, high = max(ranges, key=lambda one: one[1] - one[0])
    return choice.row_within_limit(low, high, bars[-1].scale.price, "a session")


async def _levels(view: View, scope: Scope, day: Window, bar: Bar, tick: int, row: int | None) -> Levels | None:
    """POC and value area of a closed day. None if nothing traded or if the day would have too many rows."""
    if row is None or bar.low is None or bar.high is None or row_count(bar.low, bar.high, row) > MAX_ROWS:
        return None

    async def compute() -> list[int]:
        footprint = (await merged_footprint(view, scope, day, to_decimal(row, bar.scale.price))).at(bar.scale)
        return [*await to_thread.run_sync(lambda: levels(footprint, tick, row))]

    key = f"levels:{scope.name}:{day.start}:{bar.scale.price}:{tick}:{row}"
    return Levels(*await view.figures(key, bar, compute))


def _covered_bars(bars: dict[int, Bar], window: Window, length: Timeframe, judgements: Sequence[Judgement]) -> list[CoveredBar]:
    """Every bar of the window with its coverage, that of the exchange with the lowest coverage of the bar."""
    starts = range(window.start, window.end, length.ms)
    missing = [dict.fromkeys(starts, 0) for _ in judgements]
    touched: set[int] = set()
    for missing_ms, judgement in zip(missing, judgements, strict=True):
        for gap in judgement.gaps:
            first = max(window.start, length.floor(gap.start))
            for start in range(first, min(window.end, max(gap.end, gap.start + 1)), length.ms):
                missing_ms[start] += max(0, min(gap.end, start + length.ms) - max(gap.start, start))
                touched.add(start)
    return [
        CoveredBar(start, start + length.ms, bars.get(start), 1 - max(one[start] for one in missing) / length.ms, start not in touched)
        for start in starts
    ]


async def _session(view: View, scope: Scope, session: Window, row: Decimal | None, scale: Scale) -> tuple[Footprint, int]:
    """The session in rows, and the squares of its prices as `price_squares` has them, of the same trades: at the scale of the footprint,
    which is at least as fine as `scale`.

    The squares need every price, so the session is read at the tick, and reduced to rows as it is read.
    """
    merged: Footprint | None = None
    squares: list[tuple[Scale, int]] = []
    for instrument in scope.instruments:
        rows = view.new_footprint(instrument, row)

        def step(part: Footprint, rows: Footprint = rows) -> tuple[Scale, int]:
            rows.merge_later_in_place([part], row)
            return part.scale, price_squares(part)

        squares += await view.fold(instrument, session, step)
        if merged is None:
            merged = rows
        else:
            merged.merge_parallel_in_place(rows)
    assert merged is not None
    merged = merged.at(merged.scale.finest(scale))
    price, quantity = merged.scale
    return merged, sum(one * 10 ** (2 * (price - part.price) + quantity - part.quantity) for part, one in squares)


async def _volume_outside(view: View, scope: Scope, series: Series, event: Event) -> OutsideVolume | None:
    """The volume that traded beyond the edge of the range in a spring or an upthrust; None for other events."""
    if event.kind not in ("spring", "upthrust") or event.first_index is None or event.edge is None:
        return None
    edge, window = event.edge, Window(series[event.first_index].start, series[event.known_index].end)

    def sums(part: Footprint) -> tuple[int, int, int]:
        finest = part.at(series.scale.finest(part.scale))
        return finest.bar.volume, *traded_beyond(finest, edge, above=event.kind == "upthrust")

    parts = [part for instrument in scope.instruments for part in await view.fold(instrument, window, sums)]
    volume, outside, delta = (sum(column) for column in zip((0, 0, 0), *parts, strict=True))
    return OutsideVolume(outside / volume if volume else 0.0, delta)


async def _large_orders(view: View, scope: Scope) -> list[tuple[Instrument, TakerOrder]] | None:
    """The large orders of the last hour with their instruments, largest first.

    None if there are too few orders, or if a trade of the sample is missing.
    """
    found: list[TakerOrder] = []
    instruments: dict[int, Instrument] = {}
    hour = Window(scope.now - HOUR, scope.now)
    for instrument in (*scope.instruments, *scope.awaited):
        # Before the trades, of which it is not known yet how far they go back.
        inputs = await coverage_inputs(view, scope, instrument, hour, raw=True)
        trades = [] if instrument in scope.awaited else await view.trades(instrument, hour, limit=SAMPLED_TRADES, newest=True)
        sample = Window(trades[0].timestamp, hour.end) if len(trades) == SAMPLED_TRADES else hour
        if inputs.judge(sample, inputs.expired.of_trades(sample), raw=True).gaps:
            return None
        for order in taker_orders(trades):
            instruments[id(order)] = instrument
            found.append(order)
    ranked = large_orders(found)
    return None if ranked is None else [(instruments[id(order)], order) for order in ranked[1]]


async def _last_hour(view: View, scope: Scope) -> Bar:
    """The minutes of the last hour as one bar."""
    end = Timeframe.M1.floor(scope.now)
    merged = Bar(Scale(0, 0))
    for _, bar in sorted((await merged_bars(view, scope, Timeframe.M1, Window(end - HOUR, end))).items()):
        merged = merged.merge_later(bar)
    return merged
