"""What `serve` and `replay` tell the person who started them: where to connect, and one line of how it goes."""

from __future__ import annotations

import shutil
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

import anyio

from wadm_mcp.health import State
from wadm_mcp.logs import clear_line_first, log
from wadm_mcp.model import DAY, SECOND
from wadm_mcp.runtime import Runtime
from wadm_mcp.settings import Settings
from wadm_mcp.simulator.feed import ReplayFeed

_EVERY: Final = 1.0


def welcome(url: str, settings: Settings) -> list[str]:
    """Lines that tell where to connect, and one call to try. A wildcard address is told as one that this machine answers to."""
    url = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    key = ' -H "Authorization: Bearer $API_KEY"' if settings.API_KEY is not None else ""
    header = ' --header "Authorization: Bearer $API_KEY"' if settings.API_KEY is not None else ""
    symbol = settings.WADM_SYMBOLS[0]
    return [
        "WADM is up.",
        f"  MCP, Streamable HTTP   {url}/mcp",
        f"  MCP, SSE               {url}/sse",
        f"  health                 {url}/health",
        f"  data                   {settings.WADM_DATA_DIR}",
        f'  try                    curl -s{key} "{url}/api/volume-profile?symbol={symbol}&window=15m"',
        f"  connect Claude Code    claude mcp add --transport http wadm {url}/mcp{header}",
    ]


async def show_status(runtime: Runtime, replay: ReplayFeed | None) -> None:
    """Keep one line up to date on a terminal; elsewhere only the end of a replay is told."""
    async with anyio.create_task_group() as tasks:
        if replay is not None:
            tasks.start_soon(_tell_end, replay)
        if sys.stderr.isatty():
            tasks.start_soon(_keep_line, runtime, replay)


async def _tell_end(replay: ReplayFeed) -> None:
    await replay.finished.wait()
    log.info("replay.finished", rows=replay.played, shifted_days=round((replay.shift or 0) / DAY, 2))


async def _keep_line(runtime: Runtime, replay: ReplayFeed | None) -> None:
    before = runtime.recorded
    clear_line_first(True)
    try:
        while True:
            await anyio.sleep(_EVERY)
            recorded = runtime.recorded
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{status_line(runtime, recorded - before, replay)[:width]}")
            sys.stderr.flush()
            before = recorded
    except OSError as error:
        log.info("status.ended", why=error.strerror)  # the terminal went away
    finally:
        clear_line_first(False)
        with suppress(OSError):
            sys.stderr.write("\r\x1b[K")


def status_line(runtime: Runtime, rate: int, replay: ReplayFeed | None) -> str:
    """One line: role, live instruments, trades a second, what waits, how far a replay is."""
    parts = runtime.health.parts
    followed = [str(instrument) for instrument in runtime.followed]
    live = sum(1 for name in followed if name in parts and parts[name].state is State.OK)
    told = [runtime.role]
    if runtime.role == "starting":
        told = ["waiting for the exchanges to tell what they list"]
    elif runtime.role == "recording":
        told += [f"{live} of {len(followed)} instruments live", f"{rate} trades/s", f"{runtime.recorded:,} recorded"]
        if runtime.waiting > 5_000:
            told.append(f"{runtime.waiting:,} wait for the store")
    else:
        told.append(f"{len(followed)} instruments")
    imports = [importing for tape in runtime.tape if (importing := tape.backfill.importing) is not None]
    if imports:
        reached = datetime.fromtimestamp(max(one.reached for one in imports) / SECOND, UTC).strftime("%Y-%m-%d %H:%MZ")
        rate, seconds = max(one.rate for one in imports), max(one.seconds for one in imports)
        told.append(f"importing before {reached}, {rate:,} trades/s, {seconds:,.0f} s left")
    if replay is not None:
        told.append(f"replay {replay.played:,} of {replay.total:,}")
    if not runtime.health.ready and runtime.health.reasons:
        told.append(runtime.health.reasons[0])
    return " · ".join(told)
