"""Tracking: adding instruments that the settings do not name to those that are followed, and removing them again.

Tracked instruments are kept in the store, so that they outlive the process and every process on the store knows them. The process that
records reads them there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

import anyio

from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.collection.rest.hosts import KnownHosts
from wadm_mcp.errors import ExchangeError, QueryError, UnknownSymbol
from wadm_mcp.exchanges.exchange import Listed, Venue
from wadm_mcp.exchanges.names import InstrumentName, never, read_name
from wadm_mcp.exchanges.registry import canonical_instrument, exchange_names, find_exchange
from wadm_mcp.health import Health, State
from wadm_mcp.logs import log
from wadm_mcp.model import MARKETS, MAX_SYMBOL_CHARS, Instrument
from wadm_mcp.queries.arguments import ALL, LIST_MARKETS, Call, Place, read_place, read_whole, shown
from wadm_mcp.queries.markets import markets
from wadm_mcp.queries.view import View
from wadm_mcp.settings import Settings
from wadm_mcp.storage.store import Store
from wadm_mcp.suggest import nearest, plain

TRACK: Final = "track_market"
UNTRACK: Final = "untrack_market"
"""The names of the two tools."""

_POLL_SECONDS: Final = 0.5
_SETTLE_SECONDS: Final = 3.0
"""Time without an import, after which none is expected to start."""
DEFAULT_WAIT_SECONDS: Final = 10
"""How long `track` waits by default."""
MAX_WAIT_SECONDS: Final = 300

ProgressCallback = Callable[[float, float, str], Awaitable[None]]
"""Called with the progress of a request: done, total, and a line of text."""


class Tracking:
    """Adds and removes tracked instruments. `changed` wakes the recorder, where this process records.

    `hosts` is what this process knows of REST hosts.
    """

    def __init__(
        self, settings: Settings, store: Store, view: View, health: Health, changed: Callable[[], None], hosts: KnownHosts | None = None
    ) -> None:
        self._settings = settings
        self._store = store
        self._view = view
        self._health = health
        self._changed = changed
        self._hosts = hosts

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
        listed = await self._find(symbol, exchange, market)
        seconds = read_whole(Call(TRACK, (("symbol", str(listed[0])),)), "wait", wait, 0, MAX_WAIT_SECONDS, DEFAULT_WAIT_SECONDS)
        tracked = sorted(await self._store.tracked())
        # Where another process records, what it no longer tracks is in view for as long as its data is recent.
        followed = {*(one.instrument for one in self._view.listings if self._settings.configures(one.instrument)), *tracked}
        new = [one for one in listed if one not in followed and not self._settings.configures(one)]
        if len(followed) + len(new) > self._settings.WADM_MAX_INSTRUMENTS:
            way, works = "The operator can raise that setting or remove a symbol of WADM_SYMBOLS", LIST_MARKETS
            if tracked:
                way, works = "Remove one that is not needed first", _untrack(tracked[0])
            raise QueryError(
                f"symbol {shown(symbol)}: {len(followed)} instruments are followed and WADM_MAX_INSTRUMENTS="
                f"{self._settings.WADM_MAX_INSTRUMENTS} is the limit. {way}. Try {works.example()}"
            )
        await self._store.track(new)
        log.info("market.track_requested", instruments=",".join(map(str, new)))
        self._changed()
        with anyio.move_on_after(seconds):
            await self._wait_until_ready(listed, progress)
        return await self._rows(listed)

    async def untrack(self, *, symbol: object = None, exchange: object = ALL, market: object = None) -> Any:
        """Stop following a symbol that `track` added. Its stored data stays until its retention ends.

        `QueryError` where `track` did not add it: symbols that the settings name are removed there.
        """
        tracked = sorted(await self._store.tracked())
        call = _call_to_untrack(tracked, symbol)
        chosen: list[Instrument] = []
        if tracked:
            asked = read_place(call, exchange, market, [tracked[0].market, *MARKETS])
            names = _readings(call, symbol)
            if clash := asked.contradiction(names[-1]):
                raise QueryError(f"symbol={shown(symbol)} with {clash}. Try {call.example()}")
            found = ([one for one in tracked if _is_named(one, name) and asked.completed_by(name).has(one)] for name in names)
            chosen = next(filter(None, found), [])
        if not chosen:
            added = ", ".join(map(str, tracked)) or "none"
            raise QueryError(
                f"symbol {shown(symbol)} is not tracked by track_market. Tracked: {added}. "
                f"To stop recording a symbol of WADM_SYMBOLS, the operator must remove it from that setting. Try {call.example()}"
            )
        await self._store.untrack(chosen)
        self._changed()
        return {"untracked": list(map(str, chosen)), "kept": "stored data is kept; call track_market again to query it"}

    async def example(self, tool: str, symbol: object = None) -> str:
        """A call to try instead of one of the two tools with unknown arguments, as text: about the same symbol where it is one."""
        return (self._call_to_track(symbol) if tool == TRACK else _call_to_untrack(sorted(await self._store.tracked()), symbol)).example()

    def _call_to_track(self, symbol: object) -> Call:
        """A call about the symbol that was asked for, where it may be one; else about one that is followed already."""
        name = read_name(symbol, never) if isinstance(symbol, str) else InstrumentName("")
        if 0 < len(name.symbol) <= MAX_SYMBOL_CHARS and not name.problem:
            return Call(TRACK, (("symbol", ":".join(filter(None, (name.exchange, name.market, name.symbol)))),))
        followed = [listing.instrument for listing in self._view.listings]
        # A tracked one may just have been removed.
        followed.sort(key=lambda one: not self._settings.configures(one))
        return Call(TRACK, (("symbol", [*map(str, followed), self._settings.WADM_SYMBOLS[0]][0]),))

    async def _find(self, symbol: object, exchange: object, market: object) -> list[Instrument]:
        """The instruments of a symbol that exchanges list, sorted. Errors as of `track`.

        Where an instrument is followed already its exchange is not asked. The call that an error suggests is about a listed instrument.
        """
        call = self._call_to_track(symbol)
        followed = [listing.instrument for listing in self._view.listings]
        asked = read_place(call, exchange, market, [*(one.market for one in followed[:1]), *MARKETS])
        names = _readings(call, symbol)
        found = _Search(set(), [], {}, [])
        lists: dict[str, Listed] = {}
        async with RestClient(proxied=not self._settings.stays_on_loopback, health=self._health, hosts=self._hosts) as rest:
            for name in names:
                found = await self._search(rest, self._venues(call, asked, name), name, followed, lists)
                if found.listed and not name.problem and not asked.contradiction(name):
                    return sorted(found.listed)
        name = names[-1]
        if clash := asked.contradiction(name):
            works = call.about(str(min(found.listed))) if found.listed else LIST_MARKETS
            raise QueryError(f"symbol={shown(symbol)} with {clash}. Try {works.example()}")
        if found.failures:
            raise found.failures[0]
        near = nearest(name.symbol, found.near)
        works = call.about(str(found.near[near[0]])) if near else LIST_MARKETS
        why = f": {name.problem}" if name.problem else ""
        places = " and ".join(found.places)
        raise UnknownSymbol(
            f"symbol {shown(symbol)} is not listed at {places}{why}. Nearest: {', '.join(near) or 'none'}. Try {works.example()}"
        )

    async def _search(
        self,
        rest: RestClient,
        venues: Sequence[Venue],
        name: InstrumentName,
        followed: Sequence[Instrument],
        lists: dict[str, Listed],
    ) -> _Search:
        """Look a name up at these venues. `lists` keeps what they list, by the name of the venue."""
        found = _Search(set(), [], {}, [])
        for venue in venues:
            found.places.append(venue.name)
            every = [one for one in followed if venue.trades_here(one) and _is_named(one, name)]
            if not every:
                try:
                    if venue.name not in lists:
                        lists[venue.name] = await rest.listings(venue)
                except ExchangeError as error:
                    found.failures.append(error)
                    continue
                listed = lists[venue.name]
                every = [listing.instrument for listing in listed]
                if doubt := listed.doubt(name.symbol):
                    found.failures.append(ExchangeError(f"{venue.name}: the list of symbols could not be read whole ({doubt})"))
            found.near.update({one.symbol: one for one in every if one.symbol not in found.near})
            found.listed.update(one for one in every if _is_named(one, name))
        return found

    def _venues(self, call: Call, asked: Place, name: InstrumentName) -> list[Venue]:
        """The venues that may be meant. What the name says goes before an argument that contradicts it."""
        place = Place(name.exchange or asked.exchange, name.market or asked.market)
        exchanges = self._settings.WADM_EXCHANGES if place.exchange is None else (place.exchange,)
        market = place.market or self._settings.WADM_MARKETS[0]
        having = [one for one in exchange_names() if one in exchanges and market in find_exchange(one).traits]
        if not having:
            raise call.refuse("market", market, f"{' and '.join(exchanges)} has no such market", market=None)
        return [self._settings.venue(one, market) for one in having]

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
        known = [left.seconds for left in imports if left.seconds is not None]
        text = f"{len(live)} of {len(wanted)} instruments are live"
        if not imports:
            return text
        return text + (f"; history needs about {max(known):,.0f} s more" if len(known) == len(imports) else "; history is being imported")

    async def _rows(self, wanted: Sequence[Instrument]) -> Any:
        answer = await markets(self._view.reading(), self._health)
        table = answer["markets"]
        rows = [row for row in table["rows"] if Instrument(*row[:3]) in wanted]
        missing = [str(one) for one in wanted if list(one) not in [row[:3] for row in rows]]
        return {**answer, "tracked": [str(one) for one in wanted], "starting": missing, "markets": {**table, "rows": rows}}


class _Search(NamedTuple):
    """What a search for a name found: the listed instruments, the exchanges' errors, every instrument there by symbol, and the venues."""

    listed: set[Instrument]
    failures: list[ExchangeError]
    near: dict[str, Instrument]
    places: list[str]


