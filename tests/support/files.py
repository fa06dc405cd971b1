"""A web server for files: ranges, versions, logins, redirects, and answers that stop half-way."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """`files` are served at their paths; the others are about them."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    logins: dict[str, str] = field(default_factory=dict)  # path -> Authorization
    leads: dict[str, str] = field(default_factory=dict)  # path -> another URL
    stops: dict[str, list[int]] = field(
        default_factory=dict
    )  # path -> after how many bytes, next answer first
    held: dict[str, threading.Event] = field(default_factory=dict)  # an answer that stops waits for it
    posts: dict[str, bytes] = field(default_factory=dict)  # path -> answer
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def asked_for(self, path: str) -> list[dict[str, str]]:
        return [headers for asked, headers in self.asked if asked == path]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    served: FileServer

    def handle_error(self, *arguments: object) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer(self.server.served.posts)

    def do_GET(self) -> None:
        self._answer(self.server.served.files)

    def _answer(self, contents: dict[str, bytes]) -> None:
        served, path = self.server.served, self.path.partition("?")[0]
        served.asked.append((path, dict(self.headers)))
        login = self.headers.get("Authorization")
        if path in served.leads:
            self.send_response(302)
            self.send_header("Location", served.leads[path])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif served.logins.get(path, login) != login:
            self.send_error(401)
        elif path not in contents:
            self.send_error(404)
        else:
            self._send(path, contents[path])

    def _send(self, path: str, content: bytes) -> None:
        served, tag = self.server.served, f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        if self.headers.get("If-None-Match") == tag:
            self.send_response(304)
            self.end_headers()
            return
        start = self._start(tag, len(content))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stops = served.stops.get(path)
        end = stops.pop(0) if stops else len(content)
        self.wfile.write(content[start:end])
        self.wfile.flush()
        if end < len(content) and path in served.held:
            served.held[path].wait(60)

    def _start(self, tag: str, size: int) -> int:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", tag) == tag
        return int(match[1]) if match and same and int(match[1]) < size else 0


@contextmanager
def serving_files() -> Iterator[FileServer]:
    """On a port of its own."""
    server = Server(("127.0.0.1", 0), Handler)
    served = server.served = FileServer(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        for event in served.held.values():
            event.set()
        server.shutdown()
        server.server_close()
        thread.join(60)
