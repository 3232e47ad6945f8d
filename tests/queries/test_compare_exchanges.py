from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import pytest

from tests.market import BYBIT, NOON, SPOT, listing, trade
from tests.queries.world import World, exact, one_line, rows_of, signed
from wadm_mcp.coverage.spans import Basis, GapReason, Span
from wadm_mcp.errors import QueryError
from wadm_mcp.model import DAY, HOUR, MINUTE, Instrument, Retention, Trade
from wadm_mcp.queries.compare_exchanges import compare_exchanges

pytestmark = pytest.mark.anyio

PERP = Instrument("binance", "linear", "BTCUSDT")


def _tape() -> list[Trade]:
    """Three hours. Binance spot's buyers come two minutes before the perpetual's; Bybit's have their own mind. The perpetual stands 10 bps
    above spot."""
    chance, trades = random.Random(1), list[Trade]()
    flows = [chance.gauss(0, 1) for _ in range(182)]
    for minute in range(180):
        at = NOON - 180 * MINUTE + minute * MINUTE + 5_000
        for instrument, flow, price in (
            (SPOT, flows[minute + 2], 6_000_000),
            (PERP, flows[minute], 6_006_000),
            (BYBIT, chance.gauss(0, 1), 6_000_600),
        ):
            size = 100 + round(abs(flow) * 1_000)
            trades.append(trade(minute, at, price, size, "BUY" if flow > 0 else "SELL", instrument))
    return trades


def _world() -> World:
    world = World(listing(PERP), listing(BYBIT), listing(SPOT)).add(_tape())
    for instrument in (SPOT, BYBIT, PERP):
        world.cover(instrument, NOON - DAY, NOON)
    return world


async def _ask(world: World | None = None, **asked: Any) -> dict[str, Any]:
    return await compare_exchanges((world or _world()).view, **{"symbol": "BTCUSDT", "start": NOON - 180 * MINUTE, **asked})


async def test_every_instrument_of_the_symbol_has_a_row_spot_first() -> None:
    answer = await _ask()
    assert list(answer) == ["coverage", "instrument", "window", "timeframe", "venues", "pairs", "reading"]
    rows = rows_of(answer["venues"])
    assert [row["instrument"] for row in rows] == [*map(str, (SPOT, BYBIT, PERP))]
    assert (answer["instrument"], answer["coverage"]["ratio"], answer["coverage"]["broken"]) == ("all:all:BTCUSDT", 1, [])
    assert list(answer["coverage"]["parts"]) == [row["instrument"] for row in rows]


async def test_shares_and_deltas_are_those_of_a_count_by_hand() -> None:
    tape = _tape()
    sums = {one: sum((abs(signed(each)) for each in tape if each.instrument == one), Decimal(0)) for one in (SPOT, BYBIT, PERP)}
    for row, instrument in zip(rows_of((await _ask())["venues"]), sums, strict=True):
        assert exact(row["volume"]) == sums[instrument]
        assert row["volume_share"] == pytest.approx(float(sums[instrument] / sum(sums.values())), abs=1e-4)
        assert exact(row["delta"]) == sum((signed(each) for each in tape if each.instrument == instrument), Decimal(0))


async def test_the_basis_is_how_far_the_second_stands_above_the_first() -> None:
    pairs = {(row["first"], row["second"]): row for row in rows_of((await _ask())["pairs"])}
    assert len(pairs) == 3
    perp = pairs[str(SPOT), str(PERP)]
    assert (perp["basis_bps"], perp["mean_basis_bps"], perp["bars_compared"]) == (10, 10, 180)
    assert pairs[str(SPOT), str(BYBIT)]["basis_bps"] == 1


async def test_the_flow_that_comes_first_leads_and_the_unrelated_one_is_noise() -> None:
    pairs = {(row["first"], row["second"]): row for row in rows_of((await _ask())["pairs"])}
    perp = pairs[str(SPOT), str(PERP)]
    assert perp["lead_bars"] == 2
    assert perp["lead_correlation"] > 0.9 > perp["noise"] > abs(perp["flow_correlation"])
    assert abs(pairs[str(SPOT), str(BYBIT)]["flow_correlation"]) < 2 * perp["noise"]


