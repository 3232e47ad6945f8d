from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.market import BYBIT, NOON, SPOT, ManualClock, listing, trade
from wadm_mcp.collection.recording import recorder as recorder_module
from wadm_mcp.collection.recording.minute import partial_footprints
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.coverage.judge import judge
from wadm_mcp.coverage.spans import GapReason
from wadm_mcp.exchanges.exchange import Aggregate, Trades, Unreadable
from wadm_mcp.health import Health, State
from wadm_mcp.model import DAY, HOUR, MINUTE, Trade, Window
from wadm_mcp.tape import Tape

pytestmark = pytest.mark.anyio


class Recording:
    """A recorder of one instrument with its clock, tape and health."""

    def __init__(self, *, has_gapless_ids: bool = True) -> None:
        self.clock = ManualClock()
        self.tape = Tape()
        self.health = Health(self.clock.now)
        self.recorder = Recorder(self.tape, self.health, self.clock)
        self.instrument = SPOT if has_gapless_ids else BYBIT
        self.recorded = self.recorder.start(listing(self.instrument), has_gapless_ids=has_gapless_ids)

    async def frame(self, *trades: Trade, connection: int = 1, set_aside: int = 0) -> None:
        await self.recorder.take(connection, Trades(self.instrument, trades, self.clock.now(), set_aside))

    def lose(self, reason: GapReason = GapReason.DISCONNECT) -> None:
        self.recorder.connection_lost(1, [self.instrument], reason, "the test cut it")


async def test_a_trade_is_in_the_tape_and_waits_for_the_store() -> None:
    r = Recording()
    await r.frame(trade(1), trade(2, price=6_000_100))
    tape = r.tape[SPOT]
    assert tape.minutes[NOON].bar.trade_count == 2
    assert tape.newest == trade(2, price=6_000_100)
    batch = r.recorder.take_batch()
    assert [each.seq for each in batch.trades] == [1, 2]
    assert [span.last_seq for _, span in batch.spans] == [2]
    assert r.recorder.take_batch().trades == []


async def test_a_trade_leaves_the_memory_once_the_store_has_it() -> None:
    r = Recording()
    await r.frame(trade(1), trade(2))
    r.recorder.mark_durable(r.recorder.take_batch().trades[:1])
    assert [each.seq for each in r.tape[SPOT].pending.values()] == [2]


async def test_a_repeated_trade_is_counted_and_changes_nothing() -> None:
    r = Recording()
    await r.frame(trade(1))
    await r.frame(trade(1))
    assert r.tape[SPOT].minutes[NOON].bar.trade_count == 1
    assert r.health.counts["trades.repeated"] == 1
    assert len(r.recorder.take_batch().trades) == 1


async def test_an_instrument_is_live_with_its_first_frame_and_down_when_its_connection_is_lost() -> None:
    r = Recording()
    name = str(SPOT)
    assert r.health.parts[name].state is State.STARTING
    await r.frame(trade(1))
    assert r.health.parts[name].state is State.OK
    r.lose()
    assert r.health.parts[name].state is State.DOWN
    assert r.health.parts[name].detail == "the test cut it"


async def test_time_without_trades_is_covered_while_the_connection_is_alive_for_at_most_thirty_seconds() -> None:
    r = Recording()
    r.recorded.coverage.silence_limit.ms = HOUR
    await r.frame(trade(1))
    r.clock.pass_seconds(10)
    assert r.recorded.alive_until() == r.clock.now() - 1_000
    r.clock.pass_seconds(30)
    assert r.recorded.alive_until() == NOON + 30_000


async def test_where_ids_are_not_gapless_a_quiet_instrument_is_covered_as_long_as_its_pace_allows() -> None:
    r = Recording(has_gapless_ids=False)
    r.recorded.coverage.silence_limit.ms = HOUR
    await r.frame(trade(1, instrument=BYBIT))
    r.clock.pass_minutes(59)
    assert r.recorded.alive_until() == r.clock.now() - 1_000


