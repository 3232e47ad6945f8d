"""The production store: MongoDB through motor, which no other module imports.

A standalone server has no transactions. Instead the order of writes keeps the data consistent: what is written first may exist without
the rest, and every step can be repeated. Steps that claim something (marks, coverage, figures) are acknowledged only when they are in the
server's journal, and with them everything written before. Retention is done by TTL indexes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeAlias, TypeVar
from uuid import uuid4

import pymongo
from anyio import CancelScope, Semaphore, create_task_group, current_time, fail_after, move_on_after, to_thread
from anyio.lowlevel import checkpoint_if_cancelled
from bson.objectid import ObjectId
from bson.raw_bson import RawBSONDocument
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorDatabase
from pymongo import DeleteOne, IndexModel, ReadPreference, ReplaceOne, ReturnDocument, UpdateOne, WriteConcern
from pymongo.errors import BulkWriteError, CollectionInvalid, DuplicateKeyError, OperationFailure, PyMongoError

from wadm_mcp.coverage.expired import Expired
from wadm_mcp.coverage.spans import Span
from wadm_mcp.errors import SettingError, StoreError, StoreLost, ungrouped
from wadm_mcp.model import MINUTE, SECOND, Instrument, Listing, Retention, Timeframe, Trade, Window
from wadm_mcp.storage import mongo_documents as documents
from wadm_mcp.storage import mongo_expiry
from wadm_mcp.storage.mongo_documents import Document, date
from wadm_mcp.storage.mongo_errors import damaged_document, is_duplicate, is_refusal_of_user, translate_errors
from wadm_mcp.storage.mongo_indexes import SCHEMA, SCHEMA_VERSION, Index, collections, options
from wadm_mcp.storage.mongo_updates import lease_acquisition, span_upsert
from wadm_mcp.storage.store import (
    CommitBarrier,
    Derived,
    DirtyMinute,
    OrderFlow,
    PartialFootprint,
    Store,
    StoredFootprint,
    StoreState,
    StoreVersion,
    merge_spans,
    no_barrier,
)

MIN_SERVER_VERSION: Final = (6, 0)

_DATABASE: Final = "wadm"
"""Name of the database if the URL names none, and `_id` of the document that states the schema version."""
_TRADES_PER_INSERT: Final = 1_000
"""Trades are encoded on the event loop, so a larger insert would stall it."""
_CONCURRENT_INSERTS: Final = 3
_DOCUMENTS_PER_WRITE: Final = 100
_DOCUMENTS_PER_REPLY: Final = 2_000
"""Replies are decoded on the event loop, so a larger one would stall it."""
_DOCUMENTS_PER_LOT: Final = 16
"""The same where only the first of large documents are wanted."""
_EXTRA_TRADES: Final = 20
"""Trades read in addition to the limit, so that the page rarely ends within the last millisecond that is returned."""
_SERVER_SELECTION_MS: Final = 2_000
_SOCKET_TIMEOUT_MS: Final = 4_000
_SERVER_TIME_SECONDS: Final = 30.0
"""How long the server's time is carried on before it is read again."""
_SEARCH_SECONDS: Final = 600.0
"""Pause between two searches for what the server has deleted beyond its TTLs."""
_EMPTIED: Final = "was dropped or emptied"
_REPLACED: Final = "was replaced by another or an older copy"
_CLOSE_SECONDS: Final = 1.0
"""Timeout for closing connections and cursors."""

_LEFTOVERS: Final[Mapping[str, Sequence[str]]] = {
    "leases": ("owner", "until"),
    "listings": ("tick", "lot", "trading"),
    "tracked": ("exchange", "market", "symbol"),
    "bars": ("packed", "cumulative_delta", "revision"),
    "footprints": ("packed", "start_time", "revision"),
    "volume_profiles": ("row_size", "rule_version", "revision"),
    "order_flow": ("cumulative_delta", "imbalance_ratio", "revision"),
}
"""Fields of documents that WADM may still write in the second after its database was dropped. Where all documents have them they are not
another program's; none of them claims that anything is recorded."""

# Acknowledged before it is in the journal. It is in the journal once any later write has been acknowledged from there.
_NOT_JOURNALED: Final = WriteConcern(w=1, j=False)

Database: TypeAlias = AsyncIOMotorDatabase[Document]

T = TypeVar("T")


class CollectionState(NamedTuple):
    """One collection, for `doctor`: documents, bytes on disk with indexes, and the TTL in seconds by name of the TTL index."""

    name: str
    documents: int
    bytes: int
    indexes: tuple[str, ...]
    ttl_seconds: Mapping[str, int]


