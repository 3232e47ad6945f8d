"""Tracking: adding instruments that the settings do not name to those that are followed, and removing them again.

Tracked instruments are kept in the store, so that they outlive the process and every process on the store knows them. The process that
records reads them there.
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

_POLL_SECONDS: Final = 0.5
_SETTLE_SECONDS: Final = 3.0
"""Time without an import, after which none is expected to start."""
_MAX_SYMBOL_CHARS: Final = 40
DEFAULT_WAIT_SECONDS: Final = 10
"""How long `track` waits by default."""
MAX_WAIT_SECONDS: Final = 300

ProgressCallback = Callable[[float, float, str], Awaitable[None]]
"""Called with the progress of a request: done, total, and a line of text."""


class Tracking:
    """Adds and removes tracked instruments. `changed` wakes the recorder, where this process records."""

    def __init__(self, settings: Settings, store: Store, view: View, health: Health, changed: Callable[[], None]) -> None:
        self._settings = settings
        self._store = store
        self._view = view
        self._health = health
        self._changed = changed

    async def track(
        self,
        progress: ProgressCallback,
        *,
        symbol: object = None,
        exchange: object = ALL,
        market: object = None,
        wait: object = DEFAULT_WAIT_SECONDS,
    ) -> Any:
        """Follow a symbol on each exchange that lists it; waits up to `wait` seconds for live trades and history.

        Returns the rows of `list_markets` about it. `QueryError` for an invalid argument or too many instruments, `UnknownSymbol` where
        no exchange lists the symbol, `ExchangeError` where no exchange answers.
        """
        call = Call("track_market", (("symbol", "ETHUSDT"),))
        name, venues = self._read_venues(call, symbol, exchange, market)
        seconds = read_whole(call, "wait", wait, 0, MAX_WAIT_SECONDS, DEFAULT_WAIT_SECONDS)
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
        new = sorted(listed - followed)
        if len(followed) + len(new) > self._settings.WADM_MAX_INSTRUMENTS:
            raise QueryError(
                f"symbol {shown(symbol)}: {len(followed)} instruments are followed and WADM_MAX_INSTRUMENTS="
                f'{self._settings.WADM_MAX_INSTRUMENTS} is the limit. Remove one first: untrack_market(symbol="...")'
            )
        await self._store.track(new)
        log.info("market.track_requested", instruments=",".join(map(str, new)))
        self._changed()
        with anyio.move_on_after(seconds):
            await self._wait_until_ready(sorted(listed), progress)
        return await self._rows(sorted(listed))

    async def untrack(self, *, symbol: object = None, exchange: object = ALL, market: object = None) -> Any:
        """Stop following a symbol that `track` added. Its stored data stays until its retention ends.

        `QueryError` where `track` did not add it: symbols that the settings name are removed there.
        """
        call = Call("untrack_market", (("symbol", "ETHUSDT"),))
        name, venues = self._read_venues(call, symbol, exchange, market)
        tracked = await self._store.tracked()
        exchanges = {venue.exchange.name for venue in venues}
        chosen = [
            one
            for one in tracked
            if is_called(one, name) and one.exchange in exchanges and (market is None or one.market == venues[0].market)
        ]
        if not chosen:
            added = ", ".join(sorted(map(str, tracked))) or "none"
            raise QueryError(
                f"symbol {shown(symbol)} was not added by track_market. Added: {added}. "
                "To stop recording a symbol of WADM_SYMBOLS, the operator must remove it from that setting"
            )
        await self._store.untrack(chosen)
        self._changed()
        return {"untracked": sorted(map(str, chosen)), "kept": "stored data is kept; call track_market again to query it"}

    def _read_venues(self, call: Call, symbol: object, exchange: object, market: object) -> tuple[str, list[Venue]]:
        if not isinstance(symbol, str) or not (name := plain(symbol)) or len(name) > _MAX_SYMBOL_CHARS:
            raise call.refuse("symbol", symbol, "an exchange's own name of a symbol is needed, such as ETHUSDT")
        named = read_exchange(call, exchange)
        exchanges = self._settings.WADM_EXCHANGES if named == ALL else (named,)
        chosen = read_market(call, market, MARKETS) or self._settings.WADM_MARKETS[0]
        having = [one for one in exchange_names() if one in exchanges and chosen in find_exchange(one).traits]
        if not having:
            raise call.refuse("market", chosen, f"{' and '.join(exchanges)} has no such market", market=None)
        return name, [self._settings.venue(one, chosen) for one in having]

    async def _wait_until_ready(self, wanted: Sequence[Instrument], progress: ProgressCallback) -> None:
        """Return once all of these are live and their history is imported."""
        quiet = 0.0
        while quiet < _SETTLE_SECONDS:
            parts = self._health.parts
            live = [one for one in wanted if (report := parts.get(str(one))) is not None and report.state is State.OK]
            imported = [one for one in live if self._view.follows(one) and self._view.importing(one) is None]
            quiet = quiet + _POLL_SECONDS if len(imported) == len(wanted) else 0.0
            done = len(live) + len(imported)
            await progress(min(done + quiet / _SETTLE_SECONDS, 2 * len(wanted) + 1), 2 * len(wanted) + 1, self._progress_text(wanted, live))
            await anyio.sleep(_POLL_SECONDS)

    def _progress_text(self, wanted: Sequence[Instrument], live: Sequence[Instrument]) -> str:
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
    example = {"symbol": near[0]} if near else {}
    return UnknownSymbol(
        f"symbol {shown(symbol)} is not listed at {places}. Nearest: {', '.join(near) or 'none'}. Try {call.example(**example)}"
    )
