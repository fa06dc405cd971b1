"""What people and other programs do at GitHub, and the webhooks that follow from it."""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from support.github.check_routes import run_json
from support.github.deliveries import deliver, ping_payload
from support.github.description import hook_events, webhook_examples
from support.github.state import (
    SCOPES,
    App,
    Hook,
    Installation,
    Json,
    Repository,
    Token,
    app_json,
    hook_json,
    stamp,
    user,
)
from support.github.talk_routes import comment_json, issue_json, make_comment, pull_json
from trainforge.hooks import git

if TYPE_CHECKING:
    from support.github.server import GitHub

    Base = GitHub
else:
    Base = object
NOTHING = "0" * 40
BRANCH, TAG = "refs/heads/", "refs/tags/"


class People(Base):
    # --- who and what there is ---------------------------------------------------------------------------

    def add_repository(self, full_name: str, *, private: bool = False, fork_of: Repository | None = None,
                       **roles: str) -> Repository:  # fmt: skip
        """An empty repository, or a copy of another; `roles` says what people may do (`ada="write"`)."""
        owner, _, name = full_name.partition("/")
        bare = Path(self.root) / f"{full_name}.git"
        git.init_bare(bare)
        number = next(self.numbers)
        made = Repository(
            number, owner, name, bare, self.api, self.site, private,
            fork_of=fork_of.id if fork_of else None, roles={owner: "admin"} | roles,
        )  # fmt: skip
        made.run("config", "uploadpack.allowFilter", "true")
        if fork_of is not None:
            made.run("fetch", "--quiet", str(fork_of.git), "+refs/heads/*:refs/heads/*")
        self.repositories[number] = made
        self.heads[number] = made.refs()
        return made

    def token(self, login: str, *repositories: Repository, **permissions: str) -> str:
        """A fine-grained personal token; of all repositories where none is named."""
        text = f"github_pat_{secrets.token_hex(20)}"
        chosen = {one.id for one in repositories} or None
        self.tokens[text] = Token(login, permissions, chosen)
        return text

    def classic_token(self, login: str, *scopes: str) -> str:
        text = f"ghp_{secrets.token_hex(20)}"
        permissions = {name: level for scope in scopes for name, level in SCOPES[scope].items()}
        self.tokens[text] = Token(login, permissions, scopes=scopes)
        return text

    def add_app(self, slug: str, permissions: dict[str, str], events: list[str], hook_url: str = "",
                secret: str = "") -> App:  # fmt: skip
        key = rsa.generate_private_key(65537, 2048)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )  # fmt: skip
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        number = next(self.numbers)
        hook = Hook(next(self.numbers), hook_url, secret or secrets.token_hex(20), list(events), app=number)
        made = App(number, slug, private.decode(), public.decode(), hook, dict(permissions), list(events))
        self.apps[number] = made
        return made

    def install(self, app: App, account: str, *repositories: Repository, **permissions: str) -> Installation:
        made = Installation(
            next(self.numbers), app.id, account, permissions or app.permissions,
            {one.id for one in repositories} or None,
        )  # fmt: skip
        self.installations[made.id] = made
        self.later(self.tell_installation, made, "created")
        return made

    def tell_installation(self, one: Installation, action: str) -> None:
        base = webhook_examples()["installation"][0]
        app = self.apps[one.app]
        about = base["installation"] | {"id": one.id, "app_id": app.id, "app_slug": app.slug}
        about["account"] = user(one.account, self.api, self.site)
        chosen = [self.repositories[number] for number in one.repositories or ()]
        named = [
            {"id": r.id, "node_id": "", "name": r.name, "full_name": r.full_name, "private": r.private}
            for r in chosen
        ]
        payload = {"action": action, "installation": about, "repositories": named}
        payload["sender"] = user(one.account, self.api, self.site)
        if app.hook.url:
            deliver(app.hook, "installation", payload, None)

    def uninstall(self, one: Installation) -> None:
        del self.installations[one.id]
        for token in self.tokens.values():
            token.revoked |= token.installation == one.id
        self.tell_installation(one, "deleted")

    def post_manifest(self, manifest: Json, state: str, owner: str = "ada") -> str:
        """Somebody agrees to an App that a form describes; where their browser is sent then."""
        _check_manifest(manifest)
        hook = manifest.get("hook_attributes", {})
        app = self.add_app(
            re.sub(r"[^a-z0-9]+", "-", manifest["name"].lower()),
            manifest["default_permissions"],
            manifest.get("default_events", []),
            hook.get("url", ""),
        )
        code = secrets.token_hex(20)
        self.codes[code] = app
        redirect = urlsplit(manifest["redirect_url"])
        query = {**{k: v[0] for k, v in parse_qs(redirect.query).items()}, "code": code, "state": state}
        return redirect._replace(query=urlencode(query)).geturl()

    # --- webhooks ----------------------------------------------------------------------------------------

    def tell(self, found: Repository, event: str, payload: Json, login: str) -> None:
        """Every hook of the repository, and of the Apps installed at it, that asked for this event."""
        common = {"repository": found.simple_json(), "sender": user(login, self.api, self.site)}
        for hook in list(found.hooks.values()):
            if hook.active and (event in hook.events or "*" in hook.events):
                deliver(hook, event, payload | common, found.id)
        for one in list(self.installations.values()):
            hook = self.apps[one.app].hook
            covered = one.account == found.owner and (
                one.repositories is None or found.id in one.repositories
            )
            if covered and hook.url and event in hook.events:
                deliver(
                    hook, event, payload | common | {"installation": {"id": one.id, "node_id": ""}}, found.id
                )

    def ping(self, found: Repository, hook: Hook) -> None:
        about = {"repository": found.simple_json(), "sender": user(found.owner, self.api, self.site)}
        deliver(hook, "ping", ping_payload(hook, hook_json(hook, found), about), found.id)

    def redeliver(self, repository_id: int | None, hook: Hook, delivery: Json) -> None:
        deliver(hook, delivery["event"], delivery["request"]["payload"], repository_id, again=delivery)

    def tell_comment(self, found: Repository, comment: Json, action: str, login: str) -> None:
        payload = {
            "action": action,
            "issue": issue_json(found, comment["_issue"]),
            "comment": comment_json(comment),
        }
        self.tell(found, "issue_comment", payload, login)

    # --- pushes ------------------------------------------------------------------------------------------

    def pushed(self, found: Repository, login: str = "") -> None:
        """Tell of every ref that has changed since the last time."""
        before, after = self.heads[found.id], found.refs()
        self.heads[found.id] = after
        for ref in sorted(set(before) | set(after)):
            old, new = before.get(ref, NOTHING), after.get(ref, NOTHING)
            if old != new and ref.startswith((BRANCH, TAG)):
                self.later(self._tell_push, found, ref, old, new, login or found.owner)

    def _tell_push(self, found: Repository, ref: str, old: str, new: str, login: str) -> None:
        created, deleted = old == NOTHING, new == NOTHING
        shas = [] if deleted else found.run("rev-list", "-n", "1", new).split()
        commits = [_pushed_commit(found, sha) for sha in shas]
        forced = not created and not deleted and found.run("merge-base", old, new, check=False) != old
        pusher = {"name": login, "email": f"{login}@example.org"}
        payload = {
            "ref": ref, "before": old, "after": new, "created": created, "deleted": deleted, "forced": forced,
            "base_ref": None, "compare": f"{found.site}/{found.full_name}/compare/{old[:12]}...{new[:12]}",
            "commits": commits, "head_commit": commits[0] if commits else None, "pusher": pusher,
        }  # fmt: skip
        self.tell(found, "push", payload, login)
        if created or deleted:
            kind, name = (
                ("branch", ref.removeprefix(BRANCH))
                if ref.startswith(BRANCH)
                else ("tag", ref.removeprefix(TAG))
            )
            about = {"ref": name, "ref_type": kind, "pusher_type": "user"}
            about |= {"master_branch": found.default_branch, "description": None} if created else {}
            self.tell(found, "create" if created else "delete", about, login)
        for one in list(self.repositories.values()):
            for pull in list(one.pulls.values()):
                here = (pull["head_repository"], BRANCH + pull["head"], pull["state"]) == (
                    found.id,
                    ref,
                    "open",
                )
                if here and not deleted:
                    pull["head_sha"] = new
                    self._fetch_head(one, pull)
                    self._tell_pull(one, pull, "synchronize", login, before=old, after=new)

    # --- pull requests -----------------------------------------------------------------------------------

    def open_pull(self, found: Repository, head: str, login: str, *, base: str = "", title: str = "A change",
                  head_repository: Repository | None = None) -> int:  # fmt: skip
        """The number of a new pull request; from a fork with `head_repository`."""
        source = head_repository or found
        number = len(found.pulls) + len(found.issues) + 1
        pull = {
            "id": next(self.numbers), "number": number, "title": title, "body": None, "user": login,
            "head": head, "head_repository": source.id, "base": base or found.default_branch,
            "state": "open", "created": stamp(), "head_sha": source.commit_of(BRANCH + head),
        }  # fmt: skip
        found.pulls[number] = pull
        self._fetch_head(found, pull)
        self.later(self._tell_pull, found, pull, "opened", login)
        return number

    def _fetch_head(self, found: Repository, pull: Json) -> None:
        """GitHub keeps a pull request's head in the repository that it is for."""
        source = self.repositories[pull["head_repository"]]
        ref = f"+{BRANCH}{pull['head']}:refs/pull/{pull['number']}/head"
        found.run("fetch", "--quiet", str(source.git), ref)

    def close_pull(self, found: Repository, number: int, login: str) -> None:
        pull = found.pulls[number]
        pull["state"] = "closed"
        self.later(self._tell_pull, found, pull, "closed", login)

    def _tell_pull(self, found: Repository, pull: Json, action: str, login: str, **more: Any) -> None:
        payload = {
            "action": action,
            "number": pull["number"],
            "pull_request": pull_json(self, found, pull),
            **more,
        }
        self.tell(found, "pull_request", payload, login)

    def comment(self, found: Repository, number: int, login: str, body: str) -> int:
        """Somebody writes something below a pull request."""
        made = make_comment(self, found, number, login=login, body=body)
        self.later(self.tell_comment, found, made, "created", login)
        return int(made["id"])

    # --- buttons -----------------------------------------------------------------------------------------

    def rerequest(self, found: Repository, run: int, login: str) -> None:
        """ "Re-run" at a check run: its App alone hears of it."""
        self._tell_run(found, run, login, {"action": "rerequested"})

    def press(self, found: Repository, run: int, identifier: str, login: str) -> None:
        """A button that the check run brought with it."""
        assert identifier in [one["identifier"] for one in found.check_runs[run]["_actions"]]
        action = {"action": "requested_action", "requested_action": {"identifier": identifier}}
        self._tell_run(found, run, login, action)

    def _tell_run(self, found: Repository, run: int, login: str, action: Json) -> None:
        base = webhook_examples()["check_run"][0]["check_run"]
        state = found.check_runs[run]
        known = run_json(state)
        branches = [
            r.removeprefix(BRANCH)
            for r, sha in found.refs().items()
            if sha == known["head_sha"] and r.startswith(BRANCH)
        ]
        suite = base["check_suite"] | {"head_sha": known["head_sha"], "head_branch": (branches or [None])[0]}
        app = self.apps[known["app"]["id"]]
        suite |= {"app": app_json(app, self.api, self.site), "pull_requests": []}
        payload = action | {"check_run": base | known | {"check_suite": suite}}
        self.later(self._tell_app, app, "check_run", payload, found, login)

    def rerequest_all(self, found: Repository, app: App, commit: str, login: str) -> None:
        """ "Re-run all checks" of an App at a commit."""
        base = next(one for one in webhook_examples()["check_suite"] if one["action"] == "rerequested")[
            "check_suite"
        ]
        suite = base | {"head_sha": commit, "after": commit, "head_branch": None, "pull_requests": []}
        suite |= {"app": app_json(app, self.api, self.site)}
        self.later(
            self._tell_app, app, "check_suite", {"action": "rerequested", "check_suite": suite}, found, login
        )

    def start_workflow(self, found: Repository, app: App, login: str, ref: str = "refs/heads/main") -> None:
        """Somebody presses "Run workflow"."""
        payload = {"inputs": None, "ref": ref, "workflow": ".github/workflows/train.yml"}
        self.later(self._tell_app, app, "workflow_dispatch", payload, found, login)

    def _tell_app(self, app: App, event: str, payload: Json, found: Repository, login: str) -> None:
        installation = next(one.id for one in self.installations.values() if one.app == app.id)
        whole = payload | {
            "repository": found.simple_json(),
            "sender": user(login, self.api, self.site),
            "installation": {"id": installation, "node_id": ""},
        }
        deliver(app.hook, event, whole, found.id)

    # --- moving ------------------------------------------------------------------------------------------

    def rename(self, found: Repository, name: str) -> None:
        was, found_from = found.full_name, found.name
        self._move(found, found.owner, name)
        changes = {"repository": {"name": {"from": found_from}}}
        self.old_names[was] = found.id
        self.later(self.tell, found, "repository", {"action": "renamed", "changes": changes}, found.owner)

    def transfer(self, found: Repository, owner: str) -> None:
        was, old = found.full_name, found.owner
        self._move(found, owner, found.name)
        changes = {"owner": {"from": {"user": user(old, self.api, self.site)}}}
        self.old_names[was] = found.id
        self.later(self.tell, found, "repository", {"action": "transferred", "changes": changes}, owner)

    def _move(self, found: Repository, owner: str, name: str) -> None:
        target = Path(self.root) / f"{owner}/{name}.git"
        target.parent.mkdir(parents=True, exist_ok=True)
        found.git.rename(target)
        found.git, found.owner, found.name = target, owner, name
        found.roles.setdefault(owner, "admin")

    def now(self) -> float:
        return time.time()


