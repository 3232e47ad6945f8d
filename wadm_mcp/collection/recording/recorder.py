"""The path of every trade: drop repeats, add to the live tape, queue for the store.

Live, repaired, imported and replayed trades take the same steps. Nothing here waits for the store until too much is pending. Then the
recorder makes its callers wait (backpressure), the exchange's socket buffers fill, and what the exchange drops is a gap.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

import anyio

from wadm_mcp.clock import CLOCK_SKEW, Clock
from wadm_mcp.collection.live.staleness import StaleDetector
from wadm_mcp.collection.recording.doubts import DoubtedListings
from wadm_mcp.collection.recording.journal_segment import Entry
from wadm_mcp.collection.recording.recorded_instrument import RecordedInstrument
from wadm_mcp.coverage.kinds import new_coverage
from wadm_mcp.coverage.spans import GapReason, Span, SpanReason
from wadm_mcp.exchanges.exchange import Trades, Unreadable
from wadm_mcp.health import Health, State, not_trading
from wadm_mcp.logs import RateLimitedWarning
from wadm_mcp.model import DAY, HOUR, MINUTE, SECOND, Instrument, Listing, Trade, Window
from wadm_mcp.storage.store import PartialFootprint
from wadm_mcp.tape import Tape

WAITING_LIMIT: Final = 200_000
"""Trades that may wait for the store before the recorder makes the collectors wait."""
_BATCH_TRADES: Final = 1_000
"""Pending trades at which a batch is written before its interval is over."""
_MAX_FRAME_AGE: Final = 7 * DAY
_MAX_FRAME_LEAD: Final = HOUR
"""A frame whose event time is outside these bounds around now is dropped as implausible."""
_RECENT_MS: Final = MINUTE
"""A trade of at most this age shows that its instrument trades now."""
_MAX_TRADE_AGE: Final = HOUR
"""Greatest age of a trade with a gapless id, relative to its frame. An older one would extend coverage over time without a connection."""


class Recorder:
    """Takes trades of every recorded instrument into memory, and hands batches for the store to the writer.

    `heard` gets the exchange and the event time (ms) of the frames, before `clock` decides whether they are plausible.
    """

    def __init__(self, tape: Tape, health: Health, clock: Clock, heard: Callable[[str, int], None] | None = None) -> None:
        self._tape = tape
        self._health = health
        self._clock = clock
        self._heard = heard
        self._instruments: dict[Instrument, RecordedInstrument] = {}
        self._connected_at: dict[int, float] = {}
        """When each connection was opened (monotonic seconds)."""
        self._pending: list[Trade] = []
        self._partials: list[PartialFootprint] = []
        self._final_spans: list[tuple[Instrument, Span]] = []
        """Coverage to store of instruments that this process no longer records."""
        self._room = anyio.Event()
        self._batch_ready = anyio.Event()
        self._gap_opened = anyio.Event()
        self._stored = anyio.Event()
        self.doubted = DoubtedListings()
        """Instruments whose listing should be read again."""
        self.taken = 0
        """Trades recorded since the start."""
        self._without_volume = RateLimitedWarning("trade.without_volume", clock.monotonic)
        self._unreadable = RateLimitedWarning("trade.unreadable", clock.monotonic)

    def start(self, listing: Listing, *, has_gapless_ids: bool) -> RecordedInstrument:
        """Begin to record an instrument. `RecordedInstrument.add_stored` adds its stored coverage, now or once the store answers."""
        tape = self._tape.follow(listing)
        recorded = RecordedInstrument(tape, new_coverage(has_gapless_ids=has_gapless_ids), self._clock)
        tape.start_recording(recorded)
        self._instruments[listing.instrument] = recorded
        unconfirmed = ", and the exchange has not confirmed that it lists this symbol" if listing.provisional else ""
        self._report(recorded, State.STARTING, f"no trade has come in yet{unconfirmed}")
        return recorded

    def relist(self, listing: Listing) -> None:
        """The exchange lists a recorded instrument differently now: with other steps, or another status."""
        recorded = self._instruments.get(listing.instrument)
        if recorded is None:
            return
        self._tape.follow(listing)
        recorded.trades_again = False
        if recorded.halted or not listing.trading:
            self._report(recorded, State.STARTING, "it trades again, and no trade has come in yet")

    def stop(self, instrument: Instrument) -> None:
        """Another process records this instrument from now on. What is pending still goes to the store."""
        recorded = self._instruments.pop(instrument, None)
        if recorded is not None:
            self._final_spans += [(instrument, span) for span in recorded.coverage.changed()]
            recorded.tape.stop()

    def __getitem__(self, instrument: Instrument) -> RecordedInstrument:
        return self._instruments[instrument]

    def records(self, instrument: Instrument) -> bool:
        """True while the instrument is recorded."""
        return instrument in self._instruments

    @property
    def recorded(self) -> list[RecordedInstrument]:
        """Every instrument that is recorded."""
        return list(self._instruments.values())

    # What connections report.

    def connected(self, connection: int) -> None:
        """A connection was opened. It covers nothing before this moment, whatever it delivers first."""
        self._connected_at[connection] = self._clock.monotonic()

    async def take(self, connection: int, *messages: Trades) -> None:
        """Record frames of trades. Waits only while the store is so far behind that memory is full."""
        await self._until_room()
        by_instrument: defaultdict[Instrument, list[Trades]] = defaultdict(list)
        for message in messages:
            by_instrument[message.instrument].append(message)
        if self._heard is not None:
            for instrument, frames in by_instrument.items():
                self._heard(instrument.exchange, frames[-1].event_time)
        gap_opened = False
        for instrument, frames in by_instrument.items():
            recorded = self._instruments.get(instrument)
            if recorded is not None:
                breaks = recorded.coverage.breaks
                fresh = self._new_trades(recorded, connection, frames)
                if fresh:
                    self._check_listing(recorded, fresh[-1])
                self._keep(recorded, fresh)
                recorded.tape.limit_minutes()
                gap_opened = gap_opened or recorded.coverage.breaks != breaks
        if len(self._pending) >= _BATCH_TRADES:
            self._batch_ready.set()
        if gap_opened:
            ended, self._gap_opened = self._gap_opened, anyio.Event()
            ended.set()

    def frame_unreadable(self, connection: int, instruments: Iterable[Instrument]) -> None:
        """A frame of a connection could not be read; trades of these instruments may be missing."""
        for instrument in instruments:
            recorded = self._instruments.get(instrument)
            if recorded is not None:
                recorded.coverage.frame_unreadable(connection)

    def connection_lost(self, connection: int, instruments: Iterable[Instrument], reason: GapReason, detail: str) -> None:
        """A connection closed (`disconnect`) or was given up as stale (`mute`): what it covers ends with its last trade."""
        self._connected_at.pop(connection, None)
        for instrument in instruments:
            recorded = self._instruments.get(instrument)
            if recorded is None:
                continue
            recorded.delivered_by.pop(connection, None)
            recorded.coverage.connection_lost(connection, reason)
            if not recorded.coverage.alive:
                self._report(recorded, State.DOWN, detail)

    def subscription_lost(self, connection: int, instrument: Instrument, reason: GapReason, detail: str) -> None:
        """A connection does not deliver this instrument for now: what it covers of it ends with its last trade."""
        recorded = self._instruments.get(instrument)
        if recorded is not None:
            recorded.delivered_by.pop(connection, None)
            recorded.coverage.connection_lost(connection, reason)
            if not recorded.coverage.alive:
                self._report(recorded, State.DOWN, detail)

    def withdrawn(self, connection: int, instruments: Iterable[Instrument]) -> None:
        """A connection is about to end, or to subscribe these instruments again: others must not count on it."""
        for instrument in instruments:
            recorded = self._instruments.get(instrument)
            if recorded is not None:
                recorded.delivered_by.pop(connection, None)

    def delivered_only_by(self, connections: Collection[int], instrument: Instrument) -> bool:
        """True if one of these connections delivers the instrument, and no other one has since before their last frame.

        Only then what they cover is continued without a gap: another connection covers nothing before its first frame.
        """
        recorded = self._instruments.get(instrument)
        if recorded is None:
            return False
        last = max((last for number, (_, last) in recorded.delivered_by.items() if number in connections), default=None)
        return last is not None and all(first > last for number, (first, _) in recorded.delivered_by.items() if number not in connections)

    def staleness(self, instrument: Instrument) -> StaleDetector:
        """How long the instrument may be silent before its connection counts as stale."""
        recorded = self._instruments.get(instrument)
        return recorded.staleness if recorded is not None else StaleDetector()

    def is_trading(self, instrument: Instrument) -> bool:
        """True if the instrument is recorded and, as far as is known, trades; else it is not expected to deliver."""
        recorded = self._instruments.get(instrument)
        return recorded is not None and (recorded.tape.listing.trading or recorded.trades_again)

    def has_traded(self, instrument: Instrument, within: int) -> bool:
        """True if a connection delivered a trade of the last `within` milliseconds."""
        recorded = self._instruments.get(instrument)
        return recorded is not None and self._clock.now() - recorded.traded_at <= within

    def doubt_listing(self, instrument: Instrument) -> None:
        """What the instrument delivers does not fit its listing, which should be read again."""
        self.doubted.add(instrument)

    def _report(self, recorded: RecordedInstrument, state: State, detail: str) -> None:
        """Report the state of an instrument; one that does not trade is neither starting, nor down, nor live by an old trade."""
        listing = recorded.tape.listing
        if not listing.trading:
            recorded.halted = True
            state, detail = not_trading(listing)
        self._health.report(str(recorded.instrument), state, detail)

    def _new_trades(self, recorded: RecordedInstrument, connection: int, frames: Iterable[Trades]) -> list[Trade]:
        """Add the trades of these frames to the coverage, and return those that are not repeats."""
        now, opened = self._clock.now(), self._connected_at.get(connection)
        since = 0 if opened is None else now - round((self._clock.monotonic() - opened) * SECOND) - CLOCK_SKEW
        coverage, fresh = recorded.coverage, list[Trade]()
        counted, live = coverage.has_gapless_ids, SpanReason.LIVE
        seen: int | None = None
        oldest = newest = 0.0
        repeated = traded_at = 0
        for frame in frames:
            event_time = frame.event_time
            if event_time != seen:
                if not now - _MAX_FRAME_AGE <= event_time <= now + _MAX_FRAME_LEAD:
                    self._health.count("frames.implausible")
                    coverage.frame_unreadable(connection)
                    continue
                if not coverage.alive:
                    recorded.alive_from(event_time)
                    self._report(recorded, State.OK, "")
                coverage.frame_received(connection, max(event_time, since))
                first, last = recorded.delivered_by.get(connection, (event_time, event_time))
                recorded.delivered_by[connection] = first, max(last, event_time)
                newest, oldest = event_time + CLOCK_SKEW, event_time - _MAX_TRADE_AGE if counted else -math.inf
                seen = event_time
            if frame.set_aside:
                self._health.count("trades.set_aside", frame.set_aside)
            if frame.unreadable:
                self.row_unreadable(recorded.instrument, frame.unreadable)
            if frame.trades and oldest <= frame.trades[-1].timestamp <= newest:
                traded_at = max(traded_at, frame.trades[-1].timestamp)
            for place, trades in enumerate(frame.runs if frame.unreadable else (frame.trades,)):
                if place:
                    # What the row before these hides is unknown.
                    coverage.frame_unreadable(connection)
                for trade in trades:
                    if not oldest <= trade.timestamp <= newest:
                        self._health.count("trades.implausible")
                        coverage.frame_unreadable(connection)
                    elif coverage.take(trade, live):
                        fresh.append(trade)
                    else:
                        repeated += 1
        if seen is not None:
            recorded.frames_received(seen, traded_at, self._clock.monotonic())
        if repeated:
            self._health.count("trades.repeated", repeated)
        return self._with_volume(fresh)

    def row_unreadable(self, instrument: Instrument, rows: Sequence[Unreadable]) -> None:
        """Rows of a frame or a reply could not be read: count them, and log the first."""
        self._health.count("trades.unreadable", len(rows))
        self._unreadable(instrument=instrument, id=rows[0].seq, reason=rows[0].why)

    def _with_volume(self, trades: list[Trade]) -> list[Trade]:
        """Without the rows of quantity 0: they are covered, and part of no figure."""
        empty = [trade for trade in trades if not trade.quantity]
        if not empty:
            return trades
        self._health.count("trades.without_volume", len(empty))
        self._without_volume(instrument=empty[0].instrument, id=empty[0].trade_id)
        return [trade for trade in trades if trade.quantity]

    def _keep(self, recorded: RecordedInstrument, trades: Sequence[Trade]) -> None:
        """Add new trades to the tape and to the next batch."""
        if not trades:
            return
        late = recorded.tape.take(trades)
        self._tape.limit_pending(len(trades))
        if late:
            self._health.count("trades.late", late)
        self._pending += trades
        self.taken += len(trades)

    def _check_listing(self, recorded: RecordedInstrument, newest: Trade) -> None:
        """Doubt the listing if the instrument trades although it should not, or at finer steps than the listing has."""
        listing = recorded.tape.listing
        if (recorded.halted or not listing.trading) and self._clock.now() - newest.timestamp < _RECENT_MS:
            recorded.halted = False
            self._health.report(str(listing.instrument), State.OK)
            if not listing.trading:
                recorded.trades_again = True
                self.doubted.add(listing.instrument)
        if newest.scale != recorded.finest:
            finest, recorded.finest = recorded.finest, recorded.finest.finest(newest.scale)
            if recorded.finest != finest and recorded.finest.finest(listing.scale) != listing.scale:
                self.doubted.add(listing.instrument)

    # What is fetched from the exchange afterwards.

    async def record_repaired(self, instrument: Instrument, trades: Sequence[Trade], partials: Sequence[PartialFootprint] = ()) -> int:
        """Record what an exchange returned for a gap; returns how many trades were new.

        A partial footprint is dropped if any of its trades is covered already: its single trades can be requested. Where ids are not
        gapless, `trades` are the exchange's newest ones.
        """
        return await self._record(instrument, trades, partials, SpanReason.REPAIRED)

    async def record_imported(
        self,
        instrument: Instrument,
        trades: Sequence[Trade] = (),
        partials: Sequence[PartialFootprint] = (),
        whole: Window | None = None,
        *,
        raw: bool = False,
        opened_by: GapReason = GapReason.START,
    ) -> int:
        """Record history of an exchange, as `record_repaired` does; returns how many trades were new.

        Where ids are not gapless, the partial footprints are whole minutes and their source is complete for the window `whole`; `raw` says
        that its single trades were recorded before, `opened_by` why there may be a gap before the window.
        """
        new = await self._record(instrument, trades, partials, SpanReason.IMPORTED)
        recorded = self._instruments.get(instrument)
        if recorded is not None and whole is not None:
            recorded.coverage.cover(whole, SpanReason.IMPORTED, raw=raw, opened_by=opened_by)
        return new

    def mark_differing(self, instrument: Instrument, minutes: Iterable[int]) -> None:
        """The exchange's candles of these minutes (by start) have more volume than was recorded: they become gaps.

        Needs ids that are not gapless. An instrument that is not recorded here any more is left to its new recorder.
        """
        recorded = self._instruments.get(instrument)
        if recorded is not None:
            for minute in minutes:
                recorded.coverage.mark_differing(minute)
            self._batch_ready.set()

    async def _record(
        self, instrument: Instrument, trades: Sequence[Trade], partials: Sequence[PartialFootprint], reason: SpanReason
    ) -> int:
        await self._until_room()
        recorded = self._instruments.get(instrument)
        if recorded is None:
            return 0
        tape, coverage = recorded.tape, recorded.coverage
        if reason is SpanReason.REPAIRED:
            trades = coverage.unclaimed(trades)
        fresh = [trade for trade in trades if coverage.take(trade, reason)]
        if len(fresh) < len(trades):
            self._health.count("trades.repeated", len(trades) - len(fresh))
        fresh = self._with_volume(fresh)
        self._keep(recorded, fresh)
        new = sum(trade.fills for trade in fresh)
        for partial in partials:
            # A run of rows without volume has ids and no figures.
            if coverage.take_folded(partial.ids, reason) and partial.footprint.levels:
                tape.add_partial(partial.minute, partial.footprint, whole=partial.whole)
                self._partials.append(partial)
                new += partial.footprint.bar.trade_count
        tape.limit_minutes()
        self._batch_ready.set()
        return new

    async def _until_room(self) -> None:
        while Entry(self._pending, (), self._partials).weight >= WAITING_LIMIT:
            self._health.count("recorder.waits")
            for recorded in self._instruments.values():
                recorded.backpressure()
            await self._room.wait()

    # What the writer and gap repair wait for.

    async def gap_opened(self) -> None:
        """Returns once a gap may have opened somewhere."""
        await self._gap_opened.wait()

    async def batch_ready(self) -> None:
        """Returns once a batch is worth writing."""
        await self._batch_ready.wait()

    def take_batch(self) -> Entry:
        """Remove and return everything pending for the store, with the coverage that changed."""
        trades, self._pending = self._pending, []
        partials, self._partials = self._partials, []
        self._batch_ready = anyio.Event()
        self._room.set()
        self._room = anyio.Event()
        spans, self._final_spans = self._final_spans, []
        spans += [(instrument, span) for instrument, recorded in self._instruments.items() for span in recorded.coverage.changed()]
        return Entry(trades, spans, partials)

    async def until_stored(self, instrument: Instrument, minutes: Iterable[int]) -> None:
        """Returns once nothing of these minutes (by start) waits for the store any more."""
        left = set(minutes)
        while (tape := self._tape.get(instrument)) is not None and not left.isdisjoint(tape.unstored):
            await self._stored.wait()

    def mark_durable(self, trades: Iterable[Trade], partials: Iterable[PartialFootprint] = ()) -> None:
        """The store has these durably."""
        self._stored.set()
        self._stored = anyio.Event()
        by_instrument: defaultdict[Instrument, list[Trade]] = defaultdict(list)
        for trade in trades:
            by_instrument[trade.instrument].append(trade)
        for instrument, some in by_instrument.items():
            tape = self._tape.get(instrument)
            if tape is not None:
                tape.mark_stored(some)
        for partial in partials:
            tape = self._tape.get(partial.instrument)
            if tape is not None:
                tape.mark_partial_stored(partial.minute)
