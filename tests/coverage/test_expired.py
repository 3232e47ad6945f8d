from __future__ import annotations

import pytest

from tests.market import NOON
from wadm_mcp.coverage.expired import Expired
from wadm_mcp.model import DAY, HOUR, MINUTE, Retention, Timeframe, Window

EXPIRED = Expired().older_than(Retention(HOUR, DAY, 10 * DAY), NOON)


@pytest.mark.parametrize(
    ("window", "unit", "lost"),
    [
        (Window(NOON - 2 * HOUR, NOON), Timeframe.M5, []),
        (Window(NOON - 26 * HOUR, NOON), Timeframe.M5, [Window(NOON - 26 * HOUR, NOON - DAY)]),
        (Window(NOON - 26 * HOUR, NOON), Timeframe.H1, []),
        (Window(NOON - 26 * HOUR - MINUTE, NOON - 25 * HOUR), Timeframe.H1, [Window(NOON - 26 * HOUR - MINUTE, NOON - 26 * HOUR)]),
        (Window(NOON - 26 * HOUR, NOON - 25 * HOUR + MINUTE), Timeframe.H1, [Window(NOON - 25 * HOUR, NOON - 25 * HOUR + MINUTE)]),
        (
            Window(NOON - 26 * HOUR + MINUTE, NOON - 26 * HOUR + 2 * MINUTE),
            Timeframe.H1,
            [Window(NOON - 26 * HOUR + MINUTE, NOON - 26 * HOUR + 2 * MINUTE)],
        ),
        (Window(NOON - 27 * HOUR, NOON), Timeframe.H4, []),
        (Window(NOON - 27 * HOUR, NOON - 26 * HOUR), Timeframe.D1, []),
        (Window(NOON - 26 * HOUR - MINUTE, NOON), Timeframe.D1, [Window(NOON - 26 * HOUR - MINUTE, NOON - 26 * HOUR)]),
        (Window(NOON - 11 * DAY, NOON), Timeframe.H1, [Window(NOON - 11 * DAY, NOON - 10 * DAY)]),
    ],
)
def test_expired_minutes_are_a_gap_unless_a_stored_hour_replaces_them(window: Window, unit: Timeframe, lost: list[Window]) -> None:
    assert EXPIRED.of_bars(window, unit) == lost


def test_single_trades_are_a_gap_after_their_retention() -> None:
    assert EXPIRED.of_trades(Window(NOON - 2 * HOUR, NOON)) == [Window(NOON - 2 * HOUR, NOON - HOUR)]
    assert EXPIRED.of_trades(Window(NOON - HOUR, NOON)) == []


def test_a_stretch_that_was_deleted_stays_expired_under_a_longer_retention() -> None:
    found = Expired(trades=(Window(NOON - DAY, NOON - 90 * MINUTE),)).older_than(Retention(7 * DAY, 7 * DAY, 7 * DAY), NOON)
    assert found.of_trades(Window(NOON - 2 * DAY, NOON)) == [Window(NOON - DAY, NOON - 90 * MINUTE)]
    assert [found.has_trades(NOON - age * MINUTE) for age in (91, 90)] == [False, True]


def test_a_minute_and_an_hour_are_gone_with_any_part_of_them() -> None:
    part = Window(NOON - 3 * HOUR + 20_000, NOON - 2 * HOUR - 20_000)
    gone, window = Expired((part,), (part,), (part,)), Window(NOON - DAY, NOON)
    assert gone.of_trades(window) == gone.of_bars(window, Timeframe.M1) == [Window(NOON - 3 * HOUR, NOON - 2 * HOUR)]
    cut = Expired(hours=(Window(NOON - 3 * HOUR, NOON - 2 * HOUR + MINUTE),))
    assert cut.of_bars(window, Timeframe.H1) == [Window(NOON - 3 * HOUR, NOON - HOUR)]