class MongoState(NamedTuple):
    """The database, for `doctor`."""

    version: str
    place: str
    collections: tuple[CollectionState, ...]


class MongoStore(Store):
    """A `Store` in the database that `url` names, `wadm` where it names none; `suffix` is added to that name.

    `retention` is how long documents are kept. With `read_only` nothing is created, and every method that writes raises `StoreError`.

    Entering raises `StoreUnreachable` after about two seconds if the server cannot be reached; it can be retried. It raises
    `SettingError` for an invalid URL, and `StoreError` if the server refuses our user, is too old, or the database was written by a newer
    WADM or another program.
    """

    def __init__(self, url: str, retention: Retention, *, suffix: str = "", read_only: bool = False) -> None:
        self._url = url
        self._retention = retention
        self._suffix = suffix
        self._read_only = read_only
        self._client: AsyncIOMotorClient[Document] | None = None
        self._database: Database | None = None
        self._place = ""
        self._version = ""
        self._store_version: StoreVersion | None = None
        self._loss: str | None = None
        """Why nothing more is written: what happened to the database that was opened."""
        self._server_time: tuple[int, float] | None = None
        """The server's time (ms), and when it was read (seconds of the event loop's clock)."""
        self._searched_at = -math.inf
        """When the database was last searched for what its server has deleted (seconds of the same clock)."""

    async def __aenter__(self) -> Self:
        self._loss = None
        self._connect()
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self._close()

    @property
    def version(self) -> StoreVersion:
        if self._store_version is None:
            raise StoreError(f"MongoDB{f' at {self._place}' if self._place else ''} is not open for writing: nothing is known of it")
        return self._store_version

    async def renew_identity(self) -> None:
        # Unless another process has just done so: then its identity is as new.
        await self._write_op(partial(_replace_identity, self.version.identity, uuid4().hex))
        self._store_version = await self._read_version()

    async def check(self) -> None:
        if self._loss is not None:
            raise StoreLost(self._loss)
        if self._store_version is not None:
            # Before the counter is read: a write that ends meanwhile counts on.
            durable = self._store_version
            counter = await self._read_version()
            if counter.identity != durable.identity or counter.writes < durable.writes:
                raise self._lost(_REPLACED)

    async def write(
        self,
        trades: Sequence[Trade],
        spans: Sequence[tuple[Instrument, Span]],
        pieces: Sequence[PartialFootprint] = (),
        *,
        barrier: CommitBarrier = no_barrier,
    ) -> None:
        """See `Store.write`. Each minute is marked dirty twice.

        It is marked before the inserts, so that a crash leaves it dirty, and again after them and the barrier with a higher `writes`, so
        that a rollup pass that ran in between cannot clear it.
        """
        packed = await to_thread.run_sync(lambda: [documents.piece_document(piece) for piece in pieces]) if pieces else []
        minutes = {(trade.timestamp - trade.timestamp % MINUTE, trade.instrument) for trade in trades}
        minutes.update((piece.minute, piece.instrument) for piece in pieces)
        marked = sorted(minutes)
        if marked:
            await self._write_op(partial(_upsert_marks, marked, await self._count_write(), _NOT_JOURNALED))
            await self._insert_trades(trades)
            for first in range(0, len(packed), _DOCUMENTS_PER_WRITE):
                await self._write_op(partial(_replace_shorter, packed[first : first + _DOCUMENTS_PER_WRITE]))
        await barrier()
        if not marked and not spans:
            return
        writes = await self._count_write()
        if marked:
            await self._write_op(partial(_upsert_marks, marked, writes, None))
        if spans:
            merged: dict[tuple[Instrument, int, int], Span] = {}
            for instrument, span in spans:
                key = instrument, span.start, span.first_seq
                merged[key] = merge_spans(merged[key], span) if key in merged else span
            await self._write_op(partial(_upsert_spans, merged))
        # Whichever of the two was last, it is in the server's journal, and the count before it.
        self._store_version = self.version._replace(writes=max(self.version.writes, writes))

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
        """As the contract says. Bars are written first, each by compare-and-set; then rows of the accepted bars; marks are cleared last.

        If several processes derive the same bar, each revision is written by one of them, and only that one writes its rows. A pass that
        is interrupted anywhere leaves its marks: the retry reads the revision that the bars have by then and writes a higher one. A stale
        pass finds its bars rejected and writes nothing else; if it was suspended between bars and rows, its rows are rejected by newer
        ones. A pass with anything rejected is stale and clears no mark.
        A footprint or profile without a bar in this pass is compared by its own revision.
        """
        rows = await to_thread.run_sync(_derived_documents, derived)
        rejected: set[ObjectId] = set()
        stale = False
        for name, found in rows.items():
            older = await self._replace(name, [row for row in found if row["_id"] not in rejected])
            stale = stale or bool(older)
            if name == "bars":
                rejected = older
        if derived.settles and not stale:
            settled = [
                DeleteOne({"_id": documents.mark_id(mark.instrument, mark.minute), "writes": mark.writes}) for mark in derived.settles
            ]
            await self._write_op(lambda database: database["marks"].bulk_write(settled, ordered=False))

    async def dirty_minutes(self) -> list[DirtyMinute]:
        return await self._read("marks", "marks", {}, documents.mark_of, sort=[("_id", 1)])

    async def save_listings(self, listings: Sequence[Listing]) -> None:
        if listings:
            await self._write_op(partial(_upsert, "listings", [documents.listing_document(listing) for listing in listings]))

    async def listings(self) -> list[Listing]:
        return await self._read("listings", "listings", {}, documents.listing_of, sort=[("_id", 1)])

    async def track(self, instruments: Sequence[Instrument]) -> None:
        if instruments:
            await self._write_op(partial(_upsert, "tracked", [documents.tracked_document(instrument) for instrument in instruments]))

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
        """As the contract says. The index sorts by time alone, so all trades of a millisecond are read and then sorted here."""

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
            size = limit - len(trades) + _EXTRA_TRADES
            page = await read(start, end, size)
            cut = page[-1].timestamp if len(page) == size else None
            trades += _only_after((trade for trade in page if trade.timestamp != cut), after)
            if cut is None:
                break
            if len(trades) < limit:
                trades += _only_after(await read(cut, cut + 1, 0), after)
            start, end = (start, cut) if newest else (cut + 1, end)
        trades.sort(key=lambda trade: trade.order)
        return trades[-limit:] if newest else trades[:limit]

    async def count(self, instrument: Instrument, window: Window) -> int:
        bounds = {"$gte": date(window.start), "$lt": date(window.end)}

        async def fetch(database: Database) -> int:
            rows = await database["trades"].count_documents(instrument._asdict() | {"timestamp": bounds}, hint="instrument_time")
            return rows + await database["pieces"].count_documents(instrument._asdict() | {"minute": bounds}, hint="instrument_minute")

        return await self._read_op(fetch)

    async def footprints(
        self, instrument: Instrument, timeframe: Timeframe, window: Window, *, max_bytes: int | None = None
    ) -> list[StoredFootprint]:
        return await self._read_bars("footprints", documents.footprint_of, instrument, timeframe, window, max_bytes)

    async def order_flow(self, instrument: Instrument, timeframe: Timeframe, window: Window) -> list[OrderFlow]:
        return await self._read_bars("bars", documents.bar_of, instrument, timeframe, window)

    async def spans(self, instrument: Instrument, window: Window) -> list[Span]:
        # In this order a span that grows during the reads is found at least once: its start stays, its end moves into the window.
        start, end = date(window.start), date(window.end)
        before = await self._spans(instrument, {"end": {"$lt": start}}, "instrument_end", [("end", -1), ("start", -1)], limit=1)
        touching = await self._spans(instrument, {"end": {"$gte": start}, "start": {"$lte": end}}, "instrument_end", [("end", 1)])
        after = await self._spans(instrument, {"start": {"$gt": end}}, "instrument_start", [("start", 1)], limit=1)
        found = {(span.start, span.first_seq): span for span in (*before, *touching, *after)}
        return [found[start] for start in sorted(found)]

    async def expire(self, now: int | None, retention: Retention, latest: int | None = None) -> int:
        """Deletes nothing: the server's TTL indexes do, with the retention that was set on entering. Records what they may have deleted."""
        server_now = await self._server_now(0.0)
        if not await self._write_op(lambda database: mongo_expiry.note_time(database, self._retention, server_now, latest)):
            raise self._lost(_EMPTIED)
        if current_time() - self._searched_at >= _SEARCH_SECONDS:
            await self._find_deleted()
        return 0

    async def expired(self, instrument: Instrument) -> Expired:
        now = await self._server_now(_SERVER_TIME_SECONDS)
        return await self._read_op(lambda database: mongo_expiry.expired(database, instrument, self._retention, now))

    async def _count_write(self) -> int:
        """A number higher than the `writes` of every mark so far. `StoreLost` if it is not the count of the database that was opened, or
        went back below what was durable there."""
        writes = await self._write_op(lambda database: _count_write(self.version, database))
        if writes is None:
            await self.check()
            raise self._lost(_REPLACED)
        return writes

    async def _read_version(self) -> StoreVersion:
        """The identity and the count of writes that are stored. `StoreLost` if one is missing."""
        counter = await self._read_op(_find_counter)
        if counter is None:
            raise self._lost(_EMPTIED)
        identity, writes = counter.get("store"), counter.get("value")
        if identity is None:
            # An earlier release wrote it.
            raise self._lost(_REPLACED)
        if not isinstance(identity, str) or not isinstance(writes, int):
            raise damaged_document(self._place, f"counters, {documents.describe(counter)}: store {identity!r}, value {writes!r}")
        return StoreVersion(identity, writes)

    def _lost(self, what: str) -> StoreLost:
        self._loss = f"{self._place} {what} while WADM was recording into it: what was stored in it is gone; start WADM again"
        return StoreLost(self._loss)

    async def _find_deleted(self) -> None:
        self._searched_at = current_time()
        for listing in await self.listings():
            await self._write_op(lambda database, instrument=listing.instrument: mongo_expiry.find_deleted(database, instrument))

    async def _server_now(self, seconds: float) -> int:
        """The server's time (ms), read from it at most this long ago and carried on since."""
        if self._server_time is None or current_time() - self._server_time[1] > seconds:
            reply = await self._read_op(lambda database: database.command("hello", codec_options=database.codec_options))
            self._server_time = int(reply["localTime"]), current_time()
        at, read = self._server_time
        return at + round((current_time() - read) * SECOND)

    async def acquire_leases(self, owner: str, instruments: Sequence[Instrument], seconds: float) -> set[Instrument]:
        """As the contract says, by the server's clock. The server acquires or renews each lease atomically."""
        if not instruments:
            return set()
        names = {str(instrument): instrument for instrument in instruments}
        step = lease_acquisition(owner, seconds)

        async def acquire(database: Database) -> set[Instrument]:
            try:
                await database["leases"].bulk_write([UpdateOne({"_id": name}, step, upsert=True) for name in names], ordered=False)
            except BulkWriteError as error:
                # Another process has just created the first lease of an instrument, and owns it.
                if not is_duplicate(error):
                    raise
            acquired = await _fetch_all(database["leases"].find({"_id": {"$in": list(names)}, "owner": owner}))
            return {names[lease["_id"]] for lease in acquired}

        return await self._write_op(acquire)

    async def release_leases(self, owner: str) -> None:
        """As the contract says. The documents stay, with an end in the past."""
        await self._write_op(lambda database: database["leases"].update_many({"owner": owner}, {"$set": {"until": date(0)}}))

    async def state(self) -> StoreState:
        stats = await self._read_op(lambda database: database.command("dbStats"))
        return StoreState("mongodb", self._place, int(stats["storageSize"] + stats["indexSize"]), now=await self._server_now(0.0))

    async def describe(self) -> MongoState:
        """Version, sizes, indexes and TTLs as they are on the server."""

        async def fetch(database: Database) -> list[CollectionState]:
            found: list[CollectionState] = []
            for name in sorted(await database.list_collection_names()):
                (stats,) = await _fetch_all(database[name].aggregate([{"$collStats": {"storageStats": {}}}]))
                indexes = await _fetch_all(database[name].list_indexes())
                storage = stats["storageStats"]
                ttl_seconds = {index["name"]: int(index["expireAfterSeconds"]) for index in indexes if "expireAfterSeconds" in index}
                size = int(storage["storageSize"] + storage["totalIndexSize"])
                index_names = tuple(sorted(index["name"] for index in indexes))
                found.append(CollectionState(name, int(storage["count"]), size, index_names, ttl_seconds))
            return found

        return MongoState(self._version, self._place, tuple(await self._read_op(fetch)))

    async def _insert_trades(self, trades: Sequence[Trade]) -> None:
        """Insert in chunks: one is encoded here while the server stores others."""
        slots = Semaphore(_CONCURRENT_INSERTS)

        async def insert(chunk: Sequence[Trade]) -> None:
            try:
                await self._write_op(partial(_insert, "trades", self._encode(chunk)))
            finally:
                slots.release()

        with ungrouped():
            async with create_task_group() as tasks:
                for first in range(0, len(trades), _TRADES_PER_INSERT):
                    await slots.acquire()
                    tasks.start_soon(insert, trades[first : first + _TRADES_PER_INSERT])

    def _encode(self, trades: Sequence[Trade]) -> list[RawBSONDocument]:
        try:
            return documents.trade_documents(trades)
        except ValueError as error:
            raise StoreError(f"{self._place} cannot store this batch: {error}") from error

    async def _replace(self, name: str, rows: Sequence[Document]) -> set[ObjectId]:
        """Write rows by compare-and-set; returns the ids of those that are not newer than the stored ones."""
        rejected: set[ObjectId] = set()
        for first in range(0, len(rows), _DOCUMENTS_PER_WRITE):
            rejected |= await self._write_op(partial(_replace, name, rows[first : first + _DOCUMENTS_PER_WRITE]))
        return rejected

    async def _read_bars(
        self,
        name: str,
        decode: Callable[[Instrument, Timeframe, Document], T],
        instrument: Instrument,
        timeframe: Timeframe,
        window: Window,
        max_bytes: int | None = None,
    ) -> list[T]:
        bars = {"timeframe": timeframe.value, "start_time": {"$gte": date(window.start), "$lt": date(window.end)}}
        query = instrument._asdict() | bars
        read = partial(decode, instrument, timeframe)
        subject, order = f"{name} {timeframe} of {instrument}", [("start_time", 1)]
        return await self._read(name, subject, query, read, sort=order, hint="instrument_start", max_bytes=max_bytes)

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
        decode: Callable[[Document], T],
        *,
        sort: Sequence[tuple[str, int]],
        hint: str | None = None,
        limit: int = 0,
        fields: Mapping[str, int] | None = None,
        max_bytes: int | None = None,
    ) -> list[T]:
        """Values of the documents that a query finds, or with `max_bytes` of the first ones, up to so many bytes of `packed`.

        The index is given as `hint`, as the server might choose a TTL index instead.
        """
        reply = _DOCUMENTS_PER_REPLY if max_bytes is None else _DOCUMENTS_PER_LOT

        def find(database: Database) -> Awaitable[list[Document]]:
            return _fetch_all(database[name].find(query, fields, sort=sort, hint=hint, limit=limit, batch_size=reply), max_bytes)

        def values(found: Sequence[Document]) -> list[T]:
            read: list[T] = []
            for document in found:
                try:
                    read.append(decode(document))
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise damaged_document(self._place, f"{subject}, {documents.describe(document)}: {error!r}") from error
            return read

        return await to_thread.run_sync(values, await self._read_op(find))

    async def _read_op(self, read: Callable[[Database], Awaitable[T]]) -> T:
        try:
            with translate_errors(self._place):
                return await read(self._require_database("read from it"))
        except StoreError as error:
            await self._reconnect_if_user_refused(error)
            raise

    async def _write_op(self, step: Callable[[Database], Awaitable[T]]) -> T:
        # Cancelling a motor call does not stop its write, which might then overwrite a later one. So a step is always awaited, no longer
        # than the socket's timeout, and cancellation takes effect between steps.
        await checkpoint_if_cancelled()
        if self._read_only:
            raise StoreError(f"{self._place} was opened for reading only: nothing was written")
        if self._loss is not None:
            # Whatever is there now, its next start must not find documents without what they belong to.
            raise StoreLost(self._loss)
        try:
            with translate_errors(self._place), fail_after(None, shield=True):
                return await step(self._require_database("written"))
        except StoreError as error:
            await self._reconnect_if_user_refused(error)
            raise

    async def _reconnect_if_user_refused(self, error: StoreError) -> None:
        """Reconnect if the server refused our user: open connections stay refused even after the user has been created again."""
        if is_refusal_of_user(error.__cause__) and self._version and self._client is not None:
            old = self._client
            self._connect()
            with CancelScope(shield=True):
                await to_thread.run_sync(_close_client, old)

    def _require_database(self, purpose: str) -> Database:
        if self._database is None:
            raise StoreError(f"the connection to MongoDB{f' at {self._place}' if self._place else ''} is closed: nothing can be {purpose}")
        return self._database

    def _connect(self) -> None:
        try:
            client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(
                self._url,
                appname="wadm",
                serverSelectionTimeoutMS=_SERVER_SELECTION_MS,
                connectTimeoutMS=_SERVER_SELECTION_MS,
                socketTimeoutMS=_SOCKET_TIMEOUT_MS,
                # Callers retry, and every write can be repeated: a retry by the driver would only double the wait.
                retryReads=False,
                retryWrites=False,
                w=1,
                journal=True,
                # Dates of any year, as milliseconds.
                datetime_conversion="DATETIME_MS",
                tz_aware=True,
            )
            name = client.get_default_database(_DATABASE).name
        except (PyMongoError, LookupError, TypeError, ValueError):
            # The driver's text may quote a part of the password.
            raise SettingError(_NO_URL) from None
        if "@" in name or not self._url.startswith(_SCHEMES):
            raise SettingError(_NO_URL)
        self._place = f"{_hosts(self._url)}/{name}{self._suffix}"
        self._client, self._database = client, client[name + self._suffix]

    async def _open(self) -> None:
        server = await self._read_op(lambda database: database.command("buildInfo"))
        self._version = str(server["version"])
        if tuple(server["versionArray"]) < MIN_SERVER_VERSION:
            oldest = ".".join(map(str, MIN_SERVER_VERSION))
            raise StoreError(f"MongoDB at {self._place} is {self._version}: WADM needs {oldest} or later; upgrade it")
        names = await self._read_op(lambda database: database.list_collection_names())
        await self._check_schema(names)
        if not self._read_only:
            wanted = collections(self._retention)
            for name in wanted:
                if name not in names:
                    await self._write_op(partial(_create_collection, name))
            await self._write_op(partial(_begin_counter, uuid4().hex))
            self._store_version = await self._read_version()
            recorded, now = await self._read_op(mongo_expiry.is_recorded), await self._server_now(0.0)
            await self._write_op(lambda database: mongo_expiry.begin_retention(database, self._retention, now))
            for name, indexes in wanted.items():
                await self._write_op(partial(_ensure_indexes, name, indexes))
            await self._write_op(lambda database: mongo_expiry.end_retention(database, self._retention))
            if not recorded:
                await self._find_deleted()

    async def _check_schema(self, names: Sequence[str]) -> None:
        """Check the schema version and migrate an older database. An empty one gets our version before anything else is created."""
        found = await self._read_op(lambda database: database[SCHEMA].find_one({"_id": _DATABASE}))
        if found is None:
            for name in sorted(set(names).intersection(collections(self._retention))):
                foreign: Document = {"$or": [{field: {"$exists": False}} for field in _LEFTOVERS[name]]} if name in _LEFTOVERS else {}
                if await self._read_op(lambda database, name=name, foreign=foreign: database[name].find_one(foreign, {"_id": 1})):
                    raise StoreError(
                        f"{self._place} already has a collection `{name}` of another program; set MONGODB_URL to another database"
                    )
            if not self._read_only:
                await self._write_op(partial(_set_version, SCHEMA_VERSION))
            return
        version = found.get("version")
        if not isinstance(version, int) or version < 1:
            raise damaged_document(self._place, f"{SCHEMA}: version {version!r}")
        if version > SCHEMA_VERSION:
            known = f"its schema is {version}, this one knows {SCHEMA_VERSION}"
            raise StoreError(
                f"{self._place} was written by a newer WADM ({known}): upgrade wadm-mcp, or set MONGODB_URL to another database"
            )
        if version < SCHEMA_VERSION and self._read_only:
            raise StoreError(
                f"{self._place} has schema {version}, this version needs {SCHEMA_VERSION}: run `wadm-mcp serve` once to migrate it"
            )
        for older in range(version, SCHEMA_VERSION):
            await self._write_op(_MIGRATIONS[older])
            await self._write_op(partial(_set_version, older + 1))

    async def drop(self) -> None:
        """Delete the whole database. Its name must end in `_demo`, as those of demo and replay do. The store need not be entered."""
        self._connect()
        try:
            if not self._suffix.endswith("_demo"):
                raise StoreError(f"{self._place} is not the database of a demo or replay: it is never dropped")
            database = self._require_database("dropped")
            with translate_errors(self._place):
                await database.client.drop_database(database.name)
        finally:
            await self._close()

    async def _close(self) -> None:
        client, self._client, self._database = self._client, None, None
        if client is not None:
            with CancelScope(shield=True):
                await to_thread.run_sync(_close_client, client)


