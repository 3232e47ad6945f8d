"""The state that the venues of one simulator share, and the values that they exchange."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from wadm_mcp.model import Instrument
from wadm_mcp.simulator.faults import Faults
from wadm_mcp.simulator.tape import Aggregate, Print, Tape

QUEUE: Final = 20_000
"""Frames that a client may leave unread before it is dropped: a few times the largest recorded burst (docs/exchanges.md 7)."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Heartbeats, lifetimes and limits of the exchanges, in seconds (docs/exchanges.md 1.4, 2.3, 3.4); tests shorten them."""

    binance_spot_ping: float = 20
    binance_spot_pong: float = 60
    binance_linear_ping: float = 180
    binance_linear_pong: float = 600
    binance_lifetime: float = 86_400
    bybit_idle: float = 600
    tick: float = 0.02
    """Interval of the live feed."""


@dataclass(slots=True)
class SimulatorState:
    """State shared by all venues of one simulator: the instruments' tapes, the clock (ms), and counters of what was sent.

    `wall` is the clock of the rate limits: it runs even if a test stops the market's `clock`. `sent` counts rows by instrument that were
    sent to a client; `skips` is how many of the next rows are not sent.
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
    """Rows of one instrument that are published together, in the exchange's order."""

    prints: Sequence[Print] = ()
    aggregates: Sequence[Aggregate] = ()


class Route(NamedTuple):
    """What a WebSocket URL selects: the market, the route `name`, combined or raw events, and the streams to subscribe."""

    market: str
    name: str = ""
    combined: bool = False
    topics: Sequence[str] = ()


class Frame(NamedTuple):
    """A frame of a topic. `counted` is the number of rows in it that count in `sent`; `text` encodes it as combined (True) or raw."""

    topic: str
    counted: int
    text: Callable[[bool], str]
