"""The commit that `submit` makes of a dirty work tree: everything in it, and nothing of the user's moved."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.commands import Git
from trainforge import usergit
from trainforge.config.errors import TrainForgeError
from trainforge.project import builtin_name, builtin_url, same_server


@pytest.fixture
def repo(folder: Path, git: Git, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, and this process's homes inside the test's folder too."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    git("init", "-q", "-b", "main")
    (folder / "train.py").write_text("print(1)\n")
    (folder / "gone.py").write_text("print(2)\n")
    (folder / ".gitignore").write_text("*.secret\n")
    git("add", "-A")
    git("commit", "-q", "-m", "First")
    return folder


def fingerprint(folder: Path, git: Git) -> tuple[object, ...]:
    """Everything of the user's: index bytes, files, refs, HEAD, what status says."""
    index = (folder / ".git" / "index").read_bytes()
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    }
    refs = git("for-each-ref"), git("symbolic-ref", "HEAD"), git("stash", "list")
    return hashlib.sha256(index).hexdigest(), files, refs


def make_dirty(folder: Path, git: Git) -> None:
    (folder / "staged.py").write_text("staged\n")
    git("add", "staged.py")
    (folder / "staged.py").write_text("staged, then changed\n")
    (folder / "train.py").write_text("print('changed')\n")
    (folder / "gone.py").unlink()
    (folder / "new dir").mkdir()
    (folder / "new dir" / "ünïcode.txt").write_text("new")
    (folder / "token.secret").write_text("ignored")


def test_a_dirty_tree_is_committed_as_it_lies_there(repo: Path, git: Git) -> None:
    make_dirty(repo, git)
    before = fingerprint(repo, git)
    commit = usergit.snapshot(repo, "Submit\n\n[skip train]")
    assert fingerprint(repo, git) == before
    listed = git("ls-tree", "-r", "-z", "--name-only", commit).split("\0")[:-1]
    assert listed == [".gitignore", "new dir/ünïcode.txt", "staged.py", "train.py"]
    assert git("show", f"{commit}:staged.py") == "staged, then changed\n"
    assert git("rev-parse", f"{commit}^") == git("rev-parse", "HEAD")
    assert "[skip train]" in git("log", "-1", "--format=%B", commit)


def test_a_clean_tree_is_its_own_commit(repo: Path, git: Git) -> None:
    (repo / "token.secret").write_text("ignored")
    commit = usergit.snapshot(repo, "Submit")
    assert commit == git("rev-parse", "HEAD").strip()


def test_a_repository_without_a_commit_can_be_submitted(folder: Path, git: Git) -> None:
    git("init", "-q", "-b", "main")
    (folder / "train.py").write_text("print(1)\n")
    commit = usergit.snapshot(folder, "Submit")
    assert git("ls-tree", "-r", "--name-only", commit).split() == ["train.py"]
    assert git("for-each-ref") == ""
    assert not (folder / ".git" / "index").exists()


def test_a_subfolder_submits_the_whole_repository(repo: Path) -> None:
    (repo / "models").mkdir()
    (repo / "models" / "train.py").write_text("print(3)\n")
    top = usergit.toplevel(repo / "models")
    assert top is not None
    assert top.resolve() == repo.resolve()


def test_a_huge_untracked_file_is_not_taken_for_code(repo: Path) -> None:
    with (repo / "data.bin").open("wb") as file:
        file.truncate(usergit.BIG_FILE + 1)
    with pytest.raises(TrainForgeError, match=r"data\.bin is not tracked"):
        usergit.snapshot(repo, "Submit")


def test_pushing_a_snapshot_leaves_no_trace_in_the_repository(repo: Path, git: Git, tmp_path: Path) -> None:
    bare = tmp_path / "there.git"
    git("init", "-q", "--bare", str(bare))
    make_dirty(repo, git)
    before = fingerprint(repo, git)
    commit = usergit.snapshot(repo, "Submit")
    branch = usergit.submit_branch(commit)
    usergit.push(repo, str(bare), commit, branch, None)
    assert fingerprint(repo, git) == before
    assert git("rev-parse", f"refs/heads/{branch}", cwd=bare).strip() == commit
    assert branch.startswith("trainforge/submit/")


@given(
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True).filter(
        lambda n: not n.endswith(".git")
    )
)
def test_a_built_in_address_gives_its_name_back(name: str) -> None:
    url = builtin_url("http://127.0.0.1:8420/", name)
    assert builtin_name("http://127.0.0.1:8420", url) == name
    assert builtin_name("http://127.0.0.1:8421", url) == ""
    assert same_server(url, "http://127.0.0.1:8420")
    assert not same_server(url, "https://127.0.0.1:8420")
