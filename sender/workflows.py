"""Runs of GitHub Actions: the token that GitHub gives to a run, for one that this sender takes.

What is believed is what the issuer has signed. Whether a pull request comes from the repository itself no
claim says, so the repository is asked: of a fork it has no branch with the request's head.
"""

from __future__ import annotations

import functools
import re
from fnmatch import fnmatchcase

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trainforge.config.errors import Forbidden, NotTrusted
from trainforge.config.settings import WorkflowAccess
from trainforge.hooks.oidc import Issuer, WorkflowRun
from trainforge.hooks.pulls import is_own_branch
from trainforge.sender.actions import in_thread
from trainforge.sender.context import Sender
from trainforge.sender.events import Place, place_of
from trainforge.sender.people import Scope
from trainforge.sender.problems import dump
from trainforge.sender.store_events import Repo
from trainforge.sender.strangers import strangers
from trainforge.sender.workflow_tokens import new_workflow_token

SOURCE = "oidc"  # under which used tokens are remembered
RUNS = "workflow"  # and runs that stand in the audit log: each renews its token every few minutes
_PULL = re.compile(r"refs/pull/([1-9][0-9]{0,9})/merge\Z")
_REF = re.compile(r"refs/(?:heads|tags)/(.+)\Z", re.DOTALL)
FORK_HINT = "have a person with write access push the branch to this repository"


@functools.lru_cache(maxsize=4)
def _issuer(url: str) -> Issuer:
    return Issuer(url)


async def exchange(request: Request) -> Response:
    sender: Sender = request.app.state.sender
    with strangers(request):
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise NotTrusted("this takes the token that GitHub has given to a workflow run")
        answer = await in_thread(admit, sender, token.strip())
    return dump(answer)


def admit(sender: Sender, token: str) -> dict[str, object]:
    """A token for the run that this one is of.

    Raises:
        NotTrusted: it is not the issuer's, for this sender, now, for the first time. Forbidden: the run is
            of no repository, event or branch that has access. Unreachable: the issuer cannot be asked.
    """
    now = sender.now()
    run = _issuer(sender.settings.oidc_issuer).verify(token, sender.base_url, now)
    repo, access = _access(sender, run)
    may_run = _check(sender, run, access)
    if run.event == "pull_request":
        _refuse_fork(place_of(sender, repo), run)
    if not sender.store.first_delivery(SOURCE, run.jti, now):
        raise NotTrusted("this token of a workflow run was used before", hint="ask GitHub for another one")
    scope = Scope(repo.name, repo.id, run.ref, run.commit, may_run)
    actor = f"workflow:{run.repository}#{run.run_id}"
    made, expires = new_workflow_token(sender, actor, scope)
    if sender.store.first_delivery(RUNS, f"{run.repository_id}:{run.run_id}:{run.run_attempt}", now):
        said = {"actor": run.actor, "event": run.event, "ref": run.ref, "commit": run.commit, "run": may_run}
        sender.store.audit(actor, "workflow.admitted", repo.id, said, now=now)
    return {
        "token": made,
        "expires": expires,
        "repository": repo.name,
        "ref": run.ref,
        "commit": run.commit,
        "run": may_run,
    }


def _access(sender: Sender, run: WorkflowRun) -> tuple[Repo, WorkflowAccess]:
    """The repository of the run, by GitHub's number of it.

    Raises:
        Forbidden: its workflows have no access.
    """
    for repo in sender.store.repositories():
        access = sender.settings.workflows.get(repo.name)
        if access is None:
            continue
        connected = sender.store.connection(repo.id)
        number = access.repository_id or (connected.number if connected else None)
        if number == run.repository_id:
            return repo, access
    raise Forbidden(
        f"workflows of {run.repository} (repository_id {run.repository_id}) have no access here",
        hint="name it in sender.yaml under workflows, as docs/github.md shows, and have it watched",
    )


def _check(sender: Sender, run: WorkflowRun, access: WorkflowAccess) -> bool:
    """Whether the run may train; planning it may in any case that is not refused."""
    if run.event not in access.events:
        raise Forbidden(
            f"workflow runs that a {run.event} event began have no access here",
            hint=f"allowed are {', '.join(access.events)} (sender.yaml: workflows)",
        )
    if run.event == "pull_request":
        return False
    named = _REF.match(run.ref)
    if named is None or not any(fnmatchcase(named[1], pattern) for pattern in access.refs):
        raise Forbidden(
            f"workflow runs of {run.ref} have no access here",
            hint=f"allowed are {', '.join(access.refs)} (sender.yaml: workflows)",
        )
    return True


def _refuse_fork(place: Place, run: WorkflowRun) -> None:
    """Raises Forbidden: the pull request's head is on no branch of the repository itself."""
    named = _PULL.match(run.ref)
    if named is None or not run.head_ref:
        raise Forbidden("the token of this pull request does not say which one it is")
    number = int(named[1])
    if not is_own_branch(
        place.url, number, run.head_ref, credential=place.credential, allow_file=place.local
    ):
        raise Forbidden(
            f"pull request {number} comes from a fork, or its branch has moved on", hint=FORK_HINT
        )


routes = [Route("/workflows/token", exchange, methods=["POST"])]
