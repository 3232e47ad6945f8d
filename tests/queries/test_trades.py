from __future__ import annotations

import base64
import random
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.market import BYBIT, NOON, SPOT
from tests.queries.world import World, exact, made, price_of, quantity_of, rows_of, whole_day
from wadm_mcp.errors import QueryError
from wadm_mcp.model import HOUR, MINUTE, SECOND, Retention, Trade
from wadm_mcp.queries import trades as module
from wadm_mcp.queries.trades import trades

pytestmark = pytest.mark.anyio


async def pages(world: World, most: int = 100, **arguments: object) -> list[dict[str, Any]]:
    """Every page of a question, following its cursors."""
    found: list[dict[str, Any]] = []
    cursor: object = None
    while len(found) < most:
        found.append(await trades(world.view, symbol="BTCUSDT", cursor=cursor, **arguments))
        cursor = found[-1]["next_cursor"]
        if cursor is None:
            return found
    raise AssertionError("the pages do not end")


def ids(answers: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["exchange"], row["trade_id"]) for answer in answers for row in rows_of(answer["trades"])]


def crowded(count: int, seed: int = 7) -> list[Trade]:
    """Trades of both exchanges, many in one millisecond, given in no order."""
    chance = random.Random(seed)
    tape = [
        made(
            seq,
            NOON - HOUR + chance.randrange(0, 30),
            chance.randrange(5_999_000, 6_001_000),
            chance.randrange(1, 500_000),
            chance.choice(("BUY", "SELL")),
            chance.choice((SPOT, BYBIT)),
        )
        for seq in range(count)
    ]
    chance.shuffle(tape)
    return tape


def in_merged_order(tape: list[Trade]) -> list[tuple[str, str]]:
    ordered = sorted(tape, key=lambda one: (one.timestamp, one.instrument.exchange, one.order))
    return [(one.instrument.exchange, one.trade_id) for one in ordered]


async def test_a_page_has_the_columns_of_the_contract_and_exact_figures() -> None:
    world = whole_day(World(now=NOON)).add([made(7, NOON - MINUTE + 7, 6_183_763, 12_345, "SELL")])
    answer = await trades(world.view, symbol="BTCUSDT", exchange="binance")
    assert list(answer) == ["coverage", "instrument", "window", "trades", "next_cursor", "reading"]
    assert answer["trades"] == {
        "columns": ["timestamp", "price", "quantity", "trade_type", "trade_id", "exchange"],
        "rows": [["2026-06-01T11:59:00.007Z", 61837.63, 0.12345, "SELL", "7", "binance"]],
    }
    assert answer["next_cursor"] is None


