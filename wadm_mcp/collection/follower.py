"""Where another process records: copies new data from the store into this process's tape, so that it can answer queries too.

The store is polled every second. Minutes whose figures are stored leave the tape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Protocol, TypeAlias

import anyio

from wadm_mcp.clock import Clock
from wadm_mcp.clock_check import TOLERANCE
from wadm_mcp.collection.recording.minute import without_repeats
from wadm_mcp.errors import StoreError
from wadm_mcp.health import Health, State
from wadm_mcp.model import DAY, MINUTE, Instrument, Listing, Trade, Window
from wadm_mcp.storage.store import PartialFootprint, Store, all_trades
from wadm_mcp.tape import Tape, TapeState

_POLL_SECONDS: Final = 1.0
_RECENT_MS: Final = 5 * MINUTE
"""Dirty minutes older than this, counted from the newest one, got late trades, and the recording process derives them again."""
_OUT_OF_ORDER_MS: Final = 5_000
"""Market time by which trades may be stored after newer ones and still be seen at once."""
_FOREVER: Final = 1 << 52
"""A time (ms) after any trade's."""

_Order: TypeAlias = tuple[int, int, int, str]
"""`Trade.order`."""


class OtherRecorders(Protocol):
    """What a recording process knows of the instruments that other processes record."""

    @property
    def recorded_elsewhere(self) -> Collection[Instrument]:
        """Instruments that are wanted here and recorded by another process."""
        ...


class Follower:
    """Reads what the recording process stores into the tape.

    `heard` gets the exchange and the time (ms) of new trades. A trade is stored late and never early, so one that is older than now proves
    nothing of the clock, and is not heard.
    """

    def __init__(self, tape: Tape, store: Store, health: Health, clock: Clock, heard: Callable[[str, int], None] | None = None) -> None:
        self._tape = tape
        self._store = store
        self._health = health
        self._clock = clock
        self._heard = heard
        self._read: dict[Instrument, dict[_Order, None]] = {}
        """Orders of the trades read last, newest last: the last seconds are read again, since trades may be stored out of order."""
        self._compared: dict[Instrument, dict[int, int]] = {}
        """Writes to each dirty minute when the tape was last compared with it."""

    async def run(self, others: OtherRecorders | None = None) -> None:
        """Follow until cancelled: everything, or in a process that records itself only what it wants and others record."""
        while True:
            only = None if others is None else others.recorded_elsewhere
            try:
                if only is None or only:
                    await self.follow(only)
            except StoreError as error:
                self._health.count("follower.failures")
                if only is None:
                    self._health.report("store", State.DOWN, str(error))
            else:
                if only is None:
                    self._health.report("store", State.OK)
                    self._tape.mark_listings_attempted()
            await anyio.sleep(_POLL_SECONDS)

    async def follow(self, only: Collection[Instrument] | None = None) -> None:
        """Copy what the store has gained into the tape. Instruments that were recorded within the last day are included.

        A new instrument can be queried from the store at once. Its open minutes are read next, and are not covered until then.
        """
        dirty: dict[Instrument, dict[int, int]] = {}
        for mark in await self._store.dirty_minutes():
            dirty.setdefault(mark.instrument, {})[mark.minute] = mark.writes
        now = self._clock.now()
        found: list[tuple[Listing, int]] = []
        for listing in await self._store.listings():
            instrument = listing.instrument
            if not listing.listed:
                self._tape.remove_awaited(instrument)
                continue
            if only is not None and instrument not in only:
                self._read.pop(instrument, None)
                self._compared.pop(instrument, None)
                continue
            spans = await self._store.spans(instrument, Window(now - DAY, _FOREVER))
            covered_until = max((span.end for span in spans), default=0)
            if instrument in dirty or covered_until > now - DAY or only is not None:
                if self._tape.get(instrument) is None:
                    self._tape.follow(listing)
                found.append((listing, covered_until))
        for listing, covered_until in found:
            await self._follow(listing, dirty.get(listing.instrument, {}), covered_until)

    async def _follow(self, listing: Listing, dirty: Mapping[int, int], covered_until: int) -> None:
        """Read new trades and minutes of one instrument.

        `dirty` (minutes and the writes to each) and `covered_until` must have been read earlier. Afterwards stored coverage counts up to
        `covered_until`.
        """
        instrument = listing.instrument
        known = self._tape.get(instrument)
        newest = known.newest if known is not None else None
        if newest is None:
            newest = next(iter(await self._store.trades(instrument, Window(0, _FOREVER), limit=1, newest=True)), None)
        since = min((minute for minute in dirty if minute >= max(dirty) - _RECENT_MS), default=None)
        fresh = await self._gained(instrument, since) if since is not None else []
        if self._heard is not None and fresh and fresh[-1].timestamp >= self._clock.now() - TOLERANCE:
            self._heard(instrument.exchange, fresh[-1].timestamp)
        changed = await self._changed(instrument, since, dirty, fresh)
        # No await from here on: a question sees the instrument as it was before, or with all of this.
        tape = self._tape.follow(listing)
        if tape.state is TapeState.RECORDING:
            return
        tape.follow_store(newest, covered_until)
        tape.follow_minutes(dirty, since)
        tape.add(fresh)
        for minute, (trades, partials) in changed.items():
            tape.rebuild_minute(minute, trades, [partial.footprint for partial in partials], count_partials=True)
        # They stay until the recording process derives them.
        tape.limit_minutes()
        self._health.report(str(instrument), State.STANDBY, "another process records it")

    async def _changed(
        self, instrument: Instrument, since: int | None, dirty: Mapping[int, int], fresh: Sequence[Trade]
    ) -> dict[int, tuple[Sequence[Trade], Sequence[PartialFootprint]]]:
        """Recent minutes to read again completely, because trades or partial footprints were stored in them late.

        Only minutes that were written to since the last comparison are checked. Trades may be stored before `dirty` shows the write.
        """
        tape, compared = self._tape.get(instrument), self._compared.get(instrument, {})
        counts = Counter(trade.timestamp - trade.timestamp % MINUTE for trade in fresh)
        changed: dict[int, tuple[Sequence[Trade], Sequence[PartialFootprint]]] = {}
        for minute, writes in dirty.items():
            if since is None or minute < since:
                continue
            if tape is not None and minute in tape.minutes and compared.get(minute) == writes and not counts[minute]:
                continue
            window = Window(minute, minute + MINUTE)
            known = counts[minute] + (tape.trade_counts[minute] if tape is not None else 0)
            if await self._store.count(instrument, window) != known:
                trades = await all_trades(self._store, instrument, window)
                changed[minute] = without_repeats(trades, await self._store.pieces(instrument, window))
        self._compared[instrument] = dict(dirty)
        return changed

    async def _gained(self, instrument: Instrument, since: int) -> list[Trade]:
        """Stored trades from a minute on that were not read before, including trades slightly older than the newest one."""
        read = self._read.setdefault(instrument, {})
        newest = next(reversed(read), None)
        start = since if newest is None else max(since, newest[0] - _OUT_OF_ORDER_MS)
        found = await all_trades(self._store, instrument, Window(start, _FOREVER))
        gained = [trade for trade in found if trade.order not in read]
        read.update((trade.order, None) for trade in gained)
        newest = max(read, default=None)
        if newest is not None:
            kept = sorted(order for order in read if order[0] >= newest[0] - _OUT_OF_ORDER_MS)
            self._read[instrument] = dict.fromkeys(kept)
        return gained
