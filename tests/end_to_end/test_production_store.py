"""The production store behind the whole process: a real mongod and a real redis-server, stopped and killed while trades come in."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis.asyncio import Redis

from tests.end_to_end.process import Served, resident, serving, until
from tests.market import ManualClock, trade
from tests.recording import RETENTION, Recording
from tests.redis_server import RedisServer, redis_binary
from tests.servers import Mongod, own_mongod
from wadm_mcp.clock import now_ms
from wadm_mcp.collection.recording.journal import Journal
from wadm_mcp.model import HOUR
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.storage.mongo import MongoStore
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Store

pytestmark = pytest.mark.anyio

TICK = 0.05
SOAK = os.environ.get("WADM_SOAK") == "1"
"""`make soak`: at full rate, for as long and as often as a bad day would have it."""
RATE = 2_000 if SOAK else 1_000
AWAY = 60.0 if SOAK else 2.0
KILLS = 10 if SOAK else 2


class Pushed:
    """A market that trades at a steady rate until it is stopped; `count` is how many trades it made."""

    def __init__(self, simulator: Simulator, rate: int) -> None:
        self._simulator = simulator
        self._rate = rate
        self.count = 0

    async def run(self) -> None:
        with anyio.fail_after(20):
            await self._simulator.subscribed("binance", "spot", "BTCUSDT")
        began = time.monotonic()
        while True:
            await anyio.sleep(TICK)
            due = int((time.monotonic() - began) * self._rate) - self.count
            now = now_ms()
            trades = [(now, f"{61_000 + number % 50}.5", "0.125", "BUY" if number % 3 else "SELL") for number in range(due)]
            await self._simulator.push("binance", "spot", "BTCUSDT", trades)
            self.count += due


@asynccontextmanager
async def trading(folder: Path, rate: int, **settings: str) -> AsyncGenerator[tuple[Served, Pushed, Any]]:
    async with Simulator(manual=True) as simulator:
        urls = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
        async with (
            serving(folder, "serve", settings={**urls, "WADM_EXCHANGES": "binance", **settings}) as served,
            anyio.create_task_group() as tasks,
        ):
            pushed = Pushed(simulator, rate)
            scope = anyio.CancelScope()

            async def push() -> None:
                with scope:
                    await pushed.run()

            tasks.start_soon(push)
            yield served, pushed, scope.cancel
            tasks.cancel_scope.cancel()


def hour_now() -> int:
    """The start of the hour. A test asks once, since the next one may begin meanwhile."""
    return (now := now_ms()) - now % HOUR


async def preloaded(store: Store, folder: Path, hour: int) -> int:
    """Eight closed hours before `hour`, so that a day's window has something to cache. Returns their number of trades."""
    start = hour - 9 * HOUR
    clock, count = ManualClock(start), 0
    async with store, Journal(folder / "preloading", 1 << 30) as journal:
        one = Recording(store, journal, clock)
        await one.begin()
        while clock.now() < start + 8 * HOUR:
            count += 1
            await one.trade(trade(count, clock.now(), 6_000_000 + count % 900))
            clock.pass_seconds(20)
            if count % 200 == 0:
                await one.write()
        clock.pass_minutes(2)
        await one.write()
    return count


async def closed_hours(served: Served, hour: int) -> dict[str, Any]:
    """A profile of the hours preloaded before `hour`, once the store answers."""
    start = hour - 8 * HOUR
    question = {"symbol": "BTCUSDT", "exchange": "binance", "start": start, "end": start + 6 * HOUR, "detail": "full"}
    with anyio.fail_after(30):
        while (answer := await served.get("/api/volume-profile", **question))["coverage"]["gaps"]:
            assert [gap[3] for gap in answer["coverage"]["gaps"]] == ["store_unreachable"]
            await anyio.sleep(0.1)
    assert answer["trade_count"] > 500
    del answer["coverage"]["newest_trade_at"], answer["coverage"]["lag_ms"]
    return answer


async def hits(redis: RedisServer) -> int:
    """Cache hits of Redis since it was started."""
    async with Redis.from_url(redis.url) as client:
        return (await client.info("stats"))["keyspace_hits"]


