from __future__ import annotations

import json
import ssl
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import pytest
import trustme
from anyio.abc import SocketStream
from msgspec.structs import replace as replace_listing
from websockets.asyncio.server import ServerConnection, serve
from websockets.frames import Opcode

from tests.collection.live.hostile import hostile_server, wire
from tests.market import ManualClock, listing
from tests.venues import simulated_venue, venue
from wadm_mcp.clock import SYSTEM_CLOCK, now_ms
from wadm_mcp.collection.live import collector as collector_module
from wadm_mcp.collection.live import staleness as staleness_module
from wadm_mcp.collection.live.collector import Collector
from wadm_mcp.collection.network import SocketFailure, SocketHosts, socket_options
from wadm_mcp.collection.recording import recorder as recorder_module
from wadm_mcp.collection.recording.recorder import Recorder
from wadm_mcp.coverage.spans import GapReason, Span
from wadm_mcp.exchanges.binance import Binance
from wadm_mcp.exchanges.bybit import Bybit
from wadm_mcp.exchanges.exchange import Exchange, Limits, Trades
from wadm_mcp.health import Health, State
from wadm_mcp.model import Instrument, Trade
from wadm_mcp.simulator.chaos import Chaos
from wadm_mcp.simulator.fault_plan import Fault, Kind
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.tape import Tape

pytestmark = pytest.mark.anyio

NAMES = ("BTCUSDT", "ETHUSDT")


