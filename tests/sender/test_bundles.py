"""A ZIP that is uploaded, by the API or the page: a commit and its job, or a refusal and no trace."""

from __future__ import annotations

import base64
import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from support.archives import Part, craft, zipped
from support.waiting import wait_for
from support.web import Web, web
from trainforge.config.manifest import parse_manifest
from trainforge.hooks.git import list_tree
from trainforge.hooks.gitread import ObjectReader
from trainforge.hooks.gitrun import run
from trainforge.sender.bundles import BundleAsk, generated, slug
from trainforge.sender.people import Scope
from trainforge.sender.workflow_tokens import new_workflow_token

SCRIPT = {"main.py": "print('hello')\n"}
OWN = "project: {name: digits}\ntraining: {script: train.py, params: {lr: 0.1}}\nresources: {nodes: 2}\n"


def upload(site: Web, files: dict[str, Any], _as: str = "my_training_job.zip", **fields: str) -> Any:
    sent = {"file": (_as, zipped(files), "application/zip")}
    return site.ask("POST", "/api/jobs", data=fields, files=sent)


def text_at(site: Web, job: dict[str, Any], path: str) -> str:
    with ObjectReader(site.sender.git_root / f"{job['repository']}.git") as reader:
        return reader.file(job["commit"], path)[1].decode()


def test_the_founding_form_makes_a_commit_with_a_manifest_and_its_job(site: Web) -> None:
    files = SCRIPT | {"requirements.txt": "", "data/x.csv": "1,2\n"}
    said = {"name": "My Training Job", "main_entry": "main.py", "requirements_file": "requirements.txt"}
    job = upload(site, files, **said).json()
    assert (job["state"], job["source"], job["author"]) == ("pending", "upload", "ada")
    assert (job["project"], job["repository"]) == ("my-training-job", "bundles/my-training-job")
    assert job["subject"] == "Upload my_training_job.zip for my-training-job"
    repo = site.sender.git_root / "bundles/my-training-job.git"
    assert set(list_tree(repo, job["commit"])) == {*files, "trainforge.yaml"}
    assert text_at(site, job, "trainforge.yaml") == (
        "# Written by TrainForge of what the upload's form said.\n"
        'project:\n  name: my-training-job\n  description: "My Training Job"\n'
        "training:\n  script: main.py\n  launcher: python\n  requirements: requirements.txt\n"
    )
    assert site.sender.store.heads("builtin:bundles/my-training-job") == {"refs/heads/main": job["commit"]}
    audited = [one for one in site.get("/api/audit")["entries"] if one["action"] == "bundle.uploaded"]
    assert [(one["actor"], one["subject"]) for one in audited] == [("person:ada", job["repository"])]


def test_the_same_upload_is_the_same_job_unless_it_is_to_run_again(site: Web) -> None:
    first = upload(site, SCRIPT, "x.zip").json()
    assert upload(site, SCRIPT, "x.zip").json()["id"] == first["id"]
    again = upload(site, SCRIPT, "x.zip", rerun="true").json()
    assert (again["commit"], again["id"] == first["id"]) == (first["commit"], False)
    other = upload(site, {"main.py": "pass"}, "x.zip").json()
    assert upload(site, SCRIPT, "x.zip").json()["id"] == first["id"]
    log = run(["log", "--format=%H", "main"], git_dir=site.sender.git_root / "bundles/x.git")
    assert log.decode().split() == [other["commit"], first["commit"]]
    assert other["repository"] == first["repository"] == "bundles/x"


def test_what_the_form_says_lies_over_the_zips_own_manifest_and_is_seen(site: Web) -> None:
    files = {"trainforge.yaml": OWN, "train.py": "", "other.py": "", "req.txt": ""}
    plain = upload(site, files).json()
    assert (plain["project"], plain["nodes"], plain["repository"]) == ("digits", 2, "bundles/digits")
    changed = upload(
        site, files, "x.zip", main_entry="other.py", requirements_file="req.txt", nodes="1",
        params='{"lr": 0.5}', overrides='{"priority": 3}',
    ).json()  # fmt: skip
    assert changed["commit"] == plain["commit"], "the commit has the manifest as it was uploaded"
    assert text_at(site, changed, "trainforge.yaml") == OWN
    assert site.sender.store.job(changed["id"])["overrides"] == {
        "training.script": "other.py", "training.requirements": "req.txt", "resources.nodes": "1",
        "training.params.lr": 0.5, "priority": 3,
    }  # fmt: skip
    same = upload(site, files, main_entry="train.py", nodes="2").json()
    assert same["id"] == plain["id"], "what is said alike changes nothing"
    renamed = upload(site, files, name="Other Project").json()
    assert (renamed["project"], renamed["repository"]) == ("other-project", "bundles/other-project")