def _close_client(client: AsyncIOMotorClient[Document]) -> None:
    # Closing sends a message to the server, which may be unreachable.
    with pymongo.timeout(_CLOSE_SECONDS):
        client.close()


_SCHEMES: Final = ("mongodb://", "mongodb+srv://")
_PORT: Final = re.compile(r":[0-9]+$")
_NO_URL: Final = (
    "MONGODB_URL is not an address of MongoDB: write mongodb://user:password@host:27017/wadm, "
    "with special characters of the password percent-encoded (@ as %40, / as %2F)"
)


def _hosts(url: str) -> str:
    """Hosts and ports of a URL, without user name, password, database and options."""
    scheme, _, rest = url.partition("://")
    hosts = rest.partition("/")[0].partition("?")[0].rpartition("@")[2].split(",")
    return ",".join(host if scheme == "mongodb+srv" or _PORT.search(host) else f"{host}:27017" for host in hosts)


async def _fetch_all(cursor: Any, max_bytes: int | None = None) -> list[Document]:
    """All documents of a cursor, or the first up to so many bytes of `packed`. The cursor is closed also on errors and cancellation."""
    try:
        if max_bytes is None:
            return [document async for document in cursor]
        found: list[Document] = []
        async for document in cursor:
            found.append(document)
            max_bytes -= len(document.get("packed", b""))
            if max_bytes <= 0:
                break
        return found
    finally:
        if cursor.alive:
            with move_on_after(_CLOSE_SECONDS, shield=True):
                await cursor.close()


