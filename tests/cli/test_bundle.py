"""`trainforge submit --bundle`: a folder or a ZIP goes to the sender, and what should not go stays."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from support.archives import Part, craft
from support.commands import Cli, Git
from trainforge import bundling
from trainforge.config.errors import TrainForgeError


def made(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"main.py": "print(1)\n", **files}.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def packed(path: Path, **options: bool) -> tuple[list[str], str]:
    """The names in the archive, and its digest."""
    found = bundling.pack(path, **options)
    with found.file:
        data = found.file.read()
    assert (found.size, found.files) == (len(data), len(zipfile.ZipFile(io.BytesIO(data)).namelist()))
    return zipfile.ZipFile(io.BytesIO(data)).namelist(), hashlib.sha256(data).hexdigest()


def test_a_folder_is_packed_the_same_each_time(tmp_path: Path) -> None:
    first = made(tmp_path / "a" / "project", data__x="1", data__sub__y="2", __pycache____z="3")
    second = made(tmp_path / "b" / "project", data__sub__y="2", data__x="1")
    (first / "main.py").touch()
    assert packed(first) == packed(second)
    assert packed(first)[0] == ["data/sub/y", "data/x", "main.py"]
    (second / "main.py").chmod(0o755)
    assert packed(first)[1] != packed(second)[1]


def test_a_git_work_tree_leaves_out_what_it_ignores(tmp_path: Path, git: Git) -> None:
    folder = made(
        tmp_path / "project", **{".gitignore": "*.log\n.env\n", "x.log": "", ".env": "KEY=1", "y": ""}
    )
    git("init", "-q", str(folder))
    git("add", "main.py", cwd=folder)
    assert packed(folder)[0] == [".gitignore", "main.py", "y"]
    (folder / "sub").mkdir()
    (folder / "sub" / "z").touch()
    assert packed(folder / "sub")[0] == ["z"], "of a folder below, that alone"


def test_what_looks_like_a_secret_goes_only_if_asked(tmp_path: Path) -> None:
    folder = made(tmp_path / "project", **{".env": "KEY=1", ".env.example": "KEY=", "keys__id_rsa": "x"})
    with pytest.raises(TrainForgeError, match=r"\.env, keys/id_rsa") as refused:
        bundling.pack(folder)
    assert (refused.value.code, "--with-secrets" in refused.value.hint) == ("looks_secret", True)
    assert packed(folder, with_secrets=True)[0] == [".env", ".env.example", "keys/id_rsa", "main.py"]
    archive = tmp_path / "a.zip"
    archive.write_bytes(craft(Part(), Part("a/.env")))
    with pytest.raises(TrainForgeError, match=r"a/\.env"):
        bundling.pack(archive)


def test_links_go_as_files_and_only_from_within(tmp_path: Path) -> None:
    folder = made(tmp_path / "project")
    (folder / "other.py").symlink_to("main.py")
    assert packed(folder)[0] == ["main.py", "other.py"]
    (folder / "data").symlink_to("/etc/passwd")
    with pytest.raises(TrainForgeError, match="data leads out of the folder"):
        bundling.pack(folder)


def test_what_the_sender_would_refuse_is_not_sent(tmp_path: Path, cli: Cli) -> None:
    made(tmp_path / "empty").joinpath("main.py").unlink()
    with pytest.raises(TrainForgeError, match="no file"):
        bundling.pack(tmp_path / "empty")
    assert cli("submit", "--name", "x").returncode == 2
