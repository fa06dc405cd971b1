"""Hosts with addresses of their own on one machine: network namespaces on a bridge. Needs root and `ip`."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from ipaddress import IPv4Network

NEEDS = (
    "tests with several network hosts make network namespaces: run them as root on Linux with iproute2 "
    "(apt-get install iproute2); in a container, with --cap-add NET_ADMIN --cap-add SYS_ADMIN"
)


class Network:
    """A switch and the hosts on it, each a namespace; the test itself is on it as well."""

    def __init__(self) -> None:
        assert shutil.which("ip") and os.geteuid() == 0, NEEDS
        self.mark = f"tf{secrets.token_hex(3)}"
        self.subnet = IPv4Network((0x0A_40_00_00 + secrets.randbelow(0x3F_FF) * 256, 24))  # within 10.64/10
        self.addresses: dict[str, str] = {}
        try:
            self._ip("link", "add", self.mark, "type", "bridge")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{NEEDS}") from error
        self._ip("address", "add", f"{self.subnet[1]}/24", "dev", self.mark)
        self._ip("link", "set", self.mark, "up")

    def add(self, host: str) -> str:
        """A new host; its address."""
        number = len(self.addresses) + 2
        space, port = self.space(host), f"{self.mark}-{number}"
        self.addresses[host] = str(self.subnet[number])
        self._ip("netns", "add", space)
        self._ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
        self._ip("link", "set", port, "master", self.mark, "up")
        self._ip("-n", space, "address", "add", f"{self.addresses[host]}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            self._ip("-n", space, "link", "set", link, "up")
        return self.addresses[host]

    def space(self, host: str) -> str:
        return f"{self.mark}-{host}"

    def within(self, host: str) -> list[str]:
        """What a command begins with that is to run on that host."""
        return ["ip", "netns", "exec", self.space(host)]

    def part(self, one: str, other: str) -> None:
        """Make two hosts unreachable for each other, for nobody else."""
        for here, there in ((one, other), (other, one)):
            self._ip("-n", self.space(here), "route", "add", "unreachable", self.addresses[there])

    def heal(self, one: str, other: str) -> None:
        """Undo `part`."""
        for here, there in ((one, other), (other, one)):
            self._ip("-n", self.space(here), "route", "delete", "unreachable", self.addresses[there])

    def cut(self, host: str) -> None:
        """Pull a host's cable."""
        number = list(self.addresses).index(host) + 2
        self._ip("link", "set", f"{self.mark}-{number}", "down")

    def close(self) -> None:
        for number, host in enumerate(self.addresses, start=2):
            # By itself a link stays for as long as a connection that was cut holds its namespace.
            self._ip("link", "delete", f"{self.mark}-{number}", check=False)
            self._ip("netns", "delete", self.space(host), check=False)
        self._ip("link", "delete", self.mark, check=False)

    @staticmethod
    def _ip(*arguments: str, check: bool = True) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, f"ip {' '.join(arguments)}: {done.stderr.strip()}"
