from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec import structs

from tests.market import NOON, SPOT, ManualClock, listing, trade
from tests.recording import ALWAYS, Recording, recording
from tests.storage import sqlite_profiles
from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.volume_profile import volume_profile
from wadm_mcp.collection.follower import Follower
from wadm_mcp.collection.recording import rollup as rollup_module
from wadm_mcp.collection.recording.journal import Journal
from wadm_mcp.collection.recording.minute import partial_footprints
from wadm_mcp.collection.recording.rollup import _Pass
from wadm_mcp.coverage.spans import Basis, GapReason, Span
from wadm_mcp.errors import StoreError
from wadm_mcp.exchanges.exchange import Aggregate
from wadm_mcp.model import DAY, HOUR, MINUTE, SECOND, Instrument, Listing, Scale, Timeframe, Trade, Window
from wadm_mcp.queries.view import View
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Derived, OrderFlow, StoredFootprint

pytestmark = pytest.mark.anyio


def footprint_of(trades: Sequence[Trade]) -> Footprint:
    footprint = Footprint(listing().scale)
    for each in trades:
        footprint.add(each)
    return footprint


def bar_of(trades: Sequence[Trade]) -> Bar:
    return footprint_of(trades).bar


async def test_a_minute_closes_when_market_time_has_passed_it_and_not_before(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        await r.trade(trade(1), trade(2, NOON + 59_999))
        r.clock.pass_seconds(61)
        await r.write()
        assert await r.bars() == []
        r.clock.pass_seconds(2)
        await r.write()
        (row,) = await r.bars()
        assert row.bar == bar_of([trade(1), trade(2, NOON + 59_999)])
        assert (row.start, row.cumulative_delta, row.revision) == (NOON, 200, 0)


async def test_a_closed_minute_leaves_the_tape_and_is_no_longer_dirty(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        await r.trade(trade(1))
        await r.write()
        assert [mark.minute for mark in await r.store.dirty_minutes()] == [NOON]
        r.clock.pass_seconds(63)
        await r.write()
        assert await r.store.dirty_minutes() == []
        assert r.tape[SPOT].minutes == {}


async def test_a_quiet_minute_of_a_live_connection_has_an_empty_bar(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        r.recorder[SPOT].coverage.silence_limit.ms = 2 * MINUTE
        await r.trade(trade(1))
        r.clock.pass_seconds(123)
        await r.write()
        first, quiet = await r.bars()
        assert quiet.bar == Bar(listing().scale)
        assert quiet.cumulative_delta == first.cumulative_delta
        (_, profile) = sqlite_profiles(tmp_path / "wadm.sqlite", SPOT)
        assert profile.profile is None


async def test_a_minute_without_trades_here_keeps_the_bar_that_another_process_derived_of_its_trades(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        r.recorder[SPOT].coverage.silence_limit.ms = 3 * MINUTE
        ours, theirs = (
            [trade(number, NOON + place * MINUTE + 3_000) for number, place in ((1, 0), (2, 1), (3, 3))],
            trade(9, NOON + 2 * MINUTE),
        )
        r.clock.pass_seconds(3)
        await r.trade(ours[0])
        r.clock.pass_seconds(60)
        await r.write()
        await r.trade(ours[1])
        # This process stands still for a minute, in which another one records.
        await r.store.derive(
            Derived(
                [StoredFootprint(SPOT, Timeframe.M1, NOON + 2 * MINUTE, footprint_of([theirs]))],
                order_flow=[OrderFlow(SPOT, Timeframe.M1, NOON + 2 * MINUTE, bar_of([theirs]), 300)],
            )
        )
        r.clock.pass_seconds(120)
        await r.trade(ours[2])
        r.clock.pass_seconds(60)
        await r.write()
        rows = await r.bars()
        assert [row.bar for row in rows] == [bar_of([each]) for each in (*ours[:2], theirs, ours[2])]
        assert [row.cumulative_delta for row in rows] == [100, 200, 300, 400]


async def test_a_bar_of_minutes_that_another_process_derived_is_closed_here_if_that_process_did_not(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        r.recorder[SPOT].coverage.silence_limit.ms = HOUR
        await r.trade(trade(1, NOON + 4 * MINUTE))
        r.clock.pass_minutes(4)
        r.clock.pass_seconds(63)
        await r.write()
        # This process stands still for eight minutes, in which another one records and ends.
        theirs = [trade(minute, NOON + minute * MINUTE) for minute in range(5, 10)]
        await r.store.derive(
            Derived(
                [StoredFootprint(SPOT, Timeframe.M1, one.timestamp, footprint_of([one])) for one in theirs],
                order_flow=[OrderFlow(SPOT, Timeframe.M1, one.timestamp, bar_of([one]), 100 * one.seq - 300) for one in theirs],
            )
        )
        r.clock.pass_minutes(8)
        await r.trade(trade(2, r.clock.now()))
        r.clock.pass_seconds(63)
        await r.write()
        closed = [row for row in await r.bars(Timeframe.M5) if row.start == NOON + 5 * MINUTE]
        assert [(row.bar, row.cumulative_delta) for row in closed] == [(bar_of(theirs), 600)]


async def test_a_minute_that_began_before_its_tick_was_known_has_a_profile_in_ticks(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        r.tape.follow(Listing.unconfirmed(SPOT))
        await r.trade(structs.replace(trade(1, price=600_005), quantity=1, scale=Scale(1, 0)))
        r.tape.follow(listing())
        r.clock.pass_minutes(3)
        await r.write()
        profile = sqlite_profiles(tmp_path / "wadm.sqlite", SPOT)[0].profile
        assert profile is not None
        assert (profile.tick, profile.scale.price, profile.poc, profile.volume) == (1, 2, 6_000_050, 100_000)


async def test_a_minute_of_a_suspect_silence_has_no_bar(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        r.recorder[SPOT].coverage.silence_limit.ms = 100 * SECOND
        await r.trade(trade(1))
        r.clock.pass_seconds(123)
        await r.write()
        assert [row.start for row in await r.bars()] == [NOON]


async def test_a_minute_within_a_gap_has_no_bar_although_its_connection_delivers_again(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        r.recorder[SPOT].coverage.silence_limit.ms = HOUR
        await r.trade(trade(1))
        r.clock.pass_seconds(130)
        await r.trade(trade(5, r.clock.now()))
        await r.write()
        assert [row.start for row in await r.bars()] == [NOON]


async def test_a_minute_without_a_connection_has_no_bar(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        r.recorder[SPOT].coverage.silence_limit.ms = 2 * MINUTE
        await r.trade(trade(1))
        r.recorder.connection_lost(1, [SPOT], GapReason.DISCONNECT, "cut")
        r.clock.pass_minutes(3)
        await r.write()
        assert [row.start for row in await r.bars()] == [NOON]
        await r.trade(trade(9, r.clock.now()))
        r.clock.pass_seconds(123)
        await r.write()
        assert [row.start for row in await r.bars()] == [NOON, NOON + 3 * MINUTE, NOON + 4 * MINUTE]


async def test_every_timeframe_equals_its_trades(tmp_path: Path) -> None:
    start, dice = NOON - NOON % DAY + 21 * HOUR, random.Random(5)
    clock = ManualClock(start)
    trades: list[Trade] = []
    async with recording(tmp_path, clock) as r:
        number, price = 0, 6_000_000
        while clock.now() < start + 4 * HOUR:
            frame: list[Trade] = []
            for _ in range(dice.randrange(4)):
                number, price = number + 1, price + dice.randint(-40, 40)
                frame.append(trade(number, clock.now() + len(frame), price, dice.randint(1, 10**6), dice.choice(("BUY", "SELL"))))
            if frame:
                await r.trade(*frame)
                trades += frame
            clock.pass_seconds(dice.randint(5, 40))
            await r.write()
        clock.pass_seconds(5)
        await r.write()
        for timeframe in Timeframe:
            rows = await r.bars(timeframe)
            profiles = {row.start: row.profile for row in sqlite_profiles(tmp_path / "wadm.sqlite", SPOT, timeframe)}
            complete = [row for row in rows if row.start >= start]
            assert complete or timeframe in (Timeframe.D1, Timeframe.H4)
            for row in rows:
                window = Window(row.start, row.start + timeframe.ms)
                inside = [each for each in trades if each.timestamp in window]
                session = [each for each in trades if row.start - row.start % DAY <= each.timestamp < window.end]
                assert row.bar == bar_of(inside)
                assert row.cumulative_delta == bar_of(session).delta
                expected = volume_profile(footprint_of(inside), tick=1)
                assert profiles[row.start] == expected
        assert [row.start for row in await r.bars(Timeframe.D1)] == [start - 21 * HOUR]
        for timeframe in (Timeframe.M1, Timeframe.H1, Timeframe.D1):
            for row in await r.store.footprints(SPOT, timeframe, ALWAYS):
                window = Window(row.start, row.start + timeframe.ms)
                assert row.footprint == footprint_of([each for each in trades if each.timestamp in window])


async def test_a_minute_that_was_open_when_the_tick_became_finer_has_its_profile(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        await r.trade(trade(1, price=51, quantity=100))
        r.recorder.relist(listing(tick="0.0001"))
        r.clock.pass_seconds(63)
        await r.write()
        (profile,) = sqlite_profiles(tmp_path / "wadm.sqlite", SPOT)
        assert profile.profile is not None
        assert (profile.profile.scale.price, profile.profile.vah, profile.profile.volume) == (4, 5_100, 100)
        (row,) = await r.bars()
        assert row.bar == bar_of([trade(1, price=51, quantity=100)])


async def test_a_late_trade_revises_its_minute_the_longer_bars_and_the_cumulative_deltas_after_it(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        for minute in range(6):
            await r.trade(trade(10 * minute + 10, NOON + minute * MINUTE))
            r.clock.pass_minutes(1)
            await r.write()
        r.clock.pass_seconds(5)
        await r.write()
        late = trade(15, NOON + 30_000, 6_000_500, 7, "SELL")
        await r.trade(late)
        await r.write()
        rows = await r.bars()
        assert rows[0].bar == bar_of([trade(10), late])
        assert [row.cumulative_delta for row in rows] == [100 * (minute + 1) - 7 for minute in range(6)]
        assert [row.revision for row in rows] == [1] * 6
        (five,) = await r.bars(Timeframe.M5)
        assert (five.bar.trade_count, five.bar.sell_volume, five.cumulative_delta, five.revision) == (6, 7, 493, 1)
        assert await r.store.dirty_minutes() == []


async def test_a_new_bar_waits_for_its_last_late_minute_and_an_existing_bar_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollup_module, "_LATE_AT_ONCE", 20)
    async with recording(tmp_path) as r:
        await r.trade(trade(10_000, NOON))
        r.clock.pass_minutes(2)
        await r.write()
        # The half hour before, as an import delivers it.
        earlier = [trade(100 + minute, NOON - (30 - minute) * MINUTE) for minute in range(30)]
        await r.recorder.record_imported(SPOT, (), partial_footprints(SPOT, [Aggregate(one.seq, one.seq, one) for one in earlier]))
        await r.write()
        assert r.rollup.behind
        derived = {row.start for row in await r.bars() if row.start < NOON}
        assert derived == {NOON - minute * MINUTE for minute in range(1, 21)}
        assert await r.bars(Timeframe.M30) == []
        assert [row.start for row in await r.bars(Timeframe.M15)] == [NOON - 15 * MINUTE]
        await r.write()
        assert not r.rollup.behind
        (half,) = await r.bars(Timeframe.M30)
        assert (half.start, half.bar.trade_count) == (NOON - 30 * MINUTE, 30)
        assert await r.store.dirty_minutes() == []


def test_a_bar_is_found_waiting_without_a_look_at_every_unfinished_minute() -> None:
    class Watched(list[int]):
        reads = 0

        def __getitem__(self, place: Any) -> Any:
            Watched.reads += 1
            return super().__getitem__(place)

    # Thirty imported days without every seventh hour: 37,000 minutes that a later pass derives.
    minutes = [NOON + minute * MINUTE for minute in range(30 * 24 * 60) if minute // 60 % 7]
    work = _Pass(listing(), {}, [], NOON, NOON + 30 * DAY, [], {}, Watched(minutes), in_turn=False)
    asked = [(timeframe, start) for timeframe in (Timeframe.M15, Timeframe.H1) for start in range(NOON, NOON + 30 * DAY, timeframe.ms)]
    waiting = {(timeframe, timeframe.floor(minute)) for timeframe in (Timeframe.M15, Timeframe.H1) for minute in minutes}
    assert {bar for bar in asked if work.waits(*bar)} == waiting
    assert Watched.reads < 40 * len(asked)


async def test_late_trades_that_another_process_has_derived_are_not_pending_here(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        await r.trade(trade(1))
        r.clock.pass_minutes(2)
        await r.trade(trade(3, NOON + 2 * MINUTE))
        await r.write()
        await r.trade(trade(2, NOON + 1))
        assert r.tape[SPOT].revising == {NOON: 1}
        await r.save()
        await r.rollup.settle(r.recorder[SPOT], [])
        assert r.tape[SPOT].revising == {}
        await r.trade(trade(4, NOON + 2))
        await r.maintenance.roll_up()
        assert r.tape[SPOT].revising == {NOON: 1}


async def test_a_late_minute_is_derived_at_once_and_again_when_no_more_trades_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with recording(tmp_path) as r:
        await r.trade(trade(1), trade(50, NOON + MINUTE))
        r.clock.pass_minutes(2)
        await r.write()

        async def late(seq: int) -> int:
            await r.trade(trade(seq, NOON + seq))
            await r.write()
            return (await r.bars())[0].bar.trade_count

        assert await late(2) == 2
        # Another process writes to the minute during each pass, so it is not derived again in every pass.
        derive = r.store.derive

        async def write_meanwhile(derived: Derived) -> None:
            await r.store.write([trade(90 + r.clock.now() // 1_000 % 7, NOON + 900)], [])
            await derive(derived)

        monkeypatch.setattr(r.store, "derive", write_meanwhile)
        await r.trade(trade(3, NOON + 3))
        await r.write()
        monkeypatch.undo()
        (mark,) = [mark for mark in await r.store.dirty_minutes() if mark.minute == NOON]
        before = r.health.counts["minutes.derived_again"]
        await r.store.write([trade(30, NOON + 30)], [])
        await r.write()
        assert r.health.counts["minutes.derived_again"] == before
        await r.write()
        assert r.health.counts["minutes.derived_again"] == before + 1
        assert mark.minute not in [one.minute for one in await r.store.dirty_minutes()]


async def test_the_delta_path_of_trades_out_of_order_is_known_once_their_minute_closes(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        first, second, third = trade(1, NOON), trade(2, NOON + 1, quantity=900, side="SELL"), trade(3, NOON + 2)
        await r.trade(first, third, second)
        assert r.tape[SPOT].minutes[NOON].bar.min_delta is None
        r.clock.pass_seconds(63)
        await r.write()
        (row,) = await r.bars()
        assert row.bar == bar_of([first, second, third])


async def test_a_restart_in_the_middle_of_a_minute_continues_with_its_earlier_trades(tmp_path: Path) -> None:
    clock = ManualClock()
    async with recording(tmp_path, clock) as r:
        await r.trade(trade(1), trade(2, NOON + 10))
        await r.write()
    clock.pass_seconds(20)
    async with recording(tmp_path, clock) as r:
        assert r.tape[SPOT].minutes[NOON].bar.trade_count == 2
        await r.trade(trade(3, NOON + 20_000))
        clock.pass_seconds(50)
        await r.write()
        (row,) = await r.bars()
        assert row.bar == bar_of([trade(1), trade(2, NOON + 10), trade(3, NOON + 20_000)])


async def test_a_restart_after_a_crash_derives_the_minutes_that_were_left(tmp_path: Path) -> None:
    clock = ManualClock()
    async with recording(tmp_path, clock) as r:
        await r.store.write([trade(1), trade(2, NOON + MINUTE)], [])
    clock.pass_minutes(30)
    async with recording(tmp_path, clock) as r:
        await r.write()
        assert [row.start for row in await r.bars()] == [NOON, NOON + MINUTE]
        assert [row.bar.trade_count for row in await r.bars(Timeframe.M15)] == [2]


async def test_downtime_leaves_no_empty_bars(tmp_path: Path) -> None:
    clock = ManualClock()
    async with recording(tmp_path, clock) as r:
        await r.trade(trade(1))
        clock.pass_seconds(63)
        await r.write()
    clock.pass_minutes(10)
    async with recording(tmp_path, clock) as r:
        await r.trade(trade(50, clock.now()))
        clock.pass_minutes(1)
        await r.write()
        clock.pass_seconds(3)
        await r.write()
        assert [row.start for row in await r.bars()] == [NOON, NOON + 11 * MINUTE]


async def test_an_hour_that_ended_without_a_connection_is_complete_in_every_longer_bar(tmp_path: Path) -> None:
    clock = ManualClock(NOON + 35 * MINUTE)
    async with recording(tmp_path, clock) as r:
        await r.trade(*(trade(number, clock.now() + number) for number in range(1, 6)))
        clock.pass_minutes(3)
        await r.write()
        r.recorder.connection_lost(1, [SPOT], GapReason.DISCONNECT, "cut")
        clock.pass_minutes(40)
        await r.trade(trade(6, clock.now()))
        clock.pass_seconds(63)
        await r.write()
        assert [row.bar.trade_count for row in await r.bars(Timeframe.H1)] == [5]
        while clock.now() < NOON + 4 * HOUR + 3_000:
            clock.pass_minutes(30)
            await r.trade(trade(r.recorder.taken + 1, clock.now()))
            await r.write()
        traded = sum(row.bar.trade_count for row in await r.bars() if row.start < NOON + 4 * HOUR)
        assert [row.bar.trade_count for row in await r.bars(Timeframe.H4)] == [traded]
        (four,) = await r.bars(Timeframe.H4)
        assert four.cumulative_delta == four.bar.delta


async def test_an_hour_that_ended_while_the_process_was_down_is_closed_by_the_next_process(tmp_path: Path) -> None:
    clock = ManualClock(NOON + 55 * MINUTE)
    async with recording(tmp_path, clock) as r:
        await r.trade(trade(1, clock.now()))
        clock.pass_seconds(63)
        await r.write()
    clock.pass_minutes(20)
    async with recording(tmp_path, clock) as r:
        await r.trade(trade(9, clock.now()))
        clock.pass_seconds(63)
        await r.write()
        assert [(row.start, row.bar.trade_count) for row in await r.bars(Timeframe.H1)] == [(NOON, 1)]


async def test_after_a_restart_every_stored_trade_is_in_the_answers_at_once(tmp_path: Path) -> None:
    clock = ManualClock()
    async with recording(tmp_path, clock) as r:
        await r.trade(trade(1), trade(2, NOON + 10))
        await r.save()
        clock.pass_seconds(61)
        await r.trade(trade(3, clock.now()))
        await r.save()
    async with recording(tmp_path, clock) as one:
        view = View(one.store, one.tape, clock.now, ["spot"], ["binance"])
        assert (await view.footprint(SPOT, Window(NOON, NOON + 2 * MINUTE))).bar.trade_count == 3


async def test_a_minute_is_not_covered_while_a_late_trade_is_not_in_its_figures(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        await r.trade(trade(1), trade(3, NOON + 9))
        r.clock.pass_seconds(63)
        await r.write()
        view = View(r.store, r.tape, r.clock.now, ["spot"], ["binance"])
        minute = Window(NOON, NOON + MINUTE)
        assert await view.being_revised(SPOT, minute) == []
        await r.trade(trade(2, NOON + 5))
        assert await view.being_revised(SPOT, minute) == [minute]
        await r.write()
        assert await view.being_revised(SPOT, minute) == []
        assert (await view.footprint(SPOT, minute)).bar.trade_count == 3


async def test_a_batch_that_failed_is_written_later_with_the_trades_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with recording(tmp_path) as r:
        await r.trade(trade(1))
        write = r.store.write

        async def fail(*_: object, **__: object) -> None:
            raise StoreError("disk full")

        monkeypatch.setattr(r.store, "write", fail)
        with pytest.raises(StoreError):
            await r.write()
        await r.trade(trade(2), trade(3))
        monkeypatch.setattr(r.store, "write", write)
        await r.write()
        assert len(await r.store.trades(SPOT, ALWAYS, limit=10)) == 3


async def test_a_minute_is_not_settled_while_some_of_its_trades_are_in_the_journal_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with recording(tmp_path) as r:
        await r.trade(trade(1))
        r.tape.pending_limit = 3
        await r.trade(*(trade(number, NOON + number) for number in range(2, 11)))
        await r.writer._journal_all()
        assert len(r.tape[SPOT].pending) == 3
        view = View(r.store, r.tape, r.clock.now, ["spot"], ["binance"])
        minute = Window(NOON, NOON + MINUTE)
        assert await view.being_revised(SPOT, minute, raw=True) == [minute]
        r.clock.pass_seconds(63)
        await r.maintenance.roll_up()
        assert await r.bars() == []
        await r.write()
        (row,) = await r.bars()
        assert row.bar.trade_count == 10
        assert await view.being_revised(SPOT, minute, raw=True) == []
        assert (r.tape[SPOT].unstored, r.tape[SPOT].evicted) == ({}, {})


async def test_a_late_resume_takes_no_trade_from_a_minute_that_is_partly_in_the_journal_only(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        r.tape.pending_limit = 3
        r.tape[SPOT]._resumed = False
        await r.trade(*(trade(number, NOON + number) for number in range(1, 11)))
        await r.maintenance.roll_up()
        assert (r.tape[SPOT].minutes[NOON].bar.trade_count, r.tape[SPOT].resumed) == (10, False)
        await r.save()
        await r.maintenance.roll_up()
        assert (r.tape[SPOT].minutes[NOON].bar.trade_count, r.tape[SPOT].resumed) == (10, True)


async def test_a_resume_includes_trades_stored_after_the_tape_was_last_read(tmp_path: Path) -> None:
    clock = ManualClock(NOON + 3 * MINUTE)
    async with SqliteStore(tmp_path / "wadm.sqlite") as store, Journal(tmp_path / "journal", 1 << 30) as journal:
        await store.save_listings([listing()])
        await store.write([trade(1), *(trade(number, NOON + 3 * MINUTE + number) for number in range(2, 12))], [])
        r = Recording(store, journal, clock)
        await Follower(r.tape, store, r.health, clock).follow()
        assert {minute: footprint.bar.trade_count for minute, footprint in r.tape[SPOT].minutes.items()} == {NOON: 1, NOON + 3 * MINUTE: 10}
        await store.write([trade(number, NOON + 3 * MINUTE + number) for number in range(12, 22)], [])
        await r.begin()
        assert r.tape[SPOT].minutes[NOON + 3 * MINUTE].bar.trade_count == 20


async def test_what_a_killed_process_stored_without_its_coverage_is_counted_once_when_it_is_fetched_again(tmp_path: Path) -> None:
    aggregates = [Aggregate(number, number, trade(number, NOON + number)) for number in range(21, 31)]
    (partial,) = partial_footprints(SPOT, aggregates)
    clock = ManualClock(NOON + SECOND)
    async with SqliteStore(tmp_path / "wadm.sqlite") as store, Journal(tmp_path / "journal", 1 << 30) as journal:
        covered = Span(NOON + 2, NOON + 10, 1, 10, Basis.EXACT)
        await store.write([trade(number, NOON + number) for number in range(1, 11)], [(SPOT, covered)])
        # The coverage of a batch is stored after its trades, and the process was killed in between.
        await store.write([trade(number, NOON + number) for number in range(11, 21)], [], [partial])
        r = Recording(store, journal, clock)
        await r.begin()
        await r.trade(trade(41, NOON + 41))
        assert [(gap.first, gap.last) for gap in r.recorder[SPOT].coverage.missing()] == [(31, 40)]
        assert await r.recorder.record_repaired(SPOT, [trade(number, NOON + number) for number in range(11, 41)]) == 10
        assert r.tape[SPOT].minutes[NOON].bar.trade_count == 41
        await r.save()
        spans = await store.spans(SPOT, ALWAYS)
        assert max(span.last_seq for span in spans) == 41
        clock.pass_minutes(2)
        await r.write()
        assert [row.bar.trade_count for row in await r.bars()] == [41]


async def test_a_resume_after_hours_without_the_store_reads_only_minutes_that_others_may_have_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SqliteStore(tmp_path / "wadm.sqlite") as store:
        await store.write([trade(1, NOON + 1)], [])
    async with recording(tmp_path) as r:
        r.tape.forget(SPOT)
        recorded = r.recorder.start(listing(), has_gapless_ids=True)
        for minute in range(30):
            await r.trade(trade(minute + 2, r.clock.now() + 2))
            r.clock.pass_minutes(1)
        await r.save()
        read: list[Window] = []
        trades = r.store.trades

        async def watched(instrument: Instrument, window: Window, **others: Any) -> list[Trade]:
            read.append(window)
            return await trades(instrument, window, **others)

        monkeypatch.setattr(r.store, "trades", watched)
        await r.maintenance.resume(recorded)
        assert [window for window in read if window.length == MINUTE] == [Window(NOON + at, NOON + at + MINUTE) for at in (0, MINUTE)]
        assert [recorded.tape.minutes[NOON + at * MINUTE].bar.trade_count for at in range(30)] == [2, *[1] * 29]


async def test_hours_without_the_store_lose_no_figure_and_take_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wadm_mcp.tape.MINUTES_LIMIT", 5)
    async with recording(tmp_path) as r:
        view = View(r.store, r.tape, r.clock.now, ["spot"], ["binance"])
        for minute in range(12):
            await r.trade(trade(minute + 1, r.clock.now()))
            await r.writer._journal_all()
            r.clock.pass_minutes(1)
        assert len(r.tape[SPOT].minutes) == 5
        assert sum(stretch.length for stretch in await view.being_revised(SPOT, ALWAYS)) == 7 * MINUTE
        r.clock.pass_seconds(5)
        await r.write()
        assert [row.bar.trade_count for row in await r.bars()] == [1] * 12
        assert await view.being_revised(SPOT, ALWAYS) == []


async def test_more_trades_than_a_small_journal_can_contain_pass_through_it_in_parts(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "wadm.sqlite") as store, Journal(tmp_path / "journal", 200_000) as journal:
        r = Recording(store, journal, ManualClock())
        await r.begin()
        for first in range(1, 30_001, 1_000):
            await r.trade(*(trade(number, NOON + number) for number in range(first, first + 1_000)))
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(r.writer.run)
                while r.tape[SPOT].unstored:
                    await anyio.sleep(0.05)
                tasks.cancel_scope.cancel()
        await r.write()
        assert len(await store.trades(SPOT, ALWAYS, limit=40_000)) == 30_000
        assert r.health.counts["journal.full"] > 0


async def test_trades_are_stored_although_figures_cannot_be_derived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with recording(tmp_path) as r:

        async def fail(*_: object) -> None:
            raise StoreError("one row is damaged")

        monkeypatch.setattr(r.rollup, "begin", fail)
        monkeypatch.setattr("wadm_mcp.collection.recording.maintenance._ROLLUP_SECONDS", -1.0)
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(r.writer.run)
                tasks.start_soon(r.maintenance.run)
                for number in range(1, 4):
                    await r.trade(trade(number))
                    while r.tape[SPOT].unstored:
                        await anyio.sleep(0.02)
                while "rollup" not in r.health.parts:
                    await anyio.sleep(0.02)
                tasks.cancel_scope.cancel()
        assert r.health.parts["rollup"].detail == "one row is damaged"
