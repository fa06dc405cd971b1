"""Which addresses of others are asked, and that it is the checked address that is connected to."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx2
import pytest

from support.servers import serving
from trainforge.hooks.addresses import AddressRefused
from trainforge.hooks.outward import check_ip, check_url, guarded_client

PRIVATE = [
    "http://127.0.0.1", "http://127.0.0.1:8420/v1", "http://127.8.9.10", "http://localhost:1",
    "http://a.localhost", "http://10.0.0.1", "http://172.16.0.1", "http://172.31.255.255",
    "http://192.168.1.1", "http://100.64.0.1", "http://[::1]:80", "http://[::ffff:127.0.0.1]",
    "http://[::ffff:7f00:1]", "http://[64:ff9b::7f00:1]", "http://[2002:7f00:1::]", "http://[fc00::1]",
    "http://[fd12:3456::1]", "http://[::127.0.0.1]", "http://[64:ff9b::a00:1]", "http://[::ffff:10.1.2.3]",
    "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]",
]  # fmt: skip
NEVER = [
    "http://169.254.169.254/latest/meta-data", "http://[::ffff:169.254.169.254]", "http://[fe80::1]",
    "http://[fd00:ec2::254]", "http://100.100.100.200", "http://192.0.0.192", "http://0.0.0.0",
    "http://[::]", "http://224.0.0.1", "http://[ff02::1]", "http://255.255.255.255", "http://240.0.0.1",
    "http://[64:ff9b::a9fe:a9fe]", "http://[2002:a9fe:a9fe::]", "http://192.0.2.1",
]  # fmt: skip
DISGUISED = [
    "http://2130706433", "http://0x7f.1", "http://0177.0.0.1", "http://127.1", "http://0x7f000001",
    "http://017700000001", "http://127.0.0.1.", "http://1.2.3", "http://256.1.1.1", "http://127.0.0.0x1",
    "http://user@example.org", "http://user:pw@example.org", "http://example.org@127.0.0.1",
    "http://127.0.0.1\\@example.org", "http://example.org#@127.0.0.1", "http://example.org?@127.0.0.1",
    "http://①②⑦.0.0.1", "http://\uff11\uff12\uff17.0.0.1", "http://exa\tmple.org", "http://exam\nple.org",
    "http:// example.org", "ftp://example.org", "file:///etc/passwd", "gopher://127.0.0.1:70/_x",
    "http://example.org:0", "http://example.org:99999", "http://example.org:x", "http:///x", "http://",
    "//example.org", "example.org", "", "http://[::1", "http://::1", "http://[fe80::1%25eth0]",
    "http://[fe80::1%eth0]", "http://exa_mple..org", "http://-x.org", "http://x" + "a" * 3000, "HTTP://127.0.0.1",
    "http://example.org/%0d%0aHost: x", "http://*.example.org",
]  # fmt: skip
FINE = [
    "https://a1b2.ngrok-free.app", "https://example.org:8443/tunnel", "http://93.184.216.34:8421",
    "https://[2606:4700::1111]", "https://xn--bcher-kva.example", "https://trainer-7.example.com/v1/",
]  # fmt: skip


@pytest.mark.parametrize("url", [*PRIVATE, *NEVER, *DISGUISED])
def test_what_is_not_asked(url: str) -> None:
    with pytest.raises(AddressRefused):
        check_url(url, allow_private=False)


@pytest.mark.parametrize("url", [*NEVER, *DISGUISED])
def test_what_is_not_asked_even_where_private_networks_are_allowed(url: str) -> None:
    with pytest.raises(AddressRefused):
        check_url(url, allow_private=True)


@pytest.mark.parametrize("url", FINE)
def test_what_is_asked(url: str) -> None:
    assert check_url(url, allow_private=False)


@pytest.mark.parametrize("url", PRIVATE)
def test_a_setting_allows_private_networks(url: str) -> None:
    check_url(url, allow_private=True)
    if "localhost" not in url:
        with pytest.raises(AddressRefused, match="private network") as caught:
            check_url(url, allow_private=False)
        assert "allow_private_endpoints" in caught.value.hint


# --- connections ----------------------------------------------------------------------------------------


class Answering:
    """A server on loopback that redirects to where it is told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.to = ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers["Host"]))
                self.send_response(302 if outer.to else 200)
                if outer.to:
                    self.send_header("Location", outer.to)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self.handler = Handler
        self.port = 0


@pytest.fixture
def answering() -> Iterator[Answering]:
    made = Answering()
    with serving(made.handler) as url:
        made.port = int(url.rpartition(":")[2])
        yield made


def get(url: str, *, allow_private: bool) -> httpx2.Response:
    async def ask() -> httpx2.Response:
        async with guarded_client(allow_private=allow_private, timeout=5) as client:
            return await client.get(url)

    return asyncio.run(ask())


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Names resolve to these, one list at a time; gives what was asked for."""
    asked: list[str] = []
    left = list(answers)

    async def getaddrinfo(_loop: Any, host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        found = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr("asyncio.base_events.BaseEventLoop.getaddrinfo", getaddrinfo)
    return asked


def test_the_host_that_was_named_is_asked_for_at_its_address(
    answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, ["127.0.0.1"])
    assert get(f"http://box.example:{answering.port}/v1/prove", allow_private=True).status_code == 200
    assert answering.asked == [("/v1/prove", f"box.example:{answering.port}")]


def test_a_name_of_a_private_address_is_not_asked(
    answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    for found in (["127.0.0.1"], ["169.254.169.254"], ["93.184.216.34", "10.0.0.1"], ["::ffff:127.0.0.1"]):
        resolving(monkeypatch, found)
        with pytest.raises(AddressRefused):
            get(f"http://box.example:{answering.port}/", allow_private=False)
    assert answering.asked == []


def test_a_name_that_changes_its_answer_is_resolved_once(
    answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer passes the check and is what is connected to: the second is never asked for."""
    asked = resolving(monkeypatch, ["192.0.2.9"], ["127.0.0.1"])
    monkeypatch.setattr("trainforge.hooks.outward.check_ip", lambda address, allow_private: None)
    with pytest.raises(httpx2.HTTPError):
        get(f"http://rebinding.example:{answering.port}/", allow_private=False)
    # Then by address: what a connection resolves itself is an address already.
    assert [name for name in asked if not _is_address(name)] == ["rebinding.example"]
    assert answering.asked == []


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def test_redirects_are_not_followed(answering: Answering) -> None:
    answering.to = "http://169.254.169.254/latest/meta-data"
    assert get(f"http://127.0.0.1:{answering.port}/a", allow_private=True).status_code == 302
    assert len(answering.asked) == 1


def test_every_address_has_one_verdict() -> None:
    for text in ("8.8.8.8", "2606:4700::1111"):
        check_ip(ipaddress.ip_address(text), allow_private=False)
