"""A loopback exchange for load tests: Binance USD-M `aggTrade` (raw or combined stream) or Bybit linear `publicTrade`, with listings.

    python -m benchmarks.feed binance|bybit PORT SYMBOLS RATE:SECONDS...

It sends one frame per system call at RATE frames a second; with a rate of 0 it sends SECONDS trades as fast as they are read. It prints
`listening`; `begun` when every symbol is subscribed; and a line `rate sent epoch-ms` at the end of each phase. Ids continue over
reconnections. All connections to Bybit get the same trades from their subscription on. It runs until it is terminated.

The simulator is not used, because it computes a market, keeps a ledger and answers REST: here sending must cost almost nothing.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final
from urllib.parse import parse_qs, urlsplit

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

TICK, LOT = "0.10", "0.001"
_POOL: Final = 100_000
_TRADES_PER_WRITE: Final = 500
"""Trades of one write at rate 0."""


def symbols(count: int) -> list[str]:
    """Names of symbols: first the busy ones that all benchmarks use, then invented ones."""
    return ["BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT", "BNBUSDT", *(f"A{number:03}USDT" for number in range(400))][:count]


def exchange_info(names: Sequence[str]) -> dict[str, object]:
    """The listings of Binance USD-M (docs/exchanges.md 6)."""
    filters = [
        {"filterType": "PRICE_FILTER", "tickSize": TICK, "minPrice": "0.10", "maxPrice": "1000000"},
        {"filterType": "LOT_SIZE", "stepSize": LOT, "minQty": "0.001", "maxQty": "1000"},
    ]
    listed = [
        {
            "symbol": name,
            "pair": name,
            "contractType": "PERPETUAL",
            "status": "TRADING",
            "contractStatus": "TRADING",
            "baseAsset": name.removesuffix("USDT"),
            "quoteAsset": "USDT",
            "marginAsset": "USDT",
            "filters": filters,
        }
        for name in names
    ]
    return {"timezone": "UTC", "serverTime": time.time_ns() // 1_000_000, "rateLimits": [], "symbols": listed}


def instruments_info(names: Sequence[str]) -> dict[str, object]:
    """The listings of Bybit's linear market (docs/exchanges.md 6)."""
    filters = {"priceFilter": {"tickSize": TICK}, "lotSizeFilter": {"qtyStep": LOT}}
    listed = [{"symbol": name, "contractType": "LinearPerpetual", "status": "Trading", **filters} for name in names]
    return {"retCode": 0, "retMsg": "OK", "result": {"category": "linear", "list": listed, "nextPageCursor": ""}}


