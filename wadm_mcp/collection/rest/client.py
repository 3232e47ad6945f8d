"""HTTP client for the exchanges' REST APIs, with their fallback hosts. All requests to them use it, so that rate limits and timeouts are
handled in one place; its `archives` downloads files."""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self, TypeVar

import anyio
import anyio.to_thread
import httpx2

from wadm_mcp import __version__
from wadm_mcp.clock import SYSTEM_CLOCK, Clock
from wadm_mcp.collection.rest.downloads import Downloads
from wadm_mcp.collection.rest.failures import (
    REFUSAL_BYTES,
    UNUSABLE_PROXY,
    Timeouts,
    certificates_error,
    network_errors,
    proxy_error,
    read_body,
    status_error,
    too_slow,
)
from wadm_mcp.collection.rest.hosts import QUOTED_CHARS, ExchangeHost, Fallback, KnownHosts
from wadm_mcp.collection.rest.rate_limit import REFUSED, Priority, RateLimiter
from wadm_mcp.errors import EndpointMissing, ExchangeError, HostRefused, RequestRefused
from wadm_mcp.exchanges.exchange import Aggregate, Candle, Listed, Page, Request, Venue
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import SECOND, Instrument, Listing, Trade, Window
from wadm_mcp.texts import printable

_LOOPBACK: Final = ("all://127.0.0.1", "all://localhost", "all://[::1]")
"""Hosts that are reached without a proxy: the loopback exchanges of a demo are on this machine."""

_FALLBACK_SECONDS: Final = 3_600.0
"""How long a fallback host is used before the first host is tried again."""
_MISSING_SECONDS: Final = 3_600.0
"""How long a host counts as one without trades by id, after it answered that it has no such path."""

_Read = TypeVar("_Read")


