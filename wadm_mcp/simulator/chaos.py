"""Injects faults into the simulated exchanges: single ones, or a plan that is reproducible from a seed.

A plan is a list of `Fault`s with their times; `happened` records which faults took place and on which connection. Faults on the sockets
of one market never overlap, so that redundant connections do not fail at the same time, except in a `SILENCE`.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from random import Random
from typing import Any, Final, NamedTuple
from zlib import crc32

import anyio

from wadm_mcp.model import Instrument
from wadm_mcp.simulator.faults import Cut, Faults, Reply


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
    BLOCKED = "blocked"
    """REST refuses this region: Binance answers 451, Bybit 403 with a page of HTML. Archives and sockets stay open."""
    BLOCKED_SOCKETS = "blocked_sockets"
    """New connections are refused with the same replies."""
    NO_HISTORY = "no_history"
    """Binance spot answers 404 to `historicalTrades`, as its host of market data does."""


ON_ORDER: Final = (Kind.UNSEEN, Kind.BLOCKED, Kind.BLOCKED_SOCKETS, Kind.NO_HISTORY)
"""Kinds that no plan has: only the exchange's own figures show the trades that they take, or a client stays away for minutes."""
ON_SOCKETS: Final = tuple(Kind)[: list(Kind).index(Kind.REFUSE)]
ON_LISTINGS: Final = (Kind.HALT, Kind.UNLIST)
ON_REST: Final = (Kind.TOO_MANY, Kind.BANNED, Kind.ERROR, Kind.SLOW, Kind.LAG, Kind.SPOILED)

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
}
"""Shortest and longest duration in seconds; other faults have none."""

_ALIVE_SECONDS: Final = 2.0
"""A connection counts as alive if it carried trades within this time."""
_RECOVERY_SECONDS: Final = 4.0
"""Time without faults between two faults of redundant connections, so that both deliver again before the next one."""
_FRAMES_REMEMBERED: Final = 200
"""Frames of a market that are kept for `REPLAY`."""
_SYMBOL: Final = re.compile(rb'"s":"([^"]+)"')
_STATUS: Final = {("binance", "spot"): "BREAK", ("binance", "linear"): "SETTLING", ("bybit", "linear"): "Delivering", ("bybit", "spot"): ""}
"""The word for a halted symbol; Bybit spot does not list one."""
_TRADES: Final = re.compile(rb'"T":(\d{10,})', re.ASCII)
_IDS: Final = re.compile(rb'"i":"([^"]+)"', re.ASCII)
"""The ids of the trades in a frame, where the exchange does not number them."""
_PRICES: Final = re.compile(r'"p":"[^"]*"', re.ASCII)
_PAGES_OF_TRADES: Final = ("historicalTrades", "aggTrades", "trades", "recent-trade")
_PAGES_OF_MINUTES: Final = ("klines", "kline")
_VOLUME: Final = 5
"""The column of a minute's volume."""
_GARBAGE: Final = (
    "not json",
    b"\x00\xff\xfe",
    "[]",
    "{}",
    '{"e":"trade","E":1,"s":"BTCUSDT","t":"x","p":1}',
    '{"stream":"btcusdt@trade"}',
    '{"topic":"publicTrade.BTCUSDT","type":"snapshot","ts":1,"data":[{"T":"x"}]}',
    "[" * 10_000,
)


_REST_PATHS: Final = ("/api/", "/fapi/", "/v5/")
_HISTORY_PATH: Final = "/api/v3/historicalTrades"
_CLOUDFRONT_PAGE: Final = b"""<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 4.01 Transitional//EN" "http://www.w3.org/TR/html4/loose.dtd">
<HTML><HEAD><META HTTP-EQUIV="Content-Type" CONTENT="text/html; charset=iso-8859-1">
<TITLE>ERROR: The request could not be satisfied</TITLE>
</HEAD><BODY>
<H1>403 ERROR</H1>
<H2>The request could not be satisfied.</H2>
<HR noshade size="1px">
The Amazon CloudFront distribution is configured to block access from your country.
We can't connect to the server for this app or website at this time. There might be too much traffic or a configuration error.
<BR clear="all">
<PRE>
Generated by cloudfront (CloudFront)
Request ID: abc==
</PRE>
</BODY></HTML>
"""
_REGION_REFUSED: Final = {
    "binance": Reply(
        451,
        {
            "code": 0,
            "msg": "Service unavailable from a restricted location according to 'b. Eligibility' in https://www.binance.com/en/terms. "
            "Please contact customer service if you believe you received this message in error.",
        },
    ),
    "bybit": Reply(403, _CLOUDFRONT_PAGE, {"Content-Type": "text/html"}),
}
"""The replies of the real exchanges to an address in a region that they do not serve, by exchange (docs/exchanges.md 4.6)."""

