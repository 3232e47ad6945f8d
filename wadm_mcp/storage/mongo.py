"""The production store: MongoDB through motor, which nothing outside this file knows.

A standalone server has no transactions, so order does their work: what is written first is what may be there without the rest, and
every step can be repeated. The steps that claim something are acknowledged from the server's journal, which by then has all that came
before. Old data leaves by TTL indexes.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeAlias, TypeVar

import pymongo
from anyio import CancelScope, Semaphore, create_task_group, fail_after, move_on_after, to_thread
from anyio.lowlevel import checkpoint_if_cancelled
from bson.objectid import ObjectId
from bson.raw_bson import RawBSONDocument
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorDatabase
from pymongo import DeleteOne, IndexModel, ReplaceOne, ReturnDocument, UpdateOne, WriteConcern
from pymongo.errors import BulkWriteError, CollectionInvalid, OperationFailure, PyMongoError

from wadm_mcp.errors import SettingError, StoreError, ungrouped
from wadm_mcp.model import MINUTE, Instrument, Listing, Retention, Span, Timeframe, Trade, Window
from wadm_mcp.storage import mongo_documents as documents
from wadm_mcp.storage.mongo_documents import Document, date
from wadm_mcp.storage.mongo_errors import damaged, is_duplicate, is_refusal_of_user, plain_words
from wadm_mcp.storage.mongo_indexes import SCHEMA, SCHEMA_VERSION, Index, collections, options
from wadm_mcp.storage.mongo_updates import lease_taking, span_growth
from wadm_mcp.storage.store import (
    CommitBarrier,
    Derived,
    DirtyMinute,
    OrderFlow,
    PartialFootprint,
    Store,
    StoredFootprint,
    StoreState,
    at_once,
    grown,
)

OLDEST_SERVER: Final = (6, 0)

_DATABASE: Final = "wadm"
"""Where the URL names no database."""
_CHUNK: Final = 1_000
"""Trades in one insert. Encoding is not interrupted, so more of them would stall the loop."""
_IN_FLIGHT: Final = 3
"""Inserts of trades that are under way at once."""
_DERIVED_CHUNK: Final = 100
_BATCH: Final = 2_000
"""Documents in one reply, for the same reason."""
_SLACK: Final = 20
"""Trades read beyond those asked for, so that the last millisecond of them is seldom the one that is cut."""
_SELECTION_MS: Final = 2_000
_SOCKET_MS: Final = 4_000
_CLOSING: Final = 1.0
"""Seconds a server is given to part in good order."""

# Not in the journal yet when it is acknowledged, but before whatever is acknowledged from the journal later.
_SOON: Final = WriteConcern(w=1, j=False)

Database: TypeAlias = AsyncIOMotorDatabase[Document]

T = TypeVar("T")


class CollectionState(NamedTuple):
    """What `doctor` says of one collection: documents, bytes on disk with indexes, and each TTL index with its life in seconds."""

    name: str
    documents: int
    bytes: int
    indexes: tuple[str, ...]
    lives: Mapping[str, int]


class MongoState(NamedTuple):
    """What `doctor` says of the database."""

    version: str
    place: str
    collections: tuple[CollectionState, ...]


class MongoStore(Store):
    """A `Store` in the database that `url` names, `wadm` where it names none; `suffix` is added to that name.

    `lives` is how long documents live. With `read_only` nothing is written or made, and every method that writes is refused.
    Entering raises `StoreUnreachable` where waiting may help, after about two seconds, and can be tried again; `SettingError` for a
    URL that is none; `StoreError` where the server refuses us, is too old, or holds what a newer WADM or another program wrote.
    """

    def __init__(self, url: str, lives: Retention, *, suffix: str = "", read_only: bool = False) -> None:
        self._url = url
        self._lives = lives
        self._suffix = suffix
        self._read_only = read_only
        self._client: AsyncIOMotorClient[Document] | None = None
        self._database: Database | None = None
        self._place = ""
        self._version = ""

    async def __aenter__(self) -> Self:
        self._connect()
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self._close()

    async def write(
        self,
        trades: Sequence[Trade],
        spans: Sequence[tuple[Instrument, Span]],
        pieces: Sequence[PartialFootprint] = (),
        *,
        turn: CommitBarrier = at_once,
    ) -> None:
        """As the contract says. Minutes are marked before their trades and pieces, and again after them.

        The first mark outlives a crash in between, the second one a reader who settled the first without having seen what came: it is
        counted in the batch's turn, and so above whatever anyone saw of its minutes before.
        """
        packed = await to_thread.run_sync(lambda: [documents.piece_document(piece) for piece in pieces]) if pieces else []
        minutes = {(trade.timestamp - trade.timestamp % MINUTE, trade.instrument) for trade in trades}
        minutes.update((piece.minute, piece.instrument) for piece in pieces)
        marked = sorted(minutes)
        if marked:
            await self._write_op(partial(_mark, marked, await self._write_op(_count_writes), _SOON))
            await self._insert_trades(trades)
            for first in range(0, len(packed), _DERIVED_CHUNK):
                await self._write_op(partial(_insert, "pieces", packed[first : first + _DERIVED_CHUNK]))
        await turn()
        if marked:
            await self._write_op(partial(_mark, marked, await self._write_op(_count_writes), None))
        if spans:
            held: dict[tuple[Instrument, int, int], Span] = {}
            for instrument, span in spans:
                key = instrument, span.start, span.first_seq
                held[key] = grown(held[key], span) if key in held else span
            await self._write_op(partial(_grow, held))

    async def pieces(self, instrument: Instrument, window: Window) -> list[PartialFootprint]:
        minutes = {"minute": {"$gte": date(window.start), "$lt": date(window.end)}}
        return await self._read(
            "pieces",
            f"pieces of {instrument}",
            instrument._asdict() | minutes,
            partial(documents.piece_of, instrument),
            sort=[("minute", 1), ("first_seq", 1)],
            hint="instrument_minute",
        )

    async def derive(self, derived: Derived) -> None:
        """As the contract says. Bars go first, each by compare-and-set; then the rows of those that were taken; marks last.

        So of all who derive a bar one has each revision, and only that one goes on to its rows. A pass that ends anywhere leaves its
        marks: whoever tries again reads the revision that the bars have by then and goes one higher, above everything the first one left.
        A holder that woke late finds its bars refused and touches nothing else; and where it slept between bars and rows, its rows are
        refused by those of whoever came after it. To have missed any of this is to be stale, and a stale pass settles nothing.
        A footprint or profile whose bar is not in the pass stands by its own revision.
        """
        rows = await to_thread.run_sync(_derived_documents, derived)
        refused: set[ObjectId] = set()
        stale = False
        for name, found in rows.items():
            older = await self._replace(name, [row for row in found if row["_id"] not in refused])
            stale = stale or bool(older)
            if name == "bars":
                refused = older
        if derived.settles and not stale:
            settled = [
                DeleteOne({"_id": documents.mark_id(mark.instrument, mark.minute), "writes": mark.writes}) for mark in derived.settles
            ]
            await self._write_op(lambda database: database["marks"].bulk_write(settled, ordered=False))

    async def dirty_minutes(self) -> list[DirtyMinute]:
        return await self._read("marks", "marks", {}, documents.mark_of, sort=[("_id", 1)])

    async def save_listings(self, listings: Sequence[Listing]) -> None:
        if listings:
            await self._write_op(partial(_keep, "listings", [documents.listing_document(listing) for listing in listings]))

    async def listings(self) -> list[Listing]:
        return await self._read("listings", "listings", {}, documents.listing_of, sort=[("_id", 1)])

    async def track(self, instruments: Sequence[Instrument]) -> None:
        if instruments:
            await self._write_op(partial(_keep, "tracked", [documents.tracked_document(instrument) for instrument in instruments]))

    async def untrack(self, instruments: Sequence[Instrument]) -> None:
        names = [str(instrument) for instrument in instruments]
        await self._write_op(lambda database: database["tracked"].delete_many({"_id": {"$in": names}}))

    async def tracked(self) -> list[Instrument]:
        return await self._read("tracked", "tracked", {}, documents.tracked_of, sort=[("_id", 1)])

    async def trades(
        self,
        instrument: Instrument,
        window: Window,
        *,
        after: tuple[int, int, int, str] | None = None,
        limit: int,
        newest: bool = False,
    ) -> list[Trade]:
        """As the contract says. The index goes by time, so trades of one millisecond are read whole and put in order here."""

        async def read(start: int, end: int, size: int) -> list[Trade]:
            times = {"timestamp": {"$gte": date(start), "$lt": date(end)}}
            return await self._read(
                "trades",
                f"trades of {instrument}",
                instrument._asdict() | times,
                partial(documents.trade_of, instrument),
                sort=[("timestamp", -1 if newest else 1)],
                hint="instrument_time",
                limit=size,
                fields=documents.TRADE_FIELDS,
            )

        start, end = (window.start if after is None else max(window.start, after[0])), window.end
        trades: list[Trade] = []
        while len(trades) < limit and start < end:
            size = limit - len(trades) + _SLACK
            page = await read(start, end, size)
            cut = page[-1].timestamp if len(page) == size else None
            trades += _later((trade for trade in page if trade.timestamp != cut), after)
            if cut is None:
                break
            if len(trades) < limit:
                trades += _later(await read(cut, cut + 1, 0), after)
            start, end = (start, cut) if newest else (cut + 1, end)
        trades.sort(key=lambda trade: trade.order)
        return trades[-limit:] if newest else trades[:limit]

    async def count(self, instrument: Instrument, window: Window) -> int:
        bounds = {"$gte": date(window.start), "$lt": date(window.end)}

        async def look(database: Database) -> int:
            rows = await database["trades"].count_documents(instrument._asdict() | {"timestamp": bounds}, hint="instrument_time")
            return rows + await database["pieces"].count_documents(instrument._asdict() | {"minute": bounds}, hint="instrument_minute")

        return await self._read_op(look)

    async def footprints(self, instrument: Instrument, timeframe: Timeframe, window: Window) -> list[StoredFootprint]:
        return await self._derived("footprints", documents.footprint_of, instrument, timeframe, window)

    async def order_flow(self, instrument: Instrument, timeframe: Timeframe, window: Window) -> list[OrderFlow]:
        return await self._derived("bars", documents.bar_of, instrument, timeframe, window)

    async def spans(self, instrument: Instrument, window: Window) -> list[Span]:
        # In this order a span that grows meanwhile is seen at least once: its start stays, its end moves into the window.
        start, end = date(window.start), date(window.end)
        before = await self._spans(instrument, {"end": {"$lt": start}}, "instrument_end", [("end", -1), ("start", -1)], limit=1)
        touching = await self._spans(instrument, {"end": {"$gte": start}, "start": {"$lte": end}}, "instrument_end", [("end", 1)])
        after = await self._spans(instrument, {"start": {"$gt": end}}, "instrument_start", [("start", 1)], limit=1)
        found = {(span.start, span.first_seq): span for span in (*before, *touching, *after)}
        return [found[start] for start in sorted(found)]

    async def expire(self, now: int, lives: Retention) -> int:
        """Nothing: the server's TTL indexes delete, and their lives were set on entering."""
        return 0

    async def acquire_leases(self, owner: str, instruments: Sequence[Instrument], life: float) -> set[Instrument]:
        """As the contract says, by the server's own clock. Each lease is taken or renewed in one step that the server makes alone."""
        if not instruments:
            return set()
        names = {str(instrument): instrument for instrument in instruments}
        step = lease_taking(owner, life)

        async def take(database: Database) -> set[Instrument]:
            try:
                await database["leases"].bulk_write([UpdateOne({"_id": name}, step, upsert=True) for name in names], ordered=False)
            except BulkWriteError as error:
                # Another process made the first lease of an instrument at this very moment, and has it.
                if not is_duplicate(error):
                    raise
            held = await _gathered(database["leases"].find({"_id": {"$in": list(names)}, "owner": owner}))
            return {names[lease["_id"]] for lease in held}

        return await self._write_op(take)

    async def release_leases(self, owner: str) -> None:
        """As the contract says. The documents stay; their leases have ended."""
        await self._write_op(lambda database: database["leases"].update_many({"owner": owner}, {"$set": {"until": date(0)}}))

    async def state(self) -> StoreState:
        stats = await self._read_op(lambda database: database.command("dbStats"))
        return StoreState("mongodb", self._place, int(stats["storageSize"] + stats["indexSize"]))

    async def describe(self) -> MongoState:
        """Version, size, indexes and lives, as they are on the server."""

        async def look(database: Database) -> list[CollectionState]:
            found: list[CollectionState] = []
            for name in sorted(await database.list_collection_names()):
                (stats,) = await _gathered(database[name].aggregate([{"$collStats": {"storageStats": {}}}]))
                indexes = await _gathered(database[name].list_indexes())
                storage = stats["storageStats"]
                lives = {index["name"]: int(index["expireAfterSeconds"]) for index in indexes if "expireAfterSeconds" in index}
                size = int(storage["storageSize"] + storage["totalIndexSize"])
                found.append(CollectionState(name, int(storage["count"]), size, tuple(sorted(index["name"] for index in indexes)), lives))
            return found

        return MongoState(self._version, self._place, tuple(await self._read_op(look)))

    async def _insert_trades(self, trades: Sequence[Trade]) -> None:
        """Insert in chunks, one of which is encoded here while the server takes another."""
        room = Semaphore(_IN_FLIGHT)

        async def insert(chunk: Sequence[Trade]) -> None:
            try:
                await self._write_op(partial(_insert, "trades", self._encoded(chunk)))
            finally:
                room.release()

        with ungrouped():
            async with create_task_group() as tasks:
                for first in range(0, len(trades), _CHUNK):
                    await room.acquire()
                    tasks.start_soon(insert, trades[first : first + _CHUNK])

    def _encoded(self, trades: Sequence[Trade]) -> list[RawBSONDocument]:
        try:
            return documents.trade_documents(trades)
        except ValueError as error:
            raise StoreError(f"{self._place} cannot keep what it is given: {error}") from error

    async def _replace(self, name: str, rows: Sequence[Document]) -> set[ObjectId]:
        """Which of these were refused, being no newer than what is stored?"""
        refused: set[ObjectId] = set()
        for first in range(0, len(rows), _DERIVED_CHUNK):
            refused |= await self._write_op(partial(_replace, name, rows[first : first + _DERIVED_CHUNK]))
        return refused

    async def _derived(
        self,
        name: str,
        value_of: Callable[[Instrument, Timeframe, Document], T],
        instrument: Instrument,
        timeframe: Timeframe,
        window: Window,
    ) -> list[T]:
        bars = {"timeframe": timeframe.value, "start_time": {"$gte": date(window.start), "$lt": date(window.end)}}
        query = instrument._asdict() | bars
        read = partial(value_of, instrument, timeframe)
        return await self._read(name, f"{name} {timeframe} of {instrument}", query, read, sort=[("start_time", 1)], hint="instrument_start")

    async def _spans(
        self, instrument: Instrument, bounds: Document, index: str, sort: Sequence[tuple[str, int]], limit: int = 0
    ) -> list[Span]:
        query = instrument._asdict() | bounds
        return await self._read("coverage", f"coverage of {instrument}", query, documents.span_of, sort=sort, hint=index, limit=limit)

    async def _read(
        self,
        name: str,
        subject: str,
        query: Document,
        value_of: Callable[[Document], T],
        *,
        sort: Sequence[tuple[str, int]],
        hint: str | None = None,
        limit: int = 0,
        fields: Mapping[str, int] | None = None,
    ) -> list[T]:
        """Values of the documents that a query finds. The index is named, or a TTL index might be taken for it."""

        def find(database: Database) -> Awaitable[list[Document]]:
            return _gathered(database[name].find(query, fields, sort=sort, hint=hint, limit=limit, batch_size=_BATCH))

        def values(found: Sequence[Document]) -> list[T]:
            read: list[T] = []
            for document in found:
                try:
                    read.append(value_of(document))
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise damaged(self._place, f"{subject}, {documents.described(document)}: {error!r}") from error
            return read

        return await to_thread.run_sync(values, await self._read_op(find))

    async def _read_op(self, question: Callable[[Database], Awaitable[T]]) -> T:
        try:
            with plain_words(self._place):
                return await question(self._opened("read from it"))
        except StoreError as error:
            await self._greet_again(error)
            raise

    async def _write_op(self, step: Callable[[Database], Awaitable[T]]) -> T:
        # A motor call that is cancelled leaves its write under way, where it might land on top of a later one. So a step is waited
        # for, no longer than the socket's timeout, and what cancels is heard between steps.
        await checkpoint_if_cancelled()
        if self._read_only:
            raise StoreError(f"{self._place} was opened for reading only: nothing was written")
        try:
            with plain_words(self._place), fail_after(None, shield=True):
                return await step(self._opened("written"))
        except StoreError as error:
            await self._greet_again(error)
            raise

    async def _greet_again(self, error: StoreError) -> None:
        """Begin with new connections where the server no longer knows our user: those that are open stay refused even once it does."""
        if is_refusal_of_user(error.__cause__) and self._version and self._client is not None:
            old = self._client
            self._connect()
            with CancelScope(shield=True):
                await to_thread.run_sync(_end, old)

    def _opened(self, purpose: str) -> Database:
        if self._database is None:
            raise StoreError(f"the connection to MongoDB{f' at {self._place}' if self._place else ''} is closed: nothing can be {purpose}")
        return self._database

    def _connect(self) -> None:
        try:
            client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(
                self._url,
                appname="wadm",
                serverSelectionTimeoutMS=_SELECTION_MS,
                connectTimeoutMS=_SELECTION_MS,
                socketTimeoutMS=_SOCKET_MS,
                # Whoever asks tries again, and every write can be repeated: a second try in here would only double the wait.
                retryReads=False,
                retryWrites=False,
                w=1,
                journal=True,
                # Dates of any year, as what they are: milliseconds.
                datetime_conversion="DATETIME_MS",
                tz_aware=True,
            )
            name = client.get_default_database(_DATABASE).name
        except (PyMongoError, LookupError, TypeError, ValueError):
            # What the driver says may quote a part of the password.
            raise SettingError(_NO_URL) from None
        if "@" in name or not self._url.startswith(_SCHEMES):
            raise SettingError(_NO_URL)
        self._place = f"{_hosts(self._url)}/{name}{self._suffix}"
        self._client, self._database = client, client[name + self._suffix]

    async def _open(self) -> None:
        server = await self._read_op(lambda database: database.command("buildInfo"))
        self._version = str(server["version"])
        if tuple(server["versionArray"]) < OLDEST_SERVER:
            oldest = ".".join(map(str, OLDEST_SERVER))
            raise StoreError(f"MongoDB at {self._place} is {self._version}: WADM needs {oldest} or later; upgrade it")
        names = await self._read_op(lambda database: database.list_collection_names())
        await self._settle_schema(names)
        if not self._read_only:
            for name, indexes in collections(self._lives).items():
                if name not in names:
                    await self._write_op(partial(_create, name))
                await self._write_op(partial(_settle_indexes, name, indexes))

    async def _settle_schema(self, names: Sequence[str]) -> None:
        """Read which schema the database has, or write that it has ours, before anything else is there. Older ones are migrated."""
        found = await self._read_op(lambda database: database[SCHEMA].find_one({"_id": _DATABASE}))
        if found is None:
            for name in sorted(set(names).intersection(collections(self._lives))):
                if await self._read_op(lambda database, name=name: database[name].find_one({}, {"_id": 1})):
                    raise StoreError(f"{self._place} holds {name} that no WADM wrote: set MONGODB_URL to another database")
            if not self._read_only:
                await self._write_op(partial(_set_version, SCHEMA_VERSION))
            return
        version = found.get("version")
        if not isinstance(version, int) or version < 1:
            raise damaged(self._place, f"{SCHEMA}: version {version!r}")
        if version > SCHEMA_VERSION:
            known = f"its schema is {version}, this one knows {SCHEMA_VERSION}"
            raise StoreError(
                f"{self._place} was written by a newer WADM ({known}): upgrade wadm-mcp, or set MONGODB_URL to another database"
            )
        if version < SCHEMA_VERSION and self._read_only:
            known = f"its schema is {version}, this one reads {SCHEMA_VERSION}"
            raise StoreError(f"{self._place} was written by an older WADM ({known}): start a WADM that records there once")
        for older in range(version, SCHEMA_VERSION):
            await self._write_op(_MIGRATIONS[older])
            await self._write_op(partial(_set_version, older + 1))

    async def drop(self) -> None:
        """Delete the whole database, which must be one of demo or replay: its name ends in `_demo`. Needs no entering."""
        self._connect()
        try:
            if not self._suffix.endswith("_demo"):
                raise StoreError(f"{self._place} is no database of a demo: it is never dropped")
            database = self._opened("dropped")
            with plain_words(self._place):
                await database.client.drop_database(database.name)
        finally:
            await self._close()

    async def _close(self) -> None:
        client, self._client, self._database = self._client, None, None
        if client is not None:
            with CancelScope(shield=True):
                await to_thread.run_sync(_end, client)


