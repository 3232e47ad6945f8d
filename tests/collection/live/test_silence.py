from __future__ import annotations

from collections.abc import Callable

from wadm_mcp.collection.live.silence import SilenceWatch, Verdict
from wadm_mcp.model import Instrument

BTC, ETH, DEAD = (Instrument("bybit", "linear", symbol) for symbol in ("BTCUSDT", "ETHUSDT", "DEADUSDT"))
TIMEOUT = 15.0


class Watched:
    """A connection with three instruments that may each pause for 15 seconds. `second` is its clock."""

    def __init__(self) -> None:
        self.watch = SilenceWatch((BTC, ETH, DEAD), 0.0)
        self.halted: set[Instrument] = set()
        self.refused: set[Instrument] = set()
        self.held_up: set[Instrument] = set()
        self.timeouts = dict.fromkeys((BTC, ETH, DEAD), TIMEOUT)
        self.second = 0.0

    def judge(self, read_since: float = 0.0) -> Verdict:
        return self.watch.judge(
            self.second, read_since, self.timeouts.__getitem__, lambda one: one not in self.halted, self.refused, self.ready
        )

    def ready(self, instrument: Instrument) -> bool:
        return instrument not in self.held_up

    def run(self, until: float, *speaking: Instrument, stop: Callable[[Verdict], bool] = lambda _: False) -> list[tuple[float, Verdict]]:
        """Let a second pass after another, in each of which these instruments deliver. Returns every verdict about something."""
        said: list[tuple[float, Verdict]] = []
        while self.second < until:
            self.second += 1
            for instrument in speaking:
                self.watch.heard(instrument, self.second)
            verdict = self.judge()
            if verdict != Verdict([], [], False, None):
                said.append((self.second, verdict))
                if stop(verdict):
                    break
        return said


def test_instruments_that_deliver_are_left_alone() -> None:
    assert Watched().run(3_600, BTC, ETH, DEAD) == []


def test_a_silent_instrument_among_others_is_subscribed_again_twice_and_then_has_the_connection_replaced() -> None:
    said = Watched().run(3_600, BTC, ETH)
    assert [(second, verdict.resubscribe, verdict.replace) for second, verdict in said] == [
        (16, [DEAD], False),
        (47, [DEAD], False),
        (78, [], True),
    ]
    assert all(verdict.stale == [DEAD] and verdict.mute is None for _, verdict in said)


def test_an_instrument_that_delivers_again_has_all_its_attempts_again() -> None:
    one = Watched()
    one.run(20, BTC, ETH)
    one.watch.heard(DEAD, 20.0)
    assert [second for second, _ in one.run(60, BTC, ETH)] == [36]


def test_a_connection_that_delivers_nothing_at_all_is_mute_after_the_shortest_patience() -> None:
    one = Watched()
    one.timeouts[ETH] = 600.0
    one.run(10, BTC, ETH, DEAD)
    (second, verdict), *_ = one.run(600, stop=lambda verdict: verdict.mute is not None)
    assert second == 26
    assert verdict.mute == (BTC, 16.0)
    assert ETH not in verdict.stale


def test_a_quiet_instrument_does_not_make_a_connection_mute_before_its_own_patience() -> None:
    one = Watched()
    one.timeouts = {BTC: 600.0, ETH: 600.0, DEAD: 600.0}
    one.run(10, BTC, ETH, DEAD)
    assert one.run(600) == []


def test_an_instrument_that_does_not_trade_is_not_missed_and_is_subscribed_again_once_it_trades() -> None:
    one = Watched()
    one.halted = {DEAD}
    assert one.run(3_600, BTC, ETH) == []
    one.halted = set()
    ((second, verdict),) = one.run(3_610, BTC, ETH)
    assert (second, verdict.resubscribe, verdict.stale) == (3_601, [DEAD], [])


def test_an_instrument_that_delivered_before_its_list_said_that_it_trades_is_not_subscribed_again() -> None:
    one = Watched()
    one.halted = {DEAD}
    one.run(100, BTC, ETH)
    one.watch.heard(DEAD, one.second)
    one.second += 1
    one.watch.heard(DEAD, one.second)
    one.halted = set()
    assert one.run(110, BTC, ETH, DEAD) == []


def test_a_refused_instrument_is_not_missed() -> None:
    one = Watched()
    one.refused = {DEAD}
    assert one.run(3_600, BTC, ETH) == []


def test_a_connection_on_which_most_instruments_have_stopped_is_replaced_while_it_delivers_the_others() -> None:
    one = Watched()
    one.run(10, BTC, ETH, DEAD)
    said = one.run(3_600, BTC, stop=lambda verdict: verdict.replace)
    assert [(second, verdict.replace) for second, verdict in said] == [(26, False), (57, True)]


def test_time_in_which_nothing_was_read_is_nobodys_silence() -> None:
    one = Watched()
    one.second = 100.0
    assert one.judge(read_since=99.0) == Verdict([], [], False, None)


def test_an_instrument_on_which_another_connection_acts_is_left_alone_until_that_is_over() -> None:
    one = Watched()
    one.held_up = {DEAD}
    assert one.run(60, BTC, ETH) == []
    one.held_up = set()
    assert [(second, verdict.resubscribe, verdict.stale) for second, verdict in one.run(61, BTC, ETH)] == [(61, [DEAD], [DEAD])]


def test_an_instrument_that_trades_again_is_subscribed_again_once_no_other_connection_does_so() -> None:
    one = Watched()
    one.halted, one.held_up = {DEAD}, {DEAD}
    one.run(10, BTC, ETH)
    one.halted = set()
    assert one.run(20, BTC, ETH) == []
    one.held_up = set()
    assert [(second, verdict.resubscribe) for second, verdict in one.run(30, BTC, ETH)] == [(21, [DEAD])]


def test_the_silence_of_a_refused_instrument_counts_from_when_it_is_requested_again() -> None:
    one = Watched()
    one.refused = {DEAD}
    assert one.run(60, BTC, ETH) == []
    one.refused = set()
    assert [(second, verdict.resubscribe) for second, verdict in one.run(80, BTC, ETH)] == [(76, [DEAD])]