class RestClient:
    """Sends requests to exchanges. Enter it once as a context manager; `SettingError` if the environment names a proxy or a file of
    certificates that cannot be used.

    Timeouts are in seconds: `connect` and `read` limit each wait, `whole` limits a request from first to last byte. `body_limit` is in
    bytes, after decompression; `pages` limits the requests for one list. With `proxied` the environment's proxies are used.

    Where a market's REST host does not serve this address or cannot be reached, its fallback host is used for an hour, if it serves what
    is requested. `health` gets which host is used instead, and what a host lacks. Clients with the same `hosts` share what they know.
    `archives`, set once entered, downloads the files of the exchanges' archives. `heard` gets the time (ms) that each reply is dated with,
    and which exchange's it is.

    Every method waits for its turn within the rate limit. `ExchangeError`, in one line that says why, when the exchange cannot be reached,
    is too slow, refuses, sends a reply that cannot be read, or is sent no request for now. All can be cancelled at any time.
    """

    def __init__(
        self,
        *,
        proxied: bool = True,
        connect: float = 5.0,
        read: float = 20.0,
        whole: float = 60.0,
        body_limit: int = 64 * 1024 * 1024,
        pages: int = 50,
        clock: Clock = SYSTEM_CLOCK,
        health: Health | None = None,
        hosts: KnownHosts | None = None,
        heard: Callable[[str, int], None] | None = None,
    ) -> None:
        self._hosts = hosts or KnownHosts()
        self._proxied = proxied
        self._timeouts = Timeouts(connect, read, whole, proxied)
        self._body_limit = body_limit
        self._pages = pages
        self._clock = clock
        self._health = health
        self._heard = heard
        self.certificates: ssl.SSLContext | None = None
        """What TLS trusts, for sockets too: the certificates of the operating system, or of `SSL_CERT_FILE`. Set once entered."""

    async def __aenter__(self) -> Self:
        try:
            # Reading the certificates takes as long as decoding thousands of frames.
            self._client = await anyio.to_thread.run_sync(self._new_client)
        except UNUSABLE_PROXY:
            raise proxy_error() from None
        except OSError as error:
            raise certificates_error(error) from error
        await self._client.__aenter__()
        self.archives = Downloads(self._client, self._hosts, self._timeouts, self._clock)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self._client.__aexit__(kind, error, traceback)

    def _new_client(self) -> httpx2.AsyncClient:
        self.certificates = httpx2.create_ssl_context()
        return httpx2.AsyncClient(
            verify=self.certificates,
            timeout=httpx2.Timeout(self._timeouts.read, connect=self._timeouts.connect),
            headers={"User-Agent": f"wadm-mcp/{__version__}"},
            mounts=dict.fromkeys(_LOOPBACK),
            trust_env=self._proxied,
        )

    async def listings(self, venue: Venue) -> Listed:
        """Every listing of a market, from all its lists; where an instrument is in several the last one holds.

        Only the list of what trades has to be served, and must not be empty: no exchange trades nothing. Without another one the result is
        not complete.
        """
        found: dict[Instrument, Listing] = {}
        missing, malformed = "", dict[str, str]()
        for state in venue.exchange.listing_states(venue.market):
            try:
                listed = await self._listings_in(venue, state)
            except ExchangeError as error:
                if not state:
                    raise
                log.warning("listings.incomplete", **venue.log_fields, state=state, error=error)
                missing = missing or str(error)
            else:
                found.update((listing.instrument, listing) for listing in listed)
                missing = missing or listed.missing
                malformed.update(listed.malformed)
                if not state and not listed:
                    raise ExchangeError(f"{venue.name} sent an empty list of symbols. Check {self._serving(venue).shown}")
        return Listed(found.values(), missing, malformed)

    async def _listings_in(self, venue: Venue, state: str) -> Listed:
        """The listings of one list of a market, from all pages.

        A page that comes again, under the same cursor or another one, ends the list: those read so far are returned. So does the second
        page in a row without a listing of use. One alone may be full of contracts that are not recorded.
        """
        exchange, market = venue.exchange, venue.market
        listings: dict[Instrument, Listing] = {}
        missing, malformed = "", dict[str, str]()
        cursor, cursors, useless = "", set[str](), 0
        for _ in range(self._pages):
            body = await self.get(venue, exchange.listings_request(market, cursor, state), Priority.LISTINGS)
            # A list of symbols has megabytes: parsing it in the event loop would delay every socket.
            page, following = await anyio.to_thread.run_sync(exchange.read_listings, market, body)
            known = len(listings)
            listings.update((listing.instrument, listing) for listing in page)
            useless = 0 if len(listings) > known else useless + 1
            repeats = useless > (0 if page else 1)
            if page.missing and not missing:
                missing = page.missing
                log.warning("listings.incomplete", **venue.log_fields, state=state, error=missing)
            if page.malformed and not malformed:
                symbol, why = next(iter(page.malformed.items()))
                log.warning("listing.malformed", **venue.log_fields, state=state, symbol=symbol, error=why, symbols=len(page.malformed))
            malformed.update(page.malformed)
            cursors.add(cursor)
            if repeats or following in cursors or not following:
                if following:
                    log.warning("listings.repeated", **venue.log_fields, cursor=printable(following, QUOTED_CHARS), symbols=len(listings))
                return Listed(listings.values(), missing or ("a page of it came again" if following else ""), malformed)
            cursor = following
        raise ExchangeError(f"{venue.name} lists its symbols on more than {self._pages} pages. Check {self._serving(venue).shown}")

    async def trades(self, venue: Venue, listing: Listing, first: int | None = None, priority: int = Priority.REPAIR) -> Page[Trade]:
        """One reply of trades, oldest first: from the seq `first` on where the market `has_gapless_ids`, else (and without it) the newest.

        `EndpointMissing` where the host has no trades by seq; for an hour it is not asked for them again, see `lacks_trades`.
        """
        request = venue.exchange.trades_request(venue.market, listing.instrument.symbol, first)
        if not request.optional:
            return await self._rows(venue, listing, request, priority, venue.exchange.read_trades)
        host = self._serving(venue)
        if self.lacks_trades(venue):
            raise EndpointMissing(f"{venue.name}: {host.address} has no {request.path}")
        try:
            trades = await self._rows(venue, listing, request, priority, venue.exchange.read_trades)
        except (EndpointMissing, RequestRefused) as error:
            # If the host refuses other paths too, it is not this one that it lacks, and that error says what is wrong.
            await self._rows(
                venue,
                listing,
                venue.exchange.aggregates_request(venue.market, listing.instrument.symbol),
                priority,
                venue.exchange.read_aggregates,
            )
            if self._serving(venue) != host:
                return await self.trades(venue, listing, first, priority)
            self._hosts.without_trades[host.base_url] = self._clock.monotonic() + _MISSING_SECONDS
            log.warning("host.lacks_trades", **venue.log_fields, host=host.address, path=request.path, reason=error)
            self._report(venue)
            raise EndpointMissing(str(error)) from None
        if self._hosts.without_trades.pop(self._serving(venue).base_url, None) is not None:
            self._report(venue)
        return trades

    def lacks_trades(self, venue: Venue) -> bool:
        """Whether the market's REST host is known to have no trades by seq. Its aggregates and its newest trades are left."""
        return self._clock.monotonic() < self._hosts.without_trades.get(self._serving(venue).base_url, -math.inf)

    def notes(self, venue: Venue) -> list[str]:
        """What is unusual about the market's REST host now: that it is a fallback, and what it lacks."""
        host, fallback = self._serving(venue), self._hosts.fallbacks.get(venue.rest_url)
        notes = [f"uses {host.address}, because {fallback.why}"] if fallback is not None else []
        if self.lacks_trades(venue):
            notes.append(f"{host.address} has no trades by id: gaps are repaired from aggregates and the newest trades")
        return notes

    async def aggregates(
        self,
        venue: Venue,
        listing: Listing,
        *,
        start: int | None = None,
        first: int | None = None,
        priority: int = Priority.HISTORY,
    ) -> Page[Aggregate]:
        """One reply of aggregates, oldest first: from `start` (ms) on, or from the aggregate id `first` on."""
        request = venue.exchange.aggregates_request(venue.market, listing.instrument.symbol, start=start, first=first)
        return await self._rows(venue, listing, request, priority, venue.exchange.read_aggregates)

    async def candles(self, venue: Venue, listing: Listing, window: Window, priority: int = Priority.HISTORY) -> Page[Candle]:
        """One reply of a window's minutes, oldest first: the first of them, as many as one reply has."""
        request = venue.exchange.candles_request(venue.market, listing.instrument.symbol, window)
        return await self._rows(venue, listing, request, priority, venue.exchange.read_candles)

    async def _rows(
        self,
        venue: Venue,
        listing: Listing,
        request: Request,
        priority: int,
        read: Callable[[Listing, bytes], _Read],
    ) -> _Read:
        body = await self.get(venue, request, priority)
        return await anyio.to_thread.run_sync(read, listing, body)

    async def get(self, venue: Venue, request: Request, priority: int = Priority.REPAIR) -> bytes:
        """The body of a reply with status 200; `ExchangeError` for any other. Every request to an exchange's REST goes through here."""
        host = self._serving(venue)
        try:
            return await self._get(venue, host, request, priority)
        except HostRefused as error:
            if host.base_url != venue.rest_url:
                # The next request tries the first host again.
                self._hosts.fallbacks.pop(venue.rest_url, None)
                self._report(venue)
                raise
            if not venue.rest_fallback:
                raise
            refused = error
        try:
            body = await self._get(venue, ExchangeHost.rest(venue, venue.rest_fallback), request, priority)
        except EndpointMissing:
            # It serves this address, and lacks this path alone.
            self._fall_back(venue, host, refused)
            raise
        except ExchangeError:
            raise refused from None
        self._fall_back(venue, host, refused)
        return body

    async def _get(self, venue: Venue, host: ExchangeHost, request: Request, priority: int) -> bytes:
        limiter = self._limiter(venue, host)
        async with limiter.request(request.weight, priority) as number:

            def note(status: int, headers: Mapping[str, str], body: bytes) -> None:
                if self._heard is not None and not body and (date := _sent_at(headers)) is not None:
                    self._heard(f"{venue.exchange.name} REST", date)
                # The refusal of a path that the host may lack does not shut the others.
                if not (request.optional and status in REFUSED):
                    limiter.note_reply(number, status, headers, body)

            return await self._ask(host, request, note)

    def _serving(self, venue: Venue) -> ExchangeHost:
        """The REST host that the next request of a market goes to."""
        fallback = self._hosts.fallbacks.get(venue.rest_url)
        if fallback is not None and self._clock.monotonic() >= fallback.until:
            del self._hosts.fallbacks[venue.rest_url]
            fallback = None
            self._report(venue)
        return ExchangeHost.rest(venue, venue.rest_url if fallback is None else venue.rest_fallback)

    def _fall_back(self, venue: Venue, refused: ExchangeHost, error: HostRefused) -> None:
        """Use the fallback host for a while, because it serves what the other one refused."""
        if venue.rest_url in self._hosts.fallbacks:
            return
        self._hosts.fallbacks[venue.rest_url] = Fallback(self._clock.monotonic() + _FALLBACK_SECONDS, str(error))
        log.warning("host.fallback", **venue.log_fields, host=refused.address, fallback=venue.rest_fallback, reason=error)
        self._report(venue)

    def _report(self, venue: Venue) -> None:
        if self._health is None:
            return
        part, notes = f"{venue.name} REST", self.notes(venue)
        if notes:
            self._health.report(part, State.OK, "; ".join(notes))
        else:
            self._health.forget(part)

    def limiter(self, venue: Venue) -> RateLimiter:
        """The rate limit of the REST host that serves a market now; `ExchangeError` if its base URL is not a URL."""
        return self._limiter(venue, self._serving(venue))

    def closed_for(self, venue: Venue) -> float:
        """Seconds until a request may be sent to one of the market's REST hosts; 0 now."""
        hosts = [ExchangeHost.rest(venue, url) for url in (venue.rest_url, venue.rest_fallback) if url]
        try:
            return min(self._limiter(venue, host).state.closed_for for host in hosts)
        except ExchangeError:
            return 0.0

    def _limiter(self, venue: Venue, host: ExchangeHost) -> RateLimiter:
        address = host.address
        if address not in self._hosts.limiters:
            name, allowance = f"{venue.exchange.name} at {address}", venue.exchange.allowance(venue.market)
            self._hosts.limiters[address] = RateLimiter(name, allowance, way_on=host.way_on, clock=self._clock)
        return self._hosts.limiters[address]

    async def _ask(self, host: ExchangeHost, request: Request, note: Callable[[int, Mapping[str, str], bytes], None]) -> bytes:
        """Sends the request; `note` is called with the reply's status and headers, and for a refusal again with its body."""
        try:
            with anyio.fail_after(self._timeouts.whole), network_errors(host, self._timeouts):
                async with self._client.stream("GET", host.url(request.path), params=dict(request.params)) as response:
                    note(response.status_code, response.headers, b"")
                    if response.status_code != HTTPStatus.OK:
                        text = await read_body(host, response, most=REFUSAL_BYTES, cut=True)
                        note(response.status_code, response.headers, text)
                        raise status_error(host, request, response, text)
                    return await read_body(host, response, most=self._body_limit)
        except TimeoutError:
            raise too_slow(host, self._timeouts) from None


def _sent_at(headers: Mapping[str, str]) -> int | None:
    """When a reply was made (ms, to the second), None where it does not say so or comes from a cache."""
    try:
        sent = parsedate_to_datetime(headers.get("Date", ""))
        return None if "Age" in headers else int(sent.replace(tzinfo=sent.tzinfo or UTC).timestamp()) * SECOND
    except (ValueError, OverflowError):
        return None
