"""What lives as long as the process: store, tape, collectors, aggregators, in one supervised task group.

It is entered exactly once, by whatever owns the process's life; an MCP lifespan only hands it out, since the SDK enters that once
per SSE connection. A part that fails is restarted and says so in `health`; what cannot be mended by waiting ends in `failed`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Final, Literal, Self

import anyio
from anyio.abc import TaskGroup
from mcp.server.subscriptions import InMemorySubscriptionBus

from wadm_mcp.collection.collector import Collector
from wadm_mcp.collection.follower import Follower
from wadm_mcp.collection.lease import Lease
from wadm_mcp.collection.recorder import Recorder
from wadm_mcp.collection.rest import Rest
from wadm_mcp.collection.rollup import Rollup
from wadm_mcp.collection.writer import Writer
from wadm_mcp.errors import ExchangeError, SettingError, StoreError, WadmError
from wadm_mcp.exchanges.binance import Binance
from wadm_mcp.exchanges.bybit import Bybit
from wadm_mcp.exchanges.exchange import Exchange
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import DAY, Instrument, Listing, Window
from wadm_mcp.near import nearest
from wadm_mcp.queries.view import View
from wadm_mcp.settings import Settings
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.tape import Tape

EXCHANGES: Final[Mapping[str, Exchange]] = {"binance": Binance(), "bybit": Bybit()}
"""Every venue, by name."""
_RECENT_TRADES: Final = 2_000
"""Newest stored trades that a start looks at: what repeats, and how often the instrument trades."""
_LEASE_EVERY: Final = 0.5
_FLUSH_WITHIN: Final = 2.0
_LONGEST_PAUSE: Final = 30.0


def now_ms() -> int:
    """The wall clock: milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000