class Recording(Recorder):
    """A recorder with changes that tests can wait for."""

    def __init__(self) -> None:
        self.health = Health(now_ms)
        self.tape = Tape()
        super().__init__(self.tape, self.health, SYSTEM_CLOCK)
        self.changed = anyio.Event()
        self.losses: list[tuple[str, str]] = []
        self.heard_on: defaultdict[Instrument, set[int]] = defaultdict(set)

    async def take(self, connection: int, *messages: Trades) -> None:
        for message in messages:
            self.heard_on[message.instrument].add(connection)
        await super().take(connection, *messages)
        self._notify()

    def connection_lost(self, connection: int, instruments: Sequence[Instrument], reason: GapReason, detail: str) -> None:  # type: ignore[override]
        super().connection_lost(connection, instruments, reason, detail)
        self.losses.append((reason, detail))
        self._notify()

    def _notify(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(10):
            while not condition():
                await self.changed.wait()

    def trades(self, instrument: Instrument) -> list[Trade]:
        return sorted(self.tape[instrument].pending.values(), key=lambda trade: trade.seq)

    def spans(self, instrument: Instrument) -> list[Span]:
        return self[instrument].spans


class Scene:
    """A simulated market, a collector of it, and the recorder that gets its trades."""

    def __init__(self, simulator: Simulator, recorder: Recording, instruments: list[Instrument], collectors: Sequence[Collector]) -> None:
        self.simulator = simulator
        self.recorder = recorder
        self.instruments = instruments
        self.collectors = collectors

    async def push(self, *prices: str, symbol: str = "BTCUSDT", wait: bool = True) -> None:
        exchange, market, _ = self.instruments[0]
        instrument = Instrument(exchange, market, symbol)
        before = len(self.recorder.trades(instrument))
        await self.simulator.push(exchange, market, symbol, [(now_ms(), price, "0.5", "BUY") for price in prices])
        if wait:
            await self.recorder.until(lambda: len(self.recorder.trades(instrument)) >= before + len(prices))

    async def push_until_delivered(self) -> None:
        """Push trades until one is delivered, since the simulator may still have the connection that is closing."""
        before = len(self.recorder.trades(self.instruments[0]))
        with anyio.fail_after(10):
            while len(self.recorder.trades(self.instruments[0])) == before:
                await self.push("61500", wait=False)
                with anyio.move_on_after(0.2):
                    await self.recorder.changed.wait()


@asynccontextmanager
async def collecting(
    exchange: Exchange | None = None,
    market: str = "spot",
    names: tuple[str, ...] = ("BTCUSDT",),
    *,
    listed: tuple[str, ...] | None = None,
    copies: int = 1,
) -> AsyncGenerator[Scene]:
    exchange = exchange or Binance()
    instruments = [Instrument(exchange.name, market, name) for name in names]
    known = [Instrument(exchange.name, market, name) for name in (listed or names)]
    recorder = Recording()
    for instrument in instruments:
        recorder.start(listing(instrument, "0.1", "0.001"), has_gapless_ids=exchange.traits[market].has_gapless_ids)
    async with Simulator(instruments=known, manual=True) as simulator, anyio.create_task_group() as tasks:
        listings = [recorder.tape[instrument].listing for instrument in instruments]
        here = replace(simulated_venue(simulator, exchange.name, market), exchange=exchange)
        collectors = [Collector(here, listings, recorder, recorder.health, SYSTEM_CLOCK) for _ in range(copies)]
        for collector in collectors:
            tasks.start_soon(collector.run)
        with anyio.fail_after(10):
            for instrument in known:
                if instrument in instruments:
                    await simulator.subscribed(*instrument)
        yield Scene(simulator, recorder, instruments, collectors)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(("exchange", "market"), [(Binance(), "spot"), (Binance(), "linear"), (Bybit(), "spot"), (Bybit(), "linear")])
async def test_every_market_delivers_its_trades_exactly(exchange: Exchange, market: str) -> None:
    async with collecting(exchange, market, NAMES) as s:
        await s.push("61000.1", "61000.2")
        await s.push("3000.5", symbol="ETHUSDT")
        trades = s.recorder.trades(s.instruments[0])
        assert [trade.price for trade in trades] == [610_001, 610_002]
        assert [trade.quantity for trade in trades] == [500, 500]
        assert [trade.price for trade in s.recorder.trades(s.instruments[1])] == [30_005]
        assert s.recorder.health.parts[str(s.instruments[0])].state is State.OK


async def test_an_instrument_is_live_with_its_first_frame_and_not_with_its_acknowledgement() -> None:
    async with collecting() as s:
        assert s.recorder.health.parts[str(s.instruments[0])].state is State.STARTING
        await s.push("61000")
        assert s.recorder.health.parts[str(s.instruments[0])].state is State.OK


async def test_missing_ids_after_a_reconnect_are_a_gap() -> None:
    async with collecting() as s:
        (instrument,) = s.instruments
        await s.push("61000")
        s.simulator.drop_connections("binance", "spot")
        await s.recorder.until(lambda: bool(s.recorder.losses))
        await s.push("61001", wait=False)
        with anyio.fail_after(10):
            await s.simulator.subscribed(*instrument)
        await s.push("61002")
        first, second = s.recorder.spans(instrument)
        assert second.first_seq - first.last_seq == 2
        assert second.opened_by == "disconnect"


async def test_a_reconnect_without_missed_trades_is_no_gap_where_ids_count() -> None:
    async with collecting() as s:
        (instrument,) = s.instruments
        await s.push("61000")
        s.simulator.drop_connections("binance", "spot")
        await s.recorder.until(lambda: bool(s.recorder.losses))
        with anyio.fail_after(10):
            await s.simulator.subscribed(*instrument)
        await s.push("61001")
        assert len(s.recorder.spans(instrument)) == 1


async def test_a_lost_id_is_a_gap_of_one_trade() -> None:
    async with collecting() as s:
        (instrument,) = s.instruments
        await s.push("61000")
        s.simulator.skip_trades("binance", "spot", "BTCUSDT", 1)
        await s.push("61001", wait=False)
        await s.push("61002")
        first, second = s.recorder.spans(instrument)
        assert (second.first_seq - first.last_seq - 1, second.opened_by) == (1, "missing_ids")


@pytest.mark.parametrize(
    "unreadable", ["{", b"\xff\x00", '{"e":"trade"}', '{"e":"trade","E":1,"s":"NOPE","t":1,"p":"x","q":"-1","T":1,"m":0}', "[]", ""]
)
async def test_an_unreadable_frame_is_counted_and_changes_nothing_else(unreadable: str | bytes) -> None:
    async with collecting() as s:
        await s.push("61000")
        s.simulator.send_raw("binance", "spot", unreadable)
        await s.push("61001")
        assert s.recorder.health.counts["frames.bad"] == 1
        assert len(s.recorder.spans(s.instruments[0])) == 1
        assert s.recorder.losses == []


async def test_an_unreadable_frame_between_two_frames_of_one_read_is_a_gap() -> None:
    async with collecting(Bybit(), "spot") as s:
        (instrument,) = s.instruments
        await s.push("61000")
        began = now_ms()
        # Soon enough that all of these frames are read in one batch.
        await s.simulator.push(*instrument, [(began + 10, "61001", "0.5", "BUY")])
        s.simulator.send_raw("bybit", "spot", "{")
        await s.simulator.push(*instrument, [(began + 20, "61002", "0.5", "BUY")])
        await s.simulator.push(*instrument, [(began + 30, "61003", "0.5", "BUY")])
        await s.recorder.until(lambda: len(s.recorder.trades(instrument)) == 4)
        before, after = s.recorder.spans(instrument)
        assert (before.end, after.start) == (began + 10, began + 21)


async def test_many_unreadable_frames_are_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with collecting() as s:
        await s.push("61000")
        for _ in range(200):
            s.simulator.send_raw("binance", "spot", "{")
        await s.push("61001")
        assert s.recorder.health.counts["frames.bad"] == 200
    assert [record.getMessage() for record in caplog.records].count("frame.bad") == 1


async def test_an_oversized_frame_ends_the_connection_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_module, "_MAX_FRAME_BYTES", 10_000)
    async with collecting() as s:
        await s.push("61000")
        s.simulator.send_raw("binance", "spot", "x" * 20_000)
        await s.recorder.until(lambda: bool(s.recorder.losses))
        await s.push_until_delivered()
        assert s.recorder.health.counts["frames.oversized"] == 1


