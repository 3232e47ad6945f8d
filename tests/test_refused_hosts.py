"""A start while hosts of the exchanges refuse this address: what is recorded, answered and reported, and which host is used instead."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import anyio
import pytest
import trustme
from websockets.asyncio.server import serve

from tests.queries.world import rows_of
from wadm_mcp.clock import now_ms
from wadm_mcp.commands.doctor import examine
from wadm_mcp.exchanges.exchange import Allowance, Host, Hosts
from wadm_mcp.exchanges.registry import find_exchange
from wadm_mcp.health import State
from wadm_mcp.model import Instrument
from wadm_mcp.runtime import Runtime
from wadm_mcp.server.questions import MARKETS, VOLUME_PROFILE
from wadm_mcp.settings import Settings, read_settings
from wadm_mcp.simulator.chaos import Chaos
from wadm_mcp.simulator.fault_plan import Fault, Kind
from wadm_mcp.simulator.simulator import Simulator

pytestmark = pytest.mark.anyio

BINANCE, BYBIT = Instrument("binance", "spot", "BTCUSDT"), Instrument("bybit", "spot", "BTCUSDT")
RECORDS_WITHIN = 10
"""Seconds from a start to the first recorded trade of each socket."""


def settings_for(folder: Path, simulator: Simulator, **changes: object) -> Settings:
    urls = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
    return read_settings({}, overrides={"WADM_DATA_DIR": folder, "WADM_HISTORY_HOURS": 0, **urls, **changes})


def refusing(*kinds: Kind, exchanges: tuple[str, ...] = ("binance", "bybit")) -> Chaos:
    """Faults of these kinds from the start on, on the spot markets."""
    market = {Kind.BLOCKED_SOCKETS: ""}
    chaos = Chaos(Fault(kind, -1.0, 3_600, exchange, market.get(kind, "spot")) for kind in kinds for exchange in exchanges)
    chaos.begin()
    return chaos


async def push(simulator: Simulator, instrument: Instrument, price: str = "61000.5") -> None:
    await simulator.push(*instrument, [(now_ms(), price, "0.5", "BUY")])


async def until(holds: Callable[[], bool], within: float = 15) -> None:
    with anyio.fail_after(within):
        while not holds():
            await anyio.sleep(0.02)


def details(runtime: Runtime) -> str:
    return "\n".join(f"{name}: {part.state}, {part.detail}" for name, part in runtime.health.parts.items())


async def nothing(*_: object) -> None:
    """Does nothing."""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("HTTP", "HTTPS", "ALL", "NO"):
        monkeypatch.delenv(f"{kind}_PROXY", raising=False)
        monkeypatch.delenv(f"{kind}_proxy".lower(), raising=False)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exchanges accept another attempt soon after they refused one."""
    for name, allowance in (("binance", Allowance(6_000, 60.0, forbidden=0.1, region=0.1)), ("bybit", Allowance(600, 5.0, forbidden=0.1))):
        monkeypatch.setattr(find_exchange(name), "allowance", lambda market, allowance=allowance: allowance)


