"""A day's archive file as minutes, packed. The whole file is read before anything of it is taken. Blocking: for a worker thread.

Files have holes and repeats of their own (docs/exchanges.md 8.24). A repeated row counts once. Where ids count trades a hole stays a gap,
which gap repair fills by id; where they do not, no hole can be noticed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Final, NamedTuple

from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.clock import CLOCK_SKEW
from wadm_mcp.collection.recording.minute import PartialRun
from wadm_mcp.errors import ArchiveError
from wadm_mcp.exchanges.exchange import Aggregate, ArchiveFormat
from wadm_mcp.model import MINUTE, Listing, Span, Trade, Window
from wadm_mcp.storage.store import WHOLE, PartialFootprint

_OPEN: Final = 2
"""Minutes of an unnumbered file that rows may still come in for, as its order is told by time alone."""


class PackedPartial(NamedTuple):
    """A partial footprint, packed: a day of a busy market takes about ten megabytes packed, and hundreds unpacked."""

    minute: int
    first_seq: int
    last_seq: int
    packed: bytes
    trades: int

    @classmethod
    def of(cls, partial: PartialFootprint) -> PackedPartial:
        return cls(partial.minute, partial.first_seq, partial.last_seq, partial.footprint.pack(), partial.footprint.bar.trade_count)

    def unpack(self, listing: Listing) -> PartialFootprint:
        """As the recorder takes it."""
        return PartialFootprint(listing.instrument, self.minute, self.first_seq, self.last_seq, Footprint.unpack(self.packed))


def counted_minutes(
    form: ArchiveFormat, listing: Listing, lines: Iterable[str], day: Window, covered: Sequence[Span]
) -> Iterator[PackedPartial]:
    """Partial footprints of a file whose ids count trades, without the ids that are `covered` already (disjoint spans, by id).

    `ArchiveError` for a row of another day, and where an id has another time than in the tape: then the file is of another symbol.
    """
    firsts = [span.first_seq for span in covered]
    run: PartialRun | None = None
    reached, free_until = -1, -1
    for place, row in enumerate(form.rows(listing, lines), 1):
        seq, last = row.trade.seq, row.last
        if seq <= reached:
            continue
        reached = last
        if last >= free_until:
            after = bisect_right(firsts, seq)
            if after and covered[after - 1].last_seq >= seq:
                continue
            free_until = firsts[after] if after < len(firsts) else last + (1 << 62)
            _check_seam(listing, place, row, covered, after)
            if last >= free_until:
                continue
        if run is None or not run.continues_with(row):
            if run is not None:
                yield PackedPartial.of(run.partial(listing.instrument))
            if not day.start <= row.trade.timestamp < day.end:
                raise _not_of_day(listing, place, row)
            run = PartialRun(row)
        run.add(row)
    if run is not None:
        yield PackedPartial.of(run.partial(listing.instrument))


def whole_minutes(
    form: ArchiveFormat,
    listing: Listing,
    lines: Iterable[str],
    day: Window,
    wanted: Collection[int],
    tape_trades: Mapping[int, Sequence[Trade]],
) -> Iterator[PackedPartial]:
    """The `wanted` minutes (by start) of a file whose ids do not count, each whole; in the file's order.

    `tape_trades` are the tape's trades of some of these minutes: those that the file lacks, by `trade_id`, are added. `ArchiveError` for a
    row of another day, or minutes out of time order.
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
                raise ArchiveError(f"{listing.instrument} archive, row {place:,}: out of time order by minutes; the file is not sorted")
            while len(open_minutes) >= _OPEN and minute not in open_minutes:
                past = max(open_minutes) if newest_first else min(open_minutes)
                closed.add(past)
                yield from _whole(listing, past, open_minutes.pop(past), wanted, tape_trades, newest_first)
            rows = open_minutes.setdefault(minute, {})
        if minute in wanted:
            rows.setdefault(trade.trade_id, trade)
    for past in sorted(open_minutes, reverse=bool(newest_first)):
        yield from _whole(listing, past, open_minutes[past], wanted, tape_trades, newest_first)


def _whole(
    listing: Listing,
    minute: int,
    rows: Mapping[str, Trade],
    wanted: Collection[int],
    tape_trades: Mapping[int, Sequence[Trade]],
    newest_first: bool | None,
) -> Iterator[PackedPartial]:
    if minute not in wanted:
        return
    trades = list(rows.values())
    if newest_first is None:
        newest_first = len(trades) > 1 and trades[0].timestamp > trades[-1].timestamp
    if newest_first:
        trades.reverse()
    trades += [trade for trade in tape_trades.get(minute, ()) if trade.trade_id not in rows]
    # Rows of one millisecond stay as the file has them.
    trades.sort(key=attrgetter("timestamp"))
    footprint = Footprint(listing.scale)
    footprint.add(*trades)
    yield PackedPartial(minute, WHOLE, WHOLE, footprint.pack(), footprint.bar.trade_count)


def _check_seam(listing: Listing, place: int, row: Aggregate, covered: Sequence[Span], after: int) -> None:
    at = row.trade.timestamp
    early = covered[after - 1].start - CLOCK_SKEW if after else at
    late = covered[after].end + CLOCK_SKEW if after < len(covered) else at
    if not early <= at <= late:
        raise ArchiveError(
            f"{listing.instrument} archive, row {place:,}: id {row.trade.seq} is at another time than its neighbours on the tape; "
            "give a file of this symbol"
        )


def _not_of_day(listing: Listing, place: int, row: Aggregate) -> ArchiveError:
    return ArchiveError(
        f"{listing.instrument} archive, row {place:,}: its time {row.trade.timestamp} is not of the file's day; "
        "give a file under its own name"
    )
