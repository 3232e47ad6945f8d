"""A session's write stream that knows how many answers wait for it, so that no more is read from a client that does not read."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

import anyio
from mcp.shared._stream_protocols import WriteStream
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
