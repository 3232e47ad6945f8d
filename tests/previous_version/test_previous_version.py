"""A tape of the previous version opens unchanged: a data directory and a MongoDB database that it made, and what it answered from them.

README.md says how they were made. Both tapes hold the same market, so they share their answers.
"""

from __future__ import annotations

import json
import lzma
import sqlite3
import tarfile
from collections import defaultdict
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeAlias

import anyio
import pymongo
import pytest
from bson import json_util
from bson.raw_bson import RawBSONDocument
from filelock import FileLock
from pymongo.database import Database

from tests.servers import mongodb_url
from wadm_mcp.clock import Clock
from wadm_mcp.model import MINUTE, Instrument, Timeframe, Window
from wadm_mcp.runtime import Runtime
from wadm_mcp.server.questions import QUESTIONS
from wadm_mcp.settings import Settings, read_settings
from wadm_mcp.storage.opening import open_store
from wadm_mcp.storage.store import Derived, Store

pytestmark = pytest.mark.anyio

Rows: TypeAlias = Mapping[str, Sequence[dict[str, Any]]]
"""Documents of each collection, or rows of each table by column."""

_HERE: Final = Path(__file__).parent
_EVER: Final = Window(0, 1 << 41)
_WRITTEN_ON_OPENING: Final = {
    "sqlite": ("trades", "pieces", "marks", "footprints", "profiles", "order_flow", "coverage"),
    "mongodb": ("trades", "pieces", "marks", "footprints", "bars", "volume_profiles", "order_flow", "coverage", "leases"),
}
"""Where taking over the tape leaves documents that the previous version did not write."""

_COPIED: Final = {
    "sqlite": ("instruments", "trades", "pieces", "footprints", "order_flow", "coverage", "tracked"),
    "mongodb": ("trades", "pieces", "footprints", "bars", "order_flow", "coverage", "listings", "tracked"),
}
"""What a store that is filled from the tape holds like the tape itself."""


@cache
def recorded() -> Mapping[str, Any]:
    """What the previous version read and answered."""
    with lzma.open(_HERE / "answers.json.xz", "rt") as file:
        return json.load(file)


