from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import msgpack
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import TextContent

from tests.server.calls import MINUTES, arguments_for
from tests.server.fake import ERAS, FakeRuntime, over, serving
from wadm_mcp.errors import StoreError
from wadm_mcp.health import State
from wadm_mcp.queries.admission import Places
from wadm_mcp.server.questions import QUESTIONS
from wadm_mcp.server.server import build_server
from wadm_mcp.web.app import build_app

pytestmark = pytest.mark.anyio

_ROUTES = {question.path: question for question in QUESTIONS if question.path is not None}


@asynccontextmanager
async def _client(runtime: FakeRuntime) -> AsyncGenerator[httpx2.AsyncClient]:
    app = build_app(build_server(runtime), runtime)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize("path", _ROUTES)
async def test_a_json_route_answers_the_same_as_its_tool(path: str) -> None:
    runtime = FakeRuntime()
    arguments = arguments_for(_ROUTES[path])
    async with _client(runtime) as http, Client(build_server(runtime)) as mcp:
        response = await http.get(path, params=arguments)
        result = await mcp.call_tool(_ROUTES[path].name, dict(arguments))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == result.structured_content
    assert response.text == json.dumps(response.json(), separators=(",", ":"), ensure_ascii=False)


async def test_a_route_reads_a_symbol_as_its_tool_does() -> None:
    async with _client(FakeRuntime()) as client:
        answer = await client.get("/api/trades", params={"symbol": "BINANCE:BTC/USDT"})
        perpetual = await client.get("/api/trades", params={"symbol": "BTC/USDT:USDT"})
        contradiction = await client.get("/api/trades", params={"symbol": "binance:spot:BTCUSDT", "exchange": "bybit"})
    assert (answer.status_code, answer.json()["instrument"]) == (200, "binance:spot:BTCUSDT")
    assert (perpetual.status_code, perpetual.json()["error"][:48]) == (404, 'symbol "BTCUSDT" is not followed in market linea')
    assert (contradiction.status_code, "the symbol names binance" in contradiction.json()["error"]) == (400, True)


@pytest.mark.parametrize("path", _ROUTES)
async def test_messagepack_carries_the_same_as_json(path: str) -> None:
    arguments = arguments_for(_ROUTES[path])
    async with _client(FakeRuntime()) as client:
        plain = await client.get(path, params=arguments, headers={"Accept": "application/json, application/msgpack;q=0.0"})
        packed = await client.get(path, params=arguments, headers={"Accept": "text/html, Application/MsgPack; q=0.5"})
    assert plain.headers["content-type"] == "application/json"
    assert packed.headers["content-type"] == "application/msgpack"
    assert packed.headers["vary"] == "Accept, Origin"
    assert msgpack.unpackb(packed.content) == plain.json()


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("symbol=BTCUSDT&limt=9", 400, 'get_trades has no argument "limt". Nearest: limit.'),
        ("", 400, "symbol is missing"),
        ("symbol=BTCUSDT&limit=x", 400, 'limit="x"'),
        ("symbol=BTCUSDT&limit=1&limit=2", 400, '"limit" is given more than once'),
        ("symbol=BTCUSDT&window=2h", 400, 'window="2h"'),
        ("symbol=BTCUSDT&limit=", 400, 'limit=""'),
        ("symbol=ETHUSDX", 404, 'symbol "ETHUSDX" is not followed'),
    ],
)
async def test_an_invalid_question_is_answered_with_the_error_text_of_its_tool(query: str, status: int, said: str) -> None:
    async with _client(FakeRuntime()) as client:
        response = await client.get(f"/api/trades?{query}")
    assert response.status_code == status
    assert response.json()["error"].startswith(said)
    assert list(response.json()) == ["error"]