async def test_a_connection_that_delivers_nothing_is_closed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staleness_module, "_MIN_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(staleness_module, "_TIMEOUT_INTERVALS", 0.1)
    async with collecting(Bybit()) as s:
        await s.push("61000")
        s.simulator.mute("bybit", "spot")
        await s.recorder.until(lambda: bool(s.recorder.losses))
        assert s.recorder.losses[0][0] == "mute"
        s.simulator.unmute("bybit", "spot")
        await s.push_until_delivered()
        assert [span.opened_by for span in s.recorder.spans(s.instruments[0])] == ["start", "mute"]


async def test_a_stale_connection_is_replaced_before_a_redundant_one_and_makes_it_no_more_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staleness_module, "_MIN_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(staleness_module, "_TIMEOUT_INTERVALS", 0.1)
    monkeypatch.setattr(staleness_module, "_REPLACEMENT_SECONDS", 3_600.0)
    async with collecting(Bybit(), copies=2) as s:
        (instrument,) = s.instruments
        while s.recorder.health.counts["trades.repeated"] == 0:
            await s.push("61000")
        s.simulator.mute("bybit", "spot")
        await s.recorder.until(lambda: bool(s.recorder.losses))
        assert sorted(collector.given_up[instrument] for collector in s.collectors) == [0, 1]
        assert s.recorder[instrument].coverage.alive
        monkeypatch.setattr(staleness_module, "_REPLACEMENT_SECONDS", 0.0)
        await s.recorder.until(lambda: not s.recorder[instrument].coverage.alive)
        assert all(collector.given_up[instrument] for collector in s.collectors)
        s.simulator.unmute("bybit", "spot")
        await s.push_until_delivered()
        with anyio.fail_after(10):
            while any(collector.given_up[instrument] for collector in s.collectors):
                await s.push("61500", wait=False)
                await anyio.sleep(0.05)


async def test_backpressure_of_the_recorder_does_not_make_a_connection_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staleness_module, "_MIN_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(staleness_module, "_TIMEOUT_INTERVALS", 0.1)
    monkeypatch.setattr(recorder_module, "WAITING_LIMIT", 1)
    async with collecting(Bybit()) as s:
        await s.push("61000")
        await s.push("61001", wait=False)
        staleness, waits, looked = s.recorder.staleness, 0, anyio.Event()

        def look(instrument: Instrument) -> staleness_module.StaleDetector:
            nonlocal waits
            waits += s.recorder.health.counts["recorder.waits"]
            if waits == 3:
                looked.set()
            return staleness(instrument)

        monkeypatch.setattr(s.recorder, "staleness", look)
        with anyio.fail_after(10):
            await looked.wait()
        s.recorder.take_batch()
        await s.recorder.until(lambda: len(s.recorder.trades(s.instruments[0])) == 2)
        assert s.recorder.losses == []
        assert len(s.recorder.spans(s.instruments[0])) == 1


class ShortLived(Binance):
    """Binance with a connection age limit of about a second."""

    def limits(self, market: str) -> Limits:
        return super().limits(market)._replace(lifetime=0.5)


