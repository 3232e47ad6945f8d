"""Gap repair over loopback REST: the recorder gets a part of what the simulated exchange traded, and repair brings the rest."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal

import anyio
import msgspec
import pytest

from tests.market import NOON, ManualClock
from tests.test_audit import ledger
from tests.venues import simulated_venue
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.clock import Clock
from wadm_mcp.collection.backfill import gap_repair as repair_module
from wadm_mcp.collection.backfill.gap_repair import GapRepairer
from wadm_mcp.collection.recording.minute import partial_footprints
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.coverage.judge import CoverageInputs
from wadm_mcp.coverage.spans import GapReason
from wadm_mcp.errors import ExchangeError
from wadm_mcp.exchanges.exchange import Aggregate, Page, Trades
from wadm_mcp.health import Health
from wadm_mcp.model import DAY, HOUR, MINUTE, SECOND, Instrument, Listing, Trade, Window
from wadm_mcp.simulator.chaos import Chaos
from wadm_mcp.simulator.fault_plan import Fault, Kind
from wadm_mcp.simulator.faults import Faults, Reply
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.storage.store import PartialFootprint
from wadm_mcp.tape import Tape

pytestmark = pytest.mark.anyio

SPOT = Instrument("binance", "spot", "BTCUSDT")
LINEAR = Instrument("binance", "linear", "BTCUSDT")
UNTIL = NOON + 50 * DAY
"""The same market in every run."""


class SpoiledRows(Faults):
    """REST serves the rows of these ids with a price that is no number."""

    def __init__(self) -> None:
        self.ids: set[int] = set()
        self.asked = 0

    def answered(self, exchange: str, path: str, params: Mapping[str, str], reply: Reply) -> Reply:
        self.asked += 1
        assert isinstance(reply.body, list)
        key, price = ("a", "p") if path.endswith("aggTrades") else ("id", "price")
        return reply._replace(body=[{**row, price: "-"} if row[key] in self.ids else row for row in reply.body])


class Repairing:
    """A recorder and its repairer on a market that stopped trading a minute ago."""

    def __init__(self, simulator: Simulator, rest: RestClient, instrument: Instrument, until: int, trades_retention: int) -> None:
        self.clock = ManualClock(until + MINUTE)
        self.simulator = simulator
        self.instrument = instrument
        self.until = until
        self.tape = Tape()
        self.health = Health(self.clock.now)
        clock = Clock(self.clock.now, anyio.current_time)
        self.recorder = Recorder(self.tape, self.health, clock)
        trades = self.traded(until - MINUTE)
        self.listing = Listing(instrument, Decimal(1).scaleb(-trades[0].scale.price), Decimal(1).scaleb(-trades[0].scale.quantity))
        self.recorded = self.recorder.start(self.listing, has_gapless_ids=True)
        arguments = (rest, self.recorder, self.health, clock, trades_retention)
        self.repairer = GapRepairer(simulated_venue(simulator, "binance", instrument.market), *arguments)
        self.written: list[Trade] = []
        self.partials: list[PartialFootprint] = []

    def traded(self, since: int, until: int | None = None) -> list[Trade]:
        return ledger(self.simulator, self.instrument, Window(since, self.until if until is None else until))

    async def take(self, trades: Sequence[Trade]) -> None:
        for trade in trades:
            await self.recorder.take(1, Trades(self.instrument, (trade,), trade.timestamp + 1))

    async def stored(self, instrument: Instrument, window: Window) -> Sequence[Trade]:
        """What a store would have of a window."""
        return [trade for trade in self.tape[instrument].pending.values() if trade.timestamp in window]

    async def run_until(self, condition: Callable[[], bool], within: float = 20) -> None:
        with anyio.fail_after(within):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.repairer.run)
                while not condition():
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()
        entry = self.recorder.take_batch()
        self.written += entry.trades
        self.partials += entry.pieces

    @property
    def missing(self) -> int:
        return sum(gap.trades for gap in self.recorded.coverage.missing())


@asynccontextmanager
async def repairing(
    instrument: Instrument = SPOT, *, activity: float = 2.0, faults: Faults | None = None, trades_retention: int = 3 * DAY
) -> AsyncGenerator[Repairing]:
    async with (
        Simulator(seed=5, instruments=[instrument], activity=activity, clock=lambda: UNTIL + SECOND, faults=faults) as simulator,
        RestClient(proxied=False) as rest,
    ):
        yield Repairing(simulator, rest, instrument, UNTIL, trades_retention)


@pytest.mark.parametrize("instrument", [SPOT, LINEAR])
async def test_every_gap_is_repaired_by_its_ids(instrument: Instrument) -> None:
    async with repairing(instrument) as r:
        trades = r.traded(r.until - 2 * MINUTE)
        await r.take([trade for place, trade in enumerate(trades) if place % 50 < 40 or place < 5 or place > len(trades) - 5])
        assert r.missing > 100
        await r.run_until(lambda: not r.missing)
        assert sorted(r.written, key=lambda trade: trade.seq) == trades
        expected = Footprint(r.listing.scale)
        for trade in trades:
            if trade.timestamp >= r.until - MINUTE:
                expected.add(trade)
        stored = r.tape[instrument].minutes[r.until - MINUTE]
        assert (stored.cells, stored.bar.volume, stored.bar.open, stored.bar.close) == (
            expected.cells,
            expected.bar.volume,
            expected.bar.open,
            expected.bar.close,
        )


async def test_a_gap_older_than_the_depth_of_rest_stays_a_gap_and_is_not_marked_absent() -> None:
    async with repairing(LINEAR) as r:
        trades = r.traded(r.until - 2 * MINUTE)
        await r.take([*trades[:50], *trades[90:]])
        assert r.missing == 40
        assert r.repairer._next() is not None
        r.clock.at += 2 * DAY
        assert r.repairer._next() is None
        assert r.missing == 40


async def test_the_newest_gap_is_repaired_first_and_the_oldest_gets_its_turn() -> None:
    async with repairing(activity=8) as r:
        trades = r.traded(r.until - 6 * MINUTE)
        gaps = [(len(trades) * part // 8, len(trades) * part // 8 + 400) for part in range(1, 7)]
        await r.take([trade for place, trade in enumerate(trades) if not any(first <= place < last for first, last in gaps)])
        newest_ids: list[int] = []
        repaired = r.recorder.record_repaired

        async def remember(instrument: Instrument, trades: Sequence[Trade], partials: Sequence[PartialFootprint] = ()) -> int:
            newest_ids.append(max(trade.seq for trade in trades))
            return await repaired(instrument, trades, partials)

        r.recorder.record_repaired = remember  # type: ignore[method-assign]
        await r.run_until(lambda: not r.missing)
        assert newest_ids[:3] == sorted(newest_ids[:3], reverse=True)
        assert newest_ids[3] == min(newest_ids)


async def test_trades_that_the_exchanges_database_does_not_have_yet_are_requested_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_module, "_PAUSES_SECONDS", (0.05,))
    chaos = Chaos([Fault(Kind.LAG, 0.0, 30.0, "binance", "spot")])
    async with repairing(faults=chaos) as r:
        chaos.begin()
        trades = r.traded(r.until - MINUTE)
        await r.take([*trades[:3], *trades[-3:]])
        missing = r.missing
        await r.run_until(lambda: 0 < r.missing < missing and len(chaos.requests) > 5)
        assert not [span for span in r.recorded.spans if span.reason == "absent"]
        chaos.end()
        await r.run_until(lambda: not r.missing)


async def test_ids_that_the_exchange_does_not_have_are_marked_absent_and_not_requested_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repair_module, "_PAUSES_SECONDS", (0.01,))
    faults = Faults()
    faults.absent_every = 97
    async with repairing(faults=faults) as r:
        trades = r.traded(r.until - MINUTE)
        await r.take([*trades[:3], *trades[-3:]])
        await r.run_until(lambda: not r.missing)
        absent = {number for span in r.recorded.spans if span.reason == "absent" for number in range(span.first_seq, span.last_seq + 1)}
        assert absent == {number for number in range(trades[0].seq, trades[-1].seq) if number % 97 == 0}
        assert r.health.counts["trades.absent"] == len(absent)
        assert {trade.seq for trade in r.written} == {trade.seq for trade in trades}


@pytest.mark.parametrize("instrument", [SPOT, LINEAR])
async def test_an_id_of_quantity_zero_is_covered_without_volume_and_not_requested_again(instrument: Instrument) -> None:
    faults = Faults()
    faults.empty_every = 7
    async with repairing(instrument, faults=faults) as r:
        trades = r.traded(r.until - MINUTE)
        await r.take([*trades[:3], *trades[-3:]])
        await r.run_until(lambda: not r.missing)
        assert {trade.seq for trade in r.written} == {trade.seq for trade in trades}
        assert all(trade.quantity for trade in r.written)
        assert r.health.counts["trades.without_volume"] == trades[-1].seq - trades[0].seq + 1 - len(trades) > 3
        assert r.health.counts["trades.absent"] == 0


@pytest.mark.parametrize("instrument", [SPOT, LINEAR])
async def test_one_row_that_cannot_be_read_costs_its_own_id_alone_and_is_not_requested_for_ever(
    instrument: Instrument, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair_module, "_PAUSES_SECONDS", (0.01,))
    faults = SpoiledRows()
    async with repairing(instrument, faults=faults) as r:
        trades = r.traded(r.until - MINUTE)
        spoiled = {trades[20].seq, trades[21].seq, trades[40].seq}
        faults.ids = spoiled
        await r.take([*trades[:3], *trades[-3:]])
        await r.run_until(lambda: not r.missing)
        assert {trade.seq for trade in trades} - {trade.seq for trade in r.written} == spoiled
        unreadable = [span for span in r.recorded.spans if span.opened_by is GapReason.UNREADABLE]
        assert {(span.first_seq, span.last_seq) for span in unreadable} == {(number, number) for number in spoiled}
        assert r.health.counts["trades.unreadable"] >= 3
        window = Window(trades[3].timestamp, trades[-3].timestamp)
        gaps = CoverageInputs(r.recorded.spans, r.clock.now()).judge(window).gaps
        assert {(gap.reason, gap.missing_trades) for gap in gaps} == {(GapReason.UNREADABLE, 2), (GapReason.UNREADABLE, 1)}
        assert faults.asked < 30


async def test_a_symbol_that_the_exchange_refuses_waits_and_the_others_are_repaired_without_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repair_module, "_PAUSES_SECONDS", (3_600.0,))
    async with repairing() as r:
        unlisted = r.instrument._replace(symbol="GONEUSDT")
        other = r.recorder.start(msgspec.structs.replace(r.listing, instrument=unlisted), has_gapless_ids=True)
        trades = r.traded(r.until - 2 * MINUTE)
        for trade in (trades[0], trades[-1]):
            # Its gap ends last, so it has the first turn.
            moved = msgspec.structs.replace(trade, instrument=unlisted, timestamp=trade.timestamp + 1)
            await r.recorder.take(1, Trades(unlisted, (moved,), moved.timestamp + 1))
        await r.take([trades[0], trades[-1]])
        await r.run_until(lambda: not r.missing, within=10)
        assert r.health.counts["repair.failures"] == 1
        assert other.coverage.missing()


async def test_a_failed_request_does_not_count_towards_marking_an_id_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_module, "_PAUSES_SECONDS", (0.01,))
    async with repairing() as r:
        trades = r.traded(r.until - MINUTE)
        await r.take([*trades[:3], *trades[-3:]])
        request, calls = RestClient.trades, 0

        async def fail_twice_then_lag(self: RestClient, *arguments: object, **more: object) -> Page[Trade]:
            nonlocal calls
            calls += 1
            if calls <= 2:
                raise ExchangeError("binance spot answered HTTP 503")
            return Page(trades[-3:]) if calls <= 4 else await request(self, *arguments, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(RestClient, "trades", fail_twice_then_lag)
        await r.run_until(lambda: not r.missing)
        assert r.health.counts["repair.failures"] == 2
        assert r.health.counts["trades.absent"] == 0
        assert {trade.seq for trade in r.written} == {trade.seq for trade in trades}


def without_history() -> Chaos:
    """Faults that take the trades by id from Binance spot, as its host of market data lacks them."""
    chaos = Chaos([Fault(Kind.NO_HISTORY, -1.0, 3_600, "binance", "spot")])
    chaos.begin()
    return chaos


async def test_a_recent_gap_is_repaired_by_the_newest_trades_where_the_host_has_none_by_id() -> None:
    chaos = without_history()
    async with repairing(faults=chaos) as r:
        trades = r.traded(r.until - MINUTE)
        await r.take([*trades[:20], *trades[-300:-150], *trades[-100:]])
        r.repairer._recorded_trades = r.stored
        await r.run_until(lambda: not r.missing)
        assert {trade.seq for trade in trades[-150:-100]} <= {trade.seq for trade in r.written}
        assert [path for _, _, path, _ in chaos.requests].count("/api/v3/historicalTrades") == 1


async def test_an_older_gap_is_repaired_by_aggregates_to_its_very_edges_where_the_host_has_no_trades_by_id() -> None:
    chaos = without_history()
    async with repairing(activity=8, faults=chaos) as r:
        trades = r.traded(r.until - 6 * MINUTE)
        inside = [(place * 97, place * 97 + place % 30 + 1) for place in range(5, 45)]
        await r.take([trade for place, trade in enumerate(trades) if not any(first <= place < last for first, last in inside)])
        assert r.missing > 100
        r.repairer._recorded_trades = r.stored
        await r.run_until(lambda: not r.missing, within=40)
        assert [path for _, _, path, _ in chaos.requests].count("/api/v3/historicalTrades") == 1
        rows = {trade.seq for trade in r.written}
        folded = {number for partial in r.partials for number in range(partial.first_seq, partial.last_seq + 1)}
        assert rows | folded == {trade.seq for trade in trades}
        for partial in r.partials:
            expected = Footprint(r.listing.scale)
            for trade in trades:
                if partial.first_seq <= trade.seq <= partial.last_seq:
                    expected.add(trade)
            assert partial.footprint.cells == expected.cells


async def test_an_aggregate_that_claims_millions_of_executions_is_not_compared_with_each_of_them() -> None:
    async with repairing(activity=8, faults=without_history()) as r:
        trades = r.traded(r.until - 6 * MINUTE)
        await r.take([*trades[:100], *trades[101:]])
        (gap,) = r.recorded.coverage.missing()
        r.repairer._recorded_trades = r.stored
        row = Aggregate(1, trades[99].seq + 5_000_000, trades[99])
        tracemalloc.start()
        assert await r.repairer._missing_part(r.recorded, row, gap) is None
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10_000_000


async def test_what_no_request_can_repair_is_reported_and_not_asked_for_again() -> None:
    chaos = without_history()
    async with repairing(activity=8, faults=chaos) as r:
        trades = r.traded(r.until - 6 * MINUTE)
        # One of two executions of an aggregate is missing, and the other one cannot be read again.
        place = next(place for place in range(100, len(trades)) if trades[place].timestamp == trades[place - 1].timestamp)
        await r.take([*trades[:place], *trades[place + 1 :]])
        part = "binance spot repair"
        await r.run_until(lambda: part in r.health.parts and "stay missing" in r.health.parts[part].detail)
        before = len(chaos.requests)
        assert r.repairer._next() is None
        assert r.missing == 1
        assert r.health.parts[part].detail == "BTCUSDT: 1 trades stay missing, because the host has no trades by id"
        assert len(chaos.requests) == before


async def test_a_long_downtime_is_repaired_with_aggregates_whose_figures_equal_those_of_the_trades(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_module, "RAW_LIMIT", 500)
    async with repairing(activity=6) as r:
        trades = r.traded(r.until - 5 * MINUTE)
        await r.take([*trades[:20], *trades[-20:]])
        assert r.missing > 2_000
        await r.run_until(lambda: not r.missing, within=40)
        rows = {trade.seq for trade in r.written}
        folded = {number for partial in r.partials for number in range(partial.first_seq, partial.last_seq + 1)}
        assert not rows & folded
        assert rows | folded == {trade.seq for trade in trades}
        # The newest RAW_LIMIT trades come as rows, and so do trades whose aggregate is only partly in the gap.
        assert {trade.seq for trade in trades[-500:]} <= rows
        for partial in r.partials:
            expected = Footprint(r.listing.scale)
            for trade in trades:
                if partial.first_seq <= trade.seq <= partial.last_seq:
                    expected.add(trade)
            one, two = partial.footprint.bar, expected.bar
            assert partial.footprint.cells == expected.cells
            assert (one.open, one.high, one.low, one.close, one.notional) == (two.open, two.high, two.low, two.close, two.notional)
            assert one.min_delta in (two.min_delta, None)
            assert one.max_delta in (two.max_delta, None)
            assert {trade.timestamp // MINUTE for trade in trades if partial.first_seq <= trade.seq <= partial.last_seq} == {
                partial.minute // MINUTE
            }
        assert all(not span.raw for span in r.recorded.spans if span.first_seq in folded)


async def test_the_progress_of_a_repair_and_its_remaining_seconds_are_reported() -> None:
    chaos = Chaos([Fault(Kind.ERROR, 0.0, 60.0, "binance", "spot")])
    async with repairing(faults=chaos, activity=20) as r:
        chaos.begin()
        trades = r.traded(r.until - 2 * MINUTE)
        await r.take([*trades[:3], *trades[-3:]])
        await r.run_until(lambda: r.health.counts["repair.failures"] > 0)
        progress = r.tape[SPOT].backfill.repairing
        assert progress is not None
        assert progress.trades == r.missing == len(trades) - 6
        # A page of a thousand spot trades has weight 25, and WADM uses half of 6,000 a minute.
        assert progress.seconds == pytest.approx(-(-r.missing // 1_000) * 25 * 60 / 3_000)
        assert "waits: binance spot answered HTTP 503" in r.health.parts["binance spot repair"].detail


async def test_a_row_whose_time_is_outside_its_gap_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    async with repairing() as r:
        trades = r.traded(r.until - MINUTE)
        await r.take([*trades[:3], *trades[-3:]])
        request = RestClient.trades

        async def falsify(self: RestClient, *arguments: object, **more: object) -> Page[Trade]:
            rows = await request(self, *arguments, **more)  # type: ignore[arg-type]
            return Page([msgspec.structs.replace(row, timestamp=row.timestamp - DAY) if row.seq % 2 else row for row in rows])

        monkeypatch.setattr(RestClient, "trades", falsify)
        await r.run_until(lambda: r.health.counts["trades.implausible"] > 0)
        assert all(trade.seq % 2 == 0 for trade in r.written if trade not in trades[:3] + trades[-3:])


async def test_gap_repair_leaves_out_what_history_is_importing() -> None:
    async with repairing() as r:
        trades = r.traded(r.until - 4 * MINUTE)
        middle = len(trades) // 2
        await r.take([trade for place, trade in enumerate(trades) if not 5 <= place < 90 and not middle <= place < middle + 50])
        r.recorded.being_imported = Window(r.until - 5 * MINUTE, trades[100].timestamp)
        await r.run_until(lambda: r.missing == 85)
        assert r.repairer._next() is None
        r.recorded.being_imported = None
        await r.run_until(lambda: not r.missing)


@pytest.mark.parametrize("imported", [False, True])
async def test_gap_repair_leaves_long_gaps_to_history_and_never_repairs_the_time_before_an_imported_stretch(imported: bool) -> None:
    async with repairing(activity=0.02) as r:
        await r.take(r.traded(r.until - MINUTE))
        old = r.traded(r.until - 4 * HOUR, r.until - 3 * HOUR)
        partials = partial_footprints(r.instrument, [Aggregate(one.seq, one.seq, one) for one in old])
        await (r.recorder.record_imported if imported else r.recorder.record_repaired)(r.instrument, (), partials)
        assert r.missing > 0
        assert (r.repairer._next() is None) is imported
        r.repairer._long_gaps = False
        assert r.repairer._next() is None
