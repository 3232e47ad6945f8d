"""Where a venue's trades come from: the clock, or a recording.

A feed runs as long as the simulator and pushes what its source gives, at its time.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

import anyio
from anyio.lowlevel import checkpoint

from wadm_mcp.model import MINUTE, Instrument
from wadm_mcp.simulator.replay import Recorded, Recording
from wadm_mcp.simulator.state import Batch
from wadm_mcp.simulator.tape import HeldTape, Print
from wadm_mcp.simulator.venue import Venue

PATIENCE: Final = 30.0
"""Seconds a replay waits for a client that does not read before it is dropped."""

_AT_ONCE: Final = 64


class Feed(Protocol):
    """A source of trades for one venue."""

    async def run(self) -> None:
        """Pushes until cancelled, or until the source has no more."""
        ...


class LiveFeed:
    """Trades of the computed market at the time they happen, for whoever listens. Nothing comes twice, nothing before a subscription."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue

    async def run(self) -> None:
        """Looks at the clock every `Timing.tick`; after a pause of the machine it catches up a minute a step."""
        venue, stage = self._venue, self._venue.stage
        reached: dict[Instrument, int] = {}
        while True:
            now = stage.clock()
            reached = {instrument: reached.get(instrument, now) for instrument in venue.following()}
            for instrument, start in reached.items():
                end = min(now, start + MINUTE)
                if end > start:
                    reached[instrument] = end
                    tape = stage.tapes[instrument]
                    folded = list(tape.aggregates(start, end)) if venue.exchange == "binance" else []
                    await venue.publish(instrument, Batch(list(tape.prints(start, end)), folded), event_time=now)
            await anyio.sleep(stage.timing.tick)


class ReplayFeed:
    """A recording pushed once, each row in order, moved to now by a whole number of minutes.

    `speed` divides the recorded pauses; 0 leaves none, and then the clients set the pace. Playing starts with the first subscriber
    and waits while there is none. `shift` (ms) is the least move back that lets no trade be later than the moment it is played.
    """

    def __init__(self, venue: Venue, recording: Recording, speed: float) -> None:
        self.recording = recording
        self.played = 0
        self.shift: int | None = None
        self.finished = anyio.Event()
        self._venue = venue
        self._speed = speed

    @property
    def total(self) -> int:
        """Rows there are to play."""
        return len(self.recording.rows)

    async def run(self) -> None:
        """Plays to the end and returns; sockets stay open and quiet."""
        await self._audience()
        self.shift = self._shift(self._venue.stage.clock())
        began, first, elapsed = anyio.current_time(), self.recording.rows[0].receive_us, 0.0
        for row in self.recording.rows:
            if not self._venue.following():
                left = anyio.current_time()
                await self._audience()
                began += anyio.current_time() - left
            if self._speed:
                elapsed = max(elapsed, (row.receive_us - first) / 1e6 / self._speed)
                if began + elapsed > anyio.current_time():
                    await anyio.sleep_until(began + elapsed)
            await self._play(row, self.shift)
            self.played += 1
            if self.played % _AT_ONCE == 0:
                await checkpoint()
        self.finished.set()

    async def _play(self, row: Recorded, shift: int) -> None:
        instrument = Instrument("binance", self.recording.market, row.symbol)
        tape = self._venue.stage.tapes[instrument]
        assert isinstance(tape, HeldTape)
        moved = row.row._replace(time=row.row.time + shift)
        if isinstance(moved, Print):
            tape.add(moved)
            batch = Batch(prints=(moved,))
        else:
            tape.add_aggregate(moved)
            batch = Batch(aggregates=(moved,))
        await self._venue.publish(instrument, batch, event_time=row.event + shift, patience=PATIENCE)

    def _shift(self, now: int) -> int:
        first = self.recording.rows[0].receive_us
        pause = 1 / (1_000 * self._speed) if self._speed else 0.0
        least = min(now + (row.receive_us - first) * pause - row.row.time for row in self.recording.rows)
        return math.floor(least) // MINUTE * MINUTE

    async def _audience(self) -> None:
        """Returns when somebody listens to a recorded symbol."""
        if self._venue.following():
            return
        async with anyio.create_task_group() as tasks:

            async def wait(symbol: str) -> None:
                await self._venue.followed(Instrument("binance", self.recording.market, symbol))
                tasks.cancel_scope.cancel()

            for symbol in self.recording.symbols:
                tasks.start_soon(wait, symbol)
