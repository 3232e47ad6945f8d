"""One answer for a whole report: its figures are those of the questions that look closer, and nothing in it looks ahead."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from functools import cache
from typing import Any

import pytest
from rs_bpe import openai

from tests.market import BYBIT, NOON, SPOT, trade
from tests.queries.world import World, exact, one_line, rows_of
from wadm_mcp.coverage.spans import Basis, GapReason, Span
from wadm_mcp.errors import QueryError
from wadm_mcp.model import DAY, HOUR, MINUTE, Trade
from wadm_mcp.queries.market_structure import market_structure
from wadm_mcp.queries.order_flow import order_flow
from wadm_mcp.queries.volume_profile import volume_profile

pytestmark = pytest.mark.anyio

NOW = NOON + 7 * MINUTE
_BAR = 15 * MINUTE


@cache
def tape() -> tuple[Trade, ...]:
    """Four days of two exchanges: a slow wave with quiet and busy hours, and the odd large order."""
    chance, trades = random.Random(4), list[Trade]()
    for seq, at in enumerate(range(NOW - 4 * DAY, NOW, 100_000)):
        wave = 6_000_000 + round(40_000 * ((at / (5 * HOUR)) % 2 - 1) ** 2) + chance.randrange(-9_000, 9_000)
        for instrument in (SPOT, BYBIT):
            quantity = round(chance.lognormvariate(10, 1.2)) * (30 if chance.random() < 0.001 else 1)
            side = "BUY" if chance.random() < 0.5 + 0.3 * ((at // HOUR) % 3 - 1) else "SELL"
            trades.append(trade(seq, at + chance.randrange(100_000), wave + chance.randrange(-500, 500), quantity, side, instrument))
    return tuple(sorted(trades, key=lambda one: (one.timestamp, one.seq)))


@cache
def busy_hour() -> tuple[Trade, ...]:
    """A thousand orders of the last hour, each larger than the one before, until they are nearly as large as any of the tape's."""
    return tuple(
        trade(10**6 + one, NOW - HOUR + 3_000 * (one + 1), 6_000_000, 10**9 + one, ("BUY", "SELL")[one % 2]) for one in range(1_000)
    )


@cache
def climb(back: int) -> tuple[Trade, ...]:
    """Six rows above all others in an earlier bar: buyers outweigh sellers in each, and thin out toward the top."""
    at, prices = NOON - back * _BAR + 5 * MINUTE, range(6_100_000, 6_106_000, 1_000)
    bought = [trade(10**6 + row, at + row, price, 10**5 * (990, 800, 600, 400, 200, 4)[row]) for row, price in enumerate(prices)]
    return (*bought, *(trade(10**6 + 6 + row, at + 6 + row, price, 10**5, "SELL") for row, price in enumerate(prices)))


@cache
def tape_world(until: int = NOW, gap: tuple[int, int] | None = None, more: tuple[Trade, ...] = ()) -> World:
    """A world that holds the tape until a moment, whole but for a gap of Binance's."""
    trades = sorted((one for one in (*tape(), *more) if one.timestamp < until), key=lambda one: (one.timestamp, one.seq))
    world = World(now=until).add(trades, durable_until=until - HOUR, settled_until=until - 10 * MINUTE)
    for instrument in (SPOT, BYBIT):
        begun = until - 20 * DAY
        spans = [Span(begun, until + MINUTE, 0, 0, Basis.OBSERVED)]
        if gap is not None and instrument == SPOT:
            spans = [
                Span(begun, gap[0], 0, 0, Basis.OBSERVED),
                Span(gap[1], until + MINUTE, 0, 0, Basis.OBSERVED, opened_by=GapReason.DISCONNECT),
            ]
        held = world.tape[instrument]
        world.cover(instrument, begun, until)
        assert held.coverage is not None
        held.coverage.spans = spans  # pyright: ignore[reportAttributeAccessIssue]
    return world


def _exact(value: object) -> Decimal:
    figure = exact(value)
    assert figure is not None
    return figure


async def _ask(world: World, **asked: Any) -> dict[str, Any]:
    return await market_structure(world.view, **{"symbol": "BTCUSDT", "exchange": "binance", **asked})


async def test_an_answer_begins_with_coverage_and_has_every_part() -> None:
    answer = await _ask(tape_world())
    assert list(answer) == [
        *("coverage", "instrument", "window", "bars", "session", "profile", "value", "flow", "range", "swings", "events", "parameters"),
        "reading",
    ]
    assert answer["coverage"]["ratio"] == 1
    assert answer["bars"] == {"timeframe": "15m", "usable": 192, "of": 192}
    assert answer["window"] == {"start": "2026-06-01T00:00:00Z", "end": "2026-06-01T12:07:00Z", "closed": True}


