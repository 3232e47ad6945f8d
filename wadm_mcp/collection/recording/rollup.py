"""Closes minutes and the bars above them, and derives them again when a late trade marks a minute.

A minute closes once the market's time is past its end and every trade of it that was recorded rests in the store; its figures
come from the live footprint. A marked minute (late trade, crash) is derived again from the stored trades. Either way the minute
and every closed bar above it go to the store in one step, so that what is read always adds up.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final

from anyio import to_thread

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.order_flow import session_start
from wadm_mcp.analytics.volume_profile import VolumeProfile, volume_profile
from wadm_mcp.collection.recording.minute import build_minute
from wadm_mcp.collection.recording.recorder import RecordedInstrument, Recorder
from wadm_mcp.health import Health
from wadm_mcp.model import DAY, HOUR, MINUTE, SECOND, Instrument, Listing, Scale, Timeframe, Trade, Window, rescale
from wadm_mcp.storage.store import Derived, DirtyMinute, OrderFlow, Profile, Store, StoredFootprint
from wadm_mcp.tape import InstrumentTape

_GRACE: Final = 2 * SECOND
"""Market time left to stragglers before a minute closes; an exchange's frames may lag their trades (docs/exchanges.md 7)."""
_PAGE: Final = 10_000
RECENT_TRADES: Final = 2_000
"""Newest stored trades that a start looks at: what repeats, and how often the instrument trades."""
_RECOVERED: Final = 10
"""Marked minutes that a start brings back at once; a crash leaves one or two."""
_LONGEST_UNREST: Final = 30 * SECOND
"""A late minute is derived at once, and once more when nothing comes in for it any more, or after this time."""
_LATE_AT_ONCE: Final = 240
_LATE_CELLS: Final = 40_000
"""Prices of the late minutes that one pass takes: unpacked, an hour of a busy market has as many and takes tens of megabytes."""
_PACKED: Final = (Timeframe.M1, Timeframe.H1, Timeframe.D1)


async def _nothing() -> bool:
    return False


