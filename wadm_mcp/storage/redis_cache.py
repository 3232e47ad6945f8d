"""The cache in Redis, shared by every process on one tape and kept over a restart. The only file that knows redis-py.

A slow, full or dead Redis costs at most one short wait every few seconds: after a failure it is left alone for a while that grows from
one to ten seconds, then a single call tries it again. What is wrong is one line in health, without the user name or the password.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final, Self, TypeVar
from urllib.parse import unquote, urlsplit

import anyio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeout

from wadm_mcp.errors import SettingError
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.storage.cache import VERSION, Cache, CacheState, seal, unseal

PART: Final = "cache"
"""How health calls it."""

CONNECT_WITHIN: Final = 0.5
ANSWER_WITHIN: Final = 0.2
"""Seconds for a connection and for a command. A call that needs both, with the greetings between them, has the sum."""

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 10.0
_LOOK_EVERY: Final = 2.0
_CONNECTIONS: Final = 8

_FAILURES: Final = (RedisError, OSError, EOFError, ValueError)
"""`TimeoutError` is an `OSError`. What is no Redis at all may answer with bytes whose reading ends in the last two."""

T = TypeVar("T")


class _Breaker:
    """Lets calls through, one at a time after a failure, none while it rests."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._pause = 0.0
        self._rests_until = 0.0
        self._failed_at = -math.inf
        self.trouble = ""
        """What the last call failed of, empty where it did not."""

    def allows(self) -> bool:
        now = self._monotonic()
        if now < self._rests_until:
            return False
        if self._pause:
            # This call tries for all the others, which meanwhile stay away.
            self._rests_until = now + self._pause
        return True

    def failed(self, began: float, trouble: str) -> None:
        self.trouble = trouble
        # Calls that were under way together fail together; they count once.
        if began > self._failed_at:
            self._failed_at = self._monotonic()
            self._pause = min(_LONGEST_PAUSE, self._pause * 2) or _FIRST_PAUSE
            self._rests_until = self._failed_at + self._pause

    def worked(self) -> None:
        self._pause = self._rests_until = 0.0
        self.trouble = ""