def _untrack(instrument: Instrument) -> Call:
    return Call(UNTRACK, (("symbol", str(instrument)),))


def _call_to_untrack(tracked: Sequence[Instrument], symbol: object) -> Call:
    """A call that works, about a tracked instrument with the name that was asked for or a near one. No other one may be meant."""
    name = read_name(symbol, never) if isinstance(symbol, str) else InstrumentName("")
    near = nearest(name.symbol, {plain(one.symbol) for one in tracked}, 1)
    meant = [one for one in tracked if _is_named(one, name)] or [one for one in tracked if plain(one.symbol) in near]
    meant.sort(key=lambda one: not Place(name.exchange, name.market).has(one))
    return _untrack(meant[0]) if meant else LIST_MARKETS


def _readings(call: Call, symbol: object) -> list[InstrumentName]:
    """The ways to read a name: as a symbol that an exchange may have (`BTCPERP`), and with what its ending says. Mostly they are one."""
    own, ended = (read_name(symbol, is_symbol) if isinstance(symbol, str) else InstrumentName("") for is_symbol in (lambda _: True, never))
    if not 0 < len(own.symbol) <= MAX_SYMBOL_CHARS:
        raise call.refuse("symbol", symbol, "the name of a symbol is needed, such as ETHUSDT")
    return list(dict.fromkeys((own, own._replace(market=ended.market), ended)))


def _is_named(instrument: Instrument, name: InstrumentName) -> bool:
    return name.symbol in (plain(instrument.symbol), plain(canonical_instrument(instrument).symbol))