@asynccontextmanager
async def distrusted() -> AsyncGenerator[str]:
    """A host whose certificate nobody trusts."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)

    async with serve(nothing, "127.0.0.1", 0, ssl=tls) as server:
        yield f"https://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"


def without_names(monkeypatch: pytest.MonkeyPatch) -> str:
    """A host whose name does not resolve."""
    resolve = socket.getaddrinfo

    def fail(host: Any, *rest: Any, **named: Any) -> Any:
        if str(host).endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    return "https://api.exchange.invalid"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("blocked", ("answered HTTP 451", "configured to block access from your country")),
        ("names", ("does not resolve", "does not resolve")),
        ("tls", ("failed the TLS handshake", "failed the TLS handshake")),
    ],
)
async def test_sockets_record_within_ten_seconds_while_every_rest_host_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str, said: tuple[str, str]
) -> None:
    faults = refusing(Kind.BLOCKED) if how == "blocked" else Chaos()
    async with AsyncExitStack() as stack:
        simulator = await stack.enter_async_context(Simulator(manual=True, faults=faults))
        urls: dict[str, str] = {}
        if how != "blocked":
            url = await stack.enter_async_context(distrusted()) if how == "tls" else without_names(monkeypatch)
            urls = dict.fromkeys(("WADM_BINANCE_SPOT_REST", "WADM_BYBIT_REST"), url)
        settings = settings_for(tmp_path, simulator, **urls)
        deadline = anyio.current_time() + RECORDS_WITHIN
        runtime = await stack.enter_async_context(Runtime(settings))
        with anyio.fail_after(deadline - anyio.current_time()):
            for instrument in (BINANCE, BYBIT):
                await simulator.subscribed(*instrument)
                await push(simulator, instrument)
            await until(lambda: all(runtime.tape[one].newest for one in (BINANCE, BYBIT)))
        answer = (await MARKETS.ask(runtime, {})).answer
        rows = rows_of(answer["markets"])
        assert [(row["status"], row["last_price"], row["tick"]) for row in rows] == [("live", 61000.5, None)] * 2
        assert sorted(answer["provisional"]) == [str(BINANCE), str(BYBIT)]
        profile = (await VOLUME_PROFILE.ask(runtime, {"symbol": "BTCUSDT", "window": "15m"})).answer
        assert (profile["poc"], profile["vah"], profile["row_size"]) == (61000.5, 61000.5, 0.1)
        assert profile["volume"] == 1
        assert sorted(profile["provisional"]) == [str(BINANCE), str(BYBIT)]
        assert not runtime.health.ready
        for name, words in (("binance", said[0]), ("bybit", said[1])):
            part = runtime.health.parts[f"{name} spot listings"]
            assert part.state is State.DOWN
            assert "recorded with a provisional listing" in part.detail
            assert words in part.detail
        ways = (
            ("WADM_BINANCE_SPOT_REST=https://data-api.binance.vision", "HTTPS_PROXY") if how == "blocked" else ("data-api.binance.vision",)
        )
        assert all(way in runtime.health.parts["binance spot listings"].detail for way in ways)
        monkeypatch.setattr("wadm_mcp.commands.doctor._TRADE_SECONDS", 0.1)
        assert await examine(settings) == 1
        printed = capsys.readouterr().out
        assert all(way in printed for way in ways)
        assert "<" not in printed


async def test_an_exchange_whose_rest_never_answers_delays_no_other_exchange_and_not_its_own_sockets(tmp_path: Path) -> None:
    async def silent(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await anyio.sleep_forever()

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0) as listener,
        anyio.create_task_group() as hosts,
        Simulator(manual=True) as simulator,
    ):
        hosts.start_soon(listener.serve, silent)
        url = f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        deadline = anyio.current_time() + RECORDS_WITHIN
        async with Runtime(settings_for(tmp_path, simulator, WADM_BINANCE_SPOT_REST=url)) as runtime:
            with anyio.fail_after(deadline - anyio.current_time()):
                await simulator.subscribed(*BYBIT)
                assert runtime.tape.get(BINANCE) is None
                await simulator.subscribed(*BINANCE)
                for instrument in (BINANCE, BYBIT):
                    await push(simulator, instrument)
                await until(lambda: all(runtime.tape[one].newest for one in (BINANCE, BYBIT)))
            assert [runtime.tape[one].listing.provisional for one in (BINANCE, BYBIT)] == [True, False]
            assert "the exchange has not answered yet" in details(runtime)
        hosts.cancel_scope.cancel()


async def test_the_answer_of_the_exchange_corrects_provisional_listings(tmp_path: Path, patient: None) -> None:
    faults = refusing(Kind.BLOCKED)
    async with Simulator(manual=True, faults=faults) as simulator:
        settings = settings_for(tmp_path, simulator, WADM_SYMBOLS=("BTCUSDT", "BTCUSDX"), WADM_EXCHANGES=("binance",))
        async with Runtime(settings) as runtime:
            with anyio.fail_after(RECORDS_WITHIN):
                await simulator.subscribed(*BINANCE)
            await push(simulator, BINANCE, "61000.25")
            await until(lambda: runtime.recorded == 1)
            rows = rows_of((await MARKETS.ask(runtime, {})).answer["markets"])
            assert [(row["symbol"], row["status"]) for row in rows] == [("BTCUSDT", "live"), ("BTCUSDX", "unverified")]
            profile = (await VOLUME_PROFILE.ask(runtime, {"symbol": "BTCUSDX"})).answer
            assert profile["coverage"]["gaps"][0][3] == "exchange_unreachable"
            faults.end()
            await until(lambda: not runtime.tape[BINANCE].listing.provisional)
            await push(simulator, BINANCE, "61000.26")
            await until(lambda: runtime.recorded == 2)
            answer = (await MARKETS.ask(runtime, {})).answer
            assert [(row["symbol"], row["status"], row["tick"]) for row in rows_of(answer["markets"])] == [("BTCUSDT", "live", 0.01)]
            assert "provisional" not in answer
            assert "binance spot listings" not in runtime.health.parts
            profile = (await VOLUME_PROFILE.ask(runtime, {"symbol": "BTCUSDT", "window": "15m"})).answer
            assert (profile["row_size"], profile["volume"]) == (0.01, 1)
        async with Runtime(settings_for(tmp_path, simulator, WADM_EXCHANGES=("binance",))) as runtime:
            await runtime.view.until_ready()
            await until(lambda: bool(runtime.view.listings))
            assert not runtime.tape[BINANCE].listing.provisional


async def test_no_trade_of_a_symbol_is_lost_when_another_one_turns_out_not_to_be_listed(tmp_path: Path, patient: None) -> None:
    faults = refusing(Kind.BLOCKED)
    async with Simulator(manual=True, faults=faults) as simulator:
        symbols = ("BTCUSDT", "BTCUSDX")
        settings = settings_for(tmp_path, simulator, WADM_SYMBOLS=symbols, WADM_EXCHANGES=("bybit",), WADM_BYBIT_CONNECTIONS=1)
        async with Runtime(settings) as runtime:
            with anyio.fail_after(RECORDS_WITHIN):
                await simulator.subscribed(*BYBIT)
            faults.end()
            pushed = 0
            # Until a while after the symbol was dropped and the other one has a new connection.
            dropped_at: float | None = None
            while dropped_at is None or anyio.current_time() < dropped_at + 1:
                await push(simulator, BYBIT)
                pushed += 1
                # Bybit serves only its newest trades again: a moment without a subscription may lose some.
                assert BYBIT in simulator._venue("bybit", "spot").following()
                await anyio.sleep(0.002)
                if dropped_at is None and len(runtime.view.listings) == 1:
                    dropped_at = anyio.current_time()
            await until(lambda: runtime.recorded == pushed)
            gaps = (await VOLUME_PROFILE.ask(runtime, {"symbol": "BTCUSDT", "window": "15m"})).answer["coverage"]["gaps"]
            assert {gap[3] for gap in gaps} <= {"start", "not_recorded", "not_yet_seen"}


async def test_a_start_with_a_provisional_listing_goes_on_from_what_is_stored(tmp_path: Path) -> None:
    for prices in (("61000.5",), ("61000.5", "61001.25")):
        async with (
            Simulator(manual=True, faults=refusing(Kind.BLOCKED)) as simulator,
            Runtime(settings_for(tmp_path, simulator, WADM_EXCHANGES=("binance",))) as runtime,
        ):
            with anyio.fail_after(RECORDS_WITHIN):
                await simulator.subscribed(*BINANCE)
            for price in prices:
                await push(simulator, BINANCE, price)
            # The second simulator counts its trades from the beginning: the first one is a repeat.
            await until(lambda: runtime.recorded == 1)
            profile = (await VOLUME_PROFILE.ask(runtime, {"symbol": "BTCUSDT", "window": "15m"})).answer
    assert (profile["trade_count"], profile["provisional"]) == (2, [str(BINANCE)])


async def test_stored_listings_replace_provisional_ones_when_the_store_answers_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Simulator(manual=True) as simulator, Runtime(settings_for(tmp_path, simulator, WADM_EXCHANGES=("binance",))) as runtime:
        await until(lambda: any(not listing.provisional for listing in runtime.view.listings))
        await simulator.subscribed(*BINANCE)
        await push(simulator, BINANCE)
        await until(lambda: runtime.recorded == 1)
    monkeypatch.setattr("wadm_mcp.collection.listings._STORED_SECONDS", 0)
    monkeypatch.setattr("wadm_mcp.collection.follower.Follower.follow", nothing)
    async with (
        Simulator(manual=True, faults=refusing(Kind.BLOCKED)) as simulator,
        Runtime(settings_for(tmp_path, simulator, WADM_EXCHANGES=("binance",))) as runtime,
    ):
        await until(lambda: "recorded with a provisional listing" in details(runtime) or "using the stored symbol list" in details(runtime))
        await until(lambda: "binance spot listings: ok, using the stored symbol list" in details(runtime))
        assert [listing.provisional for listing in runtime.view.listings] == [False]


async def test_only_a_symbol_that_no_exchange_lists_and_nothing_else_to_record_ends_the_process(tmp_path: Path, patient: None) -> None:
    faults = refusing(Kind.BLOCKED)
    async with Simulator(manual=True, faults=faults) as simulator:
        async with Runtime(settings_for(tmp_path, simulator, WADM_SYMBOLS=("BTCUSDX",))) as runtime:
            await until(lambda: len(runtime.view.listings) == 2)
            faults.end()
            with anyio.fail_after(15):
                error = await runtime.failed()
        assert str(error).startswith("WADM_SYMBOLS=BTCUSDX: no such symbol at binance and bybit (spot)")


@asynccontextmanager
async def own_hosts(monkeypatch: pytest.MonkeyPatch, first: Simulator, other: Simulator) -> AsyncGenerator[None]:
    """Binance's own hosts are those of one simulator, its hosts of market data those of another."""
    names = ("WADM_BINANCE_SPOT_WS", "binance_spot_ws"), ("WADM_BINANCE_SPOT_REST", "binance_spot_rest")
    socket_host, rest_host = (Host(setting, first.urls[name], other.urls[name]) for setting, name in names)
    archive = Host("WADM_BINANCE_ARCHIVE", first.urls["binance_archive"])
    with monkeypatch.context() as patch:
        patch.setattr(find_exchange("binance"), "hosts", MappingProxyType({"spot": Hosts(socket_host, rest_host, archive)}), raising=False)
        yield


