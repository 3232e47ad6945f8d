from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import httpx2
import pytest

from tests.server.fake import FakeRuntime, serving
from wadm_mcp.health import State
from wadm_mcp.server.server import build_server
from wadm_mcp.web import guard
from wadm_mcp.web.app import build_app

pytestmark = pytest.mark.anyio

_KEY = "s3cret-clé"
_OPEN = ("/health", "/health/live", "/health/")
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
)
_RIGHT = {"X-API-Key": _KEY.encode()}
_WRONG = {"X-API-Key": b"wrong"}
_INSPECTOR = "http://localhost:6274"


@pytest.fixture(autouse=True)
def _undelayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_WRONG_KEY_SECONDS", 0.0)


@asynccontextmanager
async def _client(runtime: FakeRuntime | None = None, **settings: Any) -> AsyncGenerator[httpx2.AsyncClient]:
    runtime = runtime or FakeRuntime(**settings)
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


@pytest.mark.parametrize("path", [*_OPEN, *_CLOSED])
@pytest.mark.parametrize("mode", ["no-cors", "navigate"])
async def test_a_request_that_another_sites_page_caused_is_refused_on_every_route(path: str, mode: str) -> None:
    async with _client() as client:
        response = await client.get(path, headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode})
    assert response.status_code == 403
    assert response.json()["error"].startswith("Sec-Fetch-Site cross-site without an Origin is not accepted here")
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "cross-site", "Origin": _INSPECTOR},
        {},
    ],
    ids=["typed", "own page", "allowed origin", "no browser"],
)
async def test_what_the_user_or_an_allowed_page_asks_is_answered(headers: dict[str, str]) -> None:
    async with _client() as client:
        assert (await client.get("/api/markets", headers=headers)).status_code == 200


@pytest.mark.parametrize("path", ["/mcp", "/mcp/", "/sse", "/messages/", "/api/markets", "/health"])
async def test_a_browser_that_asks_first_whether_it_may_is_answered_without_a_key(path: str) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,mcp-session-id,mcp-param-symbol"}
    async with _client(API_KEY=_KEY, WADM_ALLOWED_HOSTS=("wadm.example",)) as client:
        for origin in (_INSPECTOR, "https://wadm.example"):
            response = await client.options(path, headers={"Origin": origin, "Sec-Fetch-Site": "cross-site", **asked})
            assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, origin)
            assert response.headers["access-control-allow-methods"] == "GET, POST, DELETE"
            assert response.headers["access-control-allow-headers"] == asked["Access-Control-Request-Headers"]
        foreign = await client.options(path, headers={"Origin": "https://evil.example", **asked})
    assert (foreign.status_code, "access-control-allow-origin" in foreign.headers) == (403, False)


async def test_a_page_of_an_allowed_origin_can_read_answers_and_refusals_and_needs_the_key() -> None:
    async with _client(API_KEY=_KEY) as client:
        for path, headers, status in (
            ("/api/markets", _RIGHT, 200),
            ("/api/markets", {}, 401),
            ("/api/markets", _WRONG, 401),
            ("/nowhere", _RIGHT, 404),
            ("/health/live", {}, 200),
        ):
            response = await client.get(path, headers={"Origin": _INSPECTOR, **headers})  # pyright: ignore[reportArgumentType]
            assert (response.status_code, response.headers["access-control-allow-origin"]) == (status, _INSPECTOR)
            assert response.headers["access-control-expose-headers"].startswith("Mcp-Session-Id")
            assert "Origin" in response.headers["vary"]


async def test_without_the_key_health_tells_states_and_nothing_else() -> None:
    runtime = FakeRuntime(API_KEY=_KEY)
    runtime.health.report("store", State.DOWN, "mongodb://10.1.2.3 does not answer")
    async with _client(runtime) as client:
        for headers in ({}, _WRONG, {"Authorization": "Bearer"}):
            response = await client.get("/health", headers=headers)  # pyright: ignore[reportArgumentType]
            states = {"binance:spot:BTCUSDT": {"state": "ok"}, "bybit:spot:BTCUSDT": {"state": "ok"}, "store": {"state": "down"}}
            assert (response.status_code, response.json()) == (503, {"status": "degraded", "role": "recording", "parts": states})
            assert (await client.get("/health/live", headers=headers)).json() == {"status": "ok"}  # pyright: ignore[reportArgumentType]
        whole = (await client.get("/health", headers=_RIGHT)).json()  # pyright: ignore[reportArgumentType]
    assert whole["reasons"] == ["store: down, mongodb://10.1.2.3 does not answer"]
    assert set(whole) == {"status", "role", "version", "reasons", "parts", "counts"}


async def test_requests_without_the_right_key_are_counted_and_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    runtime = FakeRuntime(API_KEY=_KEY)
    async with _client(runtime) as client:
        for headers in (_WRONG, {}, _WRONG, _WRONG, _RIGHT):
            await client.get("/api/markets", headers=headers)  # pyright: ignore[reportArgumentType]
        await client.get("/health")
        await client.get("/health", headers=_WRONG)  # pyright: ignore[reportArgumentType]
    assert runtime.health.counts == {"keys.wrong": 4, "keys.missing": 1}
    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.getMessage() == "key.refused"
    assert getattr(line, "wadm_fields") == {"reason": "wrong", "client": "127.0.0.1", "count": 1}  # noqa: B009


async def test_wrong_keys_are_answered_slowly_and_only_a_few_of_them_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_WRONG_KEY_SECONDS", 3_600)
    monkeypatch.setattr(guard, "_MAX_DELAYED", 2)
    runtime = FakeRuntime(API_KEY=_KEY)
    with anyio.fail_after(10):
        async with serving(runtime) as (url, _), httpx2.AsyncClient(base_url=url) as client, anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(partial(client.get, "/api/markets", headers=_WRONG))  # pyright: ignore[reportArgumentType]
            while runtime.health.counts["keys.wrong"] < 2:
                await anyio.lowlevel.checkpoint()
            undelayed = await client.get("/api/markets", headers=_WRONG)  # pyright: ignore[reportArgumentType]
            right = await client.get("/api/markets", headers=_RIGHT)  # pyright: ignore[reportArgumentType]
            assert (undelayed.status_code, undelayed.headers["connection"]) == (401, "close")
            assert right.status_code == 200
            tasks.cancel_scope.cancel()


async def test_the_key_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with _client(API_KEY=_KEY) as client:
        await client.get("/api/markets", headers={"X-API-Key": _KEY.encode()})  # pyright: ignore[reportArgumentType]
        await client.get("/api/markets", headers={"X-API-Key": _KEY.encode() + b"x"})  # pyright: ignore[reportArgumentType]
    assert "s3cret" not in caplog.text
