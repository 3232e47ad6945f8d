"""Does an agent that knows only the tools reach the facts, in three calls and 3,000 tokens?"""

from __future__ import annotations

import pytest

from tests.evaluation.__main__ import PAGE, table, with_table
from tests.evaluation.agent import MOST_CALLS, MOST_TOKENS, Agent, connected
from tests.evaluation.questions import QUESTIONS, Question

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.text)
async def test_a_fact_is_reached_within_three_calls_and_3000_tokens(question: Question) -> None:
    async with connected() as (client, tools):
        agent = Agent(client, tools)
        assert await question.find(agent) == question.true()
    assert agent.calls <= MOST_CALLS
    assert agent.tokens <= MOST_TOKENS


def test_every_tool_answers_something() -> None:
    assert len(QUESTIONS) >= 25


async def test_the_table_of_the_evaluation_is_true() -> None:
    page = PAGE.read_text()
    assert page == with_table(page, await table())
