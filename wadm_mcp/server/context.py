"""What the faces need of the process they speak for, and how the outermost scope keeps it alive.

The SDK enters an MCP lifespan once per connection. The runtime is therefore entered by `running` alone, once per process;
the MCP lifespan only hands it out.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Protocol

import anyio
from mcp.server.subscriptions import InMemorySubscriptionBus

from wadm_mcp.errors import WadmError
from wadm_mcp.health import Health
from wadm_mcp.model import Instrument
from wadm_mcp.queries.view import View
from wadm_mcp.settings import Settings
from wadm_mcp.storage.cached import CachedAnswers
from wadm_mcp.tracking import Tracking


class Runtime(Protocol):
    """What lives as long as the process. Entered exactly once; leaving it flushes what is not durable yet."""

    @property
    def view(self) -> View: ...

    @property
    def health(self) -> Health: ...

    @property
    def answers(self) -> CachedAnswers: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def tracking(self) -> Tracking: ...

    @property
    def bus(self) -> InMemorySubscriptionBus: ...

    @property
    def role(self) -> str:
        """`recording`, or `standby` while another process records."""
        ...

    @property
    def followed(self) -> Sequence[Instrument]: ...

    async def __aenter__(self) -> Any: ...

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> Any: ...

    async def failed(self) -> WadmError:
        """Waits until the runtime cannot go on, and says why."""
        ...


@asynccontextmanager
async def running(runtime: Runtime, publish: Callable[[], Coroutine[Any, Any, None]]) -> AsyncGenerator[None]:
    """The runtime, and beside it the loop that publishes resource updates. For the outermost scope."""
    async with runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(publish)
        yield
        tasks.cancel_scope.cancel()


@contextmanager
def one_error() -> Generator[None]:
    """Task groups wrap what leaves them. A lone error comes out as itself, so that a `WadmError` reaches whoever prints it."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None
