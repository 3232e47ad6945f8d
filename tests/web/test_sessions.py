"""Clients that leave without a word keep nobody out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import anyio
import httpx2
import pytest

from tests.server.fake import FakeRuntime, serving
from tests.web.http_session import HEADERS, INITIALIZE, call, session
from wadm_mcp.server.server import WadmServer
from wadm_mcp.web import app
from wadm_mcp.web.sessions import Sessions

pytestmark = pytest.mark.anyio

_LIMIT = 3
_LISTED = call("tools/list", {})


@asynccontextmanager
async def _served(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[tuple[str, WadmServer, Sessions]]:
    """A server with room for three sessions."""
    made: list[Sessions] = []

    def make(*arguments: Any) -> Sessions:
        made.append(Sessions(*arguments, max_sessions=_LIMIT))
        return made[-1]

    monkeypatch.setattr(app, "Sessions", make)
    with anyio.fail_after(20):
        async with serving(FakeRuntime()) as (url, server):
            yield url, server, made[0]


async def _lives(client: httpx2.AsyncClient) -> bool:
    answer = await client.post("/mcp", json=_LISTED)
    assert answer.status_code in (200, 404)
    return answer.status_code == 200


async def test_at_the_limit_the_session_that_has_been_idle_for_longest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _served(monkeypatch) as (url, _, sessions), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(session(url)) for _ in range(_LIMIT)]
        assert await _lives(clients[0])
        clients.append(await stack.enter_async_context(session(url)))
        assert [await _lives(one) for one in clients] == [True, False, True, True]
        for _ in range(5 * _LIMIT):
            assert await _lives(await stack.enter_async_context(session(url)))
        assert len(sessions._server_instances) == _LIMIT


async def test_a_session_with_a_call_in_progress_or_a_stream_outlives_idle_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _served(monkeypatch) as (url, server, sessions), AsyncExitStack() as stack:
        begun, answer = anyio.Event(), anyio.Event()

        @server.tool(structured_output=False)
        async def work() -> str:
            """Work."""
            begun.set()
            await answer.wait()
            return "done"

        calling, listening = [await stack.enter_async_context(session(url)) for _ in range(2)]
        # The call goes on without its connection; its answer can be had by resuming.
        async with calling.stream("POST", "/mcp", json=call("tools/call", {"name": "work", "arguments": {}})):
            await begun.wait()
        await stack.enter_async_context(listening.stream("GET", "/mcp"))
        for _ in range(2 * _LIMIT):
            assert await _lives(await stack.enter_async_context(session(url)))
        assert (await _lives(calling), await _lives(listening)) == (True, True)
        assert len(sessions._server_instances) == _LIMIT
        answer.set()


async def test_when_all_sessions_listen_the_oldest_one_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _served(monkeypatch) as (url, _, _), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(session(url)) for _ in range(_LIMIT)]
        streams = [await stack.enter_async_context(one.stream("GET", "/mcp")) for one in clients]
        assert await _lives(await stack.enter_async_context(session(url)))
        assert [line async for line in streams[0].aiter_lines()] == []
        assert [await _lives(one) for one in clients] == [False, True, True]


@asynccontextmanager
async def _calling(server: WadmServer, client: httpx2.AsyncClient) -> AsyncGenerator[httpx2.Response]:
    """A call of the session that is being answered."""
    begun = anyio.Event()

    @server.tool(name=f"work-{client.headers['Mcp-Session-Id']}", structured_output=False)
    async def work() -> str:
        """Work."""
        begun.set()
        await anyio.sleep_forever()
        return "done"

    asked = {**call("tools/call", {"name": f"work-{client.headers['Mcp-Session-Id']}", "arguments": {}}), "id": 8}
    async with client.stream("POST", "/mcp", json=asked) as response:
        await begun.wait()
        yield response


async def test_a_session_whose_client_does_not_read_its_answers_makes_room_before_one_with_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _served(monkeypatch) as (url, server, sessions), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(session(url)) for _ in range(_LIMIT)]
        await stack.enter_async_context(_calling(server, clients[0]))

        @server.tool(structured_output=False)
        async def much() -> str:
            """Much."""
            return "x" * 8_000_000

        for one in clients[1:]:
            # Its answer is ready and not read: no call is in progress, and the session is never idle.
            await stack.enter_async_context(one.stream("POST", "/mcp", json=call("tools/call", {"name": "much", "arguments": {}})))
            while server.limits.busy(one.headers["Mcp-Session-Id"]):
                await anyio.lowlevel.checkpoint()
        assert await _lives(await stack.enter_async_context(session(url)))
        assert list(sessions._server_instances)[:2] == [clients[number].headers["Mcp-Session-Id"] for number in (0, 2)]


async def test_when_all_sessions_have_calls_the_one_of_the_caller_with_most_that_was_not_used_for_longest_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    addresses = _addresses(monkeypatch)
    async with _served(monkeypatch) as (url, server, _), AsyncExitStack() as stack:
        clients: list[httpx2.AsyncClient] = []
        for address in ("a", "b", "b"):
            addresses.append(address)
            clients.append(await stack.enter_async_context(session(url)))
        calls = [await stack.enter_async_context(_calling(server, clients[number])) for number in (0, 2, 1)]
        addresses.append("c")
        assert await _lives(await stack.enter_async_context(session(url)))
        assert "isError" not in "".join([line async for line in calls[1].aiter_lines()])
        assert [await _lives(one) for one in clients] == [True, True, False]


async def test_an_idle_session_of_the_caller_with_most_makes_room_before_one_that_was_idle_for_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    addresses = _addresses(monkeypatch)
    async with _served(monkeypatch) as (url, _, _), AsyncExitStack() as stack:
        clients: list[httpx2.AsyncClient] = []
        for address in ("a", "b", "b", "c", "b"):
            addresses.append(address)
            clients.append(await stack.enter_async_context(session(url)))
        assert [await _lives(one) for one in clients] == [True, False, False, True, True]


async def test_when_every_caller_has_one_session_with_a_call_a_new_client_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = _addresses(monkeypatch)
    async with _served(monkeypatch) as (url, server, _), AsyncExitStack() as stack:
        for address in "abc":
            addresses.append(address)
            client = await stack.enter_async_context(session(url))
            await stack.enter_async_context(_calling(server, client))
        addresses.append("d")
        async with httpx2.AsyncClient(base_url=url, headers=HEADERS, trust_env=False) as new:
            refused = await new.post("/mcp", json=call("initialize", INITIALIZE))
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "30")
        assert refused.json()["error"]["message"] == (
            "busy: 3 sessions are open, as many as are served at once, and each has a call in progress; ask again in 30 s"
        )


def _addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that new sessions come from: the last one that was added."""
    addresses = [""]
    monkeypatch.setattr("wadm_mcp.web.sessions.shared_address", lambda _: addresses[-1])
    return addresses


