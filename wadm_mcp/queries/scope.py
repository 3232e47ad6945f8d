"""The scope of a question: its instruments, its window of market time, and the time that counts as now.

Windows are `[start, end)` widened to whole minutes. An `end` after now means now, so that an open window may end up to a minute in the
future. At exactly 00:00 UTC `session` is the day that ends then. With `as_of`, the start of that minute takes the place of now, and
trades after it are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from wadm_mcp.analytics.order_flow import session_start
from wadm_mcp.errors import NotReady, QueryError, UnknownSymbol
from wadm_mcp.exchanges.registry import canonical_instrument
from wadm_mcp.model import DAY, HOUR, MINUTE, Instrument, Listing, Window
from wadm_mcp.queries.arguments import (
    ALL,
    SESSION,
    WINDOWS,
    Call,
    Example,
    listed,
    plain_symbol,
    read_exchange,
    read_instrument,
    read_market,
    read_symbol,
    read_time,
    read_window,
    shown,
)
from wadm_mcp.queries.numbers import iso
from wadm_mcp.queries.view import View

MAX_WINDOW_MS: Final = 400 * DAY
"""Longest window (ms)."""

DEFAULT_WINDOW: Final = "1h"
"""The window of a question that does not name one."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The instruments and the window of one question.

    `name` is the instrument's name in answers: `all:spot:BTCUSDT` for a merged answer, even if only one exchange follows the symbol. `now`
    is the clock's time (ms), or the minute of `as_of`. `call` builds the examples in errors about further arguments.
    """

    name: str
    listings: tuple[Listing, ...]
    window: Window
    now: int
    as_of: bool
    asked: tuple[str | int | None, ...]
    """The caller's choices in normalised form: two questions with equal `name` and `asked` are the same question."""
    call: Call
    awaited: tuple[Instrument, ...] = ()
    """Configured instruments that belong to the answer but are not followed yet, because their exchange's listings are not loaded."""

    @property
    def instruments(self) -> tuple[Instrument, ...]:
        """The instruments asked about, in the order of the exchanges."""
        return tuple(listing.instrument for listing in self.listings)

    @property
    def merged(self) -> bool:
        """Whether the answer merges all exchanges."""
        return self.name.startswith(f"{ALL}:")

    @property
    def closed(self) -> bool:
        """Whether the whole window is in the past."""
        return self.window.end <= self.now

    def heading(self, coverage: dict[str, Any]) -> dict[str, Any]:
        """The first keys of every answer: coverage, instrument, window."""
        window = {"start": iso(self.window.start), "end": iso(self.window.end), "closed": self.closed}
        return {"coverage": coverage, "instrument": self.name, "window": window}


def ask(view: View, name: str, **examples: Example) -> Call:
    """The call of a question, for error messages. Its examples use the first followed symbol."""
    symbol = next((canonical_instrument(listing.instrument).symbol for listing in view.listings), "BTCUSDT")
    return Call(name, (("symbol", symbol), *examples.items()), view.how_to_follow)


def read_scope(
    view: View,
    call: Call,
    *,
    symbol: object,
    exchange: object = ALL,
    market: object = None,
    window: object = None,
    start: object = None,
    end: object = None,
    as_of: object = None,
) -> Scope:
    """Reads the arguments that every question shares.

    `QueryError` for an argument that cannot be used, `UnknownSymbol` for a symbol that is not followed there, `NotReady` for a configured
    symbol whose exchange's listings are not loaded yet.
    """
    named = read_instrument(symbol)
    if named is not None:
        symbol = named[2]
        exchange = named[0] if exchange in (None, ALL) else exchange
        market = named[1] if market is None else market
    name, listings, awaited = _followed(view, call, symbol, exchange, market)
    call = call.about(canonical_instrument(listings[0].instrument).symbol)
    now = clock = view.clock()
    moment = read_time(call, "as_of", as_of, as_of=iso(clock - clock % MINUTE))
    if moment is not None:
        now = moment - moment % MINUTE
        if now > clock:
            raise call.refuse(
                "as_of", as_of, f"it lies in the future, now is {iso(clock - clock % 1000)}", as_of=iso(clock - clock % MINUTE)
            )
    chosen_window, *asked = _window(call, now, window, start, end)
    return Scope(name, listings, chosen_window, now, moment is not None, (*asked, None if moment is None else now), call, awaited)


