"""Closes minutes and the bars above them, and derives them again when a late trade makes a minute dirty.

A minute closes once the market's time is past its end and every recorded trade of it is in the store; its figures come from the live
footprint. A dirty minute (late trade, crash) is derived again from the stored trades. Either way the minute and every closed bar above
it are stored in one step, so that the figures always add up.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from anyio import to_thread

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.order_flow import session_start
from wadm_mcp.analytics.volume_profile import VolumeProfile, volume_profile
from wadm_mcp.clock import Clock
from wadm_mcp.collection.recording.minute import build_minute
from wadm_mcp.collection.recording.recorded_instrument import RecordedInstrument
from wadm_mcp.coverage.expired import Expired
from wadm_mcp.health import Health
from wadm_mcp.model import DAY, HOUR, MINUTE, SECOND, Instrument, Listing, Scale, Timeframe, Window, rescale
from wadm_mcp.storage.store import Derived, DirtyMinute, OrderFlow, Profile, Store, StoredFootprint, all_trades

_GRACE_MS: Final = 2 * SECOND
"""Market time that a minute stays open after its end; an exchange's frames may lag their trades (docs/exchanges.md 7)."""
_MAX_UNREST_MS: Final = 30 * SECOND
"""A late minute is derived at once, and once more when no more trades come in for it, or after this time."""
_LATE_AT_ONCE: Final = 240
_LATE_CELLS: Final = 40_000
"""Prices of the late minutes that one pass takes: unpacked, an hour of a busy market has as many and takes tens of megabytes."""
_PACKED: Final = (Timeframe.M1, Timeframe.H1, Timeframe.D1)

