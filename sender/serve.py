"""Running a sender as a process: one per data directory, announced in a file, ended within seconds."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import shlex
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NoReturn

import uvicorn
from pydantic import SecretStr

from trainforge.config.discreet import log_discreetly
from trainforge.config.errors import Conflict, SettingsError
from trainforge.config.failpoints import failpoint
from trainforge.config.settings import ClientSettings, load_client, save_client
from trainforge.sender.context import Sender
from trainforge.sender.store_audit import SENDER

log = logging.getLogger(__name__)
GRACE_S = 7
LAST_RESORT_S = 9.5
BACKLOG = 2048
# Longer than clients keep an idle connection: who closes first must not be the one that is about to be asked.
KEEP_ALIVE_S = 75
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104
THREADS = 40  # they wait for the disk and for git more than they compute
SWITCH_S = 0.001  # a thread that computes must not hold up those that answer at each of their statements


class Server(uvicorn.Server):
    """uvicorn that lets long polls and streams answer before it waits for them to end."""

    def __init__(self, config: uvicorn.Config, sender: Sender, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._sender, self._listening = sender, listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        sys.setswitchinterval(SWITCH_S)
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "sender"))
        await super().startup(sockets)
        if self.started:
            self._listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        failpoint("52.sender.shutdown")
        self._sender.bell.close()
        await super().shutdown(sockets)


def make_server(app: object, sender: Sender, listening: Callable[[], None] = lambda: None) -> Server:
    config = uvicorn.Config(
        app,  # type: ignore[arg-type] # an ASGI application
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    return Server(config, sender, listening)


@contextlib.contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """Two senders on one data directory would both act on it: the second one is refused.

    Raises:
        Conflict: another process holds the lock, which the kernel takes back when that process ends.
    """
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (data_dir / "sender.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read(20).strip()
            raise Conflict(
                f"a sender runs on {data_dir} already" + (f" (process {holder})" if holder else ""),
                hint="stop that one, or give this one another --data-dir",
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def listen(host: str, port: int) -> socket.socket:
    """Raises SettingsError when the address cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(found[0], found[1])
    except OSError as error:
        raise SettingsError(f"cannot listen on {host}: {error.strerror}", hint="check --host") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(found[4])
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"cannot listen on {host} port {port}: {error.strerror}",
            hint="--port 0 takes a free one",
        ) from error
    return listener


def local_url(host: str, port: int) -> str:
    """How this machine reaches what listens on `host`."""
    host = EVERYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def announce(path: Path, sender: Sender) -> None:
    """Tell programs of this machine where the sender listens; the file is there whole or not at all."""
    aside = path.with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps({"url": sender.local_url, "pid": os.getpid()}))
    aside.replace(path)


def note_settings(sender: Sender) -> None:
    """Settings are changed in a file, by whoever may write it: what differs from the last start is noted."""
    shown = sender.settings.shown()
    before = sender.store.document("settings", "sender")
    changed = {name: value for name, value in shown.items() if before and before.get(name) != value}
    if changed:
        sender.store.audit(SENDER, "settings.changed", "", changed, now=sender.now())
    if before != shown:
        sender.store.put_document("settings", "sender", shown, sender.now())


def welcome(sender: Sender, *, login_link: bool = False) -> None:
    """Let this machine's commands in, at the first start with a new token, and a browser by a link."""
    remark = let_in(sender)
    if sender.people.has_passwords() and not login_link:
        pages = f"  its pages: {sender.base_url}/login; `trainforge user link NAME` lets somebody in once\n"
    else:
        link = sender.people.new_link(sender.now())
        pages = f"  its pages, for 15 minutes and one browser: {sender.base_url}/login?link={link}\n"
    everywhere = sender.settings.host in EVERYWHERE and not sender.settings.public_url
    others = "  others are told this address too, and cannot reach it: set public_url\n" if everywhere else ""
    sys.stdout.write(
        f"TrainForge's sender listens at {sender.base_url}\n"
        f"{others}"
        f"{pages}"
        "  a machine joins with what `trainforge sender token` prints; Ctrl-C stops the sender\n"
        f"{remark}"
    )
    sys.stdout.flush()


def let_in(sender: Sender) -> str:
    """Have this machine's commands use this sender, unless they use another one; what to say then."""
    client, token_file = load_client(), sender.data_dir / "admin.token"
    token = client.token.get_secret_value()
    known = bool(token) and sender.people.by_token(token, sender.now()) is not None
    elsewhere = bool(token) and not known and client.sender_url != sender.local_url
    if not known and not sender.people.has_tokens():
        owner = sender.people.first_admin()
        token = sender.people.new_token("first-start", sender.now(), user=owner.id)
        known = True
        if elsewhere:
            token_file.touch(0o600)
            token_file.write_text(f"{token}\n")
    if elsewhere:
        switch = f"trainforge login {sender.local_url}"
        switch += f" < {shlex.quote(str(token_file))}" if token_file.exists() else ""
        return f"  this machine's commands go on using {client.sender_url}; to switch: {switch}\n"
    if known and (client.sender_url != sender.local_url or client.token.get_secret_value() != token):
        save_client(ClientSettings(sender_url=sender.local_url, token=SecretStr(token)))
    return ""


def leave(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def end_for_certain(server: Server, about: Path) -> None:
    """Whatever a thread still waits for (a remote that does not answer): all that counts is on disk."""

    def last_resort() -> None:
        while not server.should_exit:
            threading.Event().wait(0.2)
        threading.Event().wait(LAST_RESORT_S)
        about.unlink(missing_ok=True)
        os._exit(0)

    threading.Thread(target=last_resort, name="last-resort", daemon=True).start()


def log_to_stderr() -> None:
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        log_discreetly()
        for chatty in ("httpx2", "httpcore", "watchdog", "alembic", "uvicorn"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
