"""Two senders and one repository, and a sender whose database is an older copy."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.core import MANIFEST, Core, make_sender, serving
from support.repositories import Project
from support.waiting import wait_for
from trainforge.config.errors import Conflict
from trainforge.hooks.addresses import validate_url
from trainforge.sender import events, leading
from trainforge.sender.context import Sender
from trainforge.sender.fence import Fence
from trainforge.sender.store_events import Repo

META = "refs/heads/trainforge/meta"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A work tree whose remote is nobody's but its owner's."""
    bare = tmp_path / "shared.git"
    project = Project(tmp_path / "work")
    project.git("init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    project.git("remote", "add", "origin", str(bare))
    project.commit({"trainforge.yaml": MANIFEST, "train.py": "print(1)\n"})
    project.git("push", "--quiet", "origin", "main")
    return project


def watching(folder: Path, bare: Path) -> Sender:
    sender = make_sender(folder)
    sender.fence = Fence(sender.store, sender.data_dir / "fence.json")
    sender.base_url = f"http://{folder.name}.example.org"
    url = validate_url(str(bare), allow_file=True)
    sender.store.add_repository(Repo(url.repository_id, "shared", str(bare), "local"), sender.now())
    return sender


@pytest.fixture
def first(tmp_path: Path, project: Project) -> Iterator[Sender]:
    sender = watching(tmp_path / "first", tmp_path / "shared.git")
    yield sender
    sender.store.close()


def change(project: Project, seed: int) -> None:
    project.commit({"trainforge.yaml": MANIFEST + f"seed: {seed}\n"})
    project.git("push", "--quiet", "origin", "main")


HOOK = """#!/bin/sh
touch {inside}
for _ in $(seq 200); do test -e {go} && exit 0; sleep 0.05; done
"""


def test_a_hook_that_has_the_sender_look_within_its_own_push_makes_no_other(
    first: Sender, project: Project, tmp_path: Path
) -> None:
    bare, inside, go = tmp_path / "shared.git", tmp_path / "inside", tmp_path / "go"
    hook = bare / "hooks" / "post-receive"
    hook.write_text(HOOK.format(inside=inside, go=go))
    hook.chmod(0o755)
    outer = threading.Thread(target=events.handle_hint, args=(first, "shared", "poll"))
    outer.start()
    try:
        wait_for("the push", inside.exists)
        events.handle_hint(first, "shared", "hook")
    finally:
        go.touch()
        outer.join()
    events.handle_hint(first, "shared", "poll")
    assert project.git("ls-remote", str(bare), META).stdout.split()[0] == first.led[first_id(first)]
    assert project.git("-C", str(bare), "rev-list", "--count", META).stdout.strip() == "1"


def first_id(sender: Sender) -> str:
    return sender.store.repository("shared").id


def test_a_second_sender_only_reads_until_it_takes_over(
    first: Sender, project: Project, tmp_path: Path
) -> None:
    second = watching(tmp_path / "second", tmp_path / "shared.git")
    try:
        events.handle_hint(first, "shared", "poll")
        with pytest.raises(Conflict, match=r"another sender .*first\.example\.org.* only reads it"):
            events.handle_hint(second, "shared", "poll")
        change(project, 1)
        assert "queued" in events.handle_hint(first, "shared", "poll")[0]
        with pytest.raises(Conflict):
            events.handle_hint(second, "shared", "poll")
        with pytest.raises(Conflict):
            events.request_job(second, "shared", project.git("rev-parse", "HEAD").stdout.strip())
        assert second.store.versions() == {}
        (said,) = [view.error for view in second.queries.repositories()]
        assert "--take-over" in said
        leading.take_over(second, events.place_of(second, second.store.repository("shared")))
        events.handle_hint(second, "shared", "poll")
        change(project, 2)
        assert "queued" in events.handle_hint(second, "shared", "poll")[0]
        with pytest.raises(Conflict, match=r"second\.example\.org"):
            events.handle_hint(first, "shared", "poll")
    finally:
        second.store.close()


def test_only_one_of_two_that_begin_together_leads(first: Sender, project: Project, tmp_path: Path) -> None:
    second = watching(tmp_path / "second", tmp_path / "shared.git")
    try:
        place = events.place_of(second, second.store.repository("shared"))
        before = place.refs()
        events.handle_hint(first, "shared", "poll")
        with pytest.raises(Exception, match="moved"):
            leading.settle(second, place, before)
        with pytest.raises(Conflict):
            events.handle_hint(second, "shared", "poll")
    finally:
        second.store.close()


def test_an_older_copy_of_everything_finds_a_later_note(
    first: Sender, project: Project, tmp_path: Path
) -> None:
    """The whole data directory is put back, with the file beside the database."""
    assert first.fence is not None
    copy = tmp_path / "copy"
    first.store.close()
    shutil.copytree(first.data_dir, copy)
    later = watching(tmp_path / "first", tmp_path / "shared.git")
    events.handle_hint(later, "shared", "poll")
    later.store.close()
    shutil.rmtree(first.data_dir)
    shutil.copytree(copy, first.data_dir)
    restored = watching(tmp_path / "first", tmp_path / "shared.git")
    try:
        assert restored.fence is not None
        assert not restored.fence.restored
        before = restored.fence.incarnation
        events.handle_hint(restored, "shared", "poll")
        assert restored.fence.incarnation > before
        assert restored.fence.restored
        said = json.loads(
            project.git("--git-dir", str(tmp_path / "shared.git"), "show", f"{META}:sender.json").stdout
        )
        assert said["incarnation"] == restored.fence.incarnation
        change(project, 1)
        assert "queued" in events.handle_hint(restored, "shared", "poll")[0]
    finally:
        restored.store.close()


def test_a_start_is_no_restore(first: Sender, project: Project, tmp_path: Path) -> None:
    for _ in range(3):
        sender = watching(tmp_path / "first", tmp_path / "shared.git")
        events.handle_hint(sender, "shared", "poll")
        events.handle_hint(sender, "shared", "poll")
        assert sender.fence is not None
        assert sender.fence.incarnation == 1
        sender.store.close()


def test_jobs_that_ended_after_the_backup_are_recognised(tmp_path: Path) -> None:
    """The database is older than the results branch: nothing is trained again, nothing published twice."""
    with serving(tmp_path) as core:
        job, commit = _completed(core, tmp_path)
    for name in ("trainforge.db", "trainforge.db-wal", "trainforge.db-shm"):
        (tmp_path / "sender" / name).unlink(missing_ok=True)
    with serving(tmp_path) as core:
        core.sender.store.add_repository(Repo("builtin:digits", "digits", "", "builtin"), core.sender.now())
        executor = core.executor("beta")
        core.announce()
        row = core.wait_state(job, "completed")
        assert (row["attempt"], row["result_commit"]) == (0, commit)
        assert executor.claim(wait_s=0) == []


def _completed(core: Core, folder: Path) -> tuple[str, str]:
    executor = core.executor("alpha")
    job = core.push_job(folder)
    run = executor.take("run")
    executor.journal(run.node, ("ready", {}), ("ended", {"exit_code": 0}))
    commit = executor.publish(executor.take("publish"), run)
    core.wait_state(job, "completed")
    return job, commit
