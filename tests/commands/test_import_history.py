from __future__ import annotations

import io
import sys
from pathlib import Path

import anyio
import pytest

from wadm_mcp.clock import now_ms
from wadm_mcp.collection.backfill.import_jobs import ImportJob
from wadm_mcp.commands.audit import Choice
from wadm_mcp.commands.import_history import _plan, _progress_line, import_history
from wadm_mcp.errors import SettingError
from wadm_mcp.model import DAY
from wadm_mcp.settings import read_settings
from wadm_mcp.simulator.simulator import Simulator


@pytest.mark.anyio
async def test_a_plan_tells_which_day_it_asks_for(tmp_path: Path) -> None:
    today = now_ms() // DAY * DAY
    async with Simulator(activity=0.001) as simulator:
        urls = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
        settings = read_settings({}, overrides={"WADM_DATA_DIR": tmp_path, "WADM_EXCHANGES": ("binance",), **urls})
        shown: list[str] = []
        lines = await _plan(settings, ImportJob(today - 2 * DAY, today), now_ms(), "", shown.append)
    assert shown == ["plan: binance:spot:BTCUSDT, day 1 of 2", "plan: binance:spot:BTCUSDT, day 2 of 2"]
    assert "binance:spot:BTCUSDT: 2 days from the archive" in lines[1]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_line_of_a_terminal_and_is_cleared_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with _progress_line() as show:
        show("one")
        show("x" * 1_000)
    cleared, first, second, end = terminal.getvalue().split("\r\x1b[K")
    assert (cleared, first, end) == ("", "one", "")
    assert second == "x" * len(second) != "x" * 1_000


def test_without_a_terminal_a_line_is_printed_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    output, seconds = io.StringIO(), iter([0.0, 9.0, 11.0, 11.0, 12.0, 21.0, 21.0])
    monkeypatch.setattr(sys, "stderr", output)
    monkeypatch.setattr("wadm_mcp.commands.import_history.time.monotonic", lambda: next(seconds))
    with _progress_line() as show:
        for text in ("too early", "first", "too early again", "second"):
            show(text)
    assert output.getvalue() == "first\nsecond\n"


@pytest.mark.parametrize("symbol", ["../../secret", "BTC/USDT", "BTC%2FUSDT", "", "X" * 41])
def test_a_symbol_that_could_lead_elsewhere_is_refused_before_anything_is_requested(symbol: str, tmp_path: Path) -> None:
    settings = read_settings({"WADM_DATA_DIR": str(tmp_path), "WADM_BINANCE_ARCHIVE": "http://127.0.0.1:1"})
    choice = Choice(exchange="binance", market="spot", symbol=symbol, start=None, end=None)
    with pytest.raises(SettingError, match=r"^--symbol .*: an exchange's own name is needed, such as BTCUSDT$"):
        anyio.run(lambda: import_history(settings, choice, [], plan=True))