async def _begin_counter(identity: str, database: Database) -> None:
    """Create the count of writes, with the identity of the store. It is never created again: without it the database was emptied."""
    fields = {"value": {"$ifNull": ["$value", 0]}, "store": {"$ifNull": ["$store", identity]}}
    try:
        await database["counters"].update_one({"_id": "writes"}, [{"$set": fields}], upsert=True)
    except DuplicateKeyError:
        # Another process has just created it: now it is left as it is.
        await database["counters"].update_one({"_id": "writes"}, [{"$set": fields}])


async def _replace_identity(identity: str, fresh: str, database: Database) -> None:
    await database["counters"].update_one({"_id": "writes", "store": identity}, {"$set": {"store": fresh}})


async def _find_counter(database: Database) -> Document | None:
    """The count of writes; None if the database was emptied."""
    return await database.get_collection("counters", read_preference=ReadPreference.PRIMARY).find_one({"_id": "writes"})


async def _count_write(durable: StoreVersion, database: Database) -> int | None:
    """Count a write; None if this is another count than the one of `durable`, or an older copy of it."""
    counters = database.get_collection("counters", write_concern=_NOT_JOURNALED)
    known = {"_id": "writes", "store": durable.identity, "value": {"$gte": durable.writes}}
    counter: Any = await counters.find_one_and_update(known, {"$inc": {"value": 1}}, return_document=ReturnDocument.AFTER)
    return None if counter is None else int(counter["value"])


