"""REST of the exchanges: one client whoever asks, so that bounds, patience and each host's budget are kept in one place."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import anyio
import anyio.to_thread
import httpx2

from wadm_mcp import __version__
from wadm_mcp.clock import SYSTEM_CLOCK, Clock
from wadm_mcp.collection.rest.rate_limit import Priority, RateLimiter
from wadm_mcp.errors import ExchangeError, SettingError
from wadm_mcp.exchanges.exchange import Aggregate, Allowance, Candle, Request, Venue
from wadm_mcp.exchanges.wire import one_line
from wadm_mcp.model import Listing, Trade, Window

_ADVICE: Final[Mapping[int, str]] = {
    HTTPStatus.FORBIDDEN: "It refuses this address: too many requests (wait ten minutes) or a region it does not serve",
    HTTPStatus.NOT_FOUND: "Check that the REST base URL leads to it",
    HTTPStatus.IM_A_TEAPOT: "This address is banned for too many requests: wait",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many requests from this address: wait",
    HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS: "It does not serve this region",
}
_NETWORK: Final = "Check the network, the proxy and the REST base URL"
_LOOPBACK: Final = ("all://127.0.0.1", "all://localhost", "all://[::1]")
"""Hosts that no proxy of the environment is asked for: the loopback exchanges of a demo are on this machine."""

_ARCHIVE: Final = Allowance(120, 60.0)
"""No exchange states how often its archive may be asked: it serves plain files. This is politeness."""
_SERVED: Final = (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.NOT_FOUND, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
_PIECE: Final = 1 << 17

_SAID: Final = 160
"""Characters of an exchange's own words that an error repeats."""

_Row = TypeVar("_Row")


