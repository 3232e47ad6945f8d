from __future__ import annotations

from tests.market import NOON, Clock
from wadm_mcp.health import Health, Report, State


def test_it_is_ready_when_every_part_is_well_or_stands_by() -> None:
    health = Health(Clock())
    assert not health.ready
    health.report("store", State.OK)
    health.report("recorder", State.STANDBY)
    assert health.ready
    health.report("binance:spot:BTCUSDT", State.DOWN, "the connection closed")
    assert not health.ready
    assert health.reasons == ["binance:spot:BTCUSDT: down, the connection closed"]


def test_a_part_keeps_the_time_since_when_it_is_so() -> None:
    clock = Clock()
    health = Health(clock)
    health.report("store", State.DOWN, "disk full")
    clock.pass_seconds(5)
    health.report("store", State.DOWN, "disk still full")
    assert health.parts["store"] == Report(State.DOWN, "disk still full", NOON)
    health.report("store", State.OK)
    assert health.parts["store"].since == NOON + 5_000


def test_a_part_that_is_no_more_says_nothing() -> None:
    health = Health(Clock())
    health.report("writer", State.DOWN)
    health.forget("writer")
    health.forget("writer")
    assert health.parts == {}


def test_events_are_counted() -> None:
    health = Health(Clock())
    health.count("frames.bad")
    health.count("frames.bad", 2)
    assert health.counts["frames.bad"] == 3
