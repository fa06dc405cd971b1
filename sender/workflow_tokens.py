"""Tokens for runs of GitHub Actions: signed by the sender, good for minutes, for one commit alone.

Nothing of them is stored. What such a token may do is said here, route by route; all else is refused.
"""

from __future__ import annotations

import asyncio
import secrets

from starlette.requests import Request

from trainforge.config.errors import Forbidden, NotTrusted
from trainforge.config.trust import MAX_LIFE_S, WORKFLOW_TYPE, verify
from trainforge.sender.context import Sender
from trainforge.sender.people import Person, Scope

LIFE_S = MAX_LIFE_S
OF_ITS_JOBS = frozenset(
    {
        "GET /api/jobs/{job}",
        "GET /api/jobs/{job}/logs",
        "GET /api/jobs/{job}/metrics",
        "GET /api/jobs/{job}/artifacts",
        "POST /api/jobs/{job}/stop",
    }
)
BY_ITSELF = frozenset({"POST /api/plan", "POST /api/jobs"})  # the latter with `check_submit`
LIST = "GET /api/jobs"  # of one matrix


def is_workflow_token(token: str) -> bool:
    return token.count(".") == 2


def new_workflow_token(sender: Sender, name: str, scope: Scope) -> tuple[str, float]:
    """The token, and when it ends."""
    now = int(sender.now())
    claims = {
        "iss": sender.id,
        "aud": sender.id,
        "sub": name,
        "jti": secrets.token_urlsafe(16),
        "iat": now,
        "exp": now + LIFE_S,
        "repository": scope.repository,
        "repository_id": scope.repository_id,
        "ref": scope.ref,
        "commit": scope.commit,
        "run": scope.run,
    }
    return sender.key.sign(WORKFLOW_TYPE, claims), float(now + LIFE_S)


def read_workflow_token(sender: Sender, token: str) -> Person | None:
    """Raises NotTrusted: not a token of this sender, or not any more."""
    now = sender.now()
    known = {key.id: key.public for key in (sender.key, sender.keys.before(now)) if key is not None}
    claims = verify(
        token, typ=WORKFLOW_TYPE, keys=known, issuer=sender.id, audience=sender.id, now=now
    ).payload
    scope = Scope(
        repository=str(claims["repository"]),
        repository_id=str(claims["repository_id"]),
        ref=str(claims["ref"]),
        commit=str(claims["commit"]),
        run=claims["run"] is True,
    )
    if scope.repository not in sender.settings.workflows:
        raise NotTrusted("workflows of this repository have no access here any more")
    return Person(str(claims["sub"]), "operator", scope=scope)


async def keep_to_scope(request: Request, row: str, person: Person) -> None:
    """Raises Forbidden: the route, or the job, is not for this workflow run."""
    scope = person.scope
    if scope is None or (row in BY_ITSELF and _is_json(request)):
        return
    sender: Sender = request.app.state.sender
    if row in OF_ITS_JOBS:
        job = await asyncio.to_thread(sender.queries.resolve, request.path_params["job"])
        if (await asyncio.to_thread(sender.store.job, job))["repository_id"] == scope.repository_id:
            return
    elif row == LIST and (matrix := request.query_params.get("matrix", "")):
        found = await asyncio.to_thread(lambda: sender.queries.jobs(matrix=matrix, limit=1))
        if found and found[0].repository == scope.repository:
            return
    raise Forbidden(
        f"the token of a workflow run is for the jobs of {scope.repository} alone",
        hint="use a token of your own: `trainforge token create`",
    )


def _is_json(request: Request) -> bool:
    """A run names its commit; it hands in no files of its own."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def check_submit(person: Person, repository: str, commit: str, ref: str) -> None:
    """Raises Forbidden: a workflow run asks for another commit than its own."""
    scope = person.scope
    if scope is None:
        return
    if not scope.run:
        raise Forbidden(
            f"this workflow run may plan, and not train: it runs for {scope.ref}",
            hint="train on push or workflow_dispatch; a pull request is planned alone",
        )
    if (
        repository not in {scope.repository, scope.repository_id}
        or commit != scope.commit
        or ref != scope.ref
    ):
        raise Forbidden(
            f"this workflow run may train {scope.commit[:12]} of {scope.repository} at {scope.ref} alone"
        )
