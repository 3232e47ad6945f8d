"""A WebSocket server that is written by hand, so that it can do after the handshake what no library would."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from hashlib import sha1
from typing import TypeAlias

import anyio
from anyio.abc import SocketAttribute, SocketStream
from websockets.frames import Frame, Opcode

Hostile: TypeAlias = Callable[[SocketStream], Awaitable[None]]
"""What is done with a connection after the handshake."""


def wire(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    """A frame as a server sends it."""
    return Frame(opcode, data, fin).serialize(mask=False, extensions=[])


@asynccontextmanager
async def hostile_server(hostile: Hostile) -> AsyncGenerator[str]:
    """Its URL. Each connection gets the answer to its handshake, then `hostile`; its TCP connection stays open until the end."""

    async def handle(stream: SocketStream) -> None:
        async with stream:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await stream.send(_accepting(await _head(stream)))
                await hostile(stream)
            await anyio.sleep_forever()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        try:
            yield f"ws://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        finally:
            tasks.cancel_scope.cancel()


async def _head(stream: SocketStream) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        head += await stream.receive()
    return head


def _accepting(head: bytes) -> bytes:
    (key,) = [line.partition(b": ")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")]
    accept = b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    return b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
