from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wadm_mcp.errors import ExchangeError
from wadm_mcp.exchanges.binance import Binance
from wadm_mcp.exchanges.binance_rest import BAN_END
from wadm_mcp.exchanges.exchange import Aggregate, Allowance, Candle, Exchange
from wadm_mcp.model import HOUR, MINUTE, Instrument, Listing, Scale, Trade, TradeType, Window, to_decimal

from .test_binance import frames, listing, trades_of

BINANCE: Exchange = Binance()
SPOT = listing("spot")
LINEAR = listing("linear", tick="0.10", lot="0.001")
RAW_ROW: dict[str, Any] = {
    "id": 28457, "price": "4.00", "qty": "12.00000000", "quoteQty": "48.00", "time": 1499865549590,
    "isBuyerMaker": True, "isBestMatch": True,
}  # fmt: skip
SPOT_AGGREGATE: dict[str, Any] = {
    "a": 4022483483, "p": "64511.89000000", "q": "0.00288000", "f": 6534153222, "l": 6534153225, "T": 1785060230817,
    "m": False, "M": True,
}  # fmt: skip
LINEAR_AGGREGATE: dict[str, Any] = {
    "a": 3011222333, "p": "83680.00", "q": "0.120", "nq": "0.120", "f": 8121136400, "l": 8121136411, "T": 1790370834800, "m": True,
}  # fmt: skip
EMPTIED: dict[str, Any] = {"a": 4022483484, "p": "0", "q": "0", "f": -1, "l": -1, "T": 1785060230817, "m": True, "M": True}
MINUTE_ROW: list[Any] = [
    1785060180000, "64510.00000000", "64512.50000000", "64509.99000000", "64511.89000000", "12.34567000", 1785060239999,
    "796411.11884500", 308, "7.00001000", "451573.64510000", "0",
]  # fmt: skip


def body(*rows: Any) -> bytes:
    return json.dumps(rows).encode()


def test_a_row_of_spot_history_is_one_trade() -> None:
    (trade,) = BINANCE.read_trades(SPOT, body(RAW_ROW))
    assert trade == Trade(SPOT.instrument, 1499865549590, 28457, "28457", 400, 1_200_000, TradeType.SELL, 1, Scale(2, 5))


def test_the_rows_of_linear_history_are_its_aggregates() -> None:
    (trade,) = BINANCE.read_trades(LINEAR, body(LINEAR_AGGREGATE))
    assert trade == Trade(LINEAR.instrument, 1790370834800, 3011222333, "3011222333", 836800, 120, TradeType.SELL, 12, Scale(1, 3))


def test_a_spot_aggregate_names_its_own_id_and_the_raw_ids_it_folds() -> None:
    (aggregate,) = BINANCE.read_aggregates(SPOT, body(SPOT_AGGREGATE))
    trade = Trade(SPOT.instrument, 1785060230817, 6534153222, "6534153222", 6451189, 288, TradeType.BUY, 4, Scale(2, 5))
    assert aggregate == Aggregate(4022483483, 6534153225, trade)


def test_an_aggregate_of_one_fill_is_that_trade() -> None:
    raw = {"id": 5, "price": "4.00", "qty": "12.00", "quoteQty": "48.00", "time": 1499865549590, "isBuyerMaker": True}
    folded = {"a": 3, "p": "4.00000000", "q": "12.00000000", "f": 5, "l": 5, "T": 1499865549590, "m": True, "M": True}
    assert [each.trade for each in BINANCE.read_aggregates(SPOT, body(folded))] == BINANCE.read_trades(SPOT, body(raw))


def test_rows_come_out_by_id_whatever_their_order() -> None:
    rows = [{**RAW_ROW, "id": number} for number in (30, 28, 29)]
    assert [trade.seq for trade in BINANCE.read_trades(SPOT, body(*rows))] == [28, 29, 30]
    rows = [{**SPOT_AGGREGATE, "a": number} for number in (3, 2)]
    assert [each.number for each in BINANCE.read_aggregates(SPOT, body(*rows))] == [2, 3]
    rows = [{**LINEAR_AGGREGATE, "a": number} for number in (3, 2)]
    assert [trade.seq for trade in BINANCE.read_trades(LINEAR, body(*rows))] == [2, 3]
    assert BINANCE.read_trades(SPOT, b"[]") == BINANCE.read_aggregates(SPOT, b"[]") == BINANCE.read_candles(SPOT, b"[]") == []


