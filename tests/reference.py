"""The documentation of tools, resources, prompts, settings and routes, generated from the server itself.

`python -m tests.reference` writes `docs/reference.md`, the table of sizes in `docs/tools.md` and the snapshot of every definition;
`test_reference` fails when one of them differs from the code.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import anyio
from mcp.client import Client
from mcp_types import TextContent
from rs_bpe import openai

from tests.market import NOON
from tests.queries.test_market_structure import NOW, tape_world
from tests.server.fake import FakeRuntime
from wadm_mcp.model import HOUR
from wadm_mcp.queries.arguments import DETAILS
from wadm_mcp.queries.numbers import iso
from wadm_mcp.server.guide import GUIDE
from wadm_mcp.server.questions import QUESTIONS
from wadm_mcp.server.server import build_server
from wadm_mcp.settings import settings_table

ROOT: Final = Path(__file__).parents[1]
REFERENCE: Final = ROOT / "docs" / "reference.md"
SIZES: Final = ROOT / "docs" / "tools.md"
SNAPSHOT: Final = ROOT / "tests" / "server" / "definitions.json"

_MARKED: Final = re.compile(r"(<!-- sizes -->\n).*?(<!-- /sizes -->)", re.DOTALL)
_COMMON: Final[dict[str, Any]] = {"symbol": "BTCUSDT", "condition": "coverage_back", "timeout": 1}
"""Arguments of every question that takes them."""
_WINDOWS: Final[dict[str, dict[str, Any]]] = {
    "get_volume_profile": {"window": "24h"},
    "get_order_flow": {"window": "4h"},
    "get_footprint": {"start": iso(NOON - HOUR), "end": iso(NOON), "timeframe": "15m"},
    "compare_exchanges": {"window": "4h", "timeframe": "15m"},
}
"""Where a typical window is not the default one."""
_ASKED: Final = {
    question.name: {name: value for name, value in _COMMON.items() if name in question.arguments} | _WINDOWS.get(question.name, {})
    for question in QUESTIONS
}


def tokens(text: str) -> int:
    """Tokens of a text by OpenAI's o200k encoding, the largest public one; other models count within a fifth of it."""
    return openai.o200k_base().count(text)


def compact(value: Any) -> str:
    """JSON as it is sent."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


async def definitions() -> dict[str, Any]:
    """Everything that a client can list, with tracking on, in the newest protocol."""
    async with Client(build_server(FakeRuntime(WADM_ALLOW_TRACKING=True))) as client:
        lists = {
            "tools": (await client.list_tools()).tools,
            "resources": (await client.list_resources()).resources,
            "resourceTemplates": (await client.list_resource_templates()).resource_templates,
            "prompts": (await client.list_prompts()).prompts,
        }
    return {
        name: [one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in items]  # pyright: ignore[reportAttributeAccessIssue]
        for name, items in lists.items()
    }


async def sizes() -> str:
    """A table of the tokens and bytes of each tool's definition and answers."""
    runtime = FakeRuntime()
    world = tape_world()
    runtime.view, runtime.clock.at = world.view, NOW
    listed = {tool["name"]: compact(tool) for tool in (await definitions())["tools"]}
    lines = ["| tool | definition | brief | standard | full |", "| --- | --- | --- | --- | --- |"]
    async with Client(build_server(runtime)) as client:
        for name, asked in _ASKED.items():
            cells = [f"{tokens(listed[name])} / {len(listed[name].encode())}"]
            for detail in DETAILS:
                (block,) = (await client.call_tool(name, {**asked, "detail": detail})).content
                assert isinstance(block, TextContent)
                cells.append(f"{tokens(block.text)} / {len(block.text.encode())}")
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
    for name in ("track_market", "untrack_market"):
        lines.append(f"| `{name}` | {tokens(listed[name])} / {len(listed[name].encode())} | | | |")
    every = compact(list(listed.values()))
    lines.append(f"| all of `tools/list` | {sum(map(tokens, listed.values()))} / {len(every.encode())} | | | |")
    lines.append(f"| `wadm://guide` | | | {tokens(GUIDE)} / {len(GUIDE.encode())} | |")
    return "\n".join(lines) + "\n"


def with_sizes(page: str, table: str) -> str:
    """The page with this table between its markers."""
    return _MARKED.sub(lambda found: f"{found[1]}{table}{found[2]}", page)


def reference(listed: dict[str, Any]) -> str:
    """The reference page."""
    lines = ["# Reference", "", "Generated from the code by `make reference`; a test keeps it up to date.", "", "## Tools", ""]
    for tool in listed["tools"]:
        hints = tool["annotations"]
        kind = "read-only" if hints["readOnlyHint"] else "changes what is followed"
        lines += [f"### {tool['name']}", "", f"{tool['title']}; {kind}. {tool['description']}", ""]
        schema = tool["inputSchema"]
        lines += ["| argument | values | default | meaning |", "| --- | --- | --- | --- |"]
        for name, one in schema["properties"].items():
            values = ", ".join(f"`{value}`" for value in one["enum"]) if "enum" in one else one["type"]
            default = "needed" if name in schema.get("required", []) else f"`{one['default']}`" if "default" in one else ""
            lines.append(f"| `{name}` | {values} | {default} | {one['description']} |")
        answer = ", ".join(f"`{name}`" for name in tool["outputSchema"]["properties"])
        lines += ["", f"Answers with {answer}.", ""]
    lines += ["## Resources", "", "| address | title | content |", "| --- | --- | --- |"]
    fixed = [one for one in listed["resources"] if one["uri"].count("/") == 2]
    for one in (*fixed, *listed["resourceTemplates"]):
        lines.append(f"| `{one.get('uri') or one['uriTemplate']}` | {one['title']} | {one['description']} |")
    lines += ["", "## Prompts", "", "| prompt | arguments | what it is for |", "| --- | --- | --- |"]
    for one in listed["prompts"]:
        names = ", ".join(f"`{argument['name']}`" + (" (needed)" if argument.get("required") else "") for argument in one["arguments"])
        lines.append(f"| `{one['name']}` | {names} | {one['description']} |")
    lines += ["", "## JSON routes", "", "| route | answers as | query parameters |", "| --- | --- | --- |"]
    for question in QUESTIONS:
        if question.path is not None:
            lines.append(f"| `GET {question.path}` | `{question.name}` | {', '.join(f'`{name}`' for name in question.arguments)} |")
    lines += ["", "## Settings", "", "| name | default | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {f'`{default}`' if default else ''} | {meaning} |" for name, default, meaning in settings_table()]
    return "\n".join(lines) + "\n"


def snapshot(listed: dict[str, Any]) -> str:
    """Every definition as indented JSON, so that a diff shows what changed."""
    return json.dumps(listed, indent=1, ensure_ascii=False) + "\n"


async def main() -> None:
    """Write all three files."""
    listed = await definitions()
    REFERENCE.write_text(reference(listed))
    SNAPSHOT.write_text(snapshot(listed))
    SIZES.write_text(with_sizes(SIZES.read_text(), await sizes()))


if __name__ == "__main__":
    anyio.run(main)
