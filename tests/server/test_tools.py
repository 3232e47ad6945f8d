from __future__ import annotations

import json
from typing import Any

import pytest
from mcp.client import Client
from mcp_types import CallToolResult, TextContent

from tests.server.calls import MINUTES, every_call
from tests.server.fake import ERAS, TRADES, FakeRuntime
from wadm_mcp.errors import StoreError
from wadm_mcp.server.questions import NEEDED, QUESTIONS
from wadm_mcp.server.server import build_server
from wadm_mcp.server.tools import tools

pytestmark = pytest.mark.anyio

_CALLS = every_call(limit=7, detail="full", condition="price_crosses", value=70_000)


async def _call(runtime: FakeRuntime, name: str, arguments: dict[str, Any], era: str = ERAS[1]) -> CallToolResult:
    async with Client(build_server(runtime), mode=era) as client:  # pyright: ignore[reportArgumentType]
        return await client.call_tool(name, arguments)


def _text(result: CallToolResult) -> str:
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(("name", "arguments"), _CALLS)
async def test_text_and_structure_carry_the_same_facts(era: str, name: str, arguments: dict[str, Any]) -> None:
    result = await _call(FakeRuntime(), name, arguments, era)
    assert not result.is_error
    assert result.structured_content == json.loads(_text(result))
    assert _text(result) == json.dumps(result.structured_content, separators=(",", ":"), ensure_ascii=False)


@pytest.mark.parametrize(("name", "arguments"), _CALLS)
async def test_the_published_schema_names_every_figure_of_the_answer(name: str, arguments: dict[str, Any]) -> None:
    model: Any = next(tool.fn_metadata.output_model for tool in tools() if tool.name == name)
    merged = {"exchange": "all"} if "exchange" in arguments else {}
    answer = (await _call(FakeRuntime(), name, {**arguments, **merged})).structured_content
    assert answer is not None
    fields = model.model_fields
    assert {field for field in fields if fields[field].is_required()} <= set(answer) <= set(fields)
    if "coverage" in answer:
        assert next(iter(answer)) == "coverage"
        assert set(answer["coverage"]) <= set(model.model_fields["coverage"].annotation.model_fields)
        assert set(answer["window"]) == {"start", "end", "closed"}


async def test_all_questions_agree_on_a_covered_window() -> None:
    runtime = FakeRuntime()
    profile = (await _call(runtime, "get_volume_profile", {**MINUTES, "detail": "full"})).structured_content
    flow = (await _call(runtime, "get_order_flow", {**MINUTES, "timeframe": "1m"})).structured_content
    trades = (await _call(runtime, "get_trades", {**MINUTES, "limit": 1000})).structured_content
    assert profile is not None
    assert flow is not None
    assert trades is not None
    assert profile["coverage"]["ratio"] == 1
    assert profile["trade_count"] == len(trades["trades"]["rows"]) == TRADES
    assert sum(row[11] for row in flow["bars"]["rows"]) == TRADES


async def test_an_empty_brief_and_merged_profile_fit_the_schema() -> None:
    runtime = FakeRuntime()
    nowhere = {"symbol": "BTCUSDT", "start": "2026-05-01", "end": "2026-05-02"}
    for name in ("get_trades", "get_volume_profile", "get_order_flow", "get_footprint"):
        result = await _call(runtime, name, {**nowhere, **({"timeframe": "1h"} if name[-1] in "wt" else {})})
        assert not result.is_error, _text(result)
    brief = await _call(runtime, "get_volume_profile", {"symbol": "BTCUSDT", "detail": "brief"})
    assert brief.structured_content is not None
    assert brief.structured_content["nodes"] is None


