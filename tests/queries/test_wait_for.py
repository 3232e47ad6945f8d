from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.market import BYBIT, NOON, SPOT
from tests.queries.world import World, exact, made, one_line
from wadm_mcp.errors import QueryError
from wadm_mcp.model import MINUTE
from wadm_mcp.queries.wait_for import wait_for

pytestmark = pytest.mark.anyio

_PRICE = {"condition": "price_crosses", "value": "60010"}


class _Then:
    """What happens while a question waits: one step at each progress notification."""

    def __init__(self, *steps: Callable[[], Any]) -> None:
        self.steps = list(steps)
        self.words: list[str] = []

    async def __call__(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        self.words.append(message or "")
        if self.steps:
            self.steps.pop(0)()


def _world() -> World:
    world = World(now=NOON + 10_000).add([made(1, NOON), made(2, NOON + 5_000, quantity=300, side="SELL")])
    return world.cover(SPOT, NOON - 120 * MINUTE, NOON + 5_000, alive=NOON + 9_900).cover(BYBIT, NOON - 120 * MINUTE, NOON + 9_900)


async def _wait(world: World, then: _Then, **asked: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"symbol": "BTCUSDT", "exchange": "binance", "timeout": 5, **asked}
    return await wait_for(world.view, **given, progress=then)


def _later(world: World, seconds: float, *trades: Any) -> Callable[[], Any]:
    def step() -> None:
        world.clock.pass_seconds(seconds)
        world.add(trades)
        world.cover(SPOT, NOON - 120 * MINUTE, world.clock.at, alive=world.clock.at)

    return step


@pytest.mark.parametrize(("value", "price", "at"), [("60010", 6_001_500, 11_000), ("59990.5", 5_999_050, 11_000)])
async def test_a_crossing_is_answered_with_the_trade_that_made_it(value: str, price: int, at: int) -> None:
    world = _world()
    spike = [made(3, NOON + 10_500, 6_000_100), made(4, NOON + at, price), made(5, NOON + 11_200, 6_000_000)]
    answer = await _wait(world, _Then(_later(world, 2, *spike)), condition="price_crosses", value=value)
    assert answer["met"] is True
    assert answer["met_at"] == "2026-06-01T12:00:11.000Z"
    assert exact(answer["price"]) == exact(price / 100)
    assert exact(answer["value"]) == exact(float(value))


async def test_what_was_traded_before_the_question_does_not_count() -> None:
    world = _world().add([made(3, NOON + 8_000, 6_002_000), made(4, NOON + 9_000, 6_000_000)])
    answer = await _wait(world, _Then(), **_PRICE, timeout=1)
    assert (answer["met"], answer["met_at"], answer["waited_s"] >= 1) == (False, None, True)
    assert "not met" in answer["reading"]


async def test_a_price_just_short_of_the_level_does_not_cross_it() -> None:
    world = _world()
    answer = await _wait(world, _Then(_later(world, 2, made(3, NOON + 11_000, 6_000_999))), **_PRICE, timeout=1)
    assert answer["met"] is False


@pytest.mark.parametrize(
    ("condition", "value", "side", "met"),
    [
        ("delta_beyond", "0.003", "BUY", True),
        ("delta_beyond", "0.00301", "BUY", False),
        ("delta_beyond", "-0.007", "SELL", True),
        ("delta_beyond", "-0.00701", "SELL", False),
        ("volume_beyond", "0.009", "BUY", True),
        ("volume_beyond", "0.00901", "BUY", False),
    ],
)
async def test_delta_and_volume_are_those_of_the_open_bar(condition: str, value: str, side: str, met: bool) -> None:
    world = _world()
    then = _Then(_later(world, 2, made(3, NOON + 11_000, quantity=500, side=side)))
    answer = await _wait(world, then, condition=condition, value=value, timeout=1)
    assert answer["met"] is met
    assert answer["bar"]["timestamp"] == "2026-06-01T12:00:00Z"
    assert exact(answer["bar"]["volume"]) == exact(0.009)


async def test_a_closed_bar_is_answered_complete_once_its_trades_have_arrived() -> None:
    world = _world()
    then = _Then(_later(world, 30), _later(world, 20, made(3, NOON + 59_999, quantity=100)), _later(world, 1))
    answer = await _wait(world, then, condition="bar_closed")
    assert (answer["met"], answer["met_at"], answer["window"]["closed"]) == (True, "2026-06-01T12:01:00.000Z", True)
    assert answer["bar"]["trade_count"] == 3
    assert then.words[0] == "bar closes in 50 s"


async def test_coverage_is_back_once_nothing_is_missing() -> None:
    world = _world().cover(SPOT, NOON - 120 * MINUTE, NOON - 30_000)
    world.clock.at = NOON + 60_000
    answer = await _wait(world, _Then(_later(world, 0.5)), condition="coverage_back")
    assert answer["met"] is True
    assert answer["coverage"]["ratio"] == 1


@pytest.mark.parametrize("seconds", [0, 20])
async def test_the_answer_has_the_coverage_of_the_window_that_was_waited_for(seconds: int) -> None:
    world = _world().cover(SPOT, NOON - 120 * MINUTE, NOON + 2 * MINUTE, alive=NOON + 2 * MINUTE)
    world.clock.at = NOON + MINUTE + seconds * 1_000
    answer = await _wait(world, _Then(), condition="coverage_back")
    assert (answer["met"], answer["coverage"]["ratio"]) == (True, 1)
    assert answer["window"]["start"] == ("2026-06-01T12:01:00Z" if seconds else "2026-06-01T12:00:00Z")
    assert answer["bar"]["timestamp"] == answer["window"]["start"]


async def test_brief_leaves_the_bar_out() -> None:
    assert (await _wait(_world(), _Then(), **_PRICE, timeout=1, detail="brief"))["bar"] is None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "condition is missing; allowed are price_crosses, delta_beyond"),
        ({"condition": "moon"}, 'condition="moon": allowed are price_crosses'),
        ({"condition": "price_crosses"}, "value is missing; the condition price_crosses needs one"),
        ({"condition": "price_crosses", "value": -1}, "value=-1: a number above 0 is needed"),
        ({"condition": "delta_beyond", "value": 0}, "value=0: a number other than 0 is needed, at most 18 digits"),
        ({"condition": "bar_closed", "value": 5}, "value=5: the condition bar_closed takes no value"),
        ({"condition": "bar_closed", "timeout": 301}, "timeout=301: a whole number from 1 to 300 is needed"),
    ],
)
async def test_a_question_that_cannot_be_met_is_refused_at_once(asked: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"symbol": "BTCUSDT", "condition": None, **asked}
    with pytest.raises(QueryError) as caught:
        await wait_for(_world().view, **given, progress=_Then())
    assert said in one_line(caught.value)
    assert "Try wait_for(" in str(caught.value)


@pytest.mark.parametrize(
    ("condition", "value", "suggested"),
    [
        ("price_crosses", None, 'timeframe="5m", value=60_600)'),
        ("delta_beyond", 0, 'timeframe="5m", value=0.004)'),
        ("volume_beyond", -1, 'timeframe="5m", value=0.008)'),
    ],
)
async def test_the_value_that_an_error_suggests_makes_sense_and_is_not_met_yet(condition: str, value: Any, suggested: str) -> None:
    world = _world()
    with pytest.raises(QueryError) as caught:
        await _wait(world, _Then(), condition=condition, value=value, timeframe="5m")
    assert str(caught.value).endswith(suggested.replace("_", ""))
    assert f'condition="{condition}"' in str(caught.value)


async def test_no_value_is_suggested_where_nothing_was_traded() -> None:
    with pytest.raises(QueryError) as caught:
        await _wait(World(now=NOON), _Then(), condition="price_crosses")
    assert str(caught.value).endswith('Try wait_for(symbol="BTCUSDT", exchange="binance", condition="bar_closed", timeframe="1m")')
