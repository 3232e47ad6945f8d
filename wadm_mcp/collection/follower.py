"""Where another process records: follow the store into the same live tape, so that questions are answered here too.

The store is asked every second for what it gained. Minutes that stand there leave the tape.
"""

from __future__ import annotations

from typing import Final

import anyio

from wadm_mcp.errors import StoreError
from wadm_mcp.health import Health, State
from wadm_mcp.model import MINUTE, Instrument, Listing, Trade, Window
from wadm_mcp.storage.store import Store
from wadm_mcp.tape import Tape

_EVERY: Final = 1.0
_PAGE: Final = 5_000
_RECENT: Final = 5 * MINUTE
"""Marked minutes this far behind the newest one are late ones, which the recording process is deriving again."""
_FOREVER: Final = 1 << 52
"""A time (ms) beyond any trade's."""


class Follower:
    """Reads what the recording process stores into the tape."""

    def __init__(self, tape: Tape, store: Store, health: Health) -> None:
        self._tape = tape
        self._store = store
        self._health = health
        self._read: dict[Instrument, tuple[int, int, int, str]] = {}

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                await self.follow()
            except StoreError as error:
                self._health.report("store", State.DOWN, str(error))
            else:
                self._health.report("store", State.OK)
            await anyio.sleep(_EVERY)

    async def follow(self) -> None:
        """Bring the tape up to what the store holds now."""
        marked: dict[Instrument, list[int]] = {}
        for mark in await self._store.marks():
            marked.setdefault(mark.instrument, []).append(mark.minute)
        for listing in await self._store.listings():
            await self._follow(listing, marked.get(listing.instrument, []))
            self._health.report(str(listing.instrument), State.STANDBY, "another process records it")

    async def _follow(self, listing: Listing, marked: list[int]) -> None:
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
        for minute in [minute for minute in tape.minutes if minute not in marked]:
            del tape.minutes[minute]
        if since is not None:
            tape.settled_until = max(tape.settled_until, since)
        for trade in fresh:
            tape.add(trade)

    async def _gained(self, instrument: Instrument, since: int) -> list[Trade]:
        """Stored trades from a minute on that were not read before."""
        gained: list[Trade] = []
        while True:
            page = await self._store.trades(instrument, Window(since, _FOREVER), after=self._read.get(instrument), limit=_PAGE)
            gained += page
            if page:
                self._read[instrument] = page[-1].order
            if len(page) < _PAGE:
                return gained
