from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest

from tests.end_to_end.process import COMMAND, environment
from tests.market import BYBIT, NOON, SPOT, ManualClock, listing, trade
from tests.recording import RETENTION, Recording, recording
from tests.venues import simulated_venue
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.audit import Audited, Auditor, ExchangeFigures, HourlyAudit, exchange_figures
from wadm_mcp.clock import Clock, now_ms
from wadm_mcp.collection.recording.journal import Journal
from wadm_mcp.collection.recording.maintenance import Maintenance
from wadm_mcp.collection.recording.minute import partial_footprints
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.collection.recording.rollup import Rollup
from wadm_mcp.collection.recording.writer import Writer
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.coverage import by_connection
from wadm_mcp.coverage.judge import judge, uncovered
from wadm_mcp.coverage.spans import Basis, GapReason, Span
from wadm_mcp.errors import ExchangeError
from wadm_mcp.exchanges.exchange import Aggregate, Candle, Trades, Unreadable, Venue
from wadm_mcp.exchanges.registry import find_exchange
from wadm_mcp.health import Health, State
from wadm_mcp.model import HOUR, MINUTE, Instrument, Listing, Scale, Timeframe, Trade, TradeType, Window, parse_decimal
from wadm_mcp.simulator.faults import Faults, Reply
from wadm_mcp.simulator.listings import steps_of
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.simulator.tape import MARKET_PRINTS
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import WHOLE, Derived, PartialFootprint
from wadm_mcp.tape import Tape

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few trades have long pauses, and nothing is lost in a silence here."""
    monkeypatch.setattr(by_connection, "SHORTEST_SILENCE", HOUR)


BINANCE, BYBIT_EXCHANGE = find_exchange("binance"), find_exchange("bybit")
TEN = Window(NOON, NOON + 10 * MINUTE)


def minute(start: int, count: int = 3, volume: int = 300, bought: int = 200) -> Candle:
    """A candle of one minute of Binance, at five decimals."""
    return Candle(start, volume, 5, count, bought)


async def recorded(r: Recording) -> None:
    """Ten minutes of three trades each."""
    for number in range(10):
        first = 3 * number + 1
        await r.trade(
            trade(first, r.clock.now(), instrument=r.instrument),
            trade(first + 1, r.clock.now() + 5, quantity=100, side="SELL", instrument=r.instrument),
            trade(first + 2, r.clock.now() + 59_000, instrument=r.instrument),
        )
        r.clock.pass_minutes(1)
        await r.write()
    await r.trade(trade(31, r.clock.now() + 1, instrument=r.instrument))
    r.clock.pass_minutes(5)
    await r.write()


async def audited(r: Recording, figures: ExchangeFigures | None, window: Window = TEN) -> Audited:
    return await Auditor(r.store, RETENTION, r.clock.now).audit(listing(r.instrument), window, figures)


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
    async with recording(tmp_path, instrument=BYBIT) as r:
        await recorded(r)
        assert (await audited(r, ExchangeFigures([Candle(NOON + MINUTE, 3_000, 6)], {}))).differences == ()
        assert len((await audited(r, ExchangeFigures([Candle(NOON + MINUTE, 3_001, 6)], {}))).differences) == 1


def bybit_candles(**volumes: int) -> ExchangeFigures:
    """Candles of the minutes 12:01 to 12:09: 300 each but for those that are named, `m3=301`."""
    return ExchangeFigures([Candle(NOON + number * MINUTE, volumes.get(f"m{number}", 300), 5) for number in range(1, 10)], {})


@pytest.mark.parametrize(
    ("volumes", "differing", "incomplete"),
    [
        ({}, [], []),
        ({"m3": 301}, [3], [3]),
        ({"m3": 299}, [3], []),
        ({"m3": 305, "m4": 295}, [], []),
        ({"m3": 295, "m4": 305}, [], []),
        ({"m3": 305, "m4": 296}, [3, 4], [3]),
        ({"m3": 305, "m5": 295}, [3, 5], [3]),
        ({"m9": 305}, [9], [9]),
    ],
)
async def test_where_ids_do_not_count_a_minute_with_less_than_its_candle_is_incomplete(
    tmp_path: Path, volumes: dict[str, int], differing: list[int], incomplete: list[int]
) -> None:
    async with recording(tmp_path, instrument=BYBIT) as r:
        await recorded(r)
        found = await audited(r, bybit_candles(**volumes))
        assert [(each.start - NOON) // MINUTE for each in found.differences] == differing
        assert [(each.start - NOON) // MINUTE for each in found.incomplete] == incomplete


async def test_a_boundary_is_found_over_the_edge_of_the_window(tmp_path: Path) -> None:
    async with recording(tmp_path, instrument=BYBIT) as r:
        await recorded(r)
        for window in (Window(NOON, NOON + 4 * MINUTE), Window(NOON + 4 * MINUTE, NOON + 10 * MINUTE)):
            assert (await audited(r, bybit_candles(m3=305, m4=295), window)).differences == ()
            assert len((await audited(r, bybit_candles(m3=305, m4=296), window)).differences) == 1
        needed = await Auditor(r.store, RETENTION, r.clock.now).figures_window(BYBIT, Window(NOON + 4 * MINUTE, NOON + 5 * MINUTE))
        assert needed == Window(NOON + 3 * MINUTE, NOON + 6 * MINUTE)


async def test_where_ids_count_no_minute_is_incomplete(tmp_path: Path) -> None:
    async with recording(tmp_path) as r:
        await recorded(r)
        found = await audited(r, ExchangeFigures([minute(NOON + MINUTE, volume=305)], {}))
        assert (len(found.differences), found.incomplete) == (1, ())


LINEAR = Instrument("binance", "linear", "BTCUSDT")
LISTED = listing(LINEAR, "0.1", "0.001")
MERGED = """
{"e":"aggTrade","E":1790046480070,"s":"BTCUSDT","a":1,"p":"80000.0","q":"2.000","nq":"2.000","f":90,"l":91,"T":1790046479990,"m":false,"st":1}
{"e":"aggTrade","E":1790046480580,"s":"BTCUSDT","a":2,"p":"80000.1","q":"0.300","nq":"0.300","f":100,"l":103,"T":1790046480500,"m":false,"st":1}
"""
"""The first has two fills of 1.000, of which the second is in the next minute. The second has three: one id of its four was burnt."""
MERGED_AT = 1790046420000
FLAT = '[{start},"80000.0","80000.0","80000.0","80000.0","0.000",{end},"0.0",0,"0.000","0.0","0"]'
THEIR_CANDLES = f"""[{FLAT.format(start=MERGED_AT - MINUTE, end=MERGED_AT - 1)},
[1790046420000,"80000.0","80000.0","80000.0","80000.0","1.000",1790046479999,"80000.0",1,"1.000","80000.0","0"],
[1790046480000,"80000.0","80000.1","80000.0","80000.1","1.300",1790046539999,"104000.03",4,"1.300","104000.03","0"]]"""


async def merged(folder: Path, trades: Sequence[Trade], clock: ManualClock) -> Audited:
    """The audit of two minutes of USD-M in which these trades were recorded, and of the quiet minute before them."""
    around = Window(MERGED_AT - MINUTE, MERGED_AT + 2 * MINUTE)
    span = Span(around.start - 1_000, around.end, 1, 2, Basis.EXACT)
    async with derived(folder, {LINEAR: (LISTED, trades, span)}) as store:
        figures = ExchangeFigures(BINANCE.read_candles(LISTED, THEIR_CANDLES.encode()), {})
        return await Auditor(store, RETENTION, clock.now).audit(LISTED, around, figures)


def merged_trades() -> list[Trade]:
    decoder = BINANCE.decoder("linear", [LISTED])
    messages = [decoder.decode(line) for line in MERGED.split()]
    return [trade for message in messages if isinstance(message, Trades) for trade in message.trades]


async def test_an_aggregate_that_reaches_into_the_next_minute_is_no_difference(tmp_path: Path) -> None:
    found = await merged(tmp_path, merged_trades(), ManualClock(MERGED_AT + HOUR))
    assert (found.compared, found.differences) == (3, ())


async def test_a_lost_aggregate_is_a_difference_although_others_reach_into_the_next_minute(tmp_path: Path) -> None:
    clock = ManualClock(MERGED_AT + HOUR)
    first, second = merged_trades()
    (difference,) = (await merged(tmp_path / "one", [first], clock)).differences
    at = "binance:linear:BTCUSDT 1m 2026-09-22"
    assert str(difference) == f"{at}T03:08:00Z: buy_volume is 1, the exchange says 1.3"
    (lost, after) = (await merged(tmp_path / "two", [second], clock)).differences
    assert str(lost) == f"{at}T03:07:00Z: buy_volume is 0, the exchange says 1"
    assert str(after) == f"{at}T03:08:00Z: buy_volume is 0.3, the exchange says 1.3"


async def test_where_single_trades_have_expired_the_volume_of_the_minute_limits_what_may_be_carried(tmp_path: Path) -> None:
    clock = ManualClock(MERGED_AT + RETENTION.trades + HOUR)
    first, second = merged_trades()
    found = await merged(tmp_path / "one", [first, second], clock)
    assert (found.compared, found.recomputed, found.differences) == (3, 0, ())
    differences = (await merged(tmp_path / "two", [second], clock)).differences
    assert [each.figure for each in differences] == ["buy_volume", "buy_volume"]


async def test_where_a_minute_has_no_single_trades_what_was_stored_together_limits_what_may_be_carried(tmp_path: Path) -> None:
    first, second = merged_trades()
    partials = partial_footprints(LINEAR, [Aggregate(first.seq, first.seq, first)])
    around = Window(MERGED_AT - MINUTE, MERGED_AT + 2 * MINUTE)
    span = Span(around.start - 1_000, around.end, 1, 2, Basis.EXACT, raw=False)
    async with derived(tmp_path, {LINEAR: (LISTED, [second], span)}, partials) as store:
        figures = ExchangeFigures(BINANCE.read_candles(LISTED, THEIR_CANDLES.encode()), {})
        found = await Auditor(store, RETENTION, ManualClock(MERGED_AT + HOUR).now).audit(LISTED, around, figures)
    assert (found.compared, found.differences) == (3, ())


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


async def audit_hour(r: Recording, fetch_figures: Callable[[Listing, Window], Awaitable[ExchangeFigures]]) -> None:
    """Run the hourly audit until it has reported, and a little longer."""
    auditor = Auditor(r.store, RETENTION, r.clock.now)

    def recorded() -> list[Listing]:
        # Called once a poll: time passes.
        r.clock.pass_seconds(1)
        return [listing(r.instrument)]

    audit = HourlyAudit(auditor, recorded, fetch_figures, r.recorder.mark_differing, r.health, r.clock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wadm_mcp.audit._POLL_SECONDS", 0.01)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(audit.run)
                while "audit" not in r.health.parts:
                    await anyio.sleep(0.01)
                await anyio.sleep(0.1)
                tasks.cancel_scope.cancel()


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
        await audit_hour(r, fetch_figures)
        assert asked == [Window(NOON + MINUTE, NOON + 10 * MINUTE)] * 2
        part = r.health.parts["audit"]
        assert part.state is State.OK
        assert part.detail.startswith("9 differences, the last: binance:spot:BTCUSDT 1m")
        assert (r.health.counts["audit.minutes"], r.health.counts["audit.differences"]) == (9, 9)


@pytest.mark.parametrize("changing", [False, True])
async def test_an_hour_that_cannot_be_audited_is_tried_again_after_pauses_that_double(tmp_path: Path, changing: bool) -> None:
    asked: list[float] = []
    over = anyio.Event()

    async with recording(tmp_path, instrument=BYBIT) as r:
        await recorded(r)
        began = r.clock.at = NOON + HOUR + 6 * MINUTE

        async def fetch_figures(_: Listing, __: Window) -> ExchangeFigures:
            asked.append((r.clock.at - began) / 1_000)
            if not changing:
                raise ExchangeError("away")
            # No two readings of the candles agree.
            return bybit_candles(m3=305 + len(asked))

        def polled() -> list[Listing]:
            r.clock.pass_seconds(30)
            if r.clock.at >= began + 58 * MINUTE:
                over.set()
            return [listing(BYBIT)]

        auditor = Auditor(r.store, RETENTION, r.clock.now)
        audit = HourlyAudit(auditor, polled, fetch_figures, r.recorder.mark_differing, r.health, r.clock)
        with pytest.MonkeyPatch.context() as patch:

            async def until_the_next_poll(_: float) -> None:
                await anyio.lowlevel.checkpoint()

            patch.setattr("wadm_mcp.audit.anyio.sleep", until_the_next_poll)
            with anyio.fail_after(20):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(audit.run)
                    await over.wait()
                    tasks.cancel_scope.cancel()
    assert asked == [30, 60, 120, 240, 480, 960, 1860, 2760]


async def test_a_candle_that_cannot_be_read_costs_its_own_minute_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def fetch_figures(_: Listing, window: Window) -> ExchangeFigures:
        starts = [start for start in range(window.start, window.end, MINUTE) if start != NOON + 4 * MINUTE]
        return ExchangeFigures([minute(start, count=4) for start in starts], {}, [Unreadable(3, NOON + 4 * MINUTE, "'' is no number")])

    async with recording(tmp_path) as r:
        await recorded(r)
        r.clock.at = NOON + HOUR + 6 * MINUTE
        await audit_hour(r, fetch_figures)
        assert (r.health.counts["audit.differences"], r.health.counts["audit.unreadable"]) == (8, 1)
    (line,) = [record for record in caplog.records if record.getMessage() == "audit.unreadable"]
    fields = {"instrument": SPOT, "minute": "2026-06-01T12:04:00Z", "reason": "'' is no number", "count": 1}
    assert vars(line)["wadm_fields"] == fields


class _SpoiledCandles(Faults):
    """The candle of one minute has no volume."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.requests = 0

    def answered(self, exchange: str, path: str, params: Mapping[str, str], reply: Reply) -> Reply:
        if "kline" in path:
            self.requests += 1
            body: Any = reply.body
            rows = body if isinstance(body, list) else body["result"]["list"]
            for row in rows:
                if int(row[0]) == self.start:
                    row[5] = ""
        return reply


