"""Definitions do not change unseen, and the pages generated from them are up to date."""

from __future__ import annotations

import pytest

from tests.reference import REFERENCE, SIZES, SNAPSHOT, compact, definitions, reference, sizes, snapshot, tokens, with_sizes
from wadm_mcp.server.guide import GUIDE
from wadm_mcp.server.server import INSTRUCTIONS

pytestmark = pytest.mark.anyio

_HOW = "out of date; if the change is intended, run make reference"


async def test_every_definition_is_the_one_of_the_snapshot() -> None:
    assert SNAPSHOT.read_text() == snapshot(await definitions()), f"{SNAPSHOT.name} is {_HOW}"


async def test_the_reference_page_is_what_the_code_says() -> None:
    assert REFERENCE.read_text() == reference(await definitions()), f"{REFERENCE.name} is {_HOW}"


async def test_the_table_of_sizes_is_what_the_tools_answer() -> None:
    page = SIZES.read_text()
    assert page == with_sizes(page, await sizes()), f"{SIZES.name} is {_HOW}"


async def test_at_most_twelve_tools_cost_an_agent_at_most_4000_tokens() -> None:
    listed = (await definitions())["tools"]
    assert len(listed) <= 12
    assert tokens(compact({"tools": listed})) <= 4_000


def test_the_guide_costs_at_most_1500_tokens_and_the_instructions_a_sixth_of_that() -> None:
    assert tokens(GUIDE) <= 1_500
    assert tokens(INSTRUCTIONS) <= 250
