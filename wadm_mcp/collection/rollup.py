"""Closes minutes and the bars above them, and derives them again when a late trade marks a minute.

A minute closes once the market's time is past its end and every trade of it that was recorded rests in the store; its figures
come from the live footprint. A marked minute (late trade, crash) is derived again from the stored trades. Either way the minute
and every closed bar above it go to the store in one step, so that what is read always adds up.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from anyio import to_thread

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.order_flow import session_start
from wadm_mcp.analytics.volume_profile import VolumeProfile, volume_profile
from wadm_mcp.collection.recorder import Followed, Recorder
from wadm_mcp.health import Health
from wadm_mcp.model import DAY, HOUR, MINUTE, SECOND, Instrument, Listing, Scale, Timeframe, Trade, Window, rescale
from wadm_mcp.storage.store import Derived, Mark, OrderFlow, Profile, Store, StoredFootprint

_GRACE: Final = 2 * SECOND
"""Market time left to stragglers before a minute closes; an exchange's frames may lag their trades (exchanges.md section 7)."""
_PAGE: Final = 10_000
_RECOVERED: Final = 10
"""Marked minutes that a start brings back at once; a crash leaves one or two."""
_PACKED: Final = (Timeframe.M1, Timeframe.H1, Timeframe.D1)


class Rollup:
    """Derives bars, footprints and profiles of the instruments that a recorder follows."""

    def __init__(self, recorder: Recorder, store: Store, health: Health, clock: Callable[[], int], trades_life: int) -> None:
        self._recorder = recorder
        self._store = store
        self._health = health
        self._clock = clock
        self._trades_life = trades_life

    async def recover(self, followed: Followed) -> None:
        """Bring the minutes that the store's figures lack back into the tape from their stored trades; `run` derives what is over."""
        tape, now = followed.tape, self._clock()
        every = sorted(mark.minute for mark in await self._store.marks() if mark.instrument == tape.instrument)
        marked = every[-_RECOVERED:]
        trades = [trade for minute in marked for trade in await self._stored_trades(tape.instrument, minute)]
        tape.minutes.clear()
        tape.revising = Counter(every[:-_RECOVERED])
        tape.settled_until = 0
        for trade in trades:
            tape.add(trade)
        opened = [minute for minute in marked if minute + MINUTE > now]
        if opened:
            tape.settled_until = opened[0]
        elif tape.newest is not None:
            tape.settled_until = tape.newest.timestamp - tape.newest.timestamp % MINUTE + MINUTE

    async def run(self) -> None:
        """Close what is due and derive again what is marked; one pass over every instrument."""
        marks: dict[Instrument, list[Mark]] = {}
        for mark in await self._store.marks():
            marks.setdefault(mark.instrument, []).append(mark)
        for followed in self._recorder.followed:
            await self._settle(followed, marks.get(followed.tape.instrument, []))

    async def _settle(self, followed: Followed, marks: Sequence[Mark]) -> None:
        tape = followed.tape
        writes = {mark.minute: mark for mark in marks}
        due: dict[int, Footprint] = {}
        until = tape.settled_until
        ready = followed.market_time() - _GRACE
        while until and until + MINUTE <= ready and until not in tape.waiting:
            if until in tape.minutes:
                # A copy: a straggler may still come while the store is waited for, and marks the minute again.
                due[until] = tape.minutes[until].rescaled(tape.minutes[until].scale)
            elif followed.covers_quiet(until):
                due[until] = Footprint(tape.listing.scale)
            until += MINUTE
        late = [mark.minute for mark in marks if mark.minute < tape.settled_until and mark.minute not in tape.waiting]
        revised = {minute: tape.revising[minute] for minute in late}
        for minute in [*late, *(minute for minute, footprint in due.items() if _path_unknown(footprint.bar))]:
            due[minute] = await self._derived_again(tape.instrument, minute)
        settles = [writes[minute] for minute in due if minute in writes]
        await self._derive(tape.listing, due, tape.settled_until, until, settles, in_turn=not late)
        tape.settled_until = until
        for minute, trades in revised.items():
            tape.revised(minute, trades)
        for minute in [minute for minute in tape.minutes if minute < until and minute not in tape.waiting]:
            del tape.minutes[minute]

    async def _derive(
        self, listing: Listing, minutes: Mapping[int, Footprint], settled: int, until: int, settles: Sequence[Mark], *, in_turn: bool
    ) -> None:
        """Derive these minutes, every closed bar above them, and every bar that was open at `settled` and is over at `until`.

        `in_turn`: the minutes follow everything derived before.
        """
        instrument = listing.instrument
        footprints: list[StoredFootprint] = []
        profiles: list[Profile] = []
        bars: dict[tuple[Timeframe, int], Bar] = {}
        revisions: dict[tuple[Timeframe, int], int] = {}
        hours: dict[int, Footprint] = {}
        for timeframe in Timeframe:
            starts = {timeframe.floor(minute) for minute in minutes}
            left_open = timeframe.floor(settled - 1)
            passed = left_open not in starts and settled < left_open + timeframe.ms <= until
            # Its end passed without a minute to derive: the connection was down, or the process.
            if passed and await self._store.order_flow(instrument, Timeframe.M1, Window(left_open, settled)):
                starts.add(left_open)
            for start in sorted(starts):
                window = Window(start, start + timeframe.ms)
                if window.end > until:
                    continue
                if timeframe is Timeframe.M1:
                    footprint = minutes[start]
                elif timeframe.ms <= Timeframe.H1.ms:
                    footprint = await self._merged(listing, Timeframe.M1, window, minutes)
                else:
                    footprint = await self._merged_hours(listing, window, minutes, hours)
                if timeframe is Timeframe.H1:
                    hours[start] = footprint
                stored = await self._store.order_flow(instrument, timeframe, window)
                revision = stored[0].revision + 1 if stored else 0
                bars[timeframe, start] = footprint.bar
                revisions[timeframe, start] = revision
                if timeframe in _PACKED and footprint.cells:
                    footprints.append(StoredFootprint(instrument, timeframe, start, footprint, revision))
                profile = await to_thread.run_sync(_profile, footprint, listing)
                profiles.append(Profile(instrument, timeframe, start, profile, revision))
        if not bars:
            return
        order_flow = await self._cumulated(instrument, bars, revisions, in_turn)
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
        revisions: Mapping[tuple[Timeframe, int], int],
        in_turn: bool,
    ) -> list[OrderFlow]:
        """The bars with their cumulative delta, and every later bar of their sessions whose cumulative delta they change."""
        rows: list[OrderFlow] = []
        for session in sorted({session_start(start) for _, start in bars}):
            day = Window(session, session + DAY)
            fresh = {key: bar for key, bar in bars.items() if key[1] in day}
            minutes = {start: bar for (timeframe, start), bar in fresh.items() if timeframe is Timeframe.M1}
            first = min(minutes, default=day.end)
            before = await self._store.order_flow(instrument, Timeframe.M1, Window(max(session, first - MINUTE), first))
            follows = all(start + timeframe.ms > first for timeframe, start in fresh)
            if in_turn and minutes and follows and (before or first == session):
                deltas = _Deltas(minutes, before[0] if before else None)
                later: list[OrderFlow] = []
            else:
                stored = {row.start: row.bar for row in await self._store.order_flow(instrument, Timeframe.M1, day)}
                deltas = _Deltas({**stored, **minutes})
                later = [row for row in await self._later(instrument, first, day) if (row.timeframe, row.start) not in fresh]
            for (timeframe, start), bar in fresh.items():
                total, bar = deltas.until(start + timeframe.ms, bar)
                rows.append(OrderFlow(instrument, timeframe, start, bar, total, revisions[timeframe, start]))
            for row in later:
                total, bar = deltas.until(row.start + row.timeframe.ms, row.bar)
                if bar != row.bar or total != row.cumulative_delta:
                    rows.append(OrderFlow(instrument, row.timeframe, row.start, bar, total, row.revision + 1))
        return rows

    async def _later(self, instrument: Instrument, first: int, day: Window) -> list[OrderFlow]:
        """Every stored bar of a session that ends after `first`."""
        return [
            row
            for timeframe in Timeframe
            for row in await self._store.order_flow(instrument, timeframe, Window(timeframe.floor(first), day.end))
        ]

    async def _derived_again(self, instrument: Instrument, minute: int) -> Footprint:
        """A minute from its stored trades, in the exchange's order; from what stands there where raw trades are gone."""
        self._health.count("minutes.derived_again")
        if minute < self._clock() - self._trades_life:
            stored = await self._store.footprints(instrument, Timeframe.M1, Window(minute, minute + MINUTE))
            if stored:
                self._health.count("minutes.not_revised")
                return stored[0].footprint
        trades = await self._stored_trades(instrument, minute)
        return await to_thread.run_sync(_footprint, trades)

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


def _footprint(trades: Sequence[Trade]) -> Footprint:
    footprint = Footprint(trades[0].scale if trades else Scale(0, 0))
    for trade in trades:
        footprint.add(trade)
    return footprint


def _profile(footprint: Footprint, listing: Listing) -> VolumeProfile | None:
    return volume_profile(footprint, tick=int(listing.tick.scaleb(footprint.scale.price)))
