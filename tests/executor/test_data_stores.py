"""Data in object stores and git repositories: a real S3 server, git over HTTP, the LFS protocol."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from support.buckets import Asked, serving_s3
from support.files import serving_files
from support.jobs import Job
from support.repositories import Project, Server, serving_git
from trainforge.config.errors import NodeFailed
from trainforge.executor import data_sources
from trainforge.executor.commands import Interrupted

MIB = 2**20
KEYS = {
    "AWS_ACCESS_KEY_ID": "of-the-executor",
    "AWS_SECRET_ACCESS_KEY": "own",
    "AWS_DEFAULT_REGION": "us-east-1",
}
GIVEN = {"ID": "AKIAOFTHEJOB", "KEY": "s3cret"}
CREDENTIALS = {"credentials": {"key_id": "ID", "secret_key": "KEY"}}


@pytest.fixture
def asked() -> Asked:
    return []


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, asked: Asked) -> Iterator[str]:
    """The name of a bucket; the executor's own keys and the endpoint are in its environment."""
    with serving_s3(asked) as url:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        name = f"data-{os.getpid()}-{url.rpartition(':')[2]}"
        boto3.client("s3").create_bucket(Bucket=name)
        yield name


def put(bucket: str, files: dict[str, bytes], acl: str = "private") -> None:
    for name, content in files.items():
        boto3.client("s3").put_object(Bucket=bucket, Key=name, Body=content, ACL=acl)


def test_a_file_and_a_folder_of_a_bucket(bucket: str, asked: Asked, tmp_path: Path) -> None:
    put(bucket, {"a.csv": b"1,2", "set/deep/x": b"x", "set/y": b"y" * 100})
    entries = ({"url": f"s3://{bucket}/a.csv"} | CREDENTIALS, {"url": f"s3://{bucket}/set/"} | CREDENTIALS)
    asked.clear()
    folder = Job(tmp_path, secrets=GIVEN).get(*entries, secrets=("ID", "KEY"))
    assert (folder / "a.csv").read_bytes() == b"1,2"
    assert ((folder / "set/deep/x").read_bytes(), (folder / "set/y").read_bytes()) == (b"x", b"y" * 100)
    assert asked
    assert all("AKIAOFTHEJOB" in headers["AUTHORIZATION"] for _, headers in asked)
    asked.clear()
    again = Job(tmp_path, "b", secrets=GIVEN)
    again.get(*entries, secrets=("ID", "KEY"))
    assert [record.cached for record in again.records()] == [True, True]
    assert not [what for what, _ in asked if what.startswith("GET") and "a.csv" in what]
    put(bucket, {"a.csv": b"3,4"})
    folder = Job(tmp_path, "c", secrets=GIVEN).get(*entries, secrets=("ID", "KEY"))
    assert (folder / "a.csv").read_bytes() == b"3,4"


def test_without_credentials_a_bucket_is_asked_as_anybody_may(
    bucket: str, asked: Asked, tmp_path: Path
) -> None:
    put(bucket, {"a.csv": b"1,2"}, acl="public-read")
    put(bucket, {"private.csv": b"3,4"})
    asked.clear()
    assert (Job(tmp_path).get({"url": f"s3://{bucket}/a.csv"}) / "a.csv").read_bytes() == b"1,2"
    with pytest.raises(NodeFailed, match=r"private\.csv: Forbidden; name the secrets"):
        Job(tmp_path).get({"url": f"s3://{bucket}/private.csv"})
    assert asked
    assert not any("AUTHORIZATION" in headers for _, headers in asked)
    with pytest.raises(NodeFailed, match="there is no such file or bucket"):
        Job(tmp_path, secrets=GIVEN).get({"url": f"s3://{bucket}/b.csv"} | CREDENTIALS, secrets=("ID", "KEY"))


def test_a_large_object_is_gone_on_with(
    bucket: str, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_sources, "RANGE", MIB)
    content = os.urandom(4 * MIB)
    put(bucket, {"big": content}, acl="public-read")
    ranges = lambda: [headers["RANGE"] for _, headers in asked if "RANGE" in headers]  # noqa: E731
    with pytest.raises(Interrupted):
        Job(tmp_path, stopping=lambda: len(ranges()) > 2).get({"url": f"s3://{bucket}/big"})
    asked.clear()
    job = Job(tmp_path, "b")
    assert (job.get({"url": f"s3://{bucket}/big"}) / "big").read_bytes() == content
    assert job.record()["sha256"] == hashlib.sha256(content).hexdigest()
    assert int(ranges()[0].removeprefix("bytes=").partition("-")[0]) >= MIB


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(NodeFailed) as refused:
        Job(tmp_path).get({"url": "gs://bucket/x"})
    assert "pip install 'trainforge[gs]'" in refused.value.hint