class Market:
    """Trades of some symbols, the first ones busier, with random-walk prices and some repeated sizes, as in real trades."""

    def __init__(self, names: Sequence[str], first: int = 1) -> None:
        draw = random.Random(7)
        self.names = list(names)
        self.next_id = dict.fromkeys(names, first)
        weights = [1.0 if len(names) <= 5 else 1 / (1 + rank) ** 0.7 for rank in range(len(names))]
        sizes = [f"{draw.choice((0.001, 0.002, 0.005, 0.01, 0.02, 0.1))}" for _ in range(64)]
        sizes += [f"{10 ** draw.uniform(-3, 0.5):.3f}" for _ in range(64)]
        walks = {name: 600_000 + 977 * rank for rank, name in enumerate(names)}
        self._turns: list[tuple[str, str, str, int, str]] = []
        """Symbol, price, quantity, fills beyond the first, and whether the buyer was the maker; sent in an endless loop."""
        for name in draw.choices(self.names, weights, k=_POOL):
            walks[name] += round(draw.gauss(0, 1.2))
            price, quantity = f"{walks[name] // 10}.{walks[name] % 10}0", draw.choice(sizes)
            self._turns.append((name, price, quantity, int(draw.expovariate(1.2)), draw.choice(("true", "false"))))
        self._place = 0
        self._draw = draw
        self._newest: dict[str, deque[tuple[str, str, str, str, int, int]]] = {name: deque(maxlen=1_000) for name in names}

    def agg_trade(self, now: int, combined: bool) -> bytes:
        """The next trade as a complete WebSocket frame of Binance."""
        name, price, quantity, fills, maker = self._next()
        number = self.next_id[name]
        first = number * 50
        figures = f'"p":"{price}","q":"{quantity}"'
        text = f'{{"e":"aggTrade","E":{now},"s":"{name}","a":{number},{figures},"f":{first},"l":{first + fills},"T":{now},"m":{maker}}}'
        return frame(f'{{"stream":"{name.lower()}@aggTrade","data":{text}}}' if combined else text)

    def public_trade(self, now: int) -> tuple[str, bytes]:
        """The next trade's symbol, and the trade as a complete WebSocket frame of Bybit. The trade is added to `newest`."""
        name, price, quantity, _, maker = self._next()
        side = "Sell" if maker == "true" else "Buy"
        i = f"{self._draw.getrandbits(128):032x}"
        i = f"{i[:8]}-{i[8:12]}-{i[12:16]}-{i[16:20]}-{i[20:]}"
        row = f'"T":{now},"s":"{name}","S":"{side}","v":"{quantity}","p":"{price}","L":"PlusTick","i":"{i}","BT":false,"RPI":false'
        text = f'{{"topic":"publicTrade.{name}","type":"snapshot","ts":{now},"data":[{{{row},"seq":{self.next_id[name]}}}]}}'
        self._newest[name].append((i, price, quantity, side, now, self.next_id[name]))
        return name, frame(text)

    def newest(self, name: str) -> list[dict[str, object]]:
        """The newest trades of a symbol as Bybit's REST serves them, the newest first."""
        return [
            {"execId": i, "symbol": name, "price": p, "size": v, "side": s, "time": str(t), "isBlockTrade": False, "seq": str(seq)}
            for i, p, v, s, t, seq in reversed(self._newest[name])
        ]

    def _next(self) -> tuple[str, str, str, int, str]:
        turn = self._turns[self._place]
        self._place = (self._place + 1) % _POOL
        self.next_id[turn[0]] += 1
        return turn


def frame(text: str) -> bytes:
    """A text as a complete WebSocket frame."""
    size = len(text).to_bytes(1) if len(text) < 126 else b"\x7e" + len(text).to_bytes(2)
    return b"\x81" + size + text.encode()


