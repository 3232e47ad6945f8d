from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import anyio
import pytest

from wadm_mcp import runtime as runtime_module
from wadm_mcp.clock import Clock, now_ms
from wadm_mcp.collection.recording import maintenance
from wadm_mcp.coverage.judge import judge
from wadm_mcp.errors import SettingError, StoreError
from wadm_mcp.health import State
from wadm_mcp.model import DAY, HOUR, Instrument, Timeframe, Window
from wadm_mcp.runtime import Runtime
from wadm_mcp.server.questions import MARKETS, VOLUME_PROFILE
from wadm_mcp.settings import Settings, read_settings
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.storage.sqlite import SqliteStore

pytestmark = pytest.mark.anyio

SPOT = Instrument("binance", "spot", "BTCUSDT")


def settings_for(folder: Path, simulator: Simulator, **changes: object) -> Settings:
    urls = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
    return read_settings(
        {}, overrides={"WADM_DATA_DIR": folder, "WADM_HISTORY_HOURS": 0, "WADM_EXCHANGES": ("binance",), **urls, **changes}
    )


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(15):
        while not condition():
            await anyio.sleep(0.02)


@asynccontextmanager
async def running(folder: Path, **changes: object) -> AsyncGenerator[tuple[Runtime, Simulator]]:
    async with Simulator(manual=True) as simulator, Runtime(settings_for(folder, simulator, **changes)) as runtime:
        yield runtime, simulator


async def push(simulator: Simulator, *, count: int = 1) -> None:
    await simulator.push("binance", "spot", "BTCUSDT", [(now_ms(), "61000.5", "0.1", "BUY")] * count)


async def test_pushed_trades_are_recorded_and_survive_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as (runtime, simulator):
        with anyio.fail_after(15):
            await simulator.subscribed(*SPOT)
        await push(simulator, count=5)
        await until(lambda: runtime.recorded == 5)
        assert runtime.role == "recording"
        assert runtime.health.parts[str(SPOT)].state is State.OK
    async with running(tmp_path) as (runtime, _):
        await runtime.view.until_ready()
        now = now_ms()
        window = Window(now - now % 60_000 - 600_000, now + 60_000)
        assert (await runtime.view.footprint(SPOT, window)).bar.trade_count == 5
        assert len(await runtime.view.trades(SPOT, window, limit=10)) == 5


async def test_a_symbol_that_no_exchange_lists_is_reported_with_its_near_matches(tmp_path: Path) -> None:
    async with running(tmp_path, WADM_SYMBOLS=("ETHUSDX",)) as (runtime, _):
        with anyio.fail_after(15):
            error = await runtime.failed()
        assert isinstance(error, SettingError)
        assert str(error).startswith("WADM_SYMBOLS=ETHUSDX: no such symbol at binance (spot). Nearest: ETHUSDT")


async def test_a_symbol_that_was_delisted_does_not_keep_the_others_from_being_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    delisted = Instrument("binance", "spot", "ETHUSDT")
    async with running(tmp_path, WADM_SYMBOLS=("BTCUSDT", "ETHUSDT")) as (runtime, simulator):
        with anyio.fail_after(15):
            await simulator.subscribed(*delisted)
        await simulator.push(*delisted, [(now_ms(), "3000.5", "0.1", "BUY")])
        await until(lambda: runtime.recorded == 1)
    async with (
        Simulator(instruments=[SPOT], manual=True) as simulator,
        Runtime(settings_for(tmp_path, simulator, WADM_SYMBOLS=("BTCUSDT", "ETHUSDT"))) as runtime,
    ):
        with anyio.fail_after(15):
            await simulator.subscribed(*SPOT)
        await push(simulator)
        await until(lambda: runtime.recorded == 1)
        await until(lambda: "symbol.delisted" in [record.getMessage() for record in caplog.records])


