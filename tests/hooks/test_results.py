"""The results branch: exactly one result per job, whoever races and whatever the remote does."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.repositories import Project, Server
from trainforge.config.errors import Conflict, TrainForgeError
from trainforge.config.messages import GitCredential
from trainforge.hooks import git, gitrun, result_mirror
from trainforge.hooks.git_http import Access, repository_path
from trainforge.hooks.results import (
    Entry,
    Written,
    find_local_result,
    find_result,
    read_result_files,
    write_results,
)

BRANCH = "trainforge-results"
INDEX = "index/2026-11.csv"
CREDENTIAL = GitCredential(username="me", password="s3cret-pass")


def _folder(job: int) -> str:
    return f"jobs/2026/11/job{job}"


def _shared(job: int) -> Callable[[Callable[[str], bytes | None]], dict[str, bytes]]:
    def render(read: Callable[[str], bytes | None]) -> dict[str, bytes]:
        return {
            INDEX: (read(INDEX) or b"job\n") + f"job{job}\n".encode(),
            "README.md": f"newest {job}\n".encode(),
        }

    return render


def _entry(job: int, by: str = "", **more: bytes | Path) -> Entry:
    files: dict[str, bytes | Path] = {"result.json": json.dumps({"job": job, "by": by}).encode()}
    files |= {"artifacts/" + name: content for name, content in more.items()}
    return Entry(_folder(job), files, f"Job {job}", _shared(job))


def _write(mirror: Path, url: str, job: int, by: str = "", **more: bytes | Path) -> Written:
    entry = _entry(job, by, **more)
    return write_results(mirror, url, BRANCH, entry, credential=CREDENTIAL, allow_file=True)[0]


def _in_a_process(mirror: str, url: str, jobs: list[int], by: str) -> list[tuple[str, bool]]:
    written = [_write(Path(mirror), url, job, by, model=os.urandom(50_000)) for job in jobs]
    return [(one.commit, one.already) for one in written]


def _named(names: list[str]) -> dict[str, Any]:
    return {name: name.encode() for name in names}


def _show(repo: Path, path: str) -> bytes:
    return gitrun.run(["cat-file", "blob", f"refs/heads/{BRANCH}:{path}"], git_dir=repo)


def _history(repo: Path) -> list[str]:
    return (
        gitrun.run(["log", "--format=%s", f"refs/heads/{BRANCH}", "--"], git_dir=repo)
        .decode()
        .split("\n")[:-1]
    )


def test_a_result_is_added_and_found(server: Server, project: Project, tmp_path: Path) -> None:
    project.commit()
    project.git("push", "--quiet", server.at("p", "s3cret-pass"), "main")
    url, mirror = server.at("p"), tmp_path / "m.git"
    (tmp_path / "weights").write_bytes(os.urandom(300_000))

    first = _write(mirror, url, 1, weights=tmp_path / "weights", note=b"n")
    asked = len(server.services)
    second = _write(mirror, url, 2)

    assert not first.already
    assert not second.already
    assert len(server.services) - asked == 2, "the remote is asked by the push alone"
    repo = repository_path(server.root, "p")
    assert _history(repo) == ["Job 2", "Job 1"]
    assert _show(repo, INDEX) == b"job\njob1\njob2\n"
    assert _show(repo, "README.md") == b"newest 2\n"
    assert _show(repo, f"{_folder(1)}/artifacts/weights") == (tmp_path / "weights").read_bytes()
    gitrun.run(["fsck", "--strict", "--full"], git_dir=repo)
    other = tmp_path / "other.git"
    found = find_result(other, url, BRANCH, _folder(1), credential=CREDENTIAL)
    assert found == (second.commit, b'{"job": 1, "by": ""}')
    assert find_result(other, url, BRANCH, _folder(9), credential=CREDENTIAL) is None
    assert find_result(other, url, "absent", _folder(1), credential=CREDENTIAL) is None
    assert find_local_result(repo, BRANCH, _folder(1)) == found
    assert find_local_result(repo, "absent", _folder(1)) is None
    assert find_local_result(repo, BRANCH, _folder(9)) is None


def test_the_mirror_does_not_keep_what_was_published(bare: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "m.git"
    for job in range(4):
        _write(mirror, str(bare), job, model=os.urandom(1_000_000))
    size = sum(path.stat().st_size for path in mirror.rglob("*") if path.is_file())
    assert size < 200_000
    assert list((mirror / "incoming").iterdir()) == []
    assert git.ls_remote(str(mirror), allow_file=True) == {}


def test_a_second_result_of_a_job_changes_nothing(bare: Path, tmp_path: Path) -> None:
    _write(tmp_path / "a.git", str(bare), 1, "first")
    before = git.ls_remote(str(bare), allow_file=True)
    for mirror in ("a.git", "b.git"):
        again = _write(tmp_path / mirror, str(bare), 1, "second")
        assert again.already
        assert again.commit == before[f"refs/heads/{BRANCH}"]
    assert git.ls_remote(str(bare), allow_file=True) == before
    assert b"first" in _show(bare, f"{_folder(1)}/result.json")


def test_processes_race_for_the_branch_and_for_the_jobs(
    server: Server, project: Project, tmp_path: Path
) -> None:
    project.commit()
    project.git("push", "--quiet", server.at("p", "s3cret-pass"), "main")
    jobs = list(range(5))
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        racers = [
            pool.submit(
                _in_a_process,
                str(tmp_path / f"{number}.git"),
                server.at("p"),
                jobs[::order],
                f"racer {number}",
            )
            for number, order in enumerate((1, -1, 1))
        ]
        outcomes = [outcome for racer in racers for outcome in racer.result(200)]
    repo = repository_path(server.root, "p")
    assert sorted(_history(repo)) == [f"Job {job}" for job in jobs]
    assert sum(not already for _, already in outcomes) == len(jobs)
    assert sorted(_show(repo, INDEX).split()) == sorted([b"job", *(f"job{job}".encode() for job in jobs)])


def test_threads_share_one_mirror(bare: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        writes = [pool.submit(_write, tmp_path / "m.git", str(bare), job % 4, str(job)) for job in range(8)]
    assert sum(not write.result().already for write in writes) == 4
    assert len(_history(bare)) == 4
    assert len(_show(bare, INDEX).split()) == 5


def test_a_mirror_serves_checkouts_and_results_alike(bare: Path, project: Project, tmp_path: Path) -> None:
    mirror = tmp_path / "m.git"
    for number in range(3):
        commit = project.commit({"train.py": f"print({number})"})
        project.git("push", "--quiet", str(bare), "main")
        git.fetch_commit(mirror, str(bare), commit, allow_file=True)
        _write(tmp_path / "elsewhere.git", str(bare), 100 + number, model=os.urandom(50_000))
        _write(mirror, str(bare), number, model=os.urandom(50_000))
        git.checkout(mirror, commit, tmp_path / f"work{number}")
        assert (tmp_path / f"work{number}" / "train.py").read_text() == f"print({number})"
    assert len(_history(bare)) == 6


def test_a_publisher_killed_before_the_push_leaves_nothing(bare: Path, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from trainforge.hooks.results import Entry, write_results\n"
        "kill = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "entry = Entry('jobs/2026/11/job1', {'result.json': b'killed'}, 'x', before_push=kill)\n"
        "write_results(Path(sys.argv[1]), sys.argv[2], 'trainforge-results', entry, allow_file=True)"
    )
    mirror = tmp_path / "m.git"
    done = subprocess.run([sys.executable, "-c", program, str(mirror), str(bare)], check=False)
    assert done.returncode == -9
    assert git.ls_remote(str(bare), allow_file=True) == {}
    assert not _write(mirror, str(bare), 1, "after").already
    assert b"after" in _show(bare, f"{_folder(1)}/result.json")


def test_a_lease_that_has_ended_stops_the_push(bare: Path, tmp_path: Path) -> None:
    def too_late() -> None:
        raise Conflict("the lease has ended")

    late = Entry(_folder(1), {"result.json": b"{}"}, "x", before_push=too_late)
    with pytest.raises(Conflict):
        write_results(tmp_path / "m.git", str(bare), BRANCH, late, allow_file=True)
    assert git.ls_remote(str(bare), allow_file=True) == {}
    other, outcomes = write_results(tmp_path / "m.git", str(bare), BRANCH, _entry(2), late, allow_file=True)
    assert not other.already
    assert [type(outcome) for outcome in outcomes] == [Conflict], "one that is too late goes alone"
    assert _history(bare) == ["Job 2"]


def test_results_that_go_along_are_pushed_together(server: Server, project: Project, tmp_path: Path) -> None:
    project.commit()
    project.git("push", "--quiet", server.at("p", "s3cret-pass"), "main")
    url, mirror, repo = server.at("p"), tmp_path / "m.git", repository_path(server.root, "p")
    _write(mirror, url, 1)
    _write(tmp_path / "other.git", url, 2)  # so that the first try loses the race
    pushes = server.services.count("git-receive-pack")

    along = [_entry(job, model=os.urandom(20_000)) for job in (3, 1, 4, 3)]
    written, outcomes = write_results(mirror, url, BRANCH, _entry(5), *along, credential=CREDENTIAL)

    assert server.services.count("git-receive-pack") - pushes == 1 + 2, "a lost race, then one push"
    assert [type(outcome) for outcome in outcomes] == [Written, Written, Written, type(None)]
    assert [one.already for one in outcomes if isinstance(one, Written)] == [False, True, False]
    assert _history(repo) == ["Job 5", "Job 4", "Job 3", "Job 2", "Job 1"]
    assert _show(repo, INDEX) == b"job\njob1\njob2\njob3\njob4\njob5\n", "each sees those before it"
    tip = gitrun.run(["rev-parse", f"refs/heads/{BRANCH}"], git_dir=repo).decode().strip()
    assert written.commit == tip
    gitrun.run(["fsck", "--strict", "--full"], git_dir=repo)
    asked = len(server.services)
    assert not _write(mirror, url, 6).already
    assert len(server.services) - asked == 2, "what was pushed together is known here"

    first, rest = write_results(mirror, url, BRANCH, _entry(6), _entry(7), credential=CREDENTIAL)
    assert first.already
    assert rest == [None], "without a push nothing is known of the others"


def test_a_dead_remote_is_unreachable_and_later_fine(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(git.GitUnreachable):
        _write(tmp_path / "m.git", "http://127.0.0.1:1/x.git", 1)
    assert not _write(tmp_path / "m.git", str(bare), 1).already


def test_a_remote_that_refuses_is_blocked_with_its_words(bare: Path, tmp_path: Path) -> None:
    _write(tmp_path / "m.git", str(bare), 1)
    hook = bare / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nprintf 'GH013: \\033[31mtoo large\\n' >&2\nexit 1\n")
    hook.chmod(0o755)
    for mirror in ("m.git", "n.git"):
        with pytest.raises(git.GitBlocked, match="GH013: too large") as caught:
            _write(tmp_path / mirror, str(bare), 2)
        assert "\x1b" not in str(caught.value)
    hook.unlink()
    assert not _write(tmp_path / "m.git", str(bare), 2).already


def test_a_credential_that_may_not_write(server: Server, project: Project, tmp_path: Path) -> None:
    project.commit()
    project.git("push", "--quiet", server.at("p", "s3cret-pass"), "main")
    server.users["s3cret-pass"] = Access("me", write=True, refs=("refs/heads/elsewhere",))
    with pytest.raises(git.GitBlocked, match="may not push to refs/heads/trainforge-results"):
        _write(tmp_path / "m.git", server.at("p"), 1)
    server.users = {"s3cret-pass": Access("me")}
    with pytest.raises(git.GitAuthFailed):
        _write(tmp_path / "m.git", server.at("p"), 1)


def test_a_branch_deleted_or_rewritten_meanwhile(bare: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "m.git"
    first = _write(mirror, str(bare), 1)
    _write(mirror, str(bare), 2)
    gitrun.run(["update-ref", f"refs/heads/{BRANCH}", first.commit], git_dir=bare)
    assert not _write(mirror, str(bare), 2).already, "what was rewritten away is written again"
    gitrun.run(["update-ref", "-d", f"refs/heads/{BRANCH}"], git_dir=bare)
    assert not _write(mirror, str(bare), 3).already
    assert _history(bare) == ["Job 3"]
    assert find_result(mirror, str(bare), BRANCH, _folder(1), allow_file=True) is None


@pytest.mark.parametrize("later", [0, 1])
def test_the_same_result_again_after_it_was_rewritten_away(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: int
) -> None:
    moments = iter([1_795_000_000, 1_795_000_000, 1_795_000_000 + later, 1_795_000_100])
    monkeypatch.setattr(result_mirror, "time", SimpleNamespace(time=lambda: next(moments)))
    mirror = tmp_path / "m.git"
    first, second = _write(mirror, str(bare), 1), _write(mirror, str(bare), 2)
    gitrun.run(["update-ref", f"refs/heads/{BRANCH}", first.commit], git_dir=bare)
    assert (_write(mirror, str(bare), 2).commit == second.commit) == (later == 0)
    _write(mirror, str(bare), 3)
    assert _show(bare, INDEX) == b"job\njob1\njob2\njob3\n"


def test_a_server_without_partial_fetch(bare: Path, tmp_path: Path) -> None:
    gitrun.run(["config", "uploadpack.allowFilter", "false"], git_dir=bare)
    for job in range(4):
        _write(tmp_path / f"{job % 2}.git", str(bare), job, model=os.urandom(10_000))
    assert _show(bare, INDEX) == b"job\njob0\njob1\njob2\njob3\n"


def test_names_that_need_quoting(bare: Path, tmp_path: Path) -> None:
    names = ['a "b"', "back\\slash", "größe", " lead", "tab:colon", "'single'"]
    _write(tmp_path / "with: colon.git", str(bare), 1, **_named(names))
    listed = read_result_files(
        tmp_path / "n.git", str(bare), BRANCH, _folder(1), tmp_path / "out", allow_file=True
    )
    assert sorted(listed) == sorted(["result.json", *(f"artifacts/{name}" for name in names)])
    for name in names:
        assert (tmp_path / "out" / "artifacts" / name).read_text() == name


@pytest.mark.parametrize("name", ["../x", "a/../../x", ".git/config", "/etc/x", "a//b", "new\nline"])
def test_names_that_leave_the_folder_are_refused(bare: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(git.AddressRefused):
        _write(tmp_path / "m.git", str(bare), 1, **_named([name]))
    assert git.ls_remote(str(bare), allow_file=True) == {}


def test_only_regular_files_are_published(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo"):
        with pytest.raises((TrainForgeError, OSError)):
            _write(tmp_path / "m.git", str(bare), 1, stolen=tmp_path / name)
    assert git.ls_remote(str(bare), allow_file=True) == {}
    assert list((tmp_path / "m.git" / "incoming").iterdir()) == []


def test_a_result_comes_home(server: Server, project: Project, tmp_path: Path) -> None:
    project.commit()
    project.git("push", "--quiet", server.at("p", "s3cret-pass"), "main")
    model = os.urandom(2_500_000)
    _write(tmp_path / "m.git", server.at("p"), 1, model=model)
    _write(tmp_path / "m.git", server.at("p"), 2, model=os.urandom(500_000))
    out, mirror = tmp_path / "results" / "job1", tmp_path / "pull.git"

    listed = read_result_files(mirror, server.at("p"), BRANCH, _folder(1), out, credential=CREDENTIAL)

    assert sorted(listed) == ["artifacts/model", "result.json"]
    assert (out / "artifacts" / "model").read_bytes() == model
    size = sum(path.stat().st_size for path in (mirror / "objects").rglob("*") if path.is_file())
    assert size < 2_900_000, "the other job's contents stayed where they are"
    with pytest.raises(Conflict):
        read_result_files(mirror, server.at("p"), BRANCH, _folder(1), out, credential=CREDENTIAL)
    with pytest.raises(git.GitNotFound):
        read_result_files(mirror, server.at("p"), BRANCH, _folder(9), tmp_path / "x", credential=CREDENTIAL)


def test_links_on_the_branch_stay_there(bare: Path, project: Project, tmp_path: Path) -> None:
    (project.path / _folder(1)).mkdir(parents=True)
    (project.path / _folder(1) / "link").symlink_to("/etc")
    (project.path / _folder(1) / "up").symlink_to("../../../../..")
    project.commit({f"{_folder(1)}/result.json": "{}"})
    project.git("push", "--quiet", str(bare), f"HEAD:refs/heads/{BRANCH}")
    out = tmp_path / "out"
    listed = read_result_files(tmp_path / "m.git", str(bare), BRANCH, _folder(1), out, allow_file=True)
    assert listed == ["result.json"]
    assert [path.name for path in out.iterdir()] == ["result.json"]
