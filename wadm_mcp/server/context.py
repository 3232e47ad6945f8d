"""What MCP and HTTP need of the runtime that they serve, and the scope that keeps it running.

The SDK enters an MCP lifespan once per connection. `running` therefore enters the runtime, once per process, and the MCP lifespan only
hands it out.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Protocol

import anyio

from wadm_mcp.errors import WadmError
from wadm_mcp.health import Health
from wadm_mcp.model import Instrument
from wadm_mcp.queries.admission import Admission
from wadm_mcp.queries.view import View
from wadm_mcp.queries.watches import Watches
from wadm_mcp.settings import Settings
from wadm_mcp.storage.cached import CachedAnswers
from wadm_mcp.tracking import Tracking


class ServedRuntime(Protocol):
    """Interface of the runtime that the MCP server and the web app use. Enter it once per process; leaving it flushes data that is not
    durable yet."""

    @property
    def view(self) -> View: ...

    @property
    def health(self) -> Health: ...

    @property
    def answers(self) -> CachedAnswers: ...

    @property
    def admission(self) -> Admission: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def tracking(self) -> Tracking: ...

    @property
    def watches(self) -> Watches: ...

    @property
    def role(self) -> str:
        """`starting`, `recording`, or `standby` while another process records."""
        ...

    @property
    def followed(self) -> Sequence[Instrument]: ...

    async def __aenter__(self) -> Any: ...

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> Any: ...

    async def failed(self) -> WadmError:
        """Wait until the runtime cannot continue; returns the reason."""
        ...


@asynccontextmanager
async def running(runtime: ServedRuntime, publish: Callable[[], Coroutine[Any, Any, None]]) -> AsyncGenerator[None]:
    """Enter the runtime and run the loop that publishes resource updates. The outermost scope of a server uses this once."""
    async with runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(publish)
        yield
        tasks.cancel_scope.cancel()
