"""Attacks of clients mixed into every fault of the exchanges: nothing is lost that is covered, and a calm client goes on being answered."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.abuse.target import Target
from tests.abuse.test_logs import FORGED
from tests.abuse.week import stored_week
from tests.soak.attacker import ATTACKS
from tests.soak.deployment import SEED, SOAK
from tests.soak.every_fault import SECONDS, check_after_faults, deployed, every_fault

pytestmark = pytest.mark.anyio

KEY = "a-key-that-is-long-enough"
CHECKOUT = Path(__file__).parents[2]
ATTACK_SECONDS = SECONDS if SOAK else SECONDS / 2
"""How long attacks are played. Their process needs a few seconds to start, in which the faults have begun."""
PAUSE_SECONDS = 0.2 if SOAK else 0.05
"""Between two questions of the calm client."""
WANTED_MB, MOST_MB = 250, 400
"""Memory above rest: what is aimed at, and what fails the test."""
LOG_BYTES, LOG_BYTES_A_SECOND = 100_000, 2_000
"""The log may have this much, and so much more for each second: the faults of the exchanges have a line each."""


async def _printed(module: str, *arguments: object) -> dict[str, Any]:
    """What a client in a process of its own prints at its end."""
    words = [sys.executable, "-m", f"tests.soak.{module}", *map(str, arguments)]
    return json.loads((await anyio.run_process(words, stderr=None, cwd=CHECKOUT)).stdout)


async def test_attacks_beside_all_faults_lose_nothing_and_calm_clients_are_answered(tmp_path: Path) -> None:
    chaos = every_fault()
    week = await stored_week(tmp_path / "data") if SOAK else 0
    async with deployed(tmp_path, chaos, API_KEY=KEY) as one:
        wadm = one.wadm()
        await wadm.start()
        wadm.served.client.headers["X-API-Key"] = KEY
        await one.live(wadm)
        at = Target(wadm.served)
        if SOAK:
            await at.settle()
        at.rest = at.rest or at.memory()
        reports: dict[str, dict[str, Any]] = {}

        async def run(module: str, *arguments: object) -> None:
            reports[module] = await _printed(module, at.url, KEY, *arguments)

        chaos.begin()
        async with at.watched(), anyio.create_task_group() as tasks:
            tasks.start_soon(run, "attacker", SEED, ATTACK_SECONDS, week)
            tasks.start_soon(run, "calm_client", ATTACK_SECONDS, PAUSE_SECONDS)
        peak = at.peak
        _print(reports, at, peak)
        kinds = await check_after_faults(one, wadm, chaos, within=300)
        assert at.alive
        assert wadm.starts == 1
        assert await wadm.stop() == 0

    attacks, calm = reports["attacker"], reports["calm_client"]
    assert attacks["faults"] == []
    assert peak <= MOST_MB
    assert calm["outcomes"].keys() <= {"answered", "busy", "session was gone"}, calm["refusals"]
    _check_log(wadm.log)
    if SOAK:
        assert {kind for kind, *_ in attacks["attacks"]} == {attack.__name__ for attack in ATTACKS}
        assert len(kinds) > 15
    else:
        assert attacks["attacks"]


def _print(reports: dict[str, dict[str, Any]], at: Target, peak: float) -> None:
    totals: dict[str, Counter[str]] = {}
    for kind, _, lasted, seen in reports["attacker"]["attacks"]:
        totals.setdefault(kind, Counter()).update({"times": 1, "seconds": round(lasted), **seen})
    for kind, total in totals.items():
        print(f"{kind}: {dict(total)}")
    calm = reports["calm_client"]
    outcomes = calm["outcomes"]
    asked = sum(count for outcome, count in outcomes.items() if outcome != "session was gone")
    print(f"calm client: {outcomes}, {1 - outcomes.get('answered', 0) / max(1, asked):.2%} not answered")
    for way, took in calm["answered"].items():
        ordered = sorted(took) or [float("nan")]
        shown = ", ".join(f"p{share:g} {ordered[int(len(ordered) * share / 100)]:,.0f} ms" for share in (50, 99, 99.9))
        print(f"calm client over {way}: {len(took):,} answers, {shown}, slowest {ordered[-1]:,.0f} ms")
    for refusal in calm["refusals"][:20]:
        print(f"calm client: {refusal}")
    print(f"memory: {at.rest:.0f} MB at rest, peak {peak:.0f} MB above (wanted: {WANTED_MB}), log {at.log_bytes / 1e3:,.0f} kB")


def _check_log(log: str) -> None:
    assert "Traceback" not in log
    assert KEY not in log
    assert [line for line in log.splitlines() if line.startswith(FORGED[:20])] == []
    assert len(log) < LOG_BYTES + LOG_BYTES_A_SECOND * SECONDS
