"""The table of questions: what a client can ask, as a tool over MCP and as a JSON route, and the query that computes the answer.

For example, `get_trades` over MCP is `/api/trades` over HTTP.

A question takes the arguments of its query. Argument names are checked here, argument values in the query; either way the error is a
`QueryError` with the same text over MCP and HTTP.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum, auto
from functools import partial
from typing import Any, Final, NamedTuple

import anyio

from wadm_mcp.errors import QueryError
from wadm_mcp.model import HOUR
from wadm_mcp.queries.arguments import Call, shown
from wadm_mcp.queries.compare_exchanges import compare_exchanges
from wadm_mcp.queries.footprint import footprint
from wadm_mcp.queries.market_structure import market_structure
from wadm_mcp.queries.markets import markets
from wadm_mcp.queries.order_flow import order_flow
from wadm_mcp.queries.scope import DEFAULT_WINDOW, about_asked, ask, window_length
from wadm_mcp.queries.trades import trades
from wadm_mcp.queries.view import View
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


class Cost(Enum):
    """What it costs to answer a question, and therefore which place it needs (`queries/admission.py`)."""

    CHEAP = auto()
    """A little, whatever the arguments."""
    BY_WINDOW = auto()
    """A little for a window of up to `CHEAP_WINDOW_MS`, much for a longer one. Its answer about an open window is cached for a second."""
    BY_SIZE = auto()
    """A little for a page of trades; much if a longer window is searched for large ones."""
    WAITS = auto()
    """Seconds of waiting between short looks at the tape, for which no place is taken."""


CHEAP_WINDOW_MS: Final = HOUR
"""Length of a window that is cheap to answer about."""


class Question(NamedTuple):
    """One question: the name of its tool, the path of its JSON route (None for a question of MCP alone), and the query that answers it."""

    name: str
    path: str | None
    query: Callable[..., Awaitable[Answer]]
    cost: Cost = Cost.BY_WINDOW

    @property
    def arguments(self) -> dict[str, Any]:
        """Names and defaults of its arguments; the default of a required one is `NEEDED`."""
        return {name: parameter.default for name, parameter in self._parameters.items() if name not in _RUNTIME_PARAMETERS}

    async def ask(
        self, runtime: ServedRuntime, given: Mapping[str, Any], *, fresh: bool = False, progress: ProgressCallback | None = None
    ) -> Reply:
        """Answer the question. With `fresh` the answer never comes from the cache; `progress` is called while a long one is computed.

        An argument given as None counts as not given. `QueryError` for an invalid argument, `Busy` where too many questions are being
        answered.
        """
        arguments = self.arguments
        for name in given:
            if name not in arguments:
                raise self._unknown(name, given, runtime)
        await runtime.view.until_ready()
        asked = {name: value for name, value in given.items() if value is not None}
        missing = {name: None for name, default in arguments.items() if default is NEEDED and name not in asked}
        context: dict[str, Any] = {"health": runtime.health, "watches": runtime.watches}
        if progress is not None:
            context["progress"] = progress

        async def answer_from(view: View) -> Answer:
            filled = {**context, "view": view}
            return await self.query(**{name: filled[name] for name in filled if name in self._parameters}, **missing, **asked)

        async def answer() -> Answer:
            # A wait reads anew each time that it looks.
            return await (answer_from(runtime.view.reading()) if self.cost is Cost.WAITS else runtime.view.consistent(answer_from))

        if self.cost is Cost.WAITS:
            return Reply(await answer())
        costly = self.is_costly(runtime.view.clock(), asked)
        place = partial(runtime.admission.place, costly=costly, since=anyio.current_time())
        if self.cost is Cost.BY_WINDOW:
            return Reply(await runtime.answers.ask(self.name, asked, answer, place=place, reuse=not fresh))
        async with place():
            return Reply(await answer())

    def is_costly(self, now: int, asked: Mapping[str, object]) -> bool:
        """Whether the answer may take much memory or time. An invalid argument costs nothing: it is refused before anything is read."""
        if self.cost is Cost.BY_SIZE and "min_notional" not in asked:
            return False
        if self.cost is Cost.CHEAP:
            return False
        if "window" not in self.arguments:
            return True
        length = window_length(now, asked.get("window"), asked.get("start"), asked.get("end"))
        return length is not None and length > CHEAP_WINDOW_MS

    def _unknown(self, argument: str, given: Mapping[str, Any], runtime: ServedRuntime) -> QueryError:
        allowed, call = self.arguments, Call(self.name)
        if "symbol" in allowed:
            examples = {name: value for name, value in _EXAMPLES.items() if name in allowed}
            call = about_asked(runtime.view, ask(runtime.view, self.name, **examples), given.get("symbol"))
        near = f" Nearest: {', '.join(found)}." if (found := nearest(argument, allowed, 1)) else ""
        names = f"Allowed: {', '.join(allowed)}." if allowed else "It takes no arguments."
        return QueryError(f"{self.name} has no argument {shown(argument)}.{near} {names} Try {call.example()}")

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.query).parameters


MARKETS: Final = Question("list_markets", "/api/markets", markets, Cost.CHEAP)
TRADES: Final = Question("get_trades", "/api/trades", trades, Cost.BY_SIZE)
VOLUME_PROFILE: Final = Question("get_volume_profile", "/api/volume-profile", volume_profile)
ORDER_FLOW: Final = Question("get_order_flow", "/api/order-flow", order_flow)
FOOTPRINT: Final = Question("get_footprint", "/api/footprint", footprint)
STRUCTURE: Final = Question("get_market_structure", "/api/market-structure", market_structure)
COMPARE: Final = Question("compare_exchanges", "/api/compare-exchanges", compare_exchanges)
WAIT: Final = Question("wait_for", None, wait_for, Cost.WAITS)

QUESTIONS: Final = (MARKETS, STRUCTURE, VOLUME_PROFILE, ORDER_FLOW, FOOTPRINT, TRADES, COMPARE, WAIT)