class PreviousTape:
    """A copy of a tape: its settings, its data directory and, where it has one, its database."""

    def __init__(self, kind: str, folder: Path, url: str | None = None) -> None:
        self.kind = kind
        self.folder = folder
        self.url = url
        overrides = {**recorded()["settings"], "WADM_DATA_DIR": folder, **({"MONGODB_URL": url} if url else {})}
        self.settings: Settings = read_settings({}, overrides=overrides)

    def rows(self) -> Rows:
        """Everything that is stored; SQLite's numbers of instruments are replaced by their names."""
        if self.url is not None:
            with pymongo.MongoClient[dict[str, Any]](self.url, datetime_conversion="DATETIME_MS", tz_aware=True) as client:
                database = client.get_default_database()
                return {name: list(database[name].find(sort=[("_id", 1)])) for name in database.list_collection_names()}
        with closing(sqlite3.connect(self.folder / "wadm.sqlite")) as db:
            db.row_factory = sqlite3.Row
            tables = [row["name"] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
            rows = {table: [dict(row) for row in db.execute(f"SELECT * FROM {table}")] for table in tables}
        names = {row["id"]: f"{row['exchange']}:{row['market']}:{row['symbol']}" for row in rows["instruments"]}
        for table in tables:
            for row in rows[table]:
                if table == "instruments":
                    row.pop("id")
                elif "instrument" in row:
                    row["instrument"] = names[row["instrument"]]
        return rows


@pytest.fixture(scope="module")
def mongodb() -> Generator[str]:
    with mongodb_url() as url:
        yield url


@pytest.fixture(params=["sqlite", "mongodb"])
def tape(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[PreviousTape]:
    kind = str(request.param)
    with tarfile.open(_HERE / f"{kind}.tar.xz") as archive:
        archive.extractall(tmp_path / "tape", filter="data")
    if kind == "sqlite":
        yield PreviousTape(kind, tmp_path / "tape")
        return
    url = f"{request.getfixturevalue('mongodb')}/wadm_previous_version"
    with pymongo.MongoClient[dict[str, Any]](url) as client:
        name = client.get_default_database().name
        client.drop_database(name)
        _restore(client.get_default_database(), tmp_path / "tape" / "dump")
        yield PreviousTape(kind, tmp_path / "tape" / "data", url)
        for made in (name, f"{name}_copy"):
            client.drop_database(made)


def _restore(database: Database[dict[str, Any]], folder: Path) -> None:
    """Make a database from its dump: every collection with the options and indexes that it had, and the BSON of its documents."""
    for file in sorted(folder.glob("*.bson")):
        about = json_util.loads(file.with_suffix(".metadata.json").read_text())
        database.create_collection(file.stem, **about["options"])
        for index in about["indexes"]:
            if index["name"] != "_id_" and "clustered" not in index:
                index.pop("v")
                database.command("createIndexes", file.stem, indexes=[index])
        data, rows = file.read_bytes(), list[Any]()
        while data:
            size = int.from_bytes(data[:4], "little")
            rows.append(RawBSONDocument(data[:size]))
            data = data[size:]
        if rows:
            database[file.stem].insert_many(rows)


@asynccontextmanager
async def running(tape: PreviousTape) -> AsyncGenerator[Runtime]:
    """The present version on a tape, at the time at which the previous one was asked. No exchange can be reached."""
    async with Runtime(tape.settings, clock=Clock(lambda: int(recorded()["now"]))) as runtime:
        with anyio.fail_after(60):
            await runtime.tape.wait_for_listings()
        yield runtime


async def test_the_store_reads_all_that_the_previous_version_left(tape: PreviousTape) -> None:
    async with open_store(tape.settings) as store:
        _assert_same(await _stored(store), recorded()["left"])


async def test_a_standby_process_answers_as_the_previous_version_did(tape: PreviousTape) -> None:
    # The lock by which the versions exclude one another: a recorder of the previous one holds it.
    with FileLock(tape.folder / "recorder.lock"):
        async with running(tape) as runtime:
            assert runtime.role == "standby"
            await _assert_answers(runtime, recorded()["standby"])
            _assert_same(await _stored(runtime.store), recorded()["left"])


async def test_a_recorder_takes_over_the_journal_and_answers_as_the_previous_version_did(tape: PreviousTape) -> None:
    left = tape.rows()
    async with running(tape) as runtime:
        await _until_settled(runtime, tape)
        await _assert_answers(runtime, recorded()["answers"])
        _assert_same(await _stored(runtime.store), recorded()["drained"])
    for name, one in recorded()["drained"]["instruments"].items():
        assert one["trades"][0] > recorded()["left"]["instruments"][name]["trades"][0], f"the journal held no trade of {name}"
    progress = json.loads((tape.folder / "import" / "left.progress").read_text())
    assert progress.keys() >= recorded()["import"].keys()
    assert (progress["done"], progress["refused"]) == (True, True)
    _assert_same_fields(left, tape.rows(), _WRITTEN_ON_OPENING[tape.kind])


async def test_what_is_read_from_the_tape_is_written_as_the_previous_version_wrote_it(tape: PreviousTape, tmp_path: Path) -> None:
    copy = PreviousTape(tape.kind, tmp_path / "copy", f"{tape.url}_copy" if tape.url is not None else None)
    async with open_store(tape.settings) as old, open_store(copy.settings) as new:
        await new.save_listings(await old.listings())
        await new.track(await old.tracked())
        for instrument in _instruments():
            trades = await old.trades(instrument, _EVER, limit=1_000_000)
            spans = [(instrument, span) for span in await old.spans(instrument, _EVER)]
            await new.write(trades, spans, await old.pieces(instrument, _EVER))
            for timeframe in Timeframe:
                bars = await old.order_flow(instrument, timeframe, _EVER)
                await new.derive(Derived(footprints=await old.footprints(instrument, timeframe, _EVER), order_flow=bars))
    old_rows, new_rows = tape.rows(), copy.rows()
    assert new_rows.keys() >= old_rows.keys()
    for name in _COPIED[tape.kind]:
        known = set(old_rows[name][0])
        rows = [{field: value for field, value in row.items() if field in known} for row in new_rows[name]]
        assert sorted(rows, key=str) == sorted(old_rows[name], key=str), name


@pytest.mark.parametrize("tape", ["mongodb"], indirect=True)
async def test_a_lease_of_the_previous_version_is_respected_until_it_ends(tape: PreviousTape) -> None:
    leases = recorded()["leases"]
    leased, others = Instrument.parse(leases["leased"]), _instruments()
    async with open_store(tape.settings) as store:
        assert set(await store.acquire_leases("a recorder of the present version", [leased, *others], 8.0)) == set(others)
        assert set(await store.acquire_leases(leases["living"], [leased], 8.0)) == {leased}
        assert set(await store.acquire_leases(leases["ended"], others, 8.0)) == set()


def _instruments() -> list[Instrument]:
    return [Instrument.parse(name) for name in recorded()["left"]["instruments"]]


async def _until_settled(runtime: Runtime, tape: PreviousTape) -> None:
    """Returns once the journal is drained, only the open minute waits for its end, and the import job is done."""
    now = int(recorded()["now"])
    with anyio.fail_after(60):
        while not (dirty := await runtime.store.dirty_minutes()) or min(each.minute for each in dirty) < now - now % MINUTE:
            await anyio.sleep(0.1)
        while (tape.folder / "import" / "left.order").exists():
            await anyio.sleep(0.1)


async def _assert_answers(runtime: Runtime, expected: Iterable[Mapping[str, Any]]) -> None:
    """Ask again what was asked. `reading` is left out: it is prose. Of `list_markets` the columns that were recorded are compared."""
    asked = {question.name: question for question in QUESTIONS}
    for each in expected:
        answer = dict((await asked[each["question"]].ask(runtime, each["arguments"])).answer)
        answer.pop("reading", None)
        if each["question"] == "list_markets":
            table, columns = answer["markets"], each["answer"]["columns"]
            rows = [[row[table["columns"].index(column)] for column in columns] for row in table["rows"]]
            answer = {"columns": columns, "rows": sorted(rows)}
        assert json.loads(json.dumps(answer)) == each["answer"], f"{each['question']}({each['arguments']})"


def _assert_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert {**found, "instruments": None} == {**expected, "instruments": None}
    for name, one in expected["instruments"].items():
        assert found["instruments"][name] == one, name


async def _stored(store: Store) -> dict[str, Any]:
    """What a store holds, as it was recorded of the previous version; of long tables how many rows, and their digest."""
    return {
        "dirty_minutes": sorted([each.minute, str(each.instrument)] for each in await store.dirty_minutes()),
        "listings": sorted([str(one.instrument), str(one.tick), str(one.lot), one.trading] for one in await store.listings()),
        "tracked": sorted(map(str, await store.tracked())),
        "instruments": {str(instrument): await _stored_of(store, instrument) for instrument in _instruments()},
    }


async def _stored_of(store: Store, instrument: Instrument) -> dict[str, Any]:
    spans = [
        [span.start, span.end, span.first_seq, span.last_seq, str(span.basis), str(span.reason), str(span.opened_by), span.raw]
        for span in await store.spans(instrument, _EVER)
    ]
    trades = [
        [one.timestamp, one.seq, one.trade_id, one.price, one.quantity, one.trade_type.value, one.fills, *one.scale]
        for one in await store.trades(instrument, _EVER, limit=1_000_000)
    ]
    pieces = [[one.minute, one.first_seq, one.last_seq, one.footprint.pack().hex()] for one in await store.pieces(instrument, _EVER)]
    footprints = [
        [timeframe.value, one.start, one.footprint.pack().hex()]
        for timeframe in Timeframe
        for one in await store.footprints(instrument, timeframe, _EVER)
    ]
    bars = [
        [timeframe.value, one.start, one.bar.pack().hex(), str(one.cumulative_delta)]
        for timeframe in Timeframe
        for one in await store.order_flow(instrument, timeframe, _EVER)
    ]
    tables = {"trades": trades, "pieces": pieces, "footprints": footprints, "order_flow": bars}
    return {"spans": spans, **{name: [len(rows), _digest(rows)] for name, rows in tables.items()}}


def _digest(rows: Sequence[Any]) -> str:
    return sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def _assert_same_fields(old: Rows, new: Rows, written: Iterable[str]) -> None:
    """Fields of all that is stored now have the names and types that they had; a new field may stand beside them."""
    assert new.keys() >= old.keys()
    for name, rows in old.items():
        types, needed = _types(rows), set[str].intersection(*(set(_types([row])) for row in rows))
        for row in new[name]:
            found = _types([row])
            assert found.keys() >= needed, f"{name} lacks {needed - found.keys()}"
            assert all(found[path] <= types[path] for path in found.keys() & types.keys()), f"{name}: {found} are not of {types}"
    for name in written:
        assert any(row not in old[name] for row in new[name]), f"nothing new was written to {name}"


def _types(rows: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
    """The types of each field, those of documents and lists inside by their path."""
    types: defaultdict[str, set[str]] = defaultdict(set)

    def look(path: str, value: Any) -> None:
        types[path].add(type(value).__name__)
        inside = value.items() if isinstance(value, dict) else (("*", each) for each in value) if isinstance(value, list) else ()
        for name, each in inside:
            look(f"{path}.{name}", each)

    for row in rows:
        for name, value in row.items():
            look(name, value)
    return dict(types)
