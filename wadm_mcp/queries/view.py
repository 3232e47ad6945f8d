"""One view of tape and store, which every question reads from.

The tape is read first and the store second. What moves from tape to store in between is then found in both, and never in neither.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Final, TypeAlias, TypeVar

import anyio
from anyio import to_thread

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.coverage.expired import Expired
from wadm_mcp.coverage.spans import Span
from wadm_mcp.errors import Busy, StoreError
from wadm_mcp.model import HOUR, MINUTE, Instrument, Listing, Retention, Scale, Timeframe, Trade, Window, decimals_of
from wadm_mcp.storage.cached import CachedFootprints
from wadm_mcp.storage.store import Store, StoredFootprint, footprint_lots
from wadm_mcp.tape import Importing, InstrumentTape, Losses, Repairing, Tape

_Row = TypeVar("_Row")
_T = TypeVar("_T")
_MAX_WAIT_SECONDS: Final = 3.0
"""How long a first question waits for the exchanges to answer."""
_ATTEMPTS: Final = 4
"""How often a question is answered anew because data has left memory meanwhile. In a flood that the store cannot follow, trades leave it
several times a second."""
_BUSY_SECONDS: Final = 5
_MAX_LEVELS_ON_LOOP: Final = 2_000
"""Prices of footprints that are merged on the event loop; more go to a worker thread."""
_MAX_BYTES_READ: Final = 256 << 10
"""Packed footprints that are read from the store at a time. Unpacked they take about four times as much memory."""
_MAX_LEVELS_MERGED: Final = 30_000
"""Prices of the footprints that wait in memory to be merged. Each takes 40 bytes."""


class View:
    """Reads what was recorded of the followed instruments. `clock` returns now (ms). The first of `markets` is the default market.

    `retention` is how long the store keeps data, None for ever; `symbols` are the configured ones. Each question uses a `reading` of its
    own. If `store_down()` is true, or the first read from the store fails, the whole question is answered from the live tape alone, and
    its coverage includes only what the tape has.
    """

    def __init__(
        self,
        store: Store,
        tape: Tape,
        clock: Callable[[], int],
        markets: Iterable[str],
        exchanges: Iterable[str],
        retention: Retention | None = None,
        cached: CachedFootprints | None = None,
        symbols: Iterable[str] = (),
        store_down: Callable[[], bool] = lambda: False,
        how_to_follow: str = "",
    ) -> None:
        self._store = store
        self._cached = cached
        self._tape = tape
        self.clock = clock
        self.markets = tuple(markets)
        self.exchanges = tuple(exchanges)
        self.retention = retention
        self.symbols = tuple(symbols)
        self._store_down = store_down
        self.how_to_follow = how_to_follow
        """What an error about a symbol that is not followed advises to do."""
        self.without_store: bool | None = None
        """Whether this question is answered without the store. None before its first read from the store."""
        self._claims: list[_Claim] | None = None
        """The coverage that a reading has read; None in the view of all questions."""

    def reading(self) -> View:
        """A copy of this view for one query. The copy decides once whether the store answers."""
        one = copy(self)
        one.without_store = True if self._store_down() else None
        one._claims = []
        return one

    async def consistent(self, ask: Callable[[View], Awaitable[_T]]) -> _T:
        """What `ask` makes of a reading. Coverage is read before the data it describes: if some of that has left memory in between, and the
        store does not have it yet, the answer would claim it without having it, and a new reading is made.

        `Busy` if trades leave memory faster than they can be read.
        """
        for _ in range(_ATTEMPTS):
            reading = self.reading()
            answer = await ask(reading)
            if all(claim.holds for claim in reading._claims or ()):
                return answer
        raise Busy(f"busy: trades come in faster than they are stored; ask again in {_BUSY_SECONDS} s", _BUSY_SECONDS)

    @property
    def awaited(self) -> list[Instrument]:
        """Configured instruments whose exchange has not answered yet whether it lists them."""
        return sorted(self._tape.awaited)

    @property
    def recorded_elsewhere(self) -> bool:
        """Whether another process records into this data directory."""
        return self._tape.recorded_elsewhere

    async def until_ready(self) -> None:
        """Waits a few seconds at most until every exchange has answered what it lists, since a first question may come before that."""
        with anyio.move_on_after(_MAX_WAIT_SECONDS):
            await self._tape.wait_for_listings()

    @property
    def listings(self) -> list[Listing]:
        """Listings of every followed instrument."""
        return list(self._tape.listings)

    def unverified(self, instrument: Instrument) -> bool:
        """Whether nothing shows yet that the instrument exists: its exchange has not confirmed it, and no trade of it is known."""
        return self._tape[instrument].unverified

    def newest(self, instrument: Instrument) -> Trade | None:
        """The newest trade of this instrument in memory."""
        return self._tape[instrument].newest

    async def trades(
        self, instrument: Instrument, window: Window, *, after: tuple[int, int, int, str] | None = None, limit: int, newest: bool = False
    ) -> list[Trade]:
        """Up to `limit` trades of the window in `Trade.order`: the first after `after`, or with `newest` the last ones."""
        pending = self._tape[instrument].pending_in(window, after=after, limit=limit, newest=newest)
        stored = await self._stored(lambda: self._store.trades(instrument, window, after=after, limit=limit, newest=newest))
        known = {trade.order for trade in stored}
        both = [*stored, *(trade for trade in pending if trade.order not in known)]
        both.sort(key=lambda trade: trade.order)
        return both[-limit:] if newest else both[:limit]

    async def footprint(self, instrument: Instrument, window: Window, row: Decimal | None = None) -> Footprint:
        """One footprint of a window of whole minutes. With `row` (in price units) its cells may be rows of that size."""
        live = self._live(instrument, window)
        merge = partial(self._merged, instrument, live, row)
        if self._cached is None or self.without_store:
            return await merge(window)
        found = await self._cached.footprint(instrument, window, live, partial(self.bars, instrument, Timeframe.D1), merge, row)
        # It may be cached from before the tick became finer.
        return found.at(found.scale.finest(self._tape[instrument].listing.scale))

    async def figures(self, key: str, proof: Bar, make: Callable[[], Awaitable[list[int]]]) -> list[int]:
        """POC, VAH and VAL of a closed window as integers: from the cache if they were cached with the bar `proof`, else from `make`."""
        return await make() if self._cached is None or self.without_store else await self._cached.figures(key, proof, make)

    async def fold(self, instrument: Instrument, window: Window, step: Callable[[Footprint], _T]) -> list[_T]:
        """What the function `step` makes of each stored footprint of a window, oldest first, computed in a worker thread.

        For figures that are sums over prices: no more footprints are in memory at once than fit.
        """
        results: list[_T] = []
        async for parts in self._parts(instrument, self._live(instrument, window), window):
            results += await to_thread.run_sync(lambda parts=parts: [step(part) for part in parts])
        return results

    def new_footprint(self, instrument: Instrument, row: Decimal | None) -> Footprint:
        """An empty footprint of an instrument at the scale of its listing, or at one that can express rows of size `row`."""
        listed = self._tape[instrument].listing.scale
        return Footprint(listed if row is None else listed.finest(Scale(decimals_of(row), 0)))

    async def _merged(self, instrument: Instrument, live: Mapping[int, Footprint], row: Decimal | None, window: Window) -> Footprint:
        """The footprint of a window, merged as its parts are read. With `row` its cells are rows of that size."""
        merged = self.new_footprint(instrument, row)
        async for parts in self._parts(instrument, live, window):
            merge = partial(merged.merge_later_in_place, parts, row)
            if sum(part.levels for part in parts) <= _MAX_LEVELS_ON_LOOP:
                merge()
            else:
                await to_thread.run_sync(merge)
        return merged

    async def _parts(self, instrument: Instrument, live: Mapping[int, Footprint], window: Window) -> AsyncGenerator[list[Footprint]]:
        """The footprints of a window, oldest first, in lots of about `_MAX_LEVELS_MERGED` prices at most. The next lot is read once the
        caller has done with the one before."""

        async def first(timeframe: Timeframe, part: Window) -> list[StoredFootprint]:
            return await self._stored(lambda: self._store.footprints(instrument, timeframe, part, max_bytes=_MAX_BYTES_READ))

        async def stored(timeframe: Timeframe, part: Window) -> AsyncGenerator[tuple[int, Footprint]]:
            async for rows in footprint_lots(first, timeframe, part):
                for row in rows:
                    yield row.start, row.footprint

        inside = {minute: footprint for minute, footprint in live.items() if minute in window}
        lot: list[Footprint] = []
        levels = 0
        async for _, part in _coarsest((Timeframe.D1, Timeframe.H1, Timeframe.M1), window, inside, stored):
            if lot and levels + part.levels > _MAX_LEVELS_MERGED:
                yield lot
                lot, levels = [], 0
            lot.append(part)
            levels += part.levels
        if lot:
            yield lot

    async def bars(self, instrument: Instrument, timeframe: Timeframe, window: Window) -> dict[int, Bar]:
        """The bars of a window by their start, without those that had no trades. The first and last contain only the window's minutes."""
        live = {start: footprint.bar for start, footprint in self._live(instrument, window).items()}

        async def stored(timeframe: Timeframe, part: Window) -> AsyncGenerator[tuple[int, Bar]]:
            if part.length:
                for row in await self._stored(lambda: self._store.order_flow(instrument, timeframe, part)):
                    yield row.start, row.bar

        bars: dict[int, Bar] = {}
        async for start, bar in _coarsest(_STORED_TIMEFRAMES[timeframe], window, live, stored):
            bar_start = timeframe.floor(start)
            bars[bar_start] = bars[bar_start].merge_later(bar) if bar_start in bars else bar
        return {start: bar for start, bar in bars.items() if bar.trade_count}

    async def spans(self, instrument: Instrument, window: Window, *, raw: bool = False) -> list[Span]:
        """Spans that touch the window and the nearest ones beside it, oldest first. The recorder's newer spans replace those of the store.

        Without the store they are the spans of what the live tape has: of its figures, or with `raw` of its single trades.
        """
        tape = self._tape[instrument]
        if self._claims is not None:
            self._claims.append(_Claim(tape, window, raw))
        stored = await self._stored(lambda: self._store.spans(instrument, window))
        return tape.covered_here(stored, raw=raw, store_known=not self.without_store)

    async def expired(self, instrument: Instrument) -> Expired:
        """What was deleted of an instrument, and what is older than its retention: none of it may be claimed."""

        async def read() -> list[Expired]:
            return [await self._store.expired(instrument)]

        expired = next(iter(await self._stored(read)), Expired())
        return expired if self.retention is None else expired.older_than(self.retention, self.clock())

    async def _stored(self, read: Callable[[], Awaitable[list[_Row]]]) -> list[_Row]:
        """Rows from the store; none if the question is answered without it. `StoreError` if a read fails after another succeeded."""
        if self.without_store:
            return []
        try:
            rows = await read()
        except StoreError:
            if self.without_store is False:
                raise
            self.without_store = True
            return []
        self.without_store = False
        return rows

    def _live(self, instrument: Instrument, window: Window) -> dict[int, Footprint]:
        """Copies of the tape's minutes, since the tape changes while a question waits for the store or a thread."""
        return {start: minute.rescaled(minute.scale) for start, minute in self._tape[instrument].minutes_in(window).items()}

    async def being_revised(self, instrument: Instrument, window: Window, *, raw: bool = False) -> list[Window]:
        """Stretches of the window whose figures do not include late trades yet; with `raw` those with trades that only the journal has.

        Read it right after coverage and before figures: a minute that the store marks as dirty may be covered and not derived yet.
        """
        tape = self._tape[instrument]
        if raw:
            minutes = set(tape.evicted)
        else:
            dirty = [] if self.without_store else await self._stored(self._store.dirty_minutes)
            minutes = tape.outdated((each.minute for each in dirty if each.instrument == instrument), window.end)
        if self._claims:
            self._claims[-1].revising |= minutes
        return _stretches(minute for minute in sorted(minutes) if minute in window)

    def repairing(self, instrument: Instrument) -> Repairing | None:
        """Progress of this process in repairing the instrument's gaps; None if it repairs none."""
        return self._tape[instrument].backfill.repairing

    def follows(self, instrument: Instrument) -> bool:
        """Whether the tape has this instrument."""
        return self._tape.get(instrument) is not None

    def importing(self, instrument: Instrument) -> Importing | None:
        """Progress of this process in importing the instrument's history; None if it imports none."""
        return self._tape[instrument].backfill.importing

    def alive_until(self, instrument: Instrument) -> int | None:
        """Until when (ms) a live connection proves that there was no newer trade; None without one."""
        recorded = self._tape[instrument].coverage
        return recorded.alive_until() if recorded is not None else None


