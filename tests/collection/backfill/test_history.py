"""Imports over loopback REST and archives: a tape begins at some time, and the ledger's trades before it are imported."""

from __future__ import annotations

import gzip
import io
import random
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import date
from decimal import Decimal
from hashlib import sha256
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import anyio
import msgspec
import pytest

from tests.market import ManualClock
from tests.test_audit import ledger
from tests.venues import simulated_venue
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.clock import Clock
from wadm_mcp.collection.backfill import archive_order
from wadm_mcp.collection.backfill import history as history_module
from wadm_mcp.collection.backfill.gap_repair import GapRepairer
from wadm_mcp.collection.backfill.history import History
from wadm_mcp.collection.backfill.history_plan import ImportStep
from wadm_mcp.collection.backfill.recent_trades import RecentTradesReconciler
from wadm_mcp.collection.disk_reserve import DiskReserve
from wadm_mcp.collection.recording.journal import Journal
from wadm_mcp.collection.recording.maintenance import Maintenance
from wadm_mcp.collection.recording.minute import build_minute
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.collection.recording.rollup import Rollup
from wadm_mcp.collection.recording.writer import Writer
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.collection.rest.downloads import Downloads
from wadm_mcp.coverage import by_connection
from wadm_mcp.coverage.judge import judge
from wadm_mcp.coverage.spans import GapReason
from wadm_mcp.errors import ExchangeError
from wadm_mcp.exchanges.binance import Binance
from wadm_mcp.exchanges.bybit import Bybit
from wadm_mcp.exchanges.exchange import Trades, Venue
from wadm_mcp.exchanges.registry import find_exchange
from wadm_mcp.health import Health
from wadm_mcp.model import DAY, HOUR, MINUTE, SECOND, Instrument, Listing, Retention, Timeframe, Trade, Window
from wadm_mcp.simulator import market
from wadm_mcp.simulator.archives import Archives
from wadm_mcp.simulator.faults import ArchiveFaults, Faults, Reply
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Store
from wadm_mcp.tape import Tape

pytestmark = pytest.mark.anyio

SPOT = Instrument("binance", "spot", "BTCUSDT")
LINEAR = Instrument("binance", "linear", "BTCUSDT")
BYBIT_SPOT = Instrument("bybit", "spot", "BTCUSDT")
BYBIT_LINEAR = Instrument("bybit", "linear", "BTCUSDT")
EVERY = [SPOT, LINEAR, BYBIT_SPOT, BYBIT_LINEAR]
MIDNIGHT = 1_785_024_000_000
"""2026-07-26T00:00Z. The same market in every run."""
BEYOND_ASCII = [instrument._replace(symbol="币安人生USDT") for instrument in (LINEAR, BYBIT_LINEAR)]
QUIET = {"binance": 0.04, "bybit": 0.2}


