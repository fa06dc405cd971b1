"""Who makes a request, by token or session; whether a browser means it; and safe headers."""

from __future__ import annotations

import asyncio
import base64
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainforge.config.errors import Forbidden, NotTrusted
from trainforge.sender.context import Sender
from trainforge.sender.people import SESSION_LIFE_S, Person
from trainforge.sender.workflow_tokens import is_workflow_token, read_workflow_token

COOKIE = "trainforge_session"  # over plain http, as on loopback, where browsers keep no `__Host-` cookie
SECURE_COOKIE = "__Host-trainforge_session"
CSRF_FIELD = "csrf"
CSRF_HEADER = "x-csrf-token"
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"  # for what is no page of ours
SENT_BY_BROWSERS = frozenset({"origin", "sec-fetch-site", "cookie"})
LOOPBACK = frozenset({"127.0.0.1", "::1"})


async def identify(connection: HTTPConnection) -> Person:
    """The person behind a request.

    Raises:
        NotTrusted: nobody known.
    """
    sender: Sender = connection.app.state.sender
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    person: Person | None = None
    if scheme.lower() == "bearer":
        known = read_workflow_token if is_workflow_token(token.strip()) else _by_token
        person = await asyncio.to_thread(known, sender, token.strip())
    elif scheme.lower() == "basic" and not SENT_BY_BROWSERS & set(connection.headers):
        # As curl sends it with `-u` or from .netrc; a browser would send it along for any site.
        password = basic_password(connection.headers["authorization"])
        person = await asyncio.to_thread(_by_token, sender, password)
    elif not scheme and (secret := session_secret(connection)):
        person = await asyncio.to_thread(sender.people.by_session, secret, sender.now())
    if person is None:
        raise NotTrusted(
            "this needs an access token that is valid here", hint="`trainforge login URL` sets one up"
        )
    return person


def _by_token(sender: Sender, token: str) -> Person | None:
    return sender.people.by_token(token, sender.now())


def check_origin(connection: HTTPConnection) -> None:
    """Refuse what a browser sends on behalf of another site.

    The scheme is not compared: behind a proxy that ends TLS this side sees plain http.

    Raises:
        Forbidden: it comes from elsewhere, or does not say where it comes from.
    """
    sender: Sender = connection.app.state.sender
    site = connection.headers.get("sec-fetch-site")
    if site not in {None, "same-origin"}:
        raise Forbidden("the request comes from a page of another site")
    origin = connection.headers.get("origin")
    if origin is None:
        if site == "same-origin":
            return
        raise Forbidden("the request does not say which page it comes from")
    ours = {connection.headers.get("host", "").lower(), urlsplit(sender.settings.public_url).netloc.lower()}
    said = urlsplit(origin)
    if said.scheme not in {"http", "https"} or not said.netloc or said.netloc.lower() not in ours:
        raise Forbidden("the request comes from a page of another site")


def check_csrf(person: Person, said: str) -> None:
    """What a page of ours was given for this session.

    Raises:
        Forbidden: it was not said, or for another session.
    """
    if not hmac.compare_digest(person.csrf.encode(), said.encode()):
        raise Forbidden(
            "the request does not carry the page's own token", hint="load the page again, and then try again"
        )


def basic_password(authorization: str) -> str:
    """The password of a Basic header, as git sends it; empty when there is none."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True).decode()
    except ValueError:  # not ASCII, not base64, or not UTF-8 within
        return ""
    return decoded.partition(":")[2]


def client_address(request: Request) -> str:
    """Where a request comes from; behind a proxy on this machine, what that proxy says last."""
    sender: Sender = request.app.state.sender
    peer = request.client.host if request.client else ""
    if peer in LOOPBACK and sender.settings.public_url:
        forwarded = request.headers.get("x-forwarded-for", "").rsplit(",", 1)[-1].strip()
        return forwarded[:64] or peer
    return peer


# --- the session's cookie -------------------------------------------------------------------------------


def _secure(connection: HTTPConnection) -> bool:
    sender: Sender = connection.app.state.sender
    return connection.url.scheme == "https" or sender.settings.public_url.startswith("https:")


def cookie_name(connection: HTTPConnection) -> str:
    """Over https one that no other host and no plain http can have set."""
    return SECURE_COOKIE if _secure(connection) else COOKIE


def session_secret(connection: HTTPConnection) -> str:
    return connection.cookies.get(cookie_name(connection), "")


def set_session(request: Request, response: Response, secret: str) -> None:
    """Log a browser in; the cookie is kept from scripts and from other sites' requests."""
    response.set_cookie(
        cookie_name(request), secret, max_age=SESSION_LIFE_S, path="/", httponly=True, samesite="lax",
        secure=_secure(request),
    )  # fmt: skip


def clear_session(request: Request, response: Response) -> None:
    response.delete_cookie(
        cookie_name(request), path="/", httponly=True, samesite="lax", secure=_secure(request)
    )


def _page_policy(scope: Scope) -> str:
    """A page whose form goes to another site says so in `request.state.form_action`."""
    elsewhere = scope.get("state", {}).get("form_action", "")
    return CONTENT_POLICY.replace("form-action 'self'", f"form-action 'self' {elsewhere}".rstrip())


class SafeHeaders:
    """ASGI middleware: what keeps a hostile text that got through from doing anything in a browser."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                page = headers.get("content-type", "").startswith("text/html")
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Content-Security-Policy"] = _page_policy(scope) if page else DATA_POLICY
                # Not `no-referrer`: browsers then call the origin of our own forms `null`.
                headers["Referrer-Policy"] = "same-origin"
                headers["Cross-Origin-Opener-Policy"] = "same-origin"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers["X-Frame-Options"] = "DENY"
                if not scope["path"].startswith("/static/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, guarded if scope["type"] == "http" else send)
