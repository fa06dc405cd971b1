"""Data in a git repository: the files of one commit, without its history, with what Git LFS keeps elsewhere.

No program of git-lfs runs, and nothing in the repository says where to ask: the objects come from the
repository's own LFS address by the batch API (git-lfs `docs/api/batch.md`, transfer `basic`), each checked
against the digest that the commit names.
"""

from __future__ import annotations

import json
import re
import shutil
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainforge.config.errors import NodeFailed
from trainforge.config.messages import GitCredential
from trainforge.executor import budget
from trainforge.executor.data_sources import Web
from trainforge.executor.downloads import Trip, download
from trainforge.hooks import fetching, git
from trainforge.hooks.addresses import validate_commit, validate_url
from trainforge.hooks.growth import MOST

BATCH = 100
MAX_ANSWER = 8 * 2**20
MAX_POINTER = 1024
_JSON = "application/vnd.git-lfs+json"
_POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\n(?:ext-\d-[^\n]*\n)*"
    rb"oid sha256:([0-9a-f]{64})\nsize (\d{1,18})\n?\Z"
)


@dataclass(frozen=True)
class Pointer:
    """The file at `path` stands for another, of this SHA-256 and size."""

    path: Path
    oid: str
    size: int


@dataclass(frozen=True)
class Repository:
    url: str
    credential: GitCredential | None = None
    allow_file: bool = False
    allow_private: bool = True
    most: int = MOST

    @property
    def options(self) -> dict[str, Any]:
        return {"credential": self.credential, "allow_file": self.allow_file}

    def commit(self, ref: str) -> tuple[str, str]:
        """The commit that a branch, tag or commit id stands for, and the full name of the ref if it is one.

        Raises:
            NodeFailed: there is no such ref.
        """
        self.check_address()
        if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", ref):
            return validate_commit(ref), ""
        names = (
            [f"refs/heads/{ref}", f"refs/tags/{ref}"]
            if ref
            else [git.default_branch(self.url, **self.options)]
        )
        refs = git.ls_remote(self.url, **self.options)
        for name in names:
            if name in refs:
                return refs[name], name
        raise NodeFailed(
            f"{self.url} has no branch or tag {ref or '(no default branch)'}",
            hint="check data.ref",
            code="data_failed",
        )

    def check_address(self) -> None:
        """Raises Forbidden where a job may not have it asked."""
        url = validate_url(self.url, allow_file=self.allow_file)
        if url.host:
            port = url.port or {"http": 80, "ssh": 22}.get(url.scheme, 443)
            fetching.addresses(url.host.strip("[]"), port, allow_private=self.allow_private)

    def export(self, commit: str, ref: str, part: Path, trip: Trip) -> Path:
        """The files of a commit in a folder below `part`. What is there from before is gone on with."""
        tree = part / "tree"
        if not tree.exists():
            mirror = git.init_bare(part / "repository.git")
            git.fetch_commit(mirror, self.url, commit, ref=ref, most=self.most, **self.options)
            git.checkout(mirror, commit, tree)
        budget.discard(part / "repository.git")
        shutil.rmtree(tree / ".git", ignore_errors=True)
        self._fill(tree, part, trip)
        return tree

    # --- what LFS keeps -----------------------------------------------------------------------------------

    def _fill(self, tree: Path, part: Path, trip: Trip) -> None:
        """Put the content in the place of its pointers."""
        wanted = list(pointers(tree))
        if not wanted:
            return
        trip.total = trip.done + sum(pointer.size for pointer in wanted)
        trip.room(trip.total - trip.done)
        for start in range(0, len(wanted), BATCH):
            for pointer, source in self._sources(wanted[start : start + BATCH]):
                _bring(pointer, source, part, trip)

    def _sources(self, wanted: Sequence[Pointer]) -> Iterator[tuple[Pointer, Web]]:
        """Where each object is to be had."""
        url = validate_url(self.url, allow_file=self.allow_file)
        if url.scheme not in {"http", "https"}:
            raise NodeFailed(
                f"{self.url} keeps files in Git LFS, which is read over http(s) alone",
                hint="use its git+https:// address",
                code="data_failed",
            )
        base = f"{self.url.rstrip('/').removesuffix('.git')}.git/info/lfs"
        objects = [{"oid": pointer.oid, "size": pointer.size} for pointer in wanted]
        asked = {"operation": "download", "transfers": ["basic"], "objects": objects, "hash_algo": "sha256"}
        answer = self._ask(f"{base}/objects/batch", json.dumps(asked).encode())
        found = {str(one.get("oid")): one for one in answer.get("objects", []) if isinstance(one, dict)}
        for pointer in wanted:
            yield pointer, self._source(found.get(pointer.oid, {}), pointer.oid, base)

    def _ask(self, url: str, body: bytes) -> dict[str, Any]:
        headers = {"Accept": _JSON, "Content-Type": _JSON}
        asking = fetching.request(
            "POST", url, headers=headers, secret=self._login(), allow_private=self.allow_private, content=body
        )
        with asking as answer:
            data = b""
            for block in answer.iter_bytes():
                data += block
                if len(data) > MAX_ANSWER:
                    raise fetching.FetchFailed(f"{fetching.shown(url)} sends too much")
        try:
            found = json.loads(data)
        except ValueError as error:
            raise fetching.FetchFailed(f"{fetching.shown(url)} answered something else") from error
        return found if isinstance(found, dict) else {}

    def _source(self, found: Mapping[str, Any], oid: str, base: str) -> Web:
        try:
            action = found["actions"]["download"]
            href = str(action["href"])
            headers = {str(name): str(value) for name, value in dict(action.get("header") or {}).items()}
        except (KeyError, TypeError, ValueError) as error:
            said = found.get("error")
            words = git.sanitise(str(said.get("message")), 200) if isinstance(said, dict) else "not found"
            raise NodeFailed(
                f"{self.url} does not have the LFS object {oid[:12]}: {words}", code="data_failed"
            ) from error
        if not href.startswith(("http://", "https://")):
            raise NodeFailed(
                f"{self.url}: the LFS object {oid[:12]} has no http(s) address", code="data_failed"
            )
        same = urlsplit(href)[:2] == urlsplit(base)[:2]
        if same and not any(name.lower() == "authorization" for name in headers):
            headers |= self._login()
        return Web(href, self.allow_private, headers)

    def _login(self) -> dict[str, str]:
        if self.credential is None or not self.credential.password:
            return {}
        pair = f"{self.credential.username or 'x-access-token'}:{self.credential.password}"
        return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


def pointers(tree: Path) -> Iterator[Pointer]:
    """The files of a folder that stand for others."""
    for path in sorted(tree.rglob("*")):
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_POINTER:
            continue
        if match := _POINTER.match(path.read_bytes()):
            yield Pointer(path, match[1].decode(), int(match[2]))


def _bring(pointer: Pointer, source: Web, part: Path, trip: Trip) -> None:
    own = part / f"lfs-{pointer.oid[:40]}"
    fetched = download(source, own, trip)
    if fetched is None or (fetched.sha256, fetched.size) != (pointer.oid, pointer.size):
        budget.discard(own)
        came = f"sha256 {fetched.sha256}, {fetched.size} bytes" if fetched else "nothing"
        raise NodeFailed(
            f"{source.shown}: {came} came, its commit says sha256 {pointer.oid}, {pointer.size} bytes",
            code="data_failed",
        )
    fetched.path.chmod(pointer.path.stat().st_mode)
    fetched.path.replace(pointer.path)
    budget.discard(own)
