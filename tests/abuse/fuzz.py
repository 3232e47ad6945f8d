"""Hostile HTTP requests, MCP messages, tool arguments, archive files, settings and command lines, each kind from a seed."""

from __future__ import annotations

import gzip
import io
import json
import random
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, Final

from wadm_mcp.server.questions import QUESTIONS

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "BREW")
PATHS: Final = (
    "/", "/mcp", "/mcp/", "/sse", "/sse/", "/messages", "/messages/", "/messages/?session_id=x", "/health", "/health/", "/health/live",
    "/health/live/", "/health//live", "/health/../api/markets", "/health/%2e%2e/api/markets", "/health%2flive", "/HEALTH", "/health;x",
    "/health?x=1", "/api", "/api/", "/api/markets", "/api/markets/", "/api/Markets", "/api/trades", "/api/volume-profile",
    "/api/order-flow", "/api/footprint", "/api/market-structure", "/api/compare-exchanges", "/api/..%2fhealth", "//health", "//api/markets",
    "/docs", "/openapi.json", "/metrics", "/.env", "/wadm.sqlite", "/static/../.env", "/%00", "/api/markets%00", "/api/markets%0d%0aX:1",
    "/?key=", "/api/markets?api_key=x", "http://127.0.0.1/api/markets", "*", "/health/live?%ff",
)  # fmt: skip
"""Routes, what looks like one, and what other servers have."""

TEXTS: Final[Sequence[str]] = (
    "", " ", "0", "-1", "1", "x", "NaN", "Infinity", "1e5", "1e999", "9" * 30, "9" * 400, "null", "true", "BTCUSDT", "ETHUSDT", "all",
    "binance", "bybit", "spot", "linear", "1m", "5m", "1h", "24h", "7d", "session", "2026-06-01T12:00:00Z", "2026-06-01", "0001-01-01",
    "9999-12-31T23:59:59Z", "1780315200000", "-62135596800000", "253402300800000", "full", "brief", "ohlc", "\x00", "\r\n", "\x1b[31m",
    "\u202e", "\ud800", "١٢", "币安人生USDT", "%s%n", "{}", "${jndi}", "' OR 1=1 --", "../../etc/passwd", "A" * 300, "binance:spot:BTCUSDT",
    "BTC/USDT:USDT", "BYBIT:BTCUSDT.P", "price_crosses", "bar_closed",
)  # fmt: skip
VALUES: Final[Sequence[Any]] = (
    *TEXTS, None, True, False, 0, 1, -1, 5, 1_000, 1 << 31, 1 << 63, 1 << 70, -(1 << 70), 0.0, -0.5, 1.5, 1e308, [], {}, [[]], [None],
    {"": None}, ["BTCUSDT"], {"symbol": "BTCUSDT"}, 1_780_315_200_000, 1_780_315_380_000,
)  # fmt: skip