async def test_bars_that_a_gap_touches_are_not_compared() -> None:
    world = _world()
    held = world.tape[BYBIT].coverage
    assert held is not None
    torn = NOON - HOUR + 30_000
    held.spans = [  # pyright: ignore[reportAttributeAccessIssue]
        Span(NOON - DAY, torn, 0, 0, Basis.OBSERVED),
        Span(torn + MINUTE, NOON, 0, 0, Basis.OBSERVED, opened_by=GapReason.DISCONNECT),
    ]
    answer = await _ask(world)
    pairs = {(row["first"], row["second"]): row["bars_compared"] for row in rows_of(answer["pairs"])}
    assert pairs == {(str(SPOT), str(BYBIT)): 178, (str(SPOT), str(PERP)): 180, (str(BYBIT), str(PERP)): 178}
    assert (answer["coverage"]["worst"], answer["coverage"]["broken"]) == (str(BYBIT), ["venues", "pairs"])
    assert answer["coverage"]["gaps"][0][3] == "disconnect"


async def test_a_gap_that_is_repaired_after_its_bars_were_read_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _world()
    recorded, read = world.tape[BYBIT].coverage, world.store.order_flow
    whole, torn = (
        [Span(NOON - DAY, NOON, 0, 0, Basis.OBSERVED)],
        [
            Span(NOON - DAY, NOON - 90 * MINUTE, 0, 0, Basis.OBSERVED),
            Span(NOON - 80 * MINUTE, NOON, 0, 0, Basis.OBSERVED, opened_by=GapReason.DISCONNECT),
        ],
    )
    monkeypatch.setattr(recorded, "spans", torn)

    async def read_before_a_repair(instrument: Instrument, *given: Any) -> Any:
        if instrument == BYBIT:
            monkeypatch.setattr(recorded, "spans", whole)
        return await read(instrument, *given)

    monkeypatch.setattr(world.store, "order_flow", read_before_a_repair)
    pairs = {(row["first"], row["second"]): row["bars_compared"] for row in rows_of((await _ask(world))["pairs"])}
    assert pairs == {(str(SPOT), str(BYBIT)): 170, (str(SPOT), str(PERP)): 180, (str(BYBIT), str(PERP)): 170}


async def test_figures_without_coverage_are_null_and_not_zero() -> None:
    answer = await _ask(World(listing(PERP), listing(SPOT)))
    (pair,) = rows_of(answer["pairs"])
    assert all(pair[name] is None for name in ("basis_bps", "mean_basis_bps", "flow_correlation", "lead_bars", "noise"))
    assert [row["volume_share"] for row in rows_of(answer["venues"])] == [None, None]
    assert answer["coverage"]["ratio"] == 0


async def test_too_few_bars_have_a_basis_but_no_correlation() -> None:
    pair = rows_of((await _ask(start=NOON - 20 * MINUTE))["pairs"])[0]
    assert pair["basis_bps"] is not None
    assert pair["flow_correlation"] is None


async def test_brief_leaves_the_pairs_out() -> None:
    assert (await _ask(detail="brief"))["pairs"] is None


async def test_a_symbol_that_is_not_followed_is_refused() -> None:
    with pytest.raises(QueryError) as caught:
        await _ask(symbol="ETHUSDT")
    assert 'symbol "ETHUSDT" is not followed' in one_line(caught.value)


async def test_a_comparison_whose_data_was_deleted_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(listing(PERP), listing(SPOT))
    for instrument in (SPOT, PERP):
        world.cover(instrument, NOON - DAY, NOON)
    assert (await _ask(world))["reading"] == "No trades recorded in this window; coverage 1."
    monkeypatch.setattr(world.view, "retention", Retention(HOUR, HOUR, HOUR))
    answer = await _ask(world, end=NOON - 2 * HOUR)
    assert answer["reading"] == "No trades in this window are stored any more: the data of at least a part of it has expired; coverage 0."
