"""Bybit's newest trades over loopback REST: gaps that they span are closed, the rest stays a gap."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal

import anyio
import pytest
from msgspec.structs import replace

from tests.market import NOON, ManualClock
from tests.test_audit import ledger
from tests.venues import simulated_venue
from wadm_mcp.clock import Clock
from wadm_mcp.collection.backfill import recent_trades as recent_trades_module
from wadm_mcp.collection.backfill.recent_trades import RecentTradesReconciler
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.coverage.by_connection import ConnectionCoverage
from wadm_mcp.coverage.spans import GapReason
from wadm_mcp.errors import ExchangeError
from wadm_mcp.exchanges.exchange import Page, Trades
from wadm_mcp.health import Health
from wadm_mcp.model import DAY, MINUTE, Instrument, Listing, Trade, Window
from wadm_mcp.simulator.chaos import Chaos
from wadm_mcp.simulator.fault_plan import Fault, Kind
from wadm_mcp.simulator.faults import Faults, Reply
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.tape import Tape

pytestmark = pytest.mark.anyio

SPOT = Instrument("bybit", "spot", "BTCUSDT")
UNTIL = NOON + 50 * DAY
"""The same market in every run."""


class Reconciling:
    """A recorder of Bybit with its reconciler, on a market that has stopped trading."""

    def __init__(self, simulator: Simulator, rest: RestClient, until: int) -> None:
        self.clock = ManualClock(until)
        self.tape = Tape()
        self.health = Health(self.clock.now)
        clock = Clock(self.clock.now, anyio.current_time)
        self.recorder = Recorder(self.tape, self.health, clock)
        self.trades = ledger(simulator, SPOT, Window(until - 3 * MINUTE, until))
        scale = self.trades[0].scale
        self.recorder.start(Listing(SPOT, Decimal(1).scaleb(-scale.price), Decimal(1).scaleb(-scale.quantity)), has_gapless_ids=False)
        self.recorded = self.recorder[SPOT]
        arguments = (rest, self.recorder, self.health, clock)
        self.reconciler = RecentTradesReconciler(simulated_venue(simulator, "bybit", "spot"), *arguments)

    async def deliver(self, connection: int, trades: Sequence[Trade]) -> None:
        for trade in trades:
            await self.recorder.take(connection, Trades(SPOT, (trade,), trade.timestamp + 1))

    def lose(self, connection: int) -> None:
        self.recorder.connection_lost(connection, [SPOT], GapReason.DISCONNECT, "the test cut it")

    async def run_until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(15):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.reconciler.run)
                while not condition():
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()

    @property
    def gaps(self) -> list[tuple[int, int]]:
        return [(gap.start, gap.end) for gap in self.recorded.coverage.missing()]


@asynccontextmanager
async def reconciling(faults: Faults | None = None) -> AsyncGenerator[Reconciling]:
    async with (
        Simulator(seed=5, instruments=[SPOT], activity=3, clock=lambda: UNTIL, faults=faults) as simulator,
        RestClient(proxied=False) as rest,
    ):
        yield Reconciling(simulator, rest, UNTIL)


async def test_a_short_gap_is_closed_by_newest_trades_that_span_it() -> None:
    async with reconciling() as r:
        await r.deliver(1, r.trades[-50:-30])
        r.lose(1)
        await r.deliver(2, r.trades[-10:])
        assert len(r.gaps) == 1
        await r.run_until(lambda: not r.gaps)
        stored = {trade.trade_id for trade in r.recorder.take_batch().trades}
        assert {trade.trade_id for trade in r.trades[-50:]} <= stored
        assert [span.reason for span in r.recorded.spans if span.reason == "repaired"]


class SpoiledRow(Faults):
    """REST serves the trade with this id with a price that is no number."""

    id = ""

    def answered(self, exchange: str, path: str, params: Mapping[str, str], reply: Reply) -> Reply:
        assert isinstance(reply.body, dict)
        for row in reply.body["result"]["list"]:
            if row["execId"] == self.id:
                row["price"] = "-"
        return reply


async def test_newest_trades_prove_nothing_across_a_row_that_cannot_be_read() -> None:
    faults = SpoiledRow()
    async with reconciling(faults) as r:
        hidden = r.trades[-20]
        faults.id = hidden.trade_id
        await r.deliver(1, r.trades[-50:-30])
        r.lose(1)
        await r.deliver(2, r.trades[-10:])
        ((start, end),) = r.gaps
        await r.run_until(lambda: r.gaps != [(start, end)])
        # What follows the row is proven, and all other trades of the list are recorded.
        assert r.gaps == [(start, r.trades[-19].timestamp + 1)]
        assert start <= hidden.timestamp < r.gaps[0][1]
        stored = {trade.trade_id for trade in r.recorder.take_batch().trades}
        assert {trade.trade_id for trade in r.trades[-50:]} - stored == {hidden.trade_id}
        assert r.health.counts["trades.unreadable"] >= 1


async def test_a_suspect_silence_of_an_open_connection_is_closed_by_newest_trades_with_what_was_lost() -> None:
    async with reconciling() as r:
        await r.deliver(1, r.trades[-58:-54])
        end = r.trades[-55].timestamp
        await r.deliver(1, r.trades[-4:-3])
        assert r.gaps == [(end, r.trades[-4].timestamp + 1)]
        await r.run_until(lambda: not r.gaps)
        stored = {trade.trade_id for trade in r.recorder.take_batch().trades}
        assert {trade.trade_id for trade in r.trades[-58:-3]} <= stored


async def test_trades_lost_in_an_unusual_silence_are_recorded() -> None:
    async with reconciling() as r:
        await r.deliver(1, r.trades[-58:-54])
        silence = r.recorded.coverage.silence_limit
        silence.ms, silence.unusual = MINUTE, 3_000
        await r.deliver(1, r.trades[-4:])
        await r.run_until(lambda: not r.gaps)
        assert {trade.trade_id for trade in r.trades[-58:]} <= r.tape[SPOT].pending.keys()
        counts = Counter(trade.trade_id for trade in r.recorder.take_batch().trades)
        assert set(counts.values()) == {1}


async def test_covered_trades_are_not_recorded_again_although_their_ids_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async with reconciling() as r:
        await r.deliver(1, r.trades[-55:-30])
        r.lose(1)
        assert isinstance(r.recorded.coverage, ConnectionCoverage)
        r.recorded.coverage._recent_ids.clear()
        await r.deliver(2, r.trades[-10:])
        await r.run_until(lambda: not r.gaps)
        counts = Counter(trade.trade_id for trade in r.recorder.take_batch().trades if trade.timestamp > r.trades[-55].timestamp)
        assert counts == Counter(trade.trade_id for trade in r.trades[-60:] if trade.timestamp > r.trades[-55].timestamp)


async def test_the_part_of_a_long_gap_that_the_newest_trades_span_is_closed_and_the_rest_stays() -> None:
    async with reconciling() as r:
        await r.deliver(1, r.trades[-400:-300])
        r.lose(1)
        await r.deliver(2, r.trades[-10:])
        ((start, end),) = r.gaps
        await r.run_until(lambda: r.gaps != [(start, end)])
        # Bybit returns the newest sixty spot trades. Other trades of the oldest one's millisecond may be missing.
        assert r.gaps == [(start, r.trades[-60].timestamp + 1)]


async def test_newest_trades_that_lag_behind_the_stream_are_requested_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_trades_module, "_PAUSES_SECONDS", (0.05,))
    chaos = Chaos([Fault(Kind.LAG, 0.0, 60.0, "bybit", "spot")])
    async with reconciling(chaos) as r:
        chaos.begin()
        await r.deliver(1, r.trades[-50:-30])
        r.lose(1)
        await r.deliver(2, r.trades[-10:])
        await r.run_until(lambda: len(chaos.requests) > 3)
        assert len(r.gaps) == 1
        assert r.tape[SPOT].backfill.repairing is not None
        chaos.end()
        await r.run_until(lambda: not r.gaps)


async def test_an_instrument_whose_requests_fail_does_not_delay_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with reconciling() as r:
        other = r.recorder.start(replace(r.recorded.tape.listing, instrument=SPOT._replace(symbol="ETHUSDT")), has_gapless_ids=False)
        newest = Page([replace(trade, instrument=other.tape.instrument) for trade in r.trades[-60:]])

        async def trades(venue: object, listing: Listing) -> Page[Trade]:
            if listing.instrument == SPOT:
                raise ExchangeError("bybit spot does not know BTCUSDT")
            return newest

        monkeypatch.setattr(r.reconciler._rest, "trades", trades)
        for instrument, each in ((SPOT, r.trades[-60:]), (other.tape.instrument, newest)):
            for connection, some in ((1, each[10:30]), (2, each[50:])):
                for one in some:
                    await r.recorder.take(connection, Trades(instrument, (one,), one.timestamp + 1))
                r.recorder.connection_lost(1, [instrument], GapReason.DISCONNECT, "the test cut it")
        await r.run_until(lambda: not other.coverage.missing())
        assert len(r.gaps) == 1


async def test_a_request_that_the_exchange_refuses_is_counted_and_retried() -> None:
    chaos = Chaos([Fault(Kind.ERROR, 0.0, 1.0, "bybit", "spot")])
    async with reconciling(chaos) as r:
        chaos.begin()
        await r.deliver(1, r.trades[-50:-30])
        r.lose(1)
        await r.deliver(2, r.trades[-10:])
        await r.run_until(lambda: not r.gaps)
        assert r.health.counts["repair.failures"] >= 1
