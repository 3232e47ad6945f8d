"""Which instruments of one connection are silent for longer than they usually are, and what to do about it. Pure: no I/O, no clock.

One silent instrument among others that deliver is subscribed again on its connection, and after that the connection is replaced while it
still delivers the others. It is only ended when nothing at all comes any more. An instrument that its exchange does not trade is not
expected to send anything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from wadm_mcp.model import Instrument

_RESUBSCRIPTIONS: Final = 2
"""How often a silent instrument is subscribed again before its connection is replaced."""
_MAX_FACTOR: Final = 2
"""The silence after which the next attempt is made is at most this many times the timeout of the instrument."""


@dataclass(slots=True)
class _Subscription:
    """What one instrument of the connection has delivered. Times are monotonic seconds."""

    since: float
    """When it last delivered, was subscribed again or began to trade again: its silence counts from here."""
    attempts: int = 0
    """Attempts to end its silence since it last delivered: resubscriptions, then the replacement of the connection."""
    heard: bool = False
    halted_at: float | None = None
    """Since when it is not expected to deliver, because its exchange does not trade it; None while it is."""

    def allowed(self, timeout: float) -> float:
        return timeout * min(1 << self.attempts, _MAX_FACTOR)


class Verdict(NamedTuple):
    """What is to be done about the silent instruments of a connection."""

    stale: list[Instrument]
    """Instruments whose silence has just exceeded what they usually pause."""
    resubscribe: list[Instrument]
    """Those of them to subscribe again, and instruments that trade again."""
    replace: bool
    """The connection should be replaced while it still delivers."""
    mute: tuple[Instrument, float] | None
    """The connection delivers nothing at all: the instrument by which that shows, and its silence in seconds."""


class SilenceWatch:
    """Judges the silence of the instruments of one connection, which began at `began` (monotonic seconds)."""

    def __init__(self, instruments: Iterable[Instrument], began: float) -> None:
        self._subscriptions = {instrument: _Subscription(began) for instrument in instruments}
        self._heard_at = began

    def heard(self, instrument: Instrument, now: float) -> bool:
        """The instrument has delivered. True if it is the first time on this connection."""
        subscription = self._subscriptions[instrument]
        first, subscription.heard = not subscription.heard, True
        subscription.since = self._heard_at = now
        subscription.attempts = 0
        return first

    @property
    def any_heard(self) -> bool:
        """True if any instrument has delivered."""
        return any(each.heard for each in self._subscriptions.values())

    def unheard(self) -> list[Instrument]:
        """Instruments that never delivered."""
        return [one for one, each in self._subscriptions.items() if not each.heard]

    def is_silent(self, instrument: Instrument) -> bool:
        """True if an attempt to end its silence was made since it last delivered."""
        return self._subscriptions[instrument].attempts > 0

    def judge(
        self,
        now: float,
        read_since: float,
        timeout: Callable[[Instrument], float],
        trading: Callable[[Instrument], bool],
        refused: Collection[Instrument] = (),
        ready: Callable[[Instrument], bool] = lambda _: True,
    ) -> Verdict:
        """What to do now. Silence counts from `read_since` at the earliest; `timeout` is what each instrument may pause in seconds.

        `refused` are the instruments whose subscription the exchange refused: they send nothing, and their silence does not count.
        One that is not `ready` is not acted on yet, because another connection of it is; a connection that delivers nothing at all is mute
        all the same.
        """
        resubscribe: list[Instrument] = []
        silent: dict[Instrument, float] = {}
        expected: list[_Subscription] = []
        for instrument, each in self._subscriptions.items():
            if not trading(instrument):
                each.halted_at = now if each.halted_at is None else each.halted_at
                continue
            if each.halted_at is not None:
                # What has delivered since is subscribed.
                if each.since <= each.halted_at:
                    if not ready(instrument):
                        continue
                    resubscribe.append(instrument)
                each.halted_at, each.since, each.attempts = None, now, 0
                continue
            if instrument in refused:
                each.since = now
                continue
            expected.append(each)
            passed = now - max(each.since, read_since)
            if each.attempts <= _RESUBSCRIPTIONS and passed > each.allowed(timeout(instrument)):
                silent[instrument] = passed
        whole = now - max(self._heard_at, read_since)
        for instrument, passed in silent.items():
            if whole > timeout(instrument):
                return Verdict(list(silent), [], False, (instrument, passed))
        replace = False
        stale = [instrument for instrument in silent if ready(instrument)]
        for instrument in stale:
            each = self._subscriptions[instrument]
            each.attempts, each.since = each.attempts + 1, now
            if each.attempts <= _RESUBSCRIPTIONS:
                resubscribe.append(instrument)
            else:
                replace = True
        # Where most of what delivered before has stopped, the connection is broken rather than its subscriptions.
        stopped = sum(each.heard and each.attempts > 1 for each in expected)
        return Verdict(stale, resubscribe, replace or (bool(stale) and 2 * stopped > sum(each.heard for each in expected)), None)
