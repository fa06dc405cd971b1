"""Commits that a server hands out and that are not the repository's: found out over real HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.repositories import Project, Server
from trainforge.config.messages import GitCredential
from trainforge.hooks import git
from trainforge.hooks.git import GitNotFound
from trainforge.hooks.reachable import Remote, approve, approved_ref, check_reachable, contains, is_known

CREDENTIAL = GitCredential(username="me", password="s3cret-pass")


@pytest.fixture
def remote(project: Project, server: Server) -> Remote:
    project.commit({"a": "1"})
    project.git("push", "--quiet", server.at("p", "s3cret-pass"), "main")
    return Remote(server.at("p"), credential=CREDENTIAL)


def push(project: Project, server: Server, *refs: str) -> None:
    project.git("push", "--quiet", "--force", server.at("p", "s3cret-pass"), *refs)


def imposter(project: Project, server: Server, evil: str = "1") -> str:
    """A commit that the server has and serves by its id, as it would a fork's; on no branch or tag."""
    project.git("checkout", "--quiet", "-B", "fork")
    commit = project.commit({"evil": evil})
    push(project, server, "fork")
    push(project, server, ":fork")
    project.git("checkout", "--quiet", "main")
    return commit


def test_an_imposter_is_fetched_by_its_id_and_refused(
    project: Project, server: Server, remote: Remote, tmp_path: Path
) -> None:
    commit, mirror = imposter(project, server), tmp_path / "m.git"
    git.fetch_commit(mirror, remote.url, commit, credential=CREDENTIAL)
    assert git.has_commit(mirror, commit), "the server hands it out"
    for ref in ("refs/heads/main", "", "refs/heads/fork"):
        with pytest.raises(GitNotFound, match="is on no branch or tag"):
            check_reachable(mirror, remote, commit, ref=ref)
    assert not is_known(mirror, commit)


def test_what_is_on_a_branch_or_tag_is_the_repositorys_own(
    project: Project, server: Server, remote: Remote, tmp_path: Path
) -> None:
    old = project.git("rev-parse", "HEAD").stdout.strip()
    for number in range(60):  # further back than the first look
        project.commit({"a": str(number)})
    push(project, server, "main")
    mirror = tmp_path / "m.git"
    git.fetch_commit(mirror, remote.url, old, credential=CREDENTIAL)
    check_reachable(mirror, remote, old, ref="refs/heads/main")
    asked = len(server.services)
    check_reachable(mirror, remote, old, ref="refs/heads/main")
    assert is_known(mirror, old)
    assert len(server.services) == asked, "it is remembered"
    project.git("tag", "-a", "v1", "-m", "v1", old)
    tagged = project.commit({"a": "tagged"})
    project.git("tag", "v2", tagged)
    push(project, server, "v1", "v2")
    git.fetch_commit(mirror, remote.url, tagged, credential=CREDENTIAL)
    check_reachable(mirror, remote, tagged, ref="refs/heads/gone")


def test_what_was_rewritten_away_is_refused(
    project: Project, server: Server, remote: Remote, tmp_path: Path
) -> None:
    lost, mirror = project.commit({"a": "lost"}), tmp_path / "m.git"
    push(project, server, "main")
    git.fetch_commit(mirror, remote.url, lost, credential=CREDENTIAL)
    project.git("reset", "--quiet", "--hard", "HEAD~1")
    push(project, server, "main")
    with pytest.raises(GitNotFound, match="its branch was rewritten"):
        check_reachable(mirror, remote, lost, ref="refs/heads/main")


def test_a_repository_on_this_disk(project: Project, tmp_path: Path) -> None:
    own = project.commit({"a": "1"})
    project.git("checkout", "--quiet", "--detach")
    loose = project.commit({"a": "2"})
    assert contains(project.path / ".git", own)
    assert not contains(project.path / ".git", loose)
    assert not contains(project.path / ".git", "f" * 40)
    here = Remote(str(project.path), allow_file=True)
    git.fetch_commit(tmp_path / "m.git", str(project.path), loose, allow_file=True)
    with pytest.raises(GitNotFound):
        check_reachable(tmp_path / "m.git", here, loose)
    git.fetch_commit(tmp_path / "m.git", str(project.path), own, allow_file=True)
    check_reachable(tmp_path / "m.git", here, own)


def test_a_forks_commit_that_was_approved_is_known_by_the_ref_that_says_so(
    project: Project, server: Server, remote: Remote, tmp_path: Path
) -> None:
    commit, mirror = imposter(project, server), tmp_path / "m.git"
    push(project, server, f"{commit}:refs/pull/1/head")  # where GitHub keeps the heads of pull requests
    git.fetch_commit(mirror, remote.url, commit, credential=CREDENTIAL)
    with pytest.raises(GitNotFound):
        check_reachable(mirror, remote, commit, ref=approved_ref(commit))
    approve(mirror, remote.url, commit, credential=CREDENTIAL)
    with pytest.raises(GitNotFound):
        check_reachable(mirror, remote, commit, ref="refs/heads/main")
    check_reachable(mirror, remote, commit, ref=approved_ref(commit))
    other = imposter(project, server, "2")
    git.fetch_commit(mirror, remote.url, other, credential=CREDENTIAL)
    for ref in (approved_ref(other), approved_ref(commit)):
        with pytest.raises(GitNotFound):
            check_reachable(mirror, remote, other, ref=ref)
