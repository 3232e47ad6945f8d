"""A plausible market that is a pure function of time.

The trades of a minute are a function of (seed, instrument, minute) alone. So every process sees the same trades with the same ids, at any
time, also after a restart.

Ids are contiguous by construction. A day has a fixed number of aggregates, distributed over its minutes by a seeded intensity, and the
number of fills is a function of the number of aggregates. So the first id of a minute is a sum of table entries; no trades are counted.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable
from itertools import accumulate
from random import Random
from typing import Final, NamedTuple, TypeVar

from wadm_mcp.model import DAY, MINUTE, Instrument
from wadm_mcp.simulator.listings import Steps, base_price, steps_of

EPOCH: Final = 1_577_836_800_000
"""2020-01-01 UTC, where ids begin."""

_MINUTES: Final = DAY // MINUTE
_EXTRA_FILLS: Final = (4, 5)
"""Fills beyond the first per aggregate, as a fraction: real markets have 1.2 to 3 trades per aggregate (docs/exchanges.md 7)."""
_ACTIVITY: Final = {("binance", "spot"): 900, ("binance", "linear"): 1_100, ("bybit", "spot"): 180, ("bybit", "linear"): 300}
_SHARE: Final = {
    "BTCUSDT": 1.0,
    "ETHUSDT": 0.6,
    "SOLUSDT": 0.35,
    "XRPUSDT": 0.3,
    "DOGEUSDT": 0.2,
    "BNBUSDT": 0.2,
    "ADAUSDT": 0.12,
    "LTCUSDT": 0.08,
}
BURNT: Final = "BURNT"
"""The kind of a fill that self-trade prevention took back on USD-M: it takes an id and is published nowhere (docs/exchanges.md 2.2)."""
_CARRY_MS: Final = 60
"""Where the last aggregate of a USD-M minute reaches into the next minute, it does so by at most this much (ms)."""
_LAST_MS: Final = 20
"""Such an aggregate begins within this much (ms) of the minute's end."""
_MINUTES_KEPT: Final = 6
_DAYS_KEPT: Final = 4

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class Fill(NamedTuple):
    """One execution. `price` is in ticks, `quantity` in lots, `time` in ms since the epoch; `buy` if the taker bought.

    `order` numbers the taker orders of one ms and `rank` the fills of that ms, both from 0. `kind` is the field `X` of USD-M, or `BURNT`.
    """

    time: int
    price: int
    quantity: int
    buy: bool
    id: int
    order: int
    rank: int
    kind: str = "MARKET"


class MarketAggregate(NamedTuple):
    """Consecutive fills of one price and side within the market's aggregation window, with the time of the first. `plain` is the quantity
    without RPI fills. On USD-M ids between `first` and `last` may be burnt."""

    id: int
    time: int
    price: int
    quantity: int
    plain: int
    first: int
    last: int
    buy: bool


