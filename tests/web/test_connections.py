"""The bounds on connections, over real sockets: how many, how many of one address, and how long a request may take to arrive."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from itertools import product
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2
import pytest
from anyio import to_thread
from anyio.abc import SocketAttribute, SocketStream

from tests.server.fake import FakeRuntime, serving
from wadm_mcp.queries import callers
from wadm_mcp.web import connections, http_server, serve
from wadm_mcp.web.connections import connection_limit

pytestmark = pytest.mark.anyio

_HALF_A_HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
_LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
_HALF_A_BODY = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12345"


class _Site:
    """A served runtime, and the connections to it."""

    def __init__(self, url: str, runtime: FakeRuntime, stack: AsyncExitStack) -> None:
        self.url = url
        self.runtime = runtime
        self._stack = stack

    async def connect(self, sent: bytes = b"") -> SocketStream:
        """A connection that has sent this."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        stream = await self._stack.enter_async_context(await anyio.connect_tcp(parts.hostname, parts.port))
        if sent:
            await stream.send(sent)
        return stream

    async def counted(self, event: str, count: int = 1) -> None:
        """Wait until the server has counted so many of an event."""
        while self.runtime.health.counts[event] < count:
            await anyio.lowlevel.checkpoint()
        assert self.runtime.health.counts[event] == count


@asynccontextmanager
async def _site(monkeypatch: pytest.MonkeyPatch, limit: int = 8, **settings: Any) -> AsyncGenerator[_Site]:
    monkeypatch.setattr(connections, "_MAX_CONNECTIONS", limit)
    runtime = FakeRuntime(**settings)
    with anyio.fail_after(10):
        async with serving(runtime) as (url, _), AsyncExitStack() as stack:
            yield _Site(url, runtime, stack)


