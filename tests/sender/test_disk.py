"""A sender whose disk is low takes nothing new on, and one whose disk is full loses nothing it has."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from support.core import serving
from support.web import web
from trainforge.config.errors import StorageFull
from trainforge.config.failpoints import VARIABLE
from trainforge.sender.disk import RESERVE_BYTES, Disk

MORE_THAN_THERE_IS = "1000Ti"


def test_a_sender_that_is_low_answers_503_and_can_still_be_read(tmp_path: Path) -> None:
    with web(tmp_path, disk_low=MORE_THAN_THERE_IS, webhook_secret="s") as site:
        job = site.add_job()
        for path in ("/webhooks/github", "/hooks/git", "/api/repositories", f"/api/jobs/{job}/stop"):
            answer = site.ask("POST", path, content=b"{}")
            assert (answer.status_code, answer.json()["code"]) == (503, "disk_full"), path
            assert "free space" in answer.json()["hint"]
        assert site.get(f"/api/jobs/{job}")["state"] == "pending"
        service = "/git/demo.git/info/refs?service=git-"
        assert site.ask("GET", f"{service}receive-pack", auth=("me", site.token)).status_code == 503
        assert site.ask("GET", f"{service}upload-pack", auth=("me", site.token)).status_code == 404


def test_executors_go_on_with_a_sender_that_is_low(tmp_path: Path) -> None:
    with serving(tmp_path) as core:
        executor = core.executor("alpha")
        job = core.push_job(tmp_path)
        node = executor.take("run").node
        core.sender.disk = Disk(core.sender.data_dir, 2**62)
        executor.journal(node, ("ready", {}), ("ended", {"exit_code": 0}))
        assert executor.take("publish").node.job == job
        with pytest.raises(StorageFull):
            core.announce()


def test_a_write_without_room_has_not_happened_and_frees_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web(tmp_path) as site:
        disk, store = site.sender.disk, site.sender.store
        assert not disk.low
        reserve = site.sender.data_dir / "reserve"
        assert reserve.stat().st_size == RESERVE_BYTES
        monkeypatch.setenv(VARIABLE, f"@{tmp_path / 'armed'}")
        (tmp_path / "armed").write_text("40.sender.write:enospc")
        with pytest.raises(StorageFull):
            store.set_meta("lost", "yes")
        assert not reserve.exists()
        assert store.get_meta("lost") is None
        store.set_meta("kept", "yes")
        assert store.get_meta("kept") == "yes"


def test_sqlite_s_own_words_for_a_full_disk_are_understood(tmp_path: Path) -> None:
    with web(tmp_path) as site:
        store = site.sender.store
        with store.write() as c:
            pages = c.exec_driver_sql("PRAGMA page_count").scalar_one()
        with store.write() as c:
            c.exec_driver_sql(f"PRAGMA max_page_count={pages + 4}")
            with pytest.raises(sa.exc.OperationalError) as told:
                c.exec_driver_sql("CREATE TABLE big AS SELECT zeroblob(1000000) AS x")
        assert told.value.orig is not None
        assert told.value.orig.sqlite_errorcode == sqlite3.SQLITE_FULL  # type: ignore[attr-defined]


def test_no_room_for_the_reserve_is_no_reason_to_stop(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    assert "cannot be read" in Disk(folder, 1).low
    assert Disk(tmp_path, 0).low == ""
    assert os.strerror(errno.ENOSPC)
