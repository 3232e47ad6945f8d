"""Thousands of connections that are idle or half sent, without a key: the probe gets its answer, and nothing that is traded is lost."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from tests.abuse.sockets import Crowd
from tests.abuse.target import DEAD, INSTRUMENTS, attacked, command, cpu_seconds, live, lost, probing
from tests.abuse.verdict import ABUSE, attack
from wadm_mcp.clock import now_ms
from wadm_mcp.model import SECOND

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not ABUSE, reason="full size; run with WADM_ABUSE=1")]

CONNECTIONS = 5_000
KEY = "a-key-that-is-long-enough"
SECONDS = 20.0


@pytest.mark.parametrize("descriptors", [1_024, 20_000])
async def test_a_probe_gets_in_and_no_trade_is_lost(tmp_path: Path, descriptors: int) -> None:
    with attack(f"{CONNECTIONS:,} idle and half-sent connections, {descriptors:,} descriptors") as verdict, anyio.fail_after(120):
        bounded = command(descriptors=descriptors)
        async with attacked(tmp_path, {"API_KEY": KEY}, activity=4, bounded=bounded) as (at, simulator):
            at.served.client.headers["X-API-Key"] = KEY
            for one in INSTRUMENTS:
                await live(at, one)
            await at.settle()
            began, busy, logged = now_ms(), cpu_seconds(at), at.log_bytes
            crowd = Crowd(at.url, CONNECTIONS)
            async with probing(f"{at.url}/health/live") as answers, at.watched(), anyio.create_task_group() as tasks:
                tasks.start_soon(crowd.hold)
                await anyio.sleep(SECONDS)
                tasks.cancel_scope.cancel()
            until = now_ms() - SECOND
            verdict.at_most("/health/live, slowest", _seconds(answers.percentile(1.0)), 2, "s")
            verdict.at_most("log", (at.log_bytes - logged) / 1_000, 100, "kB")
            verdict.note("connections opened, closed by the server", f"{crowd.opened:,}, {crowd.closed:,}")
            verdict.note("processor", f"{(cpu_seconds(at) - busy) / SECONDS:.2f} cores")
            verdict.note("peak above rest", f"{at.peak:.0f} MB")
            for one in INSTRUMENTS:
                try:
                    missing, traded = await lost(at, simulator, one, began, until)
                except DEAD as error:
                    verdict.holds(f"{one.exchange}: trades lost", f"no answer ({type(error).__name__})", held=False)
                else:
                    verdict.holds(f"{one.exchange}: trades lost", f"{missing} of {traded:,}", missing == 0)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1_000