async def test_the_host_of_market_data_is_used_where_the_exchanges_own_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = refusing(Kind.BLOCKED, Kind.BLOCKED_SOCKETS)
    async with Simulator(manual=True, faults=refused) as first, Simulator(activity=20) as other, own_hosts(monkeypatch, first, other):
        settings = read_settings({}, overrides={"WADM_DATA_DIR": tmp_path, "WADM_HISTORY_HOURS": 0, "WADM_EXCHANGES": ("binance",)})
        async with Runtime(settings) as runtime:
            await until(lambda: runtime.recorded > 0)
            assert not runtime.tape[BINANCE].listing.provisional
            assert runtime.health.parts["binance spot REST"].state is State.OK
            said = runtime.health.parts["binance spot REST"].detail
            assert said.startswith(f"uses {other.urls['binance_spot_rest']}, because binance spot answered HTTP 451")
            said = runtime.health.parts["binance spot socket"].detail
            assert said.startswith(f"uses {other.urls['binance_spot_ws']}, because: cannot connect to {first.urls['binance_spot_ws']}")
        assert await examine(settings) == 0
        assert f"uses {other.urls['binance_spot_ws']}" in capsys.readouterr().out


async def test_a_base_url_that_somebody_set_is_never_left_for_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = refusing(Kind.BLOCKED, Kind.BLOCKED_SOCKETS)
    async with Simulator(manual=True, faults=refused) as first, Simulator(activity=20) as other, own_hosts(monkeypatch, first, other):
        settings = settings_for(tmp_path, first, WADM_EXCHANGES=("binance",))
        async with Runtime(settings) as runtime:
            await until(lambda: runtime.health.parts[str(BINANCE)].state is State.DOWN if str(BINANCE) in runtime.health.parts else False)
            said = runtime.health.parts[str(BINANCE)].detail
            assert "it answered HTTP 451" in said
            assert f"WADM_BINANCE_SPOT_WS={other.urls['binance_spot_ws']}" in said
            assert "binance spot REST" not in runtime.health.parts
            assert not other.sent[BINANCE]
