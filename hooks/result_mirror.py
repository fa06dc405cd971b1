"""The kept bare mirror of a results branch: tips without content, trees only along the written path.

The mirror is a partial clone of depth 1, but its own configuration says nothing of that: git is told at
each fetch, so that no other command ever goes to the network for a missing object.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainforge.config.errors import TooLarge, TrainForgeError
from trainforge.config.messages import GitCredential
from trainforge.hooks.addresses import (
    GitUrl,
    validate_branch,
    validate_commit,
    validate_folder,
    validate_url,
)
from trainforge.hooks.git import init_bare, locked
from trainforge.hooks.gitread import ObjectReader
from trainforge.hooks.gitrun import GitError, GitNotFound, feed, run
from trainforge.hooks.growth import MOST, Growth
from trainforge.hooks.triggers import OWN_ADDRESS

AUTHOR = f"TrainForge <{OWN_ADDRESS}>"
CHUNK = 1 << 20
# Weights do not compress, and delta search over them costs the server dearly at every later clone.
_PACKING = {
    "pack.window": "0",
    "pack.compression": "1",
    "core.compression": "1",
    "core.bigFileThreshold": "512k",
    "fastimport.unpackLimit": "0",  # always a pack, also for one object
}


@dataclass(frozen=True)
class TreeFile:
    mode: str
    blob: str
    path: str


@dataclass(frozen=True)
class ResultMirror:
    """One results branch of one remote, kept in the bare repository `path`."""

    path: Path
    remote: GitUrl
    branch: str
    credential: GitCredential | None = None
    _tip_ref: str = field(init=False, default="")

    def __post_init__(self) -> None:
        init_bare(self.path)
        object.__setattr__(self, "_tip_ref", f"refs/trainforge/tip/{self.branch}")

    @classmethod
    def of(
        cls, path: Path, url: str, branch: str, credential: GitCredential | None, *, allow_file: bool
    ) -> ResultMirror:
        """Raises AddressRefused: not an address, or a name, to go to."""
        return cls(path, validate_url(url, allow_file=allow_file), validate_branch(branch), credential)

    def known_tip(self) -> str | None:
        """The branch's tip as last seen, without asking the remote."""
        try:
            return validate_commit((self.path / self._tip_ref).read_text().strip())
        except (OSError, TrainForgeError):
            return None

    def fetch_tip(self) -> str | None:
        """The branch's tip at the remote, or None where the branch does not exist (yet, or any more)."""
        with locked(self.path):
            try:
                self._fetch(["--depth=1"], [f"+refs/heads/{self.branch}:{self._tip_ref}"])
            except GitNotFound as error:
                if "couldn't find remote ref" not in error.stderr:
                    raise
                (self.path / self._tip_ref).unlink(missing_ok=True)
                return None
            return self.known_tip()

    def remember_tip(self, commit: str) -> None:
        with locked(self.path):
            run(["update-ref", self._tip_ref, commit], git_dir=self.path)

    def files(self, tip: str, *paths: str) -> list[TreeFile]:
        """The files of a tip at or below these paths."""
        if not paths:
            return []
        args = ["--literal-pathspecs", "ls-tree", "-r", "-z", "--full-tree", tip, "--"]
        out = run([*args, *map(validate_folder, paths)], git_dir=self.path).decode("utf-8", "surrogateescape")
        found = []
        for line in out.split("\0")[:-1]:
            meta, _, path = line.partition("\t")
            mode, _, blob = meta.split(" ")
            found.append(TreeFile(mode, blob, path))
        return found

    def bring(self, blobs: Iterable[str]) -> None:
        """Have these blobs here: those missing come in one fetch."""
        wanted = sorted(set(blobs))
        if not wanted:
            return
        out = run(["cat-file", "--batch-check"], git_dir=self.path, input="\n".join(wanted).encode())
        missing = [line.split(" ")[0] for line in out.decode().splitlines() if line.endswith(" missing")]
        if not missing:
            return
        with locked(self.path):
            try:
                self._fetch(
                    [], ["--stdin"], "\n".join(missing).encode(), {"fetch.negotiationAlgorithm": "noop"}
                )
            except GitNotFound:  # a server that serves no bare object ids: the tip again, with content
                self._fetch(
                    ["--depth=1", "--refetch"], [f"+refs/heads/{self.branch}:{self._tip_ref}"], content=True
                )

    def read(self, tip: str, path: str, limit: int) -> bytes | None:
        """A file of a tip, fetched where it is missing; None where there is none."""
        found = [file for file in self.files(tip, path) if file.path == path and file.mode.startswith("100")]
        if not found:
            return None
        self.bring([found[0].blob])
        with ObjectReader(self.path) as reader:
            return reader.blob(found[0].blob, limit)

    def _fetch(
        self,
        options: Sequence[str],
        wanted: list[str],
        feed_in: bytes | None = None,
        config: Mapping[str, str] | None = None,
        *,
        content: bool = False,
    ) -> None:
        partial = {"remote.origin.promisor": "true", "remote.origin.partialCloneFilter": "blob:none"}
        settings = {"remote.origin.url": self.remote.text, **({} if content else partial), **(config or {})}
        filtered = [] if content else ["--filter=blob:none"]
        refspecs = ["--", "origin", *wanted] if feed_in is None else [*wanted, "origin"]
        args = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"]
        run(
            [*args, "--no-auto-maintenance", *options, *filtered, *refspecs],
            git_dir=self.path, remote=self.remote, credential=self.credential, input=feed_in, config=settings,
            growth=Growth(self.path, MOST),
        )  # fmt: skip


