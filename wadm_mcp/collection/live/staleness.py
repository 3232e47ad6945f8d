"""How often an instrument usually trades, and therefore how long it may be silent before it counts as stale.

`SilenceWatch` in `silence.py` says what follows from that for its connection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from wadm_mcp.model import SECOND, Trade

_FADE_SECONDS: Final = 1_800.0
"""Time after which what was learned has faded to 37 % (1/e)."""
_TIMEOUT_INTERVALS: Final = 30.0
"""Silence allowed, in usual intervals. With fewer, quiet symbols count as stale and reconnect for nothing (docs/exchanges.md 8.6)."""
_MIN_TIMEOUT_SECONDS: Final = 15.0
_MAX_TIMEOUT_SECONDS: Final = 3_600.0
_DEFAULT_INTERVAL_SECONDS: Final = 4.0
_MAX_INTERVAL_SECONDS: Final = 120.0
_MAX_DOUBLINGS: Final = 10
_REPLACEMENT_SECONDS: Final = 5.0
"""After a connection was given up, or the instrument subscribed again on it, the others of the instrument are left alone for this time."""


class StaleDetector:
    """Learns the usual interval between trades; a burst within one second counts as one. Times are monotonic seconds."""

    def __init__(self, interval: float = _DEFAULT_INTERVAL_SECONDS) -> None:
        self._seconds = interval
        self._count = 1.0
        self._last: float | None = None
        self._gave_up_at = -math.inf
        self._gave_up_by: object = None

    def expect(self, interval: float) -> None:
        """Start with an interval known from before, unless one was learned already."""
        if self._last is None:
            self._seconds, self._count = interval, 1.0

    def heard(self, now: float) -> None:
        """A frame of trades came in."""
        if self._last is None:
            self._last = now
            return
        passed = now - self._last
        if passed < 1.0:
            return
        faded = math.exp(-passed / _FADE_SECONDS)
        self._seconds = self._seconds * faded + passed
        self._count = self._count * faded + 1.0
        self._last = now

    def connected(self, now: float) -> None:
        """A new connection begins: the time without one does not count as silence."""
        self._last = None if self._last is None else now

    def gave_up(self, now: float, by: object = None) -> None:
        """A collector (`by`) gave up its connection as stale, or subscribes the instrument again on it."""
        self._gave_up_at, self._gave_up_by = now, by

    def replaceable(self, now: float, by: object = None, within: float = 0.0) -> bool:
        """False just after another collector than `by` gave up its connection, or did so `within` these seconds: redundant connections are
        replaced one after the other."""
        if by is not None and by is self._gave_up_by:
            return True
        return now - self._gave_up_at >= max(_REPLACEMENT_SECONDS, within)

    def timeout(self, given_up: int = 0) -> float:
        """Seconds of silence after which a connection counts as stale, twice as long after each of `given_up` predecessors in a row that
        were given up before they delivered."""
        usual = _TIMEOUT_INTERVALS * self._seconds / self._count
        return min(_MAX_TIMEOUT_SECONDS, max(_MIN_TIMEOUT_SECONDS, usual) * 2.0 ** min(given_up, _MAX_DOUBLINGS))


def usual_interval(recent: Sequence[Trade]) -> float:
    """The interval that `StaleDetector` learns, from an instrument's newest stored trades; the default where they are too few."""
    seconds = {trade.timestamp // SECOND for trade in recent}
    if len(seconds) < 10:
        return _DEFAULT_INTERVAL_SECONDS
    return min(_MAX_INTERVAL_SECONDS, (max(seconds) - min(seconds)) / (len(seconds) - 1))