class Rollup:
    """Derives bars, footprints and profiles of the instruments that a recorder follows."""

    def __init__(self, recorder: Recorder, store: Store, health: Health, clock: Callable[[], int], trades_life: int) -> None:
        self._recorder = recorder
        self._store = store
        self._health = health
        self._clock = clock
        self._trades_life = trades_life
        self.behind = False
        """Did the last pass leave late minutes to the next?"""
        self._again: dict[Instrument, dict[int, tuple[int, int]]] = {}
        """Of late minutes that still have their mark: the writes to each that were seen last, and when it was derived."""

    async def adopt(self, followed: RecordedInstrument) -> None:
        """Go on from what the store holds of an instrument, or leave that to a later pass. Nothing else may be written meanwhile.

        Its minutes that lack figures are brought back into the tape from their stored trades; `run` derives those that are over.
        """
        tape, now = followed.tape, self._clock()
        instrument = tape.instrument
        # In later minutes an instrument was recorded here alone; there may be hours of them, if the store was away.
        shared = followed.since + MINUTE
        if self._partly_let_go(tape, shared):
            return
        spans = await self._store.spans(instrument, Window(now - max(DAY, self._trades_life), now + DAY))
        recent = await self._store.trades(instrument, Window(0, now + DAY), limit=RECENT_TRADES, newest=True)
        every = sorted(mark.minute for mark in await self._store.dirty_minutes() if mark.instrument == instrument)
        marked = sorted({*[minute for minute in every if minute <= shared][-_RECOVERED:], *filter(shared.__ge__, tape.minutes)})
        stored = {minute: await self._stored_trades(instrument, minute) for minute in marked}
        pieces = {minute: await self._store.pieces(instrument, Window(minute, minute + MINUTE)) for minute in marked}
        # From here on nothing waits: a question sees the instrument as it was before, or with all of this.
        if self._partly_let_go(tape, shared):
            return
        for minute in marked:
            known = {trade.order for trade in stored[minute]}
            unsaved = [trade for trade in tape.unsaved_in(Window(minute, minute + MINUTE)) if trade.order not in known]
            tape.make_minute(minute, sorted([*stored[minute], *unsaved], key=lambda trade: trade.order))
            for piece in pieces[minute]:
                tape.join_piece(minute, piece.footprint)
        tape.revising.update(minute for minute in every if minute not in marked and minute not in tape.minutes)
        followed.adopt(spans, recent)
        if not tape.settled_until:
            opened = [minute for minute in marked if minute + MINUTE > now]
            if opened:
                tape.settled_until = opened[0]
            elif tape.newest is not None:
                tape.settled_until = tape.newest.timestamp - tape.newest.timestamp % MINUTE + MINUTE

    async def run(self, between: Callable[[], Awaitable[bool]] = _nothing) -> None:
        """Close what is due and derive again what is marked; one pass over every instrument.

        Before each of them `between` may write to the store what waits, for hundreds take seconds; it says whether it did.
        """
        self.behind = False
        marks = await self._marks()
        for followed in self._recorder.followed:
            if await between():
                marks = await self._marks()
            if not followed.tape.adopted:
                await self.adopt(followed)
                marks = await self._marks()
            if followed.tape.adopted:
                await self._settle(followed, marks[followed.tape.instrument])

    def _partly_let_go(self, tape: InstrumentTape, until: int) -> bool:
        """Has the journal alone trades of minutes up to this one? They are in the store by a later pass."""
        return any(minute <= until for minute in tape.let_go)

    async def _marks(self) -> Mapping[Instrument, Sequence[DirtyMinute]]:
        marks: defaultdict[Instrument, list[DirtyMinute]] = defaultdict(list)
        for mark in await self._store.dirty_minutes():
            marks[mark.instrument].append(mark)
        return marks

    async def _settle(self, followed: RecordedInstrument, marks: Sequence[DirtyMinute]) -> None:
        tape = followed.tape
        instrument, settled = tape.instrument, tape.settled_until
        writes = {mark.minute: mark for mark in marks}
        # Whoever held the lease before may have settled a mark of ours, having read all that is stored.
        tape.settled_elsewhere(writes)
        over: list[int] = []
        until = settled
        ready = followed.market_time() - _GRACE
        while until and until + MINUTE <= ready and until not in tape.waiting:
            if until in tape.minutes or followed.covers_quiet(until):
                over.append(until)
            until += MINUTE
        late = self._due_late(instrument, [mark for mark in marks if mark.minute < settled and mark.minute not in tape.waiting])
        if over or late or until > settled:
            # Read before any content: what another holder of the lease derives from now on has a revision above these, and stands.
            standing = await self._standing(instrument, min([*late, settled - 1]), until)
            revised = {minute: tape.revising[minute] for minute in late}
            due: dict[int, Footprint] = {}
            for minute in over:
                # A copy: a straggler may still come while the store is waited for, and marks the minute again.
                live = tape.minutes.get(minute)
                due[minute] = live.rescaled(live.scale) if live is not None else Footprint(tape.listing.scale)
                if await self._differs(instrument, minute, due[minute], tape.rows[minute], writes):
                    due[minute] = await self._derived_again(instrument, minute)
            cells = 0
            for minute in reversed(late):
                if cells >= _LATE_CELLS:
                    self.behind = True
                    self._again[instrument].pop(minute)
                    continue
                due[minute] = await self._derived_again(instrument, minute)
                cells += due[minute].levels
            settles = [writes[minute] for minute in due if minute in writes]
            pending = {minute for minute in writes if minute < settled and minute not in due}
            await self._derive(tape.listing, due, settled, until, settles, standing, pending, in_turn=not late)
            tape.settled_until = until
            for minute, trades in revised.items():
                if minute in due:
                    tape.revised(minute, trades)
        for minute in [minute for minute in tape.minutes if minute < until and minute not in tape.waiting]:
            tape.drop_minute(minute)

    def _due_late(self, instrument: Instrument, late: Sequence[DirtyMinute]) -> list[int]:
        """Marked minutes to derive again now, the newest first of too many: each pass costs every later bar of their sessions."""
        now, known = self._clock(), self._again.get(instrument, {})
        again: dict[int, tuple[int, int]] = {}
        due: list[int] = []
        for minute, writes in sorted(((mark.minute, mark.writes) for mark in late), reverse=True):
            seen, derived_at = known.get(minute, (writes, 0))
            if len(due) < _LATE_AT_ONCE and (seen == writes or abs(now - derived_at) >= _LONGEST_UNREST):
                due.append(minute)
                again[minute] = writes, now
            elif minute in known:
                again[minute] = writes, derived_at
        self._again[instrument] = again
        self.behind |= len(due) == _LATE_AT_ONCE
        return sorted(due)

    async def _standing(self, instrument: Instrument, first: int, until: int) -> dict[tuple[Timeframe, int], OrderFlow]:
        """Every stored bar that holds or follows a minute, up to the end of the session in which `until` lies."""
        end = max(session_start(until) + DAY, until)
        return {
            (timeframe, row.start): row
            for timeframe in Timeframe
            for row in await self._store.order_flow(instrument, timeframe, Window(timeframe.floor(first), end))
        }

    async def _differs(
        self, instrument: Instrument, minute: int, footprint: Footprint, rows: int, marks: Mapping[int, DirtyMinute]
    ) -> bool:
        """May the store hold other trades of a minute than the live footprint was made of?

        All of those are in the store, which knows each trade once: equal numbers are the same trades, whoever else wrote.
        """
        if _path_unknown(footprint.bar):
            return True
        if not rows and minute not in marks:
            return False
        return await self._store.count(instrument, Window(minute, minute + MINUTE)) != rows

    async def _derive(
        self,
        listing: Listing,
        minutes: Mapping[int, Footprint],
        settled: int,
        until: int,
        settles: Sequence[DirtyMinute],
        standing: Mapping[tuple[Timeframe, int], OrderFlow],
        pending: Collection[int],
        *,
        in_turn: bool,
    ) -> None:
        """Derive these minutes, every closed bar above them, and every bar that was open at `settled` and is over at `until`.

        `standing` is what the store has of them and after them; `in_turn`: the minutes follow everything derived before. A bar that does
        not stand yet waits for its last `pending` minute: until then it is read from what it is made of.
        """
        instrument = listing.instrument
        footprints: list[StoredFootprint] = []
        profiles: list[Profile] = []
        bars: dict[tuple[Timeframe, int], Bar] = {}
        hours: dict[int, Footprint] = {}

        def revision(timeframe: Timeframe, start: int) -> int:
            known = standing.get((timeframe, start))
            return known.revision + 1 if known is not None else 0

        for timeframe in Timeframe:
            starts = {timeframe.floor(minute) for minute in minutes}
            waiting = {timeframe.floor(minute) for minute in pending}
            left_open = timeframe.floor(settled - 1)
            passed = left_open not in starts and settled < left_open + timeframe.ms <= until
            # Its end passed without a minute to derive: the connection was down, or the process.
            if passed and await self._store.order_flow(instrument, Timeframe.M1, Window(left_open, settled)):
                starts.add(left_open)
            for start in sorted(starts):
                window = Window(start, start + timeframe.ms)
                if window.end > until or (start in waiting and (timeframe, start) not in standing):
                    continue
                if timeframe is Timeframe.M1:
                    footprint = minutes[start]
                elif timeframe.ms <= Timeframe.H1.ms:
                    footprint = await self._merged(listing, Timeframe.M1, window, minutes)
                else:
                    footprint = await self._merged_hours(listing, window, minutes, hours)
                if timeframe is Timeframe.H1:
                    hours[start] = footprint
                bars[timeframe, start] = footprint.bar
                if timeframe in _PACKED and footprint.levels:
                    footprints.append(StoredFootprint(instrument, timeframe, start, footprint, revision(timeframe, start)))
                profile = await to_thread.run_sync(_profile, footprint, listing)
                profiles.append(Profile(instrument, timeframe, start, profile, revision(timeframe, start)))
        if not bars:
            return
        totals = await self._cumulated(instrument, bars, standing, in_turn)
        order_flow = [OrderFlow(instrument, *key, bar, total, revision(*key)) for key, (bar, total) in totals.items()]
        await self._store.derive(Derived(footprints, profiles, order_flow, settles))

    async def _merged(self, listing: Listing, part: Timeframe, window: Window, fresh: Mapping[int, Footprint]) -> Footprint:
        stored = await self._store.footprints(listing.instrument, part, window)
        pieces = {row.start: row.footprint for row in stored}
        pieces.update((start, footprint) for start, footprint in fresh.items() if start in window)
        ordered = [pieces[start] for start in sorted(pieces)]
        return await to_thread.run_sync(Footprint.consecutive, ordered, listing.scale)

    async def _merged_hours(
        self, listing: Listing, window: Window, minutes: Mapping[int, Footprint], hours: Mapping[int, Footprint]
    ) -> Footprint:
        """A bar of several hours from its hours, and from minutes where an hour has none of its own."""
        stored = await self._store.footprints(listing.instrument, Timeframe.H1, window)
        pieces = {row.start: row.footprint for row in stored} | {start: footprint for start, footprint in hours.items() if start in window}
        for hour in range(window.start, window.end, HOUR):
            if hour not in pieces:
                pieces[hour] = await self._merged(listing, Timeframe.M1, Window(hour, hour + HOUR), minutes)
        ordered = [pieces[start] for start in sorted(pieces)]
        return await to_thread.run_sync(Footprint.consecutive, ordered, listing.scale)

    async def _cumulated(
        self,
        instrument: Instrument,
        bars: Mapping[tuple[Timeframe, int], Bar],
        standing: Mapping[tuple[Timeframe, int], OrderFlow],
        in_turn: bool,
    ) -> dict[tuple[Timeframe, int], tuple[Bar, int]]:
        """The bars with their cumulative delta, and with them every later bar of their sessions.

        Those are written again even where nothing changes: a pass that ended in the middle may have left them in part.
        """
        told: dict[tuple[Timeframe, int], tuple[Bar, int]] = {}
        for session in sorted({session_start(start) for _, start in bars}):
            day = Window(session, session + DAY)
            fresh = {key: bar for key, bar in bars.items() if key[1] in day}
            minutes = {start: bar for (timeframe, start), bar in fresh.items() if timeframe is Timeframe.M1}
            first = min(minutes, default=day.end)
            before = await self._store.order_flow(instrument, Timeframe.M1, Window(max(session, first - MINUTE), first))
            follows = all(start + timeframe.ms > first for timeframe, start in fresh)
            if in_turn and minutes and follows and (before or first == session):
                deltas = _Deltas(minutes, before[0] if before else None)
            else:
                stored = {row.start: row.bar for row in await self._store.order_flow(instrument, Timeframe.M1, day)}
                deltas = _Deltas({**stored, **minutes})
                later = [key for key in standing if key[1] in day and key[1] + key[0].ms > first]
                fresh = {key: standing[key].bar for key in later} | fresh
            for (timeframe, start), bar in fresh.items():
                total, bar = deltas.until(start + timeframe.ms, bar)
                told[timeframe, start] = bar, total
        return told

    async def _derived_again(self, instrument: Instrument, minute: int) -> Footprint:
        """A minute from its stored trades and pieces, in the exchange's order; added to what stands there where raw trades are gone."""
        self._health.count("minutes.derived_again")
        window = Window(minute, minute + MINUTE)
        trades = await self._stored_trades(instrument, minute)
        pieces = await self._store.pieces(instrument, window)
        standing: Sequence[StoredFootprint] = ()
        if minute < self._clock() - self._trades_life:
            standing = await self._store.footprints(instrument, Timeframe.M1, window)
        return await to_thread.run_sync(build_minute, trades, pieces, standing[0].footprint if standing else None)

    async def _stored_trades(self, instrument: Instrument, minute: int) -> list[Trade]:
        window = Window(minute, minute + MINUTE)
        trades: list[Trade] = []
        while True:
            page = await self._store.trades(instrument, window, after=trades[-1].order if trades else None, limit=_PAGE)
            trades += page
            if len(page) < _PAGE:
                return trades


