"""Reads the symbol lists of the exchanges again while they are recorded: hourly, and soon after a listing does not fit what is delivered.

Symbols are halted, delisted and listed, and their steps change, without a word on any socket.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from wadm_mcp.backoff import Backoff
from wadm_mcp.clock import Clock
from wadm_mcp.collection.listings import Listings, LookUp
from wadm_mcp.collection.market import MarketRecording
from wadm_mcp.collection.recording.doubts import DoubtedListings
from wadm_mcp.errors import ExchangeError
from wadm_mcp.exchanges.exchange import Venue
from wadm_mcp.health import Health
from wadm_mcp.logs import log

_INTERVAL_SECONDS: Final = 3_600.0
_HALTED_INTERVAL_SECONDS: Final = 600.0
"""The interval while an instrument does not trade: one whose subscription was refused shows in the list alone that it trades again."""
_FIRST_PAUSE_SECONDS: Final = 60.0
_MAX_PAUSE_SECONDS: Final = 1_800.0
"""Bounds of the pause after a request that failed."""

Apply = Callable[[MarketRecording, LookUp], Awaitable[None]]
"""Called with the list of a market."""


class ListingRefresher:
    """Reads the lists of one market after another's need, each at most once a minute per host (`Listings.read_again`)."""

    def __init__(self, listings: Listings, doubted: DoubtedListings, health: Health, clock: Clock, apply: Apply) -> None:
        self._listings = listings
        self._doubted = doubted
        self._health = health
        self._clock = clock
        self._apply = apply

    async def run(self, market: MarketRecording) -> None:
        """Read the list of a market again whenever it is due, until cancelled."""
        while True:
            with anyio.move_on_after(self._due_in(market)):
                await self._doubted.wait(market.venue.trades_here)
            await self._apply(market, await self._read(market.venue))

    async def _read(self, venue: Venue) -> LookUp:
        """Every listing of a market. Requested until the exchange answers, after a failure with a pause that a doubt ends."""
        backoff = Backoff(_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS)
        while True:
            try:
                return await self._listings.read_again(venue, lambda: self._doubted.remove(venue.trades_here))
            except ExchangeError as error:
                pause = backoff.next()
                self._health.count("listings.failures")
                log.warning("listings.failed", **venue.log_fields, error=error, again_in_s=pause)
                with anyio.move_on_after(pause):
                    await self._doubted.wait(venue.trades_here)

    def _due_in(self, market: MarketRecording) -> float:
        """Seconds until the list is old enough; a list that was never read is due at once."""
        read_at = self._listings.read_at(market.venue)
        interval = _INTERVAL_SECONDS if all(listing.trading for listing in market.listings) else _HALTED_INTERVAL_SECONDS
        return 0.0 if read_at is None else max(0.0, read_at + interval - self._clock.monotonic())
