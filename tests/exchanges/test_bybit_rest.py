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
from wadm_mcp.exchanges.bybit import Bybit
from wadm_mcp.exchanges.exchange import Allowance, Candle, Exchange
from wadm_mcp.model import MINUTE, Instrument, Listing, Scale, Trade, TradeType, Window, to_decimal

from .hostile import hostile
from .test_bybit import LINEAR_ROW, SPOT_ROW, frame, trades_of

BYBIT: Exchange = Bybit()
SPOT = Listing(Instrument("bybit", "spot", "BTCUSDT"), Decimal("0.1"), Decimal("0.000001"))
LINEAR = Listing(Instrument("bybit", "linear", "BTCUSDT"), Decimal("0.1"), Decimal("0.001"))
RECENT_ROW: dict[str, Any] = {
    "execId": "20f43950-d8dd-5b31-9112-a178eb6023af", "symbol": "BTCUSDT", "price": "64474.20", "size": "0.001", "side": "Buy",
    "time": "1785060230817", "isBlockTrade": False, "isRPITrade": False, "seq": "715964329311",
}  # fmt: skip
MINUTE_ROW = ["1785060180000", "64474.20", "64480.00", "64470.10", "64475.00", "12.345", "795950.3"]


def envelope(result: Any) -> bytes:
    return json.dumps({"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": 1785060231000}).encode()


def recent(*rows: Any, category: str = "linear") -> bytes:
    return envelope({"category": category, "list": rows})


def minutes(*rows: Any, category: str = "linear") -> bytes:
    return envelope({"symbol": "BTCUSDT", "category": category, "list": rows})


