"""The tools: names, descriptions and schemas of the questions an agent may ask. No market logic.

A tool takes the arguments of its question's query and describes each the same way wherever it appears. Values are not checked here:
the query says in WADM's own words what is wrong with one.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec
from mcp.server.mcpserver.context import Context
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel, Field

from wadm_mcp.errors import WadmError
from wadm_mcp.logs import log
from wadm_mcp.model import EXCHANGES, MARKETS, Timeframe
from wadm_mcp.queries.arguments import ALL, SESSION, WINDOWS, shown
from wadm_mcp.server import answers, questions
from wadm_mcp.server.context import Runtime
from wadm_mcp.server.questions import NEEDED, Answer, Question
from wadm_mcp.tracking import WAIT, Tracking

_READ_ONLY: Final = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
_TRACK: Final = "track_market"
_UNTRACK: Final = "untrack_market"
_TIME: Final = [{"type": "string"}, {"type": "integer"}]
_AMOUNT: Final = [{"type": "number"}, {"type": "string"}]

_ARGUMENTS: Final[dict[str, dict[str, Any]]] = {
    "symbol": {"type": "string", "description": "e.g. BTCUSDT; see list_markets"},
    "exchange": {"type": "string", "enum": [*EXCHANGES, ALL], "description": "all = merged"},
    "market": {"type": "string", "enum": [*MARKETS], "description": "linear = USDT perpetuals; default: first followed"},
    "window": {
        "type": "string",
        "enum": [*WINDOWS, SESSION],
        "description": "ending now, default 1h; session: since 00:00 UTC. Not with start",
    },
    "start": {"anyOf": _TIME, "description": "ISO 8601 (UTC unless offset given) or epoch s/ms"},
    "end": {"anyOf": _TIME, "description": "exclusive; default now"},
    "as_of": {"anyOf": _TIME, "description": "replay: the tape up to this time only"},
    "timeframe": {"type": "string", "enum": [*Timeframe], "description": "bar length, aligned to UTC"},
    "row_size": {"anyOf": _AMOUNT, "description": "price units, a multiple of the tick; default about 100 rows"},
    "value_area": {"type": "integer", "description": "percent of volume, 1-100"},
    "method": {"type": "string", "enum": ["two_row", "one_row"], "description": "how the value area grows from the POC"},
    "detail": {"type": "string", "enum": ["brief", "standard", "full"], "description": "nodes listed: none, value area and largest, all"},
    "limit": {"type": "integer", "description": "per page, 1-1000"},
    "cursor": {"type": "string", "description": "next_cursor of the page before; keep the other arguments"},
    "min_notional": {"anyOf": _AMOUNT, "description": "least price x quantity, in quote currency"},
}


class _Declaration(NamedTuple):
    question: Question
    title: str
    answer: type[BaseModel]
    description: str


_DECLARATIONS: Final = (
    _Declaration(
        questions.MARKETS,
        "Markets followed",
        answers.Markets,
        "Start here: the instruments recorded, each with last price, age of the newest trade, coverage of the last 24 h (1 = all), "
        "open gaps and where history begins. Only these can be asked about; what else the exchanges trade is not listed.",
    ),
    _Declaration(
        questions.TRADES,
        "Trades",
        answers.Trades,
        "Single public trades of a window, oldest first; trade_type is the aggressor's side, quantity in base units, times UTC. "
        "min_notional finds large prints. Follow next_cursor until it is null. Do not add trades up: get_volume_profile and "
        "get_order_flow hold the sums.",
    ),
    _Declaration(
        questions.VOLUME_PROFILE,
        "Volume profile",
        answers.VolumeProfile,
        "Volume by price over a window: poc (row with most volume), value area val to vah, vwap, buy and sell volume (base units), "
        "delta, and nodes low to high. A row is named by its low price; vah is the top tick of its row. No time series: for bars use "
        "get_order_flow, for price and time together get_footprint.",
    ),
    _Declaration(
        questions.ORDER_FLOW,
        "Order flow",
        answers.OrderFlow,
        "Bars over a window, oldest first, empty ones included: OHLC, buy and sell volume, delta (buy - sell), cumulative_delta since "
        "00:00 UTC, imbalance_ratio (delta / volume), trade_count, min and max delta inside the bar. Volumes in base units. At most "
        "1,500 bars. For prices inside a bar use get_footprint.",
    ),
    _Declaration(
        questions.FOOTPRINT,
        "Footprint",
        answers.Footprint,
        "Inside each bar, buy and sell volume by price row with diagonal imbalances, plus the bar's OHLC, delta and poc. At most 100 "
        "bars and much output: find the bars of interest with get_order_flow first, or choose a coarse row_size.",
    ),
)


class QuestionTool(Tool):
    """A tool that asks a question and words every failure itself."""

    question: Question = Field(exclude=True)

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Any:
        """The answer as text and as structure, the same facts in both; an `is_error` result of one line when there is none."""
        runtime: Runtime = context.request_context.lifespan_context
        try:
            return self.fn_metadata.convert_result(told(await self.question.ask(runtime, arguments)))
        except WadmError as error:
            return refused(str(error))
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the log gets it all and the client one line
            log.error("tool.failed", tool=self.name, exc_info=error)
            return refused(f"{self.name} failed inside WADM; the log has the details")


class TrackingTool(Tool):
    """A tool that changes what is followed."""

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Any:
        """The answer as a question's, with progress notifications on the way; an `is_error` result of one line when there is none."""
        runtime: Runtime = context.request_context.lifespan_context
        try:
            unknown = [name for name in arguments if name not in self.parameters["properties"]]
            if unknown:
                takes = ", ".join(self.parameters["properties"])
                return refused(f'{self.name} has no argument {shown(unknown[0])}. Allowed: {takes}. Try {self.name}(symbol="ETHUSDT")')
            given = {name: value for name, value in arguments.items() if value is not None}
            if self.name == _TRACK:
                return self.fn_metadata.convert_result(told(await runtime.tracking.track(context.report_progress, **given)))
            return self.fn_metadata.convert_result(told(await runtime.tracking.untrack(**given)))
        except WadmError as error:
            return refused(str(error))
        except Exception as error:  # noqa: BLE001 - as of a question
            log.error("tool.failed", tool=self.name, exc_info=error)
            return refused(f"{self.name} failed inside WADM; the log has the details")


