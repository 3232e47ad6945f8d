from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from tests.market import BYBIT, NOON, SPOT, ManualClock, listing, trade
from tests.recording import recording
from wadm_mcp import tape as tape_module
from wadm_mcp.collection.follower import Follower
from wadm_mcp.coverage.spans import Basis, Span
from wadm_mcp.errors import StoreError
from wadm_mcp.health import Health, State
from wadm_mcp.model import DAY, MINUTE, Instrument, Window
from wadm_mcp.queries.view import View
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import DirtyMinute
from wadm_mcp.tape import Tape

pytestmark = pytest.mark.anyio

ALWAYS = Window(NOON - DAY, NOON + DAY)


async def test_trades_that_another_process_records_are_in_the_answers_of_this_one(tmp_path: Path) -> None:
    clock, tape = ManualClock(), Tape()
    async with recording(tmp_path, clock) as one, SqliteStore(tmp_path / "wadm.sqlite") as ours:
        await one.store.save_listings([listing()])
        follower = Follower(tape, ours, Health(clock.now), clock)
        view = View(ours, tape, clock.now, ["spot"], ["binance"])
        recorded = 0
        for minute in range(4):
            for _ in range(3):
                recorded += 1
                await one.trade(trade(recorded, clock.now()))
                await one.write()
                await follower.follow()
                footprint = await view.footprint(SPOT, ALWAYS)
                assert footprint.bar.trade_count == recorded
                clock.pass_seconds(20)
            assert len(tape[SPOT].minutes) <= 3, minute
        assert [each.seq for each in await view.trades(SPOT, ALWAYS, limit=100)] == list(range(1, recorded + 1))


async def test_a_late_trade_of_an_old_minute_does_not_hide_the_other_trades_of_that_minute(tmp_path: Path) -> None:
    clock, tape = ManualClock(), Tape()
    async with recording(tmp_path, clock) as one:
        store = one.store
        await store.save_listings([listing()])
        follower = Follower(tape, store, Health(clock.now), clock)
        view = View(store, tape, clock.now, ["spot"], ["binance"])
        for minute in range(10):
            await one.trade(trade(2 * minute + 1, clock.now()))
            clock.pass_minutes(1)
            await one.write()
            await follower.follow()
        await store.write([trade(2, NOON + 5)], [])
        await follower.follow()
        assert (await view.footprint(SPOT, Window(NOON, NOON + MINUTE))).bar.trade_count == 1
        await one.write()
        await follower.follow()
        assert (await view.footprint(SPOT, Window(NOON, NOON + MINUTE))).bar.trade_count == 2


async def test_minutes_that_the_recorder_does_not_derive_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape_module, "MINUTES_LIMIT", 8)
    clock, tape = ManualClock(), Tape()
    async with SqliteStore(tmp_path / "wadm.sqlite") as store:
        await store.save_listings([listing()])
        follower = Follower(tape, store, Health(clock.now), clock)
        view = View(store, tape, clock.now, ["spot"], ["binance"])
        for minute in range(12):
            await store.write([trade(minute + 1, clock.now())], [(SPOT, Span(NOON, clock.now(), 1, minute + 1, Basis.EXACT))])
            await follower.follow()
            clock.pass_minutes(1)
        assert len(tape[SPOT].minutes) == 8
        being_revised = await view.being_revised(SPOT, ALWAYS)
        assert all(any(one.start <= minute < one.end for one in being_revised) for minute in range(NOON, NOON + 4 * MINUTE, MINUTE))


async def test_a_new_instrument_answers_before_its_open_minutes_were_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, tape = ManualClock(NOON + 30_000), Tape()
    async with SqliteStore(tmp_path / "wadm.sqlite") as store:
        await store.save_listings([listing()])
        await store.write([trade(1), trade(2, NOON + 5)], [(SPOT, Span(NOON, NOON + 5, 1, 2, Basis.EXACT))])
        follower = Follower(tape, store, Health(clock.now), clock)

        async def slow(*_: object) -> None:
            raise StoreError("it takes too long")

        monkeypatch.setattr(follower, "_gained", slow)
        with pytest.raises(StoreError):
            await follower.follow()
        view = View(store, tape, clock.now, ["spot"], ["binance"])
        assert [each.seq for each in await view.trades(SPOT, ALWAYS, limit=9)] == [1, 2]
        assert await view.being_revised(SPOT, ALWAYS) == [Window(NOON, NOON + MINUTE)]