@pytest.mark.parametrize("era", ERAS)
async def test_an_unknown_argument_is_refused_by_name_with_a_call_that_works(era: str) -> None:
    result = await _call(FakeRuntime(), "get_trades", {"symbol": "BTCUSDT", "limt": 9}, era)
    assert result.is_error
    assert _text(result) == (
        'get_trades has no argument "limt". Nearest: limit. Allowed: symbol, exchange, market, window, start, end, as_of, limit, cursor, '
        'min_notional, detail. Try get_trades(symbol="BTCUSDT", window="1h")'
    )
    none = await _call(FakeRuntime(), "list_markets", {"symbol": "BTCUSDT"}, era)
    assert _text(none) == 'list_markets has no argument "symbol". Allowed: limit, detail. Try list_markets()'


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "symbol is missing"),
        ({"symbol": None}, "symbol is missing"),
        ({"symbol": ["BTCUSDT"]}, "symbol=(a list)"),
        ({"symbol": "BTCUSDT", "limit": "many"}, 'limit="many"'),
        ({"symbol": "BTCUSDT", "limit": 2.5}, "limit=2.5"),
        ({"symbol": "BTCUSDT", "limit": True}, "limit=true"),
        ({"symbol": "BTCUSDT", "window": {"a": 1}}, "window=(an object)"),
        ({"symbol": "BTCUSDT", "start": "yesterday"}, 'start="yesterday"'),
        ({"symbol": "ETHUSDX"}, 'symbol "ETHUSDX" is not followed'),
        ({"symbol": "x" * 10_000}, '..." has 10,000 characters; at most 1,000 are allowed'),
    ],
)
async def test_an_invalid_value_is_refused_in_one_line_worded_by_wadm(arguments: dict[str, Any], said: str) -> None:
    result = await _call(FakeRuntime(), "get_trades", arguments)
    text = _text(result)
    assert result.is_error
    assert said in text
    assert "\n" not in text
    assert len(text) < 400
    assert not any(word in text.lower() for word in ("pydantic", "error executing", "traceback", "http"))


async def test_null_counts_as_not_given() -> None:
    result = await _call(FakeRuntime(), "get_trades", {**MINUTES, "as_of": None, "cursor": None, "limit": None})
    assert not result.is_error


async def test_an_unknown_tool_is_answered_with_the_known_ones() -> None:
    result = await _call(FakeRuntime(), "get_tradez", {})
    assert result.is_error
    assert _text(result).startswith('tool "get_tradez" does not exist. Nearest: get_trades. Tools: list_markets, get_market_structure,')


async def test_without_the_store_the_live_tape_answers_and_claims_no_more_than_it_has() -> None:
    runtime = FakeRuntime()
    runtime.store.error = StoreError("the store is unreachable; it is tried again")
    result = await _call(runtime, "get_order_flow", {"symbol": "BTCUSDT", "exchange": "binance", "window": "1h"})
    assert not result.is_error
    assert result.structured_content is not None
    coverage = result.structured_content["coverage"]
    assert coverage["ratio"] < 1
    assert coverage["gaps"][0][3] == "store_unreachable"


async def test_a_store_that_fails_during_a_question_is_an_error_result_with_its_message() -> None:
    runtime = FakeRuntime()
    runtime.store.error, runtime.store.spared = StoreError("the store is unreachable; it is tried again"), 1
    result = await _call(runtime, "get_trades", MINUTES)
    assert result.is_error
    assert _text(result) == "the store is unreachable; it is tried again"


async def test_a_crash_is_one_plain_line_and_its_traceback_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    runtime = FakeRuntime()
    runtime.store.error = ZeroDivisionError("secret detail")
    result = await _call(runtime, "get_trades", MINUTES)
    assert result.is_error
    assert _text(result) == "get_trades failed inside WADM; the log has the details"
    (record,) = [record for record in caplog.records if record.message == "tool.failed"]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize("era", ERAS)
async def test_every_tool_is_read_only_and_described(era: str) -> None:
    async with Client(build_server(FakeRuntime()), mode=era) as client:  # pyright: ignore[reportArgumentType]
        listed = (await client.list_tools()).tools
    assert [tool.name for tool in listed] == [name for name, _ in _CALLS]
    for tool in listed:
        assert tool.title
        assert tool.description
        assert tool.annotations is not None
        hints = tool.annotations
        assert (hints.read_only_hint, hints.destructive_hint, hints.idempotent_hint, hints.open_world_hint) == (True, False, True, False)
        assert tool.input_schema["additionalProperties"] is False
        assert all(argument["description"] for argument in tool.input_schema["properties"].values())
        assert '"title":' not in json.dumps(tool.input_schema) + json.dumps(tool.output_schema)


def test_schemas_say_what_the_queries_take() -> None:
    for question, tool in zip(QUESTIONS, tools(), strict=True):
        properties = tool.parameters["properties"]
        assert list(properties) == list(question.arguments)
        for name, default in question.arguments.items():
            assert properties[name].get("default") == (None if default is NEEDED else default)
        assert tool.parameters.get("required", []) == [name for name, default in question.arguments.items() if default is NEEDED]
