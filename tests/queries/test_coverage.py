from __future__ import annotations

import pytest

from tests.market import BYBIT, NOON, SPOT, listing
from tests.queries.world import Held, World, made
from wadm_mcp.coverage.judge import Gap, judge
from wadm_mcp.coverage.spans import Basis, GapReason, Span
from wadm_mcp.model import DAY, HOUR, MINUTE, Retention, Window
from wadm_mcp.queries.coverage import MAX_LISTED_GAPS, coverage, ratio
from wadm_mcp.queries.scope import ask, read_scope
from wadm_mcp.tape import Importing

anyio_test = pytest.mark.anyio


def test_full_coverage_is_the_integer_one_and_none_is_the_integer_zero() -> None:
    full, empty = judge([Span(0, 60, -1, -1, Basis.OBSERVED)], Window(10, 20), 30), judge([], Window(10, 20), 30)
    assert (ratio(full), full.basis, full.gaps) == (1, Basis.OBSERVED, ())
    assert isinstance(ratio(full), int)
    assert (ratio(empty), empty.basis, empty.gaps) == (0, None, (Gap(10, 20, None, GapReason.NOT_RECORDED),))
    assert isinstance(ratio(empty), int)


def test_a_third_is_truncated_to_six_decimals() -> None:
    assert ratio(judge([Span(0, 2, -1, -1, Basis.OBSERVED)], Window(0, 3), 3)) == 0.666666


_RETENTION = Retention(HOUR, DAY, 10 * DAY)


@anyio_test
async def test_a_merged_answer_has_the_values_of_the_worst_part() -> None:
    world = World(now=NOON)
    world.cover(SPOT, NOON - 2 * HOUR, NOON).cover(BYBIT, NOON - HOUR // 2, NOON)
    world.add([made(1, NOON - 5), made(2, NOON - 700, instrument=BYBIT)])
    answer = await coverage(world.view, read_scope(world.view, ask(world.view, "q"), symbol="BTCUSDT"))
    assert list(answer) == ["ratio", "basis", "gaps", "newest_trade_at", "lag_ms", "broken", "worst", "parts"]
    assert {name: part["ratio"] for name, part in answer["parts"].items()} == {"binance": 1, "bybit": 0.5}
    assert answer["worst"] == "bybit"
    assert {**answer["parts"]["bybit"], "broken": [], "worst": "bybit", "parts": answer["parts"]} == answer
    assert answer["lag_ms"] == 700
    assert answer["gaps"] == [["2026-06-01T11:00:00Z", "2026-06-01T11:30:00Z", None, "not_recorded"]]


@anyio_test
async def test_a_window_with_a_running_import_states_its_progress_and_remaining_seconds() -> None:
    world = World(listing(SPOT), now=NOON).cover(SPOT, NOON - HOUR, NOON)
    world.tape[SPOT].report_import(Importing(NOON - DAY, NOON - HOUR, 50_000, 41.6))
    call = ask(world.view, "q")
    answer = await coverage(world.view, read_scope(world.view, call, symbol="BTCUSDT", exchange="binance", window="4h"))
    assert answer["importing"] == {"from": "2026-05-31T12:00:00Z", "reached": "2026-06-01T11:00:00Z", "seconds": 42}
    assert answer["gaps"] == [["2026-06-01T08:00:00Z", "2026-06-01T11:00:00Z", None, "importing"]]
    world.tape[SPOT].report_import(Importing(NOON - DAY, NOON - HOUR))
    answer = await coverage(world.view, read_scope(world.view, call, symbol="BTCUSDT", exchange="binance", window="4h"))
    assert answer["importing"] == {"from": "2026-05-31T12:00:00Z", "reached": "2026-06-01T11:00:00Z"}
    for window in ("1h", "15m"):
        answer = await coverage(world.view, read_scope(world.view, call, symbol="BTCUSDT", exchange="binance", window=window))
        assert "importing" not in answer
        assert answer["gaps"] == []


@anyio_test
async def test_the_worst_of_equally_covered_parts_is_the_one_that_lags_most() -> None:
    world = World(now=NOON)
    world.cover(SPOT, NOON - 2 * HOUR, NOON).cover(BYBIT, NOON - 2 * HOUR, NOON)
    world.add([made(1, NOON - 5_000), made(2, NOON - 700, instrument=BYBIT)])
    scope = read_scope(world.view, ask(world.view, "q"), symbol="BTCUSDT")
    assert (await coverage(world.view, scope))["lag_ms"] == 5_000
    world.tape[BYBIT].newest = None
    world.tape[BYBIT].pending.clear()
    assert (await coverage(world.view, scope))["lag_ms"] is None


@anyio_test
async def test_the_newest_trade_comes_from_the_store_when_memory_is_empty_and_as_of_hides_later_ones() -> None:
    world = World(listing(SPOT), now=NOON).cover(SPOT, 0, NOON)
    world.add([made(1, NOON - 2 * HOUR - 1), made(2, NOON - HOUR)], durable_until=NOON)
    call = ask(world.view, "q")
    for newest in (world.tape[SPOT].newest, None):
        world.tape[SPOT].newest = newest
        answer = await coverage(world.view, read_scope(world.view, call, symbol="BTCUSDT", exchange="binance"))
        assert (answer["newest_trade_at"], answer["lag_ms"]) == ("2026-06-01T11:00:00Z", HOUR)
        then = await coverage(world.view, read_scope(world.view, call, symbol="BTCUSDT", exchange="binance", as_of=NOON - HOUR))
        assert (then["newest_trade_at"], then["lag_ms"]) == ("2026-06-01T09:59:59.999Z", HOUR + 1)


@anyio_test
async def test_only_the_newest_of_many_gaps_are_listed_and_the_others_are_counted() -> None:
    world = World(listing(SPOT), now=NOON)
    spans = [Span(NOON - (index + 1) * MINUTE, NOON - index * MINUTE - 1_000, -1, -1, Basis.OBSERVED) for index in reversed(range(60))]
    world.tape[SPOT].start_recording(Held(spans))
    answer = await coverage(world.view, read_scope(world.view, ask(world.view, "q"), symbol="BTCUSDT", exchange="binance"))
    assert list(answer)[2:4] == ["gaps", "more_gaps"]
    assert (len(answer["gaps"]), answer["more_gaps"]) == (MAX_LISTED_GAPS, 60 - MAX_LISTED_GAPS)
    assert answer["gaps"][-1] == ["2026-06-01T11:59:59Z", "2026-06-01T12:00:00Z", None, "not_recorded"]
