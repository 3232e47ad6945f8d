"""The collections of the MongoDB store and their indexes: pure data.

An index is here because a query of the store uses it, or because it is a TTL index, which implements retention. A collection of several
timeframes has one partial TTL index per timeframe over the same key, so that each timeframe has its own retention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from wadm_mcp.model import HOUR, SECOND, Retention, Timeframe

SCHEMA_VERSION: Final = 3

SCHEMA: Final = "schema"
"""The collection whose only document states the schema version of all others."""

_ZSTD_BLOCKS: Final = {"wiredTiger": {"configString": "block_compressor=zstd"}}
"""Block compression of documents and of indexes; by default the server does not compress index blocks."""

_MAX_TTL_SECONDS: Final = (1 << 31) - 1
"""The longest TTL that the server accepts, 68 years."""

_INSTRUMENT: Final = (("exchange", 1), ("market", 1), ("symbol", 1))
_BAR: Final = (*_INSTRUMENT, ("timeframe", 1), ("start_time", 1))


class Index(NamedTuple):
    """One index. With `ttl_seconds` it is a TTL index; with `timeframe` it contains only documents of that timeframe."""

    name: str
    keys: tuple[tuple[str, int], ...]
    ttl_seconds: int | None = None
    timeframe: Timeframe | None = None


def collections(retention: Retention) -> Mapping[str, Sequence[Index]]:
    """Every collection by name, with its indexes other than the one on `_id`."""
    return {
        "trades": (
            Index("instrument_time", (*_INSTRUMENT, ("timestamp", 1))),
            Index("life", (("timestamp", 1),), ttl_seconds(retention.trades)),
        ),
        "pieces": (
            Index("instrument_minute", (*_INSTRUMENT, ("minute", 1), ("first_seq", 1))),
            Index("life", (("minute", 1),), ttl_seconds(retention.minutes)),
        ),
        "footprints": (Index("instrument_start", _BAR), *_bar_ttls("start_time", retention)),
        "bars": (Index("instrument_start", _BAR), *_bar_ttls("start_time", retention)),
        "volume_profiles": _bar_ttls("start_time", retention),
        "order_flow": _bar_ttls("timestamp", retention),
        # Spans may overlap, so both ends are searched. A span expires by its end, as until then it covers data that is kept.
        "coverage": (
            Index("instrument_start", (*_INSTRUMENT, ("start", 1))),
            Index("instrument_end", (*_INSTRUMENT, ("end", 1), ("start", 1))),
            Index("life", (("end", 1),), ttl_seconds(retention.hours)),
        ),
        "marks": (),
        "counters": (),
        "listings": (),
        "tracked": (),
        "expired": (Index("instrument", _INSTRUMENT),),
        "leases": (Index("owner", (("owner", 1),)),),
    }


def options(name: str) -> dict[str, Any]:
    """Options with which a collection is created.

    `trades` is clustered by `_id`, so that it needs no separate index of `_id`: this takes a third less disk
    (`benchmarks/mongo_size.py`). A collection that an earlier version created without these options stays as it is.
    """
    compressed: dict[str, Any] = {"storageEngine": _ZSTD_BLOCKS, "indexOptionDefaults": {"storageEngine": _ZSTD_BLOCKS}}
    return compressed | ({"clusteredIndex": {"key": {"_id": 1}, "unique": True}} if name == "trades" else {})


def expiring_kind(name: str, index: Index) -> str | None:
    """Which kind of data (a field of `Retention`) a TTL index deletes that answers are made of; None for any other index."""
    if index.ttl_seconds is None or name not in ("trades", "footprints", "bars"):
        return None
    return "trades" if index.timeframe is None else "minutes" if index.timeframe.ms < HOUR else "hours"


def _bar_ttls(field: str, retention: Retention) -> tuple[Index, ...]:
    return tuple(
        Index(f"life_{timeframe}", ((field, 1),), ttl_seconds(retention.minutes if timeframe.ms < HOUR else retention.hours), timeframe)
        for timeframe in Timeframe
    )


def ttl_seconds(milliseconds: int) -> int:
    """A retention as the server takes it."""
    return min(milliseconds // SECOND, _MAX_TTL_SECONDS)
