"""The tools: names, descriptions and schemas of the questions that an agent may ask. No market logic.

A tool takes the arguments of its question's query, and an argument has one description in all tools, except `limit`. Argument values are
validated by the query, which raises a `QueryError`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from mcp.server.mcpserver.context import Context
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field

from wadm_mcp.errors import WadmError
from wadm_mcp.exchanges.registry import exchange_names
from wadm_mcp.logs import log
from wadm_mcp.model import MARKETS, Timeframe
from wadm_mcp.queries import markets, trades
from wadm_mcp.queries.arguments import ALL, DETAILS, SESSION, WINDOWS, shown
from wadm_mcp.queries.wait_for import CONDITIONS
from wadm_mcp.server import answers, questions
from wadm_mcp.server.context import ServedRuntime
from wadm_mcp.server.questions import NEEDED, Question
from wadm_mcp.server.reply import Reply, error_result, tool_result
from wadm_mcp.tracking import DEFAULT_WAIT_SECONDS, TRACK, UNTRACK, Tracking

_READ_ONLY: Final = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)

_ARGUMENTS: Final[dict[str, dict[str, Any]]] = {
    "symbol": {"type": "string", "description": "e.g. BTCUSDT"},
    "exchange": {"type": "string", "description": "all = merged"},
    "market": {"type": "string", "enum": [*MARKETS], "description": "linear = perpetuals; default: first followed"},
    "window": {
        "type": "string",
        "enum": [*WINDOWS, SESSION],
        "description": "ending now, default 1h; session: since 00:00 UTC",
    },
    "start": {"type": "string", "description": "ISO 8601, UTC, or epoch"},
    "end": {"type": "string", "description": "exclusive; default now"},
    "as_of": {"type": "string", "description": "past time; show the market as of it"},
    "timeframe": {"type": "string", "enum": [*Timeframe], "description": "bar length"},
    "row_size": {"type": "number", "description": "a multiple of the tick; default: about 100 rows"},
    "value_area": {"type": "integer", "description": "percent of volume, 1-100"},
    "method": {"type": "string", "enum": ["two_row", "one_row"], "description": "how the value area grows from the POC"},
    "detail": {"type": "string", "enum": [*DETAILS], "description": "how much is listed"},
    "limit": {"type": "integer"},
    "cursor": {"type": "string", "description": "next_cursor; keep the other arguments"},
    "min_notional": {"type": "number", "description": "least price x quantity"},
    "condition": {
        "type": "string",
        "enum": [*CONDITIONS],
        "description": "delta and volume: of the open bar; coverage_back: nothing missing in the last timeframe",
    },
    "value": {"type": "number", "description": "price, delta (below 0: downwards) or volume"},
    "timeout": {"type": "integer", "description": "seconds, 1-300; many clients give up after 60"},
}

_LIMITS: Final = {
    questions.MARKETS: f"rows, max {markets.MAX_ROWS}",
    questions.ORDER_FLOW: "newest bars",
    questions.FOOTPRINT: "newest bars",
    questions.TRADES: f"page, max {trades.MAX_PAGE_ROWS}",
}
"""What the argument `limit` of a question counts. The default of bars is their maximum."""


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
        "Start here: the instruments recorded, each with last price, age of the newest trade, coverage of the last 24 h (1 = all), open "
        "gaps, where history begins. Only these can be asked about.",
    ),
    _Declaration(
        questions.STRUCTURE,
        "Market structure",
        answers.MarketStructure,
        "The evidence for a Wyckoff-style report in one call: session, value area against earlier ones, naked POCs, delta extremes, the "
        "trading range frozen before the open bar, swings, and event candidates (climax, spring, upthrust, break, retest, absorbed, "
        "exhaustion, delta_divergence, stacked, large), each with its figures. Names no phase or intent. Look closer with the tools below.",
    ),
    _Declaration(
        questions.VOLUME_PROFILE,
        "Volume profile",
        answers.VolumeProfile,
        "Volume by price over a window: poc (row with most volume), value area val to vah, vwap, buy and sell volume, delta, and nodes low "
        "to high. A row is named by its low price; vah is the top tick of its row. For bars use get_order_flow.",
    ),
    _Declaration(
        questions.ORDER_FLOW,
        "Order flow",
        answers.OrderFlow,
        "Bars over a window, oldest first, empty ones included: OHLC, buy and sell volume, delta (buy - sell), cumulative_delta since "
        "00:00 UTC, imbalance_ratio (delta / volume), trade_count, min and max delta. For prices inside a bar use get_footprint.",
    ),
    _Declaration(
        questions.FOOTPRINT,
        "Footprint",
        answers.Footprint,
        "Inside each bar, buy and sell volume by price row with diagonal imbalances, plus OHLC, delta and poc. Much output: find the bars "
        "of interest with get_order_flow first, or choose a coarse row_size.",
    ),
    _Declaration(
        questions.TRADES,
        "Trades",
        answers.Trades,
        "Single public trades of a window, oldest first; trade_type is the aggressor's side. min_notional finds large prints. Follow "
        "next_cursor until it is null. Do not add trades up: get_order_flow has the sums.",
    ),
    _Declaration(
        questions.COMPARE,
        "Compare exchanges",
        answers.Comparison,
        "One symbol on every exchange and market followed, over one window: volume share, delta, vwap; for each pair the basis, and which "
        "one's delta comes first (lead_bars above 0: the first). Figures of one venue alone: the other tools with exchange and market.",
    ),
    _Declaration(
        questions.WAIT,
        "Wait for",
        answers.Waited,
        "Wait until a condition is met, at most timeout seconds, and return what was seen. Not met is an answer (met: false); ask again "
        "to go on waiting. Clients that can subscribe to resources need it less.",
    ),
)


class QuestionTool(Tool):
    """A tool that asks a question. Every failure becomes an error result with a text of WADM."""

    question: Question = Field(exclude=True)

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Any:
        """Ask the question: the answer as text and as structured content, or an error result of one line."""
        runtime: ServedRuntime = context.request_context.lifespan_context
        try:
            reply = await self.question.ask(runtime, arguments, progress=context.report_progress)
            return self.fn_metadata.convert_result(tool_result(reply))
        except WadmError as error:
            return error_result(str(error))
        except Exception as error:  # noqa: BLE001 - the log gets the traceback, the client one line
            log.error("tool.failed", tool=self.name, exc_info=error)
            return error_result(f"{self.name} failed inside WADM; the log has the details")


class TrackingTool(Tool):
    """A tool that changes which instruments are followed."""

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Any:
        """Track or untrack: the answer as for a question, with progress notifications meanwhile, or an error result of one line."""
        runtime: ServedRuntime = context.request_context.lifespan_context
        try:
            unknown = [name for name in arguments if name not in self.parameters["properties"]]
            if unknown:
                allowed = ", ".join(self.parameters["properties"])
                example = await runtime.tracking.example(self.name, arguments.get("symbol"))
                return error_result(f"{self.name} has no argument {shown(unknown[0])}. Allowed: {allowed}. Try {example}")
            given = {name: value for name, value in arguments.items() if value is not None}
            if self.name == TRACK:
                reply = Reply(await runtime.tracking.track(context.report_progress, **given))
            else:
                reply = Reply(await runtime.tracking.untrack(**given))
            return self.fn_metadata.convert_result(tool_result(reply))
        except WadmError as error:
            return error_result(str(error))
        except Exception as error:  # noqa: BLE001 - as for a question
            log.error("tool.failed", tool=self.name, exc_info=error)
            return error_result(f"{self.name} failed inside WADM; the log has the details")


def tools(*, tracking: bool = False) -> list[Tool]:
    """Every tool, its schemas stripped of what pydantic adds; with `tracking` also those that change which instruments are followed."""
    return [*(_tool(declaration) for declaration in _DECLARATIONS), *((_track(), _untrack()) if tracking else ())]


def _track() -> Tool:
    return _tracking_tool(
        TRACK,
        "Follow a symbol",
        "Start recording a symbol that list_markets does not show yet, in one market of every exchange, and import its recent past. Waits "
        "for live trades and history and reports progress; asking again shows how far it is. Kept across restarts.",
        answers.Tracked,
        {"wait": {"type": "integer", "description": "seconds to wait for it, 0-300", "default": DEFAULT_WAIT_SECONDS}},
    )


def _untrack() -> Tool:
    return _tracking_tool(
        UNTRACK,
        "Stop following a symbol",
        "Stop recording a symbol that track_market added. Stored data stays.",
        answers.Untracked,
        {},
    )


def _tracking_tool(name: str, title: str, description: str, answer: type[BaseModel], more: dict[str, Any]) -> TrackingTool:
    metadata = FuncMetadata(arg_model=ArgModelBase, output_model=answer)
    metadata.output_schema = _lean(metadata.output_schema)
    properties = {
        "symbol": {"type": "string", "description": "e.g. ETHUSDT"},
        "exchange": {**_schema("exchange"), "default": ALL},
        "market": _schema("market"),
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
    """The input schema. Its defaults are those of the query's parameters, so that the two cannot differ."""
    properties = {
        name: _schema(name, question) if default in (None, NEEDED) else {**_schema(name, question), "default": default}
        for name, default in question.arguments.items()
    }
    needed = [name for name, default in question.arguments.items() if default is NEEDED]
    return {"type": "object", "properties": properties, **({"required": needed} if needed else {}), "additionalProperties": False}


def _schema(argument: str, question: Question | None = None) -> dict[str, Any]:
    """The schema of an argument, of a question where it differs by question. Exchanges are those that are registered now."""
    schema = _ARGUMENTS[argument]
    if argument == "limit" and question is not None:
        return {**schema, "description": _LIMITS[question]}
    return {"type": schema["type"], "enum": [*exchange_names(), ALL], **schema} if argument == "exchange" else schema


def _lean(schema: Any) -> Any:
    """The schema without its titles, model docstrings and lists of required names, which would cost an agent tokens in every tool. Answers
    are validated against the whole model before they are sent."""
    if isinstance(schema, list):
        return [_lean(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    repeats = {"title", "description", "required"} if "properties" in schema else {"title", "default"}
    return {key: _lean(value) for key, value in schema.items() if not (key in repeats and not isinstance(value, dict))}
