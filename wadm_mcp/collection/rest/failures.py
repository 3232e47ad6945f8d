"""What went wrong with a request, as one error in one line that says what to do."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.request import getproxies

import httpx2

from wadm_mcp.collection.rest.hosts import BASE_URL_EXPECTED, QUOTED_CHARS, ExchangeHost
from wadm_mcp.collection.rest.proxies import Proxy, failure_of_proxy, proxy_for
from wadm_mcp.collection.rest.rate_limit import REFUSED, advice
from wadm_mcp.errors import EndpointMissing, ExchangeError, HostRefused, RequestRefused, SettingError
from wadm_mcp.exchanges.exchange import Request
from wadm_mcp.exchanges.wire import plain_text
from wadm_mcp.texts import one_line, printable, quoted, redacted_url

REFUSAL_BYTES: Final = 16 * 1024
"""Bytes of a refusal that are read. In a page of HTML the text that is quoted comes late."""
UNUSABLE_PROXY: Final = (ImportError, ValueError, httpx2.InvalidURL)
"""What httpx raises for a proxy URL with a scheme that is unknown or needs another package, or with an invalid port."""

_LIMITED: Final = (HTTPStatus.IM_A_TEAPOT, HTTPStatus.TOO_MANY_REQUESTS)
_PROXY_SCHEMES: Final = ("all", "https", "http")
_PROXY_EXPECTED: Final = "not a usable proxy URL; expected http://host:port"


class Timeouts(NamedTuple):
    """How requests are sent. Seconds: `connect` and `read` limit each wait, `whole` a request from first to last byte."""

    connect: float
    read: float
    whole: float
    proxied: bool
    """Whether the environment's proxies are used."""


async def read_body(host: ExchangeHost, response: httpx2.Response, *, most: int, cut: bool = False) -> bytes:
    """The body of a reply, decompressed. One of more than `most` bytes is an `ExchangeError`; with `cut` the rest of it is not read."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > most:
            if cut:
                break
            raise ExchangeError(f"{host.name} sent more than {most:,} bytes. Check {host.shown}")
    return bytes(memoryview(body)[:most])


def too_slow(host: ExchangeHost, timeouts: Timeouts) -> ExchangeError:
    """The error of a request that took longer than allowed as a whole."""
    return ExchangeError(f"{host.name}: {host.address} took more than {timeouts.whole:g} s to answer. Try again later")


@contextmanager
def network_errors(host: ExchangeHost, timeouts: Timeouts) -> Generator[None]:
    """Turns every network error into one `ExchangeError`."""
    proxy = proxy_for(host.base_url) if timeouts.proxied else None
    place = host.address if proxy is None else f"{host.address} through the proxy {proxy.shown}"
    try:
        yield
    except httpx2.ConnectTimeout:
        if proxy is not None:
            why = f"accepted no connection within {timeouts.connect:g} s"
            raise _proxy_failed(host, proxy, why) from None
        raise HostRefused(f"{host.name}: connecting to {place} timed out after {timeouts.connect:g} s. {host.advice}") from None
    except httpx2.TimeoutException:
        raise ExchangeError(f"{host.name}: {place} sent no data for {timeouts.read:g} s. Try again later") from None
    except httpx2.HTTPError as error:
        if proxy is not None and (why := _why_of_proxy(error)):
            raise _proxy_failed(host, proxy, why) from None
        kind = HostRefused if isinstance(error, httpx2.ConnectError) else ExchangeError
        raise kind(f"{host.name}: {place} {_cause_of(error, host)}") from None


def _proxy_failed(host: ExchangeHost, proxy: Proxy, why: str) -> HostRefused:
    return HostRefused(f"{host.name}: {host.address} cannot be reached: the proxy {proxy.shown} {why}. {proxy.advice}")


def _why_of_proxy(error: httpx2.HTTPError) -> str:
    """What a proxy failed with; empty for an error that is the host's. Behind a proxy only the proxy's name is looked up."""
    if isinstance(error, httpx2.ProxyError):
        return f"answered {quoted(str(error), QUOTED_CHARS)}"
    found = filter(None, map(failure_of_proxy, _causes(error)))
    unreachable = isinstance(error, httpx2.ConnectError) and not any(isinstance(cause, ssl.SSLError) for cause in _causes(error))
    return next(found, "cannot be reached" if unreachable else "")


def proxy_error() -> SettingError:
    """The error of the environment's first proxy that httpx does not accept."""
    proxies = getproxies()
    for scheme in _PROXY_SCHEMES:
        url = proxies.get(scheme, "")
        if not url:
            continue
        try:
            httpx2.AsyncHTTPTransport(proxy=url if "://" in url else f"http://{url}")
        except UNUSABLE_PROXY:
            return SettingError(f"{scheme.upper()}_PROXY={printable(redacted_url(url), QUOTED_CHARS)}: {_PROXY_EXPECTED}")
    return SettingError(f"ALL_PROXY, HTTPS_PROXY, HTTP_PROXY or NO_PROXY: {_PROXY_EXPECTED}")


def status_error(host: ExchangeHost, request: Request, response: httpx2.Response, body: bytes) -> ExchangeError:
    """The error of a reply with another status than 200, with the exchange's text and its Retry-After."""
    status, wait = response.status_code, response.headers.get("Retry-After", "")[:40]
    said = plain_text(body)
    text = f"{host.name} answered HTTP {status} to {request.path}"
    text += f" and says: {quoted(said, QUOTED_CHARS)}" if one_line(said) else ""
    if hint := f"Check {host.shown}" if status == HTTPStatus.NOT_FOUND else advice(status, host.way_on):
        text += f". {hint}"
    if wait:
        text += f" (Retry-After: {one_line(wait)}{' s' if wait.isdecimal() else ''})"
    if status == HTTPStatus.NOT_FOUND or (request.optional and status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _LIMITED):
        return EndpointMissing(text)
    if status == HTTPStatus.BAD_REQUEST:
        return RequestRefused(text)
    return HostRefused(text) if status in REFUSED else ExchangeError(text)


def certificates_error(error: OSError) -> SettingError:
    """The error of certificates that cannot be read."""
    named = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), None)
    why = error.strerror or "it has no certificates"
    if named is None:
        return SettingError(f"the operating system's certificates cannot be read ({why}); install ca-certificates or set SSL_CERT_FILE")
    shown = printable(os.environ[named], QUOTED_CHARS)
    return SettingError(f"{named}={shown}: its certificates cannot be read ({why}); set it to certificates in PEM format, or unset it")


def _cause_of(error: httpx2.HTTPError, host: ExchangeHost) -> str:
    """What failed. The library's own text names neither the cause nor what to do."""
    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return f"does not resolve to an address. {host.advice}"
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return f"refused the connection. {host.advice}"
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return f"failed the TLS handshake. {host.advice}"
    if isinstance(error, httpx2.DecodingError):
        return "sent a reply that cannot be decompressed. Try again later"
    if isinstance(error, httpx2.ConnectError):
        return f"cannot be reached. {host.advice}"
    if isinstance(error, httpx2.UnsupportedProtocol):
        return f"has an unsupported scheme; {host.setting}: {BASE_URL_EXPECTED}"
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
