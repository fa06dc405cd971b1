"""Ways from the public network to a local port: none, ngrok, or any program that prints its URL."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import signal
import subprocess
import threading
import time
from typing import Protocol

from trainforge.config.errors import SettingsError, Unreachable
from trainforge.config.settings import ExecutorSettings

START_TIMEOUT_S = 60.0
# A URL without a path: what a tunnel gives out, unlike the terms and manuals that programs print before it.
_URL = re.compile(rb"https?://[A-Za-z0-9.-]++(?::\d++)?+/?+(?=[\s\"'<>|.,;)\x1b]|$)")


class Tunnel(Protocol):
    def url(self) -> str:
        """The public URL; opens the tunnel, and opens it again when it has gone.

        Raises:
            Unreachable: it cannot be opened now.
        """

    def close(self) -> None: ...


def open_tunnel(settings: ExecutorSettings, port: int) -> Tunnel:
    if settings.tunnel == "command":
        return CommandTunnel(settings.tunnel_command, port)
    if settings.tunnel == "ngrok":
        return NgrokTunnel(port, settings.ngrok_token.get_secret_value())
    return Direct(settings.public_url or f"http://{settings.host}:{port}")


class Direct:
    """The port can be reached as it is, or by a way that somebody else keeps open."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def url(self) -> str:
        return self._url

    def close(self) -> None:
        pass


class CommandTunnel:
    """Runs a program such as `ssh -R` or cloudflared and takes the first URL without a path it prints."""

    def __init__(self, command: str, port: int, start_timeout: float = START_TIMEOUT_S) -> None:
        try:
            self.argv = [part.replace("{port}", str(port)) for part in shlex.split(command)]
        except ValueError as error:
            raise SettingsError(f"tunnel_command cannot be read: {error}", hint="check its quotes") from error
        self.start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._drain: threading.Thread | None = None
        self._url = ""

    def url(self) -> str:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._open()
        return self._url

    def _open(self) -> None:
        try:
            process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise Unreachable(f"tunnel_command {self.argv[0]} cannot be started: {error.strerror}") from error
        self._process = process
        said = self._read_url(process)
        match = _URL.search(said)
        if match is None:
            self.close()
            words = said.decode("utf-8", "replace").strip()[-1000:]
            raise Unreachable(f"the tunnel program printed no URL: {words or 'nothing at all'}")
        self._url = match[0].decode().rstrip("/.,;)")
        self._drain = threading.Thread(target=_discard, args=(process,), name="tunnel-output", daemon=True)
        self._drain.start()

    def _read_url(self, process: subprocess.Popen[bytes]) -> bytes:
        """Output up to the end of the line with a URL, or what there was when it ended or time was up."""
        assert process.stdout is not None  # noqa: S101 - asked for above
        said = b""
        end = time.monotonic() + self.start_timeout
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while (left := end - time.monotonic()) > 0 and len(said) < 1_000_000:
                if not selector.select(left):
                    break
                part = os.read(process.stdout.fileno(), 65536)
                said += part
                match = _URL.search(said)
                if not part or (match and said.find(b"\n", match.end()) >= 0):
                    break
        return said

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)
                break
        if self._drain:
            self._drain.join(3)
        if process.stdout:
            process.stdout.close()


def _discard(process: subprocess.Popen[bytes]) -> None:
    """A program whose output nobody reads would stop at a full pipe."""
    assert process.stdout is not None  # noqa: S101
    with contextlib.suppress(OSError, ValueError):
        while os.read(process.stdout.fileno(), 65536):
            pass


class NgrokTunnel:
    """An ngrok tunnel through pyngrok, which is imported only where it is used."""

    def __init__(self, port: int, token: str) -> None:
        from pyngrok import conf  # noqa: PLC0415 - costs a tenth of a second that only ngrok's users pay

        self.port = port
        self.config = conf.PyngrokConfig(auth_token=token or None, monitor_thread=False)
        self._url = ""

    def url(self) -> str:
        from pyngrok import exception, ngrok, process  # noqa: PLC0415

        try:
            if self._url and process.is_process_running(self.config.ngrok_path):
                return self._url
            self._url = str(ngrok.connect(str(self.port), "http", pyngrok_config=self.config).public_url)
        except exception.PyngrokError as error:
            self._url = ""
            raise Unreachable(
                f"ngrok: {str(error)[:1000]}", hint="check ngrok_token, or use tunnel: command"
            ) from error
        return self._url.rstrip("/")

    def close(self) -> None:
        from pyngrok import ngrok  # noqa: PLC0415

        ngrok.kill(self.config)
