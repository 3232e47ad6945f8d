"""HTTP client for the exchanges' REST APIs and archives. All requests use it, so rate limits and timeouts are handled in one place."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
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
from wadm_mcp.collection.rest.rate_limit import Priority, RateLimiter
from wadm_mcp.errors import ExchangeError, SettingError, printable
from wadm_mcp.exchanges.exchange import Aggregate, Allowance, Candle, Page, Request, Venue
from wadm_mcp.exchanges.wire import one_line
from wadm_mcp.logs import log
from wadm_mcp.model import Instrument, Listing, Trade, Window

_ADVICE: Final[Mapping[int, str]] = {
    HTTPStatus.FORBIDDEN: "The exchange blocks this address: too many requests (Bybit: wait 10 minutes) or an unsupported region",
    HTTPStatus.NOT_FOUND: "Check {setting}",
    HTTPStatus.IM_A_TEAPOT: "This address is banned for too many requests: wait",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many requests from this address: wait",
    HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS: "The exchange does not serve this region",
}
_LOOPBACK: Final = ("all://127.0.0.1", "all://localhost", "all://[::1]")
"""Hosts that are reached without a proxy: the loopback exchanges of a demo are on this machine."""

_ARCHIVE: Final = Allowance(120, 60.0)
"""No exchange documents a rate limit of its archive, which serves plain files. This one is a courtesy."""
_BASE_URL_EXPECTED: Final = "set a base URL without a path, such as https://host:port"
_SERVED: Final = (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.NOT_FOUND, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
_CHUNK_BYTES: Final = 1 << 17
_QUOTED_CHARS: Final = 160
"""Characters of an exchange's own text that an error repeats."""

_PROXY_SCHEMES: Final = ("all", "https", "http")
_PROXY_EXPECTED: Final = "not a usable proxy URL; expected http://host:port"
_UNUSABLE_PROXY: Final = (ImportError, ValueError, httpx2.InvalidURL)
"""What httpx raises for a proxy URL with a scheme that is unknown or needs another package, or with an invalid port."""

_Read = TypeVar("_Read")


class _Host(NamedTuple):
    """A host that is requested: its name in errors (`binance spot`), the setting of its base URL, and the base URL."""

    name: str
    setting: str
    base_url: str

    @classmethod
    def rest(cls, venue: Venue) -> _Host:
        """The REST host of a market."""
        return cls(venue.name, venue.hosts.rest.setting, venue.rest_url)

    @classmethod
    def archive(cls, venue: Venue) -> _Host:
        """The host of an exchange's daily files."""
        archive = venue.hosts.archive
        return cls(f"{venue.exchange.name} archive", archive.setting if archive is not None else "", venue.archive_url)

    @property
    def address(self) -> str:
        """Scheme, host and port. A base URL may contain a password; errors and rate limits show the address only."""
        url = self.url()
        return f"{url.scheme}://{url.netloc.decode('ascii')}"

    @property
    def shown(self) -> str:
        """The setting and its value, without a password."""
        return f"{self.setting}={printable(_without_user(self.base_url), _QUOTED_CHARS)}"

    @property
    def advice(self) -> str:
        """What to do if the host cannot be reached."""
        return f"Check the network, the proxy and {self.setting}"

    def url(self, path: str = "") -> httpx2.URL:
        """The URL of a path; `ExchangeError` if the base URL is not a URL."""
        try:
            return httpx2.URL(self.base_url.rstrip("/") + path)
        except httpx2.InvalidURL:
            raise ExchangeError(f"{self.name}: {self.shown} is not a URL; {_BASE_URL_EXPECTED}") from None


