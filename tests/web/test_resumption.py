"""A stream that breaks before its answer: the client reconnects with its last event and gets the rest, of its own session only."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

import anyio
import httpx2
import pytest
from mcp.server.streamable_http import GET_STREAM_KEY, EventMessage
from mcp_types import JSONRPCError, JSONRPCNotification, JSONRPCResponse

from tests.server.fake import FakeRuntime, serving
from tests.web.http_session import call, session
from wadm_mcp.server.server import WadmServer
from wadm_mcp.web.resumption import MAX_EVENT_BYTES, KeptEvents, SessionEvents

pytestmark = pytest.mark.anyio


async def events(response: httpx2.Response) -> AsyncGenerator[tuple[str, str]]:
    """Id and data of each event."""
    last = ""
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            last = value
        elif name in ("data", "data:"):
            yield last, value


async def broken_off(client: httpx2.AsyncClient, said: str, times: int = 1) -> str:
    """Call the slow tool and disconnect once the stream is open. Returns the id of the last event."""
    asked = {"name": "wait", "arguments": {"said": said, "times": times}}
    async with client.stream("POST", "/mcp", json=call("tools/call", asked)) as response:
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
    async def wait(said: str, times: int) -> str:
        """Wait."""
        begun.release()
        await answer.wait()
        return said * times

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
    for (told,) in crossed:
        assert json.loads(told)["error"]["message"].endswith("is not kept any more. Ask again")


async def test_in_place_of_a_large_answer_its_client_is_told_to_ask_again() -> None:
    with anyio.fail_after(20):
        async with serving(FakeRuntime()) as (url, server), session(url) as client:
            begun, answer = declare_wait(server)
            last = await broken_off(client, "x", MAX_EVENT_BYTES)
            await begun.acquire()
            answer.set()
            (received,) = await resumed(client, last)
    said = json.loads(received)
    assert said["id"] == 7
    assert said["error"]["message"].startswith("the connection broke before the answer had arrived, and an answer of 512,")
    assert said["error"]["message"].endswith(" bytes is not kept. Ask again")


class _Replayed(list[EventMessage]):
    """Events that are sent again."""

    async def __call__(self, message: EventMessage) -> None:
        self.append(message)


def _answer(size: int = 0) -> JSONRPCResponse:
    return JSONRPCResponse(jsonrpc="2.0", id=1, result={"text": "x" * size})


async def test_events_after_the_last_one_are_sent_again_while_they_are_kept() -> None:
    kept = KeptEvents(max_bytes=2_000)
    sent, replayed = SessionEvents(kept), _Replayed()
    progress = JSONRPCNotification(jsonrpc="2.0", method="notifications/progress")
    answer = _answer()
    first = await sent.store_event("1", None)
    second = await sent.store_event("1", progress)
    assert await sent.replay_events_after(first, replayed) == "1"
    assert await sent.replay_events_after(second, replayed) == "1"
    third = await sent.store_event("1", answer)
    assert await sent.replay_events_after(second, replayed) is None
    assert await sent.replay_events_after(third, replayed) is None
    assert replayed == [EventMessage(progress, second), EventMessage(answer, third)]


async def test_the_events_of_all_sessions_have_one_limit_in_bytes_and_each_session_a_share_of_it() -> None:
    kept = KeptEvents(max_bytes=100_000)
    sessions = [SessionEvents(kept) for _ in range(20)]
    opened = [await one.store_event("1", None) for one in sessions]
    greedy = SessionEvents(kept)
    for _ in range(100):
        await greedy.store_event("1", _answer(8_000))
        assert kept.size <= 100_000
    assert kept.size > 90_000
    for one in sessions:
        await one.store_event("1", _answer(3_000))
        assert kept.size <= 100_000
    # What was pushed out is the greedy session's.
    replayed = _Replayed()
    for one, last in zip(sessions, opened, strict=True):
        await one.replay_events_after(last, replayed)
    assert [type(message.message) for message in replayed] == [JSONRPCResponse] * 20
    assert 0 < len(greedy.numbers) < 5
    for one in (*sessions, greedy):
        one.close()
    assert (kept.size, [len(one.numbers) for one in sessions]) == (0, [0] * 20)


@pytest.mark.parametrize(("stream", "request_id"), [("7", 7), ("-7", -7), ("a\nb", None), ("1" * 400, None)])
async def test_a_client_whose_events_were_dropped_is_told_to_ask_again(stream: str, request_id: int | None) -> None:
    kept = KeptEvents(max_bytes=10_000)
    sent, replayed = SessionEvents(kept), _Replayed()
    last = await sent.store_event(stream, None)
    assert last.isprintable()
    assert len(last) < 50
    assert await sent.replay_events_after(last, replayed) == stream
    for number in range(3):
        await sent.store_event(f"{number}", _answer(8_000))
    assert await sent.replay_events_after(last, replayed) is None
    (told,) = replayed
    assert isinstance(told.message, JSONRPCError)
    assert told.message.id == request_id
    assert told.message.error.message == (
        "the connection broke before the answer had arrived, and what was sent meanwhile is not kept any more. Ask again"
    )


async def test_a_client_whose_events_are_dropped_while_an_earlier_one_is_sent_is_told_too() -> None:
    kept = KeptEvents()
    sent, replayed = SessionEvents(kept), _Replayed()
    first = await sent.store_event("1", None)
    for _ in range(2):
        await sent.store_event("1", JSONRPCNotification(jsonrpc="2.0", method="notifications/progress"))

    async def end(message: EventMessage) -> None:
        await replayed(message)
        sent.close()

    assert await sent.replay_events_after(first, end) is None
    assert [type(message.message) for message in replayed] == [JSONRPCNotification, JSONRPCError]


async def test_nothing_is_kept_of_a_session_that_has_ended() -> None:
    kept = KeptEvents()
    sent = SessionEvents(kept)
    await sent.store_event("1", _answer(100))
    sent.close()
    await sent.store_event("1", _answer(100))
    assert kept.size == 0


async def test_a_listening_stream_resumes_without_earlier_events() -> None:
    sent = SessionEvents(kept := KeptEvents())
    last = await sent.store_event(GET_STREAM_KEY, JSONRPCNotification(jsonrpc="2.0", method="notifications/resources/updated"))

    async def refuse(_: EventMessage) -> None:
        raise AssertionError("nothing is to be sent again")

    assert await sent.replay_events_after(last, refuse) == GET_STREAM_KEY
    assert kept.size == 0
