"""Which names an archive's entries may have, so that every system reads each as one path inside. Pure.

Refused is what leads out of the folder, what git or a file system treats as something of its own, and what
two systems would understand differently. Sources: git's `verify_path` and fsck (`.git` in its disguises on
HFS+ and NTFS), Microsoft's "Naming Files, Paths, and Namespaces" (devices, streams, trailing dots).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

from trainforge.config.errors import TrainForgeError

MAX_PATH = 1000  # bytes
MAX_COMPONENT = 255  # bytes, what most file systems take
MAX_DEPTH = 32
_DRIVE = re.compile(r"[A-Za-z]:")
_DEVICE = re.compile(
    r"(?:con|prn|aux|nul|clock\$|conin\$|conout\$|com[0-9\u00b9\u00b2\u00b3]|lpt[0-9\u00b9\u00b2\u00b3])"
    r"(?:\..*)?\Z"
)
_SHORT_GIT = re.compile(r"git~[0-9]+\Z")
_SHORT_MODULES = re.compile(r"(?:gitmod~[0-9]+|gi[0-9a-f]{4}~[0-9])\Z")


class BundleRefused(TrainForgeError):  # noqa: N818 - reads as the verdict it is
    """An archive that is not taken; `code` says why, and is one of `problem_codes`' that begin so."""

    code = "bundle_malformed"
    status = 422

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint=hint, code=code)
        if code == "bundle_too_large":
            self.status = 413


def show(name: str | bytes) -> str:
    """An entry's name in words for people: nothing in it acts on a terminal or a page."""
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    return ascii(text if len(text) <= 120 else text[:60] + "…" + text[-50:])


def read_name(raw: bytes) -> str:
    """The path that an entry's name means, without the slash at a folder's end.

    Many programs write UTF-8 without saying so; other encodings cannot be told apart and are refused.

    Raises:
        BundleRefused: it is not one path inside the folder for everybody.
    """
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise _path(raw, "has a name that is not UTF-8", "zip it with a program that writes UTF-8") from None
    if len(raw) > MAX_PATH:
        raise _path(name, f"has a name of more than {MAX_PATH} bytes", "shorten its folders' names")
    if not all(char.isprintable() or unicodedata.category(char) == "Zs" for char in name):
        raise _path(name, "has characters in its name that cannot be seen", "rename it")
    if "\\" in name:
        hint = "zip it with a program that writes /, such as `zip` or PowerShell 7"
        raise _path(name, "has a backslash in its name", hint)
    if name.startswith("/") or _DRIVE.match(name):
        raise _path(name, "has an absolute path", "zip the folder, with paths from there")
    parts = name.removesuffix("/").split("/")
    if len(parts) > MAX_DEPTH:
        raise _path(name, f"lies more than {MAX_DEPTH} folders deep", "zip the project's own folder")
    for part in parts:
        _check_part(name, part)
    return "/".join(parts)


def _check_part(name: str, part: str) -> None:
    if part in {"", ".", ".."}:
        raise _path(name, f"has {part!r} in its path", "zip the folder, with paths from there")
    if ":" in part:
        raise _path(name, "has a colon in its name, which names a stream or a drive", "rename it")
    if len(part.encode()) > MAX_COMPONENT:
        raise _path(name, f"has a part of more than {MAX_COMPONENT} bytes in its name", "shorten it")
    said = unicodedata.normalize("NFKC", part).casefold()
    plain = said.rstrip(". ")
    if plain == ".git" or _SHORT_GIT.match(plain):
        raise BundleRefused(
            "bundle_git",
            f"{show(name)} belongs to a git repository",
            "leave .git out: `git archive -o project.zip HEAD` makes such a ZIP",
        )
    if plain == ".gitmodules" or _SHORT_MODULES.match(plain):
        raise BundleRefused(
            "bundle_git",
            f"{show(name)} names submodules, which are not followed",
            "leave .gitmodules out, and zip the submodules' files with the others",
        )
    if part.rstrip(". ") != part:
        raise _path(name, "has a dot or a space at a name's end", "rename it")
    if _DEVICE.match(said):
        raise _path(name, "has a name that some systems keep for themselves", "rename it")


def _path(name: str | bytes, what: str, hint: str) -> BundleRefused:
    return BundleRefused("bundle_path", f"{show(name)} {what}", hint)


def folded(part: str) -> str:
    """The same for names that some file system takes for one: in case, or in how letters are composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", part).casefold())


@dataclass
class _Folder:
    spelling: str = ""
    below: dict[str, _Folder | str] = field(default_factory=dict)  # a file is its spelling alone


class Names:
    """All names of one archive: no two are the same anywhere, and no file is a folder too."""

    def __init__(self, most_folders: int) -> None:
        self._root, self._left = _Folder(), most_folders

    def add(self, path: str, *, folder: bool) -> None:
        """Raises BundleRefused."""
        *above, last = path.split("/")
        here = self._root
        for part in [*above, last] if folder else above:
            here = self._enter(here, part, path)
        if folder:
            return
        key = folded(last)
        if (found := here.below.get(key)) is not None:
            raise _twice(path, last, found)
        here.below[key] = last

    def _enter(self, here: _Folder, part: str, path: str) -> _Folder:
        key = folded(part)
        found = here.below.get(key)
        if found is None:
            self._left -= 1
            if self._left < 0:
                raise BundleRefused("bundle_too_large", "the ZIP has too many folders", "leave some out")
            found = here.below[key] = _Folder(part)
        if isinstance(found, str) or found.spelling != part:
            raise _twice(path, part, found)
        return found

    def repository(self) -> str:
        """A folder that git would take for a repository itself, if there is one."""
        waiting = [("", self._root)]
        while waiting:
            path, here = waiting.pop()
            kept = {key: isinstance(value, _Folder) for key, value in here.below.items()}
            if kept.get("head") is False and kept.get("objects") and kept.get("refs"):
                return path or "."
            for value in here.below.values():
                if isinstance(value, _Folder):
                    waiting.append((f"{path}/{value.spelling}".lstrip("/"), value))
        return ""


def _twice(path: str, part: str, found: _Folder | str) -> BundleRefused:
    other = found if isinstance(found, str) else found.spelling
    words = f"{show(path)} is in the ZIP twice, or as a file and a folder"
    if other != part:
        words = f"{show(path)} and {show(other)} are one name where case or accents do not count"
    return BundleRefused("bundle_duplicate", words, "keep one of them, or rename one")
