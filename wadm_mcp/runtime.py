"""What lives as long as the process: store, cache, tape, collectors, aggregators, in one supervised task group.

It is entered exactly once, by whatever owns the process's life; an MCP lifespan only hands it out, since the SDK enters that once
per SSE connection. A part that fails is restarted and says so in `health`; what cannot be mended by waiting ends in `failed`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from socket import gethostname
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

import anyio
from anyio.abc import TaskGroup
from mcp.server.subscriptions import InMemorySubscriptionBus

from wadm_mcp.audit import Auditor, ExchangeFigures, HourlyAudit, exchange_figures
from wadm_mcp.collection.backfill.import_jobs import ImportJobRunner
from wadm_mcp.collection.follower import Follower
from wadm_mcp.collection.lease import RecorderLock
from wadm_mcp.collection.recording.journal import Journal
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.collection.recording.rollup import Rollup
from wadm_mcp.collection.recording.writer import Writer
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.collection.subscriptions import EXCHANGES, SubscriptionManager
from wadm_mcp.errors import StoreError, StoreUnreachable, WadmError, ours
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import Instrument, Listing, Window
from wadm_mcp.queries.view import View
from wadm_mcp.settings import Settings, unusable_folder
from wadm_mcp.storage.cache import InProcessCache
from wadm_mcp.storage.cached import CachedAnswers, CachedFootprints
from wadm_mcp.storage.opening import open_cache, open_store
from wadm_mcp.storage.redis_cache import RedisCache
from wadm_mcp.tape import Tape
from wadm_mcp.tracking import Tracking

_LEASE_EVERY: Final = 0.5
_FLUSH_WITHIN: Final = 2.0
_OPENED_WITHIN: Final = 1.0
"""Seconds that entering waits for the store, so that a first question finds it open; the port must not wait for a dead one."""
_STORE_FIRST: Final = 3.0
"""Seconds that recording waits for the store, to go on from what it holds; a dead one must not keep trades out of the journal."""
_LONGEST_PAUSE: Final = 30.0
_STORE_PAUSE: Final = 1.0
_ANSWER_BYTES: Final = 8 << 20

_TRACK: Final = "track_market adds one."
_ASK_OPERATOR: Final = "The operator adds one in WADM_SYMBOLS, or lets agents do so by WADM_ALLOW_TRACKING=true."

Role: TypeAlias = Literal["starting", "recording", "standby"]


def now_ms() -> int:
    """The wall clock: milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000