class _Deltas:
    """Cumulative delta within one session, minute by minute, at the finest scale of what is summed."""

    def __init__(self, minutes: Mapping[int, Bar], before: OrderFlow | None = None) -> None:
        decimals = [bar.scale.quantity for bar in minutes.values()]
        total = 0
        if before is not None:
            decimals.append(before.bar.scale.quantity)
        self._decimals = max(decimals)
        if before is not None:
            total = rescale(before.cumulative_delta, before.bar.scale.quantity, self._decimals)
        self._ends = [start + MINUTE for start in sorted(minutes)]
        self._totals = [total]
        for start in sorted(minutes):
            bar = minutes[start]
            total += rescale(bar.delta, bar.scale.quantity, self._decimals)
            self._totals.append(total)

    def until(self, end: int, bar: Bar) -> tuple[int, Bar]:
        """The sum over the minutes that end by `end`, and the bar that ends there, both at one scale."""
        decimals = max(self._decimals, bar.scale.quantity)
        total = self._totals[bisect_right(self._ends, end)]
        return rescale(total, self._decimals, decimals), bar.rescaled(Scale(bar.scale.price, decimals))


def _path_unknown(bar: Bar) -> bool:
    return bar.trade_count > 0 and bar.min_delta is None


def _profile(footprint: Footprint, listing: Listing) -> VolumeProfile | None:
    return volume_profile(footprint, tick=int(listing.tick.scaleb(footprint.scale.price)))
