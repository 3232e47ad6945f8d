"""What may be forgotten at any time: the contract of a cache, and the one in process.

A cache holds MessagePack under short keys, each entry with a life. It never fails: what it cannot give is a miss, what it cannot take is
dropped. Whoever reads an entry proves it before use (`cached.py`), so a cache can make an answer late but never wrong.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

VERSION: Final = 1
"""Of keys and values. Each value begins with it as one byte; a value of another version is a miss."""

DEFAULT_BYTES: Final = 32 << 20
"""Room of the cache in process."""

_MARK: Final = bytes((VERSION,))
_ENTRY: Final = 256
"""Bytes counted for an entry beside its key and value: about what the objects around them take."""


class CacheState(NamedTuple):
    """What a health page says of a cache. `place` and `detail` hold no secret; `failures` are calls that got no answer or a refusal."""

    kind: str
    place: str
    ok: bool
    detail: str
    hits: int
    misses: int
    failures: int


class Cache(Protocol):
    """Entered once as a context manager. No method raises for what is wrong with the cache, and none waits for it long."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of these keys in their order, None for each that is not held."""
        ...

    async def put(self, key: str, value: bytes, life: float) -> None:
        """Hold a value for `life` seconds at most, in place of what the key held."""
        ...

    async def forget(self, keys: Sequence[str]) -> None:
        """Drop these entries where they are held and can be reached."""
        ...

    @property
    def state(self) -> CacheState:
        """How the cache is doing; in memory, never waits."""
        ...


class InProcessCache(Cache):
    """The least recently used entries that fit `limit` bytes of keys and values. Time is `monotonic`, in seconds."""

    def __init__(self, limit: int = DEFAULT_BYTES, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._monotonic = monotonic
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._hits = self._misses = 0
        self.bytes = 0
        """What the entries held are counted as; never more than the limit."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._entries.clear()
        self.bytes = 0

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        return [self._get(key) for key in keys]

    async def put(self, key: str, value: bytes, life: float) -> None:
        self._drop(key)
        size = _size(key, value)
        if size > self._limit or life <= 0:
            return
        while self.bytes + size > self._limit:
            self._drop(next(iter(self._entries)))
        self._entries[key] = self._monotonic() + life, value
        self.bytes += size

    async def forget(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._drop(key)

    @property
    def state(self) -> CacheState:
        detail = f"{len(self._entries)} entries, {self.bytes:,} of {self._limit:,} bytes"
        return CacheState("in process", "memory", True, detail, self._hits, self._misses, 0)

    def _get(self, key: str) -> bytes | None:
        until, value = self._entries.get(key, (0.0, None))
        if value is not None and self._monotonic() >= until:
            self._drop(key)
            value = None
        if value is None:
            self._misses += 1
            return None
        self._hits += 1
        self._entries.move_to_end(key)
        return value

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= _size(key, entry[1])


def tape_name(place: str) -> str:
    """A short name for the tape at a place (a database's host and name, a data directory), so that two never share an entry."""
    return blake2b(place.encode(), digest_size=8).hexdigest()


def seal(value: bytes) -> bytes:
    """A value as it leaves the process: behind its version."""
    return _MARK + value


def unseal(data: bytes) -> bytes | None:
    """The value that was sealed, None for one of another version."""
    return data[len(_MARK) :] if data.startswith(_MARK) else None


def _size(key: str, value: bytes) -> int:
    return len(key.encode()) + len(value) + _ENTRY