class Market:
    """The market of one instrument. `rate` is its mean number of fills a minute, `default_rate` if not given."""

    def __init__(self, exchange: str, market: str, symbol: str, seed: int = 1, *, rate: float | None = None) -> None:
        self.instrument = Instrument(exchange, market, symbol)
        self.steps: Steps = steps_of(self.instrument)
        self.rate = default_rate(self.instrument) if rate is None else rate
        self.window = 100 if (exchange, market) == ("binance", "linear") else 1
        """Fills are aggregated with those of this many ms from the first of them: 100 on USD-M, 1 on spot (docs/exchanges.md 1.2, 2.2)."""
        self._has_odd_prints = self.window > 1
        self._number = seed
        self._seed = f"{seed}:{self.instrument}"
        self._path = _Path(f"{seed}:{symbol}", self._seed, base_price(symbol))
        self._per_day = max(1, round(self.rate * _MINUTES * _EXTRA_FILLS[1] / sum(_EXTRA_FILLS)))
        self._days: OrderedDict[int, list[int]] = OrderedDict()
        self._minutes: OrderedDict[int, list[Fill]] = OrderedDict()
        self._folds: OrderedDict[int, list[MarketAggregate]] = OrderedDict()

    def copy(self) -> Market:
        """The same market with empty caches, for use in another thread."""
        return Market(*self.instrument, self._number, rate=self.rate)

    def trades(self, minute_start_ms: int) -> list[Fill]:
        """The fills of a minute in the exchange's order; empty before `EPOCH`. The list is shared: do not change it.

        On USD-M the last of them may have times in the next minute: fills of an aggregate that began in this one.
        """
        minute = (minute_start_ms - EPOCH) // MINUTE
        return _cached(self._minutes, minute, self._generate, _MINUTES_KEPT) if minute >= 0 else []

    def aggregates(self, minute_start_ms: int) -> list[MarketAggregate]:
        """The fills of a minute aggregated as Binance does, market prints only."""
        minute = (minute_start_ms - EPOCH) // MINUTE
        return _cached(self._folds, minute, self._fold, _MINUTES_KEPT) if minute >= 0 else []

    def minute_of_trade(self, trade_id: int) -> int:
        """Start (ms) of the minute that contains the fill `trade_id`; lower ids than the first belong to the first minute."""
        day, within = divmod(max(0, trade_id), self._first_trade(1, 0))
        after = bisect_right(range(_MINUTES), within, key=lambda minute: self._first_trade(0, minute, of_day=day))
        return EPOCH + day * DAY + (after - 1) * MINUTE

    def minute_of_aggregate(self, aggregate_id: int) -> int:
        """Start (ms) of the minute that contains the aggregate `aggregate_id`."""
        day, within = divmod(max(0, aggregate_id), self._per_day)
        return EPOCH + day * DAY + (bisect_right(self._table(day), within) - 1) * MINUTE

    def _first_trade(self, day: int, minute: int, *, of_day: int | None = None) -> int:
        """Id of the first fill of a minute; with `of_day` counted from the start of that day."""
        aggregates = self._table(day if of_day is None else of_day)[minute]
        return day * self._fills(self._per_day, _MINUTES) + self._fills(aggregates, minute)

    def _fills(self, aggregates: int, minutes: int) -> int:
        """Number of fills of this many aggregates, including the odd prints of the first `minutes` of a day."""
        more, of = _EXTRA_FILLS
        return aggregates + aggregates * more // of + ((minutes + 3) // 7 if self._has_odd_prints else 0)

    def _table(self, day: int) -> list[int]:
        """Number of aggregates of the day before each of its minutes, 1,441 entries."""
        return _cached(self._days, day, self._tabulate, _DAYS_KEPT)

    def _tabulate(self, day: int) -> list[int]:
        random = Random(f"{self._seed}:day:{day}")
        daylight = [1 + 0.4 * math.sin((minute - 480) * math.tau / _MINUTES) for minute in range(_MINUTES)]
        weights = [1 + int(1000 * light * random.lognormvariate(0, 0.35)) for light in daylight]
        sums = list(accumulate(weights, initial=0))
        return [self._per_day * before // sums[-1] for before in sums]

    def _generate(self, minute: int) -> list[Fill]:
        day, of_day = divmod(minute, _MINUTES)
        table = self._table(day)
        fills: list[Fill] = []
        number, start = self._first_trade(day, of_day), EPOCH + minute * MINUTE
        many = table[of_day + 1] - table[of_day]
        if many:
            random = Random(f"{self._seed}:{minute}")
            sizes = self._fills_of_aggregates(random, many, table[of_day], table[of_day + 1])
            self._walk(random, fills, sizes, minute, number, start)
        if self._has_odd_prints and of_day % 7 == 3:
            # Not a trade of the book: it takes an id and is in no aggregate. It is last in the minute, so that no aggregate spans its id.
            kind = "NA" if of_day % 2 else "INSURANCE_FUND"
            price = 0 if kind == "NA" else max(1, round(self._path.at(minute) / self._tick * 1.02))
            fills.append(Fill(start + MINUTE - 1, price, 0 if kind == "NA" else 1, False, number + len(fills), 0, 0, kind))
        return fills

    @property
    def _tick(self) -> float:
        return self.steps.tick / 10**self.steps.price_decimals

    @staticmethod
    def _fills_of_aggregates(random: Random, many: int, before: int, after: int) -> list[int]:
        above, below = _EXTRA_FILLS
        sizes = [1] * many
        for _ in range(after * above // below - before * above // below):
            sizes[int(many * random.random())] += 1
        return sizes

    def _carry_ms(self, minute: int) -> int:
        """How far (ms) the last aggregate of a USD-M minute reaches into the next one, if it has several fills; mostly 0."""
        if not self._has_odd_prints or minute < 0 or minute % _MINUTES % 7 == 3:
            return 0
        random = Random(f"{self._seed}:{minute}:carry")
        return random.randint(1, _CARRY_MS) if random.random() < 0.25 else 0

    def _walk(self, random: Random, fills: list[Fill], sizes: list[int], minute: int, number: int, start: int) -> None:
        """Appends the fills of the minute's taker orders. Consecutive aggregates always differ in window, price or side."""
        orders = _orders(random, len(sizes))
        # Fills of the last aggregate of the minute before come first.
        before, carry = self._carry_ms(minute - 1), self._carry_ms(minute)
        times = [max(before, at) for at in _times(random, len(orders))]
        if carry:
            times[-1] = max(times[-1], MINUTE - _LAST_MS)
        mids = self._path.bridge(random, minute, times)
        tick, typical = self._tick, self._typical_lots()
        aggregate, last_time, order, rank = 0, -1, 0, 0
        last_key, last_began = (0, False), -self.window
        for levels, offset, mid in zip(orders, times, mids, strict=True):
            order, rank = (order + 1, rank) if offset == last_time else (0, 0)
            last_time = offset
            buy = random.random() < 0.5
            direction = 1 if buy else -1
            price = max(1, math.floor(mid / tick) + buy)
            for _ in range(levels):
                if offset - last_began < self.window and (price, buy) == last_key:
                    price = price + direction if price + direction > 0 else price + 1
                last_key, last_began = (price, buy), offset
                size = sizes[aggregate]
                for place in range(size):
                    quantity = max(1, int(typical * random.lognormvariate(0, 1.4)))
                    kind = self._kind(number, inside=0 < place < size - 1)
                    at = start + (MINUTE + carry if carry and place and aggregate == len(sizes) - 1 else offset)
                    fills.append(Fill(at, price, quantity, buy, number, order, rank, kind))
                    number, rank = number + 1, rank + 1
                aggregate += 1
                price = max(1, price + direction * (1 + int(random.expovariate(1.2))))

    def _kind(self, number: int, *, inside: bool) -> str:
        """The kind of a fill; `inside` if it is neither the first nor the last of its aggregate, so that its id may be burnt."""
        if not self._has_odd_prints:
            return "MARKET"
        return "RPI" if number % 41 == 0 else BURNT if inside and number % 11 == 0 else "MARKET"

    def _typical_lots(self) -> float:
        """Median fill in lots: worth about 80 units of the quote asset, and at least four lots."""
        return max(4.0, 80 / base_price(self.instrument.symbol) * 10**self.steps.quantity_decimals / self.steps.lot)

    def _fold(self, minute: int) -> list[MarketAggregate]:
        day, of_day = divmod(minute, _MINUTES)
        number = day * self._per_day + self._table(day)[of_day]
        folded: list[MarketAggregate] = []
        window = self.window
        whole: Fill | None = None
        quantity = plain = last = 0
        for fill in self.trades(EPOCH + minute * MINUTE):
            if fill.kind not in ("MARKET", "RPI"):
                continue
            if whole is not None and fill.time - whole.time < window and fill.price == whole.price and fill.buy is whole.buy:
                quantity, last = quantity + fill.quantity, fill.id
            else:
                if whole is not None:
                    folded.append(MarketAggregate(number, whole.time, whole.price, quantity, plain, whole.id, last, whole.buy))
                    number += 1
                whole, quantity, plain, last = fill, fill.quantity, 0, fill.id
            if fill.kind != "RPI":
                plain += fill.quantity
        if whole is not None:
            folded.append(MarketAggregate(number, whole.time, whole.price, quantity, plain, whole.id, last, whole.buy))
        return folded

    def slice_of(self, minute_start_ms: int, start: int, end: int) -> list[Fill]:
        """The minute's fills with `start <= time < end`."""
        fills = self.trades(minute_start_ms)
        return fills[bisect_left(fills, start, key=_time) : bisect_left(fills, end, key=_time)]

    def folded_slice_of(self, minute_start_ms: int, start: int, end: int) -> list[MarketAggregate]:
        """The minute's aggregates with `start <= time < end`."""
        folded = self.aggregates(minute_start_ms)
        return folded[bisect_left(folded, start, key=_time) : bisect_left(folded, end, key=_time)]


def default_rate(instrument: Instrument) -> float:
    """Mean number of fills a minute of an instrument."""
    exchange, market, symbol = instrument
    return _ACTIVITY[exchange, market] * _SHARE.get(symbol, 0.1)


class _Path:
    """The price in quote units: slow waves and noise shared by all markets of a symbol, and a small basis of each market."""

    def __init__(self, shared: str, own: str, base: float) -> None:
        self._shared, self._base = shared, base
        random = Random(f"{shared}:waves")
        self._waves = [(random.uniform(0.6, 1.0) * size, period, random.uniform(0, math.tau)) for size, period in _WAVES]
        random = Random(f"{own}:basis")
        self._basis = random.uniform(-1.5e-4, 1.5e-4)
        self._phase = random.uniform(0, math.tau)
        self._anchors: OrderedDict[int, float] = OrderedDict()

    def at(self, minute: int) -> float:
        """The price at the start of a minute, which is the price at the end of the minute before."""
        return _cached(self._anchors, minute, self._anchor, 64)

    def _anchor(self, minute: int) -> float:
        wave = sum(size * math.sin(minute * math.tau / period + phase) for size, period, phase in self._waves)
        noise = Random(f"{self._shared}:{minute}").gauss(0, 2.5e-4)
        basis = self._basis + 1e-4 * math.sin(minute * math.tau / 193 + self._phase)
        return self._base * math.exp(wave + noise + basis)

    def bridge(self, random: Random, minute: int, times: list[int]) -> list[float]:
        """A random walk from the minute's first price to its last, one value per time (ms within the minute)."""
        low, high = self.at(minute), self.at(minute + 1)
        walk = list(accumulate(random.gauss(0, 1) for _ in range(len(times) + 1)))
        last, size = walk[-1], 1.2e-4 * self._base / math.sqrt(len(walk))
        return [low + (high - low) * time / MINUTE + size * (walk[n] - (n + 1) / len(walk) * last) for n, time in enumerate(times)]


_WAVES: Final = ((0.05, 60_000.0), (0.025, 9_700.0), (0.012, 1_440.0), (0.006, 377.0), (0.002, 89.0), (0.0008, 23.0))
"""Amplitude (as a logarithm of price) and period in minutes."""


def _orders(random: Random, many: int) -> list[int]:
    """Number of price levels that each taker order fills, with the sum `many`: most fill one, some several."""
    orders: list[int] = []
    while many:
        levels = min(many, 1 + int(random.expovariate(1.1)), 12)
        orders.append(levels)
        many -= levels
    return orders


def _times(random: Random, many: int) -> list[int]:
    """Times of the orders, ms within the minute, ascending: half of them are in a few bursts."""
    bursts = [random.randrange(MINUTE) for _ in range(1 + many // 12)]
    times = [
        random.randrange(MINUTE) if random.random() < 0.5 else min(MINUTE - 1, random.choice(bursts) + int(random.expovariate(1 / 40)))
        for _ in range(many)
    ]
    return sorted(times)


def _time(row: Fill | MarketAggregate) -> int:
    return row.time


def _cached(cache: OrderedDict[_Key, _Value], key: _Key, make: Callable[[_Key], _Value], limit: int) -> _Value:
    """The value of a least-recently-used cache, computed by `make` if it is missing."""
    if key in cache:
        cache.move_to_end(key)
        return cache[key]
    value = cache[key] = make(key)
    if len(cache) > limit:
        cache.popitem(last=False)
    return value
