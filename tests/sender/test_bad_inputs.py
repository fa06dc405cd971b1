"""What is wrong is refused within a second, with a code, a reason and a way on, and changes nothing.

One live sender is asked for all rows. After each, every table but the events' and every ref on its git server
is as before. What executors and orders say wrong is in
`tests/config/test_trust.py`, `test_membership.py`, `tests/executor/test_collect.py` and `test_replays.py`.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from support.archives import HOSTILE, Part, craft
from support.web import Web, web
from trainforge.config.problem_codes import PROBLEM_CODES
from trainforge.hooks import github
from trainforge.hooks.git import init_bare

SECRET = "0123456789abcdef"
OURS = "https://github.com/o/r.git"
GOOD = "project: {name: digits}\ntraining: {script: train.py}\n"
ZEROS, SHA = "0" * 40, "a" * 40


@dataclass
class Row:
    """What is sent, and the answer: its status, its code, and words that are in its detail, hint or place."""

    status: int
    code: str
    words: str = ""
    method: str = "POST"
    path: str = "/api/plan"
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)


def m(manifest: str | bytes, words: str, status: int = 422, code: str = "manifest_invalid") -> Row:
    text = manifest if isinstance(manifest, str) else manifest.decode("utf-8", "surrogateescape")
    return Row(status, code, words, body=json.dumps({"manifest": text}).encode())


def w(status: int, code: str, words: str = "", **said: object) -> Row:
    """A delivery of GitHub's; signed, unless it says how."""
    body = said.pop("body", None)
    if body is None:
        body = _push(**said.pop("push", {}))  # type: ignore[arg-type]
    assert isinstance(body, bytes)
    headers = {
        "X-GitHub-Event": str(said.pop("event", "push")),
        "X-GitHub-Delivery": str(said.pop("delivery", hashlib.sha256(body).hexdigest()[:32])),
        "X-Hub-Signature-256": str(said.pop("signature", github.sign(SECRET, body))),
        "Content-Type": str(said.pop("type", "application/json")),
    }
    assert not said
    return Row(status, code, words, path="/webhooks/github", body=body, headers=headers)


def _push(**said: object) -> bytes:
    repository = {"id": 1, "full_name": "o/r", "clone_url": OURS}
    return json.dumps(
        {"ref": "refs/heads/main", "before": ZEROS, "after": SHA, "repository": repository} | said
    ).encode()


def a(path: str, body: object, words: str = "", status: int = 422, code: str = "message_invalid") -> Row:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Row(status, code, words, path=path, body=raw)


def g(path: str, status: int, code: str, words: str = "", method: str = "GET") -> Row:
    return Row(status, code, words, method, path, b"" if method == "GET" else b"{}")


def z(archive: bytes, code: str, words: str, **said: str) -> Row:
    """An archive in the first API's form."""
    head = "--b\r\nContent-Disposition: form-data; name="
    fields = {"name": "My Training Job", "main_entry": "main.py", **said}
    form = "".join(f'{head}"{key}"\r\n\r\n{text}\r\n' for key, text in fields.items())
    body = f'{form}{head}"file"; filename="a.zip"\r\n\r\n'.encode() + archive + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    return Row(PROBLEM_CODES[code].statuses[-1], code, words, path="/api/jobs", body=body, headers=headers)


def job(**said: object) -> dict[str, object]:
    return {"repository": "demo", "commit": SHA} | said


