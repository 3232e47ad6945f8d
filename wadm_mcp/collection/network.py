"""How this process reaches the hosts of exchanges: the proxies of the environment, the certificates that TLS trusts, several addresses.

The collectors and `doctor` open their sockets by the same options, so that what `doctor` finds holds for the collectors.
"""

from __future__ import annotations

import ssl
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from websockets.asyncio import client
from websockets.exceptions import InvalidProxy, InvalidStatus, WebSocketException

from wadm_mcp.clock import Clock
from wadm_mcp.collection.rest.proxies import failure_of_proxy, proxy_for
from wadm_mcp.collection.rest.rate_limit import REFUSED, advice, penalty
from wadm_mcp.exchanges.exchange import Venue
from wadm_mcp.exchanges.wire import plain_text
from wadm_mcp.settings import is_loopback
from wadm_mcp.texts import one_line, quoted, redacted, redacted_url

HANDSHAKE_SECONDS: Final = 10
"""Time limit of opening a socket, from the first packet to the exchange's answer to the handshake."""

_NEXT_ADDRESS_SECONDS: Final = 0.25
"""After this time without an answer the host's next address is tried as well (RFC 8305), since one of its networks may be down."""
_QUOTED_CHARS: Final = 160
"""Characters of an exchange's own text that an error repeats."""


class connect(client.connect):  # noqa: N801 - named like what it replaces
    """Opens a socket at the host that was asked for and at no other: a redirect is an error, as it is for REST."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


def socket_options(url: str, certificates: ssl.SSLContext | None) -> dict[str, Any]:
    """Options for `connect`: the same certificates and the same proxy as REST uses; no proxy on loopback."""
    address = urlsplit(url)
    host = address.hostname or ""
    options: dict[str, Any] = {"open_timeout": HANDSHAKE_SECONDS}
    if address.scheme == "wss" and certificates is not None:
        options["ssl"] = certificates
    if is_loopback(host):
        return options | {"proxy": None}
    options["happy_eyeballs_delay"] = _NEXT_ADDRESS_SECONDS
    proxy = proxy_for(url)
    return options | {"proxy": proxy.url if proxy is not None else None}


class SocketFailure(NamedTuple):
    """Why a socket could not be opened: a line for users, and what follows from it."""

    reason: str
    refused: bool = False
    """Whether the host refused this address or its region: another host may serve it."""
    wait: float = 0.0
    """Seconds for which the exchange wants no other attempt at this host."""

    @classmethod
    def of(cls, error: OSError | ValueError | WebSocketException, base_url: str, venue: Venue, now: int) -> SocketFailure:
        """The failure that `connect` to a trade socket of the market raised. `now` is the wall time (ms)."""
        url = redacted_url(socket_url(venue, base_url))
        proxy = proxy_for(socket_url(venue, base_url))
        way = f" through the proxy {proxy.shown}" if proxy is not None else ""
        if isinstance(error, TimeoutError):
            return cls(f"{url} did not answer the handshake within {HANDSHAKE_SECONDS} s{way}")
        if isinstance(error, InvalidProxy):
            return cls(f"cannot connect to {url}: HTTPS_PROXY or ALL_PROXY is not a usable proxy URL; expected http://host:port")
        if proxy is not None and (failed := failure_of_proxy(error)):
            return cls(f"cannot connect to {url}: the proxy {proxy.shown} {failed}. {proxy.advice}")
        if not isinstance(error, InvalidStatus):
            # Texts of libraries may contain the URL of a proxy.
            return cls(f"cannot connect to {url}{way}: {one_line(redacted(str(error)))}")
        reply = error.response
        status, body = reply.status_code, bytes(reply.body or b"")
        text = plain_text(body)
        said = f"it answered HTTP {status}" + (f" and says: {quoted(text, _QUOTED_CHARS)}" if one_line(text) else "")
        hint = advice(status, venue.hosts.socket.way_on(base_url))
        wait = penalty(venue.exchange.allowance(venue.market), status, reply.headers.get("Retry-After", ""), body, now)
        return cls(f"cannot connect to {url}: {said}" + (f". {hint}" if hint else ""), status in REFUSED, wait)


class _Closed(NamedTuple):
    """A host that is not tried for now: until when (monotonic seconds), and why."""

    until: float
    failure: SocketFailure


ClosedSocketHosts: TypeAlias = dict[str, _Closed]
"""The hosts that refused a handshake, by base URL. A process has one for all its connections: each keeps alive the ban of the others."""


class SocketHosts:
    """Chooses the host of a market's next trade socket. `closed` is what the process knows of hosts that refused.

    A host that refused a handshake is tried again when its time is over. Meanwhile the fallback is used, if the first host refused this
    address or its region; after too many attempts there is no way round the wait.
    """

    def __init__(self, venue: Venue, clock: Clock, closed: ClosedSocketHosts | None = None) -> None:
        self._venue = venue
        self._clock = clock
        self._closed: ClosedSocketHosts = closed if closed is not None else {}

    @property
    def base_url(self) -> str:
        """The base URL of the next connection."""
        first, fallback = self._venue.socket_url, self._venue.socket_fallback
        closed = self._closed_now(first)
        if closed is None or not fallback or not closed.failure.refused:
            return first
        other = self._closed_now(fallback)
        return fallback if other is None or other.until < closed.until else first

    @property
    def wait(self) -> float:
        """Seconds until the next connection may be tried."""
        closed = self._closed_now(self.base_url)
        return closed.until - self._clock.monotonic() if closed is not None else 0.0

    def failed(self, base_url: str, failure: SocketFailure) -> None:
        """Note that a handshake failed."""
        if failure.wait:
            self._closed[base_url] = _Closed(self._clock.monotonic() + failure.wait, failure)

    def note(self, base_url: str) -> str:
        """Why this host is used instead of the first one; empty for the first one."""
        closed = self._closed.get(self._venue.socket_url)
        if base_url == self._venue.socket_url or closed is None:
            return ""
        return f"uses {redacted_url(base_url)}, because: {closed.failure.reason}"

    def _closed_now(self, base_url: str) -> _Closed | None:
        closed = self._closed.get(base_url)
        return closed if closed is not None and self._clock.monotonic() < closed.until else None


def socket_url(venue: Venue, base_url: str) -> str:
    """The URL of a market's trade socket at a base URL."""
    return base_url + venue.exchange.stream_path(venue.market)
