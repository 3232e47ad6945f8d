"""`kill -9` at random times: everything reported as covered stays correct, and all trades of Binance are repaired."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from tests.servers import own_mongod
from tests.soak.deployment import INSTRUMENTS, SOAK, Deployment, deployment

pytestmark = pytest.mark.anyio

KILLS = 100 if SOAK else 4


async def check_after_kills(one: Deployment) -> None:
    wadm = one.wadm()
    await wadm.start()
    for _ in range(KILLS):
        await anyio.sleep(one.random.uniform(0.2, 4))
        await wadm.kill()
        await wadm.start()
    await one.live(wadm)
    # After so many interruptions the rate limit of each host makes repairs take minutes.
    await one.settled(wadm, within=600)
    found = await one.check(wadm)
    assert "Traceback" not in wadm.log
    for instrument in INSTRUMENTS:
        if instrument.exchange == "binance":
            assert found[instrument].lost == 0
    assert await wadm.stop() == 0


async def test_kills_on_sqlite_lose_and_duplicate_nothing(tmp_path: Path) -> None:
    async with deployment(tmp_path) as one:
        await check_after_kills(one)


async def test_kills_on_mongodb_lose_and_duplicate_nothing(tmp_path: Path) -> None:
    with own_mongod() as mongod:
        async with deployment(tmp_path, MONGODB_URL=f"{mongod.url}/wadm") as one:
            await check_after_kills(one)
