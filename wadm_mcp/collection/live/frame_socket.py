"""A client WebSocket that reads many frames in one wake-up of the event loop.

A wake-up costs about ten times as much as a frame, and an exchange sends a frame for each trade. So after each read the socket lets
frames collect in the kernel for a moment (`SO_RCVLOWAT`), and the reader gets all of them at once. Frames are parsed here (RFC 6455,
section 5.2), which is cheaper than the library's parser. The library does the handshake and answers close frames.

What the other end can cause is bounded: the work of one turn of the event loop, what waits for the reader, the parts of a message, what
waits to be sent. The TCP connection ends as soon as the WebSocket connection is not open any more, whether or not the other end ends it.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import Any, Final

import anyio
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import PayloadTooBig, ProtocolError, WebSocketException
from websockets.frames import CloseCode
from websockets.protocol import State

_FRAMES_PER_READ: Final = 128
"""Frames that a reader gets at once: few enough that other tasks are not delayed."""
_MAX_QUEUED_FRAMES: Final = 1_024
_MAX_QUEUED_BYTES: Final = 4 * 1024 * 1024
"""With this many unread frames, or bytes of them, nothing more is parsed and the socket is not read any further (backpressure)."""
_FRAMES_PER_TURN: Final = 2_048
"""Frames of any kind that are parsed in one turn of the event loop: one or two milliseconds. One read may have 130,000 empty ones."""
_MAX_PARTS: Final = 1_024
"""Frames of one message: there may be empty ones without end."""
_BATCH_SECONDS: Final = 0.012
"""How long frames collect in the kernel."""
_BATCH_BYTES: Final = 64 * 1024
"""With this many bytes in the kernel the socket is read at once."""
_TEXT: Final = 0x81
"""First byte of a text message in one frame."""
_FIRST: Final = frozenset((0x01, 0x02, 0x81, 0x82))
"""First bytes of the first frame of a message, text or binary."""
_FURTHER: Final = frozenset((0x00, 0x80))
"""First bytes of its further frames."""
_FINAL: Final = 0x80
"""The bit of a message's last frame."""
_CLOSE, _PING, _PONG = 0x88, 0x89, 0x8A
_MAX_CONTROL_BYTES: Final = 125


class NotReadingError(WebSocketException):
    """The other end does not read what is sent to it, such as the pongs that it asks for."""


