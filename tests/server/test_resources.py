from __future__ import annotations

import json

import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import TextResourceContents

from tests.market import listing
from tests.server.fake import ERAS, FakeRuntime
from wadm_mcp.errors import StoreError
from wadm_mcp.model import Instrument
from wadm_mcp.server.guide import GUIDE
from wadm_mcp.server.server import build_server

pytestmark = pytest.mark.anyio


async def _read(runtime: FakeRuntime, uri: str, era: str = ERAS[1]) -> tuple[str, str | None]:
    async with Client(build_server(runtime), mode=era) as client:  # pyright: ignore[reportArgumentType]
        (content,) = (await client.read_resource(uri, cache_mode="bypass")).contents
    assert isinstance(content, TextResourceContents)
    return content.text, content.mime_type


async def _refusal(runtime: FakeRuntime, uri: str, era: str = ERAS[1]) -> MCPError:
    async with Client(build_server(runtime), mode=era) as client:  # pyright: ignore[reportArgumentType]
        with pytest.raises(MCPError) as caught:
            await client.read_resource(uri, cache_mode="bypass")
    return caught.value


@pytest.mark.parametrize("era", ERAS)
async def test_resources_and_templates_are_listed(era: str) -> None:
    async with Client(build_server(FakeRuntime()), mode=era) as client:  # pyright: ignore[reportArgumentType]
        resources = [str(one.uri) for one in (await client.list_resources()).resources]
        templates = [one.uri_template for one in (await client.list_resource_templates()).resource_templates]
    assert resources[:3] == ["wadm://markets", "wadm://guide", "wadm://binance/spot/BTCUSDT/trades"]
    assert "wadm://bybit/spot/BTCUSDT/order-flow/1m" in resources
    assert templates == [
        "wadm://{exchange}/{market}/{symbol}/trades",
        "wadm://{exchange}/{market}/{symbol}/volume-profile/{timeframe}",
        "wadm://{exchange}/{market}/{symbol}/order-flow/{timeframe}",
        "wadm://{exchange}/{market}/{symbol}/market-structure/{timeframe}",
    ]


async def test_every_listed_resource_can_be_read() -> None:
    async with Client(build_server(FakeRuntime())) as client:
        for one in (await client.list_resources()).resources:
            (content,) = (await client.read_resource(one.uri)).contents
            assert isinstance(content, TextResourceContents)
            assert content.mime_type == one.mime_type
            assert content.text


async def test_a_resource_is_read_by_every_name_of_its_instrument() -> None:
    runtime = FakeRuntime()
    runtime.tape.follow(listing(Instrument("binance", "spot", "币安人生USDT")))
    for path in ("binance/spot/btc-usdt", "BINANCE/Spot/binance:spot:BTCUSDT", "binance/spot/BTC%2FUSDT"):
        assert json.loads((await _read(runtime, f"wadm://{path}/trades"))[0])["instrument"] == "binance:spot:BTCUSDT"
    for symbol in ("币安人生USDT", "%E5%B8%81%E5%AE%89%E4%BA%BA%E7%94%9FUSDT", "币安人生-usdt"):
        assert json.loads((await _read(runtime, f"wadm://all/spot/{symbol}/trades"))[0])["instrument"] == "all:spot:币安人生USDT"
    said = (await _refusal(runtime, "wadm://binance/spot/BTCUSDT.P/trades")).error.message
    assert said.startswith('symbol="BTCUSDT.P" with market="spot": the symbol names linear.')


@pytest.mark.parametrize("era", ERAS)
async def test_trades_are_the_newest_hundred_of_a_quarter_of_an_hour(era: str) -> None:
    text, mime = await _read(FakeRuntime(), "wadm://binance/spot/BTCUSDT/trades", era)
    answer = json.loads(text)
    assert mime == "application/json"
    assert [row[4] for row in answer["trades"]["rows"]] == [str(number) for number in range(51, 151)]
    assert (answer["window"]["start"], answer["window"]["end"]) == ("2026-06-01T11:48:00Z", "2026-06-01T12:03:00Z")
    assert answer["next_cursor"] is None


async def test_a_volume_profile_is_that_of_the_open_bar() -> None:
    runtime = FakeRuntime()
    runtime.clock.pass_seconds(30)
    runtime.trade()
    answer = json.loads((await _read(runtime, "wadm://all/spot/BTCUSDT/volume-profile/1m"))[0])
    assert answer["instrument"] == "all:spot:BTCUSDT"
    assert (answer["window"]["start"], answer["window"]["closed"], answer["trade_count"]) == ("2026-06-01T12:03:00Z", False, 1)


async def test_order_flow_is_the_last_sixty_bars() -> None:
    runtime = FakeRuntime()
    runtime.clock.pass_seconds(30)
    rows = json.loads((await _read(runtime, "wadm://binance/spot/btcusdt/order-flow/5m"))[0])["bars"]["rows"]
    assert len(rows) == 60
    assert (rows[0][0], rows[-1][0]) == ("2026-06-01T07:05:00Z", "2026-06-01T12:00:00Z")


async def test_the_guide_is_short_plain_markdown() -> None:
    text, mime = await _read(FakeRuntime(), "wadm://guide")
    assert (text, mime) == (GUIDE, "text/markdown")
    assert text.startswith("# ")


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("uri", "said", "code"),
    [
        ("wadm://binance/spot/ETHUSDX/trades", 'symbol "ETHUSDX" is not followed', -32602),
        ("wadm://binance/spot/BTCUSDT/volume-profile/2m", 'timeframe="2m": allowed are 1m, 5m,', -32603),
        ("wadm://binance/spot/BTCUSDT/order-flow/x", 'timeframe="x": allowed are 1m, 5m,', -32603),
        ("wadm://kraken/spot/BTCUSDT/trades", 'exchange="kraken": allowed are binance, bybit, all', -32603),
        ("wadm://nothing", 'resource "wadm://nothing" does not exist. Resources: wadm://markets, wadm://guide, wadm://{exchange}/', -32602),
        ("wadm://binance/spot/..%2F..%2Fetc/trades", "", -32602),
    ],
)
async def test_an_invalid_uri_is_refused_in_one_line_worded_by_wadm(era: str, uri: str, said: str, code: int) -> None:
    error = await _refusal(FakeRuntime(), uri, era)
    assert error.error.message.startswith(said)
    assert error.error.code == code
    assert "\n" not in error.error.message


async def test_a_failing_store_and_a_crash_are_one_line_too(caplog: pytest.LogCaptureFixture) -> None:
    runtime = FakeRuntime()
    uri = "wadm://binance/spot/BTCUSDT/trades"
    runtime.store.error, runtime.store.spared = StoreError("the store is unreachable"), 1
    assert (await _refusal(runtime, uri)).error.message == "the store is unreachable"
    runtime.store.error = ZeroDivisionError("secret detail")
    for crashed in (uri, "wadm://markets"):
        assert (await _refusal(runtime, crashed)).error.message == f"{crashed} failed inside WADM; the log has the details"
    assert len([record for record in caplog.records if record.message == "resource.failed" and record.exc_info]) == 2
