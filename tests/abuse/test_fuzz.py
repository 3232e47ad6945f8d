"""A million hostile requests, messages, arguments, frames, files and settings from a seed: no crash, no traceback, no secret."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Final

import anyio
import pytest
from anyio import to_thread

from tests.abuse import fuzz
from tests.abuse.inside import ask_questions, check_text, decode_frames, parse_command_lines, read_archives, read_environments
from tests.abuse.sockets import exchange_bytes, statuses
from tests.abuse.target import SPOT, Target, live, target
from tests.abuse.verdict import ABUSE, SEED, attack
from tests.end_to_end.process import run
from wadm_mcp.simulator.simulator import Simulator

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not ABUSE, reason="full size; run with WADM_ABUSE=1")]

SECRET: Final = "pl4nted-secret-9f2c"
"""Stands in settings, and no request has it: what is shown of it was not the caller's own."""
KEY: Final = "a-key-that-is-long-enough"
FRAMES, ARGUMENTS, FILES, ENVIRONMENTS, LINES = 650_000, 150_000, 20_000, 60_000, 20_000
"""Tried inside this process; with those below a million."""
REQUESTS, REQUESTS_A_CONNECTION, CONNECTIONS_AT_ONCE = 100_000, 20, 4
LONGEST = 120.0


async def test_what_is_read_inside_never_crashes(tmp_path: Path) -> None:
    with attack(f"fuzz of decoders, arguments, files, settings, seed {SEED}") as verdict, anyio.fail_after(600):
        faults = [
            *decode_frames(FRAMES, SEED),
            *await ask_questions(ARGUMENTS, SEED),
            *read_archives(FILES, SEED, tmp_path),
            *read_environments(ENVIRONMENTS, SEED, SECRET),
            *parse_command_lines(LINES, SEED),
        ]
        tried = FRAMES + ARGUMENTS + FILES + ENVIRONMENTS + LINES
        for one in faults[:10]:
            print(one)
        first = f"; first: {faults[0][:100]}" if faults else ""
        verdict.holds("crashes and shown secrets", f"{len(faults)} of {tried:,}{first}".replace("|", "/"), not faults)


async def test_a_server_answers_hostile_requests_and_shows_no_secret(tmp_path: Path) -> None:
    with attack(f"fuzz of HTTP and MCP, seed {SEED}") as verdict, anyio.fail_after(LONGEST + 60):
        async with Simulator(seed=SEED, instruments=["binance:spot:BTCUSDT", "bybit:spot:BTCUSDT"]) as simulator:
            planted = {
                "API_KEY": KEY,
                "REDIS_URL": f"redis://:{SECRET}@127.0.0.1:1/0",
                "WADM_BYBIT_WS": f"ws://user:{SECRET}@127.0.0.1:1",
            }
            refused = await to_thread.run_sync(lambda: run(tmp_path, "doctor", **planted, WADM_BYBIT_REST="http://127.0.0.1:1"))
            verdict.holds(
                "secret not shown by doctor", SECRET not in refused.stdout + refused.stderr, SECRET not in refused.stdout + refused.stderr
            )
            if refused.returncode == 2:
                # A base URL with a password is refused: then there is none to show.
                del planted["WADM_BYBIT_WS"]
            async with target(tmp_path, simulator, planted) as at:
                at.served.client.headers["X-API-Key"] = KEY
                await live(at, SPOT)
                await at.settle()
                async with at.watched():
                    found, shown = await _flood(at)
                total = found.total()
                verdict.note("requests answered, by status", dict(sorted(found.items())))
                verdict.holds("requests sent", f"{total:,}", at.alive, "alive to the end")
                verdict.holds("statuses of 500", found[500], not found[500])
                verdict.holds("tracebacks in the log", at.served.stderr.count("Traceback"), "Traceback" not in at.served.stderr)
                health = (await at.served.client.get("/health")).text
                everywhere = {
                    "answers": shown,
                    "log": SECRET in at.served.stderr or KEY in at.served.stderr,
                    "/health": SECRET in health or KEY in health,
                }
                where = ", ".join(name for name, is_shown in everywhere.items() if is_shown) or "nowhere"
                verdict.holds("secret shown", where, where == "nowhere", "nowhere")
                verdict.at_most("peak above rest", at.peak, 150, "MB")
                verdict.holds("exit status", status := await at.served.stop(), status == 0, "0")


async def _flood(at: Target) -> tuple[Counter[int], bool]:
    found: Counter[int] = Counter()
    shown = False

    async def one(number: int) -> None:
        nonlocal shown
        draw = random.Random(f"{SEED} {number}")
        for _ in range(REQUESTS // REQUESTS_A_CONNECTION // CONNECTIONS_AT_ONCE):
            raw = b"".join(fuzz.http_request(draw, KEY) for _ in range(REQUESTS_A_CONNECTION))
            # The last request asks the server to close, so that the end is not waited for.
            raw += b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
            answer = await to_thread.run_sync(lambda data=raw: exchange_bytes(at.url, data, within=0.3))
            found.update(statuses(answer))
            shown = shown or SECRET.encode() in answer
            check_text(answer)

    with anyio.move_on_after(LONGEST):
        async with anyio.create_task_group() as tasks:
            for number in range(CONNECTIONS_AT_ONCE):
                tasks.start_soon(one, number)
    return found, shown
