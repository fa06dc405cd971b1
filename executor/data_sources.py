"""Where data come from: http(s) by ourselves, s3 and gs through fsspec, files of this machine.

Nothing is asked with credentials of the executor's own: its environment, files and machine roles are for what
its owner does, not for what a manifest names. Only the endpoint of an object store is the executor's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainforge.config import disk
from trainforge.config.errors import NodeFailed
from trainforge.config.manifest_data import Data
from trainforge.executor.downloads import BLOCK, Stream
from trainforge.hooks import fetching
from trainforge.hooks.fetching import FetchFailed

MAX_FILES = 1_000_000
RANGE = 16 * BLOCK  # of one request to an object store
EXTRAS = {"s3": "s3", "gs": "gs"}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@dataclass(frozen=True)
class Web:
    """A file at an http(s) address; `secret` headers are for its host alone."""

    url: str
    allow_private: bool
    secret: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def shown(self) -> str:
        return fetching.shown(self.url)

    @contextlib.contextmanager
    def open(self, offset: int, tag: str, known: str) -> Iterator[Stream]:
        headers = {}
        if offset and tag:  # a version that has changed comes whole then
            headers = {"Range": f"bytes={offset}-", "If-Range": tag.removeprefix("date:")}
        elif known:
            name = "If-Modified-Since" if known.startswith("date:") else "If-None-Match"
            headers = {name: known.removeprefix("date:")}
        got = fetching.request(
            "GET", self.url, headers=headers, secret=self.secret, allow_private=self.allow_private
        )
        with got as answer:
            if answer.status_code == 304:
                yield Stream(unchanged=True)
                return
            begins = 0
            length = answer.headers.get("Content-Length", "")
            size = int(length) if length.isdigit() else -1
            if answer.status_code == 206:
                begins, size = _range(answer.headers.get("Content-Range", ""), offset, self.shown)
            elif answer.status_code == 416:
                yield _nothing_more(answer.headers.get("Content-Range", ""), offset, tag, self.shown)
                return
            yield Stream(begins, size, _tag(answer.headers), answer.iter_raw(BLOCK))


def _range(text: str, offset: int, shown: str) -> tuple[int, int]:
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is None or int(match[1]) != offset:
        raise FetchFailed(f"{shown} sent another range than was asked for")
    return offset, -1 if match[2] == "*" else int(match[2])


def _nothing_more(text: str, offset: int, tag: str, shown: str) -> Stream:
    """All of it is here already, unless the server contradicts itself."""
    if text.strip() != f"bytes */{offset}":
        raise FetchFailed(f"{shown} does not have the rest of what it began to send")
    return Stream(offset, offset, tag)


def _tag(headers: Mapping[str, str]) -> str:
    """A version that If-Range takes: a strong ETag, or a date."""
    tag = headers.get("ETag", "")
    if tag and not tag.startswith("W/"):
        return tag
    return f"date:{date}" if (date := headers.get("Last-Modified", "")) else ""


@dataclass(frozen=True)
class Stored:
    """A file of a file system of fsspec."""

    fs: Any
    path: str
    shown: str

    @contextlib.contextmanager
    def open(self, offset: int, tag: str, known: str) -> Iterator[Stream]:
        with store_errors(self.shown):
            about = self.fs.info(self.path)
            now = tag_of(about)
            if known and known == now:
                yield Stream(unchanged=True)
                return
            begins = offset if tag and tag == now else 0
            size = int(about["size"])
            yield Stream(begins, size, now, self._blocks(begins, size))
            if tag_of(self.fs.info(self.path)) != now:
                raise FetchFailed(f"{self.shown} was changed while it was read", again=True)

    def _blocks(self, start: int, size: int) -> Iterator[bytes]:
        while start < size:
            block: bytes = self.fs.cat_file(self.path, start=start, end=min(size, start + RANGE))
            if not block:
                return
            for at in range(0, len(block), BLOCK):
                yield block[at : at + BLOCK]
            start += len(block)


@dataclass(frozen=True)
class Local:
    """A file of this machine."""

    path: Path

    @property
    def shown(self) -> str:
        return f"file://{self.path}"

    @contextlib.contextmanager
    def open(self, offset: int, tag: str, known: str) -> Iterator[Stream]:
        try:
            with self.path.open("rb") as file:
                about = self.path.stat()
                now = f"{about.st_ino}-{about.st_size}-{about.st_mtime_ns}-{about.st_ctime_ns}"
                if known == now:
                    yield Stream(unchanged=True)
                    return
                begins = file.seek(offset if tag == now else 0)
                yield Stream(begins, about.st_size, now, iter(lambda: file.read(BLOCK), b""))
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise FetchFailed(f"{self.shown} cannot be read: {error.strerror}") from error


def local_path(url: str) -> Path:
    return Path(urllib.request.url2pathname(urlsplit(url).path))


# --- object stores --------------------------------------------------------------------------------------


def file_system(data: Data, secrets: Mapping[str, str]) -> Any:
    """Of an s3 or gs URL, as whom the manifest says or as anybody.

    Raises:
        NodeFailed: what speaks to it is not installed here.
    """
    import fsspec  # noqa: PLC0415 - slow to load, and seldom needed

    given = {key: secrets[name] for key, name in data.credentials.secrets.items()}
    if data.scheme == "s3":
        names = {"key": "key_id", "secret": "secret_key", "token": "session_token"}
        options: dict[str, Any] = {name: given[key] for name, key in names.items() if key in given}
        options = options or {"anon": True}
    else:
        # gcsfs (2026.10) would ask by gRPC for the kind of bucket first, a minute long where nobody answers.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        options = {"token": _google_token(given.get("token", ""))}
    try:
        return fsspec.filesystem(data.scheme, skip_instance_cache=True, use_listings_cache=False, **options)
    except ImportError as error:
        extra = EXTRAS[data.scheme]
        raise NodeFailed(
            f"{data.shown}: this executor cannot read {data.scheme}:// ({error})",
            hint=f"pip install 'trainforge[{extra}]' on the executor, then start it again",
            code="data_failed",
        ) from error


def _google_token(token: str) -> Any:
    """`anon`, a service account's key file, or an OAuth access token."""
    if not token:
        return "anon"
    with contextlib.suppress(ValueError):
        return json.loads(token)
    with contextlib.suppress(ImportError):  # then the file system cannot be made either
        from google.oauth2.credentials import Credentials  # noqa: PLC0415

        return Credentials(token=token)
    return "anon"


@contextlib.contextmanager
def store_errors(shown: str) -> Iterator[None]:
    """What file systems raise, told apart by whether another try may help."""
    try:
        yield
    except (FetchFailed, NodeFailed):
        raise
    except FileNotFoundError as error:
        raise FetchFailed(f"{shown}: there is no such file or bucket") from error
    except PermissionError as error:
        raise FetchFailed(f"{shown}: {error or 'access denied'}", hint=fetching.CREDENTIALS) from error
    except OSError as error:
        if disk.is_full(error):
            raise
        raise FetchFailed(f"{shown}: {error}", again=True) from error
    except Exception as error:
        module = type(error).__module__.partition(".")[0]
        if module not in {"botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "fsspec"}:
            raise
        raise FetchFailed(f"{shown}: {error}", again=module == "aiohttp") from error


def tag_of(about: Mapping[str, Any]) -> str:
    """A version by what a store says of a file."""
    named = about.get("ETag") or about.get("etag") or about.get("md5Hash") or about.get("generation")
    when = about.get("LastModified") or about.get("updated") or about.get("mtime") or ""
    return hashlib.sha256(f"{named}\0{when}\0{about.get('size')}".encode()).hexdigest()[:32]
