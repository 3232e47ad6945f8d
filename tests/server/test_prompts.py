from __future__ import annotations

import re
from typing import Any

import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import TextContent

from tests.server.fake import ERAS, FakeRuntime
from wadm_mcp.server import prompt_texts
from wadm_mcp.server.questions import QUESTIONS
from wadm_mcp.server.server import build_server

pytestmark = pytest.mark.anyio

_PROMPTS = ("waickoff_report", "session_review", "compare_venues")
_CALL = re.compile(r"\b([a-z_]+)\(([^)]*)\)")


async def _text(name: str, arguments: dict[str, str], era: str = ERAS[1]) -> str:
    async with Client(build_server(FakeRuntime()), mode=era) as client:  # pyright: ignore[reportArgumentType]
        (message,) = (await client.get_prompt(name, arguments)).messages
    assert isinstance(message.content, TextContent)
    return message.content.text


@pytest.mark.parametrize("era", ERAS)
async def test_three_prompts_are_listed_with_their_arguments(era: str) -> None:
    async with Client(build_server(FakeRuntime()), mode=era) as client:  # pyright: ignore[reportArgumentType]
        listed = (await client.list_prompts()).prompts
    assert [one.name for one in listed] == [*_PROMPTS]
    for one in listed:
        arguments = one.arguments or []
        assert [argument.name for argument in arguments if argument.required] == ["symbol"]
        assert arguments[-1].name == "language"
        assert one.description
        assert all(argument.description for argument in arguments)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("language", ["en", "es"])
@pytest.mark.parametrize("name", _PROMPTS)
async def test_a_prompt_names_calls_that_exist_with_arguments_that_they_take(name: str, language: str, era: str) -> None:
    text = await _text(name, {"symbol": "BTCUSDT", "language": language}, era)
    taken = {question.name: question.arguments for question in QUESTIONS}
    calls = [(call, arguments) for call, arguments in _CALL.findall(text) if call in taken]
    assert calls[0] == ("list_markets", 'detail="brief"')
    assert len(calls) >= 4
    for call, arguments in calls:
        given = re.findall(r"(\w+)=", arguments)
        assert set(given) <= set(taken[call])
        assert {"window", "start"}.isdisjoint(given) or len({"window", "start"} & set(given)) == 1
    assert "{" not in text


@pytest.mark.parametrize("texts", [prompt_texts.WAICKOFF_REPORT, prompt_texts.SESSION_REVIEW, prompt_texts.COMPARE_VENUES])
def test_a_prompt_demands_coverage_citations_contrary_evidence_and_no_invention(texts: dict[str, str]) -> None:
    english, spanish = texts["en"], texts["es"]
    for words in ("Read coverage before any figure", "cites a figure", "speaks against", "prove it wrong", "nothing is invented"):
        assert words in english
    for words in (
        "cobertura (coverage) antes que cualquier cifra",
        "cita una cifra",
        "habla en contra",
        "invalidaría",
        "no se inventa nada",
    ):
        assert words in spanish
    assert re.findall(r"\{\w+\}", english) == re.findall(r"\{\w+\}", spanish)
    assert [call for call, _ in _CALL.findall(english)] == [call for call, _ in _CALL.findall(spanish)]


async def test_a_market_and_a_window_are_passed_on_to_the_calls() -> None:
    text = await _text("waickoff_report", {"symbol": "btcusdt", "market": "spot", "window": "4h"})
    assert 'get_volume_profile(symbol="BTCUSDT", market="spot", window="4h", detail="brief")' in text
    assert 'compare_exchanges(symbol="BTCUSDT", window="4h")' in text


async def test_a_name_of_another_form_becomes_arguments_of_the_calls() -> None:
    text = await _text("waickoff_report", {"symbol": "bybit:BTC/USDT:USDT", "window": "4h"})
    assert 'get_volume_profile(symbol="BTCUSDT", exchange="bybit", market="linear", window="4h", detail="brief")' in text
    assert 'compare_exchanges(symbol="BTCUSDT", window="4h")' in text


async def test_a_closed_session_is_asked_about_as_of_its_end() -> None:
    text = await _text("session_review", {"symbol": "BTCUSDT", "session": "2026-05-31"})
    assert 'get_market_structure(symbol="BTCUSDT", as_of="2026-06-01T00:00Z", detail="full")' in text
    assert 'get_volume_profile(symbol="BTCUSDT", start="2026-05-31T00:00Z", end="2026-06-01T00:00Z")' in text


@pytest.mark.parametrize("session", ["", "2026-06-01", "2027-01-01"])
async def test_an_open_session_is_asked_about_as_of_now(session: str) -> None:
    text = await _text("session_review", {"symbol": "BTCUSDT", **({"session": session} if session else {})})
    assert 'get_market_structure(symbol="BTCUSDT", detail="full")' in text
    assert 'get_volume_profile(symbol="BTCUSDT", window="session")' in text


@pytest.mark.parametrize("spoken", ["es", "ES", " Spanish ", "español"])
async def test_a_language_is_known_by_its_names(spoken: str) -> None:
    assert "informe waickoff" in await _text("waickoff_report", {"symbol": "BTCUSDT", "language": spoken})


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("waickoff_report", {}, "waickoff_report needs the argument symbol. Try waickoff_report("),
        ("waickoff_report", {"symbol": " "}, "waickoff_report needs the argument symbol."),
        ("waickoff_report", {"symbol": "x" * 100_000}, 'symbol="xxx'),
        (
            "waickoff_report",
            {"symbol": "BTCUSDT", "window": "3w"},
            'window="3w": allowed are 15m, 1h, 4h, 24h, 7d, session. Try waickoff_report(',
        ),
        ("compare_venues", {"symbol": "BTCUSDT", "window": '1h" or'}, 'window="1h\\" or": allowed are 15m'),
        ("compare_venues", {"symbol": "BTCUSDT", "x" * 2_000: "1h"}, '"xxx'),
        (
            "waickoff_report",
            {"symbol": "BTCUSDT.P", "market": "spot"},
            'symbol="BTCUSDT.P" with market="spot": the symbol names linear. Try waickoff_report(symbol="BTCUSDT")',
        ),
        ("compare_venues", {"symbol": "BTCUSDT_270326"}, 'symbol "BTCUSDT_270326": it names a contract with a delivery date'),
        (
            "session_review",
            {"symbol": "BTCUSDT", "exchange": "okx"},
            'exchange="okx": allowed are binance, bybit, all. Try session_review(',
        ),
        ("waickoff_report", {"symbol": "BTCUSDT", "windo": "1h"}, 'waickoff_report has no argument "windo". Nearest: window.'),
        ("waickoff_report", {"symbol": "BTCUSDT", "language": "fr"}, 'language="fr": allowed are en, es. Try waickoff_report('),
        ("session_review", {"symbol": "BTCUSDT", "session": "yesterday"}, 'session="yesterday": a day as YYYY-MM-DD is needed.'),
        ("report", {}, 'prompt "report" does not exist. Prompts: waickoff_report'),
    ],
)
async def test_an_invalid_prompt_call_is_refused_in_words_of_wadm(era: str, name: str, arguments: dict[str, Any], said: str) -> None:
    async with Client(build_server(FakeRuntime()), mode=era) as client:  # pyright: ignore[reportArgumentType]
        with pytest.raises(MCPError) as caught:
            await client.get_prompt(name, arguments)
    assert caught.value.error.message.startswith(said)
