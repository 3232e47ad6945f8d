"""The store away for long, the journal full, the exchange closed to us: what that costs is time, or it is stated."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from tests.end_to_end.process import resident, until
from tests.servers import own_mongod
from tests.soak.deployment import SEED, SOAK, Deployment, Wadm, deployment
from wadm_mcp.simulator.chaos import Chaos, Fault, Kind

pytestmark = pytest.mark.anyio

AWAY = 600.0 if SOAK else 6.0
BANNED = 60.0 if SOAK else 4.0


async def _health(wadm: Wadm) -> tuple[int, dict[str, object]]:
    response = await wadm.served.client.get("/health")
    return response.status_code, response.json()


async def _journal(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("data/**/journal/*.seg"))


async def test_a_store_that_is_away_costs_no_trade_and_no_memory(tmp_path: Path) -> None:
    with own_mongod() as mongod:
        async with deployment(tmp_path, MONGODB_URL=f"{mongod.url}/wadm") as one:
            wadm = one.wadm()
            await wadm.start()
            await one.live(wadm)
            mongod.stop()

            async def told() -> bool:
                return (await _health(wadm))[0] == 503

            await until(told)
            sizes: list[int] = []
            with anyio.move_on_after(AWAY):
                while True:
                    await anyio.sleep(AWAY / 20)
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


async def test_a_journal_that_is_full_is_stated_and_ends_nothing(tmp_path: Path) -> None:
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
            await anyio.sleep(AWAY / 10)
            assert await _journal(tmp_path) <= (16 if SOAK else 1) << 20
            mongod.start()
            await one.live(wadm, within=300)
            await one.settled(wadm, within=300)
            await _whole_on_binance(one, wadm)


async def test_a_ban_is_kept_to_the_second_and_everything_is_repaired_after_it(tmp_path: Path) -> None:
    chaos = Chaos(seed=SEED)
    async with deployment(tmp_path, faults=chaos) as one:
        wadm = one.wadm()
        await wadm.start()
        await one.live(wadm)
        chaos.begin()
        for market in ("spot", "linear"):
            chaos.order(Fault(Kind.BANNED, 0.0, BANNED, "binance", market))
            chaos.order(Fault(Kind.LOSE, 0.1, 1.0, "binance", market))
            chaos.order(Fault(Kind.DROP, BANNED / 2, 0.0, "binance", market))
        await anyio.sleep(BANNED + 1)
        await one.live(wadm)
        await one.settled(wadm, within=180)
        refused = [(at, path) for at, _, path, status in chaos.requests if status == 418]
        for host in ("/api/v3", "/fapi/v1"):
            of_host = [at for at, path in refused if path.startswith(host)]
            # Requests that were under way with the first one could not know.
            assert of_host
            assert max(of_host) - min(of_host) < 0.5
            assert len(of_host) <= 4
        await _whole_on_binance(one, wadm)


async def _whole_on_binance(one: Deployment, wadm: Wadm) -> None:
    found = await one.check(wadm)
    for instrument, each in found.items():
        if instrument.exchange == "binance":
            assert each.lost == 0, instrument
    assert "Traceback" not in wadm.log
    assert await wadm.stop() == 0
