from __future__ import annotations

import io
import sys
from pathlib import Path

import anyio
import pytest

from tests.market import trade
from tests.storage import order_flow
from wadm_mcp.clock import now_ms
from wadm_mcp.collection.backfill.import_jobs import ImportJob
from wadm_mcp.commands.audit import Choice
from wadm_mcp.commands.import_history import _plan, _progress_line, import_history
from wadm_mcp.coverage.spans import Basis, Span
from wadm_mcp.errors import SettingError
from wadm_mcp.model import DAY, HOUR, Instrument, Retention
from wadm_mcp.settings import read_settings
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.storage.sqlite import SqliteStore
from wadm_mcp.storage.store import Derived

CLOSED = "http://127.0.0.1:1"


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


@pytest.mark.anyio
async def test_a_plan_does_not_call_deleted_data_stored_and_names_what_is_kept_for_a_shorter_time(tmp_path: Path) -> None:
    now = now_ms()
    today, instrument = now // DAY * DAY, Instrument("binance", "spot", "BTCUSDT")
    async with SqliteStore(tmp_path / "wadm.sqlite") as store:
        trades = [trade(seq, today - 2 * DAY + seq * HOUR) for seq in range(48)]
        await store.write(trades, [(instrument, Span(today - 2 * DAY, today, 0, 47, Basis.EXACT))])
        await store.derive(Derived([], [], [order_flow(each.timestamp, [each]) for each in trades], await store.dirty_minutes()))
        await store.expire(today - DAY, Retention(DAY, HOUR, 900 * DAY))
    settings = read_settings({}, overrides={"WADM_DATA_DIR": tmp_path, "WADM_EXCHANGES": ("binance",), "WADM_BINANCE_ARCHIVE": CLOSED})
    lines = await _plan(settings, ImportJob(today - 2 * DAY, today), now, "", lambda text: None)
    assert "23.0 hours were recorded and have expired, and are not imported again" in lines[-1]
    assert "all of it is stored already" not in lines[-1]
    lines = await _plan(settings, ImportJob(today - 40 * DAY, today - 39 * DAY), now, "", lambda text: None)
    assert "(WADM_MINUTES_TTL_DAYS=30): it is deleted again within minutes" in lines[1]


@pytest.mark.parametrize("file", [False, True])
def test_what_would_be_deleted_at_once_is_not_imported(file: bool, tmp_path: Path) -> None:
    settings = read_settings({"WADM_DATA_DIR": str(tmp_path), "WADM_HOURS_TTL_DAYS": "90", "WADM_BINANCE_ARCHIVE": CLOSED})
    files = [tmp_path / "BTCUSDT-trades-2024-01-01.zip"] if file else []
    choice = Choice("binance", "spot", "BTCUSDT", None if file else "2024-01-01", None if file else "2024-01-02")
    with pytest.raises(SettingError, match=r"is older than WADM_HOURS_TTL_DAYS=90 and would be deleted at once; nothing is imported"):
        anyio.run(lambda: import_history(settings, choice, files, plan=True))


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
