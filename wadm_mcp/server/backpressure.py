"""The streams of a session, of which no more is read while too many of its messages wait to be written: a client that does not take its
answers may not ask for more."""

from __future__ import annotations

from contextvars import Context
from types import TracebackType
from typing import Final, Self

import anyio
from mcp.shared._stream_protocols import ReadStream, WriteStream
from mcp.shared.message import SessionMessage

_MAX_WAITING: Final = 32
"""Messages that may wait for the stream before its session is to read no more."""


class CountedWrites:
    """A write stream in front of another one."""

    def __init__(self, stream: WriteStream[SessionMessage]) -> None:
        self._stream = stream
        self._waiting = 0
        self._has_room = anyio.Event()
        self._has_room.set()
        self.used_at = anyio.current_time()
        """When the last message was written, or read through `PacedReads`."""

    async def wait_for_room(self) -> None:
        """Wait until fewer than `_MAX_WAITING` messages wait to be written."""
        await self._has_room.wait()

    async def send(self, item: SessionMessage, /) -> None:
        """Write a message."""
        self._waiting += 1
        if self._waiting == _MAX_WAITING:
            self._has_room = anyio.Event()
        try:
            await self._stream.send(item)
            self.used_at = anyio.current_time()
        finally:
            self._waiting -= 1
            if self._waiting < _MAX_WAITING:
                self._has_room.set()

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None) -> None:
        await self.aclose()


class PacedReads:
    """A read stream that pauses while its session's write stream has no room."""

    def __init__(self, stream: ReadStream[SessionMessage | Exception], writes: CountedWrites) -> None:
        self._stream = stream
        self._writes = writes

    @property
    def last_context(self) -> Context | None:
        """The context in which the last message was sent, which the SDK looks for."""
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        """Read a message."""
        await self._writes.wait_for_room()
        item = await self._stream.receive()
        self._writes.used_at = anyio.current_time()
        return item

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None) -> None:
        await self.aclose()
