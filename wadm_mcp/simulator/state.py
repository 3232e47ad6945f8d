"""The state that the venues of one simulator share, and the values that they exchange."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from wadm_mcp.model import Instrument
from wadm_mcp.simulator.candles import PublishedCandles
from wadm_mcp.simulator.faults import Faults
from wadm_mcp.simulator.halts import HaltingTape
from wadm_mcp.simulator.listings import Steps, finer_steps, steps_of, symbols_of
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
    statuses: dict[Instrument, str] = field(default_factory=dict[Instrument, str])
    """Instruments that do not trade: the exchange's word for it, empty for one that it does not list."""
    steps: dict[Instrument, Steps] = field(default_factory=dict[Instrument, Steps])
    """Ticks and lots that differ from `steps_of`."""
    candles: defaultdict[Instrument, PublishedCandles] = field(default_factory=lambda: defaultdict(PublishedCandles))
    """Candles of the trades that the live feed published."""

    def status(self, instrument: Instrument) -> str | None:
        """As `statuses`, or as a fault has it; None while the instrument trades."""
        return self.statuses[instrument] if instrument in self.statuses else self.faults.status(instrument)

    def listed(self, exchange: str, market: str) -> dict[str, str]:
        """The listed symbols of a market with the exchange's word for their status, empty for those that trade."""
        known = {symbol: self.status(Instrument(exchange, market, symbol)) for symbol in symbols_of(self.tapes, exchange, market)}
        return {symbol: status or "" for symbol, status in known.items() if status != ""}

    def steps_of(self, instrument: Instrument) -> Steps:
        """Tick and lot as the exchange lists them now."""
        steps = self.steps.get(instrument) or steps_of(instrument)
        return finer_steps(instrument, steps) if self.faults.has_finer_steps(instrument) else steps

    def note_halts(self, exchange: str, markets: Collection[str]) -> None:
        """Let the computed tapes of these markets stop and go on as their instruments do."""
        now = self.clock()
        for instrument, tape in self.tapes.items():
            if instrument.exchange == exchange and instrument.market in markets and isinstance(tape, HaltingTape):
                tape.halt(self.status(instrument) is not None, now)


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
