"""The whole official conformance suite, in both protocol versions, against the application that `wadm-mcp serve` serves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.conformance.fixtures import declare
from tests.conformance.judges import SUITE, judged
from tests.server.fake import FakeRuntime, serving

# The suite uses server-to-client requests and log messages, about which the SDK warns: 2026-07-28 has neither.
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")]

EXPECTED = Path(__file__).with_name("expected-failures.yaml")
SCENARIOS = {"2025-11-25": 33, "2026-07-28": 40}


@pytest.mark.parametrize("version", SCENARIOS)
async def test_every_scenario_passes(tmp_path: Path, version: str) -> None:
    async with serving(FakeRuntime()) as (url, server):
        declare(server)
        options = ("--suite", "all", "--spec-version", version, "--expected-failures", str(EXPECTED), "-o", str(tmp_path))
        said = await judged("npx", "--yes", SUITE, "server", "--url", f"{url}/mcp", *options, env=os.environ, cwd=tmp_path)
    reports = [json.loads(path.read_text()) for path in tmp_path.rglob("checks.json")]
    objections = {check["id"] for report in reports for check in report if check["status"] in ("FAILURE", "WARNING")}
    assert not objections, said
    assert len(reports) == SCENARIOS[version]
