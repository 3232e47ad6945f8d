"""The parts that record one market: connections, gap repair and import of history, started when its first instrument is recorded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Final

import anyio

from wadm_mcp.clock import Clock
from wadm_mcp.collection.backfill.gap_repair import GapRepairer
from wadm_mcp.collection.backfill.history import History
from wadm_mcp.collection.backfill.recent_trades import RecentTradesReconciler
from wadm_mcp.collection.disk_reserve import DiskReserve
from wadm_mcp.collection.live.collector import Collector
from wadm_mcp.collection.network import ClosedSocketHosts
from wadm_mcp.collection.recording.maintenance import Maintenance
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.errors import StoreError
from wadm_mcp.exchanges.exchange import Venue
from wadm_mcp.health import Health, State
from wadm_mcp.model import HOUR, Instrument, Listing
from wadm_mcp.settings import Settings
from wadm_mcp.storage.store import Store, all_trades
from wadm_mcp.tape import Tape

_RESUME_WITHIN_SECONDS: Final = 3.0
"""How long a start waits for the stored state of its instruments; after that a pass of rollup loads it."""
_STAGGER_SECONDS: Final = 2.0
"""Between the starts of connections that cover each other, so that no age limit ends them all at once."""
_HANDOVER_SECONDS: Final = 10.0
"""How long connections go on after others were opened in their place: an instrument must not lose trades because another one is dropped."""
_MAX_HANDOVER_SECONDS: Final = 600.0
"""How much longer they go on at most, while one of them alone delivers an instrument."""
_CHECK_SECONDS: Final = 1.0
"""How often it is checked whether they are still needed."""


@dataclass(frozen=True, slots=True)
class RecordingServices:
    """What all parts of a recording process share. `start` runs a part by name under the caller's supervision."""

    settings: Settings
    tape: Tape
    store: Store
    recorder: Recorder
    maintenance: Maintenance
    rest: RestClient
    health: Health
    clock: Clock
    start: Callable[[str, Callable[[], Awaitable[None]]], None]
    closed_hosts: ClosedSocketHosts = field(default_factory=dict)


@dataclass(slots=True)
class _ConnectionGroup:
    """Instruments of one market that share connections."""

    listings: list[Listing]
    scopes: dict[Collector, anyio.CancelScope] = field(default_factory=dict[Collector, anyio.CancelScope])
    stopped: bool = False

    def stop(self) -> None:
        """End its collectors, and let none start again."""
        self.stopped = True
        for scope in self.scopes.values():
            scope.cancel()

    async def hand_over(self) -> None:
        """Stop its collectors one after the other, each once its instruments are delivered by another one too."""
        await anyio.sleep(_HANDOVER_SECONDS)
        self.stopped = True
        with anyio.move_on_after(_MAX_HANDOVER_SECONDS):
            for collector, scope in list(self.scopes.items()):
                while True:
                    if not collector.needed:
                        break
                    await anyio.sleep(_CHECK_SECONDS)
                collector.close()
                scope.cancel()
                await anyio.sleep(_STAGGER_SECONDS)
        self.stop()

    async def collect(self, collector: Collector, delay: float) -> None:
        """Run a collector after `delay` seconds, until the group is stopped."""
        if self.stopped:
            return
        with anyio.CancelScope() as scope:
            self.scopes[collector] = scope
            try:
                await anyio.sleep(delay)
                await collector.run()
            finally:
                del self.scopes[collector]


