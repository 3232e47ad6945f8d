"""How much of a window is covered: the one place that computes it. Pure arithmetic on spans; every time is in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from wadm_mcp.coverage.expired import Expired
from wadm_mcp.coverage.spans import COVERS_NOTHING, Basis, GapReason, Span, SpanReason
from wadm_mcp.model import Window

IN_TRANSIT: Final = 2_500
"""Milliseconds by which a live tape may lag behind now and still count as complete up to its newest trade."""

_MILLION: Final = 1_000_000


class Gap(NamedTuple):
    """A time range `[start, end)` without coverage. `start == end` if ids are missing although two spans meet in time.

    `missing_trades` is None if the number is unknown: ids are not gapless, or only a part of the gap lies in the window.
    """

    start: int
    end: int
    missing_trades: int | None
    reason: GapReason


class Judgement(NamedTuple):
    """Coverage of a window up to now: `covered` of `judged` milliseconds, the gaps oldest first, joined where two of one reason touch.

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


class CoverageInputs(NamedTuple):
    """What `judge` needs to know of one instrument, read once and used for any number of windows.

    `alive_until` is how far the newest span, if it is live, may be extended beyond its last trade (None: not at all). `before` is the
    reason of the gap before the first span. `revising` are windows whose figures do not contain all late trades yet. `expired` is what was
    deleted, from which a caller passes to `judge` what its figures need.
    """

    spans: Sequence[Span]
    now: int
    alive_until: int | None = None
    before: GapReason = GapReason.NOT_RECORDED
    revising: Sequence[Window] = ()
    expired: Expired = Expired()

    def judge(self, window: Window, expired: Iterable[Window] = (), *, raw: bool = False) -> Judgement:
        """Coverage of a window; see `judge`."""
        return judge(self.spans, window, self.now, self.alive_until, expired, self.before, self.revising, raw)


def judge(
    spans: Iterable[Span],
    window: Window,
    now: int,
    alive_until: int | None = None,
    expired: Iterable[Window] = (),
    before: GapReason = GapReason.NOT_RECORDED,
    revising: Iterable[Window] = (),
    raw: bool = False,
) -> Judgement:
    """Coverage of a window up to `now`; with `raw` of its single trades and not only of its figures.

    Spans may touch, overlap and repeat. Two neighbours with basis `exact` are joined when no id is missing between them, whatever time
    lies between; where ids are missing there is a gap even when the spans touch. A minute whose candle differs is a gap whatever
    covers it. `expired` are the stretches whose data is gone; for the other arguments see `CoverageInputs`. An open window is judged
    only as far as the live tape reaches, while that is at most `IN_TRANSIT` behind now: what the exchange is still sending is not missing.
    """
    horizon = min(window.end, now)
    known = list(spans)
    absent = [span for span in known if span.reason is SpanReason.ABSENT]
    covered = _in_order([span for span in known if span.reason not in COVERS_NOTHING])
    if covered and alive_until is not None:
        newest = max(range(len(covered)), key=lambda place: (covered[place].end, covered[place].reason is SpanReason.LIVE))
        if covered[newest].reason is SpanReason.LIVE:
            reached = max(covered[newest].end, min(alive_until, now))
            covered[newest] = msgspec.structs.replace(covered[newest], end=reached)
            if window.end > now and reached >= now - IN_TRANSIT:
                horizon = min(horizon, reached)
    if horizon <= window.start:
        return Judgement(0, 0, None, ())
    every = _gaps(covered, absent, window.start, horizon, alive_until is not None, before)
    gaps = [inside for gap in every for inside in _clip(gap, window.start, horizon)]
    uncovered = [
        *(Gap(stretch.start, stretch.end, None, GapReason.EXPIRED) for stretch in expired),
        *(Gap(span.start, span.end, None, GapReason.CANDLE_DIFFERS) for span in known if span.reason is SpanReason.DIFFERS),
        *(Gap(stretch.start, stretch.end, None, GapReason.BEING_REVISED) for stretch in revising),
        # The milliseconds of its first and last trades have no rows either.
        *(Gap(span.start - 1, span.reached + 1, _trades(span), GapReason.WITHOUT_ROWS) for span in covered if raw and not span.raw),
    ]
    for stretch in uncovered:
        parts = list(_clip(stretch, window.start, horizon))
        for gap in gaps:
            if gap.start < gap.end:
                parts = [rest for part in parts for rest in (*_clip(part, window.start, gap.start), *_clip(part, gap.end, horizon))]
        gaps = sorted([*gaps, *parts], key=lambda gap: (gap.start, gap.end))
    bases = {span.basis for span in covered if span.start < horizon and span.end > window.start}
    basis = None if not bases else bases.pop() if len(bases) == 1 else Basis.OBSERVED
    gaps = _joined(gaps)
    missing = sum(gap.end - gap.start for gap in gaps)
    return Judgement(horizon - window.start - missing, horizon - window.start, basis, tuple(gaps))


def is_covered(spans: Iterable[Span], window: Window, now: int) -> bool:
    """True if a closed window is covered completely, figures and ids."""
    judgement = judge(spans, window, now)
    return judgement.judged == window.length and not judgement.gaps


