from __future__ import annotations

import pytest
from mcp.client import Client
from mcp_types import PromptReference, ResourceTemplateReference

from tests.market import listing
from tests.server.fake import ERAS, FakeRuntime
from wadm_mcp.model import Instrument
from wadm_mcp.server.server import build_server

pytestmark = pytest.mark.anyio

_TEMPLATE = ResourceTemplateReference(uri="wadm://{exchange}/{market}/{symbol}/order-flow/{timeframe}")
_PROMPT = PromptReference(name="waickoff_report")


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("ref", "name", "typed", "chosen", "values"),
    [
        (_TEMPLATE, "exchange", "", {}, ["binance", "bybit", "all"]),
        (_TEMPLATE, "exchange", "B", {}, ["binance", "bybit"]),
        (_TEMPLATE, "exchange", "", {"market": "linear"}, []),
        (_TEMPLATE, "market", "", {"exchange": "all"}, ["spot"]),
        (_TEMPLATE, "symbol", "btc/u", {"exchange": "bybit", "market": "spot"}, ["BTCUSDT"]),
        (_TEMPLATE, "symbol", "ETH", {}, []),
        (_TEMPLATE, "symbol", "BINANCE:btc", {}, ["BTCUSDT"]),
        (_TEMPLATE, "symbol", "BTCUSDT.P", {}, []),
        (_TEMPLATE, "timeframe", "1", {}, ["1m", "15m", "1h", "1d"]),
        (_PROMPT, "symbol", "", {}, ["BTCUSDT"]),
        (_PROMPT, "window", "s", {}, ["session"]),
        (_PROMPT, "language", "", {}, ["en", "es"]),
        (_PROMPT, "anything", "", {}, []),
    ],
)
async def test_an_argument_is_completed_from_what_is_followed(
    era: str, ref: ResourceTemplateReference | PromptReference, name: str, typed: str, chosen: dict[str, str], values: list[str]
) -> None:
    async with Client(build_server(FakeRuntime()), mode=era) as client:  # pyright: ignore[reportArgumentType]
        found = (await client.complete(ref, {"name": name, "value": typed}, context_arguments=chosen)).completion
    assert (found.values, found.total, found.has_more) == (values, len(values), False)


async def test_a_followed_symbol_that_ends_like_a_market_is_completed_as_itself() -> None:
    runtime = FakeRuntime()
    for symbol in ("BTCPERP", "BTCUSDT"):
        runtime.tape.follow(listing(Instrument("bybit", "linear", symbol)))
    async with Client(build_server(runtime)) as client:
        found = (await client.complete(_TEMPLATE, {"name": "symbol", "value": "btc-perp"})).completion
    assert found.values == ["BTCPERP"]
