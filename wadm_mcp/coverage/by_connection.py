"""Coverage by connections, where ids are not gapless: the tape is complete between two frames that one connection delivered.

A connection covers the time from its first frame to the last trade it delivered, and no further: a stale connection looks alive, and
only its next frame proves that nothing was lost before. The covered time of an instrument is what its connections cover together. A gap
is proven closed afterwards, if at all, by the exchange's newest trades when they overlap both of its edges (docs/exchanges.md 5).

A connection may lose trades unseen. Where the exchange's candle shows it, the minute is a gap inside its spans (`mark_differing`).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

import msgspec

from wadm_mcp.coverage.spans import (
    DIFFERING_SEQ,
    REMEMBERED_SPANS,
    Basis,
    GapReason,
    IdRange,
    MissingRange,
    OpenSpan,
    Span,
    SpanList,
    SpanReason,
)
from wadm_mcp.model import MINUTE, SECOND, Trade, Window

_LIVE: Final = SpanReason.LIVE
_IMPORTED: Final = SpanReason.IMPORTED
# Constants, since every trade reads them: looking a member up in its enum takes three times as long.
_REMEMBERED_MS: Final = 20 * SECOND
_REMEMBERED_MIN: Final = 50
_REMEMBERED_MAX: Final = 30_000
"""Trades within this time of the exchange, or among this many newest ones, are remembered to drop repeats, at most twice as long and as
many: connections may be seconds apart. Only the hash of each id is kept, since hundreds of instruments share the memory. A repeat that
is missed here is dropped by the store, which identifies trades."""
_REPLAYED_MS: Final = 2 * SECOND
"""A trade this much older than its frame was repeated on subscribe (docs/exchanges.md 3.2) and proves nothing about now."""


class ConnectionCoverage(SpanList):
    """Coverage where the exchange's ids are not gapless."""

    basis = Basis.OBSERVED

    def __init__(self, stored: Iterable[Span] = (), recent: Sequence[Trade] = ()) -> None:
        super().__init__()
        self._recent_ids: dict[int, None] = {}
        self._older_ids: dict[int, None] = {}
        self._recent_since = 0
        self._reported_ids: set[str] = set()
        """Ids of the newest trades that the exchange reported last, until they have proven what they can."""
        self._connections: dict[int, OpenSpan | None] = {}
        """The span that each living connection extends; None until it has delivered a current trade."""
        self._last_frame = (0, 0)
        """Connection and event time (ms) of the last frame received."""
        self._edges: dict[OpenSpan, _Edges] = {}
        self._differing: dict[int, OpenSpan] = {}
        """By start: the minutes whose candle differs, and those that were covered by another source since. They stay apart from the other
        spans, which overlap them."""
        self.add_stored(stored, recent)

    def add_stored(self, spans: Iterable[Span], recent: Sequence[Trade] = ()) -> None:
        mine: list[OpenSpan] = []
        for span in spans:
            if span.basis is not self.basis:
                continue
            if span.first_seq == DIFFERING_SEQ:
                self._differing.setdefault(span.start, OpenSpan.of(span))
            else:
                mine.append(OpenSpan.of(span))
        newest = max(mine, key=lambda span: span.end, default=None)
        last = next((trade for trade in reversed(recent) if newest is not None and trade.timestamp <= newest.end), None)
        if newest is not None and last is not None:
            self._edges[newest] = _Edges("", {trade.trade_id for trade in recent if trade.timestamp == last.timestamp})
        self._spans = sorted([*_without_contained(mine), *self._spans], key=lambda span: span.start)
        self._older_ids = dict.fromkeys(hash(trade.trade_id) for trade in recent) | self._older_ids
        self.breaks += 1

    def add_stored_trades(self, trades: Iterable[Trade], folded: Iterable[IdRange] = ()) -> None:
        """Changes nothing: only a connection proves what is complete, and the newest stored trades show repeats."""

    @property
    def alive(self) -> bool:
        return bool(self._connections)

    def frame_received(self, connection: int, event_time: int) -> None:
        self._last_frame = connection, event_time
        self._connections.setdefault(connection, None)

    def frame_unreadable(self, connection: int) -> None:
        """The connection covers nothing until its next trade, with which a new span begins."""
        if self._connections.get(connection) is not None:
            self._connections[connection] = None
            self._opened_by = GapReason.BAD_FRAME

    def connection_lost(self, connection: int, reason: GapReason) -> None:
        if connection in self._connections:
            del self._connections[connection]
            self._opened_by = reason

    def take(self, trade: Trade, reason: SpanReason = _LIVE) -> bool:
        key = hash(trade.trade_id)
        repeated = key in self._recent_ids or key in self._older_ids
        if not repeated and reason is not _IMPORTED:
            # An old trade does not come again on a connection, and its id would displace one that may.
            self._remember(key)
        if reason is _LIVE:
            self._extend(trade)
        return not repeated

    def take_folded(self, ids: IdRange, reason: SpanReason) -> bool:
        """Always true: without ids a partial footprint is a complete minute; `cover` says which window its record covers."""
        return True

    def cover(self, window: Window, reason: SpanReason, *, raw: bool, opened_by: GapReason = GapReason.START) -> None:
        """Cover the parts of a window that no span covers yet, and its minutes whose candle differs."""
        for minute in self._differing_minutes():
            if window.start <= minute.start and minute.end <= window.end:
                minute.reason, minute.opened_by, minute.raw, minute.changed = reason, GapReason.START, raw, True
        gaps = [MissingRange(-1, -1, window.start, self._spans[0].start), *self._between_spans()] if self._spans else []
        reached = max((span.end for span in self._spans), default=window.start)
        gaps.append(MissingRange(-1, -1, reached, window.end))
        parts = [(max(gap.start, window.start), min(gap.end, window.end)) for gap in gaps]
        fresh = [OpenSpan(start, end, -1, -1, opened_by, reason, raw=raw) for start, end in parts if start < end]
        self._spans = sorted([*self._spans, *fresh], key=lambda span: span.start)

    def mark_absent(self, first: int, last: int, reason: GapReason = GapReason.ABSENT) -> None:
        raise NotImplementedError("mark_absent needs gapless trade ids; this instrument's coverage is by connection")

    def mark_differing(self, minute: int) -> None:
        known = self._differing.get(minute)
        if known is None:
            seqs = DIFFERING_SEQ, DIFFERING_SEQ
            self._differing[minute] = OpenSpan(minute, minute + MINUTE, *seqs, GapReason.CANDLE_DIFFERS, SpanReason.DIFFERS)
        elif known.reason is not SpanReason.DIFFERS:
            known.reason, known.opened_by, known.raw, known.changed = SpanReason.DIFFERS, GapReason.CANDLE_DIFFERS, True, True

    @property
    def spans(self) -> list[Span]:
        return [*(span.span(self.basis) for span in self._differing.values()), *super().spans]

    @property
    def covered(self) -> list[Span]:
        if not self._differing:
            return super().covered
        differing = [(minute.start, minute.end) for minute in self._differing_minutes()]
        others = [span for span in self.spans if span.reason is not SpanReason.DIFFERS]
        return sorted((part for span in others for part in _outside(span, differing)), key=lambda span: (span.start, span.end))

    def changed(self) -> list[Span]:
        fresh = [span for span in self._differing.values() if span.changed]
        for span in fresh:
            span.changed = False
        for minute in sorted(self._differing)[: max(0, len(self._differing) - REMEMBERED_SPANS)]:
            del self._differing[minute]
        return [*(span.span(self.basis) for span in fresh), *super().changed()]

    def missing(self) -> list[MissingRange]:
        minutes = (MissingRange(-1, -1, minute.start, minute.end) for minute in self._differing_minutes())
        return sorted([*self._between_spans(), *minutes], key=lambda gap: (gap.start, gap.end))

    def _differing_minutes(self) -> list[OpenSpan]:
        """The minutes that are a gap because their candle differs, oldest first."""
        return [self._differing[start] for start in sorted(self._differing) if self._differing[start].reason is SpanReason.DIFFERS]

    def _between_spans(self) -> list[MissingRange]:
        """The gaps between spans, oldest first."""
        gaps: list[MissingRange] = []
        reached: OpenSpan | None = None
        for span in self._spans:
            if reached is not None and span.start > reached.end:
                gaps.append(MissingRange(-1, -1, reached.end, span.start))
            if reached is None or span.end > reached.end:
                reached = span
        return gaps

    def unclaimed(self, newest: Sequence[Trade]) -> list[Trade]:
        """The trades of the list that lie outside all spans and were not returned before.

        Trades inside a span are not compared by id, since their ids may no longer be remembered.
        """
        oldest = min((trade.timestamp for trade in newest), default=0)
        covered = [(span.start, span.end) for span in self._spans if span.end > oldest]
        known = self._reported_ids.union(*((each.first, *each.last) for each in self._edges.values()))
        self._reported_ids = {trade.trade_id for trade in newest}
        return [
            trade for trade in newest if trade.trade_id not in known and not any(start <= trade.timestamp < end for start, end in covered)
        ]

    def prove(self, newest: Sequence[Trade]) -> bool:
        """Close gaps that the exchange's newest trades bridge, in whole or from the oldest of these trades on.

        The list has no gaps of its own. To close a gap it must contain the trade with which a connection began after the gap, and that
        connection must have delivered a later one: before that, the exchange's REST may lag behind its stream, or other trades of that
        millisecond may be missing. True once every gap is closed as far as these trades will ever close it.
        """
        ids = {trade.trade_id for trade in newest}
        oldest = min((trade.timestamp for trade in newest), default=0)
        proven: list[OpenSpan] = []
        finished = True
        for gap in self._every_gap():
            place = next(place for place, span in enumerate(self._spans) if span.start == gap.end)
            if not self._reach_span(place, ids):
                # A list that begins after the gap never reaches it.
                finished = finished and gap.end <= oldest
                continue
            before = max(self._spans[:place], key=lambda span: span.end, default=None)
            whole = before is not None and before in self._edges and self._edges[before].last <= ids
            start = gap.start if whole else max(gap.start, oldest + 1)
            if start < gap.end:
                proven.append(OpenSpan(start, gap.end, -1, -1, self._spans[place].opened_by, SpanReason.REPAIRED))
        self._spans = sorted([*self._spans, *proven], key=lambda span: span.start)
        if finished:
            self._reported_ids = set()
        return finished

    def _every_gap(self) -> list[MissingRange]:
        """The gaps between spans, and the time before the first one."""
        return [MissingRange(-1, -1, 0, self._spans[0].start), *self._between_spans()] if self._spans else []

    def _remember(self, key: int) -> None:
        _, now = self._last_frame
        count = len(self._recent_ids)
        # Before the first frame the exchange's time is unknown, and nothing is old.
        expired = self._recent_since > 0 and now - self._recent_since >= _REMEMBERED_MS
        if count >= _REMEMBERED_MAX or (count >= _REMEMBERED_MIN and expired):
            self._older_ids, self._recent_ids, self._recent_since = self._recent_ids, {}, 0
        if not self._recent_since:
            self._recent_since = now
        self._recent_ids[key] = None

    def _reach_span(self, place: int, ids: Collection[str]) -> bool:
        """True if these trades contain the first trade of a connection in this span or a later one, and its whole millisecond."""
        return any(span in self._edges and self._edges[span].first in ids and span.end >= span.start for span in self._spans[place:])

    def _extend(self, trade: Trade) -> None:
        """Extend the connection's span to a live trade, over any spans that began in between."""
        connection, event_time = self._last_frame
        if connection not in self._connections:
            return
        span, at = self._connections[connection], trade.timestamp
        if span is None:
            if abs(event_time - at) > _REPLAYED_MS:
                return
            span = self._connections[connection] = self._opened(trade)
        if at < span.end:
            return
        edges = self._edges[span]
        if at > span.end:
            span.end, edges.last = at, set()
        edges.last.add(trade.trade_id)
        span.last = max(span.last, trade.seq)
        span.changed = True
        if span is not self._spans[-1]:
            self._absorb_later(span, trade.trade_id)

    def _opened(self, trade: Trade) -> OpenSpan:
        """The span that a new connection extends: one that covers what follows its first trade or ends with it, else a new one."""
        self.breaks += 1
        start = trade.timestamp + 1
        for span in reversed(self._spans):
            edges = self._edges.get(span)
            if span.start <= start and (span.end >= start or (edges is not None and trade.trade_id in edges.last)):
                self._edges.setdefault(span, _Edges(trade.trade_id, set()))
                return span
            if span.end < trade.timestamp:
                break
        # It starts after the trade: others of that millisecond may be missing.
        span = OpenSpan(start, trade.timestamp, trade.seq, trade.seq, self._opened_by)
        self._edges[span] = _Edges(trade.trade_id, {trade.trade_id})
        insort(self._spans, span, key=lambda each: each.start)
        return span

    def _absorb_later(self, span: OpenSpan, trade_id: str) -> None:
        """Merge the later spans that this one now overlaps, or whose first trade its own connection has delivered."""
        place = self._spans.index(span) + 1
        while place < len(self._spans):
            later = self._spans[place]
            edges = self._edges.get(later)
            if later.start > span.end and (edges is None or edges.first != trade_id):
                return
            del self._spans[place]
            self._edges.pop(later, None)
            span.last = max(span.last, later.last)
            if later.end > span.end:
                span.end = later.end
                if edges is not None:
                    self._edges[span].last = edges.last
            for connection, other in self._connections.items():
                if other is later:
                    self._connections[connection] = span


class _Edges:
    """Ids of the first trade that a span's connections delivered, and of those in its last millisecond; empty where unknown."""

    __slots__ = ("first", "last")

    def __init__(self, first: str, last: set[str]) -> None:
        self.first = first
        self.last = last


def _without_contained(spans: Iterable[OpenSpan]) -> list[OpenSpan]:
    """Spans by start, without those that another one contains. A store also has earlier, shorter versions of a span."""
    kept: list[OpenSpan] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if not kept or span.end > kept[-1].end:
            kept.append(span)
    return kept


def _outside(span: Span, stretches: Iterable[tuple[int, int]]) -> Iterator[Span]:
    """The parts of a span outside these stretches, which are disjoint and in order."""
    reached = span.start
    for start, end in stretches:
        if start < span.end and reached < end:
            if reached < start:
                yield msgspec.structs.replace(span, start=reached, end=start)
            reached = end
    if reached == span.start:
        yield span
    elif reached < span.end:
        yield msgspec.structs.replace(span, start=reached)
