"""The one road every trade takes: is it new? -> what waits for the store -> the live tape.

Live, repaired, imported and replayed trades take the same steps. Nothing here waits for the store, until so much waits for it that
the recorder makes its callers wait too: then the exchange's own socket fills, and what it drops shows up as a gap.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import anyio

from wadm_mcp.collection.live.staleness import StaleDetector
from wadm_mcp.collection.recording.journal_segment import Entry
from wadm_mcp.coverage.by_connection import ConnectionCoverage
from wadm_mcp.coverage.by_id import SequenceCoverage
from wadm_mcp.coverage.spans import IMPORTED, LIVE, REPAIRED
from wadm_mcp.exchanges.exchange import Trades
from wadm_mcp.health import Health, State
from wadm_mcp.model import DAY, HOUR, MINUTE, SECOND, Instrument, Listing, Span, Trade, Window
from wadm_mcp.storage.store import PartialFootprint
from wadm_mcp.tape import InstrumentTape, Tape

WAITING_LIMIT: Final = 200_000
"""Trades that may wait for the store before the recorder makes the collectors wait."""
_BATCH: Final = 1_000
"""Trades that are worth a write before its time has come."""
_LONGEST_QUIET: Final = 30.0
"""Seconds of silence after which no quiet tail is claimed, whatever the instrument's pace."""

_STRAGGLERS: Final = SECOND
"""Market time that frames on their way may be behind the newest one: no quiet is claimed within it."""


_SKEW: Final = 5 * SECOND
"""How far the clocks of exchange, trade and this machine may disagree and still be believed of one another."""
_OLDEST_FRAME: Final = 7 * DAY
_NEWEST_FRAME: Final = HOUR
"""Frames outside these bounds around now carry a time that nothing may be built on."""
_OLDEST_TRADE: Final = HOUR
"""Age of a numbered trade in its frame; a trade that is said to be older would stretch coverage over time nobody watched."""


