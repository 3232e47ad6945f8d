from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.exchanges.toy import Toy
from wadm_mcp.exchanges.names import InstrumentName, read_name
from wadm_mcp.exchanges.registry import exchange_names, register
from wadm_mcp.model import MARKETS, is_symbol_letter

ANSWERS = Path(__file__).parents[2] / "docs" / "answers.md"


def documented() -> list[tuple[str, InstrumentName]]:
    """Every name in the table of the documentation, and how the table says that it is read."""
    (section,) = re.findall(r"<!-- symbol names -->\n(.*)<!-- /symbol names -->", ANSWERS.read_text(), re.DOTALL)
    rows = [[re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split("|")] for line in section.splitlines()[2:]]
    return [
        (name, InstrumentName(symbol[0], next(iter(exchange), None), next(iter(market), None)))
        for names, exchange, market, symbol in rows
        for name in names
    ]


@pytest.mark.parametrize(("name", "meaning"), documented())
def test_a_name_is_read_as_documented(name: str, meaning: InstrumentName) -> None:
    for spelled in (name, name.lower(), f"  {name} "):
        assert read_name(spelled) == meaning


@pytest.mark.parametrize(
    "name",
    [
        "BTCUSDT_270326",
        "btcusdt-270326",
        "BTCUSDT-26MAR27",
        "BTCUSDT-7MAR27",
        "BTC/USDT:USDT-270326",
        "binance:linear:BTCUSDT_270326",
        "BTC/USDT:USDT-270326-90000-C",
        "BTCUSDT-26MAR27-90000-C-USDT",
    ],
)
def test_a_contract_with_a_delivery_date_is_never_taken_for_its_underlying(name: str) -> None:
    read = read_name(name)
    assert read.symbol == "BTCUSDT"
    assert read.market == "linear"
    assert "delivery date" in read.problem


def test_an_inverse_contract_is_never_taken_for_spot() -> None:
    for name in ("BTC/USD:BTC", "BTC/USD:BTC-270326", "binance:BTC/USD:BTC"):
        assert read_name(name).problem, name
    assert "settled in its base asset" in read_name("BTC/USD:BTC").problem


@pytest.mark.parametrize(
    "name",
    [
        "KRAKEN:BTCUSDT",
        "BTC/USDT:EUR",
        "okx:BTCUSDT.P",
        "kraken:spot:BTCUSDT",
        "a:b:c:d:BTCUSDT",
        ":BTCUSDT",
        "BTCUSDT:lınear",
        "BTCUSDT:\u017fpot",
    ],
)
def test_a_name_with_a_part_that_is_not_understood_has_a_problem(name: str) -> None:
    assert read_name(name).problem == "a part of it is neither an exchange (binance, bybit) nor a market (spot, linear)"
    assert read_name(name).symbol == "BTCUSDT"


@pytest.mark.parametrize("name", ["spot:BTCUSDT.P", "binance:linear:BTCUSDT:spot", "BTCUSDT-PERP-SPOT", "BTC/USDT:USDT:spot"])
def test_a_name_that_contradicts_itself_has_a_problem(name: str) -> None:
    assert read_name(name).problem == "it says linear and spot at once"


def test_a_symbol_that_is_known_is_not_searched_for_endings() -> None:
    known = {"BTCPERP", "BTCUSDT"}.__contains__
    assert read_name("BTCPERP") == InstrumentName("BTC", None, "linear")
    assert read_name("BTCPERP", known) == read_name("btc-perp", known) == InstrumentName("BTCPERP")
    assert read_name("bybit:linear:BTC-PERP", known) == InstrumentName("BTCPERP", "bybit", "linear")
    assert read_name("BTCUSDT-PERP", known) == read_name("BTC/USDT:USDT", known) == InstrumentName("BTCUSDT", None, "linear")


@pytest.mark.parametrize(
    ("name", "symbol"), [("币安人生USDT", "币安人生USDT"), ("币安人生/USDT:USDT", "币安人生USDT"), ("1000pepe/usdt", "1000PEPEUSDT")]
)
def test_letters_of_every_script_are_part_of_a_symbol(name: str, symbol: str) -> None:
    assert read_name(name).symbol == symbol


def test_a_symbol_that_begins_or_ends_like_a_word_for_a_market_keeps_its_letters() -> None:
    for symbol in ("PERPUSDT", "SWAPUSDT", "SPOTUSDT", "PERP", "SPOT", "FUTURESUSDT"):
        assert read_name(symbol) == InstrumentName(symbol)
    assert read_name("PERP/USDT:USDT") == InstrumentName("PERPUSDT", None, "linear")


def test_the_exchanges_are_those_that_are_registered() -> None:
    assert read_name("toy:spot:BTC-USDT").problem
    with register(Toy()):
        assert read_name("toy:spot:BTC-USDT") == InstrumentName("BTCUSDT", "toy", "spot")


@given(
    st.sampled_from([*exchange_names(), "all"]), st.sampled_from(MARKETS), st.from_regex(r"[A-Z0-9]{1,15}(USDT|USDC|BTC)", fullmatch=True)
)
def test_a_name_of_an_answer_is_read_back_as_it_was_written(exchange: str, market: str, symbol: str) -> None:
    assert read_name(f"{exchange}:{market}:{symbol}") == InstrumentName(symbol, None if exchange == "all" else exchange, market)


_PIECES = [
    "BTC",
    "USDT",
    "币",
    ":",
    "/",
    "-",
    "_",
    ".",
    " ",
    "P",
    "PERP",
    "spot",
    "Linear",
    "l\u0131near",
    "\u017fwap",
    "270326",
    "26MAR27",
    "all",
    "binance",
]


@given(st.text(max_size=120) | st.lists(st.sampled_from(_PIECES), max_size=9).map("".join))
def test_any_text_is_read(text: str) -> None:
    read = read_name(text)
    assert read.exchange in (None, *exchange_names())
    assert read.market in (None, *MARKETS)
    assert all(map(is_symbol_letter, read.symbol))
