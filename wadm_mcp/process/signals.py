"""SIGTERM and SIGINT, from the first instruction of the process to its last: a stop is status 0 whenever it is asked for.

Before there is anything to save a signal ends the process at once, while something runs it is handed to whoever runs it, and after
that it is ignored. The handlers are swapped in one step each, so that at no moment the system's own would end the process.
Imports nothing heavy, because it comes before everything that is.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Awaitable, Callable, Generator
from contextlib import closing, contextmanager, suppress
from types import FrameType
from typing import Final, NoReturn

STOPS: Final = (signal.SIGINT, signal.SIGTERM)
"""The signals that ask to stop."""


def leave_on_signals() -> None:
    """From now on a signal ends the process at once: there is nothing to save yet."""
    for number in STOPS:
        signal.signal(number, _leave)


def ignore_signals() -> None:
    """From now on a signal changes nothing: the process is about to end anyway."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_signals() -> Generator[Callable[[], Awaitable[None]]]:
    """Gives what waits for the next signal. To be entered on the event loop of the main thread.

    Afterwards signals are ignored where they would have ended the process at once: what there was to save is saved.
    """
    import anyio  # loaded only here: the process has its handlers first

    told, tell = socket.socketpair()
    with closing(told), closing(tell):
        told.setblocking(False)
        tell.setblocking(False)

        def note(number: int, frame: FrameType | None) -> None:
            with suppress(BlockingIOError):  # many are waiting already
                tell.send(b"!")

        async def asked() -> None:
            while True:
                await anyio.wait_readable(told)
                with suppress(BlockingIOError):
                    told.recv(1)
                    return

        before = {number: signal.signal(number, note) for number in STOPS}
        try:
            yield asked
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if handler is _leave else handler)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(0)
