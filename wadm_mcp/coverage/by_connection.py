"""Continuity by connections, where ids do not count: the tape is complete between two frames that one connection delivered.

A connection vouches for the time from its first frame to the last trade it brought, no further: one that went mute looks alive, and
only its next frame proves that nothing was lost before it. What all connections vouch for together is held. What lies between is
proven afterwards, if at all, by the exchange's newest trades reaching over both edges of the gap (docs/exchanges.md 5).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from wadm_mcp.coverage.spans import IMPORTED, LIVE, REPAIRED, MissingRange, OpenSpan, Spans
from wadm_mcp.model import SECOND, Basis, Span, Trade, Window

_REMEMBERED_FOR: Final = 20 * SECOND
_REMEMBERED_LEAST: Final = 50
_REMEMBERED_MOST: Final = 30_000
"""Trades within this time of the exchange, or among the newest of this number, are remembered to drop repeats, up to twice as long and
as many: connections may be seconds apart. Each by the hash of its id alone, for those of hundreds of instruments are in memory. The
store's identity is the net below."""
_REPLAYED: Final = 2 * SECOND
"""A trade this much older than its frame was repeated at subscribe (docs/exchanges.md 3.2): it proves nothing about now."""


class ConnectionCoverage(Spans):
    """What is held where nothing counts the trades."""

    basis = Basis.OBSERVED

    def __init__(self, known: Iterable[Span] = (), recent: Sequence[Trade] = ()) -> None:
        super().__init__()
        self._seen: dict[int, None] = {}
        self._seen_before: dict[int, None] = {}
        self._seen_since = 0
        self._told: set[str] = set()
        """Ids of the exchange's newest trades as they were told last, until they have proven what they can."""
        self._vouches: dict[int, OpenSpan | None] = {}
        """The span that each living connection's own stretch lies in; None until it has brought a trade of now."""
        self._frame = (0, 0)
        """Connection and event time of the frame last heard."""
        self._edges: dict[OpenSpan, _Edges] = {}
        self.adopt(known, recent)

    def adopt(self, known: Iterable[Span], recent: Sequence[Trade] = ()) -> None:
        """Hold from now on what a store has held all along; `recent` are the newest trades in it, oldest first."""
        mine = [OpenSpan.of(span) for span in known if span.basis is self.basis]
        newest = max(mine, key=lambda span: span.end, default=None)
        last = next((trade for trade in reversed(recent) if newest is not None and trade.timestamp <= newest.end), None)
        if newest is not None and last is not None:
            self._edges[newest] = _Edges("", {trade.trade_id for trade in recent if trade.timestamp == last.timestamp})
        self._held = sorted([*_joined(mine), *self._held], key=lambda span: span.start)
        self._seen_before = dict.fromkeys(hash(trade.trade_id) for trade in recent) | self._seen_before
        self.breaks += 1

    @property
    def living(self) -> bool:
        return bool(self._vouches)

    def heard(self, connection: int, event_time: int) -> None:
        self._frame = connection, event_time
        self._vouches.setdefault(connection, None)

    def take(self, trade: Trade, reason: str = LIVE) -> bool:
        seen = hash(trade.trade_id)
        known = seen in self._seen or seen in self._seen_before
        if not known and reason != IMPORTED:
            # What is long past does not come again on a connection, and would displace what may.
            self._remember(seen)
        if reason == LIVE:
            self._vouch(trade)
        return not known

    def doubt(self, connection: int) -> None:
        """As the contract says: what the connection vouches for begins anew with its next trade."""
        if self._vouches.get(connection) is not None:
            self._vouches[connection] = None
            self._opened_by = "bad_frame"

    def lost(self, connection: int, reason: str) -> None:
        if connection in self._vouches:
            del self._vouches[connection]
            self._opened_by = reason

    def missing(self) -> list[MissingRange]:
        gaps: list[MissingRange] = []
        reached: OpenSpan | None = None
        for span in self._held:
            if reached is not None and span.start > reached.end:
                gaps.append(MissingRange(-1, -1, reached.end, span.start))
            if reached is None or span.end > reached.end:
                reached = span
        return gaps

    def hold(self, window: Window, reason: str, *, raw: bool) -> None:
        """A record that is whole in itself (an archive's day) tells all of a window; what is held of it already stays as it is."""
        gaps = [MissingRange(-1, -1, window.start, self._held[0].start), *self.missing()] if self._held else []
        reached = max((span.end for span in self._held), default=window.start)
        gaps.append(MissingRange(-1, -1, reached, window.end))
        parts = [(max(gap.start, window.start), min(gap.end, window.end)) for gap in gaps]
        told = [OpenSpan(start, end, -1, -1, "start", reason, raw=raw) for start, end in parts if start < end]
        self._held = sorted([*self._held, *told], key=lambda span: span.start)

    def wanted(self, newest: Sequence[Trade]) -> list[Trade]:
        """Of the exchange's newest trades those that no span claims and that were not told before. It may have been forgotten that the
        others are held."""
        oldest = min((trade.timestamp for trade in newest), default=0)
        claimed = [(span.start, span.end) for span in self._held if span.end > oldest]
        known = self._told.union(*((each.first, *each.last) for each in self._edges.values()))
        self._told = {trade.trade_id for trade in newest}
        return [
            trade for trade in newest if trade.trade_id not in known and not any(start <= trade.timestamp < end for start, end in claimed)
        ]

    def prove(self, newest: Sequence[Trade]) -> bool:
        """Close the gaps that the exchange's newest trades reach over, in whole or from their oldest one on; they are in the tape already.

        The list is unbroken by nature. It must hold a trade with which a connection began after the gap, and that connection must have
        brought a later one: until then the exchange's own records lag behind its stream, or others of that millisecond may be missing.
        True once every gap is closed as far as these trades will ever close it.
        """
        ids = {trade.trade_id for trade in newest}
        oldest = min((trade.timestamp for trade in newest), default=0)
        proven: list[OpenSpan] = []
        tried = True
        for gap in self._every_gap():
            place = next(place for place, span in enumerate(self._held) if span.start == gap.end)
            if not self._meets(place, ids):
                # Where the list begins after the gap it never will.
                tried = tried and gap.end <= oldest
                continue
            before = max(self._held[:place], key=lambda span: span.end, default=None)
            whole = before is not None and before in self._edges and self._edges[before].last <= ids
            start = gap.start if whole else max(gap.start, oldest + 1)
            if start < gap.end:
                proven.append(OpenSpan(start, gap.end, -1, -1, self._held[place].opened_by, REPAIRED))
        self._held = sorted([*self._held, *proven], key=lambda span: span.start)
        if tried:
            self._told = set()
        return tried

    def _every_gap(self) -> list[MissingRange]:
        """What is missing, and the time before anything is held."""
        return [MissingRange(-1, -1, 0, self._held[0].start), *self.missing()] if self._held else []

    def _remember(self, seen: int) -> None:
        _, now = self._frame
        count = len(self._seen)
        if count >= _REMEMBERED_MOST or (count >= _REMEMBERED_LEAST and now - self._seen_since >= _REMEMBERED_FOR):
            self._seen_before, self._seen = self._seen, {}
        if not self._seen:
            self._seen_since = now
        self._seen[seen] = None

    def _meets(self, place: int, ids: Collection[str]) -> bool:
        """Do these trades, which are unbroken, reach what connections brought from this span on, and that its first millisecond whole?"""
        return any(span in self._edges and self._edges[span].first in ids and span.end >= span.start for span in self._held[place:])

    def _vouch(self, trade: Trade) -> None:
        """A connection brought a trade: its stretch reaches that far, over whatever began in between."""
        connection, event_time = self._frame
        if connection not in self._vouches:
            return
        span, at = self._vouches[connection], trade.timestamp
        if span is None:
            if abs(event_time - at) > _REPLAYED:
                return
            span = self._vouches[connection] = self._opened(trade)
        if at < span.end:
            return
        edges = self._edges[span]
        if at > span.end:
            span.end, edges.last = at, set()
        edges.last.add(trade.trade_id)
        span.last = max(span.last, trade.seq)
        span.changed = True
        if span is not self._held[-1]:
            self._reach(span, trade.trade_id)

    def _opened(self, trade: Trade) -> OpenSpan:
        """The span in which a new connection's stretch begins: one that holds what follows its first trade, or ends with it, or its own."""
        self.breaks += 1
        start = trade.timestamp + 1
        for span in reversed(self._held):
            edges = self._edges.get(span)
            if span.start <= start and (span.end >= start or (edges is not None and trade.trade_id in edges.last)):
                self._edges.setdefault(span, _Edges(trade.trade_id, set()))
                return span
            if span.end < trade.timestamp:
                break
        # Others of that very millisecond may be missing.
        span = OpenSpan(start, trade.timestamp, trade.seq, trade.seq, self._opened_by)
        self._edges[span] = _Edges(trade.trade_id, {trade.trade_id})
        insort(self._held, span, key=lambda held: held.start)
        return span

    def _reach(self, span: OpenSpan, trade_id: str) -> None:
        """Take in the later spans that this one has come to overlap, or whose first trade it has brought itself."""
        place = self._held.index(span) + 1
        while place < len(self._held):
            later = self._held[place]
            edges = self._edges.get(later)
            if later.start > span.end and (edges is None or edges.first != trade_id):
                return
            del self._held[place]
            self._edges.pop(later, None)
            span.last = max(span.last, later.last)
            if later.end > span.end:
                span.end = later.end
                if edges is not None:
                    self._edges[span].last = edges.last
            for connection, other in self._vouches.items():
                if other is later:
                    self._vouches[connection] = span


class _Edges:
    """Ids of the first trade that a span's connections brought themselves, and of those in its last millisecond; empty where unknown."""

    __slots__ = ("first", "last")

    def __init__(self, first: str, last: set[str]) -> None:
        self.first = first
        self.last = last


def _joined(known: Iterable[OpenSpan]) -> list[OpenSpan]:
    """Spans by their start; of those that a store has, the ones that another holds whole are left out."""
    joined: list[OpenSpan] = []
    for held in sorted(known, key=lambda span: (span.start, -span.end)):
        if not joined or held.end > joined[-1].end:
            joined.append(held)
    return joined
