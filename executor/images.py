"""The image of a job's container: found, fetched or built, and looked at once.

A tag is resolved to the very image that it names now, and that one is run and recorded. What an image holds
is asked of its own Python, and kept by the image's id for the next job.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainforge.config.errors import NodeFailed
from trainforge.config.manifest import Manifest
from trainforge.executor import untrusted
from trainforge.executor.commands import Setup
from trainforge.executor.container import Image
from trainforge.executor.containing import kept_image
from trainforge.executor.engine import Engine, EngineFailed
from trainforge.executor.environment import python_fits

HERE = "localhost/"
CACHE = Path("cache", "images")  # in the data directory
LABEL = "trainforge=image"
MANY = 5000
BUILT_KEPT = 20
IGNORES = (".dockerignore", ".containerignore")  # which the engine's own command reads
_LOOK = """\
import importlib.util, json, platform, sys
try:
    from importlib.metadata import distributions
    packages = sorted({d.metadata["Name"] + "==" + d.version for d in distributions() if d.metadata["Name"]})
except Exception:
    packages = []
has = [name for name in ("torch", "accelerate") if importlib.util.find_spec(name)]
print(json.dumps({"python": sys.executable, "version": platform.python_version(), "has": has,
                  "packages": packages}))
"""


@dataclass(frozen=True)
class Inside:
    """What an image holds, in its own words: bounded and checked, since anybody may have made it."""

    python: str
    version: str
    has: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Images:
    """Those of one machine; `cache` keeps what was seen of each."""

    engine: Engine
    cache: Path

    def prepare(self, manifest: Manifest, cwd: Path, usual: str, setup: Setup) -> tuple[Image, Inside]:
        """The image for this job, on this machine now.

        Raises:
            NodeFailed: `container_failed`, with the engine's words.
        """
        around = manifest.environment
        if around.dockerfile:
            name, about = self._built(around.dockerfile, cwd, setup, offline=around.network == "none")
        else:
            name = qualified(around.image or usual)
            about = self.fetch(name, setup)
        inside = self.look(str(about["Id"]))
        image = Image(
            name=name,
            id=str(about["Id"]),
            python=inside.python,
            digest=digest_of(name, about),
            path=_own_path(about),
            version=inside.version,
            engine=self.engine.words,
        )
        setup.say(f"image {name} is {image.digest or image.id}, with Python {inside.version}")
        return image, inside

    def fetch(self, name: str, setup: Setup) -> dict[str, Any]:
        """What the engine knows of the image that the name means now, which is on this machine from here on.

        Raises:
            NodeFailed: `container_failed`; neither the registry nor this machine has it.
        """
        here = self.engine.inspect(name)
        if name.startswith(HERE) or (here is not None and "@" in name):
            if here is None:
                raise _failed(f"there is no image {name} on this machine")
            return here
        try:
            self._run(setup, "pull", name)
        except NodeFailed as failed:
            if here is None:
                raise
            setup.say(
                f"the registry does not give {name}, so this machine's is used\n{failed.message[-500:]}"
            )
        found = self.engine.inspect(name)
        if found is None:
            raise _failed(f"{name} was fetched, and is not there")
        return found

    def _built(
        self, dockerfile: str, cwd: Path, setup: Setup, *, offline: bool
    ) -> tuple[str, dict[str, Any]]:
        """Once for each content of the working folder, which is the context; the engine keeps the layers."""
        path = cwd / dockerfile
        if not path.is_file() or not path.resolve().is_relative_to(cwd.resolve()):
            raise _failed(f"environment.dockerfile: there is no file {dockerfile} in this commit")
        name = f"{HERE}trainforge-built:{hashlib.sha256(_digest(cwd) + dockerfile.encode()).hexdigest()[:24]}"
        if kept_one := self.engine.inspect(name):
            setup.say(f"image {name} is kept from before")
            return name, kept_one
        self.cache.mkdir(parents=True, exist_ok=True)
        context = Path(tempfile.mkdtemp(prefix=".context-", dir=self.cache))
        try:
            _copy(cwd, context)
            flags = ["--network", "none"] if offline else []
            flags += ["--force-rm", "--label", LABEL, "--tag", name, "--file", str(context / dockerfile)]
            self._run(setup, "build", *flags, str(context))
        finally:
            shutil.rmtree(context, ignore_errors=True)
        about = self.engine.inspect(name)
        if about is None:
            raise _failed(f"{dockerfile} was built, and its image is not there")
        self._tidy()
        return name, about

    def _tidy(self) -> None:
        """Of those built here the newest stay; one that is used cannot be removed, and is not."""
        with contextlib.suppress(EngineFailed):
            form = ("--format", "{{.Repository}}:{{.Tag}}")
            names = self.engine.call("images", "--filter", f"label={LABEL}", *form).split()
            for name in names[BUILT_KEPT:]:
                with contextlib.suppress(EngineFailed):
                    self.engine.call("rmi", name)

    def _run(self, setup: Setup, *arguments: str) -> None:
        argv = [*self.engine.argv, *arguments]
        setup.run(argv, cwd=Path("/"), env=dict(self.engine.env), code="container_failed")

    def look(self, image: str) -> Inside:
        """Raises NodeFailed where its Python cannot be asked."""
        note = self.cache / f"{image.removeprefix('sha256:')}.json"
        with contextlib.suppress(OSError, ValueError, TypeError):
            kept = json.loads(note.read_text())
            return Inside(**kept | {"has": tuple(kept["has"]), "packages": tuple(kept["packages"])})
        inside = self._ask(image)
        self.cache.mkdir(parents=True, exist_ok=True)
        aside = note.with_name(f".{note.name}.{secrets.token_hex(4)}")  # others may be looking as well
        aside.write_text(json.dumps(asdict(inside)))
        aside.rename(note)
        return inside

    def _ask(self, image: str) -> Inside:
        flags = ["--rm", "--pull=never", "--network", "none", "--read-only", "--cap-drop", "ALL"]
        flags += ["--security-opt", "no-new-privileges", "--pids-limit", "64", "--log-driver", "none"]
        words = ""
        for name in ("python3", "python"):
            program = ["--entrypoint", name, image, "-I", "-c", _LOOK]
            try:
                return _checked(json.loads(self.engine.call("run", *flags, *program)))
            except (EngineFailed, ValueError, KeyError, TypeError) as error:
                words = words or str(error)
        raise _failed(f"the image has no Python 3 that tells of itself: {words}")


def _checked(told: dict[str, Any]) -> Inside:
    python, version = str(told["python"]), str(told["version"])
    if not re.fullmatch(r"/[\w./+-]{1,500}", python) or not re.fullmatch(r"3\.\d{1,3}[\w.+]{0,30}", version):
        raise ValueError(f"its Python calls itself {python[:100]!r}, {version[:40]!r}")
    has = tuple(name for name in ("torch", "accelerate") if name in told["has"])
    lines = [str(line) for line in told["packages"][:MANY]]
    return Inside(
        python, version, has, tuple(line for line in lines if re.fullmatch(r"[\w.+!=-]{1,200}", line))
    )


INSTALLING = {"PIP_BREAK_SYSTEM_PACKAGES": "1", "PIP_NO_CACHE_DIR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def install(image: Image, requirements: str) -> list[str]:
    """Into the home of the job, which its setup commands and its training share."""
    flags = ["--user", "--no-input", "--no-warn-script-location", "-r", requirements]
    return [image.python, "-m", "pip", "install", *flags]


def check(manifest: Manifest, image: Image, inside: Inside, *, processes: int) -> None:
    """Whether the job can begin in this image at all.

    Raises:
        NodeFailed: `environment_failed`, or `requirements_unpinned`, with what it lacks.
    """
    wanted, launcher = manifest.training.python or "", manifest.training.launcher
    if manifest.environment.strict and not manifest.environment.dockerfile and "@sha256:" not in image.name:
        found = f": {image.digest}" if image.digest else ""
        raise NodeFailed(
            f"environment.strict takes an image by its digest{found}", code="requirements_unpinned"
        )
    if not python_fits(wanted, inside.version):
        raise NodeFailed(
            f"the image has Python {inside.version}, training.python asks for {wanted}",
            code="environment_failed",
        )
    needs = {"accelerate": "accelerate", "torchrun": "torch"}.get(launcher, "")
    alone = processes == 1 and launcher == "accelerate" and not manifest.retry.in_place
    if needs and needs not in inside.has and not alone and manifest.training.requirements is None:
        words = f"the image has no {needs}, which launcher: {launcher} needs"
        raise NodeFailed(f"{words}; install it there, or use launcher: python", code="environment_failed")


def qualified(name: str) -> str:
    """With the registry that Docker means where none is named: Podman would have to be told."""
    first, slash, _ = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"


def digest_of(name: str, about: dict[str, Any]) -> str:
    """The registry's name of these very bytes; empty for what is of none. Podman may know several."""
    bare = re.sub(r"(:[^:/@]*)?(@.*)?$", "", name)
    own = [
        digest for digest in map(qualified, about.get("RepoDigests") or []) if digest.startswith(f"{bare}@")
    ]
    return max(own, key=lambda digest: digest.endswith(str(about.get("Digest"))), default="")


