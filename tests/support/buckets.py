"""A real S3 server on this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import werkzeug.serving
from moto.server import DomainDispatcherApplication, create_backend_app

Asked = list[tuple[str, dict[str, str]]]  # method and path, and headers of each request


@contextmanager
def serving_s3(asked: Asked | None = None) -> Iterator[str]:
    """Its URL. What it was asked is added to `asked`."""
    inner = DomainDispatcherApplication(create_backend_app)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if asked is not None:
            headers = {name[5:]: str(value) for name, value in environ.items() if name.startswith("HTTP_")}
            asked.append((f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}", headers))
        return inner(environ, start_response)

    server = werkzeug.serving.make_server("127.0.0.1", 0, app, True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