MANIFESTS: dict[str, Row] = {
    "M01 empty": m("", "trainforge.yaml:1"),
    "M02 only comments": m("# nothing\n# more\n", "trainforge.yaml"),
    "M04 a list": m("- a\n- b\n", "trainforge.yaml:1"),
    "M05 two documents": m(f"{GOOD}---\n{GOOD}", "trainforge.yaml:3"),
    "M08 UTF-16": m("\ufeff\0p\0r\0o\0j", "NUL", code="message_invalid"),
    "M10 a raw escape": m(GOOD + "# \x1b[31m\n", "trainforge.yaml:3"),
    "M11 an escaped escape in a name": m(
        'project: {name: "\\e[31m"}\ntraining: {script: t.py}\n', "trainforge.yaml:1"
    ),
    "M13 a megabyte": m("a: 1\n" * 209_000, "", 413, "too_large"),
    "M13 130 KB": m(GOOD + "# x\n" * 32_000, "65536", 422, "manifest_invalid"),
    "M14 20,000 brackets": m("a: " + "[" * 20_000, "trainforge.yaml:1"),
    "M16 an alias of itself": m("a: &x [*x]\n", "trainforge.yaml:1"),
    "M17 a merge key": m("a: {<<: {b: 1}}\n", "trainforge.yaml:1"),
    "M19 a binary": m("a: !!binary aGk=\n", "trainforge.yaml:1"),
    "M20 a key twice": m("project: {name: a, name: b}\ntraining: {script: t.py}\n", "trainforge.yaml:1"),
    "M22 a version that is a float": m("version: 1.10\n" + GOOD, "trainforge.yaml:1"),
    "M25 a limit without end": m(GOOD + "retry: {max: .inf}\n", "trainforge.yaml:3"),
    "M25 no number": m(GOOD + "resources: {cpu: .nan}\n", "trainforge.yaml:3"),
    "M26 GPUs below none": m(GOOD + "resources: {gpu: -1}\n", "trainforge.yaml:3"),
    "M26 a timeout below none": m(GOOD + "timeout: {run: -5m}\n", "trainforge.yaml:3"),
    "M28 half a surrogate pair": a("/api/plan", b'{"manifest": "a: \\ud800"}', "surrogate"),
    "M29 a name that turns": m(
        "project: {name: \u202edigits}\ntraining: {script: t.py}\n", "trainforge.yaml:1"
    ),
    "M29 a name with nothing in it": m(
        "project: {name: a\u200bb}\ntraining: {script: t.py}\n", "trainforge.yaml:1"
    ),
    "M31 artifacts of elsewhere": m(GOOD + "artifacts: {paths: [/etc/*]}\n", "trainforge.yaml:3"),
    "M31 artifacts that climb": m(GOOD + "artifacts: {paths: [../x]}\n", "trainforge.yaml:3"),
    "M34 a million jobs": m(
        GOOD + f"strategy: {{matrix: {{{', '.join(f'a{i}: {list(range(10))}' for i in range(6))}}}}}\n",
        "trainforge.yaml:3",
    ),
    **{
        f"M35 the variable {name}": m(
            f"project: {{name: d}}\ntraining: {{script: t.py, env: {{{name}: x}}}}\n", name
        )
        for name in ("LD_PRELOAD", "GIT_SSH_COMMAND", "TRAINFORGE_JOB_ID", "PATH=x")
    },
    "M an unknown key": m(GOOD + "resuorces: {gpu: 1}\n", "resources"),
    "M a script that climbs": m("project: {name: d}\ntraining: {script: ../t.py}\n", "trainforge.yaml:2"),
    "M a schedule that never comes": m(GOOD + "on: {schedule: ['0 0 30 2 *']}\n", "trainforge.yaml:3"),
}  # fmt: skip
WEBHOOKS: dict[str, Row] = {
    "W01 no signature": w(401, "not_trusted", "webhook", signature=""),
    "W02 another signature": w(401, "not_trusted", "secret", signature="sha256=" + "0" * 64),
    "W04 in capitals": w(401, "not_trusted", signature=github.sign(SECRET, _push()).upper()),
    "W04 too short": w(401, "not_trusted", signature=github.sign(SECRET, _push())[:-1]),
    "W04 too long": w(401, "not_trusted", signature=github.sign(SECRET, _push()) + "0"),
    "W04 not hexadecimal": w(401, "not_trusted", signature="sha256=" + "g" * 64),
    "W05 with another secret": w(401, "not_trusted", signature=github.sign("another", _push())),
    "W10 a form": w(400, "message_invalid", "JSON", body=b"payload=%7B%7D"),
    "W11 not JSON": w(400, "message_invalid", "JSON", body=b'{"ref": '),
    "W13 a key twice": w(400, "message_invalid", "repeats", body=b'{"ref":"a","ref":"b"}'),
    "W14 NaN": w(400, "message_invalid", "NaN", body=b'{"a":NaN}'),
    "W14 beyond any number": w(400, "message_invalid", "range", body=b'{"a":1e999}'),
    "W17 a ref that climbs": w(400, "message_invalid", "ref", push={"ref": "refs/heads/../../x"}),
    "W17 no full ref": w(400, "message_invalid", "ref", push={"ref": "main"}),
    "W a commit that is an option": w(400, "message_invalid", push={"after": "--upload-pack=touch x"}),
    "W a repository over ext": w(
        400, "message_invalid", "repository", push={"repository": {"full_name": "o/r", "clone_url": "ext::x"}}
    ),
    "W no delivery's id": w(400, "message_invalid", "X-GitHub-Delivery", delivery="../x"),
    "W 100,000 brackets": w(400, "message_invalid", body=b"[" * 100_000),
    "W a list": w(400, "message_invalid", body=b"[]"),
    "W not UTF-8": w(400, "message_invalid", body=b'{"ref": "\xff"}'),
    "W the hook's notice without a signature": Row(401, "not_trusted", "", path="/hooks/git"),
    "W the hook's notice of somebody else": Row(
        404, "not_found", "sender watch", path="/hooks/git", body=b'{"repository":"/srv/x.git","refs":[]}',
        headers={"X-Hub-Signature-256": github.sign(SECRET, b'{"repository":"/srv/x.git","refs":[]}')},
    ),
}  # fmt: skip
REQUESTS: dict[str, Row] = {
    "not JSON": a("/api/jobs", b"{", "JSON"),
    "a list": a("/api/jobs", b"[]", "object"),
    "NUL in a text": a("/api/jobs", job(repository="a\0b"), "NUL"),
    "a key twice": a("/api/jobs", b'{"repository":"demo","repository":"demo"}', "repeats"),
    "NaN": a("/api/jobs", b'{"overrides":{"a":NaN}}', "NaN"),
    "a number with 500 digits": a("/api/jobs", b'{"overrides":{"a":' + b"9" * 500 + b"}}", "range"),
    "100 levels": a("/api/jobs", b'{"overrides":{"a":' + b"[" * 100 + b"]" * 100 + b"}}", "deep"),
    "100,000 levels": a("/api/jobs", b"[" * 100_000, "deep"),
    "not UTF-8": a("/api/jobs", b'{"repository":"\xff"}', "UTF-8"),
    "2 MB": a("/api/jobs", b'"' + b"x" * 2**21 + b'"', "bytes", 413, "too_large"),
    "an unknown field": a("/api/jobs", job(comit=SHA), "comit"),
    "a number for a text": a("/api/jobs", job(ref=7), "ref"),
    "a text for a boolean": a("/api/jobs", job(rerun="yes"), "rerun"),
    "half a commit": a("/api/jobs", job(commit="abc123"), "commit"),
    "no such repository": a("/api/jobs", job(repository="nobody"), "nobody", 404, "not_found"),
    "a commit nobody pushed": a("/api/jobs", job(), "push it first", 404, "not_found"),
    **{
        f"I19 a repository at {url}": a("/api/repositories", {"url": url}, "URL", 422, "address_refused")
        for url in ("ext::sh -c x", "-u./payload", "--upload-pack=x", "https://h/x\ny", "fd::17/x")
    },
    "I19 a repository with a password": a(
        "/api/repositories", {"url": "https://u:p@h.org/x"}, "password", 422, "address_refused"
    ),
    "I19 a repository over git": a(
        "/api/repositories", {"url": "git://h.org/x"}, "https", 422, "address_refused"
    ),
    "no such folder": a("/api/repositories", {"url": "/nowhere/x.git"}, "", 404, "not_found"),
    "an override of nothing": a("/api/plan", {"manifest": GOOD, "overrides": {"a.b": 1}}, "unknown key", 422,
                                "manifest_invalid"),
    "an executor nobody knows": a("/api/plan", {"manifest": GOOD, "executors": ["x"]}, "x", 404, "not_found"),
    "a secret called PATH": a(
        "/api/secrets", {"name": "PATH", "repository": "demo", "value": "longenough"}, "PATH"
    ),
    "a secret of one letter": a("/api/secrets", {"name": "A", "repository": "demo", "value": "x"}, "shorter"),
    "a password of one letter": a(
        "/api/users", {"name": "eve", "role": "viewer", "password": "x"}, "12", 422, "message_invalid"
    ),
    "a role nobody has": a("/api/users", {"name": "eve", "role": "root"}, "role"),
    "an account with a terminal's codes": a("/api/users", {"name": "\x1b[31m", "role": "viewer"}, ""),
    "a token for ever and a day": a("/api/tokens", {"name": "x", "days": 1e9}, "days"),
    "a machine with a shell in its host": a(
        "/api/network/machines", {"name": "m", "host": "$(x)"}, "host"
    ),
    "a plan for a million machines": a(
        "/api/network/distributed/plan",
        {"plugin_name": "demo", "resource_requirements": {"num_machines": 10**6}}, "num_machines",
    ),
    "a state there is not": g("/api/jobs?state=done", 422, "message_invalid", "state"),
    "a limit below none": g("/api/jobs?limit=-1", 422, "message_invalid", "limit"),
    "a limit beyond numbers": g("/api/jobs?limit=" + "9" * 40, 422, "message_invalid", "limit"),
    "a limit twice": g("/api/jobs?limit=1&limit=2", 422, "message_invalid", "limit"),
    "NUL in a query": g("/api/jobs?project=%00", 422, "message_invalid", "NUL"),
    "a wait without end": g(f"/api/jobs/{'a' * 26}/logs?wait=inf", 404, "not_found"),
    "a job that climbs": g("/api/jobs/..%2f..%2fetc", 404, "not_found"),
    "a job that is NUL": g("/api/jobs/%00", 404, "not_found"),
    "a job of 8,000 letters": g("/api/jobs/" + "a" * 8000, 404, "not_found"),
    "a job with SQL in it": g("/api/jobs/'%20OR%201=1--", 404, "not_found"),
    "a job that is a pattern": g("/api/jobs/%25", 404, "not_found"),
    "a token beyond numbers": g(f"/api/tokens/{2**64}", 404, "not_found", method="DELETE"),
    "a page that is asked for NUL": g("/jobs?project=%00", 404, "not_found"),
    "another method": g("/api/jobs", 405, "method_not_allowed", method="DELETE"),
    "no such address": g("/api/nothing", 404, "not_found", "/api"),
    "a file that climbs": g(f"/api/network/local_job_file/{'a' * 26}/..%2f..%2fx", 404, "not_found"),
    "a token that is none": Row(401, "not_trusted", "login", "GET", "/api/jobs", b"",
                                {"Authorization": "Bearer tfp_x"}),
    "a token with signs of another alphabet": Row(401, "not_trusted", "", "GET", "/api/jobs", b"",
                                                  {"Authorization": "Bearer \u00e9\u00e9"}),
    "an executor's request without a proof": Row(401, "not_trusted", "", path="/v1/heartbeat",
                                                 headers={"Authorization": ""}),
    "a proof that is none": Row(401, "not_trusted", "", path="/v1/claims",
                                headers={"Authorization": "TF-Proof a.b.c"}),
    "a join without anything": Row(422, "message_invalid", "token", path="/v1/join"),
    "a join with a token that is none": Row(
        422, "message_invalid", "", path="/v1/join", body=b'{"token": "tfj_x", "name": "x"}'
    ),
}  # fmt: skip
ACCEPTED: dict[str, tuple[Row, object]] = {
    "M23 no is a word": (m(GOOD.replace("train.py}", "train.py, params: {country: no}}"), "", 200), None),
    "M40 lines that end with CR": (m(GOOD.replace("\n", "\r\n"), "", 200), None),
    "W16 a branch that was deleted": (w(202, "", push={"after": ZEROS}), "ignored"),
    "W19 a tag": (w(202, "", push={"ref": "refs/tags/v1"}), "ignored"),
    "W20 a repository that is not watched": (w(202, "", push={"forced": True}), "ignored"),
    "W22 the same name elsewhere": (
        w(
            202,
            "",
            push={"repository": {"id": 2, "full_name": "demo", "clone_url": "https://evil.org/d.git"}},
        ),
        "ignored",
    ),
    "W23 a ping": (w(202, "", event="ping", body=b'{"zen":"x"}'), "accepted"),
    "W25 the results' branch": (w(202, "", push={"ref": "refs/heads/trainforge-results"}), "ignored"),
}
ARCHIVES = {name: z(data, code, words) for name, (data, code, words) in HOSTILE.items()} | {
    "Z05 neither manifest nor script": z(craft(Part("x.py")), "message_invalid", "'main.py'"),
    "Z05 a manifest that is wrong": z(
        craft(Part("trainforge.yaml", b"a: 1")), "manifest_invalid", "unknown key"
    ),
    "Z05 a script that climbs": z(craft(Part()), "manifest_invalid", "..", main_entry="../main.py"),
}
ROWS = MANIFESTS | WEBHOOKS | REQUESTS | ARCHIVES


