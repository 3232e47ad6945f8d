"""Thousands of connections that ask for nothing, or for half of something, and never read."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

import anyio

IDLE: Final = b""
HALF_HEAD: Final = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
HALF_BODY: Final = b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
SILENT: Final = (IDLE, HALF_HEAD, HALF_BODY)
"""What such a connection sends: nothing, a head without its end, a body without its end."""


class Crowd:
    """Many connections to one server, from several loopback addresses. A connection that the server closed is opened again."""

    def __init__(self, url: str, count: int, openings: Sequence[bytes] = SILENT) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 0)
        self._openings = openings
        self._count = count
        self._open: list[socket.socket] = []
        self.opened = 0
        self.closed = 0

    async def hold(self) -> None:
        """Keep the connections open until cancelled."""
        try:
            while True:
                await self._fill()
                await anyio.sleep(0.5)
                self._drop_closed()
        finally:
            for one in self._open:
                one.close()

    async def filled(self) -> None:
        """Open all of them once, without keeping them so."""
        await self._fill()

    def close(self) -> None:
        """Close all that are open."""
        for one in self._open:
            one.close()
        self._open = []

    async def _fill(self) -> None:
        refused = 0
        while len(self._open) < self._count and refused < 10:
            one = self._connected()
            if one is None:
                refused += 1
            else:
                self._open.append(one)
            if self.opened % 50 == 0:
                # Lets other tasks of this process in, the exchanges among them.
                await anyio.sleep(0.005)

    def _connected(self) -> socket.socket | None:
        number = self.opened
        self.opened += 1
        one = socket.socket()
        try:
            # Half of them come from one address, the others from many.
            one.bind((f"127.0.{1 + number // 2 % 100}.{1 + number % 200}" if number % 2 else "127.0.0.1", 0))
            one.settimeout(0.05)
            one.connect(self._address)
            one.setblocking(False)
            if opening := self._openings[number % len(self._openings)]:
                one.send(opening)
        except OSError:
            one.close()
            return None
        return one

    def _drop_closed(self) -> None:
        still: list[socket.socket] = []
        for one in self._open:
            ended = False
            with suppress(BlockingIOError):
                try:
                    ended = not one.recv(4096)
                except ConnectionError:
                    ended = True
            if ended:
                one.close()
                self.closed += 1
            else:
                still.append(one)
        self._open = still


def exchange_bytes(url: str, data: bytes, *, within: float = 2.0) -> bytes:
    """Send bytes and return what comes back until the server ends the connection, or is silent for `within` seconds. Blocking."""
    parts = urlsplit(url)
    received: list[bytes] = []
    with suppress(OSError), socket.create_connection((parts.hostname or "", parts.port or 0), timeout=within) as one:
        one.sendall(data)
        while part := one.recv(1 << 16):
            received.append(part)
    return b"".join(received)


def statuses(answer: bytes) -> Counter[int]:
    """The HTTP statuses in what a server sent."""
    found: Counter[int] = Counter()
    for part in answer.split(b"HTTP/1.1 ")[1:]:
        with suppress(ValueError):
            found[int(part[:3])] += 1
    return found
