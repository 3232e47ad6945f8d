from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wadm_mcp.errors import FrameError
from wadm_mcp.exchanges.binance import Binance
from wadm_mcp.exchanges.exchange import Acknowledged, Decoder, Exchange, Refused, ShuttingDown, Trades
from wadm_mcp.model import MAX_SYMBOL_CHARS, Instrument, Listing, Scale, TradeType, to_decimal

from .hostile import hostile

BINANCE: Exchange = Binance()
SPOT: dict[str, Any] = {
    "e": "trade", "E": 1785060230818, "s": "BTCUSDT", "t": 6534153222, "p": "64511.89000000", "q": "0.00288000",
    "T": 1785060230817, "m": False, "M": True,
}  # fmt: skip
AGGREGATE: dict[str, Any] = {
    "e": "aggTrade", "E": 1790370834850, "s": "BTCUSDT", "a": 3011222333, "p": "83680.00", "q": "0.120", "nq": "0.120",
    "f": 8121136400, "l": 8121136411, "T": 1790370834800, "m": True, "st": 1,
}  # fmt: skip


def listing(market: str, symbol: str = "BTCUSDT", tick: str = "0.01", lot: str = "0.00001") -> Listing:
    return Listing(Instrument("binance", market, symbol), Decimal(tick), Decimal(lot))


def decoder(market: str) -> Decoder:
    return BINANCE.decoder(market, [listing(market), listing(market, "ETHUSDT")])


def trades_of(message: object) -> Trades:
    assert isinstance(message, Trades)
    return message


@pytest.mark.parametrize("as_bytes", [True, False])
def test_a_spot_frame_is_one_trade(as_bytes: bool) -> None:
    frame = json.dumps(SPOT)
    message = trades_of(decoder("spot").decode(frame.encode() if as_bytes else frame))
    (trade,) = message.trades
    assert message.instrument == trade.instrument == Instrument("binance", "spot", "BTCUSDT")
    assert (message.event_time, message.set_aside) == (1785060230818, 0)
    assert (trade.timestamp, trade.seq, trade.trade_id, trade.fills) == (1785060230817, 6534153222, "6534153222", 1)
    assert (trade.price, trade.quantity, trade.scale) == (6451189, 288, Scale(2, 5))
    assert trade.trade_type is TradeType.BUY


def test_an_older_spot_frame_with_order_ids_reads_the_same() -> None:
    older = {**SPOT, "b": 20720542158, "a": 20720542592}
    assert decoder("spot").decode(json.dumps(older)) == decoder("spot").decode(json.dumps(SPOT))


def test_a_linear_frame_is_one_aggregate_known_by_its_own_id() -> None:
    (trade,) = trades_of(decoder("linear").decode(json.dumps(AGGREGATE))).trades
    assert (trade.seq, trade.trade_id, trade.fills, trade.timestamp) == (3011222333, "3011222333", 12, 1790370834800)
    assert (to_decimal(trade.price, trade.scale.price), to_decimal(trade.quantity, trade.scale.quantity)) == (
        Decimal(83680),
        Decimal("0.12"),
    )


@pytest.mark.parametrize(("maker", "side"), [(True, TradeType.SELL), (False, TradeType.BUY)])
def test_a_buyer_who_was_the_maker_means_that_the_taker_sold(maker: bool, side: TradeType) -> None:
    for market, event in (("spot", SPOT), ("linear", AGGREGATE)):
        (trade,) = trades_of(decoder(market).decode(json.dumps({**event, "m": maker}))).trades
        assert trade.trade_type is side


def test_a_combined_frame_means_what_its_event_means() -> None:
    for market, event in (("spot", SPOT), ("linear", AGGREGATE)):
        stream = f"btcusdt@{event['e']}"
        assert decoder(market).decode(json.dumps({"stream": stream, "data": event})) == decoder(market).decode(json.dumps(event))
        # The keys may come in any order.
        assert decoder(market).decode(json.dumps({"data": event, "stream": stream})) == decoder(market).decode(json.dumps(event))


def test_a_finer_figure_widens_the_scale_from_then_on_and_rounds_nothing() -> None:
    wire = decoder("spot")
    prices = ["64511.89", "64511.8905", "64511.90000000"]
    read = [trades_of(wire.decode(json.dumps({**SPOT, "p": price}))).trades[0] for price in prices]
    assert [trade.scale.price for trade in read] == [2, 4, 4]
    assert [to_decimal(trade.price, trade.scale.price) for trade in read] == [Decimal(price) for price in prices]
    other = trades_of(wire.decode(json.dumps({**SPOT, "s": "ETHUSDT"}))).trades[0]
    assert other.scale == Scale(2, 5)