class RestClient:
    """Asks exchanges over HTTP. Entered once as a context manager; `SettingError` when the environment's proxy cannot be used.

    Times are seconds: `connect` and `read` bound each wait, `whole` a request from first to last byte. `body_limit` is in bytes, after
    decompression; `pages` bounds the requests of one list. With `proxied` the environment's proxies are used.

    Every method raises `ExchangeError` when the exchange cannot be reached, is too slow, refuses, sends what cannot be read, or is to be
    left alone for now: one line that says which. They wait their turn first, and can be cancelled at any time.
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
        self.budgets: dict[str, RateLimiter] = {}
        """What each host may still be asked, by its base URL without credentials."""
        self._proxied = proxied
        self._connect = connect
        self._read = read
        self._whole = whole
        self._body_limit = body_limit
        self._pages = pages
        self._clock = clock
        self.certificates: ssl.SSLContext | None = None
        """Whom TLS trusts, for sockets too: what the operating system does, or `SSL_CERT_FILE`. Known once entered."""

    async def __aenter__(self) -> Self:
        try:
            # Reading the certificates of authorities takes as long as thousands of frames.
            self._client = await anyio.to_thread.run_sync(self._new_client)
        except (ImportError, ValueError, httpx2.InvalidURL):
            raise SettingError("ALL_PROXY, HTTPS_PROXY, HTTP_PROXY: one of them cannot be used; a proxy is http://host:port") from None
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
        """Every listing of a market, page after page."""
        exchange, market = venue.exchange, venue.market
        listings: list[Listing] = []
        cursor = ""
        for _ in range(self._pages):
            body = await self.get(venue, exchange.listings_request(market, cursor), Priority.LISTINGS)
            # A list of symbols is megabytes: reading it on the loop would hold every socket up.
            page, following = await anyio.to_thread.run_sync(exchange.read_listings, market, body)
            listings += page
            if not following:
                return listings
            if following == cursor:
                raise ExchangeError(f"{venue.name} repeats the same page of its list of symbols. Check that the REST base URL leads to it")
            cursor = following
        raise ExchangeError(f"{venue.name} lists its symbols on more than {self._pages} pages. Check that the REST base URL leads to it")

    async def trades(self, venue: Venue, listing: Listing, first: int | None = None, priority: int = Priority.REPAIR) -> list[Trade]:
        """One reply of trades, oldest first: from the id `first` on where the exchange numbers them, else the newest."""
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
    ) -> list[Aggregate]:
        """One reply of aggregates, oldest first: from `start` (ms) on, or from the aggregate id `first` on."""
        request = venue.exchange.aggregates_request(venue.market, listing.instrument.symbol, start=start, first=first)
        return await self._rows(venue, listing, request, priority, venue.exchange.read_aggregates)

    async def candles(self, venue: Venue, listing: Listing, window: Window, priority: int = Priority.HISTORY) -> list[Candle]:
        """One reply of a window's minutes, oldest first: as many of the first ones as it holds."""
        request = venue.exchange.candles_request(venue.market, listing.instrument.symbol, window)
        return await self._rows(venue, listing, request, priority, venue.exchange.read_candles)

    async def _rows(
        self,
        venue: Venue,
        listing: Listing,
        request: Request,
        priority: int,
        read: Callable[[Listing, bytes], list[_Row]],
    ) -> list[_Row]:
        body = await self.get(venue, request, priority)
        return await anyio.to_thread.run_sync(read, listing, body)

    async def get(self, venue: Venue, request: Request, priority: int = Priority.REPAIR) -> bytes:
        """The body of a reply with status 200; `ExchangeError` for anything else. Every request to an exchange's REST goes through here."""
        budget = self.budget(venue)
        url = _url(venue.name, venue.rest_url, request.path)
        async with budget.asking(request.weight, priority) as number:
            return await self._ask(venue.name, url, request, lambda *reply: budget.heard(number, *reply))

    async def download(self, venue: Venue, path: str, file: Path, told: Callable[[int, int], None]) -> bool:
        """A file of an exchange's archive into `file`, from where an earlier try ended; False where the archive has none.

        `told` hears how many bytes are here, of how many. `OSError` where the disk does not take it.
        """
        part = file.with_name(f"{file.name}.part")
        here = await anyio.to_thread.run_sync(_size, part)
        async with self._archived(venue, path, f"bytes={here}-" if here else "") as response:
            match response.status_code:
                case HTTPStatus.NOT_FOUND:
                    return False
                case HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    # All of it was here already.
                    pass
                case status:
                    await self._save(response, part, here if status == HTTPStatus.PARTIAL_CONTENT else 0, told)
        await anyio.Path(part).replace(file)
        return True

    async def size(self, venue: Venue, path: str) -> int | None:
        """Bytes of a file of an exchange's archive; None where the archive has none, or does not tell."""
        async with self._archived(venue, path, "bytes=0-0") as response:
            whole = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length", "")
            return int(whole) if response.status_code != HTTPStatus.NOT_FOUND and whole.isdecimal() else None

    @asynccontextmanager
    async def _archived(self, venue: Venue, path: str, wanted: str) -> AsyncGenerator[httpx2.Response]:
        """A reply of an exchange's archive, its body not read yet: with the part that is `wanted`, without it, or none (404, 416)."""
        who = f"{venue.exchange.name} archive"
        url = _url(who, venue.archive_url, path)
        place = _place(url)
        budget = self.budgets.setdefault(f"{place} archive", RateLimiter(f"{who} at {place}", _ARCHIVE, clock=self._clock))
        head = {"Range": wanted} if wanted else {}
        async with budget.asking(1, Priority.HISTORY) as number:
            with _failing(who, place, self._connect, self._read):
                async with self._client.stream("GET", url, headers=head) as response:
                    budget.heard(number, response.status_code, response.headers, b"")
                    if response.status_code not in _SERVED:
                        said = await self._body(who, response, most=4 * _SAID, cut=True)
                        raise _answered(who, Request(path, {}), response, said)
                    yield response

    async def _save(self, response: httpx2.Response, part: Path, here: int, told: Callable[[int, int], None]) -> None:
        length = response.headers.get("Content-Length", "")
        whole = here + int(length) if length.isdecimal() else 0
        async with await anyio.open_file(part, "r+b" if here else "wb") as file:
            await file.seek(here)
            async for piece in response.aiter_raw(_PIECE):
                await file.write(piece)
                here += len(piece)
                told(here, max(here, whole))

    def budget(self, venue: Venue) -> RateLimiter:
        """The budget that requests to a market's REST host are spent from; `ExchangeError` when it is no URL."""
        place = _place(_url(venue.name, venue.rest_url))
        if place not in self.budgets:
            who = f"{venue.exchange.name} at {place}"
            self.budgets[place] = RateLimiter(who, venue.exchange.allowance(venue.market), clock=self._clock)
        return self.budgets[place]

    async def _ask(self, who: str, url: httpx2.URL, request: Request, heard: Callable[[int, Mapping[str, str], bytes], None]) -> bytes:
        """Sends the request; `heard` is told of the reply's head, and of a refusal again with its words."""
        place = _place(url)
        try:
            with anyio.fail_after(self._whole), _failing(who, place, self._connect, self._read):
                async with self._client.stream("GET", url, params=dict(request.params)) as response:
                    heard(response.status_code, response.headers, b"")
                    if response.status_code != HTTPStatus.OK:
                        said = await self._body(who, response, most=4 * _SAID, cut=True)
                        heard(response.status_code, response.headers, said)
                        raise _answered(who, request, response, said)
                    return await self._body(who, response, most=self._body_limit)
        except TimeoutError:
            raise ExchangeError(f"{who}: {place} took more than {self._whole:g} s to answer. Try again later") from None

    async def _body(self, who: str, response: httpx2.Response, *, most: int, cut: bool = False) -> bytes:
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > most:
                if cut:
                    break
                raise ExchangeError(f"{who} sent more than {most:,} bytes. Check that the REST base URL leads to it")
        return bytes(body[:most])


