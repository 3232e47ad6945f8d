"""A client of `/mcp` that sends raw requests, in a session of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx2

VERSION = "2025-11-25"
HEADERS = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": VERSION}
INITIALIZE = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


def call(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """A request with the same id as every other request of these tests."""
    return {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}


@asynccontextmanager
async def session(url: str) -> AsyncGenerator[httpx2.AsyncClient]:
    """A client in a session of its own."""
    async with httpx2.AsyncClient(base_url=url, headers=HEADERS, trust_env=False) as client:
        opened = await client.post("/mcp", json=call("initialize", INITIALIZE))
        client.headers["Mcp-Session-Id"] = opened.headers["mcp-session-id"]
        await client.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        yield client
