"""Plays random attacks of clients on a server, one or two at a time, with pauses. A process of its own, since an attack takes a processor.

    python -m tests.soak.attacker URL KEY SEED SECONDS WEEK

`WEEK` is the end (ms) of the stored week (tests/abuse/week.py) that costly questions are about, with all attacks in full size; 0 for small
sizes, and questions about what is being recorded. It ends after `SECONDS`, and prints one `Report` as JSON. Each attack is announced on
standard error. The seed decides the order of the attacks and what each sends.
"""

from __future__ import annotations

import json
import random
import resource
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import anyio
import httpx2
from anyio import to_thread

from tests.abuse import fuzz, mcp_wire
from tests.abuse.inside import check_text
from tests.abuse.sockets import Crowd, exchange_bytes, statuses
from tests.abuse.target import DEAD
from tests.abuse.test_costly_questions import over_api, over_mcp, questions
from tests.abuse.test_keys import OF_ANOTHER_SITE, answers, is_open, requests
from tests.abuse.test_logs import FORGED, forging_request
from tests.abuse.test_sessions import WAIT, uris
from tests.abuse.week import SYMBOL
from wadm_mcp.clock import now_ms

_LONGEST_SECONDS: Final = 40.0
"""An attack lasts a quarter of this, up to all of it. In a run that is too short for every kind, all are shorter."""
_ROUNDS: Final = 12
"""At least so many attacks, or pairs of them, in a run."""
_MOST_FAULTS: Final = 20
_LARGE: Final = "/api/trades?symbol=BTCUSDT&exchange=binance&window=15m&limit=1000"


@dataclass
class Report:
    """What happened."""

    attacks: list[tuple[str, float, float, Mapping[str, int]]] = field(default_factory=list)
    """Kind, seconds after the start, duration in seconds, and how often the server did what."""
    faults: list[str] = field(default_factory=list)
    """What no server may do: an error of its own, text from its inside, an answer without the key. The first few."""

    def fault(self, text: str) -> None:
        if len(self.faults) < _MOST_FAULTS:
            self.faults.append(text)


@dataclass(frozen=True)
class Site:
    """The attacked server, and a client that has its key."""

    url: str
    key: str
    week: int
    client: httpx2.AsyncClient
    report: Report

    def many(self, full: int, small: int) -> int:
        return full if self.week else small

    async def send(self, raw: bytes, seen: Counter[str], *, within: float) -> Counter[int]:
        """Send bytes, and judge what comes back: its statuses."""
        answer = await to_thread.run_sync(partial(exchange_bytes, self.url, raw, within=within))
        found = statuses(answer)
        seen.update(str(status) for status in found.elements())
        if found[500]:
            self.report.fault(f"500 to {raw[:2_000]!r}")
        try:
            check_text(answer)
        except AssertionError as error:
            self.report.fault(str(error))
        return found


async def _repeat(seen: Counter[str], step: Callable[[], Awaitable[None]], at_once: int = 1) -> None:
    """Do something over and over, several times at once, until cancelled. The server may refuse it or end the connection."""

    async def one() -> None:
        while True:
            try:
                await step()
            except DEAD as error:
                seen[type(error).__name__] += 1
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        for _ in range(at_once):
            tasks.start_soon(one)


async def _hold(crowd: Crowd, seen: Counter[str]) -> None:
    try:
        await crowd.hold()
    finally:
        seen["opened"], seen["closed by the server"] = crowd.opened, crowd.closed


async def silent_connections(site: Site, draw: random.Random, seen: Counter[str]) -> None:
    """More connections than the server has places, idle or half sent."""
    await _hold(Crowd(site.url, site.many(1_500, 100)), seen)


async def slow_readers(site: Site, draw: random.Random, seen: Counter[str]) -> None:
    """Connections that ask for large answers without end, and read 8 kB a second of them."""
    request = f"GET {_LARGE} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {site.key}\r\n\r\n".encode()
    await _hold(Crowd(site.url, site.many(100, 10), [request * 30]), seen)


async def costly_questions(site: Site, draw: random.Random, seen: Counter[str]) -> None:
    """Questions of seven days, many at once, half of them over MCP, each in a session that nobody ends."""
    every = questions(site.week, SYMBOL) if site.week else questions(now_ms(), "BTCUSDT")

    async def ask() -> None:
        tool, arguments = draw.choice(every)
        if draw.random() < 0.5:
            seen[await over_api(site.client, tool, arguments)] += 1
        else:
            seen[await over_mcp(site.client, await mcp_wire.opened(site.client), 1, tool, arguments)] += 1

    await _repeat(seen, ask, site.many(50, 10))


