"""Near matches: the names a reader may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST = 40


def nearest(symbol: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of the `known` symbols that come nearest to `symbol`, the likeliest first.

    Symbols that begin with what was given come first (`BTC` finds `BTCUSDT`), the USDT quote before others and shorter before longer,
    then those that look alike (`ETHUSDX` finds `ETHUSDT`). Case and separators (`btc/usdt`) do not matter.
    """
    meant = plain(symbol[:_LONGEST])
    if not meant or count < 1:
        return []
    names = {plain(name): name for name in sorted(set(known), reverse=True)}
    likeliest = sorted(names, key=lambda name: (name != meant, not name.endswith("USDT"), len(name), name))
    begin = [name for name in likeliest if name.startswith(meant)]
    alike = get_close_matches(meant, likeliest, count) if len(begin) < count else []
    return [names[name] for name in dict.fromkeys([*begin, *alike])][:count]


def plain(name: str) -> str:
    """A symbol without what people write between its assets: `btc/usdt` is `BTCUSDT`."""
    return "".join(letter for letter in name.upper() if letter.isalnum())