_BarKey: TypeAlias = tuple[Timeframe, int]
"""Timeframe and start of a bar."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """What one pass derives of an instrument: these minutes, every closed bar above them, every bar above the minutes `elsewhere` that is
    not stored, and every bar that was open at `settled` and is over at `until`."""

    listing: Listing
    minutes: Mapping[int, Footprint]
    elsewhere: Sequence[int]
    """Minutes that another process has derived. It may have ended before it derived the bars above them."""
    settled: int
    until: int
    clears: Sequence[DirtyMinute]
    """Marks that the pass clears."""
    stored: Mapping[_BarKey, OrderFlow]
    """The stored bars that contain these minutes or follow them."""
    unfinished: Sequence[int]
    """Dirty minutes left to a later pass, ascending. A bar that is not stored yet waits for its last one, and is read from its parts
    until then."""
    in_turn: bool
    """True if the minutes follow everything derived before."""

    def revision(self, timeframe: Timeframe, start: int) -> int:
        """The revision of a bar that this pass writes."""
        known = self.stored.get((timeframe, start))
        return known.revision + 1 if known is not None else 0

    def waits(self, timeframe: Timeframe, start: int) -> bool:
        """True if the bar is still open, or not stored yet and unfinished."""
        if start + timeframe.ms > self.until:
            return True
        if (timeframe, start) in self.stored:
            return False
        place = bisect_left(self.unfinished, start)
        return place < len(self.unfinished) and self.unfinished[place] < start + timeframe.ms


class Rollup:
    """Derives bars, footprints and profiles of recorded instruments. `retention_of_trades` in ms."""

    def __init__(self, store: Store, health: Health, clock: Clock, retention_of_trades: int) -> None:
        self._store = store
        self._health = health
        self._clock = clock
        self._retention_of_trades = retention_of_trades
        self.behind = False
        """True if the last pass left late minutes to the next."""
        self._late: dict[Instrument, dict[int, tuple[int, int]]] = {}
        """By late dirty minute: its last seen `writes`, and when it was last derived (ms)."""

    async def begin(self) -> Mapping[Instrument, Sequence[DirtyMinute]]:
        """Begin a pass over the instruments: their dirty minutes."""
        self.behind = False
        return await self.dirty_minutes()

    async def dirty_minutes(self) -> Mapping[Instrument, Sequence[DirtyMinute]]:
        """The dirty minutes of every instrument, oldest first."""
        dirty: defaultdict[Instrument, list[DirtyMinute]] = defaultdict(list)
        for mark in await self._store.dirty_minutes():
            dirty[mark.instrument].append(mark)
        return dirty

    async def settle(self, recorded: RecordedInstrument, dirty: Sequence[DirtyMinute]) -> None:
        """Close the minutes of an instrument that are over, and derive its late ones again."""
        tape = recorded.tape
        instrument, settled = tape.instrument, tape.settled_until
        marks = {mark.minute: mark for mark in dirty}
        # The lease's last holder may have cleared a mark of ours: it had read all that is stored.
        tape.forget_revised_elsewhere(marks)
        over: list[int] = []
        until = settled
        ready = recorded.market_time() - _GRACE_MS
        while until and until + MINUTE <= ready and until not in tape.unstored:
            if until in tape.minutes or recorded.covers_quiet(until):
                over.append(until)
            until += MINUTE
        late = self._due_late(instrument, [mark for mark in dirty if mark.minute < settled and mark.minute not in tape.unstored])
        if over or late or until > settled:
            # Read before any content: what another lease holder derives from now on has a higher revision and stays.
            stored = await self._stored_bars(instrument, min([*late, settled - 1]), until)
            expired = await self._store.expired(instrument)
            revised = {minute: tape.revising[minute] for minute in late}
            due: dict[int, Footprint] = {}
            elsewhere: list[int] = []
            for minute in over:
                live = tape.minutes.get(minute)
                if live is None and (Timeframe.M1, minute) in stored:
                    # Another process recorded it while this one stood still.
                    elsewhere.append(minute)
                    continue
                # A copy: a late trade may come in during the awaits, and marks the minute again.
                due[minute] = live.rescaled(live.scale) if live is not None else Footprint(tape.listing.scale)
                if await self._differs(instrument, minute, due[minute], tape.trade_counts[minute], marks):
                    due[minute] = await self._derived_again(instrument, minute, expired)
            cells = 0
            for minute in reversed(late):
                if cells >= _LATE_CELLS:
                    self.behind = True
                    self._late[instrument].pop(minute)
                    continue
                due[minute] = await self._derived_again(instrument, minute, expired)
                cells += due[minute].levels
            clears = [marks[minute] for minute in due if minute in marks]
            unfinished = sorted(minute for minute in marks if minute < settled and minute not in due)
            in_turn = not late and not elsewhere
            await self._derive(_Pass(tape.listing, due, elsewhere, settled, until, clears, stored, unfinished, in_turn))
            for minute, trades in revised.items():
                if minute in due:
                    tape.revised(minute, trades)
        tape.settle(until)

    def _due_late(self, instrument: Instrument, late: Sequence[DirtyMinute]) -> list[int]:
        """Dirty minutes to derive again now, the newest of too many: each pass rewrites every later bar of their sessions."""
        now, known = self._clock.now(), self._late.get(instrument, {})
        seen: dict[int, tuple[int, int]] = {}
        due: list[int] = []
        for minute, writes in sorted(((mark.minute, mark.writes) for mark in late), reverse=True):
            writes_before, derived_at = known.get(minute, (writes, 0))
            if len(due) < _LATE_AT_ONCE and (writes_before == writes or abs(now - derived_at) >= _MAX_UNREST_MS):
                due.append(minute)
                seen[minute] = writes, now
            elif minute in known:
                seen[minute] = writes, derived_at
        self._late[instrument] = seen
        self.behind |= len(due) == _LATE_AT_ONCE
        return sorted(due)

    async def _stored_bars(self, instrument: Instrument, first: int, until: int) -> dict[_BarKey, OrderFlow]:
        """Every stored bar that contains a minute from `first` on or follows it, up to the end of the session of `until`."""
        end = max(session_start(until) + DAY, until)
        return {
            (timeframe, row.start): row
            for timeframe in Timeframe
            for row in await self._store.order_flow(instrument, timeframe, Window(timeframe.floor(first), end))
        }

    async def _differs(
        self, instrument: Instrument, minute: int, footprint: Footprint, trades: int, marks: Mapping[int, DirtyMinute]
    ) -> bool:
        """True if the store may have trades of this minute that the live footprint, made of `trades` trades, lacks.

        Only the numbers are compared: every live trade is stored, and the store has each trade once.
        """
        if _path_unknown(footprint.bar):
            return True
        if not trades and minute not in marks:
            return False
        return await self._store.count(instrument, Window(minute, minute + MINUTE)) != trades

    async def _derive(self, work: _Pass) -> None:
        """Derive what a pass is about and store it in one step."""
        listing, instrument = work.listing, work.listing.instrument
        footprints: list[StoredFootprint] = []
        profiles: list[Profile] = []
        bars: dict[_BarKey, Bar] = {}
        hours: dict[int, Footprint] = {}
        for timeframe in Timeframe:
            for start in await self._starts(work, timeframe):
                if work.waits(timeframe, start):
                    continue
                window = Window(start, start + timeframe.ms)
                if timeframe is Timeframe.M1:
                    footprint = work.minutes[start]
                elif timeframe.ms <= Timeframe.H1.ms:
                    footprint = await self._merged(listing, Timeframe.M1, window, work.minutes)
                else:
                    footprint = await self._merged_hours(listing, window, work.minutes, hours)
                if timeframe is Timeframe.H1:
                    hours[start] = footprint
                bars[timeframe, start] = footprint.bar
                revision = work.revision(timeframe, start)
                if timeframe in _PACKED and footprint.levels:
                    footprints.append(StoredFootprint(instrument, timeframe, start, footprint, revision))
                profile = await to_thread.run_sync(_profile, footprint, listing)
                profiles.append(Profile(instrument, timeframe, start, profile, revision))
        if not bars:
            return
        totals = await self._with_cumulative_delta(instrument, bars, work)
        order_flow = [OrderFlow(instrument, *key, bar, total, work.revision(*key)) for key, (bar, total) in totals.items()]
        await self._store.derive(Derived(footprints, profiles, order_flow, work.clears))

    async def _starts(self, work: _Pass, timeframe: Timeframe) -> list[int]:
        """Starts of the bars of a timeframe that a pass derives, oldest first."""
        starts = {timeframe.floor(minute) for minute in work.minutes}
        starts |= {start for minute in work.elsewhere if (timeframe, start := timeframe.floor(minute)) not in work.stored}
        left_open = timeframe.floor(work.settled - 1)
        if left_open not in starts and work.settled < left_open + timeframe.ms <= work.until:
            # Its end passed without a minute to derive: the connection was down, or the process.
            instrument = work.listing.instrument
            if await self._store.order_flow(instrument, Timeframe.M1, Window(left_open, work.settled)):
                starts.add(left_open)
        return sorted(starts)

    async def _merged(self, listing: Listing, part: Timeframe, window: Window, fresh: Mapping[int, Footprint]) -> Footprint:
        stored = await self._store.footprints(listing.instrument, part, window)
        pieces = {row.start: row.footprint for row in stored}
        pieces.update((start, footprint) for start, footprint in fresh.items() if start in window)
        ordered = [pieces[start] for start in sorted(pieces)]
        return await to_thread.run_sync(Footprint.merge_consecutive, ordered, listing.scale)

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
        return await to_thread.run_sync(Footprint.merge_consecutive, ordered, listing.scale)

    async def _with_cumulative_delta(
        self, instrument: Instrument, bars: Mapping[_BarKey, Bar], work: _Pass
    ) -> dict[_BarKey, tuple[Bar, int]]:
        """The bars with their cumulative delta, and with them every later bar of their sessions.

        Later bars are written again even where nothing changes: a pass that was interrupted may have left them in part.
        """
        totals: dict[_BarKey, tuple[Bar, int]] = {}
        for session in sorted({session_start(start) for _, start in bars}):
            day = Window(session, session + DAY)
            fresh = {key: bar for key, bar in bars.items() if key[1] in day}
            minutes = {start: bar for (timeframe, start), bar in fresh.items() if timeframe is Timeframe.M1}
            first = min(minutes, default=day.end)
            before = await self._store.order_flow(instrument, Timeframe.M1, Window(max(session, first - MINUTE), first))
            follows = all(start + timeframe.ms > first for timeframe, start in fresh)
            if work.in_turn and minutes and follows and (before or first == session):
                deltas = _CumulativeDelta(minutes, before[0] if before else None)
            else:
                stored = {row.start: row.bar for row in await self._store.order_flow(instrument, Timeframe.M1, day)}
                deltas = _CumulativeDelta({**stored, **minutes})
                later = [key for key in work.stored if key[1] in day and key[1] + key[0].ms > first]
                fresh = {key: work.stored[key].bar for key in later} | fresh
            for (timeframe, start), bar in fresh.items():
                total, bar = deltas.until(start + timeframe.ms, bar)
                totals[timeframe, start] = bar, total
        return totals

    async def _derived_again(self, instrument: Instrument, minute: int, expired: Expired) -> Footprint:
        """A minute from its stored trades and partial footprints; merged into the stored footprint where its trades have expired.

        They may have expired by an earlier, shorter retention, or not been deleted yet.
        """
        self._health.count("minutes.derived_again")
        window = Window(minute, minute + MINUTE)
        trades = await all_trades(self._store, instrument, window)
        partials = await self._store.pieces(instrument, window)
        stored: Sequence[StoredFootprint] = ()
        if minute < self._clock.now() - self._retention_of_trades or not expired.has_trades(minute):
            stored = await self._store.footprints(instrument, Timeframe.M1, window)
        return await to_thread.run_sync(build_minute, trades, partials, stored[0].footprint if stored else None)


class _CumulativeDelta:
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
    # Minutes that began before the tick was known, or while it was coarser, may have a coarser scale than the tick.
    footprint = footprint.at(footprint.scale.finest(listing.scale))
    return volume_profile(footprint, tick=listing.tick_at(footprint.scale.price))