async def test_the_events_of_a_session_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _served(monkeypatch) as (url, _, sessions), AsyncExitStack() as stack:
        for _ in range(2 * _LIMIT):
            client = await stack.enter_async_context(session(url))
            assert await _lives(client)
            assert sessions._kept.size > 0
            await client.delete("/mcp")
            assert sessions._kept.size == 0
        for _ in range(2 * _LIMIT):
            assert await _lives(await stack.enter_async_context(session(url)))
        while len({event.session for event in sessions._kept._events.values()}) > _LIMIT:
            await anyio.lowlevel.checkpoint()


async def test_a_session_whose_client_leaves_many_requests_open_is_refused_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wadm_mcp.web.sessions.MAX_POSTS", 2)
    async with _served(monkeypatch) as (url, server, _), session(url) as client:
        begun, answer = anyio.Semaphore(0), anyio.Event()

        @server.tool(structured_output=False)
        async def work() -> str:
            """Work."""
            begun.release()
            await answer.wait()
            return "done"

        async with anyio.create_task_group() as tasks:
            for number in range(2):
                asked = {**call("tools/call", {"name": "work", "arguments": {}}), "id": number}
                tasks.start_soon(partial(client.post, "/mcp", json=asked))
            for _ in range(2):
                await begun.acquire()
            refused = await client.post("/mcp", json=_LISTED)
            assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
            assert refused.json()["error"]["message"].startswith("busy: 2 requests of this session are in progress; read their answers")
            answer.set()
        assert await _lives(client)


async def test_a_client_that_leaves_while_it_sends_a_request_leaves_no_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Any] = []

    async def left() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async with _served(monkeypatch) as (url, _, sessions), session(url) as client:
        headers = {**HEADERS, "Content-Type": "application/json", "Mcp-Session-Id": client.headers["Mcp-Session-Id"]}
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": "/mcp",
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
        await sessions.handle_request(scope, left, send)
        assert await _lives(client)
    assert sent[0]["status"] == 500
    assert not [record.getMessage() for record in caplog.records if record.exc_info]