@pytest.mark.parametrize("has_gapless_ids", [True, False])
async def test_a_suspect_silence_covers_no_time_after_the_newest_trade(has_gapless_ids: bool) -> None:
    r = Recording(has_gapless_ids=has_gapless_ids)
    for number in range(100):
        await r.frame(trade(number, r.clock.now(), instrument=r.instrument))
        r.clock.pass_seconds(0.1)
    newest = r.clock.now() - 100
    r.clock.pass_seconds(3)
    assert r.recorded.alive_until() == r.clock.now() - 1_000
    r.clock.pass_seconds(2)
    assert r.recorded.alive_until() == newest
    judgement = judge(r.recorded.spans, Window(NOON, NOON + MINUTE), r.clock.now(), r.recorded.alive_until())
    assert judgement.gaps[-1] == (newest, r.clock.now(), None, GapReason.NOT_YET_SEEN)


async def test_an_old_trade_repeated_at_subscribe_covers_no_time_since_the_last_connection_ended() -> None:
    r = Recording(has_gapless_ids=False)
    r.recorded.coverage.silence_limit.learn_all(range(NOON - HOUR, NOON, MINUTE))
    await r.frame(trade(1, instrument=BYBIT))
    r.lose()
    r.clock.pass_seconds(10)
    await r.frame(trade(1, instrument=BYBIT), connection=2)
    assert r.recorded.coverage.alive
    assert r.recorded.alive_until() is None
    await r.frame(trade(2, r.clock.now(), instrument=BYBIT), connection=2)
    assert r.recorded.alive_until() == r.clock.now()


async def test_no_time_is_covered_after_an_unreadable_frame_until_the_next_trade() -> None:
    r = Recording(has_gapless_ids=False)
    await r.frame(trade(1, instrument=BYBIT))
    r.recorder.frame_unreadable(1, [BYBIT])
    r.clock.pass_seconds(2)
    assert r.recorded.alive_until() is None


async def test_a_silence_of_open_connections_is_a_gap_with_its_own_reason() -> None:
    r = Recording(has_gapless_ids=False)
    for number in range(100):
        for connection in (1, 2):
            await r.frame(trade(number, r.clock.now(), instrument=BYBIT), connection=connection)
        r.clock.pass_seconds(0.1)
    end = r.clock.now() - 100
    opened = r.recorder._gap_opened
    r.clock.pass_seconds(40)
    for connection in (1, 2):
        await r.frame(trade(5_000, r.clock.now(), instrument=BYBIT), connection=connection)
    assert opened.is_set()
    judgement = judge(r.recorded.spans, Window(NOON, NOON + MINUTE), r.clock.now(), r.recorded.alive_until(), before=GapReason.START)
    assert [gap for gap in judgement.gaps if gap.start >= end] == [(end, r.clock.now(), None, GapReason.SILENCE)]


async def test_time_without_trades_is_no_longer_covered_once_the_connection_is_lost() -> None:
    r = Recording()
    await r.frame(trade(1))
    r.clock.pass_seconds(5)
    r.lose(GapReason.MUTE)
    assert r.recorded.alive_until() is None


async def test_frames_that_arrive_late_cover_no_time_after_their_own() -> None:
    r = Recording()
    r.clock.pass_seconds(40)
    await r.recorder.take(1, Trades(SPOT, [trade(1)], NOON + 5))
    r.clock.pass_seconds(3)
    assert r.recorded.alive_until() == NOON + 2_005


async def test_an_exchange_clock_ahead_of_ours_covers_no_time_in_the_future() -> None:
    r = Recording()
    await r.recorder.take(1, Trades(SPOT, [trade(1, NOON + 1_500)], NOON + 1_500))
    assert r.recorded.alive_until() == NOON


async def test_a_trade_of_a_settled_minute_waits_for_rollup_and_stays_out_of_the_tape() -> None:
    r = Recording()
    await r.frame(trade(5))
    r.tape[SPOT].minutes.clear()
    r.tape[SPOT].settled_until = NOON + MINUTE
    await r.frame(trade(4, NOON + 1))
    assert r.tape[SPOT].minutes == {}
    assert r.health.counts["trades.late"] == 1
    assert [each.seq for each in r.recorder.take_batch().trades] == [5, 4]


async def test_trades_that_the_exchange_excludes_are_counted() -> None:
    r = Recording()
    await r.frame(trade(1), set_aside=3)
    assert r.health.counts["trades.set_aside"] == 3


