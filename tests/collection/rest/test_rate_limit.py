from __future__ import annotations

import math

import anyio
import pytest
from anyio.lowlevel import checkpoint

from tests.market import NOON, ManualClock
from wadm_mcp.collection.rest.rate_limit import AT_ONCE, SHARE, Priority, RateLimiter
from wadm_mcp.errors import ExchangeError
from wadm_mcp.exchanges.binance_rest import BAN_END
from wadm_mcp.exchanges.exchange import Allowance

pytestmark = pytest.mark.anyio

MINUTELY = Allowance(100, 60.0, "X-MBX-USED-WEIGHT-1M", ban_end=BAN_END)
OURS = int(100 * SHARE)


class Timed:
    """A rate limiter whose waits pass at once, and the seconds that they took."""

    def __init__(self, allowance: Allowance = MINUTELY) -> None:
        self.clock = ManualClock(NOON)
        self.limiter = RateLimiter("binance spot", allowance, clock=self.clock, until=self._until)

    async def _until(self, event: anyio.Event, seconds: float) -> None:
        if math.isinf(seconds):
            await event.wait()
        elif not event.is_set():
            self.clock.pass_seconds(seconds)
            await checkpoint()

    @property
    def passed(self) -> float:
        return (self.clock.now() - NOON) / 1_000

    async def request(self, weight: int, status: int = 200, said: bytes = b"", **headers: str) -> None:
        async with self.limiter.request(weight) as number:
            self.limiter.note_reply(number, status, {name.replace("_", "-"): value for name, value in headers.items()}, said)


async def test_no_minute_sees_more_than_our_share_of_the_weight() -> None:
    one = Timed()
    sent: list[tuple[float, int]] = []
    for _ in range(20):
        await one.request(20)
        sent.append((one.passed, 20))
    for at, _ in sent:
        assert sum(weight for other, weight in sent if at <= other < at + 60) <= OURS
    assert one.passed >= 60 * (20 * 20 / OURS - 2)


async def test_weight_reported_by_the_exchange_counts_until_its_minute_ends() -> None:
    one = Timed()
    one.clock.pass_seconds(20)
    await one.request(1, X_MBX_USED_WEIGHT_1M=str(OURS))
    await one.request(1)
    assert one.passed >= 60


async def test_history_leaves_a_part_of_our_share_to_a_repair_that_comes_up() -> None:
    one = Timed()
    for _ in range(4):
        await one.limiter.acquire(OURS // 5, Priority.HISTORY)
    assert one.passed == 0
    await one.limiter.acquire(OURS // 5, Priority.REPAIR)
    assert one.passed == 0
    await one.limiter.acquire(1, Priority.HISTORY)
    assert one.passed >= 60


async def test_a_weight_that_never_fits_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match=f"request weight {OURS + 1} exceeds the limit of {OURS} per window"):
        await Timed().request(OURS + 1)


@pytest.mark.parametrize(("status", "retry_after"), [(429, "3"), (418, "4")])
async def test_a_short_penalty_is_waited_out(status: int, retry_after: str) -> None:
    one = Timed()
    await one.request(1, status, Retry_After=retry_after)
    await one.request(1)
    assert one.passed >= int(retry_after)


@pytest.mark.parametrize(
    ("status", "headers", "said", "seconds"),
    [
        (418, {"Retry_After": "600"}, b"", 600),
        (418, {}, f"banned until {NOON + 900_000}.".encode(), 900),
        (418, {}, b"", 120),
        (429, {}, b"", 60),
        (403, {}, b"", MINUTELY.forbidden),
        (451, {}, b"", MINUTELY.region),
    ],
)
async def test_a_ban_sends_nothing_until_it_ends_and_says_so_at_once(
    status: int, headers: dict[str, str], said: bytes, seconds: float
) -> None:
    one = Timed()
    await one.request(1, status, said, **headers)
    one.clock.pass_seconds(seconds - 6)
    with pytest.raises(ExchangeError, match=f"no request to binance spot until 2026-06-01T.*it answered HTTP {status}"):
        await one.request(1)
    assert one.limiter.state.closed_for > 5
    one.clock.pass_seconds(7)
    await one.request(1)


async def test_requests_that_wait_when_a_ban_comes_fail_at_once() -> None:
    one = Timed()
    refusals: list[str] = []

    async def ask() -> None:
        try:
            await one.request(1)
        except ExchangeError as error:
            refusals.append(str(error))

    async with anyio.create_task_group() as tasks, one.limiter.request(1) as first:
        for _ in range(AT_ONCE + 2):
            tasks.start_soon(ask)
        one.limiter.note_reply(first, 418, {"Retry-After": "600"})
        await anyio.wait_all_tasks_blocked()
    assert len(refusals) == AT_ONCE + 2


async def test_failures_of_the_exchange_are_met_with_growing_pauses_and_forgotten_at_once() -> None:
    one, pauses = Timed(), list[float]()
    for _ in range(4):
        await one.request(1, 503)
        pauses.append(one.limiter.state.closed_for)
        one.clock.pass_seconds(pauses[-1])
    assert pauses == [1, 2, 4, 8]
    await one.request(1)
    await one.request(1, 503)
    assert one.limiter.state.closed_for == 1


async def test_no_more_than_a_few_requests_are_unanswered_at_once() -> None:
    one, asking = Timed(), 0
    most = 0

    async def ask() -> None:
        nonlocal asking, most
        async with one.limiter.request(1):
            asking += 1
            most = max(most, asking)
            await checkpoint()
            await checkpoint()
            asking -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(12):
            tasks.start_soon(ask)
    assert most == AT_ONCE


async def test_a_higher_priority_goes_first_and_no_request_waits_for_ever() -> None:
    one = Timed()
    order: list[str] = []

    async def ask(name: str, priority: Priority) -> None:
        await one.limiter.acquire(1, priority)
        order.append(name)

    unanswered = [one.limiter.request(1) for _ in range(AT_ONCE)]
    for each in unanswered:
        await each.__aenter__()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "an old audit", Priority.HISTORY)
        await anyio.wait_all_tasks_blocked()
        one.clock.pass_seconds(100)
        for name, priority in (("audit", Priority.HISTORY), ("repair", Priority.REPAIR), ("listings", Priority.LISTINGS)):
            tasks.start_soon(ask, name, priority)
            await anyio.wait_all_tasks_blocked()
        for each in unanswered:
            await each.__aexit__(None, None, None)
    assert order == ["an old audit", "listings", "repair", "audit"]
