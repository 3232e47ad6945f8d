"""Closes the gaps of one market from the exchange's newest trades, where ids are not gapless.

After every new connection the newest trades are requested at once: they reach back over a short gap and contain what a connection lost.
They must overlap both edges of the gap by id (docs/exchanges.md 5); what lies before the oldest of them stays a gap.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import anyio

from wadm_mcp.clock import Clock
from wadm_mcp.collection.recording.recorded_instrument import RecordedInstrument
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.collection.rest.rate_limit import AT_ONCE
from wadm_mcp.errors import ExchangeError
from wadm_mcp.exchanges.exchange import Venue
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import Instrument
from wadm_mcp.tape import Repairing

_POLL_SECONDS: Final = 0.5
_PAUSES_SECONDS: Final = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
"""Pauses before the newest trades are requested again, while they lag behind the stream."""


class _Attempts(NamedTuple):
    """Attempts for the current break (numbered `breaks`), and when the next one is due (monotonic seconds)."""

    breaks: int
    number: int
    retry_at: float


class RecentTradesReconciler:
    """Closes coverage gaps of one market by comparing them with the exchange's newest trades, until cancelled."""

    def __init__(self, venue: Venue, rest: RestClient, recorder: Recorder, health: Health, clock: Clock) -> None:
        self._venue = venue
        self._rest = rest
        self._recorder = recorder
        self._health = health
        self._clock = clock
        self._part = f"{venue.name} repair"
        self._finished: dict[Instrument, int] = {}
        """The `breaks` of an instrument up to which its gaps are closed as far as possible."""
        self._attempts: dict[Instrument, _Attempts] = {}
        self._under_way: set[Instrument] = set()

    async def run(self) -> None:
        """Request the newest trades after every break of coverage, for ever."""
        async with anyio.create_task_group() as tasks:
            # After an outage every instrument waits, and the sixty newest trades of a busy one are seconds old.
            for _ in range(AT_ONCE):
                tasks.start_soon(self._keep_reconciling)

    async def _keep_reconciling(self) -> None:
        while True:
            due = self._next()
            if due is None:
                with anyio.move_on_after(_POLL_SECONDS if not self._attempts else _PAUSES_SECONDS[0]):
                    await self._recorder.gap_opened()
                continue
            self._under_way.add(due.instrument)
            try:
                await self._reconcile(due)
            except ExchangeError as error:
                self._health.count("repair.failures")
                self._health.report(self._part, State.OK, f"waits: {error}")
                log.warning("repair.failed", **self._venue.log_fields, error=error)
                self._postpone(due.instrument, due.coverage.breaks)
                await anyio.sleep(max(_PAUSES_SECONDS[0], self._rest.closed_for(self._venue)))
            finally:
                self._under_way.discard(due.instrument)

    def _next(self) -> RecordedInstrument | None:
        """The next instrument that is due, None if none is. Also reports progress."""
        now = self._clock.monotonic()
        waiting = 0
        found: RecordedInstrument | None = None
        fewest = math.inf
        for recorded in self._recorder.recorded:
            instrument = recorded.instrument
            if not self._venue.trades_here(instrument):
                continue
            breaks = recorded.coverage.breaks
            pending = breaks != self._finished.get(instrument, 0)
            recorded.tape.report_repair(Repairing(0, 0, 1.0) if pending and recorded.coverage.missing() else None)
            if not pending:
                continue
            waiting += 1
            attempts = self._attempts.get(instrument)
            count = attempts.number if attempts is not None and attempts.breaks == breaks else 0
            if instrument not in self._under_way and count < fewest and (not count or (attempts is not None and attempts.retry_at <= now)):
                # Of many that lost their connection at once each is requested before any is requested again.
                found, fewest = recorded, count
        self._health.report(self._part, State.OK, f"repairing {waiting} instruments from their newest trades" if waiting else "")
        return found

    async def _reconcile(self, recorded: RecordedInstrument) -> None:
        instrument, coverage = recorded.instrument, recorded.coverage
        breaks = coverage.breaks
        newest = await self._rest.trades(self._venue, recorded.tape.listing)
        new = await self._recorder.record_repaired(instrument, newest)
        if newest.unreadable:
            self._recorder.row_unreadable(instrument, newest.unreadable)
        # No await after the record, or a gap could open that these trades seem to close. What a row hides is unknown, so the list proves
        # only what follows it.
        finished = coverage.prove(newest.unbroken, cut=bool(newest.unreadable))
        if new:
            log.info("gap.repaired", instrument=instrument, trades=new)
        if finished:
            self._attempts.pop(instrument, None)
            self._finished[instrument] = breaks
        elif self._postpone(instrument, breaks) == len(_PAUSES_SECONDS):
            log.warning("gap.not_repaired", instrument=instrument, reason="the exchange's newest trades lag behind its stream")

    def _postpone(self, instrument: Instrument, breaks: int) -> int:
        """Schedule the next request with backoff. Returns the number of attempts since the last break."""
        attempts = self._attempts.get(instrument)
        count = attempts.number if attempts is not None and attempts.breaks == breaks else 0
        self._attempts[instrument] = _Attempts(
            breaks, count + 1, self._clock.monotonic() + _PAUSES_SECONDS[min(count, len(_PAUSES_SECONDS) - 1)]
        )
        return count + 1
