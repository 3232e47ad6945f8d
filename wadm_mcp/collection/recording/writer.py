"""Writes trades in batches from memory to the journal, and from the journal to the store.

Two tasks. One appends the recorder's pending trades to the journal, every 250 ms or 1,000 trades: from then on they survive the process.
The other drains the journal into the store and releases what is durable there. While the store fails, the journal grows to its limit;
then trades stay pending in the recorder, and at its own limit the recorder makes the collectors wait.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import anyio

from wadm_mcp.backoff import Backoff
from wadm_mcp.collection.recording.journal import RECORD_TRADES, Batch, Journal
from wadm_mcp.collection.recording.journal_segment import Entry
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.errors import JournalFull, StoreError, StoreLost, ungrouped
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.storage.store import CommitBarrier, Store

_POLL_SECONDS: Final = 0.25
"""Longest wait before the next journal entry, and before the next look at the journal."""
_STORE_BATCH_TRADES: Final = 10_000
"""Trades in one write to the store. Coverage of a journal entry is committed with the last write of its trades."""
_CONCURRENT_WRITES: Final = 2
"""The store works on one while the other commits its coverage."""
_BATCHES_PER_TURN: Final = 20
"""Writes in a row before maintenance gets its turn."""
_MAX_PAUSE_SECONDS: Final = 5.0
_RESTORED_PART: Final = "restored store"


class Writer:
    """Drains the recorder into the store until cancelled; `flush` saves what is left at the end."""

    def __init__(self, recorder: Recorder, journal: Journal, store: Store, health: Health) -> None:
        self._recorder = recorder
        self._journal = journal
        self._store = store
        self._health = health
        self._batch = Entry([], ())
        """What was taken from the recorder and is not in the journal yet."""
        self._turn = anyio.Lock()
        self._journaled = anyio.Event()
        self._damage_logged = 0
        self._compared = False
        """Whether the store was compared with the one that the journal was written beside."""
        self.failing = False
        """True if the last access to the store failed."""
        self.caught_up = False
        """True once the journal was empty, so that the store has everything recorded before."""

    async def run(self) -> None:
        """Keep the journal and the store up to date for as long as this process records."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_journal)
            tasks.start_soon(self._keep_store)

    @asynccontextmanager
    async def exclusive(self) -> AsyncGenerator[None]:
        """Exclusive access to the store during the `async with` body: the writer waits, so data read there does not change."""
        async with self._turn:
            yield

    async def drain(self, most: float = math.inf) -> bool:
        """Write up to `most` batches from the journal to the store. Call it inside `exclusive`. Returns True if the journal is then empty.

        Reading and up to two writes overlap. Coverage is committed in order: where a write fails, no later one commits coverage.
        """
        room = anyio.Semaphore(_CONCURRENT_WRITES)
        before = anyio.Event()
        before.set()
        batch = await self._journal.next(_STORE_BATCH_TRADES)
        if batch is not None and not self._compared:
            await self._compare_store()
            batch = await self._journal.next(_STORE_BATCH_TRADES)
        with ungrouped():
            async with anyio.create_task_group() as tasks:
                while batch is not None and most > 0:
                    await room.acquire()
                    stored = anyio.Event()
                    tasks.start_soon(self._store_batch, batch, before.wait, stored, room)
                    before, most = stored, most - 1
                    batch = await self._journal.next(_STORE_BATCH_TRADES, after=batch)
        return batch is None

    async def drain_backlog(self) -> bool:
        """Write one batch to the store if a full one waits. Call it inside `exclusive`. Returns whether it wrote one."""
        if self._journal.backlog < _STORE_BATCH_TRADES:
            return False
        await self.drain(1)
        return True

    async def flush(self) -> None:
        """Save what is pending: into the journal, and into the store unless the last access to it failed.

        `StoreError` when something was not saved.
        """
        try:
            await self._journal_all()
        except JournalFull:
            async with self.exclusive():
                await self.drain()
            await self._journal_all()
        if not self.failing:
            async with self.exclusive():
                await self.drain()

    def store_failed(self, error: StoreError) -> None:
        """An access to the store failed: report it. The next turn checks that the store answers before it writes."""
        self._health.report("store", State.DOWN, str(error))
        self._health.count("store.failures")
        self.failing = True
        if isinstance(error, StoreLost):
            self._journal.stop_deleting()

    async def _compare_store(self) -> None:
        """Name a store that does not have what the journal had when it was deleted there, such as a restored backup."""
        version = self._store.version
        expected = await self._journal.compare_store(version)
        if expected is not None:
            place = (await self._store.state()).place
            older = expected.identity == version.identity
            which = "is older than the journal beside it, such as a restored backup" if older else "is not the store of its journal"
            if older:
                await self._store.renew_identity()
            self._health.report(
                _RESTORED_PART,
                State.OK,
                f"{place} {which}: what was recorded since is not claimed, unless the store or the journal still has it",
            )
            log.warning("store.restored", place=place, older=older, writes=version.writes, expected_writes=expected.writes)
        # Last, so that whatever fails before is tried again, by the next process if need be.
        await self._journal.adopt_store(self._store.version)
        self._compared = True

    async def _keep_journal(self) -> None:
        while True:
            with anyio.move_on_after(_POLL_SECONDS):
                await self._recorder.batch_ready()
            try:
                await self._journal_batch()
            except JournalFull as error:
                self._health.report("journal", State.DOWN, str(error))
                self._health.count("journal.full")
                await anyio.sleep(_POLL_SECONDS)
            else:
                self._health.report("journal", State.OK)
            self._log_damage()

    async def _journal_all(self) -> None:
        while await self._journal_batch():
            pass

    async def _journal_batch(self) -> bool:
        """Write what is pending to the journal. Returns whether there was anything."""
        if not self._batch.weight:
            self._batch = self._recorder.take_batch()
            if not self._batch.weight:
                return False
        trades, spans, partials = self._batch
        while len(trades) > RECORD_TRADES:
            # In parts, each of which a small journal has room for once the store has freed some.
            await self._journal.append(Entry(trades[:RECORD_TRADES], ()))
            trades = trades[RECORD_TRADES:]
            self._batch = Entry(trades, spans, partials)
            self._journaled.set()
        await self._journal.append(Entry(trades, spans, partials))
        self._batch = Entry([], ())
        self._journaled.set()
        return True

    async def _keep_store(self) -> None:
        backoff = Backoff(_POLL_SECONDS, _MAX_PAUSE_SECONDS)
        while True:
            with anyio.move_on_after(_POLL_SECONDS):
                await self._journaled.wait()
            self._journaled = anyio.Event()
            known = self._health.parts.get("store")
            answers = known is None or known.state is State.OK
            try:
                async with self.exclusive():
                    if self.failing or (known is not None and known.state is State.DOWN):
                        # With nothing to write, only this proves that the store is back.
                        await self._store.state()
                        answers = True
                    answers = answers or self._journal.backlog > 0
                    if await self.drain(_BATCHES_PER_TURN):
                        self.caught_up = True
            except StoreError as error:
                self.store_failed(error)
                self._journaled.set()
                await anyio.sleep(backoff.next())
            else:
                if answers:
                    # While it is being opened, having nothing to write proves nothing.
                    self._health.report("store", State.OK)
                self.failing = False
                backoff.reset()

    async def _store_batch(self, batch: Batch, barrier: CommitBarrier, stored: anyio.Event, room: anyio.Semaphore) -> None:
        await self._store.write(batch.trades, batch.spans, batch.pieces, barrier=barrier)
        with anyio.CancelScope(shield=True):
            # A batch that is read again would be counted as stored again.
            self._recorder.mark_durable(batch.trades, batch.pieces)
            await self._journal.release(batch, self._store.version)
        stored.set()
        room.release()

    def _log_damage(self) -> None:
        for line in self._journal.damaged[self._damage_logged :]:
            log.error("journal.damaged", detail=line)
            self._health.count("journal.damaged")
        self._damage_logged = len(self._journal.damaged)
