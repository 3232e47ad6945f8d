"""The one place parts report their state to, and `/health` reads from. In memory, never waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple


class State(StrEnum):
    """How a part is doing."""

    STARTING = "starting"
    OK = "ok"
    STANDBY = "standby"
    """Healthy and waiting: another process records, this one answers from the store."""
    DOWN = "down"


class Report(NamedTuple):
    """What one part last said of itself. `since` is when it entered this state (ms)."""

    state: State
    detail: str
    since: int


class Health:
    """States of parts by name, and counters of what went wrong without stopping anything."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._parts: dict[str, Report] = {}
        self.counts: Counter[str] = Counter()

    def report(self, part: str, state: State, detail: str = "") -> None:
        """A part says how it is; a repeated state keeps its `since`."""
        known = self._parts.get(part)
        since = known.since if known is not None and known.state is state else self._clock()
        self._parts[part] = Report(state, detail, since)

    def forget(self, part: str) -> None:
        """The part is no more."""
        self._parts.pop(part, None)

    def count(self, event: str, by: int = 1) -> None:
        """One more of an event, such as `frames.bad`."""
        self.counts[event] += by

    @property
    def parts(self) -> dict[str, Report]:
        """Every part's last word, by name."""
        return dict(sorted(self._parts.items()))

    @property
    def ready(self) -> bool:
        """Is every part that answers depend on live or standing by? Without its cache WADM is slower, not wrong."""
        needed = [part for name, part in self._parts.items() if name != "cache"]
        return bool(needed) and all(part.state in (State.OK, State.STANDBY) for part in needed)

    @property
    def reasons(self) -> list[str]:
        """Why `ready` is false, one line a part."""
        return [
            f"{name}: {part.state}{f', {part.detail}' if part.detail else ''}"
            for name, part in self.parts.items()
            if part.state not in (State.OK, State.STANDBY)
        ]
