"""Tunnels: a real local forwarding program, and pyngrok with an agent of the test's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx2
import pytest

from support.executors import joined, running, settings
from support.processes import kill_all
from support.sender_double import SenderDouble
from support.servers import serving
from support.waiting import wait_for
from trainforge.config.errors import Unreachable
from trainforge.executor.tunnel import CommandTunnel, NgrokTunnel, open_tunnel

FORWARD = """\
import socket, sys, threading
target = int(sys.argv[1])
server = socket.create_server(("127.0.0.1", 0))
print("connecting ..., by using this you agree to https://tunnel.example.com/website-terms/", flush=True)
print("manual: (https://docs.example.com/connect/apps)", flush=True)
print(f"your url is: http://127.0.0.1:{server.getsockname()[1]}.", flush=True)
def pipe(a, b):
    while data := a.recv(65536):
        b.sendall(data)
    b.shutdown(socket.SHUT_WR)
while True:
    here, _ = server.accept()
    there = socket.create_connection(("127.0.0.1", target))
    threading.Thread(target=pipe, args=(here, there), daemon=True).start()
    threading.Thread(target=pipe, args=(there, here), daemon=True).start()
"""


@pytest.fixture
def served() -> Iterator[int]:
    class Hello(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

    with serving(Hello) as url:
        yield int(url.rpartition(":")[2])


@pytest.fixture
def forward(tmp_path: Path) -> str:
    (tmp_path / "forward.py").write_text(FORWARD)
    return f"{sys.executable} {tmp_path / 'forward.py'} {{port}}"


def test_a_program_that_prints_its_url(served: int, forward: str) -> None:
    tunnel = CommandTunnel(forward, served)
    url = tunnel.url()
    assert httpx2.get(url).text == "hello"
    assert tunnel.url() == url
    tunnel.close()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(url)


def test_a_program_that_dies_is_started_again(served: int, forward: str) -> None:
    tunnel = CommandTunnel(forward, served)
    first = tunnel.url()
    kill_all(forward.split()[1])
    wait_for("another URL", lambda: tunnel.url() != first)
    assert httpx2.get(tunnel.url()).text == "hello"
    tunnel.close()


@pytest.mark.parametrize("command", ["echo nothing to see", "no-such-program-at-all", "sleep 50"])
def test_a_program_that_says_nothing(command: str) -> None:
    tunnel = CommandTunnel(command, 1, start_timeout=0.3)
    with pytest.raises(Unreachable):
        tunnel.url()
    tunnel.close()


def test_a_changed_url_is_published_at_once(double: SenderDouble, tmp_path: Path, forward: str) -> None:
    chosen, _ = joined(
        double,
        tmp_path / "laptop",
        connection="push",
        tunnel="command",
        tunnel_command=forward,
        heartbeat_every=30,
    )
    with running(chosen) as agent:
        wait_for("endpoint", lambda: any(beat.endpoint for beat in double.heartbeats))
        first = double.heartbeats[-1].endpoint
        assert httpx2.get(f"{first}/health").json()["status"] == "ok"
        assert first in (chosen.data_dir / "config.json").read_text()
        kill_all(str(tmp_path))
        wait_for("another endpoint", lambda: double.heartbeats[-1].endpoint not in ("", first))
        assert double.heartbeats[-1].endpoint_seq == 2
        assert agent.door is not None
        assert httpx2.get(f"{agent.door.url}/health").json()["status"] == "ok"


# An executable with ngrok's command line, its three log lines and its local API.
AGENT = """\
#!{python}
import json, sys, http.server
if sys.argv[1:2] == ["version"]:
    print("ngrok version 3.0.0"); sys.exit()
if sys.argv[1:2] == ["config"]:
    sys.exit()
class Api(http.server.BaseHTTPRequestHandler):
    endpoints = []
    def reply(self, status, data=None):
        body = json.dumps(data).encode() if data is not None else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.reply(200, {{"endpoints": self.endpoints, "tunnels": self.endpoints}})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        address = str(asked.get("upstream", {{}}).get("url") or asked.get("addr"))
        port = address.rsplit(":", 1)[-1]
        url = "http://127.0.0.1:" + port
        said = {{"name": asked.get("name", "t"), "id": "t", "uri": "/api/endpoints/t", "public_url": url,
                "url": url, "proto": "http", "config": {{"addr": url, "inspect": False}},
                "upstream": {{"url": url}}, "metrics": {{}}}}
        self.endpoints.append(said)
        self.reply(201, said)
    def log_message(self, *a): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
port = server.server_address[1]
for line in (f'msg="starting web service" obj=web addr=127.0.0.1:{{port}}',
             'msg="tunnel session started" obj=tunnels.session',
             'msg="client session established" obj=csess'):
    print("t=2026-01-01T00:00:00+0000 lvl=info", line, flush=True)
server.serve_forever()
"""


def test_ngrok_through_pyngrok(served: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ngrok"
    program.write_text(AGENT.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PYNGROK_NGROK_PATH", str(program))
    monkeypatch.setenv("PYNGROK_CONFIG_PATH", str(tmp_path / "ngrok.yml"))
    monkeypatch.setenv("HOME", str(tmp_path))
    tunnel = open_tunnel(settings(tmp_path / "x", connection="push", tunnel="ngrok"), served)
    assert isinstance(tunnel, NgrokTunnel)
    assert httpx2.get(tunnel.url()).text == "hello"
    assert tunnel.url() == tunnel.url()
    tunnel.close()
    assert os.environ["PYNGROK_NGROK_PATH"] == str(program)
