"""How git fails: one error class for each kind that callers tell apart, found in git's own words."""

from __future__ import annotations

import base64
import re

from trainforge.config.errors import TrainForgeError, Unreachable
from trainforge.config.messages import GitCredential
from trainforge.hooks.addresses import GitUrl

_CONTROL = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_BIDI = re.compile(r"[\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


class GitError(TrainForgeError):
    """git failed in a way that has no kind of its own; `command` and `stderr` are the evidence."""

    code = "git_failed"

    def __init__(self, message: str, *, hint: str = "", command: str = "", stderr: str = "") -> None:
        super().__init__(message, hint=hint)
        self.command, self.stderr = command, stderr


class GitUnreachable(GitError, Unreachable):  # noqa: N818
    """The remote cannot be reached, or is not well, at the moment: try again later."""

    code = "git_unreachable"


class GitTimeout(GitUnreachable):
    """git was stopped at its time limit."""

    code = "git_timeout"


class GitAuthFailed(GitError):  # noqa: N818
    """The remote wants other credentials."""

    code = "git_auth_failed"
    exit_code = 4
    status = 403


class GitNotFound(GitError):  # noqa: N818
    """No such repository, ref, commit or path."""

    code = "git_not_found"
    exit_code = 5
    status = 404


class GitRejected(GitError):  # noqa: N818
    """The ref moved since it was read: fetch, re-apply, push again."""

    code = "git_rejected"
    exit_code = 6
    status = 409


class GitBlocked(GitError):  # noqa: N818
    """The remote refuses this content by its own rules: the same push would be refused again."""

    code = "git_blocked"
    exit_code = 6
    status = 409


class GitTooLarge(GitError):  # noqa: N818
    """What the remote sends is more than is taken from it."""

    code = "git_too_large"
    exit_code = 6
    status = 413


class GitTooOld(GitError):  # noqa: N818
    code = "git_too_old"
    exit_code = 2


# The first pattern that matches git's words (in the C locale) decides. Rejections before the general ones.
_KINDS: tuple[tuple[str, type[GitError], str], ...] = (
    (r"\[remote rejected\].*(?:cannot lock ref|failed to update ref|failed to lock|already exists|"
     r"incorrect old value|reference conflict|fetch first|stale info)", GitRejected, ""),
    (r"\[rejected\]|non-fast-forward|fetch first|stale info", GitRejected, ""),
    (r"\[remote rejected\]|pre-receive hook declined|GH0\d\d|remote unpack failed|shallow update not allowed|"
     r"exceeds .*(?:file )?size limit|HTTP 413|returned error: 413|protected branch",
     GitBlocked, "read what the remote says, and mend its rules or the content"),
    (r"Authentication failed|could not read (?:Username|Password)|terminal prompts disabled|"
     r"returned error: 40[13]|Permission denied \(|Invalid username or password|Host key verification failed",
     GitAuthFailed, "check the credential and its access to this repository"),
    (r"unadvertised object|not our ref|couldn't find remote ref|not found|does not exist|"
     r"does not appear to be a git repository|not a git repository|returned error: 404|bad object|"
     r"failed to unpack tree|[Nn]ot a (?:valid object name|tree object)|invalid object name|unknown revision|"
     r"bad revision",
     GitNotFound, "check the repository's address, and that the commit was pushed"),
    (r"Could not resolve host|Couldn't connect|Failed to connect|"
     r"Connection (?:refused|reset|timed out|closed)|Operation timed out|Operation too slow|early EOF|"
     r"unexpected disconnect|hung up unexpectedly|RPC failed|Empty reply|"
     r"returned error: (?:408|429|5\d\d)|Network is unreachable|No route to host|SSL|TLS|"
     r"unable to access|Could not read from remote repository|Temporary failure", GitUnreachable, ""),
)  # fmt: skip


def sanitise(text: str | bytes, limit: int = 8000) -> str:
    """Text from elsewhere made fit for a terminal, a log and a page: no escapes, controls or bidi tricks."""
    if isinstance(text, bytes):
        text = text[: 4 * limit].decode("utf-8", "replace")
    return _BIDI.sub("", _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))[:limit]


def authorization(credential: GitCredential) -> str:
    pair = f"{credential.username or 'x-access-token'}:{credential.password}"
    return "Authorization: Basic " + base64.b64encode(pair.encode()).decode()


def failure(  # noqa: PLR0917
    args: list[str],
    code: int,
    stdout: bytes,
    stderr: bytes,
    url: GitUrl | None,
    credential: GitCredential | None,
) -> GitError:
    words = sanitise(stderr)
    if args[:1] == ["push"]:  # --porcelain says on stdout which ref was refused, and why
        words = "\n".join(part for part in (words.strip(), sanitise(stdout).strip()) if part)
    if credential is not None and credential.password:
        words = words.replace(credential.password, "***").replace(authorization(credential)[21:], "***")
    last = [line for line in words.splitlines() if line.strip() and not line.startswith(("To ", "Done"))]
    target = f" with {url.text}" if url else ""
    message = f"git {verb(args)}{target} failed: " + ("; ".join(last[-6:]) or f"exit code {code}")
    for pattern, kind, hint in _KINDS:
        if re.search(pattern, words):
            return kind(message, hint=hint, command=command_of(args), stderr=words)
    return GitError(message, command=command_of(args), stderr=words)


def verb(args: list[str]) -> str:
    return next((arg for arg in args if not arg.startswith("-")), "")


def command_of(args: list[str]) -> str:
    return sanitise(" ".join(["git", *args]), 400)