def as_rest(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the trade socket as `recent-trade` has it."""
    names = {"i": "execId", "s": "symbol", "p": "price", "v": "size", "S": "side", "BT": "isBlockTrade", "RPI": "isRPITrade"}
    numbers = {"T": "time", "seq": "seq"}
    row = {key: value for key, value in row.items() if key in names or key in numbers}
    return {names.get(key) or numbers[key]: str(value) if key in numbers else value for key, value in row.items()}


def at(time: int, seq: int, trade_id: str, **changes: Any) -> dict[str, Any]:
    return {**RECENT_ROW, "time": str(1785060230000 + time), "seq": str(seq), "execId": trade_id, **changes}


def ids(*rows: Any) -> list[str]:
    return [trade.trade_id for trade in BYBIT.read_trades(LINEAR, recent(*rows))]


def test_a_row_is_one_trade_though_its_numbers_are_text() -> None:
    (trade,) = BYBIT.read_trades(LINEAR, recent(RECENT_ROW))
    assert trade == Trade(LINEAR.instrument, 1785060230817, 715964329311, RECENT_ROW["execId"], 644742, 1, TradeType.BUY, 1, Scale(1, 3))


@pytest.mark.parametrize(("listing", "row"), [(LINEAR, LINEAR_ROW), (SPOT, SPOT_ROW)])
@pytest.mark.parametrize("missing", ["", "seq", "RPI", "BT"])
def test_a_trade_is_equal_by_socket_and_by_rest(listing: Listing, row: dict[str, Any], missing: str) -> None:
    row = {key: value for key, value in row.items() if key != missing}
    market = listing.instrument.market
    (by_socket,) = trades_of(BYBIT.decoder(market, [listing]).decode(frame(row))).trades
    (by_rest,) = BYBIT.read_trades(listing, recent(as_rest(row), category=market))
    assert by_rest == by_socket
    assert by_rest.order == by_socket.order


def test_the_recorded_trades_are_equal_by_socket_and_by_rest_whatever_the_lists_direction(captures: Path) -> None:
    """The recording is of an older API: its rows are written as today's wire has them."""
    text = gzip.decompress((captures / "bybit-v2-2021" / "inverse_20210417.txt.gz").read_bytes()).decode()
    old = [json.loads(line.partition(": ")[2]) for line in text.splitlines() if ': {"topic":"trade.BTCUSD"' in line]
    rows: list[dict[str, Any]] = []
    for each in (one for message in old for one in message["data"]):
        figures = {"p": str(each["price"]), "v": str(each["size"]), "S": each["side"], "i": each["trade_id"]}
        rows.append({"T": each["trade_time_ms"], "s": "BTCUSD", **figures, "BT": False, "seq": each["cross_seq"]})
    assert len(rows) > 50
    listing = Listing(Instrument("bybit", "linear", "BTCUSD"), Decimal("0.5"), Decimal(1))
    wire = BYBIT.decoder("linear", [listing])
    by_socket = [trade for row in rows for trade in trades_of(wire.decode(frame(row, topic="publicTrade.BTCUSD"))).trades]
    for order in (rows, rows[::-1]):
        by_rest = BYBIT.read_trades(listing, recent(*map(as_rest, order)))
        assert by_rest == sorted(by_socket, key=lambda trade: (trade.timestamp, trade.seq))


def test_the_newest_may_come_first_or_last() -> None:
    rows = [at(1, 10, "a"), at(1, 11, "b"), at(2, 12, "c")]
    assert ids(*rows) == ids(*rows[::-1]) == ids(rows[1], rows[2], rows[0]) == ["a", "b", "c"]


def test_fills_with_one_sequence_keep_list_order_and_a_descending_list_is_reversed() -> None:
    rows = [at(1, 10, "z"), at(1, 10, "y", price="64474.30"), at(1, 10, "a", price="64474.40"), at(2, 12, "c")]
    assert ids(*rows) == ids(*rows[::-1]) == ["z", "y", "a", "c"]


def test_a_row_without_a_cross_sequence_is_ordered_by_its_time() -> None:
    rows = [{key: value for key, value in at(time, 0, name).items() if key != "seq"} for time, name in ((3, "c"), (1, "a"), (2, "b"))]
    read = BYBIT.read_trades(LINEAR, recent(*rows))
    assert [(trade.trade_id, trade.seq) for trade in read] == [(name, 1785060230000 + n) for n, name in enumerate("abc", 1)]


def test_a_block_trade_is_left_out_and_a_retail_improvement_is_a_trade() -> None:
    assert ids(at(1, 10, "block", isBlockTrade=True), at(2, 11, "retail", isRPITrade=True)) == ["retail"]
    assert ids(at(1, 10, "block", isBlockTrade=True)) == ids() == []


def test_a_finer_figure_widens_its_own_row_and_rounds_nothing() -> None:
    rows = [at(1, 1, "a"), at(2, 2, "b", price="64474.255"), at(3, 3, "c", size="0.00012")]
    read = BYBIT.read_trades(LINEAR, recent(*rows))
    assert [trade.scale for trade in read] == [Scale(1, 3), Scale(3, 3), Scale(1, 5)]
    assert [to_decimal(trade.price, trade.scale.price) for trade in read] == [Decimal(row["price"]) for row in rows]


@pytest.mark.parametrize(
    "change",
    [
        {"price": "0"},
        {"price": 64474.2},
        {"size": "1e300"},
        {"side": "buy"},
        {"time": "yesterday"},
        {"time": "1785060230"},
        {"execId": ""},
        {"execId": 2290000000587387109},
        {"seq": "-1"},
        {"seq": ""},
        {"seq": str(1 << 63)},
        {"isBlockTrade": "perhaps"},
    ],
)
def test_a_wrong_value_costs_its_own_row_alone_and_is_reported_with_its_path(change: dict[str, Any]) -> None:
    rows = [at(4, 40, "d"), {**at(3, 30, "c"), **change}, at(2, 20, "b"), at(1, 10, "a")]
    page = BYBIT.read_trades(LINEAR, recent(*rows))
    assert [trade.trade_id for trade in page] == ["a", "b", "d"]
    (unreadable,) = page.unreadable
    assert unreadable.why.endswith(f"`$.result.list[1].{next(iter(change))}`")
    assert unreadable.why.isprintable()
    # The list proves what follows the row, whichever way it runs.
    assert (
        [trade.trade_id for trade in page.unbroken]
        == [trade.trade_id for trade in BYBIT.read_trades(LINEAR, recent(*rows[::-1])).unbroken]
        == ["d"]
    )
    with pytest.raises(ExchangeError, match=r"^bybit linear sent trades of BTCUSDT that cannot be read: "):
        BYBIT.read_trades(LINEAR, recent(rows[1]))


def test_a_list_whose_direction_is_unknown_proves_nothing_beside_an_unreadable_row() -> None:
    assert BYBIT.read_trades(LINEAR, recent(at(1, 10, "x", price="-"), at(1, 10, "a"))).unbroken == []
    assert len(BYBIT.read_trades(LINEAR, recent(at(1, 10, "a"))).unbroken) == 1


def test_a_list_that_carries_another_symbol_is_refused() -> None:
    with pytest.raises(ExchangeError, match=r"carries symbol 'ETHUSDT' - at `\$\.result\.list`"):
        BYBIT.read_trades(LINEAR, recent(RECENT_ROW, {**RECENT_ROW, "symbol": "ETHUSDT"}))


def test_a_row_of_quantity_zero_carries_no_volume() -> None:
    page = BYBIT.read_trades(LINEAR, recent(at(2, 20, "b"), at(1, 10, "a", size="0.000", price="0")))
    assert [(trade.trade_id, trade.quantity, trade.fills) for trade in page] == [("a", 0, 0), ("b", 1, 1)]


def test_a_reply_of_the_other_market_is_not_taken_though_its_symbols_are_alike() -> None:
    with pytest.raises(ExchangeError, match="category 'linear'"):
        BYBIT.read_trades(SPOT, recent(RECENT_ROW))
    with pytest.raises(ExchangeError, match="category 'linear'"):
        BYBIT.read_candles(SPOT, minutes(MINUTE_ROW))


def test_minutes_have_their_volume_alone_and_come_out_oldest_first() -> None:
    later = [str(int(MINUTE_ROW[0]) + MINUTE), *MINUTE_ROW[1:5], "0", "0"]
    start = int(MINUTE_ROW[0])
    assert BYBIT.read_candles(LINEAR, minutes(later, MINUTE_ROW)) == [Candle(start, 12345, 3), Candle(start + MINUTE, 0, 3)]
    finer = [*MINUTE_ROW[:5], "12.34500001", "0"]
    assert BYBIT.read_candles(SPOT, minutes(finer, category="spot")) == [Candle(start, 1234500001, 8)]


@pytest.mark.parametrize(
    ("row", "seq"),
    [
        (MINUTE_ROW[:5], int(MINUTE_ROW[0])),
        (["1785060180001", *MINUTE_ROW[1:]], None),
        ([*MINUTE_ROW[:5], "-1", "0"], int(MINUTE_ROW[0])),
        ([*MINUTE_ROW[:5], "", "0"], int(MINUTE_ROW[0])),
        ({}, None),
        (None, None),
    ],
)
def test_a_row_that_is_no_minute_costs_itself_alone(row: Any, seq: int | None) -> None:
    before, after = ([str(int(MINUTE_ROW[0]) + shift), *MINUTE_ROW[1:]] for shift in (-MINUTE, MINUTE))
    page = BYBIT.read_candles(LINEAR, minutes(after, row, before))
    assert ([str(minute.start) for minute in page], page.served) == ([before[0], after[0]], 3)
    (unreadable,) = page.unreadable
    assert (unreadable.place, unreadable.seq) == (1, seq)
    assert unreadable.why.isprintable()
    # Where no row can be read the reply is something else.
    with pytest.raises(ExchangeError, match=r"^bybit linear sent minutes of BTCUSDT that cannot be read"):
        BYBIT.read_candles(LINEAR, minutes(row))


READERS = [BYBIT.read_trades, BYBIT.read_candles]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "invalid",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"retCode":"0"}',
        b'{"retCode":0}',
        b'{"retCode":0,"result":[]}',
        envelope({}),
    ],
)
def test_an_invalid_reply_is_one_error_line_that_names_the_market(read: Any, invalid: bytes) -> None:
    with pytest.raises(ExchangeError, match=r"^bybit linear sent \w+ of BTCUSDT that cannot be read: .* Check that") as caught:
        read(LINEAR, invalid)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("result", [{}, [], None, "", 5])
