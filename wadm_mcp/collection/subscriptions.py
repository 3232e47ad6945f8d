"""Which instruments are followed: looks the configured symbols up at every exchange, and sets collectors on those it may record.

An exchange that does not answer is asked again for ever; what is known of its listings from before serves meanwhile. A symbol that one
exchange does not list is a warning, one that none lists is for the process to refuse. Of all processes on one store the one that holds
an instrument's lease records it; while the store does not answer, whoever wants to goes on, since every write can be repeated.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Final

import anyio
from anyio.abc import TaskGroup

from wadm_mcp.clock import Clock
from wadm_mcp.collection.backfill.gap_repair import GapRepairer
from wadm_mcp.collection.backfill.history import History
from wadm_mcp.collection.backfill.recent_trades import RecentTradesReconciler
from wadm_mcp.collection.live.collector import Collector
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.collection.recording.writer import Writer
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.errors import ExchangeError, SettingError, StoreError
from wadm_mcp.exchanges.exchange import Venue
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import HOUR, Instrument, Listing, Window
from wadm_mcp.settings import Settings
from wadm_mcp.storage.store import Store
from wadm_mcp.suggest import nearest
from wadm_mcp.tape import Tape

_HELD_FOR: Final = 8.0
"""Seconds that a lease outlives its holder's last word: others take over within ten."""
_LONGEST_PAUSE: Final = 30.0
_STORE_PAUSE: Final = 1.0
_LISTED_FOR: Final = 60.0
"""Seconds that what a market lists is taken to hold for another symbol."""
_ADOPTED_WITHIN: Final = 3.0
"""Seconds that recording waits for what the store holds; later it is caught up on."""
_STAGGER: Final = 2.0
"""Seconds between the starts of connections that cover each other, so that nothing ends them all at one age."""


@dataclass(slots=True)
class _Group:
    """Instruments of one market that share connections."""

    listings: list[Listing]
    scopes: list[anyio.CancelScope] = field(default_factory=list[anyio.CancelScope])
    left: bool = False

    def leave(self) -> None:
        """End its collectors, and let none begin again."""
        self.left = True
        for scope in self.scopes:
            scope.cancel()


@dataclass(slots=True)
class _Market:
    """What is followed of one market."""

    venue: Venue
    listings: list[Listing] = field(default_factory=list[Listing])
    looked_up: bool = False
    groups: list[_Group] = field(default_factory=list[_Group])
    repaired: bool = False
    numbers: count[int] = field(default_factory=lambda: count(1))


