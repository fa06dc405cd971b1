"""GitHub's deliveries, read strictly into what the sender acts on; everything else in them is left alone.

Sans-I/O, for bodies whose signature held (`hooks/github.py`); `github_payloads.py` has the shapes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from trainforge.config.errors import TooLarge
from trainforge.hooks import github_payloads as payloads
from trainforge.hooks.addresses import AddressRefused, repository_id, validate_commit, validate_ref
from trainforge.hooks.github import MAX_BODY_BYTES, PushHint, WebhookInvalid, push_hint, strict_json

_DELIVERY = re.compile(r"[A-Za-z0-9-]{8,64}\Z")


@dataclass(frozen=True)
class Repository:
    """`number` is GitHub's own id, which survives renames; `ids` those that it may be registered under."""

    number: int
    full_name: str
    ids: tuple[str, ...]
    default_branch: str = ""


@dataclass(frozen=True)
class RefMoved:
    """A branch or tag was created or deleted."""

    ref: str
    created: bool


@dataclass(frozen=True)
class Moved:
    """The repository was renamed or transferred, and goes by the delivery's `repository` from now on."""

    action: str


@dataclass(frozen=True)
class Installed:
    """A GitHub App was installed, removed or changed; `repositories` are full names, where they are told."""

    action: str
    installation: int
    app: int
    account: str
    repositories: tuple[str, ...] = ()


@dataclass(frozen=True)
class PullRequest:
    """`fork`: its head is in another repository than its base, so that nothing in it is to be trusted."""

    action: str
    number: int
    title: str
    author: str
    head_ref: str
    head_sha: str
    base_ref: str
    base_sha: str
    fork: bool
    open: bool
    draft: bool = False


@dataclass(frozen=True)
class Comment:
    """Something said below an issue, or a pull request (`pull`)."""

    action: str
    number: int
    comment: int
    author: str
    body: str
    pull: bool
    bot: bool = False


@dataclass(frozen=True)
class CheckRun:
    """`action` is `rerequested`, or `requested_action` with a button's `identifier`."""

    action: str
    number: int
    name: str
    head_sha: str
    external_id: str
    app: int | None
    identifier: str = ""


@dataclass(frozen=True)
class CheckSuite:
    """All check runs of an App for a commit; `rerequested` asks for all of them again."""

    action: str
    head_sha: str
    app: int | None


@dataclass(frozen=True)
class WorkflowDispatch:
    """Somebody started a workflow by hand."""

    ref: str
    workflow: str
    inputs: dict[str, str]


@dataclass(frozen=True)
class RepositoryDispatch:
    """`branch` is the default branch; `payload` is the `client_payload` of whoever sent it."""

    event_type: str
    branch: str
    payload: dict[str, Any]


@dataclass(frozen=True)
class Other:
    """`ping`, and whatever else GitHub was set to send."""

    event: str


About = (
    PushHint | RefMoved | Moved | Installed | PullRequest | Comment | CheckRun | CheckSuite
    | WorkflowDispatch | RepositoryDispatch | Other
)  # fmt: skip


@dataclass(frozen=True)
class Delivery:
    """`sender` is the login of whoever caused it; `installation` the App installation it came through."""

    id: str
    event: str
    about: About
    repository: Repository | None
    sender: str = ""
    installation: int | None = None
    hook: int | None = None  # a ping's


def parse_delivery(event: str, delivery: str, body: bytes) -> Delivery:
    """What a delivery says.

    Raises:
        TooLarge: over GitHub's own limit. WebhookInvalid: not what GitHub sends for this event.
    """
    if len(body) > MAX_BODY_BYTES:
        raise TooLarge(f"the delivery has {len(body)} bytes; GitHub sends {MAX_BODY_BYTES} at most")
    if not _DELIVERY.match(delivery):
        raise WebhookInvalid("the delivery has no usable X-GitHub-Delivery")
    payload = strict_json(body)
    envelope = payloads.read(payloads.Envelope, payload, event)
    repository = _repository(envelope.repository) if envelope.repository else None
    reader = _READERS.get(event)
    try:
        if event == "push":
            about: About = push_hint(delivery, payload)
        else:
            about = reader(payload, event) if reader else Other(event)
    except AddressRefused as error:
        raise WebhookInvalid(error.message) from error
    if repository is None and not isinstance(about, Other | Installed):
        raise WebhookInvalid(f"the {event} names no repository")
    return Delivery(
        id=delivery,
        event=event,
        about=about,
        repository=repository,
        sender=envelope.sender.login if envelope.sender else "",
        installation=envelope.installation.id if envelope.installation else None,
        hook=envelope.hook_id,
    )