class World:
    """One process that collects one instrument of a simulated exchange, with a clock that tests set."""

    def __init__(
        self,
        simulator: Simulator,
        rest: RestClient,
        store: Store,
        journal: Journal,
        instrument: Instrument,
        clock: ManualClock,
        folder: Path,
    ) -> None:
        self.simulator, self.rest, self.store, self.instrument, self.clock = simulator, rest, store, instrument, clock
        self.folder = folder
        self.tape, self.health = Tape(), Health(clock.now)
        self.loop_clock = Clock(clock.now, anyio.current_time)
        self.recorder = Recorder(self.tape, self.health, self.loop_clock)
        retention = Retention(3 * DAY, 30 * DAY, 365 * DAY)
        writer = Writer(self.recorder, journal, store, self.health)
        rollup = Rollup(store, self.health, clock, retention.trades)
        self.maintenance = Maintenance(self.recorder, writer, rollup, store, self.health, retention, clock)
        self.venue = simulated_venue(simulator, instrument.exchange, instrument.market)
        self.has_gapless_ids = self.venue.traits.has_gapless_ids
        (sample, *_) = ledger(simulator, instrument, Window(MIDNIGHT - 5 * MINUTE, MIDNIGHT))
        self.listing = Listing(instrument, Decimal(1).scaleb(-sample.scale.price), Decimal(1).scaleb(-sample.scale.quantity))
        self.recorded = self.recorder.start(self.listing, has_gapless_ids=self.has_gapless_ids)
        self.recorded.tape._resumed = True

    def history(self, reach: int = HOUR, *, raw: bool = False) -> History:
        return History(
            self.venue,
            self.rest,
            self.recorder,
            self.store,
            self.health,
            self.loop_clock,
            reach=reach,
            raw=raw,
            trades_retention=3 * DAY,
            folder=self.folder,
            reserve=DiskReserve(self.folder, 0),
        )

    def repairer(self) -> GapRepairer | RecentTradesReconciler:
        common = (self.venue, self.rest, self.recorder, self.health)
        if self.has_gapless_ids:
            return GapRepairer(*common, self.loop_clock, 3 * DAY, long_gaps=False)
        return RecentTradesReconciler(*common, self.loop_clock)

    def traded(self, start: int, end: int) -> list[Trade]:
        return ledger(self.simulator, self.instrument, Window(start, end))

    async def live(self, start: int, end: int, connection: int = 1, lost: Collection[str] = ()) -> None:
        """Record the trades from `start` to `end` as a connection delivers them, but for those that it loses (by id)."""
        for trade in self.traded(start, end):
            if trade.trade_id in lost:
                continue
            self.clock.at = max(self.clock.at, trade.timestamp + 1)
            await self.recorder.take(connection, Trades(self.instrument, (trade,), trade.timestamp + 1))

    async def restart(self) -> None:
        """Continue from the store, as a new process does before its connections deliver."""
        self.recorded.tape._resumed = False
        await self.maintenance.resume(self.recorded)

    async def save(self) -> None:
        # The batch that was taken is nowhere else.
        with anyio.CancelScope(shield=True):
            trades, spans, partials = self.recorder.take_batch()
            await self.store.write(trades, spans, partials)
            self.recorder.mark_durable(trades, partials)

    async def keep_saving(self) -> None:
        while True:
            await self.save()
            await anyio.sleep(0.005)

    async def bring_in(self, history: History, *, repair: bool = True) -> None:
        """Import and repair everything that can be."""
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.keep_saving)
                tasks.start_soon(history.run)
                if repair:
                    tasks.start_soon(self.repairer().run)
                await history.idle.wait()
                while repair and self.has_gapless_ids and self.recorded.coverage.missing():
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()
        await self.save()

    async def footprints(self, window: Window) -> dict[int, Footprint]:
        """A window's minutes as rollup derives them from the stored trades and partials."""
        found: dict[int, Footprint] = {}
        for minute in range(window.start, window.end, MINUTE):
            inside = Window(minute, minute + MINUTE)
            trades = await self.store.trades(self.instrument, inside, limit=10_000)
            footprint = build_minute(trades, await self.store.pieces(self.instrument, inside))
            if footprint.cells:
                found[minute] = footprint
        return found

    async def derived(self, window: Window) -> dict[int, Footprint]:
        """A window's minutes in the store after rollup has finished."""
        for connection in range(12):
            self.recorder.connection_lost(connection, [self.instrument], GapReason.DISCONNECT, "")
        with anyio.fail_after(30):
            while await self.store.dirty_minutes():
                self.clock.at += 31 * SECOND
                await self.maintenance.roll_up()
        return {row.start: row.footprint for row in await self.store.footprints(self.instrument, Timeframe.M1, window)}

    def expected(self, traded: Sequence[Trade], *, ordered: bool = True) -> dict[int, Footprint]:
        """The minutes of trades of the ledger; without `ordered` these are ordered by time alone."""
        minutes: dict[int, Footprint] = {}
        for trade in traded:
            minute = trade.timestamp - trade.timestamp % MINUTE
            row = trade if ordered else msgspec.structs.replace(trade, seq=trade.timestamp)
            minutes.setdefault(minute, Footprint(self.listing.scale)).add(row)
        return minutes

    async def compare(self, window: Window) -> None:
        """Assert that the minutes of a window equal the ledger: every figure is exact, and only the delta path may be unknown.

        An archive of Bybit has no cross sequence, so that its trades of one millisecond are one step of the path.
        """
        traded = self.traded(window.start, window.end)
        found, expected = await self.footprints(window), self.expected(traded)
        by_time = expected if self.has_gapless_ids else self.expected(traded, ordered=False)
        assert found.keys() == expected.keys()
        for minute, footprint in found.items():
            assert footprint.cells == expected[minute].cells
            valid = [figures(expected[minute]), *([] if self.has_gapless_ids else [figures(by_time[minute])])]
            assert figures(footprint) in [{name: value for name, value in one.items() if name in figures(footprint)} for one in valid]

    async def covered(self, window: Window) -> float:
        spans = await self.store.spans(self.instrument, window)
        judgement = judge(spans, window, self.clock.at, self.recorded.alive_until())
        return judgement.millionths / 1_000_000


def figures(footprint: Footprint) -> dict[str, object]:
    values = msgspec.structs.asdict(footprint.bar)
    # An archive of Bybit has no cross sequence.
    del values["first_seq"], values["last_seq"]
    if values["min_delta"] is None:
        del values["min_delta"], values["max_delta"]
    return values


