"""Places for questions: how many are answered at once, who is next, and who is told to come again."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio import to_thread
from anyio.lowlevel import checkpoint

from wadm_mcp.errors import Busy
from wadm_mcp.queries import admission
from wadm_mcp.queries.admission import Admission, Places
from wadm_mcp.queries.callers import asked_by

pytestmark = pytest.mark.anyio


class _Asked:
    """Questions that keep their place until `finish` is called, in the order in which they got one."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.answered: list[str] = []
        self.refused: list[str] = []
        self._finish: dict[str, anyio.Event] = {}

    async def ask(self, name: str) -> None:
        try:
            with asked_by(*name[:-1]):
                async with self.places.place():
                    self.answered.append(name)
                    self._finish[name] = anyio.Event()
                    await self._finish[name].wait()
        except Busy:
            self.refused.append(name)

    async def finish(self, name: str) -> None:
        self._finish[name].set()
        await _settle()


async def _settle() -> None:
    for _ in range(5):
        await checkpoint()


@asynccontextmanager
async def _asking(places: Places, *names: str) -> AsyncGenerator[_Asked]:
    """Each name asks one question; its letters are the caller: an address, and a session of it."""
    asked = _Asked(places)
    async with anyio.create_task_group() as tasks:
        for name in names:
            tasks.start_soon(asked.ask, name)
            await _settle()
        yield asked
        tasks.cancel_scope.cancel()


async def test_no_more_questions_than_places_are_answered_at_once() -> None:
    async with _asking(Places(2, 9), "a1", "b1", "c1") as asked:
        assert asked.answered == ["a1", "b1"]
        await asked.finish("a1")
        assert asked.answered == ["a1", "b1", "c1"]


async def test_callers_that_wait_take_turns() -> None:
    async with _asking(Places(1, 9), "a1", "a2", "a3", "a4", "b1", "c1") as asked:
        for name in ("a1", "a2", "b1", "c1", "a3"):
            await asked.finish(name)
        assert asked.answered == ["a1", "a2", "b1", "c1", "a3", "a4"]


async def test_in_a_full_queue_the_caller_with_most_questions_makes_room() -> None:
    async with _asking(Places(1, 3), "a1", "a2", "a3", "a4", "b1") as asked:
        assert asked.refused == ["a4"]
        for name in ("a1", "a2", "b1"):
            await asked.finish(name)
        assert asked.answered == ["a1", "a2", "b1", "a3"]


async def test_in_a_full_queue_an_address_with_many_sessions_makes_room_and_they_share_its_turns() -> None:
    async with _asking(Places(1, 3), "xs1", "xt1", "xu1", "xv1", "a1") as asked:
        assert asked.refused == ["xt1"]
        for name in ("xs1", "xu1", "a1"):
            await asked.finish(name)
        assert asked.answered == ["xs1", "xu1", "a1", "xv1"]


async def test_in_a_full_queue_a_caller_takes_no_place_from_one_with_as_few_questions() -> None:
    async with _asking(Places(1, 2), "a1", "b1", "c1", "d1", "c2") as asked:
        assert asked.refused == ["d1", "c2"]


async def test_a_question_that_waited_too_long_is_told_when_to_come_again() -> None:
    places = Places(1, 9, wait_seconds=0.01)
    async with places.place():
        with pytest.raises(Busy) as caught:
            async with places.place():
                pass
        assert str(caught.value) == "busy: 1 questions are being answered or wait; ask again in 1 s"
        assert caught.value.again_in == 1
        assert places.waiting == 0
    async with places.place():
        assert places.taken == 1


async def test_the_time_that_a_question_waited_elsewhere_counts() -> None:
    places = Places(1, 2, wait_seconds=30)
    async with _asking(places, "a1", "a2", "a3") as asked:
        with anyio.fail_after(5), pytest.raises(Busy):
            async with places.place(anyio.current_time() - 30):
                pass
        assert not asked.refused
    async with places.place(anyio.current_time() - 30):
        assert places.taken == 1


async def test_the_time_to_come_again_follows_the_questions_ahead_up_to_a_minute() -> None:
    places = Places(1, 9)
    places._usual_seconds = 7.0
    async with _asking(places, "a1", "a2", "a3"):
        assert str(places._busy()) == "busy: 3 questions are being answered or wait; ask again in 21 s"
        places._usual_seconds = 700.0
        assert places._busy().again_in == 60


@pytest.mark.parametrize("when", ["while it waits", "with a place", "as it gets one"])
async def test_a_caller_that_leaves_gives_its_place_to_the_next(when: str) -> None:
    leaving = anyio.CancelScope()

    async def leave() -> None:
        with leaving:
            await asked.ask("b1")

    async with _asking(Places(1, 9), "a1") as asked, anyio.create_task_group() as tasks:
        tasks.start_soon(leave)
        await _settle()
        tasks.start_soon(asked.ask, "c1")
        await _settle()
        if when == "while it waits":
            leaving.cancel()
            await _settle()
            assert asked.places.waiting == 1
        asked._finish["a1"].set()
        if when == "with a place":
            await _settle()
        leaving.cancel()
        await _settle()
        assert asked.answered == ["a1", *(["b1"] if when == "with a place" else []), "c1"]
        await asked.finish("c1")
        assert (asked.places.taken, asked.places.waiting) == (0, 0)


async def test_cheap_questions_do_not_wait_for_costly_ones() -> None:
    gate = Admission()
    async with gate.place(costly=True), gate.place(costly=True), gate.place(costly=False):
        assert (gate.costly.taken, gate.cheap.taken) == (2, 1)


async def test_memory_is_given_back_once_no_costly_question_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_IDLE_SECONDS", 0.001)
    released = anyio.Event()
    loop_thread: list[bool] = []

    def release() -> None:
        loop_thread.append(gate.costly.taken == 0)
        anyio.from_thread.run_sync(released.set)

    gate = Admission(release)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gate.give_memory_back)
        async with gate.place(costly=False):
            await to_thread.run_sync(lambda: None)
        async with gate.place(costly=True):
            await anyio.sleep(0.01)
            assert not released.is_set()
        with anyio.fail_after(5):
            await released.wait()
        assert loop_thread == [True]
        tasks.cancel_scope.cancel()
