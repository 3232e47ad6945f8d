"""The Inspector as a user starts it, over each transport, against the demo as a user starts it; tool schemas that every client takes."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.judges import INSPECTOR, WADM, judged
from tests.end_to_end.process import environment, serving
from wadm_mcp.server.questions import QUESTIONS

pytestmark = pytest.mark.anyio

TRANSPORTS = ("http", "sse", "stdio")


@asynccontextmanager
async def demo(transport: str, folder: Path) -> AsyncGenerator[tuple[Sequence[str], Sequence[str]]]:
    """A demo, and the arguments that name it to the Inspector: those before its options and those after them."""
    if transport == "stdio":
        yield (), ("--", WADM, "--demo")
        return
    async with serving(folder, "serve", "--demo") as served:
        yield ((f"{served.url}/mcp", "--transport", "http") if transport == "http" else (f"{served.url}/sse", "--transport", "sse")), ()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_inspector_reports_no_problem(tmp_path: Path, transport: str) -> None:
    async with demo(transport, tmp_path / "data") as (before, after):

        async def ask(method: str, *options: str) -> Any:
            # Its own folder: it must not read or change the tester's.
            env = environment(tmp_path / "data", MCP_STORAGE_DIR=str(tmp_path / "inspector"))
            command = ("npx", "--yes", INSPECTOR, "--cli", "-q", *before, "--method", method, *options, *after)
            return json.loads(await judged(*command, env=env, cwd=tmp_path))

        for era in ("legacy", "modern"):
            listed = await ask("tools/list", "--strict", "--protocol-era", era)
            assert {question.name for question in QUESTIONS} <= {tool["name"] for tool in listed["tools"]}
        answer = await ask("tools/call", "--tool-name", "list_markets")
        assert json.loads(answer["content"][0]["text"]) == answer["structuredContent"]
        guide = await ask("resources/read", "--uri", "wadm://guide")
        assert guide["contents"][0]["mimeType"] == "text/markdown"
        prompt = await ask("prompts/get", "--prompt-name", "waickoff_report", "--prompt-args", "symbol=BTCUSDT")
        assert "BTCUSDT" in prompt["messages"][0]["content"]["text"]
