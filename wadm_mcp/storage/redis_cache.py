"""The cache in Redis, shared by every process on one tape. It survives restarts. No other module imports redis-py.

A circuit breaker bounds what a slow, full or unreachable Redis costs to one short wait every few seconds: after a failure no call is
made during a backoff of one to ten seconds, then a single call tries again. The reason is one line in health, without user name and
password.
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
from wadm_mcp.storage.cache import VERSION, Cache, CacheState, add_version, strip_version

HEALTH_PART: Final = "cache"
"""Name of this part in health."""

CONNECT_SECONDS: Final = 0.5
ANSWER_SECONDS: Final = 0.2
"""Timeouts of connecting and of a command. A call that has to connect first may take the sum of both."""

_FIRST_BACKOFF_SECONDS: Final = 1.0
_MAX_BACKOFF_SECONDS: Final = 10.0
_PROBE_SECONDS: Final = 2.0
_MAX_CONNECTIONS: Final = 8

_FAILURES: Final = (RedisError, OSError, EOFError, ValueError)
"""`TimeoutError` is an `OSError`. Parsing the reply of a server that is not Redis may raise the last two."""

T = TypeVar("T")


class _CircuitBreaker:
    """Allows all calls while they succeed; after a failure none during a backoff, then one at a time."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._backoff = 0.0
        self._blocked_until = 0.0
        self._failed_at = -math.inf
        self.reason = ""
        """Why the last call failed; empty if it succeeded."""

    def allows(self) -> bool:
        now = self._monotonic()
        if now < self._blocked_until:
            return False
        if self._backoff:
            # This call is the probe; the others are refused until it has ended.
            self._blocked_until = now + self._backoff
        return True

    def failed(self, started: float, reason: str) -> None:
        self.reason = reason
        # Concurrent calls fail together; they count as one failure.
        if started > self._failed_at:
            self._failed_at = self._monotonic()
            self._backoff = min(_MAX_BACKOFF_SECONDS, self._backoff * 2) or _FIRST_BACKOFF_SECONDS
            self._blocked_until = self._failed_at + self._backoff

    def succeeded(self) -> None:
        self._backoff = self._blocked_until = 0.0
        self.reason = ""


