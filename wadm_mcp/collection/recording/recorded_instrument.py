"""One instrument while it is recorded: its tape, its coverage, and how far its market's time has come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from wadm_mcp.clock import Clock
from wadm_mcp.collection.live.staleness import StaleDetector, usual_interval
from wadm_mcp.coverage.spans import InstrumentCoverage, Span
from wadm_mcp.model import MINUTE, SECOND, Instrument, Trade, Window
from wadm_mcp.tape import InstrumentTape

_MAX_QUIET_MS: Final = 30 * SECOND
"""At most this much time after the newest trade counts as covered where ids are gapless: the next id will prove the rest, and until then
a dead connection may go unnoticed for minutes. Elsewhere one is noticed within this time."""
_IN_FLIGHT_MS: Final = SECOND
"""Frames may arrive this much market time late: the time within it counts as covered only once a trade confirms it."""


class RecordedInstrument:
    """What the recorder knows of one instrument beside its trades. It is the tape's `CoverageSource`."""

    def __init__(self, tape: InstrumentTape, coverage: InstrumentCoverage, clock: Clock) -> None:
        self.tape = tape
        self.coverage = coverage
        self.staleness = StaleDetector()
        self.finest = tape.listing.scale
        """The finest scale at which the listing or a trade was written."""
        self.halted = False
        """True from a report that the instrument does not trade to its next trade."""
        self.trades_again = False
        """True from a current trade although its listing says that it does not trade, until the exchange lists it anew."""
        self.delivered_by: dict[int, tuple[int, int]] = {}
        """By connection that delivers it and is expected to go on: event times (ms) of its first and its last frame."""
        self.being_imported: Window | None = None
        """A window whose trades are coming in now, oldest first: gaps in it are not for gap repair."""
        self._clock = clock
        self._began = clock.monotonic()
        self._event_time: int | None = None
        self._traded_at = 0
        """Time of the newest trade that a connection delivered (ms)."""
        self._received_at = 0.0
        self._alive_since = 0
        self._backpressure = False

    @property
    def instrument(self) -> Instrument:
        return self.tape.instrument

    @property
    def since(self) -> int:
        """Others may have recorded it up to this time (ms)."""
        return self._clock.now() - round((self._clock.monotonic() - self._began) * SECOND)

    @property
    def traded_at(self) -> int:
        """Time of the newest trade that a connection delivered (ms); 0 without one."""
        return self._traded_at

    @property
    def spans(self) -> list[Span]:
        return self.coverage.spans

    def add_stored(self, spans: Iterable[Span], recent: Sequence[Trade] = ()) -> None:
        """Load stored coverage; `recent` are the newest stored trades, oldest first."""
        self.coverage.add_stored(spans, recent)
        if recent:
            self.staleness.expect(usual_interval(recent))
        self.tape.resume(recent[-1] if recent else None)

    def frames_received(self, event_time: int, traded_at: int, received_at: float) -> None:
        """Frames of trades came in at `received_at` (monotonic seconds). The exchange sent the newest one at `event_time` (ms); their
        newest trade was made at `traded_at` (ms; 0 without one)."""
        self._event_time, self._received_at = event_time, received_at
        self._traded_at = max(self._traded_at, traded_at)
        self._backpressure = False
        self.staleness.heard(received_at)

    def alive_from(self, event_time: int) -> None:
        """A connection delivers from exchange time `event_time` (ms) on, after none did."""
        self._alive_since = event_time

    def backpressure(self) -> None:
        """Backpressure has begun: time without trades does not count as covered until the next frame."""
        self._backpressure = True

    def market_time(self) -> int:
        """Market time (ms) by this instrument's frames: never after now, before it when frames come late.

        Minutes are closed by it. Without frames it is now; while that is not confirmed it is at most the end of the minute after the newest
        trade, and 0 without one, so that a wall clock that is ahead closes no minute that is still to come.
        """
        now = self._clock.now()
        if self._event_time is None or not self.coverage.alive:
            if self._clock.confirmed():
                return now
            newest = self.tape.newest
            return 0 if newest is None else min(now, newest.timestamp - newest.timestamp % MINUTE + 2 * MINUTE)
        return min(now, self._event_time + round((self._clock.monotonic() - self._received_at) * SECOND))

    def covers_quiet(self, minute: int) -> bool:
        """True if a connection was alive throughout a minute without trades, and its silence is not suspect."""
        end = minute + MINUTE
        if not self.coverage.continuing or self._alive_since > minute:
            return False
        if end <= self._traded_at:
            return self.coverage.covers(Window(minute, end))
        return end - self._traded_at <= self.coverage.silence_limit.ms

    def alive_until(self) -> int | None:
        if self._backpressure or self._event_time is None or not self.coverage.continuing:
            return None
        now = self._clock.now()
        reached = max(min(self._event_time, now), self.market_time() - _IN_FLIGHT_MS)
        if reached - self._traded_at > self.coverage.silence_limit.ms:
            # The connection may have stopped delivering with its newest trade.
            return min(self._traded_at, now)
        return min(reached, self._traded_at + _MAX_QUIET_MS) if self.coverage.has_gapless_ids else reached