async def test_a_symbol_that_was_recorded_at_an_exchange_that_is_not_configured_is_refused_where_no_other_lists_it(tmp_path: Path) -> None:
    bybit = Instrument("bybit", "spot", "ETHUSDT")
    async with running(tmp_path, WADM_EXCHANGES=("bybit",), WADM_SYMBOLS=("ETHUSDT",)) as (runtime, simulator):
        with anyio.fail_after(15):
            await simulator.subscribed(*bybit)
        await simulator.push(*bybit, [(now_ms(), "3000.5", "0.1", "BUY")])
        await until(lambda: runtime.recorded == 1)
    async with (
        Simulator(instruments=[SPOT], manual=True) as simulator,
        Runtime(settings_for(tmp_path, simulator, WADM_SYMBOLS=("ETHUSDT",))) as runtime,
    ):
        with anyio.fail_after(15):
            error = await runtime.failed()
        assert str(error).startswith("WADM_SYMBOLS=ETHUSDT: no such symbol at binance (spot)")


async def test_a_symbol_that_one_exchange_lists_is_followed_there(tmp_path: Path) -> None:
    both = {"WADM_EXCHANGES": ("binance", "bybit"), "WADM_SYMBOLS": ("BNBUSDT",)}
    async with running(tmp_path, **both) as (runtime, simulator):
        with anyio.fail_after(15):
            await simulator.subscribed("binance", "spot", "BNBUSDT")
        await until(lambda: runtime.followed == [Instrument("binance", "spot", "BNBUSDT")])


async def test_an_exchange_that_does_not_answer_is_reported_and_its_stored_listings_are_used(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, simulator):
        with anyio.fail_after(15):
            await simulator.subscribed(*SPOT)
    async with running(tmp_path, WADM_BINANCE_SPOT_REST="http://127.0.0.1:1") as (runtime, simulator):
        with anyio.fail_after(15):
            await simulator.subscribed(*SPOT)
        await push(simulator)
        await until(lambda: runtime.recorded == 1)
    async with running(tmp_path / "new", WADM_BINANCE_SPOT_REST="http://127.0.0.1:1") as (runtime, _):
        await until(lambda: "binance spot listings" in runtime.health.parts)
        await until(lambda: runtime.health.parts["binance spot listings"].state is State.DOWN)
        assert not runtime.health.ready


async def test_a_part_that_fails_is_reported_and_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([RuntimeError("a bug")])

    async def fail_once(self: object) -> None:
        for error in failures:
            raise error
        await anyio.sleep_forever()

    monkeypatch.setattr("wadm_mcp.collection.live.collector.Collector.run", fail_once)
    async with running(tmp_path) as (runtime, _):
        await until(lambda: runtime.health.counts["parts.restarted"] == 1)
        assert runtime.health.parts["binance spot collector 1"].detail == "failed (RuntimeError) and is being restarted"
        await until(lambda: "binance spot collector 1" not in runtime.health.parts)


async def test_an_unusable_store_ends_the_runtime_with_an_error_that_names_it(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "wadm.sqlite")) as database:
        database.execute("CREATE TABLE somebody_elses (x)")
        database.commit()
    async with running(tmp_path) as (runtime, _):
        with anyio.fail_after(15):
            error = await runtime.failed()
        assert isinstance(error, StoreError)
        assert "wadm.sqlite" in str(error)


async def test_the_error_names_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with running(tmp_path / "file" / "data") as (runtime, _):
        with anyio.fail_after(15):
            assert "file/data" in str(await runtime.failed())


async def test_either_of_two_bybit_connections_may_end_without_a_gap(tmp_path: Path) -> None:
    bybit = Instrument("bybit", "spot", "BTCUSDT")
    async with running(tmp_path, WADM_EXCHANGES=("bybit",)) as (runtime, simulator):
        await until(lambda: simulator.connections("bybit", "spot") == 2)

        async def trade_until(condition: Callable[[], bool]) -> None:
            with anyio.fail_after(20):
                while not condition():
                    await simulator.push("bybit", "spot", "BTCUSDT", [(now_ms(), "61000.5", "0.1", "SELL")])
                    await anyio.sleep(0.02)

        await trade_until(lambda: runtime.health.counts["trades.repeated"] >= 3)
        for number in (0, 1):
            simulator._venue("bybit", "spot").members("spot")[number].drop()
            await trade_until(lambda: simulator.connections("bybit", "spot") == 2)
            repeated = runtime.health.counts["trades.repeated"]
            await trade_until(lambda repeated=repeated: runtime.health.counts["trades.repeated"] >= repeated + 3)
        assert runtime.health.parts[str(bybit)].state is State.OK
        spans = await runtime.view.spans(bybit, Window(0, now_ms() + 1))
        recorded = Window(spans[0].start, max(span.end for span in spans))
        assert judge(spans, recorded, now_ms()).gaps == ()
        assert simulator.connections("bybit", "spot") == 2


