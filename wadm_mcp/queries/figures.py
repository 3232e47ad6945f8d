"""What the questions about volume have in common: ticks and rows of the instruments asked about, and the merge over exchanges."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from math import lcm
from typing import Any, Final, NamedTuple

from anyio import to_thread

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.errors import QueryError
from wadm_mcp.model import Listing, Timeframe, Window, at_decimals, to_decimal
from wadm_mcp.queries.arguments import Call, read_amount
from wadm_mcp.queries.numbers import decimal_text, places
from wadm_mcp.queries.scope import Scope
from wadm_mcp.queries.view import View

ON_LOOP: Final = 5_000
"""Prices that are worked through on the event loop; more go to a worker thread."""


class Ticks(NamedTuple):
    """The price steps of an answer over several instruments: rows are multiples of `common`, the top tick of a row is by `finest`."""

    finest: Decimal
    common: Decimal

    @classmethod
    def of(cls, listings: Sequence[Listing]) -> Ticks:
        """The finest tick, and the smallest step that is a whole multiple of every tick."""
        decimals = max(places(listing.tick) for listing in listings)
        ticks = [at_decimals(listing.tick, decimals) for listing in listings]
        return cls(to_decimal(min(ticks), decimals), to_decimal(lcm(*ticks), decimals))


def read_row_size(call: Call, given: object, ticks: Ticks) -> Decimal | None:
    """A row size that every instrument of the answer allows, None for nothing. Errors name the tick and the nearest legal sizes."""
    step = ticks.common
    row_size = read_amount(call, "row_size", given, zero=False, example=step)
    if row_size is None:
        return None
    decimals = max(places(row_size), places(step))
    size, unit = at_decimals(row_size, decimals), at_decimals(step, decimals)
    if size % unit:
        near = [to_decimal(count * unit, decimals) for count in (size // unit, size // unit + 1) if count]
        raise refuse_row_size(call, given, f"it must be a whole multiple of the tick {decimal_text(step)}", near)
    return row_size


def refuse_row_size(call: Call, given: object, why: str, instead: Sequence[Decimal]) -> QueryError:
    """The error for a row size that cannot be used, with those that can."""
    sizes = " or ".join(map(decimal_text, instead))
    return call.refuse("row_size", given, f"{why}; {sizes} would do", row_size=instead[-1])


async def merged_footprint(view: View, scope: Scope, window: Window, row: Decimal | None = None) -> Footprint:
    """Everything traded in a window on all instruments of a scope; with `row` its cells may be rows of that size."""
    merged: Footprint | None = None
    for instrument in scope.instruments:
        footprint = await view.footprint(instrument, window, row)
        if merged is None:
            merged = footprint
        elif merged.levels + footprint.levels <= ON_LOOP:
            merged.take_beside(footprint)
        else:
            await to_thread.run_sync(merged.take_beside, footprint)
    assert merged is not None
    return merged


async def merged_bars(view: View, scope: Scope, timeframe: Timeframe, window: Window) -> dict[int, Bar]:
    """The bars of all instruments beside each other, by start; those without trades are left out."""
    if not window.length:
        return {}
    merged: dict[int, Bar] = {}
    for instrument in scope.instruments:
        for start, bar in (await view.bars(instrument, timeframe, window)).items():
            merged[start] = merged[start].beside(bar) if start in merged else bar
    if len(scope.instruments) > 1:
        for start, bar in merged.items():
            merged[start] = bar.rescaled(bar.scale)
            merged[start].min_delta = merged[start].max_delta = None
    return merged


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, only: Sequence[str] | None = None, newest: int | None = None
) -> dict[str, Any]:
    """A table as answers tell it: the names once, then the rows. `only` some of the columns, only the `newest` rows, with how many were
    `omitted`."""
    told = [list(row) for row in (rows if newest is None else rows[max(0, len(rows) - newest) :])]
    if only is not None:
        places = [columns.index(name) for name in only]
        told = [[row[place] for place in places] for row in told]
    omitted = len(rows) - len(told)
    return {"columns": list(only or columns), "rows": told, **({"omitted": omitted} if omitted else {})}