@pytest.mark.parametrize("place", [0, 2, -1])
async def test_candles_are_read_to_the_end_of_the_window_though_one_of_them_cannot_be_read(place: int) -> None:
    closed = now_ms() - now_ms() % MINUTE - MINUTE
    window = Window(closed - 6 * MINUTE, closed)
    starts = list(range(window.start, window.end, MINUTE))
    faults = _SpoiledCandles(starts[place])
    async with Simulator(seed=3, instruments=INSTRUMENTS, faults=faults) as simulator, RestClient(proxied=False) as rest:
        for instrument in INSTRUMENTS:
            market = simulated_venue(simulator, instrument.exchange, instrument.market)
            with anyio.fail_after(20):
                figures = await exchange_figures(rest, market, listing(instrument), window)
            assert [candle.start for candle in figures.candles] == [start for start in starts if start != faults.start]
            assert [row.seq for row in figures.unreadable] == [faults.start]
    assert faults.requests == len(INSTRUMENTS)


async def test_a_minute_that_lacks_trades_is_a_gap_until_a_complete_source_covers_it(tmp_path: Path) -> None:
    third = NOON + 3 * MINUTE
    lost = trade(99, third + 30_000, quantity=5, instrument=BYBIT)

    async def fetch_figures(_: Listing, __: Window) -> ExchangeFigures:
        return bybit_candles(m3=305, m7=290)

    async def coverage() -> tuple[list[int], list[GapReason]]:
        """The gaps of the ten minutes in the store, as any process reads them, in figures and in single trades."""
        spans = await r.store.spans(BYBIT, TEN)
        found = [judge(spans, Window(NOON + MINUTE, TEN.end), r.clock.now(), raw=raw).gaps for raw in (False, True)]
        return [sum(gap.end - gap.start for gap in gaps) for gaps in found], [gap.reason for gap in found[0]]

    async with recording(tmp_path, instrument=BYBIT) as r:
        await recorded(r)
        r.clock.at = NOON + HOUR + 6 * MINUTE
        assert await coverage() == ([0, 0], [])
        await audit_hour(r, fetch_figures)
        await r.write()
        assert await coverage() == ([MINUTE, MINUTE], [GapReason.CANDLE_DIFFERS])
        assert (r.health.counts["audit.gaps"], r.health.counts["audit.differences"]) == (1, 2)
    async with recording(tmp_path, r.clock, BYBIT) as r:
        assert await coverage() == ([MINUTE, MINUTE], [GapReason.CANDLE_DIFFERS])
        assert uncovered(r.recorder[BYBIT].coverage.covered, Window(NOON + MINUTE, TEN.end)) == [Window(third, third + MINUTE)]
        trades = await r.store.trades(BYBIT, Window(third, third + MINUTE), limit=100)
        whole = Footprint(listing().scale)
        whole.add(*trades, lost)
        await r.recorder.record_imported(
            BYBIT, (), [PartialFootprint(BYBIT, third, WHOLE, WHOLE, whole)], Window(third, third + MINUTE), raw=True
        )
        await r.write()
        assert await coverage() == ([0, 0], [])
        assert (await audited(r, bybit_candles(m3=305))).differences == ()
    async with recording(tmp_path, r.clock, BYBIT) as r:
        assert await coverage() == ([0, 0], [])


