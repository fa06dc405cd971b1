"""A push at a git server that is not GitHub, told by its webhook, is looked at and answered."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from support import described
from support.repositories import Project
from support.web import Web, web
from trainforge.hooks.git import init_bare

SECRET = "a-webhook-secret"
MANIFEST = "project: {name: digits}\ntraining: {script: train.py}\n"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Web]:
    with web(tmp_path, webhook_secret=SECRET) as made:
        yield made


def _post(site: Web, payload: object, **headers: str) -> httpx2.Response:
    body = json.dumps(payload).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if "x-gitlab-token" not in named:
        named["x-hub-signature"] = f"sha256={hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()}"
    answer = httpx2.post(f"{site.url}/hooks/git", content=body, headers=named, timeout=30)
    described.check("POST", "/hooks/git", answer)
    return answer


def test_a_webhook_has_the_repository_looked_at(site: Web, tmp_path: Path) -> None:
    bare = init_bare(tmp_path / "scm" / "proj" / "digits.git")
    project = Project(tmp_path / "project")
    project.commit({"README.md": "nothing yet"})
    project.git("push", "--quiet", str(bare), "HEAD:main")
    assert site.ask("POST", "/api/repositories", json={"url": str(bare)}).status_code == 200
    deliveries = [
        ({"project": {"git_http_url": str(bare)}}, {"x_gitlab_event": "Push Hook", "x_gitlab_token": SECRET}),
        ({"repository": {"clone_url": str(bare)}}, {"x_gitea_event": "push"}),
        (
            {"repository": {"slug": "digits", "project": {"key": "PROJ"}}},
            {"x_event_key": "repo:refs_changed"},
        ),
    ]
    for number, (payload, headers) in enumerate(deliveries):
        project.commit({"trainforge.yaml": MANIFEST, "train.py": f"print({number})\n", f"{number}": ""})
        project.git("push", "--quiet", "--force", str(bare), f"HEAD:refs/heads/b{number}")
        answer = _post(site, payload, **headers)
        assert answer.status_code == 200, answer.text
        (line,) = answer.json()["lines"]
        assert line.startswith("TrainForge: job "), line


def test_what_is_not_signed_or_not_watched_is_refused(site: Web) -> None:
    payload = {"repository": {"clone_url": "https://git.example.org/team/digits.git"}}
    assert _post(site, payload, x_gitea_event="push").status_code == 404
    assert _post(site, payload, x_gitea_event="ping").json() == {"lines": ["TrainForge: nothing was pushed"]}
    answer = _post(site, payload, x_gitlab_event="Push Hook", x_gitlab_token="another")
    assert (answer.status_code, answer.json()["code"]) == (401, "not_trusted")