async def test_a_connection_near_its_age_limit_is_closed_only_after_its_replacement_delivers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_module, "_REPLACEMENT_SECONDS", 30.0)
    async with collecting(ShortLived()) as s:
        (instrument,) = s.instruments
        await s.push("61000")
        with anyio.fail_after(10):
            while s.simulator.connections("binance", "spot") < 2:
                await anyio.sleep(0.02)
        assert s.recorder.losses == []
        await s.push("61001")
        with anyio.fail_after(10):
            while not s.recorder.losses:
                await s.push("61002")
        await s.push("61003")
        assert s.recorder.losses[0][1] == "replaced by a newer connection"
        assert len(s.recorder.spans(instrument)) == 1


class FrequentPings(Binance):
    """Binance, which should ping every half second and does not."""

    def limits(self, market: str) -> Limits:
        return super().limits(market)._replace(bytes_within=0.5)


async def test_a_connection_without_even_a_ping_is_closed_before_the_timeout_of_its_trades() -> None:
    async with collecting(FrequentPings()) as s:
        await s.push("61000")
        await s.recorder.until(lambda: bool(s.recorder.losses))
        reason, detail = s.recorder.losses[0]
        assert (reason, detail.startswith("no byte came within 0.5 s")) == ("mute", True)


async def test_a_connection_over_tls_that_ends_is_followed_by_another() -> None:
    authority, client_tls, server_tls = trustme.CA(), ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(client_tls)
    authority.issue_cert("127.0.0.1").configure_cert(server_tls)
    recorder, instrument = Recording(), Instrument("binance", "spot", "BTCUSDT")
    recorder.start(listing(instrument), has_gapless_ids=True)

    async def exchange(connection: ServerConnection) -> None:
        await connection.recv()
        number, now = 1 + len(recorder.losses), now_ms()
        event = {"e": "trade", "E": now, "s": "BTCUSDT", "t": number, "p": "61000.0", "q": "0.5", "T": now, "m": False, "M": True}
        await connection.send(json.dumps(event))

    async with serve(exchange, "127.0.0.1", 0, ssl=server_tls, compression=None) as server, anyio.create_task_group() as tasks:
        url = f"wss://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        collector = Collector(
            venue(Binance(), "spot", socket_url=url), [listing(instrument)], recorder, recorder.health, SYSTEM_CLOCK, client_tls
        )
        tasks.start_soon(collector.run)
        await recorder.until(lambda: len(recorder.trades(instrument)) >= 3)
        assert [reason for reason, _ in recorder.losses[:2]] == ["disconnect", "disconnect"]
        assert recorder.losses[0][1] == "the connection closed with code 1000"
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("ends", "detail"),
    [
        (wire(Opcode.CLOSE, b"\x03\xe9"), "the connection closed with code 1001"),
        (b"\xc1\x01x", "the exchange broke the WebSocket protocol: a frame that begins with 0xc1"),
    ],
    ids=["close", "refused"],
)
async def test_a_connection_that_is_not_open_any_more_is_followed_by_another_though_its_tcp_connection_stays_open(
    ends: bytes, detail: str
) -> None:
    recorder, instrument = Recording(), Instrument("binance", "spot", "BTCUSDT")
    recorder.start(listing(instrument), has_gapless_ids=True)

    async def exchange(stream: SocketStream) -> None:
        number, now = 1 + len(recorder.losses), now_ms()
        event = {"e": "trade", "E": now, "s": "BTCUSDT", "t": number, "p": "61000.0", "q": "0.5", "T": now, "m": False, "M": True}
        await stream.send(wire(Opcode.TEXT, json.dumps(event).encode()) + ends)

    async with hostile_server(exchange) as url, anyio.create_task_group() as tasks:
        here = venue(Binance(), "spot", socket_url=url)
        tasks.start_soon(Collector(here, [listing(instrument)], recorder, recorder.health, SYSTEM_CLOCK).run)
        await recorder.until(lambda: len(recorder.trades(instrument)) >= 2)
        assert recorder.losses[0] == ("disconnect", detail)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("variable", "url", "proxy"),
    [
        ("ALL_PROXY", "wss://stream.binance.com:9443", "http://10.0.0.1:8080"),
        ("HTTPS_PROXY", "wss://stream.binance.com:9443", "http://10.0.0.1:8080"),
        ("ALL_PROXY", "ws://127.0.0.1:9443", None),
        ("NO_PROXY", "wss://stream.binance.com:9443", None),
    ],
)
def test_sockets_use_the_same_proxy_as_rest(monkeypatch: pytest.MonkeyPatch, variable: str, url: str, proxy: str | None) -> None:
    for name in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "WSS_PROXY", "SOCKS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv(variable, "http://10.0.0.1:8080")
    assert socket_options(url, None)["proxy"] == proxy


