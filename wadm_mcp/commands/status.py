"""What `serve` and `replay` print for their user: where to connect, and a status line on a terminal."""

from __future__ import annotations

import shutil
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import anyio

from wadm_mcp.health import State
from wadm_mcp.logs import clear_line_first, log
from wadm_mcp.model import DAY
from wadm_mcp.runtime import Runtime
from wadm_mcp.settings import Settings
from wadm_mcp.tape import Importing

if TYPE_CHECKING:
    from wadm_mcp.simulator.feed import ReplayFeed

_REFRESH_SECONDS: Final = 1.0
_MANY_PENDING: Final = 5_000
"""Trades not stored yet, above which the status line shows their number."""


def welcome(url: str, settings: Settings) -> list[str]:
    """Lines on where to connect, with one call to try. A wildcard address is replaced by the loopback address.

    The call is about an exchange whose past can be fetched, if there is one: elsewhere coverage of the first minutes is low.
    """
    url = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    key = ' -H "Authorization: Bearer $API_KEY"' if settings.API_KEY is not None else ""
    header = ' --header "Authorization: Bearer $API_KEY"' if settings.API_KEY is not None else ""
    symbol, market = settings.WADM_SYMBOLS[0], settings.WADM_MARKETS[0]
    repaired = [venue.exchange.name for venue in settings.venues if venue.market == market and venue.traits.has_gapless_ids]
    exchange = f"&exchange={repaired[0]}" if repaired and len(settings.WADM_EXCHANGES) > 1 else ""
    return [
        "WADM is up.",
        f"  MCP, Streamable HTTP   {url}/mcp",
        f"  MCP, SSE               {url}/sse",
        f"  health                 {url}/health",
        f"  data                   {settings.WADM_DATA_DIR}",
        f'  try                    curl -s{key} "{url}/api/volume-profile?symbol={symbol}{exchange}&window=15m"',
        f"  connect Claude Code    claude mcp add --transport http wadm {url}/mcp{header}",
    ]


async def show_status(runtime: Runtime, replay: ReplayFeed | None) -> None:
    """Keep the status line up to date where stderr is a terminal; log the end of a replay in any case."""
    async with anyio.create_task_group() as tasks:
        if replay is not None:
            tasks.start_soon(_log_end, replay)
        if sys.stderr.isatty():
            tasks.start_soon(_keep_line, runtime, replay)


async def _log_end(replay: ReplayFeed) -> None:
    await replay.finished.wait()
    log.info("replay.finished", rows=replay.played, shifted_days=round((replay.shift or 0) / DAY, 2))


async def _keep_line(runtime: Runtime, replay: ReplayFeed | None) -> None:
    before = runtime.recorded
    clear_line_first(True)
    try:
        while True:
            await anyio.sleep(_REFRESH_SECONDS)
            recorded = runtime.recorded
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{status_line(runtime, recorded - before, replay)[:width]}")
            sys.stderr.flush()
            before = recorded
    except OSError as error:
        log.info("status.ended", reason=error.strerror)  # the terminal went away
    finally:
        clear_line_first(False)
        with suppress(OSError):
            sys.stderr.write("\r\x1b[K")


def status_line(runtime: Runtime, rate: int, replay: ReplayFeed | None) -> str:
    """The status line: role, live instruments, trades per second, pending trades, imports, progress of a replay."""
    reports = runtime.health.parts
    followed = [str(instrument) for instrument in runtime.followed]
    live = sum(1 for name in followed if name in reports and reports[name].state is State.OK)
    parts = [runtime.role]
    if runtime.role == "starting":
        parts = ["waiting for the exchanges' listings"]
    elif runtime.role == "recording":
        parts += [f"{live} of {len(followed)} instruments live", f"{rate} trades/s", f"{runtime.recorded:,} recorded"]
        if runtime.waiting > _MANY_PENDING:
            parts.append(f"{runtime.waiting:,} pending")
    else:
        parts.append(f"{len(followed)} instruments")
    imports = [importing for tape in runtime.tape if (importing := tape.backfill.importing) is not None]
    if imports:
        target, reached = min(one.target for one in imports), max(one.reached for one in imports)
        rates, seconds = [one.rate for one in imports if one.rate], [one.seconds for one in imports if one.seconds is not None]
        left = max(seconds) if len(seconds) == len(imports) else None
        parts.append(Importing(target, reached, max(rates, default=None), left).text)
    if replay is not None:
        parts.append(f"replay {replay.played:,} of {replay.total:,}")
    if not runtime.health.ready and runtime.health.reasons:
        parts.append(runtime.health.reasons[0])
    return " · ".join(parts)
