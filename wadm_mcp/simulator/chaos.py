"""Faults on order: one by one, or as a plan that a seed repeats.

A plan is a list of `Fault`s with their times; what really happened, and to which connection, is kept in `happened`. Faults of one
market's sockets come one after the other, so that a connection that stands beside another never fails with it.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from random import Random
from typing import Final, NamedTuple

import anyio

from wadm_mcp.simulator.faults import Cut, Faults, Reply


class Kind(StrEnum):
    """What can go wrong, as docs/exchanges.md 8 lists it."""

    DROP = "drop"
    """The connection is cut without a closing handshake."""
    DAY = "day"
    """It is closed with a handshake, as after 24 hours."""
    SHUTDOWN = "shutdown"
    """`serverShutdown`, and a second later the end."""
    MUTE = "mute"
    """The socket stays open and answers pings, and no trade comes any more."""
    LOSE = "lose"
    """Some frames never come."""
    REPEAT = "repeat"
    """Frames come twice."""
    REORDER = "reorder"
    """Trades of one millisecond come in another order."""
    REPLAY = "replay"
    """An old frame comes again."""
    GARBAGE = "garbage"
    """Frames that are no JSON, or JSON of another shape, come in between."""
    OVERSIZED = "oversized"
    """A frame of eight million bytes."""
    REFUSE = "refuse"
    """New connections are refused with 503."""
    TOO_MANY = "too_many"
    """REST answers 429 with `Retry-After` (Bybit: code 10006)."""
    BANNED = "banned"
    """REST answers 418 with `Retry-After` until it ends (Bybit: 403)."""
    ERROR = "error"
    """REST answers 503."""
    SLOW = "slow"
    """REST answers late."""
    LAG = "lag"
    """REST does not know the newest trades yet."""
    SKEW = "skew"
    """The exchange's clock is wrong."""


ON_SOCKETS: Final = tuple(Kind)[: list(Kind).index(Kind.REFUSE)]
ON_REST: Final = (Kind.TOO_MANY, Kind.BANNED, Kind.ERROR, Kind.SLOW, Kind.LAG)

_LASTS: Final = {
    Kind.MUTE: (2.0, 15.0),
    Kind.LOSE: (0.1, 1.0),
    Kind.REPEAT: (0.2, 1.0),
    Kind.REORDER: (0.2, 1.0),
    Kind.GARBAGE: (0.05, 0.2),
    Kind.SHUTDOWN: (0.0, 1.0),
    Kind.REFUSE: (0.5, 2.0),
    Kind.TOO_MANY: (0.5, 2.0),
    Kind.BANNED: (2.0, 5.0),
    Kind.ERROR: (0.5, 3.0),
    Kind.SLOW: (0.5, 2.0),
    Kind.LAG: (1.0, 5.0),
    Kind.SKEW: (2.0, 5.0),
}
"""Seconds, least and most; what is not here is over at once."""

_BESIDE: Final = 2.0
"""Seconds within which a connection brought something and counts as alive."""
_REST_BETWEEN: Final = 4.0
"""Seconds of peace that connections which stand in for one another get between two faults, to be complete again."""
_OLD: Final = 200
"""Frames of a market remembered to come again."""
_TRADES: Final = re.compile(rb'"T":(\d{10,})', re.ASCII)
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


_TOO_MANY_VISITS: Final = Reply(200, {"retCode": 10006, "retMsg": "Too many visits!", "result": {}, "retExtInfo": {}})


class Fault(NamedTuple):
    """One fault: `at` so many seconds after `begin` and for as long as it `lasts`, on a market's sockets or its REST host."""

    kind: Kind
    at: float
    lasts: float
    exchange: str
    market: str


class Happened(NamedTuple):
    """A fault that took place: when (seconds after `begin`), and to which connection where it was one's."""

    fault: Fault
    at: float
    connection: int | None