def _end(client: AsyncIOMotorClient[Document]) -> None:
    # It says goodbye to the server, which may be gone.
    with pymongo.timeout(_CLOSING):
        client.close()


_SCHEMES: Final = ("mongodb://", "mongodb+srv://")
_PORT: Final = re.compile(r":[0-9]+$")
_NO_URL: Final = (
    "MONGODB_URL is no address of MongoDB: write mongodb://user:password@host:27017/wadm, "
    "with special characters of the password percent-encoded (@ as %40, / as %2F)"
)


def _hosts(url: str) -> str:
    """Hosts and ports of a URL, and nothing else of it."""
    scheme, _, rest = url.partition("://")
    hosts = rest.partition("/")[0].partition("?")[0].rpartition("@")[2].split(",")
    return ",".join(host if scheme == "mongodb+srv" or _PORT.search(host) else f"{host}:27017" for host in hosts)


async def _gathered(cursor: Any) -> list[Document]:
    """Every document of a cursor, which is closed whatever happens."""
    try:
        return [document async for document in cursor]
    finally:
        if cursor.alive:
            with move_on_after(_CLOSING, shield=True):
                await cursor.close()


async def _count_writes(database: Database) -> int:
    """A number above all that marks have had."""
    counters = database.get_collection("counters", write_concern=_SOON)
    counter = await counters.find_one_and_update(
        {"_id": "writes"}, {"$inc": {"value": 1}}, upsert=True, return_document=ReturnDocument.AFTER
    )
    return int(counter["value"])


