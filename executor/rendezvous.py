"""The gang barrier's network half: every node listens, and each pair proves that it can meet.

The listener answers every connection with a nonce, so that a probe that ends at somebody else's port (its
own loopback, for one) is not taken for a success. It holds the port until training needs it. All pairs are
tried, not only those with rank 0: gloo connects every process with every other.
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from trainforge.config.messages import Peer, ProbeOrder, Reached, Ready

PROBE_TIMEOUT_S = 5.0
_NO_LINGER = struct.pack("ii", 1, 0)  # closing leaves no TIME_WAIT on the port that training will bind


class Listener:
    """A node's open port, until `close`."""

    def __init__(self, port: int = 0, nonce: str = "") -> None:
        self.nonce = nonce or secrets.token_hex(16)
        self._socket = socket.create_server(("", port), reuse_port=False, backlog=64)
        self.port: int = self._socket.getsockname()[1]
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name=f"rendezvous-{self.port}", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), connection:
                connection.settimeout(PROBE_TIMEOUT_S)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                connection.sendall(self.nonce.encode() + b"\n")
                connection.recv(1)  # the prober closes first, then nothing lingers here

    def close(self) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(PROBE_TIMEOUT_S + 1)


def ready(listener: Listener, advertise: Sequence[str] = ()) -> Ready:
    return Ready(addresses=list(advertise) or addresses(), port=listener.port, nonce=listener.nonce)


def addresses() -> list[str]:
    """This machine's IPv4 addresses where others may reach it: public and private first, loopback last."""
    found: list[tuple[int, str]] = []
    up = psutil.net_if_stats()
    for interface, entries in psutil.net_if_addrs().items():
        if interface in up and not up[interface].isup:
            continue
        for entry in entries:
            if entry.family == socket.AF_INET:
                address = ipaddress.ip_address(entry.address)
                order = 2 if address.is_loopback else 1 if address.is_link_local else 0
                found.append((order, entry.address))
    return [address for _, address in sorted(found, key=lambda item: item[0])]


def interface_of(address: str) -> str:
    """The name of the interface that has this address; empty when it is none of ours."""
    for interface, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            return interface
    return ""


def alone(port: int) -> int:
    """The port at which processes of this machine alone meet; 0 takes one that is free now."""
    with socket.create_server(("127.0.0.1", port)) as server:
        return int(server.getsockname()[1])


def source_for(address: str) -> str:
    """This machine's own address on the way to another; nothing is sent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        return str(probe.getsockname()[0])
    return ""


def probe(order: ProbeOrder, timeout: float = PROBE_TIMEOUT_S) -> Reached:
    """Try all addresses at once; which answered with the nonce, and what went wrong with the others."""
    found = [_Found(peer, {}, {}) for peer in (order, *order.peers.values())]
    threads = [
        threading.Thread(target=_probe_one, args=(address, each, timeout), daemon=True)
        for each in found
        for address in each.peer.addresses[:32]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout * 2 + 1)
    first, *others = found
    kept = [address for address in order.addresses if address in first.reached]
    return Reached(
        reached={address: first.reached[address] for address in kept},
        failures=dict(first.failures),
        unmet={
            rank: dict(each.failures)
            for rank, each in zip(order.peers, others, strict=True)
            if not each.reached
        },
    )


@dataclass(frozen=True)
class _Found:
    peer: Peer
    reached: dict[str, str]
    failures: dict[str, str]


def _probe_one(address: str, found: _Found, timeout: float) -> None:
    port, nonce = found.peer.port, found.peer.nonce
    try:
        with socket.create_connection((address, port), timeout=timeout) as connection:
            connection.settimeout(timeout)
            answer = b""
            while len(answer) < len(nonce) + 1 and (part := connection.recv(256)):
                answer += part
            if secrets.compare_digest(answer.strip(), nonce.encode()):
                found.reached[address] = str(connection.getsockname()[0])
            else:
                found.failures[address] = f"somebody else answers at port {port}"
    except OSError as error:
        found.failures[address] = f"{error.strerror or error} (port {port})"
