"""How long an instrument may be silent before silence is suspect, learned from its own pauses. Pure: no clock, no I/O.

A connection that delivers nothing looks the same as a market that does not trade. What tells them apart is the pace of the market: a
silence that it gives less than once in a million is suspect.

What the estimate assumes. Only pauses of 50 ms and more are counted, since executions come in bursts and most of them share a
millisecond. The scale of the pauses is the sum of their squares divided by twice their sum: half of the mean pause in which a random
moment lies. It weighs long pauses, so that bursts do not shorten it; for trades at random times it is their mean pause. Pauses are taken to
be exponential with this scale: the chance of one longer than `x` is exp(-x / scale), which is one in a million at 13.8 scales. What was
learned fades with the exchange's time, so that the limit follows a market that slows down or speeds up. A market that slows down at
once may have a suspect pause that is real; it is proven by one list of the exchange's recent trades, and learned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

from wadm_mcp.model import MINUTE, SECOND

SHORTEST_SILENCE: Final = 3 * SECOND
"""No shorter silence is suspect, however busy the instrument."""
SHORTEST_PAUSE: Final = 50
"""Trades less than this many milliseconds apart are one burst."""

_SUSPECT_SCALES: Final = math.log(1_000_000)
"""A pause of so many scales is suspect: once in a million."""
_UNUSUAL_SCALES: Final = math.log(1_000)
"""A pause of so many scales is unusual: once in a thousand."""
_MEMORY_MS: Final = 15 * MINUTE
_MEMORY_SCALES: Final = 100
"""What was learned has faded to 37 % (1/e) after the longer of these two."""
_KNOWN_PAUSES: Final = 10
"""Below this many remembered pauses the pace is unknown."""


class SilenceLimit:
    """The longest silence that is not suspect: `ms`, or `unknown` ms until enough pauses are known. One longer than `unusual` ms is worth a
    look at the exchange's recent trades. All times are the exchange's (ms)."""

    __slots__ = ("_at", "_count", "_learned", "_memory", "_squares", "_sum", "_unknown", "ms", "unusual")

    def __init__(self, unknown: int = SHORTEST_SILENCE) -> None:
        self.ms = self.unusual = self._unknown = unknown
        self._learned = float(SHORTEST_SILENCE)
        """The limit by the pauses alone, however few."""
        self._memory = float(_MEMORY_MS)
        self._at = 0
        """End of the newest pause that was learned."""
        self._sum = self._squares = self._count = 0.0

    @property
    def known(self) -> bool:
        """True if enough pauses are known to estimate the pace."""
        return self._count >= _KNOWN_PAUSES

    def learn(self, since: int, until: int) -> None:
        """Two consecutive trades were made at these times, and none between them.

        One pause counts at most as long as the limit before it: a halt of hours must not let a busy instrument be silent for long
        afterwards, while an instrument that slows down raises its limit several times over with each pause.
        """
        if until - since < SHORTEST_PAUSE:
            return
        pause = min(float(until - since), self._learned)
        faded = math.exp(-max(0, until - self._at) / self._memory)
        self._sum = self._sum * faded + pause
        self._squares = self._squares * faded + pause * pause
        self._count = self._count * faded + 1.0
        self._at = max(self._at, until)
        scale = self._squares / (2.0 * self._sum)
        self._memory = max(_MEMORY_MS, _MEMORY_SCALES * scale)
        self._learned = max(SHORTEST_SILENCE, _SUSPECT_SCALES * scale)
        self.ms = self.unusual = self._unknown
        if self.known:
            self.ms = round(self._learned)
            self.unusual = max(SHORTEST_SILENCE, round(_UNUSUAL_SCALES * scale))

    def learn_all(self, times: Iterable[int]) -> None:
        """Learn from the times of all trades of a stretch, in ascending order."""
        for since, until in pairwise(times):
            self.learn(since, until)
