"""The one place that turns values into documents of the MongoDB store and back.

`trades`, `volume_profiles` and `order_flow` are the owner's data model: prices and quantities are Decimal128 whose exponent is the
scale, never normalised, so that the integers come back as they were; times are UTC dates. `footprints`, `bars` and `pieces` are packed
and ours.
A document that cannot be read raises `ValueError`, `TypeError` or `KeyError`; the store says which document that was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal, InvalidOperation
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
from wadm_mcp.model import SECOND, Basis, Instrument, Listing, Scale, Span, Timeframe, Trade, TradeType
from wadm_mcp.storage.store import DirtyMinute, OrderFlow, PartialFootprint, Profile, StoredFootprint

Document: TypeAlias = dict[str, Any]

TRADE_FIELDS: Final = {"_id": 0, "price": 1, "quantity": 1, "timestamp": 1, "trade_type": 1, "trade_id": 1, "fills": 1, "seq": 1}
"""What `trade_of` reads of a document."""

_DIGITS: Final = 34
"""Decimal digits that a Decimal128 holds."""
_BIAS: Final = 6176
_COEFFICIENT: Final = 113
"""Bits of the coefficient; above it lie 14 bits of exponent and the sign."""
_HIGH: Final = _COEFFICIENT - 64
_LARGEST: Final = 10**_DIGITS
_BUY: Final = TradeType.BUY
_NUMBER: Final = 36
"""Bits of a trade's number in an `_id`, beside 28 of its instrument. Binance counts in 33 today."""
_NUMBERS: Final = 1 << _NUMBER
_DIGITS_OF_NUMBER: Final = len(str(_NUMBERS))
_SIDES: Final = {side.value: side for side in TradeType}


def date(timestamp: int) -> DatetimeMS:
    """A time in milliseconds as a BSON date; beyond 64 bits the last date there is."""
    return DatetimeMS(max(-(1 << 63), min(timestamp, (1 << 63) - 1)))


def decimal128(value: int, decimals: int) -> Decimal128:
    """An integer at a scale as Decimal128, exact up to 34 digits; longer ones, only ever sums, are rounded half to even.

    Encoded from the integer (IEEE 754-2008, binary integer decimal): by way of text it takes five times as long.
    """
    coefficient, exponent = abs(value), -decimals
    if coefficient >= _LARGEST:
        coefficient, exponent = _rounded(coefficient, exponent)
    bits = (value < 0) << 127 | (exponent + _BIAS) << _COEFFICIENT | coefficient
    return Decimal128.from_bid(bits.to_bytes(16, "little"))


def integer_of(value: Decimal128) -> tuple[int, int]:
    """The integer and its decimals that a Decimal128 stands for; `ValueError` for one that is no number."""
    bits = int.from_bytes(value.bid, "little")
    exponent = (bits >> _COEFFICIENT & 0x3FFF) - _BIAS
    if bits >> 125 & 3 == 3:
        raise ValueError(f"{value} is not a number that is stored")
    coefficient = bits & (1 << _COEFFICIENT) - 1
    integer = -coefficient if bits >> 127 else coefficient
    return (integer, -exponent) if exponent <= 0 else (integer * 10**exponent, 0)


