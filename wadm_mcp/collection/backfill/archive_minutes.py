"""Turns a day's archive file into packed partial footprints, one or more a minute. Blocking: call it in a worker thread.

Callers read the whole file before they take anything of it. Files have holes, repeated rows and rows out of order of their own
(docs/exchanges.md 8.24). A repeated row counts once. `OutOfOrder` says that the rows have to be sorted first, so that none is lost. Where
ids are gapless, a hole stays a gap, which gap repair fills by id. Where they are not, `Pauses` finds the holes that the day's own pace does
not explain: the file may have been published before it was complete.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Final, NamedTuple
from zlib import compress, decompress

from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.clock import CLOCK_SKEW
from wadm_mcp.collection.backfill.archive_order import OutOfOrder
from wadm_mcp.collection.recording.minute import PartialRun
from wadm_mcp.coverage.silence import SHORTEST_PAUSE, SilenceLimit
from wadm_mcp.coverage.spans import Span
from wadm_mcp.errors import ArchiveError
from wadm_mcp.exchanges.exchange import Aggregate
from wadm_mcp.model import DAY, MINUTE, Listing, Trade, Window
from wadm_mcp.storage.store import WHOLE, PartialFootprint

_LONGEST_PAUSE: Final = 10 * MINUTE
"""Milliseconds without a row that are never suspect: exchanges pause for minutes now and then."""
_OPEN_MINUTES: Final = 2
"""Minutes that may still get rows while a file without gapless ids is read: such a file is ordered by time only."""
_MAX_LEVELS: Final = 100_000
"""Prices of one minute: about 30 MB of memory. The busiest minutes have some ten thousand."""
_MAX_OPEN_TRADES: Final = 200_000
"""Trades of the minutes that may still get rows: about 90 MB of memory. docs/exchanges.md 4.4 says what that rests on."""
_MAX_PACKED_BYTES: Final = 80_000_000
"""Partial footprints of one file. Busy days take about ten megabytes."""
_PARTIAL_BYTES: Final = 300
"""What a partial footprint takes in memory beside its packed figures."""


class PackedPartial(NamedTuple):
    """A partial footprint, packed and compressed: a day of a busy market takes a few megabytes so, and hundreds unpacked."""

    minute: int
    first_seq: int
    last_seq: int
    packed: bytes
    trades: int

    @classmethod
    def of(cls, partial: PartialFootprint) -> PackedPartial:
        return cls(partial.minute, partial.first_seq, partial.last_seq, _packed(partial.footprint), partial.footprint.bar.trade_count)

    @property
    def weight(self) -> int:
        """About how many bytes of memory it takes."""
        return len(self.packed) + _PARTIAL_BYTES

    def unpack(self, listing: Listing) -> PartialFootprint:
        """The partial footprint, as the recorder takes it."""
        return PartialFootprint(listing.instrument, self.minute, self.first_seq, self.last_seq, Footprint.unpack(decompress(self.packed)))


class Pauses:
    """The rows of a day's file without gapless ids, by time in either direction, and the long pauses among them.

    A pause is suspect that is longer than ten minutes and than the day's own pace gives once in a million (`coverage/silence.py`), also
    before the first row and after the last. It is judged once all rows were read.
    """

    def __init__(self, listing: Listing, rows: Iterable[Aggregate]) -> None:
        self._listing = listing
        self._rows = rows
        self._pace = SilenceLimit(unknown=DAY)
        self._long: list[Window] = []
        self._first = self._last = -1

    def __iter__(self) -> Iterator[Aggregate]:
        self._pace, self._long, self._first = SilenceLimit(unknown=DAY), [], -1
        before = -1
        for row in self._rows:
            at = row.trade.timestamp
            if before < 0:
                self._first = at
            elif abs(at - before) >= SHORTEST_PAUSE:
                self._pace.learn(min(at, before), max(at, before))
                if abs(at - before) > _LONGEST_PAUSE:
                    self._long.append(Window(min(at, before), max(at, before)))
            self._last = before = at
            yield row

    def suspect(self, day: Window) -> set[int]:
        """The minutes (by start) that suspect pauses touch. `ArchiveError` for a file without rows."""
        if self._first < 0:
            raise ArchiveError(
                f"{self._listing.instrument} archive: it has no trades; download it again once the exchange has completed it"
            )
        earliest, latest = sorted((self._first, self._last))
        pauses = (*self._long, Window(day.start, earliest), Window(latest, day.end))
        suspect = [pause for pause in pauses if pause.length > max(_LONGEST_PAUSE, self._pace.ms)]
        return {minute for pause in suspect for minute in range(pause.start - pause.start % MINUTE, pause.end, MINUTE)}


def bounded(listing: Listing, partials: Iterable[PackedPartial]) -> list[PackedPartial]:
    """The partial footprints of one file; `ArchiveError` where they are more than any day has."""
    found: list[PackedPartial] = []
    weight = 0
    for partial in partials:
        weight += partial.weight
        if weight > _MAX_PACKED_BYTES:
            raise ArchiveError(
                f"{listing.instrument} archive: its minutes have more prices or more interruptions than any day has; "
                f"they take more than {_MAX_PACKED_BYTES:,} bytes"
            )
        found.append(partial)
    return found


def by_id(row: Aggregate) -> int:
    """The order that `counted_minutes` needs."""
    return row.trade.seq


def by_minute(row: Aggregate) -> int:
    """The order that `whole_minutes` needs."""
    return row.trade.timestamp // MINUTE


def counted_minutes(listing: Listing, rows: Iterable[Aggregate], day: Window, covered: Sequence[Span]) -> Iterator[PackedPartial]:
    """Partial footprints of a file with gapless ids, without the ids that are `covered` already (disjoint spans, by id).

    `OutOfOrder` for a row whose ids are not above those of the row before. `ArchiveError` for a row of another day, and for an id whose
    time does not fit the tape: then the file is of another symbol.
    """
    first_seqs = [span.first_seq for span in covered]
    run: PartialRun | None = None
    first = reached = -1
    """The ids of the row before."""
    next_covered = -1
    """The first covered id after the row before: rows below it are new without a search."""
    for number, row in enumerate(rows, 1):
        seq, last = row.trade.seq, row.last
        if seq <= reached:
            if (seq, last) == (first, reached):
                continue
            raise OutOfOrder(f"{listing.instrument} archive: the ids {seq} to {last} overlap the ids {first} to {reached} of another row")
        first, reached = seq, last
        if last >= next_covered:
            following = bisect_right(first_seqs, seq)
            if following and covered[following - 1].last_seq >= seq:
                continue
            next_covered = first_seqs[following] if following < len(first_seqs) else last + (1 << 62)
            _check_time(listing, number, row, covered, following)
            if last >= next_covered:
                continue
        if run is None or not run.continues_with(row):
            if run is not None:
                yield PackedPartial.of(run.partial(listing.instrument))
            if not day.start <= row.trade.timestamp < day.end:
                raise _other_day(listing, number, row)
            run = PartialRun(row)
        run.add(row)
        if run.footprint.levels > _MAX_LEVELS:
            raise _too_many(listing, number, f"{_MAX_LEVELS:,} prices")
    if run is not None:
        yield PackedPartial.of(run.partial(listing.instrument))


def whole_minutes(
    listing: Listing,
    rows: Iterable[Aggregate],
    day: Window,
    wanted: Collection[int],
    tape_trades: Mapping[int, Sequence[Trade]],
    bad_lines: Sequence[object] = (),
    spoiled: set[int] | None = None,
) -> Iterator[PackedPartial]:
    """The `wanted` minutes (by start) of a file without gapless ids, each complete, in the file's order.

    `tape_trades` are the tape's trades of some of these minutes. Those that the file does not have (by `trade_id`) are added.
    `bad_lines` grows with every line between two `rows` that cannot be read. The minutes in which it may belong are added to `spoiled` and
    left out. `OutOfOrder` for minutes out of time order. `ArchiveError` for a row of another day, and for two trades of one id.
    """
    open_minutes: dict[int, dict[str, Trade]] = {}
    closed: set[int] = set()
    newest_first: bool | None = None
    minute, trades, first_at = -1, dict[str, Trade](), -1
    seen = others = 0
    incomplete = set[int]() if spoiled is None else spoiled
    for number, row in enumerate(rows, 1):
        trade = row.trade
        at = trade.timestamp
        if len(bad_lines) != seen:
            seen, now = len(bad_lines), at - at % MINUTE
            incomplete.update(range(min(minute, now), max(minute, now) + 1, MINUTE))
        if not minute <= at < minute + MINUTE:
            minute = at - at % MINUTE
            if not day.start <= at < day.end:
                raise _other_day(listing, number, row)
            if first_at < 0:
                first_at = at
            elif newest_first is None:
                newest_first = at < first_at
            if minute in closed:
                raise OutOfOrder(f"{listing.instrument} archive, row {number:,}: out of time order by minutes")
            while len(open_minutes) >= _OPEN_MINUTES and minute not in open_minutes:
                finished = max(open_minutes) if newest_first else min(open_minutes)
                closed.add(finished)
                found = open_minutes.pop(finished)
                if finished not in incomplete:
                    yield from _whole_minute(listing, finished, found, wanted, tape_trades, newest_first)
            trades = open_minutes.setdefault(minute, {})
            others = sum(map(len, open_minutes.values())) - len(trades)
        if trade.quantity and minute in wanted:
            known = trades.setdefault(trade.trade_id, trade)
            if known is not trade and _content(known) != _content(trade):
                raise ArchiveError(
                    f"{listing.instrument} archive, row {number:,}: an earlier row has its id {trade.trade_id!r} and is another trade; "
                    "download the file again"
                )
            if others + len(trades) > _MAX_OPEN_TRADES:
                raise _too_many(listing, number, f"{_MAX_OPEN_TRADES:,} trades")
    if len(bad_lines) != seen:
        incomplete.update(range(day.start, minute + 1, MINUTE) if newest_first else range(minute, day.end, MINUTE))
    for finished in sorted(open_minutes.keys() - incomplete, reverse=bool(newest_first)):
        yield from _whole_minute(listing, finished, open_minutes[finished], wanted, tape_trades, newest_first)


def _whole_minute(
    listing: Listing,
    minute: int,
    rows: Mapping[str, Trade],
    wanted: Collection[int],
    tape_trades: Mapping[int, Sequence[Trade]],
    newest_first: bool | None,
) -> Iterator[PackedPartial]:
    if minute not in wanted or not rows:
        return
    trades = list(rows.values())
    if newest_first is None:
        newest_first = len(trades) > 1 and trades[0].timestamp > trades[-1].timestamp
    if newest_first:
        trades.reverse()
    trades += [trade for trade in tape_trades.get(minute, ()) if trade.trade_id not in rows]
    # The sort is stable: rows of one millisecond stay in the file's order.
    trades.sort(key=attrgetter("timestamp"))
    footprint = Footprint(listing.scale)
    footprint.add(*trades)
    yield PackedPartial(minute, WHOLE, WHOLE, _packed(footprint), footprint.bar.trade_count)


def _content(trade: Trade) -> tuple[object, ...]:
    return trade.timestamp, trade.price, trade.quantity, trade.trade_type, trade.scale


def _packed(footprint: Footprint) -> bytes:
    return compress(footprint.pack(), level=1)


def _check_time(listing: Listing, number: int, row: Aggregate, covered: Sequence[Span], following: int) -> None:
    """`ArchiveError` if a row's time is not between those of the covered spans before and after its id."""
    at = row.trade.timestamp
    earliest = covered[following - 1].start - CLOCK_SKEW if following else at
    latest = covered[following].end + CLOCK_SKEW if following < len(covered) else at
    if not earliest <= at <= latest:
        allowed = f"after {earliest}" if at < earliest else f"before {latest}"
        raise ArchiveError(
            f"{listing.instrument} archive, row {number:,}: id {row.trade.seq} has the time {at} ms, but must be {allowed} "
            f"by the recorded ids around it; use a file of this symbol"
        )


def _too_many(listing: Listing, number: int, what: str) -> ArchiveError:
    return ArchiveError(
        f"{listing.instrument} archive, row {number:,}: its minute has more than {what}, which no minute has; use the exchange's own file"
    )


def _other_day(listing: Listing, number: int, row: Aggregate) -> ArchiveError:
    return ArchiveError(
        f"{listing.instrument} archive, row {number:,}: its time {row.trade.timestamp} is not on the day in the file's name; "
        "use a file with its original name"
    )
