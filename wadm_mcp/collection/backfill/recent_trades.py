"""Closes the gaps of one market from the exchange's newest trades, where it does not number them.

After every new connection the newest trades are asked for at once: they reach back over a short gap, and what a connection lost is among
them. Both edges must be met by id (docs/exchanges.md 5); what lies before the oldest trade told stays a gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import anyio

from wadm_mcp.collection.recording.recorder import RecordedInstrument, Recorder
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.collection.rest.rate_limit import AT_ONCE
from wadm_mcp.coverage.by_connection import ConnectionCoverage
from wadm_mcp.errors import ExchangeError
from wadm_mcp.exchanges.exchange import Exchange
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import Instrument
from wadm_mcp.tape import Repairing

_EVERY: Final = 0.5
_PAUSES: Final = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
"""Seconds before the newest trades are asked for again, as long as they lag behind the stream."""


class _Tried(NamedTuple):
    """At which count of breaks, how often in vain, and when to ask again."""

    breaks: int
    times: int
    again_at: float


class RecentTradesReconciler:
    """Proves what it can of every followed instrument of a market until cancelled."""

    def __init__(
        self,
        exchange: Exchange,
        market: str,
        base_url: str,
        rest: RestClient,
        recorder: Recorder,
        health: Health,
        monotonic: Callable[[], float],
    ) -> None:
        self._exchange = exchange
        self._market = market
        self._base_url = base_url
        self._rest = rest
        self._recorder = recorder
        self._health = health
        self._monotonic = monotonic
        self._budget = rest.budget(exchange, market, base_url)
        self._part = f"{exchange.name} {market} repair"
        self._looked: dict[Instrument, int] = {}
        """How many breaks of an instrument were looked into."""
        self._tried: dict[Instrument, _Tried] = {}
        self._looking: set[Instrument] = set()

    async def run(self) -> None:
        """Look into every break of continuity, for ever."""
        async with anyio.create_task_group() as tasks:
            # After an outage every instrument waits, and the sixty newest trades of a busy one are of seconds.
            for _ in range(AT_ONCE):
                tasks.start_soon(self._look_again_and_again)

    async def _look_again_and_again(self) -> None:
        while True:
            due = self._due()
            if due is None:
                with anyio.move_on_after(_EVERY if not self._tried else _PAUSES[0]):
                    await self._recorder.gap_opened()
                continue
            instrument = due.tape.instrument
            self._looking.add(instrument)
            try:
                await self._look(due)
            except ExchangeError as error:
                self._health.count("repair.failures")
                self._health.report(self._part, State.OK, f"waits: {error}")
                log.warning("repair.failed", exchange=self._exchange.name, market=self._market, error=error)
                self._put_off(instrument, due.continuity.breaks)
                await anyio.sleep(max(_PAUSES[0], self._budget.state.closed_for))
            finally:
                self._looking.discard(instrument)

    def _due(self) -> RecordedInstrument | None:
        now = self._monotonic()
        waiting = 0
        found: RecordedInstrument | None = None
        fewest = math.inf
        for followed in self._recorder.followed:
            instrument = followed.tape.instrument
            if instrument[:2] != (self._exchange.name, self._market):
                continue
            breaks = followed.continuity.breaks
            pending = breaks != self._looked.get(instrument, 0)
            followed.tape.repairing = Repairing(0, 0, 1.0) if pending and followed.continuity.missing() else None
            if not pending:
                continue
            waiting += 1
            tried = self._tried.get(instrument)
            times = tried.times if tried is not None and tried.breaks == breaks else 0
            if instrument not in self._looking and times < fewest and (not times or (tried is not None and tried.again_at <= now)):
                # Of many that lost their connection at once each is asked for before any is asked for again.
                found, fewest = followed, times
        self._health.report(self._part, State.OK, f"{waiting} instruments are looked into" if waiting else "")
        return found

    async def _look(self, followed: RecordedInstrument) -> None:
        instrument, continuity = followed.tape.instrument, followed.continuity
        assert isinstance(continuity, ConnectionCoverage)
        breaks = continuity.breaks
        newest = await self._rest.trades(self._exchange, followed.tape.listing, self._base_url)
        new = await self._recorder.repaired(instrument, newest)
        # Nothing is waited for between the two, or a gap could come up that these trades seem to close.
        tried = continuity.prove(newest)
        if new:
            log.info("gap.repaired", instrument=instrument, trades=new)
        if tried:
            self._tried.pop(instrument, None)
            self._looked[instrument] = breaks
        elif self._put_off(instrument, breaks) == len(_PAUSES):
            log.warning("gap.unproven", instrument=instrument, why="the exchange's newest trades lag behind its stream")

    def _put_off(self, instrument: Instrument, breaks: int) -> int:
        """Ask for an instrument again after a while, the longer the more often it was asked for since its last break: how often?"""
        tried = self._tried.get(instrument)
        times = tried.times if tried is not None and tried.breaks == breaks else 0
        self._tried[instrument] = _Tried(breaks, times + 1, self._monotonic() + _PAUSES[min(times, len(_PAUSES) - 1)])
        return times + 1