class Asked:
    def __init__(self, site: Web, client: httpx2.Client) -> None:
        self.site, self.client = site, client

    def send(self, row: Row) -> httpx2.Response:
        headers = {key: value.encode() for key, value in (self.site.bearer | row.headers).items() if value}
        began = time.monotonic()
        answer = self.client.request(row.method, self.site.url + row.path, content=row.body, headers=headers)
        self.took = time.monotonic() - began
        return answer

    def everything(self) -> str:
        """A hash over every table's rows and every ref of the git server."""
        digest = hashlib.sha256()
        with sqlite3.connect(next(self.site.sender.data_dir.glob("*.db"))) as database:
            tables = database.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall()
            for table in sorted({name for (name,) in tables} - NOTED):
                rows = database.execute(f'SELECT * FROM "{table}"').fetchall()  # noqa: S608
                digest.update(f"{table}{sorted(map(repr, rows))}".encode())
        database.close()
        for path in sorted(self.site.sender.git_root.rglob("*")):
            if path.is_file() and ("refs" in path.parts or path.name in {"HEAD", "packed-refs", "config"}):
                digest.update(f"{path}{path.read_bytes()!r}".encode())
        return digest.hexdigest()


# What arrives is listed for people, a token's last use is noted, and a delivery counts once.
NOTED = {"events", "access_tokens", "deliveries"}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    folder: Path = tmp_path_factory.mktemp("bad")
    with web(folder, webhook_secret=SECRET) as site, httpx2.Client(timeout=30) as client:
        init_bare(site.sender.git_root / "demo.git")
        yield Asked(site, client)


