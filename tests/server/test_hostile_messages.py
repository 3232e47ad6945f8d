"""Messages that no client would send on purpose get an error with a fitting status, no traceback, and no line in the log of an error."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from typing import Any, Final

import anyio
import httpx2
import pytest

from tests.server.fake import FakeRuntime, serving
from tests.web.http_session import session

pytestmark = pytest.mark.anyio

_ENVELOPE: Final = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
}


def _request(method: bytes, params: bytes, request_id: bytes = b"2") -> bytes:
    """A request; the envelope of its era takes the place of META."""
    return b'{"jsonrpc":"2.0","id":%s,"method":"%s","params":{%sMETA}}' % (request_id, method, params and params + b",")


def _with_limit(limit: bytes) -> bytes:
    return _request(b"tools/call", b'"name":"get_trades","arguments":{"symbol":"BTCUSDT","limit":%s}' % limit)


def _nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


_LIST: Final = _request(b"tools/list", b"")
_BODIES: Final = {
    "a lone surrogate": _request(b"tools/call", rb'"name":"get_trades","arguments":{"symbol":"\ud800"}'),
    "a lone surrogate as a name": _request(b"tools/call", rb'"name":"\ud800","arguments":{}'),
    "a lone surrogate as a prompt": _request(b"prompts/get", rb'"name":"\ud800"'),
    "a lone surrogate as a resource": _request(b"resources/read", rb'"uri":"wadm://\ud800"'),
    "a lone surrogate as an id": _request(b"tools/list", b"", rb'"\ud800"'),
    "a long integer": _with_limit(b"9" * 6_000),
    "a long integer that can be read": _with_limit(b"9" * 4_200),
    "a number that is none": _with_limit(b"NaN"),
    **{f"{depth:,} brackets": _with_limit(_nested(depth)) for depth in (150, 250, 900, 990, 20_000)},
    "a batch": b"[" + _LIST + b"]",
    "a byte-order mark": b"\xef\xbb\xbf" + _LIST,
    "no UTF-8": _LIST.replace(b"list", b"list\xff"),
    "nothing": b"",
    "null": b"null",
    "an unknown method": _request(b"tools/unknown", b""),
    "a template of Python": _request(b"prompts/get", b'"name":"waickoff_report","arguments":{"symbol":"BTC{0}{x}-"}'),
}
_HARMLESS: Final = ("a lone surrogate as an id", "a byte-order mark", "a template of Python")


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
async def errors() -> AsyncGenerator[list[str]]:
    """Warnings and errors that anything logs."""
    handler = _Errors()
    logging.getLogger().addHandler(handler)
    yield handler.lines
    logging.getLogger().removeHandler(handler)


def _error_of(answer: httpx2.Response) -> str:
    """The text of the error in an answer, as a body or as an event, of the protocol or of a tool."""
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    body: dict[str, Any] = json.loads(data[-1] if data else answer.text)
    return body["error"]["message"] if "error" in body else body["result"]["content"][0]["text"] if body["result"].get("isError") else ""


def _headers(era: str, body: bytes) -> dict[str, str]:
    """The headers of a message, of which the newer era repeats its method and its name."""
    found = {"Content-Type": "application/json", "MCP-Protocol-Version": era}
    for header, member in (("Mcp-Method", b"method"), ("Mcp-Name", b"name")) if era == "2026-07-28" else ():
        said = body.partition(b'"%s":"' % member)[2].partition(b'"')[0].decode("latin-1")
        found |= {header: said} if said.isascii() and said else {}
    return found


@pytest.mark.parametrize("era", ["2025-11-25", "2026-07-28"])
async def test_a_hostile_message_over_http_is_answered_with_an_error(era: str, errors: list[str]) -> None:
    meta = json.dumps({"_meta": _ENVELOPE if era == "2026-07-28" else {}})[1:-1].encode()
    with anyio.fail_after(60):
        async with serving(FakeRuntime()) as (url, _), session(url) as client:
            for name, body in _BODIES.items():
                answer = await client.post("/mcp", content=body.replace(b"META", meta), headers=_headers(era, body))
                said = _error_of(answer)
                assert answer.status_code in (200, 400, 404), name
                assert said or name in _HARMLESS, name
                assert "Traceback" not in said, name
                assert len(said) < 1_500, name
            assert (await client.get("/health/live")).status_code == 200
    assert errors == []
