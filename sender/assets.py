"""The pages' styles, scripts and the library of charts: read once, kept packed, cached by browsers.

Chart.js comes with the package `chartkick`, of which nothing else is used: a version of it that a package
manager brings and updates, and that draws on canvases without any style or code made at run time.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

CHARTS = "chart.js"
FOREVER = "public, max-age=31536000, immutable"
PACKED = ("text/", "application/javascript", "image/svg")


@dataclass(frozen=True)
class Asset:
    media_type: str
    content: bytes
    packed: bytes  # by gzip; empty where that does not pay
    version: str


@functools.cache
def load(folder: Path) -> Mapping[str, Asset]:
    """All files of a folder and the library, by name."""
    contents = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    library = files("chartkick").joinpath("django", "static", "chartkick", "Chart.bundle.js")
    contents[CHARTS] = library.read_bytes()
    return {name: _asset(name, content) for name, content in contents.items()}


def _asset(name: str, content: bytes) -> Asset:
    media_type = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0]
    media_type = media_type or "application/octet-stream"
    packed = gzip.compress(content, mtime=0) if media_type.startswith(PACKED) else b""
    return Asset(media_type, content, packed, hashlib.sha256(content).hexdigest()[:16])


class Assets:
    """ASGI application below one path. An address with the file's version is good for ever."""

    def __init__(self, assets: Mapping[str, Asset]) -> None:
        self._assets = assets

    def address(self, name: str) -> str:
        return f"/static/{name}?v={self._assets[name].version}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path"].removeprefix(f"{scope.get('root_path', '')}/")
        asset = self._assets.get(name)
        if asset is None or scope["method"] not in {"GET", "HEAD"}:
            raise HTTPException(404)
        await _answer(Request(scope), asset)(scope, receive, send)


def _answer(request: Request, asset: Asset) -> Response:
    tag = f'"{asset.version}"'
    known = request.query_params.get("v") == asset.version
    headers: dict[str, Any] = {"ETag": tag, "Cache-Control": FOREVER if known else "no-cache"}
    if asset.packed:
        headers["Vary"] = "Accept-Encoding"
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    content = asset.content
    if asset.packed and "gzip" in request.headers.get("accept-encoding", ""):
        content, headers["Content-Encoding"] = asset.packed, "gzip"
    return Response(content, headers=headers, media_type=asset.media_type)
