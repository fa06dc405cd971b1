"""The built-in git server, used by the git command over HTTP."""

from __future__ import annotations

import gzip
import os
import socket
import subprocess
from pathlib import Path

import httpx2
import pytest

from support.repositories import ENVIRONMENT, Project, Server
from support.waiting import wait_for
from trainforge.config.errors import NotFound, NotTrusted
from trainforge.hooks import git
from trainforge.hooks.git_http import Access, repository_name, repository_path

PASSWORD = "s3cret-pass"


def _address(server: Server) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


def _post(path: str, length: int) -> bytes:
    lines = [
        f"POST /git/{path} HTTP/1.1",
        "Host: x",
        "Authorization: Basic bWU6czNjcmV0LXBhc3M=",
        f"Content-Type: application/x-{path.rsplit('/', maxsplit=1)[-1]}-request",
        f"Content-Length: {length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_first_push_creates_the_repository_and_shows_what_it_led_to(
    server: Server, project: Project
) -> None:
    commit = project.commit({"trainforge.yaml": "project: {name: x}\n"})
    server.lines = lambda name: ["TrainForge: job k3f9 queued", "second \x1b[31mline\nbroken"]

    done = project.git("push", server.at("team/digits", PASSWORD), "HEAD:refs/heads/main")

    assert "remote: TrainForge: job k3f9 queued" in done.stderr
    assert "remote: second line broken" in done.stderr
    assert server.pushed == ["team/digits"]
    repo = repository_path(server.root, "team/digits")
    assert git.read_blob(repo, commit, "trainforge.yaml")[1] == b"project: {name: x}\n"


def test_clone_fetch_and_partial_fetch(server: Server, project: Project, tmp_path: Path) -> None:
    project.commit({"a": "1"}, "First")
    project.git("push", server.at("p", PASSWORD), "HEAD:refs/heads/trunk")
    clone = Project(tmp_path / "clone")
    clone.git("clone", "--quiet", server.at("p", PASSWORD), "again")
    assert (clone.path / "again" / "a").read_text() == "1", "HEAD names a branch that exists"

    second = project.commit({"a": "2", "big": os.urandom(3_000_000)}, "Second")
    project.git("push", server.at("p", PASSWORD), "HEAD:refs/heads/trunk")
    project.commit(None, "Third")
    project.git("push", server.at("p", PASSWORD), "HEAD:refs/heads/trunk")
    clone.git("fetch", "--quiet", "--depth=1", "--filter=blob:none", server.at("p", PASSWORD), second)
    assert clone.git("rev-parse", "FETCH_HEAD").stdout.strip() == second


@pytest.mark.parametrize("protocol", ["0", "1", "2"])
def test_every_protocol_version(server: Server, project: Project, tmp_path: Path, protocol: str) -> None:
    commit = project.commit({"a": "1"})
    version = ("-c", f"protocol.version={protocol}")
    pushed = project.git(*version, "push", server.at("p", PASSWORD), "HEAD:refs/heads/main")
    assert "remote: TrainForge: looked at p" in pushed.stderr
    listed = project.git(*version, "ls-remote", server.at("p", PASSWORD))
    assert listed.stdout.split()[0] == commit


def test_a_large_push_in_chunks(server: Server, project: Project) -> None:
    commit = project.commit({"weights.bin": os.urandom(6_000_000)})
    project.git("-c", "http.postBuffer=65536", "push", server.at("p", PASSWORD), "HEAD:refs/heads/main")
    repo = repository_path(server.root, "p")
    assert len(git.read_blob(repo, commit, "weights.bin")[1]) == 6_000_000
    assert server.pushed == ["p"], "git's probe request is no push"