def _repository(repo: payloads.Repo) -> Repository:
    found = []
    for url in (repo.clone_url, repo.ssh_url, repo.git_url, repo.html_url):
        if url:
            try:
                found.append(repository_id(url))
            except AddressRefused:
                continue
    return Repository(repo.id, repo.full_name, tuple(dict.fromkeys(found)), repo.default_branch)


def _ref_moved(payload: dict[str, Any], event: str) -> About:
    said = payloads.read(payloads.Ref, payload, event)
    if said.ref_type == "repository":
        return Other(event)
    kind = "heads" if said.ref_type == "branch" else "tags"
    return RefMoved(validate_ref(f"refs/{kind}/{said.ref}"), event == "create")


def _moved(payload: dict[str, Any], event: str) -> About:
    action = payloads.read(payloads.Action, payload, event).action
    return Moved(action) if action in ("renamed", "transferred") else Other(event)


def _installed(payload: dict[str, Any], event: str) -> About:
    said = payloads.read(payloads.Installation, payload, event)
    about = said.installation
    names = tuple(one.full_name for one in (*said.repositories, *said.repositories_added))
    return Installed(said.action, about.id, about.app_id, about.account.login, names)


def _pull_request(payload: dict[str, Any], event: str) -> About:
    said = payloads.read(payloads.PullRequest, payload, event)
    about = said.pull_request
    head, base = about.head, about.base
    return PullRequest(
        action=said.action,
        number=said.number,
        title=about.title,
        author=about.user.login if about.user else "",
        head_ref=head.ref,
        head_sha=validate_commit(head.sha),
        base_ref=base.ref,
        base_sha=validate_commit(base.sha),
        fork=head.repo is None or base.repo is None or head.repo.id != base.repo.id,
        open=about.state == "open",
        draft=about.draft,
    )


def _comment(payload: dict[str, Any], event: str) -> About:
    said = payloads.read(payloads.Comment, payload, event)
    user = said.comment.user
    return Comment(
        action=said.action,
        number=said.issue.number,
        comment=said.comment.id,
        author=user.login if user else "",
        body=said.comment.body,
        pull=said.issue.pull_request is not None,
        bot=user is None or user.type == "Bot",
    )


def _check_run(payload: dict[str, Any], event: str) -> About:
    said = payloads.read(payloads.CheckRun, payload, event)
    run = said.check_run
    return CheckRun(
        action=said.action,
        number=run.id,
        name=run.name,
        head_sha=validate_commit(run.head_sha),
        external_id=run.external_id or "",
        app=run.app.id if run.app else None,
        identifier=said.requested_action.identifier if said.requested_action else "",
    )


def _check_suite(payload: dict[str, Any], event: str) -> About:
    said = payloads.read(payloads.CheckSuite, payload, event)
    suite = said.check_suite
    return CheckSuite(said.action, validate_commit(suite.head_sha), suite.app.id if suite.app else None)


def _workflow_dispatch(payload: dict[str, Any], event: str) -> About:
    said = payloads.read(payloads.WorkflowDispatch, payload, event)
    inputs = {str(name): str(value) for name, value in (said.inputs or {}).items()}
    return WorkflowDispatch(said.ref, said.workflow, inputs)


def _repository_dispatch(payload: dict[str, Any], event: str) -> About:
    said = payloads.read(payloads.RepositoryDispatch, payload, event)
    return RepositoryDispatch(said.action, said.branch, said.client_payload or {})


_READERS = {
    "create": _ref_moved,
    "delete": _ref_moved,
    "repository": _moved,
    "installation": _installed,
    "installation_repositories": _installed,
    "pull_request": _pull_request,
    "issue_comment": _comment,
    "check_run": _check_run,
    "check_suite": _check_suite,
    "workflow_dispatch": _workflow_dispatch,
    "repository_dispatch": _repository_dispatch,
}