async def _mark(minutes: Iterable[tuple[int, Instrument]], writes: int, concern: WriteConcern | None, database: Database) -> None:
    steps = [
        UpdateOne({"_id": documents.mark_id(instrument, minute)}, {"$max": {"writes": writes}}, upsert=True)
        for minute, instrument in minutes
    ]
    await database.get_collection("marks", write_concern=concern).bulk_write(steps, ordered=False)


async def _insert(name: str, rows: Sequence[Any], database: Database) -> None:
    """Insert what is not there yet. It is in the server's journal once a later step is: alone it waits for no disk."""
    try:
        await database.get_collection(name, write_concern=_SOON).insert_many(rows, ordered=False)
    except BulkWriteError as error:
        if not is_duplicate(error):
            raise


async def _keep(name: str, rows: Sequence[Document], database: Database) -> None:
    await database[name].bulk_write([ReplaceOne({"_id": row["_id"]}, row, upsert=True) for row in rows], ordered=False)


async def _grow(spans: Mapping[tuple[Instrument, int, int], Span], database: Database) -> None:
    steps = [
        UpdateOne({"_id": documents.span_id(instrument, span)}, span_growth(instrument, span), upsert=True)
        for (instrument, *_), span in spans.items()
    ]
    try:
        await database["coverage"].bulk_write(steps, ordered=False)
    except BulkWriteError as error:
        if not is_duplicate(error):
            raise
        # Another process made one of these documents at this very moment: now they are there, and grow.
        await database["coverage"].bulk_write(steps, ordered=False)


