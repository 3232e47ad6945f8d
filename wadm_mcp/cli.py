"""The composition root: `wadm-mcp`, `serve`, `replay`, `doctor`, `audit`, `import`. Puts the parts together and turns outcomes into
exit statuses.

0 after a signal or the end of input, 1 on failure, 2 on a bad setting or argument. Only MCP goes to stdout, except for what is a table.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, NoReturn

import anyio
from anyio import to_thread

from wadm_mcp import __version__
from wadm_mcp.collection.recorder_lock import RecorderLock
from wadm_mcp.commands.audit import Choice, audit
from wadm_mcp.commands.doctor import examine
from wadm_mcp.commands.import_history import import_history
from wadm_mcp.commands.status import show_status, welcome
from wadm_mcp.errors import SettingError, WadmError, ours, printable
from wadm_mcp.exchanges.registry import exchange_names
from wadm_mcp.logs import configure_logs, log
from wadm_mcp.model import MARKETS
from wadm_mcp.process.signals import ignore_signals
from wadm_mcp.process.standard_streams import flush, print_lines, say
from wadm_mcp.runtime import Runtime
from wadm_mcp.server.server import build_server
from wadm_mcp.server.stdio import serve_stdio
from wadm_mcp.settings import Settings, data_dotenv, environment, read_settings, strange_settings, unusable_folder
from wadm_mcp.simulator.feed import ReplayFeed
from wadm_mcp.simulator.replay import Recording, read_recording
from wadm_mcp.simulator.simulator import Simulator
from wadm_mcp.storage.mongo import MongoStore
from wadm_mcp.web.app import build_app
from wadm_mcp.web.serve import serve_http

_DEMO_SEED: Final = 7
_DEMO_ACTIVITY: Final = {"binance": 1 / 4}
"""A quieter Binance, whose last day of pages fits what it allows to be asked in half a minute."""
_REPLAY: Final = "_replay_demo"
"""Added to a database's name; a replay begins with an empty one."""
_LONGEST: Final = 300
_FOR_CLIENTS: Final = "wadm-mcp speaks MCP on stdin and stdout, for a client to launch. For a terminal there is: wadm-mcp serve"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"wadm-mcp: {printable(message, _LONGEST)}. Try {self.prog} --help\n")


def quieten_collector() -> None:
    """Look for garbage in cycles less often. A footprint is thousands of small lists without a cycle among them: looked over every 700 of
    them, as the interpreter does by itself, merging takes two and a half times as long."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its status; whatever a user can mend is one line on stderr."""
    quieten_collector()
    try:
        try:
            status = anyio.run(_run, _arguments(argv))
        except SystemExit as told:  # argparse's own: --help, --version, an argument that cannot be used
            status = told.code
        ignore_signals()
        flush()
    except WadmError as error:
        say(f"wadm-mcp: {printable(error)}")
        status = error.status
    ignore_signals()
    logging.shutdown()
    sys.exit(status)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.demo and arguments.command in ("replay", "doctor"):
        parser.error(f"--demo goes with wadm-mcp and wadm-mcp serve, not with {arguments.command}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="wadm-mcp",
        description="Records public trades on Binance and Bybit and answers over MCP. Without a command it speaks MCP over stdio.",
    )
    parser.add_argument("--version", action="version", version=f"wadm-mcp {__version__}")
    parser.add_argument("--demo", action="store_true", help="follow loopback exchanges: no network, everything else real")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    serve = commands.add_parser("serve", help="serve MCP over HTTP and SSE, /health and /api on one port")
    serve.add_argument("--demo", action="store_true", default=argparse.SUPPRESS, help="follow loopback exchanges")
    replay = commands.add_parser("replay", help="serve, fed by recorded Binance frames")
    replay.add_argument("files", nargs="+", type=Path, metavar="FILE", help="lines of <receive time> <raw frame>, gzipped or not")
    replay.add_argument("--speed", type=_speed, default=1.0, help="times faster than recorded; 0: as fast as it goes (default 1)")
    commands.add_parser("doctor", help="check settings, store and exchanges")
    audit = commands.add_parser("audit", help="compare what is held with the exchanges' own minutes and with its own trades")
    audit.add_argument("--demo", action="store_true", default=argparse.SUPPRESS, help="audit what the demo recorded")
    audit.add_argument("--exchange", choices=exchange_names(), help="default: every one")
    audit.add_argument("--market", choices=MARKETS, help="default: every one")
    audit.add_argument("--symbol", help="default: every one")
    audit.add_argument("--from", dest="start", metavar="TIME", help="ISO 8601 or epoch (default: 24 hours before --to)")
    audit.add_argument("--to", dest="end", metavar="TIME", help="default: the last full hour")
    bring = commands.add_parser("import", help="bring in the past, from the exchanges or from files on this disk")
    bring.add_argument("files", nargs="*", type=Path, metavar="FILE", help="daily files under their exchange's own names")
    bring.add_argument("--demo", action="store_true", default=argparse.SUPPRESS, help="from the loopback exchanges")
    bring.add_argument("--exchange", choices=exchange_names(), help="default: every one")
    bring.add_argument("--market", choices=MARKETS, help="default: every one")
    bring.add_argument("--symbol", help="default: every one")
    bring.add_argument("--from", dest="start", metavar="TIME", help="ISO 8601 or epoch (default: WADM_HISTORY_HOURS before --to)")
    bring.add_argument("--to", dest="end", metavar="TIME", help="default: now")
    bring.add_argument("--plan", action="store_true", help="print what it would take, and do nothing")
    return parser