async def test_a_minute_is_no_gap_before_two_readings_of_the_candles_agree(tmp_path: Path) -> None:
    readings = iter([bybit_candles(m3=305), bybit_candles(m3=304), bybit_candles()])

    async def fetch_figures(_: Listing, __: Window) -> ExchangeFigures:
        return next(readings)

    async with recording(tmp_path, instrument=BYBIT) as r:
        await recorded(r)
        r.clock.at = NOON + HOUR + 6 * MINUTE
        await audit_hour(r, fetch_figures)
        assert r.recorder[BYBIT].coverage.missing() == []
        assert (r.health.counts["audit.differences"], list(readings)) == (0, [])


async def test_nothing_is_marked_of_an_instrument_that_is_not_recorded_any_more(tmp_path: Path) -> None:
    async with recording(tmp_path, instrument=BYBIT) as r:
        r.recorder.stop(BYBIT)
        r.recorder.mark_differing(BYBIT, [NOON])
        assert r.recorder.take_batch().spans == []


async def test_trades_that_no_connection_delivered_are_found_by_the_exchanges_candles(tmp_path: Path) -> None:
    closed = now_ms() - now_ms() % MINUTE - MINUTE
    window = Window(closed - 4 * MINUTE, closed)
    instrument = Instrument("bybit", "linear", "BTCUSDT")
    async with Simulator(seed=3, instruments=[instrument]) as simulator, RestClient(proxied=False) as rest:
        venue = Venue(BYBIT_EXCHANGE, "linear", simulator.urls["bybit_ws"], simulator.urls["bybit_rest"], "")
        trades = ledger(simulator, instrument, window)
        unseen = [place for place, each in enumerate(trades) if window.start + MINUTE <= each.timestamp < window.start + 2 * MINUTE][::9]
        listed = Listing(instrument, Decimal("0.1"), Decimal("0.001"))
        span = Span(window.start, window.end, trades[0].seq, trades[-1].seq, Basis.OBSERVED)
        kept = [each for place, each in enumerate(trades) if place not in unseen]
        async with derived(tmp_path, {instrument: (listed, kept, span)}) as store:
            found = await Auditor(store, RETENTION, now_ms).audit(listed, window, await exchange_figures(rest, venue, listed, window))
    assert [each.start for each in found.incomplete] == [window.start + MINUTE]
    assert found.incomplete == found.differences


