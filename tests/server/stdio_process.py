"""A process that serves a fake runtime over stdio; it tells on stderr when it enters and leaves it.

`beside SOCKET`: it trades for each byte that comes from the socket, and sends one for each call that was given up.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import ByteStream

from tests.server.fake import FakeRuntime, telling_given_up
from wadm_mcp.errors import WadmError
from wadm_mcp.server.server import build_server
from wadm_mcp.server.stdio import serve_stdio


class _TellingRuntime(FakeRuntime):
    async def __aenter__(self) -> Self:
        sys.stderr.write("entered\n")
        if "broken" in sys.argv:
            self.broken.set()
        return await super().__aenter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await anyio.sleep(0.05)  # a cancelled scope would not get past this
        sys.stderr.write("left\n")


async def _main() -> None:
    runtime = _TellingRuntime()
    server = build_server(runtime)
    if "beside" not in sys.argv:
        return await serve_stdio(server, runtime)
    async with await anyio.connect_unix(sys.argv[-1]) as test, anyio.create_task_group() as tasks:
        server.middleware.append(telling_given_up(lambda: tasks.start_soon(test.send, b".")))
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