def test_one_absurdly_fine_print_does_not_put_later_trades_out_of_reach() -> None:
    wire = decoder("spot")
    wire.decode(json.dumps({**SPOT, "p": "0.000000000000000001"}))
    (trade,) = trades_of(wire.decode(json.dumps(SPOT))).trades
    assert to_decimal(trade.price, trade.scale.price) == Decimal("64511.89")


def test_a_refused_frame_changes_no_scale() -> None:
    wire = decoder("spot")
    with pytest.raises(FrameError):
        wire.decode(json.dumps({**SPOT, "p": "64511.890001", "q": "-"}))
    assert trades_of(wire.decode(json.dumps(SPOT))).trades[0].scale == Scale(2, 5)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"t": "6534153222"}, "$.t"),
        ({"t": -1}, "$.t"),
        ({"t": 1 << 63}, "$.t"),
        ({"t": 1.5}, "$.t"),
        ({"t": True}, "$.t"),
        ({"p": 64511.89}, "$.p"),
        ({"p": "0.00000000"}, "$.p"),
        ({"p": "-1.0"}, "$.p"),
        ({"p": "NaN"}, "$.p"),
        ({"p": "1e50"}, "$.p"),
        ({"p": ""}, "$.p"),
        ({"p": "١.٥"}, "$.p"),
        ({"p": "99999999999999999999"}, "$.p"),
        ({"q": "-0"}, "$.q"),
        ({"q": "Infinity"}, "$.q"),
        ({"q": None}, "$.q"),
        ({"E": "now"}, "$.E"),
        ({"T": 1_230_767_999_999}, "$.T"),
        ({"T": 1785060230}, "$.T"),
        ({"T": 1785060230817000}, "$.T"),
        ({"E": 4_102_444_800_001}, "$.E"),
        ({"m": "false"}, "$.m"),
        ({"s": "XRPUSDT"}, "$.s"),
        ({"s": "btcusdt"}, "$.s"),
        ({"s": 1}, "$.s"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_names_its_path(change: dict[str, Any], path: str) -> None:
    for frame, at in (({**SPOT, **change}, path), ({"stream": "btcusdt@trade", "data": {**SPOT, **change}}, path.replace("$", "$.data"))):
        with pytest.raises(FrameError) as caught:
            decoder("spot").decode(json.dumps(frame))
        assert str(caught.value).startswith("binance spot frame: ")
        assert str(caught.value).endswith(f"at `{at}`")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zero", ["0", "0.000", "0E-8"])
@pytest.mark.parametrize("price", ["0", "64511.89", "no number"])
def test_a_frame_of_quantity_zero_is_an_id_without_volume(zero: str, price: str) -> None:
    for market, event in (("spot", SPOT), ("linear", AGGREGATE)):
        (trade,) = trades_of(decoder(market).decode(json.dumps({**event, "p": price, "q": zero}))).trades
        (whole,) = trades_of(decoder(market).decode(json.dumps(event))).trades
        assert (trade.seq, trade.timestamp, trade.trade_id) == (whole.seq, whole.timestamp, whole.trade_id)
        assert (trade.quantity, trade.price, trade.fills) == (0, 0, 0)


def test_a_figure_with_an_exponent_is_read_exactly() -> None:
    (trade,) = trades_of(decoder("spot").decode(json.dumps({**SPOT, "p": "6.451189e4", "q": "2.88E-3"}))).trades
    assert trade == trades_of(decoder("spot").decode(json.dumps({**SPOT, "p": "64511.89", "q": "0.00288"}))).trades[0]


@pytest.mark.parametrize("key", ["E", "s", "t", "p", "q", "T", "m"])
def test_a_missing_key_is_refused_by_name(key: str) -> None:
    with pytest.raises(FrameError, match=f"`{key}`"):
        decoder("spot").decode(json.dumps({name: value for name, value in SPOT.items() if name != key}))


@pytest.mark.parametrize("change", [{"l": 8121136399}, {"f": -1, "l": -1}, {"f": 0, "l": 1 << 40}, {"f": "8121136400"}])
def test_an_aggregate_of_no_fills_or_of_absurdly_many_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(FrameError, match=r"at `\$\.[fl]`"):
        decoder("linear").decode(json.dumps({**AGGREGATE, **change}))


def test_a_stream_that_carries_another_symbol_is_refused() -> None:
    with pytest.raises(FrameError, match=r"ethusdt@trade.*BTCUSDT"):
        decoder("spot").decode(json.dumps({"stream": "ethusdt@trade", "data": SPOT}))


@pytest.mark.parametrize(
    "frame",
    [
        b"", b"{", b"null", b"[]", b"7", b'"trade"', b"{}", b"\xff\xfe", b'{"e":"trade"}', b'{"e":5}', b'{"stream":"btcusdt@trade"}',
        b"[" * 100_000, b'{"e":"trade","x":' + b"[" * 100_000, b'{"id":1}', b'{"result":null,"id":{}}', b'{"error":"no","id":1}',
        '{"e":"\ud800"}', b'{"e":"trade","t":' + b"9" * 10_000 + b"}",
    ],
)  # fmt: skip
def test_what_is_neither_an_event_nor_an_answer_is_refused(frame: str | bytes) -> None:
    with pytest.raises(FrameError) as caught:
        decoder("spot").decode(frame)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_an_acknowledgement_names_its_request() -> None:
    assert decoder("spot").decode('{"result":null,"id":7}') == Acknowledged("7")
    assert decoder("linear").decode('{"id":"a1","result":["btcusdt@aggTrade"]}') == Acknowledged("a1")


def test_a_refusal_is_understood_flat_and_nested() -> None:
    flat = decoder("spot").decode('{"code":2,"msg":"Invalid request: unknown variant","id":3}')
    nested = decoder("spot").decode('{"error":{"code":4,"msg":"Too many subscriptions"},"id":19}')
    assert flat == Refused("3", "Invalid request: unknown variant (code 2)")
    assert nested == Refused("19", "Too many subscriptions (code 4)")


def test_an_announced_shutdown_is_understood_raw_and_combined() -> None:
    raw = '{"e":"serverShutdown","E":1770123456789}'
    for market in ("spot", "linear"):
        assert decoder(market).decode(raw) == ShuttingDown()
        assert decoder(market).decode(f'{{"stream":"!serverShutdown","data":{raw}}}') == ShuttingDown()


def test_other_valid_events_are_ignored() -> None:
    assert decoder("spot").decode(json.dumps(AGGREGATE)) is None
    assert decoder("linear").decode(json.dumps(SPOT)) is None
    assert decoder("spot").decode('{"e":"24hrTicker","E":1785060230818,"s":"BTCUSDT"}') is None
    book = {"stream": "btcusdt@bookTicker", "data": {"u": 400900217, "s": "BTCUSDT", "b": "25.35", "B": "31", "a": "25.36", "A": "40"}}
    assert decoder("spot").decode(json.dumps(book)) is None


def test_subscriptions_are_lower_case_names_on_the_markets_own_route() -> None:
    assert BINANCE.stream_path("spot") == "/ws"
    assert BINANCE.stream_path("linear") == "/market/ws"
    assert json.loads(BINANCE.subscribe("spot", ["BTCUSDT", "ETHUSDT"], 1)) == {
        "method": "SUBSCRIBE", "params": ["btcusdt@trade", "ethusdt@trade"], "id": 1,
    }  # fmt: skip
    assert json.loads(BINANCE.subscribe("linear", ["BTCUSDT"], 2))["params"] == ["btcusdt@aggTrade"]
    assert json.loads(BINANCE.unsubscribe("linear", ["BTCUSDT"], 3)) == {"method": "UNSUBSCRIBE", "params": ["btcusdt@aggTrade"], "id": 3}


@pytest.mark.parametrize("market", ["spot", "linear"])
def test_the_longest_subscribe_request_stays_below_what_the_exchange_drops_in_silence(market: str) -> None:
    limits = BINANCE.limits(market)
    symbols = [f"{place:04}币安人生1000000MOG_260327USDT" for place in range(limits.names_per_request)]
    assert len(BINANCE.subscribe(market, symbols, 1 << 62).encode()) < 4_000
    longest = [f"{place:04}{'币' * 36}" for place in range(limits.names_per_request)]
    assert all(len(symbol) == MAX_SYMBOL_CHARS for symbol in longest)
    assert len(BINANCE.subscribe(market, longest, 1 << 62).encode()) < 4_000
    assert limits.lifetime == 24 * 3600
    assert limits.ping_every is None
    assert limits.requests_per_second < {"spot": 5, "linear": 10}[market] / 2 + 0.1
    assert BINANCE.traits[market].has_gapless_ids


def frames(path: Path, kind: str) -> Iterator[str]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    for line in text.splitlines():
        _, found, frame = line.partition(' {"stream":')
        if found and f"@{kind}" in frame:
            yield '{"stream":' + frame


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("btcusdt_20230405.dat.gz", 3071245454, 3071248597),
        ("btcusdt_20240808.gz", 3735683259, 3735693015),
        ("btcusdt_20240809.gz", 3735693016, 3735703162),
    ],
)
def test_every_recorded_spot_trade_is_read_exactly(captures: Path, name: str, first: int, last: int) -> None:
    recorded = list(frames(captures / "binance-spot" / name, "trade"))
    events = [json.loads(frame)["data"] for frame in recorded]
    for combined in (True, False):
        wire = decoder("spot")
        read = [
            trades_of(wire.decode(frame if combined else json.dumps(event))).trades[0]
            for frame, event in zip(recorded, events, strict=True)
        ]
        assert [trade.seq for trade in read] == list(range(first, last + 1))
        assert [trade.timestamp for trade in read] == [event["T"] for event in events]
        assert all(trade.scale == Scale(2, 5) for trade in read)
        for side, maker in ((TradeType.BUY, False), (TradeType.SELL, True)):
            ours = sum(trade.quantity for trade in read if trade.trade_type is side)
            notional = sum(trade.price * trade.quantity for trade in read if trade.trade_type is side)
            theirs = [(Decimal(event["p"]), Decimal(event["q"])) for event in events if event["m"] is maker]
            assert to_decimal(ours, 5) == sum(quantity for _, quantity in theirs)
            assert to_decimal(notional, 7) == sum(price * quantity for price, quantity in theirs)


