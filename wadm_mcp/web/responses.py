"""HTTP responses: a reply as JSON, as MessagePack or as its image, whichever the client accepts; an error as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgpack
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from wadm_mcp.server.reply import Reply

_JSON: Final = "application/json"
_MSGPACK: Final = "application/msgpack"


def reply_response(request: Request, reply: Reply) -> Response:
    """A reply in the form that the request's Accept header names; JSON where it names none of the others."""
    if reply.image is not None and _accepts(request, reply.image.media_type):
        response = Response(reply.image.data, media_type=reply.image.media_type)
    elif _accepts(request, _MSGPACK):
        response = Response(msgpack.packb(reply.answer), media_type=_MSGPACK)
    else:
        response = json_response(reply.answer)
    response.headers["Vary"] = "Accept"
    return response


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A body of JSON values."""
    return Response(msgspec.json.encode(body), status, headers, _JSON)


def error_response(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error: one line under the key `error`."""
    return json_response({"error": text}, status, headers)


def _accepts(request: Request, media_type: str) -> bool:
    """Whether the Accept header names this media type with a weight other than 0."""
    for entry in ",".join(request.headers.getlist("accept")).split(","):
        name, *parameters = (part.strip().lower().replace(" ", "") for part in entry.split(";"))
        if name == media_type:
            return not any(parameter.startswith("q=0") and not parameter.strip("q=0.") for parameter in parameters)
    return False
