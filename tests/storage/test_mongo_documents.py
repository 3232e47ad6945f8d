"""The content of documents, without a server: fields, BSON types, exact numbers."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any

import bson
import pytest
from bson import Binary, CodecOptions, DatetimeConversion, Decimal128, Int64, ObjectId
from bson.datetime_ms import DatetimeMS
from hypothesis import example, given
from hypothesis import strategies as st

from wadm_mcp.coverage.spans import SpanReason
from wadm_mcp.model import MINUTE, Instrument, Scale, Timeframe, Trade, TradeType
from wadm_mcp.storage import mongo_documents as documents

from . import BTC, ETH, T0, order_flow, piece, profile, span, stored_footprint, trade

OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)

sixty_four_bits = st.integers(0, 2**63 - 1)
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
trades = st.builds(
    Trade,
    st.builds(Instrument, st.sampled_from(["binance", "bybit"]), st.sampled_from(["spot", "linear"]), names),
    st.integers(0, 2**42),
    sixty_four_bits,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    sixty_four_bits,
    sixty_four_bits,
    st.sampled_from(TradeType),
    st.integers(1, 2**31 - 1),
    st.builds(Scale, st.integers(0, 18), st.integers(0, 18)),
)


def decoded(trade: Trade) -> dict[str, Any]:
    return bson.decode(bytes(documents.trade_documents([trade])[0].raw), OPTIONS)


@given(st.integers(-(10**34) + 1, 10**34 - 1), st.integers(0, 40))
@example(0, 5)
@example(-1, 0)
@example(10**34 - 1, 18)
def test_a_number_is_encoded_as_its_text_would_be(value: int, decimals: int) -> None:
    assert documents.decimal128(value, decimals).bid == Decimal128(f"{value}E-{decimals}").bid
    assert documents.integer_of(documents.decimal128(value, decimals)) == (value, decimals)


@given(st.integers(10**34, 10**60), st.sampled_from([1, -1]), st.integers(0, 40))
@example(10**34 * 10 + 5, 1, 2)
@example(10**34 * 10 + 15, 1, 2)
@example((10**34 - 1) * 10 + 5, -1, 2)
def test_a_sum_of_more_than_34_digits_is_rounded_half_to_even(value: int, sign: int, decimals: int) -> None:
    with localcontext(prec=34, rounding=ROUND_HALF_EVEN):
        expected = +Decimal(f"{sign * value}E-{decimals}")
    assert documents.decimal128(sign * value, decimals).to_decimal() == expected


@pytest.mark.parametrize("text", ["NaN", "sNaN", "Infinity", "-Infinity"])
def test_nan_and_infinity_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a number"):
        documents.integer_of(Decimal128(text))


def test_a_number_that_another_program_wrote_is_read_too() -> None:
    assert documents.integer_of(Decimal128("12E+3")) == (12_000, 0)
    assert documents.integer_of(Decimal128("-0.50")) == (-50, 2)


@given(trades)
def test_a_trade_is_read_back_unchanged_and_its_bytes_are_plain_bson(one: Trade) -> None:
    document = decoded(one)
    assert documents.trade_of(one.instrument, document) == one
    assert bson.encode(document) == documents.trade_documents([one])[0].raw


def test_a_trade_has_the_fields_and_types_of_the_data_model() -> None:
    document = decoded(trade(77, T0 + 1_234, trade_type=TradeType.SELL, fills=3))
    assert {name: type(value) for name, value in document.items()} == {
        "_id": ObjectId,
        "symbol": str,
        "price": Decimal128,
        "quantity": Decimal128,
        "timestamp": DatetimeMS,
        "trade_type": str,
        "trade_id": str,
        "exchange": str,
        "market": str,
        "fills": int,
        "seq": Int64,
    }
    del document["_id"]
    assert document == {
        "symbol": "BTCUSDT",
        "price": Decimal128("61837.63"),
        "quantity": Decimal128("0.01500"),
        "timestamp": DatetimeMS(T0 + 1_234),
        "trade_type": "SELL",
        "trade_id": "77",
        "exchange": "binance",
        "market": "spot",
        "fills": 3,
        "seq": 77,
    }


def test_the_document_id_of_a_trade_depends_only_on_its_identity() -> None:
    here = decoded(trade(1, T0 + 1_001))["_id"]
    assert decoded(trade(2, T0 + 1_999, trade_id="1", price=5, scale=Scale(3, 3)))["_id"] == here
    assert here.binary[:4] == (T0 // 1_000 + 1).to_bytes(4, "big")
    others = [trade(2, T0 + 1_001), trade(1, T0 + 2_001), trade(1, T0 + 1_001, instrument=ETH)]
    others += [trade(1, T0 + 1_001, instrument=Instrument("binance", "linear", "BTCUSDT"))]
    assert len({here, *(decoded(other)["_id"] for other in others)}) == 5


def test_ids_of_numbered_trades_come_in_their_order() -> None:
    ids = [decoded(trade(number, T0 + number // 3))["_id"] for number in range(999_990, 1_000_010)]
    assert ids == sorted(ids)


@pytest.mark.parametrize("name", ["7", "07", "0", "7 ", "٧", str(2**36 - 1), str(2**36), str(2**36 + 7), "+7", "1_0", "7" * 40, "b-7"])
def test_no_two_trade_ids_share_a_document_id(name: str) -> None:
    others = ["7", "07", "0", "7 ", "٧", str(2**36 - 1), str(2**36), str(2**36 + 7), "+7", "1_0", "10", "7" * 40, "b-7", ""]
    found = {other: decoded(trade(1, trade_id=other))["_id"] for other in others}
    assert [other for other, one in found.items() if one == found[name]] == [name]


@pytest.mark.parametrize("one", [trade(2**63), trade(1, price=-1), trade(1, quantity=2**64), trade(1, fills=2**31)])
def test_a_number_beyond_its_type_is_refused(one: Trade) -> None:
    with pytest.raises(ValueError, match=f"trade {one.trade_id} of binance:spot:BTCUSDT"):
        documents.trade_documents([one])


def test_a_profile_has_the_fields_and_types_of_the_data_model() -> None:
    traded = [trade(1, price=100_00, quantity=5), trade(2, price=100_01, quantity=7, trade_type=TradeType.SELL, fills=2)]
    document = documents.profile_document(profile(T0, traded, timeframe=Timeframe.M5, revision=2))
    assert {name: type(value) for name, value in document.items()} == {
        "_id": ObjectId,
        "symbol": str,
        "timeframe": str,
        "start_time": DatetimeMS,
        "end_time": DatetimeMS,
        "poc": Decimal128,
        "vah": Decimal128,
        "val": Decimal128,
        "nodes": list,
        "exchange": str,
        "market": str,
        "row_size": Decimal128,
        "method": str,
        "rule_version": int,
        "revision": int,
    }
    del document["_id"]
    assert document == {
        "symbol": "BTCUSDT",
        "timeframe": "5m",
        "start_time": DatetimeMS(T0),
        "end_time": DatetimeMS(T0 + 5 * MINUTE),
        "poc": Decimal128("100.01"),
        "vah": Decimal128("100.01"),
        "val": Decimal128("100.00"),
        "nodes": [
            {
                "price_level": Decimal128("100.00"),
                "volume": Decimal128("0.00005"),
                "buy_volume": Decimal128("0.00005"),
                "sell_volume": Decimal128("0.00000"),
                "trade_count": 1,
            },
            {
                "price_level": Decimal128("100.01"),
                "volume": Decimal128("0.00007"),
                "buy_volume": Decimal128("0.00000"),
                "sell_volume": Decimal128("0.00007"),
                "trade_count": 2,
            },
        ],
        "exchange": "binance",
        "market": "spot",
        "row_size": Decimal128("0.01"),
        "method": "two_row",
        "rule_version": 1,
        "revision": 2,
    }
    assert type(document["nodes"][0]["trade_count"]) is Int64


def test_a_profile_document_states_the_rule_that_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wadm_mcp.analytics.volume_profile.RULE_VERSION", 7)
    assert documents.profile_document(profile(T0, [trade(1)]))["rule_version"] == 7


def test_order_flow_has_the_fields_and_types_of_the_data_model() -> None:
    traded = [trade(1, price=100_00, quantity=5), trade(2, price=100_01, quantity=7, trade_type=TradeType.SELL, fills=2)]
    document = documents.order_flow_document(order_flow(T0, traded, cumulative_delta=-12, revision=1))
    assert type(document.pop("_id")) is ObjectId
    assert type(document["trade_count"]) is Int64
    assert type(document["imbalance_ratio"]) is float
    assert document == {
        "symbol": "BTCUSDT",
        "timeframe": "1m",
        "timestamp": DatetimeMS(T0),
        "delta": Decimal128("-0.00002"),
        "cumulative_delta": Decimal128("-0.00012"),
        "volume": Decimal128("0.00012"),
        "buy_volume": Decimal128("0.00005"),
        "sell_volume": Decimal128("0.00007"),
        "imbalance_ratio": -0.166667,
        "exchange": "binance",
        "market": "spot",
        "open": Decimal128("100.00"),
        "high": Decimal128("100.01"),
        "low": Decimal128("100.00"),
        "close": Decimal128("100.01"),
        "trade_count": 3,
        "min_delta": Decimal128("-0.00002"),
        "max_delta": Decimal128("0.00005"),
        "revision": 1,
    }


def test_figures_that_cannot_be_computed_are_null() -> None:
    nothing = dict.fromkeys(("poc", "vah", "val", "row_size", "method", "rule_version"))
    assert documents.profile_document(profile(T0)).items() >= nothing.items()
    assert documents.profile_document(profile(T0))["nodes"] == []
    flow = documents.order_flow_document(order_flow(T0))
    unknown = ("open", "high", "low", "close", "min_delta", "max_delta", "imbalance_ratio")
    assert [flow[name] for name in unknown] == [None] * len(unknown)
    assert flow["volume"] == Decimal128("0.00000")


def test_packed_documents_have_only_key_fields_and_the_packed_value() -> None:
    document = documents.footprint_document(stored_footprint(T0, [trade(1)]))
    assert {name: type(value) for name, value in document.items()} == {
        "_id": ObjectId,
        "exchange": str,
        "market": str,
        "symbol": str,
        "timeframe": str,
        "start_time": DatetimeMS,
        "revision": int,
        "packed": Binary,
    }
    assert set(documents.bar_document(order_flow(T0))) == {*document, "cumulative_delta"}


def test_one_bar_has_one_document_id_in_every_revision() -> None:
    bars = {(instrument, timeframe, start) for instrument in (BTC, ETH) for timeframe in Timeframe for start in (T0, T0 + 1)}
    assert len({documents.derived_id(*bar) for bar in bars}) == len(bars)
    first, again = stored_footprint(T0, [trade(1)]), stored_footprint(T0, revision=9)
    assert documents.footprint_document(first)["_id"] == documents.footprint_document(again)["_id"]


def test_a_span_is_identified_by_its_instrument_start_and_first_id() -> None:
    stored = span(T0, T0 + 5, 4, 9)
    assert documents.span_id(BTC, span(T0, T0 + 9, 4, 20, reason=SpanReason.REPAIRED)) == documents.span_id(BTC, stored)
    others = [(BTC, span(T0 + 1, T0 + 5, 4, 9)), (BTC, span(T0, T0 + 5, 5, 9)), (ETH, stored)]
    assert documents.span_id(BTC, stored) not in [documents.span_id(*one) for one in others]


def test_a_span_of_an_earlier_release_has_rows() -> None:
    document = {"start": T0, "end": T0 + 5, "first_seq": 1, "last_seq": 2, "basis": "exact", "reason": "live", "opened_by": "start"}
    assert documents.span_of(document) == span(T0, T0 + 5)


def test_a_piece_comes_back_as_it_was() -> None:
    document = bson.decode(bson.encode(documents.piece_document(piece(T0, 7))), OPTIONS)
    assert documents.piece_of(BTC, document) == piece(T0, 7)


def test_a_time_beyond_64_bits_is_the_last_date() -> None:
    assert int(documents.date(1 << 70)) == (1 << 63) - 1
    assert int(documents.date(-(1 << 70))) == -(1 << 63)
