"""Exponential backoff: how long to wait before the next attempt."""

from __future__ import annotations

import random


class Backoff:
    """Pauses that double from `first_seconds` to `max_seconds`. With `jitter` each is shortened by up to a half, at random."""

    def __init__(self, first_seconds: float, max_seconds: float, *, jitter: bool = False) -> None:
        self._first = first_seconds
        self._max = max_seconds
        self._jitter = jitter
        self._pause = first_seconds

    def next(self) -> float:
        """Seconds to wait now; the next pause is twice as long."""
        pause = self._pause
        self._pause = min(self._max, pause * 2)
        return pause * random.uniform(0.5, 1.0) if self._jitter else pause

    def reset(self) -> None:
        """The attempt succeeded: the next pause is the first one again."""
        self._pause = self._first
