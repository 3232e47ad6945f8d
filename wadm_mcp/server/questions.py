"""The table of questions: what a client can ask, as a tool over MCP and as a JSON route, and the query that computes the answer.

For example, `get_trades` over MCP is `/api/trades` over HTTP.

A question takes the arguments of its query. Argument names are checked here, argument values in the query; either way the error is a
`QueryError` with the same text over MCP and HTTP.
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
from wadm_mcp.queries.wait_for import ProgressCallback, wait_for
from wadm_mcp.server.context import ServedRuntime
from wadm_mcp.server.reply import Answer, Reply
from wadm_mcp.suggest import nearest

NEEDED: Final = inspect.Parameter.empty
"""The default of an argument that is required."""
_RUNTIME_PARAMETERS: Final = ("view", "health", "watches", "progress")
"""Parameters of a query that are filled from the runtime or the call, not by the client."""


_EXAMPLES: Final = {"window": DEFAULT_WINDOW, "condition": "bar_closed"}
"""Arguments beside the symbol in the example of an error about an unknown argument."""


class Question(NamedTuple):
    """One question: the name of its tool, the path of its JSON route (None for a question of MCP alone), and the query that answers it."""

    name: str
    path: str | None
    query: Callable[..., Awaitable[Answer]]
    cached_for_a_second: bool = False
    """Is the answer about an open window cached for a second? Such answers are expensive to compute."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Names and defaults of its arguments; the default of a required one is `NEEDED`."""
        return {name: parameter.default for name, parameter in self._parameters.items() if name not in _RUNTIME_PARAMETERS}

    async def ask(
        self, runtime: ServedRuntime, given: Mapping[str, Any], *, fresh: bool = False, progress: ProgressCallback | None = None
    ) -> Reply:
        """Answer the question. With `fresh` the answer never comes from the cache; `progress` is called while a long one is computed.

        An argument given as None counts as not given. `QueryError` for an invalid argument.
        """
        arguments = self.arguments
        for name in given:
            if name not in arguments:
                raise self._unknown(name, runtime)
        await runtime.view.until_ready()
        asked = {name: value for name, value in given.items() if value is not None}
        missing = {name: None for name, default in arguments.items() if default is NEEDED and name not in asked}
        context: dict[str, Any] = {"view": runtime.view.reading(), "health": runtime.health, "watches": runtime.watches}
        if progress is not None:
            context["progress"] = progress

        async def answer() -> Answer:
            return await self.query(**{name: context[name] for name in context if name in self._parameters}, **missing, **asked)

        return Reply(await runtime.answers.ask(self.name, asked, answer) if self.cached_for_a_second and not fresh else await answer())

    def _unknown(self, argument: str, runtime: ServedRuntime) -> QueryError:
        allowed, call = self.arguments, Call(self.name)
        if "symbol" in allowed:
            call = ask(runtime.view, self.name, **{name: value for name, value in _EXAMPLES.items() if name in allowed})
        near = f" Nearest: {', '.join(found)}." if (found := nearest(argument, allowed, 1)) else ""
        names = f"Allowed: {', '.join(allowed)}." if allowed else "It takes no arguments."
        return QueryError(f"{self.name} has no argument {shown(argument)}.{near} {names} Try {call.example()}")

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.query).parameters


MARKETS: Final = Question("list_markets", "/api/markets", markets)
TRADES: Final = Question("get_trades", "/api/trades", trades)
VOLUME_PROFILE: Final = Question("get_volume_profile", "/api/volume-profile", volume_profile, cached_for_a_second=True)
ORDER_FLOW: Final = Question("get_order_flow", "/api/order-flow", order_flow, cached_for_a_second=True)
FOOTPRINT: Final = Question("get_footprint", "/api/footprint", footprint, cached_for_a_second=True)
STRUCTURE: Final = Question("get_market_structure", "/api/market-structure", market_structure, cached_for_a_second=True)
COMPARE: Final = Question("compare_exchanges", "/api/compare-exchanges", compare_exchanges, cached_for_a_second=True)
WAIT: Final = Question("wait_for", None, wait_for)

QUESTIONS: Final = (MARKETS, STRUCTURE, VOLUME_PROFILE, ORDER_FLOW, FOOTPRINT, TRADES, COMPARE, WAIT)
