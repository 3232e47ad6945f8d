"""Symbol lists of the exchanges: requested with backoff; the stored list is the fallback."""

from __future__ import annotations

from collections import defaultdict
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
_HOST_PAUSE_SECONDS: Final = 60.0
"""Shortest time between two lists that are read again from one host."""


class Listings:
    """Looks up symbols of any market."""

    def __init__(self, store: Store, rest: RestClient, health: Health, clock: Clock) -> None:
        self._store = store
        self._rest = rest
        self._health = health
        self._clock = clock
        self._known: dict[str, tuple[float, Mapping[str, Listing]]] = {}
        """By name of the venue: when (monotonic seconds) its listings were read, and the listings by symbol."""
        self._turns: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        """By REST host: whose turn it is to read a list again."""
        self._asked_at: dict[str, float] = {}
        """By REST host: when (monotonic seconds) a list was last read again, with or without success."""

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
                stored = await self.stored(venue)
                if all(symbol in stored for symbol in symbols):
                    self._health.report(part, State.OK, "using the stored symbol list, because the exchange did not answer")
                    return {symbol: listing for symbol, listing in stored.items() if listing.listed}
                failed()
                await anyio.sleep(pause)
            else:
                self._health.forget(part)
                return self._remember(venue, found)

    async def look_up_again(self, venue: Venue, symbol: str, failed: Callable[[], None]) -> Mapping[str, Listing]:
        """`look_up` for one more symbol; listings of the last minute are reused."""
        read_at, known = self._known.get(venue.name, (-_VALID_SECONDS, {}))
        if not known or self._clock.monotonic() - read_at >= _VALID_SECONDS:
            known = await self.look_up(venue, (symbol,), failed)
        return known

    async def read_again(self, venue: Venue, begins: Callable[[], None]) -> Mapping[str, Listing]:
        """Every listing of a market, by symbol. Waits until its host was left alone for a minute, and calls `begins` before the request.

        `ExchangeError` when the exchange does not answer, or names no symbol at all: that is no list to believe.
        """
        async with self._turns[venue.rest_url]:
            asked_at = self._asked_at.get(venue.rest_url)
            if asked_at is not None:
                await anyio.sleep(max(0.0, asked_at + _HOST_PAUSE_SECONDS - self._clock.monotonic()))
            self._asked_at[venue.rest_url] = self._clock.monotonic()
            begins()
            found = await self._rest.listings(venue)
        if not found:
            raise ExchangeError(f"{venue.name} sent an empty list of symbols")
        return self._remember(venue, found)

    def read_at(self, venue: Venue) -> float | None:
        """When (monotonic seconds) the exchange last served the listings of a market; None while it never did."""
        return self._known[venue.name][0] if venue.name in self._known else None

    def _remember(self, venue: Venue, found: Sequence[Listing]) -> Mapping[str, Listing]:
        listed = venue.by_symbol(found)
        self._known[venue.name] = self._clock.monotonic(), listed
        return listed

    async def save(self, listings: Sequence[Listing]) -> None:
        """Store listings; retried until it succeeds."""
        while True:
            try:
                return await self._store.save_listings(listings)
            except StoreError:
                await anyio.sleep(_STORE_PAUSE_SECONDS)

    async def stored(self, venue: Venue) -> dict[str, Listing]:
        """What the store has of the listings of a market, by symbol; nothing while the store does not answer."""
        try:
            known = await self._store.listings()
        except StoreError:
            return {}
        return venue.by_symbol(listing for listing in known if venue.trades_here(listing.instrument))
