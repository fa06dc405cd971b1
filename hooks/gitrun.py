"""The one place that starts the git binary: scrubbed environment, argument lists, time limits, typed errors.

GitPython is the door to the process; its convenience methods are not used, because they read the
environment and the configuration of whoever runs them. Everything that could make git run something else
(hooks, monitors, helpers, pagers, remote transports) is switched off above any repository's own settings.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from git.cmd import Git
from git.exc import GitCommandNotFound

from trainforge.config.errors import TrainForgeError, Unreachable
from trainforge.config.messages import GitCredential
from trainforge.hooks.addresses import GitUrl, validate_url

MINIMUM_VERSION = (2, 39, 4)  # the first with the mends of May 2024 (CVE-2024-32002 and its like)
LOCAL_TIMEOUT_S = 120.0
NETWORK_TIMEOUT_S = 900.0

_CONFIG = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.pager": "cat",
    "core.editor": "false",
    "core.autocrlf": "false",
    "core.alternateRefsCommand": "true",
    "credential.helper": "",
    "fetch.fsckObjects": "true",
    "receive.fsckObjects": "true",
    "fsck.zeroPaddedFilemode": "ignore",  # widespread in old histories, and harmless
    "fsck.missingSpaceBeforeDate": "ignore",
    "fetch.recurseSubmodules": "false",
    "fetch.writeCommitGraph": "false",
    "submodule.recurse": "false",
    "push.recurseSubmodules": "no",
    "transfer.bundleURI": "false",
    "http.followRedirects": "false",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "60",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "advice.detachedHead": "false",
    "init.defaultBranch": "main",
    "protocol.version": "2",
    "commit.gpgSign": "false",
    "push.gpgSign": "false",
    "log.showSignature": "false",
}
_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "",  # empty wins over core.askPass and SSH_ASKPASS and asks nobody
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_LFS_SKIP_SMUDGE": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=20",
    "GIT_PAGER": "cat",
    "GIT_EDITOR": "false",
    "LC_ALL": "C",
    "LANGUAGE": "C",
    "HOME": "/dev/null",
    "XDG_CONFIG_HOME": "/dev/null",
}
_DROPPED = re.compile(r"GIT_|TRAINFORGE_|SSH_ASKPASS|LD_PRELOAD|GCONV_PATH|PYTHON|VIRTUAL_ENV")
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
    exit_code = 7
    status = 503


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


def git_environment(
    extra: Mapping[str, str] | None = None,
    *,
    config: Mapping[str, str] | None = None,
    protocols: str = "",
) -> dict[str, str]:
    """What git is told beside its arguments; configuration travels here, so that argv shows no secret."""
    settings = {**_CONFIG, **(config or {})}
    environment = {**_ENVIRONMENT, "GIT_ALLOW_PROTOCOL": protocols or "none"}
    environment["GIT_CONFIG_COUNT"] = str(len(settings))
    for index, (key, value) in enumerate(settings.items()):
        environment[f"GIT_CONFIG_KEY_{index}"] = key
        environment[f"GIT_CONFIG_VALUE_{index}"] = value
    environment.update(extra or {})
    return environment


def run(
    args: list[str],
    *,
    cwd: Path | None = None,
    git_dir: Path | None = None,
    env: Mapping[str, str] | None = None,
    config: Mapping[str, str] | None = None,
    input: bytes | None = None,  # noqa: A002 - as subprocess calls it
    timeout: float | None = None,
    remote: str | GitUrl = "",
    credential: GitCredential | None = None,
    allow_file: bool = False,
) -> bytes:
    """Run `git ARGS` and return its standard output.

    `remote` names the only address this command may talk to (it must also stand in `args`); without it no
    transport is open. `credential` is sent to that address alone, over http(s).

    Raises:
        GitError: or the subclass that fits; `AddressRefused` for a `remote` that is not allowed.
    """
    check_version()
    url = remote if isinstance(remote, GitUrl) else None
    if isinstance(remote, str) and remote:
        url = validate_url(remote, allow_file=allow_file)
    settings = dict(config or {})
    if url and credential and credential.password and url.scheme in ("http", "https"):
        settings[f"http.{url.text}.extraHeader"] = _authorization(credential)
    limit = timeout or (NETWORK_TIMEOUT_S if url else LOCAL_TIMEOUT_S)
    argv = [*([f"--git-dir={git_dir}"] if git_dir else []), *args]
    environment = git_environment(env, config=settings, protocols=url.scheme if url else "")
    with _process(argv, cwd, environment, feed=input is not None) as process:
        try:
            stdout, stderr = process.communicate(input, timeout=limit)
        except subprocess.TimeoutExpired as expired:
            _end(process)
            raise GitTimeout(
                f"git {_verb(args)} took longer than {limit:g} s" + (f" with {url.text}" if url else ""),
                command=_command(args),
            ) from expired
    if process.returncode != 0:
        raise _failure(args, process.returncode, stdout, stderr, url, credential)
    return stdout


def feed(
    args: list[str],
    chunks: Iterable[bytes],
    *,
    git_dir: Path,
    env: Mapping[str, str] | None = None,
    config: Mapping[str, str] | None = None,
    timeout: float = NETWORK_TIMEOUT_S,
) -> bytes:
    """Run git on input of any size, read as git takes it; its output must be small."""
    check_version()
    environment = git_environment(env, config=config)
    with _process([f"--git-dir={git_dir}", *args], None, environment, feed=True) as process:
        with _alarm(process, timeout) as rang:
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):  # git's own words about it follow
                    for chunk in chunks:
                        process.stdin.write(chunk)
            stdout, stderr = process.communicate()
        if rang.is_set():
            raise GitTimeout(f"git {_verb(args)} took longer than {timeout:g} s", command=_command(args))
        if process.returncode != 0:
            raise _failure(args, process.returncode, stdout, stderr, None, None)
    return stdout


@contextlib.contextmanager
def interactive(
    args: list[str], *, git_dir: Path, env: Mapping[str, str] | None = None, timeout: float = LOCAL_TIMEOUT_S
) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The stdin and stdout of a git process to converse with; ended, whatever it does, at the time limit."""
    check_version()
    with (
        _process([f"--git-dir={git_dir}", *args], None, git_environment(env), feed=True) as process,
        _alarm(process, timeout),
    ):
        if process.stdin is None or process.stdout is None:
            raise GitError("git was started without pipes")
        yield process.stdin, process.stdout