class RecordedInstrument:
    """What the recorder knows of one instrument beside its tape."""

    def __init__(
        self,
        tape: InstrumentTape,
        continuity: SequenceCoverage | ConnectionCoverage,
        clock: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self.tape = tape
        self.continuity = continuity
        self.pace = StaleDetector()
        self.being_imported: Window | None = None
        """A stretch whose trades are coming in now, oldest first: what is missing there is nothing to repair."""
        self.numbered = isinstance(continuity, SequenceCoverage)
        self.since = clock()
        """Up to now others may have recorded it (ms)."""
        self._clock = clock
        self._monotonic = monotonic
        self._event_time: int | None = None
        self._heard_at = 0.0
        self._living_since = 0
        self._held_up = False

    def adopt(self, spans: Iterable[Span], recent: Sequence[Trade]) -> None:
        """Go on from what the store holds: its coverage and its newest trades, oldest first."""
        continuity = self.continuity
        if isinstance(continuity, SequenceCoverage):
            continuity.adopt(spans)
        else:
            continuity.adopt(spans, recent)
        if recent:
            newest = recent[-1]
            if self.tape.newest is None or newest.timestamp > self.tape.newest.timestamp:
                self.tape.newest = newest
            self.pace.expect(_interval(recent))
        self.tape.adopted = True

    @property
    def spans(self) -> list[Span]:
        return self.continuity.spans

    def heard(self, event_time: int, heard_at: float) -> None:
        """The newest of some frames of trades was sent by the exchange at `event_time`, and came in at `heard_at`."""
        self._event_time, self._heard_at = event_time, heard_at
        self._held_up = False
        self.pace.heard(heard_at)

    def revived(self, event_time: int) -> None:
        """The first connection to deliver, or the first one after all had ended, does so from this moment of the exchange on."""
        self._living_since = event_time

    def held_up(self) -> None:
        """Frames wait, for the recorder has no room: until the next one is heard, silence tells nothing."""
        self._held_up = True

    def market_time(self) -> int:
        """How far the market's time has come as this instrument's frames tell it: never past now, behind it when frames come late."""
        now = self._clock()
        if self._event_time is None or not self.continuity.living:
            return now
        return min(now, self._event_time + round((self._monotonic() - self._heard_at) * SECOND))

    def covers_quiet(self, minute: int) -> bool:
        """Was a connection alive all through a minute in which nothing traded?"""
        return self.continuity.living and self._living_since <= minute

    def alive_until(self) -> int | None:
        silent = self._monotonic() - self._heard_at
        if self._held_up or self._event_time is None or not self.continuity.living or silent > min(_LONGEST_QUIET, self.pace.allowance):
            return None
        return max(min(self._event_time, self._clock()), self.market_time() - _STRAGGLERS)


class Recorder:
    """Takes trades of every followed instrument into memory, and hands what waits for the store to the writer."""

    def __init__(self, tape: Tape, health: Health, clock: Callable[[], int], monotonic: Callable[[], float]) -> None:
        self._tape = tape
        self._health = health
        self._clock = clock
        self._monotonic = monotonic
        self._followed: dict[Instrument, RecordedInstrument] = {}
        self._connected: dict[int, int] = {}
        self._waiting: list[Trade] = []
        self._pieces: list[PartialFootprint] = []
        self._left: list[tuple[Instrument, Span]] = []
        """Coverage of instruments that another process records now."""
        self._room = anyio.Event()
        self._enough = anyio.Event()
        self._broken = anyio.Event()
        self._saved = anyio.Event()
        self.taken = 0
        """Trades recorded since the start."""

    def follow(self, listing: Listing, *, numbered: bool) -> RecordedInstrument:
        """Begin to record an instrument. What the store held of it before is for `Followed.adopt`, now or when the store answers."""
        tape = self._tape.follow(listing)
        tape.known_until, tape.adopted = None, False
        continuity: SequenceCoverage | ConnectionCoverage = SequenceCoverage() if numbered else ConnectionCoverage()
        followed = RecordedInstrument(tape, continuity, self._clock, self._monotonic)
        tape.held = followed
        self._followed[listing.instrument] = followed
        self._health.report(str(listing.instrument), State.STARTING, "no trade has come in yet")
        return followed

    def leave(self, instrument: Instrument) -> None:
        """Another process records this instrument from now on. What waits for the store goes there all the same."""
        followed = self._followed.pop(instrument, None)
        if followed is not None:
            self._left += [(instrument, span) for span in followed.continuity.changed()]
            followed.tape.release()

    def __getitem__(self, instrument: Instrument) -> RecordedInstrument:
        return self._followed[instrument]

    def pace(self, instrument: Instrument) -> StaleDetector:
        """How often the instrument usually trades."""
        followed = self._followed.get(instrument)
        return followed.pace if followed is not None else StaleDetector()

    @property
    def followed(self) -> list[RecordedInstrument]:
        """Every instrument that is recorded."""
        return list(self._followed.values())

    async def take(self, connection: int, *messages: Trades) -> None:
        """Record frames of trades. Waits only while the store is so far behind that no more may be held in memory."""
        await self._until_room()
        by_instrument: defaultdict[Instrument, list[Trades]] = defaultdict(list)
        for message in messages:
            by_instrument[message.instrument].append(message)
        broken = False
        for instrument, frames in by_instrument.items():
            followed = self._followed.get(instrument)
            if followed is not None:
                breaks = followed.continuity.breaks
                self._keep(followed, self._new(followed, connection, frames))
                followed.tape.bound()
                broken = broken or followed.continuity.breaks != breaks
        if len(self._waiting) >= _BATCH:
            self._enough.set()
        if broken:
            ended, self._broken = self._broken, anyio.Event()
            ended.set()

    def _new(self, followed: RecordedInstrument, connection: int, frames: Iterable[Trades]) -> list[Trade]:
        """What these frames of an instrument bring that was not held before, from now on held."""
        now, since = self._clock(), self._connected.get(connection, 0) - _SKEW
        continuity, fresh = followed.continuity, list[Trade]()
        seen: int | None = None
        oldest = newest = 0.0
        repeated = 0
        for frame in frames:
            event_time = frame.event_time
            if event_time != seen:
                if not now - _OLDEST_FRAME <= event_time <= now + _NEWEST_FRAME:
                    self._health.count("frames.implausible")
                    continuity.doubt(connection)
                    continue
                if not continuity.living:
                    followed.revived(event_time)
                    self._health.report(str(followed.tape.instrument), State.OK)
                continuity.heard(connection, max(event_time, since))
                newest, oldest = event_time + _SKEW, event_time - _OLDEST_TRADE if followed.numbered else -math.inf
                seen = event_time
            if frame.set_aside:
                self._health.count("trades.set_aside", frame.set_aside)
            for trade in frame.trades:
                if not oldest <= trade.timestamp <= newest:
                    self._health.count("trades.implausible")
                    continuity.doubt(connection)
                elif continuity.take(trade, LIVE):
                    fresh.append(trade)
                else:
                    repeated += 1
        if seen is not None:
            followed.heard(seen, self._monotonic())
        if repeated:
            self._health.count("trades.repeated", repeated)
        return fresh

    def _keep(self, followed: RecordedInstrument, trades: Sequence[Trade]) -> None:
        """Trades that are new, on the rest of their road."""
        if not trades:
            return
        tape = followed.tape
        if not tape.settled_until:
            tape.settled_until = trades[0].timestamp - trades[0].timestamp % MINUTE
        late = tape.take(trades)
        self._tape.bound_unsaved(len(trades))
        if late:
            self._health.count("trades.late", late)
        self._waiting += trades
        self.taken += len(trades)

    async def repaired(self, instrument: Instrument, trades: Sequence[Trade], pieces: Sequence[PartialFootprint] = ()) -> int:
        """Record what an exchange told afterwards, by the same road; how many trades of it were new.

        A piece of which any trade is held already is left out whole: its rows can be asked for. Where the exchange does not number its
        trades they are all that it tells of now.
        """
        return await self._record(instrument, trades, pieces, REPAIRED)

    async def imported(
        self,
        instrument: Instrument,
        trades: Sequence[Trade] = (),
        pieces: Sequence[PartialFootprint] = (),
        whole: Window | None = None,
        *,
        raw: bool = False,
    ) -> int:
        """Record what an exchange tells of the past, as `repaired` does; how many trades of it were new.

        Where the exchange does not number its trades the pieces are `WHOLE` minutes, and the record tells everything of the window
        `whole`; with `raw` its single trades were recorded before.
        """
        new = await self._record(instrument, trades, pieces, IMPORTED)
        followed = self._followed.get(instrument)
        if followed is not None and whole is not None and isinstance(followed.continuity, ConnectionCoverage):
            followed.continuity.hold(whole, IMPORTED, raw=raw)
        return new

    async def _record(self, instrument: Instrument, trades: Sequence[Trade], pieces: Sequence[PartialFootprint], reason: str) -> int:
        await self._until_room()
        followed = self._followed.get(instrument)
        if followed is None:
            return 0
        tape, continuity = followed.tape, followed.continuity
        if reason == REPAIRED and isinstance(continuity, ConnectionCoverage):
            trades = continuity.wanted(trades)
        fresh = [trade for trade in trades if continuity.take(trade, reason)]
        if len(fresh) < len(trades):
            self._health.count("trades.repeated", len(trades) - len(fresh))
        self._keep(followed, fresh)
        new = sum(trade.fills for trade in fresh)
        for piece in pieces:
            bar = piece.footprint.bar
            whole = isinstance(continuity, ConnectionCoverage)
            if whole or continuity.fold(piece.first_seq, piece.last_seq, bar.first_at, bar.last_at, reason):
                tape.add_piece(piece.minute, piece.footprint, whole=whole)
                self._pieces.append(piece)
                new += bar.trade_count
        tape.bound()
        self._enough.set()
        return new

    async def _until_room(self) -> None:
        while Entry(self._waiting, (), self._pieces).weight >= WAITING_LIMIT:
            self._health.count("recorder.waits")
            for followed in self._followed.values():
                followed.held_up()
            await self._room.wait()

    async def gap_opened(self) -> None:
        """Returns once a gap may have come up somewhere."""
        await self._broken.wait()

    def connected(self, connection: int) -> None:
        """A connection was made: whatever it brings first, it covers nothing before this moment."""
        self._connected[connection] = self._clock()

    def doubted(self, connection: int, instruments: Iterable[Instrument]) -> None:
        """A frame of a connection could not be read, so that trades of these instruments may be missing."""
        for instrument in instruments:
            followed = self._followed.get(instrument)
            if followed is not None:
                followed.continuity.doubt(connection)

    def lost(self, connection: int, instruments: Iterable[Instrument], reason: str, detail: str) -> None:
        """A connection ended (`disconnect`) or was given up as mute (`mute`): what it covered ends with its last trade."""
        self._connected.pop(connection, None)
        for instrument in instruments:
            followed = self._followed.get(instrument)
            if followed is None:
                continue
            followed.continuity.lost(connection, reason)
            if not followed.continuity.living:
                self._health.report(str(instrument), State.DOWN, detail)

    async def batch_ready(self) -> None:
        """Returns once a batch worth writing waits."""
        await self._enough.wait()

    def take_batch(self) -> Entry:
        """Everything that waits for the store, with the coverage that it brings about."""
        trades, self._waiting = self._waiting, []
        pieces, self._pieces = self._pieces, []
        self._enough = anyio.Event()
        self._room.set()
        self._room = anyio.Event()
        spans, self._left = self._left, []
        spans += [(instrument, span) for instrument, followed in self._followed.items() for span in followed.continuity.changed()]
        return Entry(trades, spans, pieces)

    async def stored(self, instrument: Instrument, minutes: Iterable[int]) -> None:
        """Returns once nothing of these minutes (by start) waits for the store any more."""
        left = set(minutes)
        while (tape := self._tape.get(instrument)) is not None and not left.isdisjoint(tape.waiting):
            await self._saved.wait()

    def mark_durable(self, trades: Iterable[Trade], pieces: Iterable[PartialFootprint] = ()) -> None:
        """The store holds these durably now."""
        self._saved.set()
        self._saved = anyio.Event()
        stored: defaultdict[Instrument, list[Trade]] = defaultdict(list)
        for trade in trades:
            stored[trade.instrument].append(trade)
        for instrument, some in stored.items():
            tape = self._tape.get(instrument)
            if tape is not None:
                tape.save(some)
        for piece in pieces:
            tape = self._tape.get(piece.instrument)
            if tape is not None:
                tape.save_piece(piece.minute)


def _interval(recent: Sequence[Trade]) -> float:
    """Usual seconds between seconds with trades, as the newest stored trades tell; 4 where they tell nothing."""
    seconds = {trade.timestamp // SECOND for trade in recent}
    if len(seconds) < 10:
        return 4.0
    return min(120.0, (max(seconds) - min(seconds)) / (len(seconds) - 1))
