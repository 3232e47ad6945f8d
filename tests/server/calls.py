"""Calls that ask every question, derived from the questions: a new question is asked by every test that goes through them."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from wadm_mcp.server.questions import NEEDED, QUESTIONS, Question

MINUTES: Final = {"symbol": "BTCUSDT", "exchange": "binance", "start": "2026-06-01T12:00:00Z", "end": "2026-06-01T12:03:00Z"}
"""The window in which `FakeRuntime` traded."""
_CALL: Final[dict[str, Any]] = {**MINUTES, "timeframe": "1m", "condition": "coverage_back", "timeout": 1}

_SUGGESTED: Final = re.compile(r"Try ([a-z_]+)\(([^()]*)\)$")


def arguments_for(question: Question, **given: Any) -> dict[str, Any]:
    """Arguments that a question takes: those given, else those of the window in which `FakeRuntime` traded."""
    arguments = {name: value for name, value in {**_CALL, **given}.items() if name in question.arguments}
    assert {name for name, default in question.arguments.items() if default is NEEDED} <= arguments.keys()
    return arguments


def every_call(**given: Any) -> list[tuple[str, dict[str, Any]]]:
    """The tool's name and the arguments of every question."""
    return [(question.name, arguments_for(question, **given)) for question in QUESTIONS]


def suggested(refusal: str) -> tuple[str, dict[str, Any]]:
    """The call after "Try" at the end of an error."""
    found = _SUGGESTED.search(refusal)
    assert found is not None, refusal
    return found[1], {name: json.loads(value) for name, value in re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|[^,]+)', found[2])}
