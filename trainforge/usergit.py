"""git on the user's behalf, in the user's own repository: with their identity, ignore rules and helpers.

The sender and the executors run git scrubbed of all that (`hooks.gitrun`); here the repository and its
settings are the user's own. Transfers still go the scrubbed way, to one named address.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from trainforge.config.errors import TrainForgeError
from trainforge.config.messages import GitCredential
from trainforge.hooks.git import GitError, GitNotFound, GitUrl, run, validate_url

BIG_FILE = 50 * 1024 * 1024
_KEPT = (
    "GIT_AUTHOR_",
    "GIT_COMMITTER_",
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_NOSYSTEM",
    "GIT_CEILING_DIRECTORIES",
)


def user_git(
    args: list[str], cwd: Path, *, env: Mapping[str, str] | None = None, feed: str | None = None
) -> str:
    """Run git as the user would, but for terminal prompts; its output without the last newline."""
    data = None if feed is None else feed.encode()
    return run(args, cwd=cwd, env={**_user_environment(), **(env or {})}, input=data).decode().rstrip("\n")


def _user_environment() -> dict[str, str]:
    home = Path.home()
    global_config = home / ".gitconfig"
    if not global_config.exists():
        base = os.environ.get("XDG_CONFIG_HOME") or str(home / ".config")
        global_config = Path(base) / "git" / "config"
    return {
        "HOME": str(home),
        "XDG_CONFIG_HOME": os.environ.get("XDG_CONFIG_HOME", ""),
        "GIT_CONFIG_COUNT": "0",
        "GIT_CONFIG_GLOBAL": str(global_config),
        "GIT_CONFIG_NOSYSTEM": "0",
        "GIT_ATTR_NOSYSTEM": "0",
        **{name: value for name, value in os.environ.items() if name.startswith(_KEPT)},
    }


def identity(cwd: Path) -> dict[str, str]:
    """Variables that name the author where the user's git does not know one."""
    try:
        user_git(["var", "GIT_COMMITTER_IDENT"], cwd)
    except GitError:
        name = user_name()
        mail = f"{name}@{socket.gethostname()}"
        return {
            "GIT_AUTHOR_NAME": name,
            "GIT_AUTHOR_EMAIL": mail,
            "GIT_COMMITTER_NAME": name,
            "GIT_COMMITTER_EMAIL": mail,
        }
    return {}


def user_name() -> str:
    """The login name, reduced to what a branch name may contain."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # no such user in this container
        name = "user"
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name) or "user"


def toplevel(folder: Path) -> Path | None:
    """The work tree that a folder lies in, if any."""
    try:
        return Path(user_git(["rev-parse", "--show-toplevel"], folder))
    except GitNotFound:
        return None


def head(repo: Path) -> str | None:
    """The commit checked out, or None before the first."""
    try:
        return user_git(["rev-parse", "--verify", "--quiet", "HEAD^{commit}"], repo)
    except GitError:
        return None


def branch(repo: Path) -> str:
    """The branch that is checked out; empty where none is."""
    try:
        return user_git(["symbolic-ref", "--quiet", "--short", "HEAD"], repo)
    except GitError:
        return ""


def remote_url(repo: Path, name: str) -> str:
    """The address of a remote, or nothing."""
    try:
        return user_git(["remote", "get-url", "--", name], repo)
    except GitError:
        return ""


def settings(repo: Path, key: str) -> list[str]:
    """Every value of a key of git's configuration."""
    try:
        return user_git(["config", "--get-all", key], repo).split("\n")
    except GitError:
        return []


def snapshot(repo: Path, message: str) -> str:
    """Commit the work tree, untracked files included, without touching index, branch or files.

    Where nothing has changed, it is the commit that is checked out.

    Raises:
        TrainForgeError: an untracked file is too large to be meant.
    """
    _refuse_big_files(repo)
    parent = head(repo)
    index = Path(user_git(["rev-parse", "--path-format=absolute", "--git-path", "index"], repo))
    with tempfile.TemporaryDirectory(prefix="trainforge-index-") as folder:
        own = Path(folder) / "index"
        if index.exists():
            shutil.copyfile(index, own)  # spares git reading every unchanged file
        env = {"GIT_INDEX_FILE": str(own)}
        user_git(["add", "--all"], repo, env=env)
        tree = user_git(["write-tree"], repo, env=env)
    if parent and tree == user_git(["rev-parse", f"{parent}^{{tree}}"], repo):
        return parent
    parents = ["-p", parent] if parent else []
    args = ["commit-tree", tree, *parents, "--no-gpg-sign", "-m", message]
    return user_git(args, repo, env=identity(repo))


def _refuse_big_files(repo: Path) -> None:
    listed = user_git(["ls-files", "--others", "--exclude-standard", "-z"], repo)
    for name in listed.split("\0"):
        path = repo / name
        if name and path.is_file() and path.stat().st_size > BIG_FILE:
            size = path.stat().st_size / 1024**2
            raise TrainForgeError(
                f"{name} is not tracked and has {size:.0f} MiB",
                hint="name it in .gitignore, or commit it if it belongs to the project",
            )


def submit_branch(commit: str) -> str:
    """The throw-away branch that carries a commit to the sender."""
    return f"trainforge/submit/{user_name()}-{commit[:10]}"


def push(repo: Path, url: str, commit: str, branch: str, credential: GitCredential | None) -> None:
    """Push one commit to a branch of a remote; nothing is noted in the user's repository."""
    target = _address(url)
    refspec = f"{commit}:refs/heads/{branch}"
    args = ["push", "--quiet", "--porcelain", "--no-verify", "--", target.text, refspec]
    run(args, cwd=repo, remote=target, credential=credential)


def _address(url: str) -> GitUrl:
    return validate_url(url, allow_file=True)


def stored_credential(url: str, cwd: Path) -> GitCredential | None:
    """What the user's own credential helpers know for an http address; nobody is asked."""
    if not url.startswith(("http://", "https://")):
        return None
    try:
        answer = user_git(["credential", "fill"], cwd, feed=f"url={url}\n\n")
    except GitError:
        return None
    found = dict(line.split("=", 1) for line in answer.splitlines() if "=" in line)
    if not found.get("password"):
        return None
    return GitCredential(
        username=found.get("username", ""), password=found["password"], expires=time.time() + 600
    )
