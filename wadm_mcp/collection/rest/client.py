"""HTTP client for the exchanges' REST APIs and archives. All requests use it, so rate limits and timeouts are handled in one place."""

from __future__ import annotations

import math
import os
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self, TypeVar
from urllib.request import getproxies

import anyio
import anyio.to_thread
import httpx2

from wadm_mcp import __version__
from wadm_mcp.clock import SYSTEM_CLOCK, Clock
from wadm_mcp.collection.disk_reserve import DiskReserve
from wadm_mcp.collection.rest.rate_limit import REFUSED, Priority, RateLimiter, advice
from wadm_mcp.errors import ArchiveError, EndpointMissing, ExchangeError, HostRefused, RequestRefused, SettingError
from wadm_mcp.exchanges.exchange import Aggregate, Allowance, Candle, Host, Listed, Page, Request, Venue
from wadm_mcp.exchanges.wire import plain_text
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import SECOND, Instrument, Listing, Trade, Window
from wadm_mcp.texts import one_line, printable, quoted, redacted_url

_LOOPBACK: Final = ("all://127.0.0.1", "all://localhost", "all://[::1]")
"""Hosts that are reached without a proxy: the loopback exchanges of a demo are on this machine."""

_ARCHIVE: Final = Allowance(120, 60.0)
"""No exchange documents a rate limit of its archive, which serves plain files. This one is a courtesy."""
_BASE_URL_EXPECTED: Final = "set a base URL without a path, such as https://host:port"
_SERVED: Final = (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.NOT_FOUND, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
_LIMITED: Final = (HTTPStatus.IM_A_TEAPOT, HTTPStatus.TOO_MANY_REQUESTS)
MAX_ARCHIVE_BYTES: Final = 1 << 30
"""Bytes of a daily file. The largest have less than half as many."""
_CHUNK_BYTES: Final = 1 << 17
_CHUNK_SECONDS: Final = 60.0
"""Time in which an archive has to send that many bytes."""
_DOWNLOAD_SECONDS: Final = 3_600.0
"""Time of one attempt at a file. The next attempt continues where it ended."""
_CHECKED_BYTES: Final = 1 << 23
"""Bytes of a file after which the disk is looked at again."""
_SIZE_DIGITS: Final = 18
"""Digits of the largest file at most."""
_QUOTED_CHARS: Final = 160
"""Characters of an exchange's own text that an error repeats."""
_REFUSAL_BYTES: Final = 16 * 1024
"""Bytes of a refusal that are read. In a page of HTML the text that is quoted comes late."""
_FALLBACK_SECONDS: Final = 3_600.0
"""How long a fallback host is used before the first host is tried again."""
_MISSING_SECONDS: Final = 3_600.0
"""How long a host counts as one without trades by id, after it answered that it has no such path."""

_PROXY_SCHEMES: Final = ("all", "https", "http")
_PROXY_EXPECTED: Final = "not a usable proxy URL; expected http://host:port"
_UNUSABLE_PROXY: Final = (ImportError, ValueError, httpx2.InvalidURL)
"""What httpx raises for a proxy URL with a scheme that is unknown or needs another package, or with an invalid port."""

_Read = TypeVar("_Read")


class _Host(NamedTuple):
    """A host that is requested: its name in errors (`binance spot`), its base URL, and the exchange's own host, None without one."""

    name: str
    base_url: str
    known: Host | None

    @classmethod
    def rest(cls, venue: Venue, base_url: str) -> _Host:
        """A REST host of a market."""
        return cls(venue.name, base_url, venue.hosts.rest)

    @classmethod
    def archive(cls, venue: Venue) -> _Host:
        """The host of an exchange's daily files."""
        return cls(f"{venue.exchange.name} archive", venue.archive_url, venue.hosts.archive)

    @property
    def setting(self) -> str:
        """The setting of the base URL."""
        return self.known.setting if self.known is not None else ""

    @property
    def address(self) -> str:
        """Scheme, host and port. A base URL may contain a password; errors and rate limits show the address only."""
        url = self.url()
        return f"{url.scheme}://{url.netloc.decode('ascii')}"

    @property
    def shown(self) -> str:
        """The setting and its value, without a password."""
        return f"{self.setting}={printable(redacted_url(self.base_url), _QUOTED_CHARS)}"

    @property
    def advice(self) -> str:
        """What to do if the host cannot be reached."""
        text = f"Check the network, the proxy and {self.setting}"
        other = self.known.market_data if self.known is not None else ""
        return f"{text}; {other} has market data too" if other not in ("", self.base_url) else text

    @property
    def way_on(self) -> str:
        """What to do if the host does not serve this address."""
        return self.known.way_on(self.base_url) if self.known is not None else ""

    def url(self, path: str = "") -> httpx2.URL:
        """The URL of a path; `ExchangeError` if the base URL is not a URL."""
        try:
            return httpx2.URL(self.base_url.rstrip("/") + path)
        except httpx2.InvalidURL:
            raise ExchangeError(f"{self.name}: {self.shown} is not a URL; {_BASE_URL_EXPECTED}") from None


class _Fallback(NamedTuple):
    """A fallback host in use: until when (monotonic seconds), and why the first host is not used."""

    until: float
    why: str


class KnownHosts:
    """What a process knows of the REST hosts. Its clients share it: a ban or a fallback that one has met holds for all."""

    def __init__(self) -> None:
        self.limiters: dict[str, RateLimiter] = {}
        """The rate limit of each host, by its base URL without credentials."""
        self.fallbacks: dict[str, _Fallback] = {}
        """The fallback hosts in use, by the base URL of the host that does not serve."""
        self.without_trades: dict[str, float] = {}
        """Until when (monotonic seconds) a host counts as one without trades by id, by its base URL."""


class RestClient:
    """Sends requests to exchanges. Enter it once as a context manager; `SettingError` if the environment names a proxy or a file of
    certificates that cannot be used.

    Timeouts are in seconds: `connect` and `read` limit each wait, `whole` limits a request from first to last byte. `body_limit` is in
    bytes, after decompression; `pages` limits the requests for one list. With `proxied` the environment's proxies are used.

    Where a market's REST host does not serve this address or cannot be reached, its fallback host is used for an hour, if it serves what
    is requested. `health` gets which host is used instead, and what a host lacks. Clients with the same `hosts` share what they know.
    `heard` gets the time (ms) that each reply is dated with, and which exchange's it is.

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
        self._connect = connect
        self._read = read
        self._whole = whole
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
        except _UNUSABLE_PROXY:
            raise _proxy_error() from None
        except OSError as error:
            raise _certificates_error(error) from error
        await self._client.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self._client.__aexit__(kind, error, traceback)

    def _new_client(self) -> httpx2.AsyncClient:
        self.certificates = httpx2.create_ssl_context()
        return httpx2.AsyncClient(
            verify=self.certificates,
            timeout=httpx2.Timeout(self._read, connect=self._connect),
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
                    log.warning("listings.repeated", **venue.log_fields, cursor=printable(following, _QUOTED_CHARS), symbols=len(listings))
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
            body = await self._get(venue, _Host.rest(venue, venue.rest_fallback), request, priority)
        except EndpointMissing:
            # It serves this address, and lacks this path alone.
            self._fall_back(venue, host, refused)
            raise
        except ExchangeError:
            raise refused from None
        self._fall_back(venue, host, refused)
        return body

    async def _get(self, venue: Venue, host: _Host, request: Request, priority: int) -> bytes:
        limiter = self._limiter(venue, host)
        async with limiter.request(request.weight, priority) as number:

            def note(status: int, headers: Mapping[str, str], body: bytes) -> None:
                if self._heard is not None and not body and (date := _sent_at(headers)) is not None:
                    self._heard(f"{venue.exchange.name} REST", date)
                # The refusal of a path that the host may lack does not shut the others.
                if not (request.optional and status in REFUSED):
                    limiter.note_reply(number, status, headers, body)

            return await self._ask(host, request, note)

    def _serving(self, venue: Venue) -> _Host:
        """The REST host that the next request of a market goes to."""
        fallback = self._hosts.fallbacks.get(venue.rest_url)
        if fallback is not None and self._clock.monotonic() >= fallback.until:
            del self._hosts.fallbacks[venue.rest_url]
            fallback = None
            self._report(venue)
        return _Host.rest(venue, venue.rest_url if fallback is None else venue.rest_fallback)

    def _fall_back(self, venue: Venue, refused: _Host, error: HostRefused) -> None:
        """Use the fallback host for a while, because it serves what the other one refused."""
        if venue.rest_url in self._hosts.fallbacks:
            return
        self._hosts.fallbacks[venue.rest_url] = _Fallback(self._clock.monotonic() + _FALLBACK_SECONDS, str(error))
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

    async def download(
        self,
        venue: Venue,
        path: str,
        file: Path,
        progress: Callable[[int, int], None],
        *,
        reserve: DiskReserve,
        most: int = MAX_ARCHIVE_BYTES,
    ) -> bool:
        """Download a file of the exchange's archive to `file`, resuming an earlier attempt; False where the archive has no such file.

        `progress` is called with the bytes that are here and their total. `ExchangeError` also where the archive sends almost nothing, or
        takes too long: the next attempt resumes. `ArchiveError` where the file is of more than `most` bytes, `DiskReserved` where the disk
        has less than `reserve` free, `OSError` where the file cannot be written.
        """
        part = file.with_name(f"{file.name}.part")
        here = await anyio.to_thread.run_sync(_size, part)
        async with self._archived(venue, path, f"bytes={here}-" if here else "") as response:
            match response.status_code:
                case HTTPStatus.NOT_FOUND:
                    return False
                case HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    # The earlier attempt has all of it.
                    pass
                case status:
                    here = here if status == HTTPStatus.PARTIAL_CONTENT else 0
                    await self._save(_Host.archive(venue), response, part, here, progress, reserve, most)
        await anyio.Path(part).replace(file)
        return True

    async def size(self, venue: Venue, path: str) -> int | None:
        """Size in bytes of a file of the exchange's archive; None where there is no such file, or its size is not stated."""
        async with self._archived(venue, path, "bytes=0-0") as response:
            whole = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length", "")
            return _byte_count(whole) if response.status_code != HTTPStatus.NOT_FOUND else None

    @asynccontextmanager
    async def _archived(self, venue: Venue, path: str, wanted: str) -> AsyncGenerator[httpx2.Response]:
        """A reply of the exchange's archive before its body is read: 206 with the range `wanted`, 200 with the whole file, 404 or 416."""
        host = _Host.archive(venue)
        url, address = host.url(path), host.address
        limiter = self._hosts.limiters.setdefault(
            f"{address} archive", RateLimiter(f"{host.name} at {address}", _ARCHIVE, clock=self._clock)
        )
        head = {"Range": wanted} if wanted else {}
        async with limiter.request(1, Priority.HISTORY) as number:
            with _network_errors(host, self._connect, self._read):
                async with AsyncExitStack() as stack:
                    try:
                        with anyio.fail_after(self._whole):
                            response = await stack.enter_async_context(self._client.stream("GET", url, headers=head))
                            limiter.note_reply(number, response.status_code, response.headers, b"")
                            if response.status_code not in _SERVED:
                                text = await self._body(host, response, most=_REFUSAL_BYTES, cut=True)
                                raise _status_error(host, Request(path, {}), response, text)
                    except TimeoutError:
                        raise self._too_slow(host) from None
                    yield response

    async def _save(
        self,
        host: _Host,
        response: httpx2.Response,
        part: Path,
        here: int,
        progress: Callable[[int, int], None],
        reserve: DiskReserve,
        most: int,
    ) -> None:
        """Append the reply's body to a part of a file, of which `here` bytes are here."""
        length = _byte_count(response.headers.get("Content-Length", ""))
        whole = here + length if length is not None else 0
        if whole > most:
            raise _too_large(host, part, f"{whole:,}", most)
        await anyio.to_thread.run_sync(reserve.check, whole - here if whole else 0)
        unchecked = 0
        async with await anyio.open_file(part, "r+b" if here else "wb") as file:
            await file.seek(here)
            async for piece in self._pieces(host, response):
                here += len(piece)
                if here > most:
                    await file.truncate(0)
                    raise _too_large(host, part, "more", most)
                await file.write(piece)
                unchecked += len(piece)
                if unchecked >= _CHECKED_BYTES:
                    await anyio.to_thread.run_sync(reserve.check)
                    unchecked = 0
                progress(here, max(here, whole))

    async def _pieces(self, host: _Host, response: httpx2.Response) -> AsyncGenerator[bytes]:
        """The body of a file; `ExchangeError` where its pieces come too slowly, or all of them take too long."""
        pieces, began = response.aiter_raw(_CHUNK_BYTES), anyio.current_time()
        while True:
            try:
                # The client's own timeout begins anew with every byte.
                with anyio.fail_after(_CHUNK_SECONDS):
                    piece = await anext(pieces, b"")
            except TimeoutError:
                raise ExchangeError(
                    f"{host.name}: {host.address} sent less than {_CHUNK_BYTES:,} bytes of a file in {_CHUNK_SECONDS:g} s. Try again later"
                ) from None
            if not piece:
                return
            if anyio.current_time() - began > _DOWNLOAD_SECONDS:
                raise ExchangeError(
                    f"{host.name}: {host.address} did not send all of a file in {_DOWNLOAD_SECONDS:,g} s. The next attempt continues it"
                )
            yield piece

    def limiter(self, venue: Venue) -> RateLimiter:
        """The rate limit of the REST host that serves a market now; `ExchangeError` if its base URL is not a URL."""
        return self._limiter(venue, self._serving(venue))

    def closed_for(self, venue: Venue) -> float:
        """Seconds until a request may be sent to one of the market's REST hosts; 0 now."""
        hosts = [_Host.rest(venue, url) for url in (venue.rest_url, venue.rest_fallback) if url]
        try:
            return min(self._limiter(venue, host).state.closed_for for host in hosts)
        except ExchangeError:
            return 0.0

    def _limiter(self, venue: Venue, host: _Host) -> RateLimiter:
        address = host.address
        if address not in self._hosts.limiters:
            name, allowance = f"{venue.exchange.name} at {address}", venue.exchange.allowance(venue.market)
            self._hosts.limiters[address] = RateLimiter(name, allowance, way_on=host.way_on, clock=self._clock)
        return self._hosts.limiters[address]

    async def _ask(self, host: _Host, request: Request, note: Callable[[int, Mapping[str, str], bytes], None]) -> bytes:
        """Sends the request; `note` is called with the reply's status and headers, and for a refusal again with its body."""
        try:
            with anyio.fail_after(self._whole), _network_errors(host, self._connect, self._read):
                async with self._client.stream("GET", host.url(request.path), params=dict(request.params)) as response:
                    note(response.status_code, response.headers, b"")
                    if response.status_code != HTTPStatus.OK:
                        text = await self._body(host, response, most=_REFUSAL_BYTES, cut=True)
                        note(response.status_code, response.headers, text)
                        raise _status_error(host, request, response, text)
                    return await self._body(host, response, most=self._body_limit)
        except TimeoutError:
            raise self._too_slow(host) from None

    def _too_slow(self, host: _Host) -> ExchangeError:
        return ExchangeError(f"{host.name}: {host.address} took more than {self._whole:g} s to answer. Try again later")

    async def _body(self, host: _Host, response: httpx2.Response, *, most: int, cut: bool = False) -> bytes:
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > most:
                if cut:
                    break
                raise ExchangeError(f"{host.name} sent more than {most:,} bytes. Check {host.shown}")
        return bytes(memoryview(body)[:most])


@contextmanager
def _network_errors(host: _Host, connect: float, read: float) -> Generator[None]:
    """Turns every network error into one `ExchangeError`; `connect` and `read` are the timeouts in seconds."""
    try:
        yield
    except httpx2.ConnectTimeout:
        raise HostRefused(f"{host.name}: connecting to {host.address} timed out after {connect:g} s. {host.advice}") from None
    except httpx2.TimeoutException:
        raise ExchangeError(f"{host.name}: {host.address} sent no data for {read:g} s. Try again later") from None
    except httpx2.HTTPError as error:
        kind = HostRefused if isinstance(error, httpx2.ConnectError) else ExchangeError
        raise kind(f"{host.name}: {host.address} {_cause_of(error, host)}") from None


def _sent_at(headers: Mapping[str, str]) -> int | None:
    """When a reply was made (ms, to the second), None where it does not say so or comes from a cache."""
    try:
        sent = parsedate_to_datetime(headers.get("Date", ""))
        return None if "Age" in headers else int(sent.replace(tzinfo=sent.tzinfo or UTC).timestamp()) * SECOND
    except (ValueError, OverflowError):
        return None


def _too_large(host: _Host, part: Path, size: str, most: int) -> ArchiveError:
    name = printable(part.name.removesuffix(".part").removesuffix(".new"), _QUOTED_CHARS)
    return ArchiveError(f"{host.name}: {name} has {size} bytes, at most {most:,} are read; no day of an exchange has as much")


def _byte_count(text: str) -> int | None:
    """A number of bytes in a header; None where it states none, or one that no file has."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _SIZE_DIGITS else None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _proxy_error() -> SettingError:
    """The error of the environment's first proxy that httpx does not accept."""
    proxies = getproxies()
    for scheme in _PROXY_SCHEMES:
        url = proxies.get(scheme, "")
        if not url:
            continue
        try:
            httpx2.AsyncHTTPTransport(proxy=url if "://" in url else f"http://{url}")
        except _UNUSABLE_PROXY:
            return SettingError(f"{scheme.upper()}_PROXY={printable(redacted_url(url), _QUOTED_CHARS)}: {_PROXY_EXPECTED}")
    return SettingError(f"ALL_PROXY, HTTPS_PROXY, HTTP_PROXY or NO_PROXY: {_PROXY_EXPECTED}")


def _status_error(host: _Host, request: Request, response: httpx2.Response, body: bytes) -> ExchangeError:
    """The error of a reply with another status than 200, with the exchange's text and its Retry-After."""
    status, wait = response.status_code, response.headers.get("Retry-After", "")[:40]
    said = plain_text(body)
    text = f"{host.name} answered HTTP {status} to {request.path}"
    text += f" and says: {quoted(said, _QUOTED_CHARS)}" if one_line(said) else ""
    if hint := f"Check {host.shown}" if status == HTTPStatus.NOT_FOUND else advice(status, host.way_on):
        text += f". {hint}"
    if wait:
        text += f" (Retry-After: {one_line(wait)}{' s' if wait.isdecimal() else ''})"
    if status == HTTPStatus.NOT_FOUND or (request.optional and status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _LIMITED):
        return EndpointMissing(text)
    if status == HTTPStatus.BAD_REQUEST:
        return RequestRefused(text)
    return HostRefused(text) if status in REFUSED else ExchangeError(text)


def _certificates_error(error: OSError) -> SettingError:
    """The error of certificates that cannot be read."""
    named = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), None)
    why = error.strerror or "it has no certificates"
    if named is None:
        return SettingError(f"the operating system's certificates cannot be read ({why}); install ca-certificates or set SSL_CERT_FILE")
    shown = printable(os.environ[named], _QUOTED_CHARS)
    return SettingError(f"{named}={shown}: its certificates cannot be read ({why}); set it to certificates in PEM format, or unset it")


def _cause_of(error: httpx2.HTTPError, host: _Host) -> str:
    """What failed. The library's own text names neither the cause nor what to do."""
    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return f"does not resolve to an address. {host.advice}"
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return f"refused the connection. {host.advice}"
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return f"failed the TLS handshake. {host.advice}"
    if isinstance(error, httpx2.ProxyError):
        return f"cannot be reached through the proxy. {host.advice}"
    if isinstance(error, httpx2.DecodingError):
        return "sent a reply that cannot be decompressed. Try again later"
    if isinstance(error, httpx2.ConnectError):
        return f"cannot be reached. {host.advice}"
    if isinstance(error, httpx2.UnsupportedProtocol):
        return f"has an unsupported scheme; {host.setting}: {_BASE_URL_EXPECTED}"
    return f"closed the connection before its reply was complete. {host.advice}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes and contexts, and the members of groups among them."""
    waiting: list[BaseException] = [error]
    seen: set[int] = set()
    while waiting:
        cause = waiting.pop()
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        waiting += [each for each in (cause.__cause__, cause.__context__) if each is not None]
        if isinstance(cause, BaseExceptionGroup):
            waiting += cause.exceptions
