"""A sender for one job and without an address: nobody can reach it, so it goes to the executors.

It is the sender as it always is, on a database that lasts as long as the run, behind a socket that only
this process's user can open. Executors are those that announce themselves on the repository's branch
`trainforge-executors`; what they would ask of a sender waits in their mailboxes and is fetched from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
from pydantic import SecretStr
from starlette.applications import Starlette

from trainforge.config.errors import MessageInvalid, NotTrusted, TrainForgeError, Unreachable
from trainforge.config.messages import Endpoint, JoinRequest
from trainforge.config.settings import SenderSettings
from trainforge.config.trust import SigningKey, new_join_token, public_text, sign_request
from trainforge.hooks.branch_files import read_folder
from trainforge.hooks.gitfaults import GitAuthFailed
from trainforge.hooks.outward import guarded_client
from trainforge.hooks.triggers import EXECUTORS_BRANCH
from trainforge.sender import actions, serve
from trainforge.sender.announced import Standing, read_endpoint
from trainforge.sender.app import LOOPS, make_app, open_sender
from trainforge.sender.context import Sender
from trainforge.sender.dispatch import prove
from trainforge.sender.events import place_of
from trainforge.sender.fence import RESTORE_S
from trainforge.sender.keys import CURRENT
from trainforge.sender.store_members import Member

log = logging.getLogger(__name__)
FOLDER = "executors"
ADDRESS = "http://direct"  # of no host: requests to it go through the socket
TAKE_WAIT_S = 20.0
TIMEOUT_S = 40.0
AGAIN_S, LOOK_AGAIN_S = 3.0, 60.0
FIRST_TRY_S, START_S = 30.0, 30.0
TOLD_S, LEAVE_S, END_S = 5.0, 5.0, 10.0  # what an end waits for at most, whoever does not answer
MAX_MAIL = 16 * 1024 * 1024
NO_TOKEN = "it is read without a token: set TRAINFORGE_GIT_TOKEN, or teach a credential helper of git's"  # noqa: S105
PATHS = "/v1/"  # an executor asks for nothing else
PASSED_ON = ("content-type", "tf-nonce", "retry-after")


@dataclass(frozen=True)
class Direct:
    """Whose commits it trains, as whom it reads them, and the key that the executors trust."""

    repository: str
    key: SigningKey
    git_username: str = ""
    git_token: str = ""
    allow_private: bool = False


@dataclass
class DirectSender:
    """Use as a context manager; `api` (a socket) and `token` are for the client of its API."""

    wanted: Direct
    folder: Path = field(init=False)
    sender: Sender = field(init=False)
    token: str = ""
    repository: str = ""
    standing: dict[str, Standing] = field(default_factory=dict)
    unused: dict[str, TrainForgeError] = field(default_factory=dict)  # files that name nobody to go to

    @property
    def api(self) -> Path:
        return self.folder / "api"

    def __enter__(self) -> DirectSender:
        self.folder = Path(tempfile.mkdtemp(prefix="trainforge-direct-"))
        self._session = secrets.token_urlsafe(24)
        self._ended = threading.Event()
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        try:
            self._open()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._server.should_exit = True
            self._thread.join(END_S)
        if self._listener is not None:
            self._listener.close()
        if hasattr(self, "sender"):
            self.sender.store.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self) -> None:
        wanted, data_dir = self.wanted, self.folder / "sender"
        data_dir.mkdir(mode=0o700)
        wanted.key.save(data_dir / CURRENT)
        settings = SenderSettings(
            data_dir=data_dir,
            # Whatever the environment says of a sender that stays is not this one's.
            database_url="",
            public_url="",
            repositories=[],
            workflows={},
            notify={},
            git_username=wanted.git_username,
            git_token=SecretStr(wanted.git_token),
            allow_private_endpoints=wanted.allow_private,
        )
        self.sender = sender = open_sender(settings)
        (data_dir / CURRENT).unlink()  # a run that is killed leaves this folder behind
        sender.local_url = sender.base_url = ADDRESS
        self.token = sender.people.new_token("direct", sender.now(), role="admin")
        self.repository = actions.register(sender, wanted.repository, None).name
        try:
            self.look()
        except GitAuthFailed as error:
            error.hint = error.hint if wanted.git_token else NO_TOKEN
            raise
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.api))
        self.api.chmod(0o600)
        app = make_app(sender, {"core": LOOPS["core"], "post": self._post})
        self._app: Starlette = app
        listening = threading.Event()
        self._server = serve.make_server(app, sender, listening.set)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, name="direct", daemon=True
        )
        self._thread.start()
        if not listening.wait(START_S):
            raise Unreachable("the one-shot sender does not start", hint="is this machine overloaded?")

    # --- who is there ---------------------------------------------------------------------------------

    def look(self) -> None:
        """Read where the executors are now.

        Raises:
            TrainForgeError: the repository cannot be read.
        """
        sender = self.sender
        repo = next(repo for repo in sender.store.repositories() if repo.name == self.repository)
        place = place_of(sender, repo)
        found = read_folder(
            sender.data_dir / "announced.git", place.url, EXECUTORS_BRANCH, FOLDER,
            credential=place.credential, allow_file=place.local,
        )  # fmt: skip
        self.unused = {}
        for path, data in found.items():
            try:
                endpoint = read_endpoint(data, allow_private=self.wanted.allow_private)
            except TrainForgeError as error:
                self.unused[path] = error
                continue
            known = self.standing.get(endpoint.executor)
            if known is None:
                self.standing[endpoint.executor] = Standing(endpoint)
            else:
                known.endpoint = endpoint

    def wait_for_first(self) -> list[Standing]:
        """Everybody, once each was tried or the time for that is over; who is here has said how it is."""
        deadline = time.monotonic() + FIRST_TRY_S
        while time.monotonic() < deadline and not all(map(self._settled, list(self.standing.values()))):
            self._ended.wait(0.1)
        return list(self.standing.values())

    def wait_for_free(self, until: float) -> None:
        """Where all that are there serve other runs: until one is free, or that moment (monotonic)."""
        while time.monotonic() < until and not any(one.here for one in list(self.standing.values())):
            self._ended.wait(0.5)

    def _settled(self, one: Standing) -> bool:
        if not one.here:
            return one.tried
        now = self.sender.now()
        return self.sender.queries.executor(one.endpoint.executor, now).last_seen is not None

    def wait_until_told(self) -> list[str]:
        """Until every order is with its executor, or that takes too long: the names of those to blame."""
        deadline = time.monotonic() + TOLD_S
        while (left := self.sender.store.executors_to_push()) and time.monotonic() < deadline:
            self._ended.wait(0.1)
        return [member.name for member in left]

    # --- the post -------------------------------------------------------------------------------------

    async def _post(self, sender: Sender) -> None:
        """One task for each executor that is announced; new ones are looked for."""
        rounds: dict[str, asyncio.Task[None]] = {}
        local = httpx2.ASGITransport(app=self._app, raise_app_exceptions=False)
        async with (
            guarded_client(allow_private=self.wanted.allow_private, timeout=TIMEOUT_S) as client,
            httpx2.AsyncClient(transport=local, base_url=ADDRESS, timeout=TIMEOUT_S) as here,
        ):
            try:
                while not sender.stopping:
                    for executor, one in self.standing.items():
                        if executor not in rounds:
                            rounds[executor] = asyncio.create_task(self._serve(one, client, here))
                    await sender.bell.wait("post", LOOK_AGAIN_S)
                    if not sender.stopping:
                        with contextlib.suppress(TrainForgeError):
                            await asyncio.to_thread(self.look)
            finally:
                leaving = asyncio.create_task(self._leave_all(rounds.values(), client))
                while not leaving.done():  # also when cancelled: else nobody has the executors for a while
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.shield(leaving)

    async def _serve(self, one: Standing, client: httpx2.AsyncClient, here: httpx2.AsyncClient) -> None:
        """Fetch and answer what this executor asks; again and again where it is not to be had."""
        busy: set[asyncio.Task[None]] = set()
        while not self.sender.stopping:
            try:
                letters = await self._enter(one, client)
                while not self.sender.stopping:
                    for letter in letters:
                        task = asyncio.create_task(self._answer(one, letter, client, here))
                        busy.add(task)
                        task.add_done_callback(busy.discard)
                    letters = await self._take(one, client, TAKE_WAIT_S)
            except (httpx2.HTTPError, httpx2.InvalidURL, TrainForgeError) as error:
                one.here, one.why = False, str(error) or type(error).__name__
                one.busy = isinstance(error, TrainForgeError) and error.code == "busy"
                log.info("%s at %s: %s", one.endpoint.name, one.endpoint.public_url, one.why)
            except Exception as error:  # one executor's trouble must not be that of all
                log.exception("serving %s", one.endpoint.name)
                one.here, one.why = False, f"TrainForge itself failed: {error}"
            one.tried = True
            await self.sender.bell.wait("post-again", AGAIN_S)

    async def _enter(self, one: Standing, client: httpx2.AsyncClient) -> list[dict[str, Any]]:
        """See that it is the executor and that no other run has it, and know it from now on; its first mail,
        as it may ask at once."""
        sender, endpoint = self.sender, one.endpoint
        member = Member(endpoint.executor, endpoint.name, endpoint.public_key, endpoint.public_url, False)
        try:
            await prove(sender, client, member)
        except NotTrusted as error:
            raise NotTrusted(
                "it trusts another key, or somebody else answers there",
                hint=f"`trainforge executor trust {public_text(sender.key.public)}` on its machine",
            ) from error
        letters = await self._take(one, client, 0.0)
        if not one.here:
            await asyncio.to_thread(self._admit, endpoint)
        one.here, one.tried, one.why = True, True, ""
        return letters

    def _admit(self, endpoint: Endpoint) -> None:
        """Runs before this one may have used the numbers that its new database would give out again."""
        sender, now = self.sender, self.sender.now()
        token = new_join_token(sender.key.id)
        sender.store.add_join_token(token.digest, now, now + 60)
        request = JoinRequest(
            token=token.text,
            name=endpoint.name,
            public_key=endpoint.public_key,
            capabilities=endpoint.capabilities,
        )
        sender.store.join(token.digest, endpoint.executor, request, now)
        if sender.fence is not None:
            sender.fence.raise_above(int(now // RESTORE_S))
        sender.replan()

    async def _take(self, one: Standing, client: httpx2.AsyncClient, wait: float) -> list[dict[str, Any]]:
        answer = await self._say(one, client, "take", {"wait_s": wait})
        requests = answer.get("requests")
        if not isinstance(requests, list):
            raise MessageInvalid("what the executor answers is not its mail")
        return [letter for letter in requests if isinstance(letter, dict)]

    async def _answer(
        self, one: Standing, letter: dict[str, Any], client: httpx2.AsyncClient, here: httpx2.AsyncClient
    ) -> None:
        """A request that cannot be answered is asked again by who made it."""
        path, said = str(letter.get("path", "")), letter.get("headers")
        if not path.startswith(PATHS) or not isinstance(said, dict):
            return
        headers = {name: str(said[name]) for name in ("authorization", "content-type") if name in said}
        try:
            answer = await here.request(
                str(letter.get("method", "")), path, content=str(letter.get("body", "")), headers=headers
            )
            kept = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
            told = {"id": str(letter.get("id", "")), "status": answer.status_code, "headers": kept}
            await self._say(one, client, "answer", {**told, "body": answer.text})
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, TrainForgeError) as error:
            log.info("%s is not answered: %s", one.endpoint.name, error)

    async def _leave_all(self, rounds: Iterable[asyncio.Task[None]], client: httpx2.AsyncClient) -> None:
        for task in rounds:
            task.cancel()
        await asyncio.gather(*rounds, return_exceptions=True)
        known = [one for one in self.standing.values() if one.here]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await asyncio.gather(*(self._leave(one, client) for one in known))

    async def _leave(self, one: Standing, client: httpx2.AsyncClient) -> None:
        with contextlib.suppress(httpx2.HTTPError, TrainForgeError):
            await self._say(one, client, "leave", {})

    async def _say(
        self, one: Standing, client: httpx2.AsyncClient, what: str, said: dict[str, Any]
    ) -> dict[str, Any]:
        """A request to the executor's mailbox, signed.

        Raises:
            TrainForgeError: it refuses, in its words. httpx2.HTTPError: it is not to be reached.
        """
        sender, path = self.sender, f"/v1/mail/{what}"
        body = json.dumps({"session": self._session, **said}).encode()
        proof = sign_request(
            sender.key, subject=sender.id, audience=one.endpoint.executor,
            method="POST", path=path, body=body, now=sender.now(),
        )  # fmt: skip
        headers = {"Authorization": proof, "Content-Type": "application/json"}
        url = f"{one.endpoint.public_url.rstrip('/')}{path}"
        async with client.stream("POST", url, content=body, headers=headers) as answer:
            data = bytearray()
            async for chunk in answer.aiter_bytes():
                data += chunk
                if len(data) > MAX_MAIL:
                    raise MessageInvalid("the executor's mail is too large")
        return _read_answer(answer.status_code, bytes(data))


def _read_answer(status: int, data: bytes) -> dict[str, Any]:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise Unreachable(f"what answers there is no executor (HTTP {status})")
    if status >= 300:
        detail, hint = str(said.get("detail", f"HTTP {status}"))[:500], str(said.get("hint", ""))[:200]
        raise TrainForgeError(detail, hint=hint, code=str(said.get("code", "refused"))[:50])
    return said