def test_a_command_gives_way_to_a_script(site: Web) -> None:
    own = "project: {name: digits}\ntraining: {command: make train}\n"
    job = upload(site, {"trainforge.yaml": own, "main.py": ""}, main_entry="main.py").json()
    assert site.sender.store.job(job["id"])["overrides"] == {
        "training.script": "main.py", "training.command": None, "training.launcher": "python",
    }  # fmt: skip


def test_a_folder_around_everything_is_taken_off_and_said(site: Web) -> None:
    files = {"proj-main/main.py": "", "proj-main/requirements.txt": "numpy\n", "__MACOSX/x": ""}
    job = upload(site, files).json()
    assert job["notices"] == [
        "1 file of macOS itself in the ZIP: left out.",
        "The folder proj-main around everything in the ZIP was taken off.",
        "requirements.txt is installed before the training.",
    ]
    assert "requirements: requirements.txt" in text_at(site, job, "trainforge.yaml")
    kept = upload(site, files, main_entry="proj-main/main.py").json()
    assert "script: proj-main/main.py" in text_at(site, kept, "trainforge.yaml")


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """A site that takes nothing, as it stays as it is with each refusal."""
    with web(tmp_path_factory.mktemp("quiet")) as made:
        yield made


def test_nothing_else_is_in_the_manifests_place(quiet: Web) -> None:
    """Where case does not count, or as a folder, it would be what the commit has instead."""
    for name in ("TrainForge.yaml", "trainforge.yaml/x", "p/Trainforge.YAML"):
        answer = upload(quiet, {"p/main.py" if name.startswith("p/") else "main.py": "", name: OWN})
        assert (answer.status_code, answer.json()["code"]) == (422, "bundle_duplicate"), answer.text
    left_nothing(quiet)