async def _upsert_marks(minutes: Iterable[tuple[int, Instrument]], writes: int, concern: WriteConcern | None, database: Database) -> None:
    steps = [
        UpdateOne({"_id": documents.mark_id(instrument, minute)}, {"$max": {"writes": writes}}, upsert=True)
        for minute, instrument in minutes
    ]
    await database.get_collection("marks", write_concern=concern).bulk_write(steps, ordered=False)


async def _insert(name: str, rows: Sequence[Any], database: Database) -> None:
    """Insert documents; existing ones are ignored. Does not wait for the journal: see `_NOT_JOURNALED`."""
    try:
        await database.get_collection(name, write_concern=_NOT_JOURNALED).insert_many(rows, ordered=False)
    except BulkWriteError as error:
        if not is_duplicate(error):
            raise


async def _replace_shorter(pieces: Sequence[Document], database: Database) -> None:
    """Insert pieces, in place of shorter ones that begin with the same id. Does not wait for the journal: see `_NOT_JOURNALED`.

    If there is no shorter one, the upsert tries an insert, which fails on an existing `_id`.
    """
    steps = [ReplaceOne({"_id": piece["_id"], "last_seq": {"$lt": piece["last_seq"]}}, piece, upsert=True) for piece in pieces]
    try:
        await database.get_collection("pieces", write_concern=_NOT_JOURNALED).bulk_write(steps, ordered=False)
    except BulkWriteError as error:
        if not is_duplicate(error):
            raise


