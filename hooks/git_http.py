"""The built-in git server: smart HTTP over `git http-backend`, as an ASGI application.

`git push` and `git fetch` work against it without any other service. Who may do what is the caller's to
say (`authorize`); which refs a restricted credential may push is enforced by git's own pre-receive hook.
After a push `on_push` is asked what it led to, and its lines are shown by the pusher's git: they are added
to the answer's own progress channel, so no hook process and no call back are needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from trainforge.config.errors import NotFound, TooLarge, TrainForgeError
from trainforge.hooks.git import init_bare
from trainforge.hooks.gitrun import git_environment, run, sanitise
from trainforge.hooks.pktline import LineInserter

logger = logging.getLogger("trainforge.git")

MAX_PUSH_BYTES = 4 * 1024**3
MAX_FETCH_REQUEST_BYTES = 64 * 1024**2
MAX_HEADER_BYTES = 32 * 1024
REQUEST_TIMEOUT_S = 3600.0
ON_PUSH_TIMEOUT_S = 5.0
PROCESSES = 16
MAX_WORDS, MAX_WORD_LINES = 4096, 5
SERVICES = ("git-upload-pack", "git-receive-pack")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_ROUTE = re.compile(
    rf"/(?P<name>{_NAME}(?:/{_NAME})?)/(?P<rest>info/refs|git-upload-pack|git-receive-pack)\Z"
)
_PROTOCOL = re.compile(r"version=[0-9](?::[a-z0-9=.-]{1,32}){0,4}\Z")
_PRE_RECEIVE = """\
#!/bin/sh
# Refuses every ref that is not in TRAINFORGE_PUSH_REFS; an entry ending in / allows all below it.
set -f
while read -r old new ref; do
    allowed=
    for entry in $TRAINFORGE_PUSH_REFS; do
        case $entry in
            */) case $ref in "$entry"*) allowed=1 ;; esac ;;
            *) if [ "$ref" = "$entry" ]; then allowed=1; fi ;;
        esac
    done
    if [ -z "$allowed" ]; then
        echo "TrainForge: this credential may not push to $ref" >&2
        exit 1
    fi
