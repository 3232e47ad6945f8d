"""Completions of the arguments of prompts and resource templates: exchange, market, symbol, timeframe, window, language."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from mcp.server.mcpserver import MCPServer
from mcp_types import Completion, CompletionArgument, CompletionContext

from wadm_mcp.exchanges.names import read_name
from wadm_mcp.model import Instrument, Timeframe
from wadm_mcp.queries.arguments import ALL, SESSION, WINDOWS
from wadm_mcp.server.context import ServedRuntime
from wadm_mcp.server.prompts import LANGUAGES
from wadm_mcp.suggest import plain

_MAX_VALUES: Final = 100
"""Values in one completion, the limit of the protocol."""


def declare(server: MCPServer[Any], runtime: ServedRuntime) -> None:
    """Register the completions."""

    @server.completion()
    async def complete(_: object, argument: CompletionArgument, context: CompletionContext | None) -> Completion:
        """The values that start with what was typed and fit the other arguments given; none for an argument without choices."""
        chosen = (context.arguments if context is not None else None) or {}
        if argument.name == "symbol":
            named = read_name(argument.value, {plain(one.symbol) for one in runtime.followed}.__contains__)
            said = {"exchange": named.exchange, "market": named.market}
            chosen = {**{name: value for name, value in said.items() if value is not None}, **chosen}
            found = [value for value in _values("symbol", runtime.followed, chosen) if plain(value).startswith(named.symbol)]
        else:
            typed = argument.value.strip().lower()
            found = [value for value in _values(argument.name, runtime.followed, chosen) if value.lower().startswith(typed)]
        return Completion(values=found[:_MAX_VALUES], total=len(found), has_more=len(found) > _MAX_VALUES)


def _values(name: str, followed: Iterable[Instrument], chosen: dict[str, str]) -> Sequence[str]:
    """All values of an argument, taken from the followed instruments that match the other arguments."""
    others = {other: value.lower() for other, value in chosen.items() if other != name and value.lower() != ALL}
    matching = [
        one
        for one in followed
        if all(value == getattr(one, other).lower() for other, value in others.items() if other in Instrument._fields)
    ]
    match name:
        case "exchange":
            return [*dict.fromkeys(one.exchange for one in matching), ALL] if matching else []
        case "market":
            return list(dict.fromkeys(one.market for one in matching))
        case "symbol":
            return list(dict.fromkeys(one.symbol for one in matching))
        case "timeframe":
            return list(Timeframe)
        case "window":
            return [*WINDOWS, SESSION]
        case "language":
            return list(dict.fromkeys(LANGUAGES.values()))
        case _:
            return []
