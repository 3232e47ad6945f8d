"""Near matches: the names that a mistyped one may mean."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from wadm_mcp.model import MAX_SYMBOL_CHARS, is_symbol_letter


def nearest(symbol: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of the `known` symbols that are nearest to `symbol`, the best match first.

    Symbols that start with the given text come first (`BTC` finds `BTCUSDT`), those quoted in USDT and shorter ones before others; then
    symbols of similar spelling (`ETHUSDX` finds `ETHUSDT`). Case and separators (`btc/usdt`) are ignored.
    """
    wanted = plain(symbol[:MAX_SYMBOL_CHARS])
    if not wanted or count < 1:
        return []
    names = {plain(name): name for name in sorted(set(known), reverse=True)}
    ranked = sorted(names, key=lambda name: (name != wanted, not name.endswith("USDT"), len(name), name))
    prefixed = [name for name in ranked if name.startswith(wanted)]
    similar = get_close_matches(wanted, ranked, count) if len(prefixed) < count else []
    return [names[name] for name in dict.fromkeys([*prefixed, *similar])][:count]


def plain(name: str) -> str:
    """A symbol in upper case and without separators: `btc/usdt` becomes `BTCUSDT`."""
    return "".join(letter for letter in name.upper() if is_symbol_letter(letter))
