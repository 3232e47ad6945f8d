"""Profiles, bars and footprints of random tapes against a second count, straight from the trades with decimals."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analytics.oracles import point_of_control, value_area
from tests.market import BYBIT, NOON, SPOT, listing
from tests.queries.world import World, exact, made, price_of, quantity_of, rows_of, signed, whole_day
from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.errors import QueryError
from wadm_mcp.model import DAY, HOUR, MINUTE, Instrument, Listing, Retention, Timeframe, Trade, TradeType, Window
from wadm_mcp.queries.footprint import MAX_NODES, footprint
from wadm_mcp.queries.market_structure import market_structure
from wadm_mcp.queries.numbers import iso
from wadm_mcp.queries.order_flow import order_flow
from wadm_mcp.queries.trades import trades
from wadm_mcp.queries.view import View
from wadm_mcp.queries.volume_profile import volume_profile
from wadm_mcp.storage.cached import CachedFootprints

anyio_test = pytest.mark.anyio

MIDNIGHT = NOON - 12 * HOUR
TICK = Decimal("0.01")


class CachedBefore(CachedFootprints):
    """A cache with the footprints of every window as they were before the tick became finer."""

    def __init__(self, before: View) -> None:
        self.before = before

    async def footprint(self, instrument: Instrument, window: Window, *_: Any, **__: Any) -> Footprint:
        return await self.before.footprint(instrument, window)

    async def figures(self, key: str, expected: Bar, make: Callable[[], Awaitable[list[int]]]) -> list[int]:
        return await make()


@anyio_test
@pytest.mark.parametrize("ask", [volume_profile, footprint, market_structure], ids=["profile", "footprint", "structure"])
async def test_figures_of_trades_from_before_the_tick_became_finer_stay_as_they_are(ask: Callable[..., Awaitable[Any]]) -> None:
    old, new = (whole_day(World(listing(SPOT), now=NOON), SPOT).add(random_tape(3, 900, NOON - 20 * HOUR, NOON, (SPOT,))) for _ in range(2))
    # The cache's copy is from before; the tape has the new listing.
    new.tape.follow(listing(SPOT, "0.0001"))
    new.view._cached = CachedBefore(old.view)
    before: dict[str, Any] = await ask(old.view, symbol="BTCUSDT", row_size="0.5")
    after: dict[str, Any] = await ask(new.view, symbol="BTCUSDT", row_size="0.5")
    if ask is volume_profile:
        # The top of a row is its last tick, and the average has two decimals more than prices.
        assert after.pop("vah") - before.pop("vah") == pytest.approx(0.0099)
        assert after.pop("vwap") == pytest.approx(before.pop("vwap"), abs=0.0001)
        assert after | {"reading": ""} == before | {"reading": ""}
    finer = await ask(new.view, symbol="BTCUSDT", row_size="0.4999")
    assert finer["coverage"]["ratio"] == before["coverage"]["ratio"]
    with pytest.raises(QueryError, match="whole multiple of the tick"):
        await ask(old.view, symbol="BTCUSDT", row_size="0.4999")


def random_tape(
    seed: int, count: int, start: int, end: int, instruments: Sequence[Instrument] = (SPOT, BYBIT), width: int = 300
) -> list[Trade]:
    """Trades in the exchange's order, both sides, with repeated times."""
    chance = random.Random(seed)
    times = sorted(chance.randrange(start, end) for _ in range(count))
    return [
        made(
            seq,
            at,
            6_000_000 + chance.randrange(-width, width),
            chance.randrange(1, 10**7),
            chance.choice(("BUY", "SELL")),
            chance.choice(instruments),
            chance.choice((1, 1, 3)),
        )
        for seq, at in enumerate(times)
    ]


def settled(seed: int, tape: Sequence[Trade], now: int) -> World:
    """A world in which a random part of the tape rests in the store."""
    chance = random.Random(seed)
    until = chance.choice((0, now - now % MINUTE, now - now % HOUR, now - now % DAY))
    return whole_day(World(now=now)).add(tape, durable_until=now - 1_000, settled_until=until)


def total(tape: Sequence[Trade], side: TradeType | None = None) -> Decimal:
    return sum((quantity_of(one) for one in tape if side in (None, one.trade_type)), Decimal(0))


