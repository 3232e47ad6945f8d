"""What the questions about volume share: price steps and row sizes, merges over exchanges, and tables."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import lcm
from typing import Any, Final, NamedTuple

from anyio import to_thread

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.volume_profile import MAX_ROWS, default_row, row_count, smallest_row
from wadm_mcp.errors import QueryError
from wadm_mcp.model import Listing, Timeframe, Window, at_decimals, decimals_of, to_decimal
from wadm_mcp.queries.arguments import Call, read_amount
from wadm_mcp.queries.numbers import decimal_text, places
from wadm_mcp.queries.scope import Scope
from wadm_mcp.queries.view import View

MAX_PRICES_ON_LOOP: Final = 5_000
"""Prices that are processed on the event loop; more go to a worker thread."""


class Ticks(NamedTuple):
    """The price steps of an answer about several instruments. Rows are multiples of `common`; the top tick of a row uses `finest`.

    Both are None where no tick is known, `finest` also where one of several is not. The finest step of the prices takes their place.
    """

    finest: Decimal | None
    common: Decimal | None

    @classmethod
    def of(cls, listings: Sequence[Listing]) -> Ticks:
        """The finest tick, and the smallest step that is a whole multiple of every tick that is known."""
        known = [listing.tick for listing in listings if listing.tick is not None]
        if not known:
            return cls(None, None)
        decimals = max(places(tick) for tick in known)
        ticks = [at_decimals(tick, decimals) for tick in known]
        finest = to_decimal(min(ticks), decimals) if len(known) == len(listings) else None
        return cls(finest, to_decimal(lcm(*ticks), decimals))


@dataclass(frozen=True, slots=True)
class RowChoice:
    """The row size of an answer: `asked` (in price units) if the caller gave one, else a default that depends on the price range.

    Rows are integers at a number of price decimals, usually those of the bar that the range comes from.
    """

    call: Call
    given: object
    asked: Decimal | None
    ticks: Ticks

    @classmethod
    def read(cls, call: Call, given: object, listings: Sequence[Listing]) -> RowChoice:
        """Reads the argument `row_size`, which must suit every instrument of the answer. The error names the tick and the nearest sizes."""
        ticks = Ticks.of(listings)
        step = ticks.common
        row_size = read_amount(call, "row_size", given, zero=False, example=step or Decimal(1))
        choice = cls(call, given, row_size, ticks)
        if row_size is None or step is None:
            return choice
        decimals = max(places(row_size), places(step))
        size, unit = at_decimals(row_size, decimals), at_decimals(step, decimals)
        if size % unit:
            near = [to_decimal(count * unit, decimals) for count in (size // unit, size // unit + 1) if count]
            raise choice.refuse(f"it must be a whole multiple of the tick {decimal_text(step)}", *near)
        return choice

    def tick(self, decimals: int) -> int:
        """The finest tick of the answer; while one is unknown the finest step of prices with so many decimals."""
        return 1 if self.ticks.finest is None else at_decimals(self.ticks.finest, decimals)

    def row(self, low: int, high: int, decimals: int) -> int:
        """The row for a price range: the one that was asked for, or the default. `QueryError` if prices have no step as fine as it."""
        if self.asked is None:
            return default_row(low, high, self.common(decimals))
        if decimals_of(self.asked) > decimals:
            raise self.refuse(f"its tick is not known yet and its prices have {decimals} decimals", to_decimal(1, decimals))
        return at_decimals(self.asked, decimals)

    def row_within_limit(self, low: int, high: int, decimals: int, what: str) -> int:
        """As `row`. `QueryError` if it divides the range into more than `MAX_ROWS` rows; `what` names the range for the error."""
        row = self.row(low, high, decimals)
        rows = row_count(low, high, row)
        if rows > MAX_ROWS:
            smallest = to_decimal(smallest_row(low, high, self.common(decimals)), decimals)
            raise self.refuse(f"it divides {what} into {rows:,} rows, at most {MAX_ROWS:,} are allowed", smallest)
        return row

    def common(self, decimals: int) -> int:
        """The step that every row is a multiple of; while no tick is known the finest step of prices with so many decimals."""
        return 1 if self.ticks.common is None else at_decimals(self.ticks.common, decimals)

    def refuse(self, why: str, *instead: Decimal) -> QueryError:
        """The error for a row size that cannot be used, with sizes that can."""
        sizes = " or ".join(map(decimal_text, instead))
        return self.call.refuse("row_size", self.given, f"{why}; use {sizes}", row_size=instead[-1])


async def merged_footprint(view: View, scope: Scope, window: Window, row: Decimal | None = None) -> Footprint:
    """The trades of a window on all instruments of a scope as one footprint; with `row` (in price units) its cells are rows."""
    merged: Footprint | None = None
    for instrument in scope.instruments:
        footprint = await view.footprint(instrument, window, row)
        if merged is None:
            merged = footprint
        elif merged.levels + footprint.levels <= MAX_PRICES_ON_LOOP:
            merged.merge_parallel_in_place(footprint)
        else:
            await to_thread.run_sync(merged.merge_parallel_in_place, footprint)
    assert merged is not None
    return merged


async def footprint_in_rows(
    outline: Bar, row_of: Callable[[Bar], int | None], read: Callable[[Decimal | None], Awaitable[Footprint]]
) -> tuple[Footprint, int | None]:
    """A footprint in rows whose size depends on its own range, and that size at the footprint's scale.

    `row_of` returns the row for a bar at the bar's scale, None for an empty one. `read` reads the footprint in rows (in price units).
    `outline` is its bar as it was read before.
    """
    while True:
        row = row_of(outline)
        size = None if row is None else to_decimal(row, outline.scale.price)
        footprint = await read(size)
        row = row_of(footprint.bar)
        if size is None or row is None or to_decimal(row, footprint.scale.price) == size:
            return footprint, row
        # New trades widened the range since the outline was read, and with it the default row.
        outline = footprint.bar


async def merged_bars(view: View, scope: Scope, timeframe: Timeframe, window: Window) -> dict[int, Bar]:
    """The bars of a window by start, merged over all instruments of a scope. Bars without trades are left out."""
    if not window.length:
        return {}
    merged: dict[int, Bar] = {}
    for instrument in scope.instruments:
        for start, bar in (await view.bars(instrument, timeframe, window)).items():
            merged[start] = merged[start].merge_parallel(bar) if start in merged else bar
    if len(scope.instruments) > 1:
        for start, bar in merged.items():
            merged[start] = bar.rescaled(bar.scale)
            merged[start].min_delta = merged[start].max_delta = None
    return merged


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, only: Sequence[str] | None = None, newest: int | None = None
) -> dict[str, Any]:
    """A table of an answer: the column names once, then the rows.

    `only` selects columns. `newest` keeps that many rows from the end and reports the number of the others as `omitted`.
    """
    kept = [list(row) for row in (rows if newest is None else rows[max(0, len(rows) - newest) :])]
    if only is not None:
        indexes = [columns.index(name) for name in only]
        kept = [[row[index] for index in indexes] for row in kept]
    omitted = len(rows) - len(kept)
    return {"columns": list(only or columns), "rows": kept, **({"omitted": omitted} if omitted else {})}