async def test_an_instrument_that_another_process_records_is_on_standby(tmp_path: Path) -> None:
    clock = ManualClock()
    async with SqliteStore(tmp_path / "wadm.sqlite") as store:
        await store.save_listings([listing(), listing(BYBIT)])
        await store.write([trade(1)], [])
        health = Health(clock.now)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Follower(Tape(), store, health, clock).run)
            with anyio.fail_after(10):
                while not health.parts:
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
        assert health.parts[str(SPOT)].state is State.STANDBY
        assert str(BYBIT) not in health.parts


async def test_a_trade_that_is_stored_after_newer_ones_is_seen_at_once(tmp_path: Path) -> None:
    clock, tape = ManualClock(), Tape()
    async with SqliteStore(tmp_path / "wadm.sqlite") as store:
        await store.save_listings([listing()])
        follower = Follower(tape, store, Health(clock.now), clock)
        await store.write([trade(1), trade(3, NOON + 900)], [])
        await follower.follow()
        await store.write([trade(2, NOON + 500)], [])
        await follower.follow()
        await follower.follow()
        assert tape[SPOT].minutes[NOON].bar.trade_count == 3


async def test_a_minute_that_gained_nothing_is_not_counted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, tape = ManualClock(), Tape()
    counted: list[Window] = []
    count = SqliteStore.count

    async def counting(store: SqliteStore, instrument: Instrument, window: Window) -> int:
        counted.append(window)
        return await count(store, instrument, window)

    monkeypatch.setattr(SqliteStore, "count", counting)
    async with SqliteStore(tmp_path / "wadm.sqlite") as store:
        await store.save_listings([listing()])
        follower = Follower(tape, store, Health(clock.now), clock)
        await store.write([trade(1), trade(2, NOON + MINUTE)], [])
        await follower.follow()
        assert len(counted) == 2
        await follower.follow()
        assert len(counted) == 2
        await store.write([trade(3, NOON + MINUTE + 1)], [])
        await follower.follow()
        assert counted[2:] == [Window(NOON + MINUTE, NOON + 2 * MINUTE)]
        assert tape[SPOT].minutes[NOON + MINUTE].bar.trade_count == 2


async def test_a_trade_stored_while_its_minute_is_read_counts_once_although_the_minute_is_not_marked_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, tape = ManualClock(), Tape()
    async with SqliteStore(tmp_path / "wadm.sqlite") as store:
        await store.save_listings([listing()])
        await store.write([trade(1)], [])
        marks = await store.dirty_minutes()
        count = SqliteStore.count

        async def marked_before(store: SqliteStore) -> list[DirtyMinute]:
            return marks

        async def counting(store: SqliteStore, instrument: Instrument, window: Window) -> int:
            await store.write([trade(2, NOON + 1)], [])
            return await count(store, instrument, window)

        monkeypatch.setattr(SqliteStore, "dirty_minutes", marked_before)
        monkeypatch.setattr(SqliteStore, "count", counting)
        follower = Follower(tape, store, Health(clock.now), clock)
        for _ in range(3):
            await follower.follow()
            assert tape[SPOT].minutes[NOON].bar.trade_count == 2


async def test_coverage_ends_where_the_trades_that_were_read_end(tmp_path: Path) -> None:
    clock, tape = ManualClock(), Tape()
    async with SqliteStore(tmp_path / "wadm.sqlite") as store:
        await store.save_listings([listing()])
        follower = Follower(tape, store, Health(clock.now), clock)
        view = View(store, tape, clock.now, ["spot"], ["binance"])
        await store.write([trade(1), trade(2, NOON + 900)], [(SPOT, Span(NOON, NOON + 900, 1, 2, Basis.EXACT))])
        await follower.follow()
        await store.write([trade(3, NOON + 5_000)], [(SPOT, Span(NOON, NOON + 5_000, 1, 3, Basis.EXACT))])
        (span,) = await view.spans(SPOT, ALWAYS)
        assert span.end == NOON + 900