class RestClient:
    """Sends requests to exchanges. Enter it once as a context manager; `SettingError` if the environment names a proxy or a file of
    certificates that cannot be used.

    Timeouts are in seconds: `connect` and `read` limit each wait, `whole` limits a request from first to last byte. `body_limit` is in
    bytes, after decompression; `pages` limits the requests for one list. With `proxied` the environment's proxies are used.

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
    ) -> None:
        self.limiters: dict[str, RateLimiter] = {}
        """The rate limit of each host, by its base URL without credentials."""
        self._proxied = proxied
        self._connect = connect
        self._read = read
        self._whole = whole
        self._body_limit = body_limit
        self._pages = pages
        self._clock = clock
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

    async def listings(self, venue: Venue) -> list[Listing]:
        """Every listing of a market, from all its lists; where an instrument is in several the last one holds.

        Only the list of what trades has to be served. Without another one its instruments count as not listed.
        """
        found: dict[Instrument, Listing] = {}
        for state in venue.exchange.listing_states(venue.market):
            try:
                found.update((listing.instrument, listing) for listing in await self._listings_in(venue, state))
            except ExchangeError as error:
                if not state:
                    raise
                log.warning("listings.incomplete", **venue.log_fields, state=state, error=error)
        return list(found.values())

    async def _listings_in(self, venue: Venue, state: str) -> list[Listing]:
        """The listings of one list of a market, from all pages. A page that comes again ends the list: those read so far are returned."""
        exchange, market, host = venue.exchange, venue.market, _Host.rest(venue)
        listings: dict[Instrument, Listing] = {}
        cursor, cursors = "", set[str]()
        for _ in range(self._pages):
            body = await self.get(venue, exchange.listings_request(market, cursor, state), Priority.LISTINGS)
            # A list of symbols has megabytes: parsing it in the event loop would delay every socket.
            page, following = await anyio.to_thread.run_sync(exchange.read_listings, market, body)
            listings.update((listing.instrument, listing) for listing in page)
            cursors.add(cursor)
            if following in cursors or not following:
                if following:
                    log.warning("listings.repeated", **venue.log_fields, cursor=printable(following, _QUOTED_CHARS), symbols=len(listings))
                return list(listings.values())
            cursor = following
        raise ExchangeError(f"{venue.name} lists its symbols on more than {self._pages} pages. Check {host.shown}")

    async def trades(self, venue: Venue, listing: Listing, first: int | None = None, priority: int = Priority.REPAIR) -> Page[Trade]:
        """One reply of trades, oldest first: from the seq `first` on where the market `has_gapless_ids`, else the newest."""
        request = venue.exchange.trades_request(venue.market, listing.instrument.symbol, first)
        return await self._rows(venue, listing, request, priority, venue.exchange.read_trades)

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

    async def candles(self, venue: Venue, listing: Listing, window: Window, priority: int = Priority.HISTORY) -> list[Candle]:
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
        limiter = self.limiter(venue)
        async with limiter.request(request.weight, priority) as number:
            return await self._ask(_Host.rest(venue), request, lambda *reply: limiter.note_reply(number, *reply))

    async def download(self, venue: Venue, path: str, file: Path, progress: Callable[[int, int], None]) -> bool:
        """Download a file of the exchange's archive to `file`, resuming an earlier attempt; False where the archive has no such file.

        `progress` is called with the bytes that are here and their total. `OSError` where the file cannot be written.
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
                    await self._save(response, part, here if status == HTTPStatus.PARTIAL_CONTENT else 0, progress)
        await anyio.Path(part).replace(file)
        return True

    async def size(self, venue: Venue, path: str) -> int | None:
        """Size in bytes of a file of the exchange's archive; None where there is no such file, or its size is not stated."""
        async with self._archived(venue, path, "bytes=0-0") as response:
            whole = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length", "")
            return int(whole) if response.status_code != HTTPStatus.NOT_FOUND and whole.isdecimal() else None

    @asynccontextmanager
    async def _archived(self, venue: Venue, path: str, wanted: str) -> AsyncGenerator[httpx2.Response]:
        """A reply of the exchange's archive before its body is read: 206 with the range `wanted`, 200 with the whole file, 404 or 416."""
        host = _Host.archive(venue)
        url, address = host.url(path), host.address
        limiter = self.limiters.setdefault(f"{address} archive", RateLimiter(f"{host.name} at {address}", _ARCHIVE, clock=self._clock))
        head = {"Range": wanted} if wanted else {}
        async with limiter.request(1, Priority.HISTORY) as number:
            with _network_errors(host, self._connect, self._read):
                async with self._client.stream("GET", url, headers=head) as response:
                    limiter.note_reply(number, response.status_code, response.headers, b"")
                    if response.status_code not in _SERVED:
                        text = await self._body(host, response, most=4 * _QUOTED_CHARS, cut=True)
                        raise _status_error(host, Request(path, {}), response, text)
                    yield response

    async def _save(self, response: httpx2.Response, part: Path, here: int, progress: Callable[[int, int], None]) -> None:
        length = response.headers.get("Content-Length", "")
        whole = here + int(length) if length.isdecimal() else 0
        async with await anyio.open_file(part, "r+b" if here else "wb") as file:
            await file.seek(here)
            async for piece in response.aiter_raw(_CHUNK_BYTES):
                await file.write(piece)
                here += len(piece)
                progress(here, max(here, whole))

    def limiter(self, venue: Venue) -> RateLimiter:
        """The rate limit of a market's REST host; `ExchangeError` if its base URL is not a URL."""
        address = _Host.rest(venue).address
        if address not in self.limiters:
            name = f"{venue.exchange.name} at {address}"
            self.limiters[address] = RateLimiter(name, venue.exchange.allowance(venue.market), clock=self._clock)
        return self.limiters[address]

    async def _ask(self, host: _Host, request: Request, note: Callable[[int, Mapping[str, str], bytes], None]) -> bytes:
        """Sends the request; `note` is called with the reply's status and headers, and for a refusal again with its body."""
        try:
            with anyio.fail_after(self._whole), _network_errors(host, self._connect, self._read):
                async with self._client.stream("GET", host.url(request.path), params=dict(request.params)) as response:
                    note(response.status_code, response.headers, b"")
                    if response.status_code != HTTPStatus.OK:
                        text = await self._body(host, response, most=4 * _QUOTED_CHARS, cut=True)
                        note(response.status_code, response.headers, text)
                        raise _status_error(host, request, response, text)
                    return await self._body(host, response, most=self._body_limit)
        except TimeoutError:
            raise ExchangeError(f"{host.name}: {host.address} took more than {self._whole:g} s to answer. Try again later") from None

    async def _body(self, host: _Host, response: httpx2.Response, *, most: int, cut: bool = False) -> bytes:
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > most:
                if cut:
                    break
                raise ExchangeError(f"{host.name} sent more than {most:,} bytes. Check {host.shown}")
        return bytes(body[:most])


