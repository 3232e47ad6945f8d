"""Trades and clocks for tests: a made-up market, small enough to count by hand."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from wadm_mcp.model import MINUTE, SECOND, Instrument, Listing, Trade, TradeType

SPOT: Final = Instrument("binance", "spot", "BTCUSDT")
BYBIT: Final = Instrument("bybit", "spot", "BTCUSDT")
NOON: Final = 1_780_315_200_000
"""2026-06-01 12:00 UTC."""


def listing(instrument: Instrument = SPOT, tick: str = "0.01", lot: str = "0.00001") -> Listing:
    """An instrument as an exchange would list it."""
    return Listing(instrument, Decimal(tick), Decimal(lot))


def trade(
    seq: int, at: int = NOON, price: int = 6_000_000, quantity: int = 100, side: str = "BUY", instrument: Instrument = SPOT, fills: int = 1
) -> Trade:
    """One trade; price and quantity are integers at the listing's scale."""
    return Trade(instrument, at, seq, str(seq), price, quantity, TradeType(side), fills, listing(instrument).scale)


class Clock:
    """A wall clock and a monotonic clock that move together, and only when a test moves them."""

    def __init__(self, now: int = NOON) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now / SECOND

    def pass_seconds(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)

    def pass_minutes(self, minutes: float) -> None:
        self.now += round(minutes * MINUTE)