def inside(tape: Sequence[Trade], answer: dict[str, Any]) -> list[Trade]:
    window = answer["window"]
    return [one for one in tape if window["start"] <= iso(one.timestamp)[:19] + "Z" < window["end"]]


@given(
    st.integers(0, 10**6), st.integers(0, 60), st.sampled_from(("all", "binance")), st.sampled_from(("15m", "1h", "4h", "24h", "session"))
)
@settings(max_examples=60, deadline=None)
def test_nodes_bars_footprints_and_trades_of_a_covered_window_have_equal_volume(seed: int, count: int, exchange: str, window: str) -> None:
    """Law 1: equal to the last decimal."""
    now = NOON + seed % HOUR
    tape = random_tape(seed, count, now - 5 * HOUR, now)
    world = settled(seed, tape, now)
    question: dict[str, Any] = {"symbol": "BTCUSDT", "exchange": exchange, "window": window}

    async def asked() -> None:
        profile = await volume_profile(world.view, detail="full", **question)
        flow = await order_flow(world.view, timeframe="1m", **question)
        ladder = await footprint(world.view, timeframe="1h", **question)
        listed = await trades(world.view, limit=1000, **question)
        assert [one["coverage"]["ratio"] for one in (profile, flow, ladder, listed)] == [1] * 4
        covered = [one for one in inside(tape, profile) if exchange in ("all", one.instrument.exchange)]
        volume = total(covered)
        assert exact(profile["volume"]) == volume
        assert sum((exact(row["volume"]) or 0 for row in rows_of(profile["nodes"])), Decimal(0)) == volume
        assert sum((exact(row["volume"]) or 0 for row in rows_of(flow["bars"])), Decimal(0)) == volume
        assert sum((exact(row["quantity"]) or 0 for row in rows_of(listed["trades"])), Decimal(0)) == volume
        cells = [row for bar in ladder["bars"] for row in rows_of(bar["nodes"])]
        assert sum(((exact(row["buy_volume"]) or 0) + (exact(row["sell_volume"]) or 0) for row in cells), Decimal(0)) == volume
        fills = sum(one.fills for one in covered)
        assert profile["trade_count"] == fills == sum(row["trade_count"] for row in rows_of(flow["bars"]))

    anyio.run(asked)


