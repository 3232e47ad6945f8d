"""Fills the gaps of one market from the exchange's REST history, where the exchange numbers its trades.

The newest gap comes first, every fourth request goes to the oldest. Up to `RAW_LIMIT` trades of a gap come back as rows, by id; of a
longer one, and of what is older than rows are kept, the rest comes from aggregates where the exchange has them: exact in every figure,
without rows, and for a fraction of the request weight. Whatever comes takes the recorder's one road.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import anyio

from wadm_mcp.collection.recording.minute import pieces_of
from wadm_mcp.collection.recording.recorder import RecordedInstrument, Recorder
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.collection.rest.rate_limit import Priority
from wadm_mcp.coverage.by_id import SequenceCoverage
from wadm_mcp.coverage.spans import IMPORTED, MissingRange
from wadm_mcp.errors import ExchangeError
from wadm_mcp.exchanges.exchange import Aggregate, Exchange
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import HOUR, MINUTE, SECOND, Instrument, Trade
from wadm_mcp.tape import Repairing

RAW_LIMIT: Final = 100_000
"""Trades of one gap that come back as rows; on spot 2,500 of the 6,000 weight that Binance grants a minute."""

_PAGE: Final = 1_000
"""Rows that one reply holds at most, on every endpoint asked here."""
_EVERY: Final = 0.5
_SETTLED: Final = SECOND
"""Age of a gap's upper edge below which it may be mere disorder on the way."""
_OLDEST_TURN: Final = 4
_TRIES: Final = 3
"""Replies that must lack an id, while telling later ones, before it counts as absent at the exchange."""
_PAUSES: Final = (1.0, 2.0, 5.0, 15.0, 60.0)
"""Seconds before the same ids are asked for again: the exchange's database lags behind its stream."""
_STALE: Final = HOUR
"""Age of a gap that no lag of a database explains any more."""
LONG_GAP: Final = 2 * HOUR
"""A longer one may be history's to fill, from an archive: a day's file costs less than its pages."""
REACH: Final = 47 * HOUR
"""USD-M serves history by REST for 48 hours (docs/exchanges.md 4.2). What is older it may have all the same, in its archives."""
_CHUNK: Final = 10 * MINUTE
"""Market time whose aggregates are fetched in a row, newest chunk first."""
_STRADDLED: Final = 1_000
"""Ids that are left to fetch as rows at the edges of what aggregates filled."""
_SKEW: Final = 5 * SECOND
_FILLS_PER_AGGREGATE: Final = 2
"""As the recorded tapes have it (docs/exchanges.md 7); for the time left, nothing else."""


class _Tried(NamedTuple):
    times: int
    again_at: float


