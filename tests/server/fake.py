"""A runtime that collects nothing: its tape is filled by hand, its store is empty, and it counts how often it was entered."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import anyio
from mcp.client import Client
from mcp.client.sse import sse_client
from mcp.server.context import CallNext, HandlerResult, ServerMiddleware, ServerRequestContext

from tests.market import BYBIT, NOON, SPOT, ManualClock, listing, trade
from wadm_mcp.coverage.expired import Expired
from wadm_mcp.coverage.spans import Basis, Span
from wadm_mcp.errors import WadmError
from wadm_mcp.health import Health, State
from wadm_mcp.model import MINUTE, Instrument, Listing, Retention, Timeframe, Trade, Window
from wadm_mcp.queries.admission import Admission
from wadm_mcp.queries.view import View
from wadm_mcp.queries.watches import Watches
from wadm_mcp.server.server import WadmServer, build_server
from wadm_mcp.settings import Settings
from wadm_mcp.storage.cache import InProcessCache
from wadm_mcp.storage.cached import CachedAnswers
from wadm_mcp.storage.store import (
    CommitBarrier,
    Derived,
    DirtyMinute,
    OrderFlow,
    PartialFootprint,
    StoredFootprint,
    StoreState,
    StoreVersion,
    no_barrier,
)
from wadm_mcp.tape import Tape
from wadm_mcp.tracking import Tracking
from wadm_mcp.web.app import build_app
from wadm_mcp.web.serve import serve_http

ERAS = ("legacy", "2026-07-28")
TRADES = 150


class EmptyStore:
    """A store without rows. Where `error` is set, every read after the first `spared` ones raises it."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.spared = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        return None

    @property
    def version(self) -> StoreVersion:
        return StoreVersion("empty", 0)

    async def renew_identity(self) -> None:
        return None

    async def check(self) -> None:
        return None

    async def write(
        self,
        trades: Sequence[Trade],
        spans: Sequence[tuple[Instrument, Span]],
        pieces: Sequence[PartialFootprint] = (),
        *,
        barrier: CommitBarrier = no_barrier,
    ) -> None:
        raise NotImplementedError

    async def pieces(self, instrument: Instrument, window: Window) -> list[PartialFootprint]:
        return []

    async def count(self, instrument: Instrument, window: Window) -> int:
        return 0

    async def derive(self, derived: Derived) -> None:
        raise NotImplementedError

    async def dirty_minutes(self) -> list[DirtyMinute]:
        return []

    async def save_listings(self, listings: Sequence[Listing]) -> None:
        raise NotImplementedError

    async def track(self, instruments: Sequence[Instrument]) -> None:
        raise NotImplementedError

    async def untrack(self, instruments: Sequence[Instrument]) -> None:
        raise NotImplementedError

    async def tracked(self) -> list[Instrument]:
        return []

    async def listings(self) -> list[Listing]:
        return []

    async def trades(
        self,
        instrument: Instrument,
        window: Window,
        *,
        after: tuple[int, int, int, str] | None = None,
        limit: int,
        newest: bool = False,
    ) -> list[Trade]:
        self._check()
        return []

    async def footprints(
        self, instrument: Instrument, timeframe: Timeframe, window: Window, *, max_bytes: int | None = None
    ) -> list[StoredFootprint]:
        self._check()
        return []

    async def order_flow(self, instrument: Instrument, timeframe: Timeframe, window: Window) -> list[OrderFlow]:
        self._check()
        return []

    async def spans(self, instrument: Instrument, window: Window) -> list[Span]:
        self._check()
        return []

    async def expire(self, now: int | None, retention: Retention, latest: int | None = None) -> int:
        return 0

    async def expired(self, instrument: Instrument) -> Expired:
        return Expired()

    async def acquire_leases(self, owner: str, instruments: Sequence[Instrument], seconds: float) -> set[Instrument]:
        return set(instruments)

    async def release_leases(self, owner: str) -> None:
        return None

    async def state(self) -> StoreState:
        return StoreState("empty", "memory", 0)

    def _check(self) -> None:
        if self.error is not None and self.spared <= 0:
            raise self.error
        self.spared -= 1


class _ThreeMinutes:
    """Coverage of three minutes, without an open connection."""

    @property
    def spans(self) -> Sequence[Span]:
        return [Span(NOON, NOON + 3 * MINUTE, 1, TRADES, Basis.EXACT)]

    def alive_until(self) -> int | None:
        return None


class FakeRuntime:
    """Follows BTCUSDT on two exchanges; Binance traded every second of the last minutes, every tenth trade a sale."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings).model_copy(update={"WADM_PORT": 0})
        self.watches = Watches()
        self.answers = CachedAnswers(InProcessCache())
        self.admission = Admission()
        self.clock = ManualClock(NOON + 3 * MINUTE)
        self.health = Health(self.clock.now)
        self.health.report("store", State.OK)
        self.store = EmptyStore()
        self.tape = Tape()
        self.tape.mark_listings_attempted()
        self.view = View(self.store, self.tape, self.clock.now, ("spot", "linear"), ("binance", "bybit"))
        self.tracking = Tracking(self.settings, self.store, self.view, self.health, lambda: None)
        self.role = "recording"
        self.entries = 0
        self.exits = 0
        self.error = WadmError("the store is of another schema")
        self.broken = anyio.Event()
        self._trades = 0
        for instrument in (SPOT, BYBIT):
            self.tape.follow(listing(instrument))
            self.health.report(str(instrument), State.OK)
        for second in range(TRADES):
            self.trade(at=NOON + second * 1000, side="SELL" if second % 10 == 0 else "BUY", price=6_000_000 + second % 7)
        self.tape[SPOT].start_recording(_ThreeMinutes())

    async def __aenter__(self) -> Self:
        self.entries += 1
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.exits += 1

    async def failed(self) -> WadmError:
        await self.broken.wait()
        return self.error

    @property
    def followed(self) -> list[Instrument]:
        return [one.instrument for one in self.view.listings]

    def trade(self, *, at: int | None = None, side: str = "BUY", price: int = 6_000_000) -> None:
        """Add a trade to the tape of Binance."""
        self._trades += 1
        new = trade(self._trades, at if at is not None else self.clock.now() - 1, price, 100, side)
        self.tape[SPOT].add([new])
        self.tape[SPOT].pending[new.trade_id] = new


@asynccontextmanager
async def serving(runtime: FakeRuntime) -> AsyncGenerator[tuple[str, WadmServer]]:
    """The runtime served by a real uvicorn on a free port: its base URL and the MCP server."""
    server = build_server(runtime)
    started, urls = anyio.Event(), list[str]()

    def answer(url: str) -> None:
        urls.append(url)
        started.set()

    async def serve() -> None:
        await serve_http(build_app(server, runtime), runtime.settings, on_started=answer)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        with anyio.fail_after(5):
            await started.wait()
        yield urls[0], server
        tasks.cancel_scope.cancel()


def reporting_cancellations(report: Callable[[], object]) -> ServerMiddleware[Any]:
    """Middleware that calls `report` for each tool call that was cancelled before it was answered."""

    async def watch(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        try:
            return await call_next(ctx)
        except anyio.get_cancelled_exc_class():
            if ctx.method == "tools/call":
                report()
            raise

    return watch


def over(transport: str, url: str, era: str, **options: Any) -> Client:
    """An MCP client of a served runtime."""
    return Client(f"{url}/mcp" if transport == "http" else sse_client(f"{url}/sse"), mode=era, **options)  # pyright: ignore[reportArgumentType]
