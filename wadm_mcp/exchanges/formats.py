"""Recognises daily files of exchanges by their names."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import NamedTuple

from wadm_mcp.errors import ArchiveError
from wadm_mcp.exchanges.exchange import ArchiveFormat
from wadm_mcp.exchanges.registry import exchange_names, find_exchange
from wadm_mcp.texts import printable

_SHOWN_CHARS = 80


class Recognised(NamedTuple):
    """What a file's name says: its format, the exchange's symbol, and the day."""

    form: ArchiveFormat
    symbol: str
    day: date


def recognise(path: Path, exchange: str | None, market: str | None) -> Recognised:
    """Format, symbol and day of a file. For names that formats share, folder or `market` decides; `ArchiveError` if neither does."""
    forms = [form for name in exchange_names() for form in find_exchange(name).file_formats]
    found = [
        Recognised(form, *named)
        for form in forms
        if exchange in (None, form.exchange) and market in (None, form.market) and (named := form.named(path.name)) is not None
    ]
    if len(found) > 1:
        below = [one for one in found if one.form.folder in path.parts]
        found = below if len(below) == 1 else found
    if len(found) == 1:
        return found[0]
    name = printable(path.name, _SHOWN_CHARS)
    if found:
        markets = " and ".join(f"{one.form.exchange} {one.form.market}" for one in found)
        raise ArchiveError(f"{name}: daily files of {markets} have this name; say which with --exchange and --market")
    raise ArchiveError(f"{name}: unrecognised file name; expected the exchange's own, such as BTCUSDT-trades-2026-07-25.zip")
