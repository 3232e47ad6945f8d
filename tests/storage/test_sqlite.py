"""What is specific to SQLite: the file, several processes, damage, crashes."""

# Blocking calls are fine here: nothing else runs on the event loop of these tests.

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from wadm_mcp.coverage.expired import Expired
from wadm_mcp.errors import StoreError
from wadm_mcp.model import DAY, HOUR, MINUTE, Timeframe, Window
from wadm_mcp.storage import sqlite_expiry, sqlite_schema
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Derived, Retention

from . import BTC, ETH, EVER, T0, every_trade, order_flow, piece, profile, span, sqlite_profiles, stored_footprint, trade

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "wadm.sqlite"


def pragma(db: sqlite3.Connection | None, name: str) -> Any:
    assert db is not None
    return db.execute(f"PRAGMA {name}").fetchone()[0]


async def record(path: Path, count: int = 2_000) -> None:
    """Writes a file with `count` trades, coverage, and one row of each other kind."""
    async with SqliteStore(path) as store:
        trades = [trade(seq, T0 + seq) for seq in range(count)]
        await store.write(trades, [(BTC, span(T0, T0 + count))])
        await store.derive(Derived([stored_footprint(T0, trades)], [profile(T0, trades)], [order_flow(T0, trades)]))


async def test_the_file_is_made_for_durable_writes_and_for_shrinking(path: Path) -> None:
    async with SqliteStore(path) as store:
        writer = store._writer
        assert pragma(writer, "journal_mode") == "wal"
        assert pragma(writer, "synchronous") == 2
        assert pragma(writer, "auto_vacuum") == 2
        assert pragma(writer, "application_id") == sqlite_schema.APPLICATION_ID
        assert pragma(writer, "user_version") == sqlite_schema.SCHEMA_VERSION
        assert pragma(writer, "busy_timeout") == sqlite_schema.BUSY_SECONDS * 1_000
    async with SqliteStore(path) as store:
        assert pragma(store._writer, "synchronous") == 2
        assert pragma(store._writer, "journal_mode") == "wal"


async def test_no_read_and_no_write_scans_a_table(path: Path) -> None:
    asked: set[str] = set()
    async with SqliteStore(path) as store:
        connections = [store._writer, *store._readers]
        for db in connections:
            assert db is not None
            db.set_trace_callback(asked.add)
        trades = [trade(seq, T0 + seq) for seq in range(5)]
        await store.write(trades, [(BTC, span(T0, T0 + 5))])
        await store.derive(
            Derived([stored_footprint(T0, trades)], [profile(T0, trades)], [order_flow(T0, trades)], [(await store.dirty_minutes())[0]])
        )
        for newest in (False, True):
            await store.trades(BTC, EVER, limit=3, newest=newest)
            await store.trades(BTC, EVER, after=trades[2].order, limit=3, newest=newest)
        await store.footprints(BTC, Timeframe.M1, EVER)
        await store.order_flow(BTC, Timeframe.M1, EVER)
        await store.spans(BTC, EVER)
        await store.state()
        await store.expire(T0 + DAY, Retention(1, 1, 1))
        for db in connections:
            assert db is not None
            db.set_trace_callback(None)
        plans = {
            statement: [str(row[3]) for row in store._readers[0].execute(f"EXPLAIN QUERY PLAN {statement}")]
            for statement in asked
            if statement.split()[0] in ("SELECT", "UPDATE", "DELETE", "INSERT")
        }
    assert len(plans) > 20
    # These small tables are read completely: all marks, all instruments, and those of one row.
    whole = ("SCAN marks", "SCAN instruments", "SCAN identity", "SCAN counter", "SCAN CONSTANT ROW", "SCAN (subquery")
    for statement, plan in plans.items():
        for step in plan:
            assert not step.startswith("SCAN") or step.startswith(whole), f"{step}: {statement}"
            assert "AUTOMATIC" not in step, statement
            assert "TEMP B-TREE" not in step or "RIGHT PART" in step or "coverage" in statement, f"{step}: {statement}"


