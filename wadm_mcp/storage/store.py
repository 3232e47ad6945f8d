"""The contract of a store: trades, footprints, volume profiles, order flow and coverage. Every store behaves the same.

Writes follow an order: trades and pieces first, then what is derived from them, coverage last, so that coverage never claims data that
is not stored. A write is durable when it returns. Writing the same data again changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self, TypeAlias

import msgspec

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.volume_profile import VolumeProfile
from wadm_mcp.coverage.expired import Expired
from wadm_mcp.coverage.spans import IdRange, Span
from wadm_mcp.model import Instrument, Listing, Retention, Timeframe, Trade, Window


class OrderFlow(msgspec.Struct, frozen=True):
    """The order flow of one closed bar. `cumulative_delta` starts at 00:00 UTC and has the bar's scale; `revision` starts at 0."""

    instrument: Instrument
    timeframe: Timeframe
    start: int
    bar: Bar
    cumulative_delta: int
    revision: int = 0


class Profile(msgspec.Struct, frozen=True):
    """The volume profile of one closed bar. `profile` is None when nothing traded."""

    instrument: Instrument
    timeframe: Timeframe
    start: int
    profile: VolumeProfile | None
    revision: int = 0


class StoredFootprint(msgspec.Struct, frozen=True):
    """The footprint of one closed minute, hour or day."""

    instrument: Instrument
    timeframe: Timeframe
    start: int
    footprint: Footprint
    revision: int = 0


WHOLE: Final = -1
"""Stands in place of both ids of a `PartialFootprint` that covers its whole minute."""


class PartialFootprint(msgspec.Struct, frozen=True):
    """Trades of one minute stored as one footprint, without single trades. They have the consecutive ids `first_seq` to `last_seq`.

    Where an exchange publishes its history as aggregates, they are stored as partial footprints, because the ids of aggregates and of
    trades are not the same. The figures of a minute are derived from its single trades and its partial footprints together. No id is in
    both, except where processes that share a database repaired one gap twice; `without_repeats` leaves one of both out. One is identified
    by its instrument, `minute` (its start, ms) and `first_seq`; storing it again changes nothing, and of two the longer one is kept. Its
    table is named `pieces`.

    With `WHOLE` in place of both ids it contains all trades of its minute, from a source without ids that could be matched with single
    trades. It then replaces the single trades of the minute.
    """

    instrument: Instrument
    minute: int
    first_seq: int
    last_seq: int
    footprint: Footprint

    @property
    def ids(self) -> IdRange:
        """Its ids, and the times of the first and last of its trades."""
        return IdRange(self.first_seq, self.last_seq, self.footprint.bar.first_at, self.footprint.bar.last_at)

    @property
    def whole(self) -> bool:
        """True if it contains all trades of its minute."""
        return self.first_seq == WHOLE


class DirtyMinute(NamedTuple):
    """A minute whose stored figures lack some of its stored trades: it is open, got late trades, or was recovered.

    `writes` grows with each write to the minute. A pass of rollup clears the record only if it read the newest `writes`.
    """

    instrument: Instrument
    minute: int
    writes: int


class Derived(msgspec.Struct, frozen=True):
    """What rollup derived in one pass, and the dirty minutes that the pass clears."""

    footprints: Sequence[StoredFootprint] = ()
    profiles: Sequence[Profile] = ()
    order_flow: Sequence[OrderFlow] = ()
    settles: Sequence[DirtyMinute] = ()


class StoreState(NamedTuple):
    """A store's kind, place and size on disk, for the health page.

    `log_bytes` is the part of the size that is a write-ahead log: what is committed and not in the store's own file yet. It is 0 where a
    server takes care of that. `now` is the time (ms) of the clock by which a server deletes; None where this process does.
    """

    kind: str
    place: str
    bytes: int
    log_bytes: int = 0
    now: int | None = None


class StoreVersion(NamedTuple):
    """Which store it is, and how much was ever written to it: `writes` grows with each batch of trades, and falls only if an older copy of
    the store is put in its place."""

    identity: str
    writes: int


_PAGE_TRADES: Final = 10_000
"""Trades that `all_trades` reads at a time."""

CommitBarrier: TypeAlias = Callable[[], Awaitable[None]]
"""Returns when all batches before this one are durable."""


async def no_barrier() -> None:
    """The barrier of a batch that is written alone: nothing to wait for."""


def merge_spans(stored: Span, newer: Span) -> Span:
    """A stored span and a newer one with the same start and first id, as one span.

    It has the later end and the higher last id of the two; all else comes from the newer one.
    """
    return msgspec.structs.replace(newer, end=max(stored.end, newer.end), last_seq=max(stored.last_seq, newer.last_seq))