INSTRUMENTS = [Instrument(exchange, market, "BTCUSDT") for exchange in ("binance", "bybit") for market in ("spot", "linear")]


def ledger(simulator: Simulator, instrument: Instrument, window: Window) -> list[Trade]:
    """The trades of the simulated exchange, as a recorder would record them."""
    steps, tape = steps_of(instrument), simulator.tape(instrument)
    rows: list[tuple[int, int, str, str, str, bool, int]] = []
    if instrument[:2] == ("binance", "linear"):
        # An aggregate is published after its window has ended.
        for one in tape.aggregates(window.start, window.end + 100):
            if one.time not in window:
                continue
            rows.append((one.time, one.number, str(one.number), one.price, one.quantity, one.buy, one.last - one.first + 1))
    else:
        for one in tape.prints(window.start, window.end):
            if one.kind in MARKET_PRINTS:
                rows.append((one.time, one.seq, one.trade_id, one.price, one.quantity, one.buy, 1))
    trades: list[Trade] = []
    for at, seq, trade_id, price, quantity, buy, fills in rows:
        price_at, decimals = parse_decimal(price, steps.price_decimals)
        size, places = parse_decimal(quantity, steps.quantity_decimals)
        if not size:
            continue
        side = TradeType.BUY if buy else TradeType.SELL
        trades.append(Trade(instrument, at, seq, trade_id, price_at, size, side, fills, Scale(decimals, places)))
    return trades


