"""`wadm-mcp` with a monitor on its event loop: `python -m benchmarks.loop_monitor FILE serve` is the command itself, and each second a
line of FILE tells the epoch second and the longest time (ms) that the loop kept a waiting task waiting."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio

from wadm_mcp import cli

_LOOK = 0.005


async def _watch(path: Path) -> None:
    longest, second = 0.0, int(time.time())
    with path.open("w", buffering=1) as told:
        while True:
            asleep = time.perf_counter()
            await anyio.sleep(_LOOK)
            longest = max(longest, time.perf_counter() - asleep - _LOOK)
            if int(time.time()) != second:
                told.write(f"{second} {longest * 1e3:.1f}\n")
                longest, second = 0.0, int(time.time())


def main() -> None:
    """Run the command, watched."""
    path = Path(sys.argv.pop(1))
    run = anyio.run

    def watched(main: Callable[..., Awaitable[int]], *arguments: Any) -> int:
        async def both() -> int:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_watch, path)
                status = await main(*arguments)
                tasks.cancel_scope.cancel()
                return status
            raise AssertionError

        return run(both)

    anyio.run = watched  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(cli.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
