"""Whether this machine's wall clock can be trusted, judged by the exchanges' own times. Pure: no I/O.

Every frame of trades says when its exchange sent it, and every reply of a REST host has a date. Compared on the monotonic clock, which no
one can set, they say what time it is whatever the wall clock does. `ClockCheck.clock` is the clock of the process: the wall clock while it
agrees with the exchanges, and their time, carried on by the monotonic clock, while it does not. So a wall clock that is wrong, or jumps,
changes neither which frames are recorded nor what is covered, and nothing expires by it.

Who is believed. A source's first time is believed at once if it agrees with the wall clock, since two clocks that are wrong by the same
amount are unlikely. Any other is believed once the source repeats it: one odd frame changes nothing. Times can arrive late and never
early, so one that lags behind a wall clock that was confirmed is a late frame, unless it stays so for minutes. Of sources that contradict
each other the larger group is believed, in which each exchange has one vote, however many sources it has. The wall clock has one too, if a
source agrees with it or it goes on as it was last confirmed. Without a larger group nobody is believed, and the last confirmed time is
carried on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from wadm_mcp.clock import Clock

TOLERANCE: Final = 60_000
"""Milliseconds by which clocks may differ and still agree. It is far above the delay of a frame, and too small to harm any data."""

_REPEATS: Final = 3
"""Times in a row after which a source that contradicts is believed,"""
_REPEATED_MS: Final = 1_000
"""and the time that must lie between the first and the last of them."""
_LATE_MS: Final = 10 * 60_000
"""The same for times that are behind a wall clock that was confirmed: until then they are late."""
_MOMENT_MS: Final = 100
_MAX_SOURCES: Final = 64


class Verdict(StrEnum):
    """What the exchanges' times say of the wall clock."""

    UNKNOWN = "unknown"
    """No exchange has been heard yet."""
    AGREES = "agrees"
    AHEAD = "ahead"
    BEHIND = "behind"
    DISPUTED = "disputed"
    """The sources contradict each other, and neither side is the larger one."""


