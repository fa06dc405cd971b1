"""Data as a user has them: with a secret, by two jobs at once, and only as much as there is room for."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

from support.files import serving_files
from support.fleet import Fleet
from support.waiting import wait_for

MB = 10**6
MANIFEST = "training: {script: train.py, launcher: python}\nsecrets: [DATA_TOKEN]\n"
SCRIPT = """\
import os, pathlib
print("bytes", len(pathlib.Path(os.environ["TRAINFORGE_DATA_DIR"], "set.bin").read_bytes()))
print("token", os.environ["DATA_TOKEN"])
"""


def kept(fleet: Fleet) -> set[str]:
    """The names of the data on the machine."""
    notes = (fleet.root / "alpha" / "cache" / "data").glob("*/entry.json")
    return {hashlib.sha256(next(note.parent.glob("set.bin")).read_bytes()).hexdigest() for note in notes}


def test_two_jobs_share_data_and_old_data_go(fleet: Fleet) -> None:
    fleet.start_sender()
    fleet.add_executor("alpha", max_jobs=2, disk_budget_gb=0.011)
    first, second = os.urandom(6 * MB), os.urandom(6 * MB)
    with serving_files() as server:
        for name, content in (("/first/set.bin", first), ("/second/set.bin", second)):
            server.files[name], server.logins[name] = content, "Bearer tok-s3cret-0123456789"
        server.stops["/first/set.bin"], server.held["/first/set.bin"] = [MB], threading.Event()
        project = fleet.project("demo", {"train.py": SCRIPT})
        fleet.push(project)
        secret = {
            "name": "DATA_TOKEN",
            "value": "tok-s3cret-0123456789",
            "repository": "demo",
            "branches": ["*"],
        }
        fleet.api("POST", "/api/secrets", json=secret)

        def run(which: str, content: bytes, branch: str) -> None:
            entry = {"url": f"{server.url}/{which}/set.bin", "sha256": hashlib.sha256(content).hexdigest()}
            entry |= {"credentials": {"token": "DATA_TOKEN"}}  # type: ignore[dict-item]
            text = f"{MANIFEST}data: {json.dumps(entry)}\nproject: {{name: {which}-{branch}}}\n"
            fleet.commit(project, {"trainforge.yaml": text}, branch)
            fleet.push(project, branch)

        run("first", first, "main")
        run("first", first, "other")
        wait_for("two jobs", lambda: len(fleet.jobs()) == 2, 30, fleet.logs)
        wait_for("one that waits", lambda: "waiting for another job" in phases(fleet), 30, fleet.logs)
        server.held["/first/set.bin"].set()
        jobs = [fleet.wait_ended(job["id"]) for job in fleet.jobs()]
        assert [job["state"] for job in jobs] == ["completed"] * 2, jobs
        assert len(server.asked_for("/first/set.bin")) == 2  # the second for the rest of it
        run("second", second, "main")
        wait_for("a third job", lambda: len(fleet.jobs()) == 3, 30, fleet.logs)
        jobs = [fleet.wait_ended(job["id"]) for job in fleet.jobs()]
    assert [job["state"] for job in jobs] == ["completed"] * 3, jobs
    assert kept(fleet) == {hashlib.sha256(second).hexdigest()}
    results = fleet.result("demo")
    cached = [
        json.loads(text)["data"][0]["cached"]
        for path, text in results.items()
        if path.endswith("result.json")
    ]
    assert sorted(cached) == [False, False, True]
    assert not any(b"s3cret" in text for text in results.values())
    machine = [path for path in (fleet.root / "alpha").rglob("*") if path.is_file()]
    assert not any(b"s3cret" in path.read_bytes() for path in machine)


def phases(fleet: Fleet) -> str:
    """What the nodes say that they do."""
    return "\n".join(path.read_text() for path in Path(fleet.root, "alpha", "nodes").glob("*/journal.jsonl"))
