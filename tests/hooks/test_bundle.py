"""Archives that are taken and archives that are not, and the trees that the former become."""

from __future__ import annotations

import io
import subprocess
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.archives import HOSTILE, Part, craft, described, unicode_path, zip64, zipped
from trainforge.config.problem_codes import PROBLEM_CODES
from trainforge.hooks.bundle import Bundle, Limits
from trainforge.hooks.bundle_commit import arrange, commit_files
from trainforge.hooks.bundle_names import BundleRefused
from trainforge.hooks.git import init_bare
from trainforge.hooks.gitrun import GitError, GitRejected, run

FULL = 0xFFFFFFFF


def unpacked(data: bytes) -> dict[str, bytes]:
    bundle = Bundle(io.BytesIO(data))
    return {member.path: b"".join(bundle.contents(member)) for member in bundle.files}


def committed(repo: Path, ref: str = "main") -> dict[str, tuple[str, bytes]]:
    """Mode and content of each file, as git has them."""
    listed = run(["ls-tree", "-r", "-z", "--full-tree", ref], git_dir=repo).decode().split("\0")[:-1]
    found = {}
    for line in listed:
        about, _, path = line.partition("\t")
        mode, _, blob = about.split(" ")
        found[path] = (mode, run(["cat-file", "blob", blob], git_dir=repo))
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_with_a_trick_is_refused_with_its_code_and_what_to_do(name: str) -> None:
    data, code, words = HOSTILE[name]
    began = time.process_time()
    with pytest.raises(BundleRefused) as refused:
        bundle = Bundle(io.BytesIO(data))
        bundle.verify()
        arrange(bundle.files)
    assert time.process_time() - began < 1
    error = refused.value
    assert error.code == code, error
    assert words in error.message
    assert error.hint
    assert error.message.isprintable()
    assert len(error.message) < 500
    assert error.status in PROBLEM_CODES[code].statuses


def test_a_refused_archive_leaves_nothing_in_the_repository(tmp_path: Path) -> None:
    """Also one that is wrong at its last byte."""
    good = [Part(f"{number}.bin", bytes([number]) * 3_000_000, method=8) for number in range(3)]
    wrong = Part("z.py", local={"crc": 7}, central={"crc": 7})
    repo = tmp_path / "a.git"
    for before in ([], ["HEAD", "config", "trainforge.lock"]):
        bundle = Bundle(io.BytesIO(craft(*good, wrong)))
        files = {member.path: member for member in bundle.files}
        with pytest.raises(BundleRefused, match="does not hold"):
            commit_files(repo, bundle, files, message="x", author="ada")
        assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == before
        init_bare(repo)
        (repo / "trainforge.lock").touch()


ODD: dict[str, bytes] = {
    "stored": craft(Part()),
    "deflated": craft(Part(method=8)),
    "described": craft(described(Part(method=8)), described(Part("b"), sign=b"")),
    "described in 64 bits": craft(described(Part(method=8), "<IQQ"), described(Part("b"), "<IQQ", b"")),
    "a local zip64": craft(Part(local={"size": FULL, "packed": FULL, "extra": zip64(9, 9)})),
    "a central zip64": craft(Part(central={"size": FULL, "extra": zip64(9)})),
    "zip64's end": craft(Part(), large={}),
    "a comment": craft(Part(), comment=b"a" * 40),
    "its name once more": craft(Part(extra=unicode_path(b"main.py", "main.py"))),
    "of Windows": craft(Part(system=0, mode=0)),
    "extra fields with padding": craft(Part(extra=b"UT\x01\0\0\0\0")),
    "entries in another order": craft(Part("b/", b"", 0o40755), Part("b/c"), Part()),
    "written to a pipe": zipped({"main.py": "print(1)\n"}),
}


@pytest.mark.parametrize("name", ODD)
def test_what_other_programs_write_is_read(name: str) -> None:
    assert unpacked(ODD[name])["main.py"] == b"print(1)\n"