def packages(cache: Path, folder: Path) -> str:
    """Those of a node's image, for the result; empty where it was not looked at."""
    image = kept_image(folder)
    with contextlib.suppress(OSError, ValueError, KeyError):
        told = json.loads((cache / f"{image.id.removeprefix('sha256:')}.json").read_text()) if image else {}
        return "".join(f"{line}\n" for line in told["packages"])
    return ""


def _own_path(about: dict[str, Any]) -> str:
    variables = (about.get("Config") or {}).get("Env") or []
    found = next((value[5:] for value in variables if value.startswith("PATH=")), "")
    return found or "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _failed(text: str) -> NodeFailed:
    return NodeFailed(text, code="container_failed")


def _walk(cwd: Path) -> list[Path]:
    """All of the commit's files below it, and links as what they are."""
    found = []
    for folder, names, files in os.walk(cwd):
        names[:] = sorted(name for name in names if name != ".git")
        links = [name for name in names if (Path(folder) / name).is_symlink()]
        found += [Path(folder) / name for name in sorted([*files, *links]) if name != ".git"]
    return found


def _digest(cwd: Path) -> bytes:
    digest = hashlib.sha256()
    for path in _walk(cwd):
        digest.update(f"{path.relative_to(cwd)}\0{path.lstat().st_mode:o}\0".encode())
        content = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
        digest.update(hashlib.sha256(content).digest())
    return digest.digest()


def _copy(cwd: Path, context: Path) -> None:
    """Without git's folder, and all of one age: what is the same has to look the same to the engine."""
    for path in _walk(cwd):
        if path.name in IGNORES and path.is_symlink():
            continue
        target = context / path.relative_to(cwd)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            target.symlink_to(path.readlink())
        else:
            with untrusted.open_plain(path) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
            target.chmod(path.stat().st_mode & 0o777)
        os.utime(target, (0, 0), follow_symlinks=False)
    for folder, _, _ in os.walk(context, topdown=False):
        os.utime(folder, (0, 0))
