"""SIGTERM, SIGINT and SIGHUP, from the first instruction of the process to its last: each of them ends the process with status 0.

During start-up a signal ends the process at once. While a command runs, the signal is passed to the command. Afterwards it is ignored.
One handler replaces another directly, so that the system's default handler is never active in between.
This module imports nothing heavy, since it is loaded first.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Awaitable, Callable, Generator
from contextlib import closing, contextmanager, suppress
from types import FrameType
from typing import Final, NoReturn


def _stops() -> tuple[signal.Signals, ...]:
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return (signal.SIGINT, signal.SIGTERM)
    return (signal.SIGINT, signal.SIGTERM, hangup)


STOPS: Final = _stops()
"""The signals that stop the process. SIGHUP is one of them, unless the process was started with it ignored, as `nohup` does."""


def exit_on_signals() -> None:
    """Install handlers that end the process at once, while there is nothing to save yet."""
    for number in STOPS:
        signal.signal(number, _exit)


def ignore_signals() -> None:
    """Ignore the signals, because the process is about to end."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stop_signals() -> Generator[Callable[[], Awaitable[None]]]:
    """Yields a function that waits for the next signal. Must be entered on the event loop of the main thread.

    On exit the previous handlers return; where they would end the process at once, signals are ignored instead.
    """
    import anyio  # imported here, after the process has set its handlers

    receiver, sender = socket.socketpair()
    with closing(receiver), closing(sender):
        receiver.setblocking(False)
        sender.setblocking(False)

        def on_signal(number: int, frame: FrameType | None) -> None:
            with suppress(BlockingIOError):  # the buffer is full of earlier signals
                sender.send(b"!")

        async def next_signal() -> None:
            while True:
                await anyio.wait_readable(receiver)
                with suppress(BlockingIOError):
                    receiver.recv(1)
                    return

        before = {number: signal.signal(number, on_signal) for number in STOPS}
        try:
            yield next_signal
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if handler is _exit else handler)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(0)