@asynccontextmanager
async def derived(
    folder: Path, recorded: Mapping[Instrument, tuple[Listing, Sequence[Trade], Span]], partials: Sequence[PartialFootprint] = ()
) -> AsyncGenerator[SqliteStore]:
    """A store with these trades, partial footprints and spans of coverage, and the figures of them."""
    folder.mkdir(exist_ok=True)
    async with SqliteStore(folder / "wadm.sqlite") as store, Journal(folder / "journal", 1 << 30) as journal:
        health, clock = Health(now_ms), Clock(monotonic=lambda: 0.0)
        recorder = Recorder(Tape(), health, clock)
        rollup = Rollup(store, health, clock, RETENTION.trades)
        writer = Writer(recorder, journal, store, health)
        maintenance = Maintenance(recorder, writer, rollup, store, health, RETENTION, clock)
        for instrument, (listed, trades, span) in recorded.items():
            await store.write(trades, [(instrument, span)], partials)
            await store.save_listings([listed])
            await maintenance.resume(recorder.start(listed, has_gapless_ids=span.basis is Basis.EXACT))
        await maintenance.roll_up()
        assert await store.dirty_minutes() == []
        yield store


async def record(folder: Path, simulator: Simulator, window: Window) -> None:
    """Write a store in which a window of every instrument is covered and derived."""
    recorded: dict[Instrument, tuple[Listing, Sequence[Trade], Span]] = {}
    for instrument in INSTRUMENTS:
        trades = ledger(simulator, instrument, window)
        basis = Basis.EXACT if instrument.exchange == "binance" else Basis.OBSERVED
        span = Span(window.start, window.end, trades[0].seq, trades[-1].seq, basis)
        listed = Listing(instrument, Decimal(1).scaleb(-trades[0].scale.price), Decimal(1).scaleb(-trades[0].scale.quantity))
        recorded[instrument] = listed, trades, span
    async with derived(folder, recorded):
        pass


