"""Tools, resources and prompts that the official suite calls by name, declared on WADM's own server beside WADM's own."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import anyio
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.prompts.base import Prompt, UserMessage
from mcp.shared.exceptions import MCPError
from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    EmbeddedResource,
    EmptyResult,
    ImageContent,
    InputRequest,
    InputRequiredResult,
    ListRootsRequest,
    SamplingMessage,
    SetLevelRequestParams,
    TextContent,
    TextResourceContents,
)
from pydantic import Field

from wadm_mcp.server.server import WadmServer

_WHY: Final = "called by the conformance suite"
_PNG: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABAQAAAAA3bvkkAAAACklEQVR42mNgAAAAAgAB5Sfe/AAAAABJRU5ErkJggg=="
"""One black pixel."""
_WAV: Final = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQIAAACAgA=="
"""Two samples of silence."""

_DEFAULTS: Final = {
    "name": {"type": "string", "default": "John Doe"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    "verified": {"type": "boolean", "default": True},
}
_OPTIONS: Final = ["option1", "option2", "option3"]
_TITLED: Final = [{"const": f"value{number}", "title": f"Value {number}"} for number in (1, 2, 3)]
_ENUMS: Final = {
    "untitledSingle": {"type": "string", "enum": _OPTIONS},
    "titledSingle": {"type": "string", "oneOf": _TITLED},
    "legacyEnum": {"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["Option 1", "Option 2"]},
    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": _OPTIONS}},
    "titledMulti": {"type": "array", "items": {"anyOf": _TITLED}},
}

_VOCABULARY: Final = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$defs": {"address": {"$anchor": "address", "type": "string"}},
    "type": "object",
    "properties": {"post": {"$ref": "#address"}, "mail": {"$ref": "#/$defs/address"}, "urgent": {"type": "boolean"}},
    "allOf": [{"anyOf": [{"required": ["post"]}, {"required": ["mail"]}]}],
    "if": {"properties": {"urgent": {"const": True}}, "required": ["urgent"]},
    "then": {"required": ["mail"]},
    "else": {"required": ["post"]},
    "additionalProperties": False,
}
"""Keywords of JSON Schema 2020-12 that must reach the client as they are."""


def _form(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": [*properties]}


def _asked(message: str, **properties: str) -> ElicitRequest:
    schema = _form({name: {"type": kind} for name, kind in properties.items()})
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def _user(text: str) -> SamplingMessage:
    return SamplingMessage(role="user", content=TextContent(text=text))


def _sampled(text: str) -> CreateMessageRequest:
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[_user(text)], max_tokens=100))


_ROUNDS: Final[dict[str, Sequence[dict[str, InputRequest]]]] = {
    "elicitation": [{"user_name": _asked("What is your name?", name="string")}],
    "sampling": [{"capital_question": _sampled("What is the capital of France?")}],
    "list_roots": [{"client_roots": ListRootsRequest()}],
    "request_state": [{"confirm": _asked("Please confirm", ok="boolean")}],
    "tampered_state": [{"confirm": _asked("Please confirm", ok="boolean")}],
    "multiple_inputs": [
        {
            "user_name": _asked("What is your name?", name="string"),
            "greeting": _sampled("Generate a greeting"),
            "client_roots": ListRootsRequest(),
        }
    ],
    "multi_round": [{"step1": _asked("What is your name?", name="string")}, {"step2": _asked("Which color?", color="string")}],
}
"""The requests of each `test_input_required_result_` tool, round by round."""


def _resource(uri: str, mime_type: str, text: str) -> EmbeddedResource:
    return EmbeddedResource(resource=TextResourceContents(uri=uri, mime_type=mime_type, text=text))


def _image() -> ImageContent:
    return ImageContent(data=_PNG, mime_type="image/png")


def _next(ctx: Context[Any, Any], rounds: Sequence[dict[str, InputRequest]]) -> str | InputRequiredResult:
    """The request of the next round, or the answers once all rounds are done. The state is the number of the round."""
    number, given = int(ctx.request_state or 0), ctx.input_responses or {}
    if rounds[number].keys() <= given.keys():
        number += 1
    if number < len(rounds):
        return InputRequiredResult(input_requests=rounds[number], request_state=str(number))
    answers = {name: answer.model_dump(mode="json", exclude_none=True) for name, answer in given.items()}
    return f"{'state-ok' if ctx.request_state else 'no state'}: {json.dumps(answers)}"


def declare(server: WadmServer) -> None:
    """Declare everything that the suite calls by name."""
    _declare_contents(server)
    _declare_conversations(server)
    _declare_rounds(server)
    _declare_changes(server)
    _declare_resources(server)
    _declare_prompts(server)
    _declare_log_level(server)


def _declare_contents(server: MCPServer[Any]) -> None:
    tool = server.tool(description=_WHY)

    @tool
    async def test_simple_text() -> str:
        return "This is a simple text response for testing."

    @tool
    async def test_image_content() -> list[ImageContent]:
        return [_image()]

    @tool
    async def test_audio_content() -> list[AudioContent]:
        return [AudioContent(data=_WAV, mime_type="audio/wav")]

    @tool
    async def test_embedded_resource() -> list[EmbeddedResource]:
        return [_resource("test://embedded-resource", "text/plain", "This is an embedded resource content.")]

    @tool
    async def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
        data = _resource("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')
        return [TextContent(text="Multiple content types test:"), _image(), data]

    @tool
    async def test_error_handling() -> str:
        raise RuntimeError("This tool intentionally returns an error for testing")

    @tool
    async def test_custom_header(region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})]) -> str:
        return region

    @tool
    async def json_schema_2020_12_tool() -> str:
        return "ok"

    tool = server._tool_manager.get_tool("json_schema_2020_12_tool")
    assert tool is not None
    tool.parameters = _VOCABULARY


def _declare_conversations(server: MCPServer[Any]) -> None:
    tool = server.tool(description=_WHY)

    async def say(ctx: Context[Any, Any], *lines: str) -> str:
        for line in lines:
            await ctx.info(line)  # pyright: ignore[reportDeprecated]
        return lines[-1]

    async def elicit(ctx: Context[Any, Any], message: str, properties: Mapping[str, Any]) -> str:
        answer = await ctx.session.elicit_form(message, _form(properties), ctx.request_id)
        return f"action={answer.action}, content={answer.content}"

    @tool
    async def test_tool_with_logging(ctx: Context[Any, Any]) -> str:
        return await say(ctx, "Tool execution started", "Tool processing data", "Tool execution completed")

    @tool
    async def test_logging_tool(ctx: Context[Any, Any]) -> str:
        return await say(ctx, "A line without a log level set")

    @tool
    async def test_tool_with_progress(ctx: Context[Any, Any]) -> str:
        for done in (0, 50, 100):
            await ctx.report_progress(done, 100)
        return "done"

    @tool
    async def test_sampling(prompt: str, ctx: Context[Any, Any]) -> str:
        answer = await ctx.session.create_message(  # pyright: ignore[reportDeprecated]
            [_user(prompt)], max_tokens=100, related_request_id=ctx.request_id
        )
        return f"LLM response: {answer.content}"

    @tool
    async def test_elicitation(message: str, ctx: Context[Any, Any]) -> str:
        return await elicit(ctx, message, {"username": {"type": "string"}, "email": {"type": "string"}})

    @tool
    async def test_elicitation_sep1034_defaults(ctx: Context[Any, Any]) -> str:
        return await elicit(ctx, "Change what is not right", _DEFAULTS)

    @tool
    async def test_elicitation_sep1330_enums(ctx: Context[Any, Any]) -> str:
        return await elicit(ctx, "Choose", _ENUMS)

    @tool
    async def test_missing_capability(ctx: Context[Any, Any]) -> str:
        declared = ctx.client_capabilities
        if declared is None or declared.sampling is None:
            wanted = {"requiredCapabilities": {"sampling": {}}}
            raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, "the client has to declare sampling", wanted)
        return "declared"

    @tool
    async def test_reconnection(ctx: Context[Any, Any]) -> str:
        await ctx.close_sse_stream()
        await anyio.sleep(0.2)  # while the suite reconnects for the rest
        return "reconnected"


def _declare_rounds(server: MCPServer[Any]) -> None:
    tool = server.tool(description=_WHY)

    def add(name: str, rounds: Sequence[dict[str, InputRequest]]) -> None:
        async def ask(ctx: Context[Any, Any]) -> str | InputRequiredResult:
            return _next(ctx, rounds)

        server.add_tool(ask, name, description=_WHY)

    for name, rounds in _ROUNDS.items():
        add(f"test_input_required_result_{name}", rounds)
    add("test_streaming_elicitation", _ROUNDS["elicitation"])

    @tool
    async def test_input_required_result_capabilities(ctx: Context[Any, Any]) -> InputRequiredResult:
        declared = ctx.client_capabilities
        wanted: dict[str, InputRequest] = {}
        if declared is not None and declared.sampling is not None:
            wanted |= {"greeting": _sampled("Generate a greeting")}
        if declared is not None and declared.elicitation is not None:
            wanted |= {"user_name": _asked("What is your name?", name="string")}
        return InputRequiredResult(input_requests=wanted)

    @server.prompt(description=_WHY)
    async def test_input_required_result_prompt(ctx: Context[Any, Any]) -> str | InputRequiredResult:
        return _next(ctx, [{"user_context": _asked("In which context?", context="string")}])


def _declare_changes(server: MCPServer[Any]) -> None:
    tool = server.tool(description=_WHY)

    async def passing() -> str:
        return "here for a moment"

    @tool
    async def test_trigger_tool_change(ctx: Context[Any, Any]) -> str:
        server.add_tool(passing)
        server.remove_tool("passing")
        await ctx.notify_tools_changed()
        return "changed"

    @tool
    async def test_trigger_prompt_change(ctx: Context[Any, Any]) -> str:
        server.add_prompt(Prompt.from_function(passing))
        server.remove_prompt("passing")
        await ctx.notify_prompts_changed()
        return "changed"


def _declare_resources(server: WadmServer) -> None:
    @server.resource("test://static-text")
    async def static_text() -> str:
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", mime_type="image/png")
    async def static_binary() -> bytes:
        return base64.b64decode(_PNG)

    @server.resource("test://template/{id}/data", mime_type="application/json")
    async def template(id: str) -> str:
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})

    @server.resource("test://watched-resource")
    async def watched() -> str:
        return "watched"


def _declare_prompts(server: MCPServer[Any]) -> None:
    prompt = server.prompt(description=_WHY)

    @prompt
    async def test_simple_prompt() -> str:
        return "This is a simple prompt for testing."

    @prompt
    async def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @prompt
    async def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:  # noqa: N803 - the suite's name
        resource = _resource(resourceUri, "text/plain", "Embedded resource content for testing.")
        return [UserMessage(resource), UserMessage("Please process the embedded resource above.")]

    @prompt
    async def test_prompt_with_image() -> list[UserMessage]:
        return [UserMessage(_image()), UserMessage("Please analyze the image above.")]


def _declare_log_level(server: MCPServer[Any]) -> None:
    async def set_level(ctx: ServerRequestContext[Any, Any], params: SetLevelRequestParams) -> EmptyResult:
        return EmptyResult()

    server._lowlevel_server.add_request_handler("logging/setLevel", SetLevelRequestParams, set_level)
