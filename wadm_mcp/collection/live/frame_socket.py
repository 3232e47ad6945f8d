"""A WebSocket of which many frames are read in one waking of the event loop.

To be woken costs ten times what a frame does, and an exchange sends a frame for each trade. So a socket that was read waits a moment in
which frames gather in the kernel, and a reader is given all that came in at once. Whole text frames are cut out of the stream here
(RFC 6455, section 5.2), for less than the library's parser takes; everything else goes through that parser.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import Any, Final

import anyio
from websockets.asyncio.client import ClientConnection
from websockets.frames import DATA_OPCODES, Frame
from websockets.protocol import Event, State

_AT_ONCE: Final = 128
"""Frames given to a reader at once: about what one may read without keeping other tasks waiting."""
_QUEUED: Final = 1_024
"""Frames that wait for a reader before no more are read from the socket."""
_GATHER: Final = 0.012
"""Seconds that frames gather in the kernel."""
_GATHERED: Final = 64 * 1024
"""Bytes in the kernel that are read all the same."""
_TEXT: Final = 0x81
"""First byte of a text message in one frame."""
_CONTROL: Final = frozenset((0x88, 0x89, 0x8A))
"""First bytes of close, ping and pong."""
_LONGEST_CONTROL: Final = 125


class FrameSocket(ClientConnection):
    """A client connection, for `connect(create_connection=...)`; `frames` takes the place of `recv`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._frames: list[bytes] = []
        self._parts: list[bytes] = []
        self._came = anyio.Event()
        self._full = False
        self._gathering = anyio.Event()
        self._head: bytes | None = b""
        """The answer to the handshake as far as it came in; None once the frames have begun."""
        self._tail = b""
        """The beginning of a frame that is not whole yet."""
        self._cuts = True
        """Are frames cut here? Not any more once one came that only the library judges."""
        self._longest = self.protocol.max_message_size or 0
        self.heard_at = time.monotonic()
        """When bytes came in last, be they of frames, pings or pongs; monotonic seconds."""

    async def frames(self) -> list[bytes]:
        """The messages that came in, as bytes, oldest first; waits for the first. `ConnectionClosed` once there are no more."""
        while not self._frames:
            if self.protocol.state is State.CLOSED:
                await self.recv()
            await self._came.wait()
        taken, self._frames = self._frames[:_AT_ONCE], self._frames[_AT_ONCE:]
        if not self._frames:
            self._came = anyio.Event()
            if self._full:
                self._full = False
                self.transport.resume_reading()
        if not self._gathering.is_set():
            self._gathering.set()
            self._wait_for(_GATHERED)
        return taken

    async def batch_reads(self) -> None:
        """End each gathering in time, until cancelled; then the socket is as it was.

        A socket is reported as readable once it holds `SO_RCVLOWAT` bytes, or has ended: below TLS as well as without it. Where a
        system lacks the option, frames are read as they come.
        """
        try:
            while True:
                await self._gathering.wait()
                await anyio.sleep(_GATHER)
                self._gathering = anyio.Event()
                self._wait_for(1)
        finally:
            self._wait_for(1)

    def data_received(self, data: bytes) -> None:
        """Cut the frames; the library reads the handshake before them, and every frame that is not a whole text message."""
        self.heard_at = time.monotonic()
        if self._head is not None:
            data = self._handshake(self._head, data)
        if data and self._cuts and self.protocol.state is State.OPEN:
            data = self._cut(self._tail + data if self._tail else data)
        if data:
            super().data_received(data)

    def _handshake(self, head: bytes, data: bytes) -> bytes:
        """Give the library its part of the handshake; what comes after it."""
        self._head = head + data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            super().data_received(data)
            return b""
        own = end + 4 - len(head)
        self._head = None
        super().data_received(data[:own])
        return data[own:]

    def _cut(self, data: bytes) -> bytes:
        """Take every whole frame; what is left for the library alone to judge. The beginning of a frame waits for its end."""
        place, size, frames, longest = 0, len(data), self._frames, self._longest
        while place + 2 <= size:
            kind, length, start = data[place], data[place + 1], place + 2
            if length == 126:
                if start + 2 > size:
                    break
                length, start = data[start] << 8 | data[start + 1], start + 2
            elif length == 127:
                if start + 8 > size:
                    break
                length, start = int.from_bytes(data[start : start + 8]), start + 8
            elif length > 127:
                # A server that masks breaks the protocol, and the library says so.
                length = self._longest + 1
            if kind == _TEXT and length <= longest:
                if start + length > size:
                    break
                frames.append(data[start : start + length])
            elif kind in _CONTROL and length <= _LONGEST_CONTROL:
                if start + length > size:
                    break
                super().data_received(data[place : start + length])
                if self.protocol.state is not State.OPEN:
                    self._tail = b""
                    self._tell()
                    return data[start + length :]
            else:
                self._cuts, self._tail = False, b""
                self._tell()
                return data[place:]
            place = start + length
        self._tail = data[place:]
        self._tell()
        return b""

    def eof_received(self) -> None:
        """Let the library see a frame that ends in the middle."""
        if self._tail:
            super().data_received(self._tail)
            self._tail = b""
        super().eof_received()

    def process_event(self, event: Event) -> None:
        """Keep the frames of messages that the library read; the rest is its own."""
        if not isinstance(event, Frame) or event.opcode not in DATA_OPCODES:
            super().process_event(event)
            return
        self._parts.append(bytes(event.data))
        if event.fin:
            self._frames.append(b"".join(self._parts))
            self._parts.clear()
            self._tell()

    def _tell(self) -> None:
        """Wake the reader where there is something to read; leave the rest in the kernel where there is much."""
        if self._frames:
            self._came.set()
        if len(self._frames) >= _QUEUED and not self._full:
            self._full = True
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake the reader: there will be no more."""
        super().connection_lost(exc)
        self._came.set()

    def _wait_for(self, size: int) -> None:
        # Of a connection that has ended TLS has no socket any more, and without TLS it is closed.
        raw = self.transport.get_extra_info("socket")
        if raw is not None:
            with suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
