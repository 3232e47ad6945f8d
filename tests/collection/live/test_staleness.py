from __future__ import annotations

from wadm_mcp.collection.live.staleness import StaleDetector


def after(interval: float, frames: int) -> StaleDetector:
    detector = StaleDetector()
    for number in range(frames):
        detector.heard(number * interval)
    return detector


def test_the_timeout_of_a_busy_instrument_is_short() -> None:
    assert after(0.02, 50_000).timeout < 40


def test_the_timeout_of_a_quiet_instrument_is_long() -> None:
    assert after(60, 100).timeout > 1_200


def test_a_burst_within_a_second_counts_once() -> None:
    quiet, burst = after(60, 100), after(60, 100)
    for number in range(1_000):
        burst.heard(99 * 60 + number / 2_000)
    assert burst.timeout == quiet.timeout


def test_the_timeout_doubles_when_a_market_stays_silent_after_a_reconnect_until_frames_come() -> None:
    detector = after(1, 600)
    usual = detector.timeout
    detector.gave_up()
    assert detector.timeout == 2 * usual
    detector.heard(600)
    assert detector.timeout < 1.1 * usual


def test_time_without_a_connection_does_not_count_as_silence_of_the_market() -> None:
    detector = after(1, 600)
    usual = detector.timeout
    detector.connected(10_000)
    detector.heard(10_001)
    assert abs(detector.timeout - usual) < 1
