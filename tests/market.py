"""Trades and clocks for tests: a made-up market, small enough to count by hand."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from wadm_mcp.clock import Clock
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


class ManualClock(Clock):
    """A wall clock and a monotonic clock that move together, and only when a test moves them. `at` is the wall time (ms)."""

    def __init__(self, at: int = NOON) -> None:
        super().__init__(lambda: self.at, lambda: self.at / SECOND)
        self.at = at

    def pass_seconds(self, seconds: float) -> None:
        self.at += round(seconds * SECOND)

    def pass_minutes(self, minutes: float) -> None:
        self.at += round(minutes * MINUTE)