async def test_a_store_that_does_not_answer_is_503_and_a_crash_500_without_detail(caplog: pytest.LogCaptureFixture) -> None:
    runtime = FakeRuntime()
    async with _client(runtime) as client:
        runtime.store.error, runtime.store.spared = StoreError("the store is unreachable"), 1
        away = await client.get("/api/trades", params=MINUTES)
        runtime.store.error = ZeroDivisionError("secret detail")
        crashed = await client.get("/api/trades", params=MINUTES)
    assert (away.status_code, away.json()) == (503, {"error": "the store is unreachable"})
    assert (crashed.status_code, crashed.json()) == (500, {"error": "/api/trades failed inside WADM; the log has the details"})
    assert [record.exc_info is not None for record in caplog.records if record.message == "api.failed"] == [True]


async def test_a_crash_in_any_other_route_is_json_too() -> None:
    runtime = FakeRuntime()
    del runtime.role
    async with _client(runtime) as client:
        response = await client.get("/health")
    assert (response.status_code, response.json()) == (500, {"error": '"/health" failed inside WADM; the log has the details'})


async def test_unknown_paths_and_methods_are_refused_in_json() -> None:
    async with _client(FakeRuntime()) as client:
        nowhere = await client.get("/api/tradez")
        posted = [await client.post(path) for path in ("/api/trades", "/health", "/sse")]
    assert nowhere.status_code == 404
    assert nowhere.json()["error"].startswith('there is nothing at "/api/tradez". Paths: /mcp, /sse, /health')
    for response in posted:
        assert response.status_code == 405
        assert "GET" in response.headers["allow"]
        assert "use GET" in response.json()["error"]


@pytest.mark.parametrize("path", [*_ROUTES, "/mcp", "/sse", "/health", "/health/live", "/messages", "/nowhere", "/", ""])
async def test_no_path_is_redirected(path: str) -> None:
    runtime = FakeRuntime()
    with anyio.fail_after(10):
        async with serving(runtime) as (url, _), httpx2.AsyncClient(follow_redirects=False) as client:
            for slash in ("", "/", "//"):
                for method in ("GET", "POST"):
                    async with client.stream(method, f"{url}{path}{slash}", headers={"Host": "localhost"}) as response:
                        assert not 300 <= response.status_code < 400
                        assert "location" not in response.headers


async def test_mcp_is_served_with_a_slash_at_its_end_too() -> None:
    with anyio.fail_after(10):
        async with serving(FakeRuntime()) as (url, _):
            for era in ERAS:
                async with Client(f"{url}/mcp/", mode=era) as client:
                    assert (await client.list_tools()).tools


async def test_sse_announces_its_message_path_with_the_prefix_that_a_proxy_removes() -> None:
    runtime = FakeRuntime(WADM_ROOT_PATH="/wadm", API_KEY="s3cret")
    with anyio.fail_after(10):
        async with serving(runtime) as (url, _), httpx2.AsyncClient(base_url=url, headers={"X-API-Key": "s3cret"}) as client:
            async with client.stream("GET", "/sse") as stream:
                lines = stream.aiter_lines()
                assert await anext(lines) == "event: endpoint"
                announced = (await anext(lines)).removeprefix("data: ")
                assert announced.startswith("/wadm/messages/?session_id=")
                body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
                assert (await client.post(announced.removeprefix("/wadm"), json=body)).status_code == 202
            assert (await client.get("/api/markets")).status_code == 200
            async with httpx2.AsyncClient(base_url=url) as probe:
                assert [(await probe.get(path)).status_code for path in ("/health", "/health/live", "/api/markets")] == [200, 200, 401]


async def test_health_lists_every_part_and_nothing_secret() -> None:
    runtime = FakeRuntime(API_KEY="s3cret")
    key = {"X-API-Key": "s3cret"}
    runtime.health.count("frames.bad", 2)
    async with _client(runtime) as client:
        good = await client.get("/health", headers=key)
        runtime.health.report("binance:spot:BTCUSDT", State.DOWN, "no frame for 31 s")
        bad = await client.get("/health", headers=key)
        live = await client.get("/health/live")
    assert (good.status_code, good.json()["status"], good.json()["role"], good.json()["reasons"]) == (200, "ok", "recording", [])
    assert good.json()["parts"]["store"] == {"state": "ok", "detail": "", "since": "2026-06-01T12:03:00.000Z"}
    assert good.json()["counts"] == {"frames.bad": 2}
    assert (bad.status_code, bad.json()["status"]) == (503, "degraded")
    assert bad.json()["reasons"] == ["binance:spot:BTCUSDT: down, no frame for 31 s"]
    assert (live.status_code, live.json()) == (200, {"status": "ok"})
    assert "s3cret" not in good.text + bad.text + live.text