async def abandoned_sessions(site: Site, draw: random.Random, seen: Counter[str]) -> None:
    """Sessions that are opened and left."""

    async def leave() -> None:
        response = await site.client.post("/mcp", json=mcp_wire.initialize(), headers=mcp_wire.HEADERS)
        seen[str(response.status_code)] += 1

    await _repeat(seen, leave, 2)


async def waits(site: Site, draw: random.Random, seen: Counter[str]) -> None:
    """Waits whose answers nobody reads: the client leaves after the head, and the call goes on so that it can be resumed."""

    async def wait() -> None:
        session = await mcp_wire.opened(site.client)
        for number in range(40):
            request = mcp_wire.call("wait_for", WAIT, number + 2)
            async with site.client.stream("POST", "/mcp", json=request, headers=mcp_wire.in_session(session)) as response:
                seen[str(response.status_code)] += 1

    await _repeat(seen, wait, site.many(10, 2))


async def subscriptions(site: Site, draw: random.Random, seen: Counter[str]) -> None:
    """Subscriptions to resources that exist and that do not, with listening streams that nobody reads."""
    listeners: list[Crowd] = []

    async def subscribe() -> None:
        session = await mcp_wire.opened(site.client)
        heads = {"Host": "127.0.0.1", "X-API-Key": site.key, **mcp_wire.in_session(session), "Accept": "text/event-stream"}
        lines = ["GET /mcp HTTP/1.1", *(f"{name}: {value}" for name, value in heads.items()), "", ""]
        listeners.append(Crowd(site.url, 1, ["\r\n".join(lines).encode()]))
        await listeners[-1].filled()
        for number, uri in enumerate(uris(100)):
            body = mcp_wire.message("resources/subscribe", {"uri": uri}, number + 2)
            response = await site.client.post("/mcp", json=body, headers=mcp_wire.in_session(session))
            refused = response.status_code != 200 or "result" not in mcp_wire.answer_of(response.text)
            exists = number % 2 == 1
            seen[f"{'refused' if refused else 'accepted'}, {'existing' if exists else 'not existing'}"] += 1
            if not refused and not exists:
                site.report.fault(f"a subscription to {uri} was accepted")

    try:
        await _repeat(seen, subscribe, 2)
    finally:
        for one in listeners:
            one.close()


async def prompts(site: Site, draw: random.Random, seen: Counter[str]) -> None:
    """Prompts with arguments of 100 kB."""

    async def prompt() -> None:
        session = await mcp_wire.opened(site.client)
        for number, huge in enumerate(("symbol", "window", "exchange", "market", "language")):
            arguments = {"symbol": "BTCUSDT", huge: "x\x1b" * 50_000}
            body = mcp_wire.message("prompts/get", {"name": "waickoff_report", "arguments": arguments}, number + 2)
            response = await site.client.post("/mcp", json=body, headers=mcp_wire.in_session(session))
            seen[str(response.status_code)] += 1
            if len(response.content) > 50_000:
                site.report.fault(f"a prompt answered with {len(response.content):,} bytes")

    await _repeat(seen, prompt, 2)


async def wrong_keys(site: Site, draw: random.Random, seen: Counter[str]) -> None:
    """Requests without a key or with a wrong one, over all paths and methods."""
    every = list(requests())

    async def guess() -> None:
        for path, raw, answer in await answers(site.url, draw.sample(every, 20)):
            seen.update(str(status) for status in answer.elements())
            # 503: busy, before any key is looked at.
            if not is_open(path) and set(answer) - {400, 401, 429, 503}:
                site.report.fault(f"{dict(answer)} without a right key to {raw!r}")

    await _repeat(seen, guess)


