from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wadm_mcp.model import at_decimals, is_symbol, parse_decimal, to_decimal


def test_a_decimal_is_never_cut_to_fit_a_scale() -> None:
    assert at_decimals(Decimal("1E+3"), 2) == 100_000
    assert at_decimals(Decimal("-0.10"), 1) == -1
    with pytest.raises(ValueError, match="cannot be written with 1 decimals"):
        at_decimals(Decimal("0.12"), 1)


@given(st.integers(-(10**40), 10**40), st.integers(0, 18))
def test_an_integer_at_a_scale_comes_back_from_its_decimal(value: int, decimals: int) -> None:
    assert at_decimals(to_decimal(value, decimals), decimals) == value


@pytest.mark.parametrize(
    ("text", "decimals", "expected"),
    [
        ("1e-05", 3, (1, 5)),
        ("1.25e+06", 3, (1_250_000_000, 3)),
        ("1.50E1", 0, (15, 0)),
        ("0.5e2", 0, (50, 0)),
        ("12.34e-1", 0, (1_234, 3)),
        ("0e-8", 2, (0, 2)),
        ("0E99", 2, (0, 2)),
        ("1.0", 0, (1, 0)),
    ],
)
def test_a_decimal_with_an_exponent_is_exact(text: str, decimals: int, expected: tuple[int, int]) -> None:
    assert parse_decimal(text, decimals) == expected


@given(st.decimals(min_value=0, max_value=10**6, places=9), st.integers(0, 12))
def test_a_decimal_means_the_same_with_and_without_an_exponent(value: Decimal, decimals: int) -> None:
    assert parse_decimal(f"{value:e}", decimals) == parse_decimal(f"{value:f}", decimals)


@pytest.mark.parametrize("text", ["1e-19", "1e100", "1e", "e5", "1e5.0", "1e+", "-1e5", "1 e5", "9.3e18", "١e5"])
def test_what_is_no_exact_decimal_of_64_bits_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the text is that of each caller
        parse_decimal(text, 0)


@pytest.mark.parametrize(
    "symbol", ["BTCUSDT", "币安人生USDT", "1000PEPEUSDT", "BTC-26DEC25", "BTCUSDT_260327", "हिंदीUSDT", "🚀USDT", "X" * 40]
)
def test_a_symbol_has_letters_and_digits_of_any_script(symbol: str) -> None:
    assert is_symbol(symbol)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "..",
        ".",
        "A/B",
        "A\\B",
        "A B",
        "A:B",
        "BTC\n",
        "\u202eBTC",
        "A\u200bB",
        "-A",
        "_A",
        "A.B",
        "A%2FB",
        "A？B",
        "X" * 41,
        "\ud800",
        "a\0b",
        "A　B",
    ],
)
def test_what_could_lead_elsewhere_is_no_symbol(text: str) -> None:
    assert not is_symbol(text)