class GapRepairer:
    """Repairs every followed instrument of a market until cancelled.

    `trades_life` is how long rows are kept (ms). Without `long_gaps` those of more than two hours
    are left to who imports history.
    """

    def __init__(
        self,
        exchange: Exchange,
        market: str,
        base_url: str,
        rest: RestClient,
        recorder: Recorder,
        health: Health,
        clock: Callable[[], int],
        monotonic: Callable[[], float],
        trades_life: int,
        long_gaps: bool = True,
    ) -> None:
        self._exchange = exchange
        self._market = market
        self._base_url = base_url
        self._rest = rest
        self._recorder = recorder
        self._health = health
        self._clock = clock
        self._monotonic = monotonic
        self._trades_life = trades_life
        self._long_gaps = long_gaps
        self._budget = rest.budget(exchange, market, base_url)
        self._part = f"{exchange.name} {market} repair"
        self._turn = 0
        self._tried: dict[tuple[Instrument, int, int], _Tried] = {}
        self._to_fold: dict[Instrument, list[tuple[int, int]]] = {}
        """Ranges of ids that come back from aggregates."""
        self._rows_only: set[tuple[Instrument, int, int]] = set()
        """Gaps that no aggregate fits into."""

    async def run(self) -> None:
        """Look for gaps and fill them, one request at a time, for ever."""
        while True:
            job = self._next()
            if job is None:
                with anyio.move_on_after(_EVERY):
                    await self._recorder.gap_opened()
                continue
            try:
                await self._repair(*job)
            except ExchangeError as error:
                self._health.count("repair.failures")
                self._health.report(self._part, State.OK, f"waits: {error}")
                log.warning("repair.failed", exchange=self._exchange.name, market=self._market, error=error)
                self._put_off(*job)
                await anyio.sleep(max(_PAUSES[0], self._budget.state.closed_for))

    def _next(self) -> tuple[RecordedInstrument, MissingRange] | None:
        """The gap whose turn it is, None where none is due. Tells on the way what is left to do."""
        due: list[tuple[RecordedInstrument, MissingRange]] = []
        every: list[tuple[Instrument, MissingRange]] = []
        known: set[tuple[Instrument, int, int]] = set()
        now, market_now = self._monotonic(), self._clock()
        left: list[str] = []
        for followed in self._mine():
            gaps = [gap for gap in followed.continuity.missing() if self._is_mine(followed, gap)]
            left += self._tell(followed, gaps)
            every += [(followed.tape.instrument, gap) for gap in gaps]
            for gap in gaps:
                key = self._key(followed, gap)
                known.add(key)
                tried = self._tried.get(key)
                if gap.end <= market_now - _SETTLED and (tried is None or tried.again_at <= now):
                    due.append((followed, gap))
        self._tried = {key: tried for key, tried in self._tried.items() if key in known}
        self._rows_only &= {(instrument, gap.first, gap.last) for instrument, gap in every}
        self._health.report(self._part, State.OK, "; ".join(left))
        if not due:
            return None
        due.sort(key=lambda job: job[1].end)
        self._turn += 1
        return due[0 if self._turn % _OLDEST_TURN == 0 else -1]

    def _is_mine(self, followed: RecordedInstrument, gap: MissingRange) -> bool:
        if self._market == "linear" and gap.end < self._clock() - REACH:
            return False
        coming = followed.being_imported
        if coming is not None and gap.start < coming.end + _SKEW and gap.end > coming.start - _SKEW:
            return False
        if gap.end - gap.start <= LONG_GAP:
            return True
        # What somebody imported by hand long before the tape is an island: the time between was not asked for.
        after_import = any(span.last_seq == gap.first - 1 and span.reason == IMPORTED for span in followed.continuity.spans)
        return self._long_gaps and not after_import

    def _mine(self) -> list[RecordedInstrument]:
        return [followed for followed in self._recorder.followed if followed.tape.instrument[:2] == (self._exchange.name, self._market)]

    def _tell(self, followed: RecordedInstrument, gaps: Sequence[MissingRange]) -> list[str]:
        tape = followed.tape
        if not gaps:
            tape.repairing = None
            self._to_fold.pop(tape.instrument, None)
            return []
        missing = sum(gap.trades for gap in gaps)
        ranges = self._to_fold.get(tape.instrument, [])
        folded = sum(max(0, min(gap.last, last) - max(gap.first, first) + 1) for gap in gaps for first, last in ranges)
        seconds = self._seconds(tape.instrument.symbol, _pages(gaps) - folded // _PAGE, folded)
        tape.repairing = Repairing(missing, folded, seconds)
        how = f", {folded:,} of them from aggregates" if folded else ""
        return [f"{tape.instrument.symbol}: {missing:,} trades are missing{how}, about {seconds:,.0f} s are needed"]

    def _seconds(self, symbol: str, pages: int, folded: int) -> float:
        """Time that the requests need within the share of the allowance that is ours."""
        exchange, market = self._exchange, self._market
        weight = pages * exchange.trades_request(market, symbol, 1).weight
        if folded:
            pages = -(-folded // (_FILLS_PER_AGGREGATE * _PAGE))
            weight += pages * exchange.aggregates_request(market, symbol, start=0).weight
        return weight * exchange.allowance(market).seconds / self._budget.allowed

    async def _repair(self, followed: RecordedInstrument, gap: MissingRange) -> None:
        if self._folds(followed, gap):
            await self._fold(followed, gap)
        else:
            await self._fetch(followed, gap)

    def _folds(self, followed: RecordedInstrument, gap: MissingRange) -> bool:
        """Does this gap's newest part come back from aggregates?"""
        if not self._exchange.folds_history[self._market]:
            return False
        instrument = followed.tape.instrument
        if gap.trades <= _STRADDLED or (instrument, gap.first, gap.last) in self._rows_only:
            return False
        ranges = self._to_fold.setdefault(instrument, [])
        if not any(first <= gap.last and last >= gap.first for first, last in ranges):
            outlived = gap.end < self._clock() - self._trades_life
            if outlived or gap.trades > RAW_LIMIT:
                ranges.append((gap.first, gap.last if outlived else gap.last - RAW_LIMIT))
        return any(first <= gap.last <= last for first, last in ranges)

    async def _fetch(self, followed: RecordedInstrument, gap: MissingRange) -> None:
        """The newest page of a gap, by id, and of the small gaps before it what that page holds too."""
        first = self._first(followed, gap)
        instrument = followed.tape.instrument
        small = [one for one in followed.continuity.missing() if gap.last - _PAGE < one.first and one.last < first]
        start = min([first, *(one.first for one in small)])
        rows = await self._rest.trades(self._exchange, followed.tape.listing, self._base_url, first=start)
        wanted = [*small, gap._replace(first=first)]
        firsts = [one.first for one in wanted]
        told = [
            row
            for row in rows
            if row.seq >= start and row.seq <= (own := wanted[bisect_right(firsts, row.seq) - 1]).last and self._plausible(row, own)
        ]
        new = await self._recorder.repaired(instrument, told)
        if new:
            log.info("gap.repaired", instrument=instrument, first=first, last=gap.last, trades=new)
        lacking = _lacking(first, gap.last, [row for row in told if row.seq >= first])
        if not lacking:
            return
        served = max((row.seq for row in rows), default=-1)
        absent = [part for part in lacking if part[1] < served]
        if not rows and gap.end < self._clock() - _STALE:
            absent = lacking
        key = self._key(followed, gap)
        tries = self._tried.get(key, _Tried(0, 0.0)).times + 1
        if absent and tries >= _TRIES:
            self._lack(followed, absent)
        else:
            self._put_off(followed, gap)

    def _lack(self, followed: RecordedInstrument, ranges: Sequence[tuple[int, int]]) -> None:
        assert isinstance(followed.continuity, SequenceCoverage)
        for first, last in ranges:
            followed.continuity.lack(first, last)
            self._health.count("trades.absent", last - first + 1)
            log.warning("gap.absent", instrument=followed.tape.instrument, first=first, last=last)

    async def _fold(self, followed: RecordedInstrument, gap: MissingRange) -> None:
        """The newest chunk of a gap, from aggregates. A gap that none of them fits into is left to be fetched as rows."""
        instrument, listing = followed.tape.instrument, followed.tape.listing
        key = self._key(followed, gap)
        tries = self._tried.get(key, _Tried(0, 0.0)).times
        start = max(gap.start, gap.end - (_CHUNK << tries))
        new = 0
        rows = await self._rest.aggregates(self._exchange, listing, self._base_url, start=start, priority=Priority.REPAIR)
        while rows:
            inside = [row for row in rows if row.trade.seq >= gap.first and row.last <= gap.last and self._plausible(row.trade, gap)]
            new += await self._recorder.repaired(instrument, (), pieces_of(instrument, inside))
            if _beyond(rows[-1], gap) or len(rows) < _PAGE:
                break
            after = rows[-1].number + 1
            rows = await self._rest.aggregates(self._exchange, listing, self._base_url, first=after, priority=Priority.REPAIR)
        if new:
            log.info("gap.repaired", instrument=instrument, since=start, trades=new, rows=False)
        elif start > gap.start:
            self._put_off(followed, gap, at_once=True)
        else:
            self._rows_only.add((instrument, gap.first, gap.last))

    def _first(self, followed: RecordedInstrument, gap: MissingRange) -> int:
        """The id from which on a gap's newest page is asked for."""
        ranges = self._to_fold.get(followed.tape.instrument, [])
        above = [last + 1 for first, last in ranges if first <= gap.last and gap.first <= last < gap.last]
        return max(gap.first, gap.last - _PAGE + 1, *above)

    def _key(self, followed: RecordedInstrument, gap: MissingRange) -> tuple[Instrument, int, int]:
        return followed.tape.instrument, self._first(followed, gap), gap.last

    def _put_off(self, followed: RecordedInstrument, gap: MissingRange, *, at_once: bool = False) -> None:
        key = self._key(followed, gap)
        times = self._tried.get(key, _Tried(0, 0.0)).times
        pause = 0.0 if at_once else _PAUSES[min(times, len(_PAUSES) - 1)]
        self._tried[key] = _Tried(times + 1, self._monotonic() + pause)

    def _plausible(self, row: Trade, gap: MissingRange) -> bool:
        """A trade that is said to lie outside its gap would stretch coverage over time nobody knows of."""
        if gap.start - _SKEW <= row.timestamp <= gap.end + _SKEW:
            return True
        self._health.count("trades.implausible")
        return False


def _pages(gaps: Sequence[MissingRange]) -> int:
    """Requests that gaps take, oldest first, when each brings a page of ids that ends with a missing one."""
    pages, reached = 0, None
    for gap in reversed(gaps):
        last = gap.last if reached is None else min(gap.last, reached - 1)
        if last >= gap.first:
            more = -(-(last - gap.first + 1) // _PAGE)
            pages, reached = pages + more, last - more * _PAGE + 1
    return pages


def _beyond(row: Aggregate, gap: MissingRange) -> bool:
    return row.last >= gap.last or row.trade.timestamp > gap.end


def _lacking(first: int, last: int, rows: Sequence[Trade]) -> list[tuple[int, int]]:
    """Which ids of a range no row bears, as ranges."""
    ids = [first - 1, *sorted({row.seq for row in rows}), last + 1]
    return [(one + 1, other - 1) for one, other in pairwise(ids) if other > one + 1]
