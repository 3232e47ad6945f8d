"""Each tool definition, checked by the rules of the Tool Definition Quality Score that need no model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conformance.judges import WADM, judged
from tests.end_to_end.process import environment
from wadm_mcp.server.questions import QUESTIONS


@pytest.mark.anyio
async def test_no_tool_definition_earns_a_warning(tmp_path: Path) -> None:
    options = ("--command", f"{WADM} --demo", "--fail-on", "warning", "--format", "json")
    env = environment(tmp_path / "data", WADM_ALLOW_TRACKING="1")
    found = json.loads(await judged("tdqs", "lint", *options, env=env, cwd=tmp_path))
    names = {tool["name"] for tool in found["tools"]}
    assert {question.name for question in QUESTIONS} | {"track_market", "untrack_market"} <= names
