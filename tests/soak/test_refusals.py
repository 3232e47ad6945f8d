"""A start while the exchanges refuse this address, and a repair without Binance's trades by id: for minutes, at the real pauses."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from tests.soak.deployment import INSTRUMENTS, SEED, SOAK, deployment
from tests.soak.verdict import exact, ledger, ms
from wadm_mcp.model import MINUTE
from wadm_mcp.simulator.chaos import Chaos
from wadm_mcp.simulator.fault_plan import Fault, Kind, plan

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not SOAK, reason="takes a quarter of an hour; tests/test_refused_hosts.py is its short form"),
]

MARKETS = [(exchange, market) for exchange in ("binance", "bybit") for market in ("spot", "linear")]
BLOCKED_SECONDS = 30.0
AWAY_SECONDS = 660.0
"""Bybit is left alone for ten minutes after it refused."""


async def test_what_is_recorded_while_every_rest_host_is_refused_is_exact_and_repaired_when_they_answer(tmp_path: Path) -> None:
    chaos = Chaos([Fault(Kind.BLOCKED, -1.0, BLOCKED_SECONDS, *market) for market in MARKETS], seed=SEED)
    chaos.begin()
    async with deployment(tmp_path, faults=chaos, activity=4.0) as one:
        wadm = one.wadm(WADM_HISTORY_HOURS="0")
        await wadm.start()
        await one.live(wadm, within=30)
        markets = (await wadm.served.get("/api/markets"))["provisional"]
        assert len(markets) == len(one.simulator.instruments)
        with anyio.fail_after(AWAY_SECONDS):
            while "provisional" in await wadm.served.get("/api/markets"):
                await anyio.sleep(5)
        await one.settled(wadm)
        for instrument, found in (await one.check(wadm)).items():
            assert found.lost == 0, instrument
        assert "Traceback" not in wadm.log
        assert await wadm.stop() == 0


async def test_gaps_are_repaired_from_aggregates_where_binance_has_no_trades_by_id(tmp_path: Path) -> None:
    cuts = [fault for fault in plan(SEED, 60.0, every=1.6, kinds=(Kind.DROP, Kind.LOSE)) if fault.exchange == "binance"]
    chaos = Chaos([Fault(Kind.NO_HISTORY, -1.0, 3_600, "binance", "spot"), *cuts], seed=SEED)
    instruments = [instrument for instrument in INSTRUMENTS if instrument[:2] == ("binance", "spot")]
    async with deployment(tmp_path, instruments=instruments, faults=chaos, activity=4.0) as one:
        wadm = one.wadm(WADM_HISTORY_HOURS="0")
        await wadm.start()
        chaos.begin()
        await anyio.sleep(60)
        await one.live(wadm)
        await one.settled(wadm)
        for instrument in instruments:
            # The first minute began before the recording, and the last one has no end: the market stopped in it.
            start = one.clock.began - one.clock.began % MINUTE + MINUTE
            end = (one.clock.stopped or 0) // MINUTE * MINUTE
            question = {**instrument._asdict(), "start": start, "end": end}
            flow = await wadm.served.get("/api/order-flow", **question, timeframe="1m")
            raw = await wadm.served.get("/api/trades", **question, limit=1)
            assert (flow["coverage"]["ratio"], len(flow["bars"]["rows"])) == (1, (end - start) // MINUTE)
            # Single trades are missing where only aggregates were left, but no figure is.
            assert {gap[3] for gap in raw["coverage"]["gaps"]} == {"without_rows"}
            columns = flow["bars"]["columns"]
            traded = ledger(one.simulator, instrument, start, end)
            for row in flow["bars"]["rows"]:
                bar, opened = dict(zip(columns, row, strict=True)), ms(row[0])
                inside = [trade for trade in traded if opened <= trade.at < opened + MINUTE]
                assert exact(bar["volume"]) == sum(trade.quantity for trade in inside)
                assert exact(bar["buy_volume"]) == sum(trade.quantity for trade in inside if trade.buys)
                prices = [trade.price for trade in inside]
                assert [exact(bar[name]) for name in ("open", "high", "low", "close")] == [prices[0], max(prices), min(prices), prices[-1]]
                assert bar["trade_count"] == len(inside)
        assert sum(path.endswith("historicalTrades") for _, _, path, _ in chaos.requests) == 1
        assert await wadm.stop() == 0
