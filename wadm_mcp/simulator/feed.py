"""The sources of a venue's trades: the computed market, or a recording.

A feed runs as long as the simulator and publishes the trades of its source at their time.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

import anyio
from anyio.lowlevel import checkpoint

from wadm_mcp.model import MINUTE, Instrument
from wadm_mcp.simulator.replay import Recorded, Recording
from wadm_mcp.simulator.state import Batch
from wadm_mcp.simulator.tape import Print, PushedTape
from wadm_mcp.simulator.venue import Venue

CLIENT_TIMEOUT_SECONDS: Final = 30.0
"""How long a replay waits for a client that does not read before it drops it."""

_ROWS_BETWEEN_CHECKPOINTS: Final = 64


class Feed(Protocol):
    """A source of trades for one venue."""

    async def run(self) -> None:
        """Publishes until cancelled, or until the source has no more trades."""
        ...


class LiveFeed:
    """Trades of the computed market at their time, each once, and only to clients that are subscribed at that time."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue

    async def run(self) -> None:
        """Publishes every `Timing.tick`; if the process was suspended, catches up one minute per step."""
        venue, state = self._venue, self._venue.state
        reached: dict[Instrument, int] = {}
        while True:
            state.note_halts(venue.exchange, venue.markets)
            now = state.clock()
            reached = {instrument: reached.get(instrument, now) for instrument in venue.following()}
            for instrument, start in reached.items():
                end = min(now, start + MINUTE)
                if end > start:
                    reached[instrument] = end
                    tape = state.tapes[instrument]
                    folded = list(tape.aggregates(start, end)) if venue.exchange == "binance" else []
                    prints = list(tape.prints(start, end))
                    state.candles[instrument].add(prints, start, end)
                    await venue.publish(instrument, Batch(prints, folded), event_time=now)
            await anyio.sleep(state.timing.tick)


class ReplayFeed:
    """Plays a recording once, row by row, with its times shifted by a whole number of minutes so that it seems to happen now.

    `speed` divides the recorded pauses; with 0 there are none, and rows are played as fast as the clients read. Playing starts with the
    first subscriber and pauses while there is none. `shift` (ms) is the largest with which no trade is later than the moment it is played.
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
        """Number of rows to play."""
        return len(self.recording.rows)

    async def run(self) -> None:
        """Plays to the end and returns; sockets stay open, without trades."""
        await self._wait_for_subscriber()
        self.shift = self._shift(self._venue.state.clock())
        began, first, elapsed = anyio.current_time(), self.recording.rows[0].receive_us, 0.0
        for row in self.recording.rows:
            if not self._venue.following():
                paused = anyio.current_time()
                await self._wait_for_subscriber()
                began += anyio.current_time() - paused
            if self._speed:
                elapsed = max(elapsed, (row.receive_us - first) / 1e6 / self._speed)
                if began + elapsed > anyio.current_time():
                    await anyio.sleep_until(began + elapsed)
            await self._play(row, self.shift)
            self.played += 1
            if self.played % _ROWS_BETWEEN_CHECKPOINTS == 0:
                await checkpoint()
        self.finished.set()

    async def _play(self, row: Recorded, shift: int) -> None:
        instrument = Instrument("binance", self.recording.market, row.symbol)
        tape = self._venue.state.tapes[instrument]
        assert isinstance(tape, PushedTape)
        moved = row.row._replace(time=row.row.time + shift)
        if isinstance(moved, Print):
            tape.add(moved)
            batch = Batch(prints=(moved,))
        else:
            tape.add_aggregate(moved)
            batch = Batch(aggregates=(moved,))
        await self._venue.publish(instrument, batch, event_time=row.event + shift, timeout_seconds=CLIENT_TIMEOUT_SECONDS)

    def _shift(self, now: int) -> int:
        first = self.recording.rows[0].receive_us
        pause = 1 / (1_000 * self._speed) if self._speed else 0.0
        least = min(now + (row.receive_us - first) * pause - row.row.time for row in self.recording.rows)
        return math.floor(least) // MINUTE * MINUTE

    async def _wait_for_subscriber(self) -> None:
        """Returns when a client is subscribed to a recorded symbol."""
        if self._venue.following():
            return
        async with anyio.create_task_group() as tasks:

            async def wait(symbol: str) -> None:
                await self._venue.followed(Instrument("binance", self.recording.market, symbol))
                tasks.cancel_scope.cancel()

            for symbol in self.recording.symbols:
                tasks.start_soon(wait, symbol)
