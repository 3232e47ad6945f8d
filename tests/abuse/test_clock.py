"""The machine's clock is set wrong, while it records and before it starts: nothing alive is deleted, nothing false claimed."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from tests.abuse.target import DEAD, INSTRUMENTS, Target, command, live, newest, target
from tests.abuse.verdict import ABUSE, SEED, Attack, attack
from tests.servers import mongodb_url
from tests.soak.verdict import Traded, check, returned
from wadm_mcp.clock import now_ms
from wadm_mcp.model import DAY, HOUR, MINUTE, SECOND, Instrument
from wadm_mcp.simulator.simulator import Simulator

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not ABUSE, reason="full size; run with WADM_ABUSE=1")]

JUMPS = {
    "1 h": HOUR, "3 h": 3 * HOUR, "4 d": 4 * DAY, "40 d": 40 * DAY, "400 d": 400 * DAY,
    "-1 h": -HOUR, "-3 h": -3 * HOUR, "-4 d": -4 * DAY, "-40 d": -40 * DAY, "-400 d": -400 * DAY,
}  # fmt: skip
SHORT = {"WADM_TRADES_TTL_HOURS": "1", "WADM_MINUTES_TTL_DAYS": "1", "WADM_HOURS_TTL_DAYS": "1"}
"""The shortest retention, so that a clock that is an hour ahead is enough to delete what is alive."""
NAMED_WITHIN = 10.0


@pytest.fixture(scope="module", params=["sqlite", "mongodb"])
def store(request: pytest.FixtureRequest) -> Generator[str]:
    """The URL of a MongoDB server, whose own clock stays right; empty for SQLite."""
    if request.param == "sqlite":
        yield ""
        return
    with mongodb_url() as url:
        yield url


async def test_nothing_is_deleted_or_claimed_while_the_clock_is_wrong(tmp_path: Path, store: str) -> None:
    """All jumps at once, each on a process of its own: they share the simulated exchanges, whose clock stays right."""
    kind = "MongoDB" if store else "SQLite"
    async with Simulator(seed=SEED, instruments=INSTRUMENTS, activity=4) as simulator:
        missed: list[str] = []

        async def one(name: str, jump: int) -> None:
            try:
                with attack(f"clock {name}, {kind}") as verdict, anyio.fail_after(240):
                    await _one(verdict, simulator, tmp_path, name, jump, store)
            except (AssertionError, *DEAD) as error:
                missed.append(str(error))

        async with anyio.create_task_group() as tasks:
            for name, jump in JUMPS.items():
                tasks.start_soon(one, name, jump)
    assert not missed, "\n".join(missed)


async def _one(verdict: Attack, simulator: Simulator, folder: Path, name: str, jump: int, store: str) -> None:
    place = f"at{jump // HOUR}"
    offset = folder / f"{place}.offset"
    settings = {**SHORT, **({"MONGODB_URL": f"{store}/wadm_abuse_{place.replace('-', 'm')}"} if store else {})}
    bounded = command(clock=offset, expiry=1.0)
    began = now_ms() // MINUTE * MINUTE
    offset.write_text("0")
    found, named = _Found(), list[float | None]()
    # While it records: right, wrong, and right again.
    async with target(folder, simulator, settings, name=place, bounded=bounded) as at:
        for instrument in INSTRUMENTS:
            await live(at, instrument)
        # Trades of the open minute are not deleted by any clock: wait until one that was recorded is closed and derived.
        closed = now_ms() // MINUTE * MINUTE + MINUTE
        while now_ms() < closed + 6 * SECOND:
            await anyio.sleep(0.5)
        before = await _stored(at, began)
        await _set(at, offset, jump)
        named.append(await _named(at))
        await anyio.sleep(3)
        await _set(at, offset, 0)
        for instrument in INSTRUMENTS:
            await live(at, instrument)
        await _compare(found, at, simulator, began, before)
        before = await _stored(at, began)
        await at.served.stop()
    # At the start.
    offset.write_text(str(jump))
    async with target(folder, simulator, settings, name=place, bounded=bounded) as at:
        named.append(await _named(at))
        await anyio.sleep(2)
        await at.served.stop()
    # And after a restart with the right one.
    offset.write_text("0")
    async with target(folder, simulator, settings, name=place, bounded=bounded) as at:
        for instrument in INSTRUMENTS:
            await live(at, instrument)
        await _compare(found, at, simulator, began, before)
    slowest = None if None in named else max(one for one in named if one is not None)
    verdict.at_most("named in /health, while it records and at the start", slowest, NAMED_WITHIN, "s")
    verdict.holds("stored trades deleted", f"{found.deleted:,} of {found.stored:,}", not found.deleted)
    false = "; ".join(found.false)[:100] or f"none in {found.minutes} minutes"
    verdict.holds("windows claimed that the ledger does not have", false, not found.false)


@dataclass
class _Found:
    """What was compared with the ledger, of both exchanges, while it records and after a restart."""

    stored: int = 0
    deleted: int = 0
    minutes: int = 0
    false: list[str] = field(default_factory=list[str])


async def _set(at: Target, offset: Path, jump: int) -> None:
    offset.write_text(str(jump))
    os.kill(at.pid, signal.SIGUSR1)
    await anyio.lowlevel.checkpoint()


async def _named(at: Target) -> float | None:
    """Seconds until `/health` names the clock."""
    began = anyio.current_time()
    with anyio.move_on_after(NAMED_WITHIN + 2):
        while "this machine's clock is" not in (await at.served.client.get("/health")).text.lower():
            await anyio.sleep(0.2)
        return anyio.current_time() - began
    return None


async def _stored(at: Target, began: int) -> dict[Instrument, list[Traded]]:
    return {one: await returned(at.served, one, began - 5 * MINUTE, now_ms() // MINUTE * MINUTE + MINUTE) for one in INSTRUMENTS}


async def _compare(found: _Found, at: Target, simulator: Simulator, began: int, before: dict[Instrument, list[Traded]]) -> None:
    """Everything returned before is still there, and what is claimed equals the ledger."""
    # Closed minutes only: the market goes on.
    until = now_ms() // MINUTE * MINUTE
    with anyio.move_on_after(15):
        while min([await newest(at, one) for one in INSTRUMENTS]) < until + 3 * SECOND:
            await anyio.sleep(0.3)
    for instrument in INSTRUMENTS:
        now = await returned(at.served, instrument, began - 5 * MINUTE, until + 2 * MINUTE)
        found.stored += len(before[instrument])
        found.deleted += len({one.trade_id for one in before[instrument]} - {one.trade_id for one in now})
        try:
            found.minutes += (await check(at.served, simulator, instrument, began - 2 * MINUTE, until, traded_until=until)).minutes
        except AssertionError as error:
            found.false.append(" ".join(str(error).split()))
