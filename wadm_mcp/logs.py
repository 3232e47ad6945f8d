"""Log lines are events with fields, not prose: `instrument.live instrument=binance:spot:BTCUSDT`. They go to stderr, never to stdout."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

_FIELDS: Final = "wadm_fields"


class EventLog:
    """Writes events with fields through the standard `logging`."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, **fields: object) -> None:
        """A detail for developers."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """An event of normal operation."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """A failure that the program handles."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, *, exc_info: BaseException | None = None, **fields: object) -> None:
        """A failure that should not happen, such as a bug."""
        self._log(logging.ERROR, event, fields, exc_info)

    def _log(self, level: int, event: str, fields: dict[str, object], exc_info: BaseException | None = None) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={_FIELDS: fields}, exc_info=exc_info)


log: Final = EventLog(logging.getLogger("wadm"))


class RateLimitedWarning:
    """A warning for an event that may be frequent: the first is logged at once, then at most one every `every` seconds.

    The field `count` of a line counts its own event and those since the previous line.
    """

    def __init__(self, event: str, monotonic: Callable[[], float] = time.monotonic, every: float = 60.0) -> None:
        self._event = event
        self._monotonic = monotonic
        self._every = every
        self._logged_at: float | None = None
        self._count = 0

    def __call__(self, **fields: object) -> None:
        """Count one event, and log it where it is due."""
        self._count += 1
        now = self._monotonic()
        if self._logged_at is None or now - self._logged_at >= self._every:
            log.warning(self._event, **fields, count=self._count)
            self._logged_at, self._count = now, 0


class PlainFormatter(logging.Formatter):
    """`10:31:07 info instrument.live instrument=binance:spot:BTCUSDT`."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        fields = "".join(f" {name}={_shown(value)}" for name, value in _fields(record).items())
        line = f"{time} {record.levelname.lower()} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, event, then the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        entry |= {name: value if isinstance(value, int | float | bool) else str(value) for name, value in _fields(record).items()}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class _Handler(logging.StreamHandler[Any]):
    """Writes to stderr; a status line on the terminal is cleared first."""

    clears_line = False

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return f"\r\x1b[K{line}" if self.clears_line else line

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class's name
        """Ignore a stderr that cannot be written (closed, full, gone): there is nowhere to report it."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def clear_line_first(clears: bool) -> None:
    """Set whether the terminal shows a status line, which each log line must clear first."""
    _Handler.clears_line = clears


def configure_logs(*, production: bool, level: int = logging.INFO) -> None:
    """Send all loggers' lines to stderr: WADM's own from `level` up, those of libraries from warnings up."""
    handler = _Handler(sys.stderr)
    handler.setFormatter(JsonFormatter() if production else PlainFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("wadm").setLevel(level)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return getattr(record, _FIELDS, {})


def _shown(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if " " in text or not text.isprintable() else text