def tools(*, tracking: bool = False) -> list[Tool]:
    """Every tool, its schemas without what pydantic adds to them; with `tracking` those that change what is followed too."""
    return [*(_tool(declaration) for declaration in _DECLARATIONS), *((_track(), _untrack()) if tracking else ())]


def told(answer: Answer) -> CallToolResult:
    """An answer for a model: clients feed it either half, so both say the same."""
    return CallToolResult(content=[TextContent(type="text", text=compact(answer))], structured_content=answer)


def refused(text: str) -> CallToolResult:
    """One line for the model to read and act on."""
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)


def compact(answer: Answer) -> str:
    """An answer as JSON text without spaces."""
    return msgspec.json.encode(answer).decode()


def _track() -> Tool:
    return _tracking_tool(
        _TRACK,
        "Follow a symbol",
        "Start recording a symbol that list_markets does not show yet, wherever the exchanges list it, and import its recent past. Waits "
        "for live trades and history and tells progress; asking again tells how far it is. Kept across restarts.",
        answers.Tracked,
        {"wait": {"type": "integer", "description": "seconds to wait for it, 0-300", "default": WAIT}},
    )


def _untrack() -> Tool:
    return _tracking_tool(
        _UNTRACK,
        "Stop following a symbol",
        "Stop recording a symbol that track_market added. What is held stays.",
        answers.Untracked,
        {},
    )


def _tracking_tool(name: str, title: str, description: str, answer: type[BaseModel], more: dict[str, Any]) -> TrackingTool:
    metadata = FuncMetadata(arg_model=ArgModelBase, output_model=answer)
    metadata.output_schema = _lean(metadata.output_schema)
    properties = {
        "symbol": {"type": "string", "description": "e.g. ETHUSDT"},
        "exchange": {**_ARGUMENTS["exchange"], "default": ALL},
        "market": _ARGUMENTS["market"],
        **more,
    }
    return TrackingTool(
        context_kwarg=None,
        fn=Tracking.track,
        name=name,
        title=title,
        description=description,
        parameters={"type": "object", "properties": properties, "required": ["symbol"], "additionalProperties": False},
        fn_metadata=metadata,
        is_async=True,
        annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=True),
    )


def _tool(declaration: _Declaration) -> QuestionTool:
    metadata = FuncMetadata(arg_model=ArgModelBase, output_model=declaration.answer)
    metadata.output_schema = _lean(metadata.output_schema)
    return QuestionTool(
        question=declaration.question,
        context_kwarg=None,
        fn=declaration.question.query,
        name=declaration.question.name,
        title=declaration.title,
        description=declaration.description,
        parameters=_parameters(declaration.question),
        fn_metadata=metadata,
        is_async=True,
        annotations=_READ_ONLY,
    )


def _parameters(question: Question) -> dict[str, Any]:
    """The input schema. Defaults are the query's own, so that the two cannot drift apart."""
    properties = {
        name: _ARGUMENTS[name] if default in (None, NEEDED) else {**_ARGUMENTS[name], "default": default}
        for name, default in question.arguments.items()
    }
    needed = [name for name, default in question.arguments.items() if default is NEEDED]
    return {"type": "object", "properties": properties, **({"required": needed} if needed else {}), "additionalProperties": False}


def _lean(schema: Any) -> Any:
    """The schema without what only repeats names: titles, and the docstrings of models."""
    if isinstance(schema, list):
        return [_lean(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    repeats = {"title", "description"} if "properties" in schema else {"title"}
    return {key: _lean(value) for key, value in schema.items() if not (key in repeats and isinstance(value, str))}