class RedisCache(Cache):
    """A `Cache` in the Redis at `url`, under keys `wadm:1:{tape}:...`; `tape` is a `tape_name`.

    Raises `SettingError` for an invalid URL. Entering never waits for Redis; `watch` keeps health up to date while no calls are made.
    """

    def __init__(
        self,
        url: str,
        tape: str,
        health: Health,
        *,
        answer_seconds: float = ANSWER_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout = CONNECT_SECONDS + answer_seconds
        self._prefix = f"wadm:{VERSION}:{tape}:"
        self._health = health
        self._place = _place(url)
        try:
            self._redis: Redis = Redis.from_url(
                url,
                socket_connect_timeout=CONNECT_SECONDS,
                socket_timeout=answer_seconds,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        except (ValueError, RedisError):
            raise _invalid_url() from None
        self._monotonic = monotonic
        self._breaker = _CircuitBreaker(monotonic)
        # A full or read-only Redis still answers reads.
        self._write_breaker = _CircuitBreaker(monotonic)
        self._hits = self._misses = self._failures = 0

    async def __aenter__(self) -> Self:
        self._limiter = anyio.CapacityLimiter(_MAX_CONNECTIONS)
        self._health.report(HEALTH_PART, State.STARTING, f"Redis at {self._place}")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with anyio.move_on_after(self._timeout, shield=True):
            await self._redis.aclose()

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        names = [self._prefix + key for key in keys]
        found = await self._call(lambda: self._mget(names), self._breaker) if names else []
        if found is None:
            self._misses += len(keys)
            return [None] * len(keys)
        values = [None if data is None else strip_version(data) for data in found]
        foreign = [key for key, data, value in zip(keys, found, values, strict=True) if data is not None and value is None]
        self._hits += sum(value is not None for value in values)
        self._misses += values.count(None)
        if foreign:
            self._health.count("cache.unreadable", len(foreign))
            await self.delete(foreign)
        return values

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        if ttl > 0 and self._write_breaker.allows():
            milliseconds = max(1, int(ttl * 1000))
            await self._call(
                lambda: self._redis.set(self._prefix + key, add_version(value), px=milliseconds), self._breaker, self._write_breaker
            )

    async def delete(self, keys: Sequence[str]) -> None:
        names = [self._prefix + key for key in keys]
        if names:
            await self._call(lambda: self._redis.unlink(*names), self._breaker)

    @property
    def state(self) -> CacheState:
        reason = self._breaker.reason or self._write_breaker.reason
        return CacheState("redis", self._place, not reason, reason, self._hits, self._misses, self._failures)

    async def probe(self) -> None:
        """Make one call to learn the state of Redis, unless a breaker forbids it."""
        if self._write_breaker.allows():
            await self._call(
                lambda: self._redis.set(f"{self._prefix}probe", add_version(b"\xc0"), px=10_000), self._breaker, self._write_breaker
            )
        else:
            await self._call(self._ping, self._breaker)

    async def watch(self) -> None:
        """Keep health up to date until cancelled."""
        while True:
            await self.probe()
            await anyio.sleep(_PROBE_SECONDS)

    async def _mget(self, names: Sequence[str]) -> list[bytes | None]:
        # Unlike GET, MGET reports a key of another type, which another program must have set, as missing.
        found: object = await self._redis.execute_command("MGET", *names)
        if not isinstance(found, list) or len(found) != len(names):
            raise ValueError(f"MGET returned a {type(found).__name__}, not {len(names)} values")
        return [data if isinstance(data, bytes) else None for data in found]

    async def _ping(self) -> bool:
        return bool(await self._redis.execute_command("PING"))

    async def _call(self, command: Callable[[], Awaitable[T]], link: _CircuitBreaker, writes: _CircuitBreaker | None = None) -> T | None:
        """The command's answer; None if it failed or a breaker forbids it."""
        async with self._limiter:
            if not link.allows():
                return None
            started = self._monotonic()
            try:
                with anyio.fail_after(self._timeout):
                    answer = await command()
            except _FAILURES as error:
                self._failures += 1
                event, reason = _explain(error)
                self._health.count(f"cache.{event}")
                if writes is not None and isinstance(error, OutOfMemoryError | ReadOnlyError):
                    link.succeeded()
                    writes.failed(started, reason)
                else:
                    link.failed(started, reason)
                self._report_health()
                return None
            link.succeeded()
            if writes is not None:
                writes.succeeded()
            self._report_health()
            return answer

    def _report_health(self) -> None:
        state = self.state
        known = self._health.parts.get(HEALTH_PART)
        if state.ok:
            if known is None or known.state is not State.OK:
                log.info("cache.ok", place=self._place)
            self._health.report(HEALTH_PART, State.OK, f"Redis at {self._place}")
        else:
            line = f"Redis at {self._place} {state.detail}; answers come without it, only slower"
            if known is None or known.state is not State.DOWN or known.detail != line:
                log.warning("cache.down", place=self._place, reason=state.detail)
            self._health.report(HEALTH_PART, State.DOWN, line)


def _explain(error: Exception) -> tuple[str, str]:
    """The counter and the description of a failure. The library's own text is not used, as it may quote what was sent."""
    match error:
        case OutOfMemoryError():
            return "full", "is full and evicts nothing (raise maxmemory, or set maxmemory-policy to allkeys-lru)"
        case ReadOnlyError():
            return "refused", "is a read-only replica (REDIS_URL must name the primary)"
        case BusyLoadingError():
            return "loading", "is still loading its data"
        case AuthenticationError() | AuthorizationError():
            return "refused", "refuses the user name or the password of REDIS_URL, or requires one"
        case NoPermissionError():
            return "refused", f"does not allow its user a command (WADM needs MGET, SET, UNLINK and PING on keys wadm:{VERSION}:*)"
        case ResponseError():
            return "refused", "rejects MGET, SET, UNLINK or PING; is it a Redis server?"
        case TimeoutError() | RedisTimeout():
            return "slow", "does not answer in time"
        case RedisError() | OSError():
            return "unreachable", "cannot be reached"
        case _:
            return "unreachable", "does not answer as Redis does"


def _place(url: str) -> str:
    """Host, port and database of a URL (the path of a Unix socket), without user name, password and options."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _invalid_url() from None
    if parts.scheme == "unix" and parts.path:
        return unquote(parts.path)
    database = parts.path.strip("/") or "0"
    if parts.scheme not in ("redis", "rediss") or not parts.hostname or not database.isdecimal():
        raise _invalid_url()
    return f"{parts.hostname}:{port or 6379}/{database}"


def _invalid_url() -> SettingError:
    return SettingError(
        "REDIS_URL=(hidden): not an address of Redis; expected redis://user:password@host:6379/0, rediss://... or unix://..."
    )
