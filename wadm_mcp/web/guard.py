"""The access check of every HTTP request, made before any route reads it.

A Host that is not allowed is answered with 421 and an Origin that is not allowed with 403, so that no page in a browser can reach a
server on loopback (DNS rebinding). A browser sends no Origin with the requests for a page's images and links; those from another site are
refused by its `Sec-Fetch-Site`. Pages of an allowed Origin may ask and read the answers (CORS). With `API_KEY` set, every route but the
health routes requires it.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

import anyio
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from wadm_mcp.health import Health
from wadm_mcp.logs import RateLimitedWarning
from wadm_mcp.settings import Settings, is_loopback
from wadm_mcp.web.responses import error_response

_OPEN_PATHS: Final = ("/health", "/health/live")

_MAX_SHOWN_CHARS: Final = 60
_WRONG_KEY_SECONDS: Final = 0.5
"""Delay of the answer to a wrong key, so that one client at a time does not try many."""
_MAX_DELAYED: Final = 16
"""Answers that are delayed at once, because each takes the place of a request. Beyond them a wrong key is refused without delay, and its
connection closed. Addresses have no limit each, because behind a proxy all clients have the same. The key's length is what protects it."""


def is_open(scope: Scope) -> bool:
    """Is this a route that needs no key, since a health probe has none?"""
    return scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/") in _OPEN_PATHS


def has_key(request: Request) -> bool:
    """Did the request come with the server's key, or does the server have none?"""
    return request.state.has_key


class Guard:
    """ASGI middleware around the whole application. `health` counts the requests without the right key."""

    def __init__(self, app: ASGIApp, settings: Settings, health: Health) -> None:
        # Origins that are not allowed do not get that far. Headers are not limited, because MCP names some of them after arguments.
        self._app = CORSMiddleware(
            _KeyCheck(app, settings, health),
            allow_origin_regex=".*",
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=("Mcp-Session-Id", "Retry-After", "WWW-Authenticate"),
        )
        self._allowed = frozenset(_name_of(host) for host in settings.WADM_ALLOWED_HOSTS) - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        if not hosts or not all(self._accepts(_name_of(host)) for host in hosts):
            return _refuse(421, "Host", hosts)
        if not all(self._accepts(_name_of_origin(origin)) for origin in origins):
            return _refuse(403, "Origin", origins)
        if not origins and "cross-site" in _values(scope, b"sec-fetch-site"):
            text = (
                "Sec-Fetch-Site cross-site without an Origin is not accepted here: another site's page made the browser send this request; "
            )
            return error_response(403, f"{text}open the address yourself")
        return None

    def _accepts(self, name: str) -> bool:
        return bool(name) and (name in self._allowed or is_loopback(name))


class _KeyCheck:
    """ASGI middleware that passes on what has the key, and any request for a health route, marked for `has_key`."""

    def __init__(self, app: ASGIApp, settings: Settings, health: Health) -> None:
        self._app = app
        key = settings.API_KEY.get_secret_value() if settings.API_KEY is not None else ""
        self._key = key.encode() or None
        self._health = health
        self._warn_refused = RateLimitedWarning("key.refused")
        self._delayed = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = await self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    async def _refusal(self, scope: Scope) -> Response | None:
        given = _keys(scope)
        right = self._key is None or any(hmac.compare_digest(value, self._key) for _, value in given)
        scope.setdefault("state", {})["has_key"] = right
        if right or (is_open(scope) and not given):
            return None
        self._health.count("keys.wrong" if given else "keys.missing")
        client = scope.get("client")
        self._warn_refused(reason="wrong" if given else "missing", client=client[0] if client else "unknown")
        headers = {"WWW-Authenticate": "Bearer"}
        if given and not await self._delay():
            headers["Connection"] = "close"
        return None if is_open(scope) else error_response(401, _key_error(given), headers)

    async def _delay(self) -> bool:
        """Wait before a wrong key is refused. False, without waiting, while too many others wait."""
        if self._delayed >= _MAX_DELAYED:
            return False
        self._delayed += 1
        try:
            await anyio.sleep(_WRONG_KEY_SECONDS)
        finally:
            self._delayed -= 1
        return True


def _keys(scope: Scope) -> list[tuple[str, bytes]]:
    """The headers that have a key, and the keys."""
    given: list[tuple[str, bytes]] = []
    for name, value in scope["headers"]:
        scheme, _, credentials = value.partition(b" ")
        if name == b"x-api-key":
            given.append(("X-API-Key", value))
        elif name == b"authorization" and scheme.lower() == b"bearer":
            given.append(("Authorization", credentials.strip()))
    return [(header, key) for header, key in given if key]


def _key_error(given: list[tuple[str, bytes]]) -> str:
    if not given:
        return "missing key: send the server's API_KEY as Authorization: Bearer KEY, or as X-API-Key: KEY"
    headers = sorted({header for header, _ in given}, reverse=True)
    return f"wrong key: the key sent in {' and '.join(headers)} is not this server's API_KEY"


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