def test_aggregates_that_the_exchange_marked_invalid_carry_no_volume_and_on_spot_no_id() -> None:
    assert [each.number for each in BINANCE.read_aggregates(SPOT, body(SPOT_AGGREGATE, EMPTIED))] == [4022483483]
    read = BINANCE.read_trades(LINEAR, body(EMPTIED, LINEAR_AGGREGATE))
    assert [(trade.seq, trade.quantity, trade.fills) for trade in read] == [(3011222333, 120, 12), (4022483484, 0, 0)]
    assert BINANCE.read_aggregates(SPOT, body(SPOT_AGGREGATE, EMPTIED)).served == 2


@pytest.mark.parametrize("zero", ["0", "0.000", "0E-8"])
def test_a_row_of_quantity_zero_is_an_id_without_volume(zero: str) -> None:
    before, empty, after = BINANCE.read_trades(SPOT, body(*[{**RAW_ROW, "id": n, "qty": zero if n == 8 else "12"} for n in (7, 8, 9)]))
    assert [(each.seq, each.quantity, each.fills) for each in (before, empty, after)] == [(7, 1_200_000, 1), (8, 0, 0), (9, 1_200_000, 1)]
    (folded,) = BINANCE.read_aggregates(SPOT, body({**SPOT_AGGREGATE, "p": "0", "q": zero}))
    assert (folded.trade.seq, folded.last, folded.trade.quantity) == (6534153222, 6534153225, 0)


def test_a_finer_figure_widens_its_own_row_and_rounds_nothing() -> None:
    rows = [RAW_ROW, {**RAW_ROW, "id": 28458, "price": "4.00000100"}, {**RAW_ROW, "id": 28459, "qty": "0.000001"}]
    read = BINANCE.read_trades(SPOT, body(*rows))
    assert [trade.scale for trade in read] == [Scale(2, 5), Scale(6, 5), Scale(2, 6)]
    assert [to_decimal(trade.price, trade.scale.price) for trade in read] == [Decimal(row["price"]) for row in rows]
    assert [to_decimal(trade.quantity, trade.scale.quantity) for trade in read] == [Decimal(row["qty"]) for row in rows]


@pytest.mark.parametrize(
    ("row", "change", "path"),
    [
        (RAW_ROW, {"price": "0.00"}, "$[1].price"),
        (RAW_ROW, {"price": 4.0}, "$[1].price"),
        (RAW_ROW, {"qty": "NaN"}, "$[1].qty"),
        (RAW_ROW, {"qty": "-1"}, "$[1].qty"),
        (RAW_ROW, {"id": "28457"}, "$[1].id"),
        (RAW_ROW, {"id": 1 << 63}, "$[1].id"),
        (RAW_ROW, {"time": 1499865549590000}, "$[1].time"),
        (RAW_ROW, {"isBuyerMaker": "true"}, "$[1].isBuyerMaker"),
        (SPOT_AGGREGATE, {"p": "0"}, "$[1].p"),
        (SPOT_AGGREGATE, {"l": 6534153221}, "$[1].l"),
        (SPOT_AGGREGATE, {"f": -1}, "$[1].l"),
        (SPOT_AGGREGATE, {"f": 0, "l": 1 << 40}, "$[1].l"),
        (SPOT_AGGREGATE, {"f": -2, "l": -2}, "$[1].f"),
    ],
)
def test_a_wrong_value_costs_its_own_row_alone_and_is_reported_with_its_path(
    row: dict[str, Any], change: dict[str, Any], path: str
) -> None:
    read = BINANCE.read_trades if row is RAW_ROW else BINANCE.read_aggregates
    key = "id" if row is RAW_ROW else "a"
    good, spoiled, last = row, {**row, key: row[key] + 1, **change}, {**row, key: row[key] + 2}
    page = read(SPOT, body(good, spoiled, last))
    assert page == read(SPOT, body(good, last))
    (unreadable,) = page.unreadable
    assert (page.served, unreadable.place, unreadable.seq) == (3, 1, None if key in change else row[key] + 1)
    assert unreadable.why.endswith(f"at `{path}`")
    assert unreadable.why.isprintable()
    # Where no row can be read the reply is something else.
    with pytest.raises(ExchangeError) as caught:
        read(SPOT, body(spoiled))
    assert str(caught.value).startswith("binance spot sent ")
    assert "of BTCUSDT that cannot be read: " in str(caught.value)
    assert f"at `{path.replace('[1]', '[0]')}`" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", ["id", "price", "qty", "time", "isBuyerMaker"])