async def trade_count(served: Served) -> int:
    answer = await served.get("/api/volume-profile", symbol="BTCUSDT", window="15m", detail="brief")
    return answer["trade_count"]


async def recorded_all(served: Served, pushed: Pushed) -> None:
    async def whole() -> bool:
        flow = await served.get("/api/order-flow", symbol="BTCUSDT", window="15m", timeframe="1m")
        ours = sum(row[11] for row in flow["bars"]["rows"])
        assert ours <= pushed.count
        return ours == pushed.count

    await until(whole, within=60)


async def status(served: Served) -> int:
    return (await served.client.get("/health")).status_code


async def stored(server: Mongod, name: str = "wadm") -> tuple[int, int]:
    """The number of trades in the database, and of their distinct ids."""
    import pymongo
    from anyio import to_thread

    def count() -> tuple[int, int]:
        with pymongo.MongoClient[dict[str, Any]](server.url, tz_aware=True) as client:
            trades = client[name]["trades"]
            return trades.count_documents({}), len(trades.distinct("trade_id"))

    return await to_thread.run_sync(count)


async def test_a_mongod_outage_under_load_loses_no_trade_and_shows_in_health(tmp_path: Path) -> None:
    with own_mongod() as mongod:
        async with trading(tmp_path / "data", RATE, MONGODB_URL=f"{mongod.url}/wadm") as (served, pushed, stop):
            await until(lambda: _is(status(served), 200))
            await until(lambda: _over(trade_count(served), 500))
            mongod.stop()
            await until(lambda: _is(status(served), 503))
            answer = await served.get("/api/order-flow", symbol="BTCUSDT", window="15m", timeframe="1m")
            assert answer["bars"]["rows"][-1][11] > 0
            assert answer["coverage"]["gaps"][0][3] == "store_unreachable"
            settled = resident(served)
            with anyio.move_on_after(AWAY):
                while True:
                    assert await status(served) == 503
                    for path in ("/api/order-flow", "/api/volume-profile", "/api/trades"):
                        answer = await served.get(path, symbol="BTCUSDT", window="15m")
                        assert answer["coverage"]["gaps"][0][3] == "store_unreachable"
                    assert resident(served) - settled < 100 * 1024 * 1024
                    await anyio.sleep(0.5)
            mongod.start()
            await until(lambda: _is(status(served), 200), within=60)
            stop()
            await recorded_all(served, pushed)
            assert await served.stop() == 0
            assert "Traceback" not in served.stderr
            assert await stored(mongod) == (pushed.count, pushed.count)


async def test_killed_servers_lose_no_trade_and_double_none(tmp_path: Path) -> None:
    with own_mongod() as mongod, RedisServer(redis_binary()) as redis:
        before = await preloaded(MongoStore(f"{mongod.url}/wadm", RETENTION), tmp_path, hour := hour_now())
        servers = {"MONGODB_URL": f"{mongod.url}/wadm", "REDIS_URL": redis.url}
        async with trading(tmp_path / "data", RATE, **servers) as (served, pushed, stop):
            await until(lambda: _over(trade_count(served), 500))
            past = await closed_hours(served, hour)
            for _ in range(KILLS):
                before_kill = (await served.get("/api/volume-profile", symbol="BTCUSDT", window="15m", detail="brief"))["trade_count"]
                mongod.kill()
                redis.kill()
                redis.start()
                mongod.start()
                await until(lambda least=before_kill: _over(trade_count(served), least), within=60)
                assert await closed_hours(served, hour) == past
            stop()
            await recorded_all(served, pushed)
            assert await closed_hours(served, hour) == past
            assert await hits(redis) > 0
            assert await served.stop() == 0
            assert "Traceback" not in served.stderr
            assert await stored(mongod) == (pushed.count + before, pushed.count + before)


