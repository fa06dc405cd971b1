"""Data are fetched once, whole, checked, shared and kept; what is wrong with them is said."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.files import FileServer, serving_files
from support.jobs import Job, manifest
from support.waiting import wait_for
from trainforge.config.errors import NodeFailed
from trainforge.executor import budget, data, downloads, unpacking
from trainforge.executor.housekeeping import clean

MIB = 2**20


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving_files() as served:
        yield served


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "RETRY_S", (0.01, 0.01))
    monkeypatch.setattr(data, "RETRY_S", (0.01, 0.01))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_fetched_once_and_found_by_its_content(server: FileServer, tmp_path: Path) -> None:
    content = os.urandom(3 * MIB)
    server.files |= {"/train.csv": content, "/again/other.csv": content}
    entry = {"url": f"{server.url}/train.csv", "sha256": digest(content)}
    first = Job(tmp_path)
    folder = first.get(entry)
    assert (folder / "train.csv").read_bytes() == content
    assert first.record() == {
        "name": "train.csv", "url": entry["url"], "sha256": digest(content), "commit": "",
        "size": 3 * MIB, "files": 1, "cached": False,
    }  # fmt: skip
    assert (folder / "train.csv").stat().st_mode & 0o222 == 0
    second = Job(tmp_path, "b")
    folder = second.get(
        {"url": f"{server.url}/again/other.csv", "path": "sub/x.csv", "sha256": digest(content)}
    )
    assert (folder / "sub" / "x.csv").read_bytes() == content
    assert second.record()["cached"]
    assert len(server.asked) == 1


def test_what_has_no_digest_is_asked_for_whether_it_has_changed(server: FileServer, tmp_path: Path) -> None:
    entry = {"url": f"{server.url}/x.csv".replace("http:", "https:"), "path": "x.csv"}
    node = Job(tmp_path)
    getting = data._Getting(manifest(entry).data[0], node.node)
    object.__setattr__(getting.data, "url", f"{server.url}/x.csv")  # https would need a certificate

    def get() -> tuple[bytes, bool]:
        content, record = getting.run()
        return content.read_bytes(), record.cached

    server.files["/x.csv"] = b"one"
    assert (get(), get()) == ((b"one", False), (b"one", True))
    server.files["/x.csv"] = b"two"
    assert (get(), get()) == ((b"two", False), (b"two", True))


def test_other_content_is_refused_and_not_kept(server: FileServer, tmp_path: Path) -> None:
    server.files["/x"] = b"changed"
    with pytest.raises(NodeFailed, match=f"has sha256 {digest(b'changed')}, data.sha256 says {'0' * 64}"):
        Job(tmp_path).get({"url": f"{server.url}/x", "sha256": "0" * 64})
    assert budget.entries(tmp_path) == []


def test_a_file_that_stops_half_way_is_gone_on_with(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "TELL_S", 0)
    content = os.urandom(4 * MIB)
    server.files["/big"], server.stops["/big"] = content, [MIB, 3 * MIB]
    job = Job(tmp_path)
    assert (job.get({"url": f"{server.url}/big", "sha256": digest(content)}) / "big").read_bytes() == content
    ranges = [headers.get("Range", "") for headers in server.asked_for("/big")]
    assert ranges == ["", f"bytes={MIB}-", f"bytes={3 * MIB}-"]
    assert any("waiting to go on" in words for words in job.told)
    assert any("big: 4.2 MB of 4.2 MB, " in words for words in job.told)


def test_a_file_that_changes_half_way_begins_anew(server: FileServer, tmp_path: Path) -> None:
    server.files["/big"], server.stops["/big"] = os.urandom(2 * MIB), [MIB]
    server.held["/big"] = threading.Event()
    new = os.urandom(2 * MIB)
    found: list[bytes] = []
    entry = {"url": f"{server.url}/big", "sha256": digest(new)}
    thread = threading.Thread(target=lambda: found.append((Job(tmp_path).get(entry) / "big").read_bytes()))
    thread.start()
    wait_for("the first half", lambda: list((tmp_path / "cache" / "data").glob("part-*/content")))
    server.files["/big"] = new
    server.held["/big"].set()
    thread.join(30)
    assert found == [new]


def test_one_job_fetches_and_the_others_wait(server: FileServer, tmp_path: Path) -> None:
    content = os.urandom(2 * MIB)
    server.files["/x"], server.stops["/x"] = content, [MIB]
    server.held["/x"] = threading.Event()
    jobs = [Job(tmp_path, name) for name in ("a", "b", "c")]
    entry = {"url": f"{server.url}/x", "sha256": digest(content)}
    threads = [threading.Thread(target=job.get, args=(entry,)) for job in jobs]
    for thread in threads:
        thread.start()

    def waiting() -> bool:
        return sum(any("waiting for another job" in words for words in job.told) for job in jobs) == 2

    wait_for("two that wait", waiting)
    server.held["/x"].set()
    for thread in threads:
        thread.join(30)
    assert sorted(job.record()["cached"] for job in jobs) == [False, True, True]
    assert len(server.asked) == 2  # the second for the other half


def test_credentials_go_to_their_host_alone_and_stand_nowhere(server: FileServer, tmp_path: Path) -> None:
    server.files |= {"/x": b"mine", "/y": b"other"}
    server.logins["/x"] = "Bearer s3cret-token"
    entry = {"url": f"{server.url}/x", "sha256": digest(b"mine")}
    known = entry | {"credentials": {"token": "TOKEN"}}
    with pytest.raises(NodeFailed, match="answered 401") as refused:
        Job(tmp_path).get(entry)
    assert "data.credentials" in refused.value.hint
    job = Job(tmp_path, "b", secrets={"TOKEN": "s3cret-token"}, scope="git:ours")
    job.get(known, secrets=("TOKEN",))
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"s3cret" in text for text in texts)
    with pytest.raises(NodeFailed, match="answered 401"):  # another repository's job does not get it either
        Job(tmp_path, "c").get(entry)
    with serving_files() as other:
        server.leads["/x"], other.files["/y"] = f"{other.url}/y", b"mine"
        Job(tmp_path / "again", secrets={"TOKEN": "s3cret-token"}).get(known, secrets=("TOKEN",))
        assert [headers.get("Authorization") for headers in other.asked_for("/y")] == [None]


@pytest.mark.parametrize(
    ("url", "private", "code", "words"),
    [
        ("http://127.0.0.1:9/x", False, "policy_refused", "private network"),
        ("http://169.254.169.254/latest/meta-data", True, "policy_refused", "not to be asked"),
        ("http://[::ffff:169.254.169.254]/x", True, "policy_refused", "not to be asked"),
        ("http://2130706433/x", True, "data_failed", "not the usual form"),
        ("git+http://127.0.0.1:9/x.git", False, "policy_refused", "private network"),
        ("git+ssh://git@example.org/other/x.git", True, "data_failed", "machine's own key"),
        ("hf://datasets/x", True, "data_failed", "not in effect"),
    ],
)
def test_addresses_that_no_job_has_asked(
    url: str, private: bool, code: str, words: str, tmp_path: Path
) -> None:
    entry = {"url": url} | ({"sha256": "0" * 64} if url.startswith("http:") else {})
    with pytest.raises(NodeFailed, match=words) as refused:
        Job(tmp_path, allow_private=private).get(entry)
    assert refused.value.code == code


def test_a_redirect_is_checked_like_any_address(server: FileServer, tmp_path: Path) -> None:
    server.leads["/x"] = "http://169.254.169.254/latest"
    with pytest.raises(NodeFailed, match="not to be asked") as refused:
        Job(tmp_path).get({"url": f"{server.url}/x", "sha256": "0" * 64})
    assert refused.value.code == "policy_refused"
    server.leads["/x"] = "http://[x/"
    with pytest.raises(NodeFailed, match="not a URL") as refused:
        Job(tmp_path).get({"url": f"{server.url}/x", "sha256": "0" * 64})
    assert refused.value.code == "data_failed"


def test_content_that_was_changed_on_the_disk_is_not_used(server: FileServer, tmp_path: Path) -> None:
    server.files["/x"] = b"good"
    entry = {"url": f"{server.url}/x", "sha256": digest(b"good")}
    kept = (Job(tmp_path).get(entry) / "x").resolve()
    times = kept.stat()
    os.utime(kept, ns=(times.st_atime_ns, times.st_mtime_ns))  # changes its ctime: looked at, and the same
    assert (Job(tmp_path, "b").get(entry) / "x").read_bytes() == b"good"
    assert len(server.asked) == 1
    kept.chmod(0o644)
    kept.write_bytes(b"evil")
    os.utime(kept, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(NodeFailed, match="was changed on this machine while a job has it"):
        Job(tmp_path, "c").get(entry)
    for name in ("a", "b", "c"):
        budget.discard(tmp_path / "nodes" / f"{name}.1.0")
    assert (Job(tmp_path, "d").get(entry) / "x").read_bytes() == b"good"


def test_nothing_is_taken_away_under_a_job(tmp_path: Path) -> None:
    """Jobs come and go while somebody removes all that nobody has, again and again."""
    sources = [tmp_path / f"source-{number}" for number in range(3)]
    for source in sources:
        source.write_bytes(os.urandom(1000))
    done = threading.Event()

    def cleaning() -> None:
        while not done.is_set():
            clean(tmp_path)

    def working(name: str, wrong: list[str]) -> None:
        for number in range(10):
            job = Job(tmp_path, f"{name}{number}")
            source = sources[number % 3]
            found = job.get({"url": f"file://{source}"}) / source.name
            if found.read_bytes() != source.read_bytes():
                wrong.append(found.name)
            budget.discard(job.folder)

    wrong: list[str] = []
    cleaner = threading.Thread(target=cleaning)
    workers = [threading.Thread(target=working, args=(name, wrong)) for name in "abc"]
    for thread in (cleaner, *workers):
        thread.start()
    for thread in workers:
        thread.join(60)
    done.set()
    cleaner.join(60)
    assert not any(thread.is_alive() for thread in workers)
    assert wrong == []
    assert len(clean(tmp_path).in_use) == 0


# --- archives -------------------------------------------------------------------------------------------


def archive(kind: str, files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    made = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, content in files.items():
                opened.writestr(name, content)
        return made.getvalue()
    with tarfile.open(fileobj=made, mode=f"w:{kind}") as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return made.getvalue()


@pytest.mark.parametrize("kind", ["zip", "", "gz", "bz2", "xz"])
def test_an_archive_is_unpacked_without_its_links(kind: str, server: FileServer, tmp_path: Path) -> None:
    packed = archive(kind, {"train/1.txt": b"one", "./train/2.txt": b"two"}, {"train/passwd": "/etc/passwd"})
    server.files["/digits.tar"] = packed
    entry = {"url": f"{server.url}/digits.tar", "sha256": digest(packed), "unpack": True}
    job = Job(tmp_path)
    folder = job.get(entry) / "digits"
    found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == {"train/1.txt": "one", "train/2.txt": "two"}
    assert (job.record()["files"], job.record()["sha256"]) == (2, digest(packed))
    assert ("links" in (job.folder / "setup.log").read_text()) == (kind != "zip")
    assert Job(tmp_path, "b").get(entry | {"path": "."}).joinpath("train", "1.txt").read_text() == "one"
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (archive("zip", {"../out": b"x"}), "is no path within it"),
        (archive("gz", {"/etc/out": b"x"}), "is no path within it"),
        (archive("gz", {"a": b"x", "a/b": b"y"}), "a file and a folder of one name"),
        (archive("xz", {"bomb": bytes(3 * MIB)}), "times its own size"),
        (b"only text", "no zip or tar archive"),
        (archive("gz", {"x": os.urandom(5000)})[:3000], "cannot be unpacked|no zip or tar"),
    ],
    ids=["traversal", "absolute", "collision", "bomb", "text", "torn"],  # the bytes differ by the second
)
def test_archives_that_do_harm(
    packed: bytes, words: str, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "LEAST_ALLOWED", 2 * MIB)
    server.files["/x.zip"] = packed
    with pytest.raises(NodeFailed, match=words):
        Job(tmp_path).get({"url": f"{server.url}/x.zip", "sha256": digest(packed), "unpack": True})
    assert not list(tmp_path.rglob("out"))
    assert not [entry for entry in budget.entries(tmp_path) if not entry.path.name.startswith("part-")]


# --- files of the machine -------------------------------------------------------------------------------


def test_files_and_folders_of_the_machine(tmp_path: Path) -> None:
    there = tmp_path / "shared" / "set"
    (there / "deep").mkdir(parents=True)
    (there / "deep" / "a").write_text("a")
    (there / "b").write_text("b")
    job = Job(tmp_path, files=[tmp_path / "shared"])
    folder = job.get({"url": f"file://{there}/", "path": "all"}, {"url": f"file://{there}/b", "cache": False})
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == ["b"]
    assert ((folder / "all" / "deep" / "a").read_text(), (folder / "all" / "b").read_text()) == ("a", "b")
    assert (folder / "b").resolve() == there / "b"
    (there / "b").write_text("changed")
    assert (folder / "all" / "b").read_text() == "b"
    assert (
        Job(tmp_path, "b").get({"url": f"file://{there}/", "path": "all"}) / "all" / "b"
    ).read_text() == "changed"
    with pytest.raises(NodeFailed, match="jobs may not read"):
        Job(tmp_path, "c", files=[tmp_path / "elsewhere"]).get({"url": f"file://{there}/b"})


def test_nothing_stays_of_what_is_not_to_be_kept(server: FileServer, tmp_path: Path) -> None:
    server.files["/x"] = b"secret"
    job = Job(tmp_path)
    job.get({"url": f"{server.url}/x", "sha256": digest(b"secret"), "cache": False})
    assert budget.entries(tmp_path) == []
    budget.discard(job.folder)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
