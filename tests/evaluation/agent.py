"""An agent without a model: it reads what the server sends to clients, chooses tools by their descriptions, and counts tokens and calls."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

from mcp.client import Client
from mcp_types import TextContent, Tool

from tests.evaluation.tape import runtime
from tests.reference import tokens
from wadm_mcp.server.server import build_server

MOST_CALLS: Final = 3
MOST_TOKENS: Final = 3_000

_TRY: Final = re.compile(r"Try ([a-z_]+)\((.*)\)$")
_ARGUMENT: Final = re.compile(r'(\w+)=("(?:[^"]*)"|[^,]+)')


class TooDear(Exception):
    """A fact that the agent cannot reach within the calls and tokens that a question may cost."""


class Agent:
    """The calls of one question. It knows only the list of tools."""

    def __init__(self, client: Client, tools: list[Tool]) -> None:
        self._client = client
        self._tools = tools
        self.calls = 0
        self.tokens = 0
        self.refusals: list[str] = []

    def tool_for(self, words: str) -> Tool:
        """The tool whose name, title and description contain the most of these words. Fails if two tools contain equally many."""
        wanted = set(_words(words))
        scores = {tool.name: len(wanted & set(_words(f"{tool.name} {tool.title} {tool.description}"))) for tool in self._tools}
        best = [tool for tool in self._tools if scores[tool.name] == max(scores.values())]
        if len(best) != 1:
            raise LookupError(f"{words!r} fits {', '.join(tool.name for tool in best)} alike")
        return best[0]

    async def ask(self, words: str, **arguments: Any) -> dict[str, Any]:
        """The answer of the tool that fits the words. If the call is refused, the call that the error suggests is made instead."""
        tool = self.tool_for(words)
        schema = tool.input_schema["properties"]
        for name, value in arguments.items():
            if name in schema and "enum" in schema[name] and value not in schema[name]["enum"] and not self._mistaken(name, value):
                raise LookupError(f"{tool.name} does not offer {name}={value}")
        return await self._call(tool.name, arguments)

    def _mistaken(self, name: str, value: Any) -> bool:
        """Is it one of the mistakes that questions make on purpose?"""
        return (name, value) in {("window", "2h"), ("timeframe", "4H")}

    async def _call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        if self.calls > MOST_CALLS:
            raise TooDear(f"more than {MOST_CALLS} calls")
        result = await self._client.call_tool(name, arguments)
        (block,) = result.content
        assert isinstance(block, TextContent)
        self.tokens += tokens(block.text)
        if self.tokens > MOST_TOKENS:
            raise TooDear(f"{self.tokens} tokens")
        if result.is_error:
            self.refusals.append(block.text)
            found = _TRY.search(block.text)
            if found is None:
                raise LookupError(f"no call that would work: {block.text}")
            return await self._call(found[1], {key: json.loads(value) for key, value in _ARGUMENT.findall(found[2])})
        return json.loads(block.text, parse_float=str)


@asynccontextmanager
async def connected() -> AsyncGenerator[tuple[Client, list[Tool]]]:
    """A client of a server on the tape, and the tools that it lists."""
    async with Client(build_server(runtime())) as client:
        yield client, (await client.list_tools()).tools


def rows(table: dict[str, Any]) -> list[dict[str, Any]]:
    """A table's rows by the names of its columns."""
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower().replace("_", " "))