@pytest.mark.parametrize("has_gapless_ids", [True, False])
async def test_a_trade_without_volume_is_covered_counted_and_part_of_no_figure(has_gapless_ids: bool) -> None:
    r = Recording(has_gapless_ids=has_gapless_ids)
    empty = trade(2, NOON + 1, price=0, quantity=0, fills=0, instrument=r.instrument)
    await r.frame(trade(1, instrument=r.instrument), empty, trade(3, NOON + 2, instrument=r.instrument))
    bar = r.tape[r.instrument].minutes[NOON].bar
    assert (bar.trade_count, bar.low) == (2, 6_000_000)
    batch = r.recorder.take_batch()
    assert [each.seq for each in batch.trades] == [1, 3]
    assert [(span.start, span.end, span.last_seq) for _, span in batch.spans] == [(NOON + 1, NOON + 2, 3)]
    assert r.health.counts["trades.without_volume"] == 1
    assert r.recorded.coverage.missing() == []


async def test_fetched_rows_without_volume_are_covered_and_not_stored() -> None:
    r = Recording()
    await r.frame(trade(1), trade(9))
    empty = [Aggregate(number, number, trade(number, NOON, 0, 0, fills=0)) for number in (3, 4)]
    partials = partial_footprints(SPOT, empty)
    assert await r.recorder.record_repaired(SPOT, [trade(2, NOON, 0, 0, fills=0)], partials) == 0
    assert [(gap.first, gap.last) for gap in r.recorded.coverage.missing()] == [(5, 8)]
    assert r.recorder.take_batch()[2] == []


async def test_a_row_that_cannot_be_read_ends_coverage_at_its_place_and_keeps_the_others() -> None:
    r = Recording(has_gapless_ids=False)
    rows = [trade(number, NOON + 100 * number, instrument=BYBIT) for number in range(1, 6)]
    r.clock.at = NOON + 600
    await r.recorder.take(1, Trades(BYBIT, rows, r.clock.now(), 0, [Unreadable(2, None, "no number - at `$.data[2].p`")]))
    assert [each.seq for each in r.recorder.take_batch().trades] == [1, 2, 3, 4, 5]
    assert [(gap.start, gap.end) for gap in r.recorded.coverage.missing()] == [(NOON + 200, NOON + 301)]
    assert [span.opened_by for span in r.recorded.coverage.spans] == ["start", "bad_frame"]
    assert r.health.counts["trades.unreadable"] == 1


async def test_backpressure_makes_the_exchange_wait_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "WAITING_LIMIT", 2)
    r = Recording()
    await r.frame(trade(1), trade(2))
    taken = anyio.Event()

    async def third() -> None:
        await r.frame(trade(3))
        taken.set()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(third)
            await anyio.wait_all_tasks_blocked()
            assert not taken.is_set()
            assert r.recorded.alive_until() is None
            assert len(r.recorder.take_batch().trades) == 2
            assert r.recorded.alive_until() is None
            await taken.wait()
    assert r.recorded.alive_until() == r.clock.now()
    assert [each.seq for each in r.recorder.take_batch().trades] == [3]


async def test_a_gap_that_opens_while_a_repair_waits_for_room_is_repaired_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "WAITING_LIMIT", 1)
    r = Recording(has_gapless_ids=False)
    trades = [trade(number, NOON + 1_000 * number, instrument=BYBIT) for number in range(50)]
    for each in trades[:20]:
        r.clock.at = each.timestamp
        await r.frame(each)
        if each is not trades[19]:
            r.recorder.take_batch()
    r.lose()
    r.clock.at = trades[-1].timestamp

    async def reconnect() -> None:
        await r.frame(*trades[40:42], connection=2)

    async def repair() -> None:
        await r.recorder.record_repaired(BYBIT, trades[10:47])

    batched: list[int] = []
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reconnect)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(repair)
            await anyio.wait_all_tasks_blocked()
            batched += [each.seq for each in r.recorder.take_batch().trades]
            await anyio.wait_all_tasks_blocked()
            batched += [each.seq for each in r.recorder.take_batch().trades]
    batched += [each.seq for each in r.recorder.take_batch().trades]
    assert sorted(batched) == list(range(19, 47))


async def test_a_batch_that_is_large_enough_is_announced() -> None:
    r = Recording()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(r.recorder.batch_ready)
            await r.frame(*(trade(number) for number in range(1, 1_001)))


@pytest.mark.parametrize("at", [-8 * DAY, 2 * HOUR, 73 * 365 * DAY])
async def test_a_frame_with_an_implausible_time_is_counted_and_ignored(at: int) -> None:
    r = Recording()
    await r.frame(trade(1))
    await r.recorder.take(1, Trades(SPOT, [trade(2, NOON + at)], NOON + at))
    assert r.health.counts["frames.implausible"] == 1
    assert [span.last_seq for span in r.recorded.spans] == [1]


