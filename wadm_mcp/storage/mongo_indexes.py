"""The collections of the MongoDB store and their indexes: pure data.

An index stands here because a query of the store uses it, or because it is what ends a life (TTL). Where one collection holds
several timeframes, each has its own partial TTL index over the same key, so that each has a life of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from wadm_mcp.model import HOUR, SECOND, Retention, Timeframe

SCHEMA_VERSION: Final = 3

SCHEMA: Final = "schema"
"""The collection whose one document says which WADM the others are for."""

_BLOCKS: Final = {"wiredTiger": {"configString": "block_compressor=zstd"}}
"""How blocks are compressed, those of documents and those of indexes, which the server would leave as they are."""

_LONGEST: Final = (1 << 31) - 1
"""Seconds of the longest life that the server takes, 68 years."""

_INSTRUMENT: Final = (("exchange", 1), ("market", 1), ("symbol", 1))
_BAR: Final = (*_INSTRUMENT, ("timeframe", 1), ("start_time", 1))


class Index(NamedTuple):
    """One index. `expires` is the life in seconds after which a document leaves, `timeframe` the one it is partial to."""

    name: str
    keys: tuple[tuple[str, int], ...]
    expires: int | None = None
    timeframe: Timeframe | None = None


def collections(lives: Retention) -> Mapping[str, Sequence[Index]]:
    """Every collection by name, with its indexes besides the one on `_id`."""
    return {
        "trades": (Index("instrument_time", (*_INSTRUMENT, ("timestamp", 1))), Index("life", (("timestamp", 1),), _seconds(lives.trades))),
        "pieces": (
            Index("instrument_minute", (*_INSTRUMENT, ("minute", 1), ("first_seq", 1))),
            Index("life", (("minute", 1),), _seconds(lives.minutes)),
        ),
        "footprints": (Index("instrument_start", _BAR), *_lives("start_time", lives)),
        "bars": (Index("instrument_start", _BAR), *_lives("start_time", lives)),
        "volume_profiles": _lives("start_time", lives),
        "order_flow": _lives("timestamp", lives),
        # Spans may overlap, so both ends are searched. A span lives by its end: while it reaches into what is kept it says something.
        "coverage": (
            Index("instrument_start", (*_INSTRUMENT, ("start", 1))),
            Index("instrument_end", (*_INSTRUMENT, ("end", 1), ("start", 1))),
            Index("life", (("end", 1),), _seconds(lives.hours)),
        ),
        "marks": (),
        "counters": (),
        "listings": (),
        "tracked": (),
        "leases": (Index("owner", (("owner", 1),)),),
    }


def options(name: str) -> dict[str, Any]:
    """How a collection is made. Trades lie in the order of their `_id`, so that no index of it lies beside them: that takes a third less
    disk (`benchmarks/mongo_size.py`). A collection that an earlier version made otherwise stays as it is.
    """
    made: dict[str, Any] = {"storageEngine": _BLOCKS, "indexOptionDefaults": {"storageEngine": _BLOCKS}}
    return made | ({"clusteredIndex": {"key": {"_id": 1}, "unique": True}} if name == "trades" else {})


def _lives(field: str, lives: Retention) -> tuple[Index, ...]:
    return tuple(
        Index(f"life_{timeframe}", ((field, 1),), _seconds(lives.minutes if timeframe.ms < HOUR else lives.hours), timeframe)
        for timeframe in Timeframe
    )


def _seconds(life: int) -> int:
    return min(life // SECOND, _LONGEST)
