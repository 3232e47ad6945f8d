"""The contract of what is kept: trades, footprints, volume profiles, order flow, coverage. Every store fulfils it alike.

Order within a write: trades and pieces first, what is derived from them next, coverage last, so that coverage never claims what is not
there. When a write returns it is durable. Writing the same again changes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self, TypeAlias

import msgspec

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.volume_profile import VolumeProfile
from wadm_mcp.model import Instrument, Listing, Retention, Span, Timeframe, Trade, Window


class OrderFlow(msgspec.Struct, frozen=True):
    """One closed bar of order flow. `cumulative_delta` counts from 00:00 UTC, at the bar's scale; `revision` starts at 0."""

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
"""In place of a piece's ids: see `Piece`."""


class PartialFootprint(msgspec.Struct, frozen=True):
    """Trades of one minute that are held as their footprint alone, without rows: the consecutive ids `first_seq` to `last_seq`.

    A history that an exchange tells in aggregates becomes pieces, since rows and aggregates may not share an instrument's ids. The
    figures of a minute are derived from its rows and its pieces together; no id is in both. A piece is known by its instrument, `minute`
    (its start, ms) and `first_seq`; storing it again changes nothing.

    With `WHOLE` in place of both ids it is all of its minute, told by a record that has no ids to join by: it stands above the rows.
    """

    instrument: Instrument
    minute: int
    first_seq: int
    last_seq: int
    footprint: Footprint


class DirtyMinute(NamedTuple):
    """A minute whose stored figures lack trades that are stored: open, late or recovered after a crash.

    `writes` grows with each write to the minute, so that a mark is only cleared by whoever saw its newest trade.
    """

    instrument: Instrument
    minute: int
    writes: int


class Derived(msgspec.Struct, frozen=True):
    """What rollup derived in one pass, and the marks which that settles."""

    footprints: Sequence[StoredFootprint] = ()
    profiles: Sequence[Profile] = ()
    order_flow: Sequence[OrderFlow] = ()
    settles: Sequence[DirtyMinute] = ()


class StoreState(NamedTuple):
    """What a health page says of a store."""

    kind: str
    place: str
    bytes: int


_PAGE_TRADES: Final = 10_000
"""Trades that `all_trades` reads at a time."""

CommitBarrier: TypeAlias = Callable[[], Awaitable[None]]
"""Returns once everything written before is durable."""


async def at_once() -> None:
    """The turn of a batch that is written alone."""


def grown(known: Span, newer: Span) -> Span:
    """A stored span and one that is written over it, with the same start and first id, as one: the longer of both, told as by the newer."""
    return msgspec.structs.replace(newer, end=max(known.end, newer.end), last_seq=max(known.last_seq, newer.last_seq))


class Store(Protocol):
    """Where things rest, entered as a context manager; `StoreError` when the store cannot be used, by name and with what to do.

    Volume profiles are written for those who read the store itself; answers come from footprints.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...

    async def write(
        self,
        trades: Sequence[Trade],
        spans: Sequence[tuple[Instrument, Span]],
        pieces: Sequence[PartialFootprint] = (),
        *,
        turn: CommitBarrier = at_once,
    ) -> None:
        """Keep a batch: trades and pieces (known ones are ignored), a mark on each of their minutes, then coverage. Durable on return.

        Several may be written at once, for coverage rests on all that came before it: who does so has each batch await its `turn` before
        it claims anything. What waits for the turn may be there earlier, or not.
        A span that is stored already under its instrument, start and first id grows to the longer of both, whoever writes last: see
        `grown`.
        """
        ...

    async def pieces(self, instrument: Instrument, window: Window) -> list[PartialFootprint]:
        """Pieces whose minute starts in the window, by minute and `first_seq`."""
        ...

    async def count(self, instrument: Instrument, window: Window) -> int:
        """How many trades of the window are stored, pieces of its minutes counted as one each."""
        ...

    async def derive(self, derived: Derived) -> None:
        """Keep what rollup derived in place of what stood there; clear the marks it settles unless they grew since. Durable on return.

        Compare-and-set: a bar is taken only if its revision is higher than the stored one, and its footprint and profile with it. A pass
        in which any bar is refused is stale (another holder of the lease was there first): no mark is cleared.
        """
        ...

    async def dirty_minutes(self) -> list[DirtyMinute]:
        """Every minute whose stored figures are not up to date, oldest first."""
        ...

    async def save_listings(self, listings: Sequence[Listing]) -> None:
        """Remember how the exchanges list these instruments."""
        ...

    async def listings(self) -> list[Listing]:
        """Every listing ever kept, newest form."""
        ...

    async def track(self, instruments: Sequence[Instrument]) -> None:
        """Remember that somebody asked for these instruments to be followed."""
        ...

    async def untrack(self, instruments: Sequence[Instrument]) -> None:
        """Nobody asks for these any more. What is held of them stays."""
        ...

    async def tracked(self) -> list[Instrument]:
        """Every instrument that was asked for and not taken back, in no order."""
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

        `after` is the `Trade.order` of a trade: only later ones are given. With `newest` the last `limit` ones instead of the first.
        """
        ...

    async def footprints(self, instrument: Instrument, timeframe: Timeframe, window: Window) -> list[StoredFootprint]:
        """Footprints (`1m`, `1h`, `1d`) whose start lies in the window, oldest first."""
        ...

    async def order_flow(self, instrument: Instrument, timeframe: Timeframe, window: Window) -> list[OrderFlow]:
        """Order flow whose start lies in the window, oldest first."""
        ...

    async def spans(self, instrument: Instrument, window: Window) -> list[Span]:
        """Coverage that touches the window, oldest first, and the nearest span before it and after it where there is one."""
        ...

    async def expire(self, now: int, lives: Retention) -> int:
        """Delete a bounded amount of what outlived its life; how many rows went. 0 where the store's own server deletes."""
        ...

    async def acquire_leases(self, owner: str, instruments: Sequence[Instrument], life: float) -> set[Instrument]:
        """Acquire or renew the leases of these instruments, for `life` seconds from now by the store's own clock.

        Returns the instruments whose lease `owner` has now; the others are leased to another owner. A store that a lock on one machine
        guards already (SQLite's data directory) returns all of them.
        """
        ...

    async def release_leases(self, owner: str) -> None:
        """Record nothing more, so that another owner may at once."""
        ...

    async def state(self) -> StoreState:
        """Proof that the store answers; `StoreError` when it does not."""
        ...


async def all_trades(store: Store, instrument: Instrument, window: Window) -> list[Trade]:
    """Every stored trade of the window in ascending `Trade.order`, read page by page."""
    trades: list[Trade] = []
    while True:
        page = await store.trades(instrument, window, after=trades[-1].order if trades else None, limit=_PAGE_TRADES)
        trades += page
        if len(page) < _PAGE_TRADES:
            return trades
