"""A small stateful GitHub over real HTTP, held against GitHub's own description of its API.

Every request and every answer is checked: one that GitHub would refuse, or would not give, is noted in
`violations`, which a test has to find empty (`serving_github` sees to that).
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jwt

from support.github import app_routes, check_routes, repository_routes, talk_routes
from support.github.calls import ROUTES, Call, Refusal, Route
from support.github.description import Answered, Asked, answer_faults, request_faults
from support.github.people import People
from support.github.state import App, Installation, Json, Repository, Token

assert app_routes and check_routes and repository_routes and talk_routes  # imported for their routes
API = "/api/v3"
_LONGEST_FIRST = sorted(ROUTES, key=lambda route: -len(route.path))


@dataclass
class Rate:
    limit: int = 5000
    remaining: int = 5000
    reset: int = field(default_factory=lambda: int(time.time()) + 3600)

    def as_json(self) -> Json:
        used = self.limit - self.remaining
        return {"limit": self.limit, "used": used, "remaining": self.remaining, "reset": self.reset}

    def headers(self) -> dict[str, str]:
        return {f"X-RateLimit-{key.title()}": str(value) for key, value in self.as_json().items()}


@dataclass
class Trouble:
    """The next `times` requests that match get this instead of an answer."""

    status: int
    message: str = "Server Error"
    headers: dict[str, str] = field(default_factory=dict)
    method: str = ""
    path: str = ""  # a regular expression of the path
    times: int = 1


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    query: str
    body: Json
    status: int


class GitHub(People):
    """`site` is what people see at github.com, `api` what programs use. Switches are plain attributes:

    `page_size` cuts lists into small pages, `public_hooks_only` refuses hooks to this machine as GitHub
    does, `rate` counts down, and `fail` has the next requests fail.
    """

    def __init__(self, site: str, root: Path) -> None:
        self.site, self.root = site, root
        self.api = site + API
        self.numbers = itertools.count(1001)
        self.repositories: dict[int, Repository] = {}
        self.old_names: dict[str, int] = {}
        self.tokens: dict[str, Token] = {}
        self.apps: dict[int, App] = {}
        self.installations: dict[int, Installation] = {}
        self.codes: dict[str, App] = {}  # of Apps that are being made from a manifest
        self.heads: dict[int, dict[str, str]] = {}
        self.rate = Rate()
        self.page_size = 0
        self.public_hooks_only = False
        self.troubles: list[Trouble] = []
        self.requests: list[Seen] = []
        self.violations: list[str] = []
        self._lock = threading.RLock()
        self._pool = ThreadPoolExecutor(4, "github")
        self._begun: list[Future[Any]] = []

    # --- switches --------------------------------------------------------------------------------------

    def fail(
        self, status: int, message: str = "Server Error", *, times: int = 1, method: str = "", path: str = "",
        **headers: str,
    ) -> None:  # fmt: skip
        """Have the next requests fail; `headers` with `_` for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.troubles.append(Trouble(status, message, named, method, path, times))

    def use_up_rate(self, reset_in: float) -> None:
        """The primary rate limit is used up until then."""
        self.rate.remaining, self.rate.reset = 0, int(time.time() + reset_in)

    def slow_down(self, retry_after: int, *, times: int = 1, status: int = 403) -> None:
        """The secondary rate limit, which says when to come back."""
        message = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."
        self.fail(status, message, times=times, Retry_After=str(retry_after))

    # --- what happens later ------------------------------------------------------------------------------

    def later(self, act: Callable[..., Any], *arguments: Any) -> None:
        """After the answer: webhooks are sent by somebody else than who answers."""
        self._begun.append(self._pool.submit(act, *arguments))

    def settle(self, timeout: float = 30) -> None:
        """Wait for the deliveries that are under way."""
        while self._begun:
            self._begun.pop(0).result(timeout)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    # --- finding -----------------------------------------------------------------------------------------

    def repository(self, full_name: str) -> Repository | None:
        wanted = full_name.lower()
        return next((one for one in self.repositories.values() if one.full_name.lower() == wanted), None)

    def by_id(self, number: int) -> Repository:
        return self.repositories[number]

    def asked(self, method: str = "", path: str = "") -> list[Seen]:
        """The requests so far of that method and path (a regular expression)."""
        return [one for one in self.requests if method in ("", one.method) and re.search(path, one.path)]

    def wrong(self, refusal: Refusal) -> Refusal:
        """Note a request that nobody may send, though the description allows it."""
        self.violations.append(f"refused: {refusal.body}")
        return refusal

    # --- answering ---------------------------------------------------------------------------------------

    def answer(
        self, method: str, path: str, query: list[tuple[str, str]], headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """One request below `api`, in a thread."""
        with self._lock:
            status, more, value = self._answer(method, path, query, headers, body)
            text = "&".join(f"{key}={said}" for key, said in query)
            data = _object(body)
            self.requests.append(Seen(method, path, text, data, status))
        more.pop("_path", None)
        return status, more, b"" if status == 204 else json.dumps(value).encode()

    def _answer(
        self, method: str, path: str, query: list[tuple[str, str]], headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], Any]:
        limits = self.rate.headers() | self._scopes(headers)
        try:
            path = self._named(path)
            route, values = self._route(method, path, query)
            described = _path(route.path, values)
            asked = Asked(method, described, query, headers, body)
            if faults := request_faults(asked):
                self.violations += [f"{method} {path}: {fault}" for fault in faults]
                raise Refusal(422, f"Invalid request. {faults[0]}")
            self._refuse(method, path, headers)
            call = Call(self, method, values, dict(query), _object(body), headers={"_path": path})
            self._authorize(call, route, headers)
            status, value = route.handler(call)
        except Refusal as refused:
            return refused.status, limits | refused.headers, refused.body
        if faults := answer_faults(
            asked, Answered(status, json.dumps(value).encode() if status != 204 else b"")
        ):
            self.violations += [f"answer to {method} {path}: {fault}" for fault in faults]
        return status, limits | call.headers, value

    def _named(self, path: str) -> str:
        """Of a path with a repository's number, to which old names lead, the one with its name."""
        number, _, below = path.removeprefix("/repositories/").partition("/")
        if not path.startswith("/repositories/") or int(number) not in self.repositories:
            return path
        return f"/repos/{self.repositories[int(number)].full_name}{'/' if below else ''}{below}"

    def _route(self, method: str, path: str, query: list[tuple[str, str]]) -> tuple[Route, dict[str, str]]:
        for route in _LONGEST_FIRST:
            if route.method == method and (match := _pattern(route.path).fullmatch(path)):
                values = match.groupdict()
                self._follow(method, values, path, query)
                return route, values
        self.violations.append(f"{method} {path} is not among the routes of this GitHub")
        raise Refusal(404, "Not Found")

    def _follow(self, method: str, values: dict[str, str], path: str, query: list[tuple[str, str]]) -> None:
        """A repository that goes by another name now: GitHub answers to changes with 307."""
        name = f"{values.get('owner')}/{values.get('repo')}"
        if name in self.old_names:
            below = path.removeprefix(f"/repos/{name}")
            target = f"{self.api}/repositories/{self.old_names[name]}{below}"
            target += f"?{urlencode(query)}" if query else ""
            status = 301 if method == "GET" else 307
            raise Refusal(status, "Moved Permanently", {"Location": target}, url=target)

    def _refuse(self, method: str, path: str, headers: dict[str, str]) -> None:
        """For reasons that have nothing to do with what is asked."""
        if not headers.get("user-agent"):
            raise self.wrong(
                Refusal(403, "Request forbidden by administrative rules. Please add a User-Agent")
            )
        for trouble in self.troubles:
            if trouble.times and trouble.method in ("", method) and re.search(trouble.path, path):
                trouble.times -= 1
                raise Refusal(trouble.status, trouble.message, trouble.headers)
        if path == "/rate_limit":
            return
        if time.time() >= self.rate.reset:
            self.rate = Rate(self.rate.limit, self.rate.limit)
        if self.rate.remaining <= 0:
            raise Refusal(403, "API rate limit exceeded for user ID 1.", self.rate.headers())
        self.rate.remaining -= 1

    def _authorize(self, call: Call, route: Route, headers: dict[str, str]) -> None:
        if route.by == "nobody":
            return
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if scheme.lower() not in ("bearer", "token"):
            raise Refusal(401, "Requires authentication")
        if route.by == "app":
            call.app = self._app_of(secret)
            return
        token = self.tokens.get(secret)
        if token is None or token.revoked or (token.expires and token.expires < time.time()):
            raise Refusal(401, "Bad credentials")
        call.token = token
        if route.needs is None:
            return
        if "owner" in call.path:
            _ = call.repository  # 404 comes before 403
        self._check_permission(token, route)

    def _scopes(self, headers: dict[str, str]) -> dict[str, str]:
        token = self.tokens.get(headers.get("authorization", "").partition(" ")[2])
        return {} if token is None or token.scopes is None else {"X-OAuth-Scopes": ", ".join(token.scopes)}

    def _check_permission(self, token: Token, route: Route) -> None:
        name, level = route.needs or ("", "")
        if token.scopes is not None and not token.may(name, level):
            raise Refusal(404, "Not Found")
        ways = [name, "pull_requests"] if name == "issues" else [name]
        if name == "checks" and level == "write" and token.app is None:
            raise Refusal(403, "You must authenticate via a GitHub App.")
        if not any(token.may(way, level) for way in ways):
            kind = "integration" if token.app is not None else "personal access token"
            accepted = "; ".join(f"{way}={level}" for way in ways)
            headers = {"X-Accepted-GitHub-Permissions": accepted}
            raise Refusal(403, f"Resource not accessible by {kind}", headers)

    def _app_of(self, secret: str) -> App:
        """The App whose JWT this is, held to GitHub's rules: RS256, ten minutes at most."""
        for app in self.apps.values():
            try:
                claims = jwt.decode(secret, app.public_key, ["RS256"], options={"verify_iat": False})
            except jwt.InvalidTokenError:
                continue
            if claims["exp"] - time.time() > 600 or str(claims["iss"]) not in (str(app.id), app.client_id):
                raise Refusal(401, "'Expiration time' claim ('exp') is too far in the future")
            return app
        raise Refusal(401, "A JSON web token could not be decoded")


def _pattern(template: str) -> re.Pattern[str]:
    """`{path}`, `{branch}` and the like hold slashes, other parts do not."""
    wide = {"path", "branch", "basehead", "ref", "username"}
    made = re.sub(r"\{(\w+)\}", lambda m: f"(?P<{m[1]}>{'.+?' if m[1] in wide else '[^/]+'})", template)
    return re.compile(made)


def _path(template: str, values: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda m: quote(values[m[1]], safe=""), template)


def _object(body: bytes) -> Json:
    try:
        value = json.loads(body) if body else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