def test_an_error_is_in_the_exchanges_words_whatever_its_result(read: Any, result: Any) -> None:
    body = json.dumps({"retCode": 10001, "retMsg": "params error:\nsymbol invalid", "result": result, "time": 1}).encode()
    with pytest.raises(
        ExchangeError, match=r"^bybit linear refused \w+ of BTCUSDT and says: 'params error: symbol invalid' \(code 10001\)"
    ):
        read(LINEAR, body)


@pytest.mark.parametrize(("market", "most"), [("spot", "60"), ("linear", "1000")])
def test_the_newest_trades_are_asked_for_as_many_as_there_are(market: str, most: str) -> None:
    for first in (None, 5):
        request = BYBIT.trades_request(market, "BTCUSDT", first)
        assert request == ("/v5/market/recent-trade", {"category": market, "symbol": "BTCUSDT", "limit": most}, 1, False)


def test_minutes_are_asked_for_from_the_first_on() -> None:
    start = 1785060180000
    params = {"category": "linear", "symbol": "BTCUSDT", "interval": "1", "start": str(start)}
    hour = BYBIT.candles_request("linear", "BTCUSDT", Window(start + 5, start + 60 * MINUTE))
    assert hour == ("/v5/market/kline", {**params, "end": str(start + 60 * MINUTE - 1), "limit": "60"}, 1, False)
    day = BYBIT.candles_request("linear", "BTCUSDT", Window(start, start + 1_440 * MINUTE))
    assert (day.params["end"], day.params["limit"]) == (str(start + 1_000 * MINUTE - 1), "1000")


