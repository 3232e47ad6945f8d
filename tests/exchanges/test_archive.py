from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from wadm_mcp.errors import ArchiveError
from wadm_mcp.exchanges.binance import Binance
from wadm_mcp.exchanges.binance_archive import BinanceAggregates, BinanceSpotTrades
from wadm_mcp.exchanges.bybit_archive import BybitLinearTrades, BybitSpotTrades
from wadm_mcp.exchanges.exchange import ArchiveFormat, Trades
from wadm_mcp.model import Instrument, Listing, Scale, TradeType, to_decimal

from .test_binance import frames

DAY = date(2026, 7, 24)
AT = 1_784_851_200_054
"""2026-07-24T00:00:00.054Z."""

SPOT = Listing(Instrument("binance", "spot", "BTCUSDT"), Decimal("0.01"), Decimal("0.00001"))
LINEAR = Listing(Instrument("binance", "linear", "BTCUSDT"), Decimal("0.1"), Decimal("0.001"))
BYBIT_LINEAR = Listing(Instrument("bybit", "linear", "BTCUSDT"), Decimal("0.1"), Decimal("0.001"))
BYBIT_SPOT = Listing(Instrument("bybit", "spot", "BTCUSDT"), Decimal("0.1"), Decimal("0.000001"))

SPOT_ROW = "39001,64000.01000000,0.00120000,700,702,1784851200054321,True,True\n"
TRADE_ROW = "701,64000.01000000,0.00120000,76.80001200,1784851200054321,False,True\n"
LINEAR_ROW = "2901,64000.1,0.120,9700,9701,1784851200054,false\n"
LINEAR_HEADER = "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker\n"
BYBIT_HEADER = "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,foreignNotional\n"
BYBIT_ROW = "1784851200.0547,BTCUSDT,Sell,0.003,64000.10,ZeroMinusTick,0a1b-2c,1.92e+10,0.003,192.0003\n"
SPOT_HEADER = "id,timestamp,price,volume,side,rpi\n"
BYBIT_SPOT_ROW = "1,1784851200054,64000.1,0.000250,buy,0\n"


def test_a_spot_aggregate_has_the_seq_of_its_first_raw_id_and_microseconds_become_milliseconds() -> None:
    (row,) = BinanceAggregates("spot").rows(SPOT, [SPOT_ROW])
    trade = row.trade
    assert (row.number, trade.seq, row.last, trade.fills) == (39001, 700, 702, 3)
    assert (trade.timestamp, trade.price, trade.quantity, trade.scale) == (AT, 6_400_001, 120, Scale(2, 5))
    assert trade.trade_type is TradeType.SELL


def test_a_raw_spot_trade_equals_that_of_the_socket() -> None:
    (row,) = BinanceSpotTrades().rows(SPOT, [TRADE_ROW])
    trade = row.trade
    assert (row.number, row.last, trade.seq, trade.trade_id, trade.fills) == (701, 701, 701, "701", 1)
    assert (trade.timestamp, trade.price, trade.quantity, trade.trade_type) == (AT, 6_400_001, 120, TradeType.BUY)


def test_spot_times_before_2025_are_milliseconds() -> None:
    (row,) = BinanceAggregates("spot").rows(SPOT, [SPOT_ROW.replace("1784851200054321", "1723161599999")])
    assert row.trade.timestamp == 1_723_161_599_999


@pytest.mark.parametrize("lines", [[LINEAR_ROW], [LINEAR_HEADER, LINEAR_ROW], [LINEAR_HEADER, LINEAR_ROW.replace("\n", "\r\n")]])
def test_a_linear_aggregate_goes_by_its_own_id_with_and_without_a_header(lines: list[str]) -> None:
    (row,) = BinanceAggregates("linear").rows(LINEAR, lines)
    assert (row.number, row.last, row.trade.seq, row.trade.trade_id, row.trade.fills) == (2901, 2901, 2901, "2901", 2)
    assert (row.trade.timestamp, row.trade.trade_type) == (AT, TradeType.BUY)


def test_a_row_that_the_exchange_emptied_is_left_out() -> None:
    assert not list(BinanceAggregates("spot").rows(SPOT, ["39002,0,0,-1,-1,1784851200054321,True,True\n"]))


def test_seconds_of_bybit_linear_are_cut_to_the_millisecond_exactly() -> None:
    (row,) = BybitLinearTrades().rows(BYBIT_LINEAR, [BYBIT_HEADER, BYBIT_ROW])
    assert (row.trade.timestamp, row.trade.trade_id, row.trade.price, row.trade.quantity) == (AT, "0a1b-2c", 640_001, 3)
    for seconds, milliseconds in (
        ("1784851200", 1_784_851_200_000),
        ("1784851200.5", 1_784_851_200_500),
        ("1784851200.9999", 1_784_851_200_999),
    ):
        (row,) = BybitLinearTrades().rows(BYBIT_LINEAR, [BYBIT_HEADER, BYBIT_ROW.replace("1784851200.0547", seconds)])
        assert row.trade.timestamp == milliseconds