_HEADERS: Final[Sequence[tuple[bytes, bytes]]] = (
    (b"Accept", b"application/json, text/event-stream"), (b"Accept", b"text/event-stream"), (b"Accept", b"application/msgpack"),
    (b"Content-Type", b"application/json"), (b"Content-Type", b"text/plain"), (b"MCP-Protocol-Version", b"2025-11-25"),
    (b"MCP-Protocol-Version", b"2026-07-28"), (b"MCP-Protocol-Version", b"\xff"), (b"Mcp-Session-Id", b"x" * 200),
    (b"Mcp-Session-Id", b"a\x1b[31m"), (b"Last-Event-ID", b"-1"), (b"Origin", b"http://evil.example"), (b"Origin", b"null"),
    (b"Origin", b"http://localhost"), (b"Host", b"evil.example"), (b"Host", b"[::1"), (b"Transfer-Encoding", b"chunked"),
    (b"Content-Length", b"5"), (b"Content-Length", b"-1"), (b"Content-Length", b"99999999999999999999"), (b"Expect", b"100-continue"),
    (b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"), (b"Range", b"bytes=0-1"), (b"X-Forwarded-For", b"127.0.0.1"),
    (b"X-Long", b"y" * 9_000), (b"Cookie", b"a=b"), (b"Sec-Fetch-Site", b"cross-site"), (b"Authorization", b"Bearer "),
    (b"X-API-Key", b"\x00"),
)  # fmt: skip
_METHODS_OF_MCP: Final = (
    "initialize", "ping", "tools/list", "tools/call", "resources/list", "resources/read", "resources/subscribe", "resources/unsubscribe",
    "resources/templates/list", "prompts/list", "prompts/get", "completion/complete", "logging/setLevel", "subscriptions/listen",
    "server/discover", "notifications/initialized", "notifications/cancelled", "nothing/at/all", "",
)  # fmt: skip
_PARAMS: Final = ("uri", "name", "arguments", "cursor", "protocolVersion", "ref", "level", "notifications", "_meta")
_QUICK: Final = [question for question in QUESTIONS if question.name != "wait_for"]


def http_request(draw: random.Random, key: str | None) -> bytes:
    """One request, mostly well-formed enough to reach a route; with the key in half of them."""
    method, path = draw.choice(METHODS) if draw.random() < 0.4 else draw.choice(("GET", "POST")), draw.choice(PATHS)
    if draw.random() < 0.4:
        path = f"{draw.choice([question.path or '/mcp' for question in QUESTIONS])}?{_query(draw)}"
    headers = [(b"Host", b"127.0.0.1"), *(draw.choice(_HEADERS) for _ in range(draw.choice((0, 0, 1, 2, 4))))]
    if key is not None and draw.random() < 0.5:
        headers.append((b"X-API-Key", key.encode()))
    body = json.dumps(mcp_message(draw)).encode() if draw.random() < 0.5 else draw.choice((b"", b"{", b"[" * 3_000, draw.randbytes(40)))
    if draw.random() < 0.9:
        headers = [(name, value) for name, value in headers if name not in (b"Content-Length", b"Transfer-Encoding")]
        headers.append((b"Content-Length", str(len(body)).encode()))
    raw = b"".join(
        [f"{method} {path} HTTP/1.1\r\n".encode("utf-8", "surrogatepass"), *(b"%b: %b\r\n" % header for header in headers), b"\r\n", body]
    )
    if draw.random() < 0.1:
        place = draw.randrange(len(raw))
        raw = raw[:place] + draw.randbytes(draw.randrange(6)) + raw[place + draw.choice((0, 1, 8)) :]
    return raw


def _query(draw: random.Random) -> str:
    from urllib.parse import quote

    pairs = [(name, value) for name, value in arguments(draw, draw.choice(_QUICK).arguments).items()]
    return "&".join(f"{quote(name, errors='replace')}={quote(str(value), errors='replace')}" for name, value in pairs)


def mcp_message(draw: random.Random) -> Any:
    """A message of JSON-RPC with something wrong in it, or nothing; anything at all now and then."""
    if draw.random() < 0.1:
        return draw.choice(VALUES)
    method = draw.choice(_METHODS_OF_MCP)
    question = draw.choice(_QUICK)
    params: dict[str, Any] = {draw.choice(_PARAMS): draw.choice(VALUES) for _ in range(draw.randrange(4))}
    if method == "tools/call":
        params = {"name": question.name, "arguments": arguments(draw, question.arguments)}
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": draw.choice((1, 1, 1, "x", None, 1.5, -1, [])), "method": method, "params": params}
    if draw.random() < 0.3:
        message[draw.choice(list(message))] = draw.choice(VALUES)
    if draw.random() < 0.1:
        message.pop(draw.choice(list(message)))
    return [message] * 3 if draw.random() < 0.03 else message


def arguments(draw: random.Random, allowed: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a tool: its own names, mostly with values of the wrong kind, and now and then a name that it does not have."""
    names = [name for name in allowed if draw.random() < 0.5]
    found = {name: draw.choice(VALUES) for name in names}
    if "symbol" in allowed and draw.random() < 0.7:
        found["symbol"] = "BTCUSDT"
    if draw.random() < 0.05:
        found[draw.choice(TEXTS)] = draw.choice(VALUES)
    return found


_NUMBERS: Final = range(1, 200)
_ROWS: Final = {
    "binance": [
        f"{number},64000.10000000,0.00{number % 9 + 1}00000,{number},{number},1780272{number:06}000,True,True\n" for number in _NUMBERS
    ],
    "bybit": [
        "id,timestamp,price,volume,side,rpi\n",
        *(f"{number},1780272{number:06},64000.1,0.00{number % 9 + 1},buy,0\n" for number in _NUMBERS),
    ],
}


def archive(draw: random.Random) -> tuple[str, bytes]:
    """A daily file of an exchange with rows or bytes changed, and the exchange's name."""
    exchange = draw.choice(list(_ROWS))
    rows = list(_ROWS[exchange])
    for _ in range(draw.choice((0, 1, 1, 3))):
        place = draw.randrange(len(rows))
        fields = rows[place].rstrip("\n").split(",")
        fields[draw.randrange(len(fields))] = draw.choice(TEXTS)
        rows[place] = draw.choice((",".join(fields) + "\n", rows[place] * 2, "", rows[place][: draw.randrange(20)], draw.choice(TEXTS)))
    text = "".join(rows).encode("utf-8", "surrogatepass")
    if exchange == "bybit":
        packed = gzip.compress(text, 1)
    else:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("BTCUSDT-aggTrades-2026-06-01.csv", text)
        packed = buffer.getvalue()
    if draw.random() < 0.5:
        damaged = bytearray(packed)
        for _ in range(draw.choice((1, 2, 8))):
            place = draw.randrange(len(damaged))
            damaged[place : place + draw.choice((0, 1, 4))] = draw.randbytes(draw.randrange(5))
        packed = bytes(damaged[: draw.randrange(len(damaged))] if draw.random() < 0.2 else damaged)
    return exchange, packed


SETTINGS: Final = (
    "ENVIRONMENT", "API_KEY", "MONGODB_URL", "REDIS_URL", "WADM_SYMBOLS", "WADM_EXCHANGES", "WADM_MARKETS", "WADM_HOST", "WADM_PORT",
    "WADM_ALLOWED_HOSTS", "WADM_DATA_DIR", "WADM_TRADES_TTL_HOURS", "WADM_MINUTES_TTL_DAYS", "WADM_JOURNAL_MAX_MB", "WADM_HISTORY_HOURS",
    "WADM_HISTORY_RAW", "WADM_ALLOW_TRACKING", "WADM_MAX_INSTRUMENTS", "WADM_BINANCE_SPOT_WS", "WADM_BYBIT_REST", "WADM_BINANCE_ARCHIVE",
    "WADM_NOTHING",
)  # fmt: skip


def environment(draw: random.Random, secret: str) -> dict[str, str]:
    """Settings with values of every kind; the secret stands where secrets and URLs with user information do."""
    found = {
        name: draw.choice(TEXTS).replace("\x00", "").replace("\ud800", "") for name in draw.sample(SETTINGS, draw.choice((1, 1, 2, 4)))
    }
    planted = {
        "API_KEY": (secret, f" {secret}", f"{secret}\n", f"{secret}\x7f"),
        "MONGODB_URL": (f"mongodb://user:{secret}@127.0.0.1:1/wadm", f"mongodb://user:{secret}@", f"user:{secret}@host"),
        "REDIS_URL": (f"redis://:{secret}@127.0.0.1:1/0", f"redis://:{secret}@127.0.0.1:x", f"rdis://:{secret}@h"),
        "WADM_BINANCE_SPOT_WS": (f"wss://user:{secret}@127.0.0.1:1/path", f"ws://user:{secret}@[::1", f"x://u:{secret}@h"),
        "WADM_BYBIT_REST": (f"https://user:{secret}@127.0.0.1:99999999", f"https://user:{secret}@h?x", f"https://u:{secret}@h"),
    }
    for name in draw.sample(list(planted), draw.choice((1, 2))):
        found[name] = draw.choice(planted[name])
    return found


def command_line(draw: random.Random) -> list[str]:
    """Arguments of `wadm-mcp`."""
    words = (
        "serve",
        "replay",
        "doctor",
        "audit",
        "import",
        "--demo",
        "--speed",
        "--exchange",
        "--market",
        "--symbol",
        "--from",
        "--to",
        "--plan",
        "--",
    )
    return [draw.choice(words) if draw.random() < 0.6 else draw.choice(TEXTS) for _ in range(draw.randrange(6))]