class Store(Protocol):
    """Durable storage, entered as a context manager.

    Every method raises `StoreError` when the store cannot be used; the error names the store and what to do.
    Volume profiles are written for programs that read the database itself; answers are computed from footprints.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...

    @property
    def version(self) -> StoreVersion:
        """The version when the store was entered, or after the newest batch that this process wrote."""
        ...

    async def renew_identity(self) -> None:
        """Give the store a new identity: it is an older copy, and what is written to it from now on makes it another store."""
        ...

    async def check(self) -> None:
        """Raise `StoreLost` if what this process writes to was deleted or replaced under it. Cheap; `write` checks it too."""
        ...

    async def write(
        self,
        trades: Sequence[Trade],
        spans: Sequence[tuple[Instrument, Span]],
        pieces: Sequence[PartialFootprint] = (),
        *,
        barrier: CommitBarrier = no_barrier,
    ) -> None:
        """Store a batch: trades and partial footprints (`pieces`; those already stored are ignored), their dirty minutes, then coverage.

        The batch is durable on return. Several batches may be written concurrently: each awaits its `barrier` before it stores coverage,
        so that coverage never precedes the trades of an earlier batch. A batch's own trades may be stored before its barrier returns.
        A span with the instrument, start and first id of a stored one is merged with it: see `merge_spans`.
        """
        ...

    async def pieces(self, instrument: Instrument, window: Window) -> list[PartialFootprint]:
        """Partial footprints whose minute starts in the window, by minute and `first_seq`."""
        ...

    async def count(self, instrument: Instrument, window: Window) -> int:
        """Number of stored trades of the window; a partial footprint counts as one."""
        ...

    async def derive(self, derived: Derived) -> None:
        """Replace stored figures with newly derived ones, and clear the dirty minutes in `settles` without later writes. Durable on return.

        Compare-and-set: a bar is written, with its footprint and profile, only if its revision is higher than the stored one. If any bar
        is rejected, another lease owner has derived it before, the pass is stale, and no dirty minute is cleared.
        """
        ...

    async def dirty_minutes(self) -> list[DirtyMinute]:
        """Every minute whose stored figures lack stored trades, oldest first."""
        ...

    async def save_listings(self, listings: Sequence[Listing]) -> None:
        """Store the exchanges' listings of these instruments, in place of earlier ones."""
        ...

    async def listings(self) -> list[Listing]:
        """The newest listing of every instrument that was ever stored."""
        ...

    async def track(self, instruments: Sequence[Instrument]) -> None:
        """Store that these instruments were asked to be recorded."""
        ...

    async def untrack(self, instruments: Sequence[Instrument]) -> None:
        """Remove these instruments from the tracked ones. Their stored data stays."""
        ...

    async def tracked(self) -> list[Instrument]:
        """Every tracked instrument, in no order."""
        ...

    async def trades(
        self,
        instrument: Instrument,
        window: Window,
        *,
        after: tuple[int, int, int, str] | None = None,
        limit: int,
        newest: bool = False,
    ) -> list[Trade]:
        """Up to `limit` trades of the window in ascending `Trade.order`.

        `after` is the `Trade.order` of a trade: only later trades are returned. With `newest` the last `limit` trades, not the first.
        """
        ...

    async def footprints(
        self, instrument: Instrument, timeframe: Timeframe, window: Window, *, max_bytes: int | None = None
    ) -> list[StoredFootprint]:
        """Footprints (`1m`, `1h`, `1d`) whose start lies in the window, oldest first.

        With `max_bytes` it may return only the first of them, at least one: it stops once their packed form has this many bytes. Whoever
        wants the others asks for what follows the last one, see `footprint_lots`.
        """
        ...

    async def order_flow(self, instrument: Instrument, timeframe: Timeframe, window: Window) -> list[OrderFlow]:
        """Order flow whose start lies in the window, oldest first."""
        ...

    async def spans(self, instrument: Instrument, window: Window) -> list[Span]:
        """Spans that touch the window, and the nearest one before it and after it, oldest first."""
        ...

    async def expire(self, now: int | None, retention: Retention, latest: int | None = None) -> int:
        """Delete a bounded number of rows that are older than their retention by `now` (ms); returns how many. None deletes nothing.

        `expired` says so from the moment of the deletion on. Returns 0 where the database server deletes by itself: it does so by a clock
        of its own, which may be wrong. No event is later than `latest` (ms), so nothing later was deleted; None if that is not known.
        """
        ...

    async def expired(self, instrument: Instrument) -> Expired:
        """What was deleted of an instrument, or may be at any moment, with whatever retention: none of it may be claimed.

        It survives a restart and a longer retention.
        """
        ...

    async def acquire_leases(self, owner: str, instruments: Sequence[Instrument], seconds: float) -> set[Instrument]:
        """Acquire or renew the leases of these instruments, for `seconds` from now by the store's own clock.

        Returns the instruments whose lease `owner` has now; the others are leased to another owner. A store that a lock on one machine
        guards already (SQLite's data directory) returns all of them.
        """
        ...

    async def release_leases(self, owner: str) -> None:
        """End all leases of this owner, so that another one can acquire them immediately."""
        ...

    async def state(self) -> StoreState:
        """The store's state, read from the store itself; `StoreError` when it does not answer."""
        ...


async def all_trades(store: Store, instrument: Instrument, window: Window) -> list[Trade]:
    """Every stored trade of the window in ascending `Trade.order`, read page by page."""
    trades: list[Trade] = []
    while True:
        page = await store.trades(instrument, window, after=trades[-1].order if trades else None, limit=_PAGE_TRADES)
        trades += page
        if len(page) < _PAGE_TRADES:
            return trades


FootprintReader: TypeAlias = Callable[[Timeframe, Window], Awaitable[list[StoredFootprint]]]
"""Reads the first footprints of a window, oldest first; none only if the window has none."""


async def footprint_lots(read: FootprintReader, timeframe: Timeframe, window: Window) -> AsyncGenerator[list[StoredFootprint]]:
    """Every stored footprint of a window, oldest first, one lot of `read` after the other."""
    start = window.start
    while start < window.end and (rows := await read(timeframe, Window(start, window.end))):
        start = rows[-1].start + timeframe.ms
        yield rows
