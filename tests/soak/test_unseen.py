"""Trades that every connection loses while all seems to be well: only the exchange's candles show that they are missing."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest

from tests.soak.deployment import SEED, SOAK
from tests.soak.verdict import ledger
from wadm_mcp.clock import Clock, now_ms
from wadm_mcp.coverage.judge import judge
from wadm_mcp.coverage.spans import GapReason
from wadm_mcp.model import HOUR, MINUTE, SECOND, Instrument, Window
from wadm_mcp.runtime import Runtime
from wadm_mcp.settings import read_settings
from wadm_mcp.simulator.chaos import Chaos
from wadm_mcp.simulator.fault_plan import Fault, Kind
from wadm_mcp.simulator.simulator import Simulator

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not SOAK, reason="takes three minutes; run with WADM_SOAK=1")]

BYBIT = [Instrument("bybit", market, "BTCUSDT") for market in ("spot", "linear")]
LINEAR = Instrument("binance", "linear", "BTCUSDT")


async def test_the_hourly_audit_makes_gaps_of_the_minutes_that_lost_trades_and_of_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wadm_mcp.audit._SETTLE_MS", 5 * SECOND)
    monkeypatch.setattr("wadm_mcp.audit._POLL_SECONDS", 1.0)
    # The clock of exchanges and recorder: two minutes and 20 seconds before the end of an hour.
    hour = Window(now_ms() // HOUR * HOUR, now_ms() // HOUR * HOUR + HOUR)
    shift = hour.end - 140 * SECOND - now_ms()

    def clock() -> int:
        return now_ms() + shift

    lossy = hour.end - 2 * MINUTE
    chaos = Chaos(seed=SEED)
    chaos.begin()
    for instrument in BYBIT:
        at = chaos.now + (lossy + 15 * SECOND - clock()) / SECOND
        chaos.order(Fault(Kind.UNSEEN, at, 20.0, instrument.exchange, instrument.market))
    async with Simulator(seed=SEED, instruments=[*BYBIT, LINEAR], activity=4, clock=clock, wall=now_ms, faults=chaos) as simulator:
        settings = read_settings(
            {},
            overrides={
                "WADM_DATA_DIR": tmp_path,
                "WADM_HISTORY_HOURS": 0,
                "WADM_EXCHANGES": ("binance", "bybit"),
                "WADM_MARKETS": ("linear", "spot"),
                "WADM_SYMBOLS": ("BTCUSDT",),
                **{f"WADM_{name.upper()}": url for name, url in simulator.urls.items()},
            },
        )
        async with Runtime(settings, clock=Clock(clock, time.monotonic)) as runtime:
            with anyio.fail_after(240):
                while runtime.health.counts["audit.minutes"] < 2 * 3:
                    await anyio.sleep(1)
            counts = dict(runtime.health.counts)
            for instrument in BYBIT:
                lost = [one.at for one in ledger(simulator, instrument, lossy, hour.end) if one.trade_id in chaos.unseen]
                assert lost, instrument
                assert {at - at % MINUTE for at in lost} == {lossy}
                spans = await runtime.view.spans(instrument, Window(lossy, hour.end))
                gaps = judge(spans, Window(lossy, hour.end), clock()).gaps
                assert [(gap.start, gap.end, gap.reason) for gap in gaps] == [(lossy, lossy + MINUTE, GapReason.CANDLE_DIFFERS)]
            spans = await runtime.view.spans(LINEAR, Window(lossy, hour.end))
            assert judge(spans, Window(lossy, hour.end), clock()).gaps == ()
    print(f"{len(chaos.unseen)} trades lost unseen; {counts}")
    assert (counts["audit.gaps"], counts["audit.differences"]) == (2, 2)
