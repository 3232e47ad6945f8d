"""Where another process records: follow the store into the same live tape, so that questions are answered here too.

The store is asked every second for what it gained. Minutes that stand there leave the tape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import anyio

from wadm_mcp.errors import StoreError
from wadm_mcp.health import Health, State
from wadm_mcp.model import DAY, MINUTE, Instrument, Listing, Trade, Window
from wadm_mcp.storage.store import Store
from wadm_mcp.tape import Tape

_EVERY: Final = 1.0
_PAGE: Final = 5_000
_RECENT: Final = 5 * MINUTE
"""Marked minutes this far behind the newest one are late ones, which the recording process is deriving again."""
_OUT_OF_TURN: Final = 5_000
"""Milliseconds of market time by which trades may be stored after newer ones and still be seen at once."""
_FOREVER: Final = 1 << 52
"""A time (ms) beyond any trade's."""


class Follower:
    """Reads what the recording process stores into the tape."""

    def __init__(self, tape: Tape, store: Store, health: Health, clock: Callable[[], int]) -> None:
        self._tape = tape
        self._store = store
        self._health = health
        self._clock = clock
        self._read: dict[Instrument, dict[tuple[int, int, int, str], None]] = {}
        """Orders of the trades read last, newest last: a little is read again each time, since trades may be stored out of turn."""

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self.follow()
            except StoreError as error:
                self._health.report("store", State.DOWN, str(error))
            else:
                self._health.report("store", State.OK)
                for tape in self._tape:
                    self._health.report(str(tape.instrument), State.STANDBY, "another process records it")
            await anyio.sleep(_EVERY)

    async def follow(self) -> None:
        """Bring the tape up to what the store holds now. Instruments that were recorded within a day count as followed."""
        marked: dict[Instrument, list[int]] = {}
        for mark in await self._store.marks():
            marked.setdefault(mark.instrument, []).append(mark.minute)
        now = self._clock()
        for listing in await self._store.listings():
            instrument = listing.instrument
            spans = await self._store.spans(instrument, Window(now - DAY, _FOREVER))
            known_until = max((span.end for span in spans), default=0)
            if instrument in marked or known_until > now - DAY:
                await self._follow(listing, marked.get(instrument, []), known_until)

    async def _follow(self, listing: Listing, marked: list[int], known_until: int) -> None:
        """`known_until` was read before the trades: coverage up to there is what the tape can vouch for once they are in."""
        instrument = listing.instrument
        known = self._tape.get(instrument)
        newest = known.newest if known is not None else None
        if newest is None:
            newest = next(iter(await self._store.trades(instrument, Window(0, _FOREVER), limit=1, newest=True)), None)
        since = min((minute for minute in marked if minute >= max(marked) - _RECENT), default=None)
        fresh = await self._gained(instrument, since) if since is not None else []
        # From here on nothing waits: a question sees the instrument as it was before, or with all of this.
        tape = self._tape.follow(listing)
        tape.newest = tape.newest or newest
        tape.known_until = known_until
        tape.revising = Counter(minute for minute in marked if since is not None and minute < since)
        for minute in [minute for minute in tape.minutes if minute not in marked]:
            del tape.minutes[minute]
        if since is not None:
            tape.settled_until = max(tape.settled_until, since)
        for trade in fresh:
            tape.add(trade)

    async def _gained(self, instrument: Instrument, since: int) -> list[Trade]:
        """Stored trades from a minute on that were not read before, those a little behind the newest included."""
        read = self._read.setdefault(instrument, {})
        newest = next(reversed(read), None)
        start = since if newest is None else max(since, newest[0] - _OUT_OF_TURN)
        gained: list[Trade] = []
        after: tuple[int, int, int, str] | None = None
        while True:
            page = await self._store.trades(instrument, Window(start, _FOREVER), after=after, limit=_PAGE)
            gained += (trade for trade in page if trade.order not in read)
            if len(page) < _PAGE:
                break
            after = page[-1].order
        read.update((trade.order, None) for trade in gained)
        newest = max(read, default=None)
        if newest is not None:
            kept = sorted(order for order in read if order[0] >= newest[0] - _OUT_OF_TURN)
            self._read[instrument] = dict.fromkeys(kept)
        return gained
