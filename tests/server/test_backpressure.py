from __future__ import annotations

import anyio
import pytest
from mcp.shared._context_streams import create_context_streams
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCNotification

from wadm_mcp.server.backpressure import CountedWrites, PacedReads

pytestmark = pytest.mark.anyio

_MESSAGE = SessionMessage(JSONRPCNotification(jsonrpc="2.0", method="notifications/test"))


async def test_no_more_is_read_from_a_client_that_does_not_read() -> None:
    into, read = create_context_streams[SessionMessage | Exception](100)
    write, written = create_context_streams[SessionMessage](0)
    writes = CountedWrites(write)
    reads = PacedReads(read, writes)
    with anyio.fail_after(5):
        for _ in range(3):
            await into.send(_MESSAGE)
        async with anyio.create_task_group() as tasks:
            for _ in range(31):
                tasks.start_soon(writes.send, _MESSAGE)
            await anyio.wait_all_tasks_blocked()
            assert await reads.receive() is _MESSAGE
            assert reads.last_context is not None
            tasks.start_soon(writes.send, _MESSAGE)
            await anyio.wait_all_tasks_blocked()
            with anyio.move_on_after(0) as paused:
                await reads.receive()
            assert paused.cancelled_caught
            await written.receive()
            assert await reads.receive() is _MESSAGE
            tasks.cancel_scope.cancel()
        # Those that gave up wait no more.
        assert await reads.receive() is _MESSAGE
        await into.aclose()
        assert [item async for item in reads] == []
        await reads.aclose()
        await writes.aclose()
        await written.aclose()
