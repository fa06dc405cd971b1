"""What a GitHub of the tests' own holds, and how its things look as JSON.

The shapes are the examples of GitHub's description with our own values over them, so that answers have
every field that the description asks for.
"""

from __future__ import annotations

import secrets
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from support.github.description import example, overlaid
from support.repositories import ENVIRONMENT

Json = dict[str, Any]
REPO = "/repos/{owner}/{repo}"
_CODE = dict.fromkeys(("contents", "issues", "pull_requests", "statuses"), "write")
SCOPES = {
    "admin:repo_hook": {"repository_hooks": "write"},
    "public_repo": _CODE,
    "repo": _CODE | {"repository_hooks": "write"},
}


def stamp(at: datetime | None = None) -> str:
    return (at or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")


def node_id() -> str:
    return "N_" + secrets.token_urlsafe(9)


@dataclass
class Token:
    """`permissions` as GitHub names them, each `read` or `write`; `repositories` None: all of them.

    `app` is set for tokens of an installation, which alone may write checks; `scopes` for classic tokens.
    """

    user: str
    permissions: dict[str, str]
    repositories: set[int] | None = None
    app: int | None = None
    installation: int | None = None
    revoked: bool = False
    expires: float = 0.0
    scopes: tuple[str, ...] | None = None

    def is_for(self, number: int, *, private: bool) -> bool:
        if self.scopes is not None:
            return "repo" in self.scopes or not private
        return self.repositories is None or number in self.repositories

    def may(self, permission: str, level: str) -> bool:
        ranks = {"read": 1, "write": 2, "admin": 3}
        has = "read" if permission == "metadata" else self.permissions.get(permission, "")
        return ranks.get(has, 0) >= ranks[level]


@dataclass
class Hook:
    id: int
    url: str
    secret: str
    events: list[str]
    active: bool = True
    last_response: Json = field(default_factory=lambda: {"code": None, "status": "unused", "message": None})
    created: str = field(default_factory=stamp)
    app: int | None = None  # an App's own hook, which belongs to no repository
    deliveries: list[Json] = field(default_factory=list)  # newest first, as `hook-delivery` describes them


@dataclass
class App:
    id: int
    slug: str
    private_key: str
    public_key: str
    hook: Hook
    permissions: dict[str, str]
    events: list[str]
    client_id: str = field(default_factory=lambda: "Iv1." + secrets.token_hex(8))


@dataclass
class Installation:
    id: int
    app: int
    account: str
    permissions: dict[str, str]
    repositories: set[int] | None = None


@dataclass(eq=False)
class Repository:
    """`git` is a bare repository on this disk; `roles` says what each person may do in it."""

    id: int
    owner: str
    name: str
    git: Path
    base: str  # of the API
    site: str  # of everything else
    private: bool = False
    default_branch: str = "main"
    fork_of: int | None = None
    roles: dict[str, str] = field(default_factory=dict)
    hooks: dict[int, Hook] = field(default_factory=dict)
    statuses: list[Json] = field(default_factory=list)  # newest first
    check_runs: dict[int, Json] = field(default_factory=dict)
    issues: dict[int, Json] = field(default_factory=dict)
    pulls: dict[int, Json] = field(default_factory=dict)
    comments: dict[int, Json] = field(default_factory=dict)
    reactions: list[Json] = field(default_factory=list)
    dispatches: list[Json] = field(default_factory=list)

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def clone_url(self) -> str:
        return f"{self.site}/{self.full_name}.git"

    @property
    def api(self) -> str:
        return f"{self.base}/repos/{self.full_name}"

    def run(self, *args: str, check: bool = True) -> str:
        done = subprocess.run(
            ["git", "--git-dir", str(self.git), *args],
            env=ENVIRONMENT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip() if done.returncode == 0 else ""

    def refs(self) -> dict[str, str]:
        lines = self.run("for-each-ref", "--format=%(refname) %(objectname)").splitlines()
        return dict(line.split(" ", 1) for line in lines)  # type: ignore[misc]

    def commit_of(self, ref: str) -> str:
        """The full id of a commit by its id or by a branch or tag; empty for none."""
        return self.run("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", check=False)

    # --- as JSON ---------------------------------------------------------------------------------------

    def as_json(self, role: str = "read") -> Json:
        made = example("GET", REPO, self.base)
        for key in ("template_repository", "parent", "source", "organization", "license"):
            made.pop(key)
        levels = ("pull", "triage", "push", "maintain", "admin")
        rank = {"none": 0, "read": 1, "triage": 2, "write": 3, "maintain": 4, "admin": 5}[role]
        text = _renamed(made, "octocat/Hello-World", self.full_name, self.base, self.site)
        return overlaid(
            text,
            id=self.id,
            name=self.name,
            full_name=self.full_name,
            owner=user(self.owner, self.base, self.site),
            private=self.private,
            visibility="private" if self.private else "public",
            default_branch=self.default_branch,
            fork=self.fork_of is not None,
            language="Python",
            license=None,
            clone_url=self.clone_url,
            html_url=f"{self.site}/{self.full_name}",
            git_url=f"git://{self.site.partition('://')[2]}/{self.full_name}.git",
            ssh_url=f"git@{self.site.partition('://')[2].partition(':')[0]}:{self.full_name}.git",
            permissions={name: number < rank for number, name in enumerate(levels)},
        )

    def simple_json(self) -> Json:
        """As pull requests and webhooks carry it."""
        made = self.as_json()
        for key in ("network_count", "subscribers_count"):
            made.pop(key)
        return made | {"web_commit_signoff_required": False, "disabled": False}


def _renamed(value: Any, old: str, new: str, base: str, site: str) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(one, old, new, base, site) for key, one in value.items()}
    if isinstance(value, list):
        return [_renamed(one, old, new, base, site) for one in value]
    if isinstance(value, str):
        return value.replace(old, new).replace("https://github.com", site)
    return value


def user(login: str, base: str, site: str, kind: str = "User") -> Json:
    made = example("GET", REPO, base)["owner"]
    renamed: Json = _renamed(made, "octocat", login, base, site)
    number = sum(login.encode()) + 1000
    return renamed | {
        "login": login,
        "id": number,
        "type": kind,
        "site_admin": False,
        "user_view_type": "public",
    }


def hook_json(hook: Hook, repository: Repository) -> Json:
    url = f"{repository.api}/hooks/{hook.id}"
    return {
        "type": "Repository",
        "id": hook.id,
        "name": "web",
        "active": hook.active,
        "events": hook.events,
        "config": {
            "url": hook.url,
            "content_type": "json",
            "insecure_ssl": "0",
            **({"secret": "********"} if hook.secret else {}),
        },
        "updated_at": stamp(),
        "created_at": hook.created,
        "url": url,
        "test_url": f"{url}/test",
        "ping_url": f"{url}/pings",
        "deliveries_url": f"{url}/deliveries",
        "last_response": hook.last_response,
    }


def app_json(app: App, base: str, site: str) -> Json:
    made = example("GET", "/app", base)
    return overlaid(
        made,
        id=app.id,
        slug=app.slug,
        name=app.slug,
        client_id=app.client_id,
        owner=user("octo-org", base, site, "Organization"),
        permissions=app.permissions,
        events=app.events,
        html_url=f"{site}/apps/{app.slug}",
    )


def installation_json(one: Installation, app: App, base: str, site: str) -> Json:
    made = example("GET", REPO + "/installation", base)
    return overlaid(
        made,
        id=one.id,
        account=user(one.account, base, site),
        access_tokens_url=f"{base}/app/installations/{one.id}/access_tokens",
        app_id=app.id,
        app_slug=app.slug,
        target_id=user(one.account, base, site)["id"],
        target_type="User",
        permissions=one.permissions,
        events=app.events,
        repository_selection="all" if one.repositories is None else "selected",
        html_url=f"{site}/settings/installations/{one.id}",
    )
