"""Requests to addresses that others name: only where that is allowed, and to the address that was checked.

A name is resolved here, once per connection, and the connection goes to that very address: a name whose
answer changes between the check and the use (DNS rebinding) gains nothing. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx2

from trainforge.hooks.addresses import AddressRefused
from trainforge.hooks.networks import IpAddress, is_disguised, is_nobodys, is_private

MAX_URL = 2048
_TEXT = re.compile(r"https?://[A-Za-z0-9._\-\[\]:]+(?:/[A-Za-z0-9._~%+@:,=()&/-]*)?\Z")
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?)*\Z")
PRIVATE_HINT = (
    "the sender's setting allow_private_endpoints, `trainforge direct --allow-private` "
    "or the action's allow-private permits it"
)


def check_url(url: str, *, allow_private: bool) -> str:
    """The host of an address that may be asked, as far as can be told without resolving it.

    Raises:
        AddressRefused: it may not, or is spelled in a way that programs read differently.
    """
    if len(url) > MAX_URL or not _TEXT.match(url):
        raise AddressRefused(f"{url[:200]!a} is not an address of the form https://host:port")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError as error:
        raise AddressRefused(f"{url[:200]!a} is not an address: {error}") from error
    if port == 0 or parts.username is not None or parts.password is not None:
        raise AddressRefused(f"{url[:200]!a} is not an address of the form https://host:port")
    try:
        check_ip(ipaddress.ip_address(host), allow_private=allow_private)
    except ValueError:
        if not _HOST.match(host) or is_disguised(host):
            raise AddressRefused(f"{host!a} is not the usual form of a host's name or address") from None
        if not allow_private and (host == "localhost" or host.endswith(".localhost")):
            raise AddressRefused(f"{host} is the sender's own machine", hint=PRIVATE_HINT) from None
    return host


def check_ip(address: IpAddress, *, allow_private: bool) -> None:
    """Raises AddressRefused for what nobody outside should have us talk to."""
    if is_nobodys(address):
        raise AddressRefused(f"{address} is not an executor's address")
    if is_private(address) and not allow_private:
        raise AddressRefused(f"{address} is on a private network", hint=PRIVATE_HINT)


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Connects to the checked address; TLS and the Host header still name the host that was asked for."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        # One connection each: kept ones would be found again by address, whatever host they were made for.
        self._inner = httpx2.AsyncHTTPTransport(limits=httpx2.Limits(max_keepalive_connections=0))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        host = check_url(str(request.url.copy_with(query=None)), allow_private=self._allow_private)
        address = await self._resolve(
            host, request.url.port or (443 if request.url.scheme == "https" else 80)
        )
        request.extensions = {**request.extensions, "sni_hostname": host}
        request.url = request.url.copy_with(host=address)
        return await self._inner.handle_async_request(request)

    async def _resolve(self, host: str, port: int) -> str:
        """One of its addresses; a name any of whose addresses is refused is refused."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpx2.ConnectError(f"{host} cannot be resolved: {error.strerror or error}") from error
        addresses = [str(info[4][0]).partition("%")[0] for info in found]
        for address in addresses:
            check_ip(ipaddress.ip_address(address), allow_private=self._allow_private)
        return addresses[0]

    async def aclose(self) -> None:
        await self._inner.aclose()


def guarded_client(*, allow_private: bool, timeout: Any) -> httpx2.AsyncClient:
    """For addresses that others name."""
    transport = GuardedTransport(allow_private=allow_private)
    return httpx2.AsyncClient(transport=transport, timeout=timeout, follow_redirects=False, trust_env=False)
