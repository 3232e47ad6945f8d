"""Loopback Binance and Bybit in one process: for the demo, for replays and for the tests.

    async with Simulator(seed=7) as simulator:
        simulator.urls["binance_spot_ws"]  # ws://127.0.0.1:...

The market is a function of the clock, a recording, or (`manual`) whatever a test pushes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from itertools import count
from types import TracebackType
from typing import Final, Self

import anyio

from wadm_mcp.model import Instrument, TradeType
from wadm_mcp.simulator.archives import Archives
from wadm_mcp.simulator.binance import BinanceLinear, BinanceSpot
from wadm_mcp.simulator.bybit import Bybit, name_linear, name_pushed, name_spot
from wadm_mcp.simulator.faults import Faults
from wadm_mcp.simulator.feed import LiveFeed, ReplayFeed
from wadm_mcp.simulator.listings import known_instruments
from wadm_mcp.simulator.market import Fill, Market, usual_rate
from wadm_mcp.simulator.replay import Recording
from wadm_mcp.simulator.state import QUEUE, Batch, SimulatorState, Timing
from wadm_mcp.simulator.tape import HeldTape, LackingTape, MarketTape, Naming, Print, Tape, single
from wadm_mcp.simulator.venue import Venue

FIRST_ID: Final = 1_000_001
"""Id of the first trade that is pushed by hand."""

_REPLAY_QUEUE: Final = 1_000


class Simulator:
    """Both exchanges on free ports of 127.0.0.1, open while the block lasts.

    `instruments` are what the exchanges list (default: eight known symbols, BNBUSDT missing on Bybit); `activity` multiplies how much
    they trade, all of them or by exchange. With `manual` nothing trades but what `push` sends. With `replay` only the recorded market of
    Binance is there, listing the recorded symbols; `speed` divides its pauses, 0 plays as fast as clients read. `clock` tells ms since
    the epoch, `wall` (default: the same) is what REST's limits go by; `queue` is how many frames a client may leave unread.

    `sent` counts the rows a collector keeps (spot trades, USD-M aggregates, Bybit trades) that reached at least one client, by instrument.
    """

    def __init__(
        self,
        *,
        seed: int = 1,
        instruments: Iterable[Instrument | str] | None = None,
        manual: bool = False,
        replay: Recording | None = None,
        speed: float = 1.0,
        activity: float | Mapping[str, float] = 1.0,
        timing: Timing | None = None,
        faults: Faults | None = None,
        clock: Callable[[], int] | None = None,
        wall: Callable[[], int] | None = None,
        queue: int | None = None,
    ) -> None:
        if replay is not None:
            listed = [Instrument("binance", replay.market, symbol) for symbol in replay.symbols]
        elif instruments is None:
            listed = known_instruments()
        else:
            listed = [one if isinstance(one, Instrument) else Instrument.parse(one) for one in instruments]
        self.instruments = listed
        held = manual or replay is not None
        faults = faults or Faults()
        tapes: dict[Instrument, Tape] = {one: _held(replay) if held else _computed(one, seed, _of(activity, one)) for one in listed}
        if faults.absent_every:
            tapes = {one: LackingTape(tape, faults.absent_every) for one, tape in tapes.items()}
        self._manual = manual
        room = queue or (QUEUE if replay is None else _REPLAY_QUEUE)
        ours = clock or _now
        self._stage = SimulatorState(tapes, lambda: ours() + faults.skew, wall or ours, timing or Timing(), faults, room)
        kinds = (BinanceSpot, BinanceLinear, Bybit)
        self._venues: list[Venue] = [
            kind(self._stage) for kind in kinds if replay is None or (kind.exchange, kind.markets) == ("binance", (replay.market,))
        ]
        self.replay = ReplayFeed(self._venues[0], replay, speed) if replay is not None else None
        """The replay with its progress (`played`, `total`, `finished`), where there is one."""
        self._numbers = {key: count(FIRST_ID) for key in _counters(listed)}
        self._aggregate_numbers = {one: count(FIRST_ID) for one in listed}
        self._stack: AsyncExitStack | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for venue in self._venues:
                await stack.enter_async_context(venue.listen())
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            if self.replay is not None:
                tasks.start_soon(self.replay.run)
            elif not self._manual:
                for venue in self._venues:
                    tasks.start_soon(LiveFeed(venue).run)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        assert self._stack is not None
        await self._stack.__aexit__(kind, error, traceback)

    @property
    def exchanges(self) -> tuple[str, ...]:
        """The exchanges that it simulates."""
        return tuple(dict.fromkeys(venue.exchange for venue in self._venues))

    @property
    def urls(self) -> dict[str, str]:
        """Base URLs without path, by the lower-case setting name without `WADM_`: `binance_spot_ws`, `bybit_rest`, ..."""
        urls: dict[str, str] = {}
        for venue in self._venues:
            name = "_".join((venue.exchange, *venue.markets)) if len(venue.markets) == 1 else venue.exchange
            urls[f"{name}_ws"] = f"ws://127.0.0.1:{venue.port}"
            urls[f"{name}_rest"] = f"http://127.0.0.1:{venue.port}"
            # Any host of an exchange serves its archive.
            urls[f"{venue.exchange}_archive"] = f"http://127.0.0.1:{venue.port}"
        return urls

    @property
    def sent(self) -> Mapping[tuple[str, str, str], int]:
        """Rows pushed to at least one client, by (exchange, market, symbol); 0 where nothing was."""
        return self._stage.sent

    def archive(self, exchange: str) -> Archives:
        """The archive of an exchange, as its base URL in `urls` leads to it."""
        return [venue for venue in self._venues if venue.exchange == exchange][-1].archives

    def tape(self, instrument: Instrument) -> Tape:
        """The ledger: everything an instrument has traded, whoever was told of it."""
        return self._stage.tapes[instrument]

    async def subscribed(self, exchange: str, market: str, symbol: str) -> None:
        """Returns as soon as a client is subscribed to the symbol's trades on a route that delivers them."""
        instrument = self._listed(exchange, market, symbol)
        await self._venue(exchange, market).followed(instrument)

    def connections(self, exchange: str, market: str) -> int:
        """Open WebSocket connections of a market."""
        return len(self._venue(exchange, market).members(market))

    def drop_connections(self, exchange: str, market: str) -> None:
        """Cuts every connection of a market without a closing handshake."""
        for client in self._venue(exchange, market).members(market):
            client.drop()

    def mute(self, exchange: str, market: str) -> None:
        """Stops delivering trades while connections, acknowledgements and heartbeats go on. What trades meanwhile is lost to the stream."""
        self._venue(exchange, market).muted.add(market)

    def unmute(self, exchange: str, market: str) -> None:
        """Delivers again, from now on."""
        self._venue(exchange, market).muted.discard(market)

    def send_raw(self, exchange: str, market: str, frame: str | bytes) -> None:
        """Sends a frame to every client of a market as it is: text as a text frame, bytes as a binary one."""
        for client in self._venue(exchange, market).members(market):
            client.offer(frame)

    def skip_trades(self, exchange: str, market: str, symbol: str, count: int) -> None:
        """The next `count` rows that a collector keeps are never pushed: REST has them, the stream has not."""
        self._stage.skips[self._listed(exchange, market, symbol)] += count

    async def push(
        self, exchange: str, market: str, symbol: str, trades: Iterable[tuple[int, str, str, str]], *, event_time: int | None = None
    ) -> list[str]:
        """Trades now, with the next ids, each `(timestamp_ms, price, quantity, "BUY" | "SELL")`; needs `manual`.

        Nothing is folded: on USD-M each is an aggregate of its own. Returns the ids as a collector keeps them (USD-M: `a`).
        The event time defaults to 1 ms after the trade.
        """
        if not self._manual:
            raise ValueError("push needs Simulator(manual=True)")
        instrument = self._listed(exchange, market, symbol)
        tape = self._stage.tapes[instrument]
        assert isinstance(tape, HeldTape)
        prints = [self._pushed(instrument, *trade) for trade in trades]
        folded = [single(next(self._aggregate_numbers[instrument]), one) for one in prints] if exchange == "binance" else []
        for one in prints:
            tape.add(one)
        for whole in folded:
            tape.add_aggregate(whole)
        await self._venue(exchange, market).publish(instrument, Batch(prints, folded), event_time=event_time)
        return [str(whole.number) for whole in folded] if market == "linear" and exchange == "binance" else [one.trade_id for one in prints]

    def _pushed(self, instrument: Instrument, timestamp: int, price: str, quantity: str, side: str) -> Print:
        exchange, market, symbol = instrument
        number = next(self._numbers[_counter(instrument)])
        trade_id, seq = (str(number), number) if exchange == "binance" else name_pushed(market, symbol, number)
        return Print(number, trade_id, seq, timestamp, price, quantity, TradeType(side) is TradeType.BUY)

    def _venue(self, exchange: str, market: str) -> Venue:
        for venue in self._venues:
            if venue.exchange == exchange and market in venue.markets:
                return venue
        raise ValueError(f"{exchange}:{market} is not simulated here; there are {', '.join(sorted(self.urls))}")

    def _listed(self, exchange: str, market: str, symbol: str) -> Instrument:
        instrument = Instrument(exchange, market, symbol)
        if instrument not in self._stage.tapes:
            raise ValueError(f"{instrument} is not listed here; there are {', '.join(map(str, self.instruments))}")
        return instrument


def _now() -> int:
    return time.time_ns() // 1_000_000


def _of(activity: float | Mapping[str, float], instrument: Instrument) -> float:
    return activity.get(instrument.exchange, 1.0) if isinstance(activity, Mapping) else activity


def _counter(instrument: Instrument) -> tuple[str, ...]:
    # Bybit's spot ids count all symbols together; Binance numbers each symbol by itself.
    return (instrument.exchange, instrument.market) if instrument.exchange == "bybit" else tuple(instrument)


def _counters(instruments: Iterable[Instrument]) -> set[tuple[str, ...]]:
    return {_counter(one) for one in instruments}


def _held(replay: Recording | None) -> HeldTape:
    return HeldTape(window=1 if replay is not None and replay.market == "spot" else None)


def _computed(instrument: Instrument, seed: int, activity: float) -> MarketTape:
    exchange, market, symbol = instrument
    computed = Market(exchange, market, symbol, seed, rate=usual_rate(instrument) * activity)
    naming: Naming = _by_number if exchange == "binance" else name_spot if market == "spot" else name_linear
    return MarketTape(computed, naming)


def _by_number(symbol: str, fill: Fill) -> tuple[str, int]:
    return str(fill.id), fill.id
