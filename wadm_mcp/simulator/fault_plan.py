"""The kinds of simulated faults, and plans of them: which fault takes place when, on which market. `chaos.py` executes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from random import Random
from typing import Final, NamedTuple


class Kind(StrEnum):
    """The kinds of faults; all of them occur on the real exchanges (docs/exchanges.md)."""

    DROP = "drop"
    """The connection is cut without a closing handshake."""
    DAY = "day"
    """It is closed with a handshake, as after 24 hours."""
    SHUTDOWN = "shutdown"
    """A `serverShutdown` event, and the connection is closed a second later."""
    MUTE = "mute"
    """The socket stays open and answers pings, but no trades are sent."""
    STALL = "stall"
    """The connection delivers nothing of one symbol, and the others go on."""
    SILENCE = "silence"
    """As `MUTE`, but on every socket of the market, so that no redundant connection has what was traded."""
    LOSE = "lose"
    """Some frames are not sent."""
    REPEAT = "repeat"
    """Frames are sent twice."""
    REORDER = "reorder"
    """Trades of one millisecond are sent in another order."""
    REPLAY = "replay"
    """An old frame is sent again."""
    GARBAGE = "garbage"
    """Frames that are not JSON, or JSON with other fields, are sent in between."""
    OVERSIZED = "oversized"
    """A frame of eight million bytes."""
    UNREADABLE = "unreadable"
    """One row of some frames has a price that is no number."""
    REFUSE = "refuse"
    """New connections are refused with 503."""
    TOO_MANY = "too_many"
    """REST answers 429 with `Retry-After` (Bybit: code 10006)."""
    BANNED = "banned"
    """REST answers 418 with `Retry-After` until the ban ends (Bybit: 403)."""
    ERROR = "error"
    """REST answers 503."""
    SLOW = "slow"
    """REST answers late."""
    LAG = "lag"
    """REST does not serve the newest trades yet."""
    SPOILED = "spoiled"
    """One row of each page of trades that REST serves has a price that is no number, and one candle of each page has no volume."""
    SKEW = "skew"
    """The exchange's clock is wrong."""
    UNSEEN = "unseen"
    """Some frames are sent on no connection. Where the exchange does not number its trades, nothing but its candles shows it."""
    HALT = "halt"
    """A symbol does not trade, and is listed with another status."""
    UNLIST = "unlist"
    """A symbol does not trade, and is not listed."""
    STEPS = "steps"
    """A symbol is listed with a tick and a lot a hundredth as large."""
    REPEATS = "repeats"
    """Bybit's list of linear symbols serves its second page for ever."""
    BLOCKED = "blocked"
    """REST refuses this region: Binance answers 451, Bybit 403 with a page of HTML. Archives and sockets stay open."""
    BLOCKED_SOCKETS = "blocked_sockets"
    """New connections are refused with the same replies."""
    NO_HISTORY = "no_history"
    """Binance spot answers 404 to `historicalTrades`, as its host of market data does."""


ON_ORDER: Final = (Kind.UNSEEN, Kind.BLOCKED, Kind.BLOCKED_SOCKETS, Kind.NO_HISTORY)
"""Kinds that no plan has: only the exchange's own figures show the trades that they take, or a client stays away for minutes."""
ON_SOCKETS: Final = tuple(Kind)[: list(Kind).index(Kind.REFUSE)]
ON_LISTINGS: Final = (Kind.HALT, Kind.UNLIST, Kind.STEPS)
ON_REST: Final = (Kind.TOO_MANY, Kind.BANNED, Kind.ERROR, Kind.SLOW, Kind.LAG, Kind.SPOILED, Kind.REPEATS)

_DURATIONS: Final = {
    Kind.MUTE: (2.0, 15.0),
    Kind.STALL: (2.0, 30.0),
    Kind.SILENCE: (6.0, 15.0),
    Kind.LOSE: (0.1, 1.0),
    Kind.REPEAT: (0.2, 1.0),
    Kind.REORDER: (0.2, 1.0),
    Kind.GARBAGE: (0.05, 0.2),
    Kind.UNREADABLE: (0.1, 0.5),
    Kind.SHUTDOWN: (0.0, 1.0),
    Kind.REFUSE: (0.5, 2.0),
    Kind.TOO_MANY: (0.5, 2.0),
    Kind.BANNED: (2.0, 5.0),
    Kind.ERROR: (0.5, 3.0),
    Kind.SLOW: (0.5, 2.0),
    Kind.LAG: (1.0, 5.0),
    # An id that a third reply, three seconds later, still has unreadable is not requested again.
    Kind.SPOILED: (0.5, 2.0),
    Kind.SKEW: (2.0, 5.0),
    Kind.HALT: (5.0, 90.0),
    Kind.UNLIST: (5.0, 90.0),
    Kind.STEPS: (5.0, 180.0),
    Kind.REPEATS: (5.0, 60.0),
}
"""Shortest and longest duration in seconds; other faults have none."""


class Fault(NamedTuple):
    """One fault on a market's sockets, REST host or listings, from `at` seconds after `begin` on, for `lasts` seconds.

    `symbol` is the one that a stall, a halt or a delisting is about; empty for the first one that it meets.
    """

    kind: Kind
    at: float
    lasts: float
    exchange: str
    market: str
    symbol: str = ""


def plan(seed: int, seconds: float, *, every: float = 1.5, kinds: Iterable[Kind] = tuple(Kind)) -> list[Fault]:
    """Faults for a run of `seconds`, reproducible by `seed`.

    Each market's sockets get one about every `every` seconds; REST, new connections and the clock get a few. A `SILENCE` loses trades
    unseen unless it is much longer than the market's pauses: leave it out of `kinds` where there are few trades.
    """
    random, allowed = Random(seed), set(kinds)
    sockets = [kind for kind in ON_SOCKETS if kind in allowed]
    rare = {"rest": [kind for kind in ON_REST if kind in allowed], "": [kind for kind in (Kind.REFUSE, Kind.SKEW) if kind in allowed]}
    faults: list[Fault] = []

    def add(exchange: str, market: str, choices: Sequence[Kind], pause: float) -> None:
        at, remaining = 1.0, list(choices)
        random.shuffle(remaining)
        while choices and (at := at + random.uniform(0.5, 1.5) * pause) < seconds:
            # Every kind is used once, in random order, before one is used again.
            if not remaining:
                remaining = list(choices)
                random.shuffle(remaining)
            kind = remaining.pop()
            lasts = random.uniform(*_DURATIONS.get(kind, (0.0, 0.0)))
            if kind is not Kind.SILENCE or at + lasts <= seconds:
                faults.append(Fault(kind, at, min(lasts, seconds - at), exchange, market))

    for exchange in ("binance", "bybit"):
        for market in ("spot", "linear"):
            add(exchange, market, sockets, every)
            add(exchange, market, [kind for kind in rare["rest"] if _occurs(kind, exchange, market)], 6 * every)
            add(exchange, market, [kind for kind in ON_LISTINGS if kind in allowed], 20 * every)
        add(exchange, "", rare[""], 8 * every)
    return sorted(faults, key=lambda fault: fault.at)


def _occurs(kind: Kind, exchange: str, market: str) -> bool:
    """Whether a plan has this fault of REST for a market. A ban by Bybit lasts ten minutes, too long for a run."""
    if kind is Kind.REPEATS:
        return (exchange, market) == ("bybit", "linear")
    return kind is not Kind.BANNED or exchange == "binance"
