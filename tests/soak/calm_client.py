"""Asks a server light questions all the time, over `/api` and `/mcp` in turn, as a well-behaved client does. A process of its own.

    python -m tests.soak.calm_client URL KEY SECONDS PAUSE

`PAUSE` is in seconds, between two questions. It ends after `SECONDS`, and prints one `Report` as JSON.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import httpx2

from tests.abuse import mcp_wire
from tests.abuse.target import DEAD
from tests.abuse.test_costly_questions import BUSY

_TIMEOUT_SECONDS: Final = 20.0
_MOST_REFUSALS: Final = 1_000
_ONE: Final = {"symbol": "BTCUSDT", "exchange": "binance", "window": "15m"}
_LIGHT: Final[tuple[tuple[str, str, Mapping[str, Any]], ...]] = (
    ("list_markets", "/api/markets", {}),
    ("get_trades", "/api/trades", {**_ONE, "limit": 10}),
    ("get_order_flow", "/api/order-flow", {**_ONE, "timeframe": "5m"}),
)
"""Tool, path and arguments."""


@dataclass
class Report:
    """What came back."""

    answered: dict[str, list[float]] = field(default_factory=lambda: {"/api": [], "/mcp": []})
    """How long each answer took (ms), by the way it was asked for."""
    outcomes: Counter[str] = field(default_factory=lambda: Counter[str]())
    """`answered`, `busy` (refused, and told when to come again), `wrong` (any other refusal), `no answer`; and `session was gone`, which is
    opened again as the protocol wants it, and asked again."""
    refusals: list[tuple[float, str, str]] = field(default_factory=list)
    """Seconds after the start, way, and what came back instead of an answer; the first thousand."""


class _CalmClient:
    """Each question over `/api` has a connection of its own, so that a full server is noticed; those over `/mcp` share a session."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.report = Report()
        self._client = client
        self._session = ""
        self._number = 0
        self._began = anyio.current_time()

    async def ask(self, way: str, tool: str, path: str, arguments: Mapping[str, Any]) -> None:
        """Ask one question, and note what became of it."""
        began = anyio.current_time()
        try:
            outcome, text = await (self._over_api(path, arguments) if way == "/api" else self._over_mcp(tool, arguments))
        except DEAD as error:
            self._session = ""
            outcome, text = "no answer", f"{type(error).__name__}: {error}"
        self.report.outcomes[outcome] += 1
        if outcome == "answered":
            self.report.answered[way].append((anyio.current_time() - began) * 1_000)
        elif len(self.report.refusals) < _MOST_REFUSALS:
            self.report.refusals.append((round(began - self._began, 1), way, f"{outcome}: {text[:300]}"))

    async def _over_api(self, path: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
        return _judged(await self._client.get(path, params=dict(arguments)))

    async def _over_mcp(self, tool: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
        while True:
            if not self._session:
                response = await self._client.post("/mcp", json=mcp_wire.initialize(), headers=mcp_wire.HEADERS)
                if response.status_code != 200:
                    return _judged(response)
                self._session = response.headers["mcp-session-id"]
            self._number += 1
            request = mcp_wire.call(tool, arguments, self._number)
            response = await self._client.post("/mcp", json=request, headers=mcp_wire.in_session(self._session))
            if response.status_code != 404:
                break
            self._session = ""
            self.report.outcomes["session was gone"] += 1
        if response.status_code != 200:
            return _judged(response)
        answer = mcp_wire.answer_of(response.text)
        if "result" in answer and not answer["result"].get("isError"):
            return "answered", ""
        return "busy" if BUSY.search(str(answer)) else "wrong", str(answer or response.text)


def _judged(response: httpx2.Response) -> tuple[str, str]:
    if response.status_code == 200:
        return "answered", ""
    text = f"{response.status_code}, Retry-After {response.headers.get('retry-after')}: {response.text}"
    return "busy" if response.status_code in (429, 503) and "retry-after" in response.headers else "wrong", text


async def _run(url: str, key: str, seconds: float, pause: float) -> Report:
    limits = httpx2.Limits(max_keepalive_connections=0)
    headers = {"X-API-Key": key}
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=_TIMEOUT_SECONDS, trust_env=False, limits=limits) as client:
        calm, number, until = _CalmClient(client), 0, anyio.current_time() + seconds
        while anyio.current_time() < until:
            await calm.ask(("/api", "/mcp")[number % 2], *_LIGHT[number // 2 % len(_LIGHT)])
            number += 1
            await anyio.sleep(pause)
    return calm.report


def main() -> None:
    """Ask, and print the report."""
    url, key, seconds, pause = sys.argv[1:]
    sys.stdout.write(json.dumps(vars(anyio.run(_run, url, key, float(seconds), float(pause)))))


if __name__ == "__main__":
    main()
