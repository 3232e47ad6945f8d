"""The contract of a cache, in process and in a real redis-server, and the bounded delay that a failing Redis causes."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from itertools import pairwise

import anyio
import pytest
from anyio.abc import SocketStream
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from redis.exceptions import BusyLoadingError

from tests.market import ManualClock
from tests.redis_server import RedisServer, given_redis_url, redis_binary
from wadm_mcp.errors import SettingError
from wadm_mcp.health import Health, State
from wadm_mcp.storage.cache import Cache, InProcessCache, add_version, strip_version, tape_name
from wadm_mcp.storage.redis_cache import ANSWER_SECONDS, CONNECT_SECONDS, HEALTH_PART, RedisCache, _explain

pytestmark = pytest.mark.anyio

SECRET = "s3cret-word"
TTL = 60.0
PATIENT = 5.0
"""Timeout of answers in tests with a healthy Redis, which is slow on a loaded machine."""


class Seconds:
    """A monotonic clock that a test advances."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def shared_url() -> Generator[str]:
    """A Redis for tests that do not harm it."""
    given = given_redis_url()
    if given is not None:
        yield given
        return
    with RedisServer(redis_binary()) as server:
        yield server.url


@pytest.fixture
def server() -> Generator[RedisServer]:
    """A Redis for tests that stop, fill or lock it."""
    with RedisServer(redis_binary()) as own:
        yield own


@pytest.fixture
def health() -> Health:
    return Health(ManualClock().now)


@pytest.fixture(params=["in process", "redis"])
async def cache(request: pytest.FixtureRequest) -> AsyncGenerator[Cache]:
    """An open, empty cache of each kind."""
    if request.param == "in process":
        async with InProcessCache() as opened:
            yield opened
    else:
        tape = tape_name(f"{os.getpid()} {time.time_ns()}")
        async with RedisCache(request.getfixturevalue("shared_url"), tape, Health(ManualClock().now), answer_seconds=PATIENT) as opened:
            yield opened


@asynccontextmanager
async def redis_cache(
    url: str, health: Health, clock: Seconds | None = None, answer_seconds: float = PATIENT
) -> AsyncGenerator[RedisCache]:
    tape = tape_name("a tape")
    async with RedisCache(url, tape, health, answer_seconds=answer_seconds, monotonic=clock or time.monotonic) as opened:
        yield opened


def line_of(health: Health) -> str:
    """What health says of a cache that is down: one line without a secret."""
    report = health.parts[HEALTH_PART]
    assert report.state is State.DOWN
    assert report.detail.isprintable()
    assert SECRET not in report.detail
    return report.detail


async def test_values_come_back_in_the_order_of_their_keys(cache: Cache) -> None:
    await cache.put("one", b"\x01", TTL)
    await cache.put("two", b"", TTL)
    await cache.put("large", bytes(range(256)) * 4_000, TTL)
    assert await cache.get(["two", "none", "one"]) == [b"", None, b"\x01"]
    assert await cache.get(["large"]) == [bytes(range(256)) * 4_000]
    assert await cache.get([]) == []


async def test_a_later_value_takes_the_place_of_an_earlier_one(cache: Cache) -> None:
    await cache.put("key", b"old", TTL)
    await cache.put("key", b"new", TTL)
    assert await cache.get(["key"]) == [b"new"]


async def test_deleted_entries_are_gone_and_others_stay(cache: Cache) -> None:
    for key in ("one", "two", "three"):
        await cache.put(key, key.encode(), TTL)
    await cache.delete(["one", "three", "never stored"])
    await cache.delete([])
    assert await cache.get(["one", "two", "three"]) == [None, b"two", None]


async def test_an_entry_without_a_ttl_is_not_stored(cache: Cache) -> None:
    await cache.put("key", b"value", 0)
    await cache.put("other", b"value", -1)
    assert await cache.get(["key", "other"]) == [None, None]


async def test_hits_and_misses_are_counted(cache: Cache) -> None:
    await cache.put("key", b"value", TTL)
    await cache.get(["key", "none", "none either"])
    assert cache.state.ok
    assert (cache.state.hits, cache.state.misses, cache.state.failures) == (1, 2, 0)


async def test_an_entry_in_process_expires_after_its_ttl() -> None:
    clock = Seconds()
    async with InProcessCache(monotonic=clock) as cache:
        await cache.put("key", b"value", 2.0)
        clock.now += 1.999
        assert await cache.get(["key"]) == [b"value"]
        clock.now += 0.001
        assert await cache.get(["key"]) == [None]
        assert cache.bytes == 0


