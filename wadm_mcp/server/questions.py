"""Every question by name, as both faces ask it: `get_trades` over MCP is `/api/trades` over HTTP.

A question's arguments are those of its query. What is wrong with their names is said here, what is wrong with their values there;
either way it is a `QueryError` whose text is the same on both faces.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from wadm_mcp.errors import QueryError
from wadm_mcp.queries.arguments import Call, shown
from wadm_mcp.queries.compare_exchanges import compare_exchanges
from wadm_mcp.queries.footprint import footprint
from wadm_mcp.queries.market_structure import market_structure
from wadm_mcp.queries.markets import markets
from wadm_mcp.queries.order_flow import order_flow
from wadm_mcp.queries.scope import DEFAULT_WINDOW, ask
from wadm_mcp.queries.trades import trades
from wadm_mcp.queries.volume_profile import volume_profile
from wadm_mcp.queries.wait_for import Progress, wait_for
from wadm_mcp.server.context import Runtime
from wadm_mcp.suggest import nearest

Answer = dict[str, Any]
"""A finished answer, JSON-ready, coverage first."""

NEEDED: Final = inspect.Parameter.empty
"""Stands for the default of an argument that has none."""
_SERVED: Final = ("view", "health", "progress")
"""Parameters of a query that the runtime fills."""


class Question(NamedTuple):
    """One question: the tool's name, the JSON route's path (None for one that only MCP asks), and the query that answers it."""

    name: str
    path: str | None
    query: Callable[..., Awaitable[Answer]]
    costly: bool = False
    """Is an answer about an open window worth giving again to whoever asks within a second?"""

    @property
    def arguments(self) -> dict[str, Any]:
        """Its arguments' names and defaults; `NEEDED` where there is none."""
        return {name: parameter.default for name, parameter in self._parameters.items() if name not in _SERVED}

    async def ask(self, runtime: Runtime, given: Mapping[str, Any], *, anew: bool = False, progress: Progress | None = None) -> Answer:
        """The answer; with `anew` never one that was made a moment ago. `progress` hears of a long one. An argument given as null counts as
        not given.

        `QueryError` says what was wrong with an argument.
        """
        arguments = self.arguments
        for name in given:
            if name not in arguments:
                raise self._unknown(name, runtime)
        await runtime.view.begun()
        asked = {name: value for name, value in given.items() if value is not None}
        missing = {name: None for name, default in arguments.items() if default is NEEDED and name not in asked}
        served: dict[str, Any] = {"view": runtime.view.reading(), "health": runtime.health}
        if progress is not None:
            served["progress"] = progress

        async def answer() -> Answer:
            return await self.query(**{name: served[name] for name in served if name in self._parameters}, **missing, **asked)

        return await runtime.answers.ask(self.name, asked, answer) if self.costly and not anew else await answer()

    def _unknown(self, argument: str, runtime: Runtime) -> QueryError:
        allowed, call = self.arguments, Call(self.name)
        if "symbol" in allowed:
            call = ask(runtime.view, self.name, window=DEFAULT_WINDOW)
        near = f" Nearest: {', '.join(found)}." if (found := nearest(argument, allowed, 1)) else ""
        takes = f"Allowed: {', '.join(allowed)}." if allowed else "It takes none."
        return QueryError(f"{self.name} has no argument {shown(argument)}.{near} {takes} Try {call.example()}")

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.query).parameters


MARKETS: Final = Question("list_markets", "/api/markets", markets)
TRADES: Final = Question("get_trades", "/api/trades", trades)
VOLUME_PROFILE: Final = Question("get_volume_profile", "/api/volume-profile", volume_profile, costly=True)
ORDER_FLOW: Final = Question("get_order_flow", "/api/order-flow", order_flow, costly=True)
FOOTPRINT: Final = Question("get_footprint", "/api/footprint", footprint, costly=True)
STRUCTURE: Final = Question("get_market_structure", "/api/market-structure", market_structure, costly=True)
COMPARE: Final = Question("compare_exchanges", "/api/compare-exchanges", compare_exchanges, costly=True)
WAIT: Final = Question("wait_for", None, wait_for)

QUESTIONS: Final = (MARKETS, STRUCTURE, VOLUME_PROFILE, ORDER_FLOW, FOOTPRINT, TRADES, COMPARE, WAIT)
