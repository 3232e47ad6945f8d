"""Which part of a window the tape holds completely, and which part it does not: the words that stand before every figure.

`judge` is the arithmetic, pure; `coverage` asks it about every instrument of a scope and tells what it found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from wadm_mcp.model import MINUTE, Basis, Instrument, Retention, Span, Timeframe, Window
from wadm_mcp.queries.numbers import Number, iso, number
from wadm_mcp.queries.scope import Scope
from wadm_mcp.queries.view import View

ABSENT: Final = "absent"
"""Reason of a span, and of the gap it stands for, that the exchange itself does not have."""

CUMULATIVE: Final = "cumulative_delta"

LISTED: Final = 20
"""Gaps an answer lists; of more it keeps the newest and says how many it left out."""

IN_TRANSIT: Final = 2_500
"""Milliseconds that a live tape may be behind now and still be told as whole up to where it has come."""

_MILLION: Final = 1_000_000


class Gap(NamedTuple):
    """A stretch `[start, end)` that is not held. It lasts no time where ids are missing between two spans that touch.

    `missing_trades` is None where they cannot be counted: without ids, or where only a part of the gap lies in the window.
    """

    start: int
    end: int
    missing_trades: int | None
    reason: str


class Judgement(NamedTuple):
    """How much of a window is held, up to now: `covered` of `judged` milliseconds, the gaps oldest first.

    `basis` is that of the spans in the window, `observed` where they differ, None where there is none.
    """

    covered: int
    judged: int
    basis: Basis | None
    gaps: tuple[Gap, ...]

    @property
    def millionths(self) -> int:
        """The covered share, truncated: a million only when nothing is missing, 0 for an empty window."""
        if not self.judged:
            return 0
        return min(self.covered * _MILLION // self.judged, _MILLION - 1 if self.gaps else _MILLION)

    @property
    def ratio(self) -> Number:
        """The covered share as answers tell it."""
        return number(self.millionths, 6)


def judge(
    spans: Iterable[Span],
    window: Window,
    now: int,
    alive_until: int | None = None,
    lost: Iterable[Window] = (),
    before: str = "not_recorded",
    revising: Iterable[Window] = (),
    raw: bool = False,
) -> Judgement:
    """How much of a window, up to `now`, the spans hold; with `raw` as single trades and not only as figures.

    Spans may touch, overlap and repeat. Two neighbours with basis `exact` are one when their ids leave none out, whatever time lies
    between; where ids are missing there is a gap even when the spans touch. Ids that the exchange itself does not have are a gap whose
    reason is `absent`. `alive_until` is how far the newest span, if it is a
    live one, may be taken beyond its last trade; None where no connection lives. An open window is judged that far only, as long as
    it is no more than `IN_TRANSIT` behind now: what the exchange is still sending is not missing. `lost` stretches were held and
    outlived their life. `before` is why nothing is known of the time before the first span; figures of the minutes `revising` lack
    late trades for a moment.
    """
    horizon = min(window.end, now)
    known = list(spans)
    absent = [span for span in known if span.reason == ABSENT]
    held = _in_order([span for span in known if span.reason != ABSENT])
    if held and alive_until is not None:
        newest = max(range(len(held)), key=lambda place: (held[place].end, held[place].reason == "live"))
        if held[newest].reason == "live":
            seen = max(held[newest].end, min(alive_until, now))
            held[newest] = msgspec.structs.replace(held[newest], end=seen)
            if window.end > now and seen >= now - IN_TRANSIT:
                horizon = min(horizon, seen)
    if horizon <= window.start:
        return Judgement(0, 0, None, ())
    every = _gaps(held, absent, window.start, horizon, alive_until is not None, before)
    gaps = [inside for gap in every for inside in _cut(gap, window.start, horizon)]
    unheld = [
        *(Gap(stretch.start, stretch.end, None, "expired") for stretch in lost),
        *(Gap(minute.start, minute.end, None, "being_revised") for minute in revising),
        # The milliseconds of its outermost trades have no rows either.
        *(Gap(span.start - 1, span.reached + 1, _trades(span), "without_rows") for span in held if raw and not span.raw),
    ]
    for stretch in unheld:
        expired = list(_cut(stretch, window.start, horizon))
        for gap in gaps:
            if gap.start < gap.end:
                expired = [rest for piece in expired for rest in (*_cut(piece, window.start, gap.start), *_cut(piece, gap.end, horizon))]
        gaps = sorted([*gaps, *expired], key=lambda gap: (gap.start, gap.end))
    touching = {span.basis for span in held if span.start < horizon and span.end > window.start}
    basis = None if not touching else touching.pop() if len(touching) == 1 else Basis.OBSERVED
    missing = sum(gap.end - gap.start for gap in gaps)
    return Judgement(horizon - window.start - missing, horizon - window.start, basis, tuple(gaps))


def _trades(span: Span) -> int | None:
    """Trades of a span, where ids count them."""
    return span.last_seq - span.first_seq + 1 if span.basis is Basis.EXACT else None


def _in_order(spans: Sequence[Span]) -> list[Span]:
    """Oldest first: by ids where all of them count, for their times may touch in one millisecond."""
    if all(span.basis is Basis.EXACT for span in spans):
        return sorted(spans, key=lambda span: (span.first_seq, span.last_seq, span.start))
    return sorted(spans, key=lambda span: (span.start, span.end, span.first_seq))


def _gaps(held: Sequence[Span], absent: Sequence[Span], start: int, horizon: int, living: bool, before: str) -> Iterator[Gap]:
    """What lies before, between and after spans in order of time."""
    tail: Span | None = None
    for span in held:
        if tail is None:
            yield Gap(min(start, span.start), span.start, None, before)
            tail = span
            continue
        missing = _missing(tail, span)
        if missing != 0:
            lacks = missing is not None and _all_absent(tail, span, absent)
            yield Gap(min(tail.end, span.start), span.start, missing, ABSENT if lacks else span.opened_by)
            tail = span if span.end >= tail.end else tail
        else:
            first, last = min(tail.first_seq, span.first_seq), max(tail.last_seq, span.last_seq)
            tail = msgspec.structs.replace(tail, end=max(tail.end, span.reached), first_seq=first, last_seq=last)
    if tail is None:
        yield Gap(start, horizon, None, before)
    else:
        yield Gap(min(tail.end, horizon), horizon, None, "not_yet_seen" if living else "not_recorded")


def _missing(earlier: Span, later: Span) -> int | None:
    """Ids that two exact spans leave out between them; None where ids do not count."""
    if earlier.basis is not Basis.EXACT or later.basis is not Basis.EXACT:
        return None
    return max(0, later.first_seq - earlier.last_seq - 1, earlier.first_seq - later.last_seq - 1)


def _all_absent(earlier: Span, later: Span, absent: Sequence[Span]) -> bool:
    """Does the exchange itself not have any of the ids between two spans?"""
    first, last = earlier.last_seq + 1, later.first_seq - 1
    for span in sorted(absent, key=lambda span: span.first_seq):
        if span.first_seq <= first <= span.last_seq:
            first = span.last_seq + 1
    return first > last


def _cut(gap: Gap, start: int, end: int) -> Iterator[Gap]:
    """The part of a gap that lies in a stretch. One that lasts no time counts at the edges too: its trades may lie on either side."""
    if gap.start == gap.end:
        if gap.missing_trades and start <= gap.start <= end:
            yield gap
        return
    first, last = max(gap.start, start), min(gap.end, end)
    if first < last:
        yield gap if (first, last) == gap[:2] else Gap(first, last, None, gap.reason)


class CoverageInputs(NamedTuple):
    """Everything that `judge` needs to know of one instrument, read once for as many windows as lie in the one it was read for."""

    spans: Sequence[Span]
    now: int
    alive_until: int | None = None
    before: str = "not_recorded"
    revising: Sequence[Window] = ()

    def judge(self, window: Window, lost: Iterable[Window] = (), *, raw: bool = False) -> Judgement:
        """How much of a window is held; see `judge`."""
        return judge(self.spans, window, self.now, self.alive_until, lost, self.before, self.revising, raw)


async def look(view: View, scope: Scope, instrument: Instrument, window: Window, *, raw: bool = False) -> CoverageInputs:
    """What is known of one instrument's coverage in a window. One that its exchange has not told of yet is not held at all."""
    if instrument in scope.awaited:
        return CoverageInputs((), scope.now, before="exchange_unreachable")
    alive_until = view.alive_until(instrument)
    spans = await view.spans(instrument, window, raw=raw)
    importing = view.importing(instrument)
    brought = importing is not None and window.start < importing.reached
    before = "store_unreachable" if view.alone else "importing" if brought else "not_recorded"
    return CoverageInputs(spans, scope.now, alive_until, before, await view.lacking(instrument, window, raw=raw))