_TOO_MANY_VISITS: Final = Reply(200, {"retCode": 10006, "retMsg": "Too many visits!", "result": {}, "retExtInfo": {}})


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


class Happened(NamedTuple):
    """A fault that took place: when (seconds after `begin`), and on which connection if it was a fault of one socket."""

    fault: Fault
    at: float
    connection: int | None


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
            # A ban by Bybit lasts ten minutes, too long for a run.
            add(exchange, market, [kind for kind in rare["rest"] if exchange == "binance" or kind is not Kind.BANNED], 6 * every)
            add(exchange, market, [kind for kind in ON_LISTINGS if kind in allowed], 20 * every)
        add(exchange, "", rare[""], 8 * every)
    return sorted(faults, key=lambda fault: fault.at)


class _Active(NamedTuple):
    """A fault that takes place now, on one connection, or with None on all of the market."""

    fault: Fault
    connection: int | None
    until: float


class Chaos(Faults):
    """Executes faults from `begin` on. Markets in `redundant` have several connections, of which only one fails at a time, unless a
    `SILENCE` is ordered."""

    def __init__(
        self,
        faults: Iterable[Fault] = (),
        *,
        seed: int = 1,
        redundant: Iterable[tuple[str, str]] = (("bybit", "spot"), ("bybit", "linear")),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.happened: list[Happened] = []
        """The faults that took place, in order."""
        self.requests: list[tuple[float, str, str, int]] = []
        """Every REST request: seconds after `begin`, exchange, path, and the status that a fault caused, otherwise 200."""
        self.unseen: set[str] = set()
        """Ids of the trades that no connection delivered although all seemed to be well, where the exchange does not number them."""
        self._redundant = set(redundant)
        self._monotonic = monotonic
        self._random = Random(seed)
        self._began: float | None = None
        self._sockets: dict[tuple[str, str], deque[Fault]] = defaultdict(deque)
        self._others: list[Fault] = []
        self._on_listings: dict[tuple[str, str], list[Fault]] = defaultdict(list)
        self._recorded: set[Fault] = set()
        self._active: dict[tuple[str, str], _Active] = {}
        self._ended: dict[tuple[str, str], float] = {}
        self._alive: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        self._old: dict[tuple[str, str], deque[tuple[float, str | bytes]]] = defaultdict(lambda: deque(maxlen=_FRAMES_REMEMBERED))
        self._delayed: dict[int, str | bytes] = {}
        self._symbols: dict[Fault, str] = {}
        """The symbols of the faults that name none."""
        for fault in faults:
            self.order(fault)

    def order(self, fault: Fault) -> None:
        """Schedule a fault. A socket fault whose time has passed takes place at the next frame."""
        if fault.kind in ON_SOCKETS:
            self._sockets[fault.exchange, fault.market].append(fault)
        elif fault.kind in ON_LISTINGS:
            self._on_listings[fault.exchange, fault.market].append(fault)
        else:
            self._others.append(fault)

    def begin(self) -> None:
        """Start the clock of the faults."""
        self._began = self._monotonic()

    def end(self) -> None:
        """Drop all pending faults and end the active ones. A `SILENCE` lasts its time, since a shorter one may be too short to notice."""
        self._sockets.clear()
        self._active = {key: active for key, active in self._active.items() if active.fault.kind is Kind.SILENCE}
        self._others.clear()
        self._on_listings.clear()
        self.skew = 0

    @property
    def now(self) -> float:
        """Seconds since `begin`; below 0 before it."""
        return self._monotonic() - self._began if self._began is not None else -1.0

    async def connecting(self, exchange: str, path: str) -> Reply | None:
        if self._active_fault(Kind.BLOCKED_SOCKETS, exchange, "") is not None:
            return _REGION_REFUSED[exchange]
        return Reply(503, {}) if self._active_fault(Kind.REFUSE, exchange, "") is not None else None

    async def sending(self, exchange: str, market: str, connection: int, frame: str | bytes) -> Sequence[str | bytes]:
        self._update_skew()
        text = frame if isinstance(frame, bytes) else frame.encode()
        found = _TRADES.search(text)
        if found is None:
            return (frame,)
        if self._active_fault(Kind.UNSEEN, exchange, market) is not None and crc32(text) % 10 < 3:
            # The same frames on every connection.
            self.unseen.update(trade_id.decode() for trade_id in _IDS.findall(text))
            return ()
        key, now = (exchange, market), self.now
        self._alive[key][connection] = now
        active = self._active.get(key)
        if active is not None and now > active.until:
            del self._active[key]
            self._ended[key] = now
            active = None
        if active is None:
            active = self._next(key, connection, now)
        self._old[key].append((now, frame))
        if active is None or active.connection not in (connection, None):
            return self._with_delayed(connection, (frame,))
        return self._apply(active, connection, frame, int(found[1]), now)

    def _next(self, key: tuple[str, str], connection: int, now: float) -> _Active | None:
        due = self._sockets[key]
        if not due or due[0].at > now or now < 0:
            return None
        if key in self._redundant:
            alive = sum(now - at < _ALIVE_SECONDS for at in self._alive[key].values())
            if alive < 2 or now - self._ended.get(key, -_RECOVERY_SECONDS) < _RECOVERY_SECONDS or self._random.random() < 0.5:
                return None
        fault = due.popleft()
        on = None if fault.kind is Kind.SILENCE else connection
        self.happened.append(Happened(fault, now, on))
        active = self._active[key] = _Active(fault, on, now + fault.lasts)
        return active

    def _apply(self, active: _Active, connection: int, frame: str | bytes, traded_at: int, now: float) -> Sequence[str | bytes]:
        fault = active.fault
        match fault.kind:
            case Kind.DROP:
                raise Cut
            case Kind.DAY:
                raise Cut(1008, "Connection reached its maximum age")
            case Kind.SHUTDOWN if fault.exchange == "binance" and now < active.until:
                at = int(time.time() * 1_000)
                wrapped = frame.startswith('{"stream"') if isinstance(frame, str) else False
                event = f'{{"e":"serverShutdown","E":{at}}}'
                return (f'{{"stream":"!serverShutdown","data":{event}}}' if wrapped else event, frame)
            case Kind.SHUTDOWN:
                raise Cut(1001, "going away")
            case Kind.MUTE | Kind.SILENCE:
                return ()
            case Kind.STALL:
                found = _SYMBOL.search(frame if isinstance(frame, bytes) else frame.encode())
                symbol = found[1].decode() if found is not None else ""
                return () if symbol == self._symbol(fault, symbol) else (frame,)
            case Kind.LOSE:
                return () if self._random.random() < 0.3 else (frame,)
            case Kind.REPEAT:
                return (frame, frame)
            case Kind.REORDER:
                return self._reorder(connection, frame, traded_at)
            case Kind.REPLAY:
                old = [each for at, each in self._old[fault.exchange, fault.market] if now - at > 0.5]
                return (self._random.choice(old), frame) if old else (frame,)
            case Kind.GARBAGE:
                return (self._random.choice(_GARBAGE), frame)
            case Kind.UNREADABLE:
                return (self._spoiled(frame) if self._random.random() < 0.3 else frame,)
            case _:
                return ("x" * 8_000_000, frame)

    def _reorder(self, connection: int, frame: str | bytes, traded_at: int) -> Sequence[str | bytes]:
        """Swaps two consecutive frames whose trades have the same millisecond."""
        delayed = self._delayed.pop(connection, None)
        if delayed is None:
            self._delayed[connection] = frame
            return ()
        text = delayed if isinstance(delayed, bytes) else delayed.encode()
        found = _TRADES.search(text)
        return (frame, delayed) if found is not None and int(found[1]) == traded_at else (delayed, frame)

    def _spoiled(self, frame: str | bytes) -> str | bytes:
        """The frame with one price, of any of its rows, that is no number."""
        text = frame.decode() if isinstance(frame, bytes) else frame
        start, end = self._random.choice([found.span() for found in _PRICES.finditer(text)])
        text = f'{text[:start]}"p":"-"{text[end:]}'
        return text.encode() if isinstance(frame, bytes) else text

    def _with_delayed(self, connection: int, frames: Sequence[str | bytes]) -> Sequence[str | bytes]:
        delayed = self._delayed.pop(connection, None)
        return frames if delayed is None else (delayed, *frames)

    async def requested(self, exchange: str, path: str, params: Mapping[str, str]) -> Reply | None:
        self._update_skew()
        market = _market_of(path, params)
        reply = None
        if (fault := self._active_fault(Kind.SLOW, exchange, market)) is not None:
            await anyio.sleep(self._random.uniform(0.2, max(0.2, fault.lasts)))
        if path.startswith(_REST_PATHS) and self._active_fault(Kind.BLOCKED, exchange, market) is not None:
            reply = _REGION_REFUSED[exchange]
        elif path == _HISTORY_PATH and self._active_fault(Kind.NO_HISTORY, exchange, market) is not None:
            reply = Reply(404, {"code": -5000, "msg": f"Path {path}, Method GET is invalid"})
        elif (fault := self._active_fault(Kind.BANNED, exchange, market)) is not None:
            left = max(1, round(fault.at + fault.lasts - self.now + 0.5))
            text = {"code": -1003, "msg": "Way too much request weight used; IP banned."}
            reply = Reply(418, text, {"Retry-After": str(left)}) if exchange == "binance" else _denied()
        elif self._active_fault(Kind.TOO_MANY, exchange, market) is not None:
            text = {"code": -1003, "msg": "Too much request weight used."}
            reply = Reply(429, text, {"Retry-After": "1"}) if exchange == "binance" else _TOO_MANY_VISITS
        elif self._active_fault(Kind.ERROR, exchange, market) is not None:
            reply = Reply(503, {"code": -1000, "msg": "Service unavailable."})
        self.requests.append((self.now, exchange, path, reply.status if reply is not None else 200))
        return reply

    def answered(self, exchange: str, path: str, params: Mapping[str, str], reply: Reply) -> Reply:
        if path.rpartition("/")[2] not in (*_PAGES_OF_TRADES, *_PAGES_OF_MINUTES) or reply.status != 200:
            return reply
        if self._active_fault(Kind.SPOILED, exchange, _market_of(path, params)) is None:
            return reply
        body: Any = reply.body
        rows = body if isinstance(body, list) else body.get("result", {}).get("list", [])
        if rows:
            place = self._random.randrange(len(rows))
            row = rows[place]
            if isinstance(row, list):
                rows[place] = [*row[:_VOLUME], "", *row[_VOLUME + 1 :]]
            else:
                rows[place] = {**row, "p" if "p" in row else "price": "-"}
        return reply

    def status(self, instrument: Instrument) -> str | None:
        market = instrument.exchange, instrument.market
        for fault in self._on_listings.get(market, ()):
            if self._is_active(fault) and self._symbol(fault, instrument.symbol) == instrument.symbol:
                return "" if fault.kind is Kind.UNLIST else _STATUS[market]
        return None

    def _symbol(self, fault: Fault, first: str) -> str:
        """The symbol that a fault is about: its own, or the `first` that it met."""
        return fault.symbol or self._symbols.setdefault(fault, first)

    def lag(self, exchange: str, market: str) -> int:
        fault = self._active_fault(Kind.LAG, exchange, market)
        return round(fault.lasts * 1_000) if fault is not None else 0

    def _active_fault(self, kind: Kind, exchange: str, market: str) -> Fault | None:
        for fault in self._others:
            if fault.kind is kind and (fault.exchange, fault.market) == (exchange, market) and self._is_active(fault):
                return fault
        return None

    def _is_active(self, fault: Fault) -> bool:
        """Whether it is the fault's time; notes that it took place."""
        active = fault.at <= self.now < fault.at + fault.lasts
        if active and fault not in self._recorded:
            self._recorded.add(fault)
            self.happened.append(Happened(fault, self.now, None))
        return active

    def _update_skew(self) -> None:
        fault = self._active_fault(Kind.SKEW, "binance", "") or self._active_fault(Kind.SKEW, "bybit", "")
        # One second ahead or behind, depending on the fault's time, so that it is reproducible.
        self.skew = 0 if fault is None else 1_000 if int(fault.at * 10) % 2 else -1_000


def _market_of(path: str, params: Mapping[str, str]) -> str:
    return params.get("category", "linear" if path.startswith("/fapi") else "spot")


def _denied() -> Reply:
    return Reply(403, {"retCode": 10018, "retMsg": "access too frequent", "result": {}, "retExtInfo": {}})
