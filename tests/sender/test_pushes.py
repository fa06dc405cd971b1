"""Results for one branch go to it together, as often as its server recommends."""

from __future__ import annotations

import time
from pathlib import Path

from support.core import MANIFEST, serving
from support.waiting import wait_for
from trainforge.hooks import gitrun
from trainforge.sender.store_github import Connection

CELLS = 12
MATRIX = MANIFEST + f"strategy: {{matrix: {{seed: {list(range(CELLS))}}}}}\n"
REPOSITORY = "builtin:digits"


def test_what_ends_together_is_pushed_together(tmp_path: Path) -> None:
    with serving(tmp_path, pushes_per_minute=3) as core:
        sender = core.sender
        core.add_project(tmp_path, "digits", MATRIX)
        connection = Connection(REPOSITORY, "owner/digits", 1, "http://127.0.0.1:9", None, None, "test", 1.0)
        sender.store.connect(connection, "test")
        bare, pushes = sender.git_root / "digits.git", tmp_path / "pushes"
        hook = bare / "hooks" / "post-receive"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ncat >> {pushes}\n")
        hook.chmod(0o755)
        core.announce()
        jobs = core.jobs()
        assert len(jobs) == CELLS
        for job in jobs:
            core.wait_state(job, "planning")

        for _ in range(3):
            sender.paces.wait(REPOSITORY, "an executor", time.monotonic() - 57)
        for job in jobs:
            sender.store.request_stop(job, "stopped", "changed my mind", sender.now())
        sender.wake(*jobs)
        waiting = wait_for("the reason", lambda: core.job(jobs[0])["waiting"].get("remote"), 10)
        assert "goes with the next push" in waiting
        for job in jobs:
            row = core.wait_state(job, "cancelled")
            shown = gitrun.run(
                ["show", f"{row['result_commit']}:{row['result_path']}/result.json"], git_dir=bare
            )
            assert job.encode() in shown, "each has its own commit"
        assert len(pushes.read_text().splitlines()) <= 3
        log = gitrun.run(["log", "--format=%H", "refs/heads/trainforge-results"], git_dir=bare)
        assert len(log.split()) == CELLS
