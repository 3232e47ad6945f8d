"""Symbols that are halted, delisted, migrated, listed and listed with other steps, while they are recorded."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, cast

import anyio
import pytest

from tests.server.fake import EmptyStore
from tests.soak.deployment import SEED, SOAK
from tests.venues import simulated_venue
from wadm_mcp.clock import SYSTEM_CLOCK, now_ms
from wadm_mcp.collection import listing_refresher as refresher_module
from wadm_mcp.collection import listings as listings_module
from wadm_mcp.collection.listing_refresher import ListingRefresher
from wadm_mcp.collection.listings import Listings, LookUp
from wadm_mcp.collection.live import collector as collector_module
from wadm_mcp.collection.live import staleness as staleness_module
from wadm_mcp.collection.market import MarketRecording
from wadm_mcp.collection.recording.doubts import DoubtedListings
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.coverage.judge import judge
from wadm_mcp.health import Health, State
from wadm_mcp.model import UNLISTED, Instrument, Listing, Window
from wadm_mcp.queries.markets import markets
from wadm_mcp.queries.volume_profile import volume_profile
from wadm_mcp.runtime import Runtime
from wadm_mcp.settings import read_settings
from wadm_mcp.simulator.chaos import Chaos
from wadm_mcp.simulator.fault_plan import Fault, Kind
from wadm_mcp.simulator.simulator import Simulator

if TYPE_CHECKING:
    from wadm_mcp.collection.market import RecordingServices

pytestmark = pytest.mark.anyio

ROUNDS = 200 if SOAK else 3
"""Random halts, delistings and resumptions after the day."""


@pytest.fixture
def fast_motion(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list is read every second and four times a second at most; a silence of two seconds is too long."""
    monkeypatch.setattr(refresher_module, "_INTERVAL_SECONDS", 1.0)
    monkeypatch.setattr(refresher_module, "_HALTED_INTERVAL_SECONDS", 0.5)
    monkeypatch.setattr(refresher_module, "_FIRST_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(listings_module, "_HOST_PAUSE_SECONDS", 0.25)
    monkeypatch.setattr(collector_module, "_WATCH_SECONDS", 0.1)
    monkeypatch.setattr(staleness_module, "_MIN_TIMEOUT_SECONDS", 2.0)
    monkeypatch.setattr(staleness_module, "_TIMEOUT_INTERVALS", 0.1)


class Exchange:
    """Simulated markets in which every symbol trades all the time, unless it is stopped, and the process that records them."""

    def __init__(self, simulator: Simulator, runtime: Runtime) -> None:
        self.simulator = simulator
        self.runtime = runtime
        self.stopped: set[Instrument] = set()
        self.price = "61000.5"
        self.prices: dict[Instrument, str] = {}

    async def trade(self) -> None:
        while True:
            for instrument in self.simulator.instruments:
                if instrument not in self.stopped:
                    await self.simulator.push(*instrument, [(now_ms(), self.prices.get(instrument, self.price), "0.5", "BUY")])
            await anyio.sleep(0.05)

    def stop(self, instrument: Instrument, status: str) -> None:
        self.stopped.add(instrument)
        self.simulator.set_status(*instrument, status)

    def resume(self, instrument: Instrument) -> None:
        self.simulator.set_status(*instrument, None)
        self.stopped.discard(instrument)

    async def until(self, condition: Callable[[], bool], within: float = 15) -> None:
        with anyio.fail_after(within):
            while not condition():
                await anyio.sleep(0.02)

    async def until_state(self, instrument: Instrument, state: State) -> None:
        def reached() -> bool:
            report = self.runtime.health.parts.get(str(instrument))
            return report is not None and report.state is state

        await self.until(reached)

    async def gaps(self, instruments: Collection[Instrument]) -> dict[str, object]:
        """The gaps of instruments since their recording began; empty where there is none."""
        now = now_ms()
        found: dict[str, object] = {}
        for instrument in instruments:
            spans = await self.runtime.view.spans(instrument, Window(0, now))
            window = Window(min(span.start for span in spans), max(span.end for span in spans))
            if gaps := judge(spans, window, now).gaps:
                found[str(instrument)] = gaps
        return found

    async def row(self, instrument: Instrument) -> dict[str, object]:
        table = (await markets(self.runtime.view.reading(), self.runtime.health))["markets"]
        (row,) = [row for row in table["rows"] if tuple(row[:3]) == tuple(instrument)]
        return dict(zip(table["columns"], row, strict=True))


@asynccontextmanager
async def trading(
    folder: Path, instruments: Collection[Instrument], symbols: Collection[str], **changes: object
) -> AsyncGenerator[Exchange]:
    async with Simulator(instruments=instruments, manual=True) as simulator:
        urls = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
        settings = {
            "WADM_EXCHANGES": tuple(dict.fromkeys(each.exchange for each in instruments)),
            "WADM_MARKETS": tuple(dict.fromkeys(each.market for each in instruments)),
            "WADM_SYMBOLS": tuple(symbols),
            "WADM_DATA_DIR": folder,
            "WADM_HISTORY_HOURS": 0,
            "WADM_ALLOW_TRACKING": True,
            "WADM_MAX_INSTRUMENTS": 100,
            "WADM_BYBIT_CONNECTIONS": 1,
        }
        async with Runtime(read_settings({}, overrides={**settings, **urls, **changes})) as runtime, anyio.create_task_group() as tasks:
            one = Exchange(simulator, runtime)
            tasks.start_soon(one.trade)
            yield one
            tasks.cancel_scope.cancel()


@pytest.mark.usefixtures("fast_motion")
@pytest.mark.parametrize(("exchange", "market", "word"), [("binance", "spot", "BREAK"), ("bybit", "linear", "Delivering")])
async def test_a_day_of_changing_listings_leaves_no_gap_in_any_symbol_that_trades(
    tmp_path: Path, exchange: str, market: str, word: str
) -> None:
    every = [Instrument(exchange, market, f"C{number:02}USDT") for number in range(21)]
    halted, delisted, migrated, finer, dead, silenced, new = every[:7]
    siblings, random = every[7:], Random(SEED)
    configured = [each.symbol for each in every if each is not new]
    async with trading(tmp_path, every, configured) as one:
        one.stop(dead, word)
        one.stop(new, "")
        for instrument in (*siblings, halted, delisted, migrated, finer, silenced):
            await one.until_state(instrument, State.OK)
        await one.until_state(dead, State.HALTED)
        connections = one.simulator._venue(exchange, market).connections

        one.stop(halted, word)
        await one.until_state(halted, State.HALTED)
        assert (await one.row(halted))["status"] == "halted"

        one.stop(delisted, "")
        await one.until_state(delisted, State.UNLISTED)
        assert (await one.row(delisted))["status"] == "unlisted"

        # A migration: the old symbol stays listed and does not trade, the new one is listed.
        one.stop(migrated, word)
        one.resume(new)
        await one.until_state(migrated, State.HALTED)

        one.simulator.set_steps(*finer, "0.0001", "0.00001")
        one.prices[finer] = "61000.5001"
        await one.until(lambda: one.runtime.tape[finer].listing.tick == Decimal("0.0001"))

        one.simulator.stall(*silenced)
        await one.until(lambda: one.runtime.health.counts["subscriptions.renewed"] > 0)
        with anyio.fail_after(10):
            await one.simulator.subscribed(*silenced)

        for instrument in (halted, dead):
            one.resume(instrument)
            await one.until_state(instrument, State.OK)
            await one.until(lambda instrument=instrument: one.runtime.tape[instrument].listing.trading)
        one.resume(delisted)
        await one.until_state(delisted, State.OK)

        for _ in range(ROUNDS):
            instrument = random.choice((halted, delisted, migrated, dead))
            if instrument in one.stopped:
                one.resume(instrument)
                await one.until_state(instrument, State.OK)
            else:
                status = random.choice((word, ""))
                one.stop(instrument, status)
                await one.until_state(instrument, State.HALTED if status else State.UNLISTED)

        assert one.simulator._venue(exchange, market).connections == connections
        await one.runtime.tracking.track(_no_progress, symbol=new.symbol, exchange=exchange, market=market, wait=0)
        await one.until_state(new, State.OK)

        assert await one.gaps((*siblings, finer, new)) == {}
        if exchange == "binance":
            # Their ids show that nothing is missing, or what.
            with anyio.fail_after(30):
                while await one.gaps(every[:6]):
                    await anyio.sleep(0.1)


async def _no_progress(_done: float, _total: float, _text: str) -> None:
    pass


@pytest.mark.usefixtures("fast_motion")
async def test_finer_prices_make_the_new_tick_take_effect_in_every_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the prices show it: the list is read again for no other reason.
    monkeypatch.setattr(refresher_module, "_INTERVAL_SECONDS", 3_600.0)
    spot = Instrument("binance", "spot", "C01USDT")
    async with trading(tmp_path, [spot], ["C01USDT"]) as one:
        one.simulator.set_steps(*spot, "0.01", "0.1")
        one.price = "0.51"
        await one.until_state(spot, State.OK)
        await one.until(lambda: one.runtime.recorded > 20)
        one.simulator.set_steps(*spot, "0.0001", "0.1")
        one.price = "0.5099"
        await one.until(lambda: one.runtime.tape[spot].listing.tick == Decimal("0.0001"))
        recorded = one.runtime.recorded
        await one.until(lambda: one.runtime.recorded > recorded + 5)
        answer = await volume_profile(one.runtime.view.reading(), symbol="C01USDT", window="15m", row_size="0.0001", detail="full")
        rows = {row[0] for row in answer["nodes"]["rows"]}
        assert {0.51, 0.5099} <= rows
        assert answer["vah"] >= 0.5099
        one.stopped.add(spot)


@pytest.mark.usefixtures("fast_motion")
async def test_a_symbol_that_was_delisted_while_nothing_recorded_can_still_be_asked_about(tmp_path: Path) -> None:
    kept, gone = (Instrument("binance", "spot", symbol) for symbol in ("C01USDT", "C02USDT"))
    async with trading(tmp_path, [kept, gone], ["C01USDT", "C02USDT"]) as one:
        await one.until_state(gone, State.OK)
        await one.until(lambda: one.runtime.recorded > 10)
    async with trading(tmp_path, [kept, gone], ["C01USDT", "C02USDT"]) as one:
        one.stop(gone, "")
        await one.until_state(kept, State.OK)
        await one.until_state(gone, State.UNLISTED)
        assert one.runtime.health.ready
        answer = await volume_profile(one.runtime.view.reading(), symbol="C02USDT", window="15m")
        assert answer["trade_count"] > 0
        assert (await one.row(gone))["status"] == "unlisted"
        answer = await markets(one.runtime.view.reading(), one.runtime.health)
        assert "binance:spot:C02USDT (UNLISTED)" in answer["reading"]
        one.resume(gone)
        await one.until_state(gone, State.OK)


@pytest.mark.usefixtures("fast_motion")
async def test_an_empty_list_and_one_that_cannot_be_read_change_nothing(tmp_path: Path) -> None:
    spot = Instrument("binance", "spot", "C01USDT")
    async with trading(tmp_path, [spot], ["C01USDT"]) as one:
        await one.until_state(spot, State.OK)
        one.simulator.set_status(*spot, "")
        await one.until(lambda: one.runtime.health.counts["listings.failures"] >= 2)
        assert one.runtime.tape[spot].listing.status != UNLISTED
        assert one.runtime.health.parts[str(spot)].state is State.OK


async def test_a_doubt_ends_the_pause_after_a_failure_and_the_host_is_left_alone_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresher_module, "_FIRST_PAUSE_SECONDS", 3_600.0)
    monkeypatch.setattr(listings_module, "_HOST_PAUSE_SECONDS", 0.3)
    spot = Instrument("binance", "spot", "BTCUSDT")
    chaos = Chaos(())
    read = anyio.Event()

    async def apply(_: MarketRecording, found: LookUp) -> None:
        assert "BTCUSDT" in found.listed
        read.set()

    async with Simulator(instruments=[spot], manual=True, faults=chaos) as simulator, RestClient(proxied=False) as rest:
        chaos.begin()
        # An empty list is a failure.
        simulator.set_status(*spot, "")
        health, doubted = Health(now_ms), DoubtedListings()
        refresher = ListingRefresher(Listings(EmptyStore(), rest, health, SYSTEM_CLOCK), doubted, health, SYSTEM_CLOCK, apply)
        market = MarketRecording(simulated_venue(simulator, "binance", "spot"), cast("RecordingServices", None))
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(refresher.run, market)
                for failures in (1, 2):
                    while health.counts["listings.failures"] < failures:
                        await anyio.sleep(0.01)
                    # One of another market wakes nothing.
                    doubted.add(Instrument("bybit", "spot", "BTCUSDT"))
                    if failures == 2:
                        simulator.set_status(*spot, None)
                    doubted.add(spot)
                await read.wait()
                tasks.cancel_scope.cancel()
    moments = [at for at, exchange, _, _ in chaos.requests if exchange == "binance"]
    assert len(moments) == 3
    assert all(later - earlier >= 0.27 for earlier, later in pairwise(moments))


