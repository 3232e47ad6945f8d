"""How much of one REST host may still be asked: one budget for everyone in this process who asks it.

An exchange counts by address, and others live behind ours: more programs, more machines. So WADM uses half of what is allowed, counts what
the host says has been used by whomever, and once refused stays away for as long as it was told: a ban is worse than a gap.
"""

from __future__ import annotations

import math
import re
from bisect import insort
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from enum import IntEnum
from http import HTTPStatus
from itertools import count
from typing import Final, NamedTuple

import anyio

from wadm_mcp.clock import SYSTEM_CLOCK, Clock
from wadm_mcp.errors import ExchangeError
from wadm_mcp.exchanges.exchange import Allowance
from wadm_mcp.model import SECOND

SHARE: Final = 0.5
"""The part of an exchange's allowance that WADM uses. No setting: the rest is for others behind the address, whom a ban would hit too."""

AT_ONCE: Final = 4
"""Requests that may be unanswered at once: what an answer says of the weight used, or of a ban, must be heard before many more go out."""

_HEAD_START: Final = 30.0
"""Seconds by which a priority goes before the next one: whoever has waited so much longer goes first after all: nobody waits for good."""

_BEHIND: Final = 0.8
"""The part of it that history may use: a repair that comes up in the middle of an import does not wait for a minute to pass."""

_PATIENCE: Final = 5.0
"""Seconds of a penalty that are waited out; a longer one is told at once."""

_GRACE: Final = 1.0
"""Seconds added to times that an exchange tells, for its clock and its rounding."""

_TOO_MANY: Final = 60.0
_BAN: Final = 120.0
_LONGEST: Final = 3 * 86_400.0
"""Bans are of 2 minutes to 3 days (docs/exchanges.md 4.1): no reply keeps us away for longer."""

_LONGEST_BACKOFF: Final = 60.0
_UNTIL: Final = re.compile(rb"until ([0-9]{13})(?![0-9])")
"""Where Binance's text names the end of a ban, in ms."""

_REASONS: Final[Mapping[int, str]] = {
    HTTPStatus.FORBIDDEN: ", which refuses this address",
    HTTPStatus.IM_A_TEAPOT: ", a ban of this address for too many requests",
    HTTPStatus.TOO_MANY_REQUESTS: ", too many requests from this address",
}


class Priority(IntEnum):
    """Who goes first."""

    LISTINGS = 0
    REPAIR = 1
    HISTORY = 2
    """Imports and audits: what nobody waits for."""


class Spending(NamedTuple):
    """How a budget stands: weight used and allowed now, and for how many seconds (0: not at all) nothing is asked, and why."""

    used: int
    allowed: int
    closed_for: float
    why: str


class _Turn:
    """A place in the queue. Who is to look again is told by `moved`."""

    def __init__(self, due: float, number: int) -> None:
        self.order = (due, number)
        self.moved = anyio.Event()


async def _until(event: anyio.Event, seconds: float) -> None:
    with anyio.move_on_after(seconds):
        await event.wait()


