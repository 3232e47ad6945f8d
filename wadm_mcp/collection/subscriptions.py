"""Which instruments this process records: the configured and the tracked ones, as far as their exchanges list them and no other process
has their lease.

While an exchange does not answer, its instruments are recorded by their stored or provisional listings; its answer corrects them. A symbol
that an exchange does not list is a warning; the start stops only if nothing at all can be recorded. Lists are read again while recording
(`ListingRefresher`), so that halts, delistings, new listings and changed steps take effect. Of all processes on one store the one
that has acquired an instrument's lease records it. While the store does not answer, every process that wants an instrument records it,
since every write can be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import anyio
from anyio.abc import TaskGroup

from wadm_mcp.collection.backfill.history import History
from wadm_mcp.collection.listing_refresher import ListingRefresher
from wadm_mcp.collection.listings import Listings, LookUp
from wadm_mcp.collection.market import MarketRecording, RecordingServices
from wadm_mcp.errors import SettingError, StoreError
from wadm_mcp.exchanges.registry import is_called
from wadm_mcp.health import State, not_trading
from wadm_mcp.logs import log
from wadm_mcp.model import HOUR, UNLISTED, Instrument, Listing, Window
from wadm_mcp.suggest import nearest

_LEASE_SECONDS: Final = 8.0
"""How long a lease outlives its owner's last renewal: another process takes over within ten seconds."""


