"""Requests to addresses that a job's manifest names, on its behalf: no further than the job may go itself.

As `outward` does it, a name is resolved here and the connection goes to the address that was checked.
Redirects are followed one by one, each checked alike; credentials stay with the host they are for.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from urllib.parse import urljoin, urlsplit

import httpx2

from trainforge.config.errors import Forbidden, TrainForgeError
from trainforge.hooks.networks import is_disguised, is_nobodys, is_private

MAX_REDIRECTS = 10
TIMEOUT = httpx2.Timeout(30.0, connect=10.0)
AGENT = "TrainForge"
CREDENTIALS = "name the secrets to fetch it with under data.credentials"
_AGAIN = {408, 425, 429, 500, 502, 503, 504}


class FetchFailed(TrainForgeError):  # noqa: N818
    """Said in a job's journal alone. `again`: the next try may succeed."""

    def __init__(self, message: str, *, hint: str = "", again: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.again = again


def addresses(host: str, port: int, *, allow_private: bool) -> list[str]:
    """Where a host is. One that has any address which is refused is refused.

    Raises:
        Forbidden: `policy_refused`, nobody may ask it on a job's behalf.
        FetchFailed: it cannot be resolved, or is not written as hosts are.
    """
    if is_disguised(host):
        raise FetchFailed(f"{host!a} is not the usual form of a host's name or address")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FetchFailed(f"{host} cannot be resolved: {error}", again=True) from error
    texts = list(dict.fromkeys(str(info[4][0]).partition("%")[0] for info in found))
    for text in texts:
        address = ipaddress.ip_address(text)
        if is_nobodys(address):
            raise Forbidden(f"{host} ({text}) is not to be asked for a job", code="policy_refused")
        if is_private(address) and not allow_private:
            hint = "the executor's policy.yaml allows it with private_data: true"
            raise Forbidden(
                f"{host} ({text}) is on a private network, and jobs have no network here",
                hint=hint,
                code="policy_refused",
            )
    return texts


class _Pinned(httpx2.BaseTransport):
    """Connects to a checked address; TLS and the Host header still name the host that was asked for."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._inner = httpx2.HTTPTransport(limits=httpx2.Limits(max_keepalive_connections=0))

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        port = url.port or (443 if url.scheme == "https" else 80)
        found = addresses(url.host, port, allow_private=self._allow_private)
        request.extensions = {**request.extensions, "sni_hostname": url.host}
        try:
            for address in found[:-1]:
                request.url = url.copy_with(host=address)
                with contextlib.suppress(httpx2.ConnectError, httpx2.ConnectTimeout):
                    return self._inner.handle_request(request)
            request.url = url.copy_with(host=found[-1])
            return self._inner.handle_request(request)
        finally:
            request.url = url

    def close(self) -> None:
        self._inner.close()


def _client(url: str, *, allow_private: bool) -> httpx2.Client:
    """Through the machine's own proxy, where it has one for this: the proxy then knows who may go where."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        return httpx2.Client(proxy=proxy, timeout=TIMEOUT, trust_env=False)
    return httpx2.Client(transport=_Pinned(allow_private=allow_private), timeout=TIMEOUT, trust_env=False)


@contextlib.contextmanager
def request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    allow_private: bool,
    secret: Mapping[str, str] | None = None,
    content: bytes | None = None,
) -> Iterator[httpx2.Response]:
    """The answer, its body not read yet. `secret` headers go to the host of `url` alone.

    Raises:
        FetchFailed: it cannot be had, with what the server said. Forbidden: see `addresses`.
    """
    hidden = dict(secret or {})
    here = url
    common = {"User-Agent": AGENT, "Accept-Encoding": "identity", **headers}
    for _ in range(MAX_REDIRECTS + 1):
        if _origin(here) != _origin(url):
            hidden = {}
        with _client(here, allow_private=allow_private) as client, _told(here):
            asked = client.build_request(method, here, headers={**common, **hidden}, content=content)
            answer = client.send(asked, stream=True)
            try:
                if not answer.has_redirect_location:
                    _check(answer, here)
                    yield answer
                    return
                to = _next(here, answer.headers["Location"])
            finally:
                answer.close()
        if not to.startswith(("https://", "http://")) or (here.startswith("https:") and to[:6] != "https:"):
            raise FetchFailed(f"{shown(here)} leads to {shown(to)}, which is not followed")
        here = to
    raise FetchFailed(f"{shown(url)} leads from one address to the next")


def _next(here: str, to: str) -> str:
    try:
        return urljoin(here, to)
    except ValueError as error:
        raise FetchFailed(f"{shown(here)} leads to what is not a URL: {error}") from error


def _check(answer: httpx2.Response, url: str) -> None:
    status = answer.status_code
    if answer.is_success or status in (304, 416):
        return
    hint = CREDENTIALS if status in (401, 403) else ""
    raise FetchFailed(f"{shown(url)} answered {status}", hint=hint, again=status in _AGAIN)


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """Also while the body is read."""
    try:
        yield
    except httpx2.TransportError as error:
        trusted = not isinstance(error.__context__, ssl.SSLCertVerificationError)
        unverified = "CERTIFICATE_VERIFY_FAILED" in str(error)
        words = str(error) or type(error).__name__
        raise FetchFailed(f"{shown(url)}: {words}", again=trusted and not unverified) from error
    except httpx2.InvalidURL as error:
        raise FetchFailed(f"{shown(url)} is not a URL: {error}") from error


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()


def shown(url: str) -> str:
    """A URL as it may be told: without a user, and without what may be a signature."""
    parts = urlsplit(url)
    host, query = parts.netloc.rpartition("@")[2], "?…" if parts.query else ""
    return f"{parts.scheme}://{host}{parts.path}{query}"[:500]
