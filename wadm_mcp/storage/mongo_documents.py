"""Converts values to documents of the MongoDB store and back.

`trades`, `volume_profiles` and `order_flow` are a data model that other programs read. Prices and quantities are Decimal128 with the
scale as exponent, never normalised, so that the same integers are read back; times are UTC dates. `footprints`, `bars` and `pieces` are
packed, for WADM alone.
A document that cannot be read raises `ValueError`, `TypeError` or `KeyError`; the store adds which document it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from struct import error as struct_error
from typing import Any, Final, NamedTuple, TypeAlias

from bson.binary import Binary
from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.objectid import ObjectId
from bson.raw_bson import RawBSONDocument

from wadm_mcp.analytics.footprint import Bar, Footprint
from wadm_mcp.analytics.order_flow import imbalance_ratio
from wadm_mcp.analytics.volume_profile import Node
from wadm_mcp.coverage.spans import Basis, GapReason, Span, SpanReason
from wadm_mcp.model import SECOND, Instrument, Listing, Scale, Timeframe, Trade, TradeType
from wadm_mcp.storage.store import DirtyMinute, OrderFlow, PartialFootprint, Profile, StoredFootprint

Document: TypeAlias = dict[str, Any]

TRADE_FIELDS: Final = {"_id": 0, "price": 1, "quantity": 1, "timestamp": 1, "trade_type": 1, "trade_id": 1, "fills": 1, "seq": 1}
"""The fields that `trade_of` reads."""

_DECIMAL_DIGITS: Final = 34
"""Decimal digits of a Decimal128."""
_BIAS: Final = 6176
_COEFFICIENT_BITS: Final = 113
"""Bits of the coefficient; the 14 bits of the exponent and the sign follow above."""
_HIGH_SHIFT: Final = _COEFFICIENT_BITS - 64
_COEFFICIENT_LIMIT: Final = 10**_DECIMAL_DIGITS
_BUY: Final = TradeType.BUY
_NUMBER_BITS: Final = 36
"""Bits of a trade's number in an `_id`, next to 28 bits of its instrument. The ids of Binance need 33 bits today."""
_NUMBER_LIMIT: Final = 1 << _NUMBER_BITS
_MAX_NUMBER_DIGITS: Final = len(str(_NUMBER_LIMIT))
_SIDES: Final = {side.value: side for side in TradeType}


def date(timestamp: int) -> DatetimeMS:
    """A time in milliseconds as a BSON date, limited to 64 bits."""
    return DatetimeMS(max(-(1 << 63), min(timestamp, (1 << 63) - 1)))


def decimal128(value: int, decimals: int) -> Decimal128:
    """An integer at a scale as Decimal128, exact up to 34 digits; longer ones, which are always sums, are rounded half to even.

    Encoded directly from the integer (IEEE 754-2008, binary integer decimal), which is five times faster than through text.
    """
    coefficient, exponent = abs(value), -decimals
    if coefficient >= _COEFFICIENT_LIMIT:
        coefficient, exponent = _round_to_34_digits(coefficient, exponent)
    bits = (value < 0) << 127 | (exponent + _BIAS) << _COEFFICIENT_BITS | coefficient
    return Decimal128.from_bid(bits.to_bytes(16, "little"))


def integer_of(value: Decimal128) -> tuple[int, int]:
    """Integer and number of decimals of a Decimal128; `ValueError` for NaN and infinity."""
    bits = int.from_bytes(value.bid, "little")
    exponent = (bits >> _COEFFICIENT_BITS & 0x3FFF) - _BIAS
    if bits >> 125 & 3 == 3:
        raise ValueError(f"{value} is not a number")
    coefficient = bits & (1 << _COEFFICIENT_BITS) - 1
    integer = -coefficient if bits >> 127 else coefficient
    return (integer, -exponent) if exponent <= 0 else (integer * 10**exponent, 0)