def test_every_recorded_aggregate_is_read_exactly(captures: Path) -> None:
    recorded = list(frames(captures / "binance-linear" / "cryptofeed_aggtrade_20210722.txt", "aggTrade"))
    symbols = ["SUSHIUSDT", "AKROUSDT", "KEEPUSDT", "CTKUSDT"]
    wire = BINANCE.decoder("linear", [listing("linear", symbol, "0.00001", "1") for symbol in symbols])
    read = [trades_of(wire.decode(frame)).trades[0] for frame in recorded]
    events = [json.loads(frame)["data"] for frame in recorded]
    assert len(read) == 91
    assert {trade.instrument.symbol for trade in read} == set(symbols)
    for trade, event in zip(read, events, strict=True):
        assert (trade.seq, trade.fills) == (event["a"], event["l"] - event["f"] + 1)
        assert to_decimal(trade.price, trade.scale.price) == Decimal(event["p"])
        assert to_decimal(trade.quantity, trade.scale.quantity) == Decimal(event["q"])
    for symbol in symbols:
        ids = [trade.seq for trade in read if trade.instrument.symbol == symbol]
        assert ids == list(range(ids[0], ids[0] + len(ids)))


def test_the_other_recorded_frames_are_ignored(captures: Path) -> None:
    path = captures / "binance-linear" / "cryptofeed_aggtrade_20210722.txt"
    others = [frame for kind in ("depth", "kline", "bookTicker") for frame in frames(path, kind)]
    assert len(others) > 100
    assert {decoder("linear").decode(frame) for frame in others} == {None}


