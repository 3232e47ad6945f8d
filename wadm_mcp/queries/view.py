"""One view of tape and store, which every question reads from.

The tape is read first and the store second. What moves from tape to store in between is then found in both, and never in neither.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from copy import copy
from decimal import Decimal
from functools import partial
from typing import Final, TypeVar

import anyio
from anyio import to_thread

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.coverage.spans import Span
from wadm_mcp.errors import StoreError
from wadm_mcp.model import HOUR, MINUTE, Instrument, Listing, Retention, Timeframe, Trade, Window
from wadm_mcp.storage.cached import CachedFootprints
from wadm_mcp.storage.store import Store
from wadm_mcp.tape import Importing, Repairing, Tape

_Row = TypeVar("_Row")
_MAX_WAIT_SECONDS: Final = 3.0
"""How long a first question waits for the exchanges to answer."""
_MAX_MERGED_ON_LOOP: Final = 20
"""Footprints that are merged on the event loop; more go to a worker thread."""


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

    def reading(self) -> View:
        """A copy of this view for one query. The copy decides once whether the store answers."""
        one = copy(self)
        one.without_store = True if self._store_down() else None
        return one

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

    async def _merged(self, instrument: Instrument, live: Mapping[int, Footprint], row: Decimal | None, window: Window) -> Footprint:
        async def stored(timeframe: Timeframe, part: Window) -> dict[int, Footprint]:
            rows = await self._stored(lambda: self._store.footprints(instrument, timeframe, part))
            return {row.start: row.footprint for row in rows}

        inside = {minute: footprint for minute, footprint in live.items() if minute in window}
        parts = await _coarsest((Timeframe.D1, Timeframe.H1, Timeframe.M1), window, inside, stored)
        scale = self._tape[instrument].listing.scale
        if len(parts) == 1 and (only := next(iter(parts.values()))).scale.finest(scale) == only.scale:
            return only
        if len(parts) <= _MAX_MERGED_ON_LOOP:
            return Footprint.merge_consecutive(parts.values(), scale, row=row, give_up=True)
        return await to_thread.run_sync(partial(Footprint.merge_consecutive, parts.values(), scale, row=row, give_up=True))

    async def bars(self, instrument: Instrument, timeframe: Timeframe, window: Window) -> dict[int, Bar]:
        """The bars of a window by their start, without those that had no trades. The first and last contain only the window's minutes."""
        live = {start: footprint.bar for start, footprint in self._live(instrument, window).items()}

        async def stored(timeframe: Timeframe, part: Window) -> dict[int, Bar]:
            return {row.start: row.bar for row in await self._stored(lambda: self._store.order_flow(instrument, timeframe, part))}

        bars: dict[int, Bar] = {}
        for start, bar in (await _coarsest(_STORED_TIMEFRAMES[timeframe], window, live, stored)).items():
            bar_start = timeframe.floor(start)
            bars[bar_start] = bars[bar_start].merge_later(bar) if bar_start in bars else bar
        return {start: bar for start, bar in bars.items() if bar.trade_count}

    async def spans(self, instrument: Instrument, window: Window, *, raw: bool = False) -> list[Span]:
        """Spans that touch the window and the nearest ones beside it, oldest first. The recorder's newer spans replace those of the store.

        Without the store they are the spans of what the live tape has: of its figures, or with `raw` of its single trades.
        """
        tape = self._tape[instrument]
        stored = await self._stored(lambda: self._store.spans(instrument, window))
        return tape.covered_here(stored, raw=raw, store_known=not self.without_store)

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

        Read it after coverage and before figures: a minute that the store marks as dirty may be covered and not derived yet.
        """
        tape = self._tape[instrument]
        if raw:
            minutes = set(tape.evicted)
        else:
            dirty = [] if self.without_store else await self._stored(self._store.dirty_minutes)
            minutes = tape.outdated((each.minute for each in dirty if each.instrument == instrument), window.end)
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


async def _coarsest(
    timeframes: Sequence[Timeframe],
    window: Window,
    live: Mapping[int, _Part],
    stored: Callable[[Timeframe, Window], Awaitable[dict[int, _Part]]],
) -> dict[int, _Part]:
    """Splits the window into few parts by start, oldest first: the longest stored ones without a `live` minute, shorter ones in between."""
    timeframe, finer = timeframes[0], timeframes[1:]
    if not finer:
        return dict(sorted({**await stored(timeframe, window), **live}.items()))
    first, end = timeframe.floor(window.start + timeframe.ms - 1), timeframe.floor(window.end)
    if first >= end:
        return await _coarsest(finer, window, live, stored)
    with_live = {timeframe.floor(minute) for minute in live}
    parts = {start: part for start, part in (await stored(timeframe, Window(first, end))).items() if start not in with_live}
    reached = window.start
    for start in [*sorted(parts), window.end]:
        if start > reached:
            between = Window(reached, start)
            inside = {minute: part for minute, part in live.items() if minute in between}
            parts.update(await _coarsest(finer, between, inside, stored))
        reached = start + timeframe.ms
    return dict(sorted(parts.items()))
