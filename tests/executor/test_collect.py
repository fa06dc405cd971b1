"""Artifacts from a folder that a hostile job may have filled."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from trainforge.config.manifest import parse_manifest
from trainforge.config.messages import FencingToken, NodeKey
from trainforge.executor.collect import Collected, collect, matcher
from trainforge.executor.job_secrets import JobSecrets
from trainforge.executor.publishing import gather
from trainforge.hooks.addresses import GITHUB_FILE, largest_file


@pytest.fixture
def job(tmp_path: Path) -> Path:
    for name in ("output", "work", "secret"):
        (tmp_path / name).mkdir()
    (tmp_path / "secret" / "key").write_text("private")
    return tmp_path


def taken(job: Path, patterns: tuple[str, ...] = ("outputs/**",), max_size: int = 1000) -> Collected:
    return collect(job / "output", job / "work", patterns, job / "into", max_size=max_size)


def contents(found: Collected) -> dict[str, str]:
    return {path: copy.read_text() for path, copy in found.files.items()}


def test_output_and_globs(job: Path) -> None:
    (job / "output" / "deep").mkdir()
    (job / "output" / "deep" / "model.pt").write_text("m")
    (job / "work" / "outputs").mkdir()
    (job / "work" / "outputs" / "report.txt").write_text("r")
    (job / "work" / "train.py").write_text("not an artifact")
    found = taken(job)
    assert contents(found) == {"deep/model.pt": "m", "outputs/report.txt": "r"}
    described = {artifact.path: artifact for artifact in found.artifacts}
    assert described["deep/model.pt"].sha256 == hashlib.sha256(b"m").hexdigest()


def test_tricks_are_named_and_kept_out(job: Path) -> None:
    out = job / "output"
    (out / "link").symlink_to(job / "secret" / "key")
    (out / "folder").symlink_to(job / "secret", target_is_directory=True)
    os.link(job / "secret" / "key", out / "hard")
    os.mkfifo(out / "pipe")
    (out / ".git").mkdir()
    (out / ".git" / "config").write_text("[core]")
    (out / "new\nline").write_text("x")
    (out / os.fsdecode(b"\xff\xfe")).write_text("x")
    (out / "good").write_text("good")
    found = taken(job)
    assert contents(found) == {"good": "good"}
    words = "\n".join(found.warnings)
    for said in (
        "'link' is not kept: it is a symbolic link",
        "hard link",
        "'pipe' is not kept: it is not a regular file",
    ):
        assert said in words
    assert len(found.warnings) == 6


def test_what_nobody_asked_for_is_not_missed(job: Path) -> None:
    (job / "work" / "checkpoints").symlink_to(job / "secret", target_is_directory=True)
    assert taken(job).warnings == []
    (job / "work" / "outputs").symlink_to(job / "secret", target_is_directory=True)
    assert taken(job).warnings == ["'outputs' is not kept: it is a symbolic link"]


def test_an_output_folder_that_became_a_link(job: Path) -> None:
    (job / "output").rmdir()
    (job / "output").symlink_to(job / "secret")
    assert contents(taken(job)) == {}


def test_patterns_do_not_climb(job: Path) -> None:
    (job / "outside").write_text("x")
    assert contents(taken(job, ("../*", "../outside", "/etc/passwd", "**"))) == {}


def test_large_files_leave_their_digest(job: Path) -> None:
    (job / "output" / "big").write_text("x" * 1001)
    (job / "output" / "fits").write_text("x" * 1000)
    found = taken(job)
    assert set(found.files) == {"fits"}
    big = next(artifact for artifact in found.artifacts if artifact.path == "big")
    assert (big.size, big.sha256) == (1001, hashlib.sha256(b"x" * 1001).hexdigest())
    assert "larger than 1000 bytes" in big.stored
    assert not [copy for copy in (job / "into").iterdir() if copy not in found.files.values()]


def test_a_sparse_giant_is_not_read(job: Path) -> None:
    with (job / "output" / "giant").open("wb") as file:
        file.truncate(30 * 2**30)
    (artifact,) = taken(job).artifacts
    assert (artifact.size, artifact.sha256) == (30 * 2**30, "")


def test_depth_is_bounded(job: Path) -> None:
    deep = job / "output"
    for _ in range(40):
        deep /= "d"
        deep.mkdir()
    (deep / "f").write_text("x")
    found = taken(job)
    assert not found.files
    assert "too deep" in found.warnings[0]


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.pt", "a.pt", True), ("*.pt", "d/a.pt", False), ("**/*.pt", "d/e/a.pt", True),
        ("**/*.pt", "a.pt", True),
        ("outputs/**", "outputs/a/b", True), ("outputs/**", "outputs2/a", False), ("a?c", "abc", True),
        ("[ab].txt", "b.txt", True), ("[!ab].txt", "b.txt", False), ("a.b", "axb", False), ("[", "[", True),
    ],
)  # fmt: skip
def test_globs(pattern: str, path: str, matches: bool) -> None:
    assert bool(matcher(pattern)(path)) is matches


def test_what_github_would_block_never_reaches_a_push(job: Path) -> None:
    """Whatever the manifest allows; elsewhere the manifest alone says."""
    text = "project: {name: p}\ntraining: {script: train.py}\nartifacts: {max_size: 1Gi}\n"
    with (job / "output" / "model.pt").open("wb") as file:
        file.truncate(GITHUB_FILE + 1)  # sparse
    secrets = JobSecrets(
        NodeKey(job="a" * 26, attempt=1, rank=0), lambda: FencingToken(incarnation=1, number=1),
        lambda *_: pytest.fail("it has none"), (),
    )  # fmt: skip
    (found,) = gather(job, parse_manifest(text), secrets, "https://github.com/ada/digits.git").artifacts
    assert (found.size, found.stored) == (
        GITHUB_FILE + 1,
        f"left on the executor: larger than {GITHUB_FILE} bytes",
    )
    assert len(found.sha256) == 64


@pytest.mark.parametrize(
    ("url", "limit"),
    [
        ("https://github.com/ada/digits.git", GITHUB_FILE),
        ("git@github.com:ada/digits.git", GITHUB_FILE),
        ("ssh://git@github.com/ada/digits.git", GITHUB_FILE),
        ("https://acme.ghe.com/ada/digits.git", GITHUB_FILE),
        ("https://gitlab.com/ada/digits.git", None),
        ("https://github.com.example.org/x.git", None),
        ("/srv/digits.git", None),
    ],
)
def test_the_largest_file_of_a_host(url: str, limit: int | None) -> None:
    assert largest_file(url) == limit
