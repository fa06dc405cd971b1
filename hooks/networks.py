"""Which IP addresses are nobody's business, and which host names are addresses in disguise."""

from __future__ import annotations

import ipaddress
import re

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NUMBER = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)\Z")  # a last label that resolvers may read as an address
_EMBEDDING = ipaddress.ip_network("64:ff9b::/96")
# Private by intent: allowed where the settings say so.
_PRIVATE = tuple(
    ipaddress.ip_network(network)
    for network in (
        "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10",
        "::1/128", "fc00::/7",
    )
)  # fmt: skip
# Where clouds answer with credentials.
_METADATA = tuple(
    ipaddress.ip_address(address)
    for address in ("169.254.169.254", "100.100.100.200", "192.0.0.192", "fd00:ec2::254")
)


def is_disguised(host: str) -> bool:
    """Whether a name that is no usual address may be read as one, such as `2130706433` or `0x7f.1`."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return bool(_NUMBER.match(host.rstrip(".").rsplit(".", 1)[-1].lower()))
    return False


def is_private(address: IpAddress) -> bool:
    """This machine, or a network of its own."""
    inner = _embedded(address)
    if inner is not None:
        return is_private(inner)
    return any(address in network for network in _PRIVATE if network.version == address.version)


def is_nobodys(address: IpAddress) -> bool:
    """Neither a private host's nor a public one's: metadata services, link-local, multicast, reserved."""
    inner = _embedded(address)
    if inner is not None:
        return is_nobodys(inner)
    if address in _METADATA or address.is_link_local or address.is_multicast:
        return True
    return not is_private(address) and not address.is_global


def _embedded(address: IpAddress) -> ipaddress.IPv4Address | None:
    """The address of version 4 that one of version 6 stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    teredo = address.teredo
    found = address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)
    if found is None and (address in _EMBEDDING or (int(address) >> 32 == 0 and int(address) > 1)):
        found = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return found
