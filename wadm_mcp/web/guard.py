"""The access check of every HTTP request, made before any route reads it.

A Host that is not allowed is answered with 421 and an Origin that is not allowed with 403, so that no page in a browser can reach a
server on loopback (DNS rebinding). With `API_KEY` set, every route but the health routes requires it.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from wadm_mcp.settings import Settings, is_loopback
from wadm_mcp.web.responses import error_response

OPEN_PATHS: Final = ("/health", "/health/live")
"""Routes that need no key, since a health probe has none."""

_MAX_SHOWN_CHARS: Final = 60


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._allowed = frozenset(_name_of(host) for host in settings.WADM_ALLOWED_HOSTS) - {""}
        key = settings.API_KEY.get_secret_value() if settings.API_KEY is not None else ""
        self._key = key.encode() or None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        if not hosts or not all(self._accepts(_name_of(host)) for host in hosts):
            return _refuse(421, "Host", hosts)
        if not all(self._accepts(_name_of_origin(origin)) for origin in origins):
            return _refuse(403, "Origin", origins)
        key_error = self._key_error(scope, self._key) if self._key is not None and scope["path"] not in OPEN_PATHS else None
        return error_response(401, key_error, {"WWW-Authenticate": "Bearer"}) if key_error is not None else None

    def _accepts(self, name: str) -> bool:
        return bool(name) and (name in self._allowed or is_loopback(name))

    def _key_error(self, scope: Scope, key: bytes) -> str | None:
        """Why the request is not authorised; None if one of its headers has the key."""
        given = [("X-API-Key", value) for name, value in scope["headers"] if name == b"x-api-key"]
        for name, value in scope["headers"]:
            scheme, _, credentials = value.partition(b" ")
            if name == b"authorization" and scheme.lower() == b"bearer":
                given.append(("Authorization", credentials.strip()))
        if any(hmac.compare_digest(value, key) for _, value in given):
            return None
        wrong = dict.fromkeys(header for header, value in given if value)
        if not wrong:
            return "missing key: send the server's API_KEY as Authorization: Bearer KEY, or as X-API-Key: KEY"
        return f"wrong key: the key sent in {' and '.join(wrong)} is not this server's API_KEY"


def _refuse(status: int, header: str, given: Iterable[str]) -> Response:
    value = ", ".join(given)[:_MAX_SHOWN_CHARS] or "(none)"
    return error_response(status, f"{header} {value} is not accepted here; allowed are loopback names and those in WADM_ALLOWED_HOSTS")


def _values(scope: Scope, header: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == header]


def _name_of(host: str) -> str:
    """The name in `wadm.example:443` or `[::1]:8920`, without the port, in lower case. Empty for anything that is not a host."""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018  raises ValueError for an invalid port
    except ValueError:
        return ""
    is_host = parts.netloc == host and "@" not in host
    return (parts.hostname or "").rstrip(".") if is_host else ""


def _name_of_origin(origin: str) -> str:
    """The host name in `https://wadm.example:443`. Empty for `null` and everything else that is not a web origin."""
    scheme, separator, host = origin.partition("://")
    return _name_of(host) if separator and scheme.lower() in ("http", "https") else ""
