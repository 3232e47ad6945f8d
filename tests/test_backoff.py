"""Backoff: pauses double up to a longest one, and begin anew after a success."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from wadm_mcp.backoff import Backoff


def test_each_pause_is_twice_as_long_as_the_one_before() -> None:
    backoff = Backoff(0.5, 1_000.0)
    assert [backoff.next() for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]


@pytest.mark.parametrize(
    ("first", "longest", "pauses"),
    [
        (5.0, 60.0, [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]),
        (1.0, 8.0, [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]),
        (3.0, 3.0, [3.0, 3.0, 3.0, 3.0, 3.0, 3.0]),
    ],
    ids=["the longest is no multiple", "the longest is a multiple", "the first is the longest"],
)
def test_no_pause_is_longer_than_the_longest(first: float, longest: float, pauses: list[float]) -> None:
    backoff = Backoff(first, longest)
    assert [backoff.next() for _ in pauses] == pauses


@pytest.mark.parametrize("failures", [0, 1, 3, 50])
def test_after_a_success_the_pauses_begin_anew(failures: int) -> None:
    backoff = Backoff(2.0, 30.0)
    for _ in range(failures):
        backoff.next()
    backoff.reset()
    assert [backoff.next() for _ in range(5)] == [2.0, 4.0, 8.0, 16.0, 30.0]


def test_one_backoff_does_not_lengthen_another() -> None:
    failing, other = Backoff(1.0, 60.0), Backoff(1.0, 60.0)
    for _ in range(5):
        failing.next()
    assert other.next() == 1.0


def test_ten_thousand_failures_in_a_row_do_not_overflow() -> None:
    backoff = Backoff(0.1, 60.0)
    pauses = [backoff.next() for _ in range(10_000)]
    assert pauses[-1] == 60.0
    backoff.reset()
    assert backoff.next() == 0.1


def test_jitter_keeps_each_pause_between_its_half_and_its_whole() -> None:
    whole, shortened = Backoff(1.0, 60.0), Backoff(1.0, 60.0, jitter=True)
    for _ in range(5_000):
        pause = whole.next()
        assert pause / 2 <= shortened.next() <= pause


@pytest.mark.parametrize(("share", "pauses"), [(min, [2.0, 4.0, 8.0, 10.0]), (max, [4.0, 8.0, 16.0, 20.0])], ids=["half", "whole"])
def test_jitter_reaches_both_bounds_and_does_not_shorten_later_pauses(
    share: Callable[[float, float], float], pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", share)
    backoff = Backoff(4.0, 20.0, jitter=True)
    assert [backoff.next() for _ in pauses] == pauses


def test_jitter_spreads_the_attempts_of_many_connections_that_failed_at_once() -> None:
    pauses = sorted(Backoff(10.0, 60.0, jitter=True).next() for _ in range(1_000))
    # Of a thousand uniform draws none leaves a tenth of the range empty: the chance of one that does is below 10^-40.
    assert max(later - earlier for earlier, later in pairwise([5.0, *pauses, 10.0])) < 0.5


def test_without_jitter_nothing_is_random(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda *_: pytest.fail("a pause without jitter is random"))
    assert Backoff(1.0, 60.0).next() == 1.0