done
"""
_SERVER_CONFIG = {
    "http.receivepack": "true",
    "uploadpack.allowFilter": "true",
    "uploadpack.allowAnySHA1InWant": "true",
    "receive.autogc": "false",
    "receive.maxInputSize": str(MAX_PUSH_BYTES),
    "core.fsync": "committed",  # what a push was told is stored survives a power cut
    "core.fsyncMethod": "batch",
}


@dataclass(frozen=True)
class Access:
    """What somebody may do with one repository.

    `refs` restricts pushes to these full names (or, ending in `/`, all below), and then also to new
    commits on top: nothing is rewritten or deleted. Empty is no restriction.
    """

    user: str
    write: bool = False
    create: bool = False
    refs: tuple[str, ...] = ()


Authorize = Callable[[str, Any, str, str], Awaitable[Access | None]]  # name, ASGI scope, service, header
OnPush = Callable[[str], Awaitable[list[str]]]


def repository_name(text: str) -> str:
    """The canonical name of a built-in repository, `.git` taken off.

    Raises:
        NotFound: it cannot be one.
    """
    name = text.removesuffix(".git")
    parts = name.split("/")
    if not re.fullmatch(rf"{_NAME}(?:/{_NAME})?", name) or any(
        p.endswith((".git", ".lock", ".")) for p in parts
    ):
        raise NotFound(f"{sanitise(text, 100)!r} is not the name of a repository")
    return name


def repository_path(root: Path, name: str) -> Path:
    """Where the built-in server keeps a repository."""
    return root / f"{repository_name(name)}.git"


@dataclass(frozen=True)
class _Request:
    scope: Scope
    receive: Receive
    name: str
    rest: str
    service: str

    def header(self, name: str) -> str:
        wanted = name.encode()
        return next((v.decode("latin-1") for k, v in self.scope["headers"] if k == wanted), "")


class GitHttpApp:
    """Serves the bare repositories below `root`; a repository is created by the first push to it."""

    def __init__(self, root: Path, authorize: Authorize, on_push: OnPush) -> None:
        self._root, self._authorize, self._on_push = root, authorize, on_push
        self._slots = asyncio.Semaphore(PROCESSES)
        self._hooks = root / ".hooks"
        self._hooks.mkdir(parents=True, exist_ok=True)
        hook = self._hooks / "pre-receive"
        aside = hook.with_suffix(f".{os.getpid()}")
        aside.write_text(_PRE_RECEIVE)
        aside.chmod(0o755)
        aside.replace(hook)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            request = self._route(scope, receive)
            authorization = request.header("authorization")
            access = await self._authorize(request.name, scope, request.service, authorization)
            if access is None:
                realm = [(b"www-authenticate", b'Basic realm="TrainForge", charset="UTF-8"')]
                await _answer(send, 401, "TrainForge: give a token as the password", realm)
                return
            if request.service == "git-receive-pack" and not access.write:
                await _answer(send, 403, "TrainForge: this credential may read only")
                return
            await self._prepare(request, access)
        except TrainForgeError as error:
            await _answer(send, error.status, f"TrainForge: {error}")
            return
        async with self._slots:
            await self._serve(request, access, send)

    def _route(self, scope: Scope, receive: Receive) -> _Request:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        match = _ROUTE.match(path)
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        if match is None:
            raise NotFound("this is not a git repository's address", hint="clone and push to /git/<name>.git")
        advertising = match["rest"] == "info/refs"
        service = query.get("service", [""])[0] if advertising else match["rest"]
        if service not in SERVICES or scope["method"] != ("GET" if advertising else "POST"):
            raise NotFound("only git's smart protocol is served", hint="use git 2 or newer")
        return _Request(scope, receive, repository_name(match["name"]), match["rest"], service)

    async def _prepare(self, request: _Request, access: Access) -> None:
        length = request.header("content-length")
        if length and (not length.isdigit() or int(length) > _cap(request)):
            raise TooLarge(f"a request may have {_cap(request)} bytes at most")
        path = repository_path(self._root, request.name)
        if not (path / "HEAD").is_file():
            if request.service != "git-receive-pack" or not access.create:
                raise NotFound(f"there is no repository {request.name}", hint="push to it to create it")
            await asyncio.to_thread(init_bare, path)

    def _environment(self, request: _Request, access: Access) -> dict[str, str]:
        config = dict(_SERVER_CONFIG)
        cgi = {
            "PATH": os.environ.get("PATH", os.defpath),
            "GIT_PROJECT_ROOT": str(self._root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": f"/{request.name}.git/{request.rest}",
            "REQUEST_METHOD": request.scope["method"],
            "QUERY_STRING": f"service={request.service}" if request.rest == "info/refs" else "",
            "CONTENT_TYPE": request.header("content-type"),
            "REMOTE_USER": access.user,
            "REMOTE_ADDR": (request.scope.get("client") or ("unknown",))[0],
        }
        if encoding := request.header("content-encoding"):
            cgi["HTTP_CONTENT_ENCODING"] = encoding
        if length := request.header("content-length"):
            cgi["CONTENT_LENGTH"] = length
        if _PROTOCOL.match(protocol := request.header("git-protocol")):
            cgi["GIT_PROTOCOL"] = protocol
        if access.refs:
            cgi["TRAINFORGE_PUSH_REFS"] = " ".join(access.refs)
            config |= {
                "core.hooksPath": str(self._hooks),
                "receive.denyNonFastForwards": "true",
                "receive.denyDeletes": "true",
            }
        return git_environment(cgi, config=config)

    async def _serve(self, request: _Request, access: Access, send: Send) -> None:
        with tempfile.TemporaryFile() as words:  # a file needs nobody who reads along
            try:
                await self._run(request, access, send, words)
            finally:
                _log_words(request, words)

    async def _run(self, request: _Request, access: Access, send: Send, words: IO[bytes]) -> None:
        process = await asyncio.create_subprocess_exec(
            "git",
            "http-backend",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=words,
            env=self._environment(request, access),
            start_new_session=True,
            limit=MAX_HEADER_BYTES,
        )
        feeding = asyncio.create_task(_feed(process, request))
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await self._relay(process, feeding, request, send)
        except TimeoutError:
            logger.warning("%s of %s ended at its time limit", request.service, request.name)
        finally:
            feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError, TrainForgeError, OSError):
                await feeding
            await _end(process)

    async def _relay(
        self, process: asyncio.subprocess.Process, feeding: asyncio.Task[None], request: _Request, send: Send
    ) -> None:
        head = asyncio.create_task(_read_head(process))
        await asyncio.wait({head, feeding}, return_when=asyncio.FIRST_COMPLETED)
        if feeding.done() and isinstance(error := feeding.exception(), TrainForgeError):
            head.cancel()
            await _answer(send, error.status, f"TrainForge: {error}")
            return
        status, headers = await head
        await send({"type": "http.response.start", "status": status, "headers": headers})
        pushed = request.rest == "git-receive-pack" and status == 200
        inserter = LineInserter() if pushed else None
        stdout = process.stdout
        while stdout is not None and (chunk := await stdout.read(65_536)):
            body = inserter.pass_on(chunk) if inserter else chunk
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
        last = b""
        if inserter:
            last = inserter.finish(await self._after_push(request.name) if inserter.seen else [])
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _after_push(self, name: str) -> list[str]:
        """The lines to show; a push that was stored is never failed by what happens after it."""
        try:
            await asyncio.to_thread(point_head, repository_path(self._root, name))
            async with asyncio.timeout(ON_PUSH_TIMEOUT_S):
                return await self._on_push(name)
        except TimeoutError:
            return ["TrainForge: the push is stored; see `trainforge events` for what comes of it"]
        except TrainForgeError as error:
            return [f"TrainForge: {error}"]
        except Exception:  # process boundary: the pusher gets an answer, the log the traceback
            logger.exception("looking at a push to %s failed", name)
            return ["TrainForge: the push is stored, but looking at it failed; it is tried again"]


def point_head(repo: Path) -> None:
    """Make HEAD name a branch that exists, so that a clone of a first push to `master` has files."""
    head = (repo / "HEAD").read_text().strip().removeprefix("ref: ")
    if (repo / head).exists():
        return
    out = run(["for-each-ref", "--format=%(refname)", "refs/heads"], git_dir=repo).decode().split()
    usable = [ref for ref in out if not ref.startswith("refs/heads/trainforge")]
    if head not in out and usable:
        run(["symbolic-ref", "HEAD", usable[0]], git_dir=repo)


def _log_words(request: _Request, words: IO[bytes]) -> None:
    """What git complained about, its last lines, as one line of the log."""
    words.seek(max(words.seek(0, os.SEEK_END) - MAX_WORDS, 0))
    lines = sanitise(words.read()).split("\n")
    said = "; ".join(line.strip() for line in lines[-MAX_WORD_LINES:] if line.strip())
    if said:
        logger.warning("%s of %s: git says: %s", request.service, request.name, said)


def _cap(request: _Request) -> int:
    return MAX_PUSH_BYTES if request.service == "git-receive-pack" else MAX_FETCH_REQUEST_BYTES


async def _feed(process: asyncio.subprocess.Process, request: _Request) -> None:
    """The request's body into the process; a body cut short never looks complete to git."""
    stdin, size, more = process.stdin, 0, True
    if stdin is None:
        return
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            await _end(process, 0)
            return
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size > _cap(request):
            await _end(process, 0)
            raise TooLarge(f"a request may have {_cap(request)} bytes at most")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            stdin.write(chunk)
            await stdin.drain()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stdin.close()


async def _read_head(process: asyncio.subprocess.Process) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Status and headers of a CGI answer; 500 where the process ended without one."""
    status, headers, stdout = 200, [], process.stdout
    while stdout is not None:
        try:
            line = await stdout.readline()
        except ValueError:
            line = b""
        if not line:
            return 500, [(b"content-type", b"text/plain")]
        name, _, value = line.strip().partition(b":")
        if not name:
            break
        if name.lower() == b"status":
            status = int(value.split()[0])
        else:
            headers.append((name.lower(), value.strip()))
    return status, headers


async def _end(process: asyncio.subprocess.Process, patience: float = 0.1) -> None:
    """Wait a moment for the process, then end it and all that it started."""
    for number, seconds in ((0, patience), (signal.SIGTERM, 5.0), (signal.SIGKILL, 30.0)):
        with contextlib.suppress(ProcessLookupError):
            if number:
                os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await process.wait()
                return


async def _answer(send: Send, status: int, text: str, extra: list[tuple[bytes, bytes]] | None = None) -> None:
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        *(extra or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{text}\n".encode(), "more_body": False})
