"""The list of followed instruments, each with the state of its tape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from wadm_mcp.coverage.judge import judge
from wadm_mcp.health import Health, State, not_trading
from wadm_mcp.model import DAY, MINUTE, UNLISTED, Listing, Timeframe, Window
from wadm_mcp.queries.arguments import Call, read_detail, read_whole
from wadm_mcp.queries.coverage import ratio
from wadm_mcp.queries.figures import table
from wadm_mcp.queries.numbers import decimal_number, iso, number
from wadm_mcp.queries.scope import provisional
from wadm_mcp.queries.view import View
from wadm_mcp.tape import Importing
from wadm_mcp.texts import quoted

COLUMNS: Final = (
    "exchange",
    "market",
    "symbol",
    "status",
    "last_price",
    "last_trade_at",
    "lag_ms",
    "coverage_24h",
    "open_gaps",
    "history_from",
    "repairing",
    "importing",
    "tick",
)

MAX_ROWS: Final = 1_000
_NAMED: Final = 5
"""Instruments that do not trade which the reading names."""

BRIEF: Final = ("exchange", "market", "symbol", "status", "last_price", "coverage_24h")

_STATUS: Final = {State.OK: "live"}
"""Names of a state in answers that differ from those in `/health`."""
_UNVERIFIED: Final = "unverified"


async def markets(view: View, health: Health, *, limit: object = 100, detail: object = "standard") -> dict[str, Any]:
    """A row for each followed instrument, in the order of the settings' exchanges and markets.

    `status` is `live`, `starting`, `standby` (another process records), `down`, `halted` (listed and not traded), `unlisted` (not listed
    any more; `reading` has the exchange's own word for these two), or `unverified`: its exchange has not confirmed that it lists the
    symbol, and no trade has come in.

    `open_gaps` is the number of gaps in the last 24 hours, `history_from` the start of the oldest coverage. `repairing` is
    `[missing_trades, seconds]` of a running repair, null without one; `missing_trades` is null if the trade ids are not gapless.
    `importing` is `[from, reached, trades_per_s, seconds]` of a running import of older trades, null without one; its speed and the seconds
    left are null until a part was imported that says something about them. The detail `brief` has
    fewer columns. `tick` is null and `provisional` names the instrument until the exchange has confirmed it. While `store` is
    `unreachable` the rows contain only what the live tape knows.
    """
    call = Call("list_markets")
    max_rows, chosen_detail = read_whole(call, "limit", limit, 1, MAX_ROWS, 100), read_detail(call, detail)
    listings = sorted(
        view.listings, key=lambda each: (_place(each.instrument[0], view.exchanges), _place(each.instrument[1], view.markets))
    )
    rows = [await _row(view, health, listing) for listing in listings]
    idle = [listing for listing, row in zip(listings, rows, strict=True) if row[3] in (State.HALTED, State.UNLISTED)]
    rows += [[*instrument, "starting", None, None, None, 0, 1, None, None, None, None] for instrument in view.awaited]
    rows.sort(key=lambda row: (_place(row[0], view.exchanges), _place(row[1], view.markets)))
    omitted = max(0, len(rows) - max_rows)
    columns = BRIEF if chosen_detail == "brief" else None
    listed = table(COLUMNS, rows[:max_rows], only=columns) | ({"omitted": omitted} if omitted else {})
    live = sum(row[3] == "live" for row in rows)
    complete = sum(row[7] == 1 for row in rows)
    reading = f"{live} of {len(rows)} instruments are live; {complete} have full coverage for the last 24 h."
    if idle:
        more = f" and {len(idle) - _NAMED} more" if len(idle) > _NAMED else ""
        named = ", ".join(f"{each.instrument} ({_word(each)})" for each in idle[:_NAMED])
        reading += f" Not trading: {named}{more}."
    answer = {"store": "unreachable" if view.without_store else "ok", "markets": listed, **provisional(listings)}
    return {**answer, "reading": reading}


def _place(name: str, order: Sequence[str]) -> int:
    """The place of a name in the order of the settings; names that the settings do not have come last."""
    return order.index(name) if name in order else len(order)


def _status(view: View, health: Health, listing: Listing) -> str:
    """The state of an instrument. While trades come in, a list that says otherwise is out of date."""
    if view.unverified(listing.instrument):
        return _UNVERIFIED
    report = health.parts.get(str(listing.instrument))
    state = report.state if report is not None else State.STARTING
    if not listing.trading and state is not State.OK:
        state, _ = not_trading(listing)
    return _STATUS.get(state, state.value)


async def _row(view: View, health: Health, listing: Listing) -> list[Any]:
    instrument, now = listing.instrument, view.clock()
    # As every open window it ends after now, so that trades which are still in transit do not count as missing.
    day = Window(now - DAY, now - now % MINUTE + MINUTE)
    alive_until = view.alive_until(instrument)
    spans = await view.spans(instrument, day)
    expired = (await view.expired(instrument)).of_bars(day, Timeframe.M1)
    judgement = judge(spans, day, now, alive_until, expired, revising=await view.being_revised(instrument, day))
    # The store also returns the next span after the window. After a window before all recording this is the oldest span.
    oldest = min((span.start for span in await view.spans(instrument, Window(0, 1))), default=None)
    newest = view.newest(instrument)
    if newest is None:
        newest = next(iter(await view.trades(instrument, Window(0, now + MINUTE), limit=1, newest=True)), None)
    repairing, importing = view.repairing(instrument), view.importing(instrument)
    return [
        *instrument,
        _status(view, health, listing),
        number(newest.price, newest.scale.price) if newest is not None else None,
        iso(newest.timestamp) if newest is not None else None,
        max(0, now - newest.timestamp) if newest is not None else None,
        ratio(judgement),
        len(judgement.gaps),
        iso(oldest) if oldest is not None else None,
        [repairing.trades or None, round(repairing.seconds)] if repairing is not None else None,
        _importing(importing) if importing is not None else None,
        decimal_number(listing.tick),
    ]


def _importing(progress: Importing) -> list[Any]:
    seconds = round(progress.seconds) if progress.seconds is not None else None
    return [iso(progress.target), iso(progress.reached), progress.rate, seconds]


def _word(listing: Listing) -> str:
    """The status of an instrument that does not trade: the exchange's word in quotes, or our own."""
    return listing.status if listing.status == UNLISTED else quoted(listing.status) if listing.status else "no status"
