"""Writes the table of `docs/evaluation.md`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import anyio

from tests.evaluation.agent import Agent, connected
from tests.evaluation.questions import QUESTIONS

PAGE: Final = Path(__file__).parents[2] / "docs" / "evaluation.md"
_MARKED: Final = re.compile(r"(<!-- evaluation -->\n).*?(<!-- /evaluation -->)", re.DOTALL)


async def table() -> str:
    """The table: each question with the number of calls and tokens of its answer."""
    lines = ["| question | calls | tokens read |", "| --- | --- | --- |"]
    async with connected() as (client, tools):
        for question in QUESTIONS:
            agent = Agent(client, tools)
            await question.find(agent)
            lines.append(f"| {question.text} | {agent.calls} | {agent.tokens} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, table: str) -> str:
    """The page with this table between its marks."""
    return _MARKED.sub(lambda found: f"{found[1]}{table}{found[2]}", page)


async def main() -> None:
    """Writes the table into the page."""
    PAGE.write_text(with_table(PAGE.read_text(), await table()))


if __name__ == "__main__":
    anyio.run(main)
