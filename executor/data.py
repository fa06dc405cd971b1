"""The training's data: fetched once, checked, kept for the next job that wants them, shown to this one.

What the job sees is a folder of links by the manifest's names; they lead into the cache (`data_cache`), where
nobody writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from trainforge.config.errors import Forbidden, NodeFailed, Unreachable
from trainforge.config.manifest import Manifest
from trainforge.config.manifest_data import Data
from trainforge.config.messages import GitCredential
from trainforge.config.result import DataRecord
from trainforge.executor import budget, data_folder, data_git, data_sources
from trainforge.executor.commands import Setup
from trainforge.executor.data_cache import Cache, Kept, Known, digest_of
from trainforge.executor.downloads import RETRY_S, Fetched, Source, Trip, download, size_words
from trainforge.executor.supervisor import write_atomically
from trainforge.executor.unpacking import unpack
from trainforge.hooks import fetching, git
from trainforge.hooks.addresses import AddressRefused, repository_id
from trainforge.hooks.fetching import FetchFailed
from trainforge.hooks.growth import MOST

RECORD = "data.json"
_Result = TypeVar("_Result")
Own = Callable[[str], GitCredential | None]  # the job's own credential for a repository, by its URL


@dataclass(frozen=True)
class Node:
    """What getting data needs of the node that they are for."""

    folder: Path
    cache: Path
    setup: Setup
    scope: str = ""  # the job's repository: what is fetched with credentials is shared within it
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    own: Own = field(default=lambda url: None, repr=False)
    files: Sequence[Path] | None = None  # the folders that `file:` URLs may name; None: all
    allow_private: bool = True
    allow_file: bool = False  # repositories by their path
    most: int = MOST
    tell: Callable[[str], None] = lambda words: None
    room: Callable[[int, str], None] = lambda size, what: None


@dataclass(frozen=True)
class Shown:
    """`folder` is TRAINFORGE_DATA_DIR, `reads` what its links lead to."""

    folder: Path
    reads: tuple[Path, ...] = ()


def prepare(manifest: Manifest, node: Node) -> Shown:
    """Have all of the manifest's data here, and say in the node's folder what they are.

    Raises:
        NodeFailed: `data_failed`, with what was expected and what came; `disk_full`; `policy_refused`.
    """
    folder = node.folder / "data"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o755)
    reads: list[Path] = []
    records: list[DataRecord] = []
    for data in manifest.data:
        with _told(data):
            content, record = _Getting(data, node).run()
        node.setup.say(_line(record))
        records.append(record)
        reads.append(content)
        if data.name == ".":
            folder = content
        else:
            link = folder / data.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(content)
    write_atomically(node.folder / RECORD, {"data": [record.model_dump() for record in records]})
    return Shown(folder, tuple(reads))


def recorded(node: Path) -> list[DataRecord]:
    """What `prepare` said of a node's data."""
    try:
        found = json.loads((node / RECORD).read_bytes())["data"]
        return [DataRecord.model_validate(each) for each in found]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _line(record: DataRecord) -> str:
    what = (
        f", sha256 {record.sha256}" if record.sha256 else f", commit {record.commit}" if record.commit else ""
    )
    files = f", {record.files} files" if record.files > 1 else ""
    kept = "kept from before" if record.cached else "fetched"
    return f"data {record.name}: {kept}, {size_words(record.size)}{files}{what}"


@contextlib.contextmanager
def _told(data: Data) -> Iterator[None]:
    """Every way that getting data fails, as the node's failure."""
    try:
        yield
    except Forbidden as error:
        raise NodeFailed(f"{data.shown}: {error.message}", hint=error.hint, code="policy_refused") from error
    except git.GitAuthFailed as error:
        raise NodeFailed(error.message, hint=fetching.CREDENTIALS, code="data_failed") from error
    except (FetchFailed, AddressRefused, git.GitError) as error:
        raise NodeFailed(error.message, hint=error.hint, code="data_failed") from error