async def _upsert(name: str, rows: Sequence[Document], database: Database) -> None:
    await database[name].bulk_write([ReplaceOne({"_id": row["_id"]}, row, upsert=True) for row in rows], ordered=False)


async def _upsert_spans(spans: Mapping[tuple[Instrument, int, int], Span], database: Database) -> None:
    steps = [
        UpdateOne({"_id": documents.span_id(instrument, span)}, span_upsert(instrument, span), upsert=True)
        for (instrument, *_), span in spans.items()
    ]
    try:
        await database["coverage"].bulk_write(steps, ordered=False)
    except BulkWriteError as error:
        if not is_duplicate(error):
            raise
        # Another process has just created one of these documents: now they exist and are merged.
        await database["coverage"].bulk_write(steps, ordered=False)


async def _replace(name: str, rows: Sequence[Document], database: Database) -> set[ObjectId]:
    """Replace older rows by compare-and-set; returns the ids of the rejected ones.

    If there is no older row, the upsert tries an insert, which fails on an existing `_id`.
    """
    steps = [ReplaceOne({"_id": row["_id"], "revision": {"$lt": row["revision"]}}, row, upsert=True) for row in rows]
    try:
        await database[name].bulk_write(steps, ordered=False)
    except BulkWriteError as error:
        if not is_duplicate(error):
            raise
        return {rows[each["index"]]["_id"] for each in error.details["writeErrors"]}
    return set()


