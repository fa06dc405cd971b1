"""`/api/notices`: notifications that have not arrived, and sending them again."""

from __future__ import annotations

from functools import partial

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trainforge.config.errors import Conflict
from trainforge.config.views import NoticeView
from trainforge.sender.actions import in_thread
from trainforge.sender.context import Sender
from trainforge.sender.notify import JOBS
from trainforge.sender.problems import dump, read_model


class AgainAsk(BaseModel):
    model_config = ConfigDict(extra="forbid")

    job: str = Field(min_length=1, max_length=64)
    occasion: str = Field(min_length=1, max_length=20)
    target: str = Field(min_length=1, max_length=200)


async def list_notices(request: Request) -> Response:
    views = await in_thread(request.app.state.sender.store.unsent_notices)
    return dump({"notices": [view.model_dump(mode="json") for view in views]})


async def send_notice_again(request: Request) -> Response:
    ask = await read_model(request, AgainAsk)
    return dump(await in_thread(partial(again, request.app.state.sender, ask, request.state.person.actor)))


def again(sender: Sender, ask: AgainAsk, actor: str) -> NoticeView:
    """Have it sent as soon as can be, and for a day from now.

    Raises:
        NotFound: nothing of the kind is unsent. Conflict: the settings do not say where the target is.
    """
    if ask.target not in sender.settings.notify:
        raise Conflict(
            f"this sender's settings have no target {ask.target[:80]!r}",
            hint="name it in sender.yaml under notify",
        )
    view = sender.store.send_again(ask.job, ask.occasion, ask.target, sender.now())
    sender.store.audit(actor, "notice.again", view.job, {"target": view.target}, now=sender.now())
    sender.bell.ring(JOBS)
    return view


routes = [
    Route("/notices", list_notices),
    Route("/notices/again", send_notice_again, methods=["POST"]),
]