@pytest.mark.parametrize("at", [-3 * HOUR, 10_000])
async def test_a_trade_whose_time_does_not_fit_its_frame_counts_as_missing(at: int) -> None:
    r = Recording()
    await r.frame(trade(1))
    await r.frame(trade(2, NOON + at))
    await r.frame(trade(3))
    assert r.health.counts["trades.implausible"] == 1
    assert [span.first_seq for span in r.recorded.spans] == [1, 3]


@st.composite
def frames(draw: st.DrawFn, *, has_gapless_ids: bool) -> list[tuple[int, Trades]]:
    """Frames of two connections. Trades may be repeated, out of order or implausible, and so may the times of the frames."""
    instrument = SPOT if has_gapless_ids else BYBIT
    ids = st.tuples(st.integers(1, 30), st.sampled_from((0, 0, 0, 0, 0, 0, 7_000, -2 * HOUR)))
    result: list[tuple[int, Trades]] = []
    for sent in draw(st.lists(st.sampled_from((0, 0, 0, 1, 40_000, 70_000, 2 * HOUR)), max_size=8)):
        drawn = draw(st.lists(ids, max_size=5))
        trades = [trade(seq, NOON + sent % HOUR - 500 + seq + off, 6_000_000 + seq % 5, instrument=instrument) for seq, off in drawn]
        result.append((draw(st.integers(1, 2)), Trades(instrument, trades, NOON + sent, draw(st.integers(0, 1)))))
    return result


async def state_after(has_gapless_ids: bool, calls: Sequence[tuple[int, Sequence[Trades]]]) -> object:
    r = Recording(has_gapless_ids=has_gapless_ids)
    r.clock.pass_seconds(80)
    for connection, messages in calls:
        await r.recorder.take(connection, *messages)
    tape = r.tape[r.instrument]
    minutes = {start: (footprint.bar, footprint.cells) for start, footprint in tape.minutes.items()}
    state = r.recorded.spans, minutes, tape.trade_counts, tape.newest, list(tape.pending.values()), tape.unstored, r.recorded.alive_until()
    return state, r.recorder.take_batch(), r.recorder.taken, r.health.counts


@pytest.mark.parametrize("has_gapless_ids", [True, False])
@given(data=st.data())
def test_frames_taken_together_give_the_same_state_as_one_after_the_other(has_gapless_ids: bool, data: st.DataObject) -> None:
    drawn = data.draw(frames(has_gapless_ids=has_gapless_ids))
    runs: list[tuple[int, list[Trades]]] = []
    for connection, message in drawn:
        if runs and runs[-1][0] == connection:
            runs[-1][1].append(message)
        else:
            runs.append((connection, [message]))
    singly = [(connection, [message]) for connection, message in drawn]
    assert anyio.run(state_after, has_gapless_ids, runs) == anyio.run(state_after, has_gapless_ids, singly)


async def test_an_old_first_frame_covers_nothing_before_its_connection() -> None:
    r = Recording(has_gapless_ids=False)
    r.recorder.connected(1)
    await r.recorder.take(1, Trades(BYBIT, [trade(1, NOON - HOUR, instrument=BYBIT)], NOON - HOUR))
    assert r.recorded.spans == []
    await r.frame(trade(2, NOON, instrument=BYBIT))
    (span,) = r.recorded.spans
    assert span.start == NOON + 1


async def test_what_is_not_recorded_is_not_expected_to_trade() -> None:
    r = Recording()
    assert r.recorder.is_trading(SPOT)
    r.recorder.stop(SPOT)
    assert not r.recorder.is_trading(SPOT)


async def test_a_current_trade_overrides_a_halted_listing_until_the_exchange_lists_it_anew() -> None:
    r = Recording()
    halted = replace(r.recorded.tape.listing, trading=False, status="BREAK")
    r.recorder.relist(halted)
    await r.frame(trade(1, at=r.clock.now() - HOUR + 1))
    assert not r.recorder.is_trading(SPOT)
    await r.frame(trade(2, at=r.clock.now()))
    assert r.recorder.is_trading(SPOT)
    assert r.health.parts[str(SPOT)].state is State.OK
    r.recorder.relist(halted)
    assert not r.recorder.is_trading(SPOT)
