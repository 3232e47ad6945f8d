"""Repair over real loopback REST: the recorder is given a part of what the simulated exchange traded, and gets the rest back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
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
from wadm_mcp.exchanges.exchange import Aggregate, Trades
from wadm_mcp.health import Health
from wadm_mcp.model import DAY, HOUR, MINUTE, SECOND, Instrument, Listing, Trade, Window
from wadm_mcp.simulator.chaos import Chaos, Fault, Kind
from wadm_mcp.simulator.faults import Faults
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.storage.store import PartialFootprint
from wadm_mcp.tape import Tape

pytestmark = pytest.mark.anyio

SPOT = Instrument("binance", "spot", "BTCUSDT")
LINEAR = Instrument("binance", "linear", "BTCUSDT")
UNTIL = NOON + 50 * DAY
"""The same market in every run."""


class Repairing:
    """A recorder and its repairer on a market that stands still, a minute ago."""

    def __init__(self, simulator: Simulator, rest: RestClient, instrument: Instrument, until: int, trades_life: int) -> None:
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
        self.followed = self.recorder.start(self.listing, counts_trades=True)
        arguments = (rest, self.recorder, self.health, clock, trades_life)
        self.repairer = GapRepairer(simulated_venue(simulator, "binance", instrument.market), *arguments)
        self.written: list[Trade] = []
        self.pieces: list[PartialFootprint] = []

    def traded(self, since: int, until: int | None = None) -> list[Trade]:
        return ledger(self.simulator, self.instrument, Window(since, self.until if until is None else until))

    async def take(self, trades: Sequence[Trade]) -> None:
        for trade in trades:
            await self.recorder.take(1, Trades(self.instrument, (trade,), trade.timestamp + 1))

    async def run_until(self, holds: Callable[[], bool], within: float = 20) -> None:
        with anyio.fail_after(within):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.repairer.run)
                while not holds():
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()
        entry = self.recorder.take_batch()
        self.written += entry.trades
        self.pieces += entry.pieces

    @property
    def missing(self) -> int:
        return sum(gap.trades for gap in self.followed.coverage.missing())


@asynccontextmanager
async def repairing(
    instrument: Instrument = SPOT, *, activity: float = 2.0, faults: Faults | None = None, trades_life: int = 3 * DAY
) -> AsyncGenerator[Repairing]:
    async with (
        Simulator(seed=5, instruments=[instrument], activity=activity, clock=lambda: UNTIL + SECOND, faults=faults) as simulator,
        RestClient(proxied=False) as rest,
    ):
        yield Repairing(simulator, rest, instrument, UNTIL, trades_life)


@pytest.mark.parametrize("instrument", [SPOT, LINEAR])
async def test_every_gap_comes_back_by_its_ids(instrument: Instrument) -> None:
    async with repairing(instrument) as r:
        trades = r.traded(r.until - 2 * MINUTE)
        await r.take([trade for place, trade in enumerate(trades) if place % 50 < 40 or place < 5 or place > len(trades) - 5])
        assert r.missing > 100
        await r.run_until(lambda: not r.missing)
        assert sorted(r.written, key=lambda trade: trade.seq) == trades
        made = Footprint(r.listing.scale)
        for trade in trades:
            if trade.timestamp >= r.until - MINUTE:
                made.add(trade)
        held = r.tape[instrument].minutes[r.until - MINUTE]
        assert (held.cells, held.bar.volume, held.bar.open, held.bar.close) == (made.cells, made.bar.volume, made.bar.open, made.bar.close)


async def test_what_rest_does_not_serve_any_more_stays_a_gap_and_is_not_called_absent() -> None:
    async with repairing(LINEAR) as r:
        trades = r.traded(r.until - 2 * MINUTE)
        await r.take([*trades[:50], *trades[90:]])
        assert r.missing == 40
        assert r.repairer._next() is not None
        r.clock.at += 2 * DAY
        assert r.repairer._next() is None
        assert r.missing == 40


async def test_the_newest_gap_comes_first_and_the_oldest_is_not_left_for_good() -> None:
    async with repairing(activity=8) as r:
        trades = r.traded(r.until - 6 * MINUTE)
        gaps = [(len(trades) * part // 8, len(trades) * part // 8 + 400) for part in range(1, 7)]
        await r.take([trade for place, trade in enumerate(trades) if not any(first <= place < last for first, last in gaps)])
        came: list[int] = []
        repaired = r.recorder.record_repaired

        async def remember(instrument: Instrument, told: Sequence[Trade], pieces: Sequence[PartialFootprint] = ()) -> int:
            came.append(max(trade.seq for trade in told))
            return await repaired(instrument, told, pieces)

        r.recorder.record_repaired = remember  # type: ignore[method-assign]
        await r.run_until(lambda: not r.missing)
        assert came[:3] == sorted(came[:3], reverse=True)
        assert came[3] == min(came)


async def test_what_the_exchanges_database_does_not_have_yet_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_module, "_PAUSES_SECONDS", (0.05,))
    chaos = Chaos([Fault(Kind.LAG, 0.0, 30.0, "binance", "spot")])
    async with repairing(faults=chaos) as r:
        chaos.begin()
        trades = r.traded(r.until - MINUTE)
        await r.take([*trades[:3], *trades[-3:]])
        lacking = r.missing
        await r.run_until(lambda: 0 < r.missing < lacking and len(chaos.requests) > 5)
        assert not [span for span in r.followed.spans if span.reason == "absent"]
        chaos.end()
        await r.run_until(lambda: not r.missing)


async def test_ids_that_the_exchange_itself_does_not_have_are_recorded_as_absent_and_asked_for_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repair_module, "_PAUSES_SECONDS", (0.01,))
    faults = Faults()
    faults.absent_every = 97
    async with repairing(faults=faults) as r:
        trades = r.traded(r.until - MINUTE)
        await r.take([*trades[:3], *trades[-3:]])
        await r.run_until(lambda: not r.missing)
        absent = {number for span in r.followed.spans if span.reason == "absent" for number in range(span.first_seq, span.last_seq + 1)}
        assert absent == {number for number in range(trades[0].seq, trades[-1].seq) if number % 97 == 0}
        assert r.health.counts["trades.absent"] == len(absent)
        assert {trade.seq for trade in r.written} == {trade.seq for trade in trades}


async def test_a_long_downtime_comes_back_from_aggregates_as_figures_that_are_those_of_its_trades(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair_module, "RAW_LIMIT", 500)
    async with repairing(activity=6) as r:
        trades = r.traded(r.until - 5 * MINUTE)
        await r.take([*trades[:20], *trades[-20:]])
        assert r.missing > 2_000
        await r.run_until(lambda: not r.missing, within=40)
        rows = {trade.seq for trade in r.written}
        folded = {number for piece in r.pieces for number in range(piece.first_seq, piece.last_seq + 1)}
        assert not rows & folded
        assert rows | folded == {trade.seq for trade in trades}
        # Up to so many trades the newest part comes as rows, and what straddles an edge does.
        assert {trade.seq for trade in trades[-500:]} <= rows
        for piece in r.pieces:
            made = Footprint(r.listing.scale)
            for trade in trades:
                if piece.first_seq <= trade.seq <= piece.last_seq:
                    made.add(trade)
            one, two = piece.footprint.bar, made.bar
            assert piece.footprint.cells == made.cells
            assert (one.open, one.high, one.low, one.close, one.notional) == (two.open, two.high, two.low, two.close, two.notional)
            assert one.min_delta in (two.min_delta, None)
            assert one.max_delta in (two.max_delta, None)
            assert {trade.timestamp // MINUTE for trade in trades if piece.first_seq <= trade.seq <= piece.last_seq} == {
                piece.minute // MINUTE
            }
        assert all(not span.raw for span in r.followed.spans if span.first_seq in folded)


async def test_what_is_under_way_and_how_long_it_takes_is_visible() -> None:
    chaos = Chaos([Fault(Kind.ERROR, 0.0, 60.0, "binance", "spot")])
    async with repairing(faults=chaos, activity=20) as r:
        chaos.begin()
        trades = r.traded(r.until - 2 * MINUTE)
        await r.take([*trades[:3], *trades[-3:]])
        await r.run_until(lambda: r.health.counts["repair.failures"] > 0)
        under_way = r.tape[SPOT].backfill.repairing
        assert under_way is not None
        assert under_way.trades == r.missing == len(trades) - 6
        # Spot's page of a thousand weighs 25, and half of 6,000 a minute is ours.
        assert under_way.seconds == pytest.approx(-(-r.missing // 1_000) * 25 * 60 / 3_000)
        assert "waits: binance spot answered HTTP 503" in r.health.parts["binance spot repair"].detail


async def test_a_row_that_lies_outside_its_gap_in_time_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with repairing() as r:
        trades = r.traded(r.until - MINUTE)
        await r.take([*trades[:3], *trades[-3:]])
        asked = RestClient.trades

        async def lie(self: RestClient, *arguments: object, **more: object) -> list[Trade]:
            rows = await asked(self, *arguments, **more)  # type: ignore[arg-type]
            return [msgspec.structs.replace(row, timestamp=row.timestamp - DAY) if row.seq % 2 else row for row in rows]

        monkeypatch.setattr(RestClient, "trades", lie)
        await r.run_until(lambda: r.health.counts["trades.implausible"] > 0)
        assert all(trade.seq % 2 == 0 for trade in r.written if trade not in trades[:3] + trades[-3:])


async def test_what_is_coming_in_as_history_is_not_asked_for_by_repair_too() -> None:
    async with repairing() as r:
        trades = r.traded(r.until - 4 * MINUTE)
        middle = len(trades) // 2
        await r.take([trade for place, trade in enumerate(trades) if not 5 <= place < 90 and not middle <= place < middle + 50])
        r.followed.being_imported = Window(r.until - 5 * MINUTE, trades[100].timestamp)
        await r.run_until(lambda: r.missing == 85)
        assert r.repairer._next() is None
        r.followed.being_imported = None
        await r.run_until(lambda: not r.missing)


@pytest.mark.parametrize("imported", [False, True])
async def test_long_gaps_are_historys_and_the_time_before_an_imported_island_is_nobodys(imported: bool) -> None:
    async with repairing(activity=0.02) as r:
        await r.take(r.traded(r.until - MINUTE))
        old = r.traded(r.until - 4 * HOUR, r.until - 3 * HOUR)
        pieces = partial_footprints(r.instrument, [Aggregate(one.seq, one.seq, one) for one in old])
        await (r.recorder.record_imported if imported else r.recorder.record_repaired)(r.instrument, (), pieces)
        assert r.missing > 0
        assert (r.repairer._next() is None) is imported
        r.repairer._long_gaps = False
        assert r.repairer._next() is None
