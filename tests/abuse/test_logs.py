"""What a client sends forges no line of the log, and does not fill it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import anyio
import pytest
from anyio import to_thread

from tests.abuse import mcp_wire
from tests.abuse.sockets import exchange_bytes
from tests.abuse.target import SPOT, attacked, live
from tests.abuse.verdict import ABUSE, attack

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not ABUSE, reason="full size; run with WADM_ABUSE=1")]

FORGED = "12:00:00 info recorder.begins data=/forged"
REQUESTS = 400


@pytest.mark.parametrize("kind", ["development", "production"])
async def test_no_line_is_forged_and_the_log_stays_small(tmp_path: Path, kind: str) -> None:
    with attack(f"log forging, {kind}") as verdict, anyio.fail_after(90):
        async with attacked(tmp_path, {"ENVIRONMENT": kind}) as (at, _):
            await live(at, SPOT)
            logged = at.log_bytes
            session = await mcp_wire.opened(at.served.client)
            for number in range(REQUESTS):
                await to_thread.run_sync(exchange_bytes, at.url, forging_request(number))
                if number % 4 == 0:
                    # What a tool, a prompt or a resource is called may be logged too.
                    name = f"get_trades\n{FORGED}\x1b[31m{'x' * 2_000}"
                    await mcp_wire.asked(at.served.client, session, name, {"symbol": name}, number + 2)
            lines = at.served.log.read_bytes()[logged:].decode("utf-8", "replace")
            forged = [line for line in lines.splitlines() if line.startswith(FORGED[:20]) or line.endswith(FORGED)]
            control = sorted({letter for letter in lines if not letter.isprintable() and letter != "\n"})
            longest = max((len(line) for line in lines.split("\n")), default=0)
            verdict.holds("forged lines", len(forged), not forged)
            verdict.holds("control characters", " ".join(map(ascii, control)) or "none", not control)
            verdict.at_most("log", len(lines) / 1_000, 100, "kB")
            verdict.at_most("longest line", longest, 2_000, "characters")


def forging_request(number: int) -> bytes:
    """A request whose headers would forge a line if they were logged as they are; every fourth is large."""
    # CR and LF alone are refused by the HTTP parser; these reach an application that decodes latin-1.
    forged = (f"a\x85{FORGED}", f"a\x1b[31m{FORGED}", f"a\t{FORGED}", "x" * 60_000)[number % 4].encode("latin-1")
    method = ("POST", "GET", "DELETE")[number % 3]
    body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}' if method == "POST" else b""
    forged_id, huge_id = f"%0d%0a{quote(FORGED)}%1b[31m", "y" * 50_000
    paths = ("/mcp", f"/messages/?session_id={forged_id}", f"/sse{forged_id}", f"/messages/?session_id={huge_id}")
    heads = [
        f"{method} {paths[number // 4 % 4]} HTTP/1.1".encode(),
        b"Host: 127.0.0.1",
        b"Connection: close",
        b"Accept: application/json, text/event-stream",
        b"Content-Type: application/json",
        b"Content-Length: " + str(len(body)).encode(),
        b"Mcp-Session-Id: " + forged,
        b"MCP-Protocol-Version: " + forged[:300],
        b"Last-Event-ID: " + forged[:300],
    ]
    return b"\r\n".join([*heads, b"", body])
