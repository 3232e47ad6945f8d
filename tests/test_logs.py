from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Generator

import pytest

from wadm_mcp.logs import RateLimitedWarning, clear_line_first, configure_logs, log

Written = Callable[[], str]


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Generator[Written]:
    """Returns what was written to stderr since the last call."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: capsys.readouterr().err
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_is_an_event_with_its_fields(written: Written) -> None:
    configure_logs(production=False)
    log.info("gap.opened", instrument="binance:spot:BTCUSDT", first=41, why="it was cut")
    assert written().split(" ", 1)[1] == 'info gap.opened instrument=binance:spot:BTCUSDT first=41 why="it was cut"\n'


def test_a_field_cannot_break_the_line(written: Written) -> None:
    configure_logs(production=False)
    log.warning("frame.bad", error="one\ntwo")
    assert len(written().splitlines()) == 1


def test_in_production_a_line_is_json_with_a_stable_event_name(written: Written) -> None:
    configure_logs(production=True)
    log.error("store.failed", error=ValueError("disk full"), waiting=7)
    entry = json.loads(written())
    assert entry.pop("time").endswith("Z")
    assert entry == {"level": "error", "event": "store.failed", "error": "disk full", "waiting": 7}


def test_a_librarys_info_lines_are_dropped_and_its_warnings_are_not(written: Written) -> None:
    configure_logs(production=False)
    logging.getLogger("websockets").info("connection open")
    logging.getLogger("websockets").warning("odd")
    assert written().count("\n") == 1


def test_a_frequent_event_is_logged_at_once_and_then_once_a_minute_with_its_count(written: Written) -> None:
    configure_logs(production=True)
    now = 0.0
    warn = RateLimitedWarning("frame.bad", lambda: now)
    for now in (0.0, 0.1, 30.0, 59.9, 60.0, 60.1, 500.0):
        warn(at=now)
    lines = [json.loads(line) for line in written().splitlines()]
    assert [(line["event"], line["at"], line["count"]) for line in lines] == [
        ("frame.bad", 0.0, 1),
        ("frame.bad", 60.0, 4),
        ("frame.bad", 500.0, 2),
    ]


def test_an_unwritable_stderr_loses_its_lines_and_has_no_other_effect(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stderr", full)
        configure_logs(production=False)
        clear_line_first(True)
        try:
            log.warning("store.unreachable")
        finally:
            clear_line_first(False)
            monkeypatch.undo()
            os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    assert written() == ""
