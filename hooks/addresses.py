"""What may stand where git expects a URL, a ref or a commit: checked before any of it reaches git."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from trainforge.config.errors import TrainForgeError
from trainforge.hooks.networks import is_disguised, is_nobodys

MAX_URL = 2048
GITHUB_FILE = 100 * 2**20
_COMMIT = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?\Z")
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*\Z")
_PATH = re.compile(r"/[A-Za-z0-9._~%+@:,=()&/-]+\Z")
_SCP = re.compile(r"(?:(?P<user>[^@/:]+)@)?(?P<host>[^@/:]+):(?P<path>(?!/)[^:]+)\Z")
_UNSAFE = re.compile(r"[\x00-\x20\x7f-\x9f\\\u200b-\u200f\u2028-\u202e\u2066-\u2069]")
_BAD_IN_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
_PLAIN_HTTP_SUFFIXES = (".local", ".lan", ".internal", ".localhost", ".home.arpa", ".test")


class AddressRefused(TrainForgeError):  # noqa: N818 - reads as the verdict it is
    """A URL, ref or commit that TrainForge does not hand to git."""

    code = "address_refused"
    exit_code = 2
    status = 422


@dataclass(frozen=True)
class GitUrl:
    """A checked URL. `text` is what git gets; `host` is empty for local paths."""

    text: str
    scheme: str
    host: str
    path: str
    port: int | None = None

    @property
    def local(self) -> bool:
        return self.scheme == "file"

    @property
    def repository_id(self) -> str:
        """The same for every way of writing one repository's address, and for every transport to it."""
        path = self.path.rstrip("/").removesuffix(".git").rstrip("/")
        default = {"https": 443, "http": 80, "ssh": 22}.get(self.scheme)
        port = f":{self.port}" if self.port is not None and self.port != default else ""
        return f"git:{self.host}{port}{path}"


def largest_file(url: str) -> int | None:
    """Bytes of the largest file that a push to this address may hold; None where no limit is known.

    GitHub blocks files above 100 MiB ("About large files on GitHub"), and with them the whole push.
    """
    return GITHUB_FILE if at_github(url) else None


def at_github(url: str) -> bool:
    """Whether this address is at GitHub's own servers."""
    host = (urlsplit(url).hostname or "") if "://" in url else url.partition(":")[0].rpartition("@")[2]
    return host == "github.com" or host.endswith(".ghe.com")


