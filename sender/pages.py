"""The pages for browsers: rendered here and escaped by the template engine, whole without any script.

A page that lives names its event stream and its version; `static/live.js` fetches it again when the
version differs, so nothing is rendered twice in two languages.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from trainforge.config.counters import measured
from trainforge.config.errors import NotTrusted, TrainForgeError
from trainforge.config.matrix import cell_name
from trainforge.config.views import LogLine
from trainforge.sender import text
from trainforge.sender.problems import as_error, problem, retry_header

HERE = Path(__file__).parent


def environment(now: Callable[[], float], asset: Callable[[str], str]) -> Environment:
    """Templates whose every value loses terminal codes and is escaped; `now` is read at each rendering.

    `asset` makes the address of a static file.
    """
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "size": text.size,
        "duration": text.duration,
        "number": text.number,
        "iso": text.iso,
        "about": text.about,
        "ago": lambda time: text.ago(time, now()),
        "branch": lambda ref: ref.removeprefix("refs/heads/").removeprefix("refs/"),
        "who": _who,
        "clock": lambda time: text.iso(time)[11:19],
        "cell": cell_name,
        "measured": measured,
        "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        "path": lambda path: quote(str(path), safe="/"),
    }
    made.globals["asset"] = asset
    return made


def _shown(value: Any) -> Any:
    return text.plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _who(line: LogLine) -> str:
    return f"rank {line.rank}" if line.rank >= 0 else f"node {line.node}"


def render(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    templates: Environment = request.app.state.templates
    shown = {"person": None, "here": "", "stream": "", "version": ""} | values
    return HTMLResponse(templates.get_template(template).render(shown), status)


def problem_page(request: Request, error: Exception) -> Response:
    """A refusal as a page; who is not known is sent to the login."""
    known = as_error(error)
    if isinstance(known, NotTrusted) and request.method in {"GET", "HEAD"}:
        wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/login?next={quote(wanted, safe='')}", 303)
    person = getattr(request.state, "person", None)
    page = render(request, "problem.html", status=known.status, person=person, problem=problem(known))
    page.headers.update(retry_header(known))
    return page


async def workers(_request: Request) -> Response:
    """Executors, as the first pages called them."""
    return RedirectResponse("/executors", 303)


async def home(_request: Request) -> Response:
    return RedirectResponse("/jobs", 303)


def guarded(endpoint: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """A page that shows its refusals as pages."""

    async def page(request: Request) -> Response:
        try:
            response: Response = await endpoint(request)
        except TrainForgeError as error:
            return problem_page(request, error)
        return response

    return page


def threaded(work: Callable[[Request], Response]) -> Callable[[Request], Any]:
    """A page that is guarded, and made in a thread: what it reads blocks."""

    async def page(request: Request) -> Response:
        return await asyncio.to_thread(work, request)

    return guarded(page)


routes = [
    Route("/", home),
    Route("/workers", workers),
]
