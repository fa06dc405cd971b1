"""Jobs with data, from their order to their result; and what one job leaves for the next: nothing."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

from support.executors import Project, Start, ended, forgotten, joined, running, story
from support.files import serving_files
from support.sender_double import SenderDouble
from support.waiting import wait_for

MIB = 2**20
BARE = "project: {name: test}\ntraining: {script: train.py, launcher: python}\n"
READ = """\
import hashlib, os, pathlib
path = pathlib.Path(os.environ["TRAINFORGE_DATA_DIR"], "sub", "big.bin")
print("digest", hashlib.sha256(path.read_bytes()).hexdigest())
try:
    path.write_bytes(b"changed")
except OSError as error:
    print("refused", type(error).__name__)
"""


def test_a_download_survives_the_death_of_its_executor(
    double: SenderDouble, start: Start, tmp_path: Path
) -> None:
    content = os.urandom(4 * MIB)
    digest = hashlib.sha256(content).hexdigest()
    with serving_files() as server:
        server.files["/big.bin"], server.stops["/big.bin"] = content, [3 * MIB]
        server.held["/big.bin"] = threading.Event()
        entry = {"url": f"{server.url}/big.bin?signature=s3cret", "sha256": digest, "path": "sub/big.bin"}
        text = f"{BARE}data: {json.dumps(entry)}\n"
        project = Project(tmp_path, {"trainforge.yaml": text, "train.py": READ})
        chosen, executor = joined(double, tmp_path / "laptop")
        first = start(chosen)
        (node,) = double.run(project.job(), [executor], project.order())
        parts = chosen.data_dir / "cache" / "data"
        wait_for("the first part", lambda: list(parts.glob("part-*/part.json")), 60, lambda: story(node))
        first.kill()
        first.wait()
        server.held["/big.bin"].set()
        start(chosen)
        forgotten(chosen, node)
    (again,) = server.asked_for("/big.bin")[1:]
    assert int(again["Range"].removeprefix("bytes=").removesuffix("-")) >= MIB
    assert ended(node)["code"] == ""
    assert f"digest {digest}" in node.text(0)
    assert "refused" in node.text(0)
    result = project.results()[f"{node.last('published')['path']}/result.json"]
    assert json.loads(result)["data"] == [
        {"name": "sub/big.bin", "url": f"{server.url}/big.bin?…", "sha256": digest, "commit": "",
         "size": 4 * MIB, "files": 1, "cached": False},
    ]  # fmt: skip
    assert digest in project.results()[f"{node.last('published')['path']}/README.md"]


LEAVE = """\
import os, pathlib
for name in ("HOME", "TMPDIR", "TRAINFORGE_DATA_DIR", "TRAINFORGE_OUTPUT_DIR", "TRAINFORGE_CHECKPOINT_DIR"):
    for folder in (pathlib.Path(os.environ[name]), pathlib.Path(os.environ[name], "kept").resolve().parent):
        try:
            folder.joinpath("left-behind").write_text("x")
        except OSError:
            pass
pathlib.Path("left-behind").write_text("x")
"""
LOOK = """\
import os, pathlib
names = ("HOME", "TMPDIR", "TRAINFORGE_DATA_DIR", "TRAINFORGE_OUTPUT_DIR", "TRAINFORGE_CHECKPOINT_DIR")
roots = [pathlib.Path(os.environ[name]) for name in names] + [pathlib.Path(".")]
roots += [pathlib.Path(os.environ["TRAINFORGE_DATA_DIR"], "kept").resolve().parent]
print("found", sorted({str(path) for root in roots for path in root.rglob("left-behind")}))
"""


def test_nothing_of_one_job_is_there_for_the_next(double: SenderDouble, tmp_path: Path) -> None:
    (tmp_path / "signals").mkdir()
    (tmp_path / "signals" / "kept").write_text("data")
    url = f"file://{tmp_path}/signals/kept"
    chosen, executor = joined(double, tmp_path / "machine", isolation="sandbox")
    with running(chosen):
        for number, script in enumerate((LEAVE, LOOK)):
            text = f"{BARE}data: {{url: '{url}'}}\n"
            project = Project(tmp_path / f"of-{number}", {"trainforge.yaml": text, "train.py": script})
            (node,) = double.run(project.job(), [executor], project.order())
            assert ended(node)["code"] == "", story(node)
            forgotten(chosen, node)
    assert "found []" in node.text(0), node.text(0)
    assert not list((chosen.data_dir / "nodes").iterdir())
    assert not list((chosen.data_dir / "cache").rglob("left-behind"))
