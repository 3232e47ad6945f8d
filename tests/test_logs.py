from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator

import pytest

from wadm_mcp.logs import configure_logs, log

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
