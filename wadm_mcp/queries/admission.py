"""How many questions are answered at once: the one place that bounds the work in flight, and with it the memory, of all clients together.

A costly question reads days of footprints. Two of them are answered at once, some more wait for a limited time, and what is beyond that
is refused with `Busy`, which says when to ask again. Cheap questions have places of their own, so that they do not wait for costly ones.

Places are given fairly: addresses that wait take turns, and so do the sessions of each, whatever number of questions each of them asks.
Where the queue is full the address with most questions in it makes room, and of its sessions the one with most.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from math import ceil
from typing import Final

import anyio
from anyio import to_thread

from wadm_mcp.errors import Busy
from wadm_mcp.process.memory import release_free_memory
from wadm_mcp.queries.callers import Caller, Shares, current_caller

COSTLY_PLACES: Final = 2
"""Costly questions answered at once: one holds 20 to 35 MB at the default rows, and more would only share the same processors."""
CHEAP_PLACES: Final = 8
"""Cheap questions answered at once."""
COSTLY_QUEUE: Final = 64
"""Costly questions that wait at most."""
CHEAP_QUEUE: Final = 512
"""Cheap questions that wait at most."""
MAX_WAIT_SECONDS: Final = 30.0
"""How long a question waits for a place. Many clients give up after 60 seconds, and answering takes time too."""
_MAX_AGAIN_SECONDS: Final = 60
"""Longest time after which a caller is told to ask again."""
_IDLE_SECONDS: Final = 3.0
"""Time without a costly question after which memory that was freed is given back to the system."""


class _Waiting:
    """A question that waits. `refused` once it had to make room; else it has a place when `decided` is set. `busy` is its error."""

    def __init__(self, busy: Busy) -> None:
        self.busy = busy
        self.decided = anyio.Event()
        self.refused = False


class Places:
    """A number of places for questions, and a queue of limited length and time for them."""

    def __init__(self, places: int, queue: int, wait_seconds: float = MAX_WAIT_SECONDS) -> None:
        self._places = places
        self._queue = queue
        self._wait_seconds = wait_seconds
        self._waiting = Shares[_Waiting]()
        self.taken = 0
        """Questions that have a place."""
        self._usual_seconds = 1.0
        """Running mean of the time for which a question has its place."""

    @property
    def waiting(self) -> int:
        """Questions that wait for a place."""
        return len(self._waiting)

    @asynccontextmanager
    async def place(self, since: float | None = None) -> AsyncGenerator[None]:
        """Have a place in this scope; leaving it, also by cancellation, gives the place to the next. `Busy` where there is none in time.

        The time to wait begins at `since` (by anyio's clock), for a question that has waited elsewhere.
        """
        await self._enter(current_caller(), anyio.current_time() if since is None else since)
        began = anyio.current_time()
        try:
            yield
        finally:
            self._usual_seconds += (anyio.current_time() - began - self._usual_seconds) / 8
            self._leave()

    async def _enter(self, caller: Caller, since: float) -> None:
        if self.taken < self._places:
            self.taken += 1
            return
        deadline = since + self._wait_seconds
        if deadline <= anyio.current_time():
            raise self._busy()
        if self.waiting >= self._queue:
            self._make_room(caller)
        one = _Waiting(self._busy())
        self._waiting.add(one, caller)
        try:
            with anyio.CancelScope(deadline=deadline):
                await one.decided.wait()
        except BaseException:
            if one.decided.is_set() and not one.refused:
                self._leave()
            self._waiting.discard(one)
            raise
        if one.refused or not one.decided.is_set():
            self._waiting.discard(one)
            raise one.busy

    def _leave(self) -> None:
        """Give the place to the caller whose turn it is, or leave it free."""
        if not self._waiting:
            self.taken -= 1
            return
        self._waiting.take_turn().decided.set()

    def _make_room(self, caller: Caller) -> None:
        """Refuse the newest question of the caller with most questions in the queue; `Busy` if that is this one."""
        greediest = self._waiting.makes_room_for(caller)
        if greediest is None or greediest == caller:
            raise self._busy()
        one = self._waiting.of(greediest)[-1]
        one.refused = True
        self._waiting.discard(one)
        one.decided.set()

    def _busy(self) -> Busy:
        """The error for a question that comes now. Of those that wait in vain each is told a time of its own, so that they do not return
        together."""
        ahead = self.taken + self.waiting
        seconds = ceil(ahead * self._usual_seconds / self._places)
        again_in = min(max(1, seconds), _MAX_AGAIN_SECONDS)
        return Busy(f"busy: {ahead} questions are being answered or wait; ask again in {again_in} s", again_in)


class Admission:
    """The places of costly and of cheap questions. `release` gives freed memory back to the system; it runs in a thread."""

    def __init__(self, release: Callable[[], None] = release_free_memory) -> None:
        self.costly = Places(COSTLY_PLACES, COSTLY_QUEUE)
        self.cheap = Places(CHEAP_PLACES, CHEAP_QUEUE)
        self._release = release
        self._used = anyio.Event()

    @asynccontextmanager
    async def place(self, *, costly: bool, since: float | None = None) -> AsyncGenerator[None]:
        """Have a place in this scope. `Busy` where there is none in time, of a question that has waited since `since`."""
        async with (self.costly if costly else self.cheap).place(since):
            if costly:
                self._used.set()
            yield

    async def give_memory_back(self) -> None:
        """Whenever costly questions were answered and no other is, give the memory that they used back to the system; until cancelled."""
        while True:
            await self._used.wait()
            idle = False
            while not idle:
                self._used = anyio.Event()
                with anyio.move_on_after(_IDLE_SECONDS) as pause:
                    await self._used.wait()
                idle = pause.cancelled_caught and not self.costly.taken
            await to_thread.run_sync(self._release)