class SubscriptionManager:
    """Follows what the settings name and what is tracked. `owner` is the name of this process in the store's leases."""

    def __init__(self, services: RecordingServices, owner: str) -> None:
        self._services = services
        self._settings = services.settings
        self._store = services.store
        self._owner = owner
        self._listings = Listings(services.store, services.rest, services.health, services.clock)
        self._markets = [MarketRecording(venue, services) for venue in services.settings.venues]
        self._other_symbols: dict[str, set[str]] = {symbol: set() for symbol in self._settings.WADM_SYMBOLS}
        """By configured symbol: all symbols of the markets that do not list it, for suggestions."""
        self._unlisted: list[tuple[MarketRecording, str, str]] = []
        """Symbols that a market does not list, with near matches, and that are not logged yet."""
        self._recording: set[Instrument] = set()
        self._tracked: set[Instrument] = set()
        """Instruments that were requested beside the settings."""
        self._changed = anyio.Event()
        self._refresher = ListingRefresher(self._listings, services.recorder.doubted, services.health, services.clock, self._relist)
        self._refreshed: set[str] = set()
        """Names of the venues whose lists are read again."""

    @property
    def recorded_elsewhere(self) -> set[Instrument]:
        """Instruments that are wanted here and recorded by another process."""
        return set(self._recordable) - self._recording

    @property
    def _recordable(self) -> list[Instrument]:
        """Instruments that are wanted here and can be recorded; an unlisted one goes on where it is recorded already."""
        every = [listing for market in self._markets for listing in market.listings]
        return [each.instrument for each in every if each.status != UNLISTED or each.instrument in self._recording]

    @property
    def records(self) -> bool:
        """True if any instrument is recorded here."""
        return bool(self._recording)

    @property
    def histories(self) -> list[History]:
        """The history imports of the markets that are recorded here."""
        return [market.history for market in self._markets if market.history is not None]

    async def run(self) -> None:
        """Look up all symbols and keep the leases, until cancelled. `SettingError` if no exchange lists any symbol."""
        services = self._services
        async with anyio.create_task_group() as tasks:
            await self._follow_tracked(tasks)
            tasks.start_soon(self._keep_leases, tasks)
            async with anyio.create_task_group() as lookups:
                for market in self._markets:
                    lookups.start_soon(self._look_up, market, tasks)
            await self._refuse_unknown_symbols()
            wanted = {listing.instrument for market in self._markets for listing in market.listings}
            for instrument in services.tape.keep_only(wanted | self._tracked):
                services.health.forget(str(instrument))

    async def release_leases(self) -> None:
        """Release every lease, so that another process takes over at once."""
        try:
            await self._store.release_leases(self._owner)
        except StoreError as error:
            log.warning("lease.not_released", expires_in_s=_LEASE_SECONDS, error=error)

    def refresh(self) -> None:
        """Read the tracked instruments again soon, because they may have changed."""
        self._changed.set()

    # Configured symbols.

    async def _look_up(self, market: MarketRecording, tasks: TaskGroup) -> None:
        correct = partial(self._correct, market, tasks)
        found = await self._listings.look_up(market.venue, self._settings.WADM_SYMBOLS, tasks, correct)
        # Without the exchange's answer there is no await in between: it may come at any time, and corrects what is wanted by then.
        stored = await self._listings.stored(market.venue) if found.confirmed else found.listed
        self._adopt(market, found, stored, tasks)

    def _adopt(self, market: MarketRecording, answer: LookUp, stored: Mapping[str, Listing], tasks: TaskGroup) -> None:
        """Want the configured symbols that are listed, keep those that were, and note the others."""
        listed, found = _with_stored(answer, stored), list[Listing]()
        known = {listing.instrument for listing in market.listings}
        for symbol in self._settings.WADM_SYMBOLS:
            instrument = market.venue.instrument(symbol)
            if symbol in listed and listed[symbol].status != UNLISTED:
                if all(listing.instrument != listed[symbol].instrument for listing in market.listings):
                    market.listings.append(listed[symbol])
                found.append(listed[symbol])
            elif symbol in stored and _was_listed(stored[symbol]):
                found.append(self._keep_unlisted(market, stored[symbol]))
            elif instrument not in known and answer.confirmed and not answer.lacks(symbol):
                # The list does not show whether it is listed: it is followed as if the exchange had not answered.
                market.listings.append(Listing.unconfirmed(instrument))
                found.append(market.listings[-1])
            elif instrument not in known:
                self._other_symbols[symbol].update(listed)
                near = ", ".join(nearest(symbol, listed)) or "none"
                self._unlisted.append((market, symbol, near))
                self._services.tape.remove_awaited(instrument)
                self._services.health.report(str(instrument), State.UNLISTED, f"the exchange does not list it. Nearest: {near}")
                if answer.lacks(symbol):
                    found.append(Listing.none(instrument))
        market.looked_up = True
        self._warn_of_unlisted()
        tasks.start_soon(self._listings.save, found)
        self._changed.set()

    async def _correct(self, market: MarketRecording, tasks: TaskGroup, found: LookUp) -> None:
        """The exchange, or the store, has answered after a start without it: its listings replace those that took their place.

        `SettingError` if nothing is left, as at a start.
        """
        if not found.confirmed:
            for listing in [listing for listing in found.listed.values() if not listing.provisional]:
                market.relist(listing)
            return
        tasks.start_soon(self._listings.save, self._apply(market, found))
        log.info("listings.corrected", **market.venue.log_fields, instruments=len(market.listings))
        if market.configured:
            self._adopt(market, found, await self._listings.stored(market.venue), tasks)
        if not any(each.listings for each in self._markets):
            await self._refuse_unknown_symbols()
        self._changed.set()

    async def _refuse_unknown_symbols(self) -> None:
        """Refuse symbols of which no exchange lists any: they are probably typos. One that was recorded before is delisted and only logged,
        and so is any other while something can be recorded."""
        settings = self._settings
        for symbol in settings.WADM_SYMBOLS:
            if not self._is_listed(symbol):
                near = ", ".join(nearest(symbol, self._other_symbols[symbol])) or "none"
                if await self._was_recorded(symbol):
                    log.warning("symbol.delisted", symbol=symbol, reason="no exchange lists it any more; remove it from WADM_SYMBOLS")
                elif self._recordable or self._tracked:
                    log.warning("symbol.unknown", symbol=symbol, nearest=near, reason="no exchange lists it; correct WADM_SYMBOLS")
                else:
                    asked = f"{' and '.join(settings.WADM_EXCHANGES)} ({', '.join(settings.WADM_MARKETS)})"
                    raise SettingError(f"WADM_SYMBOLS={symbol}: no such symbol at {asked}. Nearest: {near}")

    async def _was_recorded(self, symbol: str) -> bool:
        try:
            instruments = {market.venue.instrument(symbol) for market in self._markets}
            stored = [listing.instrument for listing in await self._store.listings() if is_called(listing.instrument, symbol)]
            instruments |= {one for one in stored if any(market.venue.trades_here(one) for market in self._markets)}
            return any([await self._store.spans(instrument, Window(0, self._services.clock.now())) for instrument in instruments])
        except StoreError:
            # Nothing shows that it is a typo.
            return True

    def _warn_of_unlisted(self) -> None:
        """Warn about symbols that only some markets list. `_refuse_unknown_symbols` handles those that none lists."""
        for missing in [missing for missing in self._unlisted if self._is_listed(missing[1])]:
            self._unlisted.remove(missing)
            market, symbol, near = missing
            log.warning("symbol.unknown", **market.venue.log_fields, symbol=symbol, nearest=near)

    def _is_listed(self, symbol: str) -> bool:
        return any(is_called(listing.instrument, symbol) for market in self._markets for listing in market.listings)

    # Listings that change.

    def _keep_unlisted(self, market: MarketRecording, listing: Listing) -> Listing:
        """Follow an instrument that was recorded and is not listed any more, so that what is stored of it can be asked for."""
        unlisted = listing.unlisted()
        if any(known.instrument == listing.instrument for known in market.listings):
            return unlisted
        market.listings.append(unlisted)
        self._services.tape.follow(unlisted)
        self._services.health.report(str(listing.instrument), *not_trading(unlisted))
        log.warning("symbol.delisted", instrument=listing.instrument, reason="its exchange does not list it any more")
        return unlisted

    async def _relist(self, market: MarketRecording, found: LookUp) -> None:
        """The list of a market was read again: apply what has changed, and record what is listed now."""
        changed = self._apply(market, found)
        if changed:
            self._changed.set()
            await self._listings.save(changed)

    def _apply(self, market: MarketRecording, found: LookUp) -> list[Listing]:
        """Replace the listings of a market by these and add wanted ones that are new. Returns those that have changed.

        A provisional instrument that the list lacks and that does not trade is dropped, and another one is unlisted.
        """
        listed, changed = found.listed, list[Listing]()
        for old in list(market.listings):
            symbol = old.instrument.symbol
            if symbol not in listed and (
                not found.lacks(symbol) or (old.provisional and self._services.recorder.has_traded(old.instrument, HOUR))
            ):
                continue
            if symbol not in listed and old.provisional:
                log.warning("symbol.not_listed", **market.venue.log_fields, symbol=symbol, nearest=", ".join(nearest(symbol, listed)))
                self._stop_following(market, old.instrument)
                changed.append(Listing.none(old.instrument))
                continue
            new = listed.get(symbol) or old.unlisted()
            if new != old:
                _log_change(old, new)
                market.relist(new)
                changed.append(new)
            elif not new.trading:
                # A trade may have reported it as live, and the list says again that it is not.
                market.relist(new)
        known = {listing.instrument for listing in market.listings}
        wanted = [listed[symbol] for symbol in self._settings.WADM_SYMBOLS if symbol in listed]
        wanted += [listed[one.symbol] for one in self._tracked if market.venue.trades_here(one) and one.symbol in listed]
        for new in wanted:
            if new.instrument not in known and (self._settings.configures(new.instrument) or new.instrument in self._tracked):
                log.info("symbol.listed", instrument=new.instrument)
                known.add(new.instrument)
                market.listings.append(new)
                changed.append(new)
        return changed

    # Tracked instruments.

    async def _follow_tracked(self, tasks: TaskGroup) -> None:
        """Add what is tracked now, and drop what is not any more."""
        try:
            tracked = set(await self._store.tracked())
        except StoreError:
            return
        for instrument in tracked - self._tracked:
            if not self._settings.configures(instrument):
                tasks.start_soon(self._add, instrument, tasks)
        for instrument in self._tracked - tracked:
            if not self._settings.configures(instrument):
                self._drop(instrument)
        self._tracked = tracked

    async def _add(self, instrument: Instrument, tasks: TaskGroup) -> None:
        market = self._market(instrument)
        correct = partial(self._correct, market, tasks)
        found = await self._listings.look_up_again(market.venue, instrument.symbol, tasks, correct)
        listed = found.listed
        if found.confirmed and not found.lacks(instrument.symbol):
            listed = _with_stored(found, await self._listings.stored(market.venue))
        if instrument.symbol not in listed or listed[instrument.symbol].status == UNLISTED:
            stored = (await self._listings.stored(market.venue) if found.confirmed else listed).get(instrument.symbol)
            if stored is not None and _was_listed(stored) and all(listing.instrument != instrument for listing in market.listings):
                tasks.start_soon(self._listings.save, [self._keep_unlisted(market, stored)])
                return
            log.warning("symbol.unknown", **market.venue.log_fields, symbol=instrument.symbol)
            # The list may be a minute old, and the symbol new.
            self._services.recorder.doubt_listing(instrument)
        elif instrument in self._tracked and all(listing.instrument != instrument for listing in market.listings):
            listing = listed[instrument.symbol]
            log.info("market.tracked", instrument=instrument)
            market.listings.append(listing)
            tasks.start_soon(self._listings.save, [listing])
            self._changed.set()

    def _drop(self, instrument: Instrument) -> None:
        self._stop_following(self._market(instrument), instrument)
        log.info("market.untracked", instrument=instrument)

    def _stop_following(self, market: MarketRecording, instrument: Instrument) -> None:
        market.listings = [listing for listing in market.listings if listing.instrument != instrument]
        if instrument in self._recording:
            self._stop(market, {instrument})
        self._services.tape.forget(instrument)
        self._services.health.forget(str(instrument))

    def _market(self, instrument: Instrument) -> MarketRecording:
        """The market of an instrument, which the settings may not name."""
        for market in self._markets:
            if market.venue.trades_here(instrument):
                return market
        market = MarketRecording(self._settings.venue(instrument.exchange, instrument.market), self._services, configured=False)
        market.looked_up = True
        self._markets.append(market)
        return market

    # Leases.

    async def _keep_leases(self, tasks: TaskGroup) -> None:
        """Record exactly the instruments whose lease this process has."""
        while True:
            self._changed = anyio.Event()
            await self._follow_tracked(tasks)
            for market in self._markets:
                if self._listings.read_at(market.venue) is not None and market.venue.name not in self._refreshed:
                    self._refreshed.add(market.venue.name)
                    self._services.start(f"{market.venue.name} symbol list", partial(self._refresher.run, market))
            acquired = await self._acquire(self._recordable)
            for market in self._markets:
                lost = [listing.instrument for listing in market.listings if listing.instrument in self._recording - acquired]
                for instrument in lost:
                    log.warning("lease.lost", instrument=instrument, reason="another process acquired it")
                if lost:
                    self._stop(market, set(lost))
                fresh = [listing for listing in market.listings if listing.instrument in acquired - self._recording]
                if fresh:
                    self._recording.update(listing.instrument for listing in fresh)
                    await market.start(fresh)
            if all(market.looked_up for market in self._markets):
                self._services.tape.mark_listings_attempted()
            with anyio.move_on_after(_LEASE_SECONDS / 4):
                await self._changed.wait()

    def _stop(self, market: MarketRecording, instruments: set[Instrument]) -> None:
        market.stop(instruments)
        self._recording -= instruments

    async def _acquire(self, wanted: Sequence[Instrument]) -> set[Instrument]:
        if not wanted:
            return set()
        try:
            return set(await self._store.acquire_leases(self._owner, wanted, _LEASE_SECONDS))
        except StoreError:
            return set(wanted)


def _with_stored(found: LookUp, stored: Mapping[str, Listing]) -> Mapping[str, Listing]:
    """The listings of an answer. What is absent from it, but may be listed all the same, is listed as it was."""
    kept = {symbol: listing for symbol, listing in stored.items() if _was_listed(listing) and not found.lacks(symbol)}
    return kept | dict(found.listed)


def _was_listed(stored: Listing) -> bool:
    """Whether the exchange has ever confirmed a stored listing."""
    return stored.listed and not stored.provisional


def _log_change(old: Listing, new: Listing) -> None:
    """Log what has changed in a listing: whether it trades, or its steps."""
    instrument = new.instrument
    if new.status == UNLISTED:
        log.warning("symbol.delisted", instrument=instrument, reason="its exchange does not list it any more")
    elif new.trading != old.trading or (not new.trading and new.status != old.status):
        change = log.info if new.trading else log.warning
        change("symbol.trading" if new.trading else "symbol.halted", instrument=instrument, status=new.status)
    if (new.tick, new.lot) != (old.tick, old.lot):
        log.info("symbol.steps_changed", instrument=instrument, tick=new.tick, lot=new.lot)
