"""From memory through the journal to the store, in batches, and after that whatever became due: rollup, expiry.

Two tasks. One takes what the recorder holds into the journal, every 250 ms or 1,000 trades: from then on it survives the process. The
other drains the journal into the store and releases what the store holds durably. A store that fails costs time, not trades; once the
journal is full too, the recorder makes the sockets wait.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import anyio

from wadm_mcp.collection.recording.journal import RECORD_TRADES, Batch, Journal
from wadm_mcp.collection.recording.journal_segment import Entry
from wadm_mcp.collection.recording.recorder import RecordedInstrument, Recorder
from wadm_mcp.collection.recording.rollup import Rollup
from wadm_mcp.errors import JournalFull, StoreError, StoreUnreachable, ungrouped
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import Retention
from wadm_mcp.storage.store import CommitBarrier, Store

_EVERY: Final = 0.25
"""Seconds between entries of the journal, and between looks at it."""
_BATCH: Final = 10_000
"""Trades in one write to the store; coverage follows with the last of an entry."""
_AT_ONCE: Final = 2
"""Writes that are on their way at once, so that the store has something to do while one claims its coverage."""
_BATCHES: Final = 20
"""Writes in a row before rollup and expiry get their turn."""
_ROLLUP_EVERY: Final = 1.0
_EXPIRE_EVERY: Final = 30.0
_LONGEST_PAUSE: Final = 5.0


class Writer:
    """Drains the recorder into the store until cancelled; `flush` saves what is left at the end."""

    def __init__(
        self,
        recorder: Recorder,
        journal: Journal,
        rollup: Rollup,
        store: Store,
        health: Health,
        lives: Retention,
        clock: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self._recorder = recorder
        self._journal = journal
        self._rollup = rollup
        self._store = store
        self._health = health
        self._lives = lives
        self._clock = clock
        self._monotonic = monotonic
        self._held = Entry([], ())
        """What was cut and the journal has not taken yet."""
        self._failing = False
        self._caught_up = False
        """Was the journal ever empty, so that the store knows all that was recorded before?"""
        self._storing = anyio.Lock()
        """Whoever reads the store to go on from it must not be written around."""
        self._told = 0
        self._fresh = anyio.Event()

    async def run(self) -> None:
        """Journal, write, roll up and expire for as long as this process records."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_journal)
            tasks.start_soon(self._keep_store)

    async def adopt(self, followed: RecordedInstrument) -> None:
        """Go on from what the store holds of an instrument, once all that the journal held before is in it."""
        async with self._storing:
            if not followed.tape.adopted:
                await self._drain()
                await self._rollup.adopt(followed)

    async def flush(self) -> None:
        """Save what waits: into the journal, and into the store unless it failed last. `StoreError` when something could not be saved."""
        try:
            await self._journal_all()
        except JournalFull:
            await self._drain()
            await self._journal_all()
        if not self._failing:
            async with self._storing:
                await self._drain()
                await self._rollup.run()

    async def _keep_journal(self) -> None:
        while True:
            with anyio.move_on_after(_EVERY):
                await self._recorder.batch_ready()
            try:
                await self._journal_waiting()
            except JournalFull as error:
                self._health.report("journal", State.DOWN, str(error))
                self._health.count("journal.full")
                await anyio.sleep(_EVERY)
            else:
                self._health.report("journal", State.OK)
            self._tell_damage()

    async def _journal_all(self) -> None:
        while await self._journal_waiting():
            pass

    async def _journal_waiting(self) -> bool:
        """Take what waits into the journal; was there anything?"""
        if not self._held.weight:
            self._held = self._recorder.take_batch()
            if not self._held.weight:
                return False
        trades, spans, pieces = self._held
        while len(trades) > RECORD_TRADES:
            # In parts, each of which a small journal has room for once the store made some.
            await self._journal.append(Entry(trades[:RECORD_TRADES], ()))
            trades = trades[RECORD_TRADES:]
            self._held = Entry(trades, spans, pieces)
            self._fresh.set()
        await self._journal.append(Entry(trades, spans, pieces))
        self._held = Entry([], ())
        self._fresh.set()
        return True

    async def _keep_store(self) -> None:
        rolled = expired = self._monotonic()
        while True:
            with anyio.move_on_after(_EVERY):
                await self._fresh.wait()
            self._fresh = anyio.Event()
            await self._patiently(self._drain_some)
            now = self._monotonic()
            if self._caught_up and (now - rolled >= _ROLLUP_EVERY or self._rollup.behind):
                rolled = now
                async with self._storing:
                    await self._once("rollup", partial(self._rollup.run, self._drain_much))
            if now - expired >= _EXPIRE_EVERY:
                expired = now
                async with self._storing:
                    await self._once("expiry", self._expire)

    async def _drain_some(self) -> None:
        """What is due besides must not wait for a backlog that is long."""
        async with self._storing:
            if self._failing:
                # With nothing to write, only this proves that the store is back.
                await self._store.state()
            if await self._drain(_BATCHES):
                self._caught_up = True

    async def _drain_much(self) -> bool:
        """Bring a batch into the store where a whole one waits; was there one?"""
        if self._journal.backlog < _BATCH:
            return False
        await self._drain(1)
        return True

    async def _drain(self, most: float = math.inf) -> bool:
        """Bring batches into the store until it has all that the journal held, or so many; has it all?

        One is read and one begins to be stored while another is on its way. Where one fails, those after it claim nothing.
        """
        room = anyio.Semaphore(_AT_ONCE)
        before = anyio.Event()
        before.set()
        batch = await self._journal.next(_BATCH)
        with ungrouped():
            async with anyio.create_task_group() as tasks:
                while batch is not None and most > 0:
                    await room.acquire()
                    stored = anyio.Event()
                    tasks.start_soon(self._save, batch, before.wait, stored, room)
                    before, most = stored, most - 1
                    batch = await self._journal.next(_BATCH, after=batch)
        return batch is None

    async def _save(self, batch: Batch, turn: CommitBarrier, stored: anyio.Event, room: anyio.Semaphore) -> None:
        await self._store.write(batch.trades, batch.spans, batch.pieces, barrier=turn)
        with anyio.CancelScope(shield=True):
            # Handed out again, it would be counted as saved again.
            self._recorder.mark_durable(batch.trades, batch.pieces)
            await self._journal.release(batch)
        stored.set()
        room.release()

    async def _expire(self) -> None:
        while await self._store.expire(self._clock(), self._lives):
            await self._drain()

    def _tell_damage(self) -> None:
        for line in self._journal.damaged[self._told :]:
            log.error("journal.damaged", detail=line)
            self._health.count("journal.damaged")
        self._told = len(self._journal.damaged)

    async def _once(self, part: str, step: Callable[[], Awaitable[None]]) -> None:
        """Try what must not keep trades from the store: a failure is told, and it gets its next turn."""
        try:
            await step()
        except StoreUnreachable as error:
            self._health.report("store", State.DOWN, str(error))
            self._health.count("store.failures")
            self._failing = True
        except StoreError as error:
            self._health.report(part, State.DOWN, str(error))
            self._health.count("store.failures")
        else:
            self._health.report(part, State.OK)

    async def _patiently(self, step: Callable[[], Awaitable[None]]) -> None:
        """Try a step until the store takes it."""
        pause = _EVERY
        while True:
            try:
                await step()
            except StoreError as error:
                self._health.report("store", State.DOWN, str(error))
                self._health.count("store.failures")
                self._failing = True
                await anyio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
            else:
                self._health.report("store", State.OK)
                self._failing = False
                return
