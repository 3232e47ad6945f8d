from __future__ import annotations

import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import anyio
import msgspec
import pytest

from tests.end_to_end.process import COMMAND, environment
from tests.market import NOON, SPOT, ManualClock, listing, trade
from tests.recording import RETENTION, Recording, recording
from wadm_mcp.audit import Audited, Auditor, ExchangeFigures, HourlyAudit
from wadm_mcp.clock import Clock, now_ms
from wadm_mcp.collection.recording.journal import Journal
from wadm_mcp.collection.recording.maintenance import Maintenance
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.collection.recording.rollup import Rollup
from wadm_mcp.collection.recording.writer import Writer
from wadm_mcp.coverage.spans import Basis, Span
from wadm_mcp.errors import ExchangeError
from wadm_mcp.exchanges.exchange import Candle
from wadm_mcp.health import Health, State
from wadm_mcp.model import HOUR, MINUTE, Instrument, Listing, Scale, Timeframe, Trade, TradeType, Window, parse_decimal
from wadm_mcp.simulator.listings import steps_of
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.simulator.tape import MARKET_PRINTS
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Derived
from wadm_mcp.tape import Tape

pytestmark = pytest.mark.anyio

TEN = Window(NOON, NOON + 10 * MINUTE)


def minute(start: int, count: int = 3, volume: int = 300, bought: int = 200) -> Candle:
    """A candle of one minute of Binance, at five decimals."""
    return Candle(start, volume, 5, count, bought)


async def recorded(r: Recording) -> None:
    """Ten minutes of three trades each."""
    for number in range(10):
        first = 3 * number + 1
        await r.trade(
            trade(first, r.clock.now()),
            trade(first + 1, r.clock.now() + 5, quantity=100, side="SELL"),
            trade(first + 2, r.clock.now() + 59_000),
        )
        r.clock.pass_minutes(1)
        await r.write()
    await r.trade(trade(31, r.clock.now() + 1))
    r.clock.pass_minutes(5)
    await r.write()


async def audited(r: Recording, figures: ExchangeFigures | None) -> Audited:
    return await Auditor(r.store, RETENTION, r.clock.now).audit(listing(), TEN, figures)


ALL = ExchangeFigures([minute(start) for start in range(TEN.start, TEN.end, MINUTE)], {})


