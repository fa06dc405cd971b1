"""Ten secrets, printed, written and reported in every encoding: none may be found where it does not belong.

Not masked, as docs/security.md says: what a program changes beyond these encodings, such as by compressing.
"""

from __future__ import annotations

import base64
import contextlib
import inspect
import json
import shlex
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import httpx2
import psutil
import pytest

from support.fleet import Fleet
from support.scripts import manifest
from support.waiting import wait_for
from trainforge.config.redact import MASK

CANARIES = {
    "HF_TOKEN": "hf_canaryAbCdEf0123456789",
    "PLAIN": "canary",
    "URL_LIKE": "p@ss/word?canary=1&x=2%20+z",
    "QUOTED": 'can\'ary "two" $HOME `id` \\n',
    "NOT_ASCII": "Kanärienvogel-ß-金糸雀",
    "PADDED": "=+/canary/+==",
    "DIGITS": "9182736455463728190",
    "HEXED": "deadbeefcafe0123",
    "KEY_FILE": "-----BEGIN CANARY-----\nMIIBcanaryVQIBADANBg\nkqhkiGcanaryQEF\n-----END CANARY-----\n",
    "LONG": "canary-" + "0123456789abcdef" * 30,
}


def encodings(value: str) -> Iterator[str]:
    """As programs print it; the training below runs this very code."""
    raw = value.encode()
    yield from (value, json.dumps(value), json.dumps(json.dumps({"k": value})), repr(value), repr(raw))
    yield from (quote(value, safe=""), quote_plus(value), raw.hex(), raw.hex().upper(), shlex.quote(value))
    for shift in range(3):
        yield base64.b64encode(b"u" * shift + raw).decode()
        yield base64.urlsafe_b64encode(b"u" * shift + raw + b"tail").decode()


ENCODINGS = (
    f"""
import base64, json, os, pathlib, shlex, sys, time
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

{inspect.getsource(encodings)}
"""
    + """
secrets = {name: os.environ[name] for name in NAMES}
every = [form for value in secrets.values() for form in encodings(value)]
"""
)


TRAIN = (
    f"NAMES = {list(CANARIES)!r}\n{ENCODINGS}"
    + """
output = pathlib.Path(os.environ["TRAINFORGE_OUTPUT_DIR"])
print("up", flush=True)
for number, form in enumerate(every):
    print("said", number, form)
    print("error", form, file=sys.stderr)
    (output / f"leak-{number}.txt").write_text(f"some text\\n{form}\\n", "utf-8", newline="")
for letter in secrets["HF_TOKEN"]:
    os.write(1, letter.encode())
os.write(1, b"\\n")
(output / f"named-{secrets['HF_TOKEN']}.txt").write_text("harmless")
(output / "weights.bin").write_bytes(bytes(range(256)) * 4000 + secrets["HF_TOKEN"].encode())
(output / "good.txt").write_text("nothing to hide")
with open(os.environ["TRAINFORGE_METRICS_FILE"], "a") as file:
    for name, value in secrets.items():
        file.write(json.dumps({"loss": 0.5, "note": value, value: 1}) + "\\n")
print("PROGRESS: " + json.dumps({"accuracy": 0.5, "key": secrets["HF_TOKEN"]}))
os.system("git init -q r")
with open("r/.git/config", "a") as file:
    file.write('[remote "origin"]\\n url = https://ada:' + secrets["HF_TOKEN"] + "@127.0.0.1:1/x\\n")
os.system("git -C r remote -v")
print("all said", flush=True)
while not pathlib.Path(GO).exists():
    time.sleep(0.02)
try:
    raise ValueError("cannot log in with " + secrets["URL_LIKE"])
except ValueError as error:
    encoded = base64.b64encode(secrets["LONG"].encode()).decode()
    raise RuntimeError(f"{secrets['HF_TOKEN']}: {secrets['NOT_ASCII']} {encoded}") from error
"""
)

PREPARE = 'echo "preparing with $HF_TOKEN"; printf %s "$HF_TOKEN" | base64'


