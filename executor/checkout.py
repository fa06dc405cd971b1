"""Brings a job's commit to this machine: kept mirror, private work tree, the manifest as it was planned."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from trainforge.config.disk import FULL_WORDS
from trainforge.config.errors import NodeFailed, TooLarge, Unreachable
from trainforge.config.failpoints import failpoint
from trainforge.config.messages import GitCredential, RunOrder
from trainforge.executor.commands import Setup
from trainforge.hooks import git
from trainforge.hooks.growth import MOST
from trainforge.hooks.reachable import Remote, check_reachable, is_known

MANIFEST_LIMIT = 64 * 1024
RETRY_S = (1, 2, 5, 10, 20, 30)
FETCH_TIMEOUT_S = 1800.0

Credential = Callable[[], GitCredential | None]


def mirror_path(mirrors: Path, repository_id: str) -> Path:
    """Where a repository's mirror is kept; no job ever learns this path."""
    return mirrors / f"{hashlib.sha256(repository_id.encode()).hexdigest()[:32]}.git"


def fetch(
    mirrors: Path,
    order: RunOrder,
    setup: Setup,
    credential: Credential,
    waiting: Callable[[str], None],
    *,
    allow_file: bool,
    most: int = MOST,
) -> Path:
    """The mirror, with the order's commit in it. A remote that is down is waited for.

    Raises:
        NodeFailed: `no_such_commit` or `checkout_failed`, in git's words.
    """
    mirror = mirror_path(mirrors, order.repository.id)
    mirrors.mkdir(parents=True, exist_ok=True)
    tries = 0
    while True:
        try:
            _fetch_once(mirror, order, credential, allow_file=allow_file, most=most)
        except Unreachable as error:
            pause = RETRY_S[min(tries, len(RETRY_S) - 1)]
            tries += 1
            waiting(f"waiting for the repository: {error.message}"[:2000])
            _pause(setup, pause, error.message)
        except git.GitNotFound as error:
            failpoint("12.executor.commit_gone")
            raise NodeFailed(error.message, hint=error.hint, code="no_such_commit") from error
        except (git.GitError, git.AddressRefused) as error:
            raise _failed(error) from error
        else:
            return mirror


def _failed(error: git.GitError | git.AddressRefused) -> NodeFailed:
    if isinstance(error, git.GitTooLarge):
        hint = "the executor's setting max_repository says how much it may be"
        return NodeFailed(error.message, hint=hint, code="checkout_failed")
    code = "disk_full" if FULL_WORDS.search(error.message) else "checkout_failed"
    return NodeFailed(error.message, hint=error.hint, code=code)


def _fetch_once(
    mirror: Path, order: RunOrder, credential: Credential, *, allow_file: bool, most: int
) -> None:
    git.init_bare(mirror)
    failpoint("24.executor.fetch")
    if is_known(mirror, order.commit):
        return
    url, given = order.repository.url, credential()
    remote = Remote(url, credential=given, allow_file=allow_file, timeout=FETCH_TIMEOUT_S, most=most)
    ref = order.ref if order.ref.startswith("refs/") else ""
    if not git.has_commit(mirror, order.commit):
        git.fetch_commit(mirror, order.repository.url, order.commit, ref=ref, **remote.options)
    check_reachable(mirror, remote, order.commit, ref=ref)


def _pause(setup: Setup, seconds: float, reason: str) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            setup.check()
        except NodeFailed as late:
            raise NodeFailed(reason, code="checkout_failed") from late
        time.sleep(0.1)


def read_manifest(mirror: Path, order: RunOrder) -> bytes:
    """The manifest at the order's commit.

    Raises:
        NodeFailed: there is none, or it is not the file that the sender planned.
    """
    try:
        blob, content = git.read_blob(mirror, order.commit, order.manifest_path, MANIFEST_LIMIT)
    except (git.GitNotFound, TooLarge) as error:
        raise NodeFailed(error.message, code="manifest_invalid") from error
    if blob != order.manifest_blob:
        raise NodeFailed(
            f"{order.manifest_path} at {order.commit[:12]} is not the file that was planned",
            code="checkout_failed",
        )
    return content


def work_tree(mirror: Path, order: RunOrder, destination: Path) -> None:
    """The private work tree, unless it is there from before; it appears whole or not at all."""
    if not destination.exists():
        failpoint("39.executor.disk")
        try:
            git.checkout(mirror, order.commit, destination)
        except git.GitError as error:
            raise _failed(error) from error
