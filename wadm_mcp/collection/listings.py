"""Symbol lists of the exchanges: requested with backoff. Until an exchange answers, stored and provisional listings take their place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple

import anyio
from anyio.abc import TaskGroup

from wadm_mcp.backoff import Backoff
from wadm_mcp.clock import Clock
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.errors import ExchangeError, StoreError
from wadm_mcp.exchanges.exchange import Listed, Venue
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import Instrument, Listing
from wadm_mcp.storage.store import Store

_FIRST_PAUSE_SECONDS: Final = 1.0
_MAX_PAUSE_SECONDS: Final = 30.0
_STORE_PAUSE_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 2.0
"""How long a look-up waits for the exchange's first answer. Sockets must record within ten seconds of a start."""
_STORED_SECONDS: Final = 1.0
"""How long a look-up then waits for the stored listings."""
_VALID_SECONDS: Final = 60.0
"""How long the listings of a market are reused for another symbol."""
_HOST_PAUSE_SECONDS: Final = 60.0
"""Shortest time between two lists that are read again from one host."""


class LookUp(NamedTuple):
    """The result of a look-up: listings by symbol as in `Venue.by_symbol`, and whether they come from the exchange.

    What is absent from a list that is not `complete` may be listed all the same, and so may the `malformed` symbols.
    """

    listed: Mapping[str, Listing]
    confirmed: bool
    complete: bool = True
    malformed: Collection[str] = ()

    def lacks(self, symbol: str) -> bool:
        """Whether the list shows that its exchange does not list a symbol."""
        return self.complete and symbol not in self.listed and symbol not in self.malformed


Correct = Callable[[LookUp], Awaitable[None]]
"""Called with what the exchange, or before it the store, returned after all."""


class _Request:
    """A market's symbol list that is being requested."""

    def __init__(self) -> None:
        self.attempted = anyio.Event()
        """Set once the exchange has answered or a request has failed."""
        self.answer: LookUp | None = None
        self.correct: Correct | None = None
        """Awaits the answer, after the look-up returned other listings."""
        self.error = "the exchange has not answered yet"
        self.state, self.instead = State.DOWN, ""
        """What the health part reports while there is no answer: its state, and which listings are used instead."""


