"""Every simulated fault between the exchanges and WADM, at random times that a seed reproduces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from tests.end_to_end.process import COMMAND, environment
from tests.soak.deployment import SOAK, Deployment, Wadm
from tests.soak.every_fault import IMPORTED, SECONDS, check_after_faults, deployed, every_fault
from tests.soak.verdict import check
from wadm_mcp.model import DAY
from wadm_mcp.simulator.fault_plan import ON_ORDER, ON_SOCKETS, Fault, Kind

pytestmark = pytest.mark.anyio

BLOCKED_SECONDS = 120.0
"""How long hosts refuse this region, in runs that are long enough for a client to come back (up to half an hour later)."""


def _blocked() -> Sequence[Fault]:
    if SECONDS < 3_600:
        return ()
    every = (
        # First, since its host then counts as lacking trades by id for an hour.
        (Kind.NO_HISTORY, "binance", "spot"),
        (Kind.BLOCKED, "binance", "spot"),
        (Kind.BLOCKED_SOCKETS, "bybit", ""),
        (Kind.BLOCKED, "bybit", "linear"),
        (Kind.BLOCKED_SOCKETS, "binance", ""),
        (Kind.BLOCKED, "binance", "linear"),
    )
    return [
        Fault(kind, SECONDS * (number + 1) / 12, BLOCKED_SECONDS, exchange, market) for number, (kind, exchange, market) in enumerate(every)
    ]


async def import_the_day_before(one: Deployment, wadm: Wadm) -> None:
    """Import yesterday of the `IMPORTED`, with the command, while everything goes on."""
    today = one.clock.began - one.clock.began % DAY
    days = ["--from", str(today - DAY), "--to", str(today)]
    for instrument in IMPORTED:
        exchange, market, symbol = instrument
        chosen = ["--exchange", exchange, "--market", market, "--symbol", symbol, *days]
        done = await anyio.run_process(
            [*COMMAND, "import", *chosen], env=environment(wadm.folder, **wadm.settings), cwd=wadm.folder.parent, check=False
        )
        assert done.returncode == 0, done.stderr.decode()


async def check_the_day_before(one: Deployment, wadm: Wadm) -> None:
    """Compare what was imported with the ledger."""
    today = one.clock.began - one.clock.began % DAY
    for instrument in IMPORTED:
        day = await check(wadm.served, one.simulator, instrument, today - DAY, today, traded_until=today)
        print(f"{instrument}, the day before: {day.stored:,} of {day.traded:,} trades, {day.covered} of {day.minutes} minutes covered")
        assert (day.covered, day.lost) == (day.minutes, 0)


async def test_covered_data_is_exact_under_all_faults_and_binance_is_repaired_completely(tmp_path: Path) -> None:
    chaos = every_fault(ordered=_blocked())
    async with deployed(tmp_path, chaos) as one:
        wadm = one.wadm()
        await wadm.start()
        await one.live(wadm)
        chaos.begin()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(import_the_day_before, one, wadm)
            await anyio.sleep(SECONDS)
        kinds = await check_after_faults(one, wadm, chaos, within=max(300.0, SECONDS))
        await check_the_day_before(one, wadm)
        assert "Traceback" not in wadm.log
        if SOAK:
            assert len(chaos.happened) >= 300
            ordered = {Kind.UNSEEN, *(fault.kind for fault in _blocked())}
            assert set(kinds) == {kind.value for kind in Kind if kind not in ON_ORDER or kind in ordered}
        else:
            assert len(kinds.keys() & {kind.value for kind in ON_SOCKETS}) > 5
        assert await wadm.stop() == 0
