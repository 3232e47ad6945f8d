from __future__ import annotations

from wadm_mcp.collection.live.staleness import StaleDetector


def after(interval: float, frames: int) -> StaleDetector:
    detector = StaleDetector()
    for number in range(frames):
        detector.heard(number * interval)
    return detector


def test_the_timeout_of_a_busy_instrument_is_short() -> None:
    assert after(0.02, 50_000).timeout() < 40


def test_the_timeout_of_a_quiet_instrument_is_long() -> None:
    assert after(60, 100).timeout() > 1_200


def test_a_burst_within_a_second_counts_once() -> None:
    quiet, burst = after(60, 100), after(60, 100)
    for number in range(1_000):
        burst.heard(99 * 60 + number / 2_000)
    assert burst.timeout() == quiet.timeout()


def test_the_timeout_doubles_with_each_connection_in_a_row_that_was_given_up_to_at_most_an_hour() -> None:
    detector = after(1, 600)
    assert [detector.timeout(given_up) / detector.timeout() for given_up in (0, 1, 2)] == [1, 2, 4]
    assert detector.timeout(30) == 3_600


def test_redundant_connections_are_given_up_one_after_the_other() -> None:
    detector = after(1, 600)
    assert detector.replaceable(640)
    detector.gave_up(640)
    assert not detector.replaceable(644.9)
    assert detector.replaceable(645)


def test_a_collector_is_held_up_by_what_another_one_did_and_not_by_what_it_did_itself() -> None:
    detector, one, other = after(1, 600), object(), object()
    detector.gave_up(640, one)
    assert detector.replaceable(640, one)
    assert not detector.replaceable(644.9, other)
    assert not detector.replaceable(659.9, other, 20)
    assert detector.replaceable(660, other, 20)


def test_time_without_a_connection_does_not_count_as_silence_of_the_market() -> None:
    detector = after(1, 600)
    usual = detector.timeout()
    detector.connected(10_000)
    detector.heard(10_001)
    assert abs(detector.timeout() - usual) < 1
