"""A client WebSocket that reads many frames in one wake-up of the event loop.

A wake-up costs about ten times as much as a frame, and an exchange sends a frame for each trade. So after each read the socket lets
frames collect in the kernel for a moment (`SO_RCVLOWAT`), and the reader gets all of them at once. Whole text frames are parsed here
(RFC 6455, section 5.2), which is cheaper than the library's parser; everything else goes through that parser.
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

_FRAMES_PER_READ: Final = 128
"""Frames that a reader gets at once: few enough that other tasks are not delayed."""
_MAX_QUEUED_FRAMES: Final = 1_024
"""With this many unread frames the socket is not read any further (backpressure)."""
_BATCH_SECONDS: Final = 0.012
"""How long frames collect in the kernel."""
_BATCH_BYTES: Final = 64 * 1024
"""With this many bytes in the kernel the socket is read at once."""
_TEXT: Final = 0x81
"""First byte of a text message in one frame."""
_CONTROL: Final = frozenset((0x88, 0x89, 0x8A))
"""First bytes of close, ping and pong."""
_MAX_CONTROL_BYTES: Final = 125


class FrameSocket(ClientConnection):
    """A client connection for `connect(create_connection=...)`. Use `frames` instead of `recv`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._frames: list[bytes] = []
        self._fragments: list[bytes] = []
        """The frames so far of a message in several frames."""
        self._readable = anyio.Event()
        self._paused = False
        self._batching = anyio.Event()
        self._handshake: bytes | None = b""
        """The answer to the handshake as far as it has come in; None after its end."""
        self._incomplete = b""
        """The beginning of a frame whose end has not come in yet."""
        self._parses = True
        """True while frames are parsed here, until a frame that only the library can handle."""
        self._max_message_bytes = self.protocol.max_message_size or 0
        self.heard_at = time.monotonic()
        """When bytes last came in, of frames, pings or pongs (monotonic seconds)."""

    async def frames(self) -> list[bytes]:
        """Messages as bytes, oldest first; waits for the first. `ConnectionClosed` once all were read and the connection has ended."""
        while not self._frames:
            if self.protocol.state is State.CLOSED:
                await self.recv()
            await self._readable.wait()
        taken, self._frames = self._frames[:_FRAMES_PER_READ], self._frames[_FRAMES_PER_READ:]
        if not self._frames:
            self._readable = anyio.Event()
            if self._paused:
                self._paused = False
                self.transport.resume_reading()
        if not self._batching.is_set():
            self._batching.set()
            self._set_low_watermark(_BATCH_BYTES)
        return taken

    async def batch_reads(self) -> None:
        """End each batch after its time, until cancelled. Then the socket is read without batches again.

        The system reports a socket as readable once it has `SO_RCVLOWAT` bytes or has ended, with and without TLS. On a system without
        this option frames are read as they come.
        """
        try:
            while True:
                await self._batching.wait()
                await anyio.sleep(_BATCH_SECONDS)
                self._batching = anyio.Event()
                self._set_low_watermark(1)
        finally:
            self._set_low_watermark(1)

    def data_received(self, data: bytes) -> None:
        """Parse whole text frames. The library gets the handshake and everything else."""
        self.heard_at = time.monotonic()
        if self._handshake is not None:
            data = self._read_handshake(self._handshake, data)
        if data and self._parses and self.protocol.state is State.OPEN:
            data = self._parse(self._incomplete + data if self._incomplete else data)
        if data:
            super().data_received(data)

    def _read_handshake(self, before: bytes, data: bytes) -> bytes:
        """Give the library its part of the handshake, and return what follows it. `before` is what came in earlier."""
        self._handshake = before + data
        end = self._handshake.find(b"\r\n\r\n")
        if end < 0:
            super().data_received(data)
            return b""
        rest = end + 4 - len(before)
        self._handshake = None
        super().data_received(data[:rest])
        return data[rest:]

    def _parse(self, data: bytes) -> bytes:
        """Take every whole frame and keep the beginning of the next. Returns what only the library can handle."""
        place, size, frames, max_bytes = 0, len(data), self._frames, self._max_message_bytes
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
                # A masked frame of a server breaks the protocol: leave it to the library, which closes the connection.
                length = max_bytes + 1
            if kind == _TEXT and length <= max_bytes:
                if start + length > size:
                    break
                frames.append(data[start : start + length])
            elif kind in _CONTROL and length <= _MAX_CONTROL_BYTES:
                if start + length > size:
                    break
                super().data_received(data[place : start + length])
                if self.protocol.state is not State.OPEN:
                    self._incomplete = b""
                    self._frames_added()
                    return data[start + length :]
            else:
                self._parses, self._incomplete = False, b""
                self._frames_added()
                return data[place:]
            place = start + length
        self._incomplete = data[place:]
        self._frames_added()
        return b""

    def eof_received(self) -> None:
        """The stream has ended: give the library the frame that it ends in, so that it reports it as incomplete."""
        if self._incomplete:
            super().data_received(self._incomplete)
            self._incomplete = b""
        super().eof_received()

    def process_event(self, event: Event) -> None:
        """Queue the data frames that the library parsed; it handles the other events itself."""
        if not isinstance(event, Frame) or event.opcode not in DATA_OPCODES:
            super().process_event(event)
            return
        self._fragments.append(bytes(event.data))
        if event.fin:
            self._frames.append(b"".join(self._fragments))
            self._fragments.clear()
            self._frames_added()

    def _frames_added(self) -> None:
        """Wake the reader if there are frames, and stop reading the socket if there are too many."""
        if self._frames:
            self._readable.set()
        if len(self._frames) >= _MAX_QUEUED_FRAMES and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended: wake the reader."""
        super().connection_lost(exc)
        self._readable.set()

    def _set_low_watermark(self, size: int) -> None:
        # After the end TLS has no socket any more, and without TLS the socket is closed.
        raw = self.transport.get_extra_info("socket")
        if raw is not None:
            with suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
