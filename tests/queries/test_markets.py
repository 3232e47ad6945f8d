from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.market import BYBIT, NOON, SPOT, listing
from tests.queries.world import Held, World, made, rows_of
from wadm_mcp.coverage.spans import Basis, GapReason, Span, SpanReason
from wadm_mcp.health import Health, State
from wadm_mcp.model import DAY, HOUR, MINUTE, UNLISTED, Listing
from wadm_mcp.queries.markets import COLUMNS, markets
from wadm_mcp.tape import Importing, Repairing

pytestmark = pytest.mark.anyio


async def test_every_followed_instrument_has_a_row() -> None:
    world = World(now=NOON)
    world.tape[SPOT].start_recording(
        Held(
            [
                Span(NOON - 30 * HOUR, NOON - 12 * HOUR, 1, 9, Basis.EXACT),
                Span(NOON - 6 * HOUR, NOON, 12, 20, Basis.EXACT, SpanReason.LIVE, GapReason.DISCONNECT),
            ]
        )
    )
    await world.store.write([], [(SPOT, Span(NOON - 9 * DAY, NOON - 8 * DAY, 0, 0, Basis.EXACT))])
    world.add([made(1, NOON - MINUTE, 6_183_763)])
    health = Health(world.clock.now)
    health.report("binance:spot:BTCUSDT", State.OK)
    answer = await markets(world.view, health)
    assert list(answer) == ["store", "markets", "reading"]
    assert answer["store"] == "ok"
    assert answer["markets"]["columns"] == list(COLUMNS)
    assert COLUMNS[:7] == ("exchange", "market", "symbol", "status", "last_price", "last_trade_at", "lag_ms")
    assert COLUMNS[7:] == ("coverage_24h", "open_gaps", "history_from", "repairing", "importing", "tick")
    assert answer["markets"]["rows"] == [
        ["binance", "spot", "BTCUSDT", "live", 61837.63, "2026-06-01T11:59:00Z", 60_000, 0.75, 1, "2026-05-23T12:00:00Z", None, None, 0.01],
        ["bybit", "spot", "BTCUSDT", "starting", None, None, None, 0, 1, None, None, None, 0.01],
    ]


async def test_rows_come_in_the_order_of_the_settings_whichever_exchange_answered_first() -> None:
    world = World(listing(BYBIT), listing(SPOT), now=NOON)
    rows = rows_of((await markets(world.view, Health(world.clock.now)))["markets"])
    assert [row["exchange"] for row in rows] == ["binance", "bybit"]


async def test_a_running_repair_shows_what_is_missing_and_how_long_it_takes() -> None:
    world = World(now=NOON)
    world.tape[SPOT].report_repair(Repairing(1_200, 0, 3.4))
    world.tape[BYBIT].report_repair(Repairing(0, 0, 1.0))
    rows = rows_of((await markets(world.view, Health(world.clock.now)))["markets"])
    assert [row["repairing"] for row in rows] == [[1_200, 3], [None, 1]]


async def test_a_running_import_shows_how_far_it_is_and_how_long_it_takes() -> None:
    world = World(now=NOON)
    world.tape[SPOT].report_import(Importing(NOON - DAY, NOON - HOUR, 50_000, 41.6))
    rows = rows_of((await markets(world.view, Health(world.clock.now)))["markets"])
    assert [row["importing"] for row in rows] == [["2026-05-31T12:00:00Z", "2026-06-01T11:00:00Z", 50_000, 42], None]
    world.tape[SPOT].report_import(Importing(NOON - DAY, NOON - HOUR))
    rows = rows_of((await markets(world.view, Health(world.clock.now)))["markets"])
    assert rows[0]["importing"] == ["2026-05-31T12:00:00Z", "2026-06-01T11:00:00Z", None, None]


async def test_an_instrument_whose_exchange_never_answered_has_a_row_all_the_same() -> None:
    world = World(listing(SPOT), now=NOON)
    world.tape.add_awaited([BYBIT])
    rows = rows_of((await markets(world.view, Health(world.clock.now)))["markets"])
    assert [(row["exchange"], row["status"], row["coverage_24h"]) for row in rows] == [("binance", "starting", 0), ("bybit", "starting", 0)]


@pytest.mark.parametrize(
    ("state", "status"),
    [(State.OK, "live"), (State.STANDBY, "standby"), (State.DOWN, "down"), (State.STARTING, "starting")],
)
async def test_the_status_is_what_the_instrument_last_reported(state: State, status: str) -> None:
    world = World(listing(BYBIT), now=NOON)
    health = Health(world.clock.now)
    health.report(str(BYBIT), state)
    assert [row["status"] for row in rows_of((await markets(world.view, health))["markets"])] == [status]


@pytest.mark.parametrize(
    ("state", "word", "status"),
    [
        (State.STANDBY, "BREAK", "halted"),
        (State.DOWN, "Delivering", "halted"),
        (State.STANDBY, UNLISTED, "unlisted"),
        # It trades although the list of the last hour says otherwise.
        (State.OK, "BREAK", "live"),
    ],
)
async def test_an_instrument_that_does_not_trade_is_told_with_the_exchanges_word(state: State, word: str, status: str) -> None:
    world = World(replace(listing(BYBIT), trading=False, status=word), now=NOON)
    health = Health(world.clock.now)
    health.report(str(BYBIT), state)
    answer = await markets(world.view, health)
    assert [row["status"] for row in rows_of(answer["markets"])] == [status]
    said = word if word == UNLISTED else f"'{word}'"
    assert (f"Not trading: bybit:spot:BTCUSDT ({said})." in answer["reading"]) == (status != "live")


async def test_an_instrument_that_its_exchange_has_not_confirmed_is_unverified_until_it_trades() -> None:
    world = World(Listing.unconfirmed(BYBIT), now=NOON)
    health = Health(world.clock.now)
    health.report(str(BYBIT), State.DOWN)
    answer = await markets(world.view, health)
    assert [(row["status"], row["tick"]) for row in rows_of(answer["markets"])] == [("unverified", None)]
    assert answer["provisional"] == ["bybit:spot:BTCUSDT"]
    world.add([made(3, NOON - HOUR, instrument=BYBIT)])
    health.report(str(BYBIT), State.OK)
    (row,) = rows_of((await markets(world.view, health))["markets"])
    assert (row["status"], row["tick"]) == ("live", None)


async def test_a_standby_shows_the_newest_trade_of_the_store() -> None:
    world = World(listing(BYBIT), now=NOON).add([made(3, NOON - HOUR, instrument=BYBIT)], durable_until=NOON)
    world.tape[BYBIT].newest = None
    (row,) = rows_of((await markets(world.view, Health(world.clock.now)))["markets"])
    assert (row["last_price"], row["lag_ms"]) == (60_000, HOUR)


async def test_without_its_store_the_table_says_that_it_shows_only_the_live_tape() -> None:
    world = World(now=NOON)
    world.tape[SPOT].start_recording(Held([Span(NOON - 30 * HOUR, NOON, 1, 9, Basis.EXACT)]))
    world.tape[SPOT].settled_until = NOON - 6 * HOUR
    world.view.without_store = True
    answer = await markets(world.view, Health(world.clock.now))
    assert answer["store"] == "unreachable"
    assert [row["coverage_24h"] for row in rows_of(answer["markets"])] == [0.25, 0]


async def test_nothing_followed_is_an_empty_table() -> None:
    world = World(now=NOON)
    world.tape.keep_only([])
    assert (await markets(world.view, Health(world.clock.now)))["markets"]["rows"] == []
