"""The files of a job's result in a browser: shown where that is safe, and always to be had as they are.

Nothing a job made is ever a page of ours: what it wrote is escaped text, or an image that is served as
nothing else, below a policy that lets it do nothing (`auth.DATA_POLICY`).
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trainforge.config.errors import NotFound
from trainforge.sender.actions import in_thread
from trainforge.sender.compat_jobs import result_file
from trainforge.sender.pages import guarded, render
from trainforge.sender.text import plain

SHOWN_BYTES = 256 * 1024
SHOWN_ROWS, SHOWN_COLUMNS = 200, 40
# Images alone, known by how they begin; SVG is a document that can hold scripts, so it is shown as text.
IMAGES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
}


@dataclass(frozen=True)
class Preview:
    """`kind` is image, table, text or none."""

    kind: str
    text: str = ""
    rows: list[list[str]] = field(default_factory=list)
    cut: bool = False


def image_type(content: bytes) -> str:
    """Empty where it is none that browsers are asked to show."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in IMAGES.items() if content.startswith(start)), "")


def preview(name: str, content: bytes) -> Preview:
    """Pure: what a page shows of a file."""
    if image_type(content):
        return Preview("image")
    cut = len(content) > SHOWN_BYTES
    part = content[:SHOWN_BYTES]
    if b"\0" in part:
        return Preview("none")
    text = part.decode("utf-8", "ignore" if cut else "replace")
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in {".csv", ".tsv"}:
        return _table(text, "\t" if suffix == ".tsv" else ",", cut)
    if suffix == ".json" and not cut:
        text = _pretty(text)
    return Preview("text", plain(text), cut=cut)


def _table(text: str, delimiter: str, cut: bool) -> Preview:
    try:
        read = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = [row[:SHOWN_COLUMNS] for row in itertools.islice(read, SHOWN_ROWS + 1)]
    except csv.Error:
        return Preview("text", plain(text), cut=cut)
    return Preview("table", rows=rows[:SHOWN_ROWS], cut=cut or len(rows) > SHOWN_ROWS)


def _pretty(text: str) -> str:
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return text


async def _read(request: Request) -> tuple[str, str, bytes]:
    sender, path = request.app.state.sender, request.path_params["path"]
    job = await in_thread(sender.queries.resolve, request.path_params["job"])
    return job, path, await in_thread(result_file, sender, job, path)


async def file_page(request: Request) -> Response:
    job, path, content = await _read(request)
    shown: Any = await in_thread(preview, path, content)
    return render(
        request, "file.html", person=request.state.person, here="/jobs", job=job, path=path,
        size=len(content), shown=shown, address=f"/jobs/{job}/raw/{quote(path)}",
    )  # fmt: skip


async def raw_file(request: Request) -> Response:
    """The file itself, to be kept; `?show` of an image, to be shown."""
    _, path, content = await _read(request)
    if "show" in request.query_params:
        if not (kind := image_type(content)):
            raise NotFound("this is no image that can be shown")
        return Response(content, media_type=kind)
    name = quote(path.rsplit("/", 1)[-1], safe="")
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{name}"}
    return Response(content, media_type="application/octet-stream", headers=headers)


routes = [
    Route("/jobs/{job}/files/{path:path}", guarded(file_page)),
    Route("/jobs/{job}/raw/{path:path}", guarded(raw_file)),
]
