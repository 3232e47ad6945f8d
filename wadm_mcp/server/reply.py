"""What a question replies with, and its one encoding for MCP. `web.responses` has the one for HTTP; an answer leaves by no other way."""

from __future__ import annotations

from base64 import b64encode
from typing import Any, NamedTuple, TypeAlias

import msgspec
from mcp_types import CallToolResult, ImageContent, TextContent

Answer: TypeAlias = dict[str, Any]
"""A finished answer as JSON values, coverage first."""


class Media(NamedTuple):
    """Bytes that show an answer's figures, with their media type such as `image/png`."""

    data: bytes
    media_type: str


class Reply(NamedTuple):
    """An answer as structured content and, where the question made one, as an image of the same figures."""

    answer: Answer
    image: Media | None = None

    @property
    def text(self) -> str:
        """The answer as JSON text without spaces."""
        return msgspec.json.encode(self.answer).decode()


def tool_result(reply: Reply) -> CallToolResult:
    """A reply as a tool's result. Clients give their model the text or the structure, so both carry the same."""
    content: list[TextContent | ImageContent] = [TextContent(type="text", text=reply.text)]
    if reply.image is not None:
        content.append(ImageContent(type="image", data=b64encode(reply.image.data).decode(), mime_type=reply.image.media_type))
    return CallToolResult(content=[*content], structured_content=reply.answer)


def error_result(text: str) -> CallToolResult:
    """An error as a tool's result: one line for the model to read and act on."""
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)
