"""Waits that share a watch see what each would see alone, at the cost of one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager
from decimal import Decimal
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tests.market import NOON, SPOT
from tests.queries.world import World, made
from wadm_mcp.errors import Busy, UnknownSymbol
from wadm_mcp.model import MINUTE, Timeframe
from wadm_mcp.queries.callers import asked_by
from wadm_mcp.queries.scope import ask, read_scope
from wadm_mcp.queries.wait_for import wait_for
from wadm_mcp.queries.watches import Condition, Wait, Watch, Watches

pytestmark = pytest.mark.anyio

_CROSSING: dict[str, Any] = {"symbol": "BTCUSDT", "exchange": "binance", "condition": "price_crosses", "value": "60010", "timeout": 30}


def _world() -> World:
    world = World(now=NOON + 10_000).add([made(1, NOON), made(2, NOON + 5_000)])
    return world.cover(SPOT, NOON - 120 * MINUTE, NOON + 5_000, alive=NOON + 9_900)


def _waiting(world: World, watches: Watches, condition: Condition, level: str = "0") -> AbstractContextManager[tuple[Watch, Wait]]:
    scope = read_scope(world.view, ask(world.view, "wait_for"), symbol="BTCUSDT", exchange="binance", window="15m")
    return watches.waiting(world.view, scope, Timeframe.M1, condition, Decimal(level))


async def test_waits_for_one_condition_look_at_the_tape_once_for_all_of_them() -> None:
    world, watches = _world(), Watches()
    begun, answers = anyio.Semaphore(0), list[dict[str, Any]]()

    async def progress(progress: float, total: float | None = None, message: str | None = None) -> None:
        begun.release()

    async def ask_one() -> None:
        answers.append(await wait_for(world.view, **_CROSSING, progress=progress, watches=watches))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for _ in range(60):
                tasks.start_soon(ask_one)
            for _ in range(60):
                await begun.acquire()
            assert watches.waits == 60
            world.clock.pass_seconds(2)
            world.add([made(3, NOON + 11_000, 6_002_000)])
    assert [answer["met_at"] for answer in answers] == ["2026-06-01T12:00:11.000Z"] * 60
    assert watches.waits == 0
    # Sixty waits that look for themselves read at least a hundred and twenty times.
    assert world.store.asked < 60


async def test_a_crossing_counts_for_the_waits_that_began_before_it_only() -> None:
    world, watches = _world(), Watches()
    with _waiting(world, watches, "price_crosses", "60010") as (watch, early):
        await watch.check()
        world.add([made(3, NOON + 11_000, 6_002_000)])
        with _waiting(world, watches, "price_crosses", "60010") as (same, late):
            assert same is watch
            await watch.check(0)
            assert (early.ended.is_set(), late.ended.is_set()) == (True, False)
            world.add([made(4, NOON + 12_000, 6_003_000)])
            await watch.check(0)
            assert not late.ended.is_set()
            world.add([made(5, NOON + 13_000, 6_000_000)])
            await watch.check(0)
            assert late.ended.is_set()
            assert (await watch.answer(early, 1.0))["met_at"] == "2026-06-01T12:00:11.000Z"
            assert (await watch.answer(late, 1.0))["met_at"] == "2026-06-01T12:00:13.000Z"


async def test_waits_that_began_at_different_trades_are_checked_as_one_from_the_next_check_on() -> None:
    world, watches = _world(), Watches()
    with _waiting(world, watches, "price_crosses", "60010") as (watch, first):
        await watch.check()
        world.add([made(3, NOON + 11_000)])
        with _waiting(world, watches, "price_crosses", "60010") as (_, second):
            assert first.group is not second.group
            await watch.check(0)
            assert first.group is second.group


async def test_a_bar_that_is_still_awaited_does_not_count_for_a_wait_that_began_after_it() -> None:
    world, watches = _world(), Watches()
    world.clock.at = NOON + MINUTE - 500
    with _waiting(world, watches, "volume_beyond", "0.009") as (watch, early):
        await watch.check()
        world.clock.at = NOON + MINUTE + 200
        with _waiting(world, watches, "volume_beyond", "0.009") as (_, late):
            world.add([made(3, NOON + MINUTE - 1, quantity=1_000)])
            await watch.check(0)
            assert (early.ended.is_set(), late.ended.is_set()) == (True, False)
            world.add([made(4, NOON + MINUTE + 100, quantity=1_000)])
            await watch.check(0)
            assert late.ended.is_set()
            assert (await watch.answer(late, 0.5))["met_at"] == "2026-06-01T12:01:00.200Z"


async def test_a_check_is_not_repeated_within_its_interval() -> None:
    world = _world()
    with _waiting(world, Watches(), "price_crosses", "60010") as (watch, _):
        for _ in range(5):
            await watch.check()
    assert world.store.asked == 1


class _Asking:
    """Waits of callers, each named by its caller's letters (an address, and a session of it) and a number."""

    def __init__(self, watches: Watches) -> None:
        self.watches = watches
        self.world = _world()
        self.busy: dict[str, str] = {}
        self.scopes: dict[str, anyio.CancelScope] = {}

    async def ask(self, name: str) -> None:
        self.scopes[name] = anyio.CancelScope()
        with self.scopes[name], asked_by(*name[:-1]):
            try:
                await wait_for(self.world.view, **_CROSSING, watches=self.watches)
            except Busy as busy:
                self.busy[name] = f"{busy} ({busy.again_in})"

    @property
    def waiting(self) -> list[str]:
        return [name for name in self.scopes if name not in self.busy]


