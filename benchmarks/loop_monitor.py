"""`wadm-mcp` with a monitor on its event loop.

    python -m benchmarks.loop_monitor FILE serve

Runs the command. Each second it appends a line to FILE: the epoch second, and the longest delay (ms) of a ready task on the event loop.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio

from wadm_mcp import cli

_SLEEP_SECONDS = 0.005


async def _watch(path: Path) -> None:
    longest, second = 0.0, int(time.time())
    with path.open("w", buffering=1) as report:
        while True:
            asleep = time.perf_counter()
            await anyio.sleep(_SLEEP_SECONDS)
            longest = max(longest, time.perf_counter() - asleep - _SLEEP_SECONDS)
            if int(time.time()) != second:
                report.write(f"{second} {longest * 1e3:.1f}\n")
                longest, second = 0.0, int(time.time())


def main() -> None:
    """Run the command with the monitor."""
    path = Path(sys.argv.pop(1))
    run = anyio.run

    def monitored(main: Callable[..., Awaitable[int]], *arguments: Any) -> int:
        async def both() -> int:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_watch, path)
                status = await main(*arguments)
                tasks.cancel_scope.cancel()
                return status
            raise AssertionError

        return run(both)

    anyio.run = monitored  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(cli.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
