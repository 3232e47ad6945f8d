"""Where another process records: follow the store into the same live tape, so that questions are answered here too.

The store is asked every second for what it gained. Minutes that stand there leave the tape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Protocol

import anyio

from wadm_mcp.clock import Clock
from wadm_mcp.errors import StoreError
from wadm_mcp.health import Health, State
from wadm_mcp.model import DAY, MINUTE, Instrument, Listing, Trade, Window
from wadm_mcp.storage.store import PartialFootprint, Store
from wadm_mcp.tape import Tape

_EVERY: Final = 1.0
_PAGE: Final = 5_000
_RECENT: Final = 5 * MINUTE
"""Marked minutes this far behind the newest one are late ones, which the recording process is deriving again."""
_OUT_OF_TURN: Final = 5_000
"""Milliseconds of market time by which trades may be stored after newer ones and still be seen at once."""
_FOREVER: Final = 1 << 52
"""A time (ms) beyond any trade's."""


class Recording(Protocol):
    """What a process that records knows of the others."""

    @property
    def held_elsewhere(self) -> Collection[Instrument]:
        """Instruments that are wanted here and recorded by another process."""
        ...


class Follower:
    """Reads what the recording process stores into the tape."""

    def __init__(self, tape: Tape, store: Store, health: Health, clock: Clock) -> None:
        self._tape = tape
        self._store = store
        self._health = health
        self._clock = clock
        self._read: dict[Instrument, dict[tuple[int, int, int, str], None]] = {}
        """Orders of the trades read last, newest last: a little is read again each time, since trades may be stored out of turn."""
        self._compared: dict[Instrument, dict[int, int]] = {}
        """Writes to each marked minute when the tape was last compared with it."""

    async def run(self, here: Recording | None = None) -> None:
        """Follow until cancelled: everything, or of a process that records itself only what it wants and others hold."""
        while True:
            only = None if here is None else here.held_elsewhere
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
                    self._tape.begun.set()
            await anyio.sleep(_EVERY)

    async def follow(self, only: Collection[Instrument] | None = None) -> None:
        """Bring the tape up to what the store holds now. Instruments that were recorded within a day count as followed.

        A new one can be asked for at once, from the store; what its open minutes hold follows, and until then they are not claimed.
        """
        marked: dict[Instrument, dict[int, int]] = {}
        for mark in await self._store.dirty_minutes():
            marked.setdefault(mark.instrument, {})[mark.minute] = mark.writes
        now = self._clock.now()
        found: list[tuple[Listing, int]] = []
        for listing in await self._store.listings():
            instrument = listing.instrument
            if not listing.listed:
                self._tape.awaited.discard(instrument)
                continue
            if only is not None and instrument not in only:
                self._read.pop(instrument, None)
                self._compared.pop(instrument, None)
                continue
            spans = await self._store.spans(instrument, Window(now - DAY, _FOREVER))
            known_until = max((span.end for span in spans), default=0)
            if instrument in marked or known_until > now - DAY or only is not None:
                if self._tape.get(instrument) is None:
                    self._tape.follow(listing)
                found.append((listing, known_until))
        for listing, known_until in found:
            await self._follow(listing, marked.get(listing.instrument, {}), known_until)

    async def _follow(self, listing: Listing, marked: Mapping[int, int], known_until: int) -> None:
        """`marked` (minutes and the writes to each) and `known_until` were read before the trades.

        Coverage up to `known_until` is what the tape can vouch for once they are in.
        """
        instrument = listing.instrument
        known = self._tape.get(instrument)
        newest = known.newest if known is not None else None
        if newest is None:
            newest = next(iter(await self._store.trades(instrument, Window(0, _FOREVER), limit=1, newest=True)), None)
        since = min((minute for minute in marked if minute >= max(marked) - _RECENT), default=None)
        fresh = await self._gained(instrument, since) if since is not None else []
        changed = await self._changed(instrument, since, marked, fresh)
        # From here on nothing waits: a question sees the instrument as it was before, or with all of this.
        tape = self._tape.follow(listing)
        if tape.coverage is not None:
            return
        tape.newest = tape.newest or newest
        tape.followed_until = known_until
        tape.revising = Counter(minute for minute in marked if since is not None and minute < since)
        for minute in [minute for minute in tape.minutes if minute not in marked]:
            tape.drop_minute(minute)
        if since is not None:
            tape.settled_until = max(tape.settled_until, since)
        tape.add(fresh)
        for minute, (trades, pieces) in changed.items():
            tape.rebuild_minute(minute, trades)
            for piece in pieces:
                tape.merge_partial(minute, piece.footprint)
                tape.trade_counts[minute] += 1
        # They stay for as long as the recorder does not derive them.
        tape.limit_minutes()
        self._health.report(str(instrument), State.STANDBY, "another process records it")

    async def _changed(
        self, instrument: Instrument, since: int | None, marked: Mapping[int, int], fresh: Sequence[Trade]
    ) -> dict[int, tuple[list[Trade], list[PartialFootprint]]]:
        """Recent minutes, whole, of which more is stored than was read: trades came in long after newer ones, or pieces.

        Only a minute that was written to since it was last compared can be one. Its trades may be there before its mark tells.
        """
        tape, compared = self._tape.get(instrument), self._compared.get(instrument, {})
        rows = Counter(trade.timestamp - trade.timestamp % MINUTE for trade in fresh)
        changed: dict[int, tuple[list[Trade], list[PartialFootprint]]] = {}
        for minute, writes in marked.items():
            if since is None or minute < since:
                continue
            if tape is not None and minute in tape.minutes and compared.get(minute) == writes and not rows[minute]:
                continue
            window = Window(minute, minute + MINUTE)
            known = rows[minute] + (tape.trade_counts[minute] if tape is not None else 0)
            if await self._store.count(instrument, window) != known:
                trades = await self._page_through(instrument, window)
                changed[minute] = trades, await self._store.pieces(instrument, window)
        self._compared[instrument] = dict(marked)
        return changed

    async def _page_through(self, instrument: Instrument, window: Window) -> list[Trade]:
        trades: list[Trade] = []
        while True:
            page = await self._store.trades(instrument, window, after=trades[-1].order if trades else None, limit=_PAGE)
            trades += page
            if len(page) < _PAGE:
                return trades

    async def _gained(self, instrument: Instrument, since: int) -> list[Trade]:
        """Stored trades from a minute on that were not read before, those a little behind the newest included."""
        read = self._read.setdefault(instrument, {})
        newest = next(reversed(read), None)
        start = since if newest is None else max(since, newest[0] - _OUT_OF_TURN)
        found = await self._page_through(instrument, Window(start, _FOREVER))
        gained = [trade for trade in found if trade.order not in read]
        read.update((trade.order, None) for trade in gained)
        newest = max(read, default=None)
        if newest is not None:
            kept = sorted(order for order in read if order[0] >= newest[0] - _OUT_OF_TURN)
            self._read[instrument] = dict.fromkeys(kept)
        return gained
