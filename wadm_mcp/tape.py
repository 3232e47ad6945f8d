"""The live tape: what is known now and not yet, or not only, in the store.

The recorder (or the follower, where another process records) writes it, queries read it, neither knows the other. All of it
happens on the event loop, so a reader sees a whole trade or none. Memory is bounded: trades and minutes leave once the store has them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import Final, NamedTuple, Protocol

import anyio

from wadm_mcp.analytics.footprint import Footprint
from wadm_mcp.errors import UnknownSymbol
from wadm_mcp.model import MINUTE, Instrument, Listing, Span, Trade, Window

UNSAVED_LIMIT: Final = 60_000
"""Trades of all instruments together that memory holds for questions while the store does not have them, or a `_LOTS`th more."""
_LOTS: Final = 16
"""The part of them that is let go at once, where they are too many, and that come in between two counts."""
MINUTES_LIMIT: Final = 120
"""Minutes of an instrument that memory holds while the store does not have their figures."""

_timestamp: Final = attrgetter("timestamp")


class CoverageSource(Protocol):
    """What this process knows of an instrument's coverage now."""

    @property
    def spans(self) -> Sequence[Span]:
        """Oldest first; they stand above what the store says of the same time."""
        ...

    def alive_until(self) -> int | None:
        """Market time up to which a quiet tail may be claimed; None when it may not."""
        ...


class Repairing(NamedTuple):
    """A repair under way: trades still missing (0 where the exchange does not number them), how many of those come back from
    aggregates, and about how long it takes."""

    trades: int
    folded: int
    seconds: float


class Importing(NamedTuple):
    """An import under way: how far back it is to reach and from when on everything is here (ms), trades a second, and about how many
    seconds it takes."""

    target: int
    reached: int
    rate: int
    seconds: float