class RateLimiter:
    """The weight of one host. `who` is how errors call it; `until` waits for an event, so many seconds at most.

    Our own requests are counted over the seconds behind us, which is stricter than the exchange's whole minutes and right whatever either
    clock says; what a reply says of all users of the address is believed until the exchange's minute ends.
    """

    def __init__(
        self,
        who: str,
        allowance: Allowance,
        *,
        clock: Clock = SYSTEM_CLOCK,
        until: Callable[[anyio.Event, float], Awaitable[None]] = _until,
    ) -> None:
        self.who = who
        self.allowed = int(allowance.weight * SHARE)
        self.closed_until = -math.inf
        """Monotonic seconds before which nothing is asked."""
        self._allowance = allowance
        self._clock = clock
        self._until = until
        self._why = ""
        self._turns: list[_Turn] = []
        self._numbers = count()
        self._unanswered = 0
        self._sent: deque[tuple[float, int]] = deque()
        """When which weight was spent, oldest first, as far as it still counts."""
        self._counting = 0
        """The sum of those weights."""
        self._total = 0
        """Everything ever spent; a request is known by what this was with it."""
        self._told, self._told_of, self._told_until = 0, 0, -math.inf
        """Weight used by whomever, the request whose reply said so, and until when (monotonic) it counts."""
        self._failures, self._failed_at = 0, -1

    @property
    def state(self) -> Spending:
        """How it stands now."""
        now = self._clock.monotonic()
        closed = max(0.0, self.closed_until - now)
        return Spending(max(self._ours(now), self._everyones(now)), self.allowed, closed, self._why if closed else "")

    async def spend(self, weight: int, priority: int = Priority.REPAIR) -> None:
        """Returns when a request of this weight may be sent, which is then to be done at once.

        First come, first served, but by `priority`. `ExchangeError` at once when nothing is asked for more than a few seconds, also for
        those who wait already.
        """
        if weight > self.allowed:
            raise ValueError(f"a request of weight {weight} never fits {self.allowed}")
        turn = _Turn(self._clock.monotonic() + priority * _HEAD_START, next(self._numbers))
        insort(self._turns, turn, key=lambda each: each.order)
        try:
            allowed = int(self.allowed * _BEHIND) if priority >= Priority.HISTORY and weight < self.allowed * _BEHIND else self.allowed
            while (pause := self._pause(turn, weight, allowed)) > 0:
                turn.moved = anyio.Event()
                await self._until(turn.moved, pause)
            self._sent.append((self._clock.monotonic(), weight))
            self._counting += weight
            self._total += weight
        finally:
            self._turns.remove(turn)
            self._next()

    @asynccontextmanager
    async def asking(self, weight: int, priority: int = Priority.REPAIR) -> AsyncGenerator[int]:
        """A request from its turn to its end: waits as `spend` does, and counts as unanswered while the block lasts. Yields its number."""
        await self.spend(weight, priority)
        self._unanswered += 1
        try:
            yield self._total
        finally:
            self._unanswered -= 1
            self._next()

    def heard(self, number: int, status: int, headers: Mapping[str, str], said: bytes = b"") -> None:
        """A reply to a request: what it tells of the weight used, and whether the host is to be left alone.

        To be called as soon as its headers are in, and of a refusal again with what it `said`.
        """
        self._hear_used(number, headers.get(self._allowance.used_header, ""))
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._fail(number, status)
        elif status in _REASONS:
            self._close(self._penalty(status, headers.get("Retry-After", ""), said), status)
        else:
            self._failures = 0

    def _pause(self, turn: _Turn, weight: int, allowed: int) -> float:
        """Seconds until the request may be sent, or is to look again; 0 when it may."""
        now = self._clock.monotonic()
        closed = self.closed_until - now
        if closed > _PATIENCE:
            again = datetime.fromtimestamp(self._clock.now() / SECOND + closed, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            raise ExchangeError(f"{self.who} is asked nothing before {again}: it answered {self._why}")
        if turn is not self._turns[0] or self._unanswered >= AT_ONCE:
            return math.inf
        return max(closed, self._until_ours_fit(now, weight, allowed), self._until_everyones_fit(now, weight, allowed))

    def _until_ours_fit(self, now: float, weight: int, allowed: int) -> float:
        over, pause = self._ours(now) + weight - allowed, 0.0
        for at, spent in self._sent:
            if over <= 0:
                break
            over, pause = over - spent, at + self._allowance.seconds - now
        return pause

    def _until_everyones_fit(self, now: float, weight: int, allowed: int) -> float:
        return self._told_until - now if self._everyones(now) + weight > allowed else 0.0

    def _ours(self, now: float) -> int:
        while self._sent and now >= self._sent[0][0] + self._allowance.seconds:
            self._counting -= self._sent.popleft()[1]
        return self._counting

    def _everyones(self, now: float) -> int:
        """What the newest request's reply said, and what we have spent since; 0 once the exchange counts anew."""
        return self._told + self._total - self._told_of if now < self._told_until else 0

    def _hear_used(self, number: int, used: str) -> None:
        now = self._clock.monotonic()
        if not (used.isascii() and used.isdecimal()) or (number < self._told_of and now < self._told_until):
            return
        seconds = self._allowance.seconds
        self._told, self._told_of = int(used[:12]), number
        self._told_until = now + seconds - self._clock.now() / SECOND % seconds + _GRACE
        self._next()

    def _fail(self, number: int, status: int) -> None:
        # Requests that were under way together tell of one failure, not of several.
        if number > self._failed_at:
            self._failures += 1
            self._failed_at = self._total
            self._close(min(_LONGEST_BACKOFF, 2.0 ** min(self._failures - 1, 10)), status)

    def _penalty(self, status: int, retry_after: str, said: bytes) -> float:
        if status == HTTPStatus.FORBIDDEN:
            return self._allowance.forbidden
        if retry_after.isascii() and retry_after.isdecimal():
            return min(_LONGEST, int(retry_after[:12]) + _GRACE)
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            return _TOO_MANY
        found = _UNTIL.search(said)
        left = (int(found[1]) - self._clock.now()) / SECOND if found is not None else 0.0
        return min(_LONGEST, left + _GRACE) if left > 0 else _BAN

    def _close(self, seconds: float, status: int) -> None:
        until = self._clock.monotonic() + seconds
        if until > self.closed_until:
            self.closed_until = until
            self._why = f"HTTP {status}{_REASONS.get(status, '')}"
        for turn in self._turns:
            turn.moved.set()

    def _next(self) -> None:
        """Whoever is first looks whether it is its turn."""
        if self._turns:
            self._turns[0].moved.set()