def test_a_missing_key_is_reported_by_name(key: str) -> None:
    with pytest.raises(ExchangeError, match=f"`{key}`"):
        BINANCE.read_trades(SPOT, body({name: value for name, value in RAW_ROW.items() if name != key}))


def test_a_minute_has_its_volumes_at_one_scale() -> None:
    assert BINANCE.read_candles(SPOT, body(MINUTE_ROW)) == [Candle(1785060180000, 1234567, 5, 308, 700001)]
    finer = [*MINUTE_ROW[:9], "7.0000100001", *MINUTE_ROW[10:]]
    assert BINANCE.read_candles(SPOT, body(finer)) == [Candle(1785060180000, 123456700000, 10, 308, 70000100001)]
    finer = [*MINUTE_ROW[:5], "12.3456700001", *MINUTE_ROW[6:]]
    assert BINANCE.read_candles(SPOT, body(finer)) == [Candle(1785060180000, 123456700001, 10, 308, 70000100000)]


def test_a_minute_without_trades_is_a_minute() -> None:
    empty = [*MINUTE_ROW[:5], "0.00000000", MINUTE_ROW[6], "0.00000000", 0, "0.00000000", "0.00000000", "0"]
    assert BINANCE.read_candles(LINEAR, body(empty)) == [Candle(1785060180000, 0, 3, 0, 0)]


def test_minutes_come_out_oldest_first() -> None:
    later = [MINUTE_ROW[0] + MINUTE, *MINUTE_ROW[1:]]
    assert [each.start for each in BINANCE.read_candles(SPOT, body(later, MINUTE_ROW))] == [MINUTE_ROW[0], later[0]]


@pytest.mark.parametrize(
    ("row", "seq"),
    [
        (MINUTE_ROW[:9], MINUTE_ROW[0]),
        ([MINUTE_ROW[0] + 1, *MINUTE_ROW[1:]], None),
        ([*MINUTE_ROW[:5], "-1", *MINUTE_ROW[6:]], MINUTE_ROW[0]),
        ([*MINUTE_ROW[:5], "", *MINUTE_ROW[6:]], MINUTE_ROW[0]),
        ([*MINUTE_ROW[:8], -1, "1"], MINUTE_ROW[0]),
        ({}, None),
    ],
)
def test_a_row_that_is_no_minute_costs_itself_alone(row: Any, seq: int | None) -> None:
    before, after = ([MINUTE_ROW[0] + shift, *MINUTE_ROW[1:]] for shift in (-MINUTE, MINUTE))
    page = BINANCE.read_candles(SPOT, body(before, row, after))
    assert ([minute.start for minute in page], page.served) == ([before[0], after[0]], 3)
    (unreadable,) = page.unreadable
    assert (unreadable.place, unreadable.seq) == (1, seq)
    assert unreadable.why.isprintable()
    # Where no row can be read the reply is something else.
    with pytest.raises(ExchangeError, match=r"^binance spot sent minutes of BTCUSDT that cannot be read"):
        BINANCE.read_candles(SPOT, body(row))


READERS = [BINANCE.read_trades, BINANCE.read_aggregates, BINANCE.read_candles]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("invalid", [b"", b"<html>", b"{}", b"7", b"null", b"[[", b"[null]", b"\xff", b"[" * 100_000, b'{"code":"no"}'])
def test_an_invalid_reply_is_one_error_line_that_names_the_market(read: Any, invalid: bytes) -> None:
    with pytest.raises(ExchangeError, match=r"^binance spot sent \w+ of BTCUSDT that cannot be read: .* Check that") as caught:
        read(SPOT, invalid)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("read", READERS)
def test_an_error_body_instead_of_rows_is_an_error_in_the_exchanges_words(read: Any) -> None:
    with pytest.raises(ExchangeError, match=r"^binance spot refused \w+ of BTCUSDT and says: 'Invalid symbol' \(code -1121\)"):
        read(SPOT, b'{"code":-1121,"msg":"Invalid\\nsymbol."}')


