"""A minute put together from all that is stored of it: single trades, partial footprints, and the footprint derived before some of its
trades expired."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.exchanges.exchange import Aggregate
from wadm_mcp.model import MINUTE, Instrument, Scale, Trade, TradeType
from wadm_mcp.storage.store import PartialFootprint


def build_minute(trades: Sequence[Trade], partials: Sequence[PartialFootprint], stored: Footprint | None = None) -> Footprint:
    """The footprint of one minute's trades, in `Trade.order`, and of its partial footprints.

    `stored` is the stored footprint of a minute some of whose trades have expired. If `trades` and `partials` contain all of its trades it
    is ignored; otherwise the trades that it does not contain are added to it: those outside its ids, or in holes between them.
    """
    whole = next((partial for partial in partials if partial.whole), None)
    if whole is not None:
        return whole.footprint
    trades, partials = without_repeats(trades, partials)
    if stored is None or not stored.levels:
        return _merged(trades, partials)
    bar = stored.bar
    inside_rows = [trade for trade in trades if bar.first_seq <= trade.seq <= bar.last_seq]
    inside_partials = [partial for partial in partials if partial.last_seq >= bar.first_seq and partial.first_seq <= bar.last_seq]
    known = sum(trade.fills for trade in inside_rows) + sum(partial.footprint.bar.trade_count for partial in inside_partials)
    if known >= bar.trade_count:
        return _merged(trades, partials)
    holes = bar.last_seq - bar.first_seq + 1 - bar.trade_count

    def fits_a_hole(fills: int) -> bool:
        nonlocal holes
        holes -= fills
        return holes >= 0

    found = _merged(
        [trade for trade in inside_rows if fits_a_hole(trade.fills)],
        [partial for partial in inside_partials if fits_a_hole(partial.footprint.bar.trade_count)],
    )
    merged = stored.merge_parallel(found) if found.levels else stored
    before = _merged(
        [trade for trade in trades if trade.seq < bar.first_seq], [partial for partial in partials if partial.last_seq < bar.first_seq]
    )
    after = _merged(
        [trade for trade in trades if trade.seq > bar.last_seq], [partial for partial in partials if partial.first_seq > bar.last_seq]
    )
    if before.levels:
        merged = before.merge_later(merged)
    return merged.merge_later(after) if after.levels else merged


def without_repeats(trades: Sequence[Trade], partials: Sequence[PartialFootprint]) -> tuple[Sequence[Trade], Sequence[PartialFootprint]]:
    """Trades and partial footprints of one minute, in their order, of which no id is in two.

    Processes that share a database may store the same trades once as single trades and once as aggregates: one repaired a gap again whose
    repair another had in its journal. A partial footprint is left out if everything else has its ids, and a trade if a partial footprint
    has its id. Where two partial footprints still overlap, the longer one is kept.
    """
    if not partials or partials[0].whole:
        return trades, partials
    kept = sorted(partials, key=lambda partial: (partial.first_seq, partial.last_seq))
    ids = sorted({trade.seq for trade in trades})
    if any(one.last_seq >= other.first_seq for one, other in pairwise(kept)) or any(_within(kept, seq) for seq in ids):
        for partial in sorted(kept, key=_length):
            if _has_every_id(partial, ids, [other for other in kept if other is not partial]):
                kept.remove(partial)
        for partial in sorted(kept, key=_length):
            place = kept.index(partial)
            beside = [*kept[max(0, place - 1) : place], *kept[place + 1 : place + 2]]
            if any(other.first_seq <= partial.last_seq and partial.first_seq <= other.last_seq for other in beside):
                kept.remove(partial)
    return [trade for trade in trades if not _within(kept, trade.seq)], kept


def _has_every_id(partial: PartialFootprint, ids: Sequence[int], others: Sequence[PartialFootprint]) -> bool:
    """Whether single trades, by their `ids`, and the `others`, both ascending, have every id of a partial footprint."""
    seq = partial.first_seq
    place = bisect_left(ids, seq)
    for other in others:
        # The range of an aggregate may be long: its ids are stepped over, and only those of trades are looked at one by one.
        while place < len(ids) and ids[place] == seq:
            seq, place = seq + 1, place + 1
        if other.first_seq > seq:
            break
        if other.last_seq >= seq:
            seq = other.last_seq + 1
            place = bisect_left(ids, seq)
    while place < len(ids) and ids[place] == seq:
        seq, place = seq + 1, place + 1
    return seq > partial.last_seq


def _length(partial: PartialFootprint) -> int:
    return partial.last_seq - partial.first_seq + 1


def _within(partials: Sequence[PartialFootprint], seq: int) -> bool:
    """True if one of these partial footprints, ascending, has the id."""
    place = bisect_right(partials, seq, key=lambda partial: partial.first_seq) - 1
    return place >= 0 and seq <= partials[place].last_seq


def _merged(trades: Sequence[Trade], partials: Sequence[PartialFootprint]) -> Footprint:
    """Single trades and partial footprints in the order of their ids."""
    scale = trades[0].scale if trades else partials[0].footprint.scale if partials else Scale(0, 0)
    if not partials:
        return _footprint(trades, scale)
    stretches: list[Footprint] = []
    rows = sorted(trades, key=lambda trade: trade.seq)
    reached = 0
    for partial in sorted(partials, key=lambda partial: partial.first_seq):
        start = reached
        while reached < len(rows) and rows[reached].seq < partial.first_seq:
            reached += 1
        if reached > start:
            stretches.append(_footprint(rows[start:reached], scale))
        stretches.append(partial.footprint)
    stretches.append(_footprint(rows[reached:], scale))
    return Footprint.merge_consecutive(stretches, scale)


def _footprint(trades: Sequence[Trade], scale: Scale) -> Footprint:
    footprint = Footprint(scale)
    footprint.add(*trades)
    return footprint


def partial_footprints(instrument: Instrument, aggregates: Iterable[Aggregate]) -> list[PartialFootprint]:
    """Ascending aggregates as partial footprints: one for each run of consecutive ids within a minute.

    A row without volume is part of a run and of no figure; a run of such rows alone has a footprint without cells. All figures are exact
    but one: where an aggregate of several executions opens a run, the delta after its first execution is unknown.
    `min_delta` (where it bought) or `max_delta` (where it sold) is None if that might have been the extreme.
    """
    partials: list[PartialFootprint] = []
    run: PartialRun | None = None
    for row in aggregates:
        if run is None or not run.continues_with(row):
            if run is not None:
                partials.append(run.partial(instrument))
            run = PartialRun(row)
        run.add(row)
    if run is not None:
        partials.append(run.partial(instrument))
    return partials


class PartialRun:
    """Aggregates of one minute with consecutive ids, which become a partial footprint. `first` is the one that opens it."""

    __slots__ = ("_bought_first", "_end", "_first_at", "_first_seq", "_folded_first", "footprint", "last", "minute")

    def __init__(self, first: Aggregate) -> None:
        trade = first.trade
        self.minute = trade.timestamp - trade.timestamp % MINUTE
        self._end = self.minute + MINUTE
        self.footprint = Footprint(trade.scale)
        self.last = trade.seq - 1
        self._first_seq = trade.seq
        self._first_at = trade.timestamp
        self._folded_first = self._bought_first = False
        """Of the first aggregate with volume: whether it is of several executions, and of which side."""

    def continues_with(self, row: Aggregate) -> bool:
        """True if this is the next id, in the same minute."""
        return row.trade.seq == self.last + 1 and self.minute <= row.trade.timestamp < self._end

    def add(self, row: Aggregate) -> None:
        trade = row.trade
        if trade.quantity:
            if not self.footprint.bar.trade_count:
                self._folded_first, self._bought_first = row.last > trade.seq, trade.trade_type is TradeType.BUY
            self.footprint.add(trade)
        self.last = row.last

    def partial(self, instrument: Instrument) -> PartialFootprint:
        """What was added, as one partial footprint."""
        bar = self.footprint.bar
        bar.last_seq = self.last
        if not bar.trade_count:
            bar.first_at = bar.last_at = self._first_at
        lowest, highest = bar.min_delta, bar.max_delta
        if self._folded_first and lowest is not None and highest is not None and (lowest > 0 if self._bought_first else highest < 0):
            # Both go together: a bar's path is known or it is not.
            bar.min_delta = bar.max_delta = None
        return PartialFootprint(instrument, self.minute, self._first_seq, self.last, self.footprint)
