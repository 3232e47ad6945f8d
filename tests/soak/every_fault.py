"""A run of every simulated fault between the exchanges and WADM, at random times that a seed reproduces, and its verdict."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from tests.end_to_end.process import resident
from tests.soak.deployment import ACTIVITY, INSTRUMENTS, SEED, SOAK, Deployment, Wadm, deployment
from wadm_mcp.model import Instrument
from wadm_mcp.simulator.chaos import Chaos
from wadm_mcp.simulator.fault_plan import Fault, Kind, plan
from wadm_mcp.simulator.faults import ArchiveFaults

SECONDS: Final = float(os.environ.get("WADM_SOAK_SECONDS", "330")) if SOAK else 14.0
"""How long the faults last."""
OLD, NEW = (Instrument("binance", "spot", symbol) for symbol in ("MATICUSDT", "POLUSDT"))
"""A symbol that migrates to another one in the middle of the run."""
_BEYOND_ASCII: Final = Instrument("binance", "linear", "币安人生USDT")
IMPORTED: Final = (NEW, Instrument("bybit", "spot", "POLUSDT")) if SOAK else ()
"""Their archives have rows that are out of order, repeated, and written in other ways."""
_EVERY: Final = (*INSTRUMENTS, _BEYOND_ASCII, OLD, *(IMPORTED or (NEW,)))
# A day of a busy market has too many trades to be simulated here.
_QUIET: Final = {str(each): 4.0 for each in (OLD, NEW)}


def every_fault(seconds: float = SECONDS, ordered: Iterable[Fault] = ()) -> Chaos:
    """A plan of all kinds for a run of `seconds`, with the `ordered` faults beside it; not begun."""
    # At the low rate of a short run a silence of seconds is usual.
    wanted = [kind for kind in Kind if SOAK or kind is not Kind.SILENCE]
    chaos = Chaos(plan(SEED, seconds, every=1.6 if SOAK else 0.5, kinds=wanted), seed=SEED)
    for number, market in enumerate(("spot", "linear", "spot", "linear")):
        chaos.order(Fault(Kind.UNSEEN, seconds * (number + 1) / 6, 1.5, "bybit", market))
    chaos.order(Fault(Kind.UNLIST, 0.0, seconds / 2, *NEW))
    chaos.order(Fault(Kind.HALT, seconds / 2, seconds / 2, *OLD))
    for fault in ordered:
        chaos.order(fault)
    chaos.empty_every, chaos.listings_page, chaos.fresh_cursors = 50, 1, bool(SEED % 2)
    chaos.archive_rows = ArchiveFaults(unsorted=True, repeated_every=20, extra_column=True, exponents=True)
    return chaos


@asynccontextmanager
async def deployed(folder: Path, chaos: Chaos, **settings: Any) -> AsyncGenerator[Deployment]:
    """The exchanges of such a run, and what WADM is started with."""
    activity = {"binance": ACTIVITY, "bybit": ACTIVITY, **_QUIET}
    async with deployment(folder, faults=chaos, instruments=_EVERY, activity=activity, **settings) as one:
        yield one


async def check_after_faults(one: Deployment, wadm: Wadm, chaos: Chaos, *, within: float) -> Counter[str]:
    """End the faults and the market, wait `within` seconds until nothing is left to be repaired, and compare all answers with the ledger.

    Returns how many faults of each kind took place.
    """
    chaos.end()
    await one.live(wadm)
    await one.settled(wadm, within=within)
    kinds = Counter(happened.fault.kind.value for happened in chaos.happened)
    print(f"{len(chaos.happened)} faults: {dict(kinds)}, {resident(wadm.served) >> 20} MB")
    found = await one.check(wadm, chaos.unseen)
    for instrument, each in found.items():
        if instrument.exchange == "binance":
            assert each.lost == 0, instrument
    assert chaos.unseen
    return kinds
