"""Symbol lists of the exchanges: requested with backoff; the stored list is the fallback."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import anyio

from wadm_mcp.backoff import Backoff
from wadm_mcp.clock import Clock
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.errors import ExchangeError, StoreError
from wadm_mcp.exchanges.exchange import Venue
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import Listing
from wadm_mcp.storage.store import Store

_FIRST_PAUSE_SECONDS: Final = 1.0
_MAX_PAUSE_SECONDS: Final = 30.0
_STORE_PAUSE_SECONDS: Final = 1.0
_VALID_SECONDS: Final = 60.0
"""How long the listings of a market are reused for another symbol."""


class Listings:
    """Looks up symbols of any market."""

    def __init__(self, store: Store, rest: RestClient, health: Health, clock: Clock) -> None:
        self._store = store
        self._rest = rest
        self._health = health
        self._clock = clock
        self._known: dict[str, tuple[float, Mapping[str, Listing]]] = {}
        """By name of the venue: when (monotonic seconds) its listings were read, and the listings by symbol."""

    async def look_up(self, venue: Venue, symbols: Sequence[str], failed: Callable[[], None]) -> Mapping[str, Listing]:
        """Every listing of a market, by symbol as in `Venue.by_symbol`. Requested until the exchange answers.

        If a request fails and the store has all `symbols`, the stored listings are returned; otherwise `failed` is called before the next
        attempt.
        """
        part, backoff = f"{venue.name} listings", Backoff(_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS)
        self._health.report(part, State.STARTING, "requesting the exchange's symbol list")
        while True:
            try:
                found = await self._rest.listings(venue)
            except ExchangeError as error:
                pause = backoff.next()
                self._health.report(part, State.DOWN, str(error))
                log.warning("listings.failed", **venue.log_fields, error=error, again_in_s=pause)
                stored = await self._stored(venue)
                if all(symbol in stored for symbol in symbols):
                    self._health.report(part, State.OK, "using the stored symbol list, because the exchange did not answer")
                    return {symbol: listing for symbol, listing in stored.items() if listing.listed}
                failed()
                await anyio.sleep(pause)
            else:
                self._health.forget(part)
                return venue.by_symbol(found)

    async def look_up_again(self, venue: Venue, symbol: str, failed: Callable[[], None]) -> Mapping[str, Listing]:
        """`look_up` for one more symbol; listings of the last minute are reused."""
        read_at, known = self._known.get(venue.name, (-_VALID_SECONDS, {}))
        if not known or self._clock.monotonic() - read_at >= _VALID_SECONDS:
            known = await self.look_up(venue, (symbol,), failed)
            self._known[venue.name] = self._clock.monotonic(), known
        return known

    async def save(self, listings: Sequence[Listing]) -> None:
        """Store listings; retried until it succeeds."""
        while True:
            try:
                return await self._store.save_listings(listings)
            except StoreError:
                await anyio.sleep(_STORE_PAUSE_SECONDS)

    async def _stored(self, venue: Venue) -> dict[str, Listing]:
        try:
            known = await self._store.listings()
        except StoreError:
            return {}
        return venue.by_symbol(listing for listing in known if venue.trades_here(listing.instrument))
