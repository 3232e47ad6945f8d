"""An archive's day as minutes, packed: all of a file, before anything of it counts. Blocking: for a worker thread.

Files have holes and repeats of their own (docs/exchanges.md 8.24). A repeated row counts once. Where rows are numbered a hole stays one,
for whoever asks the exchange's history by id; where they are not, nothing can tell.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Final, NamedTuple

from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.collection.recording.minute import Run
from wadm_mcp.errors import ArchiveError
from wadm_mcp.exchanges.exchange import Aggregate, ArchiveFormat
from wadm_mcp.model import MINUTE, SECOND, Listing, Span, Trade, Window
from wadm_mcp.storage.store import WHOLE, PartialFootprint

_SKEW: Final = 5 * SECOND
"""How far the times of an archive and of the tape may disagree about one id."""
_OPEN: Final = 2
"""Minutes of an unnumbered file that rows may still come in for, as its order is told by time alone."""


class PackedPiece(NamedTuple):
    """A `Piece` whose footprint is packed: a day of a busy market takes some ten megabytes so, and hundreds unpacked."""

    minute: int
    first_seq: int
    last_seq: int
    packed: bytes
    trades: int

    @classmethod
    def of(cls, piece: PartialFootprint) -> PackedPiece:
        return cls(piece.minute, piece.first_seq, piece.last_seq, piece.footprint.pack(), piece.footprint.bar.trade_count)

    def piece(self, listing: Listing) -> PartialFootprint:
        """As the recorder takes it."""
        return PartialFootprint(listing.instrument, self.minute, self.first_seq, self.last_seq, Footprint.unpack(self.packed))


def numbered_minutes(
    form: ArchiveFormat, listing: Listing, lines: Iterable[str], day: Window, held: Sequence[Span]
) -> Iterator[PackedPiece]:
    """Pieces of a file whose rows are numbered, without the ids that are `held` already (spans with basis `exact`, by id, apart).

    `ArchiveError` for a row that is not of the day, and where the ids tell other times than the tape does: then it is of another symbol.
    """
    firsts = [span.first_seq for span in held]
    run: Run | None = None
    reached, free_until = -1, -1
    for place, row in enumerate(form.rows(listing, lines), 1):
        seq, last = row.trade.seq, row.last
        if seq <= reached:
            continue
        reached = last
        if last >= free_until:
            after = bisect_right(firsts, seq)
            if after and held[after - 1].last_seq >= seq:
                continue
            free_until = firsts[after] if after < len(firsts) else last + (1 << 62)
            _check_seam(listing, place, row, held, after)
            if last >= free_until:
                continue
        if run is None or not run.goes_on_with(row):
            if run is not None:
                yield PackedPiece.of(run.piece(listing.instrument))
            if not day.start <= row.trade.timestamp < day.end:
                raise _not_of_day(listing, place, row)
            run = Run(row)
        run.add(row)
    if run is not None:
        yield PackedPiece.of(run.piece(listing.instrument))


def whole_minutes(
    form: ArchiveFormat,
    listing: Listing,
    lines: Iterable[str],
    day: Window,
    wanted: Collection[int],
    beside: Mapping[int, Sequence[Trade]],
) -> Iterator[PackedPiece]:
    """The `wanted` minutes (by start) of a file whose rows are not numbered, each whole; in the file's order.

    `beside` are trades that the tape holds of some of these minutes: what the file lacks of them, by `trade_id`, is added. `ArchiveError`
    for a row that is not of the day, or comes minutes out of turn.
    """
    open_minutes: dict[int, dict[str, Trade]] = {}
    closed: set[int] = set()
    newest_first: bool | None = None
    minute, rows, first_at = -1, {}, -1
    for place, row in enumerate(form.rows(listing, lines), 1):
        trade = row.trade
        at = trade.timestamp
        if not minute <= at < minute + MINUTE:
            minute = at - at % MINUTE
            if not day.start <= at < day.end:
                raise _not_of_day(listing, place, row)
            if first_at < 0:
                first_at = at
            elif newest_first is None:
                newest_first = at < first_at
            if minute in closed:
                raise ArchiveError(f"{listing.instrument} archive, row {place:,}: it comes minutes out of turn; the file is in no order")
            while len(open_minutes) >= _OPEN and minute not in open_minutes:
                past = max(open_minutes) if newest_first else min(open_minutes)
                closed.add(past)
                yield from _whole(listing, past, open_minutes.pop(past), wanted, beside, newest_first)
            rows = open_minutes.setdefault(minute, {})
        if minute in wanted:
            rows.setdefault(trade.trade_id, trade)
    for past in sorted(open_minutes, reverse=bool(newest_first)):
        yield from _whole(listing, past, open_minutes[past], wanted, beside, newest_first)


def _whole(
    listing: Listing,
    minute: int,
    rows: Mapping[str, Trade],
    wanted: Collection[int],
    beside: Mapping[int, Sequence[Trade]],
    newest_first: bool | None,
) -> Iterator[PackedPiece]:
    if minute not in wanted:
        return
    trades = list(rows.values())
    if newest_first is None:
        newest_first = len(trades) > 1 and trades[0].timestamp > trades[-1].timestamp
    if newest_first:
        trades.reverse()
    trades += [trade for trade in beside.get(minute, ()) if trade.trade_id not in rows]
    # Rows of one millisecond stay as the file has them.
    trades.sort(key=attrgetter("timestamp"))
    footprint = Footprint(listing.scale)
    footprint.add(*trades)
    yield PackedPiece(minute, WHOLE, WHOLE, footprint.pack(), footprint.bar.trade_count)


def _check_seam(listing: Listing, place: int, row: Aggregate, held: Sequence[Span], after: int) -> None:
    at = row.trade.timestamp
    early = held[after - 1].start - _SKEW if after else at
    late = held[after].end + _SKEW if after < len(held) else at
    if not early <= at <= late:
        raise ArchiveError(
            f"{listing.instrument} archive, row {place:,}: id {row.trade.seq} is of another time than the tape's ids beside it; "
            "give a file of this symbol"
        )


def _not_of_day(listing: Listing, place: int, row: Aggregate) -> ArchiveError:
    return ArchiveError(
        f"{listing.instrument} archive, row {place:,}: its time {row.trade.timestamp} is not of the file's day; "
        "give a file under its own name"
    )
