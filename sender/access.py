"""Who may do what: one row per route, and the guard in front of each.

A route without a row keeps the application from starting, so that nothing is ever open by omission.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route

from trainforge.config.errors import Forbidden, NotFound, NotTrusted
from trainforge.config.views import ROLES, Role
from trainforge.sender.auth import CSRF_FIELD, CSRF_HEADER, check_csrf, check_origin, identify
from trainforge.sender.etags import unless_known
from trainforge.sender.people import Person
from trainforge.sender.problems import read_form
from trainforge.sender.workflow_tokens import keep_to_scope

Endpoint = Callable[[Request], Awaitable[Response]]

VIEWER: Role = "viewer"
OPERATOR: Role = "operator"
ADMIN: Role = "admin"
PUBLIC = "public"
LOGIN = "login"  # open to all, checks what is sent by itself
EXECUTOR = "executor"  # the handler checks the signature of an executor's key
JOIN = "join"  # the handler asks for a join token that was not used, and the signature of the key it is for
SIGNED = "signed"  # the handler checks the signature of a hook's secret
WORKFLOW = "workflow"  # the handler checks the token that GitHub has given to a workflow run
GIT = "git"  # the handler asks `app.git_access`: viewers fetch, operators push, jobs as their password says

ACCESS: dict[str, str] = {
    "GET /health": PUBLIC,
    "GET /api/openapi.json": PUBLIC,  # nothing in it is of this sender
    "* /static": PUBLIC,
    "* /git": GIT,
    "POST /webhooks/github": SIGNED,
    "POST /hooks/git": SIGNED,
    "POST /api/workflows/token": WORKFLOW,
    # --- executors
    "POST /v1/join": JOIN,
    "POST /v1/heartbeat": EXECUTOR,
    "DELETE /v1/executors/me": EXECUTOR,
    "POST /v1/executors/me/key": EXECUTOR,
    "POST /v1/claims": EXECUTOR,
    "POST /v1/nodes/{job}/{attempt:int}/{rank:int}/journal": EXECUTOR,
    "POST /v1/nodes/{job}/{attempt:int}/{rank:int}/credential": EXECUTOR,
    "POST /v1/nodes/{job}/{attempt:int}/{rank:int}/turn": EXECUTOR,
    "POST /v1/nodes/{job}/{attempt:int}/{rank:int}/secrets": EXECUTOR,
    "GET /v1/nodes/{job}/{attempt:int}/{rank:int}/record": EXECUTOR,
    # --- pages
    "GET /": PUBLIC,
    "GET /login": PUBLIC,
    "POST /login": LOGIN,
    "POST /logout": LOGIN,
    "GET /jobs": VIEWER,
    "GET /jobs/{job}": VIEWER,
    "POST /jobs/{job}/stop": OPERATOR,
    "POST /jobs/{job}/answer": OPERATOR,
    "POST /jobs/{job}/retry": OPERATOR,
    "POST /jobs/{job}/resume": OPERATOR,
    "GET /jobs/{job}/again": OPERATOR,
    "POST /jobs/{job}/again": OPERATOR,
    "GET /jobs/{job}/log": VIEWER,
    "GET /jobs/{job}/log.txt": VIEWER,
    "GET /jobs/{job}/metrics.csv": VIEWER,
    "GET /jobs/{job}/files/{path:path}": VIEWER,
    "GET /jobs/{job}/raw/{path:path}": VIEWER,
    "GET /compare": VIEWER,
    "GET /new": OPERATOR,
    "POST /new": OPERATOR,
    "GET /new/upload": OPERATOR,
    "POST /new/upload": OPERATOR,
    "GET /new/{job}": OPERATOR,
    "POST /new/{job}": OPERATOR,
    "GET /executors": VIEWER,
    "GET /workers": VIEWER,
    "POST /executors/check": OPERATOR,
    "GET /executors/add": ADMIN,
    "POST /executors/add": ADMIN,
    "GET /executors/add/{name}": ADMIN,
    "GET /executors/{executor}": VIEWER,
    "POST /executors/{executor}/ping": OPERATOR,
    "POST /executors/{executor}/drain": OPERATOR,
    "POST /executors/{executor}/undrain": OPERATOR,
    "POST /executors/{executor}/approve": ADMIN,
    "POST /executors/{executor}/remove": ADMIN,
    "GET /events": VIEWER,
    "POST /events/look": OPERATOR,
    "GET /queue": VIEWER,
    "GET /settings": VIEWER,
    "POST /settings/repositories": ADMIN,
    "POST /settings/repositories/remove": ADMIN,
    "GET /settings/secrets": OPERATOR,
    "POST /settings/secrets": ADMIN,
    "POST /settings/secrets/remove": ADMIN,
    "GET /settings/people": ADMIN,
    "POST /settings/people": ADMIN,
    "POST /settings/people/role": ADMIN,
    "POST /settings/people/link": ADMIN,
    "POST /settings/people/remove": ADMIN,
    "POST /settings/join-tokens": ADMIN,
    "GET /settings/audit": ADMIN,
    "GET /settings/notifications": OPERATOR,
    "POST /settings/notifications": OPERATOR,
    "GET /github/app/new": LOGIN,  # whoever has the state that an admin was given
    "GET /github/app/made": LOGIN,
    "GET /account": VIEWER,
    "POST /account/password": VIEWER,
    "POST /account/tokens": VIEWER,
    "POST /account/tokens/{token:int}/revoke": VIEWER,
    "POST /account/logout": VIEWER,
    # --- jobs
    "GET /api/jobs": VIEWER,
    "POST /api/jobs": OPERATOR,
    "GET /api/jobs/{job}": VIEWER,
    "GET /api/jobs/{job}/logs": VIEWER,
    "GET /api/jobs/{job}/metrics": VIEWER,
    "GET /api/jobs/{job}/artifacts": VIEWER,
    "POST /api/jobs/{job}/stop": OPERATOR,
    "POST /api/jobs/{job}/answer": OPERATOR,
    "POST /api/jobs/{job}/retry": OPERATOR,
    "POST /api/jobs/{job}/resume": OPERATOR,
    "POST /api/plan": OPERATOR,
    "GET /api/changes": VIEWER,
    "GET /api/events": VIEWER,
    # --- executors and repositories
    "GET /api/executors": VIEWER,
    "GET /api/executors/{executor}": VIEWER,
    "DELETE /api/executors/{executor}": ADMIN,
    "POST /api/executors/{executor}/drain": OPERATOR,
    "POST /api/executors/{executor}/undrain": OPERATOR,
    "POST /api/executors/{executor}/approve": ADMIN,
    "POST /api/join-tokens": ADMIN,
    "POST /api/sender/rotate-key": ADMIN,
    "GET /api/audit": ADMIN,
    "GET /api/audit/verify": ADMIN,
    "GET /api/repositories": VIEWER,
    "POST /api/repositories": ADMIN,
    "DELETE /api/repositories/{repository}": ADMIN,
    # --- GitHub
    "GET /api/github": OPERATOR,
    "POST /api/github/connections": ADMIN,
    "DELETE /api/github/connections": ADMIN,
    "POST /api/github/check": OPERATOR,
    "POST /api/github/apps": ADMIN,
    # --- notifications
    "GET /api/notices": OPERATOR,
    "POST /api/notices/again": OPERATOR,
    # --- secrets
    "GET /api/secrets": OPERATOR,
    "POST /api/secrets": ADMIN,
    "DELETE /api/secrets/{secret}": ADMIN,
    "POST /api/secrets/rotate-key": ADMIN,
    # --- people
    "GET /api/users": ADMIN,
    "POST /api/users": ADMIN,
    "PATCH /api/users/{user}": ADMIN,
    "DELETE /api/users/{user}": ADMIN,
    "PUT /api/users/{user}/password": ADMIN,
    "POST /api/users/{user}/link": ADMIN,
    "POST /api/users/{user}/logout": ADMIN,
    "POST /api/login-links": ADMIN,
    "GET /api/me": VIEWER,
    "PUT /api/me/password": VIEWER,
    "POST /api/me/logout": VIEWER,
    "GET /api/tokens": VIEWER,  # one's own; an admin sees all
    "POST /api/tokens": VIEWER,  # for oneself, with no more than one's own role; an admin for anybody
    "DELETE /api/tokens/{token:int}": VIEWER,  # one's own; an admin any
    # --- the first API
    "POST /api/jobs/distributed": OPERATOR,
    "GET /api/jobs/pending": VIEWER,
    "POST /api/jobs/{job}/claim": OPERATOR,
    "GET /api/jobs/{job}/status": VIEWER,
    "PUT /api/jobs/{job}/status": OPERATOR,
    "GET /api/workers": VIEWER,
    "GET /api/workers/{worker}": VIEWER,
    "GET /api/network/machines": VIEWER,
    "POST /api/network/machines": ADMIN,
    "GET /api/network/machines/{machine}": VIEWER,
    "DELETE /api/network/machines/{machine}": ADMIN,
    "DELETE /api/network/machines/by-name/{machine}": ADMIN,
    "POST /api/network/machines/{machine}/ping": OPERATOR,
    "POST /api/network/machines/{machine}/dispatch_job": OPERATOR,
    "GET /api/network/machines/{machine}/job_status/{job}": VIEWER,
    "POST /api/network/machines/{machine}/stop_job/{job}": OPERATOR,
    "GET /api/network/status": VIEWER,
    "POST /api/network/health-check": OPERATOR,
    "GET /api/network/capabilities": VIEWER,
    "GET /api/network/preferences": VIEWER,  # one's own
    "PUT /api/network/preferences": VIEWER,
    "POST /api/network/distributed/plan": OPERATOR,
    "POST /api/network/distributed/dispatch": OPERATOR,
    "GET /api/network/distributed/status/{job}": VIEWER,
    "POST /api/network/distributed/stop/{job}": OPERATOR,
    "POST /api/network/distributed_jobs/plan": OPERATOR,
    "POST /api/network/distributed_jobs/dispatch": OPERATOR,
    "GET /api/network/distributed_jobs/{job}/status": VIEWER,
    "POST /api/network/prepare_dependencies": OPERATOR,
    "POST /api/network/execute_job": OPERATOR,
    "GET /api/network/local_job_status/{job}": VIEWER,
    "GET /api/network/local_job_output/{job}": VIEWER,
    "GET /api/network/local_job_file/{job}/{key:path}": VIEWER,
    "GET /api/tasks/distributed/suggest_machines": VIEWER,
    "GET /api/tasks/{task}/queue_distributed": OPERATOR,
    "GET /api/tasks/{task}/queue/{machine}": OPERATOR,
}
# A link on any site can have a browser GET these, so they ask for what a change asks for.
ACTING_GETS = frozenset({"GET /api/tasks/{task}/queue_distributed", "GET /api/tasks/{task}/queue/{machine}"})
# These read their form as it comes, and its token before its file.
UPLOADS = frozenset({"POST /new/upload"})
STREAM_CHECK_S = 1.0


def protect(routes: Sequence[BaseRoute], prefix: str = "") -> list[BaseRoute]:
    """The same routes, each behind what its row asks for.

    Raises:
        RuntimeError: a route has no row, which is a bug.
    """
    guarded: list[BaseRoute] = []
    for route in routes:
        if isinstance(route, Route):
            methods = (route.methods or set()) - {"HEAD"}
            rows = {method: f"{method} {prefix}{route.path}" for method in sorted(methods)}
            needs = {method: (row, _row(row)) for method, row in rows.items()}
            endpoint = _guard(route.endpoint, needs)
            guarded.append(Route(route.path, endpoint, methods=list(needs), name=route.name))
        elif isinstance(route, Mount) and route.routes:
            guarded.append(Mount(route.path, routes=protect(route.routes, prefix + route.path)))
        elif isinstance(route, Mount):
            _row(f"* {prefix}{route.path}")
            guarded.append(route)
        else:
            raise RuntimeError(f"{route!r} is of a kind that cannot be guarded")
    return guarded


def _row(row: str) -> str:
    if row not in ACCESS:
        raise RuntimeError(f"{row!r} has no row in sender/access.py, which says who may use it")
    return ACCESS[row]


def _guard(endpoint: Endpoint, needs: dict[str, tuple[str, str]]) -> Endpoint:
    async def answer(request: Request) -> Response:
        _check_address(request)
        row, said = needs["GET" if request.method == "HEAD" else request.method]
        need = next((role for role in ROLES if role == said), None)
        if need is None:
            return await endpoint(request)
        person = request.state.person = await identify(request)
        if person.cookie and (request.method not in {"GET", "HEAD"} or row in ACTING_GETS):
            await (_check_upload if row in UPLOADS else check_change)(request, person)
        allow(person, need)
        await keep_to_scope(request, row, person)
        began = time.monotonic()
        response = await endpoint(request)
        if request.method == "GET" and time.monotonic() - began > STREAM_CHECK_S:
            allow(await identify(request), need)  # it waited for news, which may be no longer theirs to read
        if request.method == "GET":
            response = unless_known(request, response)
        if isinstance(response, StreamingResponse):
            response.body_iterator = _while_allowed(request, need, response.body_iterator)
        return response

    return answer


def _check_address(request: Request) -> None:
    """Names and numbers that no database can look for are of nothing that is there."""
    numbers = [part for part in request.path_params.values() if isinstance(part, int)]
    pages = not request.url.path.startswith("/api/")  # whose queries are checked as what they should be
    if (
        any(number >= 2**63 for number in numbers)
        or "\0" in request.scope["path"]
        or (pages and b"%00" in request.scope["query_string"])
    ):
        raise NotFound("there is nothing at this address", hint="look at the list that names it")


def allow(person: Person, need: Role) -> None:
    """Raises Forbidden."""
    if not person.may(need):
        raise Forbidden(
            f"{person.name} is {person.role} here, and this takes the role {need}",
            hint="an admin can change roles: `trainforge user role NAME ROLE`",
            code="role_needed",
        )


async def check_change(request: Request, person: Person) -> None:
    """A change that a browser asks for comes from a page of ours, which knows the session's token.

    A form that was read for it is left in `request.state.form`.

    Raises:
        Forbidden: it does not.
    """
    check_origin(request)
    said = request.headers.get(CSRF_HEADER, "")
    if not request.url.path.startswith("/api/"):
        request.state.form = await read_form(request)
        said = said or request.state.form.get(CSRF_FIELD, "")
    check_csrf(person, said)


async def _check_upload(request: Request, _person: Person) -> None:
    """The half of `check_change` that can be told without the form."""
    check_origin(request)


async def _while_allowed(
    request: Request, need: Role, chunks: AsyncIterable[str | bytes | memoryview]
) -> AsyncIterator[str | bytes | memoryview]:
    """A stream ends with the session, token or role that it was opened with."""
    checked = time.monotonic()
    async for chunk in chunks:
        if time.monotonic() - checked > STREAM_CHECK_S:
            try:
                allow(await identify(request), need)
            except (NotTrusted, Forbidden):
                return
            checked = time.monotonic()
        yield chunk
