"""Standard input, output or error closed, full or gone: one line where there is a stderr, the right status, and never a traceback."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from pathlib import Path

import anyio
import httpx2
import pytest
from anyio import to_thread

from tests.end_to_end.process import COMMAND, ended, environment, free_port, started, until
from wadm_mcp.simulator.simulator import Simulator

PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'
CLOSED = "is closed. wadm-mcp speaks MCP on stdin and stdout, for a client to launch. In a terminal, use: wadm-mcp serve"


def in_shell(line: str) -> list[str]:
    """`wadm-mcp LINE` as a shell starts it, with redirections."""
    return ["sh", "-c", f"exec {shlex.join(COMMAND)} {line}"]


def shell(folder: Path, line: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end; its standard input never ends."""
    env = environment(folder, **{"WADM_PORT": str(free_port()), **settings})
    unended, writer = os.pipe()
    try:
        return subprocess.run(
            in_shell(line),
            env=env,
            cwd=folder,
            stdin=unended,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    finally:
        os.close(unended)
        os.close(writer)


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("--demo <&-", 1, f"wadm-mcp: standard input {CLOSED}\n"),
        ("--demo >&-", 1, f"wadm-mcp: standard output {CLOSED}\n"),
        ("--demo <&- >&- 2>&-", 1, ""),
        ("--demo <&- 2>/dev/full", 1, ""),
        ("--version >/dev/full", 1, "wadm-mcp: standard output cannot be written (No space left on device)\n"),
        ("--help >/dev/full 2>&-", 1, ""),
        ("--version 2>&-", 0, ""),
        ("sevre 2>&-", 2, ""),
        ("sevre 2>/dev/full", 2, ""),
    ],
)
def test_an_unusable_stream_is_reported_on_stderr_where_that_is_open(tmp_path: Path, line: str, status: int, said: str) -> None:
    ended = shell(tmp_path, line)
    assert (ended.returncode, ended.stderr) == (status, said)


@pytest.mark.anyio
async def test_an_unwritable_stdout_ends_stdio_with_one_error(tmp_path: Path) -> None:
    async with started(tmp_path, command=in_shell("--demo >/dev/full")) as process:
        assert process.stdin is not None
        await process.stdin.send(PING)
        with anyio.fail_after(20):
            status = await process.wait()
        _, said = await ended(process)
    errors = [line for line in said.splitlines() if line.startswith("wadm-mcp: ")]
    assert errors == ["wadm-mcp: standard output cannot be written (No space left on device), and MCP needs it"]
    assert status == 1
    assert "Traceback" not in said


@pytest.mark.anyio
@pytest.mark.parametrize("gone", ["2>&-", "2>/dev/full"])
async def test_stdio_answers_without_anyone_to_read_its_log(tmp_path: Path, gone: str) -> None:
    async with started(tmp_path, command=in_shell(f"--demo {gone}")) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send(PING)
        with anyio.fail_after(20):
            assert b'"id":1' in await process.stdout.receive()
        await process.stdin.aclose()
        assert await ended(process) == (0, "")


@pytest.mark.anyio
@pytest.mark.parametrize(("output", "why"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")])
async def test_doctor_without_an_output_says_so_and_ends_with_status_1(tmp_path: Path, output: str, why: str) -> None:
    async with Simulator() as simulator:
        urls = {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}
        ended = await to_thread.run_sync(lambda: shell(tmp_path, f"doctor {output}", WADM_EXCHANGES="binance", **urls))
    assert ended.stderr == f"wadm-mcp: standard output cannot be written ({why})\n"
    assert ended.returncode == 1


@pytest.mark.anyio
@pytest.mark.parametrize("output", ["<&- >/dev/full", "<&- >&-", "<&- >&- 2>&-"])
async def test_serve_needs_no_standard_stream(tmp_path: Path, output: str) -> None:
    port = free_port()
    async with (
        started(tmp_path, command=in_shell(f"serve --demo {output}"), WADM_PORT=str(port)) as process,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):

        async def up() -> bool:
            try:
                return (await client.get("/health/live")).status_code == 200
            except httpx2.TransportError:
                return False

        await until(up)
        before = ""
        if "2>&-" not in output:
            assert process.stderr is not None
            with anyio.fail_after(20):
                while "stdout.unwritable" not in before:
                    before += (await process.stderr.receive()).decode()
        process.send_signal(signal.SIGTERM)
        status, after = await ended(process)
    assert status == 0
    assert "Traceback" not in before + after
    assert (before + after).count("stdout.unwritable") == (0 if "2>&-" in output else 1)
