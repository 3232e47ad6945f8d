"""The contract of a cache, and the cache in process.

A cache stores MessagePack under short keys, each entry with a time to live (TTL). It never fails: a value it cannot return is a miss, a
value it cannot store is dropped. Callers check each entry against the store before use (`cached.py`), so a cache can delay an answer but
never make it wrong.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

import anyio

VERSION: Final = 1
"""Version of keys and values. Each value begins with it as one byte; a value of another version is a miss."""

DEFAULT_BYTES: Final = 32 << 20
"""Default size limit of the cache in process."""

_VERSION_BYTE: Final = bytes((VERSION,))
_ENTRY_OVERHEAD_BYTES: Final = 256
"""Bytes counted for each entry in addition to key and value: about the size of the Python objects around them."""


class CacheState(NamedTuple):
    """A cache's state, for the health page.

    `place` and `detail` contain no secret. `failures` counts calls that got an error or no answer.
    """

    kind: str
    place: str
    ok: bool
    detail: str
    hits: int
    misses: int
    failures: int


class Cache(Protocol):
    """A key-value cache, entered once as a context manager. No method raises when the cache fails, and none waits long for it."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of these keys in their order; None for a miss."""
        ...

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        """Store a value for at most `ttl` seconds, in place of the key's earlier value."""
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete these entries if they exist and the cache can be reached."""
        ...

    async def probe(self) -> None:
        """Call the cache once, so that `state` is current."""
        ...

    async def watch(self) -> None:
        """Keep `state` current until cancelled."""
        ...

    @property
    def state(self) -> CacheState:
        """The cache's state as of its last call; does no I/O."""
        ...


class InProcessCache(Cache):
    """A least-recently-used cache in memory, of at most `limit` bytes of keys and values. `monotonic` is its clock, in seconds."""

    def __init__(self, limit: int = DEFAULT_BYTES, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._monotonic = monotonic
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._hits = self._misses = 0
        self.bytes = 0
        """Size of all entries; never more than the limit."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._entries.clear()
        self.bytes = 0

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        return [self._get(key) for key in keys]

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        self._drop(key)
        size = _size(key, value)
        if size > self._limit or ttl <= 0:
            return
        while self.bytes + size > self._limit:
            self._drop(next(iter(self._entries)))
        self._entries[key] = self._monotonic() + ttl, value
        self.bytes += size

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._drop(key)

    async def probe(self) -> None:
        """Nothing to do: memory always answers."""

    async def watch(self) -> None:
        await anyio.sleep_forever()

    @property
    def state(self) -> CacheState:
        detail = f"{len(self._entries)} entries, {self.bytes:,} of {self._limit:,} bytes"
        return CacheState("in process", "memory", True, detail, self._hits, self._misses, 0)

    def _get(self, key: str) -> bytes | None:
        expires_at, value = self._entries.get(key, (0.0, None))
        if value is not None and self._monotonic() >= expires_at:
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
    """A short name for the tape at a place (a database's host and name, or a data directory), for keys that no other tape uses."""
    return blake2b(place.encode(), digest_size=8).hexdigest()


def add_version(value: bytes) -> bytes:
    """The value with the version byte in front, as it is stored outside the process."""
    return _VERSION_BYTE + value


def strip_version(data: bytes) -> bytes | None:
    """The value without its version byte; None if it has another version."""
    return data[len(_VERSION_BYTE) :] if data.startswith(_VERSION_BYTE) else None


def _size(key: str, value: bytes) -> int:
    return len(key.encode()) + len(value) + _ENTRY_OVERHEAD_BYTES
