"""Runs the parsed command. It imports every command module, which takes a second, so `cli.py` imports it after the settings are read."""

from __future__ import annotations

import argparse
from contextlib import AsyncExitStack

from wadm_mcp.commands.audit import Choice, audit
from wadm_mcp.commands.demo import DEMO_SUFFIX, demo
from wadm_mcp.commands.doctor import examine
from wadm_mcp.commands.import_history import import_history
from wadm_mcp.commands.replay import REPLAY_SUFFIX, replay
from wadm_mcp.commands.serve import check_stdio, serve, serve_client
from wadm_mcp.errors import ungrouped
from wadm_mcp.runtime import Runtime
from wadm_mcp.settings import Settings


async def run_command(settings: Settings, arguments: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    if arguments.command is None:
        check_stdio()
    suffix, feed = "", None
    with ungrouped():
        async with AsyncExitStack() as stack:
            if arguments.command == "replay":
                settings, feed = await stack.enter_async_context(replay(settings, arguments.files, arguments.speed))
                suffix = REPLAY_SUFFIX
            elif arguments.demo:
                settings = await stack.enter_async_context(demo(settings))
                suffix = DEMO_SUFFIX
            match arguments.command:
                case "doctor":
                    return await examine(settings)
                case "audit":
                    return await audit(settings, _choice(arguments), suffix)
                case "import":
                    return await import_history(settings, _choice(arguments), arguments.files, plan=arguments.plan, suffix=suffix)
                case None:
                    await serve_client(Runtime(settings, suffix=suffix))
                case _:
                    await serve(Runtime(settings, suffix=suffix), feed)
    return 0


def _choice(arguments: argparse.Namespace) -> Choice:
    return Choice(arguments.exchange, arguments.market, arguments.symbol, arguments.start, arguments.end)