@contextmanager
def _failing(who: str, place: str, connect: float, read: float) -> Generator[None]:
    """Whatever breaks on the way is one `ExchangeError`; `connect` and `read` are the seconds that were waited."""
    try:
        yield
    except httpx2.ConnectTimeout:
        raise ExchangeError(f"{who}: {place} did not take a connection within {connect:g} s. {_NETWORK}") from None
    except httpx2.TimeoutException:
        raise ExchangeError(f"{who}: {place} was silent for {read:g} s. Try again later") from None
    except httpx2.HTTPError as error:
        raise ExchangeError(f"{who}: {place} {_failure(error)}") from None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _url(who: str, base_url: str, path: str = "") -> httpx2.URL:
    try:
        return httpx2.URL(base_url.rstrip("/") + path)
    except httpx2.InvalidURL:
        raise ExchangeError(f"{who}: its REST base URL is no URL. Give one such as https://host:port") from None


def _place(url: httpx2.URL) -> str:
    """Where a URL leads. A base URL may hold a password; errors and budgets name the host only."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def _answered(who: str, request: Request, response: httpx2.Response, body: bytes) -> ExchangeError:
    """The error of a reply with another status than 200, with the exchange's own words and its Retry-After."""
    said = one_line(body.decode("utf-8", "replace"), _SAID)
    wait = response.headers.get("Retry-After", "")[:40]
    text = f"{who} answered HTTP {response.status_code} to {request.path}" + (f": {said}" if said else "")
    if advice := _ADVICE.get(response.status_code):
        text += f". {advice}"
    if wait:
        text += f" (Retry-After: {wait}{' s' if wait.isdecimal() else ''})"
    return ExchangeError(text)


def _failure(error: httpx2.HTTPError) -> str:
    """What broke, in our words: the library's name neither the cause nor a way on."""
    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return f"does not resolve to an address. {_NETWORK}"
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return f"refused the connection. {_NETWORK}"
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return f"could not agree on TLS. {_NETWORK}"
    if isinstance(error, httpx2.ProxyError):
        return f"is out of reach behind the proxy. {_NETWORK}"
    if isinstance(error, httpx2.DecodingError):
        return "sent a reply that cannot be decompressed. Try again later"
    if isinstance(error, httpx2.ConnectError):
        return f"cannot be reached. {_NETWORK}"
    if isinstance(error, httpx2.UnsupportedProtocol):
        return "is not an address of REST. Give a base URL such as https://host:port"
    return f"broke the connection before its reply was whole. {_NETWORK}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it came from, and the members of groups among them."""
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
