"""The command line: `wadm-mcp`, `serve`, `replay`, `doctor`, `audit`, `import`. Parses arguments, reads settings and runs the command.

Exit status: 0 after a signal or the end of input, 1 on failure, 2 on a bad setting or argument. Only MCP and the commands' own tables go
to stdout.

Settings and command modules are imported late, so that --version, --help and an invalid argument or setting are answered without the one
second that importing everything takes.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from wadm_mcp import __version__
from wadm_mcp.errors import WadmError
from wadm_mcp.exchanges.registry import exchange_names, exchange_titles
from wadm_mcp.logs import configure_logs, log
from wadm_mcp.model import MARKETS
from wadm_mcp.process.memory import share_heap
from wadm_mcp.process.signals import ignore_signals
from wadm_mcp.process.standard_streams import flush, print_stderr
from wadm_mcp.texts import printable

if TYPE_CHECKING:
    from wadm_mcp.settings import Settings

_MAX_ERROR_CHARS: Final = 300


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"wadm-mcp: {printable(message, _MAX_ERROR_CHARS)}. Try {self.prog} --help\n")


def tune_garbage_collector() -> None:
    """Search for reference cycles less often. A footprint is thousands of small lists without cycles: with the interpreter's own
    threshold of 700 objects, merging footprints takes two and a half times as long."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def tune_threads() -> None:
    """Let the event loop interrupt a computing thread after half a millisecond. With the interpreter's own five, each step of a cheap
    question waits so long beside costly ones, and it has dozens of steps."""
    sys.setswitchinterval(0.0005)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its status. An error that the user can fix is one line on stderr."""
    tune_garbage_collector()
    tune_threads()
    share_heap()
    try:
        try:
            status = _run(_arguments(argv))
        except SystemExit as exited:  # raised by argparse: --help, --version, a wrong argument
            status = exited.code
        ignore_signals()
        flush()
    except WadmError as error:
        print_stderr(f"wadm-mcp: {printable(error)}")
        status = error.status
    ignore_signals()
    logging.shutdown()
    sys.exit(status)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.demo and arguments.command in ("replay", "doctor"):
        parser.error(f"--demo cannot be used with {arguments.command}; use it with wadm-mcp, serve, audit or import")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="wadm-mcp",
        description=f"Records public trades on {exchange_titles()} and answers over MCP. Without a command it speaks MCP over stdio.",
    )
    parser.add_argument("--version", action="version", version=f"wadm-mcp {__version__}")
    parser.add_argument("--demo", action="store_true", help="record simulated exchanges on this machine; no network is needed")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    serve = commands.add_parser("serve", help="serve MCP over HTTP and SSE, /health and /api on one port")
    serve.add_argument("--demo", action="store_true", default=argparse.SUPPRESS, help="record simulated exchanges")
    replay = commands.add_parser("replay", help="serve, fed by recorded Binance frames")
    replay.add_argument("files", nargs="+", type=Path, metavar="FILE", help="lines of <receive time> <raw frame>, gzipped or not")
    replay.add_argument("--speed", type=_speed, default=1.0, help="times faster than recorded; 0: as fast as possible (default 1)")
    commands.add_parser("doctor", help="check settings, store and exchanges")
    audit = commands.add_parser("audit", help="compare stored figures with the exchanges' candles and with the stored trades")
    audit.add_argument("--demo", action="store_true", default=argparse.SUPPRESS, help="audit what the demo recorded")
    audit.add_argument("--exchange", choices=exchange_names(), help="default: every one")
    audit.add_argument("--market", choices=MARKETS, help="default: every one")
    audit.add_argument("--symbol", help="default: every one")
    audit.add_argument("--from", dest="start", metavar="TIME", help="ISO 8601 or epoch (default: 24 hours before --to)")
    audit.add_argument("--to", dest="end", metavar="TIME", help="default: the last full hour")
    bring = commands.add_parser("import", help="import history, from the exchanges or from files on this disk")
    bring.add_argument("files", nargs="*", type=Path, metavar="FILE", help="daily archive files, named as the exchange names them")
    bring.add_argument("--demo", action="store_true", default=argparse.SUPPRESS, help="from the simulated exchanges")
    bring.add_argument("--exchange", choices=exchange_names(), help="default: every one")
    bring.add_argument("--market", choices=MARKETS, help="default: every one")
    bring.add_argument("--symbol", help="default: every one")
    bring.add_argument("--from", dest="start", metavar="TIME", help="ISO 8601 or epoch (default: WADM_HISTORY_HOURS before --to)")
    bring.add_argument("--to", dest="end", metavar="TIME", help="default: now")
    bring.add_argument("--plan", action="store_true", help="print the expected downloads and time, and import nothing")
    return parser


def _speed(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = -1.0
    if not 0 <= speed <= 1e6:
        raise argparse.ArgumentTypeError(f"{text}: a speed is a number from 0 (as fast as possible) to 1000000")
    return speed


def _run(arguments: argparse.Namespace) -> int:
    """Read the settings, run the command, and return the exit status."""
    settings = _settings(arguments)
    import anyio

    from wadm_mcp.commands.run import run_command

    return anyio.run(run_command, settings, arguments)


def _settings(arguments: argparse.Namespace) -> Settings:
    """Read the settings and configure the logs by them."""
    from wadm_mcp.settings import data_dotenv, environment, read_settings, unknown_settings

    environ = environment()
    # An MCP client starts the process in some project's folder, whose .env is not ours; `serve` is started by its own operator.
    dotenv = Path(".env") if arguments.command == "serve" else data_dotenv(environ)
    settings = read_settings(environ, dotenv=dotenv)
    if settings.WADM_ALLOW_TRACKING is None:
        # Over stdio there is one client, launched by the user.
        settings = settings.model_copy(update={"WADM_ALLOW_TRACKING": arguments.command is None})
    configure_logs(production=settings.ENVIRONMENT == "production")
    for hint in unknown_settings(environ, dotenv):
        log.warning("setting.unknown", hint=hint)
    return settings