@given(
    st.integers(0, 10**6),
    st.integers(1, 50),
    st.sampled_from((None, "0.01", 0.05, "1", 7)),
    st.integers(1, 100),
    st.sampled_from(("two_row", "one_row")),
)
@settings(max_examples=60, deadline=None)
def test_a_profile_is_what_a_count_by_hand_finds(seed: int, count: int, row_size: Any, percent: int, method: str) -> None:
    tape = random_tape(seed, count, NOON - HOUR, NOON)
    world = settled(seed, tape, NOON)

    async def asked() -> None:
        answer = await volume_profile(
            world.view, symbol="BTCUSDT", row_size=row_size, value_area=str(percent), method=method, detail="full"
        )
        row = exact(answer["row_size"])
        assert row is not None
        assert row == Decimal(str(row_size)) if row_size is not None else row % TICK == 0
        by_row: dict[int, list[Trade]] = defaultdict(list)
        for one in tape:
            by_row[int(price_of(one) // row)].append(one)
        bottom, top = min(by_row), max(by_row)
        volumes = [int(total(by_row.get(index, [])) * 10**5) for index in range(bottom, top + 1)]
        poc = point_of_control(volumes)
        area = value_area(volumes, poc, percent, 1 if method == "one_row" else 2)
        assert exact(answer["poc"]) == (bottom + poc) * row
        assert exact(answer["val"]) == (bottom + min(area)) * row
        assert exact(answer["vah"]) == (bottom + max(area) + 1) * row - TICK
        assert [[exact(figure) for figure in node] for node in answer["nodes"]["rows"]] == [
            [
                index * row,
                total(of_row),
                total(of_row, TradeType.BUY),
                total(of_row, TradeType.SELL),
                sum(one.fills for one in of_row),
            ]
            for index, of_row in sorted(by_row.items())
        ]
        assert exact(answer["delta"]) == total(tape, TradeType.BUY) - total(tape, TradeType.SELL)
        vwap = sum(price_of(one) * quantity_of(one) for one in tape) / total(tape)
        assert abs((exact(answer["vwap"]) or 0) - vwap) <= Decimal("0.00005")

    anyio.run(asked)


@given(st.integers(0, 10**6), st.integers(0, 60), st.sampled_from(list(Timeframe)), st.sampled_from(("all", "bybit")))
@settings(max_examples=80, deadline=None)
def test_bars_are_what_a_count_by_hand_finds(seed: int, count: int, timeframe: Timeframe, exchange: str) -> None:
    chance = random.Random(seed)
    now = MIDNIGHT + chance.randrange(0, 20 * HOUR)
    tape = random_tape(seed, count, now - 30 * HOUR, now)
    world = settled(seed, tape, now)
    start = now - chance.randrange(0, 1_400 if timeframe is Timeframe.M1 else 1_700) * MINUTE
    end = start + chance.randrange(0, now - start + 1)

    async def asked() -> None:
        answer = await order_flow(world.view, symbol="BTCUSDT", exchange=exchange, start=start, end=end, timeframe=timeframe.value)
        first, last = start - start % MINUTE, end + -end % MINUTE
        mine = [one for one in tape if exchange in ("all", one.instrument.exchange) and one.timestamp < last]
        rows = rows_of(answer["bars"])
        starts = list(range(timeframe.floor(first), last, timeframe.ms)) if first < last else []
        assert [row["timestamp"] for row in rows] == [iso(begin) for begin in starts]
        for begin, row in zip(starts, rows, strict=True):
            finish = begin + timeframe.ms
            bar = sorted(
                (one for one in mine if max(begin, first) <= one.timestamp < finish),
                key=lambda one: (one.timestamp, one.instrument.exchange, one.order),
            )
            session = begin - begin % DAY
            since = [one for one in mine if session <= one.timestamp < finish]
            assert exact(row["cumulative_delta"]) == sum(map(signed, since), Decimal(0))
            assert exact(row["delta"]) == sum(map(signed, bar), Decimal(0))
            assert exact(row["volume"]) == total(bar)
            assert exact(row["buy_volume"]) == total(bar, TradeType.BUY)
            assert exact(row["sell_volume"]) == total(bar, TradeType.SELL)
            assert row["trade_count"] == sum(one.fills for one in bar)
            prices = [price_of(one) for one in bar]
            assert [exact(row["high"]), exact(row["low"])] == ([max(prices), min(prices)] if bar else [None, None])
            if not bar:
                assert [row["open"], row["close"], row["imbalance_ratio"], row["min_delta"], row["max_delta"]] == [None] * 5
                assert [row["delta"], row["volume"], row["trade_count"]] == [0, 0, 0]
                continue
            assert exact(row["open"]) in {price_of(one) for one in bar if one.timestamp == bar[0].timestamp}
            assert exact(row["close"]) in {price_of(one) for one in bar if one.timestamp == bar[-1].timestamp}
            ratio = (sum(map(signed, bar)) / total(bar)).quantize(Decimal("0.000001"), ROUND_HALF_EVEN)
            assert exact(row["imbalance_ratio"]) == ratio
            if exchange == "all":
                assert (row["min_delta"], row["max_delta"]) == (None, None)
            else:
                path = [sum(map(signed, bar[: place + 1]), Decimal(0)) for place in range(len(bar))]
                assert (exact(row["min_delta"]), exact(row["max_delta"])) == (min(path), max(path))

    anyio.run(asked)


@given(st.integers(0, 10**6), st.integers(0, 60), st.sampled_from((None, "0.05", 2)))
@settings(max_examples=50, deadline=None)
def test_footprints_are_what_a_count_by_hand_finds(seed: int, count: int, row_size: Any) -> None:
    tape = random_tape(seed, count, NOON - HOUR - 30 * MINUTE, NOON, width=30)
    world = settled(seed, tape, NOON)

    async def asked() -> None:
        answer = await footprint(world.view, symbol="BTCUSDT", start=NOON - 80 * MINUTE, end=NOON, timeframe="15m", row_size=row_size)
        assert list(answer) == ["coverage", "instrument", "window", "timeframe", "row_size", "bars", "reading"]
        mine = [one for one in tape if one.timestamp >= NOON - 80 * MINUTE]
        row = exact(answer["row_size"])
        starts = range(NOON - 90 * MINUTE, NOON, 15 * MINUTE)
        assert [bar["timestamp"] for bar in answer["bars"]] == [iso(begin) for begin in starts]
        for begin, bar in zip(starts, answer["bars"], strict=True):
            assert list(bar) == ["timestamp", "open", "high", "low", "close", "delta", "poc", "nodes"]
            of_bar = [one for one in mine if begin <= one.timestamp < begin + 15 * MINUTE]
            assert exact(bar["delta"]) == sum(map(signed, of_bar), Decimal(0))
            if not of_bar:
                assert [bar[name] for name in ("open", "high", "low", "close", "poc")] == [None] * 5
                assert bar["nodes"]["rows"] == []
                continue
            assert row is not None
            buys: dict[int, Decimal] = defaultdict(Decimal)
            sells: dict[int, Decimal] = defaultdict(Decimal)
            for one in of_bar:
                (buys if one.trade_type is TradeType.BUY else sells)[int(price_of(one) // row)] += quantity_of(one)
            expected = []
            for index in sorted({*buys, *sells}):
                buy = sells[index - 1] > 0 and buys[index] >= 3 * sells[index - 1]
                sell = buys[index + 1] > 0 and sells[index] >= 3 * buys[index + 1]
                mark = "both" if buy and sell else "buy" if buy else "sell" if sell else None
                expected.append([index * row, buys[index], sells[index], mark])
            assert [[*map(exact, cells[:3]), cells[3]] for cells in bar["nodes"]["rows"]] == expected
            highest = max(buys[index] + sells[index] for index in {*buys, *sells})
            assert exact(bar["poc"]) in {index * row for index in {*buys, *sells} if buys[index] + sells[index] == highest}

    anyio.run(asked)


@anyio_test
async def test_a_profile_has_the_keys_of_the_contract_in_their_order() -> None:
    world = whole_day(World(now=NOON)).add(random_tape(1, 30, NOON - HOUR, NOON))
    answer = await volume_profile(world.view, symbol="BTCUSDT")
    assert list(answer) == (
        [
            "coverage",
            "instrument",
            "window",
            "poc",
            "vah",
            "val",
            "row_size",
            "method",
            "volume",
            "buy_volume",
            "sell_volume",
            "delta",
            "trade_count",
            "vwap",
            "nodes",
            "reading",
        ]
    )
    assert answer["nodes"]["columns"] == ["price_level", "volume", "buy_volume", "sell_volume", "trade_count"]
    flow = await order_flow(world.view, symbol="BTCUSDT")
    assert list(flow) == ["coverage", "instrument", "window", "timeframe", "bars", "reading"]
    assert flow["timeframe"] == "5m"
    assert flow["bars"]["columns"] == [
        "timestamp",
        "open",
        "high",
        "low",
        "close",
        "volume",
        "buy_volume",
        "sell_volume",
        "delta",
        "cumulative_delta",
        "imbalance_ratio",
        "trade_count",
        "min_delta",
        "max_delta",
    ]


@anyio_test
async def test_where_nothing_traded_prices_are_null_and_sums_are_zero() -> None:
    world = World(now=NOON)
    answer = await volume_profile(world.view, symbol="BTCUSDT")
    assert answer["coverage"]["ratio"] == 0
    assert [answer[name] for name in ("poc", "vah", "val", "row_size", "vwap")] == [None] * 5
    assert [answer[name] for name in ("volume", "buy_volume", "sell_volume", "delta", "trade_count")] == [0] * 5
    assert answer["nodes"]["rows"] == []
    assert (await volume_profile(world.view, symbol="BTCUSDT", row_size="0.1"))["row_size"] == 0.1
    ladder = await footprint(world.view, symbol="BTCUSDT", row_size="0.1")
    assert (ladder["row_size"], len(ladder["bars"])) == (0.1, 12)
    empty = await order_flow(world.view, symbol="BTCUSDT", start=NOON - HOUR + 7 * MINUTE, end=NOON - HOUR + 7 * MINUTE, timeframe="1h")
    assert empty["bars"]["rows"] == []


@anyio_test
async def test_detail_decides_which_nodes_are_listed_and_nothing_else() -> None:
    world = whole_day(World(now=NOON)).add(random_tape(3, 400, NOON - HOUR, NOON))
    question = {"symbol": "BTCUSDT", "value_area": 20}
    brief, standard, full = [await volume_profile(world.view, detail=detail, **question) for detail in ("brief", "standard", "full")]
    assert {**brief, "nodes": 0} == {**standard, "nodes": 0} == {**full, "nodes": 0}
    assert brief["nodes"] is None
    assert "omitted" not in full["nodes"]
    every, listed = full["nodes"]["rows"], standard["nodes"]["rows"]
    outside = [node for node in every if not full["val"] <= node[0] <= full["vah"]]
    dropped = [node for node in outside if node not in listed]
    assert [node for node in every if node not in dropped] == listed
    assert standard["nodes"]["omitted"] == len(dropped) == len(outside) - 10
    assert max(node[1] for node in dropped) <= min(node[1] for node in outside if node in listed)


@anyio_test
async def test_exchanges_with_other_ticks_share_rows_of_a_common_multiple() -> None:
    world = whole_day(World(listing(SPOT), listing(BYBIT, tick="0.015"), now=NOON))
    world.add([made(1, NOON - HOUR, 6_000_000), made(2, NOON - HOUR, 6_000_300, instrument=BYBIT)])
    answer = await volume_profile(world.view, symbol="BTCUSDT", row_size="0.03", detail="full", value_area=100)
    assert [node[0] for node in answer["nodes"]["rows"]] == [60_000, 60_003]
    assert (answer["val"], answer["vah"]) == (60_000, 60_003.02)
    with pytest.raises(QueryError, match=r"a whole multiple of the tick 0\.03; use 0\.03"):
        await volume_profile(world.view, symbol="BTCUSDT", row_size="0.01")
    alone = await volume_profile(world.view, symbol="BTCUSDT", exchange="bybit", row_size="0.015")
    assert alone["row_size"] == 0.015


@anyio_test
async def test_without_a_tick_rows_are_steps_of_the_finest_price() -> None:
    world = World(Listing.unconfirmed(SPOT), now=NOON).add([made(1, NOON - 2, 6_000_010), made(2, NOON - 1, 6_000_025)])
    answer = await volume_profile(world.view, symbol="BTCUSDT", window="15m")
    assert answer["provisional"] == ["binance:spot:BTCUSDT"]
    assert (answer["row_size"], answer["poc"], answer["vah"]) == (0.01, 60000.1, 60000.25)
    assert (await volume_profile(world.view, symbol="BTCUSDT", window="15m", row_size=0.1))["vah"] == 60000.29
    with pytest.raises(QueryError, match=r"row_size=0.005: its tick is not known yet and its prices have 2 decimals; use 0.01"):
        await volume_profile(world.view, symbol="BTCUSDT", window="15m", row_size=0.005)


@anyio_test
async def test_a_row_that_is_too_small_is_refused_with_the_smallest_that_fits() -> None:
    world = whole_day(World(now=NOON)).add([made(1, NOON - HOUR, 1), made(2, NOON - HOUR, 900_000_000)])
    with pytest.raises(QueryError, match=r"900,000,000 rows, at most 200,000 are allowed; use [0-9.]+") as caught:
        await volume_profile(world.view, symbol="BTCUSDT", row_size="0.01")
    size = str(caught.value).partition("allowed; use ")[2].partition(". Try")[0]
    assert (await volume_profile(world.view, symbol="BTCUSDT", row_size=size))["row_size"] == float(size)
    with pytest.raises(QueryError, match="more than 4,000 rows in total"):
        await footprint(world.view, symbol="BTCUSDT", row_size="0.01")


@anyio_test
async def test_a_footprint_that_would_be_too_long_takes_larger_rows_or_names_one() -> None:
    tape = [made(seq, NOON - 4 * HOUR + seq * 700, 6_000_000 + seq * 37 % 5_000) for seq in range(20_000)]
    world = whole_day(World(now=NOON)).add(tape)
    question: dict[str, Any] = {"symbol": "BTCUSDT", "window": "4h", "timeframe": "5m"}
    answer = await footprint(world.view, **question)
    assert len(answer["bars"]) == 48
    assert 1_000 < sum(len(bar["nodes"]["rows"]) for bar in answer["bars"]) <= MAX_NODES
    with pytest.raises(QueryError, match=r'row_size="0\.02": it divides .*; use ') as caught:
        await footprint(world.view, row_size="0.02", **question)
    size = str(caught.value).partition("in total; use ")[2].partition(". Try")[0]
    assert (await footprint(world.view, row_size=size, **question))["row_size"] == float(size)


@anyio_test
async def test_large_profiles_are_worked_through_beside_the_event_loop_with_the_same_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    world = whole_day(World(now=NOON)).add(random_tape(5, 300, NOON - HOUR, NOON))
    answers = []
    for most in (10**9, 0):
        for module in ("volume_profile", "figures", "footprint"):
            monkeypatch.setattr(f"wadm_mcp.queries.{module}.MAX_PRICES_ON_LOOP", most)
        answers.append((await volume_profile(world.view, symbol="BTCUSDT"), await footprint(world.view, symbol="BTCUSDT")))
    assert answers[0] == answers[1]


@anyio_test
async def test_cumulative_delta_does_not_depend_on_where_the_window_begins() -> None:
    tape = random_tape(11, 300, MIDNIGHT - 20 * HOUR, NOON, (SPOT,))
    world = settled(11, tape, NOON)
    answers: list[dict[str, Any]] = []
    for hours in (30, 13, 12, 3):
        answer = await order_flow(world.view, symbol="BTCUSDT", start=NOON - hours * HOUR, timeframe="15m")
        answers.append({row["timestamp"]: row["cumulative_delta"] for row in rows_of(answer["bars"])})
    for fewer in answers[1:]:
        assert fewer == {begin: answers[0][begin] for begin in fewer}
    assert exact(answers[0][iso(MIDNIGHT)]) == sum((signed(one) for one in tape if 0 <= one.timestamp - MIDNIGHT < 15 * MINUTE), Decimal(0))


@anyio_test
async def test_an_answer_states_the_coverage_since_the_anchor_of_cumulative_delta() -> None:
    world = World(now=NOON).cover(SPOT, NOON - 3 * HOUR, NOON).cover(BYBIT, NOON - 6 * HOUR, NOON)
    coverage = (await order_flow(world.view, symbol="BTCUSDT"))["coverage"]
    assert list(coverage) == ["ratio", "basis", "gaps", "newest_trade_at", "lag_ms", "anchor", "broken", "worst", "parts"]
    assert coverage["ratio"] == 1
    assert coverage["anchor"] == {"start": iso(MIDNIGHT), "ratio": 0.25}
    assert coverage["parts"]["bybit"]["anchor"]["ratio"] == 0.5


@anyio_test
async def test_expired_bars_are_a_gap_and_not_a_quiet_market() -> None:
    world = World(now=NOON, lives=Retention(HOUR, DAY, 9 * DAY)).cover(SPOT, NOON - 5 * DAY, NOON)
    question: dict[str, Any] = {"symbol": "BTCUSDT", "exchange": "binance", "start": NOON - 2 * DAY, "end": NOON}
    minutes = (await order_flow(world.view, timeframe="5m", **question))["coverage"]
    assert minutes["ratio"] == 0.5
    assert minutes["gaps"] == [[iso(NOON - 2 * DAY), iso(NOON - DAY), None, "expired"]]
    hours = (await order_flow(world.view, timeframe="1h", **question))["coverage"]
    assert (hours["ratio"], hours["anchor"]["ratio"]) == (1, 1)
    assert (await volume_profile(world.view, **question))["coverage"]["ratio"] == 1
    ragged = (await volume_profile(world.view, **{**question, "start": NOON - 2 * DAY + MINUTE}))["coverage"]
    assert ragged["gaps"] == [[iso(NOON - 2 * DAY + MINUTE), iso(NOON - 2 * DAY + HOUR), None, "expired"]]
