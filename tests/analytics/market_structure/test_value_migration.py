"""Value areas compared with sets of ticks, and naked POCs with the path of price from trade to trade."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics import structure_oracles as oracles
from wadm_mcp.analytics.market_structure.value_migration import SessionValue, naked_pocs, overlap, relation, streak


def _value(val: int, vah: int, poc: int | None = None, *, whole: bool = True) -> SessionValue:
    middle = (val + vah) // 2 if poc is None else poc
    return SessionValue(0, middle, middle, vah, val, vah, val, middle, whole)


@pytest.mark.parametrize(
    ("now", "expected", "shared"),
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
        ((0, 10), "overlapping_lower", 0.0),
        ((0, 9), "lower", 0.0),
        ((15, 15), "inside", 1.0),
        ((20, 20), "inside", 1.0),
        ((30, 30), "higher", 0.0),
    ],
)
def test_relation_compares_the_value_area_with_the_previous_one(now: tuple[int, int], expected: str, shared: float) -> None:
    before = _value(10, 20)
    assert relation(_value(*now), before) == expected
    assert overlap(_value(*now), before) == shared


_AREA = st.tuples(st.integers(0, 12), st.integers(0, 6)).map(lambda area: (area[0], sum(area)))


@given(_AREA, _AREA)
@settings(max_examples=150)
def test_relation_and_overlap_are_those_of_sets_of_ticks(now: tuple[int, int], before: tuple[int, int]) -> None:
    assert relation(_value(*now), _value(*before)) == oracles.value_relation(now, before)
    assert overlap(_value(*now), _value(*before)) == float(oracles.value_overlap(now, before))


@pytest.mark.parametrize(
    ("pocs", "expected"),
    [
        ([], 0),
        ([1], 0),
        ([1, 2, 3], 2),
        ([5, 3, 2], -2),
        ([1, 5, 3], -1),
        ([5, 1, 3], 1),
        ([1, 2, 2], 0),
        ([2, 2, 3], 1),
        ([3, 1, 2, 4], 2),
    ],
)
def test_a_streak_counts_the_moves_in_one_direction(pocs: list[int], expected: int) -> None:
    assert streak([_value(0, 9, poc) for poc in pocs]) == expected


_DAY = st.tuples(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(0, 7), st.booleans())


@given(st.lists(_DAY, min_size=1, max_size=6), st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_a_poc_is_naked_as_long_as_no_step_between_two_trades_meets_its_row(days: list[tuple[list[int], int, bool]], row: int) -> None:
    sessions: list[SessionValue] = []
    for place, (path, chosen, whole) in enumerate(days):
        poc = path[chosen % len(path)] // row * row
        sessions.append(SessionValue(place, poc, poc + row - 1, poc, poc, max(path), min(path), path[-1], whole))
    expected: list[tuple[int, str]] = []
    for place, session in enumerate(sessions[:-1]):
        since = [session.close, *(price for path, _, _ in days[place + 1 :] for price in path)]
        if oracles.untouched(range(session.poc, session.poc_top + 1), since):
            expected.append((place, "naked" if all(whole for _, _, whole in days[place:]) else "unknown"))
    assert [(one.session.start, one.status) for one in naked_pocs(sessions)] == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(10, 19, ["naked"]), (10, 20, []), (24, 24, []), (25, 40, []), (5, 9, ["naked"]), (22, 22, [])]
)
def test_a_row_that_is_touched_at_its_edge_or_jumped_across_is_not_naked(low: int, high: int, expected: list[str]) -> None:
    first = SessionValue(0, 20, 24, 24, 20, 30, 10, 15, True)
    later = SessionValue(1, low, low, high, low, high, low, high, True)
    assert [one.status for one in naked_pocs([first, later])] == expected


@pytest.mark.parametrize(
    ("torn", "expected"),
    [(None, ["naked", "naked"]), (0, ["unknown", "naked"]), (1, ["unknown", "unknown"]), (2, ["unknown", "unknown"])],
)
def test_missing_trades_since_or_in_its_own_session_leave_a_poc_unknown(torn: int | None, expected: list[str]) -> None:
    sessions = [SessionValue(day, poc, poc, poc, poc, 90, 90, 90, day != torn) for day, poc in enumerate((50, 60, 90))]
    assert [one.status for one in naked_pocs(sessions)] == expected


def test_the_open_session_has_no_naked_poc_yet() -> None:
    assert naked_pocs([]) == []
    assert naked_pocs([SessionValue(0, 5, 5, 6, 4, 9, 1, 9, True)]) == []


def test_a_jump_from_one_session_to_the_next_crosses_what_lies_between() -> None:
    sessions = [SessionValue(day, 50, 50, 50, 50, price, price, price, True) for day, price in enumerate((40, 45, 55, 60))]
    assert [one.session.start for one in naked_pocs(sessions)] == [2]