class Runtime:
    """The collecting half of WADM, and the view that questions read. An async context manager, entered once."""

    def __init__(self, settings: Settings, *, clock: Callable[[], int] = now_ms, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.bus = InMemorySubscriptionBus()
        self.health = Health(clock)
        self.role: Literal["starting", "recording", "standby"] = "starting"
        self.tape = Tape()
        self.store = SqliteStore(settings.WADM_DATA_DIR / "wadm.sqlite")
        self.view = View(self.store, self.tape, clock, settings.WADM_MARKETS, settings.WADM_EXCHANGES, settings.lives)
        self.entered = 0
        """How often the runtime was entered; once, or something is wrong."""
        self._clock = clock
        self._monotonic = monotonic
        self._stack = AsyncExitStack()
        self._failure: WadmError | None = None
        self._failed = anyio.Event()
        self._opened = anyio.Event()
        self._recorder: Recorder | None = None

    async def __aenter__(self) -> Self:
        self.entered += 1
        self.health.report("store", State.STARTING, "opening")
        self.health.report("recorder", State.STARTING)
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            tasks.start_soon(self._live)
            await self._opened.wait()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    async def failed(self) -> WadmError:
        """Waits for what no restart can mend, and returns it. The process should stop and tell it."""
        await self._failed.wait()
        assert self._failure is not None
        return self._failure

    @property
    def followed(self) -> list[Instrument]:
        """Instruments that questions can be asked about."""
        return [listing.instrument for listing in self.view.listings]

    @property
    def recorded(self) -> int:
        """Trades recorded since the start."""
        return self._recorder.taken if self._recorder is not None else 0

    @property
    def waiting(self) -> int:
        """Trades that wait for the store."""
        return sum(len(tape.unsaved) for tape in self.tape)

    async def _live(self) -> None:
        try:
            self.settings.WADM_DATA_DIR.mkdir(parents=True, exist_ok=True)
            async with self.store:
                self.health.report("store", State.OK)
                self._opened.set()
                await self._take_turns()
        except OSError as error:
            folder = self.settings.WADM_DATA_DIR
            self._fail(SettingError(f"WADM_DATA_DIR={folder}: the folder cannot be used ({error.strerror}); name one that can be written"))
        except WadmError as error:
            self._fail(error)
        finally:
            self._opened.set()

    def _fail(self, error: WadmError) -> None:
        self._failure = error
        self.health.report("recorder", State.DOWN, str(error))
        self._failed.set()

    async def _take_turns(self) -> None:
        """Stand by while another process on the data directory records; record once it does not."""
        with Lease(self.settings.WADM_DATA_DIR) as lease:
            if not lease.take():
                await self._stand_by(lease)
            await self._record()

    async def _stand_by(self, lease: Lease) -> None:
        self.role = "standby"
        self.health.report("recorder", State.STANDBY, "another process on this data directory records; answers here come from its store")
        log.info("recorder.standby", data=self.settings.WADM_DATA_DIR)
        async with anyio.create_task_group() as tasks:
            follower = Follower(self.tape, self.store, self.health)
            tasks.start_soon(self._supervise, "follower", follower.run)
            while not lease.take():  # noqa: ASYNC110 - the lock is another process's to free; no event tells of it
                await anyio.sleep(_LEASE_EVERY)
            tasks.cancel_scope.cancel()

    async def _record(self) -> None:
        """Collect, write and roll up until cancelled; then write what is left. What is stored already can be asked for all along."""
        await self._insist(Follower(self.tape, self.store, self.health).follow)
        for tape in self.tape:
            self.health.report(str(tape.instrument), State.STARTING, "it is being looked up at its exchange")
        self.role = "recording"
        self.health.report("recorder", State.OK)
        log.info("recorder.begins", data=self.settings.WADM_DATA_DIR)
        recorder = self._recorder = Recorder(self.tape, self.health, self._clock, self._monotonic)
        rollup = Rollup(recorder, self.store, self.health, self._clock, self.settings.lives.trades)
        writer = Writer(recorder, rollup, self.store, self.health, self.settings.lives, self._clock, self._monotonic)
        try:
            async with Rest() as rest, anyio.create_task_group() as tasks:
                tasks.start_soon(self._supervise, "writer", writer.run)
                await self._follow_all(rest, recorder, rollup, tasks)
        finally:
            with anyio.move_on_after(_FLUSH_WITHIN, shield=True):
                try:
                    await writer.flush()
                except StoreError as error:
                    log.error("store.not_flushed", trades=self.waiting, error=error)

    async def _follow_all(self, rest: Rest, recorder: Recorder, rollup: Rollup, tasks: TaskGroup) -> None:
        """Look the configured symbols up at every exchange and follow those it knows. A symbol that none knows ends in `failed`."""
        unknown: dict[str, list[str]] = {symbol: [] for symbol in self.settings.WADM_SYMBOLS}
        known: set[str] = set()
        async with anyio.create_task_group() as lookups:
            for exchange in self.settings.WADM_EXCHANGES:
                for market in self.settings.WADM_MARKETS:
                    lookups.start_soon(self._follow_market, rest, recorder, rollup, tasks, EXCHANGES[exchange], market, unknown, known)
        for instrument in self.tape.keep([followed.tape.instrument for followed in recorder.followed]):
            self.health.forget(str(instrument))
        for symbol, near in unknown.items():
            if symbol not in known:
                asked = f"{' and '.join(self.settings.WADM_EXCHANGES)} ({', '.join(self.settings.WADM_MARKETS)})"
                found = ", ".join(nearest(symbol, near)) or "none"
                self._fail(SettingError(f"WADM_SYMBOLS={symbol}: no such symbol at {asked}. Nearest: {found}"))

    async def _follow_market(
        self,
        rest: Rest,
        recorder: Recorder,
        rollup: Rollup,
        tasks: TaskGroup,
        exchange: Exchange,
        market: str,
        unknown: dict[str, list[str]],
        known: set[str],
    ) -> None:
        listings = await self._listings(rest, exchange, market)
        mine: list[Listing] = []
        for symbol in self.settings.WADM_SYMBOLS:
            listing = listings.get(symbol)
            if listing is not None:
                known.add(symbol)
                mine.append(listing)
            else:
                unknown[symbol].extend(listings)
                found = ", ".join(nearest(symbol, listings)) or "none"
                log.warning("symbol.unknown", exchange=exchange.name, market=market, symbol=symbol, nearest=found)
        await self._insist(partial(self.store.keep_listings, mine))
        for listing in mine:
            await self._insist(partial(self._follow, listing, recorder, rollup, exchange.numbers_trades[market]))
        url, size = self.settings.socket_url(exchange.name, market), exchange.limits(market).streams
        for first in range(0, len(mine), size):
            collector = Collector(exchange, market, mine[first : first + size], url, recorder, self.health, self._monotonic)
            tasks.start_soon(self._supervise, f"{exchange.name} {market} collector", collector.run)

    async def _follow(self, listing: Listing, recorder: Recorder, rollup: Rollup, numbered: bool) -> None:
        now = self._clock()
        spans = await self.store.spans(listing.instrument, Window(now - DAY, now))
        recent = await self.store.trades(listing.instrument, Window(0, now + DAY), limit=_RECENT_TRADES, newest=True)
        followed = recorder.follow(listing, numbered=numbered, spans=spans, recent=recent)
        await rollup.recover(followed)

    async def _listings(self, rest: Rest, exchange: Exchange, market: str) -> dict[str, Listing]:
        """What the exchange lists, asked until it answers; what was stored of it before, where that has every symbol."""
        part, pause = f"{exchange.name} {market} listings", 1.0
        while True:
            try:
                found = await rest.listings(exchange, market, self.settings.rest_url(exchange.name, market))
            except ExchangeError as error:
                self.health.report(part, State.DOWN, str(error))
                log.warning("listings.failed", exchange=exchange.name, market=market, error=error, again_in_s=pause)
                stored = {
                    listing.instrument.symbol: listing
                    for listing in await self.store.listings()
                    if listing.instrument.exchange == exchange.name and listing.instrument.market == market
                }
                if all(symbol in stored for symbol in self.settings.WADM_SYMBOLS):
                    self.health.report(part, State.OK, "as stored before; the exchange did not answer")
                    return stored
                await anyio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
            else:
                self.health.forget(part)
                return {listing.instrument.symbol: listing for listing in found}

    async def _insist(self, step: Callable[[], Awaitable[None]]) -> None:
        """Try a step on the store until the store takes it."""
        while True:
            try:
                return await step()
            except StoreError as error:
                self.health.report("store", State.DOWN, str(error))
                await anyio.sleep(1.0)

    async def _supervise(self, name: str, job: Callable[[], Awaitable[None]]) -> None:
        """Keep a part alive: a failure is logged, shown in health, and met with a restart."""
        pause = 0.5
        while True:
            began = self._monotonic()
            try:
                await job()
            except Exception as error:  # noqa: BLE001 - whatever a part fails of, it is told and the part restarted
                if isinstance(error, WadmError):
                    log.error("part.failed", part=name, error=error)
                else:
                    log.error("part.failed", part=name, error=repr(error), exc_info=error)
                self.health.count("parts.restarted")
                self.health.report(name, State.DOWN, f"failed ({type(error).__name__}) and is being restarted")
                pause = 0.5 if self._monotonic() - began > 60 else min(_LONGEST_PAUSE, pause * 2)
                await anyio.sleep(pause)
                self.health.forget(name)
            else:
                return