def test_the_zip_program_and_git_make_archives_that_are_read(tmp_path: Path) -> None:
    """In a file and through a pipe, with names of other alphabets, as downloads of GitHub have them."""
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "main.py").write_text("print(1)\n")
    (folder / "main.py").chmod(0o755)
    (folder / "data" / "日本 ü.txt").write_text("x" * 5000)
    for argv in (
        ["git", "init", "-q"],
        ["git", "add", "-A"],
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"],
        ["git", "archive", "--prefix=project-main/", "-o", "../git.zip", "HEAD"],
    ):
        subprocess.run(argv, cwd=folder, check=True)
    (folder / "main.py").chmod(0o775)
    with zipfile.ZipFile(tmp_path / "python.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if ".git" not in path.parts:
                archive.write(path, path.relative_to(tmp_path))
    for made in ("git.zip", "python.zip"):
        with (tmp_path / made).open("rb") as file:
            bundle = Bundle(file)
            arranged = arrange(bundle.files)
            assert [(path, one.executable) for path, one in arranged.files.items()] == [
                ("data/日本 ü.txt", False), ("main.py", True),
            ]  # fmt: skip
            assert b"".join(bundle.contents(arranged.files["data/日本 ü.txt"])) == b"x" * 5000
            assert "was taken off" in arranged.notes[0]


def test_the_folder_around_everything_stays_where_the_form_names_it() -> None:
    files = Bundle(io.BytesIO(craft(Part("src/main.py"), Part("src/a/b"), Part("__MACOSX/src/._x")))).files
    assert list(arrange(files).files) == ["a/b", "main.py"]
    assert list(arrange(files, ("src/main.py", "")).files) == ["src/a/b", "src/main.py"]
    assert arrange(files).notes[0] == "1 file of macOS itself in the ZIP: left out."


def test_a_nested_archive_is_a_file() -> None:
    bomb = HOSTILE["Z23 a bomb"][0]
    assert unpacked(craft(Part(), Part("inner.zip", bomb)))["inner.zip"] == bomb


def test_what_is_read_is_bounded_in_time_and_memory(tmp_path: Path) -> None:
    many = craft(*(Part(f"{number // 100}/{number}") for number in range(5000)))
    began = time.process_time()
    assert len(Bundle(io.BytesIO(many)).files) == 5000
    assert time.process_time() - began < 2
    with pytest.raises(BundleRefused, match="5000 entries"):
        Bundle(io.BytesIO(many), Limits(files=4999))
    with pytest.raises(BundleRefused, match="too many folders"):
        Bundle(io.BytesIO(craft(*(Part(f"{n}/b/c/d") for n in range(40)))), Limits(files=100))
    large = craft(Part(data=bytes(60 * 2**20), method=8))
    tracemalloc.start()
    bundle = Bundle(io.BytesIO(large))
    bundle.verify()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20
    with pytest.raises(BundleRefused, match="within 0 seconds") as refused:
        Bundle(io.BytesIO(large), Limits(seconds=0.0)).verify()
    assert refused.value.code == "bundle_timeout"


names = st.text(
    st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]) | st.sampled_from("aA.~/-_"),
    min_size=1, max_size=12,
)  # fmt: skip


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(names, st.binary(max_size=300), st.booleans(), st.booleans(), st.booleans()),
        min_size=1, max_size=6,
    )
)  # fmt: skip
def test_the_tree_of_an_archive_that_is_taken_is_its_content(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, bytes, bool, bool, bool]]
) -> None:
    """Every path inside, every byte and executable bit, twice the same; and git itself finds no fault."""
    parts = []
    for name, data, packed, runs, later in files:
        part = Part(name, data, 0o100755 if runs else 0o100600, method=8 if packed else 0)
        parts.append(described(part) if later else part)
    try:
        bundle = Bundle(io.BytesIO(craft(*parts)))
    except BundleRefused:
        return
    wanted = {member.path: member for member in bundle.files}
    repo = tmp_path_factory.mktemp("taken") / "a.git"
    first = commit_files(repo, bundle, wanted, message="x", author="ada")
    assert committed(repo) == {
        name: ("100755" if runs else "100644", data) for name, data, _, runs, _ in files
    }
    assert not commit_files(repo, bundle, wanted, message="y", author="bo").new
    assert run(["rev-parse", "main"], git_dir=repo).decode().strip() == first.commit
    run(["fsck", "--strict", "--no-dangling"], git_dir=repo)


def test_what_was_uploaded_before_keeps_its_commit_and_the_rest_is_a_history(tmp_path: Path) -> None:
    repo = tmp_path / "a.git"

    def upload(data: bytes) -> str:
        bundle = Bundle(io.BytesIO(craft(Part(data=data))))
        files = {member.path: member for member in bundle.files}
        return commit_files(repo, bundle, files, message="Upload\n\n- note", author="a <b>\n").commit

    first, second = upload(b"1"), upload(b"2")
    assert upload(b"1") == first
    log = run(["log", "--format=%H %an %s", "main"], git_dir=repo).decode().splitlines()
    assert log == [f"{second} a b Upload", f"{first} a b Upload"]
    run(["update-ref", "refs/heads/main", second, second], git_dir=repo)
    run(["update-ref", "-d", "refs/heads/main"], git_dir=repo)
    assert upload(b"1") != ""
    assert committed(repo) == {"main.py": ("100644", b"1")}


def test_a_branch_that_cannot_be_set_is_told_from_one_that_moved(tmp_path: Path) -> None:
    repo = tmp_path / "a.git"

    def upload(data: bytes, meanwhile: Callable[[], None] = lambda: None) -> str:
        bundle = Bundle(io.BytesIO(craft(Part(data=data))))
        files = {member.path: member for member in bundle.files}
        return commit_files(repo, bundle, files, message="x", author="ada", meanwhile=meanwhile).commit

    def push() -> None:
        run(["update-ref", "refs/heads/main", first], git_dir=repo)

    first = upload(b"1")
    upload(b"2")
    with pytest.raises(GitRejected, match="pushed"):
        upload(b"3", push)
    (repo / "refs" / "heads" / "main.lock").touch()
    with pytest.raises(GitError, match=r"main\.lock") as caught:
        upload(b"4")
    assert not isinstance(caught.value, GitRejected)
