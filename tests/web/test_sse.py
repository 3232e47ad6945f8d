"""Sessions over SSE: a further one makes the least used one end, and what is posted is bounded."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import anyio
import httpx2
import pytest

from tests.server.fake import FakeRuntime, serving
from tests.web.http_session import INITIALIZE, call
from wadm_mcp.server.backpressure import CountedWrites, PacedReads
from wadm_mcp.web import app, sse
from wadm_mcp.web.sse import SseSessions

pytestmark = pytest.mark.anyio

_LIMIT = 2


@asynccontextmanager
async def _served(monkeypatch: pytest.MonkeyPatch, limit: int = _LIMIT) -> AsyncGenerator[tuple[httpx2.AsyncClient, SseSessions]]:
    """A server with room for so many sessions, and a client of it."""
    made: list[SseSessions] = []

    def make(*arguments: Any) -> SseSessions:
        made.append(SseSessions(*arguments, max_sessions=limit))
        return made[-1]

    monkeypatch.setattr(app, "SseSessions", make)
    with anyio.fail_after(20):
        async with serving(FakeRuntime()) as (url, _), httpx2.AsyncClient(base_url=url, trust_env=False) as client:
            yield client, made[0]


@asynccontextmanager
async def _session(client: httpx2.AsyncClient) -> AsyncGenerator[tuple[str, AsyncIterator[str]]]:
    """A session: the address of its messages, and the data that arrives."""
    async with client.stream("GET", "/sse") as response:
        lines = response.aiter_lines()
        data = (line.removeprefix("data: ") async for line in lines if line.startswith("data: "))
        yield await anext(data), data


async def test_at_the_limit_the_session_that_was_not_used_for_longest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _served(monkeypatch) as (client, sessions), AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(_session(client)) for _ in range(_LIMIT)]
        await client.post(first[0], json=call("initialize", INITIALIZE))
        assert "serverInfo" in await anext(first[1])
        third = await stack.enter_async_context(_session(client))
        assert [data async for data in second[1]] == []
        for address, data in (first, third):
            await client.post(address, json=call("initialize", INITIALIZE))
            assert "serverInfo" in await anext(data)
        assert len(sessions._open) == _LIMIT


async def test_at_the_limit_the_caller_with_most_sessions_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = [""]
    monkeypatch.setattr("wadm_mcp.web.sessions.shared_address", lambda _: addresses[-1])
    async with _served(monkeypatch, 3) as (client, sessions), AsyncExitStack() as stack:
        opened: list[tuple[str, AsyncIterator[str]]] = []
        for address in "abbc":
            addresses.append(address)
            opened.append(await stack.enter_async_context(_session(client)))
        assert [data async for data in opened[1][1]] == []
        for address, data in (opened[0], *opened[2:]):
            await client.post(address, json=call("initialize", INITIALIZE))
            assert "serverInfo" in await anext(data)
        assert len(sessions._open) == 3


async def test_a_session_that_takes_long_to_end_makes_room_once(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended, release = list[int](), list[int](), anyio.Event()

    async def run(read: PacedReads, write: CountedWrites, _: object) -> None:
        begun.append(number := len(begun))
        async with read, write:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(number)
                with anyio.CancelScope(shield=True):
                    await release.wait()

    async with _served(monkeypatch) as (client, sessions), AsyncExitStack() as stack:
        monkeypatch.setattr(sessions._server, "run", run)
        for _ in range(2 * _LIMIT):
            await stack.enter_async_context(_session(client))
        while len(begun) < 2 * _LIMIT or len(ended) < _LIMIT:
            await anyio.lowlevel.checkpoint()
        assert (sorted(ended), len(sessions._open)) == ([0, 1], _LIMIT)
        release.set()


@pytest.mark.parametrize("given", ["", "?session_id=", "?session_id=" + "x" * 5_000, "?session_id=%0d%0a%1b[31m"])
async def test_an_invalid_session_is_refused_without_a_word_of_it(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    async with _served(monkeypatch) as (client, _):
        answer = await client.post(f"/messages/{given}", json=call("ping", {}))
    assert (answer.status_code, answer.json()) == (
        400,
        {"error": "session_id is missing or not an id; post to the address that /sse announced"},
    )


async def test_messages_that_wait_for_their_session_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_POSTS", 2)
    async with _served(monkeypatch) as (client, sessions), _session(client) as (address, _):
        waiting = anyio.Event()
        counted, resume = anyio.Semaphore(0), anyio.Event()

        async def post(*_: object) -> None:
            counted.release()
            await resume.wait()

        monkeypatch.setattr(sessions._transport, "handle_post_message", post)
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(partial(_posted, client, address, waiting))
            for _ in range(2):
                await counted.acquire()
            assert (await client.post(address, json=call("ping", {}))).status_code == 429
            resume.set()
        assert not sessions._posts


async def _posted(client: httpx2.AsyncClient, address: str, waiting: anyio.Event) -> None:
    try:
        await client.post(address, json=call("ping", {}))
    except httpx2.RemoteProtocolError:
        waiting.set()