def test_history_is_asked_for_by_id_as_much_as_one_reply_has() -> None:
    spot = BINANCE.trades_request("spot", "BTCUSDT", 28457)
    assert spot == ("/api/v3/historicalTrades", {"symbol": "BTCUSDT", "limit": "1000", "fromId": "28457"}, 25, True)
    linear = BINANCE.trades_request("linear", "BTCUSDT", 0)
    assert linear == ("/fapi/v1/aggTrades", {"symbol": "BTCUSDT", "limit": "1000", "fromId": "0"}, 20, False)
    for market in ("spot", "linear"):
        assert BINANCE.trades_request(market, "BTCUSDT").params == {"symbol": "BTCUSDT", "limit": "1000"}
    # The newest trades have an endpoint of their own, which the host of market data serves too.
    assert [BINANCE.trades_request(market, "BTCUSDT").path for market in ("spot", "linear")] == ["/api/v3/trades", "/fapi/v1/aggTrades"]


def test_aggregates_are_asked_for_by_time_or_by_their_own_id() -> None:
    by_time = BINANCE.aggregates_request("spot", "BTCUSDT", start=1785060230817)
    assert by_time == ("/api/v3/aggTrades", {"symbol": "BTCUSDT", "limit": "1000", "startTime": "1785060230817"}, 4, False)
    by_id = BINANCE.aggregates_request("spot", "BTCUSDT", first=7)
    assert by_id == ("/api/v3/aggTrades", {"symbol": "BTCUSDT", "limit": "1000", "fromId": "7"}, 4, False)
    assert {market: traits.folds_history for market, traits in BINANCE.traits.items()} == {"spot": True, "linear": False}
    rows = BINANCE.aggregates_request("linear", "BTCUSDT", start=7)
    assert rows == ("/fapi/v1/aggTrades", {"symbol": "BTCUSDT", "limit": "1000", "startTime": "7"}, 20, False)


@pytest.mark.parametrize(
    ("market", "minutes", "limit", "weight"),
    [
        ("spot", 1, 1, 2), ("spot", 60, 60, 2), ("spot", 1_440, 1_000, 2),
        ("linear", 1, 1, 1), ("linear", 60, 60, 1), ("linear", 99, 99, 1), ("linear", 100, 100, 2), ("linear", 499, 499, 2),
        ("linear", 500, 500, 5), ("linear", 1_440, 1_000, 5),
    ],
)  # fmt: skip
def test_a_candle_request_starts_at_the_first_minute_with_the_weight_of_its_limit(
    market: str, minutes: int, limit: int, weight: int
) -> None:
    start = 1785060180000
    request = BINANCE.candles_request(market, "BTCUSDT", Window(start, start + minutes * MINUTE))
    assert request.path == {"spot": "/api/v3/klines", "linear": "/fapi/v1/klines"}[market]
    last = start + limit * MINUTE - 1
    span = {"startTime": str(start), "endTime": str(last), "limit": str(limit)}
    assert request.params == {"symbol": "BTCUSDT", "interval": "1m", **span}
    assert request.weight == weight


def test_a_window_within_minutes_is_widened_to_whole_ones() -> None:
    start = 1785060180000
    request = BINANCE.candles_request("spot", "BTCUSDT", Window(start + 1, start + MINUTE + 1))
    assert (request.params["startTime"], request.params["endTime"]) == (str(start), str(start + 2 * MINUTE - 1))
    empty = BINANCE.candles_request("spot", "BTCUSDT", Window(start, start))
    assert (empty.params["endTime"], empty.params["limit"]) == (str(start + MINUTE - 1), "1")
    assert BINANCE.candles_request("spot", "BTCUSDT", Window(start, start + HOUR)).params["limit"] == "60"


def test_an_address_is_allowed_what_the_documents_say() -> None:
    assert BINANCE.allowance("spot") == Allowance(6_000, 60, "X-MBX-USED-WEIGHT-1M", 60, BAN_END)
    assert BINANCE.allowance("linear") == Allowance(2_400, 60, "X-MBX-USED-WEIGHT-1M", 60, BAN_END)