async def _delete_single_lease(database: Database) -> None:
    """From schema 1, which had one lease for all instruments and no pieces. Its spans have no `raw` and are read as having rows."""
    await database["leases"].delete_one({"_id": "recorder"})


async def _rename_trade_ids(database: Database) -> None:
    """From schema 2, which made every `_id` of a trade by hash.

    Trades of marked minutes get their present `_id`: the journal may bring them again, and they would be stored twice.
    """
    trades = database["trades"]
    for found in await _fetch_all(database["marks"].find({})):
        mark = documents.mark_of(found)
        times = {"$gte": date(mark.minute), "$lt": date(mark.minute + MINUTE)}
        stored = await _fetch_all(trades.find(mark.instrument._asdict() | {"timestamp": times}))
        for first in range(0, len(stored), _TRADES_PER_INSERT):
            chunk = stored[first : first + _TRADES_PER_INSERT]
            renamed = documents.trade_documents(documents.trade_of(mark.instrument, row) for row in chunk)
            old = [row["_id"] for row, new in zip(chunk, renamed, strict=True) if row["_id"] != new["_id"]]
            await _insert("trades", renamed, database)
            await trades.delete_many({"_id": {"$in": old}})


_MIGRATIONS: Final[Mapping[int, Callable[[Database], Awaitable[None]]]] = {1: _delete_single_lease, 2: _rename_trade_ids}
"""Migrations from a schema version to the next."""


