"""The rate limit of one REST host, shared by everything in this process that sends requests to it.

An exchange counts requests by address, and other programs and machines may share ours. So WADM uses half of the allowance, takes into
account what the host reports as used, and after a refusal sends nothing for as long as the host asks: a ban is worse than a gap.
"""

from __future__ import annotations

import math
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
from wadm_mcp.errors import ExchangeError, HostRefused
from wadm_mcp.exchanges.exchange import Allowance
from wadm_mcp.model import SECOND

SHARE: Final = 0.5
"""Share of the rate limit that WADM uses. The rest is left to other programs at this address, which a ban would hit too; so it is not a
setting."""

AT_ONCE: Final = 4
"""Requests that may be unanswered at once: the weight used or a ban in a reply must be known before many more are sent."""

_HEAD_START_SECONDS: Final = 30.0
"""Each priority level is worth this many seconds of waiting, so that requests of low priority are not starved."""

_HISTORY_SHARE: Final = 0.8
"""The part of our share that history may use, so that a repair during an import need not wait for the next minute."""

_MAX_WAIT_SECONDS: Final = 5.0
"""Longest penalty that a request waits for; with a longer one it fails at once."""

_GRACE_SECONDS: Final = 1.0
"""Added to times that an exchange states, for its clock and its rounding."""

_TOO_MANY_SECONDS: Final = 60.0
_BAN_SECONDS: Final = 120.0
_MAX_BAN_SECONDS: Final = 3 * 86_400.0
"""Bans last from 2 minutes to 3 days (docs/exchanges.md 4.1): longer times in a reply are cut to this."""

_MAX_BACKOFF_SECONDS: Final = 60.0

_REASONS: Final[Mapping[int, str]] = {
    HTTPStatus.FORBIDDEN: "it blocks this address",
    HTTPStatus.IM_A_TEAPOT: "this address is banned for too many requests",
    HTTPStatus.TOO_MANY_REQUESTS: "too many requests from this address",
    HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS: "it does not serve this region",
}
"""What the statuses mean after which no request is sent for a while."""

REFUSED: Final = (HTTPStatus.FORBIDDEN, HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS)
"""Statuses with which a host refuses this address or its region, whatever is requested."""


def penalty(allowance: Allowance, status: int, retry_after: str, body: bytes, now: int) -> float:
    """Seconds to stay away from a host after it refused a request or a handshake with this status; 0 where the status asks for none.

    `retry_after` is that header's value, empty without one; `now` is the wall time (ms).
    """
    if status not in _REASONS:
        return 0.0
    if status == HTTPStatus.FORBIDDEN:
        return allowance.forbidden
    if retry_after.isascii() and retry_after.isdecimal():
        return min(_MAX_BAN_SECONDS, int(retry_after[:12]) + _GRACE_SECONDS)
    if status == HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS:
        return allowance.region
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return _TOO_MANY_SECONDS
    found = allowance.ban_end.search(body) if allowance.ban_end is not None else None
    left = (int(found[1]) - now) / SECOND if found is not None else 0.0
    return min(_MAX_BAN_SECONDS, left + _GRACE_SECONDS) if left > 0 else _BAN_SECONDS


def advice(status: int, way_on: str) -> str:
    """What a refusal with this status means and what to do, for the end of an error; empty for other statuses.

    `way_on` is what an operator can do where the host does not serve this address.
    """
    match status:
        case HTTPStatus.FORBIDDEN:
            return f"The exchange blocks this address: too many requests came from it, or it does not serve its region. {way_on}"
        case HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS:
            return f"The exchange does not serve this region. {way_on}"
        case HTTPStatus.IM_A_TEAPOT:
            return "This address is banned for too many requests: wait"
        case HTTPStatus.TOO_MANY_REQUESTS:
            return "Too many requests from this address: wait"
        case _:
            return ""


class Priority(IntEnum):
    """Order of requests: the lower number goes first."""

    LISTINGS = 0
    REPAIR = 1
    HISTORY = 2
    """Imports and audits, which are not urgent."""


class LimiterState(NamedTuple):
    """State of a rate limiter: weight used and allowed now, for how many seconds no request is sent (0: requests are sent), and why."""

    used: int
    allowed: int
    closed_for: float
    why: str


class _Waiter:
    """A request in the queue. `recheck` is set when it should check again whether it may be sent."""

    def __init__(self, due: float, number: int) -> None:
        self.order = (due, number)
        self.recheck = anyio.Event()


async def _until(event: anyio.Event, seconds: float) -> None:
    with anyio.move_on_after(seconds):
        await event.wait()


