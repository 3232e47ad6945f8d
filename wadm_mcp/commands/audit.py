"""`wadm-mcp audit`: audits the store, also while another process records into it, and prints a table. It changes nothing."""

from __future__ import annotations

from typing import Final, NamedTuple

from wadm_mcp.audit import Audited, Auditor, ExchangeFigures, exchange_figures
from wadm_mcp.clock import now_ms
from wadm_mcp.collection.rest.client import RestClient
from wadm_mcp.errors import ExchangeError, QueryError, SettingError
from wadm_mcp.exchanges.registry import is_called
from wadm_mcp.model import HOUR, MINUTE, Listing, Timeframe, Window
from wadm_mcp.process.standard_streams import print_lines
from wadm_mcp.queries.arguments import Call, read_time
from wadm_mcp.queries.numbers import iso
from wadm_mcp.settings import Settings
from wadm_mcp.storage.opening import open_store

_HOURS: Final = 24
_MAX_LISTED: Final = 200
"""Differences that are printed; further ones are counted."""
_CALL: Final = Call("wadm-mcp audit", (("--from", "2026-06-01T00:00Z"), ("--to", "2026-06-02T00:00Z")))


class Choice(NamedTuple):
    """The instruments and the window that a command line selects. None selects everything, and the command's default window."""

    exchange: str | None = None
    market: str | None = None
    symbol: str | None = None
    start: str | None = None
    end: str | None = None


async def audit(settings: Settings, choice: Choice, suffix: str = "") -> int:
    """Audit, print the table, and return the exit status: 0 when all is equal, 1 on a difference or a failed comparison.

    `SettingError` for an invalid argument; errors of the store pass through.
    """
    now = now_ms()
    window = _window(choice, now)
    async with open_store(settings, suffix, read_only=True) as store, RestClient(proxied=not settings.stays_on_loopback) as rest:
        listings = [listing for listing in await store.listings() if listing.listed and _chosen(listing, choice)]
        if not listings:
            recorded = ", ".join(str(listing.instrument) for listing in await store.listings() if listing.listed) or "nothing yet"
            raise SettingError(f"no recorded instrument matches --exchange, --market and --symbol. Recorded: {recorded}")
        auditor = Auditor(store, settings.retention, lambda: now)
        found: list[Audited] = []
        failed: list[str] = []
        for listing in listings:
            venue = settings.venue(listing.instrument.exchange, listing.instrument.market)
            figures = None
            try:
                needed = await auditor.figures_window(listing.instrument, window)
                if needed is not None:
                    figures = await exchange_figures(rest, venue, listing, needed)
                    failed += _not_compared(listing, figures)
            except ExchangeError as error:
                failed.append(f"{listing.instrument} was not compared with its exchange: {error}")
            found.append(await auditor.audit(listing, window, figures))
    print_lines(_table(window, found, failed))
    return 1 if failed or any(each.differences for each in found) else 0


def _window(choice: Choice, now: int) -> Window:
    """The window to audit: whole minutes, all closed."""
    closed = Timeframe.H1.floor(now)
    try:
        start = read_time(_CALL, "--from", choice.start)
        end = read_time(_CALL, "--to", choice.end)
    except QueryError as error:
        raise SettingError(str(error)) from None
    end = min(closed if end is None else end, now)
    start = end - _HOURS * HOUR if start is None else start
    window = max(0, start - start % MINUTE), end - end % MINUTE
    if window[0] >= window[1]:
        raise SettingError(f"--from {choice.start or iso(start)} --to {choice.end or iso(end)}: the window has no whole minute before now")
    return Window(*window)


def _chosen(listing: Listing, choice: Choice) -> bool:
    exchange, market, _ = listing.instrument
    return (
        choice.exchange in (None, exchange)
        and choice.market in (None, market)
        and (choice.symbol is None or is_called(listing.instrument, choice.symbol.upper()))
    )


def _not_compared(listing: Listing, figures: ExchangeFigures) -> list[str]:
    """A line for the minutes of an instrument whose candles cannot be read; none if all can."""
    if not figures.unreadable:
        return []
    count, first = len(figures.unreadable), figures.unreadable[0]
    which = "" if first.seq is None else f", first {iso(first.seq)}"
    return [f"{listing.instrument}: {count:,} candles of its exchange cannot be read and were not compared{which}: {first.why}"]


def _table(window: Window, found: list[Audited], failed: list[str]) -> list[str]:
    width = max(len(str(each.instrument)) for each in found)
    lines = [f"{iso(window.start)} to {iso(window.end)}", ""]
    lines.append(f"{'instrument':<{width}}  {'minutes':>8}  {'covered':>8}  {'with trades':>11}  {'differences':>11}")
    for each in found:
        counts = f"{each.minutes:>8,}  {each.compared:>8,}  {each.recomputed:>11,}  {len(each.differences):>11,}"
        lines.append(f"{each.instrument!s:<{width}}  {counts}")
    differences = [difference for each in found for difference in each.differences]
    lines += ["", *(str(difference) for difference in differences[:_MAX_LISTED])] if differences else []
    if len(differences) > _MAX_LISTED:
        lines.append(f"and {len(differences) - _MAX_LISTED:,} more")
    lines += ["", *failed] if failed else []
    result = f"{len(differences):,} differences" if differences else "no differences"
    if failed and not differences:
        result += f", but {len(failed)} of {len(found)} instruments could not be fully compared with the exchange"
    return [*lines, "", result]
