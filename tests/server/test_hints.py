"""The call that an error suggests is another one than the refused call, and it is accepted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcp.client import Client
from mcp_types import TextContent

from tests.market import listing
from tests.server.calls import suggested
from tests.server.fake import FakeRuntime
from wadm_mcp.model import Instrument
from wadm_mcp.server.questions import QUESTIONS, WAIT
from wadm_mcp.server.server import build_server

_FOLLOWED: Final = (
    ("binance:linear:BTCUSDT", "bybit:linear:BTCUSDT", "bybit:linear:ETHUSDT", "binance:spot:SOLUSDT"),
    ("bybit:linear:ETHUSDT", "binance:spot:币安人生USDT"),
    ("bybit:linear:BTCPERP", "binance:linear:SOLUSDT"),
    (),
)
"""What is followed beside BTCUSDT on both spot markets."""

_PLACED: Final = (
    "{}",
    "binance:{}",
    "BYBIT:{}",
    "binance:linear:{}",
    "bybit:spot:{}",
    "all:linear:{}",
    "all:all:{}",
    "kraken:{}",
    "{}:linear",
)
_ENDED: Final = ("{}", "{}.P", "{}-PERP", "{}_270326", "{}-26MAR27", "{}:USDT", "{}:BTC", "{}-SPOT", "{}X")
_SYMBOLS: Final = [
    placed.format(ended.format(symbol))
    for symbol in ("BTCUSDT", "ETH/USDT", "solusdt", "BTC", "币安人生USDT")
    for placed in _PLACED
    for ended in _ENDED
]
_VALUES: Final[Mapping[str, tuple[Any, ...]]] = {
    "symbol": (*_SYMBOLS, None, 7, "", "x" * 200, "BTCPERP", "-.P"),
    "exchange": ("binance", "bybit", "ALL", "kraken", "", None, 3, "x" * 200),
    "market": ("spot", "linear", "perp", "options", "", None, 3, "x" * 200),
    "window": ("1h", "2h", "session", "", None),
    "start": ("2026-06-01T12:00:00Z", "yesterday", "2027-01-01", None),
    "end": ("2026-06-01T12:03:00Z", "2020-01-01", None),
    "as_of": ("2026-06-01T12:02:00Z", "2030-01-01", None),
    "timeframe": ("1m", "2m", "1d", None),
    "row_size": (0.01, 0.015, "0.1", 0, 1e-9, None),
    "value_area": (70, 0, "many", None),
    "method": ("two_row", "tpo", None),
    "detail": ("brief", "all", None),
    "limit": (5, 0, "many", None),
    "cursor": ("abc", None),
    "min_notional": (1, -1, None),
    "unheard_of": (1,),
}

_Call: TypeAlias = tuple[str, dict[str, Any]]


@st.composite
def _calls(draw: st.DrawFn) -> _Call:
    """A call of a question, one that waits excepted: right and wrong values of some of its arguments."""
    question = draw(st.sampled_from([question for question in QUESTIONS if question is not WAIT]))
    optional = [name for name in (*question.arguments, "unheard_of") if name != "symbol"]
    chosen = draw(st.lists(st.sampled_from(optional), max_size=4, unique=True))
    needed = ["symbol"] if "symbol" in question.arguments else []
    return question.name, {name: draw(st.sampled_from(_VALUES[name])) for name in [*needed, *chosen]}


@asynccontextmanager
async def _asking(*followed: str) -> AsyncGenerator[Client]:
    runtime = FakeRuntime()
    for name in followed:
        runtime.tape.follow(listing(Instrument.parse(name)))
    async with Client(build_server(runtime)) as client:
        yield client


async def _refusal(client: Client, call: _Call) -> str:
    """The error of a call; empty if it is answered."""
    result = await client.call_tool(*call)
    (block, *_) = result.content
    assert isinstance(block, TextContent)
    return block.text if result.is_error else ""


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.sampled_from(_FOLLOWED), st.lists(_calls(), min_size=5, max_size=5))
def test_a_refused_question_suggests_another_one_that_is_answered(followed: tuple[str, ...], calls: list[_Call]) -> None:
    async def ask() -> None:
        async with _asking(*followed) as client:
            for call in calls:
                if refusal := await _refusal(client, call):
                    instead = suggested(refusal)
                    assert instead != call, refusal
                    assert await _refusal(client, instead) == "", refusal

    anyio.run(ask)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            {"symbol": "BTCUSDT_270326"},
            'symbol "BTCUSDT_270326" is not followed: it names a contract with a delivery date, and WADM records spot and perpetuals. '
            'Nearest: BTCUSDT. Followed: BTCUSDT, ETHUSDT, SOLUSDT. Try get_trades(symbol="all:linear:BTCUSDT", window="15m")',
        ),
        (
            {"symbol": "binance:linear:BTCUSDT", "exchange": "bybit", "market": "spot"},
            'symbol="binance:linear:BTCUSDT" with exchange="bybit": the symbol names binance. '
            'Try get_trades(symbol="binance:linear:BTCUSDT", window="15m")',
        ),
        (
            {"symbol": "BTCUSDT.P", "market": "spot"},
            'symbol="BTCUSDT.P" with market="spot": the symbol names linear. Try get_trades(symbol="all:linear:BTCUSDT", window="15m")',
        ),
        (
            {"symbol": "SOL/USDT:USDT"},
            'symbol "SOLUSDT" is not followed in market linear. Followed: binance:spot:SOLUSDT. '
            'Try get_trades(symbol="SOLUSDT", window="15m")',
        ),
        (
            {"symbol": "bybit:linear:ETHUSDT", "limit": 0},
            'limit=0: a whole number from 1 to 1,000 is needed. Try get_trades(symbol="bybit:linear:ETHUSDT", window="15m", limit=100)',
        ),
    ],
)
@pytest.mark.anyio
async def test_a_refused_name_is_told_with_the_name_that_works(call: dict[str, Any], said: str) -> None:
    async with _asking(*_FOLLOWED[0]) as client:
        assert await _refusal(client, ("get_trades", call)) == said
        assert await _refusal(client, suggested(said)) == ""


_WRONG_WAITS: Final[list[dict[str, Any]]] = [
    {"symbol": "BTCUSDT.P", "market": "spot"},
    {"symbol": "ETHUSDX"},
    {"symbol": "SOLUSDT", "condition": "never"},
    {"symbol": "SOLUSDT", "window": "1h"},
]


@pytest.mark.anyio
async def test_a_refused_wait_suggests_one_that_is_taken() -> None:
    async with _asking(*_FOLLOWED[0]) as client:
        accepted: list[str] = []

        async def follow(refusal: str) -> None:
            name, arguments = suggested(refusal)
            accepted.append(await _refusal(client, (name, {**arguments, "timeout": 1})))

        async with anyio.create_task_group() as tasks:
            for wrong in _WRONG_WAITS:
                tasks.start_soon(follow, await _refusal(client, ("wait_for", {"condition": "coverage_back", **wrong})))
    assert accepted == [""] * len(_WRONG_WAITS)