@contextlib.contextmanager
def _alarm(process: subprocess.Popen[bytes], timeout: float) -> Iterator[threading.Event]:
    rang = threading.Event()

    def ring() -> None:
        rang.set()
        _end(process)

    timer = threading.Timer(timeout, ring)
    timer.daemon = True
    timer.start()
    try:
        yield rang
    finally:
        timer.cancel()


@functools.cache
def check_version() -> str:
    """The version of the git binary.

    Raises:
        GitTooOld: below `MINIMUM_VERSION`, or there is no git at all.
    """
    with _process(["version"], None, git_environment(), feed=False) as process:
        text = process.communicate(timeout=LOCAL_TIMEOUT_S)[0].decode("ascii", "replace")
    return require_version(text)


def require_version(text: str) -> str:
    """The version in the words of `git version`, if it is not too old."""
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if match is None:
        raise GitTooOld(f"cannot tell git's version from {sanitise(text, 80)!r}")
    if tuple(int(part or 0) for part in match.groups()) < MINIMUM_VERSION:
        raise GitTooOld(
            f"git {match[0]} is too old", hint=f"install git {'.'.join(map(str, MINIMUM_VERSION))} or newer"
        )
    return match[0]


def drop_from_environment() -> list[str]:
    """Names of this process's variables that git must not inherit: its own, ours, the loader's."""
    return [name for name in os.environ if _DROPPED.match(name) and name not in _ENVIRONMENT]


@contextlib.contextmanager
def _process(
    args: list[str], cwd: Path | None, environment: Mapping[str, str], *, feed: bool
) -> Iterator[subprocess.Popen[bytes]]:
    if cwd is not None and not cwd.is_dir():
        raise GitNotFound(f"there is no folder {cwd}")  # GitPython would silently use the current one
    # GitPython adds to the inherited environment and cannot take away from it; env(1) can, by name alone.
    dropped = [part for name in drop_from_environment() if name not in environment for part in ("-u", name)]
    try:
        handle = Git(str(cwd) if cwd else None).execute(
            [*(["env", *dropped] if dropped else []), "git", *args],
            as_process=True,
            istream=subprocess.PIPE if feed else None,
            env=dict(environment),
            start_new_session=True,
        )
    except GitCommandNotFound as error:
        raise GitTooOld("there is no git on PATH", hint="install git 2.39.4 or newer") from error
    process: subprocess.Popen[bytes] = handle.proc  # type: ignore[assignment]
    try:
        yield process
    finally:
        if process.poll() is None:
            _end(process)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """TERM first: git removes its lock files; then KILL, for it and all that it started."""
    for number, patience in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return


def _authorization(credential: GitCredential) -> str:
    pair = f"{credential.username or 'x-access-token'}:{credential.password}"
    return "Authorization: Basic " + base64.b64encode(pair.encode()).decode()


def _failure(  # noqa: PLR0917
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
        words = words.replace(credential.password, "***").replace(_authorization(credential)[21:], "***")
    last = [line for line in words.splitlines() if line.strip() and not line.startswith(("To ", "Done"))]
    target = f" with {url.text}" if url else ""
    message = f"git {_verb(args)}{target} failed: " + ("; ".join(last[-6:]) or f"exit code {code}")
    for pattern, kind, hint in _KINDS:
        if re.search(pattern, words):
            return kind(message, hint=hint, command=_command(args), stderr=words)
    return GitError(message, command=_command(args), stderr=words)


def _verb(args: list[str]) -> str:
    return next((arg for arg in args if not arg.startswith("-")), "")


def _command(args: list[str]) -> str:
    return sanitise(" ".join(["git", *args]), 400)
