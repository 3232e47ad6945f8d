"""Near matches: the names that a mistyped one may mean."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches
from typing import Final

from wadm_mcp.model import MAX_SYMBOL_CHARS, is_symbol_letter

_QUOTES: Final = ("USDT", "USDC", "FDUSD", "USD", "EUR", "BTC", "ETH")
"""Assets that many symbols are quoted in."""
_CUTOFF: Final = 0.6
"""How similar two names are at least, of 1: the cutoff of `difflib`."""


def nearest(symbol: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of the `known` symbols that are nearest to `symbol`, the best match first.

    Symbols that start with the given text come first (`BTC` finds `BTCUSDT`), those quoted in USDT and shorter ones before others; then
    symbols of similar spelling (`ETHUSDX` finds `ETHUSDT`). A quote that both have makes them no more similar (`TRXUSDT` does not find
    `BTCUSDT`). Case and separators (`btc/usdt`) are ignored.
    """
    wanted = plain(symbol[:MAX_SYMBOL_CHARS])
    if not wanted or count < 1:
        return []
    names = {plain(name): name for name in sorted(set(known), reverse=True)}
    ranked = sorted(names, key=lambda name: (name != wanted, not name.endswith("USDT"), len(name), name))
    prefixed = [name for name in ranked if name.startswith(wanted)]
    alike = get_close_matches(wanted, ranked, len(ranked), _CUTOFF) if len(prefixed) < count and ranked else []
    similar = [name for name in alike if _are_bases_alike(wanted, name)]
    return [names[name] for name in dict.fromkeys([*prefixed, *similar])][:count]


def _are_bases_alike(one: str, other: str) -> bool:
    """Whether two names are similar without the quote that they share; True for names that share none."""
    quote = next((quote for quote in _QUOTES if one.endswith(quote) and other.endswith(quote)), "")
    bases = one.removesuffix(quote), other.removesuffix(quote)
    return not all(bases) or SequenceMatcher(None, *bases).ratio() >= _CUTOFF


def plain(name: str) -> str:
    """A symbol in upper case and without separators: `btc/usdt` becomes `BTCUSDT`."""
    return "".join(letter for letter in name.upper() if is_symbol_letter(letter))