VALID = {
    market: [
        json.dumps(event),
        json.dumps({"stream": f"btcusdt@{event['e']}", "data": event}),
        '{"result":null,"id":1}',
        '{"error":{"code":2,"msg":"Invalid request"},"id":2}',
        '{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1770123456789}}',
    ]
    for market, event in (("spot", SPOT), ("linear", AGGREGATE))
}


@settings(deadline=None)
@given(st.data(), st.sampled_from(["spot", "linear"]))
def test_whatever_arrives_the_next_valid_frame_reads_as_before(data: st.DataObject, market: str) -> None:
    wire = decoder(market)
    frame = data.draw(hostile(VALID[market]))
    said, message = "", None
    try:
        message = wire.decode(frame)
    except FrameError as error:
        said = str(error)
    assert said.isprintable()
    assert message is None or isinstance(message, Trades | Acknowledged | Refused | ShuttingDown)
    for trade in message.trades if isinstance(message, Trades) else ():
        assert 0 < trade.price < 1 << 63
        assert 0 < trade.quantity < 1 << 63
        assert 0 <= trade.seq < 1 << 63
        assert trade.fills > 0
    (before,), (after,) = (trades_of(each.decode(VALID[market][0])).trades for each in (decoder(market), wire))
    assert to_decimal(after.price, after.scale.price) == to_decimal(before.price, before.scale.price)
    assert to_decimal(after.quantity, after.scale.quantity) == to_decimal(before.quantity, before.scale.quantity)
    assert (after.order[:2], after.trade_id, after.trade_type) == (before.order[:2], before.trade_id, before.trade_type)
    if message is None:
        assert after == before
