"""The instruments that the loopback exchanges list: tick, lot, and how each exchange writes numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal
from functools import lru_cache
from typing import Final, NamedTuple
from zlib import crc32

from wadm_mcp.model import Instrument

SPOT_DECIMALS: Final = 8
"""Binance spot pads prices and quantities to this many decimals; the other markets use the decimals of the instrument."""

PRICES: Final = {
    "BTCUSDT": 60_000.0,
    "ETHUSDT": 3_000.0,
    "SOLUSDT": 150.0,
    "XRPUSDT": 0.6,
    "BNBUSDT": 550.0,
    "ADAUSDT": 0.4,
    "DOGEUSDT": 0.12,
    "LTCUSDT": 70.0,
}
"""Approximate price of each known symbol, in its quote asset."""

_STEPS: Final = {
    ("binance", "spot"): {
        "BTCUSDT": ("0.01", "0.00001"),
        "ETHUSDT": ("0.01", "0.0001"),
        "SOLUSDT": ("0.01", "0.001"),
        "XRPUSDT": ("0.0001", "0.1"),
        "BNBUSDT": ("0.01", "0.001"),
        "ADAUSDT": ("0.0001", "0.1"),
        "DOGEUSDT": ("0.00001", "1"),
        "LTCUSDT": ("0.01", "0.001"),
    },
    ("binance", "linear"): {
        "BTCUSDT": ("0.10", "0.001"),
        "ETHUSDT": ("0.01", "0.001"),
        "SOLUSDT": ("0.01", "0.01"),
        "XRPUSDT": ("0.0001", "0.1"),
        "BNBUSDT": ("0.01", "0.01"),
        "ADAUSDT": ("0.0001", "1"),
        "DOGEUSDT": ("0.00001", "1"),
        "LTCUSDT": ("0.01", "0.001"),
    },
    ("bybit", "spot"): {
        "BTCUSDT": ("0.1", "0.000001"),
        "ETHUSDT": ("0.01", "0.00001"),
        "SOLUSDT": ("0.01", "0.001"),
        "XRPUSDT": ("0.0001", "0.01"),
        "ADAUSDT": ("0.0001", "0.1"),
        "DOGEUSDT": ("0.00001", "0.1"),
        "LTCUSDT": ("0.01", "0.0001"),
    },
    ("bybit", "linear"): {
        "BTCUSDT": ("0.10", "0.001"),
        "ETHUSDT": ("0.01", "0.01"),
        "SOLUSDT": ("0.010", "0.1"),
        "XRPUSDT": ("0.0001", "0.1"),
        "ADAUSDT": ("0.0001", "1"),
        "DOGEUSDT": ("0.00001", "1"),
        "LTCUSDT": ("0.01", "0.1"),
    },
}


class Steps(NamedTuple):
    """Tick and lot of one instrument, as text for REST and as integers for computing.

    `tick` is in units of 10**-`price_decimals`, `lot` in units of 10**-`quantity_decimals`.
    """

    tick_text: str
    lot_text: str
    tick: int
    lot: int
    price_decimals: int
    quantity_decimals: int

    def price(self, ticks: int) -> str:
        """A price in ticks as the exchange writes it."""
        return decimal_text(ticks * self.tick, self.price_decimals)

    def quantity(self, lots: int) -> str:
        """A quantity in lots as the exchange writes it."""
        return decimal_text(lots * self.lot, self.quantity_decimals)


@lru_cache(maxsize=65_536)
def decimal_text(value: int, decimals: int) -> str:
    """An integer at `decimals` with all its decimals written out: 6183760 at 2 is `61837.60`."""
    if decimals == 0:
        return str(value)
    whole, fraction = divmod(value, 10**decimals)
    return f"{whole}.{fraction:0{decimals}d}"


def base_price(symbol: str) -> float:
    """Approximate price of a symbol; that of an unknown symbol is between 0.01 and 1,000, derived from its name."""
    return PRICES.get(symbol) or round(10 ** (crc32(symbol.encode()) % 5000 / 1000 - 2), 4)


def known_instruments() -> list[Instrument]:
    """The instruments that the simulator lists by default. BNBUSDT is not listed on Bybit."""
    return [Instrument(exchange, market, symbol) for (exchange, market), symbols in _STEPS.items() for symbol in symbols]


def steps_of(instrument: Instrument) -> Steps:
    """Tick and lot of an instrument; those of an unknown one are derived from the size of its price."""
    exchange, market, symbol = instrument
    tick, lot = _STEPS[exchange, market].get(symbol) or _default_steps(base_price(symbol))
    return custom_steps(instrument, tick, lot)


def custom_steps(instrument: Instrument, tick: str, lot: str) -> Steps:
    """This tick and lot as the instrument's market writes them."""
    exchange, market, _ = instrument
    padded = exchange == "binance" and market == "spot"
    price_decimals, quantity_decimals = (SPOT_DECIMALS, SPOT_DECIMALS) if padded else (_decimals(tick), _decimals(lot))
    tick_units, lot_units = _units(tick, price_decimals), _units(lot, quantity_decimals)
    if padded:
        tick, lot = decimal_text(tick_units, SPOT_DECIMALS), decimal_text(lot_units, SPOT_DECIMALS)
    return Steps(tick, lot, tick_units, lot_units, price_decimals, quantity_decimals)


def finer_steps(instrument: Instrument, steps: Steps) -> Steps:
    """A tick and a lot a hundredth as large, of which the usual prices and quantities are multiples too."""
    return custom_steps(instrument, f"{Decimal(steps.tick_text) / 100:f}", f"{Decimal(steps.lot_text) / 100:f}")


def assets_of(symbol: str) -> tuple[str, str]:
    """Base and quote asset of a symbol, from its name."""
    for quote in ("USDT", "USDC", "BTC", "ETH"):
        if symbol.endswith(quote) and symbol != quote:
            return symbol.removesuffix(quote), quote
    return symbol, "USDT"


def symbols_of(instruments: Iterable[Instrument], exchange: str, market: str) -> list[str]:
    """Symbols of one market, in the order given."""
    return [one.symbol for one in instruments if one.exchange == exchange and one.market == market]


def _default_steps(price: float) -> tuple[str, str]:
    decimals = min(7, max(2, 4 - math.floor(math.log10(price))))
    return decimal_text(1, decimals), decimal_text(1, min(5, 6 - decimals + 1) if decimals < 5 else 0)


def _decimals(text: str) -> int:
    return len(text.partition(".")[2])


def _units(text: str, decimals: int) -> int:
    return int(Decimal(text).scaleb(decimals))
