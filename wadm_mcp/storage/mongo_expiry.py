"""What a MongoDB server has deleted: it deletes by its own clock and by TTL indexes, and tells nobody.

Its collection `expired` says what may be gone, whatever the retention is today. One document, `retention`, has per kind of data the
retention in force (`seconds`), and the latest time (`floor`) before which documents may have been deleted. It is written before a TTL
changes. `reach` is the same by the server's clock alone: while that is ahead it may lie in the future, and everything may be deleted. It
becomes a part of the floor once the exchanges say what time it is: what had not happened by then was not deleted. The other documents are
the stretches of each instrument that its coverage claims and of which the oldest documents are gone.
The functions here run on a database of the driver, which `mongo.py` alone knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pymongo.errors import DuplicateKeyError

from wadm_mcp.coverage.expired import Expired
from wadm_mcp.coverage.spans import COVERS_NOTHING
from wadm_mcp.model import SECOND, Instrument, Retention, Timeframe, Window
from wadm_mcp.storage.mongo_documents import date
from wadm_mcp.storage.mongo_indexes import collections, expiring_kind, ttl_seconds

_RETENTION: Final = "retention"
_RECORDED: Final = {"reason": {"$nin": sorted(reason.value for reason in COVERS_NOTHING)}}


async def begin_retention(database: Any, retention: Retention, now: int) -> None:
    """Record, before any TTL is changed, what the present TTLs may have deleted by the server's time `now` (ms).

    The shorter retention of the present and the new one counts until `end_retention`.
    """
    present = await _present_seconds(database, retention)
    wanted = _seconds(retention)
    reach = {f"reach.{kind}": date(now - seconds * SECOND) for kind, seconds in present.items()}
    shorter = {f"seconds.{kind}": min(seconds, present.get(kind, seconds)) for kind, seconds in wanted.items()}
    await _upsert(database["expired"], _RETENTION, {"$min": shorter, **({"$max": reach} if reach else {})})


async def end_retention(database: Any, retention: Retention) -> None:
    """Record that the TTLs are those of this retention now."""
    seconds = {f"seconds.{kind}": seconds for kind, seconds in _seconds(retention).items()}
    await _upsert(database["expired"], _RETENTION, {"$set": seconds})


async def is_recorded(database: Any) -> bool:
    """True if the database has a record of its retention. A database of an earlier release has none."""
    return await database["expired"].find_one({"_id": _RETENTION}) is not None


async def note_time(database: Any, retention: Retention, now: int, latest: int | None) -> bool:
    """Record what the TTLs may have deleted by the server's time `now` (ms), which may be wrong. False if the record itself is gone.

    Nothing later than `latest` (ms) was deleted; None if that is not known.
    """
    record = await _record(database)
    reach = {kind: now - seconds * SECOND for kind, seconds in _in_force(record, retention).items()}
    if latest is None:
        found = await database["expired"].update_one(
            {"_id": _RETENTION}, {"$max": {f"reach.{kind}": date(at) for kind, at in reach.items()}}
        )
        return bool(found.matched_count)
    # The server may have deleted up to an earlier reach until now, when its clock may be right again.
    earlier = record.get("reach", {})
    floors = {f"floor.{kind}": date(min(latest, max(at, int(earlier.get(kind, at))))) for kind, at in reach.items()}
    # Unless another process has noted one meanwhile: then that one is left to the next time.
    unchanged = {f"reach.{kind}": earlier.get(kind) for kind in reach}
    update = {"$max": floors, "$set": {f"reach.{kind}": date(at) for kind, at in reach.items()}}
    found = await database["expired"].update_one({"_id": _RETENTION, **unchanged}, update)
    return bool(record) and (bool(found.matched_count) or await is_recorded(database))


async def expired(database: Any, instrument: Instrument, retention: Retention, now: int) -> Expired:
    """What may be deleted of an instrument by the server's time `now` (ms)."""
    record = await _record(database)
    noted = [{kind: int(at) for kind, at in record.get(field, {}).items()} for field in ("floor", "reach")]
    found: dict[str, list[Window]] = {}
    for kind, seconds in _in_force(record, retention).items():
        until = max(now - seconds * SECOND, *(each.get(kind, 0) for each in noted))
        found[kind] = [Window(min(0, until), until)]
    async for each in database["expired"].find(instrument._asdict(), hint="instrument"):
        found[each["kind"]].append(Window(int(each["start"]), int(each["end"])))
    return Expired(**{kind: tuple(stretches) for kind, stretches in found.items()})


