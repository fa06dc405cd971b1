"""Polling, and watching repositories on this disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from support.repositories import Project
from trainforge.config.errors import NotFound
from trainforge.hooks import git
from trainforge.hooks.gitrun import GitUnreachable
from trainforge.hooks.watch import LocalWatcher, git_folder, poll

# watchdog 7.1 warns on its own thread when a folder appears inside one that has just appeared.
pytestmark = pytest.mark.filterwarnings("ignore:Callback with id:RuntimeWarning")


class Hints:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.changed = asyncio.Condition()

    async def __call__(self, repository: str, source: str) -> None:
        async with self.changed:
            self.seen.append((repository, source))
            self.changed.notify_all()

    async def count(self, number: int) -> None:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: len(self.seen) >= number)


def test_a_push_to_a_watched_bare_repository_is_noticed(bare: Path, project: Project) -> None:
    async def scenario() -> None:
        hints = Hints()
        async with LocalWatcher(hints) as watcher:
            watcher.watch("git:/remote", bare)
            project.commit()
            await asyncio.to_thread(project.git, "push", "--quiet", str(bare), "HEAD:refs/heads/deep/er/main")
            await hints.count(1)
            before = len(hints.seen)
            await asyncio.to_thread(project.git, "push", "--quiet", str(bare), ":refs/heads/deep/er/main")
            await hints.count(before + 1)
        assert set(hints.seen) == {("git:/remote", "watch")}

    asyncio.run(scenario())


def test_commits_and_packed_refs_of_a_work_tree_are_noticed(project: Project) -> None:
    async def scenario() -> None:
        project.commit()
        hints = Hints()
        async with LocalWatcher(hints) as watcher:
            watcher.watch("git:/work", project.path)
            await asyncio.to_thread(project.commit, {"a": "1"})
            await hints.count(1)
            before = len(hints.seen)
            await asyncio.to_thread(project.git, "pack-refs", "--all")
            await hints.count(before + 1)

    asyncio.run(scenario())


def test_a_burst_is_few_hints_and_a_failing_look_ends_nothing(bare: Path, project: Project) -> None:
    async def scenario() -> None:
        hints = Hints()

        async def failing(repository: str, source: str) -> None:
            await hints(repository, source)
            raise RuntimeError("no")

        async with LocalWatcher(failing, settle=0.2) as watcher:
            watcher.watch("git:/remote", bare)
            project.commit()
            refs = [f"HEAD:refs/heads/b{number}" for number in range(50)]
            await asyncio.to_thread(project.git, "push", "--quiet", str(bare), *refs)
            await hints.count(1)
            await asyncio.to_thread(project.git, "push", "--quiet", str(bare), "HEAD:refs/heads/last")
            await hints.count(2)
        assert len(hints.seen) < 20

    asyncio.run(scenario())


def test_polling_asks_for_every_repository_and_survives_failures() -> None:
    async def scenario() -> None:
        hints = Hints()

        async def look(repository: str, source: str) -> None:
            await hints(repository, source)
            if repository == "bad":
                raise RuntimeError("unreachable")

        polling = asyncio.create_task(poll(lambda: ["bad", "good"], look, interval=0.001, jitter=lambda: 0.0))
        async with asyncio.timeout(20), hints.changed:
            await hints.changed.wait_for(lambda: hints.seen.count(("good", "poll")) >= 12)
        polling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await polling
        assert 2 <= hints.seen.count(("bad", "poll")) < hints.seen.count(("good", "poll")) / 2

    asyncio.run(scenario())


def test_a_remote_that_does_not_answer_delays_no_other() -> None:
    async def scenario() -> None:
        hints, ended = Hints(), asyncio.Event()

        async def look(repository: str, source: str) -> None:
            await hints(repository, source)
            if repository == "hangs":
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()

        polling = asyncio.create_task(poll(lambda: ["hangs", "good"], look, interval=0.001))
        await hints.count(12)
        polling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await polling
        assert hints.seen.count(("hangs", "poll")) == 1
        assert ended.is_set()

    asyncio.run(scenario())


def test_a_failing_remote_is_told_once_and_when_it_says_something_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "trainforge.watch")
    answers = iter(["no route", "no route", "no password"])

    async def scenario() -> None:
        hints = Hints()

        async def look(repository: str, source: str) -> None:
            try:
                answer = next(answers, None)
                if answer:
                    raise GitUnreachable(answer)
            finally:
                await hints(repository, source)

        polling = asyncio.create_task(poll(lambda: ["remote"], look, interval=0.001))
        await hints.count(5)
        polling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await polling

    asyncio.run(scenario())
    assert [record.getMessage() for record in caplog.records if record.name == "trainforge.watch"] == [
        "looking at remote failed: no route",
        "looking at remote failed: no password",
        "looking at remote works again",
    ]
    assert not any(record.exc_info for record in caplog.records)


def test_what_is_no_repository(tmp_path: Path, project: Project) -> None:
    with pytest.raises(NotFound):
        git_folder(tmp_path)
    assert git_folder(project.path) == (project.path / ".git").resolve()
    assert git_folder(git.init_bare(tmp_path / "b.git")) == (tmp_path / "b.git").resolve()
