"""The one place that starts git: nothing leaks in, nothing leaks out, every failure has a kind."""

from __future__ import annotations

import base64
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import psutil
import pytest

from support.repositories import Project
from support.servers import serving
from support.waiting import wait_for
from trainforge.config.messages import GitCredential
from trainforge.hooks import git, gitrun

CREDENTIAL = GitCredential(username="bot", password="c4nary-secret")


@dataclass
class FakeRemote:
    """An HTTP server that answers every request the same way, once `release` is set."""

    url: str = ""
    status: int = 500
    seen: list[str] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def remote() -> Iterator[FakeRemote]:
    fake = FakeRemote()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fake.seen.append(self.headers.get("Authorization", ""))
            fake.release.wait(30)
            self.send_response(fake.status)
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()

    with serving(Handler) as url:
        fake.url = f"{url}/x.git"
        yield fake
        fake.release.set()


def test_an_inherited_environment_changes_nothing(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = project.commit({"a": "1"})
    marker = tmp_path / "marker"
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", f"'core.fsmonitor=touch {marker}'")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", f"touch {marker}")
    monkeypatch.setenv("GIT_TRACE", str(marker))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", "/")
    assert git.run(["rev-parse", "HEAD"], cwd=project.path).decode().strip() == commit
    git.run(["status"], cwd=project.path)
    assert not marker.exists()


def test_our_own_secrets_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINFORGE_GIT_TOKEN", "c4nary")
    seen = git.run(["-c", "alias.tell=!env", "tell"])
    assert b"c4nary" not in seen
    assert b"HOME=/dev/null" in seen


@pytest.mark.parametrize(
    "planted",
    [
        {"core.fsmonitor": "touch MARKER"},
        {"core.hooksPath": "HOOKS"},
        {"core.sshCommand": "touch MARKER"},
        {"core.askPass": "HOOKS/post-checkout"},
        {"credential.helper": "!touch MARKER"},
        {"core.pager": "touch MARKER", "pager.log": "true"},
        {"core.editor": "touch MARKER"},
        {"core.alternateRefsCommand": "touch MARKER"},
        {"protocol.ext.allow": "always", "remote.origin.url": "ext::touch MARKER"},
        {"protocol.file.allow": "always", "url.ext::touch MARKER .insteadOf": "http://127.0.0.1"},
        {"gpg.program": "touch MARKER", "commit.gpgSign": "true", "log.showSignature": "true"},
        {"diff.external": "touch MARKER"},
    ],
    ids=lambda planted: next(iter(planted)),
)
def test_a_poisoned_repository_runs_nothing(
    project: Project, tmp_path: Path, planted: dict[str, str]
) -> None:
    first = project.commit({"a": "1"})
    second = project.commit({"a": "2"})
    marker, hooks = tmp_path / "marker", tmp_path / "planted-hooks"
    hooks.mkdir()
    for folder in (hooks, project.path / ".git" / "hooks"):
        folder.mkdir(exist_ok=True)
        for name in (
            "post-checkout",
            "pre-push",
            "reference-transaction",
            "post-index-change",
            "pre-auto-gc",
        ):
            (folder / name).write_text(f"#!/bin/sh\ntouch {marker}\n")
            (folder / name).chmod(0o755)
    for key, value in planted.items():
        project.git(
            "config",
            key.replace("MARKER", str(marker)),
            value.replace("MARKER", str(marker)).replace("HOOKS", str(hooks)),
        )
    repo = project.path / ".git"

    git.run(["status"], cwd=project.path)
    git.run(["log", "-1"], cwd=project.path)
    git.run(["checkout", "--quiet", "--detach", first], cwd=project.path)
    git.run(["update-ref", "refs/heads/x", second], git_dir=repo)
    assert git.tree_diff(repo, first, second) == [("M", "a")]
    for url in ("http://127.0.0.1:1/x", "ssh://127.0.0.1:1/x"):
        with pytest.raises(git.GitError):
            git.fetch_ref(repo, url, "refs/heads/main")
    with pytest.raises(git.GitError):
        git.run(["fetch", "origin"], git_dir=repo)
    assert not marker.exists()