@asynccontextmanager
async def impatient(
    monkeypatch: pytest.MonkeyPatch, exchange: Exchange, market: str = "spot", *, names: tuple[str, ...] = NAMES, copies: int = 1
) -> AsyncGenerator[Scene]:
    """Collectors of two symbols or more that wait half a second for each; ETHUSDT trades all the time."""
    monkeypatch.setattr(staleness_module, "_MIN_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(staleness_module, "_TIMEOUT_INTERVALS", 0.1)
    monkeypatch.setattr(collector_module, "_WATCH_SECONDS", 0.1)
    async with collecting(exchange, market, names, copies=copies) as s, anyio.create_task_group() as tasks:

        async def trade() -> None:
            while True:
                await s.push("3000.5", symbol="ETHUSDT", wait=False)
                await anyio.sleep(0.05)

        tasks.start_soon(trade)
        yield s
        tasks.cancel_scope.cancel()


async def test_a_symbol_that_sends_nothing_does_not_end_the_connection_of_its_sibling(monkeypatch: pytest.MonkeyPatch) -> None:
    async with impatient(monkeypatch, Bybit(), "linear") as s:
        await s.push("61000")
        await anyio.sleep(1.5)
        assert s.recorder.losses == []
        assert len(s.recorder.spans(s.instruments[1])) == 1


@pytest.mark.parametrize(("exchange", "market"), [(Binance(), "spot"), (Binance(), "linear"), (Bybit(), "spot"), (Bybit(), "linear")])
async def test_a_subscription_that_died_is_renewed_alone(monkeypatch: pytest.MonkeyPatch, exchange: Exchange, market: str) -> None:
    async with impatient(monkeypatch, exchange, market) as s:
        silent, sibling = s.instruments
        await s.push("61000")
        s.simulator.stall(*silent)
        with anyio.fail_after(10):
            await s.simulator.subscribed(*silent)
        await s.push("61001")
        assert s.recorder.losses == []
        assert s.recorder.health.counts["subscriptions.renewed"] == 1
        assert len(s.recorder.spans(sibling)) == 1
        if exchange.name == "bybit":
            # What was traded while it was not subscribed cannot be known.
            assert [span.opened_by for span in s.recorder.spans(silent)] == ["start", "mute"]


async def test_a_quiet_symbol_is_subscribed_again_on_one_of_two_connections_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with impatient(monkeypatch, Bybit(), "linear", copies=2) as s:
        quiet, sibling = s.instruments
        while len(s.recorder.heard_on[quiet]) < 2:
            await s.push("61000")
        subscription_lost, unsubscribed, alive = s.recorder.subscription_lost, anyio.Event(), list[bool]()

        def lost(connection: int, instrument: Instrument, reason: GapReason, detail: str) -> None:
            subscription_lost(connection, instrument, reason, detail)
            alive.append(s.recorder[quiet].coverage.alive)
            unsubscribed.set()

        monkeypatch.setattr(s.recorder, "subscription_lost", lost)
        with anyio.fail_after(10):
            await unsubscribed.wait()
        # As long as another connection unsubscribed in the same second would take.
        with anyio.move_on_after(1.0):
            await anyio.sleep_forever()
        assert alive == [True]
        await s.push("61001")
        assert [len(s.recorder.spans(one)) for one in (quiet, sibling)] == [1, 1]


async def test_a_symbol_that_stays_silent_has_its_connection_replaced_without_a_gap_of_its_sibling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_module, "_REPLACEMENT_SECONDS", 1.0)
    async with impatient(monkeypatch, Bybit(), "linear") as s:
        silent, sibling = s.instruments
        await s.push("61000")
        await s.recorder.until(lambda: bool(s.recorder.losses))
        assert s.recorder.losses[0][1] == "replaced by a newer connection"
        assert s.recorder.health.counts["subscriptions.renewed"] == 2
        assert len(s.recorder.spans(sibling)) == 1
        # Its own patience has doubled, and not that of its sibling.
        assert dict(s.collectors[0].given_up) == {silent: 1}


