"""What is specific to MongoDB: documents as other programs read them, indexes and TTLs, and failures of the server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import anyio.abc
import msgspec
import pymongo
import pytest
from anyio import to_thread
from bson import Decimal128, Int64, ObjectId
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo.database import Database
from pymongo.errors import OperationFailure

from tests import market
from tests.market import NOON, SPOT, ManualClock
from tests.recording import Recording
from tests.servers import Mongod, free_port, own_mongod
from wadm_mcp.clock import now_ms
from wadm_mcp.collection.recording import journal as journal_module
from wadm_mcp.collection.recording.journal import Journal
from wadm_mcp.errors import SettingError, StoreError, StoreLost, StoreUnreachable
from wadm_mcp.model import DAY, HOUR, MINUTE, SECOND, Instrument, Listing, Retention, Scale, Timeframe, TradeType, Window
from wadm_mcp.storage import mongo
from wadm_mcp.storage.mongo import MongoStore
from wadm_mcp.storage.mongo_indexes import SCHEMA_VERSION, collections
from wadm_mcp.storage.store import Derived, DirtyMinute

from . import BTC, ETH, EVER, T0, every_trade, order_flow, piece, profile, span, stored_footprint, trade
from .conftest import LIVES, Client

pytestmark = pytest.mark.anyio

Plain: TypeAlias = Database[dict[str, Any]]

_number = count()


@pytest.fixture
def plain(mongodb_client: Client) -> Generator[Plain]:
    """A database for one test, read by a plain client."""
    name = f"wadm_test_{next(_number)}"
    yield mongodb_client[name]
    mongodb_client.drop_database(name)


@pytest.fixture
def url(mongodb: str, plain: Plain) -> str:
    return f"{mongodb}/{plain.name}"


@contextmanager
def failing(plain: Plain, *commands: str, collection: str | None = None, times: int = 1, **how: Any) -> Generator[None]:
    """Makes the server fail these commands of the store: `errorCode`, `closeConnection`, `blockConnection` with `blockTimeMS`."""
    data = {"failCommands": list(commands), "appName": "wadm", **how}
    if collection is not None:
        data["namespace"] = f"{plain.name}.{collection}"
    admin = plain.client.admin
    try:
        admin.command({"configureFailPoint": "failCommand", "mode": {"times": times}, "data": data})
    except OperationFailure:
        pytest.skip("this server cannot be made to fail on purpose: start it with --setParameter enableTestCommands=1")
    try:
        yield
    finally:
        admin.command({"configureFailPoint": "failCommand", "mode": "off"})


def some(minute: int = T0, revision: int = 0) -> Derived:
    trades = [trade(1, minute), trade(2, minute + 5, trade_type=TradeType.SELL)]
    return Derived(
        [stored_footprint(minute, trades, revision=revision)],
        [profile(minute, trades, revision=revision)],
        [order_flow(minute, trades, revision=revision)],
    )


async def test_documents_have_the_fields_and_types_of_the_data_model(url: str, plain: Plain) -> None:
    async with MongoStore(url, LIVES) as store:
        await store.write([trade(7, T0 + 1_234, trade_type=TradeType.SELL, fills=2)], [(BTC, span(T0, T0 + 5))])
        await store.derive(some())
    (one,) = plain["trades"].find()
    assert type(one.pop("_id")) is ObjectId
    assert type(one["seq"]) is Int64
    assert type(one["fills"]) is int
    assert one == {
        "symbol": "BTCUSDT",
        "price": Decimal128("61837.63"),
        "quantity": Decimal128("0.01500"),
        "timestamp": datetime.fromtimestamp(T0 // SECOND, UTC).replace(second=1, microsecond=234_000),
        "trade_type": "SELL",
        "trade_id": "7",
        "exchange": "binance",
        "market": "spot",
        "fills": 2,
        "seq": 7,
    }
    (volume,) = plain["volume_profiles"].find()
    fields = "_id symbol timeframe start_time end_time poc vah val nodes exchange market row_size method rule_version revision"
    assert set(volume) == set(fields.split())
    assert volume["end_time"] == datetime.fromtimestamp((T0 + MINUTE) // SECOND, UTC)
    assert volume["poc"] == Decimal128("61837.63")
    assert set(volume["nodes"][0]) == {"price_level", "volume", "buy_volume", "sell_volume", "trade_count"}
    (flow,) = plain["order_flow"].find()
    fields = "_id symbol timeframe timestamp delta cumulative_delta volume buy_volume sell_volume imbalance_ratio exchange market"
    assert set(flow) == {*fields.split(), "open", "high", "low", "close", "trade_count", "min_delta", "max_delta", "revision"}
    assert (flow["volume"], flow["imbalance_ratio"]) == (Decimal128("0.03000"), 0.0)
    (covered,) = plain["coverage"].find()
    assert (covered["symbol"], covered["end"]) == ("BTCUSDT", datetime.fromtimestamp(T0 / SECOND, UTC).replace(microsecond=5_000))


async def test_documents_and_indexes_are_compressed_and_trades_have_no_index_of_ids(url: str, plain: Plain) -> None:
    async with MongoStore(url, LIVES):
        assert set(plain.command("collStats", "trades")["indexSizes"]) == {"instrument_time", "life"}
        for name in collections(LIVES):
            stats = plain.command("collStats", name, indexDetails=True)
            for made in (stats["wiredTiger"], *stats["indexDetails"].values()):
                assert "block_compressor=zstd" in made["creationString"]


async def test_the_database_is_that_of_the_url_or_wadm_with_a_suffix(mongodb: str, mongodb_client: Client) -> None:
    place = mongodb.removeprefix("mongodb://")
    for path, suffix, name in (("", "_demo", "wadm_demo"), ("/wadm_other?appName=x", "", "wadm_other")):
        try:
            async with MongoStore(mongodb + path, LIVES, suffix=suffix) as store:
                state = await store.state()
                assert (state.kind, state.place) == ("mongodb", f"{place}/{name}")
        finally:
            mongodb_client.drop_database(name)


async def test_an_existing_trade_is_ignored_and_any_other_failure_is_raised(url: str, plain: Plain) -> None:
    batch = [trade(seq, T0 + seq) for seq in range(3_000)]
    async with MongoStore(url, LIVES) as store:
        await store.write(batch[:2_000], [])
        await store.write([*batch[1_000:], batch[0], batch[0]], [])
        assert plain["trades"].count_documents({}) == 3_000
        with failing(plain, "insert", errorCode=121), pytest.raises(StoreError, match="refused a request"):
            await store.write(batch[:10], [(BTC, span(T0, T0))])
        with (
            failing(plain, "insert", writeConcernError={"code": 64, "errmsg": "waiting for replication timed out"}),
            pytest.raises(StoreError, match="refused a request"),
        ):
            await store.write(batch[:10], [(BTC, span(T0, T0))])
        assert await store.spans(BTC, EVER) == []


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (14031, StoreUnreachable, "disk of MongoDB .* is full.*free some space"),
        (10107, StoreUnreachable, "accepts no writes now"),
        (91, StoreUnreachable, "accepts no writes now"),
        (50, StoreUnreachable, "too slow"),
        (13, StoreError, "not authorised.*readWrite and dbAdmin on wadm_test"),
        (18, StoreError, "refuses the user or the password.*authSource"),
        (8, StoreError, "refused a request"),
    ],
)
async def test_each_server_error_is_one_clear_line(url: str, plain: Plain, code: int, kind: type[StoreError], says: str) -> None:
    questions: list[tuple[str, Callable[[MongoStore], Awaitable[object]]]] = [
        ("insert", lambda store: store.write([trade(1)], [])),
        ("update", lambda store: store.derive(some())),
        ("find", lambda store: store.dirty_minutes()),
    ]
    for command, ask in questions:
        # A new store each time, as the driver avoids a server for seconds after some of these errors.
        async with MongoStore(url, LIVES) as store:
            with failing(plain, command, errorCode=code), pytest.raises(StoreError, match=says) as error:
                await ask(store)
        assert type(error.value) is kind
        assert plain.name in str(error.value)
        assert "\n" not in str(error.value)


async def test_inserts_that_fail_together_are_one_error(url: str, plain: Plain) -> None:
    batch = [trade(seq, T0 + seq) for seq in range(4_000)]
    async with MongoStore(url, LIVES) as store:
        with failing(plain, "insert", times=4, errorCode=14031), pytest.raises(StoreUnreachable, match="is full"):
            await store.write(batch, [(BTC, span(T0, T0))])
        assert await store.spans(BTC, EVER) == []
        await store.write(batch, [(BTC, span(T0, T0))])
        assert await every_trade(store) == batch


async def test_a_lost_connection_is_named_and_a_retry_succeeds(url: str, plain: Plain) -> None:
    async with MongoStore(url, LIVES) as store:
        with failing(plain, "insert", closeConnection=True), pytest.raises(StoreUnreachable, match="cannot be reached"):
            await store.write([trade(1)], [(BTC, span(T0, T0))])
        assert (await store.dirty_minutes(), await store.spans(BTC, EVER)) == (await store.dirty_minutes(), [])
        await store.write([trade(1)], [(BTC, span(T0, T0))])
        assert await every_trade(store) == [trade(1)]


async def test_an_interrupted_write_has_marked_its_minutes_and_claims_no_coverage(url: str, plain: Plain) -> None:
    batch = [trade(seq, T0 + seq) for seq in range(1_500)]
    async with MongoStore(url, LIVES) as store:
        await store.write(batch[:1_000], [])
        (seen,) = await store.dirty_minutes()
        await store.derive(Derived(settles=[seen]))
        with failing(plain, "update", collection="coverage", errorCode=50), pytest.raises(StoreUnreachable):
            await store.write(batch, [(BTC, span(T0, T0 + 1_499))])
        assert [mark.minute for mark in await store.dirty_minutes()] == [T0]
        assert await store.spans(BTC, EVER) == []
        with failing(plain, "insert", errorCode=50), pytest.raises(StoreUnreachable):
            await store.write([trade(1, T0 + MINUTE)], [])
        assert [mark.minute for mark in await store.dirty_minutes()] == [T0, T0 + MINUTE]
        await store.write(batch, [(BTC, span(T0, T0 + 1_499))])
        assert await every_trade(store) == batch


async def test_clearing_a_mark_while_its_trades_are_being_inserted_leaves_a_mark(url: str, plain: Plain) -> None:
    marks: list[DirtyMinute] = []
    async with MongoStore(url, LIVES) as store, MongoStore(url, LIVES) as other:
        with anyio.fail_after(20), failing(plain, "insert", blockConnection=True, blockTimeMS=500):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.write, [trade(1)], [])
                while not (marks := await other.dirty_minutes()):
                    pass
                await other.derive(Derived(settles=marks))
        assert await every_trade(other) == [trade(1)]
        (grown,) = await other.dirty_minutes()
        assert grown.writes > marks[0].writes


@pytest.mark.parametrize("collection", ["footprints", "bars", "volume_profiles", "order_flow", "marks"])
async def test_an_interrupted_pass_keeps_its_mark_and_is_completed_by_the_next(url: str, plain: Plain, collection: str) -> None:
    async with MongoStore(url, LIVES) as store:
        await store.write([trade(1), trade(2, T0 + 5, trade_type=TradeType.SELL)], [])
        marks = await store.dirty_minutes()
        whole = msgspec.structs.replace(some(), settles=marks)
        command = "delete" if collection == "marks" else "update"
        with failing(plain, command, collection=collection, errorCode=50), pytest.raises(StoreUnreachable):
            await store.derive(whole)
        assert await store.dirty_minutes() == marks
        derived = some(revision=1)
        await store.derive(msgspec.structs.replace(derived, settles=marks))
        assert await store.dirty_minutes() == []
        assert await store.footprints(BTC, Timeframe.M1, EVER) == derived.footprints
        assert await store.order_flow(BTC, Timeframe.M1, EVER) == derived.order_flow
        assert [plain[name].count_documents({}) for name in ("volume_profiles", "order_flow")] == [1, 1]


async def test_documents_are_replaced_only_by_a_newer_revision(url: str, plain: Plain) -> None:
    async with MongoStore(url, LIVES) as store:
        for revision, seen in ((1, 1), (3, 3), (2, 3), (3, 3)):
            await store.derive(Derived(profiles=[profile(T0, revision=revision)], order_flow=[order_flow(T0, revision=revision)]))
            assert [plain[name].distinct("revision") for name in ("volume_profiles", "order_flow", "bars")] == [[seen]] * 3


def ttls_on(plain: Plain) -> dict[str, dict[str, Any]]:
    """TTL indexes by collection and name: key, filter and TTL."""
    return {
        name: {
            index["name"]: (dict(index["key"]), dict(index.get("partialFilterExpression", {})), index["expireAfterSeconds"])
            for index in plain[name].list_indexes()
            if "expireAfterSeconds" in index
        }
        for name in plain.list_collection_names()
    }


def ttls_of(retention: Retention) -> dict[str, dict[str, Any]]:
    bars = {timeframe: (retention.minutes if timeframe.ms < HOUR else retention.hours) // SECOND for timeframe in Timeframe}

    def partial(field: str) -> dict[str, Any]:
        return {f"life_{timeframe}": ({field: 1}, {"timeframe": timeframe.value}, life) for timeframe, life in bars.items()}

    return {
        "trades": {"life": ({"timestamp": 1}, {}, retention.trades // SECOND)},
        "footprints": partial("start_time"),
        "bars": partial("start_time"),
        "volume_profiles": partial("start_time"),
        "order_flow": partial("timestamp"),
        "pieces": {"life": ({"minute": 1}, {}, retention.minutes // SECOND)},
        "coverage": {"life": ({"end": 1}, {}, retention.hours // SECOND)},
        "leases": {},
        "marks": {},
        "counters": {},
        "listings": {},
        "tracked": {},
        "expired": {},
        "schema": {},
    }


def index_files(plain: Plain) -> set[str]:
    """The files of the indexes; an index that is created again has another file."""
    stats = [plain.command("collStats", name, indexDetails=True) for name in collections(LIVES)]
    return {str(index["uri"]) for collection in stats for index in collection["indexDetails"].values()}


async def test_each_collection_and_timeframe_has_its_ttl_which_a_setting_changes_in_place(url: str, plain: Plain) -> None:
    first, second = Retention(DAY, 10 * DAY, 50 * DAY), Retention(2 * DAY, 10 * DAY, 40 * DAY)
    async with MongoStore(url, first):
        assert ttls_on(plain) == ttls_of(first)
    made = index_files(plain)
    async with MongoStore(url, second):
        assert ttls_on(plain) == ttls_of(second)
    assert index_files(plain) == made
    plain["bars"].drop_index("life_1h")
    async with MongoStore(url, second):
        assert ttls_on(plain) == ttls_of(second)


async def test_expired_documents_are_deleted_by_the_server_and_the_rest_stays(url: str, plain: Plain) -> None:
    now, retention = time.time_ns() // 10**9 * SECOND, Retention(trades=DAY, minutes=10 * DAY, hours=50 * DAY)
    now -= now % MINUTE
    ages = [now - age * DAY for age in (60, 20, 5, 0)]
    async with MongoStore(url, LIVES) as store:
        for instrument in (BTC, ETH):
            spans = [(instrument, span(at - 100 * DAY, at)) for at in ages]
            await store.write([trade(at, at, instrument=instrument) for at in ages], spans)
            for timeframe in Timeframe:
                await store.derive(
                    Derived(
                        [stored_footprint(at, instrument=instrument, timeframe=timeframe) for at in ages],
                        [profile(at, instrument=instrument, timeframe=timeframe) for at in ages],
                        [order_flow(at, instrument=instrument, timeframe=timeframe) for at in ages],
                    )
                )
        await store.save_listings([Listing(BTC, *[0] * 2)])  # type: ignore[arg-type]
        assert await store.expire(now, retention) == 0
    async with MongoStore(url, retention) as store:
        left = 2 * (1 + 3 + 4 * (4 * 2 + 3 * 3))
        counted = ("trades", "coverage", "footprints", "bars", "volume_profiles", "order_flow")
        with anyio.fail_after(150):
            while sum(plain[name].count_documents({}) for name in counted) > left:
                await anyio.sleep(0.05)
        for instrument in (BTC, ETH):
            assert [one.timestamp for one in await every_trade(store, instrument, Window(0, now + 1))] == ages[3:]
            assert [one.end for one in await store.spans(instrument, Window(0, now + 1))] == ages[1:]
            for timeframe in Timeframe:
                kept = ages[2:] if timeframe.ms < HOUR else ages[1:]
                assert [one.start for one in await store.footprints(instrument, timeframe, Window(0, now + 1))] == kept
                assert [one.start for one in await store.order_flow(instrument, timeframe, Window(0, now + 1))] == kept
        assert len(await store.dirty_minutes()) == 8
        assert len(await store.listings()) == 1


def stages(plan: Any) -> Generator[str]:
    """Every stage of a plan."""
    if isinstance(plan, Mapping):
        if "stage" in plan:
            yield str(plan["stage"])
        for value in plan.values():
            yield from stages(value)
    elif isinstance(plan, list):
        for value in plan:
            yield from stages(value)


async def test_no_read_and_no_write_scans_a_collection(url: str, plain: Plain) -> None:
    async with MongoStore(url, LIVES) as store:
        trades = [trade(seq, T0 + seq, instrument=one) for seq in range(500) for one in (BTC, ETH)]
        await store.write(trades, [(one, span(T0 + at, T0 + at + 5)) for at in range(0, 500, 10) for one in (BTC, ETH)])
        for minute in range(T0, T0 + 50 * MINUTE, MINUTE):
            await store.derive(some(minute))
        plain.command("profile", 2, filter={"appName": "wadm"})
        await store.write(trades[:5], [(BTC, span(T0, T0 + 5))], [piece(T0, 1_000)])
        await store.derive(msgspec.structs.replace(some(revision=1), settles=(await store.dirty_minutes())[:1]))
        await store.pieces(BTC, Window(T0, T0 + MINUTE))
        assert await store.count(BTC, Window(T0, T0 + MINUTE)) == 501
        await store.acquire_leases("one", [BTC, ETH], 60)
        await store.acquire_leases("two", [BTC, ETH], 60)
        await store.release_leases("one")
        await store.save_listings([Listing(BTC, *[0] * 2)])  # type: ignore[arg-type]
        await store.listings()
        for newest in (False, True):
            await store.trades(BTC, EVER, limit=3, newest=newest)
            await store.trades(BTC, EVER, after=trades[200].order, limit=3, newest=newest)
        await store.footprints(BTC, Timeframe.M1, Window(T0, T0 + 3 * MINUTE))
        await store.order_flow(BTC, Timeframe.M1, Window(T0, T0 + 3 * MINUTE))
        await store.spans(BTC, Window(T0 + 200, T0 + 220))
        await store.state()
        plain.command("profile", 0)
    asked = list(plain["system.profile"].find({"op": {"$in": ["query", "update", "remove", "command"]}}))
    assert {(one["op"], one["ns"].partition(".")[2]) for one in asked} >= {
        *(("query", name) for name in ("trades", "pieces", "footprints", "bars", "coverage", "marks", "listings", "leases")),
        *(("update", name) for name in ("marks", "coverage", "footprints", "bars", "volume_profiles", "order_flow", "listings", "leases")),
        ("remove", "marks"),
        ("command", "counters"),
    }
    for one in asked:
        assert "COLLSCAN" not in one.get("planSummary", ""), one
        assert not one.get("hasSortStage"), one
        # Compare-and-set, and a page with the rest of its last millisecond: no other documents are examined.
        assert one.get("docsExamined", 0) <= one.get("nreturned", 0) + 2, one
    finds = [one["command"] for one in asked if one["op"] == "query"]
    assert len(finds) >= 11
    for find in finds:
        question = {key: value for key, value in find.items() if key not in ("lsid", "$db")}
        plan = plain.command("explain", question, verbosity="queryPlanner")["queryPlanner"]["winningPlan"]
        found = list(stages(plan))
        assert "COLLSCAN" not in found
        assert "SORT" not in found
        assert "IXSCAN" in found, question


async def test_the_page_after_a_trade_is_found_by_index(url: str, plain: Plain) -> None:
    async with MongoStore(url, LIVES) as store:
        await store.write([trade(seq, T0 + seq) for seq in range(5_000)], [])
        plain.command("profile", 2, filter={"appName": "wadm", "op": "query"})
        assert len(await store.trades(BTC, Window(T0, T0 + 5_000), after=(T0 + 4_990, 4_990, 0, ""), limit=100)) == 10
        plain.command("profile", 0)
    assert sum(one["docsExamined"] for one in plain["system.profile"].find()) < 50


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    times=st.lists(st.integers(0, 5), max_size=60),
    limit=st.integers(1, 9),
    newest=st.booleans(),
    position=st.integers(0, 80),
    slack=st.integers(0, 2),
)
async def test_trades_of_one_millisecond_are_in_order_wherever_a_page_ends(
    url: str, plain: Plain, times: list[int], limit: int, newest: bool, position: int, slack: int
) -> None:
    trades = sorted((trade(-seq % 7, T0 + at, trade_id=str(seq)) for seq, at in enumerate(times)), key=lambda one: one.order)
    after = trades[position].order if position < len(trades) else None
    expected = [one for one in trades if after is None or one.order > after]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mongo, "_EXTRA_TRADES", slack)
        async with MongoStore(url, LIVES) as store:
            await store.write(trades, [])
            found = await store.trades(BTC, EVER, after=after, limit=limit, newest=newest)
            plain["trades"].delete_many({})
    assert found == (expected[-limit:] if newest else expected[:limit])


async def test_a_server_that_is_down_is_reported_as_unreachable_within_seconds(tmp_path: Path) -> None:
    secret = "s3cret"
    store = MongoStore(f"mongodb://user:{secret}@127.0.0.1:{free_port()}/tape?authSource=admin", LIVES)
    with anyio.fail_after(10):
        began = anyio.current_time()
        with pytest.raises(StoreUnreachable, match=r"127\.0\.0\.1:[0-9]+/tape cannot be reached, nothing listens there: start it") as error:
            await store.__aenter__()
        assert anyio.current_time() - began < 4
    assert secret not in str(error.value)
    assert "user" not in str(error.value)
    with pytest.raises(StoreError, match="closed"):
        await store.dirty_minutes()


async def test_an_unknown_host_is_named() -> None:
    with anyio.fail_after(20), pytest.raises(StoreUnreachable, match=r"no-such-host\.invalid:27017/wadm cannot be reached, its name"):
        await MongoStore("mongodb://no-such-host.invalid", LIVES).__aenter__()


async def test_a_server_that_is_not_mongodb_is_named() -> None:
    async def greet(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await stream.receive()
                await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, greet)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with anyio.fail_after(20), pytest.raises(StoreUnreachable, match="the server there is not MongoDB"):
            await MongoStore(f"mongodb://127.0.0.1:{port}", LIVES).__aenter__()
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    "url",
    [
        "localhost:27017",
        "mongodb://",
        "mongodb://user:p@ss/w@localhost/wadm",
        "mongodb://user:123/secret@localhost",
        "mongodb://user:secret@localhost:port/wadm",
        "mongodb://user:secret@localhost/wa dm",
        "redis://user:secret@localhost/0",
    ],
)
async def test_an_invalid_url_is_a_setting_error_and_is_never_shown(url: str) -> None:
    with pytest.raises(SettingError, match="MONGODB_URL is not an address of MongoDB: write mongodb://") as error:
        await MongoStore(url, LIVES).__aenter__()
    assert "secret" not in str(error.value)
    assert error.value.__cause__ is None


async def test_a_server_that_stalls_blocks_a_call_no_longer_than_the_socket_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongo, "_SOCKET_TIMEOUT_MS", 1_000)
    monkeypatch.setattr(mongo, "_SERVER_SELECTION_MS", 500)
    with own_mongod() as server, anyio.fail_after(60):
        async with MongoStore(server.url, LIVES) as store:
            await store.write([trade(1)], [])
            server.signal(signal.SIGSTOP)
            began = anyio.current_time()
            for step in (store.write([trade(2)], []), store.dirty_minutes(), store.state(), store.derive(some())):
                with pytest.raises(StoreUnreachable, match="does not answer in time"):
                    await step
            assert anyio.current_time() - began < 12
            server.signal(signal.SIGCONT)
            while await every_trade_or_none(store) is None:
                pass
            await store.write([trade(2)], [])
            assert await every_trade(store) == [trade(1), trade(2)]
            server.signal(signal.SIGSTOP)
            began = anyio.current_time()
        assert anyio.current_time() - began < 3


async def every_trade_or_none(store: MongoStore) -> object:
    try:
        return await every_trade(store)
    except StoreUnreachable:
        return None


def insert_begun(plain: Plain) -> None:
    """Returns when the server executes an insert of trades, which the test makes slow."""
    here = {"command.insert": "trades", "command.$db": plain.name}
    while not list(plain.client.admin.aggregate([{"$currentOp": {"localOps": True}}, {"$match": here}])):
        pass


async def test_a_cancelled_write_is_awaited_and_nothing_is_written_later(url: str, plain: Plain) -> None:
    async with MongoStore(url, LIVES) as store:
        with anyio.fail_after(20), failing(plain, "insert", blockConnection=True, blockTimeMS=300):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(store.write, [trade(1)], [(BTC, span(T0, T0))])
                    await to_thread.run_sync(insert_begun, plain)
                    scope.cancel()
            assert scope.cancelled_caught
            # The running insert is stored, later steps are not, and the minute is marked.
            assert plain["trades"].count_documents({}) == 1
        assert await store.spans(BTC, EVER) == []
        assert [mark.minute for mark in await store.dirty_minutes()] == [T0]


async def test_a_cancelled_read_leaves_no_cursor_open(url: str, plain: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongo, "_DOCUMENTS_PER_REPLY", 10)
    opened = plain.client.admin.command("serverStatus")["metrics"]["cursor"]["open"]["total"]
    async with MongoStore(url, LIVES) as store:
        await store.write([trade(seq, T0 + seq) for seq in range(500)], [])
        with failing(plain, "getMore", times=1, errorCode=50), pytest.raises(StoreUnreachable):
            await every_trade(store)
        with anyio.fail_after(20), failing(plain, "getMore", times=1, blockConnection=True, blockTimeMS=300):
            with anyio.move_on_after(0.1) as scope:
                await every_trade(store)
            assert scope.cancelled_caught
        with anyio.fail_after(20):
            while plain.client.admin.command("serverStatus")["metrics"]["cursor"]["open"]["total"] > opened:
                await anyio.sleep(0.05)
        assert len(await every_trade(store)) == 500


async def test_the_event_loop_turns_while_a_big_batch_is_written_and_read(url: str) -> None:
    turns = 0
    async with MongoStore(url, LIVES) as store, anyio.create_task_group() as tasks:

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        tasks.start_soon(count_turns)
        batch = [trade(seq, T0 + seq) for seq in range(10_000)]
        turns = 0
        await store.write(batch, [])
        assert turns > 20
        turns = 0
        assert await every_trade(store) == batch
        assert turns > 5
        tasks.cancel_scope.cancel()


async def test_two_processes_may_create_one_database_concurrently(url: str, plain: Plain) -> None:
    async def enter() -> None:
        async with MongoStore(url, LIVES) as store:
            await store.write([trade(1)], [])

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(enter)
    assert plain["trades"].count_documents({}) == 1
    assert ttls_on(plain) == ttls_of(LIVES)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("version", "says"),
    [
        (SCHEMA_VERSION + 1, "written by a newer WADM.*upgrade wadm-mcp, or set MONGODB_URL"),
        ("one", "damaged.*version 'one'"),
        (0, "damaged.*version 0"),
    ],
)
async def test_a_database_of_another_schema_is_refused_and_not_changed(
    url: str, plain: Plain, read_only: bool, version: object, says: str
) -> None:
    async with MongoStore(url, LIVES) as store:
        await store.write([trade(1)], [])
    plain["schema"].update_one({}, {"$set": {"version": version}})
    plain["bars"].drop()
    with pytest.raises(StoreError, match=says) as error:
        await MongoStore(url, LIVES, read_only=read_only).__aenter__()
    assert type(error.value) is StoreError
    assert "bars" not in plain.list_collection_names()


async def test_an_older_schema_is_migrated_once(url: str, plain: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    migrated: list[str] = []

    async def migrate(database: Any) -> None:
        migrated.append(database.name)

    async with MongoStore(url, LIVES):
        pass
    monkeypatch.setattr(mongo, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    monkeypatch.setattr(mongo, "_MIGRATIONS", {SCHEMA_VERSION: migrate})
    for _ in range(2):
        async with MongoStore(url, LIVES):
            pass
    assert migrated == [plain.name]
    assert plain["schema"].distinct("version") == [SCHEMA_VERSION + 1]


async def test_a_trade_that_an_older_schema_stored_is_not_stored_twice(url: str, plain: Plain) -> None:
    some = [trade(1), trade(2), trade(3, T0 + 2 * MINUTE)]
    async with MongoStore(url, LIVES) as store:
        await store.write(some, [])
    for number, row in enumerate(list(plain["trades"].find({}))):
        plain["trades"].delete_one({"_id": row["_id"]})
        plain["trades"].insert_one({**row, "_id": ObjectId(row["_id"].binary[:4] + number.to_bytes(8, "big"))})
    plain["schema"].update_one({}, {"$set": {"version": 2}})
    for _ in range(2):
        async with MongoStore(url, LIVES) as store:
            await store.write(some, [])
            assert await every_trade(store) == some
    assert plain["schema"].distinct("version") == [SCHEMA_VERSION]


async def test_the_database_of_another_program_is_refused_and_not_changed(url: str, plain: Plain) -> None:
    plain["trades"].insert_one({"price": 1.5})
    with pytest.raises(StoreError, match="already has a collection `trades` of another program; set MONGODB_URL to another database"):
        await MongoStore(url, LIVES).__aenter__()
    assert plain.list_collection_names() == ["trades"]
    assert list(plain["trades"].list_indexes())[1:] == []


async def test_a_server_with_an_old_version_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongo, "MIN_SERVER_VERSION", (99, 0))
    with pytest.raises(StoreError, match=r"is [0-9.]+: WADM needs 99\.0 or later"):
        await MongoStore(url, LIVES).__aenter__()


@pytest.fixture(scope="module")
def guarded() -> Generator[Mongod]:
    """A server with access control: `keeper` has all needed rights, `writer` may not change TTLs, `reader` only reads."""
    with own_mongod("--auth") as server:
        roles = {"keeper": ["readWrite", "dbAdmin"], "writer": ["readWrite"], "reader": ["read"]}
        with pymongo.MongoClient[dict[str, Any]](server.url) as client:
            client.admin.command("createUser", "root", pwd="toor", roles=["root"])
        with pymongo.MongoClient[dict[str, Any]](server.url, username="root", password="toor") as client:
            for name, granted in roles.items():
                client.admin.command("createUser", name, pwd="pa:ss", roles=[{"role": role, "db": "tape"} for role in granted])
        yield server


def guarded_url(server: Mongod, user: str, password: str = "pa%3Ass") -> str:
    return f"mongodb://{user}:{password}@127.0.0.1:{server.port}/tape?authSource=admin"


async def test_a_user_with_the_documented_roles_has_all_needed_rights(guarded: Mongod) -> None:
    async with MongoStore(guarded_url(guarded, "keeper"), LIVES) as store:
        await store.write([trade(1)], [])
        assert (await store.state()).place == f"127.0.0.1:{guarded.port}/tape"
        await store.describe()
    async with MongoStore(guarded_url(guarded, "writer"), LIVES) as store:
        await store.write([trade(2)], [])
    async with MongoStore(guarded_url(guarded, "reader"), LIVES, read_only=True) as store:
        assert await every_trade(store) == [trade(1), trade(2)]
        await store.describe()


@pytest.mark.parametrize(
    ("user", "password", "says"),
    [
        ("keeper", "wrong", "refuses the user or the password of MONGODB_URL"),
        ("nobody", "wrong", "refuses the user or the password of MONGODB_URL"),
        ("reader", "pa%3Ass", "not authorised. The user in MONGODB_URL needs the roles readWrite and dbAdmin on tape"),
        ("writer", "pa%3Ass", "not authorised. The user in MONGODB_URL needs the roles readWrite and dbAdmin on tape"),
    ],
)
async def test_a_user_without_rights_is_refused_without_being_named(guarded: Mongod, user: str, password: str, says: str) -> None:
    async with MongoStore(guarded_url(guarded, "keeper"), LIVES):
        pass
    with pytest.raises(StoreError, match=says) as error:
        await MongoStore(guarded_url(guarded, user, password), LIVES._replace(trades=DAY)).__aenter__()
    assert type(error.value) is StoreError
    assert f"{user}:" not in str(error.value)
    assert password not in str(error.value)


async def test_a_user_that_was_dropped_and_created_again_works_without_a_restart(guarded: Mongod) -> None:
    def change(command: str, **details: Any) -> None:
        with pymongo.MongoClient[dict[str, Any]](guarded.url, username="root", password="toor") as client:
            client.admin.command(command, "passing", **details)

    created = partial(change, "createUser", pwd="pa:ss", roles=[{"role": role, "db": "tape"} for role in ("readWrite", "dbAdmin")])
    await to_thread.run_sync(created)
    async with MongoStore(guarded_url(guarded, "passing"), LIVES) as store:
        await store.write([trade(11)], [])
        await to_thread.run_sync(change, "dropUser")
        for _ in range(2):
            with pytest.raises(StoreError, match="MONGODB_URL"):
                await store.write([trade(12)], [])
        await to_thread.run_sync(created)
        await store.write([trade(12)], [])
        assert {11, 12} <= {one.seq for one in await every_trade(store)}


async def test_without_credentials_the_error_names_the_roles_that_are_needed(guarded: Mongod) -> None:
    with pytest.raises(StoreError, match="needs the roles readWrite and dbAdmin on tape; a URL without a user needs one"):
        await MongoStore(f"{guarded.url}/tape", LIVES).__aenter__()


async def test_a_read_only_store_writes_and_creates_nothing(url: str, plain: Plain) -> None:
    async with MongoStore(url, LIVES, read_only=True) as store:
        assert await every_trade(store) == []
        assert await store.order_flow(BTC, Timeframe.M1, EVER) == []
        assert await store.spans(BTC, EVER) == []
        assert (await store.describe()).collections == ()
        with pytest.raises(StoreError, match="opened for reading only"):
            await store.write([trade(1)], [])
        with pytest.raises(StoreError, match="opened for reading only"):
            await store.derive(some())
    assert plain.list_collection_names() == []


async def test_a_closed_store_says_so_and_can_be_entered_again(url: str) -> None:
    store = MongoStore(url, LIVES)
    async with store:
        await store.write([trade(1)], [])
    with pytest.raises(StoreError, match="closed"):
        await store.write([trade(1)], [])
    with pytest.raises(StoreError, match="closed"):
        await store.dirty_minutes()
    async with store:
        assert await every_trade(store) == [trade(1)]


@pytest.mark.parametrize(
    ("collection", "change", "says"),
    [
        ("footprints", {"packed": b"\xc1"}, f"damaged.*footprints 1m of binance:spot:BTCUSDT, start_time {T0}"),
        ("bars", {"packed": "text"}, f"damaged.*bars 1m of binance:spot:BTCUSDT, start_time {T0}"),
        ("bars", {"cumulative_delta": "x"}, f"damaged.*bars 1m of binance:spot:BTCUSDT, start_time {T0}"),
        ("trades", {"price": 1.5}, "damaged.*trades of binance:spot:BTCUSDT, trade_id 1"),
        ("trades", {"trade_type": "HOLD"}, "damaged.*trades of binance:spot:BTCUSDT, trade_id 1"),
        ("coverage", {"basis": "hearsay"}, f"damaged.*coverage of binance:spot:BTCUSDT, start {T0}"),
        ("marks", {"writes": None}, "damaged.*marks"),
        ("listings", {"tick": "much"}, "damaged.*listings, _id binance:spot:BTCUSDT"),
    ],
)
async def test_a_document_that_no_wadm_wrote_is_named(url: str, plain: Plain, collection: str, change: dict[str, Any], says: str) -> None:
    async with MongoStore(url, LIVES) as store:
        await store.write([trade(1)], [(BTC, span(T0, T0))])
        await store.derive(some())
        await store.save_listings([Listing(BTC, *[0] * 2)])  # type: ignore[arg-type]
        plain[collection].update_one({}, {"$set": change})
        questions = {
            "footprints": lambda: store.footprints(BTC, Timeframe.M1, EVER),
            "bars": lambda: store.order_flow(BTC, Timeframe.M1, EVER),
            "trades": lambda: every_trade(store),
            "coverage": lambda: store.spans(BTC, EVER),
            "marks": store.dirty_minutes,
            "listings": store.listings,
        }
        with pytest.raises(StoreError, match=says):
            await questions[collection]()


async def test_a_number_beyond_its_type_is_refused_with_its_batch(url: str) -> None:
    async with MongoStore(url, LIVES) as store:
        with pytest.raises(StoreError, match="trade 9223372036854775808 of binance:spot:BTCUSDT has a number that is too large"):
            await store.write([trade(1), trade(2**63)], [])
        assert await every_trade(store) == []


async def test_the_state_has_the_size_on_disk(url: str, plain: Plain) -> None:
    async with MongoStore(url, LIVES) as store:
        before = await store.state()
        await store.write([trade(seq, T0 + seq) for seq in range(5_000)], [])
        plain.client.admin.command("fsync")
        assert (await store.state()).bytes > before.bytes + 100_000


async def test_describe_lists_version_documents_indexes_and_ttls(url: str, plain: Plain) -> None:
    async with MongoStore(url, LIVES) as store:
        await store.write([trade(1), trade(2)], [])
        state = await store.describe()
    assert state.version == plain.client.server_info()["version"]
    assert state.place.endswith(f"/{plain.name}")
    found = {collection.name: collection for collection in state.collections}
    assert set(found) == {*collections(LIVES), "schema"}
    assert found["trades"].documents == 2
    assert found["trades"].bytes > 0
    assert found["trades"].indexes == ("_id_", "instrument_time", "life")
    assert found["trades"].ttl_seconds == {"life": LIVES.trades // SECOND}
    assert found["order_flow"].ttl_seconds["life_4h"] == LIVES.hours // SECOND


async def test_a_server_killed_repeatedly_during_writes_loses_and_repeats_nothing() -> None:
    kills, batch, acknowledged = 3, 500, 0
    with own_mongod() as server, anyio.fail_after(120):
        async with MongoStore(server.url, LIVES) as store:
            killing, more = True, anyio.Event()

            async def record() -> None:
                nonlocal acknowledged
                while killing:
                    first = acknowledged * batch
                    trades = [trade(seq, T0 + seq) for seq in range(first, first + batch)]
                    with suppress(StoreUnreachable):
                        await store.write(trades, [(BTC, span(T0, trades[-1].timestamp, 0, trades[-1].seq))])
                        acknowledged += 1
                        more.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(record)
                for _ in range(kills):
                    more = anyio.Event()
                    await more.wait()
                    server.kill()
                    stored = acknowledged * batch
                    await anyio.to_thread.run_sync(server.start)
                    with pymongo.MongoClient[dict[str, Any]](server.url) as client:
                        assert client["wadm"]["trades"].count_documents({"seq": {"$lt": stored}}) == stored
                killing = False
            assert [one.seq for one in await every_trade(store)] == list(range(acknowledged * batch))
            assert [one.last_seq for one in await store.spans(BTC, EVER)] == [acknowledged * batch - 1]


WRITING = f"""
import os, sys, anyio, pymongo.monitoring
from wadm_mcp.storage.mongo import MongoStore
from {__package__} import BTC, T0, span, trade
from {__package__}.conftest import LIVES

