"""Results that wait go together, and none pays for another's fault."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from support.waiting import wait_for
from trainforge.config.errors import Conflict, TrainForgeError
from trainforge.hooks.gitrun import GitBlocked
from trainforge.hooks.result_queue import MOST, ResultQueue
from trainforge.hooks.results import Entry, Outcome, Written


def entry(name: str, size: int = 2) -> Entry:
    return Entry(f"jobs/{name}", {"result.json": b" " * size}, name)


@dataclass
class Branch:
    """A queue, and a remote; what it `refuses` it refuses with all that goes along."""

    queue: ResultQueue = field(default_factory=ResultQueue)
    pushes: list[list[str]] = field(default_factory=list)
    refuses: set[str] = field(default_factory=set)
    open: threading.Event = field(default_factory=threading.Event)
    wait_s: float = 0.0
    waits: list[float] = field(default_factory=list)
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2 * MOST))

    def push(self, entries: Sequence[Entry]) -> tuple[Written, list[Outcome]]:
        names = [one.message for one in entries]
        self.pushes.append(names)
        assert self.open.wait(20)
        if self.refuses & set(names):
            raise GitBlocked("GH013")
        written = [Written(name, already=False) for name in names]
        return written[0], list(written[1:])

    def begin(self, name: str, size: int = 2, wait: Callable[[float], None] | None = None) -> Future[Written]:
        return self.threads.submit(
            self.queue.write,
            entry(name, size),
            self.push,
            turn=lambda: self.wait_s,
            wait=wait or self.waits.append,
        )

    def waiting(self, count: int) -> None:
        wait_for("those who wait", lambda: len(self.queue._waiting) == count)


@pytest.fixture
def branch() -> Branch:
    return Branch()


def test_what_comes_during_a_push_goes_with_the_next(branch: Branch) -> None:
    first = branch.begin("first")
    wait_for("a push", lambda: branch.pushes)
    others = [branch.begin(f"{number}") for number in range(MOST + 5)]
    branch.waiting(MOST + 6)
    branch.open.set()
    assert first.result(20).commit == "first"
    assert sorted(one.result(20).commit for one in others) == sorted(f"{n}" for n in range(MOST + 5))
    assert [len(names) for names in branch.pushes] == [1, MOST, 5]


def test_one_that_is_refused_takes_nobody_along(branch: Branch) -> None:
    branch.refuses = {"bad"}
    first = branch.begin("first")
    wait_for("a push", lambda: branch.pushes)
    others = [branch.begin(name) for name in ("a", "bad", "b")]
    branch.waiting(4)
    branch.open.set()
    outcomes: list[str] = []
    for one in (first, *others):
        error = one.exception(20)
        outcomes.append(type(error).__name__ if error else one.result().commit)
    assert outcomes == ["first", "a", "GitBlocked", "b"]
    assert len(branch.pushes) == 1 + 1 + 3, "those that went along with it each go alone"


def test_large_ones_are_not_sent_together(branch: Branch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainforge.hooks.result_queue.MOST_BYTES", 100)
    first = branch.begin("first")
    wait_for("a push", lambda: branch.pushes)
    others = [branch.begin(name, size=60) for name in ("a", "b")]
    branch.waiting(3)
    branch.open.set()
    for one in (first, *others):
        one.result(20)
    assert len(branch.pushes) == 3


def test_nobody_pushes_out_of_turn_and_who_waits_may_give_up(branch: Branch) -> None:
    branch.wait_s = 30.0

    def give_up(seconds: float) -> None:
        assert 29 < seconds <= 30
        raise Conflict("somebody else's result stands")

    with pytest.raises(TrainForgeError, match="stands"):
        branch.begin("first", wait=give_up).result(20)
    assert branch.pushes == []
    branch.waiting(0)
