"""The store is unreachable for long, the journal is full, the exchange bans the address: nothing is lost, or the gap is reported."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from tests.end_to_end.process import resident, until
from tests.servers import own_mongod
from tests.soak.deployment import SEED, SOAK, Deployment, Wadm, deployment
from wadm_mcp.simulator.chaos import Chaos
from wadm_mcp.simulator.fault_plan import Fault, Kind

pytestmark = pytest.mark.anyio

OUTAGE_SECONDS = 600.0 if SOAK else 6.0
BAN_SECONDS = 60.0 if SOAK else 4.0


async def _health(wadm: Wadm) -> tuple[int, dict[str, object]]:
    response = await wadm.served.client.get("/health")
    return response.status_code, response.json()


async def _journal(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("data/**/journal/*.seg"))


async def test_an_unreachable_store_loses_no_trade_and_takes_bounded_memory(tmp_path: Path) -> None:
    with own_mongod() as mongod:
        async with deployment(tmp_path, MONGODB_URL=f"{mongod.url}/wadm") as one:
            wadm = one.wadm()
            await wadm.start()
            await one.live(wadm)
            mongod.stop()

            async def reported() -> bool:
                return (await _health(wadm))[0] == 503

            await until(reported)
            sizes: list[int] = []
            with anyio.move_on_after(OUTAGE_SECONDS):
                while True:
                    await anyio.sleep(OUTAGE_SECONDS / 20)
                    sizes.append(resident(wadm.served) >> 20)
            journal = await _journal(tmp_path)
            print(f"memory {sizes} MB, journal {journal >> 20} MB")
            assert max(sizes[len(sizes) // 2 :]) < sizes[len(sizes) // 2 - 1] + 30
            assert 0 < journal < 1024 << 20
            mongod.start()
            await one.live(wadm)
            await one.settled(wadm, within=600)
            found = await one.check(wadm)
            for instrument, each in found.items():
                if instrument.exchange == "binance":
                    assert each.lost == 0
            assert "Traceback" not in wadm.log


async def test_a_full_journal_is_reported_and_recording_continues_after_it(tmp_path: Path) -> None:
    with own_mongod() as mongod:
        async with deployment(tmp_path, MONGODB_URL=f"{mongod.url}/wadm", activity=19, WADM_JOURNAL_MAX_MB="16" if SOAK else "1") as one:
            wadm = one.wadm()
            await wadm.start()
            await one.live(wadm)
            mongod.stop()

            async def full() -> bool:
                _, health = await _health(wadm)
                return dict(health["parts"])["journal"]["state"] == "down"  # type: ignore[call-overload]

            await until(full, within=600)
            await anyio.sleep(OUTAGE_SECONDS / 10)
            assert await _journal(tmp_path) <= (16 if SOAK else 1) << 20
            mongod.start()
            await one.live(wadm, within=300)
            await one.settled(wadm, within=300)
            await _complete_on_binance(one, wadm)


async def test_no_request_is_sent_during_a_ban_and_everything_is_repaired_after_it(tmp_path: Path) -> None:
    chaos = Chaos(seed=SEED)
    async with deployment(tmp_path, faults=chaos) as one:
        wadm = one.wadm()
        await wadm.start()
        await one.live(wadm)
        chaos.begin()
        for market in ("spot", "linear"):
            chaos.order(Fault(Kind.BANNED, 0.0, BAN_SECONDS, "binance", market))
            chaos.order(Fault(Kind.LOSE, 0.1, 1.0, "binance", market))
            chaos.order(Fault(Kind.DROP, BAN_SECONDS / 2, 0.0, "binance", market))
        await anyio.sleep(BAN_SECONDS + 1)
        await one.live(wadm)
        await one.settled(wadm, within=180)
        refused = [(at, path) for at, _, path, status in chaos.requests if status == 418]
        for host in ("/api/v3", "/fapi/v1"):
            of_host = [at for at, path in refused if path.startswith(host)]
            # Only requests that were sent at the same time as the first one may be refused too.
            assert of_host
            assert max(of_host) - min(of_host) < 0.5
            assert len(of_host) <= 4
        await _complete_on_binance(one, wadm)


async def _complete_on_binance(one: Deployment, wadm: Wadm) -> None:
    found = await one.check(wadm)
    for instrument, each in found.items():
        if instrument.exchange == "binance":
            assert each.lost == 0, instrument
    assert "Traceback" not in wadm.log
    assert await wadm.stop() == 0