class Listings:
    """Looks up symbols of any market. Of each market one request is under way at most."""

    def __init__(self, store: Store, rest: RestClient, health: Health, clock: Clock) -> None:
        self._store = store
        self._rest = rest
        self._health = health
        self._clock = clock
        self._requests: dict[str, _Request] = {}
        """Requests without an answer so far, by name of the venue."""
        self._known: dict[str, tuple[float, LookUp]] = {}
        """By name of the venue: when (monotonic seconds) its listings were read, and what they were."""
        self._turns: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        """By REST host: whose turn it is to read a list again."""
        self._saving = anyio.Lock()
        """Whose turn it is to store listings."""
        self._asked_at: dict[str, float] = {}
        """By REST host: when (monotonic seconds) a list was last read again, with or without success."""

    async def look_up(self, venue: Venue, symbols: Sequence[str], tasks: TaskGroup, correct: Correct) -> LookUp:
        """Every listing of a market if the exchange answers at once; else the stored ones, and provisional ones for the other `symbols`.

        In the second case the exchange is asked again in `tasks` until it answers, and `correct` is called with its answer. So it is with
        the stored listings if the store did not answer at once either.
        """
        request = self._requests.get(venue.name)
        if request is None:
            request = self._requests[venue.name] = _Request()
            tasks.start_soon(self._request, venue, request)
        with anyio.move_on_after(_ANSWER_SECONDS):
            await request.attempted.wait()
        if request.answer is not None:
            return request.answer
        stored: dict[str, Listing] | None = None
        with anyio.move_on_after(_STORED_SECONDS):
            stored = await self._stored(venue)
        instead = _instead(venue, symbols, stored or {})
        # The answer may have come meanwhile. No await after this, or `correct` would be called too early or never.
        if request.answer is not None:
            return request.answer
        request.correct = correct
        if stored is None:
            tasks.start_soon(self._correct_from_store, venue, symbols, request)
        self._note_instead(venue, symbols, instead, request)
        return LookUp(instead, False)

    def _note_instead(self, venue: Venue, symbols: Sequence[str], instead: Mapping[str, Listing], request: _Request) -> None:
        """Report which listings take the place of the exchange's answer."""
        provisional = [symbol for symbol in symbols if symbol in instead and instead[symbol].provisional]
        if provisional:
            request.state = State.DOWN
            request.instead = f"{', '.join(provisional)}: recorded with a provisional listing, the tick is unknown"
        elif not request.instead:
            request.state, request.instead = State.OK, "using the stored symbol list"
        self._report(venue, request)

    async def look_up_again(self, venue: Venue, symbol: str, tasks: TaskGroup, correct: Correct) -> LookUp:
        """`look_up` for one more symbol; listings of the last minute are reused."""
        read_at, known = self._known.get(venue.name, (-_VALID_SECONDS, LookUp({}, True)))
        if known.listed and self._clock.monotonic() - read_at < _VALID_SECONDS:
            return known
        return await self.look_up(venue, (symbol,), tasks, correct)

    async def save(self, listings: Sequence[Listing]) -> None:
        """Store listings, after those of earlier calls; retried until it succeeds.

        A provisional one replaces none that is stored, and the placeholder of one that is not listed replaces none that was confirmed: its
        steps belong to recorded data.
        """
        async with self._saving:
            while True:
                try:
                    known = dict[Instrument, Listing]()
                    if any(listing.provisional or not listing.listed for listing in listings):
                        known = {listing.instrument: listing for listing in await self._store.listings()}
                    return await self._store.save_listings([one for one in listings if not _is_superseded(one, known.get(one.instrument))])
                except StoreError:
                    await anyio.sleep(_STORE_PAUSE_SECONDS)

    async def _request(self, venue: Venue, request: _Request) -> None:
        """Request a market's symbol list until the exchange answers."""
        backoff = Backoff(_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS)
        self._health.report(_part(venue), State.STARTING, "requesting the exchange's symbol list")
        while True:
            try:
                found = await self._rest.listings(venue)
            except ExchangeError as error:
                request.error = str(error)
                request.attempted.set()
                # A host that refused is left alone for as long as its rate limit says.
                pause = max(backoff.next(), self._rest.closed_for(venue))
                self._report(venue, request)
                log.warning("listings.failed", **venue.log_fields, error=error, again_in_s=round(pause, 1))
                await anyio.sleep(pause)
            else:
                del self._requests[venue.name]
                request.answer = self._remember(venue, found)
                request.attempted.set()
                self._health.forget(_part(venue))
                if request.correct is not None:
                    await request.correct(request.answer)
                return

    async def read_again(self, venue: Venue, begins: Callable[[], None]) -> LookUp:
        """Every listing of a market. Waits until its host was left alone for a minute, and calls `begins` before the request.

        `ExchangeError` when the exchange does not answer.
        """
        async with self._turns[venue.rest_url]:
            asked_at = self._asked_at.get(venue.rest_url)
            if asked_at is not None:
                await anyio.sleep(max(0.0, asked_at + _HOST_PAUSE_SECONDS - self._clock.monotonic()))
            self._asked_at[venue.rest_url] = self._clock.monotonic()
            begins()
            found = await self._rest.listings(venue)
        return self._remember(venue, found)

    def read_at(self, venue: Venue) -> float | None:
        """When (monotonic seconds) the exchange last served the listings of a market; None while it never did."""
        return self._known[venue.name][0] if venue.name in self._known else None

    def _remember(self, venue: Venue, found: Listed) -> LookUp:
        known = LookUp(venue.by_symbol(found), True, not found.missing, found.malformed)
        self._known[venue.name] = self._clock.monotonic(), known
        return known

    def _report(self, venue: Venue, request: _Request) -> None:
        detail = f"{request.instead}, because the exchange did not answer: {request.error}" if request.instead else request.error
        self._health.report(_part(venue), request.state, detail)

    async def _correct_from_store(self, venue: Venue, symbols: Sequence[str], request: _Request) -> None:
        """Correct provisional listings by stored ones as soon as the store answers, if it does before the exchange."""
        stored: dict[str, Listing] | None = None
        while stored is None:
            await anyio.sleep(_STORE_PAUSE_SECONDS)
            stored = await self._stored(venue)
        instead = _instead(venue, symbols, stored)
        if request.answer is None and request.correct is not None and any(not listing.provisional for listing in instead.values()):
            request.instead = ""
            self._note_instead(venue, symbols, instead, request)
            await request.correct(LookUp(instead, False))

    async def stored(self, venue: Venue) -> dict[str, Listing]:
        """What the store has of the listings of a market, by symbol; nothing while the store does not answer."""
        return await self._stored(venue) or {}

    async def _stored(self, venue: Venue) -> dict[str, Listing] | None:
        """The stored listings of a market by symbol, unlisted ones too; None while the store does not answer."""
        try:
            return venue.by_symbol(one for one in await self._store.listings() if venue.trades_here(one.instrument))
        except StoreError:
            return None


def _is_superseded(listing: Listing, stored: Listing | None) -> bool:
    """Whether the stored listing says more than this one, which the exchange has not confirmed or does not have."""
    if stored is None or (listing.listed and not listing.provisional):
        return False
    return listing.provisional or (stored.listed and not stored.provisional)


def _instead(venue: Venue, symbols: Sequence[str], stored: Mapping[str, Listing]) -> dict[str, Listing]:
    """The stored listings of a market, and provisional ones of the `symbols` that are not among them."""
    provisional = {symbol: Listing.unconfirmed(venue.instrument(symbol)) for symbol in symbols if symbol not in stored}
    return {symbol: listing for symbol, listing in stored.items() if listing.listed} | provisional


def _part(venue: Venue) -> str:
    return f"{venue.name} listings"
