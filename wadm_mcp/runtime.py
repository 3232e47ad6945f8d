"""The long-running parts of a process in one supervised task group: store, cache, tape, collectors, writer, maintenance, follower, imports
and audit.

A process enters it exactly once. An MCP lifespan only hands it out, since the SDK enters a lifespan once per SSE connection. A part that
fails is restarted and reported in `health`; an error that no restart can mend ends in `failed`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from socket import gethostname
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from wadm_mcp.audit import Auditor, ExchangeFigures, HourlyAudit, exchange_figures
from wadm_mcp.backoff import Backoff
from wadm_mcp.clock import SYSTEM_CLOCK, Clock, since_boot
from wadm_mcp.clock_check import ClockCheck, Verdict
from wadm_mcp.collection.backfill.import_jobs import ImportJobRunner
from wadm_mcp.collection.follower import Follower
from wadm_mcp.collection.market import RecordingServices
from wadm_mcp.collection.recorder_lock import RecorderLock
from wadm_mcp.collection.recording.journal import Journal
from wadm_mcp.collection.recording.maintenance import Maintenance
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.collection.recording.rollup import Rollup
from wadm_mcp.collection.recording.writer import Writer
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.collection.rest.hosts import KnownHosts
from wadm_mcp.collection.subscriptions import SubscriptionManager
from wadm_mcp.errors import StoreError, StoreLost, StoreUnreachable, WadmError, ungrouped
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import Instrument, Listing, Window
from wadm_mcp.process.private_files import make_private
from wadm_mcp.queries.admission import Admission
from wadm_mcp.queries.view import View
from wadm_mcp.queries.watches import Watches
from wadm_mcp.settings import Settings, using_folder
from wadm_mcp.storage.cache import InProcessCache
from wadm_mcp.storage.cached import CachedAnswers, CachedFootprints
from wadm_mcp.storage.opening import open_cache, open_store
from wadm_mcp.tape import Tape
from wadm_mcp.tracking import Tracking

_LOCK_POLL_SECONDS: Final = 0.5
_FLUSH_SECONDS: Final = 2.0
_ENTER_SECONDS: Final = 1.0
"""How long entering waits for the store, so that a first question finds it open; the port does not wait longer for an unreachable one."""
_RECORD_SECONDS: Final = 3.0
"""How long recording waits for the store, to continue what it has; trades go into the journal without it."""
_STORE_PAUSE_SECONDS: Final = 1.0
_CLOCK_POLL_SECONDS: Final = 1.0
_STORE_POLL_SECONDS: Final = 1.0
_RESTART_PAUSE_SECONDS: Final = 0.5
_MAX_PAUSE_SECONDS: Final = 30.0
_HEALTHY_SECONDS: Final = 60.0
"""A part that ran this long before it failed is restarted after the shortest pause again."""
_ANSWER_BYTES: Final = 8 << 20

_TRACK: Final = "track_market adds one."
_ASK_OPERATOR: Final = (
    "The operator adds one in WADM_SYMBOLS, or its market in WADM_MARKETS, or lets agents do so by WADM_ALLOW_TRACKING=true."
)

_CLOCK_IS_OK: Final = (Verdict.UNKNOWN, Verdict.AGREES)
"""While the exchanges contradict this machine's clock, or each other, the part `clock` is down."""

Role: TypeAlias = Literal["starting", "recording", "standby"]