class Watch(threading.Thread):
    """Reads the arguments of every process of the fleet, again and again."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True)
        self.root, self.seen, self.over = root, set[str](), threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.05):
            for process in psutil.process_iter():
                try:
                    self.seen.add("\n".join(process.cmdline()))
                except psutil.Error:
                    continue

    def stop(self) -> str:
        self.over.set()
        self.join(10)
        return "\n".join(self.seen)


def hits(data: bytes) -> list[str]:
    """Names of the secrets of which there is something in the data."""
    return [name for name, forms in FORMS.items() if any(form in data for form in forms)]


FORMS = {
    name: {part.encode() for part in (value.strip(), *value.splitlines(), *encodings(value))}
    for name, value in CANARIES.items()
}


def disk(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # written aside, and renamed by now
            if path.is_file() and not path.is_symlink():
                found[str(path)] = path.read_bytes()
    return found


def blobs(bare: Path) -> bytes:
    """Every object of a repository, unpacked."""
    listed = subprocess.run(
        ["git", "cat-file", "--batch-all-objects", "--batch"], cwd=bare, capture_output=True, check=True
    )
    return listed.stdout


def set_all(fleet: Fleet, repository: str) -> None:
    for name, value in CANARIES.items():
        wanted = {"name": name, "repository": repository, "value": value}
        fleet.api("POST", "/api/secrets", json=wanted)


@pytest.fixture
def watched(running: Fleet) -> tuple[Fleet, str, str]:
    """A failed job that has shown its secrets wherever it could, and all arguments seen meanwhile."""
    go = running.signals / "go"
    more = f"secrets: [{', '.join(CANARIES)}]\n"
    text = manifest("canaries", more=more).replace(
        "launcher: python}", f"launcher: python, setup: [{json.dumps(PREPARE)}]}}"
    )
    project = running.project("canaries", {"train.py": f"GO = {str(go)!r}\n{TRAIN}", "trainforge.yaml": text})
    set_all(running, "builtin:canaries")
    watch = Watch(running.root)
    watch.start()
    running.push(project)
    job = running.the_job()
    running.wait_log(job, "all said")
    own = ("/work/", "/output/", "/metrics.jsonl")  # written by the job itself
    here = {path: data for path, data in disk(running.root).items() if not any(part in path for part in own)}
    assert any("/logs/0.stdout" in path for path in here)
    assert {path: found for path, data in here.items() if (found := hits(data))} == {}
    go.touch()
    running.wait_ended(job)
    return running, job, watch.stop()


def test_no_secret_is_found_where_it_does_not_belong(watched: tuple[Fleet, str, str]) -> None:
    fleet, job, arguments = watched
    detail = fleet.job(job)
    assert (detail["state"], detail["code"]) == ("failed", "script_failed"), detail["reason"]
    assert "train.py" in arguments
    assert hits(arguments.encode()) == []

    bare = fleet.root / "sender" / "git" / "canaries.git"
    assert hits(blobs(bare)) == []
    files = fleet.result("canaries")
    folder = detail["result_path"]
    kept = {path.removeprefix(f"{folder}/artifacts/") for path in files if "/artifacts/" in path}
    assert kept == {"good.txt"}
    log = files[f"{folder}/logs/rank0.log"].decode()
    assert log.count("said ") > 120 and log.count(MASK) > 200
    result = json.loads(files[f"{folder}/result.json"])
    assert any("secret_in_artifact" in notice for notice in result["notices"]), result["notices"]

    pages = ["", "/logs?limit=5000", "/metrics", "/artifacts"]
    answers = [json.dumps(fleet.api("GET", f"/api/jobs/{job}{page}"), ensure_ascii=False) for page in pages]
    headers = {"Authorization": f"Bearer {fleet.token}"}
    answers += [httpx2.get(f"{fleet.url}{page}", headers=headers).text for page in (f"/jobs/{job}", "/jobs")]
    answers.append(fleet.cli("status", job, check=False).stdout + fleet.cli("logs", job, check=False).stdout)
    answers.append(json.dumps(fleet.api("GET", "/api/secrets")))
    assert [hits(answer.encode()) for answer in answers] == [[] for _ in answers]

    # What the job itself has put on disk is its own affair, and is removed with its folder.
    wait_for("tidy executor", lambda: not any((fleet.root / "alpha" / "nodes").iterdir()), 30)
    places = disk(fleet.root)
    assert str(fleet.root / "sender" / "trainforge.db") in places
    assert {path: found for path, data in places.items() if (found := hits(data))} == {}


def test_a_job_without_its_secret_fails_before_it_trains(running: Fleet) -> None:
    script = "raise SystemExit('trained')"
    text = manifest("needs", more="secrets: [HF_TOKEN]\n")
    running.push(running.project("needs", {"train.py": script, "trainforge.yaml": text}))
    detail = running.wait_ended(running.the_job())
    assert (detail["state"], detail["code"]) == ("failed", "secret_missing")
    assert "trainforge secret set HF_TOKEN --repository needs" in detail["reason"]
    assert "trained" not in running.log_text(detail["id"])


def test_a_restarted_executor_masks_what_the_job_goes_on_to_say(running: Fleet) -> None:
    value = CANARIES["HF_TOKEN"]
    go = running.signals / "go"
    script = (
        "import json, os, pathlib, time\n"
        "print('up', flush=True)\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.02)\n"
        "value = os.environ['HF_TOKEN']\n"
        "print('said', value)\n"
        "with open(os.environ['TRAINFORGE_METRICS_FILE'], 'a') as file:\n"
        "    file.write(json.dumps({'loss': 1, 'note': value}) + '\\n')\n"
        "pathlib.Path(os.environ['TRAINFORGE_OUTPUT_DIR'], 'leak.txt').write_text(value)\n"
    )
    text = manifest("again", more="secrets: [HF_TOKEN]\n")
    project = running.project("again", {"train.py": script, "trainforge.yaml": text})
    wanted = {"name": "HF_TOKEN", "repository": "builtin:again", "value": value}
    running.api("POST", "/api/secrets", json=wanted)
    running.push(project)
    job = running.the_job()
    running.wait_log(job, "up")
    running.kill("alpha")
    go.touch()
    running.start_executor("alpha")
    detail = running.wait_ended(job)
    assert detail["state"] == "completed", detail["reason"]
    assert f"said {MASK}" in running.log_text(job)
    points = running.api("GET", f"/api/jobs/{job}/metrics")["points"]
    assert [point["values"] for point in points] == [{"loss": 1, "note": MASK}]
    files = running.result("again")
    assert not any(path.endswith("leak.txt") for path in files)
    assert hits(b"\0".join(files.values())) == []