def _pushed_commit(found: Repository, sha: str) -> Json:
    tree, name, email, when, message = found.run(
        "show", "-s", "--format=%T%x00%an%x00%ae%x00%aI%x00%B", sha
    ).split("\0")
    who = {"name": name, "email": email, "username": name}
    return {
        "id": sha, "tree_id": tree, "distinct": True, "message": message.strip(), "timestamp": when,
        "url": f"{found.site}/{found.full_name}/commit/{sha}", "author": who, "committer": who,
        "added": [], "removed": [], "modified": [],
    }  # fmt: skip


# What GitHub wants for an event in a manifest; an App need not ask for `installation`, and may not.
_NEEDED = {
    "issue_comment": "issues", "pull_request": "pull_requests", "check_run": "checks",
    "check_suite": "checks", "repository": "metadata",
}  # fmt: skip


def _check_manifest(manifest: Json) -> None:
    """As GitHub's page does: "Default events are not supported by permissions: ..."."""
    events = set(manifest.get("default_events", []))
    allowed = hook_events("app") - {"installation", "installation_repositories"}
    assert events <= allowed, f"Default events unsupported: {events - allowed}"
    has = {**manifest["default_permissions"], "metadata": "read"}
    lacking = [event for event in events if _NEEDED.get(event, "contents") not in has]
    assert not lacking, f"Default events are not supported by permissions: {lacking}"
    assert len(manifest["name"]) <= 34, "Name is too long (maximum is 34 characters)"
