"""A project on this machine: its folder, its manifest, the repository it lies in and where it is pushed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainforge import usergit
from trainforge.config.document import plain, read_document
from trainforge.config.errors import ManifestError, NotFound, Place, TrainForgeError
from trainforge.config.manifest import Manifest, apply_overrides, parse_manifest
from trainforge.config.messages import GitCredential

MANIFEST = "trainforge.yaml"
REMOTE = "trainforge"
CREDENTIAL_USER = "trainforge"


@dataclass(frozen=True)
class Project:
    """`file` is the manifest's path as the user named it, `manifest` with overrides applied."""

    file: Path
    text: str
    manifest: Manifest

    @property
    def folder(self) -> Path:
        return self.file.resolve().parent

    @property
    def repository(self) -> Path:
        """The work tree around it.

        Raises:
            NotFound: none.
        """
        top = usergit.toplevel(self.folder)
        if top is None:
            raise NotFound(
                f"{self.folder} is not in a git repository",
                hint="`git init` makes one; `trainforge init` does it for new projects",
            )
        return top.resolve()

    @property
    def manifest_path(self) -> str:
        """Where the manifest lies in its repository."""
        return self.file.resolve().relative_to(self.repository).as_posix()


def manifest_file(path: Path) -> Path:
    """The manifest meant by a path: the file itself, or the one in that folder.

    Raises:
        NotFound: there is none.
    """
    file = path / MANIFEST if path.is_dir() else path
    if not file.is_file():
        raise NotFound(f"there is no {file}", hint="`trainforge init` makes a project")
    return file


def load(path: Path, overrides: dict[str, Any] | None = None) -> Project:
    """Read and check a project.

    Raises:
        NotFound: no manifest there. ManifestError: with every problem of it.
    """
    file = manifest_file(path)
    raw = file.read_bytes()
    manifest = apply_overrides(parse_manifest(raw, str(file)), overrides or {})
    return Project(file, raw.decode(), manifest)


def missing_script(project: Project) -> TrainForgeError | None:
    """The problem that `training.script` is no file here, at its line; a job starts it from a checkout."""
    training = project.manifest.training
    if training.script is None:
        return None
    root = usergit.toplevel(project.folder) or project.folder
    name = (Path(training.working_dir) / training.script).as_posix()
    if (root / name).is_file():
        return None
    place = read_document(project.text, str(project.file)).place(("training", "script"))
    message = f"training.script: there is no file {name} in {root}"
    return TrainForgeError(message, hint="a job starts it from the repository's root", place=place)


def overrides(workers: int | None, settings: Sequence[str]) -> dict[str, Any]:
    """The manifest's keys as `--set KEY=VALUE` and `--workers` want them, by dotted name.

    Raises:
        ManifestError: a setting has no key, or its value is not YAML.
    """
    chosen: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key:
            fault = TrainForgeError(f"{setting!r} is not KEY=VALUE", place=Place("--set"))
            raise ManifestError([fault])
        # Indented, a value of several lines stays below its key.
        document = read_document("value: " + value.replace("\n", "\n  "), f"--set {key}")
        if not document.usable or document.problems or document.value.keys() != {"value"}:
            fault = TrainForgeError(f"{value!r} is not a YAML value", place=Place(f"--set {key}"))
            raise ManifestError(document.problems or [fault])
        chosen[key] = plain(document.value["value"])
    return chosen if workers is None else chosen | {"resources.nodes": workers}


# --- where a project is pushed ------------------------------------------------------------------------


def builtin_url(sender_url: str, name: str) -> str:
    return f"{sender_url.rstrip('/')}/git/{name}.git"


def builtin_name(sender_url: str, url: str) -> str:
    """The name of a repository on the sender's built-in git server, or nothing for other addresses."""
    prefix = f"{sender_url.rstrip('/')}/git/"
    return url.removeprefix(prefix).removesuffix("/").removesuffix(".git") if url.startswith(prefix) else ""


def credential_for(url: str, sender_url: str, token: str, cwd: Path) -> GitCredential | None:
    """The sender's token for the sender's own git server, else what the user's git knows."""
    if sender_url and same_server(url, sender_url):
        return GitCredential(username=CREDENTIAL_USER, password=token)
    return usergit.stored_credential(url, cwd)


def same_server(url: str, sender_url: str) -> bool:
    one, other = urlsplit(url), urlsplit(sender_url)
    return (one.scheme, one.hostname, one.port) == (other.scheme, other.hostname, other.port)


def push_url(project: Project, remote: str, sender_url: str) -> str:
    """Where a submit goes: the named remote, else the remote `trainforge`, else the built-in server.

    Raises:
        TrainForgeError: the named remote does not exist.
    """
    url = usergit.remote_url(project.repository, remote or REMOTE)
    if url:
        return url
    if remote:
        raise TrainForgeError(
            f"the repository has no remote {remote!r}", hint="`git remote -v` lists them", code="no_remote"
        )
    return builtin_url(sender_url, project.manifest.project.name)
