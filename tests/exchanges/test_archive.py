from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

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


def test_a_row_that_the_exchange_emptied_is_left_out_where_it_names_no_id_that_counts() -> None:
    assert not list(BinanceAggregates("spot").rows(SPOT, ["39002,0,0,-1,-1,1784851200054321,True,True\n"]))
    (row,) = BinanceAggregates("linear").rows(LINEAR, ["2902,0,0,-1,-1,1784851200054,true\n"])
    assert (row.number, row.last, row.trade.seq, row.trade.quantity, row.trade.fills) == (2902, 2902, 2902, 0, 0)


@pytest.mark.parametrize(
    ("form", "listing", "row", "given"),
    [
        (BinanceAggregates("spot"), SPOT, SPOT_ROW, "0.00120000"),
        (BinanceSpotTrades(), SPOT, TRADE_ROW, "0.00120000"),
        (BinanceAggregates("linear"), LINEAR, LINEAR_ROW, "0.120"),
        (BybitLinearTrades(), BYBIT_LINEAR, BYBIT_ROW, "0.003"),
        (BybitSpotTrades(), BYBIT_SPOT, BYBIT_SPOT_ROW, "0.000250"),
    ],
)
@pytest.mark.parametrize("zero", ["0", "0.000", "0e-8"])
def test_a_row_of_quantity_zero_carries_no_volume_and_costs_no_other_row_anything(
    form: ArchiveFormat, listing: Listing, row: str, given: str, zero: str
) -> None:
    (as_it_is,) = form.rows(listing, [row])
    before, empty, after = [each.trade for each in form.rows(listing, [row, row.replace(given, zero, 1), row])]
    assert before == after == as_it_is.trade
    assert (empty.seq, empty.timestamp, empty.quantity, empty.price, empty.fills) == (before.seq, before.timestamp, 0, 0, 0)


def test_columns_that_follow_the_documented_ones_change_nothing() -> None:
    for form, listing, row in (
        (BinanceAggregates("spot"), SPOT, SPOT_ROW),
        (BinanceSpotTrades(), SPOT, TRADE_ROW),
        (BinanceAggregates("linear"), LINEAR, LINEAR_ROW),
        (BybitLinearTrades(), BYBIT_LINEAR, BYBIT_ROW),
        (BybitSpotTrades(), BYBIT_SPOT, BYBIT_SPOT_ROW),
    ):
        longer = row.replace("\n", ",0.03,x\n")
        assert list(form.rows(listing, [longer, longer])) == list(form.rows(listing, [row, row]))


def test_a_header_finds_the_columns_of_binance_in_any_order_and_spelling() -> None:
    plain = list(BinanceAggregates("linear").rows(LINEAR, [LINEAR_ROW]))
    header = "AggTradeId,Price,normal_quantity,Quantity,firstTradeId,lastTradeId,transactTime,isBuyerMaker\n"
    named = LINEAR_ROW.replace(",0.120,", ",0.100,0.120,")
    assert list(BinanceAggregates("linear").rows(LINEAR, [header, named])) == plain
    documented = LINEAR_HEADER.replace("\n", ",normal_quantity\n"), LINEAR_ROW.replace("\n", ",0.120\n")
    assert list(BinanceAggregates("linear").rows(LINEAR, documented)) == plain


def test_a_header_may_have_fewer_names_than_there_are_columns() -> None:
    lines = ["id,timestamp,price,volume,side\n", BYBIT_SPOT_ROW]
    assert list(BybitSpotTrades().rows(BYBIT_SPOT, lines)) == list(BybitSpotTrades().rows(BYBIT_SPOT, [BYBIT_SPOT_ROW]))


