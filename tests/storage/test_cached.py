"""Results from a cache equal those from the store, whatever the cache does; reused answers are at most a second old."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.redis_server import RedisServer, redis_binary
from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.errors import Busy, QueryError
from wadm_mcp.health import Health
from wadm_mcp.model import DAY, HOUR, MINUTE, Listing, Timeframe, Trade, TradeType, Window
from wadm_mcp.queries.view import View
from wadm_mcp.storage.cache import Cache, CacheState, InProcessCache, tape_name
from wadm_mcp.storage.cached import ANSWER_TTL_SECONDS, MIN_CACHED_MS, Answer, CachedAnswers, CachedFootprints, closed_hours
from wadm_mcp.storage.redis_cache import RedisCache
from wadm_mcp.storage.store import Derived, Store
from wadm_mcp.tape import Tape

from . import BTC, T0, order_flow, stored_footprint, trade
from .conftest import NewStore
from .test_cache import Seconds

pytestmark = pytest.mark.anyio

few_examples = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

Mood: TypeAlias = Literal["sound", "empty", "deaf", "old", "other", "torn"]
"""A working cache, or one that returns nothing, stores nothing, returns a key's first value, another key's value, or a truncated one."""

MOODS: Sequence[Mood] = ("sound", "empty", "deaf", "old", "other", "torn")


class MoodyCache(Cache):
    """A cache without limits that can be made to misbehave."""

    def __init__(self) -> None:
        self.mood: Mood = "sound"
        self.entries: dict[str, bytes] = {}
        self.ever: dict[str, list[bytes]] = defaultdict(list)
        self.hits = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        return None

    async def probe(self) -> None:
        return None

    async def watch(self) -> None:
        return None

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        return [self._get(key) for key in keys]

    def _get(self, key: str) -> bytes | None:
        match self.mood:
            case "empty":
                return None
            case "old":
                return next(iter(self.ever[key]), None)
            case "other":
                return next((values[-1] for other, values in self.ever.items() if other != key and values), None)
            case "torn":
                return self.entries.get(key, b"")[:-1]
            case _:
                self.hits += key in self.entries
                return self.entries.get(key)

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        assert ttl > 0
        if self.mood != "deaf":
            self.entries[key] = value
            self.ever[key].append(value)

    async def delete(self, keys: Sequence[str]) -> None:
        if self.mood != "deaf":
            for key in keys:
                self.entries.pop(key, None)

    @property
    def state(self) -> CacheState:
        return CacheState("moody", "tests", True, "", 0, 0, 0)


class Market:
    """A store that is filled as rollup does, read without and with a cache."""

    def __init__(self, store: Store, cache: Cache) -> None:
        self.store = store
        self.trades: dict[tuple[Timeframe, int], list[Trade]] = defaultdict(list)
        self.revision = self.seq = 0
        tape = Tape()
        tape.follow(Listing(BTC, Decimal("0.01"), Decimal("0.00001")))
        self.view = View(store, tape, lambda: T0 + 2 * DAY, ("spot",), ("binance",))
        self.cached = CachedFootprints(cache)

    async def trade(self, minute: int, price: int = 100, quantity: int = 1, *, hours: bool = True) -> None:
        """Add a trade to a minute; every closed bar that contains it is derived again. Without `hours` its hour is still open."""
        self.seq += 1
        self.revision += 1
        late = trade(self.seq, minute + self.seq % 60_000, price=price, quantity=quantity, trade_type=[*TradeType][price % 2])
        bars = {frame: frame.floor(minute) for frame in (Timeframe.M1, Timeframe.H1, Timeframe.D1)}
        for frame, start in bars.items():
            self.trades[frame, start] = sorted([*self.trades[frame, start], late], key=lambda one: one.order)
        kept = {frame: self.trades[frame, start] for frame, start in bars.items() if hours or frame is Timeframe.M1}
        await self.store.derive(
            Derived(
                footprints=[stored_footprint(bars[frame], of, timeframe=frame, revision=self.revision) for frame, of in kept.items()],
                order_flow=[order_flow(bars[frame], of, timeframe=frame, revision=self.revision) for frame, of in kept.items()],
            )
        )

    async def bare(self, window: Window) -> Footprint:
        return await self.view.footprint(BTC, window)

    async def bars(self, window: Window) -> Mapping[int, Bar]:
        return await self.view.bars(BTC, Timeframe.D1, window)

    async def through_cache(self, window: Window, merge: Callable[[Window], Awaitable[Footprint]] | None = None) -> Footprint:
        return await self.cached.footprint(BTC, window, (), self.bars, merge or self.bare)


@pytest.fixture
async def moody() -> MoodyCache:
    return MoodyCache()


@pytest.fixture
async def market(store: Store, moody: MoodyCache) -> Market:
    return Market(store, moody)


minutes = st.builds(lambda hour, minute: T0 + hour * HOUR + minute * MINUTE, st.integers(0, 47), st.sampled_from([0, 17, 59]))
steps = st.one_of(
    st.tuples(st.just("trade"), minutes, st.integers(1, 3), st.integers(1, 2)),
    st.tuples(st.just("read"), minutes, st.integers(0, 48), st.sampled_from(["before", "after", "none"])),
    st.tuples(st.just("mood"), st.sampled_from(MOODS), st.just(0), st.just(0)),
)


@few_examples
@given(st.lists(steps, max_size=30))
async def test_no_answer_is_ever_stale_whatever_the_cache_does(new_store: NewStore, script: list[tuple[Any, Any, Any, Any]]) -> None:
    async with new_store() as store:
        cache = MoodyCache()
        market = Market(store, cache)
        for step, first, second, third in script:
            if step == "trade":
                await market.trade(first, second, third)
            elif step == "mood":
                cache.mood = first
            else:
                await _read(market, Window(first, first + second * HOUR), third)
        cache.mood = "sound"
        for hours in (6, 24, 48):
            window = Window(T0, T0 + hours * HOUR)
            assert await market.through_cache(window) == await market.bare(window)
            assert await market.through_cache(window) == await market.bare(window)


async def _read(market: Market, window: Window, revised: str) -> None:
    """The result equals the store before or after a trade that comes during the merge."""

    async def overtaken(part: Window) -> Footprint:
        if revised == "before":
            await market.trade(part.start)
        merged = await market.bare(part)
        if revised == "after":
            await market.trade(part.start)
        return merged

    possible = [await market.bare(window)]
    found = await market.through_cache(window, overtaken if revised != "none" and window.length else None)
    again = await market.bare(window)
    if revised == "none":
        assert found == again
    else:
        # Parts are read one after the other, as without a cache: a trade that came meanwhile may be included or not.
        assert possible[0].bar.trade_count <= found.bar.trade_count <= again.bar.trade_count
        assert all(again.cells[price][2] >= cell[2] and again.cells[price][3] >= cell[3] for price, cell in found.cells.items())
    assert await market.through_cache(window) == again


async def test_a_second_question_is_answered_without_merging_again(market: Market, moody: MoodyCache) -> None:
    window = Window(T0, T0 + 8 * HOUR)
    await market.trade(T0 + HOUR)
    await market.trade(T0 + 7 * HOUR)
    first = await market.through_cache(window)

    async def never(part: Window) -> Footprint:
        raise AssertionError(part)

    assert await market.through_cache(window, never) == first == await market.bare(window)
    assert moody.hits == 1


async def test_only_the_ends_of_a_window_are_merged_anew(market: Market) -> None:
    for minute in (5, 90, 8 * 60 + 3):
        await market.trade(T0 + minute * MINUTE)
    window = Window(T0 + 5 * MINUTE, T0 + 8 * HOUR + 5 * MINUTE)
    merged: list[Window] = []

    async def merge(part: Window) -> Footprint:
        merged.append(part)
        return await market.bare(part)

    await market.through_cache(window, merge)
    merged.clear()
    assert await market.through_cache(window, merge) == await market.bare(window)
    assert merged == [Window(window.start, T0 + HOUR), Window(T0 + 8 * HOUR, window.end)]


async def test_live_minutes_are_merged_from_the_tape_and_never_cached(market: Market, moody: MoodyCache) -> None:
    window = Window(T0, T0 + 10 * HOUR)
    tape = market.view._tape[BTC]
    await market.trade(T0)
    for quantity in (5, 7):
        tape.add([trade(900 + quantity, T0 + 8 * HOUR + 5 * MINUTE, quantity=quantity)])
        live = tape.minutes_in(window)
        found = await market.cached.footprint(BTC, window, live, market.bars, market.bare)
        assert found == await market.bare(window)
        assert found.bar.buy_volume == sum(one.quantity for one in market.trades[Timeframe.D1, T0]) + {5: 5, 7: 12}[quantity]
    assert [*moody.entries] == [f"footprint:{BTC}:{T0}:{T0 + 8 * HOUR}"]


async def test_a_late_trade_invalidates_exactly_the_stretches_that_contain_it(market: Market, moody: MoodyCache) -> None:
    early, later = Window(T0, T0 + 8 * HOUR), Window(T0 + 8 * HOUR, T0 + 16 * HOUR)
    for window in (early, later):
        await market.trade(window.start)
        await market.through_cache(window)
    await market.trade(early.start + HOUR)
    merged: list[Window] = []

    async def merge(part: Window) -> Footprint:
        merged.append(part)
        return await market.bare(part)

    for window in (early, later):
        assert await market.through_cache(window, merge) == await market.bare(window)
    assert merged == [early]


async def test_a_minute_whose_hour_is_open_is_seen_once_it_is_stored(market: Market) -> None:
    window = Window(T0, T0 + 8 * HOUR)
    await market.trade(T0)
    await market.through_cache(window)
    await market.trade(T0 + 7 * HOUR + 30 * MINUTE, hours=False)
    assert await market.through_cache(window) == await market.bare(window)
    assert (await market.through_cache(window)).bar.trade_count == 2


async def test_a_slow_merge_never_brings_back_old_data(market: Market, moody: MoodyCache) -> None:
    window = Window(T0, T0 + 8 * HOUR)
    await market.trade(T0)
    read, go_on = anyio.Event(), anyio.Event()
    new: list[Footprint] = []

    async def slow(part: Window) -> Footprint:
        merged = await market.bare(part)
        read.set()
        await go_on.wait()
        return merged

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(market.through_cache, window, slow)
            await read.wait()
            await market.trade(T0 + HOUR)
            new.append(await market.through_cache(window))
            go_on.set()
    assert new[0].bar.trade_count == 2
    # The old merge is in the cache now, and is not used.
    (packed,) = moody.entries.values()
    assert Footprint.unpack(packed).bar.trade_count == 1
    assert await market.through_cache(window) == new[0]


async def test_a_merge_during_which_a_trade_came_is_not_cached(market: Market, moody: MoodyCache) -> None:
    window = Window(T0, T0 + 8 * HOUR)
    await market.trade(T0)

    async def overtaken(part: Window) -> Footprint:
        await market.trade(T0 + HOUR)
        return await market.bare(part)

    await market.through_cache(window, overtaken)
    assert moody.entries == {}


async def test_figures_are_used_again_while_their_bar_and_their_rule_are_the_same(
    moody: MoodyCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = CachedFootprints(moody)
    bar, other = (order_flow(T0, [trade(seq) for seq in range(count)]).bar for count in (1, 2))
    made: list[list[int]] = []

    async def make() -> list[int]:
        made.append([len(made), 2, 3])
        return made[-1]

    for _ in range(2):
        assert await cached.figures("levels:day", bar, make) == [0, 2, 3]
    assert await cached.figures("levels:day", other, make) == [1, 2, 3]
    monkeypatch.setattr("wadm_mcp.analytics.volume_profile.RULE_VERSION", 2)
    for _ in range(2):
        assert await cached.figures("levels:day", other, make) == [2, 2, 3]
    monkeypatch.undo()
    assert await cached.figures("levels:day", other, make) == [1, 2, 3]


async def test_an_empty_footprint_is_not_cached(market: Market, moody: MoodyCache) -> None:
    window = Window(T0, T0 + 8 * HOUR)
    assert (await market.through_cache(window)).bar.trade_count == 0
    assert moody.entries == {}


async def test_an_entry_that_cannot_be_unpacked_is_deleted_and_computed_again(market: Market, moody: MoodyCache) -> None:
    window = Window(T0, T0 + 8 * HOUR)
    await market.trade(T0)
    good = await market.through_cache(window)
    for key in moody.entries:
        moody.entries[key] = b"rubbish"
    assert await market.through_cache(window) == good
    assert await market.through_cache(window) == good
    assert moody.hits == 2


async def test_answers_stay_right_while_redis_is_killed_paused_and_started_again(store: Store) -> None:
    clock = Seconds()
    window = Window(T0, T0 + 10 * HOUR)
    with RedisServer(redis_binary()) as server:
        async with RedisCache(server.url, tape_name("tape"), Health(lambda: T0), answer_seconds=1.0, monotonic=clock) as cache:
            market = Market(store, cache)

            async def answers_are_right() -> None:
                with anyio.fail_after(10):
                    for _ in range(2):
                        assert await market.through_cache(window) == await market.bare(window)

            await market.trade(T0)
            await answers_are_right()
            assert cache.state.hits
            server.pause()
            try:
                # Data that is revised while Redis is unreachable must not come back with it.
                await market.trade(T0 + HOUR)
                await answers_are_right()
            finally:
                server.resume()
            clock.now += 1.1
            await answers_are_right()
            hits = cache.state.hits
            await answers_are_right()
            assert cache.state.hits == hits + 2
            server.kill()
            await market.trade(T0 + 2 * HOUR)
            await answers_are_right()
            server.start()
            clock.now += 2.1
            await answers_are_right()
            assert cache.state.ok


@given(st.integers(0, 3_000), st.integers(0, 3_000), st.lists(st.integers(0, 6_000), max_size=4))
def test_closed_hours_are_whole_and_contain_no_live_minute(start: int, length: int, live: list[int]) -> None:
    window = Window(T0 + start * MINUTE, T0 + (start + length) * MINUTE)
    inside = [T0 + minute * MINUTE for minute in live if T0 + minute * MINUTE in window]
    closed = closed_hours(window, inside)
    if closed is None:
        end = min([window.end, *inside])
        assert end // HOUR - -(-window.start // HOUR) < MIN_CACHED_MS // HOUR
    else:
        assert window.start <= closed.start < closed.end <= window.end
        assert closed.start % HOUR == closed.end % HOUR == 0
        assert not any(minute in closed for minute in inside)
        assert min([window.end, *inside]) - closed.end < HOUR
        assert closed.start - window.start < HOUR


class Oracle:
    """Computes numbered answers; they wait for `gate` if it is set."""

    def __init__(self) -> None:
        self.answered = 0
        self.gate: anyio.Event | None = None
        self.error: Exception | None = None
        self.asked = anyio.Event()

    async def __call__(self) -> Answer:
        self.answered += 1
        number = self.answered
        self.asked.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return {"coverage": {"ratio": 1}, "number": number, "rows": [[1.5, "2", None, -3]]}


@pytest.fixture
async def oracle() -> Oracle:
    return Oracle()


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


@pytest.fixture
async def answers(clock: Seconds) -> AsyncGenerator[CachedAnswers]:
    async with InProcessCache(monotonic=clock) as cache:
        yield CachedAnswers(cache, monotonic=clock)


ASKED: dict[str, object] = {"symbol": "BTCUSDT", "window": "24h"}


async def test_an_answer_is_reused_for_a_second(answers: CachedAnswers, oracle: Oracle, clock: Seconds) -> None:
    first = await answers.ask("get_volume_profile", ASKED, oracle)
    clock.now += ANSWER_TTL_SECONDS - 0.01
    assert await answers.ask("get_volume_profile", {"market": None, "window": "24h", "symbol": "BTCUSDT"}, oracle) == first
    clock.now += 0.01
    assert (await answers.ask("get_volume_profile", ASKED, oracle))["number"] == 2


async def test_a_reused_answer_keeps_the_order_of_its_keys(answers: CachedAnswers, oracle: Oracle) -> None:
    for _ in range(2):
        assert [*await answers.ask("get_volume_profile", ASKED, oracle)] == ["coverage", "number", "rows"]


async def test_another_question_has_another_answer(answers: CachedAnswers, oracle: Oracle) -> None:
    for question, arguments in (("a", ASKED), ("b", ASKED), ("a", {**ASKED, "row_size": 10}), ("a", {**ASKED, "row_size": "10"})):
        await answers.ask(question, arguments, oracle)
    assert oracle.answered == 4


@pytest.mark.parametrize("argument", ["end", "as_of", "cursor"])
async def test_a_question_that_names_a_time_is_always_computed(argument: str, answers: CachedAnswers, oracle: Oracle) -> None:
    for _ in range(2):
        await answers.ask("get_trades", {**ASKED, argument: "x"}, oracle)
    assert oracle.answered == 2


async def test_changing_an_answer_does_not_change_that_of_another_caller(answers: CachedAnswers, oracle: Oracle) -> None:
    for _ in range(3):
        answer = await answers.ask("get_volume_profile", ASKED, oracle)
        assert answer["rows"] == [[1.5, "2", None, -3]]
        answer["rows"].clear()


async def test_a_hundred_concurrent_callers_share_one_computation(answers: CachedAnswers, oracle: Oracle) -> None:
    oracle.gate = anyio.Event()
    found: list[Answer] = []

    async def ask() -> None:
        found.append(await answers.ask("get_volume_profile", ASKED, oracle))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            oracle.gate.set()
    assert oracle.answered == 1
    assert found == [found[0]] * 100


async def test_a_computation_that_started_too_long_ago_is_not_awaited(answers: CachedAnswers, oracle: Oracle, clock: Seconds) -> None:
    slow = oracle.gate = anyio.Event()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answers.ask, "get_volume_profile", ASKED, oracle)
            await oracle.asked.wait()
            clock.now += ANSWER_TTL_SECONDS + 0.1
            oracle.gate = None
            assert (await answers.ask("get_volume_profile", ASKED, oracle))["number"] == 2
            slow.set()
    assert (await answers.ask("get_volume_profile", ASKED, oracle))["number"] == 2


async def test_the_age_of_a_slow_answer_counts_from_its_start(answers: CachedAnswers, oracle: Oracle, clock: Seconds) -> None:
    async def slow() -> Answer:
        clock.now += 0.7
        return await oracle()

    await answers.ask("get_volume_profile", ASKED, slow)
    clock.now += 0.2
    assert (await answers.ask("get_volume_profile", ASKED, slow))["number"] == 1
    clock.now += 0.2
    assert (await answers.ask("get_volume_profile", ASKED, slow))["number"] == 2


async def test_when_a_computation_is_cancelled_one_of_the_waiting_callers_repeats_it(answers: CachedAnswers, oracle: Oracle) -> None:
    oracle.gate = anyio.Event()
    found: list[Answer] = []

    async def ask() -> None:
        found.append(await answers.ask("get_volume_profile", ASKED, oracle))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as others, anyio.create_task_group() as maker:
            maker.start_soon(ask)
            await oracle.asked.wait()
            for _ in range(10):
                others.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            maker.cancel_scope.cancel()
            await anyio.lowlevel.cancel_shielded_checkpoint()
            oracle.gate.set()
    assert [one["number"] for one in found] == [2] * 10


async def test_an_error_is_not_cached(answers: CachedAnswers, oracle: Oracle) -> None:
    oracle.error = QueryError("no")
    for _ in range(2):
        with pytest.raises(QueryError, match="no"):
            await answers.ask("get_volume_profile", ASKED, oracle)
    oracle.error = None
    assert (await answers.ask("get_volume_profile", ASKED, oracle))["number"] == 3


@pytest.mark.parametrize("figure", [2**70, object()])
async def test_an_answer_that_messagepack_cannot_encode_is_computed_each_time(figure: object, answers: CachedAnswers) -> None:
    async def answer() -> Answer:
        return {"volume": figure}

    for _ in range(2):
        assert await answers.ask("get_volume_profile", ASKED, answer) == {"volume": figure}


async def test_arguments_of_any_kind_pass_through(answers: CachedAnswers, oracle: Oracle) -> None:
    odd: list[Any] = []
    odd.append(odd)
    for given_value in (2**70, object(), odd, {"a": 1}, ["x"]):
        assert "number" in await answers.ask("get_volume_profile", {"symbol": given_value}, partial(oracle))


@pytest.mark.parametrize("more", [{}, {"as_of": "2026-06-01T12:00Z"}])
async def test_a_question_that_waits_for_its_place_is_computed_once_for_all_who_ask_it(
    more: dict[str, object], answers: CachedAnswers, oracle: Oracle, clock: Seconds
) -> None:
    free = anyio.Event()
    got: list[Answer] = []

    @asynccontextmanager
    async def place() -> AsyncGenerator[None]:
        await free.wait()
        yield

    async def ask() -> None:
        got.append(await answers.ask("get_footprint", ASKED | more, oracle, place=place, reuse=False))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(ask)
                await anyio.lowlevel.checkpoint()
                clock.now += 10
            free.set()
    assert [one["number"] for one in got] == [1] * 10


async def test_a_question_that_is_not_reused_does_not_join_one_that_was_begun(answers: CachedAnswers, oracle: Oracle) -> None:
    oracle.gate = anyio.Event()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answers.ask, "get_footprint", ASKED, oracle)
            await oracle.asked.wait()
            tasks.start_soon(lambda: answers.ask("get_footprint", ASKED, oracle, reuse=False))
            await anyio.wait_all_tasks_blocked()
            assert oracle.answered == 2
            oracle.gate.set()


async def test_all_who_wait_with_a_question_that_gets_no_place_are_told_so(answers: CachedAnswers, oracle: Oracle) -> None:
    full = anyio.Event()
    told: list[int] = []

    @asynccontextmanager
    async def place() -> AsyncGenerator[None]:
        await full.wait()
        raise Busy("busy", 7)
        yield

    async def ask() -> None:
        with pytest.raises(Busy) as caught:
            await answers.ask("get_footprint", ASKED, oracle, place=place)
        told.append(caught.value.again_in)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            full.set()
    assert (told, oracle.answered) == ([7] * 5, 0)


async def test_when_the_first_who_asked_gets_no_place_the_next_one_takes_over(answers: CachedAnswers, oracle: Oracle) -> None:
    full, tried = anyio.Event(), 0
    outcomes: list[str] = []

    @asynccontextmanager
    async def place() -> AsyncGenerator[None]:
        nonlocal tried
        tried += 1
        if tried == 1:
            await full.wait()
            raise Busy("busy", 7)
        yield

    async def ask() -> None:
        try:
            await answers.ask("get_footprint", ASKED, oracle, place=place)
            outcomes.append("answered")
        except Busy:
            outcomes.append("busy")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            full.set()
    assert (sorted(outcomes), tried, oracle.answered) == (["answered"] * 4 + ["busy"], 2, 1)


async def test_a_computation_that_is_too_busy_is_not_repeated_for_each_who_waits_for_it(answers: CachedAnswers) -> None:
    begun, flooded = 0, anyio.Event()
    told: list[int] = []

    async def compute() -> dict[str, Any]:
        nonlocal begun
        begun += 1
        await flooded.wait()
        raise Busy("busy", 5)

    async def ask() -> None:
        with pytest.raises(Busy) as caught:
            await answers.ask("get_footprint", ASKED, compute)
        told.append(caught.value.again_in)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            flooded.set()
    assert (told, begun) == ([5] * 5, 1)