@pytest.mark.parametrize("name", ["btcusdt_20230405.dat.gz", "btcusdt_20240808.gz", "btcusdt_20240809.gz"])
def test_a_recorded_spot_trade_is_equal_by_socket_and_by_rest(captures: Path, name: str) -> None:
    recorded = list(frames(captures / "binance-spot" / name, "trade"))
    wire = BINANCE.decoder("spot", [SPOT])
    by_socket = [trades_of(wire.decode(frame)).trades[0] for frame in recorded]
    rows: list[dict[str, Any]] = []
    for frame in recorded:
        event = json.loads(frame)["data"]
        quote = f"{Decimal(event['p']) * Decimal(event['q']):.8f}"
        figures = {"id": event["t"], "price": event["p"], "qty": event["q"], "quoteQty": quote}
        rows.append({**figures, "time": event["T"], "isBuyerMaker": event["m"], "isBestMatch": event["M"]})
    assert BINANCE.read_trades(SPOT, body(*rows)) == by_socket


def test_a_recorded_aggregate_is_equal_by_socket_and_by_rest(captures: Path) -> None:
    listings = [listing("linear", symbol, "0.00001", "1") for symbol in ("SUSHIUSDT", "AKROUSDT", "KEEPUSDT", "CTKUSDT")]
    wire = BINANCE.decoder("linear", listings)
    recorded = list(frames(captures / "binance-linear" / "cryptofeed_aggtrade_20210722.txt", "aggTrade"))
    by_socket = [trades_of(wire.decode(frame)).trades[0] for frame in recorded]
    by_rest: list[Trade] = []
    for each in listings:
        events = [json.loads(frame)["data"] for frame in recorded]
        rows = [{key: event[key] for key in "apqflTm"} for event in events if event["s"] == each.instrument.symbol]
        by_rest += BINANCE.read_trades(each, body(*rows))
    assert sorted(by_rest, key=lambda trade: (trade.instrument, trade.seq)) == sorted(
        by_socket, key=lambda trade: (trade.instrument, trade.seq)
    )
    assert len(by_rest) == 91


def reply(path: Path) -> bytes:
    """The body in a recording whose first line is `url -> time: body`."""
    line = gzip.decompress(path.read_bytes()).splitlines()[0]
    return line[line.index(b'{"timezone"') :]


def test_the_recorded_spot_symbols_are_all_listed(captures: Path) -> None:
    listings, cursor = BINANCE.read_listings("spot", reply(captures / "reference" / "binance_spot_exchangeinfo_2021.txt.gz"))
    by_name = {each.instrument.symbol: each for each in listings}
    assert (len(listings), len(by_name), cursor) == (1695, 1695, "")
    assert sum(each.trading for each in listings) == 1262
    assert by_name["BTCUSDT"].scale == Scale(2, 5)
    assert (by_name["ETHBTC"].tick, by_name["ETHBTC"].lot) == (Decimal("0.000001"), Decimal("0.0001"))
    assert by_name["SHIBUSDT"].scale == Scale(8, 0)


def test_the_recorded_perpetuals_are_listed_and_contracts_with_a_delivery_date_are_not(captures: Path) -> None:
    body = reply(captures / "reference" / "binance_usdm_exchangeinfo_2021.txt.gz")
    records = json.loads(body)["symbols"]
    by_name = {each.instrument.symbol: each for each in BINANCE.read_listings("linear", body)[0]}
    assert len(records) == 122
    assert set(by_name) == {record["symbol"] for record in records if record["contractType"] in ("PERPETUAL", "")}
    assert len(by_name) == 120
    assert "BTCUSDT_210924" not in by_name
    for record in records:
        if record["symbol"] in by_name:
            filters = {each["filterType"]: each for each in record["filters"]}
            ours = by_name[record["symbol"]]
            assert ours.instrument == Instrument("binance", "linear", record["symbol"])
            assert ours.tick == Decimal(filters["PRICE_FILTER"]["tickSize"])
            assert ours.lot == Decimal(filters["LOT_SIZE"]["stepSize"])
            assert ours.trading == (record["status"] == "TRADING")


def record(symbol: str = "BTCUSDT", **changes: Any) -> dict[str, Any]:
    filters = [{"filterType": "LOT_SIZE", "stepSize": "0.00001000"}, {"filterType": "PRICE_FILTER", "tickSize": "0.01000000"}]
    return {"symbol": symbol, "status": "TRADING", "pricePrecision": 8, "filters": filters, **changes}