class SubscriptionManager:
    """Follows what the settings name, for one recorder. `owner` names this process to the store's leases.

    `start` runs a part under the caller's supervision, by name.
    """

    def __init__(
        self,
        settings: Settings,
        tape: Tape,
        store: Store,
        recorder: Recorder,
        writer: Writer,
        rest: RestClient,
        health: Health,
        clock: Clock,
        owner: str,
        start: Callable[[str, Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._settings = settings
        self._tape = tape
        self._store = store
        self._recorder = recorder
        self._writer = writer
        self._rest = rest
        self._health = health
        self._clock = clock
        self._owner = owner
        self._start = start
        self._markets = [_Market(venue) for venue in settings.venues]
        self._asked: set[int] = set()
        self._listed: dict[str, set[str]] = {symbol: set() for symbol in settings.WADM_SYMBOLS}
        self._unknown: list[tuple[_Market, str, str]] = []
        """Symbols that a market does not list, with near matches, of which nothing was told yet."""
        self._recording: set[Instrument] = set()
        self.histories: list[History] = []
        """Those of the markets that are recorded here."""
        self._tracked: set[Instrument] = set()
        """Instruments that somebody asked for beside the settings."""
        self._listings_known: dict[tuple[str, str], tuple[float, dict[str, Listing]]] = {}
        """What a market lists, and when (monotonic) it said so."""
        self._changed = anyio.Event()

    @property
    def held_elsewhere(self) -> set[Instrument]:
        """Instruments that are wanted here and recorded by another process."""
        return {listing.instrument for each in self._markets for listing in each.listings} - self._recording

    @property
    def records(self) -> bool:
        """Is any instrument recorded here?"""
        return bool(self._recording)

    async def run(self) -> None:
        """Look everything up, then keep the leases, until cancelled. `SettingError` for a symbol that no exchange lists."""
        async with anyio.create_task_group() as tasks:
            await self._follow_tracked(tasks)
            tasks.start_soon(self._keep_leases, tasks)
            async with anyio.create_task_group() as lookups:
                for each in self._markets:
                    lookups.start_soon(self._look_up, each, tasks)
            await self._refuse_unknown()
            wanted = {listing.instrument for each in self._markets for listing in each.listings}
            for instrument in self._tape.keep_only(wanted | self._tracked):
                self._health.forget(str(instrument))

    async def release_leases(self) -> None:
        """Leave every lease to whoever wants it."""
        try:
            await self._store.release_leases(self._owner)
        except StoreError as error:
            log.warning("lease.kept", until_s=_HELD_FOR, error=error)

    async def _refuse_unknown(self) -> None:
        """A symbol that nobody lists is a slip of the pen, unless it was recorded before: then it is delisted, and the others go on."""
        settings = self._settings
        found = {listing.instrument.symbol for each in self._markets for listing in each.listings}
        for symbol in settings.WADM_SYMBOLS:
            if symbol not in found:
                if await self._was_recorded(symbol):
                    log.warning("symbol.delisted", symbol=symbol, advice="take it out of WADM_SYMBOLS")
                    continue
                asked = f"{' and '.join(settings.WADM_EXCHANGES)} ({', '.join(settings.WADM_MARKETS)})"
                near = ", ".join(nearest(symbol, self._listed[symbol])) or "none"
                raise SettingError(f"WADM_SYMBOLS={symbol}: no such symbol at {asked}. Nearest: {near}")

    async def _was_recorded(self, symbol: str) -> bool:
        instruments = [each.venue.instrument(symbol) for each in self._markets]
        try:
            return any([await self._store.spans(instrument, Window(0, self._clock.now())) for instrument in instruments])
        except StoreError:
            return False

    def _warn_of_unknown(self) -> None:
        """Tell of symbols that one market does not list and another does; one that none lists is no warning, it ends the start."""
        found = {listing.instrument.symbol for each in self._markets for listing in each.listings}
        for missing in [missing for missing in self._unknown if missing[1] in found]:
            self._unknown.remove(missing)
            each, symbol, near = missing
            log.warning("symbol.unknown", **each.venue.log_fields, symbol=symbol, nearest=near)

    async def _look_up(self, each: _Market, tasks: TaskGroup) -> None:
        listed = await self._listings(each, self._settings.WADM_SYMBOLS)
        told: list[Listing] = []
        for symbol in self._settings.WADM_SYMBOLS:
            instrument = each.venue.instrument(symbol)
            if symbol in listed:
                each.listings.append(listed[symbol])
                told.append(listed[symbol])
            else:
                self._listed[symbol].update(listed)
                self._unknown.append((each, symbol, ", ".join(nearest(symbol, listed)) or "none"))
                self._tape.awaited.discard(instrument)
                told.append(Listing.none(instrument))
        each.looked_up = True
        self._warn_of_unknown()
        tasks.start_soon(self._insist, partial(self._store.save_listings, told))
        self._changed.set()

    def look(self) -> None:
        """What is tracked may have changed."""
        self._changed.set()

    async def _follow_tracked(self, tasks: TaskGroup) -> None:
        """Begin with what is asked for now, and end with what is not any more."""
        try:
            tracked = set(await self._store.tracked())
        except StoreError:
            return
        configured = {each.venue.instrument(symbol) for each in self._markets for symbol in self._configured(each)}
        for instrument in tracked - self._tracked - configured:
            tasks.start_soon(self._add, instrument)
        for instrument in self._tracked - tracked - configured:
            self._drop(instrument)
        self._tracked = tracked

    async def _add(self, instrument: Instrument) -> None:
        each = self._market(instrument)
        known = self._listings_known.get(instrument[:2])
        if known is not None and self._clock.monotonic() - known[0] < _LISTED_FOR:
            listed = known[1]
        else:
            listed = await self._listings(each, (instrument.symbol,))
            self._listings_known[instrument[:2]] = self._clock.monotonic(), listed
        if instrument.symbol not in listed:
            log.warning("symbol.unknown", **each.venue.log_fields, symbol=instrument.symbol)
        elif instrument in self._tracked and all(listing.instrument != instrument for listing in each.listings):
            listing = listed[instrument.symbol]
            log.info("market.tracked", instrument=instrument)
            await self._insist(partial(self._store.save_listings, [listing]))
            each.listings.append(listing)
            self._changed.set()

    def _drop(self, instrument: Instrument) -> None:
        each = self._market(instrument)
        each.listings = [listing for listing in each.listings if listing.instrument != instrument]
        if instrument in self._recording:
            self._leave(each, {instrument})
        self._tape.forget(instrument)
        self._health.forget(str(instrument))
        log.info("market.untracked", instrument=instrument)

    def _market(self, instrument: Instrument) -> _Market:
        """The market of an instrument, which the settings may not name."""
        for each in self._markets:
            if each.venue.trades_here(instrument):
                return each
        each = _Market(self._settings.venue(instrument.exchange, instrument.market), looked_up=True)
        self._markets.append(each)
        return each

    def _configured(self, each: _Market) -> Sequence[str]:
        settings = self._settings
        named = each.venue.exchange.name in settings.WADM_EXCHANGES and each.venue.market in settings.WADM_MARKETS
        return settings.WADM_SYMBOLS if named else ()

    async def _keep_leases(self, tasks: TaskGroup) -> None:
        """Record what this process holds the lease of, and nothing else."""
        while True:
            self._changed = anyio.Event()
            await self._follow_tracked(tasks)
            wanted = [listing.instrument for each in self._markets for listing in each.listings]
            held = await self._held(wanted)
            for each in self._markets:
                lost = [listing for listing in each.listings if listing.instrument in self._recording - held]
                for listing in lost:
                    log.warning("recorder.relieved", instrument=listing.instrument, reason="another process holds its lease")
                if lost:
                    self._leave(each, {listing.instrument for listing in lost})
                fresh = [listing for listing in each.listings if listing.instrument in held - self._recording]
                if fresh:
                    await self._begin(each, fresh)
                    self._collect(each, fresh)
            if all(each.looked_up or id(each) in self._asked for each in self._markets):
                self._tape.begun.set()
            with anyio.move_on_after(_HELD_FOR / 4):
                await self._changed.wait()

    async def _held(self, wanted: Sequence[Instrument]) -> set[Instrument]:
        if not wanted:
            return set()
        try:
            return set(await self._store.acquire_leases(self._owner, wanted, _HELD_FOR))
        except StoreError:
            return set(wanted)

    async def _begin(self, each: _Market, fresh: Sequence[Listing]) -> None:
        """Follow these instruments from what the store holds of them, if it tells at once."""
        followed = [self._recorder.start(listing, counts_trades=each.venue.exchange.numbers_trades[each.venue.market]) for listing in fresh]
        self._recording.update(listing.instrument for listing in fresh)
        with anyio.move_on_after(_ADOPTED_WITHIN):
            try:
                for one in followed:
                    await self._writer.adopt(one)
            except StoreError as error:
                self._health.report("store", State.DOWN, str(error))
        if not each.repaired:
            each.repaired = True
            self._start(f"{each.venue.name} repair", self._repairer(each).run)
            history = self._history(each)
            self.histories.append(history)
            self._start(f"{each.venue.name} history", history.run)

    def _collect(self, each: _Market, listings: Sequence[Listing]) -> None:
        size = each.venue.exchange.limits(each.venue.market).streams
        for first in range(0, len(listings), size):
            group = _Group(list(listings[first : first + size]))
            each.groups.append(group)
            # Where ids do not count, a second connection holds what the first one misses; where they do, they prove it.
            copies = 1 if each.venue.exchange.numbers_trades[each.venue.market] else self._settings.WADM_BYBIT_CONNECTIONS
            for copy in range(copies):
                arguments = (group.listings, self._recorder, self._health, self._clock, self._rest.certificates)
                collector = Collector(each.venue, *arguments)
                name = f"{each.venue.name} collector {next(each.numbers)}"
                self._start(name, partial(_until_left, group, collector, copy * _STAGGER))

    def _leave(self, each: _Market, lost: set[Instrument]) -> None:
        """Record these no more; their connections go on with the others."""
        for instrument in lost:
            self._recorder.stop(instrument)
        self._recording -= lost
        for group in [group for group in each.groups if any(listing.instrument in lost for listing in group.listings)]:
            each.groups.remove(group)
            group.leave()
            left = [listing for listing in group.listings if listing.instrument not in lost]
            if left:
                self._collect(each, left)

    def _repairer(self, each: _Market) -> GapRepairer | RecentTradesReconciler:
        if each.venue.exchange.numbers_trades[each.venue.market]:
            return GapRepairer(
                each.venue,
                self._rest,
                self._recorder,
                self._health,
                self._clock,
                self._settings.retention.trades,
                long_gaps=not self._settings.WADM_HISTORY_HOURS,
            )
        return RecentTradesReconciler(each.venue, self._rest, self._recorder, self._health, self._clock)

    def _history(self, each: _Market) -> History:
        settings = self._settings
        return History(
            each.venue,
            self._rest,
            self._recorder,
            self._store,
            self._health,
            self._clock,
            reach=min(settings.WADM_HISTORY_HOURS * HOUR, settings.retention.minutes),
            raw=settings.WADM_HISTORY_RAW,
            trades_life=settings.retention.trades,
            folder=settings.WADM_DATA_DIR / "archive",
        )

    async def _listings(self, each: _Market, symbols: Sequence[str]) -> dict[str, Listing]:
        """What the exchange lists, asked until it answers; what was stored of it before, where that has every one of these symbols."""
        venue = each.venue
        part, pause = f"{venue.name} listings", 1.0
        self._health.report(part, State.STARTING, "the exchange is being asked")
        while True:
            try:
                found = await self._rest.listings(venue)
            except ExchangeError as error:
                self._health.report(part, State.DOWN, str(error))
                log.warning("listings.failed", **venue.log_fields, error=error, again_in_s=pause)
                stored = await self._stored(venue)
                if all(symbol in stored for symbol in symbols):
                    self._health.report(part, State.OK, "as stored before; the exchange did not answer")
                    return {symbol: listing for symbol, listing in stored.items() if listing.listed}
                self._asked.add(id(each))
                self._changed.set()
                await anyio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
            else:
                self._health.forget(part)
                return {listing.instrument.symbol: listing for listing in found}

    async def _stored(self, venue: Venue) -> dict[str, Listing]:
        try:
            known = await self._store.listings()
        except StoreError:
            return {}
        return {one.instrument.symbol: one for one in known if venue.trades_here(one.instrument)}

    async def _insist(self, step: Callable[[], Awaitable[None]]) -> None:
        """Try a step on the store until the store takes it."""
        while True:
            try:
                return await step()
            except StoreError:
                await anyio.sleep(_STORE_PAUSE)


async def _until_left(group: _Group, collector: Collector, delay: float) -> None:
    """One collector's life, as long as its group is collected."""
    if group.left:
        return
    with anyio.CancelScope() as scope:
        group.scopes.append(scope)
        try:
            await anyio.sleep(delay)
            await collector.run()
        finally:
            group.scopes.remove(scope)
