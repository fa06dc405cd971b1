"""Reading a repository: differences, trees, blobs and commits, without work tree and without network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainforge.config.errors import TooLarge
from trainforge.hooks import gitrun
from trainforge.hooks.addresses import validate_commit, validate_folder, validate_ref
from trainforge.hooks.gitrun import GitError, GitNotFound, run, sanitise

MAX_BLOB = 8 * 1024 * 1024


@dataclass(frozen=True)
class CommitInfo:
    """What a commit says of itself, made safe to show."""

    commit: str
    parents: tuple[str, ...]
    author: str
    email: str
    time: int
    subject: str
    message: str


def has_commit(repo: Path, commit: str) -> bool:
    """Whether the commit is in this repository (nothing is fetched to find out)."""
    try:
        run(["cat-file", "-e", f"{validate_commit(commit)}^{{commit}}"], git_dir=repo)
    except GitError:
        return False
    return True


def tree_diff(repo: Path, old: str | None, new: str) -> list[tuple[str, str]]:
    """`(status, path)` for each file that differs, status one of A, M, D, T; `old` None: all are new."""
    validate_commit(new)
    if old is None:
        return [("A", path) for path in list_tree(repo, new)]
    args = [
        "diff-tree",
        "-r",
        "-z",
        "--no-renames",
        "--no-ext-diff",
        "--name-status",
        validate_commit(old),
        new,
    ]
    fields = run([*args, "--"], git_dir=repo).decode("utf-8", "surrogateescape").split("\0")[:-1]
    return list(zip(fields[::2], fields[1::2], strict=True))


def list_tree(repo: Path, commit: str, folder: str = "") -> list[str]:
    """The paths of all files at a commit, or below one folder of it."""
    below = ["--", validate_folder(folder)] if folder else []
    args = ["ls-tree", "-r", "-z", "--name-only", "--full-tree", validate_commit(commit), *below]
    return run(args, git_dir=repo).decode("utf-8", "surrogateescape").split("\0")[:-1]


def read_blob(repo: Path, commit: str, path: str, limit: int = MAX_BLOB) -> tuple[str, bytes]:
    """`(blob id, content)` of a file at a commit.

    Raises:
        GitNotFound: no file there. TooLarge: it is over `limit` bytes, of which none were read.
    """
    with ObjectReader(repo) as reader:
        return reader.file(commit, path, limit)


def merge_base(repo: Path, commit: str, others: Sequence[str]) -> str | None:
    """The best common ancestor of a commit and any of the others, as far as the history is here."""
    names = [validate_commit(name) for name in (commit, *others)]
    try:
        return run(["merge-base", *names], git_dir=repo).decode().strip() or None
    except GitError as error:
        if error.stderr:
            raise
        return None


def is_ancestor(repo: Path, commit: str, of: str) -> bool:
    """Whether `commit` is in the history of `of` (a commit or a full ref name)."""
    until = validate_ref(of) if of.startswith("refs/") else validate_commit(of)
    try:
        run(["merge-base", "--is-ancestor", validate_commit(commit), until], git_dir=repo)
    except GitError as error:
        if error.stderr:
            raise
        return False
    return True


class ObjectReader:
    """Several objects of one repository by one git process; sizes are known before content is read."""

    def __init__(self, repo: Path) -> None:
        self._context = gitrun.interactive(["cat-file", "--batch-command"], git_dir=repo)

    def __enter__(self) -> ObjectReader:
        self._stdin, self._stdout = self._context.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._context.__exit__(None, None, None)

    def file(self, commit: str, path: str, limit: int = MAX_BLOB) -> tuple[str, bytes]:
        """`(blob id, content)`; GitNotFound or TooLarge as `read_blob`."""
        return self._read(f"{validate_commit(commit)}:{validate_folder(path)}", "blob", limit, path)

    def blob(self, blob: str, limit: int = MAX_BLOB) -> bytes:
        return self._read(validate_commit(blob), "blob", limit, blob)[1]

    def size(self, blob: str) -> int:
        return self._info(validate_commit(blob), "blob", blob)[1]

    def stream(self, blob: str) -> Iterator[bytes]:
        """A blob of any size in pieces; take them all before asking for anything else."""
        _, left = self._info(validate_commit(blob), "blob", blob)
        self._ask(f"contents {blob}")
        while left:
            chunk = self._stdout.read(min(left, 1 << 20))
            if not chunk:
                raise GitError(f"git stopped while {blob} was read")
            left -= len(chunk)
            yield chunk
        self._stdout.read(1)

    def commit(self, commit: str) -> CommitInfo:
        """A commit's own words; messages over 1 MiB count as missing."""
        return _parse_commit(commit, self._read(validate_commit(commit), "commit", 1 << 20, commit)[1])

    def _read(self, name: str, kind: str, limit: int, shown: str) -> tuple[str, bytes]:
        oid, size = self._info(name, kind, shown)
        if size > limit:
            raise TooLarge(f"{sanitise(shown, 200)} has {size} bytes; at most {limit} are read")
        self._ask(f"contents {oid}")
        content = self._stdout.read(size + 1)
        if len(content) != size + 1:
            raise GitError(f"git stopped while {sanitise(shown, 200)} was read")
        return oid, content[:-1]

    def _info(self, name: str, kind: str, shown: str) -> tuple[str, int]:
        header = self._ask(f"info {name}").split(" ")
        if len(header) != 3 or header[1] != kind:
            raise GitNotFound(f"there is no {kind} {sanitise(shown, 200)} here")
        return header[0], int(header[2])

    def _ask(self, line: str) -> str:
        try:
            self._stdin.write(line.encode() + b"\n")
            self._stdin.flush()
        except BrokenPipeError as error:
            raise GitError("git stopped answering; is this a repository?") from error
        answer = self._stdout.readline()
        if not answer.endswith(b"\n"):
            raise GitError("git stopped answering; is this a repository?")
        return answer[:-1].decode("utf-8", "replace")


def _parse_commit(commit: str, raw: bytes) -> CommitInfo:
    head, _, body = raw.decode("utf-8", "replace").partition("\n\n")
    fields: dict[str, list[str]] = {}
    for line in head.split("\n"):
        key, _, value = line.partition(" ")
        fields.setdefault(key, []).append(value)
    person, _, stamp = fields.get("author", [""])[0].rpartition("> ")
    name, _, email = person.partition(" <")
    seconds = stamp.split(" ")[0]
    message = sanitise(body, 65_536).strip()
    return CommitInfo(
        commit=commit,
        parents=tuple(fields.get("parent", [])),
        author=sanitise(name, 200).replace("\n", " "),
        email=sanitise(email, 200).replace("\n", " "),
        time=int(seconds) if seconds.isascii() and seconds.isdigit() and len(seconds) < 12 else 0,
        subject=message.split("\n", 1)[0][:200],
        message=message,
    )
