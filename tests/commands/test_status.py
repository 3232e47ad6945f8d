from __future__ import annotations

from pathlib import Path

import pytest

from tests.market import NOON, SPOT, listing
from wadm_mcp.commands.status import status_line, welcome
from wadm_mcp.health import State
from wadm_mcp.model import DAY, HOUR
from wadm_mcp.runtime import Runtime
from wadm_mcp.settings import read_settings
from wadm_mcp.tape import Importing


def runtime(folder: Path) -> Runtime:
    return Runtime(read_settings({"WADM_DATA_DIR": str(folder)}))


def test_the_welcome_says_where_to_connect_with_one_call_to_try(tmp_path: Path) -> None:
    text = "\n".join(welcome("http://127.0.0.1:8920", read_settings({"WADM_DATA_DIR": str(tmp_path), "WADM_SYMBOLS": "ETHUSDT"})))
    assert "http://127.0.0.1:8920/mcp" in text
    assert 'curl -s "http://127.0.0.1:8920/api/volume-profile?symbol=ETHUSDT&exchange=binance&window=15m"' in text


@pytest.mark.parametrize("exchange", ["binance", "bybit"])
def test_with_one_exchange_the_call_to_try_names_none(tmp_path: Path, exchange: str) -> None:
    text = "\n".join(welcome("http://127.0.0.1:8920", read_settings({"WADM_DATA_DIR": str(tmp_path), "WADM_EXCHANGES": exchange})))
    assert "/api/volume-profile?symbol=BTCUSDT&window=15m" in text


def test_the_welcome_replaces_a_wildcard_address_and_names_the_key_without_showing_it(tmp_path: Path) -> None:
    settings = read_settings({"WADM_DATA_DIR": str(tmp_path), "API_KEY": "very-secret", "WADM_HOST": "0.0.0.0"})
    text = "\n".join(welcome("http://0.0.0.0:8920", settings))
    assert "http://127.0.0.1:8920/mcp" in text
    assert "$API_KEY" in text
    assert "very-secret" not in text


def test_the_status_line_shows_the_state_of_recording_and_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = runtime(tmp_path)
    one.health.report("recorder", State.OK)
    assert status_line(one, 0, None).startswith("waiting for the exchanges")
    monkeypatch.setattr(Runtime, "role", "recording")
    one.tape.follow(listing())
    one.health.report(str(SPOT), State.OK)
    assert status_line(one, 45, None) == "recording · 1 of 1 instruments live · 45 trades/s · 0 recorded"
    one.tape[SPOT].report_import(Importing(NOON - DAY, NOON - HOUR, 50_000, 41.6))
    assert status_line(one, 45, None).endswith(
        "importing 2026-05-31T12:00:00Z to 2026-06-01T11:00:00Z, newest first, 50,000 trades/s, about 42 s left"
    )
    one.tape[SPOT].report_import(Importing(NOON - DAY, NOON - HOUR))
    assert status_line(one, 45, None).endswith("importing 2026-05-31T12:00:00Z to 2026-06-01T11:00:00Z, newest first")
    one.tape[SPOT].report_import(None)
    one.health.report(str(SPOT), State.DOWN, "the connection closed")
    assert status_line(one, 0, None).endswith("binance:spot:BTCUSDT: down, the connection closed")