async def hostile_requests(site: Site, draw: random.Random, seen: Counter[str]) -> None:
    """Requests of HTTP and messages of MCP with something wrong in them, half of them with the key."""

    async def send() -> None:
        raw = b"".join(fuzz.http_request(draw, site.key) for _ in range(20))
        # The last request asks the server to close, so that the end is not waited for.
        await site.send(raw + b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", seen, within=0.3)

    await _repeat(seen, send, site.many(4, 2))


async def huge_requests(site: Site, draw: random.Random, seen: Counter[str]) -> None:
    """Lines, headers and bodies of megabytes, and heads of thousands of lines."""
    head = f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nX-API-Key: {site.key}\r\n".encode()
    size = site.many(6_000_000, 500_000)
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: b"GET /" + b"a" * size + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        lambda: head + b"X-Long: " + b"a" * size + b"\r\n\r\n",
        lambda: head + b"X: y\r\n" * (size // 6) + b"\r\n",
        lambda: head + b"Content-Length: %d\r\n\r\n" % size + b"[" * size,
        lambda: head + b'Content-Length: %d\r\n\r\n"' % (3 << 20) + b"x" * ((3 << 20) - 2) + b'"',
        lambda: head + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b"a" * 65_536 + b"\r\n") * (size // 65_536) + b"0\r\n\r\n",
    )

    async def send() -> None:
        await site.send(draw.choice(kinds)(), seen, within=1.0)

    await _repeat(seen, send, 2)


async def pages_of_other_sites(site: Site, draw: random.Random, seen: Counter[str]) -> None:
    """Requests that a browser sends for another site's page; with the key, so that nothing else refuses them."""

    async def load() -> None:
        name, headers = draw.choice(list(OF_ANOTHER_SITE.items()))
        response = await site.client.get(_LARGE, headers=headers)
        seen[str(response.status_code)] += 1
        if response.status_code == 200:
            site.report.fault(f"a page of another site got an answer ({name})")

    await _repeat(seen, load, 2)


async def log_floods(site: Site, draw: random.Random, seen: Counter[str]) -> None:
    """Headers, session ids and names that would forge lines of the log, or fill it."""
    number = 0

    async def send() -> None:
        nonlocal number
        number += 1
        with_key = f"\r\nX-API-Key: {site.key}\r\nConnection: close\r\n".encode()
        await site.send(forging_request(number).replace(b"\r\nConnection: close\r\n", with_key), seen, within=1.0)
        if number % 4 == 0:
            name = f"get_trades\n{FORGED}\x1b[31m{'x' * 2_000}"
            session = await mcp_wire.opened(site.client)
            await mcp_wire.asked(site.client, session, name, {"symbol": name}, number)
            await mcp_wire.ended(site.client, session)

    await _repeat(seen, send, 2)


ATTACKS: Final = (
    silent_connections,
    slow_readers,
    costly_questions,
    abandoned_sessions,
    waits,
    subscriptions,
    prompts,
    wrong_keys,
    hostile_requests,
    huge_requests,
    pages_of_other_sites,
    log_floods,
)


async def play(site: Site, seed: str, seconds: float) -> None:
    """Attack for `seconds`. Every kind is played once, in random order, before one is played again."""
    draw, began = random.Random(seed), anyio.current_time()
    longest, number = min(_LONGEST_SECONDS, seconds / _ROUNDS), 0
    remaining: list[Callable[[Site, random.Random, Counter[str]], Awaitable[None]]] = []

    async def one(attack: Callable[[Site, random.Random, Counter[str]], Awaitable[None]], lasts: float, number: int) -> None:
        seen, at = Counter[str](), anyio.current_time()
        with anyio.move_on_after(lasts):
            await attack(site, random.Random(f"{seed} {number}"), seen)
        site.report.attacks.append((attack.__name__, at - began, anyio.current_time() - at, seen))

    while (left := seconds - (anyio.current_time() - began)) > 0:
        lasts = min(draw.uniform(0.25, 1) * longest, left)
        async with anyio.create_task_group() as tasks:
            for _ in range(draw.choice((1, 2))):
                if not remaining:
                    remaining = draw.sample(ATTACKS, len(ATTACKS))
                attack, number = remaining.pop(), number + 1
                sys.stderr.write(f"{seconds - left:6.1f} s: {attack.__name__}, {lasts:.1f} s\n")
                tasks.start_soon(one, attack, lasts, number)
        await anyio.sleep(draw.uniform(0.05, 0.25) * longest)


async def _run(url: str, key: str, seed: str, seconds: float, week: int) -> Report:
    report, headers = Report(), {"X-API-Key": key}
    limits = httpx2.Limits(max_connections=None, keepalive_expiry=2.0)
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=20, trust_env=False, limits=limits) as client:
        await play(Site(url, key, week, client, report), seed, seconds)
    return report


def main() -> None:
    """Attack, and print the report."""
    url, key, seed, seconds, week = sys.argv[1:]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    report = anyio.run(_run, url, key, seed, float(seconds), int(week))
    sys.stdout.write(json.dumps(vars(report)))


if __name__ == "__main__":
    main()
