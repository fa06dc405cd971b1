"""The form that takes a ZIP: it becomes a commit, whose plan is then shown and confirmed like any."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from trainforge.config.errors import TrainForgeError
from trainforge.sender import bundles, new_job, uploads
from trainforge.sender.actions import in_thread
from trainforge.sender.auth import CSRF_FIELD, CSRF_HEADER, check_csrf
from trainforge.sender.context import Sender
from trainforge.sender.pages import guarded
from trainforge.sender.people import Person


async def upload_page(_request: Request) -> Response:
    """Where a page that showed a refusal is loaded again."""
    return RedirectResponse("/new", 303)


async def upload(request: Request) -> Response:
    sender: Sender = request.app.state.sender
    person: Person = request.state.person
    said: dict[str, str] = {}

    def check(fields: Mapping[str, str]) -> None:
        if person.cookie:
            check_csrf(person, request.headers.get(CSRF_HEADER, "") or fields.get(CSRF_FIELD, ""))
        said.update({name: text for name, text in fields.items() if name in bundles.BundleAsk.model_fields})

    try:
        received = await uploads.receive(request, sender.settings.max_bundle, check)
        with received.file:
            ask = bundles.read_ask({k: v for k, v in received.fields.items() if k != CSRF_FIELD})
            job = await bundles.plan(sender, ask, received, person)
    except TrainForgeError as error:
        return await in_thread(new_job.show_form, request, {"uploaded": "1", **said}, error)
    return RedirectResponse(f"/new/{job}", 303)


routes = [
    Route("/new/upload", guarded(upload_page)),
    Route("/new/upload", guarded(upload), methods=["POST"]),
]
