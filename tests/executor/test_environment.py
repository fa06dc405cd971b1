"""Environments: the executor's own, or one built by the real uv from a package that the test makes."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import uv

from support.executors import settings
from trainforge.config.errors import NodeFailed
from trainforge.config.manifest import parse_manifest
from trainforge.executor import environment, installing, isolating
from trainforge.executor.commands import Interrupted, Setup


def wheel(
    folder: Path, version: str = "1.0", *, module: tuple[str, str] = ("", ""), script: bool = False
) -> Path:
    """A wheel with one module that says its version, and another one or a script where asked for."""
    path = folder / f"tiny_forge-{version}-py3-none-any.whl"
    about = f"tiny_forge-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_forge.py", f"version = {version!r}\ndef main():\n    print(version)\n")
        if module[0]:
            archive.writestr(*module)
        if script:
            archive.writestr(f"{about}/entry_points.txt", "[console_scripts]\ntiny-forge = tiny_forge:main\n")
        archive.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: tiny-forge\nVersion: {version}\n"
        )
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    return path


class Place:
    """A job's folder with requirements, and the cache that its environments go to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root / "work"
        self.cache = root / "cache"
        self.work.mkdir()
        self.stopping = False
        self.driver, self.gpus = environment.Driver(), list[str]()
        self.env = {**os.environ, "UV_OFFLINE": "1", "UV_CACHE_DIR": str(root / "uv")}

    def prepare(
        self, training: str = "", mode: str = "isolated", *, strict: bool = False
    ) -> environment.Environment:
        around = f"environment: {{mode: {mode}, strict: {str(strict).lower()}}}\n"
        manifest = parse_manifest(f"project: {{name: t}}\ntraining: {{script: t.py{training}}}\n{around}")
        place = environment.Place(self.work, self.cache, driver=self.driver, gpus=self.gpus)
        return environment.prepare(manifest, place, self.setup(), self.env)

    def setup(self) -> Setup:
        return Setup(self.root / "setup.log", time.monotonic() + 100, lambda: self.stopping)

    def require(self, text: str) -> str:
        (self.work / "requirements.txt").write_text(text)
        return ", requirements: requirements.txt"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def says(python: str, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_built_once_and_kept_by_its_key(place: Place) -> None:
    wheel(place.work)
    training = place.require("./tiny_forge-1.0-py3-none-any.whl\n")
    first = place.prepare(training)
    assert says(first.python, "import tiny_forge; print(tiny_forge.version)") == "1.0"
    assert says(first.python, "import sys; print(sys.prefix)") == str(place.cache / first.key)
    stamp = Path(first.python).parent.parent.stat().st_ctime_ns
    assert place.prepare(training) == first
    assert "kept from before" in (place.root / "setup.log").read_text()
    assert list(Path(first.python).parent.parent.rglob("tiny_forge*.pyc"))
    assert "tiny-forge" in environment.freeze(first, place.env)
    assert stamp
    (place.work / "tiny_forge-1.0-py3-none-any.whl").unlink()
    wheel(place.work, "2.0")
    second = place.prepare(place.require("./tiny_forge-2.0-py3-none-any.whl\n"))
    assert second.key != first.key


def test_a_failed_build_leaves_nothing(place: Place) -> None:
    training = place.require("no-such-package-anywhere==1\n")
    with pytest.raises(NodeFailed) as failed:
        place.prepare(training)
    assert failed.value.code == "environment_failed"
    assert "no-such-package-anywhere" in failed.value.message
    assert [path.name for path in place.cache.iterdir() if not path.name.endswith(".lock")] == []


def test_a_half_made_environment_is_never_used(place: Place) -> None:
    wheel(place.work)
    training = place.require("./tiny_forge-1.0-py3-none-any.whl\n")
    key = place.prepare(training).key
    (place.cache / key / "trainforge-ready.json").unlink()
    (place.cache / key / "bin" / "python").unlink()
    (place.cache / key / "bin" / "python").symlink_to("/bin/false")
    found = place.prepare(training)
    assert found.key == key
    assert says(found.python, "import tiny_forge; print(tiny_forge.version)") == "1.0"
    (place.cache / key / "bin" / "python").unlink()  # somebody cleans up the wrong thing
    assert says(place.prepare(training).python, "import tiny_forge; print(1)") == "1"


def test_two_who_want_the_same_build_it_once(place: Place) -> None:
    wheel(place.work)
    training = place.require("./tiny_forge-1.0-py3-none-any.whl\n")
    found: list[environment.Environment] = []
    threads = [threading.Thread(target=lambda: found.append(place.prepare(training))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 3
    assert (place.root / "setup.log").read_text().count("building environment") == 1


def test_stopping_ends_the_installer(place: Place) -> None:
    place.stopping = True
    with pytest.raises(Interrupted):
        place.prepare(place.require("x\n"))


def test_auto_takes_what_is_there(place: Place) -> None:
    assert place.prepare(place.require("pytest>=1\nclick\n"), "auto").python == sys.executable
    assert place.prepare("", "auto").mode == "inherit"
    wheel(place.work)
    built = place.prepare(place.require("./tiny_forge-1.0-py3-none-any.whl\n"), "auto")
    assert built.mode == "isolated"


def test_what_is_there_is_found_from_within_a_jobs_walls(place: Place) -> None:
    folder = place.root / "m" / "nodes" / "n"
    folder.mkdir(parents=True)
    training = place.require("pytest>=1\nclick\n")
    manifest = parse_manifest(f"project: {{name: t}}\ntraining: {{script: t.py{training}}}\n")
    walls = isolating.Walls(folder, settings(place.root / "m"))
    walls.build(manifest, None, [])
    setup = Setup(place.root / "setup.log", time.monotonic() + 100, lambda: False)
    place.work.rename(folder / "work")
    where = environment.Place(folder / "work", place.cache, walls)
    chosen = environment.prepare(manifest, where, setup, place.env)
    walls.remove()
    assert chosen.mode == "inherit"


def test_requirements_stay_inside_the_commit(place: Place) -> None:
    (place.root / "outside.txt").write_text("")
    (place.work / "requirements.txt").symlink_to(place.root / "outside.txt")
    with pytest.raises(NodeFailed, match="no file"):
        place.prepare(", requirements: requirements.txt")


@pytest.mark.parametrize(
    ("wanted", "version", "fits"),
    [
        ("", "3.11.7", True), ("3.11", "3.11.7", True), ("3.1", "3.11.7", False), (">=3.11", "3.11.7", True),
        (">=3.10,<3.12", "3.11.7", True), (">=3.12", "3.11.7", False), ("==3.11.*", "3.11.7", True),
        ("!=3.11", "3.11.7", False), ("~=3.10", "3.11.7", True), ("~=3.10.0", "3.11.7", False),
        (">3.11", "3.11.7", False), ("<=3.11", "3.11.7", True), ("nonsense", "3.11.7", False),
    ],
)  # fmt: skip
def test_python_versions(wanted: str, version: str, fits: bool) -> None:
    assert environment.python_fits(wanted, version) is fits


# --- what else it is made from --------------------------------------------------------------------------

PROJECT = """
[project]
name = "mine"
version = "0.1"
requires-python = ">=3.11"
[project.optional-dependencies]
train = ["tiny-forge"]
[tool.uv]
find-links = ["."]
no-index = true
"""


def locked(place: Place) -> None:
    """A project with uv.lock, whose extra is a wheel of the commit."""
    wheel(place.work)
    (place.work / "pyproject.toml").write_text(PROJECT)
    subprocess.run(
        [uv.find_uv_bin(), "lock", "--quiet", "--offline"], cwd=place.work, env=place.env, check=True
    )


def test_a_lock_is_installed_as_it_is(place: Place) -> None:
    locked(place)
    built = place.prepare(", lockfile: uv.lock, extras: [train]", strict=True)
    assert says(built.python, "import tiny_forge; print(tiny_forge.version)") == "1.0"
    assert (built.installer, built.wanted, built.strict) == ("uv", "uv.lock", True)
    assert built.version == platform.python_version()
    assert place.prepare(", lockfile: uv.lock, extras: [train]", strict=True) == built
    assert not (place.work / ".venv").exists()
    bare = place.prepare(", lockfile: uv.lock")
    assert bare.key != built.key
    assert "tiny-forge" not in environment.freeze(bare, place.env)


def test_a_digest_that_is_not_the_files_is_refused(place: Place) -> None:
    path = wheel(place.work)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    line = f"tiny-forge @ file://{path} --hash=sha256:"
    assert place.prepare(place.require(line + digest + "\n"), strict=True).mode == "isolated"
    with pytest.raises(NodeFailed, match="Hash mismatch") as failed:
        place.prepare(place.require(line + "0" * 64 + "\n"), strict=True)
    assert failed.value.code == "environment_failed"


def test_pip_installs_what_uv_does_not_know(place: Place) -> None:
    path = wheel(place.work)
    training = place.require(f"--no-index\ntiny-forge @ file://{path} --config-settings=a=b\n")
    built = place.prepare(training)
    assert built.installer == "pip"
    assert says(built.python, "import tiny_forge; print(tiny_forge.version)") == "1.0"
    assert "once more with pip" in (place.root / "setup.log").read_text()


def test_without_uv_pip_does_it_all(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "find_uv", str)
    path = wheel(place.work, script=True)
    assert place.prepare(place.require("pytest>=1\n"), "auto").mode == "inherit"
    built = place.prepare(place.require(f"tiny-forge @ file://{path}\n"))
    command = Path(built.python).with_name("tiny-forge")
    assert subprocess.run([command], capture_output=True, text=True, check=True).stdout == "1.0\n"
    assert "tiny-forge" in environment.freeze(built, place.env)
    locked(place)
    with pytest.raises(NodeFailed, match=r"uv\.lock needs uv"):
        place.prepare(", lockfile: uv.lock")


def test_conda_is_said_to_be_missing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    (place.work / "environment.yml").write_text("dependencies: [python=3.11]\n")
    with pytest.raises(NodeFailed, match="micromamba") as failed:
        place.prepare(", requirements: environment.yml")
    assert failed.value.code == "environment_failed"
    assert "conda" not in installing.installers()


def test_a_python_that_is_nowhere_is_said(place: Place) -> None:
    with pytest.raises(NodeFailed, match=r"3\.99") as failed:
        place.prepare(', python: "3.99"')
    assert failed.value.code == "environment_failed"


@pytest.mark.parametrize("launcher", ["accelerate", "python"])
def test_a_torch_that_cannot_use_the_gpus_is_named_before_training(place: Place, launcher: str) -> None:
    place.driver, place.gpus = environment.Driver("550.54.15", "12.4"), ["GPU-a"]
    folder = "torch/version.py"
    wheel(place.work, module=(folder, "__version__ = '2.13.0+cu130'\ncuda = '13.0'\nhip = None\n"))
    training = place.require("./tiny_forge-1.0-py3-none-any.whl\n") + f", launcher: {launcher}"
    if launcher == "python":
        assert place.prepare(training).torch == "2.13.0+cu130, CUDA 13.0"
        assert "warning: torch 2.13.0+cu130" in (place.root / "setup.log").read_text()
        return
    with pytest.raises(NodeFailed, match=r"torch_backend: cu128") as failed:
        place.prepare(training)
    assert failed.value.code == "torch_misfit"
