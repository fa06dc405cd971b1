"""Whether all that a job wants installed is held to a digest, as `environment.strict` demands."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from trainforge.config.errors import NodeFailed
from trainforge.executor.recipe import EDITABLE, Recipe, files, lines_of, read, remote

SHOWN = 10
_PINNED = re.compile(r"^[A-Za-z0-9][\w.-]*(\[[^\]]*\])?\s*(===?\s*[^\s;,*]+(?=[\s;]|$)|@\s*\S+)")
_HASH = re.compile(r"--hash[= ](sha256|sha384|sha512):[0-9a-fA-F]{64,}")


def check_strict(recipe: Recipe) -> None:
    """Whether everything is held to a digest: uv.lock and pylock.toml do that by themselves.

    Raises:
        NodeFailed: `requirements_unpinned`, with file and line of each requirement that is not.
    """
    wanted = recipe.wanted
    if wanted.file is None or wanted.kind == "project" or wanted.file.name.startswith("pylock"):
        return
    if wanted.kind == "conda":
        loose = _loose_conda(wanted.file)
    else:
        tables = [path for path in wanted.files if path.suffix == ".toml"]
        loose = [(path, 1, "names no digests: lock it with `uv lock`, and name uv.lock") for path in tables]
        all_files = files(wanted.file, recipe.root, constraints=False) if not tables else ()
        loose += [found for path, content in all_files for found in _loose(path, content)]
    if loose:
        shown = [f"{_shown(path, recipe)}:{line}: {why}" for path, line, why in loose[:SHOWN]]
        more = [f"and {len(loose) - SHOWN} more"] if len(loose) > SHOWN else []
        words = (
            "environment.strict takes only what has a version and a digest; "
            "`uv pip compile --generate-hashes` writes both"
        )
        raise NodeFailed("\n".join([words, *shown, *more]), code="requirements_unpinned")


def _shown(path: Path, recipe: Recipe) -> str:
    return os.path.relpath(path, recipe.cwd) if path.is_absolute() else str(path)


def _loose(path: Path, content: bytes) -> Iterator[tuple[Path, int, str]]:
    if not content and remote(path):
        yield path, 1, "is fetched from elsewhere, and may be another each time"
    for number, line in _logical(lines_of(content)):
        if not line or (line.startswith("-") and not EDITABLE.match(line)):
            continue
        name = line.split(" --hash")[0].strip()[:100]
        if not _PINNED.match(line):
            yield path, number, f"{name} has no exact version"
        elif not _HASH.search(line):
            yield path, number, f"{name} has no --hash=sha256:…"


def _logical(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Lines with those that they go on in, without comments, and the number of the first."""
    whole, first = "", 0
    for number, line in enumerate(lines, 1):
        first = first if whole else number
        text = re.sub(r"(^|\s)#.*$", "", line)
        if line.rstrip().endswith("\\"):
            whole += text.rstrip().removesuffix("\\") + " "
            continue
        yield first, (whole + text).strip()
        whole = ""
    if whole:
        yield first, whole.strip()


def _loose_conda(path: Path) -> list[tuple[Path, int, str]]:
    """conda holds only explicit lists to digests: a line `@EXPLICIT`, then URLs with #md5 or #sha256."""
    lines = lines_of(read(path))
    if not any(line.strip() == "@EXPLICIT" for line in lines):
        return [(path, 1, "is no explicit list: `conda list --explicit --md5` writes one")]
    urls = [(number, line.strip()) for number, line in enumerate(lines, 1) if "://" in line.split("#")[0]]
    return [(path, number, f"{url[:100]} has no digest") for number, url in urls if "#" not in url]