@asynccontextmanager
async def _asking(max_waits: int, *names: str) -> AsyncGenerator[_Asking]:
    asking = _Asking(Watches(max_waits))
    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(asking.ask, name)
            await _settle()
        yield asking
        tasks.cancel_scope.cancel()
    assert asking.watches.waits == 0


async def _settle() -> None:
    for _ in range(20):
        await checkpoint()


async def test_beyond_the_limit_the_oldest_wait_of_the_caller_with_most_makes_room() -> None:
    async with _asking(3, "a1", "a2", "a3", "b1", "c1") as asking:
        assert asking.waiting == ["a3", "b1", "c1"]
        said = "3 wait_for calls are waiting, as many as are served at once; ask again in 30 s"
        said = f"busy: this one made room for a newer one, because {said} (30)"
        assert asking.busy == {"a1": said, "a2": said}


async def test_beyond_the_limit_an_address_makes_room_that_has_most_waits_of_all_its_sessions() -> None:
    async with _asking(3, "xs1", "xt1", "xu1", "a1", "b1") as asking:
        assert asking.waiting == ["xu1", "a1", "b1"]


async def test_a_caller_that_has_most_gets_its_newest_wait_in_and_loses_its_oldest() -> None:
    async with _asking(3, "b1", "a1", "a2", "a3", "a4") as asking:
        assert asking.waiting == ["b1", "a3", "a4"]


async def test_where_every_caller_has_one_wait_a_further_one_is_refused_until_one_ends() -> None:
    async with _asking(2, "a1", "b1", "c1") as asking:
        assert asking.waiting == ["a1", "b1"]
        said = "busy: 2 wait_for calls are waiting, as many as are served at once; ask again in 30 s (30)"
        assert asking.busy == {"c1": said}
        asking.scopes["a1"].cancel()
        await _settle()
        with _waiting(asking.world, asking.watches, "bar_closed"):
            assert asking.watches.waits == 2


async def test_a_wait_that_cannot_begin_leaves_no_watch_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def join(_: Watch) -> Wait:
        raise UnknownSymbol("not followed any more")

    monkeypatch.setattr(Watch, "join", join)
    watches = Watches()
    with pytest.raises(UnknownSymbol), _waiting(_world(), watches, "bar_closed"):
        pass
    assert (watches.waits, watches._watches) == (0, {})


async def test_a_wait_whose_condition_is_met_is_answered_although_it_makes_room() -> None:
    world, watches = _world(), Watches(max_waits=1)
    with asked_by("a"), _waiting(world, watches, "price_crosses", "60010") as (watch, met):
        world.add([made(3, NOON + 11_000, 6_002_000)])
        await watch.check()
        with _waiting(world, watches, "bar_closed"):
            assert (met.busy, watches.waits) == (None, 1)