class Runtime:
    """The collecting half of WADM, and the view that questions read. An async context manager, entered once.

    `suffix` sets the data of demo and replay apart in a database, as their folder does on disk.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        suffix: str = "",
        clock: Callable[[], int] = now_ms,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.bus = InMemorySubscriptionBus()
        self.health = Health(clock)
        self.tape = Tape()
        self.tape.awaited = {
            Instrument(exchange, market, symbol)
            for exchange in settings.WADM_EXCHANGES
            for market in settings.WADM_MARKETS
            for symbol in settings.WADM_SYMBOLS
        }
        self.store = open_store(settings, suffix)
        self.cache = open_cache(settings, self.health, suffix)
        self.answers = CachedAnswers(InProcessCache(_ANSWER_BYTES))
        footprints = CachedFootprints(self.cache)
        self.view = View(
            self.store,
            self.tape,
            clock,
            settings.WADM_MARKETS,
            settings.WADM_EXCHANGES,
            settings.retention,
            footprints,
            settings.WADM_SYMBOLS,
            self._store_down,
            _TRACK if settings.WADM_ALLOW_TRACKING else _ASK_OPERATOR,
        )
        self.tracking = Tracking(settings, self.store, self.view, self.health, self._look)
        self.entered = 0
        """How often the runtime was entered; once, or something is wrong."""
        # One process at a time has a data directory, so whoever comes after a crash holds what that one held.
        self._name = f"{gethostname()}:{settings.WADM_DATA_DIR.absolute()}"
        self._clock = clock
        self._monotonic = monotonic
        self._stack = AsyncExitStack()
        self._failure: WadmError | None = None
        self._failed = anyio.Event()
        self._opened = anyio.Event()
        self._state: Role = "starting"
        self._recorder: Recorder | None = None
        self._roster: SubscriptionManager | None = None
        self._follower = Follower(self.tape, self.store, self.health, clock)

    async def __aenter__(self) -> Self:
        self.entered += 1
        self.health.report("store", State.STARTING, "opening")
        self.health.report("recorder", State.STARTING)
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            tasks.start_soon(self._live, tasks)
            with anyio.move_on_after(_OPENED_WITHIN):
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
    def role(self) -> Role:
        """Does this process record, or does it stand by while others do?"""
        if self._state == "recording" and (self._roster is None or not self._roster.records):
            return "standby" if self._roster is not None and self._roster.held_elsewhere else "starting"
        return self._state

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
        return sum(tape.waiting.total() for tape in self.tape)

    def _look(self) -> None:
        if self._roster is not None:
            self._roster.look()

    def _store_down(self) -> bool:
        report = self.health.parts.get("store")
        return report is not None and report.state is State.DOWN

    async def _live(self, tasks: TaskGroup) -> None:
        """Cache and store around the collecting, until cancelled or something cannot be mended."""
        try:
            self.settings.WADM_DATA_DIR.mkdir(parents=True, exist_ok=True)
            async with self.cache, AsyncExitStack() as stack, anyio.create_task_group() as inner:
                if isinstance(self.cache, RedisCache):
                    tasks.start_soon(self._supervise, "cache watch", self.cache.watch)
                inner.start_soon(self.health.log_changes)
                inner.start_soon(self._open_store, stack)
                with anyio.move_on_after(_STORE_FIRST):
                    await self._opened.wait()
                await self._take_turns()
        except OSError as error:
            self._fail(unusable_folder(self.settings.WADM_DATA_DIR, error))
        except WadmError as error:
            self._fail(error)
        except BaseExceptionGroup as group:
            error = ours(group)
            if error is None:
                raise
            self._fail(error)
        finally:
            self._opened.set()

    async def _open_store(self, stack: AsyncExitStack) -> None:
        """Open the store, and again for as long as it takes: recording goes on into the journal. A file that is not ours ends it."""
        pause = _STORE_PAUSE
        while True:
            try:
                await stack.enter_async_context(self.store)
            except StoreError as error:
                mendable = isinstance(error, StoreUnreachable) or self.settings.MONGODB_URL is not None
                if not mendable:
                    raise
                self.health.report("store", State.DOWN, str(error))
                log.warning("store.unreachable", error=error, again_in_s=pause)
                await anyio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
            else:
                self.health.report("store", State.OK)
                self._opened.set()
                return

    def _fail(self, error: WadmError) -> None:
        self._failure = error
        self.health.report("recorder", State.DOWN, str(error))
        self._failed.set()

    async def _take_turns(self) -> None:
        """Stand by while another process has the data directory; record once it does not."""
        with RecorderLock(self.settings.WADM_DATA_DIR) as lease:
            if not lease.take():
                await self._stand_by(lease)
            await self._record()

    async def _stand_by(self, lease: RecorderLock) -> None:
        self._state = "standby"
        self.tape.recorded_elsewhere = True
        self.health.report("recorder", State.STANDBY, "another process records on this data directory; answers here come from its store")
        log.info("recorder.standby", data=self.settings.WADM_DATA_DIR)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._supervise, "follower", self._follower.run)
            while not lease.take():  # noqa: ASYNC110 - no event tells that another process lets go
                await anyio.sleep(_LEASE_EVERY)
            tasks.cancel_scope.cancel()
        self.tape.recorded_elsewhere = False

    async def _record(self) -> None:
        """Collect, write and roll up until cancelled; then write what is left. What is stored already can be asked for all along."""
        settings, health = self.settings, self.health
        self._state = "recording"
        log.info("recorder.begins", data=settings.WADM_DATA_DIR)
        recorder = self._recorder = Recorder(self.tape, health, self._clock, self._monotonic)
        rollup = Rollup(recorder, self.store, health, self._clock, settings.retention.trades)
        limit = settings.WADM_JOURNAL_MAX_MB << 20
        async with Journal(settings.WADM_DATA_DIR / "journal", limit) as journal:
            writer = Writer(recorder, journal, rollup, self.store, health, settings.retention, self._clock, self._monotonic)
            health.report("recorder", State.OK)
            await self._catch_up()
            await self._follow_and_write(recorder, writer)

    async def _follow_and_write(self, recorder: Recorder, writer: Writer) -> None:
        settings, health = self.settings, self.health
        try:
            async with RestClient(proxied=not settings.stays_on_loopback) as rest, anyio.create_task_group() as tasks:

                def start(name: str, job: Callable[[], Awaitable[None]]) -> None:
                    tasks.start_soon(self._supervise, name, job)

                roster = self._roster = SubscriptionManager(
                    settings, self.tape, self.store, recorder, writer, rest, health, self._clock, self._monotonic, self._name, start
                )
                start("writer", writer.run)
                start("audit", self._hourly_audit(recorder, rest).run)
                start("imports", ImportJobRunner(settings.WADM_DATA_DIR / "import", lambda: roster.histories, health).run)
                start("follower", partial(self._follower.run, roster))
                await roster.run()
        finally:
            with anyio.move_on_after(_FLUSH_WITHIN, shield=True):
                try:
                    await writer.flush()
                except StoreError as error:
                    log.warning("recorder.not_flushed", trades=self.waiting, error=error)
                if self._roster is not None:
                    await self._roster.release_leases()

    def _hourly_audit(self, recorder: Recorder, rest: RestClient) -> HourlyAudit:
        async def told(listing: Listing, window: Window) -> ExchangeFigures:
            exchange, market, _ = listing.instrument
            return await exchange_figures(rest, EXCHANGES[exchange], listing, self.settings.rest_url(exchange, market), window)

        def recorded() -> list[Listing]:
            return [followed.tape.listing for followed in recorder.followed]

        return HourlyAudit(Auditor(self.store, self.settings.retention, self._clock), recorded, told, self.health, self._clock)

    async def _catch_up(self) -> None:
        """Bring the tape up to what is stored, as a follower would: questions are answered before any exchange is."""
        try:
            await self._follower.follow()
        except StoreError as error:
            self.health.report("store", State.DOWN, str(error))
        self._tell_starting()

    def _tell_starting(self) -> None:
        for tape in self.tape:
            self.health.report(str(tape.instrument), State.STARTING, "it is being looked up at its exchange")

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
