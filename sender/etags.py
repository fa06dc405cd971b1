"""Answers say by an ETag what they are, and are not sent again to who has them (RFC 9110, section 13)."""

from __future__ import annotations

import hashlib

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

MEDIA_TYPE = "application/json"


def unless_known(request: Request, response: Response) -> Response:
    """The answer with its ETag, or 304 where the request names that one already."""
    data = response.media_type == MEDIA_TYPE and not isinstance(response, StreamingResponse)
    if not data or response.status_code != 200 or not request.url.path.startswith("/api/"):
        return response
    tag = f'"{hashlib.sha256(response.body).hexdigest()[:24]}"'
    response.headers["ETag"] = tag
    known = {one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")}
    return Response(status_code=304, headers={"ETag": tag}) if known & {tag, "*"} else response