async def _replace(name: str, rows: Sequence[Document], database: Database) -> set[ObjectId]:
    """Replace what is older, by compare-and-set: where no older row stands, the insert that follows meets its `_id`. Which were refused?"""
    steps = [ReplaceOne({"_id": row["_id"], "revision": {"$lt": row["revision"]}}, row, upsert=True) for row in rows]
    try:
        await database[name].bulk_write(steps, ordered=False)
    except BulkWriteError as error:
        if not is_duplicate(error):
            raise
        return {rows[each["index"]]["_id"] for each in error.details["writeErrors"]}
    return set()


async def _forget_the_one_lease(database: Database) -> None:
    """Schema 1 had one lease for all instruments, and no pieces; its spans, which have no `raw`, are read as having rows."""
    await database["leases"].delete_one({"_id": "recorder"})


async def _name_trades_anew(database: Database) -> None:
    """Schema 2 made every `_id` of a trade by hash. What a journal still brings is of minutes that are marked: those get theirs of today,
    or it would be stored twice."""
    trades = database["trades"]
    for found in await _gathered(database["marks"].find({})):
        mark = documents.mark_of(found)
        times = {"$gte": date(mark.minute), "$lt": date(mark.minute + MINUTE)}
        held = await _gathered(trades.find(mark.instrument._asdict() | {"timestamp": times}))
        for first in range(0, len(held), _CHUNK):
            chunk = held[first : first + _CHUNK]
            renamed = documents.trade_documents(documents.trade_of(mark.instrument, row) for row in chunk)
            old = [row["_id"] for row, new in zip(chunk, renamed, strict=True) if row["_id"] != new["_id"]]
            await _insert("trades", renamed, database)
            await trades.delete_many({"_id": {"$in": old}})