def test_there_are_no_aggregates() -> None:
    assert not any(traits.folds_history for traits in BYBIT.traits.values())
    with pytest.raises(NotImplementedError):
        BYBIT.aggregates_request("spot", "BTCUSDT", first=1)
    with pytest.raises(NotImplementedError):
        BYBIT.read_aggregates(SPOT, b"[]")


def test_the_rate_limit_is_the_documented_one() -> None:
    assert BYBIT.allowance("spot") == BYBIT.allowance("linear") == Allowance(600, 5, "", 600)


def record(symbol: str = "BTCUSDT", **changes: Any) -> dict[str, Any]:
    lots = {"basePrecision": "0.000001", "quotePrecision": "0.0000001", "minOrderQty": "0.000048", "maxOrderQty": "71.7"}
    filters = {"lotSizeFilter": lots, "priceFilter": {"tickSize": "0.1"}}
    return {"symbol": symbol, "baseCoin": "BTC", "quoteCoin": "USDT", "status": "Trading", **filters, **changes}


def contract(symbol: str = "BTCUSDT", **changes: Any) -> dict[str, Any]:
    lots = {"maxOrderQty": "1190.000", "minOrderQty": "0.001", "qtyStep": "0.001"}
    prices = {"minPrice": "0.10", "maxPrice": "1999999.80", "tickSize": "0.10"}
    return record(symbol, contractType="LinearPerpetual", priceScale="2", lotSizeFilter=lots, priceFilter=prices, **changes)


def reply(*records: Any, cursor: str | None = "") -> bytes:
    result = {"category": "linear", "list": records, "nextPageCursor": cursor}
    return json.dumps({"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": 1785060231000}).encode()