async def find_deleted(database: Any, instrument: Instrument) -> None:
    """Record what the coverage of an instrument claims before its oldest documents. Minutes that are not derived yet are not deleted."""
    name = instrument._asdict()
    until = await _first(database["coverage"], name | _RECORDED, "end", "instrument_end", newest=True)
    if until is None:
        return
    since = await _first(database["coverage"], name | _RECORDED, "start", "instrument_start")
    since_raw = await _first(database["coverage"], name | _RECORDED | {"raw": {"$ne": False}}, "start", "instrument_start")
    trades = await _first(database["trades"], name, "timestamp", "instrument_time")
    # Marks are cleared once their figures are stored, so they are read before the figures.
    marks = [int(mark["_id"]["minute"]) async for mark in database["marks"].find({f"_id.{key}": value for key, value in name.items()})]
    minute = await _first(database["bars"], name | {"timeframe": Timeframe.M1.value}, "start_time", "instrument_start")
    hour = await _first(database["bars"], name | {"timeframe": Timeframe.H1.value}, "start_time", "instrument_start")
    underived_or_stored = [*marks, minute] if minute is not None else marks
    minutes = min(underived_or_stored, default=until)
    hours = minutes if hour is None else min(minutes, hour)
    for kind, start, end in (
        ("trades", since_raw, until if trades is None else trades),
        ("minutes", since, minutes),
        ("hours", since, hours),
    ):
        if start is not None and start < end:
            stretch = {"$min": {"start": date(start)}, "$max": {"end": date(end)}, "$set": {**name, "kind": kind}}
            await _upsert(database["expired"], f"{instrument} {kind}", stretch)


async def _upsert(collection: Any, name: str, update: Mapping[str, Any]) -> None:
    try:
        await collection.update_one({"_id": name}, update, upsert=True)
    except DuplicateKeyError:
        # Another process has just created the document: now it is updated.
        await collection.update_one({"_id": name}, update)


async def _first(collection: Any, query: Mapping[str, Any], field: str, index: str, *, newest: bool = False) -> int | None:
    """The lowest, or highest, value of a time field of the documents that match."""
    found = await collection.find_one(query, {field: 1}, sort=[(field, -1 if newest else 1)], hint=index)
    return None if found is None else int(found[field])


async def _record(database: Any) -> Mapping[str, Any]:
    return await database["expired"].find_one({"_id": _RETENTION}) or {}


async def _present_seconds(database: Any, retention: Retention) -> dict[str, int]:
    """The shortest TTL of each kind of data on the server."""
    present: dict[str, int] = {}
    for name, indexes in collections(retention).items():
        kinds = {index.name: kind for index in indexes if (kind := expiring_kind(name, index)) is not None}
        if kinds:
            async for index in database[name].list_indexes():
                if index["name"] in kinds and "expireAfterSeconds" in index:
                    kind, seconds = kinds[index["name"]], int(index["expireAfterSeconds"])
                    present[kind] = min(seconds, present.get(kind, seconds))
    return present


def _in_force(record: Mapping[str, Any], retention: Retention) -> dict[str, int]:
    """The recorded retention of each kind in seconds; without a record this process's own."""
    return _seconds(retention) | {kind: int(seconds) for kind, seconds in record.get("seconds", {}).items()}


def _seconds(retention: Retention) -> dict[str, int]:
    return {kind: ttl_seconds(length) for kind, length in retention._asdict().items()}