@pytest.mark.usefixtures("fast_motion")
async def test_a_symbol_that_no_exchange_lists_is_a_warning_while_another_one_is_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spot = Instrument("binance", "spot", "ETHUSDT")
    async with trading(tmp_path, [spot], ["ETHUSDX", "ETHUSDT"]) as one:
        await one.until_state(spot, State.OK)
        await one.until(lambda: "symbol.unknown" in [record.getMessage() for record in caplog.records])
        report = one.runtime.health.parts["binance:spot:ETHUSDX"]
        assert (report.state, "Nearest: ETHUSDT" in report.detail) == (State.UNLISTED, True)
        assert one.runtime.health.ready


@pytest.mark.usefixtures("fast_motion")
async def test_a_halt_of_a_computed_market_ends_without_a_missing_id(tmp_path: Path) -> None:
    spot, other = (Instrument("binance", "spot", symbol) for symbol in ("BTCUSDT", "ETHUSDT"))
    chaos = Chaos([Fault(Kind.HALT, 0.0, 60.0, "binance", "spot", "ETHUSDT")])
    async with Simulator(instruments=[spot, other], activity=4.0, faults=chaos) as simulator:
        urls = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
        overrides = {
            "WADM_DATA_DIR": tmp_path,
            "WADM_HISTORY_HOURS": 0,
            "WADM_EXCHANGES": ("binance",),
            "WADM_SYMBOLS": ("BTCUSDT", "ETHUSDT"),
        }
        async with Runtime(read_settings({}, overrides={**overrides, **urls})) as runtime:
            one = Exchange(simulator, runtime)
            for instrument in (spot, other):
                await one.until_state(instrument, State.OK)
            chaos.begin()
            await one.until_state(other, State.HALTED)
            assert runtime.health.parts[str(other)].detail.endswith("'BREAK'")
            chaos.end()
            await one.until_state(other, State.OK)
            # What a loaded machine may miss while it subscribes again is repaired by id.
            with anyio.fail_after(30):
                while await one.gaps((spot, other)):
                    await anyio.sleep(0.1)
            assert runtime.health.counts["trades.absent"] == 0


