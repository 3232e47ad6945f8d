"""The `coverage` of an answer: computed by `coverage.judge` for every instrument of a scope, and written as answers have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from wadm_mcp.coverage.expired import Expired
from wadm_mcp.coverage.judge import CoverageInputs, Judgement
from wadm_mcp.coverage.spans import GapReason
from wadm_mcp.model import MINUTE, Instrument, Timeframe, Window
from wadm_mcp.queries.numbers import Number, iso, number
from wadm_mcp.queries.scope import Scope
from wadm_mcp.queries.view import View

CUMULATIVE: Final = "cumulative_delta"

MAX_LISTED_GAPS: Final = 20
"""Gaps that an answer lists, the newest ones. The others are counted in `more_gaps`."""


def ratio(judgement: Judgement) -> Number:
    """The covered share of a window as answers write it."""
    return number(judgement.millionths, 6)


async def coverage_inputs(view: View, scope: Scope, instrument: Instrument, window: Window, *, raw: bool = False) -> CoverageInputs:
    """Everything that `judge` needs to know of one instrument in a window. An awaited instrument is not covered at all."""
    if instrument in scope.awaited:
        return CoverageInputs((), scope.now, before=GapReason.EXCHANGE_UNREACHABLE)
    alive_until = view.alive_until(instrument)
    spans = await view.spans(instrument, window, raw=raw)
    progress = view.importing(instrument)
    importing = progress is not None and window.start < progress.reached
    if view.unverified(instrument):
        before = GapReason.EXCHANGE_UNREACHABLE
    else:
        before = GapReason.STORE_UNREACHABLE if view.without_store else GapReason.IMPORTING if importing else GapReason.NOT_RECORDED
    revising = await view.being_revised(instrument, window, raw=raw)
    return CoverageInputs(spans, scope.now, alive_until, before, revising, await view.expired(instrument))


async def newest_trade_at(view: View, instrument: Instrument, before: int | None = None) -> int | None:
    """Time (ms) of the newest trade, or of the newest one `before` a time (ms). None without one."""
    newest = view.newest(instrument)
    if newest is not None and (before is None or newest.timestamp < before):
        return newest.timestamp
    until = before if before is not None else view.clock() + MINUTE
    trades = await view.trades(instrument, Window(0, max(0, until)), limit=1, newest=True)
    return trades[-1].timestamp if trades else None


async def coverage(
    view: View,
    scope: Scope,
    unit: Timeframe | None = None,
    *,
    anchor: Window | None = None,
    raw: bool = False,
    figures: Sequence[str] = (),
    max_gaps: int = MAX_LISTED_GAPS,
) -> dict[str, Any]:
    """Coverage of a scope's window as answers have it. For a merged scope: the values of the worst part, and every part by exchange.

    Figures are read in bars of `unit`; None for a window that nothing can have expired of. With `raw` it is the coverage of single trades
    instead. With `anchor`, the stretch that cumulative delta sums over, the coverage of that stretch is added: what lies before the window
    is read in hours. `figures` are the names of the figures that a gap makes wrong; `broken` lists them if there is a
    gap. Only the newest `max_gaps` gaps are listed.
    """
    parts: dict[str, tuple[Judgement, dict[str, Any]]] = {}
    anchors: list[Judgement] = []
    window = scope.window if anchor is None else Window(min(anchor.start, scope.window.start), scope.window.end)
    for instrument in (*scope.instruments, *scope.awaited):
        inputs = await coverage_inputs(view, scope, instrument, window, raw=raw)
        expired = _expired(inputs.expired, scope.window, unit, raw=raw)
        judgement = inputs.judge(scope.window, expired, raw=raw)
        newest = None if instrument in scope.awaited else await newest_trade_at(view, instrument, scope.now if scope.as_of else None)
        part = _part(judgement, newest, scope.now, max_gaps)
        importing = None if instrument in scope.awaited else view.importing(instrument)
        if importing is not None and window.start < importing.reached:
            seconds = {"seconds": round(importing.seconds)} if importing.seconds is not None else {}
            part["importing"] = {"from": iso(importing.target), "reached": iso(importing.reached), **seconds}
        if anchor is not None:
            before = Window(anchor.start, max(anchor.start, scope.window.start))
            anchors.append(inputs.judge(anchor, [*inputs.expired.of_bars(before, Timeframe.H1), *expired]))
            part["anchor"] = {"start": iso(anchor.start), "ratio": ratio(anchors[-1])}
        parts[instrument.exchange] = judgement, part
    exchange = min(parts, key=lambda exchange: _rank(parts[exchange]))
    worst = dict(parts[exchange][1])
    broken = list(figures) if any(judgement.gaps for judgement, _ in parts.values()) else []
    if anchor is not None:
        worst["anchor"] = {"start": iso(anchor.start), "ratio": ratio(min(anchors, key=lambda one: one.millionths))}
        broken += [CUMULATIVE] if any(judgement.gaps for judgement in anchors) else []
    worst["broken"] = broken
    return {**worst, "worst": exchange, "parts": {name: part for name, (_, part) in parts.items()}} if scope.merged else worst


def nothing_traded(scope: Scope, covered: Mapping[str, Any]) -> str:
    """The sentence for a window without a recorded trade. Its coverage says whether the market was quiet or not recorded."""
    return f"{scope.name}: {nothing_recorded(covered).lower()}; coverage {covered['ratio']}."


def nothing_recorded(covered: Mapping[str, Any]) -> str:
    """Why a window has no trade: nothing of it was recorded, or what was recorded is deleted."""
    # A short answer lists the gaps of the worst part alone.
    parts = (covered, *covered.get("parts", {}).values())
    if any(gap[3] == GapReason.EXPIRED.value for part in parts for gap in part.get("gaps", ())):
        return "No trades in this window are stored any more: the data of at least a part of it has expired"
    return "No trades recorded in this window"


def _expired(expired: Expired, window: Window, unit: Timeframe | None, *, raw: bool) -> list[Window]:
    if raw:
        return expired.of_trades(window)
    return expired.of_bars(window, unit) if unit is not None else []


def _rank(part: tuple[Judgement, Mapping[str, Any]]) -> tuple[int, float]:
    """Sort key: the least covered part first; of equally covered parts the one with the largest lag."""
    lag = part[1]["lag_ms"]
    return part[0].millionths, -lag if lag is not None else float("-inf")


def _part(judgement: Judgement, newest: int | None, now: int, max_gaps: int) -> dict[str, Any]:
    listed = judgement.gaps[-max_gaps:]
    more = len(judgement.gaps) - len(listed)
    return {
        "ratio": ratio(judgement),
        "basis": judgement.basis.value if judgement.basis is not None else None,
        "gaps": [[iso(gap.start), iso(gap.end), gap.missing_trades, gap.reason.value] for gap in listed],
        **({"more_gaps": more} if more else {}),
        "newest_trade_at": iso(newest) if newest is not None else None,
        "lag_ms": max(0, now - newest) if newest is not None else None,
    }