async def test_the_command_reports_no_differences_and_exits_with_1_once_a_stored_figure_is_wrong(tmp_path: Path) -> None:
    closed = now_ms() - now_ms() % MINUTE - MINUTE
    window = Window(closed - 6 * MINUTE, closed)
    faults = _SpoiledCandles(0)
    async with Simulator(seed=3, instruments=INSTRUMENTS, faults=faults) as simulator:
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
        faults.start = window.start + 2 * MINUTE
        status, output = await audit("--exchange", "bybit", "--market", "spot")
        assert "bybit:spot:BTCUSDT: 1 candles of its exchange cannot be read and were not compared, first" in output
        assert (status, output.splitlines()[-1]) == (
            1,
            "no differences, but 1 of 1 instruments could not be fully compared with the exchange",
        )
        with closing(sqlite3.connect(tmp_path / "wadm.sqlite", isolation_level=None)) as db:
            db.execute("DELETE FROM trades WHERE instrument = 1 AND timestamp = (SELECT max(timestamp) FROM trades WHERE instrument = 1)")
        status, output = await audit("--exchange", "binance", "--market", "spot")
        assert status == 1
        assert "its trades give" in output
        status, output = await audit("--symbol", "ETHUSDT")
        assert status == 2
        assert output.strip().startswith("wadm-mcp: no recorded instrument matches")
