from __future__ import annotations

import subprocess
import sys
from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulator.wire import NOW
from wadm_mcp.model import DAY, MINUTE, Instrument
from wadm_mcp.simulator.listings import known_instruments, steps_of
from wadm_mcp.simulator.market import BURNT, EPOCH, Fill, Market, MarketAggregate

MARKETS = [("binance", "spot"), ("binance", "linear"), ("bybit", "spot"), ("bybit", "linear")]
MIDNIGHT = EPOCH + 2_400 * DAY
HASHING = """
from hashlib import sha256
from wadm_mcp.simulator.market import Market
market = Market("binance", "linear", "ETHUSDT", 7)
print(sha256(repr([list(market.trades(t)) for t in (1785060180000, 1785060240000)]).encode()).hexdigest())
"""


@pytest.mark.parametrize(("exchange", "market"), MARKETS)
def test_ids_are_consecutive_across_minutes_and_days(exchange: str, market: str) -> None:
    shop = Market(exchange, market, "BTCUSDT")
    trades = [fill for minute in range(-12, 12) for fill in shop.trades(MIDNIGHT + minute * MINUTE)]
    assert len(trades) > 500
    assert all(after.id == before.id + 1 and after.time >= before.time for before, after in pairwise(trades))
    folded = [whole for minute in range(-12, 12) for whole in shop.aggregates(MIDNIGHT + minute * MINUTE)]
    assert all(after.id == before.id + 1 for before, after in pairwise(folded))


@pytest.mark.parametrize(("market", "window"), [("spot", 1), ("linear", 100)])
def test_aggregates_equal_the_fills_aggregated_by_the_rule(market: str, window: int) -> None:
    shop = Market("binance", market, "BTCUSDT")
    for minute in range(MIDNIGHT, MIDNIGHT + 8 * MINUTE, MINUTE):
        runs: list[list[Fill]] = []
        for fill in shop.trades(minute):
            if fill.kind not in ("MARKET", "RPI"):
                continue
            whole = runs[-1][0] if runs else None
            if whole is not None and (whole.price, whole.buy) == (fill.price, fill.buy) and fill.time - whole.time < window:
                runs[-1].append(fill)
            else:
                runs.append([fill])
        first = shop.aggregates(minute)[0].id
        expected = [
            MarketAggregate(
                first + n,
                run[0].time,
                run[0].price,
                sum(fill.quantity for fill in run),
                sum(fill.quantity for fill in run if fill.kind == "MARKET"),
                run[0].id,
                run[-1].id,
                run[0].buy,
            )
            for n, run in enumerate(runs)
        ]
        assert shop.aggregates(minute) == expected
        if market == "spot":
            assert all(whole.last - whole.first + 1 == len(run) for whole, run in zip(expected, runs, strict=True))


def test_usd_m_aggregates_reach_into_the_next_minute_and_have_burnt_ids() -> None:
    shop = Market("binance", "linear", "BTCUSDT")
    crossing, burnt, candles, recorded = 0, 0, 0, 0
    for minute in range(MIDNIGHT, MIDNIGHT + 40 * MINUTE, MINUTE):
        fills, folded = shop.trades(minute), shop.aggregates(minute)
        assert all(minute <= whole.time < minute + MINUTE for whole in folded)
        late = [fill for fill in fills if fill.time >= minute + MINUTE]
        crossing += bool(late)
        assert all(folded[-1].first < fill.id <= folded[-1].last and fill.time - folded[-1].time < 100 for fill in late)
        burnt += sum(fill.kind == BURNT for fill in fills)
        assert all(any(whole.first < fill.id < whole.last for whole in folded) for fill in fills if fill.kind == BURNT)
        candles += sum(fill.quantity for fill in fills if fill.kind in ("MARKET", "RPI"))
        recorded += sum(whole.quantity for whole in folded)
    assert candles == recorded
    assert crossing > 3
    assert burnt > 40


def test_usd_m_has_prints_that_are_not_trades_of_the_book() -> None:
    shop = Market("binance", "linear", "BTCUSDT")
    kinds = {fill.kind for minute in range(30) for fill in shop.trades(MIDNIGHT + minute * MINUTE)}
    assert kinds == {"MARKET", "RPI", "INSURANCE_FUND", "NA", BURNT}
    assert {fill.kind for fill in Market("binance", "spot", "BTCUSDT").trades(MIDNIGHT)} == {"MARKET"}


def test_the_trades_do_not_depend_on_the_order_of_requests() -> None:
    one, two = Market("bybit", "linear", "SOLUSDT", 3), Market("bybit", "linear", "SOLUSDT", 3)
    minutes = [NOW - NOW % MINUTE + n * MINUTE for n in range(20)]
    forwards = {minute: list(one.trades(minute)) for minute in minutes}
    assert {minute: list(two.trades(minute)) for minute in reversed(minutes)} == forwards
    assert list(Market("bybit", "linear", "SOLUSDT", 4).trades(minutes[0])) != forwards[minutes[0]]


