"""How people and programs write the name of an instrument, and what a name says: a symbol, and perhaps an exchange and a market.

`binance:linear:BTCUSDT` stands in WADM's answers, `BTC/USDT:USDT` in programs that use ccxt, `BINANCE:BTCUSDT.P` on TradingView,
`BTC-USDT-SWAP` on other exchanges. A name is `[exchange:][market:]symbol`, followed by the endings of one table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from wadm_mcp.exchanges.registry import exchange_names
from wadm_mcp.model import MARKETS
from wadm_mcp.suggest import plain

MARKET_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {market: market for market in MARKETS}
    | dict.fromkeys(("perp", "perps", "perpetual", "perpetuals", "future", "futures", "swap", "usdm", "usd-m"), "linear")
)
"""The names of the markets, and other names for them."""

_ALL: Final = "all"
"""Stands for the exchange or the market in the name of an answer that merges several."""
_MAX_CHARS: Final = 100
_SEPARATORS: Final = "-_/. "
_EXPIRES: Final = "it names a contract with a delivery date, and WADM records spot and perpetuals"
_INVERSE: Final = "it names a contract that is settled in its base asset, and WADM records spot and linear perpetuals"


class InstrumentName(NamedTuple):
    """What a name says. `symbol` is in upper case and without separators; it is empty if the name has no letters and digits.

    `exchange` and `market` are None where the name does not say them. `problem` says why WADM cannot record what is named, as a clause
    for an error; `symbol` is then the underlying one.
    """

    symbol: str
    exchange: str | None = None
    market: str | None = None
    problem: str = ""


class _Ending(NamedTuple):
    """An ending of names. `pattern` matches a whole name: its group `rest` is the name without the ending, and its group `market`, if it
    has one, a word for the market that the ending says."""

    pattern: re.Pattern[str]
    market: str | None = None
    problem: str = ""


def _ending(pattern: str, market: str | None = None, problem: str = "") -> _Ending:
    return _Ending(re.compile(pattern, re.IGNORECASE), market, problem)


_ENDINGS: Final = (
    # BTCUSDT:linear, BTC-USDT-SWAP, BTCUSDT_PERP, "BTCUSDT spot". Without (?a:) letters such as a dotless i would match too.
    _ending(rf"(?P<rest>.+?)[:\-_/. ]\s*(?P<market>(?a:{'|'.join(map(re.escape, MARKET_WORDS))}))"),
    # BTCUSDT.P on TradingView, and BTCUSDTPERP on its older pages
    _ending(r"(?P<rest>.+)\.P", "linear"),
    _ending(r"(?P<rest>.+)PERP", "linear"),
    # BTCUSDT_270326, BTC-26MAR27, BTC/USDT:USDT-270326, and options such as BTC-26MAR27-90000-C
    _ending(r"(?P<rest>.+?)[-_](?:[0-9]{6}|[0-9]{1,2}[A-Z]{3}[0-9]{2})(?:-[0-9.]+-[CP])?(?:-[A-Z]+)?", "linear", _EXPIRES),
    # BTC/USDT:USDT in ccxt: settled in the quote asset. BTC/USD:BTC: settled in the base asset.
    _ending(r"(?P<rest>.+(?P<quote>[^\W_]{2,})):\s*(?P=quote)", "linear"),
    _ending(r"(?P<rest>(?P<base>[^\W_]{2,}).+):\s*(?P=base)", problem=_INVERSE),
)


def never(symbol: str) -> bool:
    """No symbol is known."""
    return False


def read_name(text: str, is_symbol: Callable[[str], bool] = never) -> InstrumentName:
    """What a name says.

    `is_symbol` is True for symbols, in upper case and without separators, that are known: such a symbol is not searched for endings, as
    Bybit has a symbol BTCPERP of its own.
    """
    if len(text) > _MAX_CHARS:
        return InstrumentName("")
    exchange, rest = _prefix(text, {name: name for name in exchange_names()})
    market, rest = _prefix(rest, MARKET_WORDS)
    markets, problems = {market} if market else set[str](), list[str]()
    while not (is_symbol(plain(rest)) and not {":", "."}.intersection(rest)):
        found = _without_ending(rest)
        if found is None:
            break
        rest, says, problem = found
        markets |= {says} if says else set()
        problems += [problem] if problem else []
    if ":" in rest:
        *places, _ = rest.split(":")
        rest = max(rest.split(":"), key=len)
        if all(place.strip().lower() in (*exchange_names(), *MARKET_WORDS) for place in places):
            problems.append("it names more than one exchange or market")
        else:
            problems.append(f"a part of it is neither an exchange ({', '.join(exchange_names())}) nor a market ({', '.join(MARKETS)})")
    if len(markets) > 1:
        problems.append(f"it says {' and '.join(sorted(markets))} at once")
    return InstrumentName(plain(rest), exchange, next(iter(sorted(markets)), None), problems[0] if problems else "")


def _prefix(text: str, words: Mapping[str, str]) -> tuple[str | None, str]:
    """What the text before the first colon says, and the rest; the whole text if it is none of the `words`."""
    head, colon, rest = text.strip().partition(":")
    word = head.strip().lower()
    return (words.get(word), rest.strip()) if colon and word in (*words, _ALL) else (None, text.strip())


def _without_ending(text: str) -> tuple[str, str | None, str] | None:
    """The text without its ending, the market that the ending says, and its problem. None for a text without a known ending."""
    for ending in _ENDINGS:
        found = ending.pattern.fullmatch(text)
        if found is not None:
            said = found.groupdict().get("market")
            return found["rest"].strip(_SEPARATORS), MARKET_WORDS[said.lower()] if said else ending.market, ending.problem
    return None
