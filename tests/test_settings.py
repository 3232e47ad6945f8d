from __future__ import annotations

from pathlib import Path

import pytest

from wadm_mcp.errors import SettingError
from wadm_mcp.model import DAY, HOUR, Retention
from wadm_mcp.settings import data_dotenv, is_loopback, read_settings, unknown_settings


def test_nothing_set_follows_bitcoin_on_both_spot_markets_and_binds_loopback() -> None:
    settings = read_settings({})
    assert (settings.WADM_SYMBOLS, settings.WADM_EXCHANGES, settings.WADM_MARKETS) == (("BTCUSDT",), ("binance", "bybit"), ("spot",))
    assert (settings.WADM_HOST, settings.WADM_PORT, settings.binds_loopback) == ("127.0.0.1", 8920, True)
    assert settings.retention == Retention(72 * HOUR, 30 * DAY, 365 * DAY)


def test_lists_are_split_trimmed_and_each_name_kept_once() -> None:
    settings = read_settings({"WADM_SYMBOLS": " btcusdt, ETHUSDT ,btcusdt", "WADM_MARKETS": "linear,SPOT"})
    assert settings.WADM_SYMBOLS == ("BTCUSDT", "ETHUSDT")
    assert settings.WADM_MARKETS == ("linear", "spot")


def test_an_empty_variable_counts_as_not_set() -> None:
    assert read_settings({"WADM_PORT": "", "API_KEY": ""}).API_KEY is None


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("WADM_PORT=9000\nWADM_SYMBOLS=ETHUSDT\n")
    settings = read_settings({"WADM_PORT": "9001"}, dotenv=file)
    assert (settings.WADM_PORT, settings.WADM_SYMBOLS) == (9001, ("ETHUSDT",))


def test_the_data_directory_has_the_only_file_a_client_started_server_reads(tmp_path: Path) -> None:
    assert data_dotenv({"WADM_DATA_DIR": str(tmp_path)}) == tmp_path / ".env"


def test_every_market_has_its_urls() -> None:
    settings = read_settings({"WADM_BINANCE_LINEAR_WS": "ws://127.0.0.1:1/", "WADM_BYBIT_REST": "http://localhost:2"})
    assert settings.venue("binance", "linear").socket_url == "ws://127.0.0.1:1"
    assert settings.venue("bybit", "spot").rest_url == settings.venue("bybit", "linear").rest_url == "http://localhost:2"
    assert settings.venue("binance", "spot").socket_url == "wss://stream.binance.com:9443"


def test_a_misspelt_setting_is_reported_with_the_nearest_name() -> None:
    (hint,) = unknown_settings({"WADM_SYMBOL": "BTCUSDT", "PATH": "/bin", "WADM_PORT": "1"})
    assert "WADM_SYMBOL is not a setting" in hint
    assert "WADM_SYMBOLS" in hint


def test_a_secret_never_shows() -> None:
    settings = read_settings({"API_KEY": "very-secret"})
    assert "very-secret" not in repr(settings) + str(settings)


_SYMBOLS_ALLOWED = "allowed are letters and digits, at most 40, comma separated, such as BTCUSDT,ETHUSDT"
_WITH_VENUE = ". For bybit:spot:btcusdt write BTCUSDT and WADM_EXCHANGES=bybit and WADM_MARKETS=spot"
_RECORDED = "and WADM records spot and perpetuals"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WADM_PORT", "eighty", "a port is a whole number from 1 to 65535"),
        ("WADM_MINUTES_TTL_DAYS", "1.5", "a whole number from 1 to 3650 is needed"),
        ("WADM_ALLOW_TRACKING", "maybe", "allowed are true and false"),
        ("WADM_HISTORY_RAW", "2", "allowed are true and false"),
        ("WADM_SYMBOLS", "BTC-USDT", _SYMBOLS_ALLOWED + ". For BTC-USDT write BTCUSDT"),
        ("WADM_SYMBOLS", "BTC/USDT:USDT", _SYMBOLS_ALLOWED + ". For BTC/USDT:USDT write BTCUSDT and WADM_MARKETS=linear"),
        ("WADM_SYMBOLS", "bybit:spot:btcusdt", _SYMBOLS_ALLOWED + _WITH_VENUE),
        ("WADM_SYMBOLS", "BTCUSDT_270326", _SYMBOLS_ALLOWED + ". BTCUSDT_270326: it names a contract with a delivery date, " + _RECORDED),
        ("WADM_SYMBOLS", "***", _SYMBOLS_ALLOWED),
        ("WADM_BINANCE_SPOT_WS", "stream.binance.com", "a base URL without path is needed, such as wss://host:port"),
        ("WADM_BYBIT_REST", "https://host/v5", "a base URL without path is needed, such as https://host:port"),
    ],
)
def test_an_invalid_value_is_named_with_what_is_allowed(name: str, value: str, said: str) -> None:
    with pytest.raises(SettingError) as refused:
        read_settings({name: value})
    assert str(refused.value) == f"{name}={value}: {said}"


