"""The training's data: fetched once, checked against their digest, kept for the next job that wants them."""

from __future__ import annotations

import hashlib
import os
import secrets
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2

from trainforge.config.errors import NodeFailed
from trainforge.config.manifest import Manifest
from trainforge.executor.commands import Setup

BLOCK = 1024 * 1024


def prepare(manifest: Manifest, cache: Path, setup: Setup, *, files: Sequence[Path] | None = None) -> Path:
    """The folder with the data: empty when the manifest names none.

    `files` are the folders that `file:` URLs may name, where a job may not read all that the executor may.

    Raises:
        NodeFailed: `data_failed`, saying what was expected and what came.
    """
    if manifest.data is None:
        empty = cache / "none"
        empty.mkdir(parents=True, exist_ok=True)
        return empty
    url, digest = manifest.data.url, manifest.data.sha256 or ""
    if files is not None and url.startswith("file:") and not _within(url, files):
        hint = "name its folder under shared_folders of this executor"
        raise NodeFailed(
            f"{url} is a file of the machine that jobs may not read", hint=hint, code="data_failed"
        )
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name or "data"
    folder = cache / hashlib.sha256(f"{url}\0{digest}".encode()).hexdigest()[:40]
    target = folder / name
    if digest and target.is_file():
        setup.say(f"data {name} are kept from before")
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{secrets.token_hex(4)}"
    try:
        found = _fetch(url, aside, setup)
        if digest and found != digest.lower():
            raise NodeFailed(f"{url} has sha256 {found}, data.sha256 says {digest}", code="data_failed")
        aside.replace(target)
    except (OSError, httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise NodeFailed(f"{url} cannot be fetched: {error}", code="data_failed") from error
    finally:
        aside.unlink(missing_ok=True)
    setup.say(f"data {name}: {target.stat().st_size} bytes, sha256 {found}")
    return folder


def _within(url: str, folders: Sequence[Path]) -> bool:
    path = Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path)).resolve()
    return any(path.is_relative_to(folder.resolve()) for folder in folders)


def _fetch(url: str, target: Path, setup: Setup) -> str:
    digest = hashlib.sha256()
    with target.open("wb") as file:
        for block in _blocks(url):
            setup.check()
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _blocks(url: str) -> Iterator[bytes]:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        with Path(urllib.request.url2pathname(parts.path)).open("rb") as file:
            while block := file.read(BLOCK):
                yield block
    elif parts.scheme in ("http", "https"):
        with httpx2.stream("GET", url, follow_redirects=True, timeout=60) as answer:
            answer.raise_for_status()
            yield from answer.iter_bytes(BLOCK)
    else:
        raise NodeFailed(f"data over {parts.scheme} are not in effect yet", code="data_failed")
