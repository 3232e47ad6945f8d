"""Fills the gaps of one market from the exchange's REST history, where trade ids are gapless.

The newest gap comes first; every fourth request goes to the oldest. Up to `RAW_LIMIT` trades of a gap are fetched as rows, by id. The rest
of a longer gap, and gaps older than the retention of single trades, come from aggregates where the exchange has them: exact in every
figure, without rows, and for a fraction of the request weight. Everything fetched goes through the recorder, as live trades do.

A host of market data may lack the rows by id (docs/exchanges.md 4.1). Then the newest page of rows repairs what it reaches, and
aggregates the rest. Of an aggregate that reaches beyond the edge of a gap, what the recorded trades of it leave is missing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple, TypeAlias

import anyio
from msgspec import structs

from wadm_mcp.clock import CLOCK_SKEW, Clock, utc_text
from wadm_mcp.collection.recording.minute import partial_footprints
from wadm_mcp.collection.recording.recorded_instrument import RecordedInstrument
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.collection.rest.rate_limit import Priority, RateLimiter
from wadm_mcp.coverage.spans import GapReason, MissingRange, SpanReason
from wadm_mcp.errors import EndpointMissing, ExchangeError, RequestRefused, StoreError
from wadm_mcp.exchanges.exchange import Aggregate, Venue
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import HOUR, MINUTE, SECOND, Instrument, Scale, Trade, Window, rescale
from wadm_mcp.tape import Repairing

RAW_LIMIT: Final = 100_000
"""Trades of one gap that are fetched as rows; on Binance spot this is 2,500 of the 6,000 weight granted a minute."""
LONG_GAP: Final = 2 * HOUR
"""A longer gap may be left to the import of history: an archive file costs less than a day's pages."""
FILLS_PER_AGGREGATE: Final = 2
"""Measured on the recorded tapes (docs/exchanges.md 7). Only for the time left that progress states."""

_POLL_SECONDS: Final = 0.5
_MIN_GAP_AGE_MS: Final = SECOND
"""Age of a gap's upper edge below which its trades may simply arrive out of order."""
_OLDEST_EVERY: Final = 4
_ABSENT_AFTER: Final = 3
"""Replies that must lack an id, or have it unreadable, while they have later ones, before it is not requested any more."""
_PAUSES_SECONDS: Final = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Before the same ids are requested again: the exchange's database lags behind its stream."""
_MAX_LAG_MS: Final = HOUR
"""Age of a gap that no lag of the exchange's database explains."""
_CHUNK_MS: Final = 10 * MINUTE
"""Market time whose aggregates are fetched in a row, newest chunk first."""
_MAX_EDGE_IDS: Final = 1_000
"""A gap of so few ids is fetched as single trades: it lies between aggregates and no aggregate fits into it."""

_GapKey: TypeAlias = tuple[Instrument, int, int]


class _Attempts(NamedTuple):
    """Requests for a gap's newest page after which its ids are still missing."""

    number: int = 0
    retry_at: float = 0.0
    """Monotonic seconds."""
    seen_up_to: tuple[int, ...] = ()
    """The highest id of the replies, ascending; of all replies the `_ABSENT_AFTER` highest."""


