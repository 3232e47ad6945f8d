"""Periodic work on the store: rollup, expiry, and loading the stored state of an instrument before it is recorded.

Alternates with the writer, which does not write meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import anyio

from wadm_mcp.clock import Clock
from wadm_mcp.clock_check import TOLERANCE, duration
from wadm_mcp.collection.recording.minute import without_repeats
from wadm_mcp.collection.recording.recorded_instrument import RecordedInstrument
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.collection.recording.rollup import Rollup
from wadm_mcp.collection.recording.writer import Writer
from wadm_mcp.coverage.judge import is_covered
from wadm_mcp.coverage.kinds import new_coverage
from wadm_mcp.coverage.spans import Span, SpanReason
from wadm_mcp.errors import StoreError, StoreUnreachable
from wadm_mcp.health import Health, State
from wadm_mcp.logs import RateLimitedWarning, log
from wadm_mcp.model import DAY, MINUTE, Instrument, Retention, Trade, Window
from wadm_mcp.storage.store import PartialFootprint, Store, StoreState, all_trades
from wadm_mcp.tape import InstrumentTape

_ROLLUP_SECONDS: Final = 1.0
_EXPIRY_SECONDS: Final = 30.0
_EXPIRY_DELAY_MS: Final = 5 * MINUTE
"""Data is deleted this long after its retention is over. Answers count it as expired at once, so none loses what it has just claimed."""
_LOG_PART: Final = "store log"
_CLOCK_PART: Final = "store clock"
_MAX_LOG_BYTES: Final = 64 << 20
"""Size of the store's write-ahead log above which it is reported. It is usually below 8 MB."""
_LOG_WARNING_SECONDS: Final = 600.0
_POLL_SECONDS: Final = 0.25
_FOREVER: Final = 1 << 52
"""A time (ms) after any trade's."""
RECENT_TRADES: Final = 2_000
"""Newest stored trades that a start reads: they show which trades are repeats, and how often the instrument trades."""
_RECOVERED_MINUTES: Final = 10
"""Dirty minutes that a start brings back to memory; a crash leaves one or two."""


class _Stored(NamedTuple):
    """Trades and partial footprints of one instrument that the store has."""

    trades: Sequence[Trade] = ()
    partials: Sequence[PartialFootprint] = ()


