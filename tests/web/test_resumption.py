"""A stream that breaks before its answer: the client reconnects with its last event and gets the rest, of its own session only."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import anyio
import httpx2
import pytest
from mcp.server.streamable_http import GET_STREAM_KEY, EventMessage
from mcp_types import JSONRPCNotification, JSONRPCResponse

from tests.server.fake import FakeRuntime, serving
from wadm_mcp.server.server import WadmServer
from wadm_mcp.web.resumption import SessionEvents

pytestmark = pytest.mark.anyio

VERSION = "2025-11-25"
HEADERS = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": VERSION}
INITIALIZE = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


def call(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """A request with the same id as every other request of these tests."""
    return {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}


async def events(response: httpx2.Response) -> AsyncGenerator[tuple[str, str]]:
    """Id and data of each event."""
    last = ""
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            last = value
        elif name in ("data", "data:"):
            yield last, value


@asynccontextmanager
async def session(url: str) -> AsyncGenerator[httpx2.AsyncClient]:
    """A client in a session of its own."""
    async with httpx2.AsyncClient(base_url=url, headers=HEADERS, trust_env=False) as client:
        opened = await client.post("/mcp", json=call("initialize", INITIALIZE))
        client.headers["Mcp-Session-Id"] = opened.headers["mcp-session-id"]
        await client.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        yield client


async def broken_off(client: httpx2.AsyncClient, said: str) -> str:
    """Call the slow tool and disconnect once the stream is open. Returns the id of the last event."""
    async with client.stream("POST", "/mcp", json=call("tools/call", {"name": "wait", "arguments": {"said": said}})) as response:
        async for last, data in events(response):
            assert data == ""
            return last
    raise AssertionError("the stream ended before its first event")


async def resumed(client: httpx2.AsyncClient, last: str) -> list[str]:
    """What a client that reconnects with this event receives, until the stream ends."""
    async with client.stream("GET", "/mcp", headers={"Last-Event-ID": last}) as response:
        return [data async for _, data in events(response) if data]


def declare_wait(server: WadmServer) -> tuple[anyio.Semaphore, anyio.Event]:
    """Declare a tool that answers once the returned event is set; the semaphore counts the calls that have begun."""
    begun, answer = anyio.Semaphore(0), anyio.Event()

    @server.tool(structured_output=False)
    async def wait(said: str) -> str:
        """Wait."""
        begun.release()
        await answer.wait()
        return said

    return begun, answer


async def test_an_answer_whose_stream_broke_is_sent_to_the_session_that_asked_and_to_no_other() -> None:
    with anyio.fail_after(20):
        async with serving(FakeRuntime()) as (url, server), session(url) as one, session(url) as other:
            begun, answer = declare_wait(server)
            ours, theirs = await broken_off(one, "ours"), await broken_off(other, "theirs")
            for _ in range(2):
                await begun.acquire()
            answer.set()
            answers = [await resumed(one, ours), await resumed(other, theirs)]
            crossed = [await resumed(one, theirs), await resumed(other, ours)]
    assert [[json.loads(data)["result"]["content"][0]["text"] for data in answer] for answer in answers] == [["ours"], ["theirs"]]
    assert crossed == [[], []]


async def test_only_kept_events_after_the_last_one_are_sent_again() -> None:
    sent = SessionEvents(deque(maxlen=3), count(1))
    progress = JSONRPCNotification(jsonrpc="2.0", method="notifications/progress")
    answer = JSONRPCResponse(jsonrpc="2.0", id=1, result={})
    replayed: list[EventMessage] = []

    async def collect(message: EventMessage) -> None:
        replayed.append(message)

    first = await sent.store_event("1", None)
    second = await sent.store_event("1", progress)
    assert await sent.replay_events_after(first, collect) == "1"
    assert await sent.replay_events_after(second, collect) == "1"
    third = await sent.store_event("1", answer)
    assert await sent.replay_events_after(second, collect) is None
    assert await sent.replay_events_after(third, collect) is None
    assert replayed == [EventMessage(progress, second), EventMessage(answer, third)]
    await sent.store_event("2", None)
    assert await sent.replay_events_after(first, collect) is None
    assert len(replayed) == 2


async def test_a_listening_stream_resumes_without_earlier_events() -> None:
    sent = SessionEvents(kept := deque(), count(1))
    last = await sent.store_event(GET_STREAM_KEY, JSONRPCNotification(jsonrpc="2.0", method="notifications/resources/updated"))

    async def refuse(_: EventMessage) -> None:
        raise AssertionError("nothing is to be sent again")

    assert await sent.replay_events_after(last, refuse) == GET_STREAM_KEY
    assert not kept
