"""Runs the command that was parsed. Each command is imported where it runs, so that a recorder's memory has no other command in it."""

from __future__ import annotations

import argparse
import gc
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from wadm_mcp.errors import SettingError, ungrouped
from wadm_mcp.settings import Settings
from wadm_mcp.texts import printable

if TYPE_CHECKING:
    from wadm_mcp.commands.audit import Choice


_SHOWN_CHARS: Final = 100


async def run_command(settings: Settings, arguments: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    if arguments.command is None:
        from wadm_mcp.commands.serve import check_stdio

        check_stdio()
    suffix, feed = "", None
    with ungrouped():
        async with AsyncExitStack() as stack:
            if arguments.command == "replay":
                from wadm_mcp.commands.replay import REPLAY_SUFFIX, replay

                settings, feed = await stack.enter_async_context(replay(settings, arguments.files, arguments.speed))
                suffix = REPLAY_SUFFIX
            elif arguments.demo:
                from wadm_mcp.commands.demo import DEMO_SUFFIX, demo

                settings = await stack.enter_async_context(demo(settings))
                suffix = DEMO_SUFFIX
            match arguments.command:
                case "doctor":
                    from wadm_mcp.commands.doctor import examine

                    return await examine(settings)
                case "audit":
                    from wadm_mcp.commands.audit import audit

                    return await audit(settings, _choice(arguments), suffix)
                case "import":
                    from wadm_mcp.commands.import_history import import_history

                    return await import_history(settings, _choice(arguments), arguments.files, plan=arguments.plan, suffix=suffix)
                case _:
                    from wadm_mcp.commands.serve import serve, serve_client
                    from wadm_mcp.runtime import Runtime

                    runtime = Runtime(settings, suffix=suffix, checks_clock=arguments.command != "replay")
                    gc.freeze()  # what has been loaded stays as long as the process
                    await (serve_client(runtime) if arguments.command is None else serve(runtime, feed))
    return 0


def _choice(arguments: argparse.Namespace) -> Choice:
    """What the arguments choose. `SettingError` for a symbol that cannot be recorded, or that contradicts another argument."""
    from wadm_mcp.commands.audit import Choice
    from wadm_mcp.exchanges.names import InstrumentName, read_name
    from wadm_mcp.queries.arguments import Place

    given, place = arguments.symbol, Place(arguments.exchange, arguments.market)
    # Which symbols there are is not known here. One written alone, or after its place, may end like a word for a market: BTCPERP.
    whole = given is not None and given.rpartition(":")[2].isalnum()
    named = InstrumentName("") if given is None else read_name(given, lambda _: whole)
    if named.problem or (given is not None and not named.symbol):
        problem = named.problem or "the name of a symbol is needed, such as BTCUSDT"
        raise SettingError(f"--symbol {printable(given, _SHOWN_CHARS)}: {problem}")
    if clash := place.contradiction(named):
        raise SettingError(f"--symbol {printable(given, _SHOWN_CHARS)} with --{clash}. Give one of them")
    exchange, market = place.completed_by(named)
    return Choice(exchange, market, named.symbol or None, arguments.start, arguments.end)
