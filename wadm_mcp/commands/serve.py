"""Serving a runtime: over HTTP for `wadm-mcp serve` and `wadm-mcp replay`, over stdin and stdout without a command."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import anyio

from wadm_mcp.commands.status import show_status, welcome
from wadm_mcp.errors import WadmError
from wadm_mcp.logs import log
from wadm_mcp.process.descriptors import raise_descriptor_limit
from wadm_mcp.process.standard_streams import print_lines, print_stderr
from wadm_mcp.runtime import Runtime
from wadm_mcp.server.server import build_server
from wadm_mcp.server.stdio import serve_stdio
from wadm_mcp.web.app import build_app
from wadm_mcp.web.serve import serve_http

if TYPE_CHECKING:
    from wadm_mcp.simulator.feed import ReplayFeed

_STDIO_HINT: Final = "wadm-mcp speaks MCP on stdin and stdout, for a client to launch. In a terminal, use: wadm-mcp serve"


def check_stdio() -> None:
    """Check that MCP can be spoken over stdin and stdout. `WadmError` where one of them is closed; on a terminal a hint goes to stderr."""
    if sys.stdin is None or sys.stdout is None:
        closed = "input" if sys.stdin is None else "output"
        raise WadmError(f"standard {closed} is closed. {_STDIO_HINT}")
    if sys.stdin.isatty():
        print_stderr(_STDIO_HINT)


async def serve_client(runtime: Runtime) -> None:
    """Serve the client that launched this process, over stdin and stdout, until it leaves or a signal arrives."""
    await serve_stdio(build_server(runtime), runtime)


async def serve(runtime: Runtime, replay: ReplayFeed | None) -> None:
    """Serve over HTTP until a signal arrives; prints where to connect and keeps the status line."""
    raise_descriptor_limit()
    server = build_server(runtime)
    async with anyio.create_task_group() as tasks:

        def on_started(url: str) -> None:
            try:
                print_lines(welcome(url, runtime.settings))
            except WadmError as error:
                log.warning("stdout.unwritable", error=error, serving=url)
            tasks.start_soon(show_status, runtime, replay)

        await serve_http(build_app(server, runtime), runtime.settings, on_started=on_started)
        tasks.cancel_scope.cancel()
