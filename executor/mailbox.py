"""How an executor speaks to a sender that has no address: its requests wait here to be fetched.

A one-shot sender (`trainforge direct`) reaches this machine and cannot be reached. It fetches the requests
through the door, answers each, and everything else is as with any sender: heartbeats, journals, records.
One sender run at a time: a run that is not heard of for a while makes room for the next one.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trainforge.config.errors import Conflict, MessageInvalid

ADDRESS = "http://one-shot.sender"  # of no host: requests to it go nowhere but here
SILENT_S = 45.0  # a run that has not fetched for so long has gone
FORSAKEN_S = 600.0  # and after this nobody is going to ask for what trains here
MAX_WAIT_S = 25.0
MAX_ANSWER = 16 * 1024 * 1024
DEFAULT_TIMEOUT_S = 30.0


class Taking(BaseModel):
    """What a run says when it fetches requests, or leaves."""

    model_config = ConfigDict(extra="forbid")

    session: str = Field(min_length=16, max_length=128)
    wait_s: float = Field(default=0.0, ge=0, le=MAX_WAIT_S)


class Answer(Taking):
    """The answer to one request."""

    id: str = Field(max_length=64)
    status: int = Field(ge=200, le=599)
    headers: dict[str, str] = {}
    body: str = Field(default="", max_length=MAX_ANSWER)


@dataclass
class Letter:
    """A request that waits for its answer."""

    request: dict[str, Any]
    answered: threading.Event = field(default_factory=threading.Event)
    answer: Answer | None = None


class Mailbox(httpx2.BaseTransport):
    """The client's transport on one side, the door's routes on the other; safe to use from all threads."""

    def __init__(self, entered: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`entered` is told of a new run, which knows nothing yet."""
        self._entered, self._clock = entered, clock
        self._changed = threading.Condition()
        self._waiting: deque[str] = deque()
        self._letters: dict[str, Letter] = {}
        self._session = ""
        self._heard = clock()
        self._closed = False

    # --- this executor ---------------------------------------------------------------------------------

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Wait until the sender's run has fetched and answered it, as long as the client would."""
        body = request.read()
        headers = {name: request.headers[name] for name in ("authorization", "content-type")}
        number = secrets.token_urlsafe(12)
        said = {
            "id": number,
            "method": request.method,
            "path": request.url.raw_path.decode(),
            "body": body.decode(),
        }
        letter = Letter(said | {"headers": headers})
        with self._changed:
            if not self._present():
                raise httpx2.ConnectError("none is here now", request=request)
            self._letters[number] = letter
            self._waiting.append(number)
            self._changed.notify_all()
        timeout = request.extensions.get("timeout", {}).get("read") or DEFAULT_TIMEOUT_S
        letter.answered.wait(timeout)
        with self._changed:
            self._letters.pop(number, None)
        if letter.answer is None:
            raise httpx2.ReadTimeout("it does not answer", request=request)
        answer = letter.answer
        return httpx2.Response(answer.status, headers=answer.headers, content=answer.body.encode())

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._drop()

    def forsaken(self) -> bool:
        """Whether no run has been here for so long that none is going to ask for what trains here."""
        with self._changed:
            return self._clock() - self._heard > FORSAKEN_S

    # --- the sender's run ------------------------------------------------------------------------------

    def take(self, said: Taking) -> list[dict[str, Any]]:
        """The requests that wait, or the first to come within the time said.

        Raises:
            Conflict: another run has this executor.
        """
        deadline = self._clock() + said.wait_s
        self._enter(said.session)
        with self._changed:
            while not self._waiting and self._session == said.session and not self._closed:
                left = deadline - self._clock()
                if left <= 0:
                    break
                self._heard = self._clock()
                self._changed.wait(min(left, 1.0))
            if self._session != said.session:
                raise Conflict("another run has this executor", code="busy")
            self._heard = self._clock()
            taken = [self._letters[number].request for number in self._waiting if number in self._letters]
            self._waiting.clear()
        return taken

    def answer(self, said: Answer) -> None:
        """Raises Conflict: another run has this executor. One that nobody waits for is dropped."""
        with self._changed:
            if said.session != self._session:
                raise Conflict("another run has this executor", code="busy")
            self._heard = self._clock()
            letter = self._letters.get(said.id)
            if letter is not None and letter.answer is None:
                letter.answer = said
                letter.answered.set()

    def leave(self, said: Taking) -> None:
        with self._changed:
            if said.session == self._session:
                self._session = ""
                self._drop()

    def _enter(self, session: str) -> None:
        with self._changed:
            if session == self._session:
                return
            if self._present():
                raise Conflict(
                    "another run has this executor", hint="it is free when that one ends", code="busy"
                )
            self._session, self._heard = session, self._clock()
            self._drop()
        self._entered()

    def _present(self) -> bool:
        return bool(self._session) and self._clock() - self._heard < SILENT_S and not self._closed

    def _drop(self) -> None:
        """What was said to a run that has gone is not for the next one."""
        for letter in self._letters.values():
            letter.answered.set()
        self._letters.clear()
        self._waiting.clear()
        self._changed.notify_all()


def routes(mailbox: Mailbox, read: Callable[[Request], Awaitable[bytes]]) -> list[Route]:
    """The door's part. `read` gives the body of a request that the sender's key has signed."""

    async def take(request: Request) -> Response:
        said = _parse(Taking, await read(request))
        return JSONResponse({"requests": await run_in_threadpool(mailbox.take, said)})

    async def answer(request: Request) -> Response:
        mailbox.answer(_parse(Answer, await read(request)))
        return JSONResponse({})

    async def leave(request: Request) -> Response:
        mailbox.leave(_parse(Taking, await read(request)))
        return JSONResponse({})

    return [
        Route("/v1/mail/take", take, methods=["POST"]),
        Route("/v1/mail/answer", answer, methods=["POST"]),
        Route("/v1/mail/leave", leave, methods=["POST"]),
    ]


def _parse(model: type[Any], body: bytes) -> Any:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise MessageInvalid(f"the request is not well-formed: {error.errors()[0]['msg']}") from error