def lost_trades(lives: Retention | None, now: int, window: Window) -> list[Window]:
    """The stretch of a window whose raw trades have outlived their life."""
    return _before(window, now - lives.trades) if lives is not None else []


def lost_bars(lives: Retention | None, now: int, window: Window, unit: Timeframe) -> list[Window]:
    """The stretches of a window whose figures have outlived their life, when they are read in whole units where those are kept.

    Units below one hour live as long as minutes. Of older whole hours and days only the window's ragged edges are lost.
    """
    if lives is None:
        return []
    minutes = now - lives.minutes
    if unit.ms < Timeframe.H1.ms:
        return _before(window, minutes)
    first, last = unit.floor(window.start + unit.ms - 1), unit.floor(window.end)
    if first > last:
        return _before(window, minutes)
    edges = (Window(window.start, min(first, window.end)), Window(max(last, window.start), window.end))
    return [*_before(window, now - lives.hours), *(lost for edge in edges for lost in _before(edge, minutes))]


def _before(window: Window, horizon: int) -> list[Window]:
    """The part of a window whose minutes began before `horizon`."""
    end = min(window.end, -(-horizon // MINUTE) * MINUTE)
    return [Window(window.start, end)] if window.start < end else []


async def newest_trade_at(view: View, instrument: Instrument, before: int | None = None) -> int | None:
    """Time of the newest trade held at all, or of the newest `before` a time (ms)."""
    newest = view.newest(instrument)
    if newest is not None and (before is None or newest.timestamp < before):
        return newest.timestamp
    until = before if before is not None else view.clock() + MINUTE
    found = await view.trades(instrument, Window(0, max(0, until)), limit=1, newest=True)
    return found[-1].timestamp if found else None


async def coverage(
    view: View,
    scope: Scope,
    lost: Sequence[Window] = (),
    *,
    anchor: Window | None = None,
    anchor_lost: Sequence[Window] = (),
    raw: bool = False,
    figures: Sequence[str] = (),
    listed: int = LISTED,
) -> dict[str, Any]:
    """What a scope's window holds, as answers tell it; of a merged scope the worst part's values on top, and every part by exchange.

    `raw` says that single trades are told and not figures. With `anchor`, the stretch that cumulative delta sums over, its
    coverage is told too. `figures` are the names of those that a gap makes wrong: `broken` tells them where there is one. At
    most `listed` gaps are told, the newest.
    """
    parts: dict[str, tuple[Judgement, dict[str, Any]]] = {}
    anchors: list[Judgement] = []
    window = scope.window if anchor is None else Window(min(anchor.start, scope.window.start), scope.window.end)
    for instrument in (*scope.instruments, *scope.awaited):
        seen = await look(view, scope, instrument, window, raw=raw)
        judgement = seen.judge(scope.window, lost, raw=raw)
        newest = None if instrument in scope.awaited else await newest_trade_at(view, instrument, scope.now if scope.as_of else None)
        told = _told(judgement, newest, scope.now, listed)
        importing = None if instrument in scope.awaited else view.importing(instrument)
        if importing is not None and window.start < importing.reached:
            told["importing"] = {"from": iso(importing.target), "reached": iso(importing.reached), "seconds": round(importing.seconds)}
        if anchor is not None:
            anchors.append(seen.judge(anchor, anchor_lost))
            told["anchor"] = {"start": iso(anchor.start), "ratio": anchors[-1].ratio}
        parts[instrument.exchange] = judgement, told
    exchange = min(parts, key=lambda exchange: _badness(parts[exchange]))
    worst = dict(parts[exchange][1])
    broken = list(figures) if any(judgement.gaps for judgement, _ in parts.values()) else []
    if anchor is not None:
        worst["anchor"] = {"start": iso(anchor.start), "ratio": min(anchors, key=lambda one: one.millionths).ratio}
        broken += [CUMULATIVE] if any(judgement.gaps for judgement in anchors) else []
    worst["broken"] = broken
    return {**worst, "worst": exchange, "parts": {name: told for name, (_, told) in parts.items()}} if scope.merged else worst


def nothing_held(scope: Scope, covered: Mapping[str, Any]) -> str:
    """What there is to say of a window without a trade: whether it was quiet, nobody knows without its coverage."""
    return f"{scope.name}: no trade is held in this window; coverage {covered['ratio']}."


def _badness(part: tuple[Judgement, Mapping[str, Any]]) -> tuple[int, float]:
    lag = part[1]["lag_ms"]
    return part[0].millionths, -lag if lag is not None else float("-inf")


def _told(judgement: Judgement, newest: int | None, now: int, most: int) -> dict[str, Any]:
    listed = judgement.gaps[-most:]
    more = len(judgement.gaps) - len(listed)
    return {
        "ratio": judgement.ratio,
        "basis": judgement.basis.value if judgement.basis is not None else None,
        "gaps": [[iso(gap.start), iso(gap.end), gap.missing_trades, gap.reason] for gap in listed],
        **({"more_gaps": more} if more else {}),
        "newest_trade_at": iso(newest) if newest is not None else None,
        "lag_ms": max(0, now - newest) if newest is not None else None,
    }