def trade_documents(trades: Iterable[Trade]) -> list[RawBSONDocument]:
    """Documents of `trades`, their BSON written straight from the integers: trades are what there are most of.

    The `_id` is the trade's second and 64 bits of its identity, so that a trade stored twice is one document. They come in the order of
    the trades, nearly: what grows at its end costs the server less, and less disk.
    `ValueError` for a number that 64 bits (`fills`: 32) cannot hold.
    """
    rows: list[RawBSONDocument] = []
    for trade in trades:
        instrument, at, name = trade.instrument, trade.timestamp, trade.trade_id
        trade_id = name.encode()
        form = _form(instrument, trade.trade_type is _BUY, trade.scale, len(trade_id))
        number = trade.seq if name == str(trade.seq) else _number(name)
        if 0 < number < _NUMBERS:
            identity = form.code | number
        else:
            hashed = form.identity.copy()
            hashed.update(trade_id)
            identity = int.from_bytes(hashed.digest())
        try:
            row = form.pack(
                form.begin,
                ((at // SECOND & 0xFFFFFFFF) << 64 | identity).to_bytes(12),
                form.before_price,
                trade.price,
                form.before_quantity,
                trade.quantity,
                form.before_time,
                at,
                form.before_id,
                trade_id,
                form.after_id,
                trade.fills,
                b"\x12seq\0",
                trade.seq,
            )
        except struct_error as error:
            raise ValueError(f"trade {name} of {instrument} has a number that is too large or negative ({error})") from None
        rows.append(RawBSONDocument(row))
    return rows


def _number(name: str) -> int:
    """The number above zero that a trade is called by, 0 where it has another name."""
    number = int(name) if len(name) <= _DIGITS_OF_NUMBER and name.isdecimal() and name.isascii() else 0
    return number if name == str(number) else 0


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
    """A document of `order_flow`. `imbalance_ratio` is a double of six decimals; what cannot be computed is null."""
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
    return {**_packed(stored), "packed": Binary(stored.footprint.pack())}


def footprint_of(instrument: Instrument, timeframe: Timeframe, document: Mapping[str, Any]) -> StoredFootprint:
    """A footprint from its document."""
    return StoredFootprint(
        instrument, timeframe, int(document["start_time"]), Footprint.unpack(document["packed"]), int(document["revision"])
    )


def bar_document(stored: OrderFlow) -> Document:
    """A document of `bars`: what `order_flow` cannot give back. A cumulative delta may pass 64 bits, so it rests as text."""
    return {**_packed(stored), "packed": Binary(stored.bar.pack()), "cumulative_delta": str(stored.cumulative_delta)}


def bar_of(instrument: Instrument, timeframe: Timeframe, document: Mapping[str, Any]) -> OrderFlow:
    """Order flow from a document of `bars`."""
    bar, total = Bar.unpack(document["packed"]), int(document["cumulative_delta"])
    return OrderFlow(instrument, timeframe, int(document["start_time"]), bar, total, int(document["revision"]))


def piece_document(piece: PartialFootprint) -> Document:
    """A document of `pieces`. Its `_id` is its identity, so that a piece stored twice is one document."""
    return {
        "_id": _hashed(piece.minute, piece.instrument, f"piece {piece.first_seq}"),
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
    return _hashed(span.start, instrument, f"coverage\0{span.first_seq}")


def span_of(document: Mapping[str, Any]) -> Span:
    """A span from its document. One without `raw` was written by a WADM that knew only spans with rows."""
    return Span(
        int(document["start"]),
        int(document["end"]),
        int(document["first_seq"]),
        int(document["last_seq"]),
        Basis(document["basis"]),
        document["reason"],
        document["opened_by"],
        bool(document.get("raw", True)),
    )


def mark_id(instrument: Instrument, minute: int) -> Document:
    """`_id` of a document of `marks`: sorted by it they come oldest first."""
    return {"minute": date(minute), **instrument._asdict()}


def mark_of(document: Mapping[str, Any]) -> DirtyMinute:
    """A mark from its document."""
    names = dict(document["_id"])
    minute = int(names.pop("minute"))
    return DirtyMinute(Instrument(**names), minute, int(document["writes"]))


def listing_document(listing: Listing) -> Document:
    """A document of `listings`; its steps rest as text, which holds any decimal."""
    return {
        "_id": str(listing.instrument),
        **listing.instrument._asdict(),
        "tick": str(listing.tick),
        "lot": str(listing.lot),
        "trading": listing.trading,
    }


def listing_of(document: Mapping[str, Any]) -> Listing:
    """A listing from its document."""
    instrument = Instrument(document["exchange"], document["market"], document["symbol"])
    try:
        return Listing(instrument, Decimal(document["tick"]), Decimal(document["lot"]), document["trading"])
    except InvalidOperation:
        raise ValueError(f"{document['tick']!r} and {document['lot']!r} are not decimals") from None


def tracked_document(instrument: Instrument) -> Document:
    """A document of `tracked`."""
    return {"_id": str(instrument), **instrument._asdict()}


def tracked_of(document: Mapping[str, Any]) -> Instrument:
    """An instrument from its document of `tracked`."""
    return Instrument(document["exchange"], document["market"], document["symbol"])


def described(document: Mapping[str, Any]) -> str:
    """Which document of its collection this is, for an error."""
    name = next(name for name in ("trade_id", "start_time", "start", "minute", "_id") if name in document)
    value = document[name]
    return f"{name} {int(value) if isinstance(value, DatetimeMS) else value}"


def derived_id(instrument: Instrument, timeframe: Timeframe, start: int) -> ObjectId:
    """`_id` of whatever is derived for one bar: the same each time it is derived."""
    return _hashed(start, instrument, timeframe.value)


def _hashed(start: int, instrument: Instrument, kind: str) -> ObjectId:
    digest = blake2b(f"{instrument}\0{kind}\0{start}".encode(), digest_size=8).digest()
    return ObjectId((start // SECOND & 0xFFFFFFFF).to_bytes(4, "big") + digest)


def _packed(stored: StoredFootprint | OrderFlow) -> Document:
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


def _rounded(coefficient: int, exponent: int) -> tuple[int, int]:
    """The nearest coefficient of 34 digits, half to even, and its exponent."""
    surplus = len(str(coefficient)) - _DIGITS
    whole, rest = divmod(coefficient, 10**surplus)
    half = 5 * 10 ** (surplus - 1)
    whole += rest > half or (rest == half and whole & 1)
    return (whole, exponent + surplus) if whole < _LARGEST else (whole // 10, exponent + surplus + 1)


@lru_cache(maxsize=1024)
def _scale(price: int, quantity: int) -> Scale:
    """Shared, for a page of trades holds thousands of them."""
    return Scale(price, quantity)


class _Form(NamedTuple):
    """What is constant in the documents of one instrument's trades of one side, scale and length of id."""

    pack: Callable[..., bytes]
    begin: bytes
    before_price: bytes
    before_quantity: bytes
    before_time: bytes
    before_id: bytes
    after_id: bytes
    identity: blake2b
    """Hash of the instrument, to be gone on with a trade's id."""
    code: int
    """The first bits of that hash, where a trade's number has the last: together they are one of all instruments' trades."""


@lru_cache(maxsize=8192)
def _form(instrument: Instrument, bought: bool, scale: Scale, id_size: int) -> _Form:
    before_price = _text("symbol", instrument.symbol) + b"\x13price\0"
    before_quantity = _high(scale.price) + b"\x13quantity\0"
    before_time = _high(scale.quantity) + b"\x09timestamp\0"
    before_id = _text("trade_type", TradeType.BUY if bought else TradeType.SELL) + b"\x02trade_id\0" + (id_size + 1).to_bytes(4, "little")
    after_id = b"\0" + _text("exchange", instrument.exchange) + _text("market", instrument.market) + b"\x10fills\0"
    # The pad byte at the end is the one that ends a document.
    layout = Struct(
        f"<9s12s{len(before_price)}sQ{len(before_quantity)}sQ{len(before_time)}sq{len(before_id)}s{id_size}s{len(after_id)}si5sqx"
    )
    identity = blake2b(f"{instrument}\0".encode(), digest_size=8)
    code = int.from_bytes(identity.digest()) >> _NUMBER << _NUMBER
    begin = layout.size.to_bytes(4, "little") + b"\x07_id\0"
    return _Form(layout.pack, begin, before_price, before_quantity, before_time, before_id, after_id, identity, code)


def _high(decimals: int) -> bytes:
    """The upper half of a Decimal128 whose coefficient fits the lower one."""
    return (_BIAS - decimals << _HIGH).to_bytes(8, "little")


def _text(name: str, value: str) -> bytes:
    encoded = value.encode()
    return b"\x02" + name.encode() + b"\0" + (len(encoded) + 1).to_bytes(4, "little") + encoded + b"\0"
