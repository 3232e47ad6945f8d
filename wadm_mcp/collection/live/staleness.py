"""How often an instrument usually trades, and therefore how long it may be silent before its connection is taken for dead."""

from __future__ import annotations

import math
from typing import Final

_MEMORY: Final = 1_800.0
"""Seconds after which what was learned has faded to a third."""
_PATIENCE: Final = 30.0
"""Silence allowed, in usual intervals. A quiet symbol taken for a stall reconnects for nothing (docs/exchanges.md 8.6)."""
_SHORTEST: Final = 15.0
_LONGEST: Final = 3_600.0


class StaleDetector:
    """Learns the usual interval between seconds with trades; a burst within one second counts once. Times are monotonic seconds."""

    def __init__(self, interval: float = 4.0) -> None:
        self._seconds = interval
        self._count = 1.0
        self._last: float | None = None
        self._fruitless = 0

    def expect(self, interval: float) -> None:
        """Begin with what was usual before, unless something was learned already."""
        if self._last is None:
            self._seconds, self._count = interval, 1.0

    def heard(self, now: float) -> None:
        """A frame of trades came in."""
        self._fruitless = 0
        if self._last is None:
            self._last = now
            return
        passed = now - self._last
        if passed < 1.0:
            return
        faded = math.exp(-passed / _MEMORY)
        self._seconds = self._seconds * faded + passed
        self._count = self._count * faded + 1.0
        self._last = now

    def connected(self, now: float) -> None:
        """A new connection begins: the time without one was no silence of the market."""
        self._last = None if self._last is None else now

    def fruitless(self) -> None:
        """A connection was given up as mute; until frames come again the next one gets twice the time."""
        self._fruitless += 1

    @property
    def allowance(self) -> float:
        """Seconds of silence after which a connection is taken for dead."""
        usual = _PATIENCE * self._seconds / self._count
        return min(_LONGEST, max(_SHORTEST, usual) * 2.0 ** min(self._fruitless, 10))