def test_a_credential_is_sent_and_seen_nowhere(remote: FakeRemote, tmp_path: Path) -> None:
    remote.status = 403
    mirror = git.init_bare(tmp_path / "m.git")
    failures: list[Exception] = []

    def fetch() -> None:
        try:
            git.fetch_ref(mirror, remote.url, "refs/heads/main", credential=CREDENTIAL)
        except git.GitError as error:
            failures.append(error)

    thread = threading.Thread(target=fetch)
    thread.start()
    wait_for("request", lambda: remote.seen)
    encoded = base64.b64encode(b"bot:c4nary-secret").decode()
    for process in psutil.process_iter(["cmdline"]):
        argv = " ".join(process.info["cmdline"] or [])
        assert "c4nary-secret" not in argv
        assert encoded not in argv
    remote.release.set()
    thread.join(30)
    assert remote.seen[0] == f"Basic {encoded}", "the first request has it: no round trip is lost"
    assert isinstance(failures[0], git.GitAuthFailed)
    assert "c4nary" not in f"{failures[0]} {failures[0].stderr}"
    written = b"".join(path.read_bytes() for path in mirror.rglob("*") if path.is_file())
    assert b"c4nary" not in written
    assert encoded.encode() not in written


def test_a_credential_goes_to_its_own_address_alone(remote: FakeRemote, tmp_path: Path) -> None:
    remote.release.set()
    remote.status = 302
    with pytest.raises(git.GitError):
        git.ls_remote(remote.url, credential=CREDENTIAL)
    assert len(remote.seen) == 1, "a redirect is not followed"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, git.GitAuthFailed),
        (403, git.GitAuthFailed),
        (404, git.GitNotFound),
        (429, git.GitUnreachable),
        (500, git.GitUnreachable),
        (503, git.GitUnreachable),
    ],
)
def test_answers_have_kinds(remote: FakeRemote, status: int, kind: type[git.GitError]) -> None:
    remote.status = status
    remote.release.set()
    with pytest.raises(git.GitError) as caught:
        git.ls_remote(remote.url)
    assert type(caught.value) is kind


def test_a_dead_remote_is_unreachable() -> None:
    for url in ("http://127.0.0.1:1/x", "https://127.0.0.1:1/x"):
        with pytest.raises(git.GitUnreachable) as caught:
            git.ls_remote(url)
        assert url in str(caught.value)


def test_a_remote_that_hangs_ends_at_the_time_limit(remote: FakeRemote) -> None:
    with pytest.raises(git.GitTimeout, match=r"longer than 0\.5 s"):
        git.ls_remote(remote.url, timeout=0.5)
    remote.release.set()
    ours = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    assert not [p for p in ours if "git" in p.name()], "git's helpers are gone with it"


def test_no_transport_is_open_unless_a_remote_is_named(project: Project) -> None:
    project.commit()
    for url in (str(project.path), "https://127.0.0.1:1/x", "ext::sh -c true"):
        with pytest.raises(git.GitError, match="not allowed"):
            git.run(["ls-remote", "--", url])
    with pytest.raises(git.AddressRefused):
        git.ls_remote(str(project.path))


def test_a_missing_folder_is_no_other_folder(tmp_path: Path) -> None:
    with pytest.raises(git.GitNotFound):
        git.run(["status"], cwd=tmp_path / "absent")


def test_words_from_elsewhere_are_made_safe() -> None:
    text = "\x1b[31mred\x1b[0m \x1b]0;title\x07 a\x08b\r\nnext\u202eline\x9b31m"
    assert git.sanitise(text) == "red  ab\nnextline31m"
    assert git.sanitise(b"\xff\xfeok") == "\ufffd\ufffdok"


def test_an_old_git_is_refused_with_what_to_do() -> None:
    assert gitrun.require_version("git version 2.39.5 (Apple Git-154)") == "2.39.5"
    with pytest.raises(git.GitTooOld, match=r"2\.38\.9 is too old; install git 2\.39\.4 or newer"):
        gitrun.require_version("git version 2.38.9")
    with pytest.raises(git.GitTooOld):
        gitrun.require_version("no such thing")
    shown = subprocess.run(["git", "version"], capture_output=True, text=True, check=True).stdout
    assert git.check_version() in shown
