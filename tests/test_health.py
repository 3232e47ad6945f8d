from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from decimal import Decimal

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from tests.market import NOON, SPOT, ManualClock
from wadm_mcp.health import Health, Report, State, not_trading
from wadm_mcp.model import Listing


def test_it_is_ready_when_every_part_is_ok_or_on_standby() -> None:
    health = Health(ManualClock().now)
    assert not health.ready
    health.report("store", State.OK)
    health.report("recorder", State.STANDBY)
    assert health.ready
    health.report("binance:spot:BTCUSDT", State.DOWN, "the connection closed")
    assert not health.ready
    assert health.reasons == ["binance:spot:BTCUSDT: down, the connection closed"]


def test_an_instrument_that_does_not_trade_does_not_make_it_unready() -> None:
    health = Health(ManualClock().now)
    health.report("store", State.OK)
    for listed in (Listing(SPOT, Decimal(1), Decimal(1), False, "BREAK"), Listing(SPOT, Decimal(1), Decimal(1)).unlisted()):
        health.report(str(SPOT), *not_trading(listed))
        assert health.ready
        assert health.reasons == []
    assert health.parts[str(SPOT)].state is State.UNLISTED


def test_a_part_keeps_the_time_at_which_it_entered_its_state() -> None:
    clock = ManualClock()
    health = Health(clock.now)
    health.report("store", State.DOWN, "disk full")
    clock.pass_seconds(5)
    health.report("store", State.DOWN, "disk still full")
    assert health.parts["store"] == Report(State.DOWN, "disk still full", NOON)
    health.report("store", State.OK)
    assert health.parts["store"].since == NOON + 5_000


def test_a_forgotten_part_has_no_report() -> None:
    health = Health(ManualClock().now)
    health.report("writer", State.DOWN)
    health.forget("writer")
    health.forget("writer")
    assert health.parts == {}


def test_events_are_counted() -> None:
    health = Health(ManualClock().now)
    health.count("frames.bad")
    health.count("frames.bad", 2)
    assert health.counts["frames.bad"] == 3


@asynccontextmanager
async def logging_changes(health: Health) -> AsyncGenerator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(health.log_changes)
        await wait_all_tasks_blocked()
        yield
        await wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [{"event": record.getMessage(), **record.__dict__["wadm_fields"]} for record in caplog.records]


@pytest.mark.anyio
async def test_a_part_that_goes_down_and_comes_back_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "wadm")
    clock = ManualClock()
    health = Health(clock.now)
    async with logging_changes(health):
        health.report("store", State.STARTING)
        health.report("store", State.OK)
        await wait_all_tasks_blocked()
        assert lines(caplog) == []
        health.report("store", State.DOWN, "disk full")
        health.report("store", State.DOWN, "disk still full")
        await wait_all_tasks_blocked()
        clock.pass_seconds(5)
        health.report("store", State.STARTING)
        await wait_all_tasks_blocked()
        health.report("store", State.OK)
    assert lines(caplog) == [
        {"event": "part.down", "part": "store", "detail": "disk still full", "times": 1},
        {"event": "part.ok", "part": "store", "down_s": 5},
    ]


@pytest.mark.anyio
async def test_a_forgotten_part_that_was_down_is_logged_as_ok(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "wadm")
    health = Health(ManualClock().now)
    async with logging_changes(health):
        health.report("writer", State.DOWN, "is being restarted")
        await wait_all_tasks_blocked()
        health.forget("writer")
    assert [line["event"] for line in lines(caplog)] == ["part.down", "part.ok"]


@pytest.mark.anyio
async def test_a_part_that_flaps_cannot_flood_the_log_and_its_last_state_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "wadm")
    clock = ManualClock()
    health = Health(clock.now)
    async with logging_changes(health):
        for _ in range(50):
            for state in (State.OK, State.DOWN):
                health.report("cache", state)
                await wait_all_tasks_blocked()
        health.report("store", State.DOWN)
        await wait_all_tasks_blocked()
        assert [(line["event"], line["part"]) for line in lines(caplog)] == [
            ("part.down", "cache"),
            ("part.ok", "cache"),
            ("part.down", "store"),
        ]
        clock.pass_seconds(61)
        health.report("recorder", State.OK)
    assert lines(caplog)[3:] == [{"event": "part.down", "part": "cache", "detail": "", "times": 49}]