def uncovered(spans: Iterable[Span], window: Window) -> list[Window]:
    """The parts of a window that no span covers by its time, oldest first. Ids are not looked at: see `judge`."""
    gaps: list[Window] = []
    reached = window.start
    for span in sorted(spans, key=lambda span: span.start):
        if span.start > reached and reached < window.end:
            gaps.append(Window(reached, min(span.start, window.end)))
        reached = max(reached, span.end)
    if reached < window.end:
        gaps.append(Window(reached, window.end))
    return gaps


def without(window: Window, gaps: Iterable[Window]) -> list[Window]:
    """The parts of a window that lie in none of these gaps, oldest first."""
    left: list[Window] = []
    reached = window.start
    for gap in sorted(gaps, key=lambda gap: gap.start):
        if reached < min(gap.start, window.end):
            left.append(Window(reached, min(gap.start, window.end)))
        reached = max(reached, gap.end)
    if reached < window.end:
        left.append(Window(reached, window.end))
    return left


def _trades(span: Span) -> int | None:
    """Number of trades in a span; None where ids are not gapless."""
    return span.last_seq - span.first_seq + 1 if span.basis is Basis.EXACT else None


def _in_order(spans: Sequence[Span]) -> list[Span]:
    """Oldest first. By ids if all are gapless, since two spans may touch in one millisecond."""
    if all(span.basis is Basis.EXACT for span in spans):
        return sorted(spans, key=lambda span: (span.first_seq, span.last_seq, span.start))
    return sorted(spans, key=lambda span: (span.start, span.end, span.first_seq))


def _gaps(covered: Sequence[Span], absent: Sequence[Span], start: int, horizon: int, alive: bool, before: GapReason) -> Iterator[Gap]:
    """The gaps before, between and after spans in order."""
    tail: Span | None = None
    for span in covered:
        if tail is None:
            yield Gap(min(start, span.start), span.start, None, before)
            tail = span
            continue
        missing = _missing_ids(tail, span)
        if missing != 0:
            lost_there = _lost_there(tail, span, absent) if missing is not None else None
            yield Gap(min(tail.end, span.start), span.start, missing, lost_there or span.opened_by)
            tail = span if span.end >= tail.end else tail
        else:
            first, last = min(tail.first_seq, span.first_seq), max(tail.last_seq, span.last_seq)
            tail = msgspec.structs.replace(tail, end=max(tail.end, span.reached), first_seq=first, last_seq=last)
    if tail is None:
        yield Gap(start, horizon, None, before)
    else:
        yield Gap(min(tail.end, horizon), horizon, None, GapReason.NOT_YET_SEEN if alive else GapReason.NOT_RECORDED)


def _missing_ids(earlier: Span, later: Span) -> int | None:
    """How many ids are missing between two exact spans; None where ids are not gapless."""
    if earlier.basis is not Basis.EXACT or later.basis is not Basis.EXACT:
        return None
    return max(0, later.first_seq - earlier.last_seq - 1, earlier.first_seq - later.last_seq - 1)


def _lost_there(earlier: Span, later: Span, absent: Sequence[Span]) -> GapReason | None:
    """Why none of the ids between two spans can be had from the exchange; None where some can."""
    first, last = earlier.last_seq + 1, later.first_seq - 1
    reason = GapReason.ABSENT
    for span in sorted(absent, key=lambda span: span.first_seq):
        if span.first_seq <= first <= span.last_seq:
            first = span.last_seq + 1
            reason = GapReason.UNREADABLE if span.opened_by is GapReason.UNREADABLE else reason
    return reason if first > last else None


def _joined(gaps: Sequence[Gap]) -> list[Gap]:
    """Gaps in order, with those that touch and have the same reason as one, where nothing is lost by it.

    Two stay apart if the missing trades of only one of them are known, and if the second has no length: its trades may be after it.
    """
    joined: list[Gap] = []
    for gap in gaps:
        last = joined[-1] if joined else None
        if last is None or not _can_join(last, gap):
            joined.append(gap)
            continue
        missing = None if last.missing_trades is None or gap.missing_trades is None else last.missing_trades + gap.missing_trades
        joined[-1] = Gap(last.start, gap.end, missing, gap.reason)
    return joined


def _can_join(earlier: Gap, later: Gap) -> bool:
    if (earlier.end, earlier.reason) != (later.start, later.reason):
        return False
    if (earlier.missing_trades is None) != (later.missing_trades is None):
        return False
    return later.start < later.end or earlier.start == earlier.end


def _clip(gap: Gap, start: int, end: int) -> Iterator[Gap]:
    """The part of a gap inside a window. A zero-length gap on the window's edge is included: its trades may be on either side."""
    if gap.start == gap.end:
        if gap.missing_trades and start <= gap.start <= end:
            yield gap
        return
    first, last = max(gap.start, start), min(gap.end, end)
    if first < last:
        yield gap if (first, last) == gap[:2] else Gap(first, last, None, gap.reason)
