"""The tape and the store seen as one: what every question reads from.

The tape is read first and the store second, so that what moves from one to the other in between is seen, at worst, in both.
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
from wadm_mcp.errors import StoreError
from wadm_mcp.model import HOUR, MINUTE, Instrument, Listing, Retention, Span, Timeframe, Trade, Window
from wadm_mcp.storage.cached import CachedFootprints
from wadm_mcp.storage.store import Store
from wadm_mcp.tape import Importing, Repairing, Tape

_Row = TypeVar("_Row")
_FIRST_WITHIN: Final = 3.0
_MERGED_ON_LOOP: Final = 20
"""Footprints up to this many are merged at once; more go to a worker thread."""


class View:
    """Reads the tape of followed instruments. `clock` gives now (ms). `markets` is the configured order; the first is the default.

    `retention` is how long the store keeps data, None for ever; `symbols` are the configured ones. A question reads through a
    `reading` of its own: if `store_down` says so, or the store does not answer its first look, the whole question is answered from the
    live tape, and claims no more than that holds.
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
        """What to tell somebody who asks about a symbol that is not followed."""
        self.alone: bool | None = None
        """Does this reading do without the store? None until the store was first asked."""

    def reading(self) -> View:
        """A view for one question."""
        one = copy(self)
        one.alone = True if self._store_down() else None
        return one

    @property
    def awaited(self) -> list[Instrument]:
        """Configured instruments of which it is not known yet whether their exchange lists them."""
        return sorted(self._tape.awaited)

    @property
    def recorded_elsewhere(self) -> bool:
        """Does another process record into this data directory?"""
        return self._tape.recorded_elsewhere

    async def begun(self) -> None:
        """Waits, for a moment only, until something is followed: a first question may come before the exchanges told what they list."""
        with anyio.move_on_after(_FIRST_WITHIN):
            await self._tape.begun()

    @property
    def listings(self) -> list[Listing]:
        """Listings of every followed instrument."""
        return list(self._tape.listings)

    def newest(self, instrument: Instrument) -> Trade | None:
        """The newest trade held in memory of this instrument."""
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
        """The merge of everything traded in a window of whole minutes; with `row` (in price units) its cells may be rows of that size."""
        live = self._live(instrument, window)
        merge = partial(self._merged, instrument, live, row)
        if self._cached is None or self.alone:
            return await merge(window)
        return await self._cached.footprint(instrument, window, live, partial(self.bars, instrument, Timeframe.D1), merge, row)

    async def figures(self, key: str, proof: Bar, make: Callable[[], Awaitable[list[int]]]) -> list[int]:
        """Three integers of a closed stretch whose bar is `proof`: those worked out before, or what `make` finds."""
        return await make() if self._cached is None or self.alone else await self._cached.figures(key, proof, make)

    async def _merged(self, instrument: Instrument, live: Mapping[int, Footprint], row: Decimal | None, window: Window) -> Footprint:
        async def stored(timeframe: Timeframe, part: Window) -> dict[int, Footprint]:
            rows = await self._stored(lambda: self._store.footprints(instrument, timeframe, part))
            return {row.start: row.footprint for row in rows}

        inside = {minute: footprint for minute, footprint in live.items() if minute in window}
        pieces = await _coarsest((Timeframe.D1, Timeframe.H1, Timeframe.M1), window, inside, stored)
        scale = self._tape[instrument].listing.scale
        if len(pieces) == 1 and (alone := next(iter(pieces.values()))).scale.finest(scale) == alone.scale:
            return alone
        if len(pieces) <= _MERGED_ON_LOOP:
            return Footprint.consecutive(pieces.values(), scale, row=row, give_up=True)
        return await to_thread.run_sync(partial(Footprint.consecutive, pieces.values(), scale, row=row, give_up=True))

    async def bars(self, instrument: Instrument, timeframe: Timeframe, window: Window) -> dict[int, Bar]:
        """Bars by the start of their timeframe's bar, each made only of the window's minutes; those without trades are left out."""
        live = {start: footprint.bar for start, footprint in self._live(instrument, window).items()}

        async def stored(timeframe: Timeframe, part: Window) -> dict[int, Bar]:
            return {row.start: row.bar for row in await self._stored(lambda: self._store.order_flow(instrument, timeframe, part))}

        bars: dict[int, Bar] = {}
        for start, bar in (await _coarsest(_LADDERS[timeframe], window, live, stored)).items():
            of = timeframe.floor(start)
            bars[of] = bars[of].then(bar) if of in bars else bar
        return {start: bar for start, bar in bars.items() if bar.trade_count}

    async def spans(self, instrument: Instrument, window: Window, *, raw: bool = False) -> list[Span]:
        """Coverage that touches the window, oldest first, with the nearest neighbours: the recorder's own knowledge above the store's.

        Without the store it is what the live tape backs: of its figures, or with `raw` of its single trades.
        """
        tape = self._tape[instrument]
        stored = await self._stored(lambda: self._store.spans(instrument, window))
        return tape.covered_here(stored, raw=raw, store_known=not self.alone)

    async def _stored(self, read: Callable[[], Awaitable[list[_Row]]]) -> list[_Row]:
        """What the store says; nothing where this reading does without it. `StoreError` when it fails in the middle of a question."""
        if self.alone:
            return []
        try:
            rows = await read()
        except StoreError:
            if self.alone is False:
                raise
            self.alone = True
            return []
        self.alone = False
        return rows

    def _live(self, instrument: Instrument, window: Window) -> dict[int, Footprint]:
        """Copies of the tape's minutes: the tape goes on while a question waits for the store or a thread."""
        return {start: minute.rescaled(minute.scale) for start, minute in self._tape[instrument].minutes_in(window).items()}

    async def lacking(self, instrument: Instrument, window: Window, *, raw: bool = False) -> list[Window]:
        """Stretches of the window whose figures lack late trades for a moment; with `raw` those of which some trades are in the journal
        alone.

        Read after coverage and before figures: what the store then marks as dirty may be covered and not derived yet.
        """
        tape = self._tape[instrument]
        if raw:
            minutes = set(tape.evicted)
        else:
            marks = [] if self.alone else await self._stored(self._store.dirty_minutes)
            minutes = tape.outdated((mark.minute for mark in marks if mark.instrument == instrument), window.end)
        return _stretches(minute for minute in sorted(minutes) if minute in window)

    def repairing(self, instrument: Instrument) -> Repairing | None:
        """What this process is doing about the instrument's gaps now."""
        return self._tape[instrument].backfill.repairing

    def follows(self, instrument: Instrument) -> bool:
        """Can it be asked about?"""
        return self._tape.get(instrument) is not None

    def importing(self, instrument: Instrument) -> Importing | None:
        """What this process is bringing in of the time before."""
        return self._tape[instrument].backfill.importing

    def alive_until(self, instrument: Instrument) -> int | None:
        """How far past the newest trade this process may claim quiet (ms), None when it may not."""
        recorded = self._tape[instrument].coverage
        return recorded.alive_until() if recorded is not None else None