async def test_one_bybit_connection_is_opened_if_the_settings_ask_for_one(tmp_path: Path) -> None:
    async with running(tmp_path, WADM_EXCHANGES=("bybit",), WADM_BYBIT_CONNECTIONS=1) as (_, simulator):
        with anyio.fail_after(15):
            await simulator.subscribed("bybit", "spot", "BTCUSDT")
        await anyio.sleep(2.5)
        assert simulator.connections("bybit", "spot") == 1


async def test_a_symbol_that_only_one_exchange_lists_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = [Instrument("binance", "spot", "BTCUSDT"), Instrument("binance", "spot", "ETHUSDT"), Instrument("bybit", "spot", "BTCUSDT")]
    async with Simulator(instruments=known, manual=True) as simulator:
        settings = settings_for(tmp_path, simulator, WADM_SYMBOLS=("BTCUSDT", "ETHUSDT"), WADM_EXCHANGES=("binance", "bybit"))
        async with Runtime(settings):
            with anyio.fail_after(20):
                await simulator.subscribed("bybit", "spot", "BTCUSDT")
                await simulator.subscribed("binance", "spot", "ETHUSDT")
    warned = [record.__dict__["wadm_fields"] for record in caplog.records if record.getMessage() == "symbol.unknown"]
    assert [(each["exchange"], each["symbol"]) for each in warned] == [("bybit", "ETHUSDT")]


async def test_the_first_answer_names_a_configured_exchange_that_has_not_answered_yet(tmp_path: Path) -> None:
    both = {"WADM_EXCHANGES": ("binance", "bybit"), "WADM_BYBIT_REST": "http://127.0.0.1:1"}
    async with running(tmp_path, **both) as (runtime, simulator):
        answer = (await VOLUME_PROFILE.ask(runtime, {"symbol": "BTCUSDT", "window": "15m"})).answer
        assert answer["instrument"] == "all:spot:BTCUSDT"
        assert answer["coverage"]["ratio"] == 0
        assert answer["coverage"]["parts"]["bybit"]["gaps"][0][3] == "exchange_unreachable"
        with anyio.fail_after(15):
            await simulator.subscribed(*SPOT)
        markets = (await MARKETS.ask(runtime, {})).answer
        assert [row[:2] for row in markets["markets"]["rows"]] == [["binance", "spot"], ["bybit", "spot"]]
        alone = (await VOLUME_PROFILE.ask(runtime, {"symbol": "BTCUSDT", "exchange": "bybit"})).answer
        assert (alone["coverage"]["ratio"], alone["provisional"]) == (0, ["bybit:spot:BTCUSDT"])


@pytest.mark.parametrize(("shift", "at_start"), [(HOUR, True), (-3 * HOUR, False), (4 * DAY, True), (-40 * DAY, True), (400 * DAY, False)])
async def test_a_wrong_clock_deletes_nothing_and_loses_no_trade_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: int, at_start: bool
) -> None:
    monkeypatch.setattr(maintenance, "_EXPIRY_SECONDS", 0.1)
    ahead = 0
    async with running(tmp_path) as (runtime, simulator):
        with anyio.fail_after(15):
            await simulator.subscribed(*SPOT)
        await push(simulator, count=5)
        await until(lambda: runtime.recorded == 5)
    async with (
        Simulator(manual=True) as simulator,
        Runtime(settings_for(tmp_path, simulator), clock=Clock(lambda: now_ms() + ahead)) as runtime,
    ):

        async def traded(verdict: State) -> None:
            with anyio.fail_after(15):
                while runtime.health.parts["clock"].state is not verdict:
                    await push(simulator)
                    await anyio.sleep(0.2)

        ahead = shift if at_start else 0
        with anyio.fail_after(15):
            await simulator.subscribed(*SPOT)
        if not at_start:
            await traded(State.OK)
            ahead = shift
        await traded(State.DOWN)
        detail = runtime.health.parts["clock"].detail
        assert f"{'ahead of' if shift > 0 else 'behind'} binance" in detail
        assert not runtime.health.ready
        assert abs(runtime.view.clock() - now_ms()) < 1_000
        before = runtime.recorded
        await push(simulator, count=3)
        await until(lambda: runtime.recorded == before + 3)
        with anyio.fail_after(15):
            while runtime.waiting:
                await anyio.sleep(0.05)
        ahead = 0
        await traded(State.OK)
        recorded = runtime.recorded
    async with running(tmp_path) as (runtime, _):
        now = now_ms()
        assert len(await runtime.store.trades(SPOT, Window(now - HOUR, now + HOUR), limit=10_000)) >= recorded
        assert (await runtime.store.expired(SPOT)) == ((), (), ())
        assert all(span.end <= now for span in await runtime.store.spans(SPOT, Window(0, now + 500 * DAY)))
        assert all(bar.start <= now for bar in await runtime.store.order_flow(SPOT, Timeframe.M1, Window(0, now + 500 * DAY)))