@dataclass(slots=True)
class _Claim:
    """Coverage of a window that was read, with `raw` that of single trades. It holds for figures that are read later unless something of
    the window leaves memory first, of another minute than those that it calls `revising`."""

    tape: InstrumentTape
    window: Window
    raw: bool
    revising: set[int] = field(default_factory=set)
    lost_before: int = field(init=False)

    def __post_init__(self) -> None:
        self.lost_before = self._losses.count

    @property
    def holds(self) -> bool:
        return not self._losses.since(self.lost_before, self.window, self.revising)

    @property
    def _losses(self) -> Losses:
        return self.tape.trades_lost if self.raw else self.tape.minutes_lost


def _stretches(minutes: Iterable[int]) -> list[Window]:
    """Sorted minutes, joined into stretches."""
    stretches: list[Window] = []
    for minute in minutes:
        if stretches and stretches[-1].end == minute:
            stretches[-1] = Window(stretches[-1].start, minute + MINUTE)
        else:
            stretches.append(Window(minute, minute + MINUTE))
    return stretches


_Part = TypeVar("_Part")
_STORED_TIMEFRAMES: Final = {
    timeframe: tuple(dict.fromkeys((timeframe, Timeframe.H1, Timeframe.M1) if timeframe.ms > HOUR else (timeframe, Timeframe.M1)))
    for timeframe in Timeframe
}
"""The stored timeframes that a bar can be composed of, coarsest first."""