def plan(seed: int, seconds: float, *, every: float = 1.5, kinds: Iterable[Kind] = tuple(Kind)) -> list[Fault]:
    """Faults for so many seconds: on each market's sockets one about every `every` seconds, on REST and the clock a few. By seed."""
    random, wanted = Random(seed), set(kinds)
    sockets = [kind for kind in ON_SOCKETS if kind in wanted]
    rare = {"rest": [kind for kind in ON_REST if kind in wanted], "": [kind for kind in (Kind.REFUSE, Kind.SKEW) if kind in wanted]}
    faults: list[Fault] = []

    def order(exchange: str, market: str, choices: Sequence[Kind], pause: float) -> None:
        at, turn = 1.0, list(choices)
        random.shuffle(turn)
        while choices and (at := at + random.uniform(0.5, 1.5) * pause) < seconds:
            # Every kind has its turn, in an order of its own each round.
            if not turn:
                turn = list(choices)
                random.shuffle(turn)
            kind = turn.pop()
            lasts = random.uniform(*_LASTS.get(kind, (0.0, 0.0)))
            faults.append(Fault(kind, at, min(lasts, seconds - at), exchange, market))

    for exchange in ("binance", "bybit"):
        for market in ("spot", "linear"):
            order(exchange, market, sockets, every)
            # Bybit's ban is ten minutes to whoever keeps its rules.
            order(exchange, market, [kind for kind in rare["rest"] if exchange == "binance" or kind is not Kind.BANNED], 6 * every)
        order(exchange, "", rare[""], 8 * every)
    return sorted(faults, key=lambda fault: fault.at)


class _Active(NamedTuple):
    fault: Fault
    connection: int
    until: float