# --- writing ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Staging:
    """A folder beside the mirror's objects for those of one result; gone after the push, whatever comes.

    `blobs` has the job's contents, `trees` the commit with its trees and shared files.
    """

    mirror: Path
    blobs: Path
    trees: Path

    @classmethod
    def create(cls, mirror: Path, folder: Path) -> Staging:
        staging = cls(mirror, folder / "blobs", folder / "trees")
        for objects in (staging.blobs, staging.trees):
            (objects / "pack").mkdir(parents=True)
        return staging

    def environment(self, writing: Path | None = None) -> dict[str, str]:
        """The mirror's objects and the staged ones together; new ones go to `writing`."""
        if writing is None:
            return {"GIT_ALTERNATE_OBJECT_DIRECTORIES": f"{_quote(self.blobs)}:{_quote(self.trees)}"}
        others = f"{_quote(self.blobs)}:{_quote(self.mirror / 'objects')}"
        return {"GIT_OBJECT_DIRECTORY": str(writing), "GIT_ALTERNATE_OBJECT_DIRECTORIES": others}

    def store_blobs(self, files: Mapping[str, bytes | Path]) -> dict[str, str]:
        """Write contents as one pack and return path -> blob id.

        Compressed once and lightly: the push sends these very bytes.
        """
        marks = self.blobs / "marks"
        args = ["fast-import", "--quiet", "--depth=0", f"--export-marks={marks}"]
        contents = _blob_stream(list(files.values()))
        feed(
            args,
            contents,
            git_dir=self.mirror,
            env={"GIT_OBJECT_DIRECTORY": str(self.blobs)},
            config=_PACKING,
        )
        ids = dict(line.split(" ") for line in marks.read_text().splitlines())
        return {path: ids[f":{number}"] for number, path in enumerate(files, 1)}

    def begin(self) -> None:
        """Forget the commits of a try that lost the race."""
        for left in (self.trees / "pack").iterdir():
            left.unlink()

    def make_commit(
        self, parent: str | None, blobs: Mapping[str, str], contents: Mapping[str, bytes], message: str
    ) -> str:
        """A commit on `parent` with these files set: `blobs` by id, `contents` as they are."""
        ref = f"refs/trainforge/write/{secrets.token_hex(8)}"
        who = f"{AUTHOR} {int(time.time())} +0000"
        text = message.encode()
        head = f"commit {ref}\nmark :1\nauthor {who}\ncommitter {who}\ndata {len(text)}\n"
        lines = [head.encode(), text, f"\nfrom {parent}\n".encode() if parent else b"\n"]
        lines += [f"M 100644 {blob} {_quote(path)}\n".encode() for path, blob in blobs.items()]
        for path, data in contents.items():
            lines += [f"M 100644 inline {_quote(path)}\ndata {len(data)}\n".encode(), data, b"\n"]
        # The null id drops the branch again: the push names the commit, and no ref outlives a crash.
        lines.append(f"\nget-mark :1\nreset {ref}\nfrom {'0' * 40}\n".encode())
        args = ["fast-import", "--quiet", "--depth=0"]
        out = feed(args, lines, git_dir=self.mirror, env=self.environment(self.trees), config=_PACKING)
        return validate_commit(out.decode().strip())

    def push(self, target: ResultMirror, commit: str) -> None:
        """Compare-and-swap: the remote takes the commit only on top of its parent.

        Raises:
            GitRejected: the branch moved. GitBlocked: the remote will not have this content.
        """
        refspec = f"{commit}:refs/heads/{target.branch}"
        run(
            ["push", "--quiet", "--porcelain", "--no-verify", "--", target.remote.text, refspec],
            git_dir=self.mirror, remote=target.remote, credential=target.credential,
            env=self.environment(), config=_PACKING,
        )  # fmt: skip

    def keep_trees(self) -> None:
        """Take the pushed commit and its trees over into the mirror, as if they had been fetched.

        Marked as the promisor's: the contents that they name are at the remote, and not here.
        """
        kept = self.mirror / "objects" / "pack"
        for index in (self.trees / "pack").glob("*.idx"):
            (kept / f"{index.stem}.promisor").touch()
            index.with_suffix(".pack").rename(kept / f"{index.stem}.pack")
            index.rename(kept / index.name)


def _blob_stream(contents: Sequence[bytes | Path]) -> Iterator[bytes]:
    for number, content in enumerate(contents, 1):
        if isinstance(content, bytes):
            yield f"blob\nmark :{number}\ndata {len(content)}\n".encode()
            yield content
        else:
            yield from _file_stream(number, content)
        yield b"\n"


def _file_stream(number: int, path: Path) -> Iterator[bytes]:
    """A regular file as it is now: a link is refused, and later growth is not read."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise TrainForgeError(f"{path} is not a regular file")
        yield f"blob\nmark :{number}\ndata {status.st_size}\n".encode()
        left = status.st_size
        while left:
            chunk = file.read(min(CHUNK, left))
            if not chunk:
                raise GitError(f"{path} shrank while it was read")
            left -= len(chunk)
            yield chunk


def _quote(path: Path | str) -> str:
    """As git unquotes paths in lists and streams; paths into the tree have been checked before."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def total_size(reader: ObjectReader, files: Sequence[TreeFile], limit: int) -> int:
    """The bytes of these blobs, refused when over `limit`."""
    size = sum(reader.size(file.blob) for file in files)
    if size > limit:
        raise TooLarge(f"the result has {size} bytes; at most {limit} are read")
    return size
