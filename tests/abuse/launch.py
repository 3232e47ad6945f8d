"""Starts `wadm-mcp` with bounds on what it may take from the machine, and with a clock that can be set while it runs.

    python launch.py --descriptors 1024 --memory 3000 --clock FILE --expiry 1 --loop FILE -- serve

`--memory` is in MB of address space. The file of `--clock` has milliseconds that are added to the time of day; it is read at the start, and
again on SIGUSR1. The monotonic clock stays as it is, as when an administrator or a time server sets the clock of a machine. `--expiry` is
the pause in seconds between two expiries of the store. `--loop` writes a line every few milliseconds to a file: the epoch second, how late
the event loop ran a task that was due (ms), and for how long its own work held it since the line before, in ms of processor time, which
does not depend on what else the machine does. `benchmarks/recording.py` uses it too.
"""

from __future__ import annotations

import argparse
import datetime
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

_NS_PER_MS = 1_000_000
_TURN_SECONDS = 0.005


def _set_limits(descriptors: int | None, megabytes: int | None) -> None:
    if descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    if megabytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    # A crash must leave no core file of that size.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _shift_clock(file: Path) -> None:
    """Replace every function that reads the time of day by one that adds the offset in the file."""
    true_time_ns, offset_ms = time.time_ns, 0

    def read(*_: object) -> None:
        nonlocal offset_ms
        offset_ms = int(file.read_text())

    def time_ns() -> int:
        return true_time_ns() + offset_ms * _NS_PER_MS

    def now_seconds() -> float:
        return time_ns() / 1e9

    class ShiftedDatetime(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return cls.fromtimestamp(now_seconds(), tz)

    read()
    signal.signal(signal.SIGUSR1, read)
    time.time_ns, time.time = time_ns, now_seconds
    datetime.datetime = ShiftedDatetime


def _watch_loop(file: Path) -> None:
    """Run every command with a task beside it that writes the delay and the processor time between two of its turns."""
    import anyio

    run = anyio.run

    async def watch() -> None:
        with file.open("w", buffering=1) as report:
            while True:
                before, asleep = time.thread_time(), time.perf_counter()
                await anyio.sleep(_TURN_SECONDS)
                late, worked = time.perf_counter() - asleep - _TURN_SECONDS, time.thread_time() - before
                report.write(f"{int(time.time())} {late * 1e3:.2f} {worked * 1e3:.2f}\n")

    def watched(command: Callable[..., Awaitable[int]], *arguments: Any) -> int:
        async def both() -> int:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch)
                status = await command(*arguments)
                tasks.cancel_scope.cancel()
                return status
            raise AssertionError

        return run(both)

    anyio.run = watched  # pyright: ignore[reportAttributeAccessIssue]


def main() -> None:
    """Apply the options and hand over to the command line of WADM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--descriptors", type=int)
    parser.add_argument("--memory", type=int)
    parser.add_argument("--clock", type=Path)
    parser.add_argument("--expiry", type=float)
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--loop", type=Path)
    options = parser.parse_args()
    _set_limits(options.descriptors, options.memory)
    if options.clock is not None:
        _shift_clock(options.clock)
    if options.loop is not None:
        _watch_loop(options.loop)
    sys.argv = ["wadm-mcp", *options.arguments]
    from wadm_mcp.__main__ import main as run
    from wadm_mcp.collection.recording import maintenance

    if options.expiry is not None:
        # A name that is gone must stop the attack: without expiries it would prove nothing.
        assert hasattr(maintenance, "_EXPIRY_SECONDS")
        setattr(maintenance, "_EXPIRY_SECONDS", options.expiry)  # noqa: B010 - the checker calls it a constant
    run()


if __name__ == "__main__":
    main()
