"""The encodings of a reply: an image travels beside the structured content over MCP, and over HTTP to a client that accepts it."""

from __future__ import annotations

from base64 import b64decode

import pytest
from mcp_types import ImageContent, TextContent
from starlette.requests import Request

from wadm_mcp.server.reply import Media, Reply, tool_result
from wadm_mcp.web.responses import reply_response

_IMAGE = Media(b"\x89PNG", "image/png")
_REPLY = Reply({"coverage": {"ratio": 1}}, _IMAGE)


def _request(accept: str) -> Request:
    return Request({"type": "http", "headers": [(b"accept", accept.encode())]})


def test_over_mcp_an_image_follows_the_text_of_the_answer() -> None:
    text, image = tool_result(_REPLY).content
    assert isinstance(text, TextContent)
    assert text.text == '{"coverage":{"ratio":1}}'
    assert isinstance(image, ImageContent)
    assert (b64decode(image.data), image.mime_type) == _IMAGE
    assert tool_result(_REPLY).structured_content == _REPLY.answer


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [("*/*", "application/json"), ("image/png", "image/png"), ("image/png;q=0", "application/json"), ("image/webp", "application/json")],
)
def test_over_http_an_image_is_sent_where_the_client_names_its_media_type(accept: str, media_type: str) -> None:
    response = reply_response(_request(accept), _REPLY)
    assert response.headers["content-type"] == media_type
    assert response.headers["vary"] == "Accept"
    assert (bytes(response.body) == _IMAGE.data) == (media_type == "image/png")


def test_a_reply_without_an_image_is_json_whatever_image_the_client_accepts() -> None:
    response = reply_response(_request("image/png"), Reply(_REPLY.answer))
    assert response.headers["content-type"] == "application/json"
