"""The post-receive hook, run by git itself on real pushes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from support.repositories import Project
from support.servers import serving
from trainforge.config.errors import Conflict, NotFound, SettingsError
from trainforge.hooks import git
from trainforge.hooks.github import WebhookInvalid, verify_signature
from trainforge.hooks.scripts import Notice, install_post_receive, parse_notice


@dataclass
class Listener:
    url: str = ""
    status: int = 200
    answer: bytes = b'{"lines": ["TrainForge: job k3f9 queued", "\\u001b[31mred"]}'
    bodies: list[bytes] = field(default_factory=list)
    signatures: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def listener() -> Iterator[Listener]:
    heard = Listener()
    heard.release.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            heard.signatures.append(self.headers["X-Hub-Signature-256"])
            heard.paths.append(self.path)
            heard.release.wait(30)
            self.send_response(heard.status)
            self.end_headers()
            self.wfile.write(heard.answer)

    with serving(Handler) as heard.url:
        yield heard
        heard.release.set()


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("hush\n")
    return path


def test_a_push_announces_itself(listener: Listener, bare: Path, project: Project, secret_file: Path) -> None:
    install_post_receive(bare, listener.url + "/base/", secret_file)
    commit = project.commit()
    done = project.git("push", str(bare), "HEAD:refs/heads/main", "HEAD:refs/tags/v1")
    assert "remote: TrainForge: job k3f9 queued" in done.stderr
    assert "\x1b[31m" not in done.stderr
    assert listener.paths == ["/base/hooks/git"]
    verify_signature(["hush"], listener.bodies[0], listener.signatures[0])
    assert parse_notice(listener.bodies[0]) == Notice(
        git.repository_id(str(bare)), ("refs/heads/main", "refs/tags/v1")
    )
    assert commit.encode() in listener.bodies[0]


@pytest.mark.parametrize(
    "trouble",
    [
        (401, b"", "the webhook secret is not the sender's"),
        (404, b"", "it does not watch this repository"),
        (200, b"not json", "the sender was not told (JSONDecodeError)"),
        (500, b"", "it answered 500; if it watches this repository, it looks at it later by itself"),
    ],
)
def test_trouble_never_fails_a_push(
    listener: Listener, bare: Path, project: Project, secret_file: Path, trouble: tuple[int, bytes, str]
) -> None:
    listener.status, listener.answer, words = trouble
    install_post_receive(bare, listener.url, secret_file)
    project.commit()
    assert words in project.git("push", str(bare), "HEAD:refs/heads/main").stderr


def test_a_dead_or_silent_sender_does_not_hold_a_push_up(
    listener: Listener, bare: Path, project: Project, secret_file: Path
) -> None:
    install_post_receive(bare, "http://127.0.0.1:1", secret_file)
    project.commit()
    assert (
        "was not told (ConnectionRefusedError)" in project.git("push", str(bare), "HEAD:refs/heads/a").stderr
    )
    listener.release.clear()
    install_post_receive(bare, listener.url, secret_file)
    started = time.monotonic()
    assert "was not told (TimeoutError)" in project.git("push", str(bare), "HEAD:refs/heads/b").stderr
    assert time.monotonic() - started < 15
    secret_file.unlink()
    assert "was not told (FileNotFoundError)" in project.git("push", str(bare), "HEAD:refs/heads/c").stderr


def test_a_hook_that_was_there_still_runs(
    listener: Listener, bare: Path, project: Project, secret_file: Path, tmp_path: Path
) -> None:
    hook = bare / "hooks" / "post-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ncat > {tmp_path}/seen\n")
    hook.chmod(0o755)
    for _ in range(2):
        assert install_post_receive(bare, listener.url, secret_file) == hook.resolve()
    commit = project.commit()
    project.git("push", str(bare), "HEAD:refs/heads/main")
    assert (tmp_path / "seen").read_text() == f"{'0' * 40} {commit} refs/heads/main\n"
    assert len(listener.bodies) == 1
    hook.write_text("#!/bin/sh\n")
    with pytest.raises(Conflict):
        install_post_receive(bare, listener.url, secret_file)


def test_what_cannot_be_installed(bare: Path, project: Project, secret_file: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        install_post_receive(project.path, "http://127.0.0.1:1", secret_file)
    with pytest.raises(SettingsError):
        install_post_receive(bare, "127.0.0.1:1", secret_file)
    with pytest.raises(SettingsError):
        install_post_receive(bare, "http://127.0.0.1:1", tmp_path / "absent")


@pytest.mark.parametrize(
    "notice",
    [
        {},
        {"repository": 7, "refs": []},
        {"repository": "relative", "refs": []},
        {"repository": "/x", "refs": {}},
        {"repository": "/x", "refs": [7]},
        {"repository": "/x", "refs": [{"old": "1", "new": "2" * 40, "ref": "refs/heads/x"}]},
        {"repository": "/x", "refs": [{"old": "1" * 40, "new": "2" * 40, "ref": "x"}]},
    ],
)
def test_malformed_notices(notice: object) -> None:
    with pytest.raises(WebhookInvalid):
        parse_notice(json.dumps(notice).encode())