def test_another_process_sees_the_same_trades() -> None:
    hashes = {subprocess.run([sys.executable, "-c", HASHING], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(hashes) == 1
    assert len(hashes.pop().strip()) == 64


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(MARKETS), st.integers(min_value=0, max_value=3_000_000), st.sampled_from([0.4, 7, 900]))
def test_every_id_is_found_in_its_minute(where: tuple[str, str], trade_id: int, rate: float) -> None:
    shop = Market(*where, "BTCUSDT", rate=rate)
    minute = shop.minute_of_trade(trade_id)
    assert trade_id in {fill.id for fill in shop.trades(minute)}
    minute = shop.minute_of_aggregate(trade_id)
    if where[0] == "binance":
        assert trade_id in {whole.id for whole in shop.aggregates(minute)}


@pytest.mark.parametrize(("exchange", "market"), MARKETS)
def test_the_price_is_continuous_and_stays_near_its_base(exchange: str, market: str) -> None:
    shop = Market(exchange, market, "BTCUSDT")
    tick = shop.steps.tick / 10**shop.steps.price_decimals
    minutes = [[fill for fill in shop.trades(MIDNIGHT + n * MINUTE) if fill.kind == "MARKET"] for n in range(-3, 4)]
    assert all(abs(after[0].price / before[-1].price - 1) < 0.002 for before, after in pairwise(minutes))
    assert all(45_000 < fill.price * tick < 80_000 for fills in minutes for fill in fills)
    far = Market(exchange, market, "BTCUSDT").trades(MIDNIGHT - 900 * DAY)
    assert 45_000 < far[0].price * tick < 80_000


def test_prices_of_venues_are_close_and_not_equal() -> None:
    prices = {}
    for exchange, market in MARKETS:
        shop = Market(exchange, market, "BTCUSDT")
        prices[exchange, market] = shop.trades(MIDNIGHT)[0].price * shop.steps.tick / 10**shop.steps.price_decimals
    assert len(set(prices.values())) == 4
    assert max(prices.values()) / min(prices.values()) < 1.002


def test_taker_orders_walk_the_book_in_one_ms() -> None:
    fills = Market("binance", "spot", "BTCUSDT").trades(MIDNIGHT)
    orders = [list(run) for _, run in groupby(fills, key=lambda fill: (fill.time, fill.order))]
    assert any(len({fill.price for fill in run}) > 2 for run in orders)
    assert any(len(run) > 1 and len({fill.price for fill in run}) < len(run) for run in orders)
    for run in orders:
        assert len({fill.buy for fill in run}) == 1
        direction = 1 if run[0].buy else -1
        assert all((after.price - before.price) * direction >= 0 for before, after in pairwise(run))
    assert {fill.buy for fill in fills} == {True, False}
    assert 1.5 < len(fills) / len({fill.time for fill in fills}) < 6


def test_the_number_of_fills_matches_the_rate() -> None:
    shop = Market("binance", "spot", "BTCUSDT")
    whole = shop.trades(MIDNIGHT + DAY)[0].id - shop.trades(MIDNIGHT)[0].id
    assert abs(whole / (24 * 60) / 900 - 1) < 0.01
    busy = Market("binance", "spot", "BTCUSDT", rate=9_000)
    assert (busy.trades(MIDNIGHT + DAY)[0].id - busy.trades(MIDNIGHT)[0].id) // whole in (9, 10)


def test_the_cache_stays_small_and_nothing_trades_before_the_epoch() -> None:
    shop = Market("binance", "spot", "LTCUSDT")
    for n in range(50):
        shop.aggregates(MIDNIGHT + n * DAY)
    assert max(len(shop._minutes), len(shop._folds), len(shop._days)) <= 6
    assert shop.trades(EPOCH - MINUTE) == []


def test_an_unknown_symbol_has_a_market_too() -> None:
    fills = Market("bybit", "spot", "FOOUSDT").trades(MIDNIGHT)
    assert fills
    assert all(fill.price > 0 and fill.quantity > 0 for fill in fills)


def test_steps_are_those_of_the_exchanges() -> None:
    def texts(exchange: str, market: str) -> tuple[str, str, str, str]:
        steps = steps_of(Instrument(exchange, market, "BTCUSDT"))
        return steps.tick_text, steps.lot_text, steps.price(1), steps.quantity(1)

    assert texts("binance", "spot") == ("0.01000000", "0.00001000", "0.01000000", "0.00001000")
    assert texts("binance", "linear") == ("0.10", "0.001", "0.10", "0.001")
    assert texts("bybit", "spot") == ("0.1", "0.000001", "0.1", "0.000001")
    assert texts("bybit", "linear") == ("0.10", "0.001", "0.10", "0.001")
    known = known_instruments()
    assert Instrument("binance", "spot", "BNBUSDT") in known
    assert not any(one.exchange == "bybit" and one.symbol == "BNBUSDT" for one in known)
