from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wadm_mcp.analytics.market_structure.value_migration import SessionValue, naked_pocs, overlap, relation, streak


def _value(val: int, vah: int, poc: int | None = None, *, whole: bool = True) -> SessionValue:
    middle = (val + vah) // 2 if poc is None else poc
    return SessionValue(0, middle, middle, vah, val, vah, val, middle, whole)


@pytest.mark.parametrize(
    ("now", "told", "shared"),
    [
        ((21, 30), "higher", 0.0),
        ((20, 30), "overlapping_higher", 0.0),
        ((15, 25), "overlapping_higher", 0.5),
        ((12, 18), "inside", 1.0),
        ((10, 18), "inside", 1.0),
        ((5, 25), "outside", 1.0),
        ((10, 25), "outside", 1.0),
        ((10, 20), "unchanged", 1.0),
        ((5, 15), "overlapping_lower", 0.5),
        ((0, 9), "lower", 0.0),
        ((15, 15), "inside", 1.0),
        ((30, 30), "higher", 0.0),
    ],
)
def test_value_lies_against_the_value_before(now: tuple[int, int], told: str, shared: float) -> None:
    before = _value(10, 20)
    assert relation(_value(*now), before) == told
    assert overlap(_value(*now), before) == shared


@pytest.mark.parametrize(
    ("pocs", "told"), [([], 0), ([1], 0), ([1, 2, 3], 2), ([5, 3, 2], -2), ([1, 5, 3], -1), ([1, 2, 2], 0), ([3, 1, 2, 4], 2)]
)
def test_a_streak_counts_the_moves_in_one_direction(pocs: list[int], told: int) -> None:
    assert streak([_value(0, 9, poc) for poc in pocs]) == told


_SESSION = st.lists(st.integers(0, 40), min_size=1, max_size=8)


@given(st.lists(st.tuples(_SESSION, st.integers(0, 7), st.booleans()), min_size=1, max_size=6), st.integers(1, 3))
def test_a_poc_is_naked_as_long_as_no_step_between_two_trades_meets_its_row(days: list[tuple[list[int], int, bool]], row: int) -> None:
    sessions: list[SessionValue] = []
    for place, (prices, chosen, whole) in enumerate(days):
        poc = prices[chosen % len(prices)] // row * row
        sessions.append(SessionValue(place, poc, poc + row - 1, poc, poc, max(prices), min(prices), prices[-1], whole))
    expected: list[tuple[int, str]] = []
    for place, session in enumerate(sessions[:-1]):
        since = [sessions[place].close, *(price for prices, _, _ in days[place + 1 :] for price in prices)]
        met = any(min(one, two) <= session.poc_top and max(one, two) >= session.poc for one, two in pairwise(since))
        if not met:
            expected.append((place, "naked" if all(whole for _, _, whole in days[place:]) else "unknown"))
    assert [(one.session.start, one.status) for one in naked_pocs(sessions)] == expected
