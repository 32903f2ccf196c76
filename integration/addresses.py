"""Which hosts may be asked for images.

Image addresses come from task data, which anyone who may import tasks can write. Without a check the backend
would fetch from machines that only it can reach (server-side request forgery). The check looks at the address
a connection was really made to, so names that resolve differently the second time do not get past it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}


class AddressRefused(ValueError):  # noqa: N818 - read as a sentence where it is raised
    """A connection to an address that is not public and not allowed."""


def origin(url: str | SplitResult) -> tuple[str, str, int]:
    """Scheme, host in lower case, and port of an http(s) address, for comparison.

    Raises:
        ValueError: the port is not a number.
    """
    parts = urlsplit(url) if isinstance(url, str) else url
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").lower(), parts.port or _DEFAULT_PORTS.get(scheme, 0)


class AddressPolicy:
    """Public addresses, and the private ones that somebody allowed.

    Args:
        allowed: "host", "host:port", an address, a network such as "10.1.0.0/16", or "*" for everything.

    Raises:
        ValueError: an entry with a slash that is not a network.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        entries = [entry.strip().lower() for entry in allowed if entry.strip()]
        self._networks = [ipaddress.ip_network(entry, strict=False) for entry in entries if "/" in entry]
        self._hosts = {entry for entry in entries if "/" not in entry}

    def check(self, host: str, port: int, peer: str) -> None:
        """Raise AddressRefused unless a connection to `peer`, made for `host`, may be used."""
        host = host.lower().strip("[]")
        if "*" in self._hosts or host in self._hosts or f"{host}:{port}" in self._hosts:
            return
        address = ipaddress.ip_address(peer.split("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        if address.is_global or any(address in network for network in self._networks):
            return
        raise AddressRefused(f"{host}:{port} is at {address}, an address that is not public")
