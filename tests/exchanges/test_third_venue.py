"""A third venue is one file: with a toy exchange registered, everything follows it as it follows Binance and Bybit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

from tests.exchanges.toy import Toy, ToyServer
from wadm_mcp.cli import _parser
from wadm_mcp.clock import now_ms
from wadm_mcp.commands.doctor import examine
from wadm_mcp.errors import SettingError
from wadm_mcp.exchanges.registry import canonical_instrument, exchange_names, exchange_titles, register
from wadm_mcp.health import State
from wadm_mcp.model import Instrument
from wadm_mcp.runtime import Runtime
from wadm_mcp.server.questions import COMPARE, MARKETS, TRADES, VOLUME_PROFILE, Question
from wadm_mcp.server.tools import tools
from wadm_mcp.settings import Settings, read_settings, unknown_settings
from wadm_mcp.simulator.simulator import Simulator

pytestmark = pytest.mark.anyio

TOY = Instrument("toy", "spot", "BTC-USDT")
BINANCE = Instrument("binance", "spot", "BTCUSDT")


class House(NamedTuple):
    """A simulated Binance and the toy exchange, and settings that lead to both."""

    simulator: Simulator
    toy: ToyServer
    settings: Settings

    async def push(self) -> None:
        """A trade on each."""
        await self.toy.push("BTC-USDT", now_ms())
        await self.simulator.push(*BINANCE, [(now_ms(), "61000.5", "0.5", "SELL")])

    async def trade_until(self, holds: Callable[[], bool]) -> None:
        with anyio.fail_after(20):
            while not holds():
                await self.push()
                await anyio.sleep(0.02)


@asynccontextmanager
async def house(folder: Path, **changes: object) -> AsyncGenerator[House]:
    toy = ToyServer("BTC-USDT", "ETH-USDT")
    async with toy.serving(), Simulator(instruments=[BINANCE], manual=True) as simulator:
        with register(Toy()):
            urls = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()} | toy.settings
            named = {"WADM_DATA_DIR": folder, "WADM_HISTORY_HOURS": 1, "WADM_EXCHANGES": ("binance", "toy")}
            yield House(simulator, toy, read_settings({}, overrides={**named, **urls, **changes}))


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not holds():
            await anyio.sleep(0.02)


async def ask(runtime: Runtime, question: Question, **arguments: Any) -> dict[str, Any]:
    return (await question.ask(runtime, {"symbol": "BTCUSDT", **arguments})).answer


def gaps_inside(answer: dict[str, Any]) -> list[str]:
    """Reasons of the gaps after the recording began."""
    return [gap[3] for gap in answer["coverage"]["gaps"] if gap[3] not in ("start", "not_recorded")]


async def test_a_registered_exchange_is_recorded_and_its_gaps_are_repaired(tmp_path: Path) -> None:
    async with house(tmp_path) as h, Runtime(h.settings) as runtime:
        await until(lambda: h.toy.subscribers("BTC-USDT") == 1)
        with anyio.fail_after(20):
            await h.simulator.subscribed(*BINANCE)
        await h.trade_until(lambda: runtime.recorded >= 20)
        assert runtime.health.parts[str(TOY)].state is State.OK
        assert gaps_inside(await ask(runtime, TRADES, exchange="toy", window="15m")) == []

        h.toy.lag()
        h.toy.drop_connections()
        for _ in range(5):
            await h.push()
        await until(lambda: h.toy.subscribers("BTC-USDT") == 1)
        recorded = runtime.recorded
        await h.trade_until(lambda: runtime.recorded >= recorded + 6)
        assert gaps_inside(await ask(runtime, TRADES, exchange="toy", window="15m")) == ["disconnect"]

        h.toy.lags = False
        with anyio.fail_after(20):
            while gaps_inside(answer := await ask(runtime, TRADES, exchange="toy", window="15m", limit=1_000)):
                await anyio.sleep(0.05)
        assert answer["instrument"] == "toy:spot:BTC-USDT"
        ids = [row[answer["trades"]["columns"].index("trade_id")] for row in answer["trades"]["rows"]]
        assert ids == [row.id for row in h.toy.trades["BTC-USDT"]]


async def test_every_question_answers_from_it_and_merges_it_by_its_canonical_symbol(tmp_path: Path) -> None:
    async with house(tmp_path) as h, Runtime(h.settings) as runtime:
        await until(lambda: h.toy.subscribers("BTC-USDT") == 1)
        with anyio.fail_after(20):
            await h.simulator.subscribed(*BINANCE)
        for _ in range(20):
            await h.push()
        await until(lambda: runtime.recorded == 40)

        rows = (await MARKETS.ask(runtime, {})).answer["markets"]["rows"]
        assert [row[:4] for row in rows] == [["binance", "spot", "BTCUSDT", "live"], ["toy", "spot", "BTC-USDT", "live"]]
        alone = await ask(runtime, VOLUME_PROFILE, exchange="toy", window="15m")
        assert (alone["instrument"], alone["volume"], alone["trade_count"]) == ("toy:spot:BTC-USDT", 5, 20)
        for symbol, exchange in (("BTC-USDT", "toy"), ("toy:spot:BTC-USDT", None), ("btc/usdt", "TOY")):
            assert (await ask(runtime, VOLUME_PROFILE, symbol=symbol, exchange=exchange, window="15m"))["volume"] == 5
        for symbol in ("BTCUSDT", "BTC-USDT"):
            merged = await ask(runtime, VOLUME_PROFILE, symbol=symbol, window="15m")
            assert (merged["instrument"], merged["volume"], merged["trade_count"]) == ("all:spot:BTCUSDT", 15, 40)
            assert list(merged["coverage"]["parts"]) == ["binance", "toy"]
        compared = await ask(runtime, COMPARE, window="15m")
        assert compared["instrument"] == "all:all:BTCUSDT"
        assert [row[0] for row in compared["venues"]["rows"]] == [str(BINANCE), str(TOY)]
        assert [Decimal(str(row[2])) for row in compared["venues"]["rows"]] == [10, 5]


async def test_what_is_stored_of_it_is_merged_after_a_restart_while_it_cannot_be_reached(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        async with Runtime(h.settings) as runtime:
            await until(lambda: h.toy.subscribers("BTC-USDT") == 1)
            with anyio.fail_after(20):
                await h.simulator.subscribed(*BINANCE)
            for _ in range(10):
                await h.push()
            await until(lambda: runtime.recorded == 20)
        async with Runtime(h.settings.with_hosts({"WADM_TOY_REST": "http://127.0.0.1:1"})) as runtime:
            await until(lambda: h.toy.subscribers("BTC-USDT") == 1)
            assert not runtime.view.awaited
            merged = await ask(runtime, VOLUME_PROFILE, window="15m")
            assert (merged["instrument"], merged["trade_count"]) == ("all:spot:BTCUSDT", 20)


async def test_a_symbol_of_it_is_tracked_by_its_canonical_name_and_untracked_again(tmp_path: Path) -> None:
    async def ignore(*_: object) -> None:
        pass

    async with house(tmp_path, WADM_ALLOW_TRACKING=True) as h, Runtime(h.settings) as runtime:
        await until(lambda: h.toy.subscribers("BTC-USDT") == 1)
        answer = await runtime.tracking.track(ignore, symbol="ethusdt", exchange="toy", wait=0)
        assert answer["tracked"] == ["toy:spot:ETH-USDT"]
        await until(lambda: h.toy.subscribers("ETH-USDT") == 1)
        assert (await runtime.tracking.untrack(symbol="ETH-USDT"))["untracked"] == ["toy:spot:ETH-USDT"]
        await until(lambda: h.toy.subscribers("ETH-USDT") == 0)


async def test_doctor_finds_it_fit_to_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with house(tmp_path) as h, anyio.create_task_group() as tasks:

        async def trade() -> None:
            while True:
                await h.push()
                await anyio.sleep(0.05)

        tasks.start_soon(trade)
        with anyio.fail_after(30):
            assert await examine(h.settings) == 0
        tasks.cancel_scope.cancel()
    printed = " ".join(capsys.readouterr().out.split())
    assert "toy spot REST ok 2 instruments; BTC-USDT tick 0.5 lot 0.001 toy spot stream ok first trade after" in printed


def test_its_name_and_its_settings_are_known_for_as_long_as_it_is_registered() -> None:
    def exchanges() -> list[str]:
        (schema,) = [tool.parameters["properties"]["exchange"] for tool in tools() if tool.name == "get_trades"]
        return schema["enum"]

    assert exchanges() == ["binance", "bybit", "all"]
    with register(Toy()):
        assert exchange_titles() == "Binance, Bybit and Toy"
        assert exchanges() == ["binance", "bybit", "toy", "all"]
        assert read_settings({"WADM_EXCHANGES": "toy"}).venues[0].rest_url == "https://api.toy.invalid"
        assert read_settings({"WADM_EXCHANGES": "toy", "WADM_MARKETS": "linear"}).venues == ()
        assert unknown_settings({"WADM_TOY_WS": "wss://x"}) == []
        assert _parser().parse_args(["audit", "--exchange", "toy"]).exchange == "toy"
        with pytest.raises(SettingError, match=r"WADM_TOY_REST=toy: a base URL without path is needed"):
            read_settings({"WADM_TOY_REST": "toy"})
        with pytest.raises(ValueError, match="an exchange called toy is registered already"), register(Toy()):
            pass
    assert exchange_names() == ("binance", "bybit")
    assert exchange_titles() == "Binance and Bybit"
    assert canonical_instrument(TOY) == TOY
    assert len(unknown_settings({"WADM_TOY_WS": "wss://x"})) == 1
    with pytest.raises(SettingError, match="allowed are binance, bybit"):
        read_settings({"WADM_EXCHANGES": "toy"})