async def test_the_page_after_a_trade_is_found_by_index(path: Path) -> None:
    await record(path, count=20_000)
    async with SqliteStore(path, read_only=True) as store:
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        for db in store._readers:
            db.set_progress_handler(count, 100)
        after = (T0 + 19_990, 19_990, 0, "")
        assert len(await store.trades(BTC, Window(T0, T0 + 20_000), after=after, limit=100)) == 10
        assert steps < 50


async def test_a_reader_beside_the_writer_sees_its_commits(path: Path) -> None:
    async with SqliteStore(path) as writer, SqliteStore(path, read_only=True) as reader:
        assert await every_trade(reader) == []
        await writer.write([trade(1)], [(BTC, span(T0, T0))])
        assert await every_trade(reader) == [trade(1)]
        assert await reader.spans(BTC, EVER) == [span(T0, T0)]
        await writer.write([trade(1, instrument=ETH)], [])
        assert await every_trade(reader, ETH) == [trade(1, instrument=ETH)]
        assert len(await reader.dirty_minutes()) == 2


READING = """
import sys, anyio
from pathlib import Path
from wadm_mcp.model import Instrument, Window
from wadm_mcp.storage.sqlite import SqliteStore

async def main():
    async with SqliteStore(Path(sys.argv[1]), read_only=True) as store:
        for _ in sys.stdin:
            trades = await store.trades(Instrument("binance", "spot", "BTCUSDT"), Window(0, 1 << 60), limit=100)
            print(len(trades), flush=True)

anyio.run(main)
"""


async def test_another_process_reads_what_this_one_commits(path: Path) -> None:
    async with SqliteStore(path) as store:
        await store.write([trade(1)], [])
        with anyio.fail_after(30):
            async with await anyio.open_process([sys.executable, "-c", READING, str(path)], stderr=None) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                answers = BufferedByteReceiveStream(process.stdout)
                await process.stdin.send(b"\n")
                assert await answers.receive_until(b"\n", 100) == b"1"
                await store.write([trade(2), trade(3)], [])
                await process.stdin.send(b"\n")
                assert await answers.receive_until(b"\n", 100) == b"3"
                await process.stdin.aclose()
                await process.wait()


async def test_a_read_only_store_writes_and_changes_nothing(path: Path) -> None:
    await record(path)
    before = path.read_bytes()
    async with SqliteStore(path, read_only=True) as store:
        assert len(await every_trade(store)) == 2_000
        writes: list[Callable[[], Awaitable[object]]] = [
            lambda: store.write([trade(1)], []),
            lambda: store.derive(Derived([stored_footprint(T0)])),
            lambda: store.expire(T0 + DAY, Retention(1, 1, 1)),
        ]
        for write in writes:
            with pytest.raises(StoreError, match="opened for reading only"):
                await write()
    assert path.read_bytes() == before


async def test_a_reader_finds_nothing_recorded_where_there_is_no_file_yet(path: Path) -> None:
    with pytest.raises(StoreError, match=r"nothing was recorded in .*wadm\.sqlite yet"):
        await SqliteStore(path, read_only=True).__aenter__()
    assert not path.parent.exists()
    path.parent.mkdir()
    path.touch()
    with pytest.raises(StoreError, match="nothing was recorded"):
        await SqliteStore(path, read_only=True).__aenter__()
    assert path.read_bytes() == b""


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("statements", "says"),
    [
        ([f"PRAGMA user_version = {sqlite_schema.SCHEMA_VERSION + 1}"], "newer WADM.*upgrade wadm-mcp"),
        (["PRAGMA application_id = 7"], "another program's database.*move it away"),
    ],
)
async def test_a_file_of_another_program_or_a_newer_wadm_is_refused_and_not_changed(
    path: Path, read_only: bool, statements: list[str], says: str
) -> None:
    await record(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)
    await refused_and_left_alone(path, says, read_only)


