"""A WADM process as a user starts it, with its own port and data folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

COMMAND = [sys.executable, "-W", "error::RuntimeWarning", "-m", "wadm_mcp"]
START_WITHIN = 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """An environment without the tester's own settings of WADM."""
    ours = ("WADM_", "API_KEY", "MONGODB_URL", "REDIS_URL", "ENVIRONMENT")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "WADM_DATA_DIR": str(folder), "WADM_HISTORY_HOURS": "0", **settings}


class Served:
    """A process that serves HTTP."""

    def __init__(self, process: Process, url: str, log: Path, client: httpx2.AsyncClient, settings: Mapping[str, str]) -> None:
        self.settings = settings
        self.process = process
        self.url = url
        self.log = log
        self.client = client

    async def get(self, path: str, **params: Any) -> Any:
        response = await self.client.get(path, params={name: str(value) for name, value in params.items()})
        response.raise_for_status()
        return response.json()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop; its exit status."""
        self.process.send_signal(number)
        with anyio.fail_after(5):
            return await self.process.wait()

    @property
    def stderr(self) -> str:
        return self.log.read_text()


@asynccontextmanager
async def serving(
    folder: Path, *arguments: str, settings: Mapping[str, str] | None = None, name: str = "log", command: Sequence[str] = COMMAND
) -> AsyncGenerator[Served]:
    """`wadm-mcp ARGUMENTS`, up and answering; killed at the end if it still runs."""
    port = free_port()
    log = folder.parent / f"{folder.name}-{name}.txt"
    env = environment(folder, WADM_PORT=str(port), **(settings or {}))
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as stderr:
        async with await anyio.open_process(
            [*command, *arguments], env=env, stdout=subprocess.PIPE, stderr=stderr, cwd=folder.parent
        ) as process:
            assert process.stdout is not None
            try:
                with anyio.fail_after(START_WITHIN):
                    output = ""
                    async for text in TextReceiveStream(process.stdout):
                        output += text
                        if "try" in output:
                            break
                    assert url in output, f"it did not start: {log.read_text()}"
                # Idle connections are closed before the server closes them (after 5 s), or a request may meet a closing one.
                limits = httpx2.Limits(keepalive_expiry=2.0)
                async with httpx2.AsyncClient(base_url=url, timeout=20, trust_env=False, limits=limits) as client:
                    yield Served(process, url, log, client, settings or {})
            finally:
                if process.returncode is None:
                    process.kill()


@asynccontextmanager
async def started(folder: Path, *arguments: str, command: Sequence[str] = COMMAND, **settings: str) -> AsyncGenerator[Process]:
    """A command just begun, all three standard files of which are pipes; killed at the end if it still runs."""
    env = environment(folder, **{"WADM_PORT": str(free_port()), **settings})
    async with await anyio.open_process([*command, *arguments], env=env, cwd=folder, stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()


async def ended(process: Process) -> tuple[int, str]:
    """Exit status and the rest of stderr of a process that has three seconds to end."""
    assert process.stderr is not None
    with anyio.fail_after(3):
        stderr = b"".join([part async for part in process.stderr])
        return await process.wait(), stderr.decode()


def run(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    env = environment(folder, **{"WADM_PORT": str(free_port()), **settings})
    return subprocess.run(
        [*COMMAND, *arguments], env=env, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
    )


async def until(condition: Any, *, within: float = 30, every: float = 0.1) -> Any:
    """Poll `condition` until its result is true, and return that: another process sends no event."""
    with anyio.fail_after(within):
        while not (value := await condition()):
            await anyio.sleep(every)
        return value


def resident(served: Served) -> int:
    """Resident memory in bytes."""
    return int(Path(f"/proc/{served.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