class InstrumentTape:
    """The live tape of one instrument."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.minutes: dict[int, Footprint] = {}
        """By their start: the open minute, and those whose footprint the store does not hold yet. Each is whole as far as the tape goes."""
        self.rows: Counter[int] = Counter()
        """Trades that each of these minutes was made of, one by one; whoever derives a minute compares them with what the store holds."""
        self.adopted = False
        """Is what the store held before in it? Until then the minutes may lack trades of an earlier process."""
        self.unsaved: dict[str, Trade] = {}
        """Trades that are not yet durable, by id, oldest first."""
        self.waiting: Counter[int] = Counter()
        """Trades by minute that the store does not hold yet, whether memory still has them or the journal alone."""
        self.let_go: Counter[int] = Counter()
        """Those of them that memory let go."""
        self.saved_until = 0
        """Latest timestamp of a trade that memory gave to the store."""
        self.newest: Trade | None = None
        """The trade with the latest timestamp seen."""
        self.held: CoverageSource | None = None
        """Coverage as this process knows it; None where another process records."""
        self.known_until: int | None = None
        """Where another process records: market time up to which the tape holds what the store's coverage claims."""
        self.repairing: Repairing | None = None
        """What is being done about its gaps; None where there is nothing to do."""
        self.importing: Importing | None = None
        """What is being brought in of the time before; None where there is nothing to bring."""
        self.revising: Counter[int] = Counter()
        """Trades by settled minute that came late and are not in its stored figures yet."""
        self.settled_until = 0
        """Minutes before this one stand in the store; a later trade of theirs waits for rollup."""

    @property
    def instrument(self) -> Instrument:
        return self.listing.instrument

    def take(self, trades: Sequence[Trade]) -> int:
        """Take new trades as they came in, and hold them for questions until the store has them; see `add`."""
        minutes, unsaved = _by_minute(trades), self.unsaved
        for minute, some in minutes.items():
            self.waiting[minute] += len(some)
        for trade in trades:
            unsaved[trade.trade_id] = trade
        return self._add(minutes)

    def drop_unsaved(self, count: int) -> None:
        """Let so many of the oldest unsaved trades go: the journal has them. Many at once, for the way to the first one leads over all
        that left."""
        gone = list(islice(self.unsaved.values(), count))
        for trade in gone:
            del self.unsaved[trade.trade_id]
        self.saved_until = max(self.saved_until, max(map(_timestamp, gone), default=0))
        for minute, some in _by_minute(gone).items():
            self.let_go[minute] += len(some)

    def add(self, trades: Iterable[Trade]) -> int:
        """Take trades into their minutes. How many came late, for a minute that stands in the store already?"""
        return self._add(_by_minute(trades))

    def _add(self, minutes: Mapping[int, Sequence[Trade]]) -> int:
        late = 0
        for minute, trades in minutes.items():
            latest = max(reversed(trades), key=_timestamp)
            if self.newest is None or latest.timestamp >= self.newest.timestamp:
                self.newest = latest
            footprint = self.minutes.get(minute)
            if footprint is None:
                if minute < self.settled_until:
                    self.revising[minute] += len(trades)
                    late += len(trades)
                    continue
                footprint = self.minutes[minute] = Footprint(self.listing.scale)
            footprint.add(*trades)
            self.rows[minute] += len(trades)
        return late

    def add_piece(self, minute: int, footprint: Footprint, *, whole: bool = False) -> None:
        """Take in trades of a minute that are known as a footprint alone and wait for the store. Their place in its path is unknown,
        unless they are the `whole` minute."""
        self.waiting[minute] += 1
        if minute not in self.minutes and minute < self.settled_until:
            self.revising[minute] += 1
        elif whole:
            self.minutes[minute] = footprint
        else:
            self.join_piece(minute, footprint)

    def join_piece(self, minute: int, footprint: Footprint) -> None:
        """Add a piece's trades to a live minute, whose path is unknown from then on."""
        live = self.minutes.get(minute) or Footprint(self.listing.scale)
        self.minutes[minute] = merged = live.beside(footprint)
        merged.bar.min_delta = merged.bar.max_delta = None

    def make_minute(self, minute: int, trades: Sequence[Trade]) -> None:
        """Make a live minute anew of all its trades, in `Trade.order`."""
        self.minutes[minute] = footprint = Footprint(self.listing.scale)
        footprint.add(*trades)
        self.rows[minute] = len(trades)

    def save_piece(self, minute: int) -> None:
        """The store has a piece of a minute durably."""
        _less(self.waiting, minute)

    def save(self, trades: Collection[Trade]) -> None:
        """The store has these trades of the instrument durably."""
        unsaved = self.unsaved
        self.saved_until = max(self.saved_until, max(map(_timestamp, trades), default=0))
        for minute, some in _by_minute(trades).items():
            held = sum(unsaved.pop(trade.trade_id, None) is not None for trade in some)
            _less(self.waiting, minute, len(some))
            _less(self.let_go, minute, len(some) - held)

    def revised(self, minute: int, trades: int) -> None:
        """So many late trades of a minute are in its stored figures now."""
        _less(self.revising, minute, trades)

    def settled_elsewhere(self, marked: Container[int]) -> None:
        """Late trades of minutes that neither wait nor are `marked` in the store are in stored figures, whoever derived those."""
        for minute in [minute for minute in self.revising if minute not in marked and minute not in self.waiting]:
            del self.revising[minute]

    def bound(self) -> None:
        """Let the oldest minutes go when the store has been away for long. They are derived from their trades once it is back."""
        while len(self.minutes) > MINUTES_LIMIT:
            oldest = min(self.minutes)
            self.drop_minute(oldest)
            self.settled_until = max(self.settled_until, oldest + MINUTE)
            self.revising[oldest] += 1

    def drop_minute(self, minute: int) -> None:
        """Let a minute go: the store has its figures, or will derive them."""
        del self.minutes[minute]
        self.rows.pop(minute, None)

    def release(self) -> None:
        """Another process records this instrument now: what is not in the store yet stays until it is, the rest is read from there."""
        self.minutes.clear()
        self.rows.clear()
        self.revising.clear()
        self.settled_until = 0
        self.held = self.known_until = self.repairing = self.importing = None
        self.adopted = False

    @property
    def raw_since(self) -> int:
        """From when on memory holds every single trade: just after the latest one that left it; 0 when it holds none."""
        return max(self.saved_until + 1, min(trade.timestamp for trade in self.unsaved.values()) + 1) if self.unsaved else 0

    def unsaved_in(
        self, window: Window, *, after: tuple[int, int, int, str] | None = None, limit: int | None = None, newest: bool = False
    ) -> list[Trade]:
        """Trades of the window that only memory holds, in `Trade.order`: all, or the first `limit` behind `after`, or with `newest` the
        last ones."""
        start, end = window.start if after is None else max(window.start, after[0]), window.end
        found = [trade for trade in self.unsaved.values() if start <= trade.timestamp < end]
        if after is not None:
            found = [trade for trade in found if trade.timestamp > after[0] or trade.order > after]
        if limit is not None and len(found) > limit:
            # Tens of thousands wait in a flood: the order of most of them is not worth telling.
            times = sorted(map(_timestamp, found), reverse=newest)
            last = times[limit - 1]
            found = [trade for trade in found if (trade.timestamp >= last if newest else trade.timestamp <= last)]
        found.sort(key=lambda trade: trade.order)
        return found[-limit:] if newest and limit else found[:limit]

    def minutes_in(self, window: Window) -> dict[int, Footprint]:
        """Footprints of the window's minutes that stand above the store's, by start."""
        return {start: footprint for start, footprint in self.minutes.items() if start in window}