async def test_a_file_of_the_first_schema_is_migrated_by_a_writer_and_refused_by_a_reader(path: Path) -> None:
    await record(path)
    stored = span(T0, T0 + 9, 3, 7)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in (
            "DROP TABLE pieces",
            "DROP TABLE tracked",
            "ALTER TABLE instruments DROP COLUMN status",
            "UPDATE instruments SET tick = '0.1', lot = '0.001', trading = 0",
            "DROP TABLE coverage",
            """CREATE TABLE coverage (
                instrument INTEGER NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL, first_seq INTEGER NOT NULL,
                last_seq INTEGER NOT NULL, basis TEXT NOT NULL, reason TEXT NOT NULL, opened_by TEXT NOT NULL,
                PRIMARY KEY (instrument, start)) WITHOUT ROWID""",
            "CREATE INDEX coverage_by_end ON coverage (instrument, end)",
            f"INSERT INTO coverage VALUES (1, {stored.start}, {stored.end}, 3, 7, 'exact', 'live', 'start')",
            "PRAGMA user_version = 1",
        ):
            db.execute(statement)
    await refused_and_left_alone(path, "has schema .*run `wadm-mcp serve` once to migrate it, or set WADM_DATA_DIR", read_only=True)
    async with SqliteStore(path) as store:
        assert await store.spans(BTC, EVER) == [stored]
        await store.write([], [(BTC, span(T0, T0 + 20, 8, 9))], [piece(T0, 10)])
    async with SqliteStore(path) as again, SqliteStore(path, read_only=True) as reader:
        for store in (again, reader):
            assert await store.spans(BTC, EVER) == [stored, span(T0, T0 + 20, 8, 9)]
            assert await store.pieces(BTC, EVER) == [piece(T0, 10)]
            assert await store.tracked() == []
            assert {(one.trading, one.status) for one in await store.listings()} == {(False, "")}


async def refused_and_left_alone(path: Path, says: str, read_only: bool = False) -> None:
    before = path.read_bytes()
    with pytest.raises(StoreError, match=says) as error:
        await SqliteStore(path, read_only=read_only).__aenter__()
    assert str(path) in str(error.value)
    assert "WADM_DATA_DIR" in str(error.value)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


