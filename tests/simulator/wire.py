"""Raw sockets for the simulator's tests; WADM's own clients and decoders are not used."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import msgspec
from websockets.asyncio.client import ClientConnection, connect

from wadm_mcp.simulator.simulator import Simulator

TIMEOUT_SECONDS = 5
NOW = 1_785_060_230_817
"""2026-07-26 10:03:50.817 UTC."""


def fast_clock(speed: int = 60, start: int = NOW) -> Callable[[], int]:
    """A market clock that runs `speed` times as fast as real time, from `start`."""
    began = time.monotonic()
    return lambda: start + int((time.monotonic() - began) * 1000 * speed)


@asynccontextmanager
async def opened(simulator: Simulator, setting: str, path: str) -> AsyncGenerator[ClientConnection]:
    """A WebSocket to one of the simulator's base URLs."""
    async with connect(simulator.urls[setting] + path, compression=None, ping_interval=None, close_timeout=1, max_size=None) as socket:
        yield socket


async def said(socket: ClientConnection) -> str:
    """The next frame's text."""
    with anyio.fail_after(TIMEOUT_SECONDS):
        text = await socket.recv()
    assert isinstance(text, str)
    return text


async def heard(socket: ClientConnection) -> Any:
    """The next frame, decoded; dictionaries keep the order of their keys."""
    return msgspec.json.decode(await said(socket))


async def heard_many(socket: ClientConnection, wanted: int) -> list[Any]:
    """The next frames, decoded."""
    with anyio.fail_after(12 * TIMEOUT_SECONDS):
        return [msgspec.json.decode(await socket.recv()) for _ in range(wanted)]


async def ask(socket: ClientConnection, request: object) -> Any:
    """Sends a request and returns the next frame."""
    await socket.send(msgspec.json.encode(request).decode())
    return await heard(socket)


async def get(simulator: Simulator, setting: str, path: str, **headers: str) -> httpx2.Response:
    """A REST reply."""
    # Certificates are not loaded, as that takes longer than a test over plain HTTP.
    async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
        with anyio.fail_after(TIMEOUT_SECONDS):
            return await client.get(simulator.urls[setting] + path, headers=headers)
