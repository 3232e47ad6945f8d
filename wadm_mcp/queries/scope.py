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
from wadm_mcp.exchanges.names import InstrumentName, read_name
from wadm_mcp.exchanges.registry import canonical_instrument
from wadm_mcp.model import DAY, HOUR, MINUTE, Instrument, Listing, Window
from wadm_mcp.queries.arguments import (
    ALL,
    SESSION,
    WINDOWS,
    Call,
    Example,
    listed,
    read_place,
    read_symbol,
    read_time,
    read_window,
    shown,
    unknown_symbol,
)
from wadm_mcp.queries.numbers import iso
from wadm_mcp.queries.view import View
from wadm_mcp.suggest import nearest, plain

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
        """The first keys of every answer: coverage, instrument, window, and between them what `provisional` adds."""
        window = {"start": iso(self.window.start), "end": iso(self.window.end), "closed": self.closed}
        return {"coverage": coverage, "instrument": self.name, **provisional(self.listings), "window": window}


def provisional(listings: Iterable[Listing]) -> dict[str, Any]:
    """The key `provisional` of an answer: instruments that their exchange has not confirmed, whose tick is unknown. Absent for none."""
    names = [str(listing.instrument) for listing in listings if listing.provisional]
    return {"provisional": names} if names else {}


def ask(view: View, name: str, **examples: Example) -> Call:
    """The call of a question, for error messages. Its examples use the first followed symbol.

    One that the settings name goes before a tracked one, which may just have been removed.
    """
    followed = [canonical_instrument(listing.instrument).symbol for listing in view.listings]
    symbol = next((one for one in (*(one for one in followed if one in view.symbols), *followed, *view.symbols)), "BTCUSDT")
    return Call(name, (("symbol", symbol), *examples.items()), view.how_to_follow)


def about_asked(view: View, call: Call, symbol: object) -> Call:
    """The call with the symbol that was asked for in its examples, where that is followed."""
    followed = _Followed(view)
    named = read_name(symbol, followed.is_symbol) if isinstance(symbol, str) else InstrumentName("")
    known = None if named.problem else followed.canonical(named.symbol)
    return call if known is None else call.about(followed.example(known, named))


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
    name, listings, awaited, call = _followed(view, call, symbol, exchange, market)
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
) -> tuple[str, tuple[Listing, ...], tuple[Instrument, ...], Call]:
    """Name, listings and awaited instruments of what was asked for, and the call with examples about it."""
    followed = _Followed(view)
    named = read_symbol(call, symbol, followed.symbols, followed.is_symbol)
    wanted = None if named.problem else followed.canonical(named.symbol)
    if wanted is None:
        if named.symbol in view.symbols and not named.problem:
            raise _not_ready(view, named.symbol)
        near = nearest(named.symbol, followed.symbols, 1)
        raise unknown_symbol(call.about(followed.example(near[0], named)) if near else call, symbol, named, followed.symbols)
    awaited = [instrument for instrument in view.awaited if instrument.symbol == wanted]
    # Configured markets count as followed from the start, so that the choice does not depend on which exchange's listings load first.
    markets = [followed.closest(wanted, named).market, *followed.markets(view.listings), *(instrument.market for instrument in awaited)]
    example = call.about(followed.example(wanted, named))
    place = read_place(example, exchange, market, markets)
    if clash := place.contradiction(named):
        raise QueryError(f"symbol={shown(symbol)} with {clash}. Try {example.example()}")
    place = place.completed_by(named)
    known = followed.listings(wanted)
    there = [listing for listing in known if place.exchange in (None, listing.instrument.exchange)]
    chosen = place.market or followed.markets(there or known)[0]
    found = {listing.instrument.exchange: listing for listing in there if listing.instrument.market == chosen}
    late = tuple(one for one in awaited if one.market == chosen and place.exchange in (None, one.exchange))
    if not found and late:
        raise _not_ready(view, wanted)
    if not found:
        where = f"in market {chosen}" if place.exchange is None else f"on {place.exchange} in market {chosen}"
        places = listed([str(listing.instrument) for listing in known])
        more = f" {call.how_to_follow}" if call.how_to_follow else ""
        example = call.about(followed.example(wanted, InstrumentName(wanted, None, chosen)))
        raise UnknownSymbol(f"symbol {shown(wanted)} is not followed {where}. Followed: {places}.{more} Try {example.example()}")
    scope_name = f"{ALL}:{chosen}:{wanted}" if place.exchange is None else str(found[place.exchange].instrument)
    # Examples name the place as the caller did: with the symbol, or in arguments of their own.
    said: dict[str, str] = {name: value for name, value in place._asdict().items() if value is not None and getattr(named, name) is None}
    spelled = f"{named.exchange or ALL}:{chosen}:{wanted}" if named.exchange or named.market else wanted
    return scope_name, tuple(found[exchange] for exchange in _in_order(found, view.exchanges)), late, call.about(spelled, **said)


class _Followed:
    """The followed instruments by canonical symbol, and examples of them for errors."""

    def __init__(self, view: View) -> None:
        self._order = view.markets
        self._listings: dict[str, list[Listing]] = {}
        self._called: dict[str, str] = {}
        for listing in view.listings:
            symbol = canonical_instrument(listing.instrument).symbol
            self._listings.setdefault(symbol, []).append(listing)
            self._called |= {plain(listing.instrument.symbol): symbol, plain(symbol): symbol}

    @property
    def symbols(self) -> list[str]:
        """Canonical symbols, sorted."""
        return sorted(self._listings)

    def is_symbol(self, symbol: str) -> bool:
        """Whether a followed instrument has this symbol, written without separators."""
        return symbol in self._called

    def canonical(self, symbol: str) -> str | None:
        """The canonical symbol of one written without separators, None for one that is not followed."""
        return self._called.get(symbol)

    def listings(self, symbol: str) -> list[Listing]:
        """The listings of a canonical symbol."""
        return self._listings[symbol]

    def markets(self, listings: Iterable[Listing]) -> list[str]:
        """The markets of these listings, each once, the default one first."""
        return _in_order((listing.instrument.market for listing in listings), self._order)

    def closest(self, symbol: str, named: InstrumentName) -> Instrument:
        """Of a canonical symbol the followed instrument that is closest to what was named: in its market, then on its exchange.

        Its exchange is `all` if the symbol is not followed there, or if no exchange was named.
        """
        markets = self.markets(self._listings[symbol])
        market = named.market if named.market in markets else markets[0]
        here = {listing.instrument.exchange for listing in self._listings[symbol] if listing.instrument.market == market}
        return Instrument(named.exchange if named.exchange in here else ALL, market, symbol)

    def example(self, symbol: str, named: InstrumentName) -> str:
        """A name that works alone, of the instrument closest to what was named: the symbol itself where that means the same."""
        closest = self.closest(symbol, named)
        default = self.markets(self._listings[symbol])[0]
        return symbol if (closest.exchange, closest.market) == (ALL, default) else str(closest)


def _not_ready(view: View, symbol: str) -> NotReady:
    if view.recorded_elsewhere:
        followed = ", ".join(dict.fromkeys(listing.instrument.symbol for listing in view.listings)) or "none yet"
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


def window_length(now: int, window: object, start: object, end: object) -> int | None:
    """About how long (ms) the window of these arguments is, before they are read for good; None where they cannot be used."""
    try:
        return _window(Call(""), now, window, start, end)[0].length
    except QueryError:
        return None


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