class _Getting:
    """One entry's way here."""

    def __init__(self, data: Data, node: Node) -> None:
        self.data = data
        self.node = node
        self.setup = node.setup
        self.credential = self._credential() if data.git else None
        private = bool(data.credentials.secrets) or self.credential is not None
        self.scope = hashlib.sha256(node.scope.encode()).hexdigest()[:12] if private else ""
        self.cache = Cache(
            node.cache if data.cache else node.folder / "own-data",
            lease=node.setup.lease if data.cache else lambda entry: None,
            in_use=lambda entry: entry in budget.leased(node.cache.parent.parent),
            check=node.setup.check,
        )

    def run(self) -> tuple[Path, DataRecord]:
        data = self.data
        if data.scheme == "hf":
            raise NodeFailed(f"{data.url}: data over hf are not in effect yet", code="data_failed")
        if data.scheme in {"file", "git+file"}:
            self._check_file()
        if data.scheme == "file" and not data.cache and not data.unpack:
            return self._in_place()
        if data.git:
            return self._repository()
        return self._folder() if data.folder else self._file()

    # --- the ways -----------------------------------------------------------------------------------------

    def _in_place(self) -> tuple[Path, DataRecord]:
        """A file or folder of this machine, where it lies."""
        path = data_sources.local_path(self.data.url)
        if not path.exists():
            raise NodeFailed(f"{self.data.url} is not there", code="data_failed")
        found = digest_of(path, self.setup.check) if self.data.sha256 else ""
        self._check_digest(found)
        size = path.stat().st_size if path.is_file() else 0
        return path, self._record(Kept(name=path.name, sha256=found, size=size), cached=True)

    def _file(self) -> tuple[Path, DataRecord]:
        digest = self.data.sha256 or ""
        key = self._key(self.data.url, digest)
        if digest and (there := self._find(digest)):
            return there
        with self._only_one(key):
            if digest and (there := self._find(digest)):
                return there
            known = self.cache.known(key)
            if known is not None and self.cache.find(known.entry) is None:
                known = None
            part = self.cache.part(key)
            fetched = self._download(part, known.tag if known else "")
            if fetched is None and known is not None and (kept := self.cache.find(known.entry)):
                return self._got(known.entry, kept, cached=True)
            if fetched is None:
                raise NodeFailed(f"{self.data.shown} went away from the cache, try again", code="data_failed")
            return self._take_in(key, part, fetched)

    def _download(self, part: Path, known: str) -> Fetched | None:
        """Once more from the beginning, where what was gone on with turns out to be something else."""
        source, trip = self._source(), self._trip()
        fetched = download(source, part, trip, known)
        if fetched is not None and fetched.resumed and self.data.sha256 not in {None, fetched.sha256}:
            budget.discard(part)
            fetched = download(source, part, trip, known)
        if fetched is not None:
            try:
                self._check_digest(fetched.sha256)
            except NodeFailed:
                budget.discard(part)
                raise
        return fetched

    def _take_in(self, key: str, part: Path, fetched: Fetched) -> tuple[Path, DataRecord]:
        entry = self._entry(fetched.sha256)
        content = fetched.path
        if self.data.unpack and (there := self._find(fetched.sha256)):
            self._remember(key, entry, fetched.tag)
            budget.discard(part)
            return there
        if self.data.unpack:
            content = part / "unpacked"
            budget.discard(content)
            room = lambda size: self.node.room(size, self.data.name)  # noqa: E731
            for remark in unpack(fetched.path, content, self.setup.check, room):
                self.setup.say(f"data {self.data.name}: {remark}")
        kept = Kept(name=self._file_name(), sha256=fetched.sha256, size=fetched.size)
        return self._keep(key, entry, content, kept, fetched.tag)

    def _folder(self) -> tuple[Path, DataRecord]:
        listing = self._patiently(lambda: data_folder.listing(self.data, self.node.secrets))
        entry = f"folder-{self._key(self.data.url, listing.tag)}{self._suffix}"
        if kept := self.cache.find(entry):
            return self._got(entry, kept, cached=True)
        key = self._key(self.data.url)
        with self._only_one(key):
            if kept := self.cache.find(entry):
                return self._got(entry, kept, cached=True)
            part = self.cache.part(key)
            content = self._patiently(lambda: data_folder.fetch(listing, part, self._trip()))
            return self._keep(
                key, entry, content, Kept(name=self._file_name(), size=listing.size), listing.tag
            )

    def _repository(self) -> tuple[Path, DataRecord]:
        node, url = self.node, self.data.url.removeprefix("git+")
        if self.data.scheme == "git+ssh" and repository_id(url) != node.scope:
            raise NodeFailed(
                f"{self.data.url} would be read with the machine's own key, which is for a job's repository",
                hint="use its git+https:// address, with data.credentials",
                code="data_failed",
            )
        repository = data_git.Repository(
            url.removeprefix("file://") if url.startswith("file:") else url,
            self.credential,
            allow_file=node.allow_file,
            allow_private=node.allow_private,
            most=node.most,
        )
        commit, ref = self._patiently(lambda: repository.commit(self.data.ref or ""))
        entry = f"git-{commit}{self._suffix}"
        if kept := self.cache.find(entry):
            return self._got(entry, kept, cached=True)
        key = self._key(self.data.url, commit)
        with self._only_one(key):
            if kept := self.cache.find(entry):
                return self._got(entry, kept, cached=True)
            part = self.cache.part(key)
            part.mkdir(parents=True, exist_ok=True)
            content = self._patiently(lambda: repository.export(commit, ref, part, self._trip()))
            return self._keep(
                key, entry, content, Kept(name=self._file_name(), commit=commit, size=0), commit
            )

    # --- what they share ----------------------------------------------------------------------------------

    def _source(self) -> Source:
        data = self.data
        if data.scheme == "file":
            return data_sources.Local(data_sources.local_path(data.url))
        if data.scheme in {"http", "https"}:
            return data_sources.Web(data.url, self.node.allow_private, self._login())
        return data_sources.Stored(data_sources.file_system(data, self.node.secrets), data.url, data.shown)

    def _login(self) -> dict[str, str]:
        given = {key: self.node.secrets[name] for key, name in self.data.credentials.secrets.items()}
        if "token" in given:
            return {"Authorization": f"Bearer {given['token']}"}
        if "password" in given:
            pair = f"{self.data.credentials.username or ''}:{given['password']}"
            return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}
        return {}

    def _credential(self) -> GitCredential | None:
        """The manifest's, or the job's own where the data are in its own repository."""
        names = self.data.credentials.secrets
        if name := names.get("password") or names.get("token"):
            username = self.data.credentials.username or ""
            return GitCredential(username=username, password=self.node.secrets[name])
        return self.node.own(self.data.url.removeprefix("git+"))

    def _trip(self) -> Trip:
        name = self.data.name
        room = lambda size: self.node.room(size, name)  # noqa: E731
        return Trip(self.node.tell, self.setup.check, room, name)

    @contextlib.contextmanager
    def _only_one(self, key: str) -> Iterator[None]:
        """One job fetches, the others wait for it and then find what it has fetched."""

        def waiting() -> None:
            self.setup.check()
            self.node.tell(f"{self.data.name}: waiting for another job that fetches it")

        with budget.locked(self.cache.part(key), waiting):
            self.node.tell(self.data.name)
            yield

    def _patiently(self, what: Callable[[], _Result]) -> _Result:
        """Try again while the other side is not well."""
        for pause in RETRY_S:
            try:
                return what()
            except (Unreachable, FetchFailed) as error:
                if isinstance(error, FetchFailed) and not error.again:
                    raise
                self.node.tell(f"{self.data.name}: waiting to go on: {error.message}"[:500])
            end = time.monotonic() + pause
            while time.monotonic() < end:
                self.setup.check()
                time.sleep(0.1)
        return what()

    @property
    def _suffix(self) -> str:
        return f".{self.scope}" if self.scope else ""

    def _entry(self, digest: str) -> str:
        return f"{digest}{'.unpacked' if self.data.unpack else ''}{self._suffix}"

    def _key(self, *parts: str) -> str:
        about = [*parts, self.scope, str(self.data.unpack)]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:40]

    def _file_name(self) -> str:
        name = self.data.model_copy(update={"path": None}).name if self.data.name == "." else self.data.name
        return name.rpartition("/")[2]

    def _find(self, digest: str) -> tuple[Path, DataRecord] | None:
        entry = self._entry(digest)
        kept = self.cache.find(entry)
        return self._got(entry, kept, cached=True) if kept else None

    def _keep(self, key: str, entry: str, content: Path, kept: Kept, tag: str) -> tuple[Path, DataRecord]:
        there = self.cache.keep(entry, content, kept)
        if there is None:
            raise NodeFailed(
                f"{self.data.shown}: what was kept of it was changed on this machine while a job has it",
                hint="run it again when the other has ended; `isolation: sandbox` keeps jobs from doing so",
                code="data_failed",
            )
        self._remember(key, entry, tag)
        budget.discard(self.cache.part(key))
        return self._got(entry, there, cached=False)

    def _remember(self, key: str, entry: str, tag: str) -> None:
        if tag:
            self.cache.remember(key, Known(entry=entry, tag=tag))

    def _got(self, entry: str, kept: Kept, *, cached: bool) -> tuple[Path, DataRecord]:
        return self.cache.content(entry, kept), self._record(kept, cached=cached)

    def _record(self, kept: Kept, *, cached: bool) -> DataRecord:
        return DataRecord(
            name=self.data.name, url=self.data.shown, sha256=kept.sha256, commit=kept.commit,
            size=kept.size, files=kept.files, cached=cached,
        )  # fmt: skip

    def _check_digest(self, found: str) -> None:
        expected = self.data.sha256
        if expected and found != expected:
            raise NodeFailed(
                f"{self.data.shown} has sha256 {found}, data.sha256 says {expected}",
                hint="check that the file is the one you mean; nothing of it was kept",
                code="data_failed",
            )

    def _check_file(self) -> None:
        path = data_sources.local_path(self.data.url.removeprefix("git+")).resolve()
        if self.node.files is not None and not any(
            path.is_relative_to(folder.resolve()) for folder in self.node.files
        ):
            raise NodeFailed(
                f"{self.data.url} is a file of the machine that jobs may not read",
                hint="name its folder under shared_folders of this executor",
                code="data_failed",
            )