def _by_minute(trades: Iterable[Trade]) -> dict[int, list[Trade]]:
    minutes: defaultdict[int, list[Trade]] = defaultdict(list)
    for trade in trades:
        at = trade.timestamp
        minutes[at - at % MINUTE].append(trade)
    return minutes


def _less(counts: Counter[int], minute: int, by: int = 1) -> None:
    """Count down, and forget what reaches zero."""
    left = counts[minute] - by
    if left > 0:
        counts[minute] = left
    else:
        counts.pop(minute, None)


class Tape:
    """The live tapes of every followed instrument."""

    def __init__(self) -> None:
        self._instruments: dict[Instrument, InstrumentTape] = {}
        self.awaited: set[Instrument] = set()
        """Configured instruments of which nobody knows yet whether their exchange lists them."""
        self.recorded_elsewhere = False
        """Does another process record into this data directory?"""
        self.begun = anyio.Event()
        """Set once everything that can be known about what is followed was asked for."""
        self.unsaved_limit = UNSAVED_LIMIT
        self._uncounted = 0

    def follow(self, listing: Listing) -> InstrumentTape:
        """The tape of an instrument, made when it is new; the listing is brought up to date."""
        tape = self._instruments.get(listing.instrument)
        if tape is None:
            tape = self._instruments[listing.instrument] = InstrumentTape(listing)
        tape.listing = listing
        self.awaited.discard(listing.instrument)
        return tape

    def bound_unsaved(self, taken: int) -> None:
        """So many trades were taken: where all instruments hold too many that are not saved, each lets the same part of its own go."""
        self._uncounted += taken
        lot = self.unsaved_limit // _LOTS
        if self._uncounted <= lot:
            return
        self._uncounted = 0
        held = sum(len(tape.unsaved) for tape in self)
        if held > self.unsaved_limit:
            for tape in self:
                tape.drop_unsaved(len(tape.unsaved) * (held - self.unsaved_limit + lot) // held)

    def keep(self, instruments: Collection[Instrument]) -> list[Instrument]:
        """Forget every instrument but these; which were forgotten."""
        gone = [instrument for instrument in self._instruments if instrument not in instruments]
        for instrument in gone:
            del self._instruments[instrument]
        return gone

    def forget(self, instrument: Instrument) -> None:
        """The instrument is not followed any more."""
        self._instruments.pop(instrument, None)

    def __getitem__(self, instrument: Instrument) -> InstrumentTape:
        try:
            return self._instruments[instrument]
        except KeyError:
            raise UnknownSymbol(f"{instrument} is not followed any more. Try list_markets()") from None

    def get(self, instrument: Instrument) -> InstrumentTape | None:
        """The tape of an instrument, None where it is not followed."""
        return self._instruments.get(instrument)

    def __iter__(self) -> Iterator[InstrumentTape]:
        return iter(self._instruments.values())

    @property
    def listings(self) -> Iterable[Listing]:
        """Listings of the followed instruments, in the order they were followed."""
        return [tape.listing for tape in self]