@pytest.mark.parametrize("name", ROWS)
def test_what_is_wrong_is_refused_and_changes_nothing(asked: Asked, name: str) -> None:
    row = ROWS[name]
    before = asked.everything()
    answer = asked.send(row)
    assert (answer.status_code, answer.json().get("code")) == (row.status, row.code), answer.text[:600]
    said = answer.json()
    assert row.status in PROBLEM_CODES[row.code].statuses
    assert row.words in json.dumps([said.get(key) for key in ("detail", "hint", "place", "problems")])
    assert said["detail"].isprintable() or "\n" in said["detail"]
    assert len(answer.content) < 20_000
    assert asked.took < 5 + len(row.body) / 2**20, f"{asked.took:.1f} s"
    assert asked.everything() == before
    asked.site.sender.strangers.take_back("127.0.0.1")


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_odd_but_right_is_taken_and_starts_nothing(asked: Asked, name: str) -> None:
    row, status = ACCEPTED[name]
    before = asked.everything()
    answer = asked.send(row)
    assert answer.status_code == row.status, answer.text
    assert answer.json().get("status") == status
    assert asked.everything() == before


def test_the_same_delivery_again_is_known(asked: Asked) -> None:
    row = w(202, "", push={"forced": False, "extra": "W26"})
    assert asked.send(row).json()["status"] == "ignored"
    assert asked.send(row).json()["status"] == "known"
    assert asked.send(w(202, "", push={"extra": "W26", "forced": False}, delivery="another-delivery"))