@pytest.mark.usefixtures("fast_motion")
async def test_what_may_be_missing_from_a_list_is_neither_unlisted_nor_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A trade of a provisional symbol would have the list read again meanwhile.
    monkeypatch.setattr(ListingRefresher, "_read", lambda *_: anyio.sleep_forever())
    kept, absent = (Instrument("binance", "spot", symbol) for symbol in ("C01USDT", "C02USDT"))
    async with trading(tmp_path, [kept, absent], ["C01USDT", "C02USDT"]) as one:
        for instrument in (kept, absent):
            await one.until_state(instrument, State.OK)
        manager = one.runtime._subscriptions
        assert manager is not None
        market, listing = manager._markets[0], one.runtime.tape[absent].listing
        others = {each.instrument.symbol: each for each in market.listings if each.instrument != absent}
        for provisional in (False, True):
            if provisional:
                market.relist(Listing.unconfirmed(absent))
            before = list(market.listings)
            for found in (LookUp(others, True, complete=False), LookUp(others, True, malformed={absent.symbol})):
                assert manager._apply(market, found) == []
                async with anyio.create_task_group() as tasks:
                    await manager._correct(market, tasks, found)
                assert market.listings == before
        market.listings = [each for each in before if each.instrument != absent]
        async with anyio.create_task_group() as tasks:
            manager._adopt(market, LookUp(others, True, malformed={absent.symbol}), {}, tasks)
        assert Listing.unconfirmed(absent) in market.listings
        market.listings = before
        # One that trades is not dropped for a complete list either.
        assert manager._apply(market, LookUp(others, True)) == []
        assert market.listings == before
        market.relist(listing)
        # A record of another symbol that is malformed for good hides no delisting.
        manager._apply(market, LookUp(others, True, malformed={"C03USDT"}))
        assert one.runtime.tape[absent].listing.status == UNLISTED
