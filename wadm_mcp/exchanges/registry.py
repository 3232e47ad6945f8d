"""The one table of exchanges. Everything that depends on an exchange is a method or an attribute of its `Exchange`, found here by name.

To add an exchange, write a module with its `Exchange` and add a line to the table. Settings, arguments, tools, the command line and the
import of files follow from that. A test registers an exchange of its own in a `with register(...)` block.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from wadm_mcp.exchanges.binance import Binance
from wadm_mcp.exchanges.bybit import Bybit
from wadm_mcp.exchanges.exchange import Exchange
from wadm_mcp.model import Instrument

_EXCHANGES: Final[dict[str, Exchange]] = {
    "binance": Binance(),
    "bybit": Bybit(),
}


def exchange_names() -> tuple[str, ...]:
    """The name of every exchange, in the order in which answers list them."""
    return tuple(_EXCHANGES)


def exchange_titles() -> str:
    """The exchanges for a sentence: `Binance and Bybit`."""
    titles = [exchange.title for exchange in _EXCHANGES.values()]
    return " and ".join(filter(None, (", ".join(titles[:-1]), titles[-1])))


def find_exchange(name: str) -> Exchange:
    """The exchange of this name; `KeyError` where there is none."""
    return _EXCHANGES[name]


def canonical_instrument(instrument: Instrument) -> Instrument:
    """The instrument by its canonical symbol; itself where its exchange is not registered any more."""
    exchange = _EXCHANGES.get(instrument.exchange)
    symbol = instrument.symbol if exchange is None else exchange.canonical_symbol(instrument.symbol)
    return instrument if symbol == instrument.symbol else instrument._replace(symbol=symbol)


def is_called(instrument: Instrument, symbol: str) -> bool:
    """True if the symbol is the exchange's own symbol of the instrument, or its canonical one."""
    return symbol in (instrument.symbol, canonical_instrument(instrument).symbol)


@contextmanager
def register(exchange: Exchange) -> Generator[None]:
    """Add an exchange for as long as the block lasts. `ValueError` where its name is taken."""
    if exchange.name in _EXCHANGES:
        raise ValueError(f"an exchange called {exchange.name} is registered already")
    _EXCHANGES[exchange.name] = exchange
    try:
        yield
    finally:
        del _EXCHANGES[exchange.name]