@pytest.mark.parametrize(("size", "exact"), [("1.25e+06", "1250000"), ("1e-05", "0.00001"), ("3E-3", "0.003"), ("0.03e1", "0.3")])
def test_a_size_with_an_exponent_is_read_exactly(size: str, exact: str) -> None:
    (row,) = BybitLinearTrades().rows(BYBIT_LINEAR, [BYBIT_HEADER, BYBIT_ROW.replace("0.003", size, 1)])
    assert to_decimal(row.trade.quantity, row.trade.scale.quantity) == Decimal(exact)


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
        (BinanceAggregates("spot"), SPOT, SPOT_ROW, "64000.01000000", "0", "'0' is not above zero"),
        (BinanceAggregates("spot"), SPOT, SPOT_ROW, ",700,702,", ",702,700,", "-1 fills are impossible"),
        (BinanceAggregates("spot"), SPOT, SPOT_ROW, "1784851200054321", "1784851200", "time 1784851200 is not a time in milliseconds"),
        (BinanceAggregates("spot"), SPOT, SPOT_ROW, "True,True", "maybe,True", "'maybe' is neither true nor false"),
        (BinanceAggregates("spot"), SPOT, SPOT_ROW, ",True\n", "\n", "it has 7 columns, 8 are needed"),
        (BinanceSpotTrades(), SPOT, TRADE_ROW * 2, "True\n701", "True,0\n701", "it has 7 columns, 8 are needed"),
        (
            BinanceAggregates("linear"),
            LINEAR,
            LINEAR_ROW,
            "false\n",
            "false,true\n",
            "its last column is is_best_match, which files of spot",
        ),
        (BinanceAggregates("linear"), LINEAR, LINEAR_HEADER + LINEAR_ROW, "transact_time", "moment", "the header lacks transact_time"),
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


def test_a_line_that_cannot_be_read_may_be_left_out_and_a_line_of_another_symbol_may_not() -> None:
    for form, listing, row, given in (
        (BinanceAggregates("spot"), SPOT, SPOT_ROW, "64000.01000000"),
        (BinanceSpotTrades(), SPOT, TRADE_ROW, "64000.01000000"),
        (BinanceAggregates("linear"), LINEAR, LINEAR_ROW, "64000.1"),
        (BybitLinearTrades(), BYBIT_LINEAR, BYBIT_ROW, "64000.10"),
        (BybitSpotTrades(), BYBIT_SPOT, BYBIT_SPOT_ROW, "64000.1"),
    ):
        errors: list[ArchiveError] = []
        found = list(form.rows(listing, [row, row.replace(given, "cheap"), "short\n", row], errors.append))
        assert [each.trade for each in found] == [each.trade for each in form.rows(listing, [row, row])]
        assert ["line 2: 'cheap' is not a plain" in str(errors[0]), "line 3: it has 1 columns" in str(errors[1])] == [True, True]
    with pytest.raises(ArchiveError, match="symbol 'ETHUSDT' instead of 'BTCUSDT'"):
        list(BybitLinearTrades().rows(BYBIT_LINEAR, [BYBIT_ROW, BYBIT_ROW.replace("BTCUSDT", "ETHUSDT")], lambda _: None))


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


@pytest.mark.parametrize("symbol", ["币安人生USDT", "1000PEPEUSDT"])
@pytest.mark.parametrize(
    "form", [BinanceAggregates("spot"), BinanceSpotTrades(), BinanceAggregates("linear"), BybitLinearTrades(), BybitSpotTrades()]
)
def test_a_file_is_known_by_its_name_in_any_script_percent_encoded_or_not(form: ArchiveFormat, symbol: str) -> None:
    name = form.path(symbol, DAY).rpartition("/")[2]
    assert form.named(name) == form.named(quote(name)) == (symbol, DAY)


@pytest.mark.parametrize(
    "name",
    [
        "..-trades-2026-07-24.zip",
        "../BTCUSDT-trades-2026-07-24.zip",
        "..%2FBTCUSDT-trades-2026-07-24.zip",
        "BTC USDT-trades-2026-07-24.zip",
        "btcusdt-trades-2026-07-24.zip",
        "BTC.USDT-trades-2026-07-24.zip",
        "BTCUSDT-trades-2026-13-24.zip",
        "-trades-2026-07-24.zip",
        f"{'X' * 41}-trades-2026-07-24.zip",
        "BTC\u202eUSDT-trades-2026-07-24.zip",
    ],
)
def test_a_name_that_no_symbol_has_is_no_file_of_an_archive(name: str) -> None:
    assert BinanceSpotTrades().named(name) is None


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