def _stretches(minutes: Iterable[int]) -> list[Window]:
    """Minutes in order as the stretches that they make up."""
    found: list[Window] = []
    for minute in minutes:
        if found and found[-1].end == minute:
            found[-1] = Window(found[-1].start, minute + MINUTE)
        else:
            found.append(Window(minute, minute + MINUTE))
    return found


_Piece = TypeVar("_Piece")
_LADDERS: Final = {
    timeframe: tuple(dict.fromkeys((timeframe, Timeframe.H1, Timeframe.M1) if timeframe.ms > HOUR else (timeframe, Timeframe.M1)))
    for timeframe in Timeframe
}
"""Where a bar's minutes may be found, coarsest first."""


async def _coarsest(
    timeframes: Sequence[Timeframe],
    window: Window,
    live: Mapping[int, _Piece],
    stored: Callable[[Timeframe, Window], Awaitable[dict[int, _Piece]]],
) -> dict[int, _Piece]:
    """The window as few pieces, oldest first: the coarsest that are stored and hold no live minute, finer ones between them."""
    timeframe, finer = timeframes[0], timeframes[1:]
    if not finer:
        return dict(sorted({**await stored(timeframe, window), **live}.items()))
    first, end = timeframe.floor(window.start + timeframe.ms - 1), timeframe.floor(window.end)
    if first >= end:
        return await _coarsest(finer, window, live, stored)
    busy = {timeframe.floor(minute) for minute in live}
    pieces = {start: piece for start, piece in (await stored(timeframe, Window(first, end))).items() if start not in busy}
    reached = window.start
    for start in [*sorted(pieces), window.end]:
        if start > reached:
            part = Window(reached, start)
            inside = {minute: piece for minute, piece in live.items() if minute in part}
            pieces.update(await _coarsest(finer, part, inside, stored))
        reached = start + timeframe.ms
    return dict(sorted(pieces.items()))
