from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from tests.collection.test_listing_refresher import trading
from wadm_mcp.collection import market as market_module
from wadm_mcp.collection.recording.maintenance import Maintenance
from wadm_mcp.collection.recording.recorded_instrument import RecordedInstrument
from wadm_mcp.health import State
from wadm_mcp.model import Instrument

pytestmark = pytest.mark.anyio


async def test_connections_that_hand_over_end_one_after_the_other_once_a_quiet_instrument_is_heard_on_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(market_module, "_HANDOVER_SECONDS", 0.5)
    monkeypatch.setattr(market_module, "_STAGGER_SECONDS", 0.2)
    monkeypatch.setattr(market_module, "_CHECK_SECONDS", 0.1, raising=False)
    quiet, busy, dropped = every = [Instrument("bybit", "linear", symbol) for symbol in ("AUSDT", "BUSDT", "CUSDT")]
    async with trading(tmp_path, every, [each.symbol for each in every], WADM_BYBIT_CONNECTIONS=2) as one:
        for instrument in every:
            await one.until_state(instrument, State.OK)
        await one.until(lambda: one.runtime.health.counts["trades.repeated"] > 20)
        one.stopped.add(quiet)
        manager = one.runtime._subscriptions
        assert manager is not None
        opened = one.simulator._venue("bybit", "linear").connections
        manager._markets[0].stop({dropped})
        await one.until(lambda: one.simulator._venue("bybit", "linear").connections == opened + 2)
        with anyio.move_on_after(1.5):
            await one.until(lambda: one.simulator.connections("bybit", "linear") < 3)
        assert one.simulator.connections("bybit", "linear") == 3
        assert one.runtime.health.parts[str(quiet)].state is State.OK
        one.stopped.discard(quiet)
        await one.until(lambda: one.simulator.connections("bybit", "linear") == 2)
        assert await one.gaps((quiet, busy)) == {}


async def test_what_is_dropped_or_relisted_while_the_store_is_slow_takes_effect_on_the_first_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, dropped = every = [Instrument("binance", "spot", symbol) for symbol in ("AUSDT", "BUSDT")]
    resuming, resume_now = anyio.Event(), anyio.Event()

    async def resume(_maintenance: Maintenance, _recorded: RecordedInstrument) -> None:
        resuming.set()
        await resume_now.wait()

    monkeypatch.setattr(Maintenance, "resume", resume)
    async with trading(tmp_path, every, [each.symbol for each in every]) as one:
        await resuming.wait()
        manager = one.runtime._subscriptions
        assert manager is not None
        market = manager._markets[0]
        finer = replace(market.listings[0], tick=Decimal("0.00001"))
        manager._stop_following(market, dropped)
        market.relist(finer)
        resume_now.set()
        await one.until_state(kept, State.OK)
        (group,) = market._groups
        assert group.listings == [finer]
