"""The live tape: what this process knows now that is not yet, or not only, in the store.

The recorder writes it (or the follower, where another process records), queries read it, and neither knows the other. All of it happens
on the event loop, so a reader sees a whole trade or none. Memory is bounded: trades and minutes leave once the store has them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import islice
from operator import attrgetter
from typing import Final, NamedTuple, Protocol

import anyio
import msgspec

from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.clock import utc_text
from wadm_mcp.coverage.spans import Span
from wadm_mcp.errors import UnknownSymbol
from wadm_mcp.exchanges.registry import canonical_instrument
from wadm_mcp.model import MINUTE, Instrument, Listing, Trade, Window

PENDING_LIMIT: Final = 60_000
"""Trades that memory keeps for questions while the store does not have them, of all instruments together, plus at most one lot."""
_LOTS: Final = 16
"""The limit is checked after each 1/16 of it, and as much is evicted beyond it."""
MINUTES_LIMIT: Final = 120
"""Minutes of an instrument that memory keeps while the store does not have their figures."""
_MAX_LOSSES: Final = 1_000
"""Minutes of an instrument of which is known when something of them left memory."""

_timestamp: Final = attrgetter("timestamp")


class CoverageSource(Protocol):
    """Coverage of an instrument as the recorder knows it now."""

    @property
    def spans(self) -> Sequence[Span]:
        """In any order; they replace what the store says of the same time."""
        ...

    def alive_until(self) -> int | None:
        """Market time (ms) up to which silence may be covered; None when it may not."""
        ...


class Repairing(NamedTuple):
    """A repair under way: trades still missing (0 where the exchange does not number them), how many of those come back as
    aggregates, and the estimated seconds left."""

    trades: int
    folded: int
    seconds: float


class Importing(NamedTuple):
    """An import under way: the time (ms) that it goes back to, the time (ms) after which nothing is left to import, trades a second, and
    the estimated seconds left. Speed and time left are None until a part was imported that says something about them.

    Something after `reached` may be missing that has no source, such as today on an exchange without history by REST.
    """

    target: int
    reached: int
    rate: int | None = None
    seconds: float | None = None

    @property
    def text(self) -> str:
        """What is left to import, and what is known of how long it takes."""
        known = [f"{self.rate:,} trades/s"] if self.rate else []
        known += [f"about {self.seconds:,.0f} s left"] if self.seconds is not None else []
        return ", ".join([f"importing {utc_text(self.target)} to {utc_text(self.reached)}, newest first", *known])


class BackfillProgress(NamedTuple):
    """What is being fetched of an instrument; None where there is nothing to fetch."""

    repairing: Repairing | None = None
    importing: Importing | None = None


class TapeState(StrEnum):
    """Who writes the tape of an instrument.

    idle -> following, idle or following -> recording, recording -> idle: `follow_store`, `start_recording` and `stop` are the
    transitions. While recording, `resumed` says whether the tape continues what the store had: until then its minutes may lack trades
    of an earlier process.
    """

    IDLE = "idle"
    """Nobody yet: its minutes are empty, the store alone is read."""
    FOLLOWING = "following"
    """The follower: another process records into the store that this process reads."""
    RECORDING = "recording"
    """The recorder of this process."""


class Losses:
    """What left memory before the store had it, by minute. A question that had read coverage before does not have it."""

    def __init__(self) -> None:
        self.count = 0
        self._last: dict[int, int] = {}
        """The last loss of each minute, in this order."""
        self._forgotten = 0
        """The last loss of a minute that is not among them any more."""

    def add(self, minutes: Iterable[int]) -> None:
        """Something of these minutes has left memory."""
        self.count += 1
        for minute in minutes:
            self._last.pop(minute, None)
            self._last[minute] = self.count
        while len(self._last) > _MAX_LOSSES:
            self._forgotten = self._last.pop(next(iter(self._last)))

    def since(self, count: int, window: Window, known: Container[int] = ()) -> bool:
        """Whether a minute that touches the window, other than the `known` ones, may have lost something after the loss `count`."""
        return self._forgotten > count or any(
            last > count and minute not in known and window.start - MINUTE < minute < window.end for minute, last in self._last.items()
        )


class InstrumentTape:
    """The live tape of one instrument."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.minutes: dict[int, Footprint] = {}
        """By start: the open minute, and those whose footprint the store does not have yet. Each is complete as far as the tape goes."""
        self.trade_counts: Counter[int] = Counter()
        """Single trades added to each of these minutes. Before a minute is derived, the number is compared with the store's."""
        self.pending: dict[str, Trade] = {}
        """Trades that are not durable in the store yet, by id, oldest first."""
        self.unstored: Counter[int] = Counter()
        """Trades by minute that the store does not have yet, whether they are in memory or in the journal alone."""
        self.evicted: Counter[int] = Counter()
        """Those of them that are in the journal alone."""
        self.newest: Trade | None = None
        """The trade with the latest timestamp."""
        self.revising: Counter[int] = Counter()
        """Late trades by settled minute that are not in its stored figures yet."""
        self.settled_until = 0
        """Minutes before this one have figures in the store; a later trade of theirs waits for rollup. 0 until the first trade."""
        self.backfill = BackfillProgress()
        self.minutes_lost = Losses()
        """Minutes that have left memory."""
        self.trades_lost = Losses()
        """Minutes of which single trades have left memory."""
        self._state = TapeState.IDLE
        self._resumed = False
        self._coverage: CoverageSource | None = None
        self._followed_until: int | None = None
        self._left_memory_until = 0
        """Latest timestamp of a trade that left memory."""

    @property
    def instrument(self) -> Instrument:
        return self.listing.instrument

    @property
    def unverified(self) -> bool:
        """Whether nothing shows yet that the instrument exists: its exchange has not confirmed it, and no trade of it is known."""
        return self.listing.provisional and self.newest is None

    # State.

    @property
    def state(self) -> TapeState:
        """Who writes it."""
        return self._state

    @property
    def resumed(self) -> bool:
        """True once the recorded tape continues what the store had before."""
        return self._resumed

    @property
    def coverage(self) -> CoverageSource | None:
        """Its coverage while it is recorded here; None otherwise."""
        return self._coverage

    def start_recording(self, coverage: CoverageSource) -> None:
        """This process records from now on. `resume` follows once the store has been read."""
        self._state, self._coverage = TapeState.RECORDING, coverage
        self._followed_until, self._resumed = None, False

    def resume(self, newest: Trade | None) -> None:
        """Mark the tape as resumed, once its dirty minutes are rebuilt and the recorder has loaded the stored coverage.

        `newest` is the newest stored trade.
        """
        if newest is not None and (self.newest is None or newest.timestamp > self.newest.timestamp):
            self.newest = newest
        self._resumed = True

    def follow_store(self, newest: Trade | None, until: int) -> None:
        """Mirror what another process records. Stored coverage counts only up to `until` (ms), for which this tape has the minutes."""
        self._state, self._followed_until = TapeState.FOLLOWING, until
        self.newest = self.newest or newest

    def stop(self) -> None:
        """Stop recording. Trades that are not stored yet stay in memory until they are; all else is dropped and read from the store."""
        self._state, self._coverage, self._followed_until, self._resumed = TapeState.IDLE, None, None, False
        self.minutes_lost.add(self.minutes)
        self.minutes.clear()
        self.trade_counts.clear()
        self.revising.clear()
        self.settled_until = 0
        self.backfill = BackfillProgress()

    def report_repair(self, progress: Repairing | None) -> None:
        """How far gap repair is; None where nothing is to be repaired."""
        self.backfill = self.backfill._replace(repairing=progress)

    def report_import(self, progress: Importing | None) -> None:
        """How far the import of history is; None where nothing is to be imported."""
        self.backfill = self.backfill._replace(importing=progress)

    def covered_here(self, stored: Sequence[Span], *, raw: bool = False, store_known: bool = True) -> list[Span]:
        """Spans for which memory and store together have all data, oldest first; `stored` is the store's coverage.

        With `store_known` false the store was not read, and the result is what memory alone has: with `raw` as single trades.
        """
        live = list(self._coverage.spans) if self._coverage is not None else []
        if not store_known:
            since = self.raw_since if raw else self.settled_until
            return [msgspec.structs.replace(span, start=max(span.start, since)) for span in live if since and span.end > since]
        if self._state is TapeState.RECORDING and self._resumed and self.minutes:
            # The recorder's own coverage contains what the store had at the start. Its minutes lack what others have recorded since.
            first = min(self.minutes)
            stored = [span for span in stored if span.end <= first]
        elif self._followed_until is not None:
            until = self._followed_until
            stored = [msgspec.structs.replace(span, end=min(span.end, until)) for span in stored if span.start <= until]
        known = {(span.start, span.first_seq) for span in live}
        both = [*live, *(span for span in stored if (span.start, span.first_seq) not in known)]
        return sorted(both, key=lambda span: (span.start, span.end))

    def outdated(self, dirty: Iterable[int], until: int) -> set[int]:
        """Minutes before `until` (ms) whose figures do not contain all late trades yet; `dirty` are those that are dirty in the store."""
        before = self._followed_until if self._followed_until is not None else until
        complete = self.minutes if self._resumed or self._state is not TapeState.RECORDING else ()
        return {*self.revising, *(minute for minute in dirty if minute < before and minute not in complete)}

    # Trades and minutes.

    def take(self, trades: Sequence[Trade]) -> int:
        """Add new trades in the order of arrival, and keep them in memory until the store has them. Returns as `add` does."""
        minutes, pending = _by_minute(trades), self.pending
        if trades and not self.settled_until:
            self.settled_until = trades[0].timestamp - trades[0].timestamp % MINUTE
        for minute, some in minutes.items():
            self.unstored[minute] += len(some)
        for trade in trades:
            pending[trade.trade_id] = trade
        return self._add(minutes)

    def evict_oldest(self, count: int) -> None:
        """Drop the oldest pending trades from memory: the journal has them. Many at once, since finding the first one of a dict passes
        all that were removed before it."""
        gone = list(islice(self.pending.values(), count))
        for trade in gone:
            del self.pending[trade.trade_id]
        self._left_memory_until = max(self._left_memory_until, max(map(_timestamp, gone), default=0))
        minutes = _by_minute(gone)
        self.trades_lost.add(minutes)
        for minute, some in minutes.items():
            self.evicted[minute] += len(some)

    def add(self, trades: Iterable[Trade]) -> int:
        """Add trades to their minutes. Returns how many came late, for a minute whose figures the store has already."""
        return self._add(_by_minute(trades))

    def _add(self, minutes: Mapping[int, Sequence[Trade]]) -> int:
        late = 0
        for minute, trades in minutes.items():
            latest = max(reversed(trades), key=_timestamp)
            if self.newest is None or latest.timestamp >= self.newest.timestamp:
                self.newest = latest
            footprint = self.minutes.get(minute)
            if footprint is None:
                if minute < self.settled_until:
                    self.revising[minute] += len(trades)
                    late += len(trades)
                    continue
                footprint = self.minutes[minute] = Footprint(self.listing.scale)
            footprint.add(*trades)
            self.trade_counts[minute] += len(trades)
        return late

    def add_partial(self, minute: int, footprint: Footprint, *, whole: bool = False) -> None:
        """Add a partial footprint that is not stored yet. The min and max delta of its minute become unknown, unless it is `whole`."""
        self.unstored[minute] += 1
        if minute not in self.minutes and minute < self.settled_until:
            self.revising[minute] += 1
        elif whole:
            self.minutes[minute] = footprint
        else:
            self.merge_partial(minute, footprint)

    def merge_partial(self, minute: int, footprint: Footprint) -> None:
        """Merge a partial footprint into a live minute. Its min and max delta are unknown from then on."""
        live = self.minutes.get(minute) or Footprint(self.listing.scale)
        self.minutes[minute] = merged = live.merge_parallel(footprint)
        merged.bar.min_delta = merged.bar.max_delta = None

    def rebuild_minute(
        self, minute: int, trades: Sequence[Trade], partials: Iterable[Footprint] = (), *, count_partials: bool = False
    ) -> None:
        """Build a live minute from all its trades, in `Trade.order`, and its partial footprints."""
        self.minutes[minute] = footprint = Footprint(self.listing.scale)
        footprint.add(*trades)
        self.trade_counts[minute] = len(trades)
        for partial in partials:
            self.merge_partial(minute, partial)
            self.trade_counts[minute] += count_partials

    def mark_partial_stored(self, minute: int) -> None:
        """The store has a partial footprint of a minute durably."""
        _subtract(self.unstored, minute)

    def mark_stored(self, trades: Collection[Trade]) -> None:
        """The store has these trades of the instrument durably."""
        pending = self.pending
        self._left_memory_until = max(self._left_memory_until, max(map(_timestamp, trades), default=0))
        for minute, some in _by_minute(trades).items():
            in_memory = sum(pending.pop(trade.trade_id, None) is not None for trade in some)
            _subtract(self.unstored, minute, len(some))
            _subtract(self.evicted, minute, len(some) - in_memory)

    # Settling: which minutes have their figures in the store.

    def settle_from(self, minute: int) -> None:
        """Minutes before this one have their figures in the store, where nothing was known of it yet."""
        self.settled_until = self.settled_until or minute

    def settle(self, until: int) -> None:
        """Minutes before `until` have their figures in the store now. Those of which nothing is left to store leave memory."""
        self.settled_until = until
        for minute in [minute for minute in self.minutes if minute < until and minute not in self.unstored]:
            self.drop_minute(minute)

    def follow_minutes(self, dirty: Collection[int], since: int | None) -> None:
        """Follow the store: `dirty` minutes lack figures there, those before `since` because of late trades. The others leave memory."""
        self.revising = Counter(minute for minute in dirty if since is not None and minute < since)
        for minute in [minute for minute in self.minutes if minute not in dirty]:
            self.drop_minute(minute)
        if since is not None:
            self.settled_until = max(self.settled_until, since)

    def mark_revising(self, minutes: Iterable[int]) -> None:
        """Note minutes that are dirty in the store and not in memory."""
        self.revising.update(minutes)

    def revised(self, minute: int, trades: int) -> None:
        """This many late trades of a minute are in its stored figures now."""
        _subtract(self.revising, minute, trades)

    def forget_revised_elsewhere(self, dirty: Container[int]) -> None:
        """Another process derived the late minutes that are neither `dirty` in the store nor wait for it."""
        for minute in [minute for minute in self.revising if minute not in dirty and minute not in self.unstored]:
            del self.revising[minute]

    def limit_minutes(self) -> None:
        """Drop the oldest minutes beyond the limit, as after a long outage of the store: rollup derives them from their stored trades."""
        while len(self.minutes) > MINUTES_LIMIT:
            oldest = min(self.minutes)
            self.minutes_lost.add([oldest])
            self.drop_minute(oldest)
            self.settled_until = max(self.settled_until, oldest + MINUTE)
            self.revising[oldest] += 1

    def drop_minute(self, minute: int) -> None:
        """Drop a minute from memory: the store has its figures, or rollup will derive them."""
        del self.minutes[minute]
        self.trade_counts.pop(minute, None)

    # Reading.

    @property
    def raw_since(self) -> int:
        """From when on (ms) memory has every single trade: just after the latest one that left it; 0 when it has none."""
        if not self.pending:
            return 0
        return max(self._left_memory_until + 1, min(trade.timestamp for trade in self.pending.values()) + 1)

    def pending_in(
        self, window: Window, *, after: tuple[int, int, int, str] | None = None, limit: int | None = None, newest: bool = False
    ) -> list[Trade]:
        """Pending trades of the window in `Trade.order`: all, or the first `limit` after `after`, or with `newest` the last ones."""
        start, end = window.start if after is None else max(window.start, after[0]), window.end
        found = [trade for trade in self.pending.values() if start <= trade.timestamp < end]
        if after is not None:
            found = [trade for trade in found if trade.timestamp > after[0] or trade.order > after]
        if limit is not None and len(found) > limit:
            # Tens of thousands are pending in a flood: sort only those that can be among the result.
            times = sorted(map(_timestamp, found), reverse=newest)
            last = times[limit - 1]
            found = [trade for trade in found if (trade.timestamp >= last if newest else trade.timestamp <= last)]
        found.sort(key=lambda trade: trade.order)
        return found[-limit:] if newest and limit else found[:limit]

    def minutes_in(self, window: Window) -> dict[int, Footprint]:
        """Footprints of the window's minutes that replace the store's, by start."""
        return {start: footprint for start, footprint in self.minutes.items() if start in window}