class Feed:
    """The exchange: waits until every symbol is subscribed, then sends its phases; each connection gets its symbols' share of the rate."""

    def __init__(self, names: Sequence[str], phases: Sequence[tuple[float, float]]) -> None:
        self.names = list(names)
        self.phases = phases
        self._ready = threading.Event()
        self._lock = threading.Lock()
        self._subscribed: set[str] = set()
        self._played = False
        self._left = 0

    def answer(self, _: ServerConnection, request: Request) -> Response | None:
        """Answers REST requests; None for a WebSocket."""
        path = urlsplit(request.path).path
        if path.endswith("exchangeInfo"):
            body, status = json.dumps(exchange_info(self.names)), 200
        elif path.endswith("instruments-info"):
            body, status = json.dumps(instruments_info(self.names)), 200
        elif path.endswith("recent-trade"):
            rows = self.newest(parse_qs(urlsplit(request.path).query)["symbol"][0])
            body, status = json.dumps({"retCode": 0, "retMsg": "OK", "result": {"category": "linear", "list": rows}}), 200
        elif request.headers.get("Upgrade", "").lower() == "websocket":
            return None
        else:
            body, status = "[]", 200
        return Response(status, "OK", Headers({"Content-Type": "application/json", "Content-Length": str(len(body))}), body.encode())

    def newest(self, _: str) -> list[dict[str, object]]:
        """Recent trades; only Bybit serves them."""
        return []

    def play(self, connection: ServerConnection) -> None:
        """Serves one connection: subscriptions, then the phases."""
        address = urlsplit(connection.request.path if connection.request else "")
        combined = address.path == "/stream"
        mine = [topic.partition("@")[0].upper() for topic in parse_qs(address.query).get("streams", [""])[0].split("/") if topic]
        try:
            while not mine or not self._all(mine):
                try:
                    message = json.loads(connection.recv(timeout=0.2))
                except TimeoutError:
                    continue
                if message.get("method") == "SUBSCRIBE":
                    mine += [topic.partition("@")[0].upper() for topic in message["params"]]
                    connection.send(json.dumps({"result": None, "id": message["id"]}))
            self._phases(connection, Market(mine, time.time_ns() // 1_000_000_000), len(mine) / len(self.names), combined)
            while True:
                connection.recv()
        except (ConnectionClosed, OSError):
            return

    def _all(self, mine: Sequence[str]) -> bool:
        with self._lock:
            self._subscribed.update(mine)
            if len(self._subscribed) == len(self.names) and not self._ready.is_set():
                print("begun", flush=True)
                self._ready.set()
        return self._ready.is_set()

    def _phases(self, connection: ServerConnection, market: Market, share: float, combined: bool) -> None:
        sock = connection.socket
        for rate, amount in self.phases:
            sent = 0
            if rate == 0:
                while sent < amount * share:
                    now = time.time_ns() // 1_000_000
                    sock.sendall(b"".join([market.agg_trade(now, combined) for _ in range(_TRADES_PER_WRITE)]))
                    sent += _TRADES_PER_WRITE
            else:
                began, wanted, gap = time.monotonic(), int(rate * amount * share), 1 / (rate * share)
                while sent < wanted:
                    ahead = began + sent * gap - time.monotonic()
                    if ahead > 0:
                        time.sleep(ahead)
                    sock.sendall(market.agg_trade(time.time_ns() // 1_000_000, combined))
                    sent += 1
            print(f"{rate:g} {sent} {time.time_ns() // 1_000_000}", flush=True)


class BybitFeed(Feed):
    """Bybit: every connection gets the same trades of its subscribed symbols, and an answer to each ping."""

    def __init__(self, names: Sequence[str], phases: Sequence[tuple[float, float]]) -> None:
        super().__init__(names, phases)
        self._market = Market(self.names, time.time_ns() // 1_000_000_000)
        self._listening: list[tuple[ServerConnection, set[str]]] = []
        self._sending = threading.Lock()

    def newest(self, name: str) -> list[dict[str, object]]:
        with self._sending:
            return self._market.newest(name)

    def play(self, connection: ServerConnection) -> None:
        """Serves one connection. The first one that has subscribed every symbol starts the phases."""
        mine = set[str]()
        self._listening.append((connection, mine))
        try:
            while True:
                message = json.loads(connection.recv())
                answer = {"success": True, "ret_msg": "", "op": message["op"], "req_id": message.get("req_id", "")}
                if message["op"] == "ping":
                    answer["ret_msg"] = "pong"
                with self._sending:
                    connection.socket.sendall(frame(json.dumps(answer)))
                    mine.update(topic.partition(".")[2] for topic in message.get("args", ()))
                if not self._ready.is_set() and self._all(list(mine)):
                    threading.Thread(target=self._play, daemon=True).start()
        except (ConnectionClosed, OSError):
            return

    def _play(self) -> None:
        for rate, amount in self.phases:
            began, sent = time.monotonic(), 0
            while sent < (rate * amount if rate else amount):
                ahead = began + sent / rate - time.monotonic() if rate else 0
                if ahead > 0:
                    time.sleep(ahead)
                with self._sending:
                    name, data = self._market.public_trade(time.time_ns() // 1_000_000)
                    for one in [one for one in self._listening if name in one[1]]:
                        try:
                            one[0].socket.sendall(data)
                        except OSError:
                            self._listening.remove(one)
                sent += 1
            print(f"{rate:g} {sent} {time.time_ns() // 1_000_000}", flush=True)


def main() -> None:
    """Serve until terminated."""
    exchange, port, count, *phases = sys.argv[1:]
    kind = BybitFeed if exchange == "bybit" else Feed
    feed = kind(symbols(int(count)), [(float(rate), float(amount)) for rate, amount in (phase.split(":") for phase in phases)])
    with serve(feed.play, "127.0.0.1", int(port), process_request=feed.answer, compression=None, ping_interval=None) as server:
        print("listening", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
