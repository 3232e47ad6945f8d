"""A hostile exchange on a loopback port, in a process of its own: it speaks just enough of a protocol to be connected to.

    python hostile_exchange.py MODE

Prints its port on a line and serves until standard input is closed; then it prints how many bytes it sent and how many connections came.
The modes are in `SOCKET_MODES`, `REST_MODES` and `ARCHIVE_MODES`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import socket
import struct
import sys
import zlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from typing import Final

Mode = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]

_ZEROS: Final = bytes(1 << 20)
_MAGIC: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TOTALS: Final = {"connections": 0, "bytes": 0}
_BOMB_MB: Final = 400
_BOMB_ROWS: Final = 2_000_000


def _frame(first: int, payload: bytes, claimed: int | None = None) -> bytes:
    """A frame of a server; `claimed` is the length that it states."""
    length = len(payload) if claimed is None else claimed
    if length < 126:
        return bytes((first, length)) + payload
    if length < 1 << 16:
        return struct.pack("!BBH", first, 126, length) + payload
    return struct.pack("!BBQ", first, 127, length) + payload


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    _TOTALS["bytes"] += len(data)
    await writer.drain()
    await asyncio.sleep(0)


async def _for_ever(writer: asyncio.StreamWriter, data: bytes, pause: float = 0.0) -> None:
    while True:
        await _send(writer, data)
        if pause:
            await asyncio.sleep(pause)


# WebSocket: the handshake is answered, then:


async def _pings(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
    """Pings without end; what comes back is never read."""
    await _for_ever(writer, _frame(0x89, b"p" * 125) * 500)


async def _half_closed(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
    """Its half of the connection is closed, the other stays open."""
    writer.write_eof()
    await asyncio.sleep(3_600)


async def _close_and_silence(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
    """A Close frame, and the TCP connection stays open."""
    await _send(writer, _frame(0x88, struct.pack("!H", 1_000)))
    await asyncio.sleep(3_600)


async def _silence(_: asyncio.StreamReader, __: asyncio.StreamWriter, ___: bytes) -> None:
    """Nothing at all after the handshake."""
    await asyncio.sleep(3_600)


async def _deflate_bomb(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
    """Compressed frames that were not negotiated, each of which would unpack to a hundred megabytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(_ZEROS) for _ in range(100)) + packer.flush(zlib.Z_SYNC_FLUSH)
    await _for_ever(writer, _frame(0xC1, packed))


