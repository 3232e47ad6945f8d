"""However the stream is split, the reader gets the messages that were sent, in order, and the library handles everything else."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import anyio
import pytest
import trustme
from anyio.abc import SocketStream
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, PayloadTooBig, ProtocolError
from websockets.frames import Opcode
from websockets.protocol import State

from tests.collection.live.hostile import Hostile, hostile_server, wire
from wadm_mcp.collection.live.frame_socket import _MAX_PARTS, FrameSocket, NotReadingError

pytestmark = pytest.mark.anyio


class Tls(NamedTuple):
    """TLS contexts of both ends of a connection."""

    client: ssl.SSLContext
    server: ssl.SSLContext


class Exchange:
    """The other end of one connection."""

    def __init__(self) -> None:
        self.connection: ServerConnection | None = None
        self.connected = anyio.Event()
        self.over = anyio.Event()

    async def serve(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.connected.set()
        await self.over.wait()


@pytest.fixture(params=["plain", "TLS"])
def tls(request: pytest.FixtureRequest) -> Tls | None:
    """TLS contexts if the connection uses TLS, as those of the exchanges do; else None."""
    return request.getfixturevalue("certified") if request.param == "TLS" else None


@pytest.fixture(scope="module")
def certified() -> Tls:
    authority = trustme.CA()
    contexts = Tls(ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    authority.configure_trust(contexts.client)
    authority.issue_cert("127.0.0.1").configure_cert(contexts.server)
    return contexts


@asynccontextmanager
async def connected(tls: Tls | None = None, max_size: int = 1 << 20) -> AsyncGenerator[tuple[FrameSocket, ServerConnection]]:
    exchange = Exchange()
    server_tls, client_tls = (tls.server, tls.client) if tls is not None else (None, None)
    async with serve(exchange.serve, "127.0.0.1", 0, ssl=server_tls, compression=None, ping_interval=None, close_timeout=1) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with connect(
            f"ws{'s' if tls is not None else ''}://127.0.0.1:{port}",
            create_connection=FrameSocket,
            ssl=client_tls,
            compression=None,
            ping_interval=None,
            max_size=max_size,
            close_timeout=1,
            proxy=None,
        ) as client:
            assert isinstance(client, FrameSocket)
            await exchange.connected.wait()
            assert exchange.connection is not None
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.batch_reads)
                try:
                    with anyio.fail_after(10):
                        yield client, exchange.connection
                finally:
                    exchange.over.set()
                    tasks.cancel_scope.cancel()


async def read(client: FrameSocket, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        found += await client.frames()
    return found


sizes = st.one_of(st.integers(0, 300), st.integers(65_530, 65_540))
events = st.one_of(
    st.tuples(st.just("whole"), sizes), st.tuples(st.just("parts"), st.integers(2, 30)), st.tuples(st.just("ping"), st.integers(0, 20))
)


def as_wire(kind: str, size: int) -> bytes:
    content = b"x" * size
    if kind == "ping":
        return wire(Opcode.PING, content)
    if kind == "whole":
        return wire(Opcode.TEXT, content)
    return wire(Opcode.TEXT, content[:1], fin=False) + wire(Opcode.PING, b"") + wire(Opcode.CONT, content[1:])


@given(st.lists(events, max_size=12), st.lists(st.integers(1, 400), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_messages_are_read_as_they_were_sent_however_the_stream_is_split(sent: list[tuple[str, int]], steps: list[int]) -> None:
    async def check() -> None:
        async with connected() as (client, _):
            stream, offset, step_number = b"".join(as_wire(*each) for each in sent), 0, 0
            while offset < len(stream):
                step = steps[step_number % len(steps)] * (1 if len(stream) < 5_000 else 500)
                client.data_received(stream[offset : offset + step])
                offset, step_number = offset + step, step_number + 1
            expected = [size for kind, size in sent if kind != "ping"]
            assert [len(message) for message in await read(client, len(expected))] == expected
            assert client.protocol.state is State.OPEN

    anyio.run(check)


async def test_frames_are_batched_after_a_read_and_delivered_when_the_batch_ends(tls: Tls | None) -> None:
    async with connected(tls) as (client, exchange):
        raw = client.transport.get_extra_info("socket")
        await exchange.send("one")
        assert await client.frames() == [b"one"]
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) > 1_000
        await exchange.send("two")
        assert await client.frames() == [b"two"]


async def test_a_ping_between_trades_is_answered(tls: Tls | None) -> None:
    async with connected(tls) as (client, exchange):
        await exchange.send("one")
        answered = await exchange.ping(b"123")
        await exchange.send("two")
        assert await read(client, 2) == [b"one", b"two"]
        await answered


async def test_the_last_messages_are_read_before_the_end_is_reported(tls: Tls | None) -> None:
    async with connected(tls) as (client, exchange):
        await exchange.send("last")
        await exchange.close(1012)
        assert await read(client, 1) == [b"last"]
        with pytest.raises(ConnectionClosed) as closed:
            await client.frames()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012


async def test_a_waiting_reader_is_woken_when_the_connection_closes(tls: Tls | None) -> None:
    async with connected(tls) as (client, exchange), anyio.create_task_group() as tasks:
        tasks.start_soon(exchange.close)
        with pytest.raises(ConnectionClosed):
            await client.frames()


@pytest.mark.parametrize(
    "invalid", [b"\x81\x81\x01\x02\x03\x04x", b"\xc1\x01x", wire(Opcode.TEXT, b"x" * 1_001)], ids=["masked", "reserved", "long"]
)
async def test_an_invalid_frame_ends_the_connection_after_the_messages_before_it(tls: Tls | None, invalid: bytes) -> None:
    async with connected(tls, max_size=1_000) as (client, exchange):
        exchange.transport.write(wire(Opcode.TEXT, b"before") + invalid)
        assert await read(client, 1) == [b"before"]
        with pytest.raises(ConnectionClosed):
            await client.frames()


@pytest.mark.parametrize(
    "message",
    [
        wire(Opcode.TEXT, b"x"),
        wire(Opcode.BINARY, b"x"),
        wire(Opcode.TEXT, b"x", fin=False) + wire(Opcode.CONT, b""),
    ],
    ids=["text", "binary", "in parts"],
)
async def test_a_slow_reader_stops_the_socket_from_being_read(message: bytes) -> None:
    async with connected() as (client, _):
        client.data_received(message * 1_500)
        assert len(client._frames) <= 1_024
        assert not client.transport.is_reading()
        assert len(await read(client, 1_500)) == 1_500
        assert client.transport.is_reading()


async def test_every_message_received_before_the_end_is_read(tls: Tls | None) -> None:
    async with connected(tls) as (client, exchange):
        for number in range(1_000):
            await exchange.send(str(number))
        await exchange.close()
        await client.wait_closed()
        assert await read(client, 1_000) == [str(number).encode() for number in range(1_000)]
        with pytest.raises(ConnectionClosed):
            await client.frames()


async def test_a_waiting_reader_is_woken_when_the_connection_is_aborted(tls: Tls | None) -> None:
    async with connected(tls) as (client, exchange):
        await exchange.send("one")
        assert await client.frames() == [b"one"]
        exchange.transport.abort()
        with pytest.raises(ConnectionClosed):
            await client.frames()


@asynccontextmanager
async def connected_to(hostile: Hostile, max_size: int = 1 << 20) -> AsyncGenerator[FrameSocket]:
    options: dict[str, Any] = {"compression": None, "ping_interval": None, "max_size": max_size, "close_timeout": 1, "proxy": None}
    async with hostile_server(hostile) as url:
        with anyio.fail_after(10):
            async with connect(url, create_connection=FrameSocket, **options) as client:
                assert isinstance(client, FrameSocket)
                yield client


async def the_end(client: FrameSocket) -> ConnectionClosed:
    try:
        while True:
            await client.frames()
    except ConnectionClosed as closed:
        return closed


async def test_a_close_frame_ends_the_connection_though_the_other_end_keeps_tcp_open() -> None:
    async def close(stream: SocketStream) -> None:
        await stream.send(wire(Opcode.TEXT, b"last") + wire(Opcode.CLOSE, b"\x03\xf4"))

    async with connected_to(close) as client:
        assert await client.frames() == [b"last"]
        end = await the_end(client)
        assert end.rcvd is not None
        assert end.rcvd.code == 1012


@pytest.mark.parametrize(
    ("frames", "cause"),
    [
        (wire(Opcode.TEXT, b"x" * 1_001), PayloadTooBig),
        (wire(Opcode.TEXT, b"x" * 999, fin=False) + wire(Opcode.CONT, b"xx"), PayloadTooBig),
        (wire(Opcode.TEXT, b"", fin=False) + wire(Opcode.CONT, b"", fin=False) * _MAX_PARTS, PayloadTooBig),
        (b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff", ProtocolError),
        (b"\x81\x7f\x7f\xff\xff\xff\xff\xff\xff\xff", PayloadTooBig),
        (b"\xc1\x01x", ProtocolError),
        (b"\x83\x01x", ProtocolError),
        (b"\x89\x7e\x00\x7e", ProtocolError),
        (wire(Opcode.CONT, b"x"), ProtocolError),
        (wire(Opcode.TEXT, b"x", fin=False) + wire(Opcode.TEXT, b"y"), ProtocolError),
    ],
)
async def test_a_frame_that_is_refused_ends_the_connection_though_the_other_end_keeps_tcp_open(
    frames: bytes, cause: type[Exception]
) -> None:
    async with connected_to(lambda stream: stream.send(wire(Opcode.TEXT, b"before") + frames), max_size=1_000) as client:
        assert await client.frames() == [b"before"]
        assert isinstance((await the_end(client)).__cause__, cause)


async def test_a_half_closed_connection_ends_at_once_with_what_came_before() -> None:
    async def half_close(stream: SocketStream) -> None:
        await stream.send(wire(Opcode.TEXT, b"last") + wire(Opcode.TEXT, b"half")[:3])
        await stream.send_eof()

    async with connected_to(half_close) as client:
        assert await client.frames() == [b"last"]
        assert (await the_end(client)).rcvd is None


async def test_pings_without_end_are_answered_in_bounds_and_hide_no_message() -> None:
    async def flood(stream: SocketStream) -> None:
        while True:
            await stream.send(wire(Opcode.PING, b"x" * 125) * 2_000 + wire(Opcode.TEXT, b"between"))

    async with connected_to(flood) as client:
        assert len(await read(client, 50)) >= 50
        assert client.transport.get_write_buffer_size() <= 64 * 1024


async def test_a_connection_whose_other_end_does_not_read_is_given_up() -> None:
    async def never_read(stream: SocketStream) -> None:
        await anyio.sleep_forever()

    async with connected_to(never_read) as client, anyio.create_task_group() as tasks:

        async def send() -> None:
            with suppress(ConnectionClosed):
                while True:
                    await client.send("x" * 100_000)

        tasks.start_soon(send)
        assert isinstance((await the_end(client)).__cause__, NotReadingError)


async def test_a_reader_waits_after_many_frames_without_a_message() -> None:
    async with connected() as (client, _), anyio.create_task_group() as tasks:
        tasks.start_soon(client.frames)
        await anyio.lowlevel.checkpoint()
        client.data_received(wire(Opcode.PONG, b"") * 4_000)
        with anyio.fail_after(10):
            while client._stopped or client._readable.is_set():
                await anyio.lowlevel.checkpoint()
        client.data_received(wire(Opcode.TEXT, b"x"))


async def test_empty_frames_without_end_are_read_a_few_at_a_time() -> None:
    async with connected() as (client, _):
        client.data_received(wire(Opcode.TEXT, b"") * 100_000)
        assert not client.transport.is_reading()
        assert len(client._frames) <= 1_024
        assert len(await read(client, 100_000)) == 100_000
        assert client.transport.is_reading()