def trade_documents(trades: Iterable[Trade]) -> list[RawBSONDocument]:
    """Documents of `trades`. Their BSON is written directly from the integers, as trades are by far the most documents.

    The `_id` is the trade's second and 64 bits of its identity, so that a trade stored twice is one document. Ids ascend nearly in the
    order of the trades: appending to the end of a collection costs the server less time and disk.
    `ValueError` for a number that exceeds 64 bits (`fills`: 32).
    """
    rows: list[RawBSONDocument] = []
    for trade in trades:
        instrument, at, text_id = trade.instrument, trade.timestamp, trade.trade_id
        trade_id = text_id.encode()
        template = _trade_template(instrument, trade.trade_type is _BUY, trade.scale, len(trade_id))
        number = trade.seq if text_id == str(trade.seq) else _positive_number(text_id)
        if 0 < number < _NUMBER_LIMIT:
            identity = template.instrument_bits | number
        else:
            hashed = template.instrument_hash.copy()
            hashed.update(trade_id)
            identity = int.from_bytes(hashed.digest())
        try:
            row = template.pack(
                template.begin,
                ((at // SECOND & 0xFFFFFFFF) << 64 | identity).to_bytes(12),
                template.before_price,
                trade.price,
                template.before_quantity,
                trade.quantity,
                template.before_time,
                at,
                template.before_id,
                trade_id,
                template.after_id,
                trade.fills,
                b"\x12seq\0",
                trade.seq,
            )
        except struct_error as error:
            raise ValueError(f"trade {text_id} of {instrument} has a number that is too large or negative ({error})") from None
        rows.append(RawBSONDocument(row))
    return rows


def _positive_number(trade_id: str) -> int:
    """A trade id as a positive integer; 0 if it is not exactly such a number."""
    number = int(trade_id) if len(trade_id) <= _MAX_NUMBER_DIGITS and trade_id.isdecimal() and trade_id.isascii() else 0
    return number if trade_id == str(number) else 0


def trade_of(instrument: Instrument, document: Mapping[str, Any]) -> Trade:
    """A trade from its document."""
    price, price_decimals = integer_of(document["price"])
    quantity, quantity_decimals = integer_of(document["quantity"])
    return Trade(
        instrument,
        int(document["timestamp"]),
        int(document["seq"]),
        document["trade_id"],
        price,
        quantity,
        _SIDES[document["trade_type"]],
        document["fills"],
        _scale(price_decimals, quantity_decimals),
    )


def profile_document(stored: Profile) -> Document:
    """A document of `volume_profiles`. A bar without trades has no POC, VAH, VAL and no nodes.

    `rule_version` is the version of the rule that placed POC, VAH and VAL; a document without the field was made by version 1.
    """
    profile = stored.profile
    document: Document = {
        "_id": derived_id(stored.instrument, stored.timeframe, stored.start),
        "symbol": stored.instrument.symbol,
        "timeframe": stored.timeframe.value,
        "start_time": date(stored.start),
        "end_time": date(stored.start + stored.timeframe.ms),
        "poc": None,
        "vah": None,
        "val": None,
        "nodes": [],
        "exchange": stored.instrument.exchange,
        "market": stored.instrument.market,
        "row_size": None,
        "method": None,
        "rule_version": None,
        "revision": stored.revision,
    }
    if profile is not None:
        decimals = profile.scale.price
        document.update(
            poc=decimal128(profile.poc, decimals),
            vah=decimal128(profile.vah, decimals),
            val=decimal128(profile.val, decimals),
            nodes=[_node(node, profile.scale) for node in profile.nodes],
            row_size=decimal128(profile.row, decimals),
            method=profile.method,
            rule_version=profile.rule_version,
        )
    return document


def order_flow_document(stored: OrderFlow) -> Document:
    """A document of `order_flow`. `imbalance_ratio` is a double of six decimals; figures that cannot be computed are null."""
    bar = stored.bar
    prices, quantities = bar.scale
    imbalance = imbalance_ratio(bar.buy_volume, bar.sell_volume)
    return {
        "_id": derived_id(stored.instrument, stored.timeframe, stored.start),
        "symbol": stored.instrument.symbol,
        "timeframe": stored.timeframe.value,
        "timestamp": date(stored.start),
        "delta": decimal128(bar.delta, quantities),
        "cumulative_delta": decimal128(stored.cumulative_delta, quantities),
        "volume": decimal128(bar.volume, quantities),
        "buy_volume": decimal128(bar.buy_volume, quantities),
        "sell_volume": decimal128(bar.sell_volume, quantities),
        "imbalance_ratio": None if imbalance is None else float(imbalance),
        "exchange": stored.instrument.exchange,
        "market": stored.instrument.market,
        "open": _optional(bar.open, prices),
        "high": _optional(bar.high, prices),
        "low": _optional(bar.low, prices),
        "close": _optional(bar.close, prices),
        "trade_count": Int64(bar.trade_count),
        "min_delta": _optional(bar.min_delta, quantities),
        "max_delta": _optional(bar.max_delta, quantities),
        "revision": stored.revision,
    }


def footprint_document(stored: StoredFootprint) -> Document:
    """A document of `footprints`."""
    return {**_packed_document(stored), "packed": Binary(stored.footprint.pack())}


def footprint_of(instrument: Instrument, timeframe: Timeframe, document: Mapping[str, Any]) -> StoredFootprint:
    """A footprint from its document."""
    return StoredFootprint(
        instrument, timeframe, int(document["start_time"]), Footprint.unpack(document["packed"]), int(document["revision"])
    )


def bar_document(stored: OrderFlow) -> Document:
    """A document of `bars`: what cannot be read back from `order_flow`. A cumulative delta may exceed 64 bits, so it is stored as text."""
    return {**_packed_document(stored), "packed": Binary(stored.bar.pack()), "cumulative_delta": str(stored.cumulative_delta)}


def bar_of(instrument: Instrument, timeframe: Timeframe, document: Mapping[str, Any]) -> OrderFlow:
    """Order flow from a document of `bars`."""
    bar, total = Bar.unpack(document["packed"]), int(document["cumulative_delta"])
    return OrderFlow(instrument, timeframe, int(document["start_time"]), bar, total, int(document["revision"]))


def piece_document(piece: PartialFootprint) -> Document:
    """A document of `pieces`. Its `_id` is its identity, so that a piece stored twice is one document."""
    return {
        "_id": _hashed_id(piece.minute, piece.instrument, f"piece {piece.first_seq}"),
        **piece.instrument._asdict(),
        "minute": date(piece.minute),
        "first_seq": Int64(piece.first_seq),
        "last_seq": Int64(piece.last_seq),
        "packed": Binary(piece.footprint.pack()),
    }


def piece_of(instrument: Instrument, document: Mapping[str, Any]) -> PartialFootprint:
    """A piece from its document."""
    footprint = Footprint.unpack(document["packed"])
    return PartialFootprint(instrument, int(document["minute"]), int(document["first_seq"]), int(document["last_seq"]), footprint)


def span_id(instrument: Instrument, span: Span) -> ObjectId:
    """`_id` of a document of `coverage`."""
    return _hashed_id(span.start, instrument, f"coverage\0{span.first_seq}")


def span_of(document: Mapping[str, Any]) -> Span:
    """A span from its document. One without `raw` is from an earlier release, in which all spans had rows."""
    return Span(
        int(document["start"]),
        int(document["end"]),
        int(document["first_seq"]),
        int(document["last_seq"]),
        Basis(document["basis"]),
        SpanReason(document["reason"]),
        GapReason(document["opened_by"]),
        bool(document.get("raw", True)),
    )


def mark_id(instrument: Instrument, minute: int) -> Document:
    """`_id` of a document of `marks`; sorting by it gives the oldest first."""
    return {"minute": date(minute), **instrument._asdict()}


def mark_of(document: Mapping[str, Any]) -> DirtyMinute:
    """A mark from its document."""
    names = dict(document["_id"])
    minute = int(names.pop("minute"))
    return DirtyMinute(Instrument(**names), minute, int(document["writes"]))


def listing_document(listing: Listing) -> Document:
    """A document of `listings`; tick and lot are stored as text, which is exact for any decimal."""
    tick, lot = listing.stored_steps()
    return {
        "_id": str(listing.instrument),
        **listing.instrument._asdict(),
        "tick": tick,
        "lot": lot,
        "trading": listing.trading,
        "status": listing.status,
    }


def listing_of(document: Mapping[str, Any]) -> Listing:
    """A listing from its document."""
    instrument = Instrument(document["exchange"], document["market"], document["symbol"])
    return Listing.from_store(instrument, document["tick"], document["lot"], document["trading"], document.get("status", ""))


def tracked_document(instrument: Instrument) -> Document:
    """A document of `tracked`."""
    return {"_id": str(instrument), **instrument._asdict()}


def tracked_of(document: Mapping[str, Any]) -> Instrument:
    """An instrument from its document of `tracked`."""
    return Instrument(document["exchange"], document["market"], document["symbol"])


def describe(document: Mapping[str, Any]) -> str:
    """Identifies a document within its collection, for an error text."""
    field = next(field for field in ("trade_id", "start_time", "start", "minute", "_id") if field in document)
    value = document[field]
    return f"{field} {int(value) if isinstance(value, DatetimeMS) else value}"


def derived_id(instrument: Instrument, timeframe: Timeframe, start: int) -> ObjectId:
    """`_id` of the documents derived for one bar: the same each time they are derived."""
    return _hashed_id(start, instrument, timeframe.value)


def _hashed_id(start: int, instrument: Instrument, kind: str) -> ObjectId:
    digest = blake2b(f"{instrument}\0{kind}\0{start}".encode(), digest_size=8).digest()
    return ObjectId((start // SECOND & 0xFFFFFFFF).to_bytes(4, "big") + digest)


def _packed_document(stored: StoredFootprint | OrderFlow) -> Document:
    return {
        "_id": derived_id(stored.instrument, stored.timeframe, stored.start),
        **stored.instrument._asdict(),
        "timeframe": stored.timeframe.value,
        "start_time": date(stored.start),
        "revision": stored.revision,
    }


def _node(node: Node, scale: Scale) -> Document:
    return {
        "price_level": decimal128(node.price, scale.price),
        "volume": decimal128(node.volume, scale.quantity),
        "buy_volume": decimal128(node.buy_volume, scale.quantity),
        "sell_volume": decimal128(node.sell_volume, scale.quantity),
        "trade_count": Int64(node.trade_count),
    }


def _optional(value: int | None, decimals: int) -> Decimal128 | None:
    return None if value is None else decimal128(value, decimals)


def _round_to_34_digits(coefficient: int, exponent: int) -> tuple[int, int]:
    """The nearest coefficient of 34 digits, rounded half to even, and its exponent."""
    surplus = len(str(coefficient)) - _DECIMAL_DIGITS
    whole, rest = divmod(coefficient, 10**surplus)
    half = 5 * 10 ** (surplus - 1)
    whole += rest > half or (rest == half and whole & 1)
    return (whole, exponent + surplus) if whole < _COEFFICIENT_LIMIT else (whole // 10, exponent + surplus + 1)


@lru_cache(maxsize=1024)
def _scale(price: int, quantity: int) -> Scale:
    """Shared objects, as a page of trades needs thousands of scales."""
    return Scale(price, quantity)


class _TradeTemplate(NamedTuple):
    """The constant bytes in the documents of all trades with one instrument, side, scale and length of id."""

    pack: Callable[..., bytes]
    begin: bytes
    before_price: bytes
    before_quantity: bytes
    before_time: bytes
    before_id: bytes
    after_id: bytes
    instrument_hash: blake2b
    """Hash of the instrument, to be continued with a trade id that is not a number."""
    instrument_bits: int
    """The first 28 bits of that hash; a trade's number fills the other 36 bits."""


@lru_cache(maxsize=8192)
def _trade_template(instrument: Instrument, bought: bool, scale: Scale, id_size: int) -> _TradeTemplate:
    before_price = _bson_string("symbol", instrument.symbol) + b"\x13price\0"
    before_quantity = _decimal_high_bits(scale.price) + b"\x13quantity\0"
    before_time = _decimal_high_bits(scale.quantity) + b"\x09timestamp\0"
    before_id = (
        _bson_string("trade_type", TradeType.BUY if bought else TradeType.SELL) + b"\x02trade_id\0" + (id_size + 1).to_bytes(4, "little")
    )
    after_id = b"\0" + _bson_string("exchange", instrument.exchange) + _bson_string("market", instrument.market) + b"\x10fills\0"
    # The pad byte at the end is the zero byte that ends a document.
    layout = Struct(
        f"<9s12s{len(before_price)}sQ{len(before_quantity)}sQ{len(before_time)}sq{len(before_id)}s{id_size}s{len(after_id)}si5sqx"
    )
    instrument_hash = blake2b(f"{instrument}\0".encode(), digest_size=8)
    instrument_bits = int.from_bytes(instrument_hash.digest()) >> _NUMBER_BITS << _NUMBER_BITS
    begin = layout.size.to_bytes(4, "little") + b"\x07_id\0"
    return _TradeTemplate(
        layout.pack, begin, before_price, before_quantity, before_time, before_id, after_id, instrument_hash, instrument_bits
    )


def _decimal_high_bits(decimals: int) -> bytes:
    """The upper 64 bits of a Decimal128 whose coefficient fits into the lower 64."""
    return (_BIAS - decimals << _HIGH_SHIFT).to_bytes(8, "little")


def _bson_string(name: str, value: str) -> bytes:
    encoded = value.encode()
    return b"\x02" + name.encode() + b"\0" + (len(encoded) + 1).to_bytes(4, "little") + encoded + b"\0"