async def test_the_database_of_another_program_is_refused_and_not_changed(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (id INTEGER)")
    await refused_and_left_alone(path, "another program's database")


async def test_a_file_that_is_not_a_database_is_refused_and_not_changed(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("timestamp,price,quantity\n" * 1_000)
    await refused_and_left_alone(path, "is not a database")


async def test_a_damaged_header_is_named(path: Path) -> None:
    await record(path)
    with path.open("r+b") as file:
        file.write(os.urandom(16))
    await refused_and_left_alone(path, "is not a database, or its beginning is damaged")


async def test_a_truncated_file_is_named(path: Path) -> None:
    await record(path)
    os.truncate(path, path.stat().st_size // 4096 // 2 * 4096)
    await refused_and_left_alone(path, "damaged.*restore a backup")


async def test_a_damaged_page_is_reported_on_opening_or_reading_and_never_read_as_trades(path: Path) -> None:
    await record(path, count=3_000)
    whole, expected = path.read_bytes(), [trade(seq, T0 + seq) for seq in range(3_000)]
    named = 0
    for page in range(1, len(whole) // 4096):
        path.write_bytes(whole[: page * 4096] + b"\xa5" * 4096 + whole[(page + 1) * 4096 :])
        try:
            async with SqliteStore(path, read_only=True) as store:
                assert await every_trade(store) == expected
        except StoreError as error:
            named += str(path) in str(error)
    assert named > len(whole) // 4096 // 2


async def test_damage_that_the_opening_check_missed_is_reported_by_the_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await record(path, count=20_000)
    whole = path.read_bytes()
    monkeypatch.setattr(sqlite_schema, "_check", lambda db, path: None)  # type: ignore[misc]
    path.write_bytes(b"".join(whole[at : at + 4096] if at < 4096 * 60 else b"\xa5" * 4096 for at in range(0, len(whole), 4096)))
    async with SqliteStore(path, read_only=True) as store:
        with pytest.raises(StoreError, match="damaged"):
            await every_trade(store)


async def test_the_check_of_a_huge_file_ends_at_its_time_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await record(path, count=20_000)
    monkeypatch.setattr(sqlite_schema, "CHECK_SECONDS", 0)
    async with SqliteStore(path) as store:
        assert len(await every_trade(store)) == 20_000


@pytest.mark.parametrize(("table", "column"), [("footprints", "packed"), ("order_flow", "bar")])
async def test_a_packed_value_that_cannot_be_read_is_named(path: Path, table: str, column: str) -> None:
    await record(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"UPDATE {table} SET {column} = x'c1'")
    async with SqliteStore(path) as store:
        find = {"footprints": store.footprints, "order_flow": store.order_flow}[table]
        with pytest.raises(StoreError, match=f"{table} 1m of binance:spot:BTCUSDT, row {T0}"):
            await find(BTC, Timeframe.M1, EVER)
        assert len(await every_trade(store)) == 2_000


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path, read_only: bool) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/wadm\.sqlite.*WADM_DATA_DIR"):
        await SqliteStore(tmp_path / "file" / "wadm.sqlite", read_only=read_only).__aenter__()


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path, read_only: bool) -> None:
    with pytest.raises(StoreError, match=f"{tmp_path.name}.*WADM_DATA_DIR"):
        await SqliteStore(tmp_path, read_only=read_only).__aenter__()


async def test_a_full_disk_stores_nothing_of_the_batch_and_a_retry_succeeds(path: Path) -> None:
    async with SqliteStore(path) as store:
        await store.write([trade(1)], [])
        assert store._writer is not None
        pages = pragma(store._writer, "page_count")
        store._writer.execute(f"PRAGMA max_page_count = {pages + 3}").fetchone()
        batch = [trade(seq, T0 + MINUTE) for seq in range(2, 20_000)]
        with pytest.raises(StoreError, match=r"the disk of .* is full: nothing of this write was stored"):
            await store.write(batch, [(ETH, span(T0, T0 + MINUTE))])
        assert await every_trade(store) == [trade(1)]
        assert [mark.minute for mark in await store.dirty_minutes()] == [T0]
        assert await store.spans(ETH, EVER) == []
        store._writer.execute(f"PRAGMA max_page_count = {1 << 30}").fetchone()
        await store.write(batch, [(ETH, span(T0, T0 + MINUTE))])
        assert len(await every_trade(store)) == 19_999
        assert await store.spans(ETH, EVER) == [span(T0, T0 + MINUTE)]


async def test_a_read_only_file_system_is_named(path: Path) -> None:
    async with SqliteStore(path) as store:
        assert store._writer is not None
        store._writer.execute("PRAGMA query_only = ON")
        with pytest.raises(StoreError, match="read-only"):
            await store.write([trade(1)], [])


async def test_a_lock_of_another_program_is_named_and_a_retry_succeeds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_schema, "BUSY_SECONDS", 0.01)
    async with SqliteStore(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="locked by another program"):
                await store.write([trade(1)], [])
        await store.write([trade(1)], [])
        assert await every_trade(store) == [trade(1)]


async def test_a_number_beyond_64_bits_is_refused_with_its_batch(path: Path) -> None:
    async with SqliteStore(path) as store:
        with pytest.raises(StoreError, match="64 bits"):
            await store.write([trade(1), trade(2**63)], [])
        assert await every_trade(store) == []
        await store.write([trade(1)], [])
        with pytest.raises(StoreError, match="64 bits"):
            await store.trades(BTC, EVER, after=(T0, 2**70, 0, ""), limit=1)


async def test_a_deleted_file_is_not_healthy(path: Path) -> None:
    async with SqliteStore(path) as store:
        path.unlink()
        with pytest.raises(StoreError, match="cannot be reached"):
            await store.state()


async def test_a_closed_store_says_so(path: Path) -> None:
    async with SqliteStore(path) as store:
        pass
    with pytest.raises(StoreError, match="closed"):
        await store.write([trade(1)], [])
    with pytest.raises(StoreError, match="closed"):
        await store.dirty_minutes()


WRITING = f"""
import os, sys, anyio
from pathlib import Path
from wadm_mcp.storage.sqlite import SqliteStore
from {__package__} import BTC, T0, span, trade

async def main():
    fatal = int(sys.argv[2])
    statements = 0

    def count(statement):
        nonlocal statements
        statements += 1
        if statements == fatal:
            os._exit(9)

    async with SqliteStore(Path(sys.argv[1])) as store:
        store._writer.set_trace_callback(count)
        for batch in range(1_000_000):
            first = batch * 10
            await store.write([trade(seq, T0 + seq) for seq in range(first, first + 10)], [(BTC, span(T0, T0 + first + 9, 0, first + 9))])
            print(batch + 1, flush=True)

anyio.run(main)
"""


async def killed(path: Path, *, fatal: int = 0, kill_after: int | None = None) -> int:
    """Batches that were acknowledged before the process died: at its `fatal`-th statement, or by SIGKILL after `kill_after` batches."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", WRITING, str(path), str(fatal)], stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        acknowledged = 0
        for line in process.stdout:
            acknowledged = int(line)
            if acknowledged == kill_after:
                process.send_signal(signal.SIGKILL)
    assert process.returncode == (9 if kill_after is None else -signal.SIGKILL)
    return acknowledged


async def whole_batches(path: Path) -> int:
    """How many batches are stored. Each is complete, and coverage claims exactly these."""
    async with SqliteStore(path, read_only=True) as reader:
        seen = await every_trade(reader)
    async with SqliteStore(path) as store:
        assert await every_trade(store) == seen
        seqs = [one.seq for one in await every_trade(store)]
        spans = await store.spans(BTC, EVER)
        marks = await store.dirty_minutes()
    assert seqs == list(range(len(seqs)))
    assert len(seqs) % 10 == 0
    assert [one.last_seq for one in spans] == ([len(seqs) - 1] if seqs else [])
    assert len(marks) == (1 if seqs else 0)
    return len(seqs) // 10


@pytest.mark.parametrize("fatal", [1, 4, 12, 17, 18, 19, 20, 33, 40])
async def test_a_crash_during_a_write_loses_nothing_acknowledged_and_stores_no_part_of_a_batch(path: Path, fatal: int) -> None:
    acknowledged = await killed(path, fatal=fatal)
    assert await whole_batches(path) in (acknowledged, acknowledged + 1)


@pytest.mark.parametrize("kill_after", [1, 30])
async def test_a_kill_between_writes_loses_nothing_acknowledged(path: Path, kill_after: int) -> None:
    acknowledged = await killed(path, kill_after=kill_after)
    assert acknowledged >= kill_after
    assert await whole_batches(path) in (acknowledged, acknowledged + 1)


async def test_each_kind_of_data_expires_after_its_own_retention(path: Path) -> None:
    async with SqliteStore(path) as store:
        now, retention = T0 + 100 * DAY, Retention(trades=DAY, minutes=10 * DAY, hours=50 * DAY)
        ages = [now - age * DAY for age in (60, 20, 5, 0)]
        for instrument in (BTC, ETH):
            await store.write([trade(at, at, instrument=instrument) for at in ages], [(instrument, span(at - 1, at)) for at in ages])
            for timeframe in Timeframe:
                await store.derive(
                    Derived(
                        [stored_footprint(at, instrument=instrument, timeframe=timeframe) for at in ages],
                        [profile(at, instrument=instrument, timeframe=timeframe) for at in ages],
                        [order_flow(at, instrument=instrument, timeframe=timeframe) for at in ages],
                    )
                )
        await store.derive(Derived(settles=await store.dirty_minutes()))
        deleted = 0
        while went := await store.expire(now, retention):
            deleted += went
        for instrument in (BTC, ETH):
            assert [one.timestamp for one in await every_trade(store, instrument)] == ages[3:]
            assert [one.end for one in await store.spans(instrument, EVER)] == ages[1:]
            for timeframe in Timeframe:
                kept = ages[2:] if timeframe.ms < HOUR else ages[1:]
                assert [one.start for one in await store.footprints(instrument, timeframe, EVER)] == kept
                assert [one.start for one in sqlite_profiles(path, instrument, timeframe)] == kept
                assert [one.start for one in await store.order_flow(instrument, timeframe, EVER)] == kept
        assert deleted == 2 * (3 + 1 + 3 * (4 * 2 + 3 * 1))


async def test_a_span_stays_when_another_of_the_same_start_expires(path: Path) -> None:
    async with SqliteStore(path) as store:
        now = T0 + 10 * DAY
        short, across = span(T0, T0 + MINUTE, 1, 1), span(T0, T0 + 6 * DAY, 2, 9)
        await store.write([], [(BTC, short), (BTC, across)])
        await store.expire(now, Retention(DAY, DAY, 5 * DAY))
        assert await store.spans(BTC, EVER) == [across]


async def test_a_span_over_the_cutoff_stays_whole(path: Path) -> None:
    async with SqliteStore(path) as store:
        now = T0 + 10 * DAY
        across = span(T0, T0 + 6 * DAY)
        await store.write([], [(BTC, span(T0 - 9, T0 - 5)), (BTC, across)])
        await store.expire(now, Retention(DAY, DAY, 5 * DAY))
        assert await store.spans(BTC, EVER) == [across]


async def test_volume_profiles_are_stored_unchanged_and_only_a_newer_revision_replaces_one(path: Path) -> None:
    sums = profile(T0 + MINUTE, [trade(seq, price=2**62, quantity=2**63 - 1) for seq in range(5)], revision=1)
    empty = profile(T0 + 2 * MINUTE)
    assert empty.profile is None
    async with SqliteStore(path) as store:
        await store.derive(Derived(profiles=[empty, sums, profile(T0, [trade(1)])]))
        assert sqlite_profiles(path) == [profile(T0, [trade(1)]), sums, empty]
        await store.derive(Derived(profiles=[profile(T0, revision=1), profile(T0 + MINUTE)]))
        assert sqlite_profiles(path) == [profile(T0, revision=1), sums, empty]
        assert sqlite_profiles(path, timeframe=Timeframe.H1) == []


async def test_a_profile_in_a_file_states_the_rule_that_made_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = profile(T0, [trade(1)])
    monkeypatch.setattr("wadm_mcp.analytics.volume_profile.RULE_VERSION", 2)
    second = profile(T0 + MINUTE, [trade(2)])
    async with SqliteStore(path) as store:
        await store.derive(Derived(profiles=[first, second]))
    stored = sqlite_profiles(path)
    assert stored == [first, second]
    assert [row.profile and row.profile.rule_version for row in stored] == [1, 2]


async def test_the_size_of_the_write_ahead_log_is_told_apart(path: Path) -> None:
    async with SqliteStore(path) as store:
        await store.write([trade(1)], [])
        state = await store.state()
        assert state.log_bytes == path.with_name(f"{path.name}-wal").stat().st_size > 0
        assert state.bytes == path.stat().st_size + state.log_bytes


async def test_the_size_grows_with_what_is_written(path: Path) -> None:
    async with SqliteStore(path) as store:
        before = await store.state()
        await store.write([trade(seq, T0 + seq) for seq in range(5_000)], [])
        assert (await store.state()).bytes > before.bytes


async def test_expiry_is_bounded_and_the_file_shrinks_with_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_expiry, "MAX_ROWS", 3_000)
    monkeypatch.setattr(sqlite_expiry, "MAX_PAGES", 10)
    async with SqliteStore(path) as store:
        for instrument in (BTC, ETH):
            await store.write([trade(seq, T0 + seq // 7, instrument=instrument) for seq in range(10_000)], [])
        await store.derive(Derived(settles=await store.dirty_minutes()))
        await store.expire(T0, Retention(DAY, DAY, DAY))
        assert store._writer is not None
        store._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        full = path.stat().st_size
        now, retention = T0 + DAY + 1_000, Retention(DAY, DAY, DAY)
        assert await store.expire(now, retention) == 3_000
        assert (await every_trade(store))[0].seq == 3_000, "the oldest go first, also within one millisecond"
        deleted = 3_000
        while went := await store.expire(now, retention):
            assert went <= 3_000
            deleted += went
        assert deleted == 2 * 7_000
        assert [one.timestamp - T0 for one in (await every_trade(store, ETH))[:1]] == [1_000]
        shrunk = path.stat().st_size
        assert shrunk < full * 3 // 4
        await store.expire(now + DAY, retention)
        assert shrunk - path.stat().st_size == 10 * 4096
        with closing(sqlite3.connect(path)) as db:
            assert pragma(db, "quick_check") == "ok"


async def test_trades_of_a_minute_that_was_not_derived_yet_do_not_expire(path: Path) -> None:
    now, retention = T0 + 10 * DAY, Retention(DAY, DAY, DAY)
    minutes = [T0, T0 + MINUTE, T0 + 2 * MINUTE, T0 + 9 * DAY]
    async with SqliteStore(path) as store:
        await store.write([trade(at + seq, at + seq) for at in minutes for seq in (0, MINUTE - 1)], [])
        marks = await store.dirty_minutes()
        await store.derive(Derived(settles=[mark for mark in marks if mark.minute != minutes[1]]))
        assert await store.expire(now, retention) == 4
        assert {one.timestamp - one.timestamp % MINUTE for one in await every_trade(store)} == {minutes[1], minutes[3]}
        await store.derive(Derived(settles=marks))
        assert await store.expire(now, retention) == 2


async def test_the_event_loop_turns_while_a_big_batch_is_written(path: Path) -> None:
    turns = 0
    async with SqliteStore(path) as store, anyio.create_task_group() as tasks:

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        tasks.start_soon(count_turns)
        batch = [trade(seq, T0 + seq) for seq in range(50_000)]
        turns = 0
        await store.write(batch, [])
        assert turns > 10
        tasks.cancel_scope.cancel()


async def test_reads_succeed_during_a_write(path: Path) -> None:
    async with SqliteStore(path) as store:
        await store.write([trade(1)], [])
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.write, [trade(2)], [])
                for _ in range(5):
                    assert await every_trade(store) == [trade(1)]
                other.execute("ROLLBACK")
        assert await every_trade(store) == [trade(1), trade(2)]


async def test_a_cancelled_write_is_finished_before_the_store_closes(path: Path) -> None:
    batch = [trade(seq, T0 + seq) for seq in range(5_000)]
    async with anyio.create_task_group() as tasks, SqliteStore(path) as store:
        tasks.start_soon(store.write, batch, [])
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    async with SqliteStore(path, read_only=True) as store:
        assert await every_trade(store) in ([], batch)


async def test_a_path_with_characters_of_a_url_is_only_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a folder?mode=memory#50%" / "wadm ü.sqlite"
    await record(path, count=3)
    assert path.exists()
    async with SqliteStore(path, read_only=True) as store:
        assert len(await every_trade(store)) == 3


@pytest.mark.parametrize("longer", [Retention(DAY, DAY, DAY), Retention(400 * DAY, 400 * DAY, 400 * DAY)])
async def test_what_expiry_deleted_stays_expired_after_a_restart_with_any_retention(path: Path, longer: Retention) -> None:
    now, retention = T0 + 10 * DAY, Retention(DAY, 2 * DAY, 3 * DAY)
    starts = [now - age * HOUR for age in (12, 36, 60, 84)]
    async with SqliteStore(path) as store:
        await store.write([trade(seq, start) for seq, start in enumerate(starts)], [(BTC, span(starts[-1], now, 0, 3))])
        for mark in await store.dirty_minutes():
            await store.derive(Derived(settles=[mark]))
        for start in starts:
            rows = [stored_footprint(start, [trade(1, start)], timeframe=timeframe) for timeframe in (Timeframe.M1, Timeframe.H1)]
            await store.derive(Derived(footprints=rows))
        assert await store.expired(BTC) == Expired()
        assert await store.expire(None, retention) == 0
        while await store.expire(now, retention):
            pass
    async with SqliteStore(path) as again, SqliteStore(path, read_only=True) as reader:
        await again.expire(now, longer)
        for store in (again, reader):
            gone, window = await store.expired(BTC), Window(starts[-1], now)
            assert gone.of_trades(window) == [Window(starts[-1], now - DAY)]
            assert gone.of_bars(window, Timeframe.M1)[0].end >= now - 2 * DAY
            assert gone.of_bars(window, Timeframe.H1)[0].end >= now - 3 * DAY
            assert await store.expired(ETH) == Expired()


async def test_history_that_is_imported_before_what_was_deleted_is_not_expired(path: Path) -> None:
    now, year = T0 + 10 * DAY, Retention(400 * DAY, 400 * DAY, 400 * DAY)
    async with SqliteStore(path) as store:

        async def write(*starts: int) -> None:
            await store.write([trade(start % 1_000_003, start) for start in starts], [])
            for mark in await store.dirty_minutes():
                await store.derive(Derived(settles=[mark]))

        await write(now - 3 * DAY, now - HOUR)
        await store.expire(now, Retention(DAY, DAY, DAY))
        await write(now - 8 * DAY, now - 7 * DAY, now - 6 * DAY)
        assert (await store.expired(BTC)).trades == (Window(now - 3 * DAY, now - DAY),)
        await store.expire(now, Retention(7 * DAY, DAY, DAY))
        assert (await store.expired(BTC)).trades == (Window(now - 8 * DAY, now - 7 * DAY), Window(now - 3 * DAY, now - DAY))
        await store.expire(now, Retention(2 * DAY, DAY, DAY))
        assert (await store.expired(BTC)).trades == (Window(now - 8 * DAY, now - DAY),)
        await store.expire(now, year)
        await store.expire(now + 300, Retention(DAY // 2, DAY, DAY))
        assert (await store.expired(BTC)).trades == (Window(now - 8 * DAY, now - DAY),)


async def test_a_deletion_that_is_rolled_back_is_not_recorded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with SqliteStore(path) as store:
        await store.write([trade(1, T0)], [])
        await store.derive(Derived(settles=await store.dirty_minutes()))

        def fail(*_: object) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        with monkeypatch.context() as patch:
            patch.setattr(sqlite_expiry, "_record", fail)
            with pytest.raises(StoreError):
                await store.expire(T0 + DAY, Retention(1, 1, 1))
        assert await store.expired(BTC) == Expired()
        assert len(await store.trades(BTC, EVER, limit=9)) == 1


async def test_a_file_of_the_version_before_is_not_claimed_before_its_oldest_rows(path: Path) -> None:
    async with SqliteStore(path) as store:
        await store.write([trade(9, T0 + 2 * DAY)], [(BTC, span(T0, T0 + 3 * DAY, 1, 9)), (ETH, span(T0, T0 + DAY, 1, 9))])
        await store.derive(Derived(settles=await store.dirty_minutes()))
        await store.derive(Derived([], [], [order_flow(T0 + DAY, [trade(5, T0 + DAY)])]))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DROP TABLE expired")
        db.execute("PRAGMA user_version = 4")
    async with SqliteStore(path) as store:
        assert await store.expired(BTC) == Expired((Window(T0, T0 + 2 * DAY),), (Window(T0, T0 + DAY),), (Window(T0, T0 + DAY),))
        everything = (Window(T0, T0 + DAY),)
        assert await store.expired(ETH) == Expired(everything, everything, everything)
