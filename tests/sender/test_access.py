"""Every route, asked for by everybody: who gets in is what the one table says, and nothing is beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

from support.web import Web, web
from trainforge.config.trust import SigningKey, executor_id, sign_request
from trainforge.hooks.git import init_bare
from trainforge.sender.access import ACCESS, EXECUTOR, GIT, JOIN, LOGIN, PUBLIC, SIGNED, WORKFLOW, protect
from trainforge.sender.app import make_app

ROLES = ("viewer", "operator", "admin")
EVERYBODY = ("nobody", *ROLES, "executor")
# As themselves these would end what the other cases need.
LAST = ("DELETE /v1/executors/me",)


@dataclass
class Doors:
    """A sender, and everybody who may knock."""

    site: Web
    tokens: dict[str, str]
    key: SigningKey
    client: httpx2.Client = field(default_factory=lambda: httpx2.Client(timeout=60))

    def ask(self, who: str, method: str, path: str, accept: str = "application/json") -> tuple[int, str, str]:
        """Status, problem code, and where it leads; a stream is not waited for."""
        headers = {"Accept": accept}
        if who == "executor":
            body = b"{}" if method != "GET" else b""
            sender = self.site.sender
            headers["Authorization"] = sign_request(
                self.key, subject=executor_id(self.key.public), audience=sender.id, now=sender.now(),
                method=method, path=path, body=body,
            )  # fmt: skip
        elif who != "nobody":
            headers["Authorization"] = f"Bearer {self.tokens[who]}"
        content = b"{}" if method != "GET" else b""
        with self.client.stream(method, self.site.url + path, headers=headers, content=content) as answer:
            code = ""
            if answer.headers.get("content-type") == "application/problem+json":
                answer.read()
                code = answer.json()["code"]
            return answer.status_code, code, answer.headers.get("location", "")


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    folder: Path = tmp_path_factory.mktemp("doors")
    with web(folder, webhook_secret="0123456789abcdef") as site:
        key = SigningKey.generate()
        tokens = {}
        for role in ROLES:
            site.sender.people.add_user(f"the-{role}", role, site.sender.now())
            tokens[role] = site.token_of(f"the-{role}")
        init_bare(site.sender.git_root / "demo.git")
        with httpx2.Client(timeout=60) as client:
            yield Doors(site, tokens, key, client)


def _walk(routes: list[BaseRoute], prefix: str = "") -> Iterator[str]:
    for route in routes:
        if isinstance(route, Route):
            for method in (route.methods or set()) - {"HEAD"}:
                yield f"{method} {prefix}{route.path}"
        elif isinstance(route, Mount) and route.routes:
            yield from _walk(list(route.routes), prefix + route.path)
        else:
            assert isinstance(route, Mount)
            yield f"* {prefix}{route.path}"


def _path(row: str) -> str:
    """A path of that form which names nothing there is."""
    given = {"job": "a" * 26}
    return re.sub(
        r"\{(\w+)(:\w+)?\}",
        lambda name: "1" if name[2] == ":int" else given.get(name[1], "nothing"),
        row.split(" ")[1],
    )


def test_the_table_and_the_application_have_the_same_routes(site: Web) -> None:
    routes = sorted(_walk(make_app(site.sender, loops={}).routes))
    assert len(routes) == len(set(routes))
    assert set(routes) == set(ACCESS)


def test_a_route_without_a_row_keeps_the_application_from_starting() -> None:
    async def nothing(_request: Request) -> Response:
        return Response()

    for route in (
        Route("/nowhere", nothing),
        Mount("/api", routes=[Route("/jobs", nothing, methods=["DELETE"])]),
        Mount("/files", app=Response()),
        WebSocketRoute("/jobs", nothing),
    ):
        with pytest.raises(RuntimeError, match=r"access\.py|cannot be guarded"):
            protect([route])


@pytest.mark.parametrize("who", EVERYBODY)
def test_everybody_gets_in_where_the_table_says_and_nowhere_else(doors: Doors, who: str) -> None:
    if who == "executor":  # only now: a health check waits for executors
        doors.site.add_executor("alpha", key=doors.key)
    wrong = []
    for row in sorted(ACCESS, key=lambda row: row in LAST):
        method, need = row.split(" ")[0], ACCESS[row]
        if method == "*":
            continue
        status, code, _ = doors.ask(who, method, _path(row))
        if need in ROLES and who in ROLES:
            refused = (status, code) == (403, "role_needed")
            right = refused == (ROLES.index(who) < ROLES.index(need)) and status != 401
        elif need in ROLES:
            right = (status, code) == (401, "not_trusted")
        elif need == EXECUTOR:
            right = (status != 401) == (who == "executor")
        elif need in {SIGNED, WORKFLOW}:
            right = status == 401
        elif need == JOIN:
            right = (status, code) == (422, "message_invalid")  # there is no token in it
        else:
            right = need in {PUBLIC, LOGIN} and status != 401
        if not right:
            wrong.append(f"{row} ({need}): {status} {code}")
    assert not wrong


@pytest.mark.parametrize(
    ("who", "fetch", "push"),
    [
        ("nobody", 401, 401),
        ("executor", 401, 401),
        ("viewer", 200, 403),
        ("operator", 200, 200),
        ("admin", 200, 200),
    ],
)
def test_viewers_fetch_and_operators_push(doors: Doors, who: str, fetch: int, push: int) -> None:
    assert ACCESS["* /git"] == GIT
    for service, expected in (("git-upload-pack", fetch), ("git-receive-pack", push)):
        status, _, _ = doors.ask(who, "GET", f"/git/demo.git/info/refs?service={service}")
        assert status == expected, service


def test_a_browser_that_is_not_logged_in_is_led_to_the_login(doors: Doors) -> None:
    for row, need in ACCESS.items():
        method, path = row.split(" ")[0], _path(row)
        if need not in ROLES or path.startswith("/api/"):
            continue
        status, _, where = doors.ask("nobody", method, path, accept="text/html")
        assert (status, where.partition("?")[0]) == ((303, "/login") if method == "GET" else (401, "")), row
        status, _, _ = doors.ask("viewer", method, path, accept="text/html")
        assert (status == 403) == (need != "viewer"), row


def test_a_token_may_no_more_than_its_owner_may_now(doors: Doors) -> None:
    people, now = doors.site.sender.people, doors.site.sender.now()
    people.add_user("eve", "operator", now)
    doors.tokens["eve"] = doors.site.token_of("eve", role="admin")
    plan, users = ("POST", "/api/plan"), ("GET", "/api/users")
    assert doors.ask("eve", *plan)[0] == 422
    assert doors.ask("eve", *users)[0] == 403
    people.set_role("eve", "viewer", now)
    assert doors.ask("eve", *plan)[0] == 403
    people.remove_user("eve", now)
    assert doors.ask("eve", *plan)[0] == 401
    people.add_user("eve", "admin", now)  # another of that name
    assert doors.ask("eve", *users)[0] == 401
