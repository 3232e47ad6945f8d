from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Context, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wadm_mcp.queries.numbers import decimal_number, decimal_text, iso, iso_ms, number, optional_number

_WIDE = Context(prec=200)


def _decimal(value: int, decimals: int) -> Decimal:
    return _WIDE.scaleb(Decimal(value), -decimals)


@given(st.integers(-(10**40), 10**40) | st.integers(-(10**15), 10**15), st.integers(0, 30))
def test_a_number_reads_back_as_exactly_the_decimal_it_stands_for(value: int, decimals: int) -> None:
    written = number(value, decimals)
    read = json.loads(json.dumps(written), parse_float=Decimal, parse_int=Decimal)
    assert _WIDE.compare(Decimal(read), _decimal(value, decimals)) == 0


@given(st.integers(-(10**40), 10**40) | st.integers(-(10**15), 10**15), st.integers(0, 30))
def test_only_a_number_beyond_fifteen_digits_is_written_as_text(value: int, decimals: int) -> None:
    written, exact = number(value, decimals), _WIDE.normalize(_decimal(value, decimals))
    digits = len(exact.as_tuple().digits) + max(0, int(exact.as_tuple().exponent))
    assert isinstance(written, str) == (digits > 15)
    if not isinstance(written, str):
        assert isinstance(written, int) == (exact == exact.to_integral_value(context=_WIDE))
    else:
        assert "E" not in written.upper()


@pytest.mark.parametrize(
    ("value", "decimals", "expected"),
    [
        (0, 2, 0),
        (6183763, 2, 61837.63),
        (6183700, 2, 61837),
        (-5, 1, -0.5),
        (1, 7, 1e-7),
        (999_999_999_999_999, 0, 999_999_999_999_999),
        (10**15, 0, "1000000000000000"),
        (10**20, 8, 10**12),
        (12345678901234567, 8, "123456789.01234567"),
        (-12345678901234567, 20, "-0.00012345678901234567"),
    ],
)
def test_numbers_by_example(value: int, decimals: int, expected: object) -> None:
    assert number(value, decimals) == expected
    assert type(number(value, decimals)) is type(expected)


def test_what_cannot_be_computed_is_null() -> None:
    assert optional_number(None, 2) is None
    assert optional_number(150, 2) == 1.5
    assert decimal_number(None) is None


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20, places=9))
def test_a_decimal_is_written_exactly(value: Decimal) -> None:
    assert Decimal(json.loads(json.dumps(decimal_number(value)), parse_float=Decimal, parse_int=Decimal)) == value
    assert Decimal(decimal_text(value)) == value


@pytest.mark.parametrize(("value", "text"), [("0.10", "0.1"), ("1E+3", "1000"), ("5", "5"), ("100", "100"), ("0.00001", "0.00001")])
def test_sizes_are_named_in_plain_digits(value: str, text: str) -> None:
    assert decimal_text(Decimal(value)) == text


@given(st.integers(0, 4_102_444_799_999))
def test_times_are_iso_8601_and_read_back_to_the_millisecond(timestamp: int) -> None:
    for text in (iso(timestamp), iso_ms(timestamp)):
        assert text.endswith("Z")
        assert round((datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000) == timestamp
    assert len(iso_ms(timestamp)) == 24
    assert len(iso(timestamp)) == (20 if timestamp % 1000 == 0 else 24)


def test_times_by_example() -> None:
    assert iso(1_795_357_800_000) == "2026-11-22T14:30:00Z"
    assert iso_ms(1_795_357_800_000) == "2026-11-22T14:30:00.000Z"
    assert iso(1_795_357_800_007) == "2026-11-22T14:30:00.007Z"
