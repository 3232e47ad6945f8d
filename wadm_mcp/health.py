"""The state of each part of the process, as the part reports it and `/health` reads it. In memory, without waiting."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

import anyio

from wadm_mcp.logs import log
from wadm_mcp.model import MINUTE, UNLISTED, Listing
from wadm_mcp.texts import printable, quoted, redacted

_MAX_DETAIL_CHARS: Final = 4_000
_LINES_PER_MINUTE: Final = 2
"""Log lines on one part: that it went down and that it came back."""


class State(StrEnum):
    """The state of a part."""

    STARTING = "starting"
    OK = "ok"
    STANDBY = "standby"
    """Healthy, while another process records and this one answers from the store."""
    DOWN = "down"
    HALTED = "halted"
    """An instrument that its exchange lists and does not trade: nothing is expected of it."""
    UNLISTED = "unlisted"
    """An instrument that its exchange does not list, or not any more."""


_READY: Final = (State.OK, State.STANDBY, State.HALTED, State.UNLISTED)
"""The states in which a part needs nothing."""


class Report(NamedTuple):
    """The last report of a part. `since` is when it entered this state (ms)."""

    state: State
    detail: str
    since: int


def not_trading(listing: Listing) -> tuple[State, str]:
    """The state of an instrument that does not trade, and why in a few words."""
    if listing.status == UNLISTED:
        return State.UNLISTED, "the exchange does not list it; it is recorded again once it does"
    return State.HALTED, f"the exchange does not trade it: its status there is {quoted(listing.status) if listing.status else 'not known'}"


class Health:
    """The states of parts by name, and counters of events such as invalid frames."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._parts: dict[str, Report] = {}
        self.counts: Counter[str] = Counter()
        self._changed = anyio.Event()
        self._down: dict[str, int] = {}
        """Parts that were last logged as down, and since when they are (ms)."""
        self._falls: Counter[str] = Counter()
        self._lines: dict[str, deque[int]] = {}

    def report(self, part: str, state: State, detail: str = "") -> None:
        """Set the state of a part. A repeated state keeps its `since`. Passwords in URLs and letters that are not visible are not shown."""
        detail = printable(redacted(detail), _MAX_DETAIL_CHARS)
        known = self._parts.get(part)
        if known is not None and known.state is state:
            self._parts[part] = Report(state, detail, known.since)
            return
        self._parts[part] = Report(state, detail, self._now())
        self._falls[part] += state is State.DOWN
        self._changed.set()

    def forget(self, part: str) -> None:
        """Remove a part that has ended."""
        self._parts.pop(part, None)
        self._changed.set()

    def count(self, event: str, by: int = 1) -> None:
        """Count an event, such as `frames.bad`."""
        self.counts[event] += by

    @property
    def parts(self) -> dict[str, Report]:
        """The last report of every part, by name."""
        return dict(sorted(self._parts.items()))

    @property
    def ready(self) -> bool:
        """Whether every part but the cache is OK or on standby, or an instrument that does not trade. Without the cache answers are
        slower, not wrong."""
        needed = [part for name, part in self._parts.items() if name != "cache"]
        return bool(needed) and all(part.state in _READY for part in needed)

    @property
    def reasons(self) -> list[str]:
        """The parts that are neither OK nor on standby, one line each, without instruments that do not trade."""
        return [
            f"{name}: {part.state}{f', {part.detail}' if part.detail else ''}"
            for name, part in self.parts.items()
            if part.state not in _READY
        ]

    async def log_changes(self) -> None:
        """Log `part.down` and `part.ok` as parts go down and come back, until cancelled.

        A part that flaps is logged at most twice a minute, with its state at that time and how often it went down since.
        """
        while True:
            self._changed = anyio.Event()
            with anyio.move_on_after(self._log_due()):
                await self._changed.wait()

    def _log_due(self) -> float | None:
        """Log the changes that are due. Returns the seconds until the next is due, None where none is pending."""
        now, later = self._now(), None
        for part in sorted({*self._parts, *self._down}):
            report = self._parts.get(part)
            down = report is not None and report.state is State.DOWN
            if down == (part in self._down) or (report is not None and report.state is State.STARTING):
                continue
            lines = self._lines.setdefault(part, deque(maxlen=_LINES_PER_MINUTE))
            if len(lines) == _LINES_PER_MINUTE and 0 <= now - lines[0] < MINUTE:
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
