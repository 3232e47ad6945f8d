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


@pytest.mark.parametrize("production", [False, True])
@pytest.mark.parametrize("harm", ["\r\n10:31:07 info gap.closed", "\x1b[2Jx", "\u202e\u200b", "x" * 60_000])
def test_no_value_or_message_can_forge_a_line_move_the_cursor_or_fill_the_log(production: bool, harm: str, written: Written) -> None:
    configure_logs(production=production)
    log.warning("session.unknown", session=harm)
    logging.getLogger("mcp.server").warning("unknown session %s", harm)
    try:
        raise ValueError(harm)
    except ValueError as error:
        log.error("part.failed", exc_info=error)
    text = written()
    lines = text.splitlines()
    assert [line for line in lines if not line.startswith("  ")] == [lines[0], lines[1], lines[2]]
    assert all(letter == "\n" or letter.isprintable() for letter in text)
    assert max(map(len, lines)) < 15_000
    assert len(text) < 30_000


@pytest.mark.parametrize("production", [False, True])
def test_no_password_or_token_of_a_url_is_logged(production: bool, written: Written) -> None:
    configure_logs(production=production)
    url = "wss://user:hunter2@example.com/ws?token=hunter2"
    log.warning("host.fallback", fallback=url)
    logging.getLogger("websockets").warning("cannot connect to %s", url)
    try:
        raise ValueError(url)
    except ValueError as error:
        log.error("part.failed", error=error, exc_info=error)
    text = written()
    assert "hunter2" not in text
    assert text.count("wss://example.com/ws") == 4


def test_a_password_is_hidden_although_what_follows_it_is_cut(written: Written) -> None:
    log.warning("store.unreachable", error=f"{'x' * 1_980} mongodb://user:SECRET{'y' * 100}@host")
    assert "SECRET" not in written()


def test_a_place_in_a_library_that_logs_without_end_is_left_out_and_counted(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    configure_logs(production=True)
    times = iter([0.0] * 1_000 + [60.0])
    monkeypatch.setattr(logging.getLogger().handlers[0], "_monotonic", lambda: next(times))
    for _ in range(1_001):
        logging.getLogger("asyncio").error("socket.accept() out of system resource")
    for _ in range(20):
        log.warning("store.unreachable")
    lines = [json.loads(line) for line in written().splitlines()]
    assert [line["event"] for line in lines].count("socket.accept() out of system resource") == 6
    assert lines[5]["left_out"] == 995
    assert [line["event"] for line in lines].count("store.unreachable") == 20