@pytest.mark.parametrize("exchange", ["binance", "all"])
async def test_its_figures_are_those_of_the_questions_that_look_closer(exchange: str) -> None:
    answer = await _ask(tape_world(), exchange=exchange)
    asked = {"symbol": "BTCUSDT", "exchange": exchange, "window": "session"}
    profile = await volume_profile(tape_world().view, **asked, row_size=answer["profile"]["row_size"])
    assert [answer["profile"][name] for name in ("poc", "vah", "val")] == [profile[name] for name in ("poc", "vah", "val")]
    for name in ("buy_volume", "sell_volume", "delta"):
        assert answer["flow"][name] == profile[name]
    assert [answer["session"][name] for name in ("vwap", "volume", "trade_count")] == [
        profile[name] for name in ("vwap", "volume", "trade_count")
    ]
    flow = rows_of((await order_flow(tape_world().view, **asked, timeframe="15m"))["bars"])
    highest = max(_exact(bar["high"]) for bar in flow)
    assert _exact(answer["session"]["high"]) == highest
    assert _exact(answer["session"]["last"]) == _exact(flow[-1]["close"])
    hour = rows_of((await order_flow(tape_world().view, symbol="BTCUSDT", exchange=exchange, window="1h", timeframe="1h"))["bars"])
    assert _exact(answer["flow"]["last_hour"]["volume"]) == sum((_exact(bar["volume"]) or Decimal(0) for bar in hour), Decimal(0))


async def test_the_extremes_of_cumulative_delta_are_those_inside_the_sessions_closed_bars() -> None:
    answer = (await _ask(tape_world()))["flow"]
    bars = rows_of((await order_flow(tape_world().view, symbol="BTCUSDT", exchange="binance", window="session", timeframe="15m"))["bars"])[
        :-1
    ]
    paths = [(_exact(bar["cumulative_delta"]) - _exact(bar["delta"]), bar) for bar in bars]
    high = max(before + _exact(bar["max_delta"]) for before, bar in paths)
    low = min(before + _exact(bar["min_delta"]) for before, bar in paths)
    assert (_exact(answer["cumulative_high"][0]), _exact(answer["cumulative_low"][0])) == (high, low)


async def test_prior_sessions_are_profiles_of_their_days_at_the_same_row() -> None:
    answer = await _ask(tape_world(), detail="full")
    (yesterday,) = [row for row in rows_of(answer["value"]["prior"]) if row["session"] == "2026-05-31"]
    profile = await volume_profile(
        tape_world().view,
        symbol="BTCUSDT",
        exchange="binance",
        start="2026-05-31",
        end="2026-06-01",
        row_size=answer["profile"]["row_size"],
    )
    assert [yesterday[name] for name in ("poc", "vah", "val")] == [profile[name] for name in ("poc", "vah", "val")]
    assert _exact(answer["value"]["poc_shift"]) == _exact(answer["profile"]["poc"]) - _exact(profile["poc"])


@pytest.mark.parametrize("back", [0, 4, 9, 40])
async def test_as_of_repeats_the_answer_of_that_time(back: int) -> None:
    then = NOON - back * _BAR
    at_the_time, later = await _ask(tape_world(then), detail="full"), await _ask(tape_world(), as_of=then, detail="full")
    for answer in (at_the_time, later):
        del answer["coverage"]["lag_ms"], answer["coverage"]["newest_trade_at"]
    assert later == at_the_time
    assert at_the_time["events"]["rows"]


async def test_a_known_event_stays_as_it_was() -> None:
    known: dict[str, list[Any]] = {}
    for back in range(12, -1, -1):
        for row in (await _ask(tape_world(), as_of=NOON - back * _BAR, detail="full"))["events"]["rows"]:
            if not row[2].startswith(("stacked", "fading", "large")):
                assert known.setdefault(json.dumps(row[:5]), row) == row


async def test_a_gap_removes_the_events_of_the_bars_that_it_touches_and_only_those() -> None:
    whole = await _ask(tape_world(), detail="full")
    gap = (NOON - 6 * HOUR + 60_000, NOON - 6 * HOUR + 2 * MINUTE)
    answer = await _ask(tape_world(gap=gap), detail="full")
    assert answer["coverage"]["ratio"] < 1
    assert answer["coverage"]["broken"] == ["session", "profile", "value", "flow"]
    assert answer["bars"]["usable"] == whole["bars"]["usable"] - 1
    assert (answer["flow"]["cumulative_high"], answer["flow"]["cumulative_low"]) == (None, None)
    assert "2026-06-01T06:00Z" not in [row[0] for row in answer["events"]["rows"]]
    assert all(row["cumulative_delta"] is None for row in rows_of(answer["swings"]) if row["timestamp"] > "2026-06-01T06:00Z")
    assert {row["status"] for row in rows_of(answer["value"]["naked_pocs"])} <= {"unknown"}