class Judgement(NamedTuple):
    """What is known of the wall clock. It is `by` ms ahead of `sources` (below 0: behind), which `against` contradict."""

    verdict: Verdict
    by: int = 0
    sources: tuple[str, ...] = ()
    against: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The judgement in one sentence, and what follows from it."""
        names = _listed(self.sources)
        match self.verdict:
            case Verdict.UNKNOWN:
                return "no exchange has confirmed this machine's clock yet; nothing is deleted until one has"
            case Verdict.DISPUTED:
                return (
                    f"{names} and {_listed(self.against)} send times that contradict each other, so this machine's clock is not confirmed; "
                    "nothing is deleted until they agree; check this machine's clock, e.g. with NTP, and the addresses of the exchanges"
                )
            case Verdict.AHEAD | Verdict.BEHIND:
                side = "ahead of" if self.by > 0 else "behind"
                return (
                    f"this machine's clock is {duration(abs(self.by))} {side} {names}; until it agrees, times are taken from the exchanges "
                    "and nothing is deleted; set the clock, e.g. with NTP"
                )
            case Verdict.AGREES:
                odd = f"; {_listed(self.against)} contradict it and are not believed" if self.against else ""
                return f"agrees with {names}{odd}"


@dataclass(slots=True)
class _Source:
    """What one source says. An offset is its time minus the monotonic clock (ms)."""

    believed: int | None = None
    claimed: int = 0
    """A contradicting offset that it may turn out to repeat,"""
    since: float = 0.0
    """the monotonic time (ms) of the first one,"""
    repeats: int = 0
    """and how often it came in a row."""

    heard_at: float = -math.inf
    """When it was last heard (monotonic ms)."""

    def confirms(self, time: int, monotonic: float) -> bool:
        """Whether a time only repeats what was heard a moment ago: a busy exchange sends thousands a second."""
        if self.believed is None or self.repeats or monotonic - self.heard_at >= _MOMENT_MS:
            return False
        return abs(time - monotonic - self.believed) <= TOLERANCE

    def hear(self, offset: int, machine: int, monotonic: float) -> None:
        """It said a time; `machine` is the offset of the wall clock."""
        believed, self.heard_at = self.believed, monotonic
        if believed is None and abs(offset - machine) <= TOLERANCE:
            self.believed, self.repeats = offset, 0
        elif believed is not None and abs(offset - believed) <= TOLERANCE:
            # The least delayed time is the best one; the slow descent follows a monotonic clock that runs fast.
            self.believed, self.repeats = max(offset, believed - 1), 0
        else:
            if not self.repeats or abs(offset - self.claimed) > TOLERANCE:
                self.since, self.repeats = monotonic, 0
            self.claimed = offset
            self.repeats += 1
            late = believed is not None and offset < believed and abs(believed - machine) <= TOLERANCE
            if self.repeats >= _REPEATS and monotonic - self.since >= (_LATE_MS if late else _REPEATED_MS):
                self.believed, self.repeats = offset, 0


class ClockCheck:
    """Judges the wall clock of `clock` by the times that are `heard`. `monotonic` (seconds) goes on while the machine is suspended; without
    it that of `clock` is used."""

    def __init__(self, clock: Clock, monotonic: Callable[[], float] | None = None) -> None:
        self._wall = clock.now
        self._monotonic = monotonic or clock.monotonic
        self._sources: dict[str, _Source] = {}
        self._base: int | None = None
        """The last confirmed offset: the right time minus the monotonic clock (ms). None before any."""
        self._wall_confirmed = False
        """Whether that was the wall clock's."""
        self._newest = 0
        """The newest time (ms) that a believed source said."""
        self._judgement = Judgement(Verdict.UNKNOWN)
        self.clock = Clock(self.now, clock.monotonic, self._confirmed)
        """The clock that everything else goes by."""

    def heard(self, source: str, time: int) -> None:
        """A source said its time (ms): an exchange in a frame, or its REST hosts in a reply.

        `source` is the name of the exchange, with what of it after a space: `binance`, `binance REST`.
        """
        monotonic, known = self._monotonic() * 1_000, self._sources.get(source)
        if known is None:
            if len(self._sources) >= _MAX_SOURCES:
                return
            known = self._sources[source] = _Source()
        elif known.confirms(time, monotonic):
            return
        offset, machine = time - int(monotonic), self._wall() - int(monotonic)
        known.hear(offset, machine, monotonic)
        self._judge(machine)
        if self._base is not None and known.believed is not None and abs(offset - self._base) <= TOLERANCE:
            self._newest = max(self._newest, time)

    def now(self) -> int:
        """The time (ms): by the wall clock while it agrees with the exchanges or none was heard, else by the exchanges."""
        wall, monotonic = self._wall(), int(self._monotonic() * 1_000)
        if self._base is not None and abs(wall - monotonic - self._base) > TOLERANCE:
            self._judge(wall - monotonic)
            if abs(wall - monotonic - self._base) > TOLERANCE:
                return monotonic + self._base
        return wall

    @property
    def judgement(self) -> Judgement:
        """What is known of the wall clock now."""
        self._judge(self._wall() - int(self._monotonic() * 1_000))
        return self._judgement

    @property
    def expiry_limit(self) -> int | None:
        """What is older by this time (ms) than its retention may be deleted; None while nothing may.

        It is the newest time that an exchange has said, and never after the wall clock, which must agree with the exchanges.
        """
        agrees = self.judgement.verdict is Verdict.AGREES
        return min(self._newest, self._wall()) if agrees else None

    def _confirmed(self) -> bool:
        return self._base is not None

    def _judge(self, machine: int) -> None:
        """Judge the wall clock with this offset, and take over what is confirmed."""
        believed = {name: source.believed for name, source in self._sources.items() if source.believed is not None}
        if not believed:
            return
        agree = tuple(name for name, offset in believed.items() if abs(offset - machine) <= TOLERANCE)
        others = {name: offset for name, offset in believed.items() if name not in agree}
        largest = max((_near(offset, others) for offset in others.values()), key=_exchanges, default=())
        # Confirmed before, and not set since: it contradicts a source that says something else now.
        goes_on = self._wall_confirmed and self._base is not None and abs(machine - self._base) <= TOLERANCE
        votes = _exchanges(agree) + (bool(agree) or goes_on)
        if agree and votes > _exchanges(largest):
            self._base, self._wall_confirmed = machine, True
            self._judgement = Judgement(Verdict.AGREES, 0, agree, tuple(others))
        elif _exchanges(largest) > max(votes, *(_exchanges(group) for group in _apart(largest, others)), 0):
            offsets = sorted(others[name] for name in largest)
            self._base, self._wall_confirmed = offsets[len(offsets) // 2], False
            by = machine - self._base
            against = tuple(name for name in believed if name not in largest)
            self._judgement = Judgement(Verdict.AHEAD if by > 0 else Verdict.BEHIND, by, largest, against)
        else:
            self._judgement = Judgement(Verdict.DISPUTED, 0, largest, tuple(name for name in believed if name not in largest))


def _exchanges(sources: tuple[str, ...]) -> int:
    """How many exchanges these sources are of."""
    return len({source.partition(" ")[0] for source in sources})


def _near(offset: int, offsets: dict[str, int]) -> tuple[str, ...]:
    """The sources that agree with one of them."""
    return tuple(name for name, other in offsets.items() if abs(other - offset) <= TOLERANCE)


def _apart(group: tuple[str, ...], offsets: dict[str, int]) -> list[tuple[str, ...]]:
    """The groups of sources that share none with a group."""
    groups = (_near(offset, offsets) for offset in offsets.values())
    return [other for other in groups if not set(other) & set(group)]


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0] if names else "the exchanges"


def duration(milliseconds: int) -> str:
    """A duration (ms) in the unit that a person would use: `26 h`, `40 d`."""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000)):
        if milliseconds >= 2 * size:
            return f"{milliseconds / size:,.1f}".removesuffix(".0") + f" {unit}"
    return f"{round(milliseconds / 60_000)} min"