async def _large_frames(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
    """Frames of 100 MB."""
    await _send(writer, _frame(0x81, b"", claimed=100 << 20))
    await _for_ever(writer, b"x" * (1 << 20))


async def _endless_message(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
    """A message in fragments that never ends."""
    await _send(writer, _frame(0x01, b"x" * 1_000))
    await _for_ever(writer, _frame(0x00, b"x" * 1_000) * 100)


async def _bad_frames(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
    """Valid frames with text that no exchange sends, as fast as they are read."""
    bodies = [
        b"{",
        b"[" * 2_000,
        b'{"topic":"publicTrade.BTCUSDT","type":"snapshot","ts":1,"data":[{}]}',
        b'"' + b"x" * 900 + b'"',
        b"\xff\xfe",
    ]
    await _for_ever(writer, b"".join(_frame(0x81, body) for body in bodies) * 40)


async def _endless_head(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
    """The answer to the handshake never ends."""
    await _for_ever(writer, b"X-Header: " + b"x" * 1_000 + b"\r\n")


# REST: the answer to any request is:


def _ok(*headers: str) -> bytes:
    return ("\r\n".join(["HTTP/1.1 200 OK", "Content-Type: application/json", *headers]) + "\r\n\r\n").encode()


async def _endless_body(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
    """A body without an end."""
    await _send(writer, _ok("Connection: close"))
    await _for_ever(writer, b"[" * (1 << 16))


async def _dripped_body(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
    """A byte every tenth of a second."""
    await _send(writer, _ok("Connection: close"))
    await _for_ever(writer, b" ", 0.1)


async def _redirects(_: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    """A redirect to itself, and once to a file of this machine."""
    place = b"file:///etc/passwd" if b"again" in request else b"/again" + request.split()[1]
    await _send(writer, b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nConnection: close\r\nLocation: " + place + b"\r\n\r\n")


async def _gzip_bomb(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
    """A compressed body of many megabytes of zeros."""
    body = _packed_zeros()
    await _send(writer, _ok("Content-Encoding: gzip", f"Content-Length: {len(body)}", "Connection: close") + body)


async def _endless_rest_head(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
    """Headers without an end."""
    await _send(writer, b"HTTP/1.1 200 OK\r\n")
    await _for_ever(writer, b"X-Header: " + b"x" * 1_000 + b"\r\n")


async def _deep_json(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
    """Brackets in brackets."""
    body = b"[" * 200_000 + b"]" * 200_000
    await _send(writer, _ok(f"Content-Length: {len(body)}", "Connection: close") + body)


# Archives: the file that is asked for is:


async def _endless_archive(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
    """A file without an end."""
    await _send(writer, b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nConnection: close\r\n\r\n")
    await _for_ever(writer, b"\x1f" * (1 << 18))


async def _dripped_archive(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
    """A file of which a few bytes come each second."""
    await _send(writer, b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\nConnection: close\r\n\r\n\x1f\x8b\x08")
    await _for_ever(writer, b"\x00", 0.2)


async def _archive_bomb(_: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    """A small file of valid rows of its day, each at a price of its own, that unpacks to many times its size."""
    found = re.search(rb"\d{4}-\d\d-\d\d", request)
    day = datetime.fromisoformat(found[0].decode()).replace(tzinfo=UTC) if found else datetime.now(UTC)
    body = _rows_of_many_prices(round(day.timestamp() * 1_000))
    await _send(writer, f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)


@cache
def _rows_of_many_prices(start: int) -> bytes:
    rows = (f"{number},{start + number // 30},{1 + number}.1,0.001,buy,0\n" for number in range(1, _BOMB_ROWS))
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    packed = [packer.compress(b"id,timestamp,price,volume,side,rpi\n")]
    while part := "".join(islice(rows, 10_000)):
        packed.append(packer.compress(part.encode()))
    return b"".join([*packed, packer.flush()])


_packed: list[bytes] = []


def _packed_zeros() -> bytes:
    if not _packed:
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        _packed.append(b"".join(packer.compress(_ZEROS) for _ in range(_BOMB_MB)) + packer.flush())
    return _packed[0]


SOCKET_MODES: Final[dict[str, Mode]] = {
    "pings-never-read": _pings,
    "half-closed": _half_closed,
    "close-then-silence": _close_and_silence,
    "silence": _silence,
    "deflate-bombs": _deflate_bomb,
    "frames-of-100-MB": _large_frames,
    "endless-message": _endless_message,
    "bad-frames": _bad_frames,
    "endless-handshake": _endless_head,
}
REST_MODES: Final[dict[str, Mode]] = {
    "endless-rest": _endless_body,
    "dripped-rest": _dripped_body,
    "redirecting-rest": _redirects,
    "gzip-bomb-of-rest": _gzip_bomb,
    "endless-head-of-rest": _endless_rest_head,
    "deep-json-of-rest": _deep_json,
}
ARCHIVE_MODES: Final[dict[str, Mode]] = {
    "endless-archive": _endless_archive,
    "dripped-archive": _dripped_archive,
    "archive-bomb": _archive_bomb,
}


async def serve(mode: str) -> asyncio.Server:
    """Serve a mode on a free loopback port, in the running event loop."""
    name, answer = mode, {**SOCKET_MODES, **REST_MODES, **ARCHIVE_MODES}[mode]

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _TOTALS["connections"] += 1
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            if name in SOCKET_MODES:
                key = re.search(rb"(?i)sec-websocket-key: *(\S+)", request)
                accepted = base64.b64encode(hashlib.sha1((key[1] if key else b"") + _MAGIC).digest())
                head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accepted
                await _send(writer, head + (b"\r\n" if name == "endless-handshake" else b"\r\n\r\n"))
            await answer(reader, writer, request)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listener = socket.socket()
    # What it does not read soon fills the other side.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    listener.bind(("127.0.0.1", 0))
    return await asyncio.start_server(connected, sock=listener)


async def _main(mode: str) -> None:
    server = await serve(mode)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    sys.stdout.write(json.dumps(_TOTALS))
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