def test_a_fetch_request_that_git_compresses(server: Server, project: Project, tmp_path: Path) -> None:
    for number in range(40):
        project.commit(None, f"Commit {number}")
        project.git("branch", f"b{number}")
    project.git("push", "--quiet", server.at("p", PASSWORD), "--all")
    clone = Project(tmp_path / "clone")
    for number in range(40):
        clone.commit(None, f"Other {number}")
    trace = clone.git(
        "fetch", server.at("p", PASSWORD), "refs/heads/*:refs/remotes/p/*", GIT_CURL_VERBOSE="1"
    )
    assert "Content-Encoding: gzip" in trace.stderr
    assert len(clone.git("branch", "-r").stdout.split()) == 41


def test_wrong_and_missing_passwords(server: Server, project: Project) -> None:
    project.commit()
    for url in (server.at("p", "wrong"), server.at("p")):
        done = project.git("push", url, "HEAD:refs/heads/main", check=False)
        assert done.returncode != 0
        assert "Authentication failed" in done.stderr or "could not read" in done.stderr
    assert not repository_path(server.root, "p").exists()
    assert httpx2.get(f"{server.url}/git/p.git/info/refs?service=git-upload-pack").headers["www-authenticate"]


def test_a_reader_may_not_push_or_create(server: Server, project: Project) -> None:
    project.commit()
    project.git("push", server.at("p", PASSWORD), "HEAD:refs/heads/main")
    server.users = {"read-only": Access("me")}
    done = project.git("push", server.at("p", "read-only"), "HEAD:refs/heads/other", check=False)
    assert done.returncode != 0
    assert "may read only" in done.stderr
    assert project.git("ls-remote", server.at("p", "read-only")).stdout
    assert (
        "no repository absent"
        in project.git("ls-remote", server.at("absent", "read-only"), check=False).stderr
    )
    server.users = {"no-create": Access("me", write=True)}
    assert project.git("push", server.at("q", "no-create"), "HEAD:refs/heads/m", check=False).returncode != 0
    assert not repository_path(server.root, "q").exists()


def test_a_job_credential_reaches_the_results_and_nothing_else(server: Server, project: Project) -> None:
    first = project.commit({"a": "1"})
    second = project.commit({"a": "2"})
    project.git(
        "push", server.at("p", PASSWORD), "HEAD:refs/heads/main", f"{second}:refs/heads/trainforge-results"
    )
    server.users["job"] = Access("me", write=True, refs=("refs/heads/trainforge-results", "refs/trainforge/"))
    third = project.commit({"a": "3"})
    url = server.at("p", "job")

    project.git("push", url, f"{third}:refs/heads/trainforge-results", f"{third}:refs/trainforge/x/y")
    for refused in (
        f"{third}:refs/heads/main",
        f"{third}:refs/heads/trainforge-results-2",
        f"{third}:refs/tags/v1",
        ":refs/heads/main",
        f"+{first}:refs/heads/trainforge-results",
        ":refs/heads/trainforge-results",
        f"{third}:refs/heads/$(touch${{IFS}}pwned)",
    ):
        done = project.git("push", url, refused, check=False)
        assert done.returncode != 0, refused
    assert (
        "this credential may not push to refs/heads/main"
        in project.git("push", url, f"{third}:refs/heads/main", check=False).stderr
    )
    heads = git.ls_remote(str(repository_path(server.root, "p")), allow_file=True)
    assert heads == {"refs/heads/main": second, "refs/heads/trainforge-results": third}


def test_what_happens_after_the_push_never_fails_it(server: Server, project: Project) -> None:
    def broken(name: str) -> list[str]:
        raise RuntimeError(name)

    def refused(name: str) -> list[str]:
        raise NotTrusted("not today")

    project.commit()
    server.lines = broken
    done = project.git("push", server.at("p", PASSWORD), "HEAD:refs/heads/main")
    assert "looking at it failed; it is tried again" in done.stderr
    server.lines = refused
    done = project.git("push", server.at("p", PASSWORD), "HEAD:refs/heads/other")
    assert "remote: TrainForge: not today" in done.stderr


