"""The contract of what is kept: trades, footprints, volume profiles, order flow, coverage. Every store fulfils it alike.

Order within a write: trades first, what is derived from them next, coverage last, so that coverage never claims what is not there.
When a write returns it is durable. Writing the same again changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import msgspec

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.volume_profile import VolumeProfile
from wadm_mcp.model import Instrument, Listing, Lives, Span, Timeframe, Trade, Window


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


class Mark(NamedTuple):
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
    settles: Sequence[Mark] = ()


class StoreState(NamedTuple):
    """What a health page says of a store."""

    kind: str
    place: str
    bytes: int


class Store(Protocol):
    """Where things rest, entered as a context manager; `StoreError` when the store cannot be used, by name and with what to do.

    Volume profiles are written for those who read the store itself; answers come from footprints.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None: ...

    async def write(self, trades: Sequence[Trade], spans: Sequence[tuple[Instrument, Span]]) -> None:
        """Keep a batch: trades (known ones are ignored), a mark on each of their minutes, then coverage. Durable on return."""
        ...

    async def derive(self, derived: Derived) -> None:
        """Keep what rollup derived in place of what stood there; clear the marks it settles unless they grew since. Durable on return.

        A pass in which any revision is lower than the stored one is stale: that row stays as it is, and no mark is cleared.
        """
        ...

    async def marks(self) -> list[Mark]:
        """Every minute whose stored figures are not up to date, oldest first."""
        ...

    async def keep_listings(self, listings: Sequence[Listing]) -> None:
        """Remember how the exchanges list these instruments."""
        ...

    async def listings(self) -> list[Listing]:
        """Every listing ever kept, newest form."""
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

    async def expire(self, now: int, lives: Lives) -> int:
        """Delete a bounded amount of what outlived its life; how many rows went. 0 where the store's own server deletes."""
        ...

    async def hold(self, owner: str, life: float) -> bool:
        """Be, or go on to be, the one that records into this store, for `life` seconds from now. False while another owner is.

        A store that one machine's lock guards already (SQLite's data directory) always says yes.
        """
        ...

    async def let_go(self, owner: str) -> None:
        """Record no more, so that another owner may at once."""
        ...

    async def state(self) -> StoreState:
        """Proof that the store answers; `StoreError` when it does not."""
        ...
