"""No request without the key does more than be refused, whatever its path, method and headers; nor does one that another site sends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from urllib.parse import unquote

import anyio
import pytest
from anyio import to_thread

from tests.abuse.fuzz import METHODS, PATHS
from tests.abuse.sockets import exchange_bytes, statuses
from tests.abuse.target import SPOT, Target, attacked, live
from tests.abuse.verdict import ABUSE, attack

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not ABUSE, reason="full size; run with WADM_ABUSE=1")]

KEY = "a-key-that-is-long-enough"
WRONG_KEYS = (
    b"",
    b"X-API-Key: \r\n",
    b"Authorization: Bearer " + KEY[:-1].encode() + b"\r\n",
    b"Authorization: Basic " + KEY.encode() + b"\r\n",
)
OPEN = ("/health", "/health/live")
OF_ANOTHER_SITE = {
    "img": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    "script": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
    "iframe": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    "fetch": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Origin": "https://evil.example"},
    "opaque": {"Origin": "null"},
    "rebound name": {"Host": "evil.example"},
}
"""Headers that a browser sends for a page of another site, by how the page asks."""


def is_open(path: str) -> bool:
    """Whether a request target names a route that needs no key."""
    return unquote(path.split("?")[0]).rstrip("/") in OPEN


def requests() -> Generator[tuple[str, bytes]]:
    """Each path with each method, and a wrong key of each kind in turn."""
    for wrong in WRONG_KEYS:
        for method in METHODS:
            for path in PATHS:
                yield path, f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n".encode() + wrong + b"\r\n"


async def answers(url: str, every: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes, Counter[int]]]:
    """The statuses that each request got. Many at once: a server may be slow to refuse a wrong key."""
    found: list[tuple[str, bytes, Counter[int]]] = []
    limit = anyio.CapacityLimiter(20)

    async def ask(path: str, raw: bytes) -> None:
        found.append((path, raw, statuses(await to_thread.run_sync(exchange_bytes, url, raw, limiter=limit))))

    async with anyio.create_task_group() as tasks:
        for path, raw in every:
            tasks.start_soon(ask, path, raw)
    return found


async def test_only_the_health_routes_answer_without_the_key(tmp_path: Path) -> None:
    every = list(requests())
    with (
        attack(f"{len(every):,} requests without a right key, {len(PATHS)} paths, {len(METHODS)} methods") as verdict,
        anyio.fail_after(120),
    ):
        async with attacked(tmp_path, {"API_KEY": KEY}) as (at, _):
            logged = at.log_bytes
            found: Counter[int] = Counter()
            wrong: list[str] = []
            for path, raw, answer in await answers(at.url, every):
                found += answer
                # 400: not a request at all. Slowed or limited is refused too.
                if not is_open(path) and set(answer) - {400, 401, 429}:
                    wrong.append(f"{raw.splitlines()[0].decode()}: {dict(answer)}")
            verdict.note("statuses", dict(sorted(found.items())))
            verdict.holds("answered otherwise than 401", len(wrong), not wrong, "only the health routes")
            verdict.at_most("log", (at.log_bytes - logged) / 1_000, 100, "kB")


async def test_a_page_of_another_site_gets_nothing_without_a_key(tmp_path: Path) -> None:
    with attack("requests that a browser sends for another site, no key set") as verdict, anyio.fail_after(60):
        async with attacked(tmp_path) as (at, _):
            await live(at, SPOT)
            answered = await _from_a_browser(at)
        verdict.holds("answered with data", ", ".join(answered) or "none", not answered)


async def _from_a_browser(at: Target) -> list[str]:
    """Ways in which a page of another site makes a browser ask, that got an answer."""
    path = "/api/footprint?symbol=BTCUSDT&window=1h"
    return [name for name, headers in OF_ANOTHER_SITE.items() if (await at.served.client.get(path, headers=headers)).status_code == 200]