class Maintenance:
    """Keeps the store's figures up to date and within their retention until cancelled.

    `expiry_limit` is the time (ms) by which data is old enough to be deleted, None while nothing may be; without it that is now.
    """

    def __init__(
        self,
        recorder: Recorder,
        writer: Writer,
        rollup: Rollup,
        store: Store,
        health: Health,
        retention: Retention,
        clock: Clock,
        expiry_limit: Callable[[], int | None] | None = None,
    ) -> None:
        self._recorder = recorder
        self._writer = writer
        self._rollup = rollup
        self._store = store
        self._health = health
        self._retention = retention
        self._clock = clock
        self._expiry_limit = expiry_limit or clock.now
        self._log_grows = RateLimitedWarning("store.log_grows", clock.monotonic, _LOG_WARNING_SECONDS)

    async def run(self) -> None:
        """Roll up every second, or at once while minutes are left over, and expire every 30 seconds."""
        rolled_up = expired = self._clock.monotonic()
        while True:
            at_once = self._rollup.behind and self._writer.caught_up and not self._writer.failing
            await anyio.sleep(0.0 if at_once else _POLL_SECONDS)
            if self._writer.failing:
                continue
            now = self._clock.monotonic()
            if self._writer.caught_up and (now - rolled_up >= _ROLLUP_SECONDS or self._rollup.behind):
                rolled_up = now
                await self._try("rollup", self.roll_up)
            if now - expired >= _EXPIRY_SECONDS:
                expired = now
                await self._try("expiry", self._expire)

    async def flush(self) -> None:
        """Save and derive what is left at the end. `StoreError` when something was not saved."""
        await self._writer.flush()
        if not self._writer.failing:
            await self.roll_up()

    async def roll_up(self) -> None:
        """One pass of rollup over every recorded instrument.

        Pending batches are stored between two instruments, since hundreds of them take seconds.
        """
        async with self._writer.exclusive():
            if self._writer.failing:
                # The writer found out while this waited, and checks the store before anything else uses it.
                return
            dirty = await self._rollup.begin()
            for recorded in self._recorder.recorded:
                if await self._writer.drain_backlog():
                    dirty = await self._rollup.dirty_minutes()
                if not recorded.tape.resumed:
                    await self._resume(recorded)
                    dirty = await self._rollup.dirty_minutes()
                if recorded.tape.resumed:
                    await self._rollup.settle(recorded, dirty[recorded.instrument])

    async def resume(self, recorded: RecordedInstrument) -> None:
        """Load the stored state of an instrument, once the journal is drained."""
        async with self._writer.exclusive():
            if not recorded.tape.resumed:
                await self._writer.drain()
                await self._resume(recorded)

    async def _resume(self, recorded: RecordedInstrument) -> None:
        """Load the stored state of an instrument, or leave that to a later pass.

        Its dirty minutes are rebuilt in the tape from their stored trades; rollup derives those that are closed.
        """
        tape, instrument = recorded.tape, recorded.instrument
        confirmed, now = self._clock.confirmed(), self._clock.now()
        # Later minutes were recorded here alone; there may be hours of them, if the store was away.
        shared = recorded.since + MINUTE if confirmed else _FOREVER
        if _evicted_until(tape, shared):
            return
        recent = await self._store.trades(instrument, Window(0, now + DAY if confirmed else _FOREVER), limit=RECENT_TRADES, newest=True)
        if recent and not confirmed:
            now = recent[-1].timestamp
        spans = await self._store.spans(instrument, Window(now - max(DAY, self._retention.trades), now + DAY))
        every = sorted(mark.minute for mark in await self._store.dirty_minutes() if mark.instrument == instrument)
        theirs = [minute for minute in every if minute <= shared]
        dirty = sorted({*theirs[-_RECOVERED_MINUTES:], *filter(shared.__ge__, tape.minutes)})
        read = {minute: await self._stored_minute(instrument, minute) for minute in dirty}
        uncovered = await self._without_coverage(instrument, theirs, read, spans) if recorded.coverage.has_gapless_ids else _Stored()
        # No await from here on: a question sees the instrument as it was before, or with all of this.
        if _evicted_until(tape, shared):
            return
        for minute in dirty:
            stored = read[minute]
            known = {trade.order for trade in stored.trades}
            pending = [trade for trade in tape.pending_in(Window(minute, minute + MINUTE)) if trade.order not in known]
            trades, partials = without_repeats(sorted([*stored.trades, *pending], key=lambda trade: trade.order), stored.partials)
            tape.rebuild_minute(minute, trades, [partial.footprint for partial in partials])
        tape.mark_revising(minute for minute in every if minute not in dirty and minute not in tape.minutes)
        recorded.add_stored(spans, recent)
        recorded.coverage.add_stored_trades(uncovered.trades, [partial.ids for partial in uncovered.partials])
        unfinished = [minute for minute in dirty if minute + MINUTE > now]
        if unfinished:
            tape.settle_from(unfinished[0])
        elif tape.newest is not None:
            tape.settle_from(tape.newest.timestamp - tape.newest.timestamp % MINUTE + MINUTE)

    async def _stored_minute(self, instrument: Instrument, minute: int) -> _Stored:
        window = Window(minute, minute + MINUTE)
        return _Stored(await all_trades(self._store, instrument, window), await self._store.pieces(instrument, window))

    async def _without_coverage(
        self, instrument: Instrument, minutes: Iterable[int], read: Mapping[int, _Stored], spans: Sequence[Span]
    ) -> _Stored:
        """What the store has of these minutes although none of the stored spans covers it: at most what a killed process was storing.

        `read` are minutes that need not be read again.
        """
        known, trades, partials = new_coverage(has_gapless_ids=True), list[Trade](), list[PartialFootprint]()
        known.add_stored(spans)
        for minute in minutes:
            if not is_covered(spans, Window(minute, minute + MINUTE), minute + MINUTE):
                stored = read.get(minute) or await self._stored_minute(instrument, minute)
                trades += [trade for trade in stored.trades if known.take(trade)]
                partials += [partial for partial in stored.partials if known.take_folded(partial.ids, SpanReason.REPAIRED)]
        return _Stored(trades, partials)

    async def _expire(self) -> None:
        async with self._writer.exclusive():
            while not self._writer.failing:
                limit, latest = self._expiry_limit(), self._clock.now() if self._clock.confirmed() else None
                if not await self._store.expire(None if limit is None else limit - _EXPIRY_DELAY_MS, self._retention, latest):
                    break
                await self._writer.drain()
            if not self._writer.failing:
                state = await self._store.state()
                self._watch_log(state)
                self._watch_clock(state)

    def _watch_log(self, state: StoreState) -> None:
        """Report a write-ahead log that has grown, since it takes disk space until the read that holds it ends."""
        if state.log_bytes > _MAX_LOG_BYTES:
            megabytes = round(state.log_bytes / 1e6)
            self._health.report(
                _LOG_PART,
                State.OK,
                f"the write-ahead log of {state.place} has grown to {megabytes:,} MB: a long read, usually of another program, keeps it "
                "from being merged into the file; end that read",
            )
            self._log_grows(place=state.place, megabytes=megabytes, limit=round(_MAX_LOG_BYTES / 1e6))
        elif _LOG_PART in self._health.parts:
            self._health.forget(_LOG_PART)
            log.info("store.log_merged", place=state.place, megabytes=round(state.log_bytes / 1e6))

    def _watch_clock(self, state: StoreState) -> None:
        """Report a server that deletes by a clock which disagrees with the exchanges."""
        if state.now is None or not self._clock.confirmed():
            return
        ahead = state.now - self._clock.now()
        if abs(ahead) > TOLERANCE:
            side = "ahead of" if ahead > 0 else "behind"
            self._health.report(
                _CLOCK_PART,
                State.DOWN,
                f"the clock of {state.place} is {duration(abs(ahead))} {side} the exchanges, and old data is deleted by it; "
                "set that machine's clock, e.g. with NTP",
            )
        elif _CLOCK_PART in self._health.parts:
            self._health.report(_CLOCK_PART, State.OK)

    async def _try(self, part: str, step: Callable[[], Awaitable[None]]) -> None:
        """Run a step whose failure must not stop the writing of trades: it is reported, and the step is tried again later."""
        try:
            await step()
        except StoreUnreachable as error:
            self._writer.store_failed(error)
        except StoreError as error:
            self._health.report(part, State.DOWN, str(error))
            self._health.count("store.failures")
            # What fails every time must not be tried again without a pause.
            self._rollup.behind = False
        else:
            if not self._writer.failing:
                self._health.report(part, State.OK)


def _evicted_until(tape: InstrumentTape, until: int) -> bool:
    """True if trades up to this minute are only in the journal. A later pass finds them in the store."""
    return any(minute <= until for minute in tape.evicted)