REFUSED: dict[str, tuple[dict[str, str], int, str, str]] = {
    "no such script": ({"main_entry": "train.py"}, 422, "message_invalid", "there is no 'train.py'"),
    "no such requirements": ({"requirements_file": "r.txt"}, 422, "message_invalid", "'r.txt'"),
    "a script elsewhere": ({"main_entry": "../x.py"}, 422, "manifest_invalid", "script"),
    "no count": ({"nodes": "many"}, 422, "manifest_invalid", "nodes"),
    "no JSON": ({"params": "{"}, 422, "message_invalid", "JSON"),
    "a list": ({"params": "[1]"}, 422, "message_invalid", "params"),
    "a key twice": ({"overrides": '{"a": 1, "a": 2}'}, 422, "message_invalid", "repeats"),
    "an override of nothing": ({"overrides": '{"a.b": 1}'}, 422, "manifest_invalid", "unknown key"),
    "an unknown field": ({"main": "x"}, 422, "message_invalid", "main"),
    "an unknown machine": ({"executors": "nobody, noone"}, 404, "not_found", "nobody"),
    "too long a name": ({"name": "x" * 201}, 422, "message_invalid", "name"),
    "too much in a field": ({"params": "x" * 300_000}, 413, "too_large", "fields"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_form_that_cannot_be_is_refused_and_leaves_nothing(quiet: Web, case: str) -> None:
    said, status, code, words = REFUSED[case]
    answer = upload(quiet, SCRIPT, **said)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert words in answer.text
    left_nothing(quiet)


def left_nothing(site: Web) -> None:
    assert list(site.sender.git_root.glob("bundles/*")) == []
    assert [repo["name"] for repo in site.get("/api/repositories")["repositories"]] == ["demo"]
    assert site.get("/api/jobs")["jobs"] == []
    assert list((site.sender.data_dir / "uploads").glob("*")) == []


def raw(site: Web, body: bytes, boundary: str = "b", **headers: str) -> httpx2.Response:
    kind = f"multipart/form-data; boundary={boundary}" if boundary else "multipart/form-data"
    return site.ask("POST", "/api/jobs", content=body, headers={"Content-Type": kind} | headers)


def part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


ZIP = craft(Part())
FILE = part("file", ZIP, '; filename="a.zip"')
BODIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "cut off"),
    "no file": (part("name", b"x") + b"--b--\r\n", "no file"),
    "cut off": (part("name", b"x") + FILE[:-9], "cut off"),
    "without an end": (FILE, "cut off"),
    "two files": (FILE + FILE + b"--b--\r\n", "two files"),
    "a file of another name": (part("zip", ZIP, '; filename="a.zip"') + b"--b--\r\n", "is called file"),
    "a field twice": (part("name", b"x") * 2 + FILE + b"--b--\r\n", "more than once"),
    "no name": (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", "no name"),
    "not UTF-8": (part("name", b"\xff") + FILE + b"--b--\r\n", "UTF-8"),
    "NUL": (part("name", b"a\0b") + FILE + b"--b--\r\n", "NUL"),
    "something else": (b"hello" * 99, "not a form"),
    "headers without end": (b"--b\r\n" + b"a" * 9000, "not a form"),
    "many headers": (b"--b\r\n" + b"a: b\r\n" * 99, "not a form"),
}


def test_a_body_that_is_no_such_form_is_refused(quiet: Web) -> None:
    for name, (body, words) in BODIES.items():
        answer = raw(quiet, body)
        assert (answer.status_code, answer.json()["code"]) == (422, "message_invalid"), (name, answer.text)
        assert words in answer.text, (name, answer.text)
    assert "separates" in raw(quiet, FILE, boundary="").text
    left_nothing(quiet)


def test_what_is_too_large_is_refused_before_it_is_read_and_when_it_turns_out(tmp_path: Path) -> None:
    with web(tmp_path, max_bundle=4096) as site:
        _send_too_much(site)


def announced(site: Web, size: int) -> tuple[int, str]:
    """Status and code of what is said to an upload of that size, of which nothing is sent."""
    address = urlsplit(site.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=10)
    connection.putrequest("POST", "/api/jobs")
    for name, value in {
        "Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(size),
        "Expect": "100-continue", **site.bearer,
    }.items():  # fmt: skip
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    code = json.loads(answer.read())["code"]
    connection.close()
    return answer.status, code


def _send_too_much(site: Web) -> None:
    assert announced(site, 10**10) == (413, "too_large")
    long = part("file", b"x" * 5000, '; filename="a.zip"')

    def pieces() -> Any:
        for _ in range(3):
            yield long[:3000]

    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    refused = site.ask("POST", "/api/jobs", content=pieces(), headers=kind)
    assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
    left_nothing(site)


def test_an_upload_ends_when_the_disk_gets_low_meanwhile(site: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = site.sender.disk
    asked: list[int] = []

    def low(_: object) -> str:
        asked.append(1)
        return "its disk is low" if len(asked) > 1 else ""

    monkeypatch.setattr(type(disk), "low", property(low))
    answer = upload(site, SCRIPT)
    assert (answer.status_code, answer.json()["code"]) == (503, "disk_full")
    monkeypatch.undo()
    left_nothing(site)


def test_an_upload_that_the_disk_has_no_room_for_is_refused_at_its_announcement(tmp_path: Path) -> None:
    with web(tmp_path, disk_low=1, max_bundle=2**60) as site:
        assert announced(site, 2**59) == (503, "disk_full")
        assert not (site.sender.data_dir / "uploads").exists()


def test_an_access_token_may_be_a_password_but_not_a_browsers(site: Web) -> None:
    secret = base64.b64encode(f"me:{site.token}".encode()).decode()
    said = {"Authorization": f"Basic {secret}"}
    assert httpx2.get(f"{site.url}/api/me", headers=said).json()["name"]
    for header in ({"Origin": site.url}, {"Sec-Fetch-Site": "same-origin"}, {"Cookie": "a=b"}):
        answer = httpx2.get(f"{site.url}/api/me", headers=said | header)
        assert answer.status_code == 401
        assert "Basic" not in answer.headers["WWW-Authenticate"], "no browser asks for a password"
    wrong = base64.b64encode(b"me:tfp_x").decode()
    assert httpx2.get(f"{site.url}/api/me", headers={"Authorization": f"Basic {wrong}"}).status_code == 401


def test_a_workflow_run_uploads_nothing(tmp_path: Path) -> None:
    with web(tmp_path, workflows={"demo": {"repository_id": 74}}) as site:
        scope = Scope("demo", "builtin:demo", "refs/heads/main", "a" * 40, run=True)
        token, _ = new_workflow_token(site.sender, "workflow:o/r#1", scope)
        sent = {"file": ("a.zip", ZIP)}
        answer = site.ask("POST", "/api/jobs", files=sent, headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), answer.text
        assert "for the jobs of demo alone" in answer.text
        assert not (site.sender.data_dir / "uploads").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("My Training Job", "my-training-job"), ("Ünïcode", "unicode"), ("../../etc", "etc"),
        ("a" * 99, "a" * 63), ("x.git", "x.git"), ("训练", "project-"), ("-", "project-"),
    ],
)  # fmt: skip
def test_a_project_gets_a_name_that_git_and_the_manifest_take(name: str, said: str) -> None:
    assert slug(name).startswith(said)
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", slug(name))