class CommandCounter(pymongo.monitoring.CommandListener):
    commands = -1

    def started(self, event):
        if CommandCounter.commands >= 0:
            CommandCounter.commands += 1
            if CommandCounter.commands == int(sys.argv[2]):
                os._exit(9)

    def succeeded(self, event): ...
    def failed(self, event): ...

async def main():
    async with MongoStore(sys.argv[1], LIVES) as store:
        CommandCounter.commands = 0
        for batch in range(1_000_000):
            first = batch * 10
            await store.write([trade(seq, T0 + seq) for seq in range(first, first + 10)], [(BTC, span(T0, T0 + first + 9, 0, first + 9))])
            print(batch + 1, flush=True)

pymongo.monitoring.register(CommandCounter())
anyio.run(main)
"""


@pytest.mark.parametrize("fatal", [1, 2, 3, 4, 5, 13])
async def test_a_crash_during_a_write_loses_nothing_acknowledged_and_claims_nothing_missing(url: str, plain: Plain, fatal: int) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", WRITING, url, str(fatal)], stdout=subprocess.PIPE, env=environment, text=True, check=False, timeout=60
    )
    assert done.returncode == 9
    acknowledged = len(done.stdout.split())
    async with MongoStore(url, LIVES) as store:
        seqs = [one.seq for one in await every_trade(store)]
        assert seqs == list(range(len(seqs)))
        assert len(seqs) // 10 in (acknowledged, acknowledged + 1)
        covered = [one.last_seq for one in await store.spans(BTC, EVER)]
        assert covered in ([], [acknowledged * 10 - 1])
        assert len(await store.dirty_minutes()) >= (1 if seqs else 0)
        await store.write([trade(seq, T0 + seq) for seq in range(acknowledged * 10 + 10)], [])
        assert len(await every_trade(store)) == acknowledged * 10 + 10


async def test_trades_of_every_instrument_and_scale_are_in_one_collection(url: str, plain: Plain) -> None:
    instruments = [Instrument(exchange, market, symbol) for exchange in "xy" for market in "sl" for symbol in ("A", "AB", "é")]
    async with MongoStore(url, LIVES) as store:
        await store.write(
            [trade(1, instrument=one, price=position, scale=Scale(position, 0)) for position, one in enumerate(instruments)], []
        )
        for position, one in enumerate(instruments):
            assert [found.scale.price for found in await every_trade(store, one)] == [position]
    assert plain["trades"].count_documents({}) == 12


async def test_of_two_processes_one_acquires_the_lease_and_the_other_gets_it_when_it_ends(mongodb: str) -> None:
    async with MongoStore(f"{mongodb}/lease", LIVES) as one, MongoStore(f"{mongodb}/lease", LIVES) as two:
        assert await one.acquire_leases("one", [BTC], 60) == {BTC}
        assert await two.acquire_leases("two", [BTC, ETH], 60) == {ETH}
        assert await one.acquire_leases("one", [BTC], 0.3) == {BTC}
        with anyio.fail_after(10):
            while BTC not in (acquired := await two.acquire_leases("two", [BTC, ETH], 60)):
                await anyio.sleep(0.05)
        assert acquired == {BTC, ETH}
        assert await one.acquire_leases("one", [BTC], 60) == set()
        await one.release_leases("one")
        assert await one.acquire_leases("one", [BTC], 60) == set()
        await two.release_leases("two")
        assert await one.acquire_leases("one", [BTC, ETH], 60) == {BTC, ETH}
        await one.release_leases("one")


async def test_a_lease_of_an_earlier_release_is_taken_and_left_readable_by_it(url: str, plain: Plain) -> None:
    until = datetime.now(UTC) + timedelta(minutes=1)
    async with MongoStore(url, LIVES) as store:
        plain["leases"].insert_one({"_id": str(BTC), "owner": "earlier", "epoch": 4, "until": until})
        assert await store.acquire_leases("ours", [BTC, ETH], 60) == {ETH}
        assert await store.acquire_leases("earlier", [BTC], 60) == {BTC}
        await store.release_leases("earlier")
        assert await store.acquire_leases("ours", [BTC], 60) == {BTC}
    (lease,) = plain["leases"].find({"_id": str(BTC)})
    assert (lease["owner"], lease["epoch"]) == ("ours", 4)


async def test_of_many_concurrent_owners_one_acquires_the_lease(url: str) -> None:
    acquired: dict[str, set[Instrument]] = {}

    async def take(owner: str) -> None:
        async with MongoStore(url, LIVES) as store:
            acquired[owner] = await store.acquire_leases(owner, [BTC, ETH], 60)

    async with anyio.create_task_group() as tasks:
        for owner in "abcde":
            tasks.start_soon(take, owner)
    assert sorted(instrument for each in acquired.values() for instrument in each) == sorted([BTC, ETH])


async def test_what_a_shorter_retention_may_have_deleted_stays_expired_under_a_longer_one(url: str) -> None:
    short, long = Retention(HOUR, DAY, 10 * DAY), LIVES
    async with MongoStore(url, short) as store:
        begun = await store._server_now(0.0)
        for found, length in zip(await store.expired(BTC), short, strict=True):
            assert begun - length <= max(stretch.end for stretch in found) <= begun - length + MINUTE
    for _ in range(2):
        async with MongoStore(url, long) as store, MongoStore(url, short, read_only=True) as reader:
            for one in (store, reader):
                for found, length in zip(await one.expired(BTC), short, strict=True):
                    assert begun - length <= max(stretch.end for stretch in found) <= begun - length + MINUTE


async def test_a_start_that_ends_before_the_ttl_is_changed_counts_by_the_shorter_one(url: str, plain: Plain) -> None:
    async with MongoStore(url, LIVES):
        pass
    with failing(plain, "collMod", errorCode=8000), pytest.raises(StoreError):
        await MongoStore(url, Retention(HOUR, DAY, 10 * DAY)).__aenter__()
    async with MongoStore(url, LIVES, read_only=True) as store:
        now = await store._server_now(0.0)
        for found, length in zip(await store.expired(BTC), (HOUR, DAY, 10 * DAY), strict=True):
            assert now - length - MINUTE <= max(stretch.end for stretch in found) <= now - length


async def test_after_the_servers_clock_was_ahead_what_came_later_is_claimed_and_what_may_be_deleted_is_not(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    retention, ahead = Retention(7 * DAY, 60 * DAY, 365 * DAY), 40 * DAY
    async with MongoStore(url, retention) as store:
        now = at = await store._server_now(0.0)
        monkeypatch.setattr(store, "_server_now", lambda seconds: _value(at))
        await store.expire(now, retention, now)

        async def until() -> list[int]:
            return [max(stretch.end for stretch in stretches) for stretches in await store.expired(BTC)]

        assert await until() == [now - length for length in retention]
        at = now + ahead
        # While it is ahead every trade may be deleted at any moment, whether it is known how late it is or not.
        await store.expire(None, retention)
        assert await until() == [now + ahead - length for length in retention]
        await store.expire(now + HOUR, retention, now + HOUR)
        assert await until() == [now + ahead - length for length in retention]
        # It is right again, and may have deleted what came since the last note while it was not.
        at = now + 2 * HOUR
        await store.expire(at, retention, at)
        assert await until() == [at, now + ahead - 60 * DAY, at - 365 * DAY + ahead - 2 * HOUR]
        at = now + 3 * HOUR
        await store.expire(at, retention, at)
        assert await until() == [now + 2 * HOUR, now + ahead - 60 * DAY, at - 365 * DAY + ahead - 3 * HOUR]
        at = now + 10 * DAY
        await store.expire(at, retention, at)
        assert (await until())[0] == at - 7 * DAY


async def test_a_server_that_was_ahead_when_it_was_opened_makes_nothing_expired_that_comes_later(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with MongoStore(url, LIVES) as store:
        now = await store._server_now(0.0)
    monkeypatch.setattr(MongoStore, "_server_now", lambda self, seconds: _value(now + 8_000 * DAY))
    async with MongoStore(url, LIVES) as store:
        assert (await store.expired(BTC)).of_trades(Window(now, now + DAY)) == [Window(now, now + DAY)]
    monkeypatch.setattr(MongoStore, "_server_now", lambda self, seconds: _value(now + MINUTE))
    async with MongoStore(url, LIVES) as store:
        await store.expire(now + MINUTE, LIVES, now + MINUTE)
        await store.expire(now + MINUTE, LIVES, now + MINUTE)
        window = Window(now - now % MINUTE, now - now % MINUTE + HOUR)
        assert max(stretch.end for stretch in (await store.expired(BTC)).of_trades(window)) <= now + 2 * MINUTE


async def _value(value: int) -> int:
    return value


def drop(plain: Plain) -> None:
    plain.client.drop_database(plain.name)


def replace_counter(**fields: object) -> Callable[[Plain], None]:
    """Another state of the count of writes, as a restored dump brings it."""

    def replace(plain: Plain) -> None:
        plain["counters"].replace_one({"_id": "writes"}, fields)

    return replace


def go_back(plain: Plain) -> None:
    plain["counters"].update_one({"_id": "writes"}, {"$set": {"value": 2}})


@pytest.mark.parametrize(
    ("happens", "says"),
    [
        (drop, "was dropped or emptied"),
        (go_back, "was replaced by another or an older copy"),
        (replace_counter(value=500, store="another"), "was replaced by another or an older copy"),
        (replace_counter(value=500), "was replaced by another or an older copy"),
    ],
    ids=["dropped", "older", "another", "of an earlier release"],
)
@pytest.mark.parametrize("first", ["check", "trades", "spans"])
async def test_a_database_that_is_not_the_one_that_was_opened_any_more_is_noticed_by_the_next_access_and_never_written_again(
    url: str, plain: Plain, first: str, happens: Callable[[Plain], None], says: str
) -> None:
    async with MongoStore(url, LIVES) as store:
        for seq in range(1, 4):
            await store.write([trade(seq, T0 + seq)], [(BTC, span(T0, T0 + seq, 1, seq))])
        await store.check()
        happens(plain)
        counted = list(plain["counters"].find({}))
        accesses: dict[str, Callable[[], Awaitable[object]]] = {
            "check": store.check,
            "trades": lambda: store.write([trade(4, T0 + 4)], []),
            "spans": lambda: store.write([], [(BTC, span(T0, T0 + 9, 1, 3))]),
            "leases": lambda: store.acquire_leases("me", [BTC], 60),
            "listings": lambda: store.save_listings([Listing(BTC, Decimal("0.01"), Decimal("0.001"), True)]),
        }
        # No number of attempts makes it the right one.
        for name in [first] * 10 + list(accesses):
            with pytest.raises(StoreLost, match=says):
                await accesses[name]()
        assert list(plain["counters"].find({})) == counted
        assert plain["trades"].count_documents({"seq": 4}) == 0
        assert plain["leases"].count_documents({}) == 0
    async with MongoStore(url, LIVES) as store:
        await store.check()
        await store.write([trade(4, T0 + 4)], [])


async def test_a_count_that_no_wadm_wrote_is_named(url: str, plain: Plain) -> None:
    async with MongoStore(url, LIVES) as store:
        replace_counter(value="many", store="a")(plain)
        for access in (store.check, lambda: store.write([trade(1)], [])):
            with pytest.raises(StoreError, match=r"is damaged \(counters, _id writes: store 'a', value 'many'\)") as error:
                await access()
            assert type(error.value) is StoreError


async def test_what_was_written_in_the_second_after_the_database_was_dropped_is_not_taken_for_another_programs(
    url: str, plain: Plain
) -> None:
    async with MongoStore(url, LIVES) as store:
        await store.write([trade(1, T0)], [])
        settled = await store.dirty_minutes()
        drop(plain)
        await store.acquire_leases("me", [BTC], 60)
        await store.save_listings([Listing(BTC, Decimal("0.01"), Decimal("0.001"), True)])
        await store.track([BTC])
        await store.derive(Derived([], [], [order_flow(T0, [trade(1, T0)])], settled))
    async with MongoStore(url, LIVES) as store:
        assert await store.spans(BTC, Window(0, T0 + DAY)) == []


@pytest.mark.parametrize("name", ["leases", "bars", "counters"])
async def test_documents_of_other_fields_are_another_programs(url: str, plain: Plain, name: str) -> None:
    plain[name].insert_one({"owner": "somebody"})
    with pytest.raises(StoreError, match=f"already has a collection `{name}` of another program"):
        await MongoStore(url, LIVES).__aenter__()


async def test_of_two_processes_that_find_an_older_copy_one_renews_it_and_a_third_that_runs_ends(url: str, plain: Plain) -> None:
    async with MongoStore(url, LIVES) as one, MongoStore(url, LIVES) as two, MongoStore(url, LIVES) as running:
        before = one.version.identity
        await one.renew_identity()
        await two.renew_identity()
        assert one.version.identity == two.version.identity != before
        for store in (one, two):
            await store.write([trade(1)], [])
            await store.check()
        for access in (running.check, lambda: running.write([trade(2)], [])):
            with pytest.raises(StoreLost, match="was replaced by another or an older copy"):
                await access()


@pytest.mark.parametrize("deleted", [False, True])
async def test_after_a_failover_that_lost_acknowledged_writes_nothing_is_claimed_that_is_not_stored(
    url: str, plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: bool
) -> None:
    """The newest writes are rolled back: with or without what the journal has deleted since."""
    if deleted:
        monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 10)
    async with MongoStore(url, Retention(3_650 * DAY, 3_650 * DAY, 3_650 * DAY)) as store, Journal(tmp_path, 1 << 20) as journal:
        r = Recording(store, journal, ManualClock())
        await r.begin()
        for seq in range(1, 11):
            await r.trade(market.trade(seq, NOON + 100 * seq))
            await r.save()
        plain["trades"].delete_many({"seq": {"$gte": 9}})
        plain["counters"].update_one({"_id": "writes"}, {"$inc": {"value": -4}})
        plain["coverage"].update_many({}, {"$set": {"last_seq": Int64(8), "end": datetime.fromtimestamp((NOON + 801) / 1_000, UTC)}})
        await r.trade(market.trade(11, NOON + 1_100))
        await r.writer._journal_all()
        for _ in range(5):
            with pytest.raises(StoreLost, match="was replaced by another or an older copy") as error:
                await r.writer.drain()
            r.writer.store_failed(error.value)
    async with MongoStore(url, Retention(3_650 * DAY, 3_650 * DAY, 3_650 * DAY)) as store, Journal(tmp_path, 1 << 20) as journal:
        r = Recording(store, journal, ManualClock())
        await r.begin()
        await r.trade(market.trade(12, NOON + 1_200))
        await r.save()
        spans = await store.spans(SPOT, Window(NOON - DAY, NOON + DAY))
        claimed = {seq for span in spans for seq in range(span.first_seq, span.last_seq + 1)}
        stored = {each.seq for each in await store.trades(SPOT, Window(NOON - DAY, NOON + DAY), limit=100)}
        assert claimed <= stored
        # What the journal had not deleted is stored again.
        assert stored == set(range(1, 13)) - ({9, 10} if deleted else set())
        assert ("restored store" in r.health.parts) is deleted


async def test_what_coverage_claims_before_the_oldest_documents_is_expired(url: str, plain: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongo, "_SEARCH_SECONDS", 0.0)
    start, oldest = T0, T0 + 2 * DAY
    async with MongoStore(url, LIVES) as store:
        await store.save_listings([Listing(BTC, Decimal("0.01"), Decimal("0.001"), True), Listing(ETH, Decimal("0.01"), Decimal(1), True)])
        await store.write([trade(9, oldest)], [(BTC, span(start, oldest + DAY, 1, 9)), (ETH, span(start, start + DAY, 1, 9))])
        await store.derive(Derived([], [], [order_flow(start + DAY, [trade(5, start + DAY)])], await store.dirty_minutes()))
        await store.expire(None, LIVES)
        assert Window(start, oldest) in (await store.expired(BTC)).trades
    # Nor does a database of the version before, which has no record of its retention.
    plain["expired"].delete_many({})
    async with MongoStore(url, LIVES) as store:
        found = await store.expired(BTC)
        assert Window(start, oldest) in found.trades
        assert Window(start, start + DAY) in found.minutes
        assert Window(start, start + DAY) in found.hours
        assert all(Window(start, start + DAY) in stretches for stretches in await store.expired(ETH))


async def test_a_minute_that_is_not_derived_yet_is_not_expired(url: str) -> None:
    async with MongoStore(url, LIVES) as store:
        await store.save_listings([Listing(BTC, Decimal("0.01"), Decimal("0.001"), True)])
        await store.write([trade(1, T0), trade(2, T0 + 5)], [(BTC, span(T0 + 1, T0 + 5, 1, 2))])
        await store.expire(None, LIVES)
        window = Window(T0, T0 + MINUTE)
        assert not (await store.expired(BTC)).of_bars(window, Timeframe.M1)
        assert not (await store.expired(BTC)).of_trades(window)


async def test_the_state_has_the_time_of_the_server(url: str) -> None:
    async with MongoStore(url, LIVES) as store:
        now = (await store.state()).now
        assert now is not None
        assert abs(now - now_ms()) < MINUTE