class RedisCache(Cache):
    """A `Cache` in the Redis at `url`, under keys `wadm:1:{tape}:...`; `tape` is a `tape_name`.

    `SettingError` for a URL that is none. Entering never waits for Redis; `watch` keeps health up to date while nobody asks.
    """

    def __init__(
        self,
        url: str,
        tape: str,
        health: Health,
        *,
        answer_within: float = ANSWER_WITHIN,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._within = CONNECT_WITHIN + answer_within
        self._prefix = f"wadm:{VERSION}:{tape}:"
        self._health = health
        self._place = _place(url)
        try:
            self._redis: Redis = Redis.from_url(
                url,
                socket_connect_timeout=CONNECT_WITHIN,
                socket_timeout=answer_within,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        except (ValueError, RedisError):
            raise _unusable() from None
        self._monotonic = monotonic
        self._breaker = _Breaker(monotonic)
        # A full or read-only Redis still answers what it holds.
        self._taking = _Breaker(monotonic)
        self._hits = self._misses = self._failures = 0

    async def __aenter__(self) -> Self:
        self._limiter = anyio.CapacityLimiter(_CONNECTIONS)
        self._health.report(PART, State.STARTING, f"Redis at {self._place}")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with anyio.move_on_after(self._within, shield=True):
            await self._redis.aclose()

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        names = [self._prefix + key for key in keys]
        found = await self._call(lambda: self._mget(names), self._breaker) if names else []
        if found is None:
            self._misses += len(keys)
            return [None] * len(keys)
        values = [None if data is None else unseal(data) for data in found]
        foreign = [key for key, data, value in zip(keys, found, values, strict=True) if data is not None and value is None]
        self._hits += sum(value is not None for value in values)
        self._misses += values.count(None)
        if foreign:
            self._health.count("cache.unreadable", len(foreign))
            await self.forget(foreign)
        return values

    async def put(self, key: str, value: bytes, life: float) -> None:
        if life > 0 and self._taking.allows():
            milliseconds = max(1, int(life * 1000))
            await self._call(lambda: self._redis.set(self._prefix + key, seal(value), px=milliseconds), self._breaker, self._taking)

    async def forget(self, keys: Sequence[str]) -> None:
        names = [self._prefix + key for key in keys]
        if names:
            await self._call(lambda: self._redis.unlink(*names), self._breaker)

    @property
    def state(self) -> CacheState:
        trouble = self._breaker.trouble or self._taking.trouble
        return CacheState("redis", self._place, not trouble, trouble, self._hits, self._misses, self._failures)

    async def look(self) -> None:
        """Find out how Redis is doing, unless a failure has it left alone."""
        if self._taking.allows():
            await self._call(lambda: self._redis.set(f"{self._prefix}look", seal(b"\xc0"), px=10_000), self._breaker, self._taking)
        else:
            await self._call(self._ping, self._breaker)

    async def watch(self) -> None:
        """Keep health up to date until cancelled."""
        while True:
            await self.look()
            await anyio.sleep(_LOOK_EVERY)

    async def _mget(self, names: Sequence[str]) -> list[bytes | None]:
        # Unlike GET it takes a key of another type, which someone else must have put there, for one that is not held.
        found: object = await self._redis.execute_command("MGET", *names)
        if not isinstance(found, list) or len(found) != len(names):
            raise ValueError(f"{len(names)} values were asked for")
        return [data if isinstance(data, bytes) else None for data in found]

    async def _ping(self) -> bool:
        return bool(await self._redis.execute_command("PING"))

    async def _call(self, command: Callable[[], Awaitable[T]], link: _Breaker, taking: _Breaker | None = None) -> T | None:
        """The command's answer, None where there is none to be had."""
        async with self._limiter:
            if not link.allows():
                return None
            began = self._monotonic()
            try:
                with anyio.fail_after(self._within):
                    answer = await command()
            except _FAILURES as error:
                self._failures += 1
                event, trouble = _explained(error)
                self._health.count(f"cache.{event}")
                if taking is not None and isinstance(error, OutOfMemoryError | ReadOnlyError):
                    link.worked()
                    taking.failed(began, trouble)
                else:
                    link.failed(began, trouble)
                self._tell()
                return None
            link.worked()
            if taking is not None:
                taking.worked()
            self._tell()
            return answer

    def _tell(self) -> None:
        state = self.state
        known = self._health.parts.get(PART)
        if state.ok:
            if known is None or known.state is not State.OK:
                log.info("cache.ok", place=self._place)
            self._health.report(PART, State.OK, f"Redis at {self._place}")
        else:
            line = f"Redis at {self._place} {state.detail}; answers come without it, only slower"
            if known is None or known.state is not State.DOWN or known.detail != line:
                log.warning("cache.down", place=self._place, reason=state.detail)
            self._health.report(PART, State.DOWN, line)


def _explained(error: Exception) -> tuple[str, str]:
    """A failure as the name of its counter, and in words that hold nothing of the library's, which may quote what was sent."""
    match error:
        case OutOfMemoryError():
            return "full", "is full and evicts nothing (give it more maxmemory, or maxmemory-policy allkeys-lru)"
        case ReadOnlyError():
            return "refused", "is a read-only replica (REDIS_URL must name the primary)"
        case BusyLoadingError():
            return "loading", "is still loading its data"
        case AuthenticationError() | AuthorizationError():
            return "refused", "refuses the user name or the password of REDIS_URL, or wants one"
        case NoPermissionError():
            return "refused", f"forbids its user a command (WADM needs MGET, SET, UNLINK and PING on keys wadm:{VERSION}:*)"
        case ResponseError():
            return "refused", "refuses a plain command"
        case TimeoutError() | RedisTimeout():
            return "slow", "does not answer in time"
        case RedisError() | OSError():
            return "unreachable", "cannot be reached"
        case _:
            return "unreachable", "does not answer as Redis does"


def _place(url: str) -> str:
    """Where a URL points, without user name, password and options."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _unusable() from None
    if parts.scheme == "unix" and parts.path:
        return unquote(parts.path)
    database = parts.path.strip("/") or "0"
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or not database.isdecimal():
        raise _unusable()
    return f"{parts.hostname}:{port or 6379}/{database}"


def _unusable() -> SettingError:
    return SettingError("REDIS_URL=(hidden): an address is needed such as redis://user:password@host:6379/0, rediss://... or unix://...")
