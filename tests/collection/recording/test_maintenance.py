"""When maintenance gets its turn, and what it leaves alone. `test_rollup.py` tests what a turn does."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from tests.market import NOON, SPOT, trade
from tests.recording import ALWAYS, Recording, recording
from wadm_mcp.collection.recording import maintenance as maintenance_module
from wadm_mcp.errors import StoreError, StoreUnreachable
from wadm_mcp.health import State
from wadm_mcp.storage.sqlite import SqliteStore

pytestmark = pytest.mark.anyio


def count_calls(r: Recording, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the store's methods that maintenance calls, in their order."""
    calls: list[str] = []

    def watched(name: str) -> None:
        method = getattr(r.store, name)

        async def call(*arguments: object, **more: object) -> object:
            calls.append(name)
            return await method(*arguments, **more)

        monkeypatch.setattr(r.store, name, call)

    for name in ("state", "write", "dirty_minutes", "expire"):
        watched(name)
    return calls


@pytest.mark.parametrize("step", ["roll_up", "_expire"])
async def test_a_step_that_waited_while_the_store_failed_leaves_the_store_alone(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with recording(tmp_path) as r:
        calls = count_calls(r, monkeypatch)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks, r.writer.exclusive():
                tasks.start_soon(getattr(r.maintenance, step))
                await anyio.wait_all_tasks_blocked()
                r.writer.store_failed(StoreUnreachable("no answer"))
        assert calls == []


async def test_after_rollup_found_the_store_unreachable_the_writer_checks_it_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with recording(tmp_path) as r:

        async def fail(*_: object) -> None:
            raise StoreUnreachable("no answer")

        with monkeypatch.context() as patch:
            patch.setattr(r.rollup, "begin", fail)
            await r.maintenance._try("rollup", r.maintenance.roll_up)
        assert (r.writer.failing, r.health.parts["store"].state) == (True, State.DOWN)
        await r.trade(trade(1))
        calls = count_calls(r, monkeypatch)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(r.writer.run)
                while r.tape[SPOT].unstored or r.writer.failing:
                    await anyio.sleep(0.02)
                tasks.cancel_scope.cancel()
        assert calls[:2] == ["state", "write"]
        assert r.health.parts["store"].state is State.OK


async def test_expiry_removes_what_is_past_its_retention_and_reports_a_failure_until_it_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance_module, "_EXPIRY_SECONDS", 0.0)
    monkeypatch.setattr(maintenance_module, "_POLL_SECONDS", 0.01)
    async with recording(tmp_path) as r:
        await r.trade(trade(1, NOON))
        r.clock.pass_minutes(2)
        await r.write()
        r.clock.pass_minutes(4 * 24 * 60)
        expire, failures = r.store.expire, iter([True])

        async def fail_once(*arguments: object) -> bool:
            if next(failures, False):
                raise StoreError("one row is damaged")
            return await expire(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(r.store, "expire", fail_once)
        seen: list[tuple[State, str]] = []
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(r.maintenance.run)
                while not seen or seen[-1][0] is not State.OK:
                    part = r.health.parts.get("expiry")
                    if part is not None and (not seen or seen[-1] != (part.state, part.detail)):
                        seen.append((part.state, part.detail))
                    await anyio.sleep(0.005)
                tasks.cancel_scope.cancel()
        assert seen[0] == (State.DOWN, "one row is damaged")
        assert await r.store.trades(SPOT, ALWAYS, limit=10) == []


async def test_a_pass_that_failed_with_minutes_left_over_waits_for_its_next_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with recording(tmp_path) as r:

        async def fail(*_: object) -> None:
            r.rollup.behind = True
            raise StoreError("one row is damaged")

        monkeypatch.setattr(r.rollup, "settle", fail)
        await r.maintenance._try("rollup", r.maintenance.roll_up)
        assert r.health.parts["rollup"].state is State.DOWN
        assert not r.rollup.behind


async def test_a_cancelled_step_gives_its_turn_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with recording(tmp_path) as r:
        monkeypatch.setattr(r.rollup, "begin", anyio.sleep_forever)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(r.maintenance.roll_up)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        await r.trade(trade(1))
        with anyio.fail_after(10):
            await r.writer.flush()
        assert len(await r.store.trades(SPOT, ALWAYS, limit=10)) == 1


async def test_the_writer_and_maintenance_take_turns_while_the_journal_never_empties(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance_module, "_ROLLUP_SECONDS", 0.0)
    monkeypatch.setattr(maintenance_module, "_POLL_SECONDS", 0.0)
    async with recording(tmp_path) as r:
        r.writer.caught_up = True
        calls = count_calls(r, monkeypatch)
        number = 0
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(r.writer.run)
                tasks.start_soon(r.maintenance.run)
                while calls.count("write") < 10 or calls.count("dirty_minutes") < 10:
                    number += 1
                    await r.trade(trade(number, NOON + number))
                    await r.writer._journal_all()
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()


async def test_a_write_ahead_log_that_a_read_of_another_program_keeps_growing_is_reported_until_it_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The log of a store that is only written to has at most 8 MB.
    monkeypatch.setattr(maintenance_module, "_MAX_LOG_BYTES", 9_000_000)
    async with recording(tmp_path) as r:
        assert isinstance(r.store, SqliteStore)
        with closing(sqlite3.connect(tmp_path / "wadm.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT count(*) FROM trades").fetchone()
            await r.store._write(lambda db: db.execute("CREATE TABLE much AS SELECT zeroblob(9000000)"))
            await r.maintenance._expire()
            report = r.health.parts["store log"]
            assert report.state is State.OK
            assert "has grown to 9 MB" in report.detail
            assert "end that read" in report.detail
        for seq in (1, 2):
            await r.store.write([trade(seq, NOON + seq)], [])
        await r.maintenance._expire()
        assert "store log" not in r.health.parts
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == ["store.log_grows"]