class RateLimiter:
    """Limits the requests to one host. `host` names it in errors, `way_on` says there what to do where it refuses this address.

    `until` waits for an event, at most so many seconds.

    Our own requests are counted over a sliding window, which is stricter than the exchange's whole minutes and does not depend on the
    clocks. The weight that a reply reports for all users of the address counts until the exchange's minute ends.
    """

    def __init__(
        self,
        host: str,
        allowance: Allowance,
        *,
        way_on: str = "",
        clock: Clock = SYSTEM_CLOCK,
        until: Callable[[anyio.Event, float], Awaitable[None]] = _until,
    ) -> None:
        self.host = host
        self.allowed = int(allowance.weight * SHARE)
        self.closed_until = -math.inf
        """Monotonic time before which no request is sent."""
        self._allowance = allowance
        self._clock = clock
        self._until = until
        self._way_on = way_on
        self._why = ""
        self._refused = False
        """Whether the last refusal was one of this address."""
        self._queue: list[_Waiter] = []
        self._numbers = count()
        self._unanswered = 0
        self._sent: deque[tuple[float, int]] = deque()
        """Monotonic time and weight of requests that still count, oldest first."""
        self._sent_weight = 0
        """The sum of these weights."""
        self._total = 0
        """Weight of all requests since the start. Its value after a request is that request's number."""
        self._reported, self._reported_at, self._reported_until = 0, 0, -math.inf
        """Weight that the address has used, the number of the request whose reply reported it, and until when (monotonic) it counts."""
        self._failures, self._failed_at = 0, -1

    @property
    def state(self) -> LimiterState:
        """Its state now."""
        now = self._clock.monotonic()
        closed = max(0.0, self.closed_until - now)
        return LimiterState(max(self._used_by_us(now), self._used_by_all(now)), self.allowed, closed, self._why if closed else "")

    async def acquire(self, weight: int, priority: int = Priority.REPAIR) -> None:
        """Returns when a request of this weight may be sent; send it at once.

        Requests of one priority go in the order of their calls. `ExchangeError` at once when no request is sent for more than a few
        seconds, also for calls that wait already; it is a `HostRefused` while the host refuses this address.
        """
        if weight > self.allowed:
            raise ValueError(f"request weight {weight} exceeds the limit of {self.allowed} per window")
        waiter = _Waiter(self._clock.monotonic() + priority * _HEAD_START_SECONDS, next(self._numbers))
        insort(self._queue, waiter, key=lambda each: each.order)
        try:
            share = self.allowed * _HISTORY_SHARE
            allowed = int(share) if priority >= Priority.HISTORY and weight < share else self.allowed
            while (pause := self._pause(waiter, weight, allowed)) > 0:
                waiter.recheck = anyio.Event()
                await self._until(waiter.recheck, pause)
            self._sent.append((self._clock.monotonic(), weight))
            self._sent_weight += weight
            self._total += weight
        finally:
            self._queue.remove(waiter)
            self._next()

    @asynccontextmanager
    async def request(self, weight: int, priority: int = Priority.REPAIR) -> AsyncGenerator[int]:
        """A request: waits as `acquire` does, and counts as unanswered while the block lasts. Yields the request's number."""
        await self.acquire(weight, priority)
        self._unanswered += 1
        try:
            yield self._total
        finally:
            self._unanswered -= 1
            self._next()

    def note_reply(self, number: int, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        """Take note of a reply: the weight it reports, and whether to stay away from the host.

        Call it as soon as the headers are read, and for a refusal again with the `body`.
        """
        self._note_used(number, headers.get(self._allowance.used_header, ""))
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._fail(number, status)
        elif seconds := penalty(self._allowance, status, headers.get("Retry-After", ""), body, self._clock.now()):
            self._close(seconds, status)
        else:
            self._failures = 0

    def _pause(self, waiter: _Waiter, weight: int, allowed: int) -> float:
        """Seconds until the request may be sent, or checks again; 0 when it may be sent."""
        now = self._clock.monotonic()
        closed = self.closed_until - now
        if closed > _MAX_WAIT_SECONDS:
            again = datetime.fromtimestamp(self._clock.now() / SECOND + closed, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            text = f"no request to {self.host} until {again}: it answered {self._why}"
            raise HostRefused(f"{text}. {self._way_on}" if self._way_on else text) if self._refused else ExchangeError(text)
        if waiter is not self._queue[0] or self._unanswered >= AT_ONCE:
            return math.inf
        return max(closed, self._until_ours_fits(now, weight, allowed), self._until_all_fits(now, weight, allowed))

    def _until_ours_fits(self, now: float, weight: int, allowed: int) -> float:
        over, pause = self._used_by_us(now) + weight - allowed, 0.0
        for at, sent in self._sent:
            if over <= 0:
                break
            over, pause = over - sent, at + self._allowance.seconds - now
        return pause

    def _until_all_fits(self, now: float, weight: int, allowed: int) -> float:
        return self._reported_until - now if self._used_by_all(now) + weight > allowed else 0.0

    def _used_by_us(self, now: float) -> int:
        while self._sent and now >= self._sent[0][0] + self._allowance.seconds:
            self._sent_weight -= self._sent.popleft()[1]
        return self._sent_weight

    def _used_by_all(self, now: float) -> int:
        """Weight that the newest reply reported plus that of our requests since; 0 once a new minute of the exchange begins."""
        return self._reported + self._total - self._reported_at if now < self._reported_until else 0

    def _note_used(self, number: int, used: str) -> None:
        now = self._clock.monotonic()
        if not (used.isascii() and used.isdecimal()) or (number < self._reported_at and now < self._reported_until):
            return
        seconds = self._allowance.seconds
        self._reported, self._reported_at = int(used[:12]), number
        self._reported_until = now + seconds - self._clock.now() / SECOND % seconds + _GRACE_SECONDS
        self._next()

    def _fail(self, number: int, status: int) -> None:
        # Failures of requests that were unanswered at the same time count as one.
        if number > self._failed_at:
            self._failures += 1
            self._failed_at = self._total
            self._close(min(_MAX_BACKOFF_SECONDS, 2.0 ** min(self._failures - 1, 10)), status)

    def _close(self, seconds: float, status: int) -> None:
        until = self._clock.monotonic() + seconds
        if until > self.closed_until:
            self.closed_until = until
            self._refused = status in REFUSED
            self._why = f"HTTP {status} ({_REASONS[status]})" if status in _REASONS else f"HTTP {status}"
        for waiter in self._queue:
            waiter.recheck.set()

    def _next(self) -> None:
        """Let the first in the queue check whether it may send."""
        if self._queue:
            self._queue[0].recheck.set()
