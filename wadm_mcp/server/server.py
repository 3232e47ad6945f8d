"""The MCP server: one object that every transport shares. It replaces the SDK's error texts with WADM's own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from mcp.server.caching import CacheHint
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.context import Context
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError, UnexpectedResourceError
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolResult, GetPromptResult, InputRequiredResult, Resource

from wadm_mcp import __version__
from wadm_mcp.errors import QueryError, UnknownSymbol, WadmError
from wadm_mcp.exchanges.registry import exchange_titles
from wadm_mcp.logs import log
from wadm_mcp.queries.arguments import shown, too_large
from wadm_mcp.queries.callers import asked_by, shared_address
from wadm_mcp.queries.scope import about_asked, ask
from wadm_mcp.server import completions, prompts, resources
from wadm_mcp.server.context import ServedRuntime
from wadm_mcp.server.limits import RequestLimits
from wadm_mcp.server.reply import error_result
from wadm_mcp.server.resource_updates import Publisher
from wadm_mcp.server.tools import tools
from wadm_mcp.suggest import nearest

INSTRUCTIONS: Final = f"""\
WADM records the public trades of {exchange_titles()} and answers with market structure, volume profiles and order flow. Every answer \
starts with coverage: how much of the window was recorded. Read and state it first; below ratio 1 the figures in coverage.broken are \
incomplete.
list_markets: what is followed, how fresh. get_market_structure: the evidence of a report in one call. get_volume_profile, get_order_flow, \
get_footprint, get_trades: closer. compare_exchanges: venues side by side. wait_for: until something happens.
Times are UTC, volumes base units. Figures are facts; phase and intent are your judgement. wadm://guide explains the fields; the prompts \
waickoff_report, session_review and compare_venues say what to ask in which order."""

_DEFINITIONS: Final = CacheHint(3_600_000, "public")
_LISTED_RESOURCES: Final = CacheHint(60_000, "private")
_READ_RESOURCE: Final = CacheHint(1_000, "private")


class WadmServer(MCPServer[ServedRuntime]):
    """An `MCPServer` whose error texts are all WADM's. `publisher` sends resource updates while its `run`
    runs; `limits` bounds requests."""

    def __init__(self, runtime: ServedRuntime) -> None:
        @asynccontextmanager
        async def lifespan(_: MCPServer[ServedRuntime]) -> AsyncGenerator[ServedRuntime]:
            yield runtime

        self.limits = RequestLimits()
        self.publisher = Publisher(runtime, self.list_resources)
        self._runtime = runtime
        super().__init__(
            "wadm",
            title="WADM",
            version=__version__,
            instructions=INSTRUCTIONS,
            tools=[*tools(tracking=bool(runtime.settings.WADM_ALLOW_TRACKING))],
            lifespan=lifespan,
            subscriptions=self.publisher.bus,
            middleware=[_with_caller, self.limits, self.publisher.watch],
            cache_hints={
                "tools/list": _DEFINITIONS,
                "prompts/list": _DEFINITIONS,
                "resources/templates/list": _DEFINITIONS,
                "resources/list": _LISTED_RESOURCES,
                "resources/read": _READ_RESOURCE,
            },
        )
        resources.declare(self, runtime)
        prompts.declare(self, runtime.view)
        completions.declare(self, runtime)
        self.publisher.serve(self._lowlevel_server)

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[ServedRuntime, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool. An unknown name is an error result, which the model reads like any other."""
        if problem := too_large({"name": name, "arguments": arguments}):
            return error_result(problem)
        known = [tool.name for tool in await self.list_tools()]
        if name not in known:
            return error_result(f"tool {shown(name)} does not exist.{_near(name, known)} Tools: {', '.join(known)}. Try list_markets()")
        return await super().call_tool(name, arguments, context)

    async def list_resources(self) -> list[Resource]:
        """The fixed resources, then those of the instruments that are followed now."""
        return [*await super().list_resources(), *resources.resources_of(self._runtime.followed)]

    async def read_resource(
        self, uri: Any, context: Context[ServedRuntime, Any] | None = None
    ) -> Iterable[ReadResourceContents] | InputRequiredResult:
        """Read a resource. `ResourceNotFoundError` where the URI or its symbol does not exist, `ResourceError` for every other failure."""
        try:
            return await super().read_resource(uri, context)
        except UnexpectedResourceError as error:
            match error.__cause__:
                case UnknownSymbol() as cause:
                    raise ResourceNotFoundError(str(cause)) from None
                case WadmError() as cause:
                    raise ResourceError(str(cause)) from None
                case cause:
                    log.error("resource.failed", uri=shown(str(uri)), exc_info=cause)
                    raise ResourceError(f"{uri} failed inside WADM; the log has the details") from None
        except ResourceNotFoundError:
            known = [str(one.uri) for one in await super().list_resources()]
            templates = [one.uri_template for one in await self.list_resource_templates()]
            raise ResourceNotFoundError(
                f"resource {shown(str(uri))} does not exist. Resources: {', '.join([*known, *templates])}"
            ) from None

    async def get_prompt(
        self, name: str, arguments: dict[str, Any] | None = None, context: Context[ServedRuntime, Any] | None = None
    ) -> GetPromptResult | InputRequiredResult:
        """Fill in a prompt. `MCPError` with the code for invalid params where the name or an argument is wrong."""
        known = {prompt.name: prompt.arguments or [] for prompt in await self.list_prompts()}
        if name not in known:
            raise MCPError(INVALID_PARAMS, f"prompt {shown(name)} does not exist. Prompts: {', '.join(known)}")
        allowed = [argument.name for argument in known[name]]
        example = f"Try {about_asked(self._runtime.view, ask(self._runtime.view, name), (arguments or {}).get('symbol')).example()}"
        for given in arguments or {}:
            if given not in allowed:
                raise MCPError(
                    INVALID_PARAMS,
                    f"{name} has no argument {shown(given)}.{_near(given, allowed)} Allowed: {', '.join(allowed)}. {example}",
                )
        for argument in known[name]:
            if argument.required and not str((arguments or {}).get(argument.name, "")).strip():
                raise MCPError(INVALID_PARAMS, f"{name} needs the argument {argument.name}. {example}")
        try:
            if "symbol" in allowed:
                prompts.check(name, arguments or {}, self._runtime.view)
        except QueryError as error:
            raise MCPError(INVALID_PARAMS, str(error)) from None
        return await super().get_prompt(name, arguments, context)


def build_server(runtime: ServedRuntime) -> WadmServer:
    """The MCP server of a runtime. Building it starts nothing: the transport that serves it enters the runtime."""
    return WadmServer(runtime)


async def _with_caller(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Middleware: the questions of a request are those of its session, if it has one, at its address."""
    session, client = ctx.session._connection.session_id, getattr(ctx.request, "client", None)
    with asked_by(shared_address(client.host if client is not None else ""), session or ""):
        return await call_next(ctx)


def _near(name: str, known: Sequence[str]) -> str:
    found = nearest(name, known, 1)
    return f" Nearest: {found[0]}." if found else ""
