from __future__ import annotations

from pathlib import Path

import pytest

from tests.market import NOON, SPOT, Clock, listing, trade
from wadm_mcp.collection.follower import Follower
from wadm_mcp.health import Health, State
from wadm_mcp.model import DAY, MINUTE, Window
from wadm_mcp.queries.view import View
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.tape import Tape

from .test_rollup import Recording

pytestmark = pytest.mark.anyio

ALWAYS = Window(NOON - DAY, NOON + DAY)


async def test_what_another_process_records_can_be_asked_for_here_minute_by_minute(tmp_path: Path) -> None:
    clock, tape = Clock(), Tape()
    async with SqliteStore(tmp_path / "wadm.sqlite") as theirs, SqliteStore(tmp_path / "wadm.sqlite") as ours:
        recording = Recording(theirs, clock)
        await theirs.keep_listings([listing()])
        await recording.begin()
        follower = Follower(tape, ours, Health(clock))
        view = View(ours, tape, clock, ["spot"], ["binance"])
        told = 0
        for minute in range(4):
            for _ in range(3):
                told += 1
                await recording.trade(trade(told, clock()))
                await recording.write()
                await follower.follow()
                footprint = await view.footprint(SPOT, ALWAYS)
                assert footprint.bar.trade_count == told
                clock.pass_seconds(20)
            assert len(tape[SPOT].minutes) <= 3, minute
        assert [each.seq for each in await view.trades(SPOT, ALWAYS, limit=100)] == list(range(1, told + 1))


async def test_a_late_trade_of_an_old_minute_does_not_hide_what_that_minute_holds(tmp_path: Path) -> None:
    clock, tape = Clock(), Tape()
    async with SqliteStore(tmp_path / "wadm.sqlite") as store:
        recording = Recording(store, clock)
        await store.keep_listings([listing()])
        await recording.begin()
        follower = Follower(tape, store, Health(clock))
        view = View(store, tape, clock, ["spot"], ["binance"])
        for minute in range(10):
            await recording.trade(trade(2 * minute + 1, clock()))
            clock.pass_minutes(1)
            await recording.write()
            await follower.follow()
        await store.write([trade(2, NOON + 5)], [])
        await follower.follow()
        assert (await view.footprint(SPOT, Window(NOON, NOON + MINUTE))).bar.trade_count == 1
        await recording.write()
        await follower.follow()
        assert (await view.footprint(SPOT, Window(NOON, NOON + MINUTE))).bar.trade_count == 2


async def test_an_instrument_that_another_process_records_stands_by(tmp_path: Path) -> None:
    clock = Clock()
    async with SqliteStore(tmp_path / "wadm.sqlite") as store:
        await store.keep_listings([listing()])
        health = Health(clock)
        await Follower(Tape(), store, health).follow()
        assert health.parts[str(SPOT)].state is State.STANDBY