async def test_a_stop_during_a_mongod_outage_keeps_the_trades_in_the_journal_and_the_next_start_stores_them(tmp_path: Path) -> None:
    with own_mongod() as mongod:
        async with trading(tmp_path / "data", 500, MONGODB_URL=f"{mongod.url}/wadm") as (served, pushed, stop):
            await until(lambda: _over(trade_count(served), 200))
            mongod.kill()
            await until(lambda: _is(status(served), 503))
            before = pushed.count
            await until(lambda: _true(pushed.count > before + 500))
            stop()
            await anyio.sleep(1)
            served.process.send_signal(signal.SIGTERM)
            with anyio.fail_after(10):
                assert await served.process.wait() == 0
        mongod.start()
        async with trading(tmp_path / "data", 1, MONGODB_URL=f"{mongod.url}/wadm") as (again, _, stop):
            stop()

            async def all_stored() -> bool:
                return await stored(mongod) == (pushed.count, pushed.count)

            await until(all_stored)
            assert await again.stop() == 0


async def test_of_two_processes_on_one_database_one_records_and_the_other_takes_over_when_it_is_killed(tmp_path: Path) -> None:
    with own_mongod() as mongod:
        database = f"{mongod.url}/wadm"
        async with trading(tmp_path / "data", 100, MONGODB_URL=database) as (first, pushed, stop):
            await until(lambda: _over(trade_count(first), 100))
            urls = {name: value for name, value in first.settings.items() if name.startswith("WADM_")}
            async with serving(tmp_path / "other", "serve", settings={**urls, "MONGODB_URL": database}) as second:
                assert (await second.client.get("/health")).json()["role"] in ("starting", "standby")
                seen = await trade_count(first)
                await until(lambda: _over(trade_count(second), seen))
                await until(lambda: _is(status(second), 200))
                assert (await second.get("/health"))["role"] == "standby"
                first.process.kill()

                async def took_over() -> bool:
                    return (await second.client.get("/health")).json()["role"] == "recording"

                await until(took_over, within=12)
                await until(lambda: _is(status(second), 200))
                before = await trade_count(second)
                await until(lambda: _over(trade_count(second), before))
                stop()
                count = 0

                async def quiet() -> bool:
                    nonlocal count
                    last, count = count, await trade_count(second)
                    return count == last

                async def all_stored() -> bool:
                    return await stored(mongod) == (count, count)

                await until(quiet, every=1.5)
                # What a busy database does not store before the stop stays in the journal for the next start.
                await until(all_stored)
                assert await second.stop() == 0
                assert await stored(mongod) == (count, count)
                assert count <= pushed.count


async def test_answers_continue_without_redis_and_health_shows_its_outage(tmp_path: Path) -> None:
    with RedisServer(redis_binary()) as redis:
        (tmp_path / "data").mkdir()
        await preloaded(SqliteStore(tmp_path / "data" / "wadm.sqlite"), tmp_path, hour := hour_now())
        async with trading(tmp_path / "data", RATE if SOAK else 100, REDIS_URL=redis.url) as (served, pushed, stop):
            await until(lambda: _over(trade_count(served), 100))
            assert (await served.get("/health"))["parts"]["cache"]["state"] == "ok"
            past = await closed_hours(served, hour)
            assert await closed_hours(served, hour) == past
            assert await hits(redis) > 0
            settled = resident(served)
            redis.kill()

            async def down() -> bool:
                health = await served.get("/health")
                return health["parts"]["cache"]["state"] == "down"

            await until(down)
            with anyio.move_on_after(AWAY):
                while True:
                    assert await status(served) == 200
                    assert await closed_hours(served, hour) == past
                    assert resident(served) - settled < 100 * 1024 * 1024
                    await anyio.sleep(0.2)
            meanwhile = pushed.count
            await until(lambda: _over(trade_count(served), meanwhile))
            redis.start()

            async def back() -> bool:
                return (await served.get("/health"))["parts"]["cache"]["state"] == "ok"

            await until(back)
            assert await closed_hours(served, hour) == past
            assert await closed_hours(served, hour) == past
            assert await hits(redis) > 0
            stop()
            await recorded_all(served, pushed)
            assert await served.stop() == 0


async def _is(value: Any, wanted: object) -> bool:
    return await value == wanted


async def _over(value: Any, least: int) -> bool:
    return await value > least


async def _true(value: bool) -> bool:
    return value
