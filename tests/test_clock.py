from __future__ import annotations

import time
from pathlib import Path

import pytest

from wadm_mcp import clock
from wadm_mcp.model import HOUR
from wadm_mcp.runtime import Runtime
from wadm_mcp.settings import read_settings


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system's monotonic clock counts the time of suspension, or none does")
def test_the_clock_that_times_are_carried_on_with_counts_the_time_for_which_the_machine_was_suspended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(read_settings({}, overrides={"WADM_DATA_DIR": tmp_path}))
    heard = runtime._heard
    assert heard is not None
    began, running, suspended = clock.now_ms(), time.monotonic(), 0.0
    clocks = {time.CLOCK_BOOTTIME: lambda: running + suspended, time.CLOCK_MONOTONIC: lambda: running}
    monkeypatch.setattr(time, "clock_gettime", lambda number: clocks[number]())
    monkeypatch.setattr(time, "monotonic", lambda: running)
    monkeypatch.setattr(time, "time_ns", lambda: (began + round(suspended * 1_000)) * 1_000_000)
    heard("binance", began)
    suspended = 9.0 * HOUR / 1_000
    assert runtime.view.clock() == began + 9 * HOUR
