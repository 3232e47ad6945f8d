"""A market of three days with known facts, and a server on it. The true figures are computed here directly from the trades."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cache
from typing import Final

from tests.market import BYBIT, NOON, SPOT, listing, trade
from tests.queries.world import ETH, World, price_of, quantity_of, signed
from tests.server.fake import FakeRuntime
from wadm_mcp.coverage.spans import Basis, GapReason, Span
from wadm_mcp.health import State
from wadm_mcp.model import DAY, HOUR, MINUTE, Instrument, Trade, TradeType

PERP: Final = Instrument("binance", "linear", "BTCUSDT")
INSTRUMENTS: Final = (SPOT, BYBIT, PERP, ETH)
NOW: Final = NOON + 7 * MINUTE
MIDNIGHT: Final = NOON - 12 * HOUR
BEGUN: Final = MIDNIGHT - 3 * DAY
"""Recording began here."""
TORN: Final = (NOON - 6 * HOUR, NOON - 5 * HOUR)
"""Between these times Bybit's connection was lost."""
CRASH: Final = NOON - 4 * HOUR
"""In the 15 minutes from here Binance spot falls with more volume than ever before."""
LARGEST: Final = NOON - 26 * HOUR
"""When the largest trade of yesterday was made on Binance spot."""
LATE: Final = NOON + 6 * MINUTE + 30_000
"""A level of 61,500 is reached on Binance spot here, half a minute before now."""

_EVERY: Final = 90_000
_PRICES: Final = {SPOT: 6_000_000, BYBIT: 6_000_600, PERP: 6_009_000, ETH: 300_000}


@cache
def tape() -> tuple[Trade, ...]:
    """Every trade, in order. The perpetual's flow is that of spot, two bars of five minutes later."""
    chance, trades = random.Random(7), list[Trade]()
    spot_flow = {bar: chance.gauss(0, 1) for bar in range((BEGUN - HOUR) // (5 * MINUTE), NOW // (5 * MINUTE) + 1)}
    for seq, at in enumerate(range(BEGUN, NOW - MINUTE, _EVERY)):
        wave = abs((at // HOUR) % 16 - 8) * 2_000 + chance.randrange(-300, 300)
        for instrument, level in _PRICES.items():
            bar = at // (5 * MINUTE) - (2 if instrument == PERP else 0)
            flow = spot_flow[bar] if instrument in (SPOT, PERP) else chance.gauss(0, 1)
            size = 1_000 + round(abs(flow) * 20_000) + chance.randrange(200)
            side = "BUY" if flow > 0 else "SELL"
            moment = at + 1_000 * INSTRUMENTS.index(instrument)
            lost = instrument == BYBIT and TORN[0] <= moment < TORN[1]
            falling = instrument == SPOT and CRASH <= moment < CRASH + 15 * MINUTE
            if not lost and not falling:
                trades.append(trade(seq, moment, level + wave * level // 6_000_000, size, side, instrument))
    for step in range(30):
        size = 2_000_000 if step == 17 else 400_000
        trades.append(trade(90_000 + step, CRASH + 20_000 * step, 5_990_000 - 4_000 * step, size, "SELL", SPOT))
    trades.append(trade(99_000, LARGEST, 6_004_000, 9_000_000, "BUY", SPOT))
    trades.append(trade(99_001, LATE, 6_150_000, 2_500, "BUY", SPOT))
    return tuple(sorted(trades, key=lambda one: one.timestamp))


@cache
def runtime() -> FakeRuntime:
    """A server's runtime on the tape, complete except for one hour of Bybit."""
    world = World(*map(listing, INSTRUMENTS), now=NOW)
    world.add(tape(), durable_until=NOW - HOUR, settled_until=NOW - 10 * MINUTE)
    for instrument in INSTRUMENTS:
        spans = [Span(BEGUN, NOW + MINUTE, 0, 0, Basis.OBSERVED)]
        if instrument == BYBIT:
            torn = Span(TORN[1], NOW + MINUTE, 0, 0, Basis.OBSERVED, opened_by=GapReason.DISCONNECT)
            spans = [Span(BEGUN, TORN[0], 0, 0, Basis.OBSERVED), torn]
        world.cover(instrument, BEGUN, NOW)
        held = world.tape[instrument].coverage
        assert held is not None
        held.spans = spans  # pyright: ignore[reportAttributeAccessIssue]
    served = FakeRuntime()
    served.view, served.tape, served.clock.at = world.view, world.tape, NOW
    for instrument in INSTRUMENTS:
        served.health.report(str(instrument), State.OK)
    return served


def of(instrument: Instrument | Iterable[Instrument], start: int, end: int = NOW) -> list[Trade]:
    """What was traded in a stretch."""
    wanted = {instrument} if isinstance(instrument, Instrument) else set(instrument)
    return [one for one in tape() if one.instrument in wanted and start <= one.timestamp < end]


def volume(trades: Iterable[Trade], side: TradeType | None = None) -> Decimal:
    """Base units."""
    return sum((quantity_of(one) for one in trades if side in (None, one.trade_type)), Decimal(0))


def delta(trades: Iterable[Trade]) -> Decimal:
    """Bought minus sold by takers."""
    return sum(map(signed, trades), Decimal(0))


def vwap(trades: list[Trade]) -> Decimal:
    """Two decimals more than prices have."""
    return (sum(price_of(one) * quantity_of(one) for one in trades) / volume(trades)).quantize(Decimal("0.0001"), ROUND_HALF_EVEN)


def poc(trades: list[Trade], row: Decimal) -> Decimal:
    """The low price of the row with the most volume; the rows of this tape do not tie."""
    rows: dict[Decimal, Decimal] = {}
    for one in trades:
        low = price_of(one) // row * row
        rows[low] = rows.get(low, Decimal(0)) + quantity_of(one)
    return max(rows, key=lambda low: rows[low])


def bars(trades: list[Trade], length: int) -> dict[int, list[Trade]]:
    """Trades by the start of their bar."""
    found: dict[int, list[Trade]] = {}
    for one in trades:
        found.setdefault(one.timestamp - one.timestamp % length, []).append(one)
    return found


def top(found: dict[int, list[Trade]], figure: Callable[[list[Trade]], Decimal]) -> int:
    """The bar with the largest figure."""
    return max(found, key=lambda start: figure(found[start]))
