"""Oracles: second implementations of the analytics, written from the definitions alone in another style, and tapes to compare them on.

Oracles work on fractions and on explicit sets of rows; they share no arithmetic with the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from itertools import accumulate

from hypothesis import strategies as st

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.model import Instrument, Scale, Trade, TradeType

INSTRUMENT = Instrument("binance", "spot", "BTCUSDT")
SCALE = Scale(1, 2)
SCALES = (SCALE, Scale(1, 4), Scale(3, 2), Scale(2, 3))
LARGE = 2**63 - 1

_WIDE = Context(prec=400)


def trade(price: int, quantity: int, side: str = "BUY", *, at: int = 0, seq: int = 0, fills: int = 1, scale: Scale = SCALE) -> Trade:
    return Trade(INSTRUMENT, at, seq, f"{at}-{seq}", price, quantity, TradeType(side), fills, scale)


@st.composite
def tapes(draw: st.DrawFn, *, largest: int = 80, least: int = 0, scales: Sequence[Scale] = (SCALE,)) -> list[Trade]:
    """Trades in the exchange's order, several in one millisecond, each with a seq of its own."""
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(1, largest),
                st.integers(1, largest),
                st.sampled_from(("BUY", "SELL")),
                st.integers(0, 2),
                st.integers(1, 3),
                st.sampled_from(scales),
            ),
            min_size=least,
            max_size=40,
        )
    )
    times = list(accumulate(wait for _, _, _, wait, _, _ in rows))
    return [
        trade(price, quantity, side, at=times[seq], seq=seq, fills=fills, scale=scale)
        for seq, (price, quantity, side, _, fills, scale) in enumerate(rows)
    ]


def footprint_of(trades: Sequence[Trade], scale: Scale = SCALE) -> Footprint:
    footprint = Footprint(scale)
    for one in trades:
        footprint.add(one)
    return footprint


def price_of(one: Trade) -> Fraction:
    return Fraction(one.price, 10**one.scale.price)


def quantity_of(one: Trade) -> Fraction:
    return Fraction(one.quantity, 10**one.scale.quantity)


def figures(bar: Bar) -> dict[str, Fraction | int | None]:
    """A bar's figures as plain fractions, whatever its scale."""

    def written(value: int | None, places: int) -> Fraction | None:
        return None if value is None else Fraction(value, 10**places)

    price, quantity = bar.scale
    return {
        "open": written(bar.open, price),
        "high": written(bar.high, price),
        "low": written(bar.low, price),
        "close": written(bar.close, price),
        "buy_volume": written(bar.buy_volume, quantity),
        "sell_volume": written(bar.sell_volume, quantity),
        "trade_count": bar.trade_count,
        "notional": written(bar.notional, price + quantity),
        "min_delta": written(bar.min_delta, quantity),
        "max_delta": written(bar.max_delta, quantity),
    }


def bar_by_the_book(tape: Sequence[Trade]) -> dict[str, Fraction | int | None]:
    """The figures of trades in the exchange's order, each computed from its definition."""
    prices = [price_of(one) for one in tape]
    signed = [quantity_of(one) if one.trade_type == "BUY" else -quantity_of(one) for one in tape]
    paths = [sum(signed[: end + 1], Fraction(0)) for end in range(len(signed))]
    return {
        "open": prices[0] if prices else None,
        "high": max(prices, default=None),
        "low": min(prices, default=None),
        "close": prices[-1] if prices else None,
        "buy_volume": sum((size for size in signed if size > 0), Fraction(0)),
        "sell_volume": sum((-size for size in signed if size < 0), Fraction(0)),
        "trade_count": sum(one.fills for one in tape),
        "notional": sum((price * abs(size) for price, size in zip(prices, signed, strict=True)), Fraction(0)),
        "min_delta": min(paths, default=None),
        "max_delta": max(paths, default=None),
    }


def cells_by_the_book(tape: Sequence[Trade]) -> dict[tuple[Fraction, str], tuple[Fraction, int]]:
    """Volume and fills by price and side."""
    found: dict[tuple[Fraction, str], tuple[Fraction, int]] = {}
    for one in tape:
        volume, fills = found.get((price_of(one), one.trade_type.value), (Fraction(0), 0))
        found[price_of(one), one.trade_type.value] = (volume + quantity_of(one), fills + one.fills)
    return found


def cells_of(footprint: Footprint) -> dict[tuple[Fraction, str], tuple[Fraction, int]]:
    """The cells of a footprint in the shape of `cells_by_the_book`."""
    places, lots = footprint.scale
    found: dict[tuple[Fraction, str], tuple[Fraction, int]] = {}
    for price, (buy, sell, buy_fills, sell_fills) in footprint.cells.items():
        for side, volume, fills in (("BUY", buy, buy_fills), ("SELL", sell, sell_fills)):
            if fills:
                found[Fraction(price, 10**places), side] = (Fraction(volume, 10**lots), fills)
    return found


def point_of_control(volumes: Sequence[int]) -> int:
    middle = Fraction(len(volumes) - 1, 2)
    return sorted(range(len(volumes)), key=lambda row: (-volumes[row], abs(row - middle), row))[0]


def value_area(volumes: Sequence[int], poc: int, percent: int, together: int) -> set[int]:
    """The rows of the value area as a set, grown by `together` rows at a time until they have the requested share of the volume."""
    everything = sum(volumes)
    area = {poc}
    while everything and Fraction(sum(volumes[row] for row in area), everything) < Fraction(percent, 100):
        above = {row for row in range(len(volumes)) if 0 < row - max(area) <= together}
        below = {row for row in range(len(volumes)) if 0 < min(area) - row <= together}
        weight_above, weight_below = (sum(volumes[row] for row in rows) for rows in (above, below))
        area |= above if not below or (above and not weight_above < weight_below) else below
    return area


def ratio(numerator: int, denominator: int, places: int) -> Decimal:
    """A quotient rounded half to even at so many decimals, by long division."""
    return _WIDE.divide(Decimal(numerator), Decimal(denominator)).quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN, _WIDE)
