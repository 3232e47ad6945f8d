"""Every kind of daily file that can be imported by hand, and which one a file is."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Final, NamedTuple

from wadm_mcp.errors import ArchiveError, printable
from wadm_mcp.exchanges.binance_archive import BinanceAggregates, BinanceSpotTrades
from wadm_mcp.exchanges.bybit_archive import BybitLinearTrades, BybitSpotTrades
from wadm_mcp.exchanges.exchange import ArchiveFormat

FORMATS: Final[tuple[ArchiveFormat, ...]] = (
    BinanceSpotTrades(),
    BinanceAggregates("spot"),
    BinanceAggregates("linear"),
    BybitLinearTrades(),
    BybitSpotTrades(),
)


class Recognised(NamedTuple):
    """A file by its name: place of its format in `FORMATS`, symbol and day."""

    form: int
    symbol: str
    day: date


def recognise(path: Path, exchange: str | None, market: str | None) -> Recognised:
    """What a file is, by its name and, where that leaves a choice, by the market; `ArchiveError` where it cannot be told."""
    found = [
        Recognised(place, *named)
        for place, form in enumerate(FORMATS)
        if exchange in (None, form.exchange) and market in (None, form.market) and (named := form.named(path.name)) is not None
    ]
    if len(found) > 1:
        # Both markets of Binance call their aggregates alike; as published they lie below their own folders.
        folders = {"spot": "spot", "linear": "um"}
        told = [one for one in found if folders[FORMATS[one.form].market] in path.parts]
        found = told if len(told) == 1 else found
    if len(found) == 1:
        return found[0]
    name = printable(path.name, 80)
    if found:
        raise ArchiveError(f"{name}: a file of spot and one of linear are called so; say which with --market")
    raise ArchiveError(f"{name}: no daily file is called so; give it under its exchange's own name, such as BTCUSDT-trades-2026-07-25.zip")
