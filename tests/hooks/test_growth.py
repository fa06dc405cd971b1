"""A fetch brings no more than it may, however its content is packed, and leaves nothing when it is ended."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.repositories import Project, Server
from trainforge.config.messages import GitCredential
from trainforge.hooks import git, growth

MIB = 2**20


def _objects(mirror: Path) -> int:
    return sum(path.stat().st_size for path in (mirror / "objects").rglob("*") if path.is_file())


@pytest.mark.parametrize("files", [1, 120])  # a few objects come loose, many stay a pack
def test_a_fetch_that_brings_too_much_is_ended(
    files: int, server: Server, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "LOOK_S", 0.01)
    monkeypatch.setattr(growth, "PATIENCE", 1)
    small = project.commit({"train.py": "print(1)\n"})
    content = {f"data/{number}": os.urandom(6 * MIB // files) for number in range(files)}
    commit = project.commit(content)
    project.git("push", "--quiet", server.at("demo", "s3cret-pass"), "main")
    mirror, url, credential = (
        tmp_path / "mirror.git",
        server.at("demo"),
        GitCredential(username="me", password="s3cret-pass"),
    )
    with pytest.raises(git.GitTooLarge, match=r"brings more than 1 MiB"):
        git.fetch_commit(mirror, url, commit, credential=credential, most=MIB)
    assert _objects(mirror) < MIB
    assert not git.has_commit(mirror, commit)
    git.fetch_commit(mirror, url, small, ref="refs/heads/main", credential=credential, most=64 * MIB)
    assert git.has_commit(mirror, small)
