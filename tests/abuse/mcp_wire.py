"""MCP over HTTP by hand, as a client sends it that does not behave: one request at a time, without a library between."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import httpx2

VERSION: Final = "2025-11-25"
HEADERS: Final = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": VERSION}


def message(method: str, params: Mapping[str, Any], number: int = 1) -> dict[str, Any]:
    """A request of JSON-RPC."""
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def initialize() -> dict[str, Any]:
    """The first request of a session."""
    return message("initialize", {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "abuse", "version": "1"}})


def call(tool: str, arguments: Mapping[str, Any], number: int = 1) -> dict[str, Any]:
    """The request of a tool call."""
    return message("tools/call", {"name": tool, "arguments": arguments}, number)


async def opened(client: httpx2.AsyncClient) -> str:
    """Open a session; its id. `HTTPError` if the server refuses."""
    response = await client.post("/mcp", json=initialize(), headers=HEADERS)
    response.raise_for_status()
    return response.headers["mcp-session-id"]


async def ended(client: httpx2.AsyncClient, session: str) -> None:
    """End a session as the protocol wants it."""
    await client.delete("/mcp", headers=in_session(session))


def in_session(session: str) -> dict[str, str]:
    """The headers of a request in a session."""
    return {**HEADERS, "Mcp-Session-Id": session}


async def asked(client: httpx2.AsyncClient, session: str, tool: str, arguments: Mapping[str, Any], number: int = 1) -> dict[str, Any]:
    """Call a tool and read the stream to its end; the JSON-RPC answer, or `{"status": ..., "retry_after": ...}` of an HTTP refusal."""
    response = await client.post("/mcp", json=call(tool, arguments, number), headers=in_session(session))
    if response.status_code != 200:
        return {"status": response.status_code, "retry_after": response.headers.get("retry-after"), "text": response.text}
    return answer_of(response.text)


def answer_of(text: str) -> dict[str, Any]:
    """The JSON-RPC answer in a response, of JSON or of events."""
    if text.startswith("{"):
        return json.loads(text)
    found = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return next((one for one in reversed(found) if "result" in one or "error" in one), {})
