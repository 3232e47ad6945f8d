"""What the venues of one simulator share: timing, tapes, clock, ledger, and the small values they pass around."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from wadm_mcp.model import Instrument
from wadm_mcp.simulator.faults import Faults
from wadm_mcp.simulator.tape import Aggregate, Print, Tape

QUEUE: Final = 20_000
"""Frames a client may leave unread before it is dropped: a few times the largest burst on record (docs/exchanges.md 7)."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Heartbeats, lifetimes and limits of the venues, in seconds, as documented (docs/exchanges.md 1.4, 2.3, 3.4); tests shorten them."""

    binance_spot_ping: float = 20
    binance_spot_pong: float = 60
    binance_linear_ping: float = 180
    binance_linear_pong: float = 600
    binance_lifetime: float = 86_400
    bybit_idle: float = 600
    tick: float = 0.02
    """How often the live feed looks at the clock."""


@dataclass(slots=True)
class SimulatorState:
    """What every venue of one simulator works with: the instruments' tapes, the clock (ms), and the ledger of what was pushed.

    `wall` is the clock by which requests are limited: it goes on where a market is made to stand still.
    """

    tapes: Mapping[Instrument, Tape]
    clock: Callable[[], int]
    wall: Callable[[], int]
    timing: Timing = field(default_factory=Timing)
    faults: Faults = field(default_factory=Faults)
    queue: int = QUEUE
    sent: Counter[tuple[str, str, str]] = field(default_factory=Counter[tuple[str, str, str]])
    skips: Counter[Instrument] = field(default_factory=Counter[Instrument])


class Batch(NamedTuple):
    """Rows of one instrument that the exchange publishes together, in its order."""

    prints: Sequence[Print] = ()
    aggregates: Sequence[Aggregate] = ()


class Route(NamedTuple):
    """What a WebSocket URL chose: market, part of its streams, whether events are wrapped, and the streams it names."""

    market: str
    name: str = ""
    combined: bool = False
    topics: Sequence[str] = ()


class Frame(NamedTuple):
    """A frame of a topic. `counted` is how many ledger rows it holds; `text` writes it wrapped (True) or raw."""

    topic: str
    counted: int
    text: Callable[[bool], str]