def validate_url(url: str, *, allow_file: bool = False) -> GitUrl:
    """https anywhere, ssh, http on private networks (the built-in server), local paths where allowed.

    Raises:
        AddressRefused: anything else: other transports, userinfo, options in disguise, odd characters.
    """
    if not url or len(url) > MAX_URL or _UNSAFE.search(url) or url.startswith("-"):
        raise AddressRefused(f"this is not a usable git URL: {_show(url)}", hint="use https://host/path")
    if url.startswith(("/", "file:///")):
        return _local(url, allow_file)
    if "://" not in url:
        return _scp_like(url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise AddressRefused(f"{_show(url)} is not a URL: {error}") from error
    if url.split("://", 1)[0] not in ("https", "http", "ssh"):
        raise AddressRefused(
            f"git over {_show(parts.scheme)} is not allowed: {_show(url)}",
            hint="use https, ssh or http://127.0.0.1",
        )
    if parts.query or parts.fragment or parts.password is not None or port == 0:
        raise AddressRefused(f"{_mask(url)} may carry no password, query or fragment")
    if parts.username is not None and (parts.scheme != "ssh" or not _USER.match(parts.username)):
        raise AddressRefused(
            f"{_mask(url)} may carry no user name", hint="credentials are configured, not in the URL"
        )
    host = _host(parts.hostname or "", url)
    path = _path(parts.path, url)
    if parts.scheme == "http" and not is_private(host):
        raise AddressRefused(f"{_show(url)} would be read unencrypted", hint="use https")
    return GitUrl(url, parts.scheme, host, path, port)


def repository_id(url: str) -> str:
    """`git:<host><path>`: lower-case host, no user, no `.git`, no trailing slash; of a path, the path."""
    return validate_url(url, allow_file=True).repository_id


def is_private(host: str) -> bool:
    """Whether a host is this machine or on a private network, judged by its name alone."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return "." not in host or host.endswith(_PLAIN_HTTP_SUFFIXES)
    return address.is_loopback or address.is_private


def validate_commit(commit: str) -> str:
    """A full object id in lower-case hexadecimal.

    Raises:
        AddressRefused: abbreviations, names and everything else.
    """
    if not _COMMIT.match(commit):
        raise AddressRefused(
            f"{_show(commit)} is not a full commit id", hint="give all 40 hexadecimal digits"
        )
    return commit


def validate_ref(ref: str) -> str:
    """A full ref name (`refs/...`) by the rules of `git check-ref-format`, without starting git.

    Raises:
        AddressRefused: it is not.
    """
    parts = ref.split("/")
    fine = (
        ref.startswith("refs/")
        and len(parts) >= 3
        and len(ref.encode(errors="replace")) <= 1024
        and not _BAD_IN_REF.search(ref)
        and not _UNSAFE.search(ref)
        and not ref.endswith((".", "/"))
        and all(part and not part.startswith((".", "-")) and not part.endswith(".lock") for part in parts)
    )
    if not fine:
        raise AddressRefused(f"{_show(ref)} is not a full ref name", hint="such as refs/heads/main")
    return ref


def validate_branch(branch: str) -> str:
    """A branch name without `refs/heads/`; returns it."""
    validate_ref(f"refs/heads/{branch}")
    if branch == "HEAD":
        raise AddressRefused("HEAD is not the name of a branch")
    return branch


def validate_folder(folder: str) -> str:
    """A relative path inside a tree: no empty, `.`, `..` or `.git` component, no control characters.

    Raises:
        AddressRefused: it is not.
    """
    parts = folder.split("/")
    if (
        not folder
        or len(folder.encode(errors="replace")) > 4096
        or any(ord(char) < 0x20 or ord(char) == 0x7F for char in folder)
        or any(part in ("", ".", "..") or part.lower().rstrip(". ") == ".git" for part in parts)
        or not _encodable(folder)
    ):
        raise AddressRefused(f"{_show(folder)} is not a usable path in a repository")
    return folder


def _local(url: str, allow_file: bool) -> GitUrl:
    path = url.removeprefix("file://")
    if not allow_file:
        raise AddressRefused(f"a local path is not allowed here: {_show(url)}", hint="use https or ssh")
    if ".." in PurePosixPath(path).parts:
        raise AddressRefused(f"{_show(url)} may contain no ..")
    return GitUrl(f"file://{path}", "file", "", path)


def _scp_like(url: str) -> GitUrl:
    match = _SCP.match(url)
    if match is None:
        raise AddressRefused(f"this is not a usable git URL: {_show(url)}", hint="use https://host/path")
    user, host, path = match["user"], _host(match["host"], url), match["path"]
    if (user is not None and not _USER.match(user)) or path.startswith("-"):
        raise AddressRefused(f"this is not a usable git URL: {_show(url)}")
    return GitUrl(url, "ssh", host, _path("/" + path, url))


def _host(host: str, url: str) -> str:
    """Private hosts are what git servers often are; what is nobody's, or in disguise, is never one."""
    host = host.lower()
    with contextlib.suppress(ValueError):
        if is_nobodys(ipaddress.ip_address(host)):
            raise AddressRefused(f"{_show(url)} names no git server")
    if is_disguised(host):
        raise AddressRefused(f"{_show(url)} writes an address in an unusual form", hint="as in 10.0.0.5")
    if ":" in host:
        try:
            return f"[{ipaddress.IPv6Address(host)}]"
        except ValueError as error:
            raise AddressRefused(f"{_show(url)} has no usable host name") from error
    if not _HOST.match(host):
        raise AddressRefused(f"{_show(url)} has no usable host name")
    return host


def _path(path: str, url: str) -> str:
    parts = path.strip("/").split("/")
    if not _PATH.match(path) or any(part in ("", ".", "..") or part.startswith("-") for part in parts):
        raise AddressRefused(f"{_show(url)} has no usable path")
    return path


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _mask(url: str) -> str:
    return _show(re.sub(r"//[^/@]*@", "//***@", url))


def _show(text: str) -> str:
    return ascii(text if len(text) <= 200 else text[:200] + "…")
