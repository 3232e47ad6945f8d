"""How the writer stores several batches. `test_rollup.py` tests it together with rollup."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.market import NOON, SPOT, trade
from tests.recording import ALWAYS, Recording, recording
from wadm_mcp.collection.recording import writer as writer_module
from wadm_mcp.errors import StoreError
from wadm_mcp.model import Trade
from wadm_mcp.storage.store import CommitBarrier

pytestmark = pytest.mark.anyio


class WatchedStore:
    """Replaces the store's `write` and records which batches began and which passed the barrier, by the seq of their first trade."""

    def __init__(self, r: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
        self._write = r.store.write
        self.began: list[int] = []
        self.passed: list[int] = []
        self.blocked_until: dict[int, anyio.Event] = {}
        """Batches that wait until their event is set."""
        self.fails: set[int] = set()
        self.second = anyio.Event()
        monkeypatch.setattr(r.store, "write", self.write)

    async def write(self, trades: Sequence[Trade], *others: Any, barrier: CommitBarrier) -> None:
        first = trades[0].seq
        self.began.append(first)
        if len(self.began) == 2:
            self.second.set()
        if first in self.blocked_until:
            await self.blocked_until[first].wait()
        if first in self.fails:
            raise StoreError("disk full")

        async def passing() -> None:
            await barrier()
            self.passed.append(first)

        await self._write(trades, *others, barrier=passing)


async def fill_journal(r: Recording, count: int) -> None:
    """Write so many entries of two trades into the journal."""
    for first in range(1, 2 * count, 2):
        await r.trade(trade(first, NOON + first), trade(first + 1, NOON + first + 1))
        await r.writer._journal_all()


async def test_a_batch_begins_while_another_is_written_and_commits_its_coverage_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_STORE_BATCH_TRADES", 2)
    async with recording(tmp_path) as r:
        await fill_journal(r, 4)
        watched = WatchedStore(r, monkeypatch)
        watched.blocked_until[1] = anyio.Event()
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(r.writer.drain)
                await watched.second.wait()
                assert (watched.began, watched.passed) == ([1, 3], [])
                watched.blocked_until[1].set()
        assert watched.passed == [1, 3, 5, 7]
        assert [each.seq for each in await r.store.trades(SPOT, ALWAYS, limit=10)] == list(range(1, 9))
        assert (r.journal.backlog, r.tape[SPOT].pending, r.tape[SPOT].unstored) == (0, {}, {})


async def test_a_batch_after_a_failed_one_stores_no_coverage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_STORE_BATCH_TRADES", 2)
    async with recording(tmp_path) as r:
        await fill_journal(r, 4)
        watched = WatchedStore(r, monkeypatch)
        watched.blocked_until[1] = watched.second
        watched.fails.add(1)
        with anyio.fail_after(10), pytest.raises(StoreError, match="disk full"):
            await r.writer.drain()
        assert (watched.began, watched.passed) == ([1, 3], [])
        assert await r.store.spans(SPOT, ALWAYS) == []
        assert r.journal.backlog == 8
        watched.fails.clear()
        await r.writer.drain()
        assert [each.seq for each in await r.store.trades(SPOT, ALWAYS, limit=10)] == list(range(1, 9))
        (span,) = await r.store.spans(SPOT, ALWAYS)
        assert (span.first_seq, span.last_seq) == (1, 8)


async def test_a_stored_batch_is_released_even_if_the_task_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with recording(tmp_path) as r:
        await fill_journal(r, 1)
        saved = r.recorder.mark_durable
        with anyio.CancelScope() as scope:

            def cancelled(*arguments: Any) -> None:
                saved(*arguments)
                scope.cancel()

            monkeypatch.setattr(r.recorder, "mark_durable", cancelled)
            await r.writer.drain()
        assert scope.cancelled_caught
        assert (r.journal.backlog, r.tape[SPOT].unstored) == (0, {})


async def test_draining_a_part_of_a_long_backlog_reports_that_some_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_STORE_BATCH_TRADES", 2)
    async with recording(tmp_path) as r:
        await fill_journal(r, 4)
        assert not await r.writer.drain(3)
        assert r.journal.backlog == 2
        assert await r.writer.drain(3)
        assert r.journal.backlog == 0


async def test_a_rollup_pass_writes_a_pending_batch_first_and_derives_its_dirty_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with recording(tmp_path) as r:
        await fill_journal(r, 1)
        r.clock.pass_seconds(63)
        await r.maintenance.roll_up()
        assert await r.bars() == []
        monkeypatch.setattr(writer_module, "_STORE_BATCH_TRADES", 2)
        await r.maintenance.roll_up()
        (bar,) = await r.bars()
        assert bar.bar.trade_count == 2
        assert await r.store.dirty_minutes() == []
