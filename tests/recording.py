"""A recorder, its rollup and its writer over a real store, for tests of what they do together."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.market import NOON, SPOT, ManualClock, listing
from wadm_mcp.collection.recording.journal import Journal
from wadm_mcp.collection.recording.maintenance import Maintenance
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.collection.recording.rollup import Rollup
from wadm_mcp.collection.recording.writer import Writer
from wadm_mcp.exchanges.exchange import Trades
from wadm_mcp.health import Health
from wadm_mcp.model import DAY, Instrument, Retention, Timeframe, Trade, Window
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import OrderFlow, Store
from wadm_mcp.tape import Tape

RETENTION = Retention(3 * DAY, 30 * DAY, 365 * DAY)
ALWAYS = Window(NOON - 2 * DAY, NOON + 2 * DAY)


class Recording:
    """Recorder, writer, rollup and maintenance over a real store; `write` saves and derives all there is."""

    def __init__(self, store: Store, journal: Journal, clock: ManualClock, instrument: Instrument = SPOT) -> None:
        self.instrument = instrument
        self.store = store
        self.journal = journal
        self.clock = clock
        self.tape = Tape()
        self.health = Health(clock.now)
        self.recorder = Recorder(self.tape, self.health, clock)
        self.rollup = Rollup(store, self.health, clock, RETENTION.trades)
        self.writer = Writer(self.recorder, journal, store, self.health)
        self.maintenance = Maintenance(self.recorder, self.writer, self.rollup, store, self.health, RETENTION, clock)

    async def save(self) -> None:
        """Bring what was traded into the store, and derive nothing of it."""
        await self.writer._journal_all()
        await self.writer.drain()

    async def begin(self) -> None:
        gapless = self.instrument.exchange == "binance"
        await self.maintenance.resume(self.recorder.start(listing(self.instrument), has_gapless_ids=gapless))

    async def trade(self, *trades: Trade) -> None:
        await self.recorder.take(1, Trades(self.instrument, trades, max(self.clock.now(), trades[-1].timestamp)))

    async def write(self) -> None:
        await self.maintenance.flush()

    async def bars(self, timeframe: Timeframe = Timeframe.M1) -> list[OrderFlow]:
        return await self.store.order_flow(self.instrument, timeframe, ALWAYS)


@asynccontextmanager
async def recording(folder: Path, clock: ManualClock | None = None, instrument: Instrument = SPOT) -> AsyncGenerator[Recording]:
    async with SqliteStore(folder / "wadm.sqlite") as store, Journal(folder / "journal", 1 << 30) as journal:
        one = Recording(store, journal, clock or ManualClock(), instrument)
        await one.begin()
        yield one