def _speed(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = -1.0
    if not 0 <= speed <= 1e6:
        raise argparse.ArgumentTypeError(f"{text}: a speed is a number from 0 (as fast as it goes) to 1000000")
    return speed


async def _run(arguments: argparse.Namespace) -> int:
    environ = environment()
    # An MCP client starts us inside somebody's project, whose .env is not ours; `serve` is started by its own operator.
    dotenv = Path(".env") if arguments.command == "serve" else data_dotenv(environ)
    settings = read_settings(environ, dotenv=dotenv)
    if settings.WADM_ALLOW_TRACKING is None:
        # Over stdio there is one client, which its user launched himself.
        settings = settings.model_copy(update={"WADM_ALLOW_TRACKING": arguments.command is None})
    configure_logs(production=settings.ENVIRONMENT == "production")
    for hint in strange_settings(environ, dotenv):
        log.warning("setting.unknown", hint=hint)
    if arguments.command == "doctor":
        return await examine(settings)
    if arguments.command == "audit":
        return await _audit(settings, arguments)
    if arguments.command == "import":
        return await _import(settings, arguments)
    if arguments.command is None:
        _check_standard_files()
    try:
        async with AsyncExitStack() as stack:
            replay, suffix = None, ""
            if arguments.command == "replay":
                suffix = _REPLAY
                recording = await to_thread.run_sync(_recording, arguments.files)
                settings, replay = await _replay(stack, settings, recording, arguments.speed)
            elif arguments.demo:
                suffix = "_demo"
                settings = await _demo(stack, settings)
            runtime = Runtime(settings, suffix=suffix)
            if arguments.command is None:
                await serve_stdio(build_server(runtime), runtime)
            else:
                await _serve(runtime, replay)
    except BaseExceptionGroup as group:
        raise (ours(group) or group) from None
    return 0


async def _audit(settings: Settings, arguments: argparse.Namespace) -> int:
    choice = Choice(arguments.exchange, arguments.market, arguments.symbol, arguments.start, arguments.end)
    async with AsyncExitStack() as stack:
        suffix = ""
        if arguments.demo:
            suffix = "_demo"
            settings = await _demo(stack, settings)
        return await audit(settings, choice, suffix)


async def _import(settings: Settings, arguments: argparse.Namespace) -> int:
    choice = Choice(arguments.exchange, arguments.market, arguments.symbol, arguments.start, arguments.end)
    try:
        async with AsyncExitStack() as stack:
            suffix = ""
            if arguments.demo:
                suffix = "_demo"
                settings = await _demo(stack, settings)
            return await import_history(settings, choice, arguments.files, plan=arguments.plan, suffix=suffix)
    except BaseExceptionGroup as group:
        raise (ours(group) or group) from None


def _check_standard_files() -> None:
    if sys.stdin is None or sys.stdout is None:
        closed = "input" if sys.stdin is None else "output"
        raise WadmError(f"standard {closed} is closed. {_FOR_CLIENTS}")
    if sys.stdin.isatty():
        say(_FOR_CLIENTS)


def _recording(files: Sequence[Path]) -> Recording:
    try:
        return read_recording(files)
    except WadmError as error:
        raise SettingError(str(error)) from error


async def _serve(runtime: Runtime, replay: ReplayFeed | None) -> None:
    server = build_server(runtime)
    async with anyio.create_task_group() as tasks:

        def started(url: str) -> None:
            try:
                print_lines(welcome(url, runtime.settings))
            except WadmError as error:
                log.warning("stdout.unwritable", error=error, serving=url)
            tasks.start_soon(show_status, runtime, replay)

        await serve_http(build_app(server, runtime), runtime.settings, on_started=started)
        tasks.cancel_scope.cancel()


async def _demo(stack: AsyncExitStack, settings: Settings) -> Settings:
    """Settings that point to loopback exchanges, which run as long as the stack."""
    folder = _apart(settings.WADM_DATA_DIR, "demo")
    simulator = await stack.enter_async_context(Simulator(seed=_DEMO_SEED, activity=_DEMO_ACTIVITY))
    exchanges = tuple(name for name in settings.WADM_EXCHANGES if name in simulator.exchanges) or simulator.exchanges
    return settings.model_copy(update={"WADM_DATA_DIR": folder, "WADM_EXCHANGES": exchanges}).with_hosts(_urls(simulator))


async def _replay(stack: AsyncExitStack, settings: Settings, recording: Recording, speed: float) -> tuple[Settings, ReplayFeed]:
    """Settings that point to a loopback Binance which plays the recording, into a data folder that begins empty."""
    for note in recording.notes:
        log.warning("recording.skipped", note=note)
    folder = _apart(settings.WADM_DATA_DIR, "replay")
    _empty(folder)
    if settings.MONGODB_URL is not None:
        await MongoStore(settings.MONGODB_URL.get_secret_value(), settings.retention, suffix=_REPLAY).drop()
    simulator = await stack.enter_async_context(Simulator(replay=recording, speed=speed))
    assert simulator.replay is not None
    changes = {
        "WADM_DATA_DIR": folder,
        "WADM_SYMBOLS": tuple(recording.symbols),
        "WADM_EXCHANGES": ("binance",),
        "WADM_MARKETS": (recording.market,),
        "WADM_HISTORY_HOURS": 0,
    }
    return settings.model_copy(update=changes).with_hosts(_urls(simulator)), simulator.replay


def _urls(simulator: Simulator) -> dict[str, str]:
    return {f"WADM_{name.upper()}": url for name, url in simulator.urls.items()}


def _apart(given: Path, name: str) -> Path:
    """The folder that keeps demo or replay apart, made where it is missing. `SettingError` names the folder that was given."""
    folder = given / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable_folder(given, error) from error
    return folder


def _empty(folder: Path) -> None:
    """Remove what an earlier replay recorded: its trades bear the same ids at other times."""
    try:
        with RecorderLock(folder) as lease:
            if not lease.take():
                raise SettingError(f"{folder} is in use by another replay; stop it, or set WADM_DATA_DIR to another folder")
            for file in (*folder.glob("wadm.sqlite*"), *folder.glob("journal/*.seg")):
                file.unlink()
    except OSError as error:
        raise unusable_folder(folder.parent, error) from error