class FrameSocket(ClientConnection):
    """A client connection for `connect(create_connection=...)`. Use `frames` instead of `recv`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._frames: list[bytes] = []
        self._queued_bytes = 0
        """Bytes of the frames that were queued since the queue was last empty."""
        self._parts: list[bytes] | None = None
        """The frames so far of a message in several; None outside one."""
        self._parts_bytes = 0
        self._readable = anyio.Event()
        self._paused = False
        self._batches = False
        """Whether `batch_reads` runs."""
        self._batching = anyio.Event()
        self._handshake: bytes | None = b""
        """The answer to the handshake as far as it has come in; None after its end."""
        self._unparsed = bytearray()
        """What has come in and is not parsed: the beginning of a frame, or more than one turn of the event loop parses."""
        self._needed_bytes = 0
        """How long `_unparsed` is once its first frame is whole."""
        self._stopped = False
        """Whether `_unparsed` may have whole frames: the reader goes on with them."""
        self._over = False
        """Whether nothing more is parsed: a close frame came, or a frame that breaks the protocol or a bound."""
        self._max_message_bytes = self.protocol.max_message_size or 0
        self.heard_at = time.monotonic()
        """When bytes last came in, of frames, pings or pongs (monotonic seconds)."""

    async def frames(self) -> list[bytes]:
        """Messages as bytes, oldest first; waits for the first. `ConnectionClosed` once all were read and the connection has ended.

        Its cause is a `NotReadingError`, `PayloadTooBig` or `ProtocolError` where the other end broke a bound or the protocol.
        """
        while not self._frames:
            if self._stopped:
                self._parse()
            elif self.protocol.state is not State.OPEN:
                await self.recv()
            if not self._frames and not self._stopped and self.protocol.state is State.OPEN:
                # What came had no message, such as pongs alone.
                self._readable = anyio.Event()
            await self._readable.wait()
        taken, self._frames = self._frames[:_FRAMES_PER_READ], self._frames[_FRAMES_PER_READ:]
        if not self._frames:
            self._queued_bytes = 0
            if not self._stopped:
                self._readable = anyio.Event()
                self._read_on(True)
        if self._batches and not self._batching.is_set():
            self._batching.set()
            self._set_low_watermark(_BATCH_BYTES)
        return taken

    async def batch_reads(self) -> None:
        """End each batch after its time, until cancelled. Then the socket is read without batches again.

        The system reports a socket as readable once it has `SO_RCVLOWAT` bytes or has ended, with and without TLS. On a system without
        this option frames are read as they come.
        """
        self._batches = True
        try:
            while True:
                await self._batching.wait()
                await anyio.sleep(_BATCH_SECONDS)
                self._batching = anyio.Event()
                self._set_low_watermark(1)
        finally:
            self._batches = False
            self._set_low_watermark(1)

    def data_received(self, data: bytes) -> None:
        """Parse frames. The library gets the handshake. What comes after the end, or after our own close frame, is dropped."""
        self.heard_at = time.monotonic()
        if self._handshake is not None:
            data = self._read_handshake(self._handshake, data)
        if not data:
            return
        if self.protocol.state is State.CONNECTING:
            super().data_received(data)
        elif self.protocol.state is State.OPEN:
            self._unparsed += data
            # A large frame may come byte by byte: it is looked at once it is whole.
            if not self._stopped and len(self._unparsed) >= self._needed_bytes:
                self._parse()

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

    def _parse(self) -> None:
        """Take the whole frames of `_unparsed`, as many as one turn of the event loop may take, and answer the newest ping."""
        data, frames = bytes(self._unparsed), self._frames
        place, size, turn, needed, queued = 0, len(data), _FRAMES_PER_TURN, 0, self._queued_bytes
        # Between the frames of one message there is no other.
        max_bytes = self._max_message_bytes if self._parts is None else -1
        ping: bytes | None = None
        while place + 2 <= size and turn:
            turn -= 1
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
                self._refuse(CloseCode.PROTOCOL_ERROR, ProtocolError("a masked frame"))
                break
            end = start + length
            if kind == _TEXT and length <= max_bytes:
                if end > size:
                    needed = end - place
                    break
                frames.append(data[start:end])
                queued += length
                place = end
                if len(frames) < _MAX_QUEUED_FRAMES and queued < _MAX_QUEUED_BYTES:
                    continue
                turn = 0
                break
            refusal = self._refusal(kind, length)
            if refusal is not None:
                self._refuse(*refusal)
                break
            if end > size:
                needed = end - place
                break
            if kind == _PING:
                ping = data[start:end]
            elif kind == _CLOSE:
                self._over = True
                if self.protocol.state is State.OPEN:
                    super().data_received(data[place:end])
                break
            elif kind != _PONG:
                queued += self._add_part(kind, data[start:end])
                max_bytes = self._max_message_bytes if self._parts is None else -1
                if len(frames) >= _MAX_QUEUED_FRAMES or queued >= _MAX_QUEUED_BYTES:
                    place, turn = end, 0
                    break
            place = end
        self._queued_bytes, self._needed_bytes = queued, needed
        self._stopped = not turn and not self._over
        if self._over:
            self._unparsed.clear()
            self.transport.abort()
        else:
            del self._unparsed[:place]
            if ping is not None and self.protocol.state is State.OPEN:
                # One for all of this turn, as RFC 6455 allows in section 5.5.3.
                self.protocol.send_pong(ping)
                self.send_data()
        if frames or self._stopped:
            self._readable.set()
        self._read_on(not self._stopped)

    def _refusal(self, kind: int, length: int) -> tuple[CloseCode, WebSocketException] | None:
        """Why a frame with this header is not read; None for one that is."""
        if kind in (_CLOSE, _PING, _PONG):
            return None if length <= _MAX_CONTROL_BYTES else (CloseCode.PROTOCOL_ERROR, ProtocolError("a control frame that is too long"))
        if kind in _FIRST if self._parts is None else kind in _FURTHER:
            most = self._max_message_bytes
            if self._parts_bytes + length > most or len(self._parts or ()) == _MAX_PARTS:
                return CloseCode.MESSAGE_TOO_BIG, PayloadTooBig(length, most, self._parts_bytes)
            return None
        return CloseCode.PROTOCOL_ERROR, ProtocolError(f"a frame that begins with 0x{kind:02x}")

    def _refuse(self, code: CloseCode, error: WebSocketException) -> None:
        """Fail the connection (RFC 6455, section 7.1.7)."""
        self._over = True
        if self.protocol.state is State.OPEN:
            self.protocol.fail(code)
            self.protocol.parser_exc = error
            self.send_data()

    def _add_part(self, kind: int, payload: bytes) -> int:
        """Take a frame of a message in several. Returns the length of the message once it is whole, before that 0."""
        parts = self._parts = self._parts if self._parts is not None else []
        parts.append(payload)
        self._parts_bytes += len(payload)
        if not kind & _FINAL:
            return 0
        self._frames.append(b"".join(parts))
        length, self._parts, self._parts_bytes = self._parts_bytes, None, 0
        return length

    def _read_on(self, reads: bool) -> None:
        """Read the socket, or stop reading it."""
        if reads is self._paused and not self.transport.is_closing():
            self._paused = not reads
            if reads:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def eof_received(self) -> None:
        """The other end sends nothing more: end the connection, whether or not it still reads what waits to be sent."""
        super().eof_received()
        if self._handshake is None:
            self.transport.abort()

    def pause_writing(self) -> None:
        """More waits to be sent than is ever sent to an exchange at once: the other end does not read."""
        super().pause_writing()
        self.set_connection_exc(NotReadingError(f"{self.transport.get_write_buffer_size():,} bytes wait to be sent to it"))
        self.transport.abort()

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