def test_columns_that_come_and_go_change_nothing() -> None:
    plain = list(BybitLinearTrades().rows(BYBIT_LINEAR, [BYBIT_HEADER, BYBIT_ROW]))
    with_rpi = list(BybitLinearTrades().rows(BYBIT_LINEAR, [BYBIT_HEADER.strip() + ",RPI\n", BYBIT_ROW.strip() + ",0\n"]))
    without_header = list(BybitLinearTrades().rows(BYBIT_LINEAR, [BYBIT_ROW]))
    assert [row.trade for row in plain] == [row.trade for row in with_rpi] == [row.trade for row in without_header]
    spot = list(BybitSpotTrades().rows(BYBIT_SPOT, [SPOT_HEADER, BYBIT_SPOT_ROW]))
    older = list(BybitSpotTrades().rows(BYBIT_SPOT, [SPOT_HEADER.replace(",rpi", ""), BYBIT_SPOT_ROW.replace(",0\n", "\n")]))
    bare = list(BybitSpotTrades().rows(BYBIT_SPOT, [BYBIT_SPOT_ROW]))
    assert spot == older == bare
    assert (spot[0].trade.timestamp, spot[0].trade.quantity, spot[0].trade.trade_type) == (AT, 250, TradeType.BUY)


@pytest.mark.parametrize(
    ("form", "listing", "row", "given", "needed", "why"),
    [
        (BinanceAggregates("spot"), SPOT, SPOT_ROW, "64000.01000000", "cheap", "'cheap' is not a plain decimal number"),
        (BinanceAggregates("spot"), SPOT, SPOT_ROW, "0.00120000", "0", "'0' is not above zero"),
        (BinanceAggregates("spot"), SPOT, SPOT_ROW, ",700,702,", ",702,700,", "-1 fills are impossible"),
        (BinanceAggregates("spot"), SPOT, SPOT_ROW, "1784851200054321", "1784851200", "time 1784851200 is not a time in milliseconds"),
        (BinanceAggregates("spot"), SPOT, SPOT_ROW, "True,True", "maybe,True", "'maybe' is neither true nor false"),
        (BinanceAggregates("spot"), SPOT, SPOT_ROW, ",True\n", "\n", "it has 7 columns, 8 are needed"),
        (BinanceSpotTrades(), SPOT, TRADE_ROW, ",True\n", ",True,0\n", "it has 8 columns, 7 are needed"),
        (BinanceSpotTrades(), SPOT, TRADE_ROW, "701,", "-701,", "'-701' is not a whole number"),
        (BinanceAggregates("linear"), LINEAR, LINEAR_ROW, "2901", "29x1", "'29x1' is not a whole number"),
        (BybitLinearTrades(), BYBIT_LINEAR, BYBIT_HEADER + BYBIT_ROW, "BTCUSDT", "ETHUSDT", "symbol 'ETHUSDT' instead of 'BTCUSDT'"),
        (BybitLinearTrades(), BYBIT_LINEAR, BYBIT_HEADER + BYBIT_ROW, ",size,", ",amount,", "the header lacks size"),
        (BybitLinearTrades(), BYBIT_LINEAR, BYBIT_HEADER + BYBIT_ROW, "0a1b-2c", "", "it has no trade id"),
        (BybitLinearTrades(), BYBIT_LINEAR, BYBIT_HEADER + BYBIT_ROW, "Sell", "Short", "side 'Short' is neither Buy nor Sell"),
        (BybitLinearTrades(), BYBIT_LINEAR, BYBIT_HEADER + BYBIT_ROW, ",192.0003", "", "it has 9 columns, 10 are needed"),
        (BybitSpotTrades(), BYBIT_SPOT, SPOT_HEADER + BYBIT_SPOT_ROW, "1784851200054", "1784851200.054", "'1784851200.054' is not a whole"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(form: ArchiveFormat, listing: Listing, row: str, given: str, needed: str, why: str) -> None:
    assert given in row
    with pytest.raises(ArchiveError) as caught:
        list(form.rows(listing, row.replace(given, needed).splitlines(keepends=True)))
    said = str(caught.value)
    assert why in said
    assert f"{listing.instrument} archive, line " in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("form", "path"),
    [
        (BinanceAggregates("spot"), "/data/spot/daily/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2026-07-24.zip"),
        (BinanceSpotTrades(), "/data/spot/daily/trades/BTCUSDT/BTCUSDT-trades-2026-07-24.zip"),
        (BinanceAggregates("linear"), "/data/futures/um/daily/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2026-07-24.zip"),
        (BybitLinearTrades(), "/trading/BTCUSDT/BTCUSDT2026-07-24.csv.gz"),
        (BybitSpotTrades(), "/spot/BTCUSDT/BTCUSDT_2026-07-24.csv.gz"),
    ],
)
def test_a_day_lies_where_the_exchange_publishes_it(form: ArchiveFormat, path: str) -> None:
    assert form.path("BTCUSDT", DAY) == path
    assert form.checksum_path("BTCUSDT", DAY) == (f"{path}.CHECKSUM" if form.exchange == "binance" else None)


@pytest.mark.parametrize("header", ["", "id,price,qty,quote_qty,time,is_buyer_maker,is_best_match\n"])
def test_recorded_trades_written_as_an_archive_are_the_same_trades(captures: Path, header: str) -> None:
    decoder = Binance().decoder("spot", [SPOT])
    messages = [decoder.decode(frame) for frame in frames(captures / "binance-spot" / "btcusdt_20240808.gz", "trade")]
    recorded = [trade for message in messages if isinstance(message, Trades) for trade in message.trades]
    assert len(recorded) == 9_757
    lines = [
        f"{trade.seq},{to_decimal(trade.price, trade.scale.price)},{to_decimal(trade.quantity, trade.scale.quantity)},0,"
        f"{trade.timestamp}123,{trade.trade_type is TradeType.SELL},True\n"
        for trade in recorded
    ]
    assert [row.trade for row in BinanceSpotTrades().rows(SPOT, [header, *lines] if header else lines)] == recorded
