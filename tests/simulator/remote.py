"""The git remote: the branch that is pushed to, and a results branch that only moves by compare-and-swap."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from simulator.world import Actor, World
from trainforge.hooks.gitrun import GitBlocked, GitRejected, GitUnreachable

MAIN = "refs/heads/main"


@dataclass(frozen=True)
class Tree:
    parent: str | None
    files: dict[str, bytes]


@dataclass
class Remote:
    world: World
    down: bool = False
    lost_answers: float = 0.0  # chance that a push arrives and its answer does not
    blocked: str = ""  # a job whose result the remote refuses for good
    main: list[str] = field(default_factory=list)
    manifests: dict[str, int] = field(default_factory=dict)  # commit -> which manifest it holds
    times: dict[str, float] = field(default_factory=dict)
    tip: str | None = None
    trees: dict[str, Tree] = field(default_factory=dict)
    ever: dict[str, set[str]] = field(default_factory=dict)  # job -> outcomes that were on the branch
    forced: bool = False

    def commit(self, manifest: int) -> str:
        """Push a commit to main."""
        made = hashlib.sha1(f"{self.world.seed}:{len(self.main)}".encode(), usedforsecurity=False).hexdigest()
        self.main.append(made)
        self.manifests[made], self.times[made] = manifest, self.world.now
        return made

    def refs(self) -> dict[str, str]:
        self.reach()
        return {MAIN: self.main[-1]} if self.main else {}

    def reach(self) -> None:
        if self.down:
            raise GitUnreachable("the remote is down")

    def push(self, old: str | None, new: str, files: dict[str, bytes]) -> None:
        """Move the results branch from `old` to a commit with these files in it."""
        self.reach()
        if old != self.tip and not self.forced:
            raise GitRejected("non-fast-forward")
        if self.blocked and any(self.blocked in path for path in files):
            raise GitBlocked("the file is too large")
        before = self.trees[self.tip].files if self.tip else {}
        after = {**(self.trees[old].files if old else {}), **files}
        self.trees[new] = Tree(old, after)
        self.tip = new
        self._check(before, after)
        for path in files:
            job, outcome = _said(after[path])
            self.ever.setdefault(job, set()).add(outcome)
            self.world.note("remote", f"{path} says {outcome}")
        if self.world.rng.random() < self.lost_answers:
            raise GitUnreachable("the answer to the push was lost")

    def delete_results(self) -> None:
        self.tip = None
        self.world.note("remote", "the results branch is deleted")

    def _check(self, before: dict[str, bytes], after: dict[str, bytes]) -> None:
        for path, data in before.items():
            if after.get(path) != data:
                self.world.broken(f"{path} was changed or removed on the results branch")
        jobs = [path.rsplit("/", 2)[-2] for path in after]
        for job in set(jobs):
            if jobs.count(job) > 1:
                self.world.broken(f"job {job} has {jobs.count(job)} results on the remote")

    def outcome(self, job: str) -> str:
        """What the branch says of a job now, or an empty string."""
        files = self.trees[self.tip].files if self.tip else {}
        return next((_said(data)[1] for path, data in files.items() if f"/{job}/" in path), "")


def _said(data: bytes) -> tuple[str, str]:
    said = json.loads(data)
    return said["job"], said["outcome"]


@dataclass
class Mirror:
    """What one program knows of the results branch: the production `swap_in`'s target."""

    remote: Remote
    actor: Actor
    branch: str = "trainforge-results"
    tip: str | None = None
    _made: int = 0

    def known_tip(self) -> str | None:
        return self.tip

    def fetch_tip(self) -> str | None:
        self.remote.world.meanwhile(self.actor)
        if self.actor.parted:
            raise GitUnreachable("no network")
        self.remote.reach()
        self.tip = self.remote.tip
        self.remote.world.meanwhile(self.actor)
        return self.tip

    def files(self, tip: str, *paths: str) -> list[str]:
        return [path for path in paths if path in self.remote.trees[tip].files]

    def read(self, tip: str, path: str) -> bytes | None:
        return self.remote.trees[tip].files.get(path)

    def push(self, old: str | None, files: dict[str, bytes]) -> str:
        self._made += 1
        name = f"{self.actor.name}{self._made}{old}{sorted(files)}"
        new = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
        self.remote.world.meanwhile(self.actor)
        if self.actor.parted:
            raise GitUnreachable("no network")
        self.remote.push(old, new, files)
        self.tip = new
        return new


def record(**said: Any) -> bytes:
    return json.dumps(said, sort_keys=True).encode()