@pytest.fixture(autouse=True)
def markets_remember_two_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of what these tests compute is the market, minutes of which they read again and again; quiet ones fit into memory."""
    monkeypatch.setattr(market, "_MINUTES_KEPT", 2 * DAY // MINUTE)


@asynccontextmanager
async def simulated(
    instrument: Instrument, clock: ManualClock, faults: Faults | None = None, *, activity: float | None = None
) -> AsyncGenerator[Simulator]:
    seconds = count()
    async with Simulator(
        seed=5,
        instruments=[instrument],
        activity=activity or QUIET[instrument.exchange],
        clock=clock.now,
        # The exchange's rate limits are not tested here: its clock advances ten seconds with each request.
        wall=lambda: MIDNIGHT + next(seconds) * 10 * SECOND,
        faults=faults,
    ) as simulator:
        yield simulator


@asynccontextmanager
async def world(instrument: Instrument, folder: Path, simulator: Simulator, clock: ManualClock, *, now: int) -> AsyncGenerator[World]:
    clock.at = now
    folder.mkdir(exist_ok=True)
    async with (
        SqliteStore(folder / "wadm.sqlite") as store,
        Journal(folder / "journal", 1 << 30) as journal,
        RestClient(proxied=False) as rest,
    ):
        yield World(simulator, rest, store, journal, instrument, clock, folder / "archive")


@pytest.mark.parametrize("instrument", [SPOT, LINEAR], ids=str)
async def test_imported_minutes_equal_the_ledger_at_fifty_random_starts_where_ids_count_trades(
    instrument: Instrument, tmp_path: Path
) -> None:
    dice, clock = random.Random(zlib.crc32(str(instrument).encode())), ManualClock(MIDNIGHT)
    async with simulated(instrument, clock) as simulator:
        for place in range(50):
            after_midnight = place % 10 == 0
            start = MIDNIGHT + (dice.randrange(10 * MINUTE) if after_midnight else dice.randrange(30 * MINUTE, 20 * HOUR))
            async with world(instrument, tmp_path / str(place), simulator, clock, now=start) as one:
                end = start + dice.randrange(MINUTE, 3 * MINUTE)
                await one.live(start, end)
                await one.bring_in(one.history(3 * HOUR if after_midnight else 20 * MINUTE))
                checked = Window(start - start % MINUTE - 20 * MINUTE, end - end % MINUTE)
                await one.compare(checked)
                assert await one.covered(checked) == 1


async def test_a_stretch_that_cannot_be_imported_does_not_delay_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "_FIRST_PAUSE_SECONDS", 0.01)
    tried: list[int] = []
    import_step = History._import

    async def refused(self: History, step: ImportStep) -> None:
        tried.append(step.day.start)
        if step.day.start == MIDNIGHT:
            raise ExchangeError("binance spot answers an error for this day")
        await import_step(self, step)

    monkeypatch.setattr(History, "_import", refused)
    clock = ManualClock(MIDNIGHT)
    async with simulated(SPOT, clock) as simulator, world(SPOT, tmp_path, simulator, clock, now=MIDNIGHT + HOUR) as one:
        await one.live(MIDNIGHT + HOUR, MIDNIGHT + HOUR + MINUTE)
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.keep_saving)
                tasks.start_soon(one.history(3 * HOUR).run)
                while MIDNIGHT - DAY not in tried or tried.count(MIDNIGHT) < 2:
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()
        assert tried[0] == MIDNIGHT


async def test_a_rest_host_that_refuses_does_not_delay_what_the_archive_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "_FIRST_PAUSE_SECONDS", 0.01)
    imported = anyio.Event()
    import_step = History._import

    async def refused(self: History, step: ImportStep) -> None:
        if not step.from_archive:
            limiter = self._rest.limiter(self._venue)
            async with limiter.request(1) as number:
                limiter.note_reply(number, 451, {})
            raise ExchangeError("binance spot answers HTTP 451")
        await import_step(self, step)
        imported.set()

    monkeypatch.setattr(History, "_import", refused)
    clock = ManualClock(MIDNIGHT)
    async with simulated(SPOT, clock) as simulator, world(SPOT, tmp_path, simulator, clock, now=MIDNIGHT + HOUR) as one:
        await one.live(MIDNIGHT + HOUR, MIDNIGHT + HOUR + MINUTE)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.keep_saving)
            tasks.start_soon(one.history(3 * HOUR).run)
            with anyio.fail_after(60):
                await imported.wait()
            tasks.cancel_scope.cancel()
        assert one.rest.closed_for(one.venue) > 200


@pytest.mark.parametrize("instrument", [BYBIT_SPOT, BYBIT_LINEAR], ids=str)
async def test_imported_minutes_equal_the_ledger_at_fifty_random_starts_where_ids_do_not_count(
    instrument: Instrument, tmp_path: Path
) -> None:
    dice, clock = random.Random(zlib.crc32(str(instrument).encode())), ManualClock(MIDNIGHT)
    async with simulated(instrument, clock) as simulator:
        for place in range(5):
            starts = sorted(dice.sample(range(10, 1_430, 20), 10))
            starts = [MIDNIGHT - DAY + minute * MINUTE + dice.randrange(MINUTE) for minute in starts]
            async with world(instrument, tmp_path / str(place), simulator, clock, now=starts[0]) as one:
                for connection, start in enumerate(starts):
                    await one.live(start, start + dice.randrange(MINUTE, 5 * MINUTE), connection)
                    one.recorder.connection_lost(connection, [instrument], GapReason.DISCONNECT, "")
                await one.save()
                one.clock.at = MIDNIGHT + HOUR
                await one.bring_in(one.history(DAY), repair=False)
                for start in starts:
                    checked = Window(start - start % MINUTE - 3 * MINUTE, start - start % MINUTE + 9 * MINUTE)
                    await one.compare(checked)
                    assert await one.covered(checked) == 1
                assert await one.covered(Window(MIDNIGHT - DAY, MIDNIGHT)) == 1
                assert await one.covered(Window(MIDNIGHT - DAY, MIDNIGHT + 30 * MINUTE)) < 1


class Damage(Faults):
    """Damages each archive file, and publishes the checksum of the damaged file."""

    def __init__(self, harm: Callable[[bytes], bytes], *, checksum: bool = True) -> None:
        self.harm = harm
        self.checksum = checksum
        self.sent = 0
        self._digest = ""

    async def archived(self, exchange: str, path: str, reply: Reply) -> Reply:
        if not isinstance(reply.body, bytes) or reply.status != 200:
            return reply
        if path.endswith(".CHECKSUM"):
            body = (await self.archive.answer(path.removesuffix(".CHECKSUM"), {}) or reply).body if self.checksum else b""
            assert isinstance(body, bytes)
            digest = sha256(self.harm(body)).hexdigest() if self.checksum else "0" * 64
            return reply._replace(body=f"{digest}  a-file\n".encode())
        self.sent += 1
        return reply._replace(body=self.harm(reply.body))

    archive: Archives


def in_the_middle(body: bytes) -> bytes:
    place = len(body) // 2
    return body[:place] + bytes([body[place] ^ 0xFF]) + body[place + 1 :]


def renamed_to_another_symbol(body: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(body)) as packed:
        text = packed.read(packed.namelist()[0])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(zipfile.ZipInfo("ETHUSDT-trades-2026-07-25.csv"), text)
    return buffer.getvalue()


def without_the_last_hours(body: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(body)) as packed:
        (name,) = packed.namelist()
        lines = packed.read(name).splitlines(keepends=True)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(zipfile.ZipInfo(name), b"".join(lines[: len(lines) * 3 // 4]))
    return buffer.getvalue()


HARMED: list[tuple[Callable[[bytes], bytes], bool, str]] = [
    (in_the_middle, True, "incomplete or damaged"),
    (lambda body: body[: len(body) // 2], True, "incomplete or damaged"),
    (lambda body: body, False, "its SHA-256 is"),
    (renamed_to_another_symbol, True, "which is not of BTCUSDT"),
]


@pytest.mark.parametrize(("harm", "checksum", "reason"), HARMED)
async def test_a_damaged_file_is_logged_in_one_line_and_its_day_is_imported_over_rest_where_ids_count(
    harm: Callable[[bytes], bytes], checksum: bool, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, damage = ManualClock(MIDNIGHT), Damage(harm, checksum=checksum)
    async with simulated(SPOT, clock, damage) as simulator, world(SPOT, tmp_path, simulator, clock, now=MIDNIGHT + MINUTE) as one:
        damage.archive = simulator.archive("binance")
        await one.live(MIDNIGHT + MINUTE, MIDNIGHT + 3 * MINUTE)
        await one.bring_in(one.history(3 * HOUR))
        (line,) = [str(vars(record)["wadm_fields"]["error"]) for record in caplog.records if record.getMessage() == "history.damaged"]
        assert reason in line
        assert "\n" not in line
        assert damage.sent == 1
        assert one.health.counts["history.damaged"] == 1
        checked = Window(MIDNIGHT - 3 * HOUR, MIDNIGHT + 2 * MINUTE)
        await one.compare(checked)
        assert await one.covered(checked) == 1
        assert await one.store.pieces(SPOT, Window(MIDNIGHT - DAY, MIDNIGHT - 4 * HOUR)) == []


@pytest.mark.parametrize("instrument", [BYBIT_SPOT, BYBIT_LINEAR], ids=str)
async def test_nothing_is_imported_from_a_damaged_file_without_another_source(instrument: Instrument, tmp_path: Path) -> None:
    clock, damage = ManualClock(MIDNIGHT), Damage(lambda body: body[: len(body) - 300])
    async with simulated(instrument, clock, damage) as simulator, world(instrument, tmp_path, simulator, clock, now=MIDNIGHT + 1) as one:
        await one.live(MIDNIGHT + 1, MIDNIGHT + 2 * MINUTE)
        await one.bring_in(one.history(3 * HOUR), repair=False)
        assert one.health.counts["history.damaged"] == 1
        assert await one.store.pieces(instrument, Window(0, MIDNIGHT + DAY)) == []
        assert await one.covered(Window(MIDNIGHT - DAY, MIDNIGHT)) == 0
        detail = one.health.parts[f"{instrument.exchange} {instrument.market} history"].detail
        assert f"the archive has no file of {date(2026, 7, 25)} yet" in detail


async def test_a_day_without_an_archive_file_is_imported_over_rest(tmp_path: Path) -> None:
    clock, faults = ManualClock(MIDNIGHT), Faults()
    faults.archive_delay = DAY
    async with simulated(SPOT, clock, faults) as simulator, world(SPOT, tmp_path, simulator, clock, now=MIDNIGHT + MINUTE) as one:
        await one.live(MIDNIGHT + MINUTE, MIDNIGHT + 3 * MINUTE)
        await one.bring_in(one.history(3 * HOUR))
        await one.compare(Window(MIDNIGHT - 3 * HOUR, MIDNIGHT + 2 * MINUTE))
        assert one.health.counts["history.pages"] > 2
        assert one.health.counts["history.damaged"] == 0


@pytest.mark.parametrize("instrument", EVERY, ids=str)
async def test_an_import_killed_fifty_times_gives_the_same_data_and_downloads_each_file_once(
    instrument: Instrument, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, clock = random.Random(9), ManualClock(MIDNIGHT)
    finished, download = Counter[str](), Downloads.download

    async def counted(self: Downloads, venue: Venue, path: str, *arguments: Any, **options: Any) -> bool:
        found = await download(self, venue, path, *arguments, **options)
        finished[path] += found
        return found

    monkeypatch.setattr(Downloads, "download", counted)
    async with simulated(instrument, clock, activity=0.01 if instrument.exchange == "binance" else 0.05) as simulator:
        async with world(instrument, tmp_path, simulator, clock, now=MIDNIGHT + MINUTE) as one:
            await one.live(MIDNIGHT + MINUTE, MIDNIGHT + 10 * MINUTE)
            await one.save()
            # Made beforehand, so that the kills hit downloads and imports and not the simulator's work.
            archive, day = simulator.archive(instrument.exchange), date(2026, 7, 25)
            form = find_exchange(instrument.exchange).traits[instrument.market].archive
            assert form is not None
            await archive.answer(form.path("BTCUSDT", day), {})
        for _ in range(50):
            async with world(instrument, tmp_path, simulator, clock, now=MIDNIGHT + 10 * MINUTE) as one:
                await one.restart()
                with anyio.move_on_after(chance.random() * 0.2):
                    await one.bring_in(one.history(3 * HOUR))
        async with world(instrument, tmp_path, simulator, clock, now=MIDNIGHT + 10 * MINUTE) as one:
            await one.restart()
            await one.bring_in(one.history(3 * HOUR))
            end = MIDNIGHT + (9 * MINUTE if one.has_gapless_ids else 0)
            await one.compare(Window(MIDNIGHT - 3 * HOUR, end))
            assert await one.covered(Window(MIDNIGHT - 3 * HOUR, end)) == 1
            assert max(finished.values()) == 1
            assert not (tmp_path / "archive" / f"{instrument.exchange}-{instrument.market}").exists()


async def test_an_import_killed_once_its_file_is_verified_downloads_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, unlink, download = ManualClock(MIDNIGHT), anyio.Path.unlink, Downloads.download
    async with (
        simulated(SPOT, clock, activity=0.01) as simulator,
        world(SPOT, tmp_path, simulator, clock, now=MIDNIGHT + MINUTE) as one,
    ):
        await one.live(MIDNIGHT + MINUTE, MIDNIGHT + 2 * MINUTE)
        with anyio.CancelScope() as scope:

            async def killed(self: anyio.Path, missing_ok: bool = False) -> None:
                await unlink(self, missing_ok)
                if self.suffix == ".CHECKSUM":
                    scope.cancel()

            monkeypatch.setattr(anyio.Path, "unlink", killed)
            await one.bring_in(one.history(3 * HOUR))
        assert scope.cancelled_caught
        monkeypatch.setattr(anyio.Path, "unlink", unlink)
        downloads: list[str] = []

        async def noted(self: Downloads, venue: Venue, path: str, *arguments: Any, **options: Any) -> bool:
            downloads.append(path)
            return await download(self, venue, path, *arguments, **options)

        monkeypatch.setattr(Downloads, "download", noted)
        await one.bring_in(one.history(3 * HOUR))
        assert not downloads
        await one.compare(Window(MIDNIGHT - 3 * HOUR, MIDNIGHT))


@pytest.mark.parametrize("instrument", [SPOT, LINEAR, BYBIT_LINEAR], ids=str)
async def test_an_import_stores_single_trades_if_the_settings_ask_for_them(instrument: Instrument, tmp_path: Path) -> None:
    clock = ManualClock(MIDNIGHT)
    async with (
        simulated(instrument, clock, activity=0.01) as simulator,
        world(instrument, tmp_path, simulator, clock, now=MIDNIGHT - HOUR) as one,
    ):
        start = MIDNIGHT + 20 * MINUTE if one.has_gapless_ids else MIDNIGHT - HOUR
        await one.live(start, start + 5 * MINUTE)
        one.recorder.connection_lost(1, [instrument], GapReason.DISCONNECT, "")
        one.clock.at = max(one.clock.at, MIDNIGHT + MINUTE)
        await one.bring_in(one.history(3 * HOUR, raw=True), repair=one.has_gapless_ids)
        window = Window(MIDNIGHT - 3 * HOUR, MIDNIGHT + 20 * MINUTE if one.has_gapless_ids else MIDNIGHT)
        stored = await one.store.trades(instrument, window, limit=100_000)
        assert sorted(trade.trade_id for trade in stored) == sorted(trade.trade_id for trade in one.traded(window.start, window.end))
        await one.compare(window)
        spans = await one.store.spans(instrument, window)
        assert all(span.raw for span in spans)
        assert judge(spans, window, one.clock.at, raw=True).millionths == 1_000_000


async def test_without_an_archive_a_finished_day_comes_from_pages_where_ids_count(tmp_path: Path) -> None:
    class WithoutArchive(Binance):
        traits = MappingProxyType({market: replace(traits, archive=None) for market, traits in Binance.traits.items()})

    clock = ManualClock(MIDNIGHT)
    async with (
        simulated(SPOT, clock, activity=0.01) as simulator,
        world(SPOT, tmp_path, simulator, clock, now=MIDNIGHT + MINUTE) as one,
    ):
        one.venue = replace(one.venue, exchange=WithoutArchive(), archive_url="")
        await one.live(MIDNIGHT + MINUTE, MIDNIGHT + 5 * MINUTE)
        await one.bring_in(one.history(3 * HOUR))
        window = Window(MIDNIGHT - 3 * HOUR, MIDNIGHT + 5 * MINUTE)
        await one.compare(window)
        assert await one.covered(window) == 1
        assert not simulator.archive("binance").asked


async def test_without_archive_and_gapless_ids_no_history_is_imported(tmp_path: Path) -> None:
    class WithoutArchive(Bybit):
        traits = MappingProxyType({market: replace(traits, archive=None) for market, traits in Bybit.traits.items()})

    clock = ManualClock(MIDNIGHT)
    async with simulated(BYBIT_SPOT, clock) as simulator, world(BYBIT_SPOT, tmp_path, simulator, clock, now=MIDNIGHT + MINUTE) as one:
        one.venue = replace(one.venue, exchange=WithoutArchive(), archive_url="")
        await one.live(MIDNIGHT + MINUTE, MIDNIGHT + 5 * MINUTE)
        await one.bring_in(one.history(3 * HOUR), repair=False)
        assert await one.covered(Window(MIDNIGHT - 3 * HOUR, MIDNIGHT)) == 0
        assert one.health.parts["bybit spot history"].detail == ""


async def test_a_source_without_the_instruments_own_ids_gives_figures_without_single_trades(tmp_path: Path) -> None:
    clock = ManualClock(MIDNIGHT)
    async with simulated(BYBIT_SPOT, clock) as simulator, world(BYBIT_SPOT, tmp_path, simulator, clock, now=MIDNIGHT - HOUR) as one:
        await one.live(MIDNIGHT - HOUR, MIDNIGHT - 50 * MINUTE)
        one.clock.at = MIDNIGHT + MINUTE
        await one.bring_in(one.history(3 * HOUR, raw=True), repair=False)
        window = Window(MIDNIGHT - 3 * HOUR, MIDNIGHT - 2 * HOUR)
        assert await one.store.trades(BYBIT_SPOT, window, limit=10) == []
        assert await one.covered(window) == 1
        assert judge(await one.store.spans(BYBIT_SPOT, window), window, one.clock.at, raw=True).millionths == 0


@pytest.mark.parametrize(("instrument", "raw"), [(BYBIT_SPOT, False), (BYBIT_LINEAR, False), (BYBIT_LINEAR, True)], ids=str)
async def test_trades_that_the_connections_lost_unseen_come_with_the_file_of_their_day(
    instrument: Instrument, raw: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is lost in a silence here, and so few trades have long pauses.
    monkeypatch.setattr(by_connection, "SHORTEST_SILENCE", HOUR)
    clock = ManualClock(MIDNIGHT)
    window, minute = Window(MIDNIGHT - 50 * MINUTE, MIDNIGHT), MIDNIGHT - 30 * MINUTE
    async with (
        simulated(instrument, clock, activity=0.05) as simulator,
        world(instrument, tmp_path, simulator, clock, now=MIDNIGHT - HOUR) as one,
    ):
        lost = {trade.trade_id for trade in one.traded(minute, minute + MINUTE)[::3]}
        await one.live(MIDNIGHT - HOUR, MIDNIGHT + MINUTE, lost=lost)
        await one.save()
        assert await one.covered(window) == 1
        one.recorder.mark_differing(instrument, [minute])
        await one.save()
        assert await one.covered(window) == pytest.approx(49 / 50)
    async with (
        simulated(instrument, clock, activity=0.05) as simulator,
        world(instrument, tmp_path, simulator, clock, now=MIDNIGHT + HOUR) as one,
    ):
        await one.restart()
        await one.bring_in(one.history(2 * HOUR, raw=raw), repair=False)
        await one.compare(window)
        assert await one.covered(window) == 1
        stored = {trade.trade_id for trade in await one.store.trades(instrument, Window(minute, minute + MINUTE), limit=10_000)}
        assert lost <= stored if raw else lost.isdisjoint(stored)
        spans = await one.store.spans(instrument, window)
        assert (judge(spans, Window(minute, minute + MINUTE), clock.at, raw=True).millionths == 1_000_000) is raw


async def test_a_file_of_an_earlier_process_stays_until_the_missing_stretches_are_known(tmp_path: Path) -> None:
    clock = ManualClock(MIDNIGHT)
    async with simulated(BYBIT_SPOT, clock) as simulator, world(BYBIT_SPOT, tmp_path, simulator, clock, now=MIDNIGHT + MINUTE) as one:
        leftover = tmp_path / "archive" / "bybit-spot" / "BTCUSDT_2026-07-25.csv.gz.new.part"
        leftover.parent.mkdir(parents=True)
        leftover.write_bytes(b"half of it")
        history = one.history(3 * HOUR)
        with anyio.move_on_after(0.2):
            await history.run()
        assert leftover.exists()
        assert not history.idle.is_set()
        await one.live(MIDNIGHT + MINUTE, MIDNIGHT + 2 * MINUTE)
        clock.at = MIDNIGHT + DAY - HOUR
        await one.bring_in(one.history(HOUR), repair=False)
        assert not leftover.parent.exists()


@pytest.mark.parametrize(
    ("instrument", "raw"),
    [*((instrument, False) for instrument in EVERY), (LINEAR, True), (BYBIT_LINEAR, True), *((each, False) for each in BEYOND_ASCII)],
    ids=str,
)
async def test_no_row_is_lost_of_a_file_that_is_out_of_order_repeats_rows_and_has_more_columns(
    instrument: Instrument, raw: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_order, "RUN_ROWS", 500)
    clock, faults = ManualClock(MIDNIGHT), Faults()
    faults.archive_rows = ArchiveFaults(unsorted=True, repeated_every=20, extra_column=True, exponents=True)
    faults.empty_every = 9
    activity = (0.004 if instrument.exchange == "binance" else 0.01) * (1 if instrument in EVERY else 12)
    async with (
        simulated(instrument, clock, faults, activity=activity) as simulator,
        world(instrument, tmp_path, simulator, clock, now=MIDNIGHT + MINUTE) as one,
    ):
        await one.live(MIDNIGHT + MINUTE, MIDNIGHT + 11 * MINUTE)
        await one.bring_in(one.history(DAY, raw=raw), repair=one.has_gapless_ids)
        window = Window(MIDNIGHT - DAY, MIDNIGHT)
        await one.compare(window)
        assert await one.covered(window) == 1
        assert one.health.counts["history.damaged"] == 0
        assert one.recorded.coverage.missing() == [] or not one.has_gapless_ids
        if raw and instrument is not BYBIT_SPOT:
            stored = await one.store.trades(instrument, window, limit=100_000)
            assert sorted(each.trade_id for each in stored) == sorted(each.trade_id for each in one.traded(window.start, window.end))


def with_a_line_that_cannot_be_read(body: bytes) -> bytes:
    """The price of a row in the middle of the file is no number."""
    zipped = body[:2] == b"PK"
    if zipped:
        with zipfile.ZipFile(io.BytesIO(body)) as packed:
            text = packed.read(packed.namelist()[0])
    else:
        text = gzip.decompress(body)
    lines = text.decode().splitlines(keepends=True)
    place = len(lines) // 2
    texts = lines[place].split(",")
    texts[2 if len(texts) == 6 else 4 if len(texts) > 8 else 1] = "-"
    lines[place] = ",".join(texts)
    text = "".join(lines).encode()
    if not zipped:
        return gzip.compress(text, mtime=0)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(zipfile.ZipInfo("BTCUSDT-of-that-day.csv"), text)
    return buffer.getvalue()


@pytest.mark.parametrize("instrument", EVERY, ids=str)
async def test_one_line_that_cannot_be_read_costs_its_own_trade_or_minute_and_not_its_file(instrument: Instrument, tmp_path: Path) -> None:
    clock, faults = ManualClock(MIDNIGHT), Damage(with_a_line_that_cannot_be_read)
    activity = 0.004 if instrument.exchange == "binance" else 0.02
    async with (
        simulated(instrument, clock, faults, activity=activity) as simulator,
        world(instrument, tmp_path, simulator, clock, now=MIDNIGHT + MINUTE) as one,
    ):
        faults.archive = simulator.archive(instrument.exchange)
        await one.live(MIDNIGHT + MINUTE, MIDNIGHT + 11 * MINUTE)
        await one.bring_in(one.history(DAY), repair=False)
        assert one.health.counts["history.damaged"] == 0
        assert one.health.counts["trades.unreadable"] >= 1
        window = Window(MIDNIGHT - DAY, MIDNIGHT)
        gaps = judge(await one.store.spans(instrument, window), window, one.clock.at).gaps
        if one.has_gapless_ids:
            # REST has the trade in readable form.
            ((_, _, missing, _),) = gaps
            assert missing == 1
            await one.bring_in(one.history(DAY))
            assert await one.covered(window) == 1
            await one.compare(window)
        else:
            ((start, end, _, reason),) = gaps
            assert reason is GapReason.UNREADABLE
            assert 0 < end - start <= 20 * MINUTE
            await one.compare(Window(window.start, start))
            await one.compare(Window(end, window.end))


class NoHistory(Faults):
    """REST has no trades before a time."""

    def __init__(self, since: int) -> None:
        self.since = since
        self.starts: list[int] = []

    async def requested(self, exchange: str, path: str, params: Mapping[str, str]) -> Reply | None:
        if "startTime" in params and int(params["startTime"]) < self.since:
            self.starts.append(int(params["startTime"]))
            return Reply(200, [])
        return None


async def test_a_market_without_trades_is_asked_in_chunks_that_double_and_a_later_job_for_what_was_not_asked(tmp_path: Path) -> None:
    now = MIDNIGHT + 20 * HOUR
    clock, faults = ManualClock(MIDNIGHT), NoHistory(now)
    async with simulated(SPOT, clock, faults) as simulator, world(SPOT, tmp_path, simulator, clock, now=now) as one:
        await one.live(now, now + MINUTE)
        began = one.recorded.coverage.covered[0].start
        history = one.history(10 * HOUR)
        await one.bring_in(history, repair=False)
        oldest = (one.clock.at - 10 * HOUR) // MINUTE * MINUTE - 20 * MINUTE
        assert faults.starts == [(began - hours * HOUR) // MINUTE * MINUTE for hours in (1, 2, 4, 8)] + [oldest]
        assert history._steps() == []
        faults.starts.clear()
        history.requested.append((lambda _: True, Window(MIDNIGHT + HOUR, now)))
        history.idle = anyio.Event()
        await one.bring_in(history, repair=False)
        # Of this day only the time before the first job's window was not asked yet.
        assert faults.starts[0] == oldest - HOUR
        assert min(faults.starts) == MIDNIGHT + HOUR
        assert history._steps() == []


async def test_an_imported_day_is_not_downloaded_again_for_hours_that_its_file_does_not_have(tmp_path: Path) -> None:
    clock, faults = ManualClock(MIDNIGHT), Damage(without_the_last_hours)
    async with simulated(LINEAR, clock, faults) as simulator, world(LINEAR, tmp_path, simulator, clock, now=MIDNIGHT + 3 * DAY) as one:
        faults.archive = simulator.archive("binance")
        await one.live(MIDNIGHT + 3 * DAY, MIDNIGHT + 3 * DAY + 2 * MINUTE)
        history = one.history(3 * DAY)
        await one.bring_in(history, repair=False)
        sent = faults.sent
        assert sent == 4
        history._clock = Clock(clock.now, lambda: anyio.current_time() + 3_600)
        await one.bring_in(history, repair=False)
        assert faults.sent == sent


async def test_history_waits_with_one_line_in_health_where_the_disk_is_kept_for_the_journal(tmp_path: Path) -> None:
    clock = ManualClock(MIDNIGHT)
    async with simulated(LINEAR, clock, activity=0.01) as simulator, world(LINEAR, tmp_path, simulator, clock, now=MIDNIGHT + MINUTE) as w:
        await w.live(MIDNIGHT + MINUTE, MIDNIGHT + 3 * MINUTE)
        w.recorded.tape.settled_until = MIDNIGHT + MINUTE
        history = w.history(DAY)
        history._archive._reserve = DiskReserve(tmp_path, 1 << 60)
        steps = [step for step in history._steps() if step.from_archive]
        assert steps
        with anyio.move_on_after(5):
            await history._try(steps[0])
        history._steps()
        detail = w.health.parts["binance linear history"].detail
        assert re.search(
            r"waits: only [0-9,]+ MB are free on the disk of .*, and 1,152,921,504,607 MB of it are kept for the journal", detail
        )
        assert not list(tmp_path.rglob("*.part"))