async def _create_collection(name: str, database: Database) -> None:
    try:
        await database.create_collection(name, **options(name))
    except (CollectionInvalid, OperationFailure):
        # Another process may have created it meanwhile.
        if name not in await database.list_collection_names():
            raise


async def _ensure_indexes(name: str, indexes: Sequence[Index], database: Database) -> None:
    """Create missing indexes, and change TTLs in place."""
    existing = {index["name"]: index for index in await _fetch_all(database[name].list_indexes())}
    missing = [_index_model(index) for index in indexes if index.name not in existing]
    if missing:
        await database[name].create_indexes(missing)
    for index in indexes:
        found = existing.get(index.name)
        if found is not None and index.ttl_seconds not in (None, found.get("expireAfterSeconds")):
            await database.command({"collMod": name, "index": {"name": index.name, "expireAfterSeconds": index.ttl_seconds}})


async def _set_version(version: int, database: Database) -> None:
    await database[SCHEMA].update_one({"_id": _DATABASE}, {"$max": {"version": version}}, upsert=True)


def _index_model(index: Index) -> IndexModel:
    options: Document = {"name": index.name}
    if index.ttl_seconds is not None:
        options["expireAfterSeconds"] = index.ttl_seconds
    if index.timeframe is not None:
        options["partialFilterExpression"] = {"timeframe": index.timeframe.value}
    return IndexModel(index.keys, **options)


def _derived_documents(derived: Derived) -> Mapping[str, list[Document]]:
    """The documents of a pass by collection, in writing order: bars, which decide by revision; footprints; then those for other readers."""
    return {
        "bars": [documents.bar_document(row) for row in derived.order_flow],
        "footprints": [documents.footprint_document(row) for row in derived.footprints],
        "volume_profiles": [documents.profile_document(row) for row in derived.profiles],
        "order_flow": [documents.order_flow_document(row) for row in derived.order_flow],
    }


def _only_after(trades: Iterable[Trade], after: tuple[int, int, int, str] | None) -> Iterable[Trade]:
    return trades if after is None else (trade for trade in trades if trade.order > after)
