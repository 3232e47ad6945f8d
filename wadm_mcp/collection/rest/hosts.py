"""The hosts that REST requests go to, and what a process knows of them."""

from __future__ import annotations

from typing import Final, NamedTuple

import httpx2

from wadm_mcp.collection.rest.rate_limit import RateLimiter
from wadm_mcp.errors import ExchangeError
from wadm_mcp.exchanges.exchange import Host, Venue
from wadm_mcp.texts import printable, redacted_url

BASE_URL_EXPECTED: Final = "set a base URL without a path, such as https://host:port"
QUOTED_CHARS: Final = 160
"""Characters of an exchange's own text that an error repeats."""


class ExchangeHost(NamedTuple):
    """A host that is requested: its name in errors (`binance spot`), its base URL, and the exchange's own host, None without one."""

    name: str
    base_url: str
    known: Host | None

    @classmethod
    def rest(cls, venue: Venue, base_url: str) -> ExchangeHost:
        """A REST host of a market."""
        return cls(venue.name, base_url, venue.hosts.rest)

    @classmethod
    def archive(cls, venue: Venue) -> ExchangeHost:
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
        return f"{self.setting}={printable(redacted_url(self.base_url), QUOTED_CHARS)}"

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
            raise ExchangeError(f"{self.name}: {self.shown} is not a URL; {BASE_URL_EXPECTED}") from None


class Fallback(NamedTuple):
    """A fallback host in use: until when (monotonic seconds), and why the first host is not used."""

    until: float
    why: str


class KnownHosts:
    """What a process knows of the REST hosts. Its clients share it: a ban or a fallback that one has met holds for all."""

    def __init__(self) -> None:
        self.limiters: dict[str, RateLimiter] = {}
        """The rate limit of each host, by its base URL without credentials."""
        self.fallbacks: dict[str, Fallback] = {}
        """The fallback hosts in use, by the base URL of the host that does not serve."""
        self.without_trades: dict[str, float] = {}
        """Until when (monotonic seconds) a host counts as one without trades by id, by its base URL."""