def test_a_push_cut_short_changes_nothing(server: Server, project: Project) -> None:
    first = project.commit()
    project.git("push", server.at("p", PASSWORD), "HEAD:refs/heads/main")
    second = project.commit({"a": "x"})
    pack = subprocess.run(
        ["git", "pack-objects", "--stdout", "--revs", "-q"], cwd=project.path, env=ENVIRONMENT,
        input=f"{second}\n^{first}\n".encode(), capture_output=True, check=True,
    ).stdout  # fmt: skip
    command = f"{first} {second} refs/heads/main\0report-status\n".encode()
    body = f"{len(command) + 4:04x}".encode() + command + b"0000" + pack
    before = len(server.services)
    with socket.create_connection(_address(server)) as connection:
        connection.sendall(_post("p.git/git-receive-pack", len(body)) + body[:-1])
    wait_for("the cut request", lambda: len(server.services) > before)
    assert git.ls_remote(str(repository_path(server.root, "p")), allow_file=True)["refs/heads/main"] == first
    done = httpx2.post(
        f"{server.url}/git/p.git/git-receive-pack", content=gzip.compress(body), auth=("me", PASSWORD),
        headers={"Content-Type": "application/x-git-receive-pack-request", "Content-Encoding": "gzip"},
    )  # fmt: skip
    assert done.status_code == 200, "the whole of it, compressed, is taken"
    assert b"unpack ok" in done.content, "and an answer without side bands is passed on as it is"
    assert server.pushed == ["p", "p"]


def test_what_git_complains_about_is_in_the_log(
    server: Server, project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    project.commit()
    project.git("push", server.at("p", PASSWORD), "HEAD:refs/heads/main")
    assert not [record for record in caplog.records if record.name == "trainforge.git"]
    with (repository_path(server.root, "p") / "config").open("a") as config:
        config.write("[\x1b[31mbroken\n")
    project.git("ls-remote", server.at("p", PASSWORD), check=False)
    record = wait_for("a line", lambda: [r for r in caplog.records if "git says" in r.getMessage()])[0]
    assert "git-upload-pack of p: git says: fatal: bad config" in record.getMessage()
    assert "\x1b" not in record.getMessage()


@pytest.mark.parametrize(
    "path",
    [
        "/git/p.git/HEAD",
        "/git/p.git/objects/info/packs",
        "/git/p.git/config",
        "/git/p.git/info/refs",
        "/git/p.git/info/refs?service=git-upload-archive",
        "/git/../../etc/passwd",
        "/git/%2e%2e/%2e%2e/etc/info/refs?service=git-upload-pack",
        "/git/.hooks/info/refs?service=git-upload-pack",
        "/git/a/b/c.git/info/refs?service=git-upload-pack",
        "/git/-x.git/info/refs?service=git-upload-pack",
        "/git/p.git.git/info/refs?service=git-upload-pack",
        "/git/p.git%00x/info/refs?service=git-upload-pack",
        "/git/p.git/git-upload-pack",
    ],
)
def test_nothing_but_the_smart_protocol_is_served(server: Server, project: Project, path: str) -> None:
    project.commit()
    project.git("push", server.at("p", PASSWORD), "HEAD:refs/heads/main")
    assert httpx2.get(server.url + path, auth=("me", PASSWORD)).status_code == 404


def test_a_request_over_the_cap_is_refused_before_it_is_read(server: Server, project: Project) -> None:
    project.commit()
    project.git("push", server.at("p", PASSWORD), "HEAD:refs/heads/main")
    with socket.create_connection(_address(server), timeout=20) as connection:
        connection.sendall(_post("p.git/git-upload-pack", 99_999_999_999))
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "name", ["", "..", "a/..", "../a", "a/b/c", ".x", "-x", "x.lock", "a\n", "a.git/b", "é", "a" * 80]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(NotFound):
        repository_name(name)


def test_the_git_suffix_does_not_matter() -> None:
    assert repository_name("team/x.git") == repository_name("team/x") == "team/x"