@pytest.mark.parametrize("shift", [0, -3 * HOUR, 3 * HOUR])
async def test_a_process_that_stands_by_says_what_is_known_of_the_clock_that_its_answers_go_by(tmp_path: Path, shift: int) -> None:
    async with running(tmp_path) as (recorder, simulator):
        with anyio.fail_after(15):
            await simulator.subscribed(*SPOT)
        await push(simulator)
        await until(lambda: recorder.recorded == 1 and not recorder.waiting)
        async with Runtime(settings_for(tmp_path, simulator), clock=Clock(lambda: now_ms() + shift)) as standby:
            await until(lambda: standby.role == "standby" and "clock" in standby.health.parts)
            with anyio.fail_after(15):
                while (part := standby.health.parts["clock"]).detail.startswith("no exchange has confirmed") and shift <= 0:
                    await push(simulator)
                    await anyio.sleep(0.3)
            if shift < 0:
                assert part.state is State.DOWN
                assert "is 3 h behind binance" in part.detail
                assert abs(standby.view.clock() - now_ms()) < 10_000
            elif shift > 0:
                # What is older than now may only be late.
                assert part.detail.startswith("no exchange has confirmed this machine's clock yet")
            else:
                assert (part.state, part.detail) == (State.OK, "agrees with binance")


async def test_a_deleted_store_ends_recording_with_its_reason_and_what_was_in_it_is_not_claimed_afterwards(tmp_path: Path) -> None:
    async with running(tmp_path) as (runtime, simulator):
        with anyio.fail_after(15):
            await simulator.subscribed(*SPOT)
        await push(simulator, count=5)
        await until(lambda: runtime.recorded == 5 and not runtime.waiting)
        for file in tmp_path.glob("wadm.sqlite*"):
            file.unlink()
        await push(simulator, count=3)
        with anyio.fail_after(15):
            error = await runtime.failed()
        assert "wadm.sqlite was deleted or replaced while WADM was recording into it" in str(error)
        assert runtime.health.parts["store"].state is State.DOWN
    async with running(tmp_path) as (runtime, simulator):
        with anyio.fail_after(15):
            await simulator.subscribed(*SPOT)
        await until(lambda: not runtime.waiting)
        now = now_ms()
        stored = await runtime.store.trades(SPOT, Window(now - HOUR, now + HOUR), limit=100)
        covered = sum(span.last_seq - span.first_seq + 1 for span in await runtime.store.spans(SPOT, Window(now - HOUR, now + HOUR)))
        assert covered <= len(stored)


async def test_the_store_is_not_ok_before_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = threading.Event()
    open_now = SqliteStore._open

    def slowly(self: SqliteStore) -> None:
        opened.wait(15)
        open_now(self)

    monkeypatch.setattr(SqliteStore, "_open", slowly)
    monkeypatch.setattr(runtime_module, "_RECORD_SECONDS", 0.1)
    async with running(tmp_path) as (runtime, simulator):
        states: list[State] = []
        report = runtime.health.report

        def watched(part: str, state: State, detail: str = "") -> None:
            states.extend([state] if part == "store" else [])
            report(part, state, detail)

        monkeypatch.setattr(runtime.health, "report", watched)
        with anyio.fail_after(15):
            await simulator.subscribed(*SPOT)
        await until(lambda: "journal" in runtime.health.parts)
        # More turns of the writer than it takes to report the store.
        await anyio.sleep(0.6)
        assert State.OK not in states
        assert (await MARKETS.ask(runtime, {})).answer["store"] == "unreachable"
        opened.set()
        await until(lambda: State.OK in states)