_MIGRATIONS: Final[Mapping[int, Callable[[Database], Awaitable[None]]]] = {1: _forget_the_one_lease, 2: _name_trades_anew}
"""What turns a database of one schema version into the next."""


async def _create(name: str, database: Database) -> None:
    try:
        await database.create_collection(name, **options(name))
    except (CollectionInvalid, OperationFailure):
        # Another process may have been faster, by less than it takes to look.
        if name not in await database.list_collection_names():
            raise


async def _settle_indexes(name: str, indexes: Sequence[Index], database: Database) -> None:
    """Make the indexes that are missing, and change in place the lives that are set anew."""
    there = {index["name"]: index for index in await _gathered(database[name].list_indexes())}
    missing = [_model(index) for index in indexes if index.name not in there]
    if missing:
        await database[name].create_indexes(missing)
    for index in indexes:
        found = there.get(index.name)
        if found is not None and index.expires not in (None, found.get("expireAfterSeconds")):
            await database.command({"collMod": name, "index": {"name": index.name, "expireAfterSeconds": index.expires}})


async def _set_version(version: int, database: Database) -> None:
    await database[SCHEMA].update_one({"_id": _DATABASE}, {"$max": {"version": version}}, upsert=True)


def _model(index: Index) -> IndexModel:
    options: Document = {"name": index.name}
    if index.expires is not None:
        options["expireAfterSeconds"] = index.expires
    if index.timeframe is not None:
        options["partialFilterExpression"] = {"timeframe": index.timeframe.value}
    return IndexModel(index.keys, **options)


def _derived_documents(derived: Derived) -> Mapping[str, list[Document]]:
    """What a pass writes, in the order it is written: the bars that decide, what is read, then what is shown."""
    return {
        "bars": [documents.bar_document(row) for row in derived.order_flow],
        "footprints": [documents.footprint_document(row) for row in derived.footprints],
        "volume_profiles": [documents.profile_document(row) for row in derived.profiles],
        "order_flow": [documents.order_flow_document(row) for row in derived.order_flow],
    }


def _later(trades: Iterable[Trade], after: tuple[int, int, int, str] | None) -> Iterable[Trade]:
    return trades if after is None else (trade for trade in trades if trade.order > after)