def test_a_generated_manifest_says_what_the_form_says_whatever_that_is() -> None:
    hard = {"a": "no", "b": "1e3", "c": None, "d": [1, {"e": True}], "f": "\u2028: #", "g": 1e-7, "null": "~"}
    ask = BundleAsk(main_entry="yes.py", params=hard, nodes="1:4")
    made = parse_manifest(generated(ask, 'x: "y" # z'))
    assert made.training.params == hard
    assert made.project.description == 'x: "y" # z'
    assert (made.training.script, str(made.resources.nodes)) == ("yes.py", "1:4")
    assert generated(ask, "x") == generated(ask, "x")


# --- the page -----------------------------------------------------------------------------------------


def test_a_zip_is_uploaded_planned_changed_and_confirmed_on_the_page(site: Web) -> None:
    files = {"file": ("a<script>x\u202e.zip", zipped({"p/main.py": ""}), "application/zip")}
    with site.log_in() as browser:
        assert "Upload a ZIP" in browser.get("/new").text
        planned = browser.post("/new/upload", data={"name": "My Job", "nodes": "2"}, files=files)
        assert planned.status_code == 303, planned.text
        page = browser.get(planned.headers["location"]).text
        assert "Plan for my-job" in page
        assert "The folder p around everything in the ZIP was taken off." in page
        assert site.get("/api/jobs")["jobs"] == []
        job = planned.headers["location"].rsplit("/", 1)[1]
        again = browser.get(f"/new?again={job}").text
        assert 'id="distributed" value="true" checked' in again
        assert "<option selected>bundles/my-job</option>" in again
        assert browser.post(f"/new/{job}").headers["location"] == f"/jobs/{job}"
        assert "Upload a&lt;script&gt;x.zip for my-job" in browser.get(f"/jobs/{job}").text
        assert [one["source"] for one in site.get("/api/jobs")["jobs"]] == ["upload"]
        assert browser.get("/new/upload").headers["location"] == "/new"
        assert browser.get("/workers").headers["location"] == "/executors"


def test_the_page_says_what_is_wrong_and_keeps_what_was_typed(quiet: Web) -> None:
    files = {"file": ("a.zip", craft(Part("../x")), "application/zip")}
    with quiet.log_in() as browser:
        answer = browser.post("/new/upload", data={"name": "My <b> Job", "main_entry": "x.py"}, files=files)
    assert answer.status_code == 422
    assert "&#39;../x&#39;" in answer.text
    assert 'value="My &lt;b&gt; Job"' in answer.text
    assert 'value="x.py"' in answer.text
    left_nothing(quiet)


def test_the_page_takes_no_file_before_the_pages_own_token(site: Web) -> None:
    """As a form of another site would send it; nothing after the first header of the file is read."""
    with site.log_in() as browser:
        own = browser.headers.pop("X-CSRF-Token")
        good = part("csrf", own.encode()) + FILE + b"--b--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        assert browser.post("/new/upload", content=good, headers=kind).status_code == 303
        for body in (
            FILE + b"--b--\r\n",
            FILE + part("csrf", own.encode()) + b"--b--\r\n",
            part("csrf", b"x") + FILE + b"--b--\r\n",
        ):
            answer = browser.post("/new/upload", content=body, headers=kind)
            assert answer.status_code == 403, answer.text
        elsewhere = kind | {"Origin": "https://evil.example"}
        assert browser.post("/new/upload", content=good, headers=elsewhere).status_code == 403
    site.sender.people.add_user("eve", "viewer", site.sender.now())
    with site.log_in("eve") as browser:
        assert browser.post("/new/upload", files={"file": ("a.zip", ZIP)}).status_code == 403


def test_nothing_of_an_upload_stays_that_its_sender_breaks_off(
    site: Web, caplog: pytest.LogCaptureFixture
) -> None:
    address = urlsplit(site.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=10)
    connection.putrequest("POST", "/api/jobs")
    for name, value in {"Content-Length": "99999", "Content-Type": "multipart/form-data; boundary=b"}.items():
        connection.putheader(name, value)
    connection.putheader("Authorization", site.bearer["Authorization"])
    connection.endheaders(FILE[:60])
    folder: Path = site.sender.data_dir / "uploads"
    wait_for("the upload", folder.exists, 10)
    connection.close()
    assert upload(site, SCRIPT).status_code == 200
    assert list(folder.glob("*")) == []
    assert "unexpectedly" not in caplog.text, "it is no fault of the sender's"