def test_perpetuals_of_metals_and_stocks_are_listed_by_their_own_kind_of_contract() -> None:
    kinds = {"BTCUSDT": "PERPETUAL", "XAUUSDT": "TRADIFI_PERPETUAL", "BTCUSDT_261225": "CURRENT_QUARTER"}
    body = json.dumps({"symbols": [record(symbol, contractType=kind) for symbol, kind in kinds.items()]}).encode()
    listings, _ = BINANCE.read_listings("linear", body)
    assert [each.instrument.symbol for each in listings] == ["BTCUSDT", "XAUUSDT"]


def test_a_symbol_that_does_not_trade_is_listed_with_the_exchanges_own_word_for_it() -> None:
    kinds = [record("POLUSDT"), record("MATICUSDT", status="BREAK"), record("ODDUSDT", status="BREAK\x1b[31m " + "x" * 100)]
    listings, _ = BINANCE.read_listings("spot", json.dumps({"symbols": kinds}).encode())
    assert [(each.trading, each.status) for each in listings[:2]] == [(True, "TRADING"), (False, "BREAK")]
    assert len(listings[2].status) == 40
    assert listings[2].status.isprintable()
    kinds = [
        record("BNXUSDT", status="SETTLING", contractType="PERPETUAL"),
        record("ENDUSDT", status="SETTLING", contractType="PERPETUAL_DELIVERING"),
    ]
    listings, _ = BINANCE.read_listings("linear", json.dumps({"symbols": kinds}).encode())
    assert [(each.instrument.symbol, each.trading, each.status) for each in listings] == [
        ("BNXUSDT", False, "SETTLING"),
        ("ENDUSDT", False, "SETTLING"),
    ]
    assert list(BINANCE.listing_states("linear")) == [""]


def test_one_malformed_record_costs_only_itself() -> None:
    malformed: list[Any] = [
        7, {"symbol": "A"}, record("B", filters=[]), record("C", filters=[{"filterType": "PRICE_FILTER", "tickSize": "0.00"}]),
        record("", status="TRADING"), record("A:B"), record("D", status=None),
    ]  # fmt: skip
    body = json.dumps({"symbols": [*malformed, record(), record("ETHUSDT", status="HALT")]}).encode()
    listings, _ = BINANCE.read_listings("spot", body)
    assert [(each.instrument.symbol, each.trading) for each in listings] == [("BTCUSDT", True), ("ETHUSDT", False)]
    with pytest.raises(ExchangeError, match="cannot be read"):
        BINANCE.read_listings("spot", json.dumps({"symbols": malformed}).encode())


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b"\xff", b'{"symbols":{}}', b'{"retCode":0}'])
def test_an_unreadable_reply_is_an_error_that_names_the_market(body: bytes) -> None:
    with pytest.raises(ExchangeError, match=r"^binance linear sent .* Check that"):
        BINANCE.read_listings("linear", body)


def test_an_error_body_is_an_error_in_the_exchanges_words() -> None:
    with pytest.raises(ExchangeError, match=r"^binance spot refused .*Way too much request weight used.*code -1003.*Wait"):
        BINANCE.read_listings("spot", b'{"code":-1003,"msg":"Way too much request weight used;\\nIP banned"}')


def test_listings_use_the_path_and_weight_of_the_market() -> None:
    assert BINANCE.listings_request("spot", "") == ("/api/v3/exchangeInfo", {}, 20, False)
    assert BINANCE.listings_request("linear", "") == ("/fapi/v1/exchangeInfo", {}, 1, False)


@settings(deadline=None)
@given(st.binary(max_size=64) | st.from_regex(r'\{"symbols":\[.*\]\}', fullmatch=True).map(str.encode))
def test_a_hostile_list_of_symbols_is_listings_or_an_error_of_ours(body: bytes) -> None:
    said, listings = "", list[Listing]()
    try:
        listings, _ = BINANCE.read_listings("spot", body)
    except ExchangeError as error:
        said = str(error)
    assert said.isprintable()
    assert all(each.tick and each.lot and min(each.tick, each.lot) > 0 for each in listings)
