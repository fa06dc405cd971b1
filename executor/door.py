"""Where the sender knocks: the small server of an executor in push mode, and the address it is found at."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from trainforge.config.errors import MessageInvalid, NotFound, NotTrusted, TooLarge, TrainForgeError
from trainforge.config.messages import JournalBatch, NodeKey
from trainforge.config.settings import ExecutorSettings
from trainforge.config.trust import MAX_TOKEN_BYTES, SigningKey, sign_request, verify_request
from trainforge.executor.announce import Announcer
from trainforge.executor.capabilities import own_capabilities, version_of
from trainforge.executor.endpoint import EndpointFile
from trainforge.executor.identity import ExecutorIdentity
from trainforge.executor.mailbox import MAX_ANSWER, Mailbox
from trainforge.executor.mailbox import routes as mailbox_routes
from trainforge.executor.node import Node
from trainforge.executor.tunnel import open_tunnel

log = logging.getLogger(__name__)

CHECK_S = 1.0
REMEMBERED = 10_000


class Door:
    """Serves the sender on a local port, keeps the tunnel to it open, and tells its public URL."""

    def __init__(  # noqa: PLR0917 - what it opens, for whom, and what it opens to
        self,
        settings: ExecutorSettings,
        identity: ExecutorIdentity,
        key: SigningKey,
        accept: Callable[[str], str],
        node: Callable[[NodeKey], Node | None],
        moved: Callable[[], None],
        mailbox: Mailbox | None = None,
    ) -> None:
        self.settings = settings
        self.identity = identity
        self.key = key
        self.accept = accept
        self.node = node
        self.moved = moved
        self.mailbox = mailbox
        self.file = EndpointFile(settings, identity, key)
        self.announcer = Announcer(settings) if settings.endpoint_repository else None
        self._seen: dict[str, None] = {}
        self._closing = threading.Event()
        self._socket = socket.create_server((settings.host, settings.port))
        self.port: int = self._socket.getsockname()[1]
        self.tunnel = open_tunnel(settings, self.port)
        config = uvicorn.Config(self.application(), log_level="warning", lifespan="off", access_log=False)
        self.server = uvicorn.Server(config)
        self._threads = [
            threading.Thread(target=self.server.run, args=([self._socket],), name="door", daemon=True),
            threading.Thread(target=self._keep_open, name="tunnel", daemon=True),
        ]

    @property
    def url(self) -> str:
        return self.file.url

    @property
    def seq(self) -> int:
        return self.file.seq

    def start(self) -> None:
        for thread in self._threads:
            thread.start()
        if self.announcer:
            self.announcer.start()

    def rekeyed(self, key: SigningKey) -> None:
        self.key = self.file.key = key

    def close(self) -> None:
        self._closing.set()
        if self.announcer:
            self.announcer.close()
        if self.mailbox:
            self.mailbox.close()
        self.server.should_exit = True
        for thread in self._threads:
            thread.join(5)
        self.tunnel.close()
        self._socket.close()

    def _keep_open(self) -> None:
        """Open the tunnel, and again whenever it has gone; another URL is published at once."""
        pause = CHECK_S
        while not self._closing.is_set():
            try:
                url = self.tunnel.url()
                pause = CHECK_S
            except TrainForgeError as error:
                log.error("tunnel: %s", error)  # noqa: TRY400
                pause = min(pause * 2, 60.0)
            else:
                if url != self.file.url:
                    has = own_capabilities(self.settings)
                    endpoint = self.file.publish(url, self.port, has)
                    if self.announcer:
                        self.announcer.tell(endpoint)
                    log.info("reachable at %s", url)
                    self.moved()
            self._closing.wait(pause)

    # --- routes ----------------------------------------------------------------------------------------

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/orders", self._orders, methods=["POST"]),
                Route("/v1/prove", self._prove, methods=["POST"]),
                Route("/v1/nodes/{job}/{attempt:int}/{rank:int}/journal", self._journal, methods=["GET"]),
                Route("/health", self._health, methods=["GET"]),
                *(mailbox_routes(self.mailbox, self._signed) if self.mailbox else []),
            ],
            exception_handlers={TrainForgeError: _problem},
        )

    async def _orders(self, request: Request) -> Response:
        body = await read_body(request, MAX_TOKEN_BYTES)
        order = await run_in_threadpool(self.accept, body.decode("ascii", "replace").strip())
        return JSONResponse({"accepted": order}, status_code=202)

    async def _prove(self, request: Request) -> Response:
        """Answer a nonce in a way that only the holder of the key can, for the URL that was registered."""
        try:
            nonce = json.loads(await read_body(request, 4096))["nonce"]
        except (ValueError, KeyError, TypeError) as error:
            raise MessageInvalid("expected a JSON object with a nonce") from error
        if not isinstance(nonce, str) or not 16 <= len(nonce) <= 256:
            raise MessageInvalid("a nonce has 16 to 256 characters")
        proof = sign_request(
            self.key,
            subject=self.identity.executor,
            audience=self.identity.sender,
            method="PROVE",
            path=nonce,
            body=self.url.encode(),
            now=time.time(),
        )
        return JSONResponse({"proof": proof, "executor": self.identity.executor})

    async def _journal(self, request: Request) -> Response:
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        self._check(request.headers.get("Authorization", ""), "GET", path)
        try:
            key = NodeKey(**request.path_params)
            after = max(0, int(request.query_params.get("after", "0")))
        except (ValidationError, ValueError) as error:
            raise MessageInvalid("not a node, or not a number") from error
        node = self.node(key)
        if node is None:
            raise NotFound(f"node {key} is not known here")
        records = await run_in_threadpool(node.journal.after, after)
        await run_in_threadpool(node.journal.sync)
        node.acknowledge(after)
        batch = JournalBatch(token=node.token(), after=after, records=records)
        return Response(batch.model_dump_json(), media_type="application/json")

    async def _signed(self, request: Request) -> bytes:
        """The body of a request that the sender has made."""
        body = await read_body(request, MAX_ANSWER + MAX_TOKEN_BYTES)
        self._check(request.headers.get("Authorization", ""), request.method, request.url.path, body)
        return body

    def _check(self, authorization: str, method: str, path: str, body: bytes = b"") -> None:
        claims = verify_request(
            authorization,
            subject=self.identity.sender,
            keys=self.identity.sender_keys,
            audience=self.identity.executor,
            method=method,
            path=path,
            body=body,
            now=time.time(),
        )
        if claims.jti in self._seen:
            raise NotTrusted("this request was made before")
        self._seen[claims.jti] = None
        while len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]

    async def _health(self, request: Request) -> Response:
        return JSONResponse(
            {"status": "ok", "version": version_of("trainforge"), "executor": self.identity.executor}
        )


async def read_body(request: Request, limit: int) -> bytes:
    """The body, refused as soon as it is known to be too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"the body is larger than {limit} bytes")
    return bytes(body)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, TrainForgeError)  # noqa: S101 - it is registered for nothing else
    document: dict[str, Any] = {
        "type": "about:blank", "title": error.code, "status": error.status,
        "detail": error.message, "code": error.code, "hint": error.hint,
    }  # fmt: skip
    return JSONResponse(document, status_code=error.status, media_type="application/problem+json")
