"""Loopback Binance and Bybit in one process, for the demo, for replays and for tests.

    async with Simulator(seed=7) as simulator:
        simulator.urls["binance_spot_ws"]  # ws://127.0.0.1:...

Trades come from a computed market, from a recording, or (`manual`) from a test that pushes them.
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
from wadm_mcp.simulator.bybit import Bybit, linear_ids, pushed_ids, spot_ids
from wadm_mcp.simulator.faults import Faults
from wadm_mcp.simulator.feed import LiveFeed, ReplayFeed
from wadm_mcp.simulator.halts import HaltingTape
from wadm_mcp.simulator.listings import custom_steps, known_instruments
from wadm_mcp.simulator.market import Fill, Market, default_rate
from wadm_mcp.simulator.replay import Recording
from wadm_mcp.simulator.state import QUEUE, Batch, SimulatorState, Timing
from wadm_mcp.simulator.tape import IdsOfFill, MarketTape, Print, PushedTape, Tape, TapeWithEmptyRows, TapeWithMissingIds, aggregate_of
from wadm_mcp.simulator.venue import Venue

FIRST_ID: Final = 1_000_001
"""Id of the first trade that a test pushes."""

_REPLAY_QUEUE: Final = 1_000


class Simulator:
    """Both exchanges on free ports of 127.0.0.1, entered as a context manager.

    `instruments` are the listed ones (default: eight known symbols, without BNBUSDT on Bybit); `activity` multiplies how much they
    trade, for all of them, or by exchange or instrument (`binance:spot:BTCUSDT`). With `manual` the only trades are those of `push`. With
    `replay` there is only the recorded market of Binance with the recorded symbols; `speed` divides the recorded pauses, and 0 plays as
    fast as clients read. `clock` returns ms since the epoch, `wall` (default: the same) is the clock of REST's rate limits; `queue` is how
    many frames a client may leave unread.

    `sent` counts, by instrument, the rows that a collector records (spot trades, USD-M aggregates, Bybit trades) and that were sent to at
    least one client.
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
        pushed = manual or replay is not None
        faults = faults or Faults()
        tapes: dict[Instrument, Tape] = {
            one: _pushed_tape(replay) if pushed else _market_tape(one, seed, _activity_of(activity, one)) for one in listed
        }
        if not pushed:
            tapes = {one: HaltingTape(tape) for one, tape in tapes.items()}
        if faults.absent_every:
            tapes = {one: TapeWithMissingIds(tape, faults.absent_every) for one, tape in tapes.items()}
        if faults.empty_every:
            tapes = {one: TapeWithEmptyRows(tape, faults.empty_every, aggregated=one.exchange == "binance") for one, tape in tapes.items()}
        self._manual = manual
        queue_frames = queue or (QUEUE if replay is None else _REPLAY_QUEUE)
        now = clock or _now
        self._state = SimulatorState(tapes, lambda: now() + faults.skew, wall or now, timing or Timing(), faults, queue_frames)
        kinds = (BinanceSpot, BinanceLinear, Bybit)
        self._venues: list[Venue] = [
            kind(self._state) for kind in kinds if replay is None or (kind.exchange, kind.markets) == ("binance", (replay.market,))
        ]
        self.replay = ReplayFeed(self._venues[0], replay, speed) if replay is not None else None
        """The running replay with its progress (`played`, `total`, `finished`); None without one."""
        self._numbers = {key: count(FIRST_ID) for key in _id_counters(listed)}
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
    def urls(self) -> dict[str, str]:
        """Base URLs without path, by the lower-case setting name without `WADM_`: `binance_spot_ws`, `bybit_rest`, ..."""
        urls: dict[str, str] = {}
        for venue in self._venues:
            name = "_".join((venue.exchange, *venue.markets)) if len(venue.markets) == 1 else venue.exchange
            urls[f"{name}_ws"] = f"ws://127.0.0.1:{venue.port}"
            urls[f"{name}_rest"] = f"http://127.0.0.1:{venue.port}"
            # Every host of an exchange serves its archive.
            urls[f"{venue.exchange}_archive"] = f"http://127.0.0.1:{venue.port}"
        return urls

    @property
    def sent(self) -> Mapping[tuple[str, str, str], int]:
        """Number of rows sent to at least one client, by (exchange, market, symbol)."""
        return self._state.sent

    def archive(self, exchange: str) -> Archives:
        """The archive of an exchange, which its base URL in `urls` serves."""
        return [venue for venue in self._venues if venue.exchange == exchange][-1].archives

    def tape(self, instrument: Instrument) -> Tape:
        """The ledger: all trades of an instrument, whether they were sent to a client or not."""
        return self._state.tapes[instrument]

    async def subscribed(self, exchange: str, market: str, symbol: str) -> None:
        """Returns when a client is subscribed to the symbol's trades on a route that delivers them."""
        instrument = self._listed(exchange, market, symbol)
        await self._venue(exchange, market).followed(instrument)

    def connections(self, exchange: str, market: str) -> int:
        """Open WebSocket connections of a market."""
        return len(self._venue(exchange, market).members(market))

    def drop_connections(self, exchange: str, market: str) -> None:
        """Ends every connection of a market without a closing handshake."""
        for client in self._venue(exchange, market).members(market):
            client.drop()

    def mute(self, exchange: str, market: str) -> None:
        """Stops sending trades; connections, acknowledgements and heartbeats continue. Trades of this time are never sent."""
        self._venue(exchange, market).muted.add(market)

    def unmute(self, exchange: str, market: str) -> None:
        """Sends trades again, from now on."""
        self._venue(exchange, market).muted.discard(market)

    def set_status(self, exchange: str, market: str, symbol: str, status: str | None) -> None:
        """Stop a symbol and list it with this status, the exchange's own word; with an empty one it is not listed. None: it trades.

        A computed market is halted meanwhile, and its ids go on without a hole. With `manual`, do not push trades of it.
        """
        instrument = self._listed(exchange, market, symbol)
        if status is None:
            self._state.statuses.pop(instrument, None)
        else:
            self._state.statuses[instrument] = status

    def set_steps(self, exchange: str, market: str, symbol: str, tick: str, lot: str) -> None:
        """List a symbol with another tick and lot. Computed prices stay multiples of the old ones."""
        instrument = self._listed(exchange, market, symbol)
        self._state.steps[instrument] = custom_steps(instrument, tick, lot)

    def stall(self, exchange: str, market: str, symbol: str) -> None:
        """Deliver nothing of a symbol to the clients that are subscribed to it, until they unsubscribe and subscribe it again."""
        self._venue(exchange, market).stall(self._listed(exchange, market, symbol))

    def send_raw(self, exchange: str, market: str, frame: str | bytes) -> None:
        """Sends a frame unchanged to every client of a market: text as a text frame, bytes as a binary one."""
        for client in self._venue(exchange, market).members(market):
            client.offer(frame)

    def skip_trades(self, exchange: str, market: str, symbol: str, count: int) -> None:
        """Do not send the next `count` trades on the stream; REST still returns them."""
        self._state.skips[self._listed(exchange, market, symbol)] += count

    async def push(
        self, exchange: str, market: str, symbol: str, trades: Iterable[tuple[int, str, str, str]], *, event_time: int | None = None
    ) -> list[str]:
        """Adds and sends trades with the next ids, each `(timestamp_ms, price, quantity, "BUY" | "SELL")`; requires `manual`.

        Trades are not aggregated: on USD-M each is an aggregate by itself. Returns the ids as a collector records them (USD-M: `a`).
        The event time defaults to 1 ms after the trade.
        """
        if not self._manual:
            raise ValueError("push requires Simulator(manual=True)")
        instrument = self._listed(exchange, market, symbol)
        tape = self._state.tapes[instrument]
        assert isinstance(tape, PushedTape)
        prints = [self._pushed(instrument, *trade) for trade in trades]
        folded = [aggregate_of(next(self._aggregate_numbers[instrument]), one) for one in prints] if exchange == "binance" else []
        for one in prints:
            tape.add(one)
        for whole in folded:
            tape.add_aggregate(whole)
        await self._venue(exchange, market).publish(instrument, Batch(prints, folded), event_time=event_time)
        return [str(whole.number) for whole in folded] if market == "linear" and exchange == "binance" else [one.trade_id for one in prints]

    def _pushed(self, instrument: Instrument, timestamp: int, price: str, quantity: str, side: str) -> Print:
        exchange, market, symbol = instrument
        number = next(self._numbers[_id_counter(instrument)])
        trade_id, seq = (str(number), number) if exchange == "binance" else pushed_ids(market, symbol, number)
        return Print(number, trade_id, seq, timestamp, price, quantity, TradeType(side) is TradeType.BUY)

    def _venue(self, exchange: str, market: str) -> Venue:
        for venue in self._venues:
            if venue.exchange == exchange and market in venue.markets:
                return venue
        raise ValueError(f"{exchange}:{market} is not simulated; available are {', '.join(sorted(self.urls))}")

    def _listed(self, exchange: str, market: str, symbol: str) -> Instrument:
        instrument = Instrument(exchange, market, symbol)
        if instrument not in self._state.tapes:
            raise ValueError(f"{instrument} is not listed; listed are {', '.join(map(str, self.instruments))}")
        return instrument


