"""The judgement of this machine's clock: walks of wall clocks, late frames and odd sources, against the truth."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.market import NOON
from wadm_mcp.clock import Clock
from wadm_mcp.clock_check import TOLERANCE, ClockCheck, Verdict
from wadm_mcp.model import DAY, HOUR, MINUTE, SECOND

SHIFTS = [0, HOUR, -HOUR, 3 * HOUR, -3 * HOUR, 4 * DAY, -4 * DAY, 40 * DAY, -40 * DAY, 400 * DAY, -400 * DAY]


class Machine:
    """A machine whose wall clock is `shift` ms ahead of the truth, and exchanges that say the truth."""

    def __init__(self, shift: int = 0) -> None:
        self.truth, self.shift, self.monotonic = NOON, shift, 100.0
        self.check = ClockCheck(Clock(lambda: self.truth + self.shift, lambda: self.monotonic))

    def pass_ms(self, milliseconds: int) -> None:
        self.truth += milliseconds
        self.monotonic += milliseconds / SECOND

    def hear(self, source: str = "binance", late: int = 0, lie: int = 0) -> None:
        self.check.heard(source, self.truth - late + lie)

    def hear_for(self, seconds: int, *sources: str, late: int = 0, lie: int = 0) -> None:
        for _ in range(2 * seconds):
            for source in sources or ("binance",):
                self.hear(source, late, lie)
            self.pass_ms(500)

    @property
    def verdict(self) -> Verdict:
        return self.check.judgement.verdict

    @property
    def error(self) -> int:
        return self.check.now() - self.truth


def expected(shift: int) -> Verdict:
    return Verdict.AHEAD if shift > TOLERANCE else Verdict.BEHIND if shift < -TOLERANCE else Verdict.AGREES


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_wrong_clock_is_named_within_seconds_and_the_time_is_the_exchanges(shift: int) -> None:
    machine = Machine(shift)
    assert (machine.verdict, machine.check.expiry_limit, machine.check.clock.confirmed()) == (Verdict.UNKNOWN, None, False)
    machine.hear_for(2)
    assert machine.verdict is expected(shift)
    assert abs(machine.error) <= SECOND
    assert machine.check.clock.confirmed()
    assert (machine.check.expiry_limit is None) is (shift != 0)


@pytest.mark.parametrize("shift", SHIFTS[1:])
def test_a_clock_that_jumps_changes_the_time_at_no_moment_and_expires_nothing(shift: int) -> None:
    machine = Machine()
    machine.hear_for(2)
    machine.shift = shift
    assert abs(machine.error) <= SECOND
    assert machine.verdict is expected(shift)
    assert machine.check.expiry_limit is None
    machine.hear_for(5)
    assert abs(machine.error) <= SECOND
    machine.shift = 0
    assert machine.verdict is Verdict.AGREES
    limit = machine.check.expiry_limit
    assert limit is not None
    assert limit <= machine.truth


def test_the_sentence_names_length_side_and_exchanges() -> None:
    machine = Machine(26 * HOUR)
    machine.hear_for(2, "binance", "bybit")
    assert machine.check.judgement.sentence == (
        "this machine's clock is 26 h ahead of binance and bybit; until it agrees, times are taken from the exchanges and nothing is "
        "deleted; set the clock, e.g. with NTP"
    )
    machine.shift = -90 * MINUTE
    assert "is 90 min behind binance and bybit;" in machine.check.judgement.sentence


@pytest.mark.parametrize("lie", [DAY, -DAY])
def test_one_odd_frame_changes_nothing(lie: int) -> None:
    for shift in (0, 3 * HOUR):
        machine = Machine(shift)
        machine.hear_for(2)
        machine.hear(lie=lie)
        assert machine.verdict is expected(shift)
        assert abs(machine.error) <= SECOND


@pytest.mark.parametrize("lie", [DAY, -DAY])
def test_one_lying_exchange_is_not_believed_beside_another(lie: int) -> None:
    machine = Machine()
    machine.hear_for(20, "bybit", lie=lie)
    machine.hear_for(2, "binance")
    machine.hear_for(20, "bybit", lie=lie)
    assert (machine.verdict, machine.check.judgement.against) == (Verdict.AGREES, ("bybit",))
    assert machine.error == 0
    assert "bybit contradict it" in machine.check.judgement.sentence


def test_where_exchanges_and_clock_all_contradict_each_other_nothing_expires_and_the_last_time_goes_on() -> None:
    machine = Machine()
    machine.hear_for(2, "binance", "bybit")
    machine.shift = 40 * DAY
    machine.hear_for(700, "bybit", lie=-DAY)
    assert (machine.verdict, machine.check.expiry_limit) == (Verdict.DISPUTED, None)
    assert abs(machine.error) <= SECOND
    assert "contradict each other" in machine.check.judgement.sentence


def test_late_frames_do_not_put_a_confirmed_clock_in_doubt() -> None:
    machine = Machine()
    machine.hear_for(2)
    machine.hear_for(300, late=5 * MINUTE)
    assert machine.verdict is Verdict.AGREES
    assert machine.error == 0


def test_a_machine_that_slept_is_believed_within_a_second_of_frames() -> None:
    machine = Machine()
    machine.hear_for(2)
    machine.truth += 3 * HOUR  # The monotonic clock stood still meanwhile.
    machine.hear_for(2)
    assert machine.verdict is Verdict.AGREES
    assert machine.error == 0


def test_expiry_is_bounded_by_the_newest_event_and_the_clock() -> None:
    machine = Machine(-30 * SECOND)
    machine.hear_for(2)
    assert machine.check.expiry_limit == machine.truth - 30 * SECOND
    quiet = Machine(30 * SECOND)
    quiet.hear_for(2)
    quiet.pass_ms(6 * HOUR)
    assert quiet.check.expiry_limit == quiet.truth - 6 * HOUR - 500


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*SHIFTS, 20 * SECOND, -20 * SECOND]),
            st.integers(1, 4),
            st.integers(0, 5 * SECOND),
            st.sampled_from([0, 0, 0, DAY, -40 * DAY]),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_whatever_the_wall_clock_does_time_goes_on_and_nothing_expires_too_early(
    walk: list[tuple[int, int, int, int]],
) -> None:
    machine = Machine(walk[0][0])
    machine.hear_for(2, "binance", "bybit")
    before = machine.check.now()
    for shift, seconds, late, lie in walk:
        machine.shift = shift
        assert abs(machine.error) <= 2 * TOLERANCE
        if lie:
            machine.hear("bybit", lie=lie)
        machine.hear_for(seconds, "binance", "bybit", late=late)
        assert abs(machine.error) <= TOLERANCE + 5 * SECOND
        assert machine.verdict is expected(shift)
        limit = machine.check.expiry_limit
        assert limit is None if machine.verdict is not Verdict.AGREES else limit is not None and limit <= machine.truth
        assert machine.check.now() >= before - 2 * TOLERANCE
        before = machine.check.now()


@pytest.mark.parametrize("lie", [3 * HOUR, -3 * HOUR, 40 * DAY])
def test_one_exchange_does_not_overrule_a_clock_that_was_confirmed(lie: int) -> None:
    machine = Machine()
    machine.hear_for(60)
    machine.hear_for(20 * 60, lie=lie)
    assert abs(machine.error) <= SECOND
    assert machine.verdict is Verdict.DISPUTED
    assert machine.check.expiry_limit is None
    machine.hear_for(20 * 60)
    assert machine.verdict is Verdict.AGREES


@pytest.mark.parametrize("lie", [3 * HOUR, -3 * HOUR, 40 * DAY])
def test_an_exchange_has_one_vote_however_many_sources_it_has(lie: int) -> None:
    alone = Machine()
    alone.hear_for(60)
    alone.hear_for(11 * 60, "binance", "binance REST", lie=lie)
    assert abs(alone.error) <= SECOND
    assert alone.verdict is Verdict.DISPUTED
    beside = Machine(90 * DAY)
    for _ in range(11 * 60):
        beside.hear_for(1, "binance", "binance REST", lie=lie)
        beside.hear_for(1, "bybit")
    assert beside.verdict is Verdict.DISPUTED
    assert beside.check.expiry_limit is None


def test_an_exchange_whose_own_sources_contradict_each_other_decides_nothing() -> None:
    machine = Machine()
    for _ in range(20):
        machine.hear_for(1, "binance REST", lie=3 * HOUR)
        machine.hear_for(1, "binance")
    assert (machine.verdict, machine.check.judgement.against) == (Verdict.AGREES, ("binance REST",))
    assert machine.error == 0


class SuspendedLaptop(Machine):
    """A machine whose monotonic clock stands still while it is suspended, and a clock since its start that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.since_boot = 100.0
        self.check = ClockCheck(Clock(lambda: self.truth + self.shift, lambda: self.monotonic), lambda: self.since_boot)

    def pass_ms(self, milliseconds: int) -> None:
        super().pass_ms(milliseconds)
        self.since_boot += milliseconds / SECOND

    def suspend(self, milliseconds: int) -> None:
        self.truth += milliseconds
        self.since_boot += milliseconds / SECOND


def test_a_laptop_that_was_suspended_knows_the_time_before_any_frame() -> None:
    laptop = SuspendedLaptop()
    laptop.hear_for(2)
    laptop.suspend(9 * HOUR)
    assert (laptop.verdict, laptop.error) == (Verdict.AGREES, 0)
    laptop.shift = 40 * DAY  # While it was suspended its clock was set wrong as well.
    assert laptop.verdict is Verdict.AHEAD
    assert abs(laptop.error) <= SECOND