@contextmanager
def _network_errors(host: _Host, connect: float, read: float) -> Generator[None]:
    """Turns every network error into one `ExchangeError`; `connect` and `read` are the timeouts in seconds."""
    try:
        yield
    except httpx2.ConnectTimeout:
        raise ExchangeError(f"{host.name}: connecting to {host.address} timed out after {connect:g} s. {host.advice}") from None
    except httpx2.TimeoutException:
        raise ExchangeError(f"{host.name}: {host.address} sent no data for {read:g} s. Try again later") from None
    except httpx2.HTTPError as error:
        raise ExchangeError(f"{host.name}: {host.address} {_cause_of(error, host)}") from None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _without_user(url: str) -> str:
    """A URL, valid or not, without user name and password."""
    before, at, host = url.rpartition("@")
    scheme, separator, _ = before.partition("://")
    return f"{scheme}{separator}{host}" if at and separator else host


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
            return SettingError(f"{scheme.upper()}_PROXY={printable(_without_user(url), _QUOTED_CHARS)}: {_PROXY_EXPECTED}")
    return SettingError(f"ALL_PROXY, HTTPS_PROXY, HTTP_PROXY or NO_PROXY: {_PROXY_EXPECTED}")


def _status_error(host: _Host, request: Request, response: httpx2.Response, body: bytes) -> ExchangeError:
    """The error of a reply with another status than 200, with the exchange's text and its Retry-After."""
    quoted = one_line(body.decode("utf-8", "replace"), _QUOTED_CHARS)
    wait = response.headers.get("Retry-After", "")[:40]
    text = f"{host.name} answered HTTP {response.status_code} to {request.path}" + (f": {quoted}" if quoted else "")
    if advice := _ADVICE.get(response.status_code):
        text += f". {advice.format(setting=host.shown)}"
    if wait:
        text += f" (Retry-After: {wait}{' s' if wait.isdecimal() else ''})"
    return ExchangeError(text)


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