async def test_a_gap_removes_the_imbalances_of_the_bar_that_it_touches_and_only_those() -> None:
    def inside(answer: dict[str, Any]) -> dict[str, list[Any]]:
        rows = [row for row in answer["events"]["rows"] if row[2].startswith(("stacked", "fading"))]
        return {at: [row[2:5] for row in rows if row[0] == at] for at in {row[0] for row in rows}}

    more = (*climb(5), *climb(2))
    whole = inside(await _ask(tape_world(more=more), detail="full", row_size=10))
    assert {at: [row[:2] for row in rows] for at, rows in whole.items()} == {
        "2026-06-01T10:45Z": [["stacked_buy", 61010], ["fading_high", 61050]],
        "2026-06-01T11:30Z": [["stacked_buy", 61010], ["fading_high", 61050]],
    }
    torn = inside(await _ask(tape_world(gap=(NOON - 2 * _BAR, NOON - 2 * _BAR + 1), more=more), detail="full", row_size=10))
    assert torn == {"2026-06-01T10:45Z": whole["2026-06-01T10:45Z"]}


async def test_a_gap_in_the_sample_removes_large_orders() -> None:
    def large(answer: dict[str, Any]) -> list[list[Any]]:
        return [row[2:5] for row in answer["events"]["rows"] if row[2].startswith("large")]

    complete = large(await _ask(tape_world(more=busy_hour()), detail="full"))
    assert [row[0] for row in complete] == ["large_buy", "large_sell"]
    assert large(await _ask(tape_world(), detail="full")) == []
    before, within = NOW - HOUR - MINUTE, NOW - HOUR + MINUTE
    assert large(await _ask(tape_world(gap=(before, before + 1), more=busy_hour()), detail="full")) == complete
    assert large(await _ask(tape_world(gap=(within, within + 1), more=busy_hour()), detail="full")) == []


async def test_a_gap_that_is_repaired_after_its_sample_was_read_removes_large_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    world = tape_world(gap=(NOW - HOUR + 2_000_000, NOW - HOUR + 2_000_001), more=busy_hour())
    recorded, read = world.tape[SPOT].coverage, world.store.trades

    async def read_before_a_repair(*given: Any, **named: Any) -> list[Trade]:
        trades = await read(*given, **named)
        monkeypatch.setattr(recorded, "spans", [Span(NOW - 20 * DAY, NOW + MINUTE, 0, 0, Basis.OBSERVED)])
        return trades

    monkeypatch.setattr(world.store, "trades", read_before_a_repair)
    answer = await _ask(world, detail="full")
    assert not [row for row in answer["events"]["rows"] if row[2].startswith("large")]


@pytest.mark.parametrize("detail", ["brief", "standard", "full"])
@pytest.mark.parametrize("exchange", ["binance", "all"])
async def test_a_tape_without_trades_has_an_answer(exchange: str, detail: str) -> None:
    answer = await _ask(World(now=NOW), exchange=exchange, detail=detail)
    assert answer["coverage"]["ratio"] == 0
    assert answer["bars"]["usable"] == 0
    assert answer["events"]["rows"] == []
    assert (answer["session"]["last"], answer["profile"]["poc"], answer["value"]["relation"], answer["range"]) == (None, None, None, None)
    assert "no trades recorded" in answer["reading"]


async def test_at_midnight_the_session_is_the_one_that_ends_there() -> None:
    answer = await _ask(tape_world(), as_of="2026-06-01")
    assert answer["window"] == {"start": "2026-05-31T00:00:00Z", "end": "2026-06-01T00:00:00Z", "closed": True}
    assert answer["session"]["trade_count"] > 0


@pytest.mark.parametrize(("detail", "most"), [("brief", 750), ("standard", 1_000), ("full", 4_000)])
@pytest.mark.parametrize("gap", [None, (NOON - 6 * HOUR, NOON - 5 * HOUR)])
async def test_an_answer_has_at_most_so_many_tokens(detail: str, most: int, gap: tuple[int, int] | None) -> None:
    answer = await _ask(tape_world(gap=gap), exchange="all", detail=detail)
    assert openai.o200k_base().count(json.dumps(answer, separators=(",", ":"))) <= most


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"timeframe": "2m"}, 'timeframe="2m": allowed are 1m, 5m, 15m'),
        ({"detail": "all"}, 'detail="all": allowed are brief, standard, full'),
        ({"row_size": 0.015}, "row_size=0.015: it must be a whole multiple of the tick 0.01"),
    ],
)
async def test_a_wrong_argument_is_refused_with_a_call_that_works(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(QueryError) as caught:
        await _ask(tape_world(), **asked)
    assert said in one_line(caught.value)
    assert "Try get_market_structure(" in str(caught.value)