@given(st.integers(0, 60), st.integers(1, 25), st.integers(0, 2**32), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_pages_are_complete_without_repeats_in_merged_order(count: int, limit: int, seed: int, durable: int) -> None:
    tape = crowded(count, seed)
    world = whole_day(World(now=NOON)).add(tape, durable_until=NOON - HOUR + durable)

    async def asked() -> None:
        found = await pages(world, limit=limit)
        assert ids(found) == in_merged_order(tape)
        assert all(len(answer["trades"]["rows"]) == limit for answer in found[:-1])

    anyio.run(asked)


@given(st.integers(1, 9), st.integers(1, 40_000), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_pages_with_a_least_notional_hold_every_trade_that_is_large_enough(limit: int, least: int, batch: int) -> None:
    tape = crowded(80)
    world = whole_day(World(now=NOON)).add(tape)
    large = [one for one in tape if price_of(one) * quantity_of(one) >= least]

    async def asked() -> None:
        assert ids(await pages(world, limit=limit, min_notional=str(least))) == in_merged_order(large)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BATCH_TRADES", batch)
        patch.setattr(module, "MAX_SCANNED", 2 * batch)
        anyio.run(asked)


async def test_the_least_notional_is_compared_exactly() -> None:
    world = whole_day(World(now=NOON)).add([made(1, NOON - MINUTE, 6_000_000, 100_000), made(2, NOON - MINUTE + 1, 6_000_000, 99_999)])
    for least in (60_000, "60000", "6e4", 60_000.0):
        assert ids(await pages(world, min_notional=least)) == [("binance", "1")]
    assert ids(await pages(world, min_notional="60000.0000001")) == []
    assert ids(await pages(world, min_notional="59999.4")) == [("binance", "1"), ("binance", "2")]
    assert len(ids(await pages(world, min_notional=0))) == 2


async def test_one_call_looks_at_a_bounded_number_of_trades_and_goes_on_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SCANNED", 40)
    monkeypatch.setattr(module, "_BATCH_TRADES", 15)
    world = whole_day(World(now=NOON)).add([made(seq, NOON - HOUR + seq, quantity=100 if seq != 95 else 900) for seq in range(100)])
    found = await pages(world, exchange="binance", min_notional=500)
    assert [len(answer["trades"]["rows"]) for answer in found] == [0, 0, 1]
    assert ids(found) == [("binance", "95")]
    assert world.store.asked <= 3 * 4


async def test_the_pages_of_an_open_window_agree_although_time_goes_on() -> None:
    world = whole_day(World(now=NOON + 25 * SECOND)).add([made(seq, NOON - 2 * MINUTE + seq * SECOND) for seq in range(100)])
    first = await trades(world.view, symbol="BTCUSDT", window="15m", limit=60)
    world.clock.pass_minutes(10)
    world.add([made(500, NOON + 5 * MINUTE)])
    second = await trades(world.view, symbol="BTCUSDT", window="15m", limit=60, cursor=first["next_cursor"])
    assert second["window"]["start"] == first["window"]["start"]
    assert second["window"]["end"] == first["window"]["end"]
    assert (first["window"]["closed"], second["window"]["closed"]) == (False, True)
    assert [number for _, number in ids([first, second])] == [str(seq) for seq in range(100)]
    assert second["next_cursor"] is None


async def test_an_end_in_the_future_belongs_to_the_question_and_not_to_the_moment() -> None:
    world = whole_day(World(now=NOON)).add([made(seq, NOON - MINUTE + seq) for seq in range(3)])
    question = {"start": NOON - HOUR, "end": NOON + HOUR, "limit": 2}
    first = await trades(world.view, symbol="BTCUSDT", **question)
    world.clock.pass_minutes(10)
    assert ids([await trades(world.view, symbol="BTCUSDT", cursor=first["next_cursor"], **question)]) == [("binance", "2")]


@pytest.mark.parametrize(
    "other",
    [{"window": "4h"}, {"exchange": "binance"}, {"market": "spot", "as_of": NOON - MINUTE}, {"min_notional": 1}, {"start": NOON - HOUR}],
)
async def test_a_cursor_of_another_question_is_refused(other: dict[str, object]) -> None:
    world = whole_day(World(now=NOON)).add([made(seq, NOON - 2 * MINUTE + seq) for seq in range(5)])
    first = await trades(world.view, symbol="BTCUSDT", limit=2)
    with pytest.raises(QueryError, match=r"cursor=.* it belongs to another question; send it with the arguments of the previous page"):
        await trades(world.view, symbol="BTCUSDT", cursor=first["next_cursor"], **other)
    again = await trades(world.view, symbol="btcusdt", exchange="ALL", market="spot", window="1h", limit=2, cursor=first["next_cursor"])
    assert ids([again]) == [("binance", "2"), ("binance", "3")]


async def test_a_forged_cursor_is_refused() -> None:
    world = whole_day(World(now=NOON)).add([made(seq, NOON - 2 * MINUTE + seq) for seq in range(5)])
    cursor = (await trades(world.view, symbol="BTCUSDT", limit=2))["next_cursor"]
    content = msgspec.msgpack.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    changes: list[tuple[int, object]] = [
        (1, 0),
        (1, -1),
        (2, NOON + 2 * MINUTE),
        (2, 2**64 - 1),
        (3, 0),
        (3, 1.5),
        (4, None),
        (5, [1, 2]),
        (5, [NOON, 1, 2**63, "x"]),
        (5, [1, 1, 1, "x"]),
    ]
    for place, value in changes:
        forged = [*content[:place], value, *content[place + 1 :]]
        text = base64.urlsafe_b64encode(msgspec.msgpack.encode(forged)).decode()
        with pytest.raises(QueryError, match="cursor="):
            await trades(world.view, symbol="BTCUSDT", cursor=text)
    for length in range(len(cursor)):
        with pytest.raises(QueryError, match="cursor="):
            await trades(world.view, symbol="BTCUSDT", cursor=cursor[:length])


async def test_as_of_leaves_out_later_trades() -> None:
    world = whole_day(World(now=NOON)).add([made(1, NOON - HOUR - 1), made(2, NOON - HOUR)])
    assert ids(await pages(world, as_of=NOON - HOUR + 30 * SECOND)) == [("binance", "1")]


async def test_expired_raw_trades_are_a_gap() -> None:
    world = whole_day(World(now=NOON, lives=Retention(HOUR, 24 * HOUR, 48 * HOUR)))
    answer = await trades(world.view, symbol="BTCUSDT", exchange="binance", window="4h")
    assert answer["coverage"]["ratio"] == 0.25
    assert answer["coverage"]["gaps"] == [["2026-06-01T08:00:00Z", "2026-06-01T11:00:00Z", None, "expired"]]


async def test_an_empty_window_is_an_answer() -> None:
    answer = await trades(World(now=NOON).view, symbol="BTCUSDT")
    assert (answer["coverage"]["ratio"], answer["trades"]["rows"], answer["next_cursor"]) == (0, [], None)
    assert exact(answer["coverage"]["newest_trade_at"]) is None