class GapRepairer:
    """Repairs every recorded instrument of a market until cancelled.

    `trades_retention` is how long rows are kept (ms). Without `long_gaps` gaps of more than two hours are left to the import of history.
    `recorded_trades` returns the stored trades of a window; None where there is no store.
    """

    def __init__(
        self,
        venue: Venue,
        rest: RestClient,
        recorder: Recorder,
        health: Health,
        clock: Clock,
        trades_retention: int,
        long_gaps: bool = True,
        recorded_trades: Callable[[Instrument, Window], Awaitable[Sequence[Trade]]] | None = None,
    ) -> None:
        self._venue = venue
        self._traits = venue.traits
        self._rest = rest
        self._recorder = recorder
        self._health = health
        self._clock = clock
        self._trades_retention = trades_retention
        self._long_gaps = long_gaps
        self._page_rows = venue.traits.page_rows
        self._recorded_trades = recorded_trades
        self._part = f"{venue.name} repair"
        self._turn = 0
        self._attempts: dict[_GapKey, _Attempts] = {}
        self._refused: dict[Instrument, _Attempts] = {}
        """Instruments whose last request the exchange refused, while it serves others."""
        self._folded_ranges: dict[Instrument, list[tuple[int, int]]] = {}
        """Ranges of ids that are fetched as aggregates."""
        self._rows_only: set[_GapKey] = set()
        """Gaps that no aggregate fits into."""
        self._beyond_newest: set[_GapKey] = set()
        """Gaps that the newest page of rows did not reach."""

    @property
    def _limiter(self) -> RateLimiter:
        """The rate limit of the host that serves now."""
        return self._rest.limiter(self._venue)

    async def run(self) -> None:
        """Look for gaps and fill them, one request at a time, for ever."""
        while True:
            due = self._next()
            if due is None:
                with anyio.move_on_after(_POLL_SECONDS):
                    await self._recorder.gap_opened()
                continue
            recorded, gap = due
            instrument = recorded.instrument
            try:
                await (self._fetch_folded(recorded, gap) if self._folds(recorded, gap) else self._fetch_rows(recorded, gap))
            except RequestRefused as error:
                # The host answers: only this instrument waits, which the exchange may not list any more.
                self._health.count("repair.failures")
                log.warning("repair.refused", instrument=instrument, error=error)
                refused = self._refused.get(instrument, _Attempts()).number
                pause = _PAUSES_SECONDS[min(refused, len(_PAUSES_SECONDS) - 1)]
                self._refused[instrument] = _Attempts(refused + 1, self._clock.monotonic() + pause)
            except (ExchangeError, StoreError) as error:
                self._health.count("repair.failures")
                self._health.report(self._part, State.OK, f"waits: {error}")
                log.warning("repair.failed", **self._venue.log_fields, error=error)
                self._postpone(recorded, gap)
                await anyio.sleep(max(_PAUSES_SECONDS[0], self._rest.closed_for(self._venue)))
            else:
                self._refused.pop(instrument, None)

    def _next(self) -> tuple[RecordedInstrument, MissingRange] | None:
        """The gap whose turn it is, None where none is due. Reports progress on the way."""
        due: list[tuple[RecordedInstrument, MissingRange]] = []
        known: set[_GapKey] = set()
        whole: set[_GapKey] = set()
        now, market_now = self._clock.monotonic(), self._clock.now()
        lines: list[str] = []
        for recorded in self._recorder.recorded:
            if not self._venue.trades_here(recorded.instrument):
                continue
            gaps = [gap for gap in recorded.coverage.missing() if self._is_mine(recorded, gap)]
            stuck = {gap for gap in gaps if self._is_out_of_reach(recorded, gap)}
            lines += self._report(recorded, [gap for gap in gaps if gap not in stuck])
            if stuck:
                trades = sum(gap.trades for gap in stuck)
                lines.append(f"{recorded.instrument.symbol}: {trades:,} trades stay missing, because the host has no trades by id")
            refused_until = self._refused.get(recorded.instrument, _Attempts()).retry_at
            for gap in gaps:
                key = self._key(recorded, gap)
                known.add(key)
                whole.add((recorded.instrument, gap.first, gap.last))
                attempts = self._attempts.get(key)
                ripe = gap.end <= market_now - _MIN_GAP_AGE_MS and (attempts is None or attempts.retry_at <= now)
                if ripe and gap not in stuck and refused_until <= now:
                    due.append((recorded, gap))
        self._attempts = {key: attempts for key, attempts in self._attempts.items() if key in known}
        self._rows_only &= whole
        self._beyond_newest &= whole
        self._health.report(self._part, State.OK, "; ".join(lines))
        if not due:
            return None
        due.sort(key=lambda job: job[1].end)
        self._turn += 1
        return due[0 if self._turn % _OLDEST_EVERY == 0 else -1]

    def _is_mine(self, recorded: RecordedInstrument, gap: MissingRange) -> bool:
        """Is the gap for repair, and neither out of reach nor for the import of history?"""
        reach = self._traits.rest_reach
        if reach is not None and gap.end < self._clock.now() - reach:
            return False
        coming = recorded.being_imported
        if coming is not None and gap.start < coming.end + CLOCK_SKEW and gap.end > coming.start - CLOCK_SKEW:
            return False
        if gap.end - gap.start <= LONG_GAP:
            return True
        # A window imported by hand may be much older than the recording; the time in between was not requested.
        after_import = any(span.last_seq == gap.first - 1 and span.reason is SpanReason.IMPORTED for span in recorded.coverage.spans)
        return self._long_gaps and not after_import

    def _report(self, recorded: RecordedInstrument, gaps: Sequence[MissingRange]) -> list[str]:
        """Report the progress of an instrument to its tape; the line for health, none where nothing is missing."""
        tape, instrument = recorded.tape, recorded.instrument
        if not gaps:
            tape.report_repair(None)
            self._folded_ranges.pop(instrument, None)
            return []
        missing = sum(gap.trades for gap in gaps)
        ranges = self._folded_ranges.get(instrument, [])
        folded = sum(max(0, min(gap.last, last) - max(gap.first, first) + 1) for gap in gaps for first, last in ranges)
        seconds = self._seconds(instrument.symbol, _pages(gaps, self._page_rows) - folded // self._page_rows, folded)
        tape.report_repair(Repairing(missing, folded, seconds))
        how = f", {folded:,} of them from aggregates" if folded else ""
        return [f"{instrument.symbol}: {missing:,} trades are missing{how}, about {seconds:,.0f} s are needed"]

    def _seconds(self, symbol: str, pages: int, folded: int) -> float:
        """Time that the requests need within our share of the rate limit."""
        exchange, market = self._venue.exchange, self._venue.market
        weight = pages * exchange.trades_request(market, symbol, 1).weight
        if folded:
            pages = -(-folded // (FILLS_PER_AGGREGATE * self._page_rows))
            weight += pages * exchange.aggregates_request(market, symbol, start=0).weight
        return weight * exchange.allowance(market).seconds / self._limiter.allowed

    def _folds(self, recorded: RecordedInstrument, gap: MissingRange) -> bool:
        """Is the newest part of this gap fetched as aggregates?"""
        if not self._traits.folds_history:
            return False
        instrument = recorded.instrument
        key = instrument, gap.first, gap.last
        if self._rest.lacks_trades(self._venue):
            return key in self._beyond_newest or not self._is_among_newest(recorded, gap)
        if gap.trades <= _MAX_EDGE_IDS or key in self._rows_only:
            return False
        ranges = self._folded_ranges.setdefault(instrument, [])
        if not any(first <= gap.last and last >= gap.first for first, last in ranges):
            expired = gap.end < self._clock.now() - self._trades_retention
            if expired or gap.trades > RAW_LIMIT:
                ranges.append((gap.first, gap.last if expired else gap.last - RAW_LIMIT))
        return any(first <= gap.last <= last for first, last in ranges)

    def _is_among_newest(self, recorded: RecordedInstrument, gap: MissingRange) -> bool:
        """Does the newest page of rows probably have trades of this gap?"""
        return recorded.coverage.spans[-1].last_seq - gap.last < self._page_rows

    def _is_out_of_reach(self, recorded: RecordedInstrument, gap: MissingRange) -> bool:
        """Is there nothing left that could repair this gap, as long as the host lacks the rows?"""
        key = recorded.instrument, gap.first, gap.last
        return (
            key in self._rows_only
            and self._rest.lacks_trades(self._venue)
            and (key in self._beyond_newest or not self._is_among_newest(recorded, gap))
        )

    async def _fetch_rows(self, recorded: RecordedInstrument, gap: MissingRange) -> None:
        """Fetch the newest page of a gap, by id, and with it the small gaps that the page includes.

        Where the host lacks the rows by id, the exchange's newest page is fetched in its place.
        """
        first = self._first(recorded, gap)
        instrument = recorded.instrument
        newest_only = self._rest.lacks_trades(self._venue)
        small = [one for one in recorded.coverage.missing() if gap.last - self._page_rows < one.first and one.last < first]
        start = min([first, *(one.first for one in small)])
        try:
            rows = await self._rest.trades(self._venue, recorded.tape.listing, first=None if newest_only else start)
        except EndpointMissing:
            if newest_only or not self._rest.lacks_trades(self._venue):
                raise
            # It is known now that the host lacks the rows: the gap's next turn takes another way.
            return
        if newest_only:
            oldest = min((row.seq for row in rows), default=gap.last + 1)
            if oldest > gap.first:
                self._beyond_newest.add((instrument, gap.first, gap.last))
            if oldest > gap.last:
                return
            first = max(first, oldest)
        gaps = [*small, gap._replace(first=first)]
        firsts = [one.first for one in gaps]
        usable = [
            row
            for row in rows
            if row.seq >= start and row.seq <= (own := gaps[bisect_right(firsts, row.seq) - 1]).last and self._plausible(row, own)
        ]
        new = await self._recorder.record_repaired(instrument, usable)
        if new:
            log.info("gap.repaired", instrument=instrument, first=first, last=gap.last, trades=new)
        lacking = _lacking(first, gap.last, [row for row in usable if row.seq >= first])
        if not lacking:
            return
        unreadable = {row.seq for row in rows.unreadable if row.seq is not None}
        if unreadable:
            self._recorder.row_unreadable(instrument, rows.unreadable)
        seen = (
            gap.last + 1
            if not rows and gap.end < self._clock.now() - _MAX_LAG_MS
            else max(unreadable.union(row.seq for row in rows), default=-1)
        )
        before = self._attempts.get(self._key(recorded, gap), _Attempts())
        seen_up_to = tuple(sorted((*before.seen_up_to, seen))[-_ABSENT_AFTER:])
        below = seen_up_to[0] if len(seen_up_to) == _ABSENT_AFTER else -1
        absent = [(begin, min(end, below - 1)) for begin, end in lacking if begin < below]
        if absent:
            self._mark_absent(recorded, absent, unreadable)
        else:
            self._postpone(recorded, gap, seen_up_to=seen_up_to)

    def _mark_absent(self, recorded: RecordedInstrument, ranges: Sequence[tuple[int, int]], unreadable: Collection[int]) -> None:
        for first, last, reason in _by_reason(ranges, unreadable):
            recorded.coverage.mark_absent(first, last, reason)
            self._health.count("trades.absent", last - first + 1)
            log.warning("gap.absent", instrument=recorded.instrument, first=first, last=last, reason=reason)

    async def _fetch_folded(self, recorded: RecordedInstrument, gap: MissingRange) -> None:
        """Fetch the newest chunk of a gap as aggregates. A gap that none of them fits into is left to be fetched as rows."""
        instrument, listing = recorded.instrument, recorded.tape.listing
        attempts = self._attempts.get(self._key(recorded, gap), _Attempts()).number
        start = max(gap.start, gap.end - (_CHUNK_MS << attempts))
        new, reached = 0, False
        rows = await self._rest.aggregates(self._venue, listing, start=start, priority=Priority.REPAIR)
        while rows:
            inside = [row for row in rows if row.trade.seq >= gap.first and row.last <= gap.last and self._plausible(row.trade, gap)]
            if self._rest.lacks_trades(self._venue):
                inside = await self._parts_in_gaps(recorded, rows)
            new += await self._recorder.record_repaired(instrument, (), partial_footprints(instrument, inside))
            reached = _beyond(rows[-1], gap)
            if reached or rows.served < self._page_rows:
                break
            after = rows[-1].number + 1
            rows = await self._rest.aggregates(self._venue, listing, first=after, priority=Priority.REPAIR)
        if new:
            log.info("gap.repaired", instrument=instrument, since=utc_text(start), trades=new, rows=False)
        elif start > gap.start:
            self._postpone(recorded, gap, at_once=True)
        elif not reached and self._rest.lacks_trades(self._venue):
            # The exchange's database does not have the end of the gap yet.
            self._postpone(recorded, gap)
        else:
            self._rows_only.add((instrument, gap.first, gap.last))

    async def _parts_in_gaps(self, recorded: RecordedInstrument, rows: Sequence[Aggregate]) -> list[Aggregate]:
        """What a page of aggregates has in the gaps of an instrument, ascending: whole aggregates, and the missing parts of others."""
        parts: list[Aggregate] = []
        for gap in recorded.coverage.missing():
            if gap.last < rows[0].trade.seq or gap.first > rows[-1].last or not self._is_mine(recorded, gap):
                continue
            for row in rows[bisect_left(rows, gap.first, key=_last_id) :]:
                if row.trade.seq > gap.last:
                    break
                if not self._plausible(row.trade, gap):
                    continue
                part = row if gap.first <= row.trade.seq and row.last <= gap.last else await self._missing_part(recorded, row, gap)
                if part is not None:
                    parts.append(part)
        return parts

    async def _missing_part(self, recorded: RecordedInstrument, row: Aggregate, gap: MissingRange) -> Aggregate | None:
        """The part of an aggregate that lies in the gap, where every other execution of it is recorded as a single trade; else None.

        All executions of a spot aggregate have its price, side and time, so what the recorded ones leave of its quantity is missing.
        """
        if self._recorded_trades is None:
            return None
        whole, instrument = row.trade, recorded.instrument
        moment = Window(whole.timestamp, whole.timestamp + 1)
        pending = recorded.tape.pending_in(moment)
        known = {trade.seq: trade for trade in (*pending, *await self._recorded_trades(instrument, moment))}
        first, last = max(whole.seq, gap.first), min(row.last, gap.last)
        if row.last - whole.seq - (last - first) > len(known):
            # Not all of them are recorded. An aggregate may claim two thousand million executions.
            return None
        others = [known.get(number) for number in (*range(whole.seq, first), *range(last + 1, row.last + 1))]
        if any(one is None or not _same_print(one, whole) for one in others):
            return None
        decimals = max(whole.scale.quantity, *(one.scale.quantity for one in others if one is not None))
        quantity = rescale(whole.quantity, whole.scale.quantity, decimals)
        quantity -= sum(rescale(one.quantity, one.scale.quantity, decimals) for one in others if one is not None)
        if quantity <= 0:
            return None
        scale = Scale(whole.scale.price, decimals)
        part = structs.replace(whole, seq=first, trade_id=str(first), quantity=quantity, fills=last - first + 1, scale=scale)
        return Aggregate(row.number, last, part)

    def _first(self, recorded: RecordedInstrument, gap: MissingRange) -> int:
        """The id from which on a gap's newest page is fetched."""
        ranges = self._folded_ranges.get(recorded.instrument, [])
        above = [last + 1 for first, last in ranges if first <= gap.last and gap.first <= last < gap.last]
        return max(gap.first, gap.last - self._page_rows + 1, *above)

    def _key(self, recorded: RecordedInstrument, gap: MissingRange) -> _GapKey:
        return recorded.instrument, self._first(recorded, gap), gap.last

    def _postpone(
        self, recorded: RecordedInstrument, gap: MissingRange, *, at_once: bool = False, seen_up_to: tuple[int, ...] | None = None
    ) -> None:
        """Count an attempt that left ids missing and delay the next one; with `at_once` retry immediately with a longer chunk."""
        key = self._key(recorded, gap)
        before = self._attempts.get(key, _Attempts())
        pause = 0.0 if at_once else _PAUSES_SECONDS[min(before.number, len(_PAUSES_SECONDS) - 1)]
        seen = before.seen_up_to if seen_up_to is None else seen_up_to
        self._attempts[key] = _Attempts(before.number + 1, self._clock.monotonic() + pause, seen)

    def _plausible(self, row: Trade, gap: MissingRange) -> bool:
        """Does the row's time lie in its gap? Otherwise it would stretch coverage over time that nothing is known of."""
        if gap.start - CLOCK_SKEW <= row.timestamp <= gap.end + CLOCK_SKEW:
            return True
        self._health.count("trades.implausible")
        return False


def _pages(gaps: Sequence[MissingRange], rows: int) -> int:
    """Requests that gaps need, oldest first, when each fetches a page of so many ids that ends with a missing one."""
    pages, reached = 0, None
    for gap in reversed(gaps):
        last = gap.last if reached is None else min(gap.last, reached - 1)
        if last >= gap.first:
            more = -(-(last - gap.first + 1) // rows)
            pages, reached = pages + more, last - more * rows + 1
    return pages


def _beyond(row: Aggregate, gap: MissingRange) -> bool:
    return row.last >= gap.last or row.trade.timestamp > gap.end


def _by_reason(ranges: Sequence[tuple[int, int]], unreadable: Collection[int]) -> Iterator[tuple[int, int, GapReason]]:
    """Ranges of ids that cannot be had: those that the exchange serves in no readable form each by itself."""
    for first, last in ranges:
        start = first
        for number in sorted(number for number in unreadable if first <= number <= last):
            if start < number:
                yield start, number - 1, GapReason.ABSENT
            yield number, number, GapReason.UNREADABLE
            start = number + 1
        if start <= last:
            yield start, last, GapReason.ABSENT


def _last_id(row: Aggregate) -> int:
    return row.last


def _same_print(trade: Trade, whole: Trade) -> bool:
    """Can a single trade be one of the executions of an aggregate?"""
    decimals = max(trade.scale.price, whole.scale.price)
    prices = [rescale(one.price, one.scale.price, decimals) for one in (trade, whole)]
    return prices[0] == prices[1] and (trade.timestamp, trade.trade_type) == (whole.timestamp, whole.trade_type)


def _lacking(first: int, last: int, rows: Sequence[Trade]) -> list[tuple[int, int]]:
    """The ids of a range that no row has, as ranges."""
    ids = [first - 1, *sorted({row.seq for row in rows}), last + 1]
    return [(one + 1, other - 1) for one, other in pairwise(ids) if other > one + 1]
