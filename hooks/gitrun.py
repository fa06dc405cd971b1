"""The one place that starts the git binary: scrubbed environment, argument lists, limits, typed errors.

GitPython is the door to the process; its convenience methods are not used, because they read the
environment and the configuration of whoever runs them. Everything that could make git run something else
(hooks, monitors, helpers, pagers, remote transports) is switched off above any repository's own settings.
"""

from __future__ import annotations

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

from trainforge.config.messages import GitCredential
from trainforge.hooks.addresses import GitUrl, validate_url
from trainforge.hooks.gitfaults import (
    GitAuthFailed,
    GitBlocked,
    GitError,
    GitNotFound,
    GitRejected,
    GitTimeout,
    GitTooLarge,
    GitTooOld,
    GitUnreachable,
    authorization,
    command_of,
    failure,
    sanitise,
    verb,
)
from trainforge.hooks.growth import Growth

__all__ = [
    "GitAuthFailed",
    "GitBlocked",
    "GitError",
    "GitNotFound",
    "GitRejected",
    "GitTimeout",
    "GitTooLarge",
    "GitTooOld",
    "GitUnreachable",
    "Growth",
    "check_version",
    "drop_from_environment",
    "feed",
    "git_environment",
    "interactive",
    "require_version",
    "run",
    "sanitise",
]

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
    growth: Growth | None = None,
) -> bytes:
    """Run `git ARGS` and return its standard output.

    `remote` names the only address this command may talk to (it must also stand in `args`); without it no
    transport is open. `credential` is sent to that address alone, over http(s). `growth` bounds what
    it brings.

    Raises:
        GitError: or the subclass that fits; `AddressRefused` for a `remote` that is not allowed.
    """
    check_version()
    url = remote if isinstance(remote, GitUrl) else None
    if isinstance(remote, str) and remote:
        url = validate_url(remote, allow_file=allow_file)
    settings = dict(config or {})
    if url and credential and credential.password and url.scheme in ("http", "https"):
        settings[f"http.{url.text}.extraHeader"] = authorization(credential)
    limit = timeout or (NETWORK_TIMEOUT_S if url else LOCAL_TIMEOUT_S)
    argv = [*([f"--git-dir={git_dir}"] if git_dir else []), *args]
    environment = git_environment(env, config=settings, protocols=url.scheme if url else "")
    with (
        _process(argv, cwd, environment, feed=input is not None) as process,
        growth.watched(lambda: _end(process)) if growth else contextlib.nullcontext(),
    ):
        try:
            stdout, stderr = process.communicate(input, timeout=limit)
        except subprocess.TimeoutExpired as expired:
            _end(process)
            raise GitTimeout(
                f"git {verb(args)} took longer than {limit:g} s" + (f" with {url.text}" if url else ""),
                command=command_of(args),
            ) from expired
    if growth and growth.exceeded:
        raise GitTooLarge(
            f"git {verb(args)}{f' with {url.text}' if url else ''} was ended: it brings more than "
            f"{growth.most / 2**20:,.0f} MiB",
            command=command_of(args),
        )
    if process.returncode != 0:
        raise failure(args, process.returncode, stdout, stderr, url, credential)
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
            raise GitTimeout(f"git {verb(args)} took longer than {timeout:g} s", command=command_of(args))
        if process.returncode != 0:
            raise failure(args, process.returncode, stdout, stderr, None, None)
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