async def _answer(stream: SocketStream) -> bytes:
    """The answer up to the end of its body, of which the length is known."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += await stream.receive()
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += await stream.receive()
    return head


async def _is_closed(stream: SocketStream) -> bool:
    """Waits for the server to close it; False where the server sends something first."""
    try:
        await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return True
    return False


async def test_when_full_the_connection_that_has_waited_longest_for_its_client_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _site(monkeypatch, 3) as site:
        idle = await site.connect(_LIVE)
        await _answer(idle)
        silent = await site.connect()
        half = await site.connect(_HALF_A_HEAD)
        for number, closed in enumerate((idle, silent, half), 1):
            probe = await site.connect(_LIVE)
            assert (await _answer(probe)).startswith(b"HTTP/1.1 200")
            assert await _is_closed(closed)
            await site.counted("connections.evicted", number)


async def test_a_probe_gets_in_however_many_connections_are_idle_or_half_sent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with _site(monkeypatch, 16) as site:
        for number in range(100):
            await site.connect(_HALF_A_HEAD if number % 2 else b"")
        async with httpx2.AsyncClient() as client:
            assert (await client.get(f"{site.url}/health/live")).status_code == 200
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == ["connections.full"]


async def test_half_sent_bodies_take_no_room_from_a_client_that_has_just_come(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _site(monkeypatch, 3) as site:
        bodies = [await site.connect(_HALF_A_BODY) for _ in range(3)]
        client = await site.connect()
        assert await _is_closed(bodies[0])
        await site.connect(_HALF_A_BODY)
        assert await _is_closed(bodies[1])
        await client.send(_LIVE)
        assert (await _answer(client)).startswith(b"HTTP/1.1 200")


def _burst(site: _Site, stack: ExitStack, count: int) -> list[socket.socket]:
    """So many connections, which come between two turns of the event loop."""
    address = (urlsplit(site.url).hostname, urlsplit(site.url).port)
    return [stack.enter_context(socket.create_connection(address)) for _ in range(count)]


async def test_of_a_flood_requests_come_first_and_of_the_others_only_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_MAX_OPENED", 1)
    async with _site(monkeypatch, 16) as site:
        early = [await site.connect(_LIVE) for _ in range(16)]
        for one in early:
            await _answer(one)
        with ExitStack() as opened:
            *_, probe, first, second, third = _burst(site, opened, 8)
            probe.sendall(_LIVE)
            await site.counted("connections.evicted", 8)
            answered, *others = [await to_thread.run_sync(one.recv, 4_096) for one in (probe, first, second)]
            assert answered.startswith(b"HTTP/1.1 200")
            assert others == [b"", b""]
            third.sendall(_LIVE)
            assert (await to_thread.run_sync(third.recv, 4_096)).startswith(b"HTTP/1.1 200")
        for closed in early[:6]:
            assert await _is_closed(closed)


@pytest.mark.parametrize("come", [4, 7])
async def test_of_a_burst_every_client_gets_in_although_older_ones_are_silent(monkeypatch: pytest.MonkeyPatch, come: int) -> None:
    monkeypatch.setattr(http_server, "_MAX_OPENED", 1)
    async with _site(monkeypatch, 16) as site:
        silent = [await site.connect() for _ in range(16)]
        with ExitStack() as opened:
            clients = _burst(site, opened, come)
            for closed in silent[:come]:
                assert await _is_closed(closed)
            for one in clients:
                one.sendall(_LIVE)
                assert (await to_thread.run_sync(one.recv, 4_096)).startswith(b"HTTP/1.1 200")


async def test_event_streams_are_never_closed_to_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _site(monkeypatch, 8) as site, httpx2.AsyncClient() as client, AsyncExitStack() as opened:
        streams = [await opened.enter_async_context(client.stream("GET", f"{site.url}/sse")) for _ in range(6)]
        assert {stream.status_code for stream in streams} == {200}
        # Two of the eight connections are kept for probes.
        async with httpx2.AsyncClient() as other:
            refused = await other.get(f"{site.url}/api/markets")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert refused.json()["error"] == "busy: 6 requests and event streams are open; ask again in 5 s"
        for _ in range(20):
            await site.connect(_HALF_A_HEAD)
        async with httpx2.AsyncClient() as other:
            assert (await other.get(f"{site.url}/health/live")).status_code == 200
        for stream in streams:
            assert (await anext(stream.aiter_lines())) == "event: endpoint"


async def test_a_client_that_does_not_read_its_answers_makes_room_last(monkeypatch: pytest.MonkeyPatch) -> None:
    def bound(*given: Any) -> socket.socket:
        listener = bind(*given)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)  # a small buffer is full sooner
        return listener

    bind = serve._bound_socket
    monkeypatch.setattr(serve, "_bound_socket", bound)
    async with _site(monkeypatch, 2) as site, anyio.create_task_group() as tasks:
        greedy = await site.connect()
        greedy.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        tasks.start_soon(greedy.send, _LIVE * 1_000)
        async with httpx2.AsyncClient() as client, client.stream("GET", f"{site.url}/sse") as stream:
            assert stream.status_code == 200
            # Answered once the server has noticed that nothing is read.
            while await _is_closed(probe := await site.connect(_LIVE)):
                pass
            await site.counted("connections.evicted")
            assert (await anext(stream.aiter_lines())) == "event: endpoint"
            await probe.aclose()
        tasks.cancel_scope.cancel()


async def test_the_request_that_is_incomplete_too_long_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_HEAD_SECONDS", 0.05)
    monkeypatch.setattr(connections, "_BODY_SECONDS", 0.05)
    async with _site(monkeypatch) as site, httpx2.AsyncClient() as client, client.stream("GET", f"{site.url}/sse") as stream:
        late = [await site.connect(sent) for sent in (b"", _HALF_A_HEAD, _HALF_A_BODY, _LIVE + _HALF_A_HEAD)]
        assert (await _answer(late[3])).startswith(b"HTTP/1.1 200")
        for connection in late:
            assert await _is_closed(connection)
        await site.counted("connections.overdue", 4)
        assert (await anext(stream.aiter_lines())) == "event: endpoint"


async def test_a_refused_body_that_never_comes_holds_its_connection_only_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_BODY_SECONDS", 0.05)
    async with _site(monkeypatch, API_KEY="a key of enough characters") as site:
        refused = await site.connect(_HALF_A_BODY)
        assert (await _answer(refused)).startswith(b"HTTP/1.1 401")
        assert await _is_closed(refused)
        await site.counted("connections.overdue")


async def test_an_invalid_request_is_counted_and_not_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async with _site(monkeypatch) as site:
        for _ in range(3):
            assert (await (await site.connect(b"\x16\x03\x01 no HTTP\r\n\r\n")).receive()).startswith(b"HTTP/1.1 400")
        await site.counted("requests.invalid", 3)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_one_address_gets_a_quarter_of_the_connections_unless_it_is_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "is_loopback", lambda host: host != "127.0.0.2")
    async with _site(monkeypatch, 8) as site:
        port = urlsplit(site.url).port
        assert port is not None
        near = [await site.connect() for _ in range(4)]
        far = []
        async with AsyncExitStack() as stack:
            for _ in range(3):
                stream = await anyio.connect_tcp("127.0.0.1", port, local_host="127.0.0.2")
                far.append(await stack.enter_async_context(stream))
            assert await _is_closed(far[0])
            await site.counted("connections.evicted")
            for stream in (*near, *far[1:]):
                await stream.send(_LIVE)
                assert (await _answer(stream)).startswith(b"HTTP/1.1 200")


async def test_an_address_whose_connections_are_all_in_use_gets_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "is_loopback", lambda _: False)
    async with _site(monkeypatch, 4) as site, httpx2.AsyncClient() as client, client.stream("GET", f"{site.url}/sse") as stream:
        assert await _is_closed(await site.connect(_LIVE))
        await site.counted("connections.refused")
        assert (await anext(stream.aiter_lines())) == "event: endpoint"


async def test_without_a_free_descriptor_the_listener_pauses_and_logs_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(http_server, "_ACCEPT_PAUSE_SECONDS", 0.01)
    attempts = 0
    accept = socket.socket.accept

    def accept_later(listener: socket.socket) -> Any:
        nonlocal attempts
        attempts += 1
        if attempts <= 5:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(listener)

    async with _site(monkeypatch) as site:
        waiting = await site.connect(_LIVE + _HALF_A_HEAD)
        await _answer(waiting)
        monkeypatch.setattr(socket.socket, "accept", accept_later)
        assert (await _answer(await site.connect(_LIVE))).startswith(b"HTTP/1.1 200")
        assert await _is_closed(waiting)
        await site.counted("connections.evicted")
    assert 5 < attempts < 10
    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.getMessage() == "connections.not_accepted"
    assert getattr(line, "wadm_fields") == {"error": "Too many open files", "count": 1}  # noqa: B009


@pytest.mark.parametrize(("descriptors", "limit"), [(20_000, 1_000), (1_024, 512), (32, 16), (1, 1)])
def test_connections_take_at_most_half_of_the_descriptors(descriptors: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "descriptor_limit", lambda: descriptors)
    assert connection_limit() == limit


async def test_an_invalid_body_of_a_request_that_was_answered_ends_the_connection_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with _site(monkeypatch) as site:
        connection = await site.connect(head)
        assert (await _answer(connection)).startswith(b"HTTP/1.1 404")
        await connection.send(b"zz\r\n")
        await site.counted("requests.invalid")
        assert await _is_closed(connection)
    assert not [record for record in caplog.records if record.exc_info]


async def test_an_invalid_body_that_comes_with_its_request_is_answered_once_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refused = b"GET /nothing HTTP/1.1\r\nHost: evil.example\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    async with _site(monkeypatch) as site:
        answer = b"".join([part async for part in await site.connect(refused)])
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1") == 1
        await site.counted("requests.invalid")
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("method", [b"HEAD", b"GET", b"POST"])
async def test_an_invalid_body_leaves_no_traceback_whatever_was_asked(
    method: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    request = b"%s %s HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n%s"
    bodies = (b"zz\r\n", b"1\r\nx\r\nzz\r\n", b"0\r\n\r\nno request\r\n\r\n")
    async with _site(monkeypatch) as site:
        for path, host, body in product((b"/nothing", b"/health/live"), (b"localhost", b"evil.example"), bodies):
            connection = await site.connect(request % (method, path, host, body))
            # Closed in whatever way, after an answer or without one.
            with suppress(anyio.BrokenResourceError):
                async for _ in connection:
                    pass
    assert not [record.getMessage() for record in caplog.records if record.exc_info]
