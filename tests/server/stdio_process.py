"""A process that serves a fake runtime over stdio; it tells on stderr when it enters and leaves it. `trading`: the market goes on."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

import anyio

from tests.server.fake import FakeRuntime
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
    if "trading" not in sys.argv:
        return await serve_stdio(build_server(runtime), runtime)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_trading, runtime)
        await serve_stdio(build_server(runtime), runtime)
        tasks.cancel_scope.cancel()
    return None


async def _trading(runtime: FakeRuntime) -> None:
    """A trade now and then, at a time after all that tests ask about."""
    while True:
        await anyio.sleep(0.3)
        runtime.trade(at=runtime.clock() - 1)


if __name__ == "__main__":
    try:
        anyio.run(_main)
    except WadmError as failure:
        sys.stderr.write(f"{failure}\n")
        sys.exit(1)
