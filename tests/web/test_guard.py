from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from tests.server.fake import FakeRuntime
from wadm_mcp.server.server import build_server
from wadm_mcp.web.app import build_app

pytestmark = pytest.mark.anyio

_KEY = "s3cret-clé"
_OPEN = ("/health", "/health/live")
_CLOSED = (
    "/mcp",
    "/sse",
    "/messages/",
    "/api/markets",
    "/api/trades",
    "/api/volume-profile",
    "/api/order-flow",
    "/api/footprint",
    "/nowhere",
    "/health/",
)


@asynccontextmanager
async def _client(**settings: Any) -> AsyncGenerator[httpx2.AsyncClient]:
    runtime = FakeRuntime(**settings)
    app = build_app(build_server(runtime), runtime)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1:8920") as client:
        yield client


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE"])
@pytest.mark.parametrize("path", _CLOSED)
async def test_without_the_key_every_route_is_closed(path: str, method: str) -> None:
    async with _client(API_KEY=_KEY) as client:
        for headers, error in (
            ({}, "missing key: "),
            ({"Authorization": f"Basic {_KEY}".encode()}, "missing key: "),
            ({"Authorization": _KEY.encode()}, "missing key: "),
            ({"X-API-Key": ""}, "missing key: "),
            ({"Authorization": "Bearer"}, "missing key: "),
            ({"Authorization": "Bearer wrong"}, "wrong key: the key sent in Authorization is not"),
            ({"Authorization": b"Bearer \xff"}, "wrong key: the key sent in Authorization is not"),
            ({"X-API-Key": b"\xff\xfe"}, "wrong key: the key sent in X-API-Key is not"),
            ({"X-API-Key": "wrong", "Authorization": "Bearer wrong"}, "wrong key: the key sent in X-API-Key and Authorization is not"),
        ):
            response = await client.request(method, path, headers=headers)  # pyright: ignore[reportArgumentType]
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"].startswith(error)


@pytest.mark.parametrize("path", _OPEN)
async def test_a_probe_needs_no_key(path: str) -> None:
    async with _client(API_KEY=_KEY) as client:
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {_KEY}".encode()},
        {"Authorization": f"bearer {_KEY}".encode()},
        {"X-API-Key": _KEY.encode()},
        {"X-API-Key": _KEY.encode(), "Authorization": b"Bearer wrong"},
    ],
)
async def test_bearer_and_x_api_key_are_both_accepted(headers: dict[str, Any]) -> None:
    async with _client(API_KEY=_KEY) as client:
        assert (await client.get("/api/markets", headers=headers)).status_code == 200
        assert (await client.get("/nowhere", headers=headers)).status_code == 404


async def test_without_a_key_in_the_settings_none_is_required() -> None:
    async with _client() as client:
        assert (await client.get("/api/markets")).status_code == 200


@pytest.mark.parametrize("path", [*_OPEN, *_CLOSED])
async def test_a_foreign_host_or_origin_is_refused_on_every_route(path: str) -> None:
    async with _client(API_KEY=_KEY) as client:
        foreign_host = await client.get(path, headers={"Host": "evil.example:8920", "X-API-Key": _KEY.encode()})  # pyright: ignore[reportArgumentType]
        foreign_origin = await client.get(path, headers={"Origin": "https://evil.example", "X-API-Key": _KEY.encode()})  # pyright: ignore[reportArgumentType]
    assert (foreign_host.status_code, foreign_origin.status_code) == (421, 403)
    assert foreign_host.json()["error"].startswith("Host evil.example:8920 is not accepted here")
    assert "WADM_ALLOWED_HOSTS" in foreign_origin.json()["error"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("127.0.0.1:8920", 200),
        ("127.8.8.8", 200),
        ("[::1]:8920", 200),
        ("[::1]", 200),
        ("wadm.example", 200),
        ("WADM.example:443", 200),
        ("wadm.example.:443", 200),
        ("localhost.evil.example", 421),
        ("evil.example@localhost", 421),
        ("localhost@evil.example", 421),
        ("localhost/evil", 421),
        ("localhost:port", 421),
        ("0.0.0.0:8920", 421),
        ("192.168.0.7", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
async def test_only_loopback_and_allowed_hosts_pass(host: str, status: int) -> None:
    async with _client(WADM_ALLOWED_HOSTS=("wadm.example",)) as client:
        assert (await client.get("/health", headers={"Host": host})).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("https://127.0.0.1", 200),
        ("http://[::1]:5173", 200),
        ("https://wadm.example:8443", 200),
        ("null", 403),
        ("", 403),
        ("localhost", 403),
        ("file://localhost", 403),
        ("http://localhost.evil.example", 403),
        ("http://localhost@evil.example", 403),
    ],
)
async def test_only_allowed_origins_pass(origin: str, status: int) -> None:
    async with _client(WADM_ALLOWED_HOSTS=("wadm.example",)) as client:
        assert (await client.get("/health", headers={"Origin": origin})).status_code == status


async def test_the_key_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with _client(API_KEY=_KEY) as client:
        await client.get("/api/markets", headers={"X-API-Key": _KEY.encode()})  # pyright: ignore[reportArgumentType]
        await client.get("/api/markets", headers={"X-API-Key": _KEY.encode() + b"x"})  # pyright: ignore[reportArgumentType]
    assert "s3cret" not in caplog.text
