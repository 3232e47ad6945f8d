from __future__ import annotations

from wadm_mcp.collection.live.staleness import StaleDetector


def after(interval: float, frames: int) -> StaleDetector:
    pace = StaleDetector()
    for number in range(frames):
        pace.heard(number * interval)
    return pace


def test_a_busy_instrument_is_given_little_time() -> None:
    assert after(0.02, 50_000).timeout < 40


def test_a_quiet_instrument_is_given_much_time() -> None:
    assert after(60, 100).timeout > 1_200


def test_a_burst_within_a_second_counts_once() -> None:
    quiet, burst = after(60, 100), after(60, 100)
    for number in range(1_000):
        burst.heard(99 * 60 + number / 2_000)
    assert burst.timeout == quiet.timeout


def test_a_market_that_stays_silent_after_a_reconnect_gets_twice_the_time_until_it_speaks() -> None:
    pace = after(1, 600)
    usual = pace.timeout
    pace.gave_up()
    assert pace.timeout == 2 * usual
    pace.heard(600)
    assert pace.timeout < 1.1 * usual


def test_time_without_a_connection_is_no_silence_of_the_market() -> None:
    pace = after(1, 600)
    usual = pace.timeout
    pace.connected(10_000)
    pace.heard(10_001)
    assert abs(pace.timeout - usual) < 1
