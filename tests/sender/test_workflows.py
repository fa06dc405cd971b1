"""Runs of GitHub Actions get in by the token that GitHub gives them, and reach their own commit alone."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pytest
from joserfc import jws
from joserfc.jwk import RSAKey

from support import described
from support.oidc import COMMIT, Issuer, issuer
from support.repositories import Project
from support.servers import serving
from support.web import Web, web
from trainforge.config.errors import NotTrusted, Unreachable
from trainforge.hooks import oidc
from trainforge.hooks.git import init_bare
from trainforge.sender.store_events import Repo
from trainforge.sender.store_github import Connection

TOKEN = "/api/workflows/token"


@pytest.fixture(scope="module")
def github() -> Iterator[Issuer]:
    with issuer() as made:
        yield made


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, github: Issuer) -> Iterator[Web]:
    access = {"demo": {"repository_id": 74, "refs": ["main", "release/*"]}, "linked": {}}
    folder = tmp_path_factory.mktemp("workflows")
    with web(folder, workflows=access, oidc_issuer=github.issuer) as made:
        yield made


def _exchange(site: Web, token: str) -> httpx2.Response:
    answer = httpx2.post(site.url + TOKEN, headers={"Authorization": f"Bearer {token}"}, timeout=30)
    described.check("POST", TOKEN, answer)
    return answer


def _admitted(site: Web, github: Issuer, **claims: Any) -> dict[str, Any]:
    answer = _exchange(site, github.token(site.url, **claims))
    assert answer.status_code == 200, answer.text
    given: dict[str, Any] = answer.json()
    return given


def _refused(site: Web, token: str, status: int, words: str) -> None:
    answer = _exchange(site, token)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    site.sender.strangers.take_back("127.0.0.1")


def test_a_run_gets_a_token_for_its_own_commit_and_once(site: Web, github: Issuer) -> None:
    token = github.token(site.url, run_id="4711")
    given = _exchange(site, token).json()
    assert given.pop("token").count(".") == 2
    assert 200 < given.pop("expires") - time.time() <= 300
    assert given == {"repository": "demo", "ref": "refs/heads/main", "commit": COMMIT, "run": True}
    _refused(site, token, 401, "used before")
    last = site.sender.store.audit_rows(limit=1)[0]
    assert (last["action"], last["actor"]) == ("workflow.admitted", "workflow:octo-org/octo-repo#4711")
    _admitted(site, github, run_id="4711")  # the same run renews its token
    assert site.sender.store.audit_rows(limit=1)[0]["n"] == last["n"]


def test_a_repository_that_is_connected_has_its_number_already(site: Web, github: Issuer) -> None:
    claims = {"repository_id": "99", "repository": "octo-org/linked"}
    store, now = site.sender.store, site.sender.now()
    repo = store.add_repository(
        Repo("git:github.com/octo-org/linked", "linked", "https://github.com/octo-org/linked", "remote"), now
    )
    _refused(site, github.token(site.url, **claims), 403, "have no access here")
    link = Connection(
        repo.id,
        "octo-org/linked",
        99,
        "https://api.github.com",
        app_id=None,
        hook_id=7,
        by="ada",
        connected=now,
    )
    store.connect(link, "person:ada")
    assert _admitted(site, github, **claims)["repository"] == "linked"


@pytest.mark.parametrize(
    ("claims", "status", "words"),
    [
        ({"repository_id": "75"}, 403, "repository_id 75"),
        ({"repository_id": "75", "repository": "octo-org/octo-repo"}, 403, "have no access here"),
        ({"event_name": "pull_request_target"}, 403, "pull_request_target"),
        ({"event_name": "issue_comment"}, 403, "issue_comment"),
        ({"ref": "refs/heads/feature"}, 403, "refs/heads/feature"),
        ({"ref": "refs/pull/1/merge"}, 403, "refs/pull/1/merge"),
        ({"ref": "main"}, 403, "runs of main have"),
        ({"iss": "https://token.actions.githubusercontent.com"}, 401, "another issuer"),
        ({"aud": ["http://elsewhere.example"]}, 401, "another audience"),
        ({"exp": 1_600_000_000, "iat": 1_599_999_900, "nbf": 1_599_999_900}, 401, "expired"),
        ({"iat": 4_000_000_000, "nbf": 4_000_000_000, "exp": 4_000_000_300}, 401, "from the future"),
        ({"exp": 4_000_000_000}, 401, "for how long"),
        ({"exp": "soon"}, 401, "for how long"),
        ({"repository_id": None}, 401, "repository_id"),
        ({"repository_id": "-74"}, 401, "repository_id"),
        ({"jti": ""}, 401, "jti"),
        ({"sha": "x" * 100}, 401, "sha"),
    ],
)
def test_other_runs_are_refused(
    site: Web, github: Issuer, claims: dict[str, Any], status: int, words: str
) -> None:
    _refused(site, github.token(site.url, **claims), status, words)


def test_what_the_issuer_has_not_signed_is_refused(site: Web, github: Issuer) -> None:
    token = github.token(site.url)
    head, body, signature = token.split(".")
    own = RSAKey.generate_key(2048)
    header = json.loads(base64.urlsafe_b64decode(head + "=="))
    claims = base64.urlsafe_b64decode(body + "==")
    forged = jws.serialize_compact(header, claims, own, algorithms=["RS256"])
    unsigned = base64.urlsafe_b64encode(json.dumps(header | {"alg": "none"}).encode()).decode().rstrip("=")
    unknown = jws.serialize_compact(header | {"kid": "no-such-key"}, claims, own, algorithms=["RS256"])
    nameless = jws.serialize_compact({"alg": "RS256"}, claims, own, algorithms=["RS256"])
    for bad in (forged, unknown, nameless, f"{unsigned}.{body}.", f"{head}.{body}.{signature[:-8]}AAAAAAAA"):
        _refused(site, bad, 401, "not_trusted")
    for bad in ("", "x", "a.b.c", "." * 3, "ä.b.c", "x" * 20_000):
        with pytest.raises(NotTrusted):
            oidc.Issuer(github.issuer).verify(bad, site.url, time.time())


def test_a_pull_request_is_planned_and_not_run_and_not_for_a_fork(
    site: Web, github: Issuer, tmp_path: Path
) -> None:
    repo = init_bare(site.sender.git_root / "demo.git")
    project = Project(tmp_path / "project")
    project.commit({"train.py": ""})
    for ref in ("refs/pull/1/head", "refs/heads/feature", "refs/pull/2/head"):
        project.git("push", "--quiet", str(repo), f"HEAD:{ref}")
    ours = {"event_name": "pull_request", "ref": "refs/pull/1/merge", "head_ref": "feature"}
    given = _admitted(site, github, **ours)
    assert given["run"] is False
    bearer = {"Authorization": f"Bearer {given['token']}"}
    plan = site.ask("POST", "/api/plan", headers=bearer, json={"manifest": "project: {name: a}\n"})
    assert plan.status_code in (200, 422)
    asked = {"repository": "demo", "commit": COMMIT, "ref": "refs/pull/1/merge"}
    answer = site.ask("POST", "/api/jobs", headers=bearer, json=asked)
    assert (answer.status_code, "may plan, and not train" in answer.text) == (403, True)
    for fork in (
        {"head_ref": "theirs"},
        {"ref": "refs/pull/7/merge"},
        {"head_ref": ""},
        {"ref": "refs/heads/x"},
    ):
        _refused(site, github.token(site.url, **ours | fork), 403, "forbidden")


def test_a_runs_token_reaches_its_own_jobs_and_nothing_else(site: Web, github: Issuer) -> None:
    given = _admitted(site, github)
    bearer = {"Authorization": f"Bearer {given['token']}"}
    own = site.add_job()
    assert site.ask("GET", f"/api/jobs/{own}", headers=bearer).json()["id"] == own
    assert site.ask("GET", f"/api/jobs/{own}/logs", headers=bearer).status_code == 200
    assert site.ask("POST", f"/api/jobs/{own}/stop", headers=bearer, json={}).status_code == 200
    for method, path in (
        ("GET", "/api/jobs"),
        ("GET", "/api/executors"),
        ("GET", "/api/secrets"),
        ("GET", "/api/me"),
        ("POST", "/api/tokens"),
        ("POST", f"/api/jobs/{own}/retry"),
        ("GET", f"/api/jobs?matrix={own}"),
    ):
        answer = site.ask(method, path, headers=bearer, **({"json": {}} if method == "POST" else {}))
        assert answer.status_code == 403, path
    upload = {"Content-Type": "application/zip"}
    assert site.ask("POST", "/api/jobs", headers=bearer | upload, content=b"PK").status_code == 403
    mine = {"repository": "demo", "commit": COMMIT, "ref": "refs/heads/main"}
    for other in ({"commit": "b" * 40}, {"ref": "refs/heads/release/1"}, {"repository": "other"}):
        answer = site.ask("POST", "/api/jobs", headers=bearer, json=mine | other)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), other
    site.sender.clock = lambda: time.time() + 400
    try:
        assert site.ask("GET", f"/api/jobs/{own}", headers=bearer).status_code == 401
    finally:
        site.sender.clock = time.time


# --- the issuer's keys ----------------------------------------------------------------------------------


class _Bad(BaseHTTPRequestHandler):
    answers: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.answers.get(self.path, b"{}"))


def test_an_issuer_is_asked_within_bounds(github: Issuer) -> None:
    token = github.token("http://sender")
    about = "/.well-known/openid-configuration"
    with serving(_Bad) as base:
        for answers, kind in (
            ({about: b"x" * 400_000}, Unreachable),
            ({about: b"[]"}, Unreachable),
            ({about: b'{"jwks_uri": "http://127.0.0.1:9/keys"}'}, Unreachable),
            ({about: f'{{"jwks_uri": "{base}/keys"}}'.encode(), "/keys": b'{"keys": 5}'}, NotTrusted),
            (
                {about: f'{{"jwks_uri": "{base}/keys"}}'.encode(), "/keys": b'{"keys": [{"kid": 1}]}'},
                NotTrusted,
            ),
        ):
            _Bad.answers = answers
            with pytest.raises(kind):
                oidc.Issuer(base).verify(token, "http://sender", time.time())
        clock = [0.0]
        one = oidc.Issuer(base, lambda: clock[0])
        _Bad.asked.clear()
        for moment in (0.0, 1.0, 29.0, 31.0):
            clock[0] = moment
            with pytest.raises(NotTrusted, match="does not have"):
                one.verify(token, "http://sender", time.time())
        assert len(_Bad.asked) == 4  # twice, with two requests each
        _Bad.answers = {about: b"gone"}
        for moment in (70.0, 71.0):
            clock[0] = moment
            with pytest.raises(Unreachable):
                one.verify(token, "http://sender", time.time())
        assert len(_Bad.asked) == 5  # who cannot answer is not asked again at once
    for nobody in ("http://example.org", base):
        with pytest.raises(Unreachable):
            oidc.Issuer(nobody).verify(token, "http://sender", time.time())
