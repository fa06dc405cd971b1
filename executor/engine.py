"""Docker or Podman, spoken to through their command line, which both have in common.

Not through a client library: Podman needs no service then, the supervisor needs nothing but the standard
library, rootless and remote settings are whatever the machine's owner has set, and what was asked for is a
list of arguments that can be read. The engine's socket is nobody's but this program's.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["docker", "podman"]
CALL_S = 60.0
ANSWER_LIMIT = 4 * 2**20
LABEL = "trainforge.node"
SHELL = "/bin/sh"
TRY_IMAGE = "localhost/trainforge-try"
# What the engines' own commands need of our variables, and jobs never see.
KEPT = re.compile(
    r"PATH|HOME|USER|LOGNAME|TMPDIR|LANG|XDG_\w+|DOCKER_\w+|CONTAINERS?_\w+|REGISTRY_AUTH_FILE|BUILD\w+"
    r"|DBUS_SESSION_BUS_ADDRESS|(?i:https?_proxy|no_proxy|all_proxy)|SSL_CERT_\w+"
)
CDI = (Path("/etc/cdi"), Path("/var/run/cdi"))
NO_GPUS = "install nvidia-container-toolkit; for Podman, `nvidia-ctk cdi generate` too"


class EngineFailed(Exception):  # noqa: N818
    """A command of the engine failed; its last words."""


@dataclass(frozen=True)
class Engine:
    """One that answered. `network` is whether containers can have a network of their own."""

    kind: Kind
    program: str
    version: str = ""
    rootless: bool = False
    gpus: bool = False
    network: bool = True
    bounded: tuple[str, ...] = ("cpu", "memory", "pids")
    env: tuple[tuple[str, str], ...] = ()

    @property
    def argv(self) -> list[str]:
        return [self.program, "--log-level", "error"]

    @property
    def words(self) -> str:
        return f"{self.kind} {self.version}".strip()

    def call(self, *arguments: str, timeout: float = CALL_S, given: bytes = b"") -> str:
        """What a command says.

        Raises:
            EngineFailed: it exited with another status than 0, or took too long.
        """
        return _call([*self.argv, *arguments], dict(self.env), timeout, given)

    def inspect(self, image: str) -> dict[str, Any] | None:
        """What the engine knows of an image that is on this machine; None if it is not."""
        try:
            found: list[dict[str, Any]] = json.loads(self.call("image", "inspect", image))
        except (EngineFailed, ValueError):
            return None
        return found[0] if found else None

    def remove(self, label: str) -> None:
        """Every container with that label, running or not."""
        with contextlib.suppress(EngineFailed):
            if found := self.call("ps", "-aq", "--no-trunc", "--filter", f"label={label}").split():
                with contextlib.suppress(EngineFailed):  # those that have ended
                    self.call("kill", "--signal", "KILL", *found)
                self.call("rm", "-f", *found)

    def gpu_flags(self, gpus: Sequence[str]) -> list[str]:
        """Docker's own request, and for Podman the names of the Container Device Interface."""
        if not gpus:
            return []
        if self.kind == "docker":
            return ["--gpus", f'"device={",".join(gpus)}"']
        return [part for gpu in gpus for part in ("--device", f"nvidia.com/gpu={gpu}")]


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in inherited.items() if KEPT.fullmatch(name)}


def find(kind: Kind, inherited: Mapping[str, str]) -> Engine:
    """The engine as it tells of itself; whether it can run anything, `abilities` tries.

    Raises:
        EngineFailed: it is not there, or does not answer.
    """
    program = shutil.which(kind, path=inherited.get("PATH"))
    if program is None:
        raise EngineFailed(f"{kind} is not installed")
    env = environment(inherited)
    try:
        about = json.loads(_call([program, "info", "--format", "{{json .}}"], env, 20, b""))
        read = _docker if kind == "docker" else _podman
        return Engine(kind, program, env=tuple(sorted(env.items())), **read(about))
    except (ValueError, KeyError, TypeError) as error:
        raise EngineFailed(f"{kind} info has another form: {error}") from error


def _docker(about: dict[str, Any]) -> dict[str, Any]:
    if not about.get("ServerVersion"):
        raise EngineFailed(str((about.get("ServerErrors") or ["its service does not answer"])[0])[:300])
    if "Podman" in str(about.get("OperatingSystem")) or about.get("OSType", "linux") != "linux":
        raise EngineFailed("the command docker does not lead to Docker on Linux")
    names = {"memory": "MemoryLimit", "cpu": "CpuCfsQuota", "pids": "PidsLimit"}
    return {
        "version": str(about["ServerVersion"]),
        "rootless": any("rootless" in option for option in about.get("SecurityOptions") or []),
        "gpus": "nvidia" in (about.get("Runtimes") or {}) or _program("nvidia-container-runtime-hook"),
        "bounded": tuple(sorted(name for name, key in names.items() if about.get(key))),
    }


def _podman(about: dict[str, Any]) -> dict[str, Any]:
    host = about["host"]
    if host.get("serviceIsRemote"):
        raise EngineFailed("podman leads to another machine")
    controllers = set(host.get("cgroupControllers") or [])
    rootless = bool(host["security"]["rootless"])
    if rootless and host.get("cgroupVersion") == "v1":
        controllers = set()
    return {
        "version": str(about["version"]["Version"]),
        "rootless": rootless,
        "gpus": any("nvidia.com/gpu" in path.read_text("utf-8", "replace") for path in _cdi()),
        "bounded": tuple(sorted(controllers & {"memory", "cpu", "pids"})),
    }


def _program(name: str) -> bool:
    return shutil.which(name) is not None


def _cdi() -> list[Path]:
    found = [path for folder in CDI if folder.is_dir() for path in folder.iterdir()]
    return [path for path in found if path.suffix in (".json", ".yaml", ".yml") and path.is_file()]


def _call(argv: list[str], env: dict[str, str], timeout: float, given: bytes) -> str:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        try:
            done = subprocess.run(
                argv, cwd="/", env=env, input=given, stdout=out, stderr=errors, timeout=timeout, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EngineFailed(str(error)[:300]) from error
        out.seek(0)
        errors.seek(0)
        if done.returncode == 0:
            return out.read(ANSWER_LIMIT).decode("utf-8", "replace")
        words = (errors.read(ANSWER_LIMIT) or out.read(ANSWER_LIMIT)).decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(words) if line.strip()), "")
    raise EngineFailed((last or f"it exited with {done.returncode}")[:500])


# --- an image to try it with --------------------------------------------------------------------------


def try_image(engine: Engine) -> str:
    """An image that holds this machine's own shell and nothing else, made without any registry.

    Raises:
        EngineFailed: the engine does not take it.
    """
    files = _shell()
    digest = hashlib.sha256(b"\0".join(content for _, content in sorted(files.items()))).hexdigest()[:16]
    name = f"{TRY_IMAGE}:{digest}"
    if engine.inspect(name) is None:
        engine.call("import", "-", name, given=_packed(files))
    return name


def _shell() -> dict[str, bytes]:
    """The shell, and the libraries that the loader names for it."""
    try:
        listed = subprocess.run(["ldd", SHELL], capture_output=True, text=True, timeout=10, check=False)
        names = [SHELL, *re.findall(r"(/\S+) \(0x", listed.stdout)]
        return {name: Path(name).read_bytes() for name in names}
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineFailed(f"there is no shell to try it with: {error}") from error


def _packed(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(os.path.normpath(name).lstrip("/"))
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