async def test_the_least_recently_used_entry_leaves_first() -> None:
    async with InProcessCache(1_000) as cache:
        for key in ("a", "b", "c"):
            await cache.put(key, b"x" * 50, TTL)
        await cache.get(["a"])
        await cache.put("d", b"x" * 50, TTL)
        assert await cache.get(["a", "b", "c", "d"]) == [b"x" * 50, None, b"x" * 50, b"x" * 50]


async def test_a_value_larger_than_the_cache_is_not_stored_and_evicts_nothing() -> None:
    async with InProcessCache(1_000) as cache:
        await cache.put("small", b"x", TTL)
        await cache.put("small too", b"x", TTL)
        await cache.put("small", b"x" * 1_000, TTL)
        assert await cache.get(["small", "small too"]) == [None, b"x"]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.sampled_from("abcdé"), st.integers(0, 700)),
            st.tuples(st.just("delete"), st.sampled_from("abcdé"), st.just(0)),
            st.tuples(st.just("get"), st.sampled_from("abcdé"), st.just(0)),
            st.tuples(st.just("wait"), st.just(""), st.integers(0, 40)),
        ),
        max_size=60,
    )
)
async def test_the_bytes_stored_in_process_are_counted_exactly_and_bounded(steps: list[tuple[str, str, int]]) -> None:
    clock = Seconds()
    async with InProcessCache(2_000, monotonic=clock) as cache:
        newest: dict[str, tuple[bytes, float]] = {}
        for step, key, size in steps:
            if step == "put":
                value = os.urandom(size)
                await cache.put(key, value, 30.0)
                newest[key] = value, clock.now + 30.0
            elif step == "delete":
                await cache.delete([key])
                newest.pop(key, None)
            elif step == "wait":
                clock.now += size
            else:
                (found,) = await cache.get([key])
                value, until = newest.get(key, (None, 0.0))
                assert found is None or (found == value and clock.now < until)
            assert cache.bytes == sum(len(key.encode()) + len(value) + 256 for key, (_, value) in cache._entries.items())
            assert cache.bytes <= 2_000


def test_a_value_of_another_version_is_not_read() -> None:
    assert strip_version(add_version(b"value")) == b"value"
    assert strip_version(b"\x02value") is None
    assert strip_version(b"") is None


async def test_every_entry_in_redis_has_its_namespace_its_version_and_a_ttl(server: RedisServer, health: Health) -> None:
    async with redis_cache(server.url, health) as cache:
        await cache.put("key", b"value", TTL)
        await cache.put("brief", b"value", 0.000_1)
        await cache.probe()
    with Redis(port=server.port) as raw:
        names = [bytes(name) for name in raw.scan_iter()]
        assert f"wadm:1:{tape_name('a tape')}:key".encode() in names
        for name in names:
            assert name.decode().startswith(f"wadm:1:{tape_name('a tape')}:")
            assert raw.pttl(name) != -1
        assert 0 < raw.pttl(f"wadm:1:{tape_name('a tape')}:key") <= TTL * 1_000
        assert raw.get(f"wadm:1:{tape_name('a tape')}:key") == b"\x01value"


async def test_an_unreadable_entry_is_a_miss_and_deleted(server: RedisServer, health: Health) -> None:
    async with redis_cache(server.url, health) as cache:
        await cache.put("ours", b"value", TTL)
        prefix = f"wadm:1:{tape_name('a tape')}:"
        with Redis(port=server.port) as raw:
            raw.set(f"{prefix}foreign", b"\x02value")
            raw.rpush(f"{prefix}list", b"value")
            assert await cache.get(["foreign", "ours", "list"]) == [None, b"value", None]
            assert not raw.exists(f"{prefix}foreign")
        assert health.counts["cache.unreadable"] == 1
        assert cache.state.ok


async def test_two_tapes_in_one_redis_never_mix(server: RedisServer, health: Health) -> None:
    async with (
        RedisCache(server.url, tape_name("/one"), health, answer_seconds=PATIENT) as one,
        RedisCache(server.url, tape_name("/two"), health, answer_seconds=PATIENT) as two,
    ):
        await one.put("key", b"one", TTL)
        assert await two.get(["key"]) == [None]
        await two.delete(["key"])
        assert await one.get(["key"]) == [b"one"]


async def test_two_processes_on_one_tape_share_their_entries(server: RedisServer, health: Health) -> None:
    async with redis_cache(server.url, health) as one, redis_cache(server.url, health) as two:
        await one.put("key", b"value", TTL)
        assert await two.get(["key"]) == [b"value"]


