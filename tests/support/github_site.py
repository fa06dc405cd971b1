"""A sender whose one repository is connected to the tests' GitHub, without the loops of either."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from support.core import make_sender
from support.github import App, GitHub, Repository, serving_github
from support.repositories import Project
from trainforge.config.result import result_path
from trainforge.sender import events, github_events, schema, sealed
from trainforge.sender.context import Sender
from trainforge.sender.github_access import app_secrets, connection_secrets
from trainforge.sender.github_teller import Teller
from trainforge.sender.store_events import Repo
from trainforge.sender.store_github import App as KnownApp
from trainforge.sender.store_github import Connection

MANIFEST = "project: {name: digits}\ntraining: {script: train.py, launcher: python}\n"
GATED = MANIFEST + "gates: [{metric: accuracy, min: 0.9}, {metric: loss, max: base}]\n"


class Hub:
    """`github` and `found` are their side, `sender` and `repo` ours; `project` is somebody's clone."""

    def __init__(self, folder: Path, github: GitHub) -> None:
        self.github = github
        self.found: Repository = github.add_repository("ada/digits", grace="write", mallory="read")
        self.sender: Sender = make_sender(folder)
        self.sender.base_url = "https://trainforge.example"
        self.ahead = 0.0
        self.sender.clock = lambda: time.time() + self.ahead
        url = self.found.clone_url
        name = url.removeprefix("http://").removesuffix(".git")
        self.repo = self.sender.store.add_repository(Repo(f"git:{name}", "digits", url, "remote"), self.now)
        self.project = Project(folder / "work")
        self.teller = Teller(self.sender)

    @property
    def now(self) -> float:
        return self.sender.now()

    def connect(self, app: App | None = None) -> Connection:
        made = Connection(
            self.repo.id, self.found.full_name, self.found.id, self.github.api, app.id if app else None,
            hook_id=None, by="ada", connected=self.now - 60,
        )  # fmt: skip
        if app is None:
            token = self.github.token("ada", self.found, statuses="write", contents="write", issues="write",
                                      pull_requests="write", metadata="read")  # fmt: skip
            sealed.keep(self.sender, connection_secrets(self.repo.id), {"token": token})
        else:
            known = KnownApp(app.id, self.github.api, app.slug, "", "ada", self.now)
            self.sender.store.add_app(known, "ada")
            sealed.keep(self.sender, app_secrets(app.id), {"private_key": app.private_key})
        self.sender.store.connect(made, "ada")
        return made

    def connect_app(self) -> App:
        app = self.github.add_app(
            "tf", {"checks": "write", "pull_requests": "write", "contents": "write", "metadata": "read"}, []
        )
        self.github.install(app, "ada", self.found)
        self.connect(app)
        return app

    # --- what people do ---------------------------------------------------------------------------------

    def push(self, files: dict[str, str], branch: str = "main", *, to: Repository | None = None) -> str:
        commit = self.project.commit(dict(files))
        target = to or self.found
        self.project.git("push", "--quiet", "--force", str(target.git), f"HEAD:refs/heads/{branch}")
        self.github.pushed(target)
        self.github.settle()  # its pull requests have the new head
        return commit

    def job(self, commit: str, ref: str = "refs/heads/main", **asked: Any) -> str:
        return events.request_job(self.sender, self.repo.id, commit, ref=ref, **asked)

    def change(self, job: str, **values: Any) -> None:
        """As the life cycle would, and later than whatever was told."""
        self.ahead += 60
        now = self.now
        if values.get("state") == "completed":
            folder = {"result_commit": "e" * 40, "result_path": result_path(job, now)}
            values = {"ended": now, "started": now - 12.5, **folder} | values
        with self.sender.store.write() as c:
            c.execute(sa.update(schema.jobs).where(schema.jobs.c.id == job).values(values))

    def look(self) -> None:
        self.teller.look()

    def hear(self, about: Any, delivery: str = "d", login: str = "ada") -> str:
        """A delivery, as `webhooks.py` hands it on."""
        said = github_events.Delivery(delivery, "x", about, None, login)
        return github_events.note(self.sender, self.repo, said)

    # --- what people see --------------------------------------------------------------------------------

    def statuses(self) -> list[tuple[str, str]]:
        """Newest first."""
        return [(one["state"], one["description"]) for one in self.found.statuses]

    def comments(self) -> list[str]:
        return [str(one["body"]) for one in self.found.comments.values()]

    def reactions(self) -> list[str]:
        return [one["content"] for one in self.found.reactions]

    def jobs(self) -> list[Any]:
        return self.sender.queries.jobs()


@contextmanager
def hub(folder: Path) -> Iterator[Hub]:
    with serving_github(folder / "github") as github:
        made = Hub(folder, github)
        try:
            yield made
        finally:
            made.sender.store.close()
