"""One exchange is hostile in every way: memory and event loop stay as they were, and so does the other exchange."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.abuse.hostile_exchange import ARCHIVE_MODES, REST_MODES, SOCKET_MODES
from tests.abuse.target import DEAD, HERE, INSTRUMENTS, SPOT, attacked, command, cpu_seconds, live, loop_held, loop_turns, lost, probing
from tests.abuse.verdict import ABUSE, attack
from wadm_mcp.clock import now_ms
from wadm_mcp.model import SECOND

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not ABUSE, reason="full size; run with WADM_ABUSE=1")]

SECONDS = 6.0
SECONDS_TO_UNPACK = 20.0


@asynccontextmanager
async def _hostile(mode: str) -> AsyncGenerator[tuple[int, dict[str, Any]]]:
    """The hostile exchange: its port, and what it did, once the block has ended."""
    totals: dict[str, Any] = {}
    async with await anyio.open_process([sys.executable, str(HERE / "hostile_exchange.py"), mode], stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(await process.stdout.receive())
        try:
            yield port, totals
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await process.stdin.aclose()
                totals |= json.loads(await process.stdout.receive())
            process.kill()


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Resident memory (MB) of a server that records both exchanges and is not attacked."""

    async def measured() -> float:
        async with attacked(tmp_path_factory.mktemp("rest"), activity=4) as (at, _):
            for instrument in INSTRUMENTS:
                await live(at, instrument)
            await at.settle()
            return at.rest

    return anyio.run(measured)


@pytest.mark.parametrize("mode", [*SOCKET_MODES, *REST_MODES, *ARCHIVE_MODES])
async def test_the_other_exchange_and_the_event_loop_notice_nothing(tmp_path: Path, mode: str, rest: float) -> None:
    with attack(f"hostile exchange: {mode.replace('-', ' ')}") as verdict, anyio.fail_after(90):
        # History of a busy market would itself take what is measured here.
        seconds = SECONDS_TO_UNPACK if mode == "archive-bomb" else SECONDS
        activity = 0.25 if mode in ARCHIVE_MODES else 4.0
        turns = tmp_path / "turns"
        async with _hostile(mode) as (port, totals):
            hosts = (
                {"WADM_BYBIT_WS": f"ws://127.0.0.1:{port}"}
                if mode in SOCKET_MODES
                else {"WADM_BYBIT_REST": f"http://127.0.0.1:{port}"}
                if mode in REST_MODES
                else {"WADM_BYBIT_ARCHIVE": f"http://127.0.0.1:{port}", "WADM_HISTORY_HOURS": "72"}
            )
            async with attacked(tmp_path, hosts, activity=activity, bounded=command(loop=turns)) as (at, simulator):
                await live(at, SPOT)
                # The attack begins with the start: rest is what a server without it has.
                at.rest = rest
                began, busy, turned = now_ms(), cpu_seconds(at), loop_turns(turns)
                async with at.watched(), probing(f"{at.url}/health/live") as answers:
                    await anyio.sleep(seconds)
                until, taken = now_ms() - SECOND, cpu_seconds(at) - busy
                files = sum(path.stat().st_size for path in (tmp_path / "data").rglob("*") if path.is_file()) / 1e6
                verdict.at_most("peak above rest", at.peak, 100, "MB")
                verdict.at_most("event loop held, p99", loop_held(turns, turned), 50, "ms")
                verdict.note("/health/live, p99", f"{answers.percentile(0.99) or 5_000:.0f} ms")
                verdict.note("data folder", f"{files:.0f} MB")
                verdict.note("processor", f"{taken / seconds:.2f} cores")
                try:
                    missing, traded = await lost(at, simulator, SPOT, began, until)
                except DEAD as error:
                    verdict.holds("other exchange: trades lost", f"no answer ({type(error).__name__})", held=False)
                else:
                    verdict.holds("other exchange: trades lost", f"{missing} of {traded:,}", missing == 0)
        verdict.holds("the attack reached it", f"{totals.get('connections', 0)} connections", totals.get("connections", 0) > 0, "yes")
        verdict.note("bytes sent by the exchange", f"{totals.get('bytes', 0) / 1e6:,.1f} MB")