def _now() -> int:
    return time.time_ns() // 1_000_000


def _activity_of(activity: float | Mapping[str, float], instrument: Instrument) -> float:
    if isinstance(activity, Mapping):
        return activity.get(str(instrument), activity.get(instrument.exchange, 1.0))
    return activity


def _id_counter(instrument: Instrument) -> tuple[str, ...]:
    # The spot ids of Bybit count all symbols together; Binance counts each symbol separately.
    return (instrument.exchange, instrument.market) if instrument.exchange == "bybit" else tuple(instrument)


def _id_counters(instruments: Iterable[Instrument]) -> set[tuple[str, ...]]:
    return {_id_counter(one) for one in instruments}


def _pushed_tape(replay: Recording | None) -> PushedTape:
    return PushedTape(window=1 if replay is not None and replay.market == "spot" else None)


def _market_tape(instrument: Instrument, seed: int, activity: float) -> MarketTape:
    exchange, market, symbol = instrument
    computed = Market(exchange, market, symbol, seed, rate=default_rate(instrument) * activity)
    naming: IdsOfFill = _binance_ids if exchange == "binance" else spot_ids if market == "spot" else linear_ids
    return MarketTape(computed, naming)


def _binance_ids(symbol: str, fill: Fill) -> tuple[str, int]:
    return str(fill.id), fill.id
