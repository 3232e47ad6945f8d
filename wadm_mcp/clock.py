"""Wall clock and monotonic clock of a process. Tests pass their own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

CLOCK_SKEW: Final = 5_000
"""Milliseconds by which the clocks of an exchange, of a trade and of this machine may differ and still be trusted."""


def now_ms() -> int:
    """The wall clock: milliseconds since the epoch, UTC. It jumps when it is set."""
    return time.time_ns() // 1_000_000


def since_boot() -> float:
    """Seconds since the machine was started. Unlike `time.monotonic` it also counts the time for which a laptop was suspended."""
    return time.clock_gettime(_BOOT_CLOCK) if _BOOT_CLOCK is not None else time.monotonic()


_BOOT_CLOCK: Final[int | None] = (
    None if sys.platform == "win32" else getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
)


def utc_text(timestamp: int) -> str:
    """A time (ms) for log lines, to the second: `2026-06-01T12:00:00Z`."""
    return f"{datetime.fromtimestamp(timestamp // 1_000, UTC).isoformat(timespec='seconds')[:19]}Z"


@dataclass(frozen=True)
class Clock:
    """Wall time, which trades are stamped with, and monotonic time, which pauses and timeouts are measured with."""

    now: Callable[[], int] = now_ms
    """Milliseconds since the epoch, UTC."""
    monotonic: Callable[[], float] = time.monotonic
    """Seconds since an arbitrary moment; never goes back."""
    confirmed: Callable[[], bool] = lambda: True
    """Whether `now` is known to be right: see `clock_check.py`."""


SYSTEM_CLOCK: Final = Clock()
"""The clocks of this machine."""