def _followed(
    view: View, call: Call, symbol: object, exchange: object, market: object
) -> tuple[str, tuple[Listing, ...], tuple[Instrument, ...]]:
    every = view.listings
    symbols = {listing.instrument: canonical_instrument(listing.instrument).symbol for listing in every}
    called = {plain_symbol(instrument.symbol): name for instrument, name in symbols.items()} | {name: name for name in symbols.values()}
    name = called.get(plain_symbol(symbol), plain_symbol(symbol))
    awaited = [instrument for instrument in view.awaited if instrument.symbol == name]
    if name in view.symbols and name not in symbols.values():
        raise _not_ready(view, name, every)
    wanted = name if name in symbols.values() else read_symbol(call, symbol, symbols.values())
    call = call.about(wanted)
    known = [listing for listing in every if symbols[listing.instrument] == wanted]
    # Configured markets count as followed from the start, so that the choice does not depend on which exchange's listings load first.
    markets = _in_order([*(listing.instrument.market for listing in every), *(instrument.market for instrument in awaited)], view.markets)
    venue = read_exchange(call, exchange)
    there = [listing for listing in known if venue in (ALL, listing.instrument.exchange)]
    chosen = read_market(call, market, markets) or _in_order((listing.instrument.market for listing in there or known), view.markets)[0]
    found = {listing.instrument.exchange: listing for listing in there if listing.instrument.market == chosen}
    late = tuple(instrument for instrument in awaited if instrument.market == chosen and venue in (ALL, instrument.exchange))
    if not found and late:
        raise _not_ready(view, wanted, every)
    if not found:
        where = f"in market {chosen}" if venue == ALL else f"on {venue} in market {chosen}"
        places = listed([str(listing.instrument) for listing in known])
        raise UnknownSymbol(f"symbol {shown(wanted)} is not followed {where}. Followed: {places}. Try {call.example()}")
    ordered = _in_order(found, view.exchanges)
    scope_name = f"{ALL}:{chosen}:{wanted}" if venue == ALL else str(found[venue].instrument)
    return scope_name, tuple(found[exchange] for exchange in ordered), late


def _not_ready(view: View, symbol: str, every: Sequence[Listing]) -> NotReady:
    if view.recorded_elsewhere:
        followed = ", ".join(dict.fromkeys(listing.instrument.symbol for listing in every)) or "none yet"
        return NotReady(
            f"{symbol} is configured here, but another process records into this data directory and follows {followed}: "
            "add the symbol to that process, or give this one a WADM_DATA_DIR of its own"
        )
    return NotReady(
        f"{symbol} is configured, but the list of symbols of its exchange is not loaded yet; list_markets shows the state. Ask again"
    )


def _in_order(names: Iterable[str], order: Sequence[str]) -> list[str]:
    """Each name once: first those of `order`, in its order, then the others."""
    unique = dict.fromkeys(names)
    return [*(name for name in order if name in unique), *(name for name in unique if name not in order)]


def _window(call: Call, now: int, window: object, start: object, end: object) -> tuple[Window, str | None, int | None, int | None]:
    """The window, and what was asked for: its name, or start and end."""
    if window is not None and (start is not None or end is not None):
        other, given = ("start", start) if start is not None else ("end", end)
        raise QueryError(
            f"window={shown(window)} with {other}={shown(given)}: choose one, a window by name or start and end. "
            f"Try {call.example(window=DEFAULT_WINDOW)}"
        )
    hour = now - now % HOUR
    works: dict[str, Example | None] = {"window": None, "start": iso(hour - HOUR), "end": iso(hour)}
    first, last = read_time(call, "start", start, **works), read_time(call, "end", end, **works)
    if first is None:
        if last is not None:
            raise call.refuse("end", end, "end works only together with start", **works)
        name = read_window(call, window, DEFAULT_WINDOW)
        return _whole_minutes(session_start(now - 1) if name == SESSION else now - WINDOWS[name], now), name, None, None
    if first - first % MINUTE > now:
        raise call.refuse("start", start, f"it lies in the future, now is {iso(now - now % 1000)}", **works)
    if last is not None and last < first:
        raise call.refuse("end", end, f"it lies before start={shown(start)}", **works)
    until = now if last is None else min(last, now)
    if until - first > MAX_WINDOW_MS:
        days, earliest = -(-(until - first) // DAY), -(-(until - MAX_WINDOW_MS) // MINUTE) * MINUTE
        limit = f"the window is {days:,} days long, at most {MAX_WINDOW_MS // DAY} are allowed; start at {iso(earliest)} or later"
        raise call.refuse("start", start, limit, **works)
    return _whole_minutes(min(first, until), until), None, first, last


def _whole_minutes(start: int, end: int) -> Window:
    """The window widened to whole minutes."""
    return Window(start - start % MINUTE, -(-end // MINUTE) * MINUTE)
