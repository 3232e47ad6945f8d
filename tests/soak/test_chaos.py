"""Every simulated fault between the exchanges and WADM, at random times that a seed reproduces."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from tests.end_to_end.process import COMMAND, environment, resident
from tests.soak.deployment import ACTIVITY, INSTRUMENTS, SEED, SOAK, Deployment, Wadm, deployment
from tests.soak.verdict import check
from wadm_mcp.model import DAY, Instrument
from wadm_mcp.simulator.chaos import Chaos
from wadm_mcp.simulator.fault_plan import ON_ORDER, ON_SOCKETS, Fault, Kind, plan
from wadm_mcp.simulator.faults import ArchiveFaults

pytestmark = pytest.mark.anyio

SECONDS = float(os.environ.get("WADM_SOAK_SECONDS", "330")) if SOAK else 14.0
BEYOND_ASCII = Instrument("binance", "linear", "币安人生USDT")
OLD, NEW = (Instrument("binance", "spot", symbol) for symbol in ("MATICUSDT", "POLUSDT"))
"""A symbol that migrates to another one in the middle of the run."""
IMPORTED = (NEW, Instrument("bybit", "spot", "POLUSDT")) if SOAK else ()
"""Their day before is imported from an archive whose rows are out of order, repeated, and written in other ways."""
EVERY = (*INSTRUMENTS, BEYOND_ASCII, OLD, *(IMPORTED or (NEW,)))
# A day of a busy market has too many trades to be simulated here.
QUIET = {str(each): 4.0 for each in (OLD, NEW)}
BLOCKED_SECONDS = 120.0
"""How long hosts refuse this region, in runs that are long enough for a client to come back (up to half an hour later)."""


def faults() -> Chaos:
    # At the low rate of a short run a silence of seconds is usual.
    wanted = [kind for kind in Kind if SOAK or kind is not Kind.SILENCE]
    chaos = Chaos(plan(SEED, SECONDS, every=1.6 if SOAK else 0.5, kinds=wanted), seed=SEED)
    for number, market in enumerate(("spot", "linear", "spot", "linear")):
        chaos.order(Fault(Kind.UNSEEN, SECONDS * (number + 1) / 6, 1.5, "bybit", market))
    chaos.order(Fault(Kind.UNLIST, 0.0, SECONDS / 2, *NEW))
    chaos.order(Fault(Kind.HALT, SECONDS / 2, SECONDS / 2, *OLD))
    for number, (kind, exchange, market) in enumerate(_blocked()):
        chaos.order(Fault(kind, SECONDS * (number + 1) / 12, BLOCKED_SECONDS, exchange, market))
    chaos.empty_every, chaos.listings_page, chaos.fresh_cursors = 50, 1, bool(SEED % 2)
    chaos.archive_rows = ArchiveFaults(unsorted=True, repeated_every=20, extra_column=True, exponents=True)
    return chaos


def _blocked() -> Sequence[tuple[Kind, str, str]]:
    if SECONDS < 3_600:
        return ()
    return (
        (Kind.BLOCKED, "binance", "spot"),
        (Kind.BLOCKED_SOCKETS, "bybit", ""),
        (Kind.NO_HISTORY, "binance", "spot"),
        (Kind.BLOCKED, "bybit", "linear"),
        (Kind.BLOCKED_SOCKETS, "binance", ""),
        (Kind.BLOCKED, "binance", "linear"),
    )


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


async def test_covered_data_is_exact_under_all_faults_and_binance_is_repaired_completely(tmp_path: Path) -> None:
    chaos = faults()
    activity = {"binance": ACTIVITY, "bybit": ACTIVITY, **QUIET}
    async with deployment(tmp_path, faults=chaos, instruments=EVERY, activity=activity) as one:
        wadm = one.wadm()
        await wadm.start()
        await one.live(wadm)
        chaos.begin()
        async with anyio.create_task_group() as tasks:
            if IMPORTED:
                tasks.start_soon(import_the_day_before, one, wadm)
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
        today = one.clock.began - one.clock.began % DAY
        for instrument in IMPORTED:
            day = await check(wadm.served, one.simulator, instrument, today - DAY, today, traded_until=today)
            print(f"{instrument}, the day before: {day.stored:,} of {day.traded:,} trades, {day.covered} of {day.minutes} minutes covered")
            assert (day.covered, day.lost) == (day.minutes, 0)
        assert "Traceback" not in wadm.log
        if SOAK:
            assert len(chaos.happened) >= 300
            ordered = {Kind.UNSEEN, *(kind for kind, _, _ in _blocked())}
            assert set(kinds) == {kind.value for kind in Kind if kind not in ON_ORDER or kind in ordered}
        else:
            assert len(kinds.keys() & {kind.value for kind in ON_SOCKETS}) > 5
        assert await wadm.stop() == 0
