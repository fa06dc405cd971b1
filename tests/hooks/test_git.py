"""Mirrors, reading and private checkouts, on real repositories."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.repositories import ENVIRONMENT, Project, Server
from trainforge.config.errors import TooLarge
from trainforge.config.messages import GitCredential
from trainforge.hooks import git, gitrun

CREDENTIAL = GitCredential(username="me", password="s3cret-pass")


def _publish(project: Project, server: Server) -> str:
    project.git("push", "--quiet", server.at("p", "s3cret-pass"), "--all")
    return server.at("p")


def test_one_commit_comes_without_its_history(server: Server, project: Project, tmp_path: Path) -> None:
    old = project.commit({"big": os.urandom(100_000)})
    new = project.commit({"big": "small now"})
    url, mirror = _publish(project, server), tmp_path / "m.git"
    git.fetch_commit(mirror, url, new, credential=CREDENTIAL)
    assert git.has_commit(mirror, new)
    assert not git.has_commit(mirror, old)
    asked = len(server.services)
    git.fetch_commit(mirror, url, new, credential=CREDENTIAL)
    assert len(server.services) == asked, "a commit that is held is not asked for again"


def test_what_is_held_is_offered_at_the_next_fetch(server: Server, project: Project, tmp_path: Path) -> None:
    first = project.commit({"big": os.urandom(2_000_000)})
    url, mirror = _publish(project, server), tmp_path / "m.git"
    git.fetch_commit(mirror, url, first, credential=CREDENTIAL)
    second = project.commit({"small": "1"})
    _publish(project, server)
    git.fetch_commit(mirror, url, second, credential=CREDENTIAL)
    packs = sorted(path.stat().st_size for path in (mirror / "objects").rglob("*") if path.is_file())
    assert sum(packs) < 2_500_000, "the big file came once"


def test_a_server_that_serves_no_bare_commit_ids(bare: Path, project: Project, tmp_path: Path) -> None:
    first = project.commit({"a": "1"})
    project.commit({"a": "2"})
    project.git("push", "--quiet", str(bare), "--all")
    mirror = tmp_path / "m.git"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gitrun._CONFIG, "protocol.version", "0")
        git.fetch_commit(mirror, str(bare), first, ref="refs/heads/main", allow_file=True)
        assert git.has_commit(mirror, first)
        project.git("checkout", "--quiet", "--orphan", "other")
        foreign = project.commit({"a": "3"})
        project.git("push", "--quiet", str(bare), "other")
        project.git("checkout", "--quiet", "main")
        later = project.commit({"a": "4"})
        project.git("push", "--quiet", str(bare), "main:main", "+main:other")
        with pytest.raises(git.GitNotFound, match="is not on refs/heads/main"):
            git.fetch_commit(mirror, str(bare), foreign, ref="refs/heads/main", allow_file=True)
        git.fetch_commit(mirror, str(bare), later, ref="refs/heads/main", allow_file=True)


def test_a_commit_that_nobody_has(server: Server, project: Project, tmp_path: Path) -> None:
    project.commit()
    url = _publish(project, server)
    with pytest.raises(git.GitNotFound, match="is not on any branch"):
        git.fetch_commit(tmp_path / "m.git", url, "1" * 40, credential=CREDENTIAL)
    with pytest.raises(git.GitNotFound):
        git.fetch_ref(tmp_path / "m.git", url, "refs/heads/absent", credential=CREDENTIAL)


def test_heads_and_peeled_tags(server: Server, project: Project) -> None:
    commit = project.commit()
    project.git("tag", "-a", "v1", "-m", "annotated")
    project.git("push", "--quiet", server.at("p", "s3cret-pass"), "main", "v1")
    assert git.ls_remote(server.at("p"), credential=CREDENTIAL) == {
        "refs/heads/main": commit, "refs/tags/v1": commit,
    }  # fmt: skip


def test_a_local_repository_is_read_where_it_lies(project: Project, tmp_path: Path) -> None:
    commit = project.commit()
    project.git("tag", "-a", "v1", "-m", "annotated")
    project.git("pack-refs", "--all")
    project.git("branch", "größe")
    project.git("update-ref", "refs/notes/x", commit)
    named = ("refs/heads/größe", "refs/heads/main", "refs/tags/v1")
    assert git.ls_remote(str(project.path), allow_file=True) == dict.fromkeys(named, commit)
    with pytest.raises(git.GitNotFound):
        git.ls_remote(str(tmp_path / "absent"), allow_file=True)
    with pytest.raises(git.AddressRefused):
        git.ls_remote(str(project.path))


def test_differences(project: Project) -> None:
    repo = project.path / ".git"
    first = project.commit({"keep": "1", "change": "1", "remove": "1", "dir/é x": "1"})
    (project.path / "remove").unlink()
    (project.path / "keep").rename(project.path / "kept")
    second = project.commit({"change": "2"})
    assert git.tree_diff(repo, first, second) == [
        ("M", "change"),
        ("D", "keep"),
        ("A", "kept"),
        ("D", "remove"),
    ]
    assert git.tree_diff(repo, None, first) == [("A", p) for p in ("change", "dir/é x", "keep", "remove")]
    assert git.list_tree(repo, first, "dir") == ["dir/é x"]
    assert git.tree_diff(repo, first, first) == []


def test_blobs_are_read_within_a_limit(project: Project) -> None:
    repo = project.path / ".git"
    commit = project.commit({"a b/é.yaml": "x: 1\n", "big": "y" * 100})
    blob, content = git.read_blob(repo, commit, "a b/é.yaml")
    assert content == b"x: 1\n"
    assert blob == project.git("rev-parse", "HEAD:a b/é.yaml").stdout.strip()
    with pytest.raises(TooLarge, match="100 bytes"):
        git.read_blob(repo, commit, "big", limit=99)
    with pytest.raises(git.GitNotFound):
        git.read_blob(repo, commit, "absent")
    with pytest.raises(git.GitNotFound):
        git.read_blob(repo, commit, "a b")
    with pytest.raises(git.GitError):
        git.read_blob(project.path / "absent", commit, "big")


def test_a_commit_is_read_and_made_safe(project: Project) -> None:
    first = project.commit()
    project.git("config", "i18n.commitEncoding", "utf-8")
    commit = project.commit(None, "Subject \x1b[31mred\n\nBody <script>\n\n[skip train]")
    with git.ObjectReader(project.path / ".git") as reader:
        info = reader.commit(commit)
    assert (info.author, info.email, info.parents) == ("Ada", "ada@example.org", (first,))
    assert info.subject == "Subject red"
    assert info.message.endswith("Body <script>\n\n[skip train]")
    assert info.time > 1_700_000_000


def test_bases_and_ancestors(server: Server, project: Project, tmp_path: Path) -> None:
    for number in range(60):
        fork = project.commit(None, f"Commit {number}")
    project.git("checkout", "--quiet", "-b", "feature")
    tip = project.commit({"a": "1"})
    project.git("checkout", "--quiet", "main")
    for number in range(60):
        project.commit(None, f"Later {number}")
    url, mirror = _publish(project, server), tmp_path / "m.git"
    base = git.find_base(mirror, url, "refs/heads/feature", ["refs/heads/main"], credential=CREDENTIAL)
    assert base == fork
    assert git.is_ancestor(mirror, fork, tip)
    assert not git.is_ancestor(mirror, tip, fork)
    project.git("checkout", "--quiet", "--orphan", "unrelated")
    project.commit()
    _publish(project, server)
    assert (
        git.find_base(mirror, url, "refs/heads/unrelated", ["refs/heads/main"], credential=CREDENTIAL) is None
    )


def test_a_checkout_is_private(server: Server, project: Project, tmp_path: Path) -> None:
    commit = project.commit({"train.py": "print(1)\n", "run.sh": "#!/bin/sh\n"})
    (project.path / "run.sh").chmod(0o755)
    (project.path / "link").symlink_to("train.py")
    commit = project.commit()
    url, mirror, work = _publish(project, server), tmp_path / "m.git", tmp_path / "jobs" / "work"
    git.fetch_commit(mirror, url, commit, credential=CREDENTIAL)
    before = {path: path.read_bytes() for path in mirror.rglob("*") if path.is_file()}
    git.checkout(mirror, commit, work)

    assert (work / "train.py").read_text() == "print(1)\n"
    assert os.access(work / "run.sh", os.X_OK)
    assert (work / "link").readlink() == Path("train.py")
    job = Project.__new__(Project)
    job.path = work
    assert job.git("rev-parse", "HEAD").stdout.strip() == commit
    assert job.git("status", "--porcelain").stdout == ""
    assert job.git("remote").stdout == ""
    job.commit({"new": "1"}, "By the job")
    assert {path: path.read_bytes() for path in mirror.rglob("*") if path.is_file()} == before
    with pytest.raises(FileExistsError):
        git.checkout(mirror, commit, work)
    with pytest.raises(git.GitNotFound):
        git.checkout(mirror, "1" * 40, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir() if "other" in path.name) == []


def test_a_commit_with_a_dot_git_entry_is_refused(bare: Path, project: Project, tmp_path: Path) -> None:
    project.commit({"a": "1"})
    blob = project.git("rev-parse", "HEAD:a").stdout.strip()
    for name in (".git", ".GIT", "git~1"):
        tree = subprocess.run(
            ["git", "hash-object", "-t", "tree", "-w", "--stdin", "--literally"],
            cwd=project.path, env=ENVIRONMENT,
            input=b"100644 " + name.encode() + b"\0" + bytes.fromhex(blob), capture_output=True, check=True,
        ).stdout.decode().strip()  # fmt: skip
        commit = project.git("commit-tree", "-m", "x", tree).stdout.strip()
        project.git("push", "--quiet", str(bare), f"{commit}:refs/heads/evil")
        with pytest.raises(git.GitError):
            git.fetch_commit(tmp_path / "m.git", str(bare), commit, allow_file=True)
        project.git("push", "--quiet", str(bare), ":refs/heads/evil")


def test_a_mirror_is_made_once_by_many(project: Project, bare: Path, tmp_path: Path) -> None:
    commits = [project.commit({"a": str(number)}) for number in range(6)]
    project.git("push", "--quiet", str(bare), "main")
    with ThreadPoolExecutor(6) as pool:
        fetches = [
            pool.submit(git.fetch_commit, tmp_path / "m.git", str(bare), commit, allow_file=True)
            for commit in commits
        ]
    for fetch in fetches:
        fetch.result()
    assert all(git.has_commit(tmp_path / "m.git", commit) for commit in commits)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".m")] == []