async def test_of_two_connections_that_are_replaced_one_stays_until_a_quiet_sibling_is_heard_on_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(collector_module, "_REPLACEMENT_SECONDS", 1.0)
    monkeypatch.setattr(staleness_module, "_REPLACEMENT_SECONDS", 0.2)
    async with impatient(monkeypatch, Bybit(), "linear", names=(*NAMES, "SOLUSDT"), copies=2) as s:
        dead, _, quiet = s.instruments
        s.recorder[quiet].staleness.expect(600)
        while len(s.recorder.heard_on[dead]) < 2:
            await s.push("61000")
        await s.push("150", symbol="SOLUSDT")
        await s.recorder.until(lambda: len(s.recorder.heard_on[quiet]) == 2)
        await s.recorder.until(lambda: bool(s.recorder.losses))
        with anyio.move_on_after(2.5):
            await s.recorder.until(lambda: len(s.recorder.losses) > 1)
        assert [detail for _, detail in s.recorder.losses] == ["replaced by a newer connection"]
        assert s.recorder[quiet].coverage.alive
        await s.push("151", symbol="SOLUSDT")
        await s.recorder.until(lambda: len(s.recorder.losses) == 2)
        # Its silence may be suspect; its connections were there all the time.
        assert {span.opened_by for span in s.recorder.spans(quiet)} <= {GapReason.START, GapReason.SILENCE}
        assert all(collector.given_up[dead] for collector in s.collectors)


class Pinged(Bybit):
    """Bybit with a ping every 0.3 seconds; counts them."""

    pings = 0

    def limits(self, market: str) -> Limits:
        return super().limits(market)._replace(ping_every=0.3)

    def ping(self, request_id: int) -> str:
        self.pings += 1
        return super().ping(request_id)


async def test_pings_are_sent_while_many_symbols_are_subscribed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = Pinged()
    names = tuple(f"C{number:02}USDT" for number in range(10))
    async with collecting(exchange, "linear", names) as s:
        (connection,) = s.collectors[0].connections
        renewed: list[Instrument] = []
        done = anyio.Event()

        def lost(_connection: int, instrument: Instrument, *_: object) -> None:
            renewed.append(instrument)
            if len(renewed) == len(names):
                done.set()

        monkeypatch.setattr(s.recorder, "subscription_lost", lost)
        before, began = exchange.pings, SYSTEM_CLOCK.monotonic()
        connection._resubscribe.update(dict.fromkeys(s.instruments))
        connection._requested.set()
        with anyio.fail_after(30):
            await done.wait()
        assert renewed == s.instruments
        assert exchange.pings - before >= 0.5 * (SYSTEM_CLOCK.monotonic() - began) / 0.3
        assert s.recorder.losses == []


async def test_a_symbol_that_is_halted_is_left_alone_and_its_listing_is_doubted_once_it_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with impatient(monkeypatch, Bybit(), "linear") as s:
        halted, _ = s.instruments
        await s.push("61000")
        with anyio.fail_after(10):
            await s.recorder.doubted.wait(lambda one: one == halted)
        s.recorder.relist(replace_listing(s.recorder.tape[halted].listing, trading=False, status="Delivering"))
        report = s.recorder.health.parts[str(halted)]
        assert (report.state, "Delivering" in report.detail) == (State.HALTED, True)
        assert s.recorder.health.ready
        renewed = s.recorder.health.counts["subscriptions.renewed"]
        await anyio.sleep(1.5)
        assert (s.recorder.losses, s.recorder.health.counts["subscriptions.renewed"]) == ([], renewed)
        await s.push("61002")
        assert s.recorder.health.parts[str(halted)].state is State.OK


@pytest.mark.parametrize("refused", ["BTCUSDT", "WETHUSDT"])
async def test_a_symbol_that_the_exchange_refuses_does_not_affect_the_others(refused: str) -> None:
    async with collecting(Bybit(), names=(refused, "ETHUSDT"), listed=("ETHUSDT",)) as s:
        with anyio.fail_after(10):
            await s.simulator.subscribed("bybit", "spot", "ETHUSDT")
        await s.push("3000.5", symbol="ETHUSDT")
        with anyio.fail_after(10):
            while "refused" not in s.recorder.health.parts[f"bybit:spot:{refused}"].detail:
                await anyio.sleep(0.02)
        assert s.recorder.health.parts["bybit:spot:ETHUSDT"].state is State.OK