async def test_a_killed_redis_is_not_called_during_the_backoff_and_used_again_after_it(server: RedisServer, health: Health) -> None:
    clock = Seconds()
    async with redis_cache(server.url, health, clock) as cache:
        await cache.put("key", b"value", TTL)
        server.kill()
        with anyio.fail_after(5):
            assert await cache.get(["key"]) == [None]
            assert "cannot be reached" in line_of(health)
            began, failures = time.perf_counter(), cache.state.failures
            for _ in range(1_000):
                assert await cache.get(["key"]) == [None]
                await cache.put("key", b"value", TTL)
                await cache.delete(["key"])
            assert time.perf_counter() - began < 2
            assert cache.state.failures == failures == 1
        server.start()
        clock.now += 1.1
        with anyio.fail_after(2):
            assert await cache.get(["key"]) == [None]
            await cache.put("key", b"new", TTL)
            assert await cache.get(["key"]) == [b"new"]
        assert health.parts[HEALTH_PART].state is State.OK


async def test_the_backoff_doubles_while_redis_stays_unreachable(server: RedisServer, health: Health) -> None:
    clock = Seconds()
    async with redis_cache(server.url, health, clock) as cache:
        server.kill()
        tried: list[float] = []
        for _ in range(600):
            before = cache.state.failures
            await cache.get(["key"])
            if cache.state.failures > before:
                tried.append(clock.now)
            clock.now += 0.1
        pauses = [round(later - earlier, 1) for earlier, later in pairwise(tried)]
        assert pauses[:4] == pytest.approx([1, 2, 4, 8], abs=0.15)
        assert pauses[4:] == pytest.approx([10] * len(pauses[4:]), abs=0.15)


async def test_a_paused_redis_costs_one_short_wait_for_any_number_of_callers(server: RedisServer, health: Health) -> None:
    clock = Seconds()
    async with redis_cache(server.url, health, clock, ANSWER_SECONDS) as cache:
        for number in range(40):
            await cache.put(str(number), str(number).encode(), TTL)
        server.pause()
        try:
            began = time.perf_counter()
            found: list[bytes | None] = []

            async def ask(number: int) -> None:
                found.extend(await cache.get([str(number)]))

            async with anyio.create_task_group() as tasks:
                for number in range(40):
                    tasks.start_soon(ask, number)
            assert time.perf_counter() - began < 3 * (CONNECT_SECONDS + ANSWER_SECONDS)
            assert found == [None] * 40
            assert "does not answer in time" in line_of(health)
        finally:
            server.resume()
        # Calls that failed together count as one failure.
        clock.now += 1.1
        for number in range(40):
            assert await cache.get([str(number)]) == [str(number).encode()]
        assert health.parts[HEALTH_PART].state is State.OK


async def test_after_a_failure_a_single_call_probes_redis(server: RedisServer, health: Health) -> None:
    clock = Seconds()
    async with redis_cache(server.url, health, clock, ANSWER_SECONDS) as cache:
        server.pause()
        try:
            await cache.get(["key"])
            clock.now += 1.1
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(cache.get, ["key"])
            assert cache.state.failures == 2
        finally:
            server.resume()


async def test_the_answer_of_a_cancelled_call_is_never_given_to_another_call(server: RedisServer, health: Health) -> None:
    async with redis_cache(server.url, health) as cache:
        await cache.put("one", b"one", TTL)
        await cache.put("two", b"two", TTL)
        for _ in range(5):
            server.pause()
            try:
                with anyio.move_on_after(0.02) as scope:
                    await cache.get(["one"])
                assert scope.cancelled_caught
            finally:
                server.resume()
            assert await cache.get(["two", "one"]) == [b"two", b"one"]


async def test_a_full_redis_still_serves_its_entries_and_health_says_that_it_is_full(health: Health) -> None:
    with RedisServer(redis_binary(), maxmemory="3mb", **{"maxmemory-policy": "noeviction"}) as server:
        clock = Seconds()
        async with redis_cache(server.url, health, clock) as cache:
            await cache.put("first", b"value", TTL)
            assert health.parts[HEALTH_PART].state is State.OK
            for number in range(40):
                await cache.put(str(number), bytes(100_000), TTL)
            assert "is full" in line_of(health)
            assert health.counts["cache.full"] == 1
            assert await cache.get(["first"]) == [b"value"]
            assert "is full" in line_of(health)
            await cache.delete([str(number) for number in range(40)])
            clock.now += 1.1
            await cache.probe()
            assert health.parts[HEALTH_PART].state is State.OK
            await cache.put("later", b"value", TTL)
            assert await cache.get(["later"]) == [b"value"]


