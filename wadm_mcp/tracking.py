"""Instruments on demand: somebody asks for a symbol that nobody follows yet, or takes that back.

What is asked for rests in the store, so that it outlives the process and every process on it knows. Whoever records looks there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import anyio

from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.errors import ExchangeError, QueryError, UnknownSymbol
from wadm_mcp.exchanges.exchange import Venue
from wadm_mcp.exchanges.registry import exchange_names, find_exchange, is_called
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import MARKETS, Instrument
from wadm_mcp.queries.arguments import ALL, Call, read_exchange, read_market, read_whole, shown
from wadm_mcp.queries.markets import markets
from wadm_mcp.queries.view import View
from wadm_mcp.settings import Settings
from wadm_mcp.storage.store import Store
from wadm_mcp.suggest import nearest, plain

_EVERY: Final = 0.5
_SETTLED: Final = 3.0
"""Seconds without an import under way, after which none is expected to begin."""
WAIT: Final = 10
LONGEST_WAIT: Final = 300

ProgressCallback = Callable[[float, float, str], Awaitable[None]]
"""Hears how far a request is: done, of how much, and in words."""


class Tracking:
    """Adds instruments to what is followed, and takes them away again. `changed` wakes whoever records, if that is this process."""

    def __init__(self, settings: Settings, store: Store, view: View, health: Health, changed: Callable[[], None]) -> None:
        self._settings = settings
        self._store = store
        self._view = view
        self._health = health
        self._changed = changed

    async def track(
        self, told: ProgressCallback, *, symbol: object = None, exchange: object = ALL, market: object = None, wait: object = WAIT
    ) -> Any:
        """Follow a symbol where its exchanges list it; waits up to `wait` seconds for live trades and history.

        The rows of `list_markets` about it. `QueryError` for an argument that cannot be used or one instrument too many, `UnknownSymbol`
        where no exchange lists it, `ExchangeError` where none answers.
        """
        call = Call("track_market", (("symbol", "ETHUSDT"),))
        name, venues = self._asked(call, symbol, exchange, market)
        seconds = read_whole(call, "wait", wait, 0, LONGEST_WAIT, WAIT)
        followed = {listing.instrument for listing in self._view.listings}
        listed = {one for one in followed if is_called(one, name) and any(venue.trades_here(one) for venue in venues)}
        near: set[str] = set()
        failures: list[ExchangeError] = []
        async with RestClient(proxied=not self._settings.stays_on_loopback) as rest:
            for venue in [venue for venue in venues if not any(map(venue.trades_here, listed))]:
                try:
                    known = venue.by_symbol(await rest.listings(venue))
                except ExchangeError as error:
                    failures.append(error)
                    continue
                near.update(known)
                if name in known:
                    listed.add(known[name].instrument)
        if not listed:
            raise failures[0] if failures else _unlisted(call, symbol, name, venues, near)
        fresh = sorted(listed - followed)
        if len(followed) + len(fresh) > self._settings.WADM_MAX_INSTRUMENTS:
            raise QueryError(
                f"symbol {shown(symbol)}: {len(followed)} instruments are followed and WADM_MAX_INSTRUMENTS="
                f'{self._settings.WADM_MAX_INSTRUMENTS} is the most. Take one away first: untrack_market(symbol="...")'
            )
        await self._store.track(fresh)
        log.info("market.asked_for", instruments=",".join(map(str, fresh)))
        self._changed()
        with anyio.move_on_after(seconds):
            await self._until_in(sorted(listed), told)
        return await self._rows(sorted(listed))

    async def untrack(self, *, symbol: object = None, exchange: object = ALL, market: object = None) -> Any:
        """Follow a symbol no more that `track` added. What is held of it stays until it outlives its life.

        `QueryError` where nobody asked for it: what the settings name is the operator's.
        """
        call = Call("untrack_market", (("symbol", "ETHUSDT"),))
        name, venues = self._asked(call, symbol, exchange, market)
        tracked = await self._store.tracked()
        exchanges = {venue.exchange.name for venue in venues}
        chosen = [
            one
            for one in tracked
            if is_called(one, name) and one.exchange in exchanges and (market is None or one.market == venues[0].market)
        ]
        if not chosen:
            theirs = ", ".join(sorted(map(str, tracked))) or "none"
            raise QueryError(
                f"symbol {shown(symbol)} was not added by track_market. Added: {theirs}. "
                "What WADM_SYMBOLS names, the operator takes away there"
            )
        await self._store.untrack(chosen)
        self._changed()
        return {"untracked": sorted(map(str, chosen)), "kept": "what is held of it can be asked for again once it is tracked again"}

    def _asked(self, call: Call, symbol: object, exchange: object, market: object) -> tuple[str, list[Venue]]:
        if not isinstance(symbol, str) or not (name := plain(symbol)) or len(name) > 40:
            raise call.refuse("symbol", symbol, "an exchange's own name of a symbol is needed, such as ETHUSDT")
        named = read_exchange(call, exchange)
        exchanges = self._settings.WADM_EXCHANGES if named == ALL else (named,)
        chosen = read_market(call, market, MARKETS) or self._settings.WADM_MARKETS[0]
        having = [one for one in exchange_names() if one in exchanges and chosen in find_exchange(one).traits]
        if not having:
            raise call.refuse("market", chosen, f"{' and '.join(exchanges)} has no such market", market=None)
        return name, [self._settings.venue(one, chosen) for one in having]

    async def _until_in(self, wanted: Sequence[Instrument], told: ProgressCallback) -> None:
        """Returns once all of these are live and their past is here."""
        quiet = 0.0
        while quiet < _SETTLED:
            parts = self._health.parts
            live = [one for one in wanted if (report := parts.get(str(one))) is not None and report.state is State.OK]
            here = [one for one in live if self._view.follows(one) and self._view.importing(one) is None]
            quiet = quiet + _EVERY if len(here) == len(wanted) else 0.0
            done = len(live) + len(here)
            await told(min(done + quiet / _SETTLED, 2 * len(wanted) + 1), 2 * len(wanted) + 1, self._words(wanted, live))
            await anyio.sleep(_EVERY)

    def _words(self, wanted: Sequence[Instrument], live: Sequence[Instrument]) -> str:
        imports = [left for one in live if self._view.follows(one) and (left := self._view.importing(one)) is not None]
        history = f"; history needs about {max(left.seconds for left in imports):,.0f} s more" if imports else ""
        return f"{len(live)} of {len(wanted)} instruments are live{history}"

    async def _rows(self, wanted: Sequence[Instrument]) -> Any:
        answer = await markets(self._view.reading(), self._health)
        table = answer["markets"]
        rows = [row for row in table["rows"] if Instrument(*row[:3]) in wanted]
        missing = [str(one) for one in wanted if list(one) not in [row[:3] for row in rows]]
        return {**answer, "tracked": [str(one) for one in wanted], "starting": missing, "markets": {**table, "rows": rows}}


def _unlisted(call: Call, symbol: object, name: str, venues: Sequence[Venue], known: set[str]) -> UnknownSymbol:
    near = nearest(name, known)
    places = " and ".join(venue.name for venue in venues)
    meant = {"symbol": near[0]} if near else {}
    return UnknownSymbol(
        f"symbol {shown(symbol)} is not listed at {places}. Nearest: {', '.join(near) or 'none'}. Try {call.example(**meant)}"
    )
