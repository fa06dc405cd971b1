"""The founding documents' curl line, as they have it, by the real curl: a ZIP in, a result out."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from support.fleet import Fleet

LINE = """\
curl -X POST http://localhost:5000/api/jobs \\
  -F "name=My Training Job" \\
  -F "main_entry=main.py" \\
  -F "requirements_file=requirements.txt" \\
  -F "file=@my_training_job.zip"
"""
MAIN = """\
import json, os, pathlib, platform
import report
for epoch in range(1, 4):
    loss = (4 - epoch) / 5
    print(f"Epoch {epoch}/3: training...")
    print("PROGRESS: " + json.dumps({"epoch": epoch, "loss": loss}))
data = pathlib.Path("data/x.csv").read_text()
pathlib.Path(os.environ["TRAINFORGE_OUTPUT_DIR"], "model.txt").write_text(report.said(data))
print("Training complete!")
"""
REPORT = "def said(text):\n    return text.upper()\n"


def zip_of(folder: Path, name: str, files: dict[str, str]) -> None:
    """By another program than this one's zipfile would be: Python's command line, with folders' entries."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    tops = sorted({path.split("/")[0] for path in files})
    subprocess.run([sys.executable, "-m", "zipfile", "-c", name, *tops], cwd=folder, check=True)


def curl(fleet: Fleet, line: str, cwd: Path) -> Any:
    """A shell runs the line, which knows the sender's port alone; the token is in the home's .netrc."""
    port = urlsplit(fleet.url).port
    said = line.replace("localhost:5000", f"localhost:{port}")
    done = subprocess.run(
        ["sh", "-c", said], cwd=cwd, env=fleet.environment(), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def log_in_curl(fleet: Fleet) -> None:
    """What docs/bundles.md says to write once."""
    (fleet.home / ".curlrc").write_text("netrc-optional\n")
    netrc = fleet.home / ".netrc"
    netrc.write_text(f"machine localhost login me password {fleet.token}\n")
    netrc.chmod(0o600)


def test_the_founding_curl_line_trains_and_gives_a_result(running: Fleet) -> None:
    fleet, folder = running, running.root / "mine"
    folder.mkdir()
    files = {"main.py": MAIN, "report.py": REPORT, "requirements.txt": "", "data/x.csv": "hello\n"}
    zip_of(folder, "my_training_job.zip", files)
    refused = curl(fleet, LINE, folder)
    assert (refused["status"], refused["code"]) == (401, "not_trusted")
    log_in_curl(fleet)

    job = curl(fleet, LINE, folder)

    ended = fleet.wait_ended(job["id"])
    assert ended["state"] == "completed", (ended, fleet.log_text(job["id"]), fleet.logs())
    assert (ended["project"], ended["source"]) == ("my-training-job", "upload")
    assert ended["metrics"]["loss"] == 0.2
    assert "Training complete!" in fleet.log_text(job["id"])
    result = fleet.result("my-training-job")
    model = next(content for path, content in result.items() if path.endswith("artifacts/model.txt"))
    assert model == b"HELLO\n"
    assert any(path.startswith("latest/main/my-training-job/") for path in result)
    clone = fleet.root / "clone"
    remote = f"{fleet.url}/git/bundles/my-training-job.git"
    fleet.git("clone", "-q", remote.replace("://", f"://me:{fleet.token}@"), str(clone), cwd=fleet.root)
    assert (clone / "main.py").read_text() == MAIN
    assert "script: main.py" in (clone / "trainforge.yaml").read_text()
    assert curl(fleet, LINE, folder)["id"] == job["id"], "the same upload is the same job"

    _submit_a_folder(fleet, folder)


def _submit_a_folder(fleet: Fleet, folder: Path) -> None:
    """The same without curl, of the folder; which git ignores nothing of, as there is none."""
    os.rename(folder / "main.py", folder / "go.py")  # noqa: PTH104
    (folder / "my_training_job.zip").unlink()
    lacking = fleet.cli("submit", "--bundle", "mine", check=False)
    assert "--entry: there is no 'main.py' in the ZIP" in lacking.stderr
    assert "it has 'go.py', 'report.py': name the one" in lacking.stderr
    said = shlex.split("submit --bundle mine --name other --entry go.py --follow")
    done = fleet.cli(*said)
    assert "Training complete!" in done.stdout
    assert "mine.zip: 4 files" in done.stderr
    assert "requirements.txt is installed before the training." in done.stderr
    newest = max(fleet.jobs(), key=lambda job: job["created"])
    assert (newest["project"], newest["state"]) == ("other", "completed")
    (folder / ".env").write_text("KEY=1")
    refused = fleet.cli(*said, check=False)
    assert refused.returncode == 1
    assert "--with-secrets" in refused.stderr
