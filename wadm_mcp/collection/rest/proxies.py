"""The proxies of the environment, for REST and sockets."""

from __future__ import annotations

import socket
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from websockets.exceptions import InvalidProxyStatus, ProxyError

from wadm_mcp.settings import is_loopback
from wadm_mcp.texts import redacted_url


class Proxy(NamedTuple):
    """A proxy of the environment: its URL, which may contain a password, and the variable that names it."""

    url: str
    setting: str

    @property
    def shown(self) -> str:
        """Its address and its variable, without a password."""
        return f"{redacted_url(self.url)} ({self.setting})"

    @property
    def advice(self) -> str:
        """What to do if it cannot be used."""
        return f"Check that it runs, or change or unset {self.setting}"


def proxy_for(url: str) -> Proxy | None:
    """The environment's proxy for a URL of a socket or of REST, which obey the same variables; None where none is used."""
    address = urlsplit(url)
    host = address.hostname or ""
    if is_loopback(host) or proxy_bypass(host):
        return None
    proxies = getproxies()
    kind = "https" if address.scheme in ("wss", "https") else "http"
    setting = kind if proxies.get(kind) else "all"
    given = proxies.get(setting)
    if not given:
        return None
    proxy = urlsplit(given if "://" in given else f"http://{given}")
    user, at, place = proxy.netloc.rpartition("@")
    used = f"{proxy.scheme}://{user}{'' if ':' in user else ':'}@{place}" if at else f"{proxy.scheme}://{place}"
    return Proxy(used, f"{setting.upper()}_PROXY")


def failure_of_proxy(error: BaseException) -> str:
    """What kept a proxy from connecting, as the end of a clause about it; empty for an error that is not its own."""
    if isinstance(error, socket.gaierror):
        return "does not resolve to an address"
    if isinstance(error, ConnectionRefusedError):
        return "refused the connection"
    if isinstance(error, InvalidProxyStatus):
        return f"answered HTTP {error.response.status_code}"
    return "sent no valid reply" if isinstance(error, ProxyError) else ""
