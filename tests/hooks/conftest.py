"""Real repositories, and the real built-in git server over HTTP on a port of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.repositories import ENVIRONMENT, Project, Server, serving_git
from trainforge.hooks import git


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A bare repository as any git server keeps one: it serves filters, and nothing else is special."""
    path = git.init_bare(tmp_path / "remote.git")
    subprocess.run(["git", "config", "uploadpack.allowFilter", "true"], cwd=path, env=ENVIRONMENT, check=True)
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving_git(tmp_path / "served") as served:
        yield served