_Stored: TypeAlias = Callable[[Timeframe, Window], AsyncIterator[tuple[int, _Part]]]
"""Reads the stored parts of a window, each with its start, oldest first."""


async def _coarsest(
    timeframes: Sequence[Timeframe], window: Window, live: Mapping[int, _Part], stored: _Stored[_Part]
) -> AsyncGenerator[tuple[int, _Part]]:
    """Splits the window into few parts, each with its start, oldest first: the longest stored ones without a `live` minute, shorter ones
    in between."""
    timeframe, finer = timeframes[0], timeframes[1:]
    if not finer:
        waiting = sorted(live.items(), reverse=True)
        async for start, part in stored(timeframe, window):
            while waiting and waiting[-1][0] < start:
                yield waiting.pop()
            if start not in live:
                yield start, part
        while waiting:
            yield waiting.pop()
        return
    first, end = timeframe.floor(window.start + timeframe.ms - 1), timeframe.floor(window.end)
    with_live = {timeframe.floor(minute) for minute in live}
    reached = window.start

    def between(until: int) -> AsyncGenerator[tuple[int, _Part]]:
        rest = Window(reached, until)
        return _coarsest(finer, rest, {minute: part for minute, part in live.items() if minute in rest}, stored)

    async for start, part in stored(timeframe, Window(first, max(first, end))):
        if start in with_live:
            continue
        async for finer_part in between(start):
            yield finer_part
        yield start, part
        reached = start + timeframe.ms
    async for finer_part in between(window.end):
        yield finer_part
