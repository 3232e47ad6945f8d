"""Which instruments are followed: looks the configured symbols up at every exchange, and sets collectors on those it lists.

An exchange that does not answer is asked again for ever; what is known of its listings from before serves meanwhile. A symbol that one
exchange does not list is a warning, one that none lists is for the process to refuse.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final

import anyio

from wadm_mcp.collection.collector import Collector
from wadm_mcp.collection.recorder import Recorder
from wadm_mcp.collection.rest import Rest
from wadm_mcp.collection.rollup import Rollup
from wadm_mcp.errors import ExchangeError, SettingError, StoreError
from wadm_mcp.exchanges.binance import Binance
from wadm_mcp.exchanges.bybit import Bybit
from wadm_mcp.exchanges.exchange import Exchange
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import DAY, Listing, Window
from wadm_mcp.near import nearest
from wadm_mcp.settings import Settings
from wadm_mcp.storage.store import Store
from wadm_mcp.tape import Tape

EXCHANGES: Final[Mapping[str, Exchange]] = {"binance": Binance(), "bybit": Bybit()}
"""Every venue, by name."""

_RECENT_TRADES: Final = 2_000
"""Newest stored trades that a start looks at: what repeats, and how often the instrument trades."""
_LONGEST_PAUSE: Final = 30.0
_STORE_PAUSE: Final = 1.0
_STAGGER: Final = 2.0
"""Seconds between the starts of connections that cover each other, so that nothing ends them all at one age."""


class Roster:
    """Follows what the settings name, for one recorder.

    `stored` are the listings known from before; `start` runs a collector under the caller's supervision, by name.
    """

    def __init__(
        self,
        settings: Settings,
        tape: Tape,
        store: Store,
        recorder: Recorder,
        rollup: Rollup,
        health: Health,
        clock: Callable[[], int],
        monotonic: Callable[[], float],
        stored: Sequence[Listing],
        start: Callable[[str, Callable[[], Awaitable[None]]], None],
    ) -> None:
        self._settings = settings
        self._tape = tape
        self._store = store
        self._recorder = recorder
        self._rollup = rollup
        self._health = health
        self._clock = clock
        self._monotonic = monotonic
        self._stored = stored
        self._start = start
        self._listed: dict[str, set[str]] = {symbol: set() for symbol in settings.WADM_SYMBOLS}
        self._found: set[str] = set()

    async def assemble(self, rest: Rest) -> SettingError | None:
        """Returns once every exchange has answered: None, or what to tell of a symbol that none of them lists."""
        settings = self._settings
        async with anyio.create_task_group() as lookups:
            for name in settings.WADM_EXCHANGES:
                for market in settings.WADM_MARKETS:
                    lookups.start_soon(self._follow_market, rest, EXCHANGES[name], market)
        for instrument in self._tape.keep([followed.tape.instrument for followed in self._recorder.followed]):
            self._health.forget(str(instrument))
        for symbol in settings.WADM_SYMBOLS:
            if symbol not in self._found:
                asked = f"{' and '.join(settings.WADM_EXCHANGES)} ({', '.join(settings.WADM_MARKETS)})"
                near = ", ".join(nearest(symbol, self._listed[symbol])) or "none"
                return SettingError(f"WADM_SYMBOLS={symbol}: no such symbol at {asked}. Nearest: {near}")
        return None

    async def _follow_market(self, rest: Rest, exchange: Exchange, market: str) -> None:
        listed = await self._listings(rest, exchange, market)
        mine: list[Listing] = []
        for symbol in self._settings.WADM_SYMBOLS:
            if symbol in listed:
                self._found.add(symbol)
                mine.append(listed[symbol])
            else:
                self._listed[symbol].update(listed)
                near = ", ".join(nearest(symbol, listed)) or "none"
                log.warning("symbol.unknown", exchange=exchange.name, market=market, symbol=symbol, nearest=near)
        await self._insist(partial(self._store.keep_listings, mine))
        for listing in mine:
            await self._insist(partial(self._follow, listing, exchange.numbers_trades[market]))
        url, size = self._settings.socket_url(exchange.name, market), exchange.limits(market).streams
        for first in range(0, len(mine), size):
            part = mine[first : first + size]
            # Where ids do not count, a second connection holds what the first one misses; where they do, they prove it.
            for copy in range(1 if exchange.numbers_trades[market] else self._settings.WADM_BYBIT_CONNECTIONS):
                collector = Collector(exchange, market, part, url, self._recorder, self._health, self._monotonic)
                self._start(f"{exchange.name} {market} collector {copy + 1}", partial(_staggered, collector, copy * _STAGGER))

    async def _follow(self, listing: Listing, numbered: bool) -> None:
        now = self._clock()
        spans = await self._store.spans(listing.instrument, Window(now - DAY, now))
        recent = await self._store.trades(listing.instrument, Window(0, now + DAY), limit=_RECENT_TRADES, newest=True)
        await self._rollup.recover(self._recorder.follow(listing, numbered=numbered, spans=spans, recent=recent))

    async def _listings(self, rest: Rest, exchange: Exchange, market: str) -> dict[str, Listing]:
        """What the exchange lists, asked until it answers; what was stored of it before, where that has every symbol."""
        part, pause = f"{exchange.name} {market} listings", 1.0
        self._health.report(part, State.STARTING, "the exchange is being asked")
        while True:
            try:
                found = await rest.listings(exchange, market, self._settings.rest_url(exchange.name, market))
            except ExchangeError as error:
                self._health.report(part, State.DOWN, str(error))
                log.warning("listings.failed", exchange=exchange.name, market=market, error=error, again_in_s=pause)
                known = [one for one in self._stored if (one.instrument.exchange, one.instrument.market) == (exchange.name, market)]
                stored = {listing.instrument.symbol: listing for listing in known}
                if all(symbol in stored for symbol in self._settings.WADM_SYMBOLS):
                    self._health.report(part, State.OK, "as stored before; the exchange did not answer")
                    return stored
                await anyio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
            else:
                self._health.forget(part)
                return {listing.instrument.symbol: listing for listing in found}

    async def _insist(self, step: Callable[[], Awaitable[None]]) -> None:
        """Try a step on the store until the store takes it."""
        while True:
            try:
                return await step()
            except StoreError as error:
                self._health.report("store", State.DOWN, str(error))
                await anyio.sleep(_STORE_PAUSE)


async def _staggered(collector: Collector, delay: float) -> None:
    await anyio.sleep(delay)
    await collector.run()
