"""The fields that are read of the payloads of GitHub's deliveries; `github_deliveries.py` gives them meaning.

The shapes are those of GitHub's webhook documentation ("Webhook events and payloads").
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from trainforge.hooks.github import WebhookInvalid

Name = Annotated[str, StringConstraints(min_length=1, max_length=255)]
Model = TypeVar("Model", bound=BaseModel)


class Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class User(Part):
    login: Name
    type: str = Field(default="", max_length=64)


class Numbered(Part):
    id: int


class Repo(Part):
    id: int
    full_name: Name
    default_branch: str = Field(default="", max_length=255)
    clone_url: str = Field(default="", max_length=2048)
    ssh_url: str = Field(default="", max_length=2048)
    git_url: str = Field(default="", max_length=2048)
    html_url: str = Field(default="", max_length=2048)


class Envelope(Part):
    repository: Repo | None = None
    sender: User | None = None
    installation: Numbered | None = None
    hook_id: int | None = None


class Ref(Part):
    ref: Name
    ref_type: Annotated[str, StringConstraints(pattern="^(branch|tag|repository)$")]


class Action(Part):
    action: Name


class Named(Part):
    full_name: Name


class Installation(Part):
    class About(Part):
        id: int
        app_id: int
        account: User

    action: Name
    installation: About
    repositories: list[Named] = []
    repositories_added: list[Named] = []


class End(Part):
    ref: Name
    sha: Name
    repo: Numbered | None  # None once a fork was deleted


class PullRequest(Part):
    class About(Part):
        title: str = Field(max_length=1024)
        user: User | None
        head: End
        base: End
        state: Name
        draft: bool = False

    action: Name
    number: int
    pull_request: About


class Comment(Part):
    class Issue(Part):
        number: int
        pull_request: dict[str, Any] | None = None

    class Said(Part):
        id: int
        user: User | None
        body: str = Field(max_length=300_000)

    action: Name
    issue: Issue
    comment: Said


class CheckRun(Part):
    class Button(Part):
        identifier: str = Field(default="", max_length=255)

    class Run(Part):
        id: int
        name: Name
        head_sha: Name
        external_id: str | None = Field(default=None, max_length=1024)
        app: Numbered | None = None

    action: Name
    check_run: Run
    requested_action: Button | None = None


class CheckSuite(Part):
    class Suite(Part):
        id: int
        head_sha: Name
        app: Numbered | None = None

    action: Name
    check_suite: Suite


class WorkflowDispatch(Part):
    ref: Name
    workflow: str = Field(max_length=1024)
    inputs: dict[str, Any] | None = None


class RepositoryDispatch(Part):
    action: Name
    branch: Name
    client_payload: dict[str, Any] | None = None


def read(model: type[Model], payload: dict[str, Any], event: str) -> Model:
    """Raises WebhookInvalid, which names what is missing or cannot be used."""
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise WebhookInvalid(f"the {event[:64]} lacks a usable {where}: {first['msg']}") from error