class MarketRecording:
    """Records instruments of one market. `listings` are those wanted here, whether this process records them or another does."""

    def __init__(self, venue: Venue, services: RecordingServices, *, configured: bool = True) -> None:
        self.venue = venue
        self.configured = configured
        """Whether the settings name this market, with every configured symbol; else it has only tracked instruments."""
        self.listings: list[Listing] = []
        self.looked_up = False
        """True once its listings are known: from the exchange or the store, or as provisional ones."""
        self.history: History | None = None
        self._services = services
        self._groups: list[_ConnectionGroup] = []
        self._collector_numbers = count(1)

    async def start(self, listings: Sequence[Listing]) -> None:
        """Record these instruments, starting from their stored state if the store answers soon enough."""
        services, traits = self._services, self.venue.traits
        recorded = [services.recorder.start(listing, has_gapless_ids=traits.has_gapless_ids) for listing in listings]
        with anyio.move_on_after(_RESUME_WITHIN_SECONDS):
            try:
                for each in recorded:
                    await services.maintenance.resume(each)
            except StoreError as error:
                services.health.report("store", State.DOWN, str(error))
        if self.history is None:
            self.history = self._new_history()
            services.start(f"{self.venue.name} repair", self._gap_repair().run)
            services.start(f"{self.venue.name} history", self.history.run)
        # Meanwhile some may have been stopped or listed differently.
        wanted = {listing.instrument for listing in listings}
        self._collect([each for each in self.listings if each.instrument in wanted and services.recorder.records(each.instrument)])

    def relist(self, listing: Listing) -> None:
        """The exchange lists an instrument differently now. What its connections open from now on begins with the new listing."""

        def updated(listings: Sequence[Listing]) -> list[Listing]:
            return [listing if each.instrument == listing.instrument else each for each in listings]

        self.listings = updated(self.listings)
        for group in self._groups:
            # In place: its collectors have the list.
            group.listings[:] = updated(group.listings)
        if self._services.tape.get(listing.instrument) is not None:
            self._services.tape.follow(listing)
        self._services.recorder.relist(listing)

    def stop(self, instruments: Collection[Instrument]) -> None:
        """Stop recording these instruments. The others on their connections are moved to new ones before the old ones end."""
        for instrument in instruments:
            self._services.recorder.stop(instrument)
        for group in [group for group in self._groups if any(listing.instrument in instruments for listing in group.listings)]:
            self._groups.remove(group)
            left = [listing for listing in group.listings if listing.instrument not in instruments]
            if left:
                self._collect(left)
                self._services.start(f"{self.venue.name} handover", group.hand_over)
            else:
                group.stop()

    def _collect(self, listings: Sequence[Listing]) -> None:
        services = self._services
        size = self.venue.exchange.limits(self.venue.market).streams
        # Where ids are not gapless, a second connection covers what the first one misses. Gapless ids show what is missing.
        # The setting is named after Bybit, but applies to every exchange with redundant connections.
        copies = services.settings.WADM_BYBIT_CONNECTIONS if self.venue.traits.redundant_connections else 1
        for first in range(0, len(listings), size):
            group = _ConnectionGroup(list(listings[first : first + size]))
            self._groups.append(group)
            for copy in range(copies):
                collector = Collector(
                    self.venue,
                    group.listings,
                    services.recorder,
                    services.health,
                    services.clock,
                    services.rest.certificates,
                    services.closed_hosts,
                )
                name = f"{self.venue.name} collector {next(self._collector_numbers)}"
                services.start(name, partial(group.collect, collector, copy * _STAGGER_SECONDS))

    def _gap_repair(self) -> GapRepairer | RecentTradesReconciler:
        services = self._services
        if not self.venue.traits.has_gapless_ids:
            return RecentTradesReconciler(self.venue, services.rest, services.recorder, services.health, services.clock)
        return GapRepairer(
            self.venue,
            services.rest,
            services.recorder,
            services.health,
            services.clock,
            services.settings.retention.trades,
            long_gaps=not services.settings.WADM_HISTORY_HOURS,
            recorded_trades=partial(all_trades, services.store),
        )

    def _new_history(self) -> History:
        services, settings = self._services, self._services.settings
        return History(
            self.venue,
            services.rest,
            services.recorder,
            services.store,
            services.health,
            services.clock,
            reach=min(settings.WADM_HISTORY_HOURS * HOUR, settings.retention.minutes),
            raw=settings.WADM_HISTORY_RAW,
            trades_retention=settings.retention.trades,
            folder=settings.WADM_DATA_DIR / "archive",
            reserve=DiskReserve.for_journal(settings.WADM_DATA_DIR, settings.WADM_JOURNAL_MAX_MB << 20),
        )