async def test_health_does_not_wait_for_the_store() -> None:
    runtime = FakeRuntime()
    runtime.store.error = StoreError("out of reach")
    async with _client(runtime) as client:
        assert (await client.get("/health")).status_code == 200


async def test_many_clients_over_all_transports_share_one_runtime() -> None:
    runtime = FakeRuntime()
    with anyio.fail_after(30):
        async with serving(runtime) as (url, _):
            for era in ERAS:
                for transport in ("http", "sse"):
                    async with over(transport, url, era) as one, over(transport, url, era) as two, over(transport, url, era) as three:
                        for client in (one, two, three):
                            result = await client.call_tool("get_trades", {**MINUTES, "limit": 3})
                            (block,) = result.content
                            assert result.structured_content == json.loads(getattr(block, "text", ""))
            assert runtime.entries == 1
            assert runtime.exits == 0
    assert (runtime.entries, runtime.exits) == (1, 1)


async def test_the_lifespan_of_another_asgi_server_enters_the_runtime_once_too() -> None:
    runtime = FakeRuntime()
    app = build_app(build_server(runtime), runtime)
    sent, receive = anyio.create_memory_object_stream[dict[str, Any]](4)
    answers: list[str] = []

    async def send(message: Any) -> None:
        answers.append(message["type"])

    async with anyio.create_task_group() as tasks, sent, receive:
        tasks.start_soon(app, {"type": "lifespan", "state": {}}, receive.receive, send)
        await sent.send({"type": "lifespan.startup"})
        with anyio.fail_after(5):
            while not answers:
                await anyio.lowlevel.checkpoint()
            assert runtime.entries == 1
            await sent.send({"type": "lifespan.shutdown"})
            while len(answers) < 2:
                await anyio.lowlevel.checkpoint()
    assert answers == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert runtime.exits == 1


async def test_a_costly_question_without_a_place_is_told_when_to_come_again_and_a_cheap_one_is_answered() -> None:
    runtime = FakeRuntime()
    runtime.admission.costly = Places(1, 0)
    async with _client(runtime) as http, Client(build_server(runtime)) as mcp, runtime.admission.costly.place():
        refused = await http.get("/api/footprint", params={"symbol": "BTCUSDT", "window": "4h"})
        short = await http.get("/api/footprint", params={"symbol": "BTCUSDT", "window": "1h"})
        markets = await http.get("/api/markets")
        tool = await mcp.call_tool("get_market_structure", {"symbol": "BTCUSDT"})
        with pytest.raises(MCPError, match=r"^busy: "):
            await mcp.read_resource("wadm://binance/spot/BTCUSDT/market-structure/15m")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json() == {"error": "busy: 1 questions are being answered or wait; ask again in 1 s"}
    assert (short.status_code, markets.status_code) == (200, 200)
    assert tool.is_error
    assert [one.text for one in tool.content if isinstance(one, TextContent)] == [refused.json()["error"]]


async def test_a_client_that_leaves_does_not_keep_its_place() -> None:
    runtime = FakeRuntime()
    places = runtime.admission.costly = Places(1, 9)
    async with serving(runtime) as (url, _), places.place():
        host, _, port = url.removeprefix("http://").partition(":")
        async with await anyio.connect_tcp(host, int(port)) as client:
            await client.send(b"GET /api/footprint?symbol=BTCUSDT&window=4h HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with anyio.fail_after(5):
                while not places.waiting:
                    await anyio.sleep(0.001)
        with anyio.fail_after(5):
            while places.waiting:
                await anyio.sleep(0.001)