async def test_a_refused_subscription_is_requested_again_with_longer_pauses_until_it_delivers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_module, "_REFUSED_PAUSE_SECONDS", 0.2, raising=False)
    monkeypatch.setattr(collector_module, "_WATCH_SECONDS", 0.05)
    async with collecting(Bybit(), names=NAMES) as s:
        late, _ = s.instruments
        s.simulator.set_status(*late, "")
        s.simulator.drop_connections("bybit", "spot")
        with anyio.fail_after(10):
            # The batch, the single request and two more.
            while s.recorder.health.counts["requests.refused"] < 4:
                await anyio.sleep(0.02)
        await s.push("3000.5", symbol="ETHUSDT")
        s.simulator.set_status(*late, None)
        with anyio.fail_after(10):
            await s.simulator.subscribed(*late)
        await s.push("61000")
        assert s.recorder.health.parts[str(late)].state is State.OK


@pytest.mark.parametrize(
    ("exchange", "parts", "wait"),
    [
        (
            Binance(),
            ["HTTP 451", "does not serve this region", "WADM_BINANCE_SPOT_WS=wss://data-stream.binance.vision", "HTTPS_PROXY"],
            300.0,
        ),
        (Bybit(), ["HTTP 403 and says: '403 ERROR The request could not be satisfied", "blocks this address", "Set HTTPS_PROXY"], 600.0),
    ],
)
async def test_a_refused_handshake_says_what_it_means_and_waits_as_long_as_a_refused_request(
    monkeypatch: pytest.MonkeyPatch, exchange: Exchange, parts: list[str], wait: float
) -> None:
    chaos = Chaos([Fault(Kind.BLOCKED_SOCKETS, -1.0, 60, exchange.name, "")])
    chaos.begin()
    instrument, recorder, waited = Instrument(exchange.name, "spot", "BTCUSDT"), Recording(), list[float]()
    recorder.start(listing(instrument), has_gapless_ids=exchange.traits["spot"].has_gapless_ids)
    async with Simulator(manual=True, faults=chaos) as simulator, anyio.create_task_group() as tasks:
        collector = Collector(
            simulated_venue(simulator, exchange.name, "spot"), [listing(instrument)], recorder, recorder.health, SYSTEM_CLOCK
        )
        tasks.start_soon(collector.run)
        await recorder.until(lambda: bool(recorder.losses))
        waited.append(collector.hosts.wait)
        with anyio.move_on_after(1.5):
            await recorder.until(lambda: len(recorder.losses) > 1)
        tasks.cancel_scope.cancel()
    assert len(recorder.losses) == 1
    assert all(part in recorder.losses[0][1] for part in parts)
    assert "<" not in recorder.losses[0][1]
    assert wait - 5 < waited[0] <= wait


def test_a_socket_host_that_refuses_is_left_for_the_fallback_and_tried_again_when_its_time_is_over() -> None:
    clock = ManualClock()
    here = replace(venue(Binance(), "spot", socket_url="ws://one"), socket_fallback="ws://two")
    hosts = SocketHosts(here, clock)
    assert (hosts.base_url, hosts.wait) == ("ws://one", 0)
    hosts.failed("ws://one", SocketFailure("refused", refused=True, wait=300))
    assert (hosts.base_url, hosts.wait) == ("ws://two", 0)
    assert hosts.note("ws://two") == "uses ws://two, because: refused"
    clock.pass_seconds(10)
    hosts.failed("ws://two", SocketFailure("refused", refused=True, wait=300))
    assert (hosts.base_url, hosts.wait) == ("ws://one", 290)
    clock.pass_seconds(291)
    assert (hosts.base_url, hosts.wait) == ("ws://one", 0)
    assert hosts.note("ws://one") == ""
    hosts.failed("ws://one", SocketFailure("too many", wait=60))
    assert (hosts.base_url, hosts.wait) == ("ws://one", 60)


async def test_an_unreachable_exchange_is_retried_and_reported() -> None:
    recorder = Recording()
    instrument = Instrument("binance", "spot", "BTCUSDT")
    recorder.start(listing(instrument), has_gapless_ids=True)
    binance = venue(Binance(), "spot", socket_url="ws://127.0.0.1:1")
    collector = Collector(binance, [listing(instrument)], recorder, recorder.health, SYSTEM_CLOCK)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(collector.run)
        await recorder.until(lambda: len(recorder.losses) >= 2)
        assert "cannot connect to ws://127.0.0.1:1/ws" in recorder.health.parts[str(instrument)].detail
        tasks.cancel_scope.cancel()
