"""Who makes a request: a bearer token, or a browser's session whose origin is checked; and safe headers."""

from __future__ import annotations

import asyncio
import base64
import binascii
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainforge.config.errors import Forbidden, NotTrusted
from trainforge.sender.context import Sender
from trainforge.sender.people import SESSION_LIFE_S, Person
from trainforge.sender.problems import problem_response

COOKIE = "trainforge_session"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


async def identify(connection: HTTPConnection) -> Person:
    """The person behind a request.

    Raises:
        NotTrusted: nobody known.
        Forbidden: a browser sent the cookie along with a request that another site made.
    """
    sender: Sender = connection.app.state.sender
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    person: Person | None = None
    if scheme.lower() == "bearer":
        person = await asyncio.to_thread(sender.people.by_token, token.strip(), sender.now())
    elif not scheme and (secret := connection.cookies.get(COOKIE, "")):
        person = await asyncio.to_thread(sender.people.by_session, secret, sender.now())
    if person is None:
        raise NotTrusted(
            "this needs an access token that is valid here", hint="`trainforge login URL` sets one up"
        )
    if person.cookie and connection.scope["method"] not in SAFE_METHODS:
        check_origin(connection)
    return person


def check_origin(connection: HTTPConnection) -> None:
    """Refuse what a browser sends on behalf of another site.

    The scheme is not compared: behind a proxy that ends TLS this side sees plain http.

    Raises:
        Forbidden: it comes from elsewhere, or does not say where it comes from.
    """
    sender: Sender = connection.app.state.sender
    origin = connection.headers.get("origin")
    if origin is None:
        if connection.headers.get("sec-fetch-site") == "same-origin":
            return
        raise Forbidden("the request does not say which page it comes from")
    ours = {connection.headers.get("host", "").lower(), urlsplit(sender.settings.public_url).netloc.lower()}
    said = urlsplit(origin)
    if said.scheme not in {"http", "https"} or not said.netloc or said.netloc.lower() not in ours:
        raise Forbidden("the request comes from a page of another site")


def basic_password(authorization: str) -> str:
    """The password of a Basic header, as git sends it; empty when there is none."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
    return decoded.partition(":")[2]


def set_session(request: Request, response: Response, secret: str) -> None:
    """Log a browser in; the cookie is kept from scripts and from other sites' requests."""
    sender: Sender = request.app.state.sender
    secure = request.url.scheme == "https" or sender.settings.public_url.startswith("https:")
    response.set_cookie(
        COOKIE, secret, max_age=SESSION_LIFE_S, path="/", httponly=True, samesite="lax", secure=secure
    )


class RequirePerson:
    """ASGI middleware: answers 401 or 403 itself, else leaves the person in `request.state.person`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("only HTTP is served here")
        try:
            person = await identify(HTTPConnection(scope))
        except (NotTrusted, Forbidden) as error:
            await problem_response(error)(scope, receive, send)
            return
        scope.setdefault("state", {})["person"] = person
        await self.app(scope, receive, send)


class SafeHeaders:
    """ASGI middleware: what keeps a hostile text that got through from doing anything in a browser."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Content-Security-Policy"] = CONTENT_POLICY
                headers["Referrer-Policy"] = "same-origin"
                headers["Cross-Origin-Opener-Policy"] = "same-origin"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers["X-Frame-Options"] = "DENY"
                if not scope["path"].startswith("/static/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, guarded if scope["type"] == "http" else send)