class Runtime:
    """The recording half of WADM, and the view that questions read. An async context manager, entered once.

    `suffix` separates the data of demo and replay in a database, as their folders do on disk. Without `checks_clock` the times of the
    exchanges are not compared with this machine's clock: those of a replay are the recording's.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        suffix: str = "",
        clock: Clock = SYSTEM_CLOCK,
        checks_clock: bool = True,
    ) -> None:
        self.settings = settings
        self.watches = Watches()
        self._clock_check = ClockCheck(clock, since_boot if clock is SYSTEM_CLOCK else None) if checks_clock else None
        clock = clock if self._clock_check is None else self._clock_check.clock
        self.health = Health(clock.now)
        self.tape = Tape()
        self.tape.add_awaited(venue.instrument(symbol) for venue in settings.venues for symbol in settings.WADM_SYMBOLS)
        self.store = open_store(settings, suffix)
        self.cache = open_cache(settings, self.health, suffix)
        self.answers = CachedAnswers(InProcessCache(_ANSWER_BYTES))
        self.admission = Admission()
        footprints = CachedFootprints(self.cache)
        self.view = View(
            self.store,
            self.tape,
            clock.now,
            settings.WADM_MARKETS,
            settings.WADM_EXCHANGES,
            settings.retention,
            footprints,
            settings.WADM_SYMBOLS,
            self._store_down,
            _TRACK if settings.WADM_ALLOW_TRACKING else _ASK_OPERATOR,
        )
        self._hosts = KnownHosts()
        self.tracking = Tracking(settings, self.store, self.view, self.health, self._refresh_subscriptions, self._hosts)
        # One process at a time has a data directory, so the next one after a crash has the leases of the crashed one.
        self._name = f"{gethostname()}:{settings.WADM_DATA_DIR.absolute()}"
        self._clock = clock
        self._stack = AsyncExitStack()
        self._failure: WadmError | None = None
        self._failed = anyio.Event()
        self._opened = anyio.Event()
        self._state: Role = "starting"
        self._recorder: Recorder | None = None
        self._subscriptions: SubscriptionManager | None = None
        self._follower = Follower(self.tape, self.store, self.health, clock, self._heard)

    async def __aenter__(self) -> Self:
        self.health.report("store", State.STARTING, "opening")
        self.health.report("recorder", State.STARTING)
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            tasks.start_soon(self._live, tasks)
            with anyio.move_on_after(_ENTER_SECONDS):
                await self._opened.wait()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    async def failed(self) -> WadmError:
        """Waits for an error that no restart can mend, and returns it. The process should stop and print it."""
        await self._failed.wait()
        assert self._failure is not None
        return self._failure

    @property
    def role(self) -> Role:
        """Whether this process records, or stands by while another one does."""
        subscriptions = self._subscriptions
        if self._state == "recording" and (subscriptions is None or not subscriptions.records):
            return "standby" if subscriptions is not None and subscriptions.recorded_elsewhere else "starting"
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
        return sum(tape.unstored.total() for tape in self.tape)

    def _refresh_subscriptions(self) -> None:
        if self._subscriptions is not None:
            self._subscriptions.refresh()

    def _store_down(self) -> bool:
        """Whether questions are answered without the store: it failed, or is not open yet."""
        report = self.health.parts.get("store")
        return report is not None and report.state is not State.OK

    async def _live(self, tasks: TaskGroup) -> None:
        """Open cache and store and collect, until cancelled or something fails that no restart can mend."""
        try:
            with using_folder(self.settings.WADM_DATA_DIR):
                await anyio.to_thread.run_sync(make_private, self.settings.WADM_DATA_DIR)
            with ungrouped():
                async with self.cache, AsyncExitStack() as stack, anyio.create_task_group() as inner:
                    tasks.start_soon(self._supervise, "cache watch", self.cache.watch)
                    tasks.start_soon(self._supervise, "memory", self.admission.give_memory_back)
                    inner.start_soon(self.health.log_changes)
                    if self._clock_check is not None:
                        tasks.start_soon(self._supervise, "clock", partial(self._watch_clock, self._clock_check))
                    inner.start_soon(self._open_store, stack)
                    with anyio.move_on_after(_RECORD_SECONDS):
                        await self._opened.wait()
                    await self._take_turns()
        except WadmError as error:
            self._fail(error)
        finally:
            self._opened.set()

    async def _open_store(self, stack: AsyncExitStack) -> None:
        """Open the store, retried while it is unreachable: recording goes on into the journal. A file of another program ends it."""
        backoff = Backoff(_STORE_PAUSE_SECONDS, _MAX_PAUSE_SECONDS)
        while True:
            try:
                await stack.enter_async_context(self.store)
            except StoreError as error:
                retryable = isinstance(error, StoreUnreachable) or self.settings.MONGODB_URL is not None
                if not retryable:
                    raise
                self.health.report("store", State.DOWN, str(error))
                pause = backoff.next()
                log.warning("store.unreachable", error=error, again_in_s=pause)
                await anyio.sleep(pause)
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
        with RecorderLock(self.settings.WADM_DATA_DIR) as lock:
            if not lock.take():
                await self._stand_by(lock)
            await self._record()

    async def _stand_by(self, lock: RecorderLock) -> None:
        self._state = "standby"
        self.tape.recorded_elsewhere = True
        self.health.report("recorder", State.STANDBY, "another process records on this data directory; answers here come from its store")
        log.info("recorder.standby", data=self.settings.WADM_DATA_DIR)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._supervise, "follower", self._follower.run)
            while not lock.take():  # noqa: ASYNC110 - no event says that another process released the lock
                await anyio.sleep(_LOCK_POLL_SECONDS)
            tasks.cancel_scope.cancel()
        self.tape.recorded_elsewhere = False

    async def _record(self) -> None:
        """Collect, write and roll up until cancelled; then write what is left. Questions are answered from the store all along."""
        settings, health = self.settings, self.health
        self._state = "recording"
        log.info("recorder.begins", data=settings.WADM_DATA_DIR)
        recorder = self._recorder = Recorder(self.tape, health, self._clock, self._heard)
        rollup = Rollup(self.store, health, self._clock, settings.retention.trades)
        limit = settings.WADM_JOURNAL_MAX_MB << 20
        async with AsyncExitStack() as stack:
            with using_folder(settings.WADM_DATA_DIR):
                journal = await stack.enter_async_context(Journal(settings.WADM_DATA_DIR / "journal", limit))
            writer = Writer(recorder, journal, self.store, health)
            maintenance = Maintenance(
                recorder,
                writer,
                rollup,
                self.store,
                health,
                settings.retention,
                self._clock,
                None if (check := self._clock_check) is None else lambda: check.expiry_limit,
            )
            health.report("recorder", State.OK)
            await self._catch_up()
            await self._follow_and_write(recorder, writer, maintenance)

    async def _follow_and_write(self, recorder: Recorder, writer: Writer, maintenance: Maintenance) -> None:
        settings, health = self.settings, self.health
        try:
            client = RestClient(proxied=not settings.stays_on_loopback, health=health, hosts=self._hosts, heard=self._heard)
            async with client as rest, anyio.create_task_group() as tasks:

                def start(name: str, job: Callable[[], Awaitable[None]]) -> None:
                    tasks.start_soon(self._supervise, name, job)

                services = RecordingServices(settings, self.tape, self.store, recorder, maintenance, rest, health, self._clock, start)
                subscriptions = self._subscriptions = SubscriptionManager(services, self._name)
                tasks.start_soon(self._watch_store, writer)
                start("writer", writer.run)
                start("maintenance", maintenance.run)
                start("audit", self._hourly_audit(recorder, rest).run)
                start("imports", ImportJobRunner(settings.WADM_DATA_DIR / "import", lambda: subscriptions.histories, health).run)
                start("follower", partial(self._follower.run, subscriptions))
                await subscriptions.run()
        finally:
            with anyio.move_on_after(_FLUSH_SECONDS, shield=True):
                try:
                    await maintenance.flush()
                except StoreError as error:
                    log.warning("recorder.not_flushed", trades=self.waiting, error=error)
                if self._subscriptions is not None:
                    await self._subscriptions.release_leases()

    @property
    def _heard(self) -> Callable[[str, int], None] | None:
        """What gets the exchanges' times; None where the clock is not checked."""
        return None if self._clock_check is None else self._clock_check.heard

    async def _watch_store(self, writer: Writer) -> None:
        """End recording if the store is deleted or replaced under it: only a new start knows what the one in its place has."""
        while True:
            try:
                await self.store.check()
            except StoreLost as error:
                writer.store_failed(error)
                self._fail(error)
                return
            except StoreError:
                # It is not open yet, or does not answer, which the writer finds out and reports.
                pass
            await anyio.sleep(_STORE_POLL_SECONDS)

    async def _watch_clock(self, check: ClockCheck) -> None:
        """Report whether this machine's clock agrees with the exchanges, until cancelled."""
        while True:
            judgement = check.judgement
            state = State.OK if judgement.verdict in _CLOCK_IS_OK else State.DOWN
            self.health.report("clock", state, judgement.sentence)
            await anyio.sleep(_CLOCK_POLL_SECONDS)

    def _hourly_audit(self, recorder: Recorder, rest: RestClient) -> HourlyAudit:
        async def fetch(listing: Listing, window: Window) -> ExchangeFigures:
            venue = self.settings.venue(listing.instrument.exchange, listing.instrument.market)
            return await exchange_figures(rest, venue, listing, window)

        def recorded() -> list[Listing]:
            return [each.tape.listing for each in recorder.recorded]

        auditor = Auditor(self.store, self.settings.retention, self._clock.now)
        return HourlyAudit(auditor, recorded, fetch, recorder.mark_differing, self.health, self._clock)

    async def _catch_up(self) -> None:
        """Bring the tape up to what is stored, as a follower would: questions are answered before any exchange was asked."""
        try:
            await self._follower.follow()
        except StoreError as error:
            self.health.report("store", State.DOWN, str(error))
        for tape in self.tape:
            self.health.report(str(tape.instrument), State.STARTING, "waiting for the exchange's symbol list")

    async def _supervise(self, name: str, job: Callable[[], Awaitable[None]]) -> None:
        """Keep a part alive: where it fails, log it, report it to health and restart it."""
        backoff = Backoff(_RESTART_PAUSE_SECONDS, _MAX_PAUSE_SECONDS)
        while True:
            began = self._clock.monotonic()
            try:
                await job()
            except Exception as error:  # noqa: BLE001 - any failure of a part is logged, and the part restarted
                if isinstance(error, WadmError):
                    log.error("part.failed", part=name, error=error)
                else:
                    log.error("part.failed", part=name, error=repr(error), exc_info=error)
                self.health.count("parts.restarted")
                self.health.report(name, State.DOWN, f"failed ({type(error).__name__}) and is being restarted")
                if self._clock.monotonic() - began > _HEALTHY_SECONDS:
                    backoff.reset()
                await anyio.sleep(backoff.next())
                self.health.forget(name)
            else:
                return