def _by_minute(trades: Iterable[Trade]) -> dict[int, list[Trade]]:
    minutes: defaultdict[int, list[Trade]] = defaultdict(list)
    for trade in trades:
        at = trade.timestamp
        minutes[at - at % MINUTE].append(trade)
    return minutes


def _subtract(counts: Counter[int], minute: int, by: int = 1) -> None:
    """Count down, and remove what reaches zero."""
    left = counts[minute] - by
    if left > 0:
        counts[minute] = left
    else:
        counts.pop(minute, None)


class Tape:
    """The live tapes of every followed instrument."""

    def __init__(self) -> None:
        self._instruments: dict[Instrument, InstrumentTape] = {}
        self._awaited: set[Instrument] = set()
        self.recorded_elsewhere = False
        """True while another process records into this data directory."""
        self._listings_attempted = anyio.Event()
        self.pending_limit = PENDING_LIMIT
        self._uncounted = 0

    @property
    def awaited(self) -> Collection[Instrument]:
        """Configured instruments, with canonical symbols, whose exchange has not returned its symbol list yet."""
        return self._awaited

    def add_awaited(self, instruments: Iterable[Instrument]) -> None:
        """Note configured instruments whose exchange has not returned its symbol list yet."""
        self._awaited.update(map(canonical_instrument, instruments))

    def remove_awaited(self, instrument: Instrument) -> None:
        """Note that the exchange has returned its symbol list, with this instrument or without."""
        self._awaited.discard(canonical_instrument(instrument))

    def mark_listings_attempted(self) -> None:
        """Wake `wait_for_listings`: the symbol list of every exchange was requested at least once, with or without success."""
        self._listings_attempted.set()

    async def wait_for_listings(self) -> None:
        """Return once the symbol list of every exchange was requested at least once."""
        await self._listings_attempted.wait()

    def follow(self, listing: Listing) -> InstrumentTape:
        """The tape of an instrument, made when it is new; the listing is brought up to date."""
        tape = self._instruments.get(listing.instrument)
        if tape is None:
            tape = self._instruments[listing.instrument] = InstrumentTape(listing)
        tape.listing = listing
        self._awaited.discard(canonical_instrument(listing.instrument))
        return tape

    def limit_pending(self, taken: int) -> None:
        """So many trades were taken: beyond the limit every instrument evicts the same share of its pending trades."""
        self._uncounted += taken
        lot = self.pending_limit // _LOTS
        if self._uncounted <= lot:
            return
        self._uncounted = 0
        pending = sum(len(tape.pending) for tape in self)
        if pending > self.pending_limit:
            for tape in self:
                tape.evict_oldest(len(tape.pending) * (pending - self.pending_limit + lot) // pending)

    def keep_only(self, instruments: Collection[Instrument]) -> list[Instrument]:
        """Forget every instrument but these; returns those forgotten."""
        gone = [instrument for instrument in self._instruments if instrument not in instruments]
        for instrument in gone:
            del self._instruments[instrument]
        return gone

    def forget(self, instrument: Instrument) -> None:
        """The instrument is not followed any more."""
        self._instruments.pop(instrument, None)

    def __getitem__(self, instrument: Instrument) -> InstrumentTape:
        try:
            return self._instruments[instrument]
        except KeyError:
            raise UnknownSymbol(f"{instrument} is not followed any more. Try list_markets()") from None

    def get(self, instrument: Instrument) -> InstrumentTape | None:
        """The tape of an instrument, None where it is not followed."""
        return self._instruments.get(instrument)

    def __iter__(self) -> Iterator[InstrumentTape]:
        return iter(self._instruments.values())

    @property
    def listings(self) -> Iterable[Listing]:
        """Listings of the followed instruments, in the order in which they were first followed."""
        return [tape.listing for tape in self]
