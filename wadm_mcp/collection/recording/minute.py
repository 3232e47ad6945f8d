"""A minute put together from all that is stored of it: rows, pieces that have no rows, and the footprint that outlived its rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.exchanges.exchange import Aggregate
from wadm_mcp.model import MINUTE, Instrument, Scale, Trade, TradeType
from wadm_mcp.storage.store import WHOLE, PartialFootprint


def build_minute(trades: Sequence[Trade], pieces: Sequence[PartialFootprint], standing: Footprint | None = None) -> Footprint:
    """The footprint of one minute's trades, in `Trade.order`, and of its pieces.

    `standing` is the minute as it was derived while rows now gone were there. Where its trades are all here again it is not needed; else
    it is added to, not replaced: whatever lies outside its ids, or inside where it has holes, was not in it.
    """
    whole = next((piece for piece in pieces if piece.first_seq == WHOLE), None)
    if whole is not None:
        return whole.footprint
    if standing is None or not standing.levels:
        return _merged(trades, pieces)
    bar = standing.bar
    inside_rows = [trade for trade in trades if bar.first_seq <= trade.seq <= bar.last_seq]
    inside_pieces = [piece for piece in pieces if piece.last_seq >= bar.first_seq and piece.first_seq <= bar.last_seq]
    held = sum(trade.fills for trade in inside_rows) + sum(piece.footprint.bar.trade_count for piece in inside_pieces)
    if held >= bar.trade_count:
        return _merged(trades, pieces)
    holes = bar.last_seq - bar.first_seq + 1 - bar.trade_count

    def fresh(fills: int) -> bool:
        nonlocal holes
        holes -= fills
        return holes >= 0

    found = _merged(
        [trade for trade in inside_rows if fresh(trade.fills)],
        [piece for piece in inside_pieces if fresh(piece.footprint.bar.trade_count)],
    )
    whole = standing.beside(found) if found.levels else standing
    before = _merged(
        [trade for trade in trades if trade.seq < bar.first_seq], [piece for piece in pieces if piece.last_seq < bar.first_seq]
    )
    after = _merged([trade for trade in trades if trade.seq > bar.last_seq], [piece for piece in pieces if piece.first_seq > bar.last_seq])
    if before.levels:
        whole = before.then(whole)
    return whole.then(after) if after.levels else whole


def _merged(trades: Sequence[Trade], pieces: Sequence[PartialFootprint]) -> Footprint:
    """Rows and pieces in the order of their ids."""
    scale = trades[0].scale if trades else pieces[0].footprint.scale if pieces else Scale(0, 0)
    if not pieces:
        return _footprint(trades, scale)
    stretches: list[Footprint] = []
    rows = sorted(trades, key=lambda trade: trade.seq)
    reached = 0
    for piece in sorted(pieces, key=lambda piece: piece.first_seq):
        start = reached
        while reached < len(rows) and rows[reached].seq < piece.first_seq:
            reached += 1
        if reached > start:
            stretches.append(_footprint(rows[start:reached], scale))
        stretches.append(piece.footprint)
    stretches.append(_footprint(rows[reached:], scale))
    return Footprint.consecutive(stretches, scale)


def _footprint(trades: Sequence[Trade], scale: Scale) -> Footprint:
    footprint = Footprint(scale)
    footprint.add(*trades)
    return footprint


def pieces_of(instrument: Instrument, aggregates: Iterable[Aggregate]) -> list[PartialFootprint]:
    """Aggregates, ascending, as pieces: one for each run of ids without a hole within a minute.

    All figures are exact but one: where an aggregate of several executions opens a piece, the delta after its first execution is
    unknown. `min_delta` (where it bought) or `max_delta` (where it sold) is None if that might have been the extreme.
    """
    pieces: list[PartialFootprint] = []
    run: Run | None = None
    for row in aggregates:
        if run is None or not run.goes_on_with(row):
            if run is not None:
                pieces.append(run.piece(instrument))
            run = Run(row)
        run.add(row)
    if run is not None:
        pieces.append(run.piece(instrument))
    return pieces


class Run:
    """Aggregates of one minute whose ids follow one another, on their way to become a piece. `first` is the one that opens it."""

    __slots__ = ("_bought_first", "_end", "_first_seq", "_folded_first", "footprint", "last", "minute")

    def __init__(self, first: Aggregate) -> None:
        trade = first.trade
        self.minute = trade.timestamp - trade.timestamp % MINUTE
        self._end = self.minute + MINUTE
        self.footprint = Footprint(trade.scale)
        self.last = trade.seq - 1
        self._first_seq = trade.seq
        self._folded_first = first.last > trade.seq
        self._bought_first = trade.trade_type is TradeType.BUY

    def goes_on_with(self, row: Aggregate) -> bool:
        """Is this the very next id, and of the same minute?"""
        return row.trade.seq == self.last + 1 and self.minute <= row.trade.timestamp < self._end

    def add(self, row: Aggregate) -> None:
        self.footprint.add(row.trade)
        self.last = row.last

    def piece(self, instrument: Instrument) -> PartialFootprint:
        """What was added, as one piece."""
        bar = self.footprint.bar
        bar.last_seq = self.last
        lowest, highest = bar.min_delta, bar.max_delta
        if self._folded_first and lowest is not None and highest is not None and (lowest > 0 if self._bought_first else highest < 0):
            # Both go together: a bar's path is known or it is not.
            bar.min_delta = bar.max_delta = None
        return PartialFootprint(instrument, self.minute, self._first_seq, self.last, self.footprint)
