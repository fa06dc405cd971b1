"""A folder as a ZIP to upload: what git would take of it, the same each time, and no secret by chance."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trainforge import usergit
from trainforge.config.errors import NotFound, TrainForgeError
from trainforge.hooks.bundle import Bundle

NEVER = frozenset({".git", "__pycache__", ".venv", "node_modules", ".ipynb_checkpoints", ".DS_Store"})
SECRETS = (
    ".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "*.kdbx", "id_rsa", "id_dsa", "id_ecdsa",
    "id_ed25519", ".netrc", ".pypirc", ".npmrc", ".git-credentials", ".pgpass", ".htpasswd", "credentials",
    "credentials.json", "kubeconfig", "service-account*.json", "token.json",
)  # fmt: skip
EXAMPLES = (".env.example", ".env.sample", ".env.template")
SHOWN = 5


@dataclass
class Packed:
    """An archive to upload, which closing drops; sizes are bytes."""

    file: BinaryIO
    name: str
    files: int
    size: int

    def __str__(self) -> str:
        count = f"{self.files} {'file' if self.files == 1 else 'files'}"
        size = f"{self.size / 2**10:,.1f} KiB" if self.size < 2**20 else f"{self.size / 2**20:,.1f} MiB"
        return f"{self.name}: {count}, {size} packed"


def pack(path: Path, *, with_secrets: bool = False) -> Packed:
    """A folder's files as a ZIP, or the ZIP itself.

    In a git work tree what is ignored there is left out.

    Raises:
        TrainForgeError: nothing to pack; a link that leads elsewhere; what looks like a secret.
    """
    with contextlib.ExitStack() as held:
        if path.is_file():
            file = held.enter_context(path.open("rb"))
            packed = _checked(file, path.name, with_secrets=with_secrets)
        elif path.is_dir():
            folder = path.resolve()
            names = sorted(_listed(folder))
            if not with_secrets:
                _refuse_secrets(names)
            made = held.enter_context(tempfile.TemporaryFile())
            with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in names:
                    _add(archive, folder, name)
            packed = _checked(made, f"{folder.name or 'project'}.zip", with_secrets=True)
        else:
            raise NotFound(f"there is no {path}", hint="name a ZIP or a folder")
        held.pop_all()  # the file is the caller's to close
        return packed


def _refuse_secrets(names: Iterable[str]) -> None:
    if found := [name for name in names if looks_secret(name)]:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise TrainForgeError(
            f"these look like secrets: {', '.join(found[:SHOWN])}{more}",
            hint="leave them out and use `trainforge secret set`, or pass --with-secrets",
            code="looks_secret",
        )


def looks_secret(name: str) -> bool:
    last = name.rsplit("/", 1)[-1].lower()
    return last not in EXAMPLES and any(fnmatch.fnmatchcase(last, pattern) for pattern in SECRETS)


def _listed(folder: Path) -> Iterator[str]:
    """The paths of all files below, as the archive has them."""
    if usergit.toplevel(folder) is not None:
        args = ["ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", "."]
        for name in dict.fromkeys(usergit.user_git(args, folder).split("\0")):
            if name and (folder / name).is_file():  # not what is deleted, and no submodule
                yield name
        return
    for above, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in NEVER]
        for name in files:
            if name not in NEVER:
                yield Path(above, name).relative_to(folder).as_posix()


def _add(archive: zipfile.ZipFile, folder: Path, name: str) -> None:
    path = folder / name
    if not path.resolve().is_relative_to(folder) or not path.is_file():
        raise TrainForgeError(
            f"{name} leads out of the folder, or is no file",
            hint="copy what it leads to, or name it in .gitignore",
            code="bundle_special",
        )
    about = zipfile.ZipInfo(name)  # of the same date each time
    about.compress_type = zipfile.ZIP_DEFLATED
    about.create_system = 3
    about.external_attr = (0o100755 if os.access(path, os.X_OK) else 0o100644) << 16
    about.file_size = path.stat().st_size
    with path.open("rb") as source, archive.open(about, "w") as target:
        while data := source.read(1 << 18):
            target.write(data)


def _checked(file: BinaryIO, name: str, *, with_secrets: bool) -> Packed:
    """What the sender would refuse is refused here, before it is sent. Raises BundleRefused."""
    paths = [member.path for member in Bundle(file).files]
    if not with_secrets:
        _refuse_secrets(paths)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return Packed(file, name, len(paths), size)
