"""A process that serves a fake runtime over stdio and writes to stderr when it enters and leaves it.

With `beside SOCKET` it makes a trade for each byte from the socket, and sends a byte for each call that was cancelled.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import ByteStream

from tests.server.fake import FakeRuntime, reporting_cancellations
from wadm_mcp.errors import WadmError
from wadm_mcp.server.server import build_server
from wadm_mcp.server.stdio import serve_stdio


class _ReportingRuntime(FakeRuntime):
    async def __aenter__(self) -> Self:
        sys.stderr.write("entered\n")
        if "broken" in sys.argv:
            self.broken.set()
        return await super().__aenter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await anyio.sleep(0.05)  # a cancelled scope would end here
        sys.stderr.write("left\n")


async def _main() -> None:
    runtime = _ReportingRuntime()
    server = build_server(runtime)
    if "beside" not in sys.argv:
        return await serve_stdio(server, runtime)
    async with await anyio.connect_unix(sys.argv[-1]) as test, anyio.create_task_group() as tasks:
        server.middleware.append(reporting_cancellations(lambda: tasks.start_soon(test.send, b".")))
        tasks.start_soon(_trade, runtime, test)
        await serve_stdio(server, runtime)
        tasks.cancel_scope.cancel()
    return None


async def _trade(runtime: FakeRuntime, test: ByteStream) -> None:
    async for _ in test:
        runtime.trade()


if __name__ == "__main__":
    try:
        anyio.run(_main)
    except WadmError as failure:
        sys.stderr.write(f"{failure}\n")
        sys.exit(1)