def test_a_length_over_the_cap_is_refused_before_the_body(asked: Asked) -> None:
    """W07: nothing of the 26 MB is ever sent."""
    address = urlsplit(asked.site.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=10)
    connection.putrequest("POST", "/webhooks/github")
    connection.putheader("Content-Length", str(26 * 2**20))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["code"] == "too_large"
    connection.close()


def test_a_body_without_end_is_cut_at_the_cap(asked: Asked) -> None:
    """W08: chunks until nobody takes them any more."""
    address = urlsplit(asked.site.url)
    sent, chunk = 0, b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with socket.create_connection((str(address.hostname), address.port or 80), timeout=20) as line:
        line.sendall(b"POST /hooks/git HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while sent < 64 * 2**20:
                line.sendall(chunk)
                sent += len(chunk)
        except OSError:
            pass
    assert sent < 64 * 2**20


def test_a_body_that_ends_just_over_the_cap_is_too_large(asked: Asked) -> None:
    def pieces() -> Iterator[bytes]:
        yield b" " * (2**20 - 9)
        yield b" " * 19

    headers = asked.site.bearer
    answer = asked.client.post(f"{asked.site.url}/api/jobs", content=pieces(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_a_password_for_git_in_another_alphabet_is_wrong_and_no_more(asked: Asked) -> None:
    for said in (b"Basic \xe9\xe9", b"Basic =", b"Basic //79", b"Basic", b"Bearer \xff"):
        address = f"{asked.site.url}/git/demo.git/info/refs?service=git-upload-pack"
        answer = asked.client.get(address, headers={"Authorization": said})
        assert answer.status_code == 401, said
    for path in ("..%2fx.git", "a/b/c/d.git", "x.git/config", ".git", "-x.git"):
        answer = asked.client.get(f"{asked.site.url}/git/{path}/info/refs?service=git-upload-pack")
        assert answer.status_code in {401, 404}, path
