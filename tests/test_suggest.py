from __future__ import annotations

from wadm_mcp.suggest import nearest, plain

KNOWN = ["ETHBTC", "BTCAUD", "BTCBRL", "BTCDAI", "BTCEUR", "BTCUSDC", "BTCUSDT", "BTCSTUSDT", "ETHUSDC", "ETHUSDT", "ETHFIUSDT", "XRPUSDT"]


def test_a_mistyped_symbol_finds_the_one_it_looks_like() -> None:
    assert nearest("ETHUSDX", KNOWN)[0] == "ETHUSDT"


def test_a_quote_in_common_does_not_make_two_symbols_alike() -> None:
    assert nearest("TRXUSDT", KNOWN) == []
    assert nearest("DOGEUSDT", KNOWN) == []
    assert nearest("SOLUSDC", KNOWN) == []
    assert nearest("ETUSDT", KNOWN, 1) == ["ETHUSDT"]


def test_the_beginning_of_a_symbol_finds_it_among_many_that_begin_alike() -> None:
    assert nearest("BTC", KNOWN)[0] == "BTCUSDT"
    assert nearest("BTC", KNOWN, 2) == ["BTCUSDT", "BTCSTUSDT"]


def test_case_and_separators_do_not_matter() -> None:
    for written in ("btcusdt", "BTC/USDT", "btc-usdt", " BTC_USDT "):
        assert nearest(written, KNOWN, 1) == ["BTCUSDT"]
    assert nearest("BINANC", ["binance", "bybit"], 1) == ["binance"]
    assert nearest("WADM_SYMBOL", ["WADM_SYMBOLS", "WADM_HOST"], 1) == ["WADM_SYMBOLS"]


def test_nearest_returns_at_most_count_distinct_symbols() -> None:
    found = nearest("ETHUSD", KNOWN, 5)
    assert len(found) == len(set(found)) <= 5
    assert nearest("ETH", KNOWN, 0) == []


def test_a_name_that_is_near_to_none_has_no_match() -> None:
    assert nearest("", KNOWN) == []
    assert nearest("///", KNOWN) == []
    assert nearest("QQQQQQQQ" * 10_000, KNOWN) == []
    assert nearest("BTC", []) == []


def test_a_name_in_another_script_keeps_its_letters_marks_and_signs() -> None:
    assert plain("币安人生/usdt") == "币安人生USDT"
    assert plain("हिंदी-USDT") == "हिंदीUSDT"
    assert plain("🚀usdt") == "🚀USDT"
    assert plain("BTC–USDT\u200b　：") == "BTCUSDT"
    assert nearest("币安", ["币安人生USDT", *KNOWN], 1) == ["币安人生USDT"]
