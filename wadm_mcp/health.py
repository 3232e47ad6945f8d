"""The one place parts report their state to, and `/health` reads from. In memory, never waits; `tell_changes` logs beside it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

import anyio

from wadm_mcp.logs import log
from wadm_mcp.model import MINUTE

_LINES: Final = 2
"""Most lines a minute on one part: it went down, it came back."""


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

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._parts: dict[str, Report] = {}
        self.counts: Counter[str] = Counter()
        self._changed = anyio.Event()
        self._down: dict[str, int] = {}
        """Parts that the log has as down, and since when (ms)."""
        self._falls: Counter[str] = Counter()
        self._lines: dict[str, deque[int]] = {}

    def report(self, part: str, state: State, detail: str = "") -> None:
        """A part says how it is; a repeated state keeps its `since`."""
        known = self._parts.get(part)
        if known is not None and known.state is state:
            self._parts[part] = Report(state, detail, known.since)
            return
        self._parts[part] = Report(state, detail, self._now())
        self._falls[part] += state is State.DOWN
        self._changed.set()

    def forget(self, part: str) -> None:
        """The part is no more."""
        self._parts.pop(part, None)
        self._changed.set()

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

    async def tell_changes(self) -> None:
        """Log `part.down` and `part.ok` as parts go down and come back, until cancelled.

        A part that flaps is told of twice a minute at most: then how it is by that time, and how often it went down.
        """
        while True:
            self._changed = anyio.Event()
            with anyio.move_on_after(self._tell()):
                await self._changed.wait()

    def _tell(self) -> float | None:
        """Log what has changed and may be told; seconds until more may be, None where nothing is left."""
        now, later = self._now(), None
        for part in sorted({*self._parts, *self._down}):
            report = self._parts.get(part)
            down = report is not None and report.state is State.DOWN
            if down == (part in self._down) or (report is not None and report.state is State.STARTING):
                continue
            lines = self._lines.setdefault(part, deque(maxlen=_LINES))
            if len(lines) == _LINES and 0 <= now - lines[0] < MINUTE:
                wait = (lines[0] + MINUTE - now) / 1_000
                later = wait if later is None else min(later, wait)
                continue
            lines.append(now)
            if report is not None and down:
                self._down[part] = report.since
                log.warning("part.down", part=part, detail=report.detail, times=self._falls.pop(part, 1))
            else:
                log.info("part.ok", part=part, down_s=(now - self._down.pop(part)) // 1_000)
        return later
