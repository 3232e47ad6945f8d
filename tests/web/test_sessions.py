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
from tests.web.http_session import call, session
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