# --- git ------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[tuple[Server, Project]]:
    """A repository that asks for a password, and an LFS server beside it with one object."""
    with serving_files() as store:

        async def batch(request: Request) -> Response:
            login = b64encode(b"me:s3cret-pass").decode()
            if request.headers.get("Authorization") != f"Basic {login}":
                return Response(status_code=401)
            objects = []
            for one in (await request.json())["objects"]:
                path = f"/{one['oid']}"
                action = {"href": f"{store.url}{path}", "header": {"Authorization": "Bearer once"}}
                store.logins[path] = "Bearer once"
                there = {"actions": {"download": action}}
                lost = {"error": {"code": 404, "message": "Object \x1b[31mlost"}}
                objects.append(one | (there if path in store.files else lost))
            return JSONResponse({"transfer": "basic", "objects": objects})

        route = Route("/git/demo.git/info/lfs/objects/batch", batch, methods=["POST"])
        with serving_git(tmp_path / "served", [route]) as server:
            project = Project(tmp_path / "project")
            large = pointer(b"large" * 1000)
            project.commit({"small.txt": "small", "large.bin": large, "deep/same": large})
            store.files[f"/{hashlib.sha256(b'large' * 1000).hexdigest()}"] = b"large" * 1000
            project.git("push", "--quiet", server.at("demo", "s3cret-pass"), "main")
            yield server, project


def pointer(content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n"


def entry(server: Server, **more: str) -> dict[str, object]:
    given = {"credentials": {"username": "me", "password": "PASSWORD"}}
    return {"url": f"git+{server.at('demo')}", **given, **more}


def test_a_commit_with_what_lfs_keeps(repository: tuple[Server, Project], tmp_path: Path) -> None:
    server, project = repository
    first = project.git("rev-parse", "HEAD").stdout.strip()
    job = Job(tmp_path / "machine", secrets={"PASSWORD": "s3cret-pass"}, scope="git:ours")
    folder = job.get(entry(server), secrets=("PASSWORD",)) / "demo"
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {"small.txt": b"small", "large.bin": b"large" * 1000, "deep/same": b"large" * 1000}
    assert (job.record()["commit"], job.record()["files"], job.record()["cached"]) == (first, 3, False)
    project.commit({"small.txt": "changed"})
    project.git("push", "--quiet", server.at("demo", "s3cret-pass"), "main")
    for ref, text, cached in (("main", "changed", False), (first, "small", True)):
        job = Job(tmp_path / "machine", f"of-{text}", secrets={"PASSWORD": "s3cret-pass"}, scope="git:ours")
        folder = job.get(entry(server, ref=ref, path="."), secrets=("PASSWORD",))
        assert ((folder / "small.txt").read_text(), job.record()["cached"]) == (text, cached)
    texts = [path.read_bytes() for path in (tmp_path / "machine").rglob("*") if path.is_file()]
    assert not any(b"s3cret" in text for text in texts)


def test_what_a_repository_does_not_have(repository: tuple[Server, Project], tmp_path: Path) -> None:
    server, project = repository
    given = {"secrets": {"PASSWORD": "s3cret-pass"}}
    with pytest.raises(NodeFailed, match="has no branch or tag nowhere"):
        Job(tmp_path / "machine", **given).get(entry(server, ref="nowhere"), secrets=("PASSWORD",))
    with pytest.raises(NodeFailed, match="terminal prompts disabled; name the secrets"):
        Job(tmp_path / "machine").get({"url": f"git+{server.at('demo')}"})
    project.commit({"gone.bin": pointer(b"gone")})
    project.git("push", "--quiet", server.at("demo", "s3cret-pass"), "main")
    with pytest.raises(NodeFailed, match=r"does not have the LFS object .*: Object lost"):
        Job(tmp_path / "machine", **given).get(entry(server), secrets=("PASSWORD",))


def test_the_repository_of_the_job_needs_no_credentials(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.commit({"a": "1"})
    url = f"git+file://{project.path}"
    job = Job(tmp_path / "machine", allow_file=True, files=[tmp_path])
    assert (job.get({"url": url, "ref": "main"}) / "project" / "a").read_text() == "1"
    assert json.loads((job.folder / "data.json").read_text())["data"][0]["url"] == url
    with pytest.raises(NodeFailed, match="jobs may not read"):
        Job(tmp_path / "machine", "b", allow_file=True, files=[]).get({"url": url})