@pytest.mark.parametrize("url", ["wss://user:hunter2@host/ws", "user:hunter2@host", "wss://host?token=hunter2", "wss://user:hun ter2@host"])
def test_an_invalid_base_url_is_shown_without_its_secrets(url: str) -> None:
    with pytest.raises(SettingError, match=r"^WADM_BINANCE_SPOT_WS=.*host.*: a base URL without path is needed") as refused:
        read_settings({"WADM_BINANCE_SPOT_WS": url})
    assert "ter2" not in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "LOCALHOST"])
def test_loopback_is_known_by_name_and_address(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org", ""])
def test_every_other_host_is_beyond_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("key", [" very-secret", "very-secret\t", "  ", "very\nsecret"])
def test_a_key_that_no_header_could_carry_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(SettingError) as refused:
        read_settings({"API_KEY": key})
    assert str(refused.value).startswith("API_KEY=(hidden): must not begin or end with a space")


@pytest.mark.parametrize("path", ["/wadm", "/apps/wadm-1", ""])
def test_a_root_path_is_the_prefix_of_a_path(path: str) -> None:
    root = read_settings({"WADM_ROOT_PATH": path}).WADM_ROOT_PATH
    assert root == path


@pytest.mark.parametrize("path", ["wadm", "/", "/wadm/", "//wadm", "/wadm?x", "/wadm#x", "https://wadm.example/wadm", "/w adm"])
def test_a_root_path_of_another_form_is_refused(path: str) -> None:
    with pytest.raises(SettingError) as refused:
        read_settings({"WADM_ROOT_PATH": path})
    assert str(refused.value).startswith(f"WADM_ROOT_PATH={path}: a path is needed that begins with / and does not end with it")
    assert "secret" not in str(refused.value)


def test_what_was_given_is_shown_as_one_short_line_whatever_it_was() -> None:
    with pytest.raises(SettingError) as refused:
        read_settings({"WADM_EXCHANGES": "kraken\n\x1b[31m" + "x" * 20_000})
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(r"WADM_EXCHANGES=kraken\n\x1b[31mxxx")
    assert str(refused.value).endswith("... (20,012 characters): allowed are binance, bybit, comma separated")
    assert len(str(refused.value)) < 300


def test_a_base_url_has_a_fallback_unless_it_is_set() -> None:
    venue = read_settings({}).venue("binance", "spot")
    assert (venue.rest_url, venue.rest_fallback) == ("https://api.binance.com", "https://data-api.binance.vision")
    assert (venue.socket_url, venue.socket_fallback) == ("wss://stream.binance.com:9443", "wss://data-stream.binance.vision")
    # Its own host too, where somebody names it.
    venue = read_settings({"WADM_BINANCE_SPOT_REST": "https://api.binance.com"}).venue("binance", "spot")
    assert (venue.rest_fallback, venue.socket_fallback) == ("", "wss://data-stream.binance.vision")
    others = [read_settings({}).venue(*names) for names in (("binance", "linear"), ("bybit", "spot"), ("bybit", "linear"))]
    assert not any(venue.rest_fallback or venue.socket_fallback for venue in others)


def test_a_symbol_of_more_than_40_characters_is_refused() -> None:
    with pytest.raises(SettingError, match="letters and digits, at most 40"):
        read_settings({"WADM_SYMBOLS": "A" * 41})


@pytest.mark.parametrize("folder", ["~nouser/x", "a\0b"])
def test_an_impossible_folder_is_refused(folder: str) -> None:
    for read in (read_settings, data_dotenv):
        with pytest.raises(SettingError, match=r"^WADM_DATA_DIR=.*set it to a writable folder$"):
            read({"WADM_DATA_DIR": folder})


def test_an_unreadable_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(SettingError) as refused:
        data_dotenv({"WADM_DATA_DIR": "/locked"})
    assert str(refused.value) == "WADM_DATA_DIR=/locked: the folder cannot be used (Permission denied); set it to a writable folder"
    with pytest.raises(SettingError, match=r"\.env: this \.env file cannot be read \(Permission denied\); fix or remove it"):
        read_settings({}, dotenv=Path(".env"))


def test_symbols_may_be_of_any_script() -> None:
    assert read_settings({"WADM_SYMBOLS": "btcusdt, 币安人生usdt"}).WADM_SYMBOLS == ("BTCUSDT", "币安人生USDT")
    for symbol in ("币安/USDT", "..", "币 安", "BTC\u202eUSDT", "币" * 41):
        with pytest.raises(SettingError, match="allowed are letters and digits, at most 40"):
            read_settings({"WADM_SYMBOLS": symbol})
