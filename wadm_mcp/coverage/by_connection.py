"""Coverage by connections, where ids are not gapless: the tape is complete between two trades that one connection delivered.

A connection covers the time from its first trade to its last one, and no further. Where it was silent for longer than the pace of the
instrument explains (`silence.py`), its next trade proves nothing of the time before: it begins anew, like a new connection. The covered
time of an instrument is what its connections cover together, so a gap opens only where all of them were silent. A gap is proven closed
afterwards, if at all, by the exchange's newest trades when they overlap both of its edges (docs/exchanges.md 5). After a silence that is
only unusual the gap is provisional: it closes by itself unless the newest trades show that something was lost.

A connection may lose trades unseen. Where the exchange's candle shows it, the minute is a gap inside its spans (`mark_differing`).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from wadm_mcp.coverage.silence import SHORTEST_PAUSE, SHORTEST_SILENCE, SilenceLimit
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
_SILENCE: Final = GapReason.SILENCE
# Constants, since every trade reads them: looking a member up in its enum takes three times as long.
_REMEMBERED_MS: Final = 20 * SECOND
_REMEMBERED_MIN: Final = 50
_REMEMBERED_MAX: Final = 30_000
"""Trades within this time of the exchange, or among this many newest ones, are remembered to drop repeats, at most twice as long and as
many: connections may be seconds apart. Only the hash of each id is kept, since hundreds of instruments share the memory. A repeat that
is missed here is dropped by the store, which identifies trades."""
_PROVISIONAL_MS: Final = 20 * SECOND
"""Time of the exchange within which its newest trades should show what an unusual silence was."""
_REPLAYED_MS: Final = 2 * SECOND
"""A trade this much older than its frame was repeated on subscribe (docs/exchanges.md 3.2) and proves nothing about now."""


class ConnectionCoverage(SpanList):
    """Coverage where the exchange's ids are not gapless."""

    basis = Basis.OBSERVED

    def __init__(self, stored: Iterable[Span] = (), recent: Sequence[Trade] = ()) -> None:
        super().__init__(SilenceLimit())
        self._recent_ids: dict[int, None] = {}
        self._older_ids: dict[int, None] = {}
        self._recent_since = 0
        self._reported_ids: set[str] = set()
        """Ids of the newest trades that the exchange reported last, until they have proven what they can."""
        self._list_learned = False
        """True once the pauses of a whole list of the exchange's newest trades were learned."""
        self._provisional: list[Window] = []
        """Gaps after unusual silences, from one trade to the next, oldest first."""
        self._unreadable_after = -1
        """Time (ms) of the newest covered trade when the last unreadable frame came in."""
        self._connections: dict[int, _Connection] = {}
        self._last_frame = (0, 0)
        """Connection and event time (ms) of the last frame received."""
        self._edges: dict[OpenSpan, _Edges] = {}
        self._differing: dict[int, OpenSpan] = {}
        """By start: the minutes whose candle differs, and those that were covered by another source since. They stay apart from the other
        spans, which overlap them."""
        self._taken_again: set[int] = set()
        """Those of them that a complete source has delivered since."""
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
            self._edges[newest] = _Edges("", -1, {trade.trade_id for trade in recent if trade.timestamp == last.timestamp})
        self._spans = sorted([*_without_contained(mine), *self._spans], key=lambda span: span.start)
        self._older_ids = dict.fromkeys(hash(trade.trade_id) for trade in recent) | self._older_ids
        self._learn_stored_pauses(recent)
        self.breaks += 1

    def add_stored_trades(self, trades: Iterable[Trade], folded: Iterable[IdRange] = ()) -> None:
        """Changes nothing: only a connection proves what is complete, and the newest stored trades show repeats."""

    @property
    def alive(self) -> bool:
        return bool(self._connections)

    @property
    def continuing(self) -> bool:
        return any(connection.span is not None for connection in self._connections.values())

    def frame_received(self, connection: int, event_time: int) -> None:
        self._last_frame = connection, event_time
        if self._provisional and event_time - self._provisional[0].end >= _PROVISIONAL_MS:
            self._close_provisional(self._provisional.pop(0))
        if connection not in self._connections:
            self._connections[connection] = _Connection()

    def frame_unreadable(self, connection: int) -> None:
        """The connection covers nothing until its next trade, with which a new span begins."""
        delivering = self._connections.get(connection)
        if delivering is not None and delivering.span is not None:
            delivering.span = None
            self._opened_by = GapReason.BAD_FRAME
        self._unreadable_after = max((span.end for span in self._spans), default=0)

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
        if self._differing:
            minute = ids.first_at - ids.first_at % MINUTE
            if minute in self._differing:
                self._taken_again.add(minute)
        return True

    def cover(self, window: Window, reason: SpanReason, *, raw: bool, opened_by: GapReason = GapReason.START) -> None:
        """Cover the parts of a window that no span covers yet, and its minutes whose candle differs and that were taken again."""
        for minute in self._differing_minutes():
            if window.start <= minute.start and minute.end <= window.end and minute.start in self._taken_again:
                self._taken_again.discard(minute.start)
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
        reached: int | None = None
        for span in self._spans:
            if reached is not None and span.start > reached:
                gaps.append(MissingRange(-1, -1, reached, span.start))
            # Of a span with a single trade the millisecond of that trade lies in the gap before it.
            reached = max(reached or 0, span.start, span.end)
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

    def prove(self, newest: Sequence[Trade], *, cut: bool = False) -> bool:
        """Close gaps that the exchange's newest trades, oldest first, bridge, in whole or from the oldest of these trades on.

        The list has no gaps of its own. To close a gap it must contain the trade with which a connection began after the gap: before
        that, the exchange's REST may lag behind its stream. The millisecond of that trade belongs to the connection, which may deliver
        others of it: it is covered once the connection has delivered a later trade, as the newest millisecond of any span. True once every
        gap is closed as far as these trades will ever close it.
        """
        ids = {trade.trade_id for trade in newest}
        times = sorted(trade.timestamp for trade in newest)
        oldest = times[0] if times else 0
        first_list = bool(times) and not self.silence_limit.known and not self._list_learned
        if first_list:
            self._list_learned = True
            self.silence_limit.learn_all(times)
        proven: list[OpenSpan] = []
        self._decide_provisional(newest, learns=not first_list, cut=cut)
        finished = True
        for gap in self._every_gap():
            if gap.end <= oldest:
                # A list that begins after the gap never reaches it.
                continue
            place = next(place for place, span in enumerate(self._spans) if span.start == gap.end)
            first = self._newest_reached(place, ids)
            if first is None:
                finished = False
                continue
            before = max(self._spans[:place], key=lambda span: span.end, default=None)
            last = self._edges[before].last if before is not None and before in self._edges else set[str]()
            start = gap.start if last and last <= ids else max(gap.start, oldest + 1)
            at = self._edges[first].first_at
            end = gap.end if first.end > at else min(gap.end, at)
            if start < end:
                proven.append(OpenSpan(start, end, -1, -1, self._spans[place].opened_by, SpanReason.REPAIRED))
            if start <= end < gap.end:
                # The connection has delivered no later trade yet: its own span reaches back to its first one.
                first.start, first.changed = at, True
            if start == gap.start and not first_list:
                self.silence_limit.learn_all(time for time in times if gap.start - 1 <= time <= gap.end)
        self._spans = sorted([*self._spans, *proven], key=lambda span: span.start)
        if finished:
            self._reported_ids = set()
        return finished

    def _decide_provisional(self, newest: Sequence[Trade], *, learns: bool, cut: bool) -> None:
        """Close the provisional gaps of which the exchange's newest trades, oldest first, show none that was lost.

        The others stay. With `cut` so does a gap that these trades do not reach back over: what could not be read may have been in it.
        """
        places = {trade.trade_id: place for place, trade in enumerate(newest)}
        waiting: list[Window] = []
        for silence in self._provisional:
            place = self._open_gap(silence)
            if place is None or (cut and (not newest or newest[0].timestamp > silence.start)):
                continue
            last, first = self._edges[self._spans[place]].last, self._edges[self._spans[place + 1]].first
            if first not in places:
                # REST lags behind the stream, or all of its trades are newer.
                waiting.append(silence)
                continue
            between = [trade for trade in newest[: places[first]] if trade.timestamp >= silence.start]
            if all(trade.trade_id in last for trade in between):
                self._merge_next(place)
                if between and learns:
                    self.silence_limit.learn(silence.start, silence.end)
        self._provisional = waiting

    def _close_provisional(self, silence: Window) -> None:
        """Close a provisional gap, if it is still open: the pace of the instrument allows the silence, and nothing speaks against it."""
        place = self._open_gap(silence)
        if place is not None:
            self._merge_next(place)

    def _open_gap(self, silence: Window) -> int | None:
        """Place of the span that ends with the trade before a silence, if the next span begins with the trade after it."""
        for place, (before, after) in enumerate(pairwise(self._spans)):
            if before.end == silence.start and after.start == silence.end + 1 and before in self._edges and after in self._edges:
                return place
        return None

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

    def _newest_reached(self, place: int, ids: Collection[str]) -> OpenSpan | None:
        """Of this span and the later ones the one whose first trade is the latest that these trades contain; None if they contain none."""
        reached = [span for span in self._spans[place:] if span in self._edges and self._edges[span].first in ids]
        return max(reached, key=lambda span: (self._edges[span].first_at, span.end), default=None)

    def _extend(self, trade: Trade) -> None:
        """Extend the connection's span to a live trade, over any spans that began in between."""
        name, event_time = self._last_frame
        connection = self._connections.get(name)
        if connection is None:
            return
        span, at = connection.span, trade.timestamp
        if span is None:
            if abs(event_time - at) > _REPLAYED_MS:
                return
            self.breaks += 1
            span = connection.span = self._covering(trade) or self._new_span(trade, self._opened_by)
            connection.newest = at
        else:
            silent = at - connection.newest
            if silent > SHORTEST_SILENCE and silent > self.silence_limit.unusual:
                span = connection.span = self._covering(trade) or self._after_silence(trade, span, silent)
            if silent > 0:
                connection.newest = at
        if at < span.end:
            return
        edges = self._edges[span]
        if at > span.end:
            if at - span.end >= SHORTEST_PAUSE:
                self.silence_limit.learn(span.end, at)
            span.end, edges.last = at, set()
        edges.last.add(trade.trade_id)
        span.last = max(span.last, trade.seq)
        span.changed = True
        if span is not self._spans[-1]:
            self._absorb_later(span, trade.trade_id)

    def _covering(self, trade: Trade) -> OpenSpan | None:
        """The span that a connection may extend from this trade on: one that covers what follows the trade, or ends with it."""
        start = trade.timestamp + 1
        for span in reversed(self._spans):
            edges = self._edges.get(span)
            if span.start <= start and (span.end >= start or (edges is not None and trade.trade_id in edges.last)):
                self._edges.setdefault(span, _Edges(trade.trade_id, trade.timestamp, set()))
                return span
            if span.end < trade.timestamp:
                break
        return None

    def _after_silence(self, trade: Trade, before: OpenSpan, silent: int) -> OpenSpan:
        """The span that begins after a connection, which extended the span `before`, was silent for so many ms."""
        self.breaks += 1
        # In a frame that could not be read trades may have been lost.
        if before is self._spans[-1] and silent <= self.silence_limit.ms and before.end != self._unreadable_after:
            self._provisional.append(Window(before.end, trade.timestamp))
        return self._new_span(trade, _SILENCE)

    def _new_span(self, trade: Trade, opened_by: GapReason) -> OpenSpan:
        """A span that begins after the trade: others of its millisecond may be missing."""
        span = OpenSpan(trade.timestamp + 1, trade.timestamp, trade.seq, trade.seq, opened_by)
        self._edges[span] = _Edges(trade.trade_id, trade.timestamp, {trade.trade_id})
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
            self._merge_next(place - 1)

    def _merge_next(self, place: int) -> None:
        """Merge the span after the one at this place into it."""
        span, later = self._spans[place], self._spans.pop(place + 1)
        edges = self._edges.pop(later, None)
        span.last = max(span.last, later.last)
        if later.end > span.end:
            span.end, span.changed = later.end, True
            if edges is not None:
                self._edges.setdefault(span, edges).last = edges.last
        for connection in self._connections.values():
            if connection.span is later:
                connection.span = span


class _Connection:
    """A living connection: the span that it extends, None until it has delivered a current trade, and the time of its newest trade."""

    __slots__ = ("newest", "span")

    def __init__(self) -> None:
        self.span: OpenSpan | None = None
        self.newest = 0


class _Edges:
    """The first trade that a span's connections delivered, with its time, and the ids of those in its last millisecond; empty where
    unknown."""

    __slots__ = ("first", "first_at", "last")

    def __init__(self, first: str, first_at: int, last: set[str]) -> None:
        self.first = first
        self.first_at = first_at
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