class Chaos(Faults):
    """Follows a plan from `begin` on. `redundant` markets have several connections, of which one at a time fails."""

    def __init__(
        self,
        faults: Iterable[Fault] = (),
        *,
        seed: int = 1,
        redundant: Iterable[tuple[str, str]] = (("bybit", "spot"), ("bybit", "linear")),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.happened: list[Happened] = []
        """What took place, in order."""
        self.requests: list[tuple[float, str, str, int]] = []
        """Every REST request: seconds after `begin`, exchange, path, and the status if a fault answered it, else 200."""
        self._redundant = set(redundant)
        self._monotonic = monotonic
        self._random = Random(seed)
        self._began: float | None = None
        self._sockets: dict[tuple[str, str], deque[Fault]] = defaultdict(deque)
        self._others: list[Fault] = []
        self._told: set[Fault] = set()
        self._active: dict[tuple[str, str], _Active] = {}
        self._ended: dict[tuple[str, str], float] = {}
        self._alive: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
        self._old: dict[tuple[str, str], deque[tuple[float, str | bytes]]] = defaultdict(lambda: deque(maxlen=_OLD))
        self._kept: dict[int, str | bytes] = {}
        for fault in faults:
            self.order(fault)

    def order(self, fault: Fault) -> None:
        """One fault more; a socket fault whose time has passed comes with the next frame."""
        if fault.kind in ON_SOCKETS:
            self._sockets[fault.exchange, fault.market].append(fault)
        else:
            self._others.append(fault)

    def begin(self) -> None:
        """From now on time counts."""
        self._began = self._monotonic()

    def end(self) -> None:
        """From now on nothing happens any more; what is under way ends."""
        self._sockets.clear()
        self._active.clear()
        self._others.clear()
        self.skew = 0

    @property
    def now(self) -> float:
        """Seconds since `begin`; below 0 before it."""
        return self._monotonic() - self._began if self._began is not None else -1.0

    async def connecting(self, exchange: str, path: str) -> Reply | None:
        return Reply(503, {}) if self._during(Kind.REFUSE, exchange, "") is not None else None

    async def sending(self, exchange: str, market: str, connection: int, frame: str | bytes) -> Sequence[str | bytes]:
        self._keep_clock()
        text = frame if isinstance(frame, bytes) else frame.encode()
        found = _TRADES.search(text)
        if found is None:
            return (frame,)
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
        if active is None or active.connection != connection:
            return self._with_kept(connection, (frame,))
        return self._done(active, connection, frame, int(found[1]), now)

    def _next(self, key: tuple[str, str], connection: int, now: float) -> _Active | None:
        due = self._sockets[key]
        if not due or due[0].at > now or now < 0:
            return None
        if key in self._redundant:
            alive = sum(now - at < _BESIDE for at in self._alive[key].values())
            if alive < 2 or now - self._ended.get(key, -_REST_BETWEEN) < _REST_BETWEEN or self._random.random() < 0.5:
                return None
        fault = due.popleft()
        self.happened.append(Happened(fault, now, connection))
        active = self._active[key] = _Active(fault, connection, now + fault.lasts)
        return active

    def _done(self, active: _Active, connection: int, frame: str | bytes, traded_at: int, now: float) -> Sequence[str | bytes]:
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
            case Kind.MUTE:
                return ()
            case Kind.LOSE:
                return () if self._random.random() < 0.3 else (frame,)
            case Kind.REPEAT:
                return (frame, frame)
            case Kind.REORDER:
                return self._reordered(connection, frame, traded_at)
            case Kind.REPLAY:
                old = [each for at, each in self._old[fault.exchange, fault.market] if now - at > 0.5]
                return (self._random.choice(old), frame) if old else (frame,)
            case Kind.GARBAGE:
                return (self._random.choice(_GARBAGE), frame)
            case _:
                return ("x" * 8_000_000, frame)

    def _reordered(self, connection: int, frame: str | bytes, traded_at: int) -> Sequence[str | bytes]:
        """Two neighbours of one millisecond change places."""
        kept = self._kept.pop(connection, None)
        if kept is None:
            self._kept[connection] = frame
            return ()
        text = kept if isinstance(kept, bytes) else kept.encode()
        found = _TRADES.search(text)
        return (frame, kept) if found is not None and int(found[1]) == traded_at else (kept, frame)

    def _with_kept(self, connection: int, frames: Sequence[str | bytes]) -> Sequence[str | bytes]:
        kept = self._kept.pop(connection, None)
        return frames if kept is None else (kept, *frames)

    async def requested(self, exchange: str, path: str, params: Mapping[str, str]) -> Reply | None:
        self._keep_clock()
        market = params.get("category", "linear" if path.startswith("/fapi") else "spot")
        reply = None
        if (fault := self._during(Kind.SLOW, exchange, market)) is not None:
            await anyio.sleep(self._random.uniform(0.2, max(0.2, fault.lasts)))
        if (fault := self._during(Kind.BANNED, exchange, market)) is not None:
            left = max(1, round(fault.at + fault.lasts - self.now + 0.5))
            text = {"code": -1003, "msg": "Way too much request weight used; IP banned."}
            reply = Reply(418, text, {"Retry-After": str(left)}) if exchange == "binance" else _denied()
        elif self._during(Kind.TOO_MANY, exchange, market) is not None:
            text = {"code": -1003, "msg": "Too much request weight used."}
            reply = Reply(429, text, {"Retry-After": "1"}) if exchange == "binance" else _TOO_MANY_VISITS
        elif self._during(Kind.ERROR, exchange, market) is not None:
            reply = Reply(503, {"code": -1000, "msg": "Service unavailable."})
        self.requests.append((self.now, exchange, path, reply.status if reply is not None else 200))
        return reply

    def lag(self, exchange: str, market: str) -> int:
        fault = self._during(Kind.LAG, exchange, market)
        return round(fault.lasts * 1_000) if fault is not None else 0

    def _during(self, kind: Kind, exchange: str, market: str) -> Fault | None:
        now = self.now
        for fault in self._others:
            if fault.kind is kind and (fault.exchange, fault.market) == (exchange, market) and fault.at <= now < fault.at + fault.lasts:
                if fault not in self._told:
                    self._told.add(fault)
                    self.happened.append(Happened(fault, now, None))
                return fault
        return None

    def _keep_clock(self) -> None:
        wrong = self._during(Kind.SKEW, "binance", "") or self._during(Kind.SKEW, "bybit", "")
        # A second ahead or behind, by the fault's own numbers.
        self.skew = 0 if wrong is None else 1_000 if int(wrong.at * 10) % 2 else -1_000


def _denied() -> Reply:
    return Reply(403, {"retCode": 10018, "retMsg": "access too frequent", "result": {}, "retExtInfo": {}})
