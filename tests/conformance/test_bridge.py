"""A client that speaks only stdio reaches a WADM served over HTTP with a key through mcp-remote, started as in its example."""

from __future__ import annotations

import json
import os
from pathlib import Path

import anyio
import pytest
from mcp import Client, StdioServerParameters

from tests.conformance.judges import with_node
from tests.server.fake import FakeRuntime, serving
from wadm_mcp.server.questions import QUESTIONS

EXAMPLE = Path(__file__).parents[2] / "mcp.remote.example.json"


@pytest.mark.anyio
async def test_mcp_remote_brings_a_stdio_client_to_a_served_wadm(tmp_path: Path) -> None:
    server = json.loads(EXAMPLE.read_text())["mcpServers"]["wadm"]
    with anyio.fail_after(120):
        async with serving(FakeRuntime(API_KEY=server["env"]["API_KEY"])) as (url, _):
            arguments = [argument.replace("http://127.0.0.1:8920", url) for argument in server["args"]]
            env = with_node({**os.environ, **server["env"], "MCP_REMOTE_CONFIG_DIR": str(tmp_path)})
            async with Client(StdioServerParameters(command=server["command"], args=arguments, env=env, cwd=tmp_path)) as client:
                assert {question.name for question in QUESTIONS} <= {tool.name for tool in (await client.list_tools()).tools}
                assert not (await client.call_tool("list_markets", {})).is_error
