"""Every simulated fault between the exchanges and WADM, at random times that a seed reproduces."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import anyio
import pytest

from tests.end_to_end.process import resident
from tests.soak.deployment import INSTRUMENTS, SEED, SOAK, deployment
from wadm_mcp.model import Instrument
from wadm_mcp.simulator.chaos import ON_ORDER, ON_SOCKETS, Chaos, Fault, Kind, plan

pytestmark = pytest.mark.anyio

SECONDS = float(os.environ.get("WADM_SOAK_SECONDS", "330")) if SOAK else 14.0
BEYOND_ASCII = Instrument("binance", "linear", "币安人生USDT")


async def test_covered_data_is_exact_under_all_faults_and_binance_is_repaired_completely(tmp_path: Path) -> None:
    # At the low rate of a short run a silence of seconds is usual.
    wanted = [kind for kind in Kind if SOAK or kind is not Kind.SILENCE]
    chaos = Chaos(plan(SEED, SECONDS, every=1.6 if SOAK else 0.5, kinds=wanted), seed=SEED)
    for number, market in enumerate(("spot", "linear", "spot", "linear")):
        chaos.order(Fault(Kind.UNSEEN, SECONDS * (number + 1) / 6, 1.5, "bybit", market))
    chaos.empty_every, chaos.listings_page = 50, 1
    async with deployment(tmp_path, faults=chaos, instruments=(*INSTRUMENTS, BEYOND_ASCII)) as one:
        wadm = one.wadm()
        await wadm.start()
        await one.live(wadm)
        chaos.begin()
        await anyio.sleep(SECONDS)
        chaos.end()
        await one.live(wadm)
        await one.settled(wadm, within=max(300.0, SECONDS))
        kinds = Counter(happened.fault.kind.value for happened in chaos.happened)
        print(f"{len(chaos.happened)} faults: {dict(kinds)}, {resident(wadm.served) >> 20} MB")
        found = await one.check(wadm, chaos.unseen)
        for instrument, each in found.items():
            if instrument.exchange == "binance":
                assert each.lost == 0, instrument
        assert chaos.unseen
        assert "Traceback" not in wadm.log
        if SOAK:
            assert len(chaos.happened) >= 300
            assert set(kinds) == {kind.value for kind in Kind if kind not in ON_ORDER} | {Kind.UNSEEN.value}
        else:
            assert len(kinds.keys() & {kind.value for kind in ON_SOCKETS}) > 5
        assert await wadm.stop() == 0