async def test_a_tape_that_agrees_with_the_exchange_has_no_difference(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        await recorded(r)
        found = await audited(r, ALL)
        # Other trades of the first trade's millisecond may be missing, so its minute is not covered.
        assert (found.minutes, found.compared, found.recomputed, found.differences) == (10, 9, 9, ())


@pytest.mark.parametrize(
    ("candle", "says"),
    [
        (minute(NOON + MINUTE, volume=301, bought=200), "volume is 0.003, the exchange says 0.00301"),
        (minute(NOON + MINUTE, count=4), "trade_count is 3, the exchange says 4"),
        (minute(NOON + MINUTE, bought=100), "buy_volume is 0.002, the exchange says 0.001"),
    ],
)
async def test_a_minute_that_differs_from_the_exchange_is_reported(tmp_path: Path, candle: Candle, says: str) -> None:
    async with recording(tmp_path) as r:
        await recorded(r)
        found = await audited(r, ExchangeFigures([candle], {}))
        assert [str(each) for each in found.differences] == [f"binance:spot:BTCUSDT 1m 2026-06-01T12:01:00Z: {says}"]


async def test_a_candle_of_bybit_with_volume_alone_is_compared_by_volume(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        await recorded(r)
        assert (await audited(r, ExchangeFigures([Candle(NOON + MINUTE, 3_000, 6)], {}))).differences == ()
        assert len((await audited(r, ExchangeFigures([Candle(NOON + MINUTE, 3_001, 6)], {}))).differences) == 1


async def test_a_stored_bar_that_is_not_the_sum_of_its_trades_is_reported_in_every_figure(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        await recorded(r)
        (row,) = await r.store.order_flow(SPOT, Timeframe.M1, Window(NOON + 2 * MINUTE, NOON + 3 * MINUTE))
        wrong = msgspec.structs.replace(row.bar, buy_volume=row.bar.buy_volume + 7)
        await r.store.derive(Derived(order_flow=[msgspec.structs.replace(row, bar=wrong, revision=row.revision + 1)]))
        figures = {(each.timeframe, each.figure) for each in (await audited(r, ALL)).differences}
        assert (Timeframe.M1, "buy_volume") in figures
        assert (Timeframe.M1, "cumulative_delta") in figures
        assert (Timeframe.M1, "volume") in figures


async def test_minutes_that_are_not_covered_are_not_compared(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        await recorded(r)
        wrong = ExchangeFigures(
            [minute(NOON, count=99), *(minute(start, count=99) for start in range(NOON + 20 * MINUTE, NOON + 30 * MINUTE, MINUTE))], {}
        )
        assert (await audited(r, wrong)).differences == ()


async def test_the_exchanges_first_id_of_an_hour_and_the_one_before_it_must_be_covered(tmp_path: Path) -> None:
    async with recording(tmp_path, ManualClock(NOON - 5 * MINUTE)) as r:
        await recorded(r)
        window = Window(NOON - 4 * MINUTE, NOON + 4 * MINUTE)
        auditor = Auditor(r.store, RETENTION, r.clock.now)
        assert (await auditor.audit(listing(), window, ExchangeFigures([], {NOON: 16}))).differences == ()
        difference, *_ = (await auditor.audit(listing(), window, ExchangeFigures([], {NOON: 90}))).differences
        assert str(difference) == "binance:spot:BTCUSDT 1h 2026-06-01T12:00:00Z: id is not recorded, the exchange says 90"


async def test_each_closed_hour_is_audited_once_and_reported_to_health(tmp_path: Path) -> None:
    asked: list[Window] = []

    async def fetch_figures(_: Listing, window: Window) -> ExchangeFigures:
        asked.append(window)
        if len(asked) == 1:
            raise ExchangeError("away")
        return ExchangeFigures([minute(start, count=4) for start in range(window.start, window.end, MINUTE)], {})

    async with recording(tmp_path) as r:
        await recorded(r)
        r.clock.at = NOON + HOUR + 6 * MINUTE
        audit = HourlyAudit(Auditor(r.store, RETENTION, r.clock.now), lambda: [listing()], fetch_figures, r.health, r.clock.now)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("wadm_mcp.audit._POLL_SECONDS", 0.01)
            with anyio.fail_after(10):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(audit.run)
                    while "audit" not in r.health.parts:
                        await anyio.sleep(0.01)
                    await anyio.sleep(0.1)
                    tasks.cancel_scope.cancel()
        assert asked == [Window(NOON + MINUTE, NOON + 10 * MINUTE)] * 2
        part = r.health.parts["audit"]
        assert part.state is State.OK
        assert part.detail.startswith("9 differences, the last: binance:spot:BTCUSDT 1m")
        assert (r.health.counts["audit.minutes"], r.health.counts["audit.differences"]) == (9, 9)


INSTRUMENTS = [Instrument(exchange, market, "BTCUSDT") for exchange in ("binance", "bybit") for market in ("spot", "linear")]


def ledger(simulator: Simulator, instrument: Instrument, window: Window) -> list[Trade]:
    """The trades of the simulated exchange, as a recorder would record them."""
    steps, tape = steps_of(instrument), simulator.tape(instrument)
    rows: list[tuple[int, int, str, str, str, bool, int]] = []
    if instrument[:2] == ("binance", "linear"):
        for one in tape.aggregates(window.start, window.end):
            rows.append((one.time, one.number, str(one.number), one.price, one.quantity, one.buy, one.last - one.first + 1))
    else:
        for one in tape.prints(window.start, window.end):
            if one.kind in MARKET_PRINTS:
                rows.append((one.time, one.seq, one.trade_id, one.price, one.quantity, one.buy, 1))
    trades: list[Trade] = []
    for at, seq, trade_id, price, quantity, buy, fills in rows:
        price_at, decimals = parse_decimal(price, steps.price_decimals)
        size, places = parse_decimal(quantity, steps.quantity_decimals)
        side = TradeType.BUY if buy else TradeType.SELL
        trades.append(Trade(instrument, at, seq, trade_id, price_at, size, side, fills, Scale(decimals, places)))
    return trades


async def record(folder: Path, simulator: Simulator, window: Window) -> None:
    """Write a store in which a window of every instrument is covered and derived."""
    async with SqliteStore(folder / "wadm.sqlite") as store, Journal(folder / "journal", 1 << 30) as journal:
        health, clock = Health(now_ms), Clock(monotonic=lambda: 0.0)
        recorder = Recorder(Tape(), health, clock)
        rollup = Rollup(store, health, clock, RETENTION.trades)
        writer = Writer(recorder, journal, store, health)
        maintenance = Maintenance(recorder, writer, rollup, store, health, RETENTION, clock)
        for instrument in INSTRUMENTS:
            trades = ledger(simulator, instrument, window)
            exact = instrument.exchange == "binance"
            span = Span(window.start, window.end, trades[0].seq, trades[-1].seq, Basis.EXACT if exact else Basis.OBSERVED)
            await store.write(trades, [(instrument, span)])
            listed = Listing(instrument, Decimal(1).scaleb(-trades[0].scale.price), Decimal(1).scaleb(-trades[0].scale.quantity))
            await store.save_listings([listed])
            await maintenance.resume(recorder.start(listed, has_gapless_ids=exact))
        await maintenance.roll_up()
        assert await store.dirty_minutes() == []


async def test_the_command_reports_no_differences_and_exits_with_1_once_a_stored_figure_is_wrong(tmp_path: Path) -> None:
    closed = now_ms() - now_ms() % MINUTE - MINUTE
    window = Window(closed - 6 * MINUTE, closed)
    async with Simulator(seed=3, instruments=INSTRUMENTS) as simulator:
        await record(tmp_path, simulator, window)
        urls = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
        command = [*COMMAND, "audit", "--from", str(window.start), "--to", str(window.end)]

        async def audit(*more: str) -> tuple[int, str]:
            with anyio.fail_after(60):
                ended = await anyio.run_process([*command, *more], env=environment(tmp_path, **urls), check=False)
            assert b"Traceback" not in ended.stderr
            return ended.returncode, (ended.stdout + ended.stderr).decode()

        status, output = await audit()
        assert (status, output.splitlines()[-1]) == (0, "no differences"), output
        assert [line.split()[1:] for line in output.splitlines() if line.startswith(("binance", "bybit"))] == [["6", "6", "6", "0"]] * 4
        with closing(sqlite3.connect(tmp_path / "wadm.sqlite", isolation_level=None)) as db:
            db.execute("DELETE FROM trades WHERE instrument = 1 AND timestamp = (SELECT max(timestamp) FROM trades WHERE instrument = 1)")
        status, output = await audit("--exchange", "binance", "--market", "spot")
        assert status == 1
        assert "its trades give" in output
        status, output = await audit("--symbol", "ETHUSDT")
        assert status == 2
        assert output.strip().startswith("wadm-mcp: no recorded instrument matches")