def test_a_listing_has_the_markets_own_quantity_step() -> None:
    assert BYBIT.read_listings("spot", reply(record())) == (
        [Listing(Instrument("bybit", "spot", "BTCUSDT"), Decimal("0.1"), Decimal("0.000001"), status="Trading")],
        "",
    )
    perpetual = Listing(Instrument("bybit", "linear", "BTCUSDT"), Decimal("0.1"), Decimal("0.001"), status="Trading")
    assert BYBIT.read_listings("linear", reply(contract()))[0] == [perpetual]
    assert perpetual.scale == Scale(1, 3)


def test_a_symbol_that_is_not_trading_says_so_and_a_dated_contract_is_left_out() -> None:
    future = contract("BTCUSDT-26DEC25") | {"contractType": "LinearFutures"}
    listings, _ = BYBIT.read_listings("linear", reply(contract("NEWUSDT", status="PreLaunch"), future))
    assert [(each.instrument.symbol, each.trading, each.status) for each in listings] == [("NEWUSDT", False, "PreLaunch")]


def test_linear_contracts_that_do_not_trade_are_in_lists_of_their_own() -> None:
    assert list(BYBIT.listing_states("spot")) == [""]
    states = BYBIT.listing_states("linear")
    assert [BYBIT.listings_request("linear", "", state).params.get("status") for state in states] == ["PreLaunch", None, "Delivering"]
    page = BYBIT.listings_request("linear", "first%3DBTC", "Delivering")
    assert (page.params["status"], page.params["cursor"]) == ("Delivering", "first=BTC")


def test_listings_are_asked_for_page_after_page() -> None:
    first = BYBIT.listings_request("linear", "")
    assert (first.path, first.params) == ("/v5/market/instruments-info", {"category": "linear", "limit": "1000"})
    _, cursor = BYBIT.read_listings("linear", reply(contract(), cursor="first%3DBTC%26last%3DETH"))
    assert BYBIT.listings_request("linear", cursor).params["cursor"] == "first=BTC&last=ETH"
    assert BYBIT.read_listings("linear", reply(contract(), cursor=None))[1] == ""


def test_one_malformed_record_costs_only_itself() -> None:
    malformed: list[Any] = [None, {"symbol": "A"}, record("B"), contract(""), record("C/D")]
    listings, _ = BYBIT.read_listings("linear", reply(*malformed, contract(".."), contract("A B"), contract(), contract("币安人生USDT")))
    assert [each.instrument.symbol for each in listings] == ["BTCUSDT", "币安人生USDT"]
    with pytest.raises(ExchangeError, match="cannot be read"):
        BYBIT.read_listings("linear", reply(*malformed))


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'{"retCode":"0"}', b'{"retCode":0}', b'{"retCode":0,"result":{}}', b"\xff"]
)
def test_an_unreadable_reply_is_an_error_that_names_the_market(body: bytes) -> None:
    with pytest.raises(ExchangeError, match=r"^bybit spot sent .* Check that"):
        BYBIT.read_listings("spot", body)


def test_an_error_body_is_an_error_in_the_exchanges_words() -> None:
    with pytest.raises(ExchangeError, match=r"^bybit spot refused .*Too many visits!.*code 10006.*Wait"):
        BYBIT.read_listings("spot", b'{"retCode":10006,"retMsg":"Too many visits!","result":{},"retExtInfo":{},"time":1}')


@settings(deadline=None)
@given(hostile([reply(record(), contract()).decode()]), st.sampled_from(["spot", "linear"]))
def test_a_hostile_list_of_symbols_is_listings_or_an_error_of_ours(body: bytes, market: str) -> None:
    said, listings = "", list[Listing]()
    try:
        listings, _ = BYBIT.read_listings(market, body)
    except ExchangeError as error:
        said = str(error)
    assert said.isprintable()
    assert all(each.tick and each.lot and min(each.tick, each.lot) > 0 for each in listings)