async def test_a_redis_that_evicts_entries_is_healthy(health: Health) -> None:
    with RedisServer(redis_binary(), maxmemory="3mb", **{"maxmemory-policy": "allkeys-lru"}) as server:
        async with redis_cache(server.url, health) as cache:
            for number in range(60):
                await cache.put(str(number), bytes(100_000), TTL)
            assert await cache.get(["59"]) == [bytes(100_000)]
            # Redis evicts by random samples, so it is not known which entries are gone.
            assert None in await cache.get([str(number) for number in range(60)])
        assert health.parts[HEALTH_PART].state is State.OK


async def test_a_read_only_redis_is_reported(server: RedisServer, health: Health) -> None:
    async with redis_cache(server.url, health) as cache:
        await cache.put("key", b"value", TTL)
        with Redis(port=server.port) as raw:
            raw.replicaof("127.0.0.1", "1")
        await cache.put("other", b"value", TTL)
        assert "read-only replica" in line_of(health)
        assert await cache.get(["key"]) == [b"value"]


@pytest.mark.parametrize("credentials", ["", f":{SECRET}@", f"user:{SECRET}@"])
async def test_a_refused_password_is_reported_and_never_shown(credentials: str, health: Health) -> None:
    with RedisServer(redis_binary(), requirepass="the right one") as server:
        async with redis_cache(f"redis://{credentials}127.0.0.1:{server.port}/0", health) as cache:
            assert await cache.get(["key"]) == [None]
            await cache.put("key", b"value", TTL)
            assert "refuses the user name or the password of REDIS_URL, or requires one" in line_of(health)
            assert health.counts["cache.refused"] == 1
            assert SECRET not in repr(cache.state)
        async with redis_cache(f"redis://:the%20right%20one@127.0.0.1:{server.port}/0", health) as cache:
            await cache.put("key", b"value", TTL)
            assert await cache.get(["key"]) == [b"value"]


async def test_health_reports_an_unreachable_redis_without_any_call(server: RedisServer, health: Health) -> None:
    clock = Seconds()
    async with redis_cache(server.url, health, clock) as cache:
        assert health.parts[HEALTH_PART].state is State.STARTING
        await cache.probe()
        assert health.parts[HEALTH_PART].state is State.OK
        server.kill()
        await cache.probe()
        assert line_of(health).startswith(f"Redis at 127.0.0.1:{server.port}/0 cannot be reached")
        server.start()
        clock.now += 1.1
        await cache.probe()
        assert health.parts[HEALTH_PART].state is State.OK


async def test_watching_continues_until_cancelled(server: RedisServer, health: Health) -> None:
    async with redis_cache(server.url, health) as cache:
        with anyio.move_on_after(0.3) as scope:
            await cache.watch()
        assert scope.cancelled_caught
    assert health.parts[HEALTH_PART].state is State.OK


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "still loading"),
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", ""),
        (b"$abc\r\n", ""),
        (b"*1\r\n:7\r\n", "does not answer as Redis does"),
        (b"+OK\r\n", "does not answer as Redis does"),
        (b"-MISCONF \x1b[31m\xff\r\n", ""),
    ],
)
async def test_a_server_that_is_not_redis_is_a_miss(reply: bytes, said: str, health: Health) -> None:
    async def answer(stream: SocketStream) -> None:
        async with stream:
            try:
                while await stream.receive():
                    await stream.send(reply)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with anyio.fail_after(2):
            async with redis_cache(f"redis://127.0.0.1:{port}/0", health) as cache:
                assert await cache.get(["key", "other"]) == [None, None]
        assert said in line_of(health)
        tasks.cancel_scope.cancel()


def test_a_loading_redis_is_named_so() -> None:
    assert _explain(BusyLoadingError("...")) == ("loading", "is still loading its data")


@pytest.mark.parametrize(
    "url", ["", "localhost:6379", f"http://user:{SECRET}@localhost", f"redis://:{SECRET}@localhost:port", f"redis://:{SECRET}@host:6379/x"]
)
def test_an_invalid_address_is_refused_without_showing_its_secret(url: str, health: Health) -> None:
    with pytest.raises(SettingError) as refusal:
        RedisCache(url, "tape", health)
    assert SECRET not in str(refusal.value)
    assert str(refusal.value).startswith("REDIS_URL=(hidden): ")
