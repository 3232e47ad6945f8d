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
    """What went to stderr since it was last asked for."""
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


def test_a_librarys_chatter_is_left_out_and_its_warnings_are_not(written: Written) -> None:
    configure_logs(production=False)
    logging.getLogger("websockets").info("connection open")
    logging.getLogger("websockets").warning("odd")
    assert written().count("\n") == 1


def test_a_flood_is_one_line_at_once_and_then_one_a_minute_with_the_number_since(written: Written) -> None:
    configure_logs(production=True)
    now = 0.0
    seldom = RateLimitedWarning("frame.bad", lambda: now)
    for now in (0.0, 0.1, 30.0, 59.9, 60.0, 60.1, 500.0):
        seldom(at=now)
    lines = [json.loads(line) for line in written().splitlines()]
    assert [(line["event"], line["at"], line["count"]) for line in lines] == [
        ("frame.bad", 0.0, 1),
        ("frame.bad", 60.0, 4),
        ("frame.bad", 500.0, 2),
    ]


def test_a_stderr_that_takes_nothing_costs_its_lines_and_nothing_else(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
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
