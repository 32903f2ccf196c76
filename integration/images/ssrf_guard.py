"""Which hosts may be asked for images.

Image addresses come from task data, which anyone who may import tasks can write. Without a check the backend
would fetch from machines that only it can reach (server-side request forgery). A name is looked up once, and
connections are made to the addresses that were checked: a name that resolves differently the second time does not get
past it, and an address that is refused is never knocked at, so nobody learns which of its ports are open.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import parse_url

DEFAULT_PORTS = {"http": 80, "https": 443}
#: RFC 6052: the last 32 bits are the IPv4 address.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
#: RFC 4291: all other IPv6 addresses are local, of some mechanism that carries IPv4 addresses, or nobody's yet.
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
#: RFC 6890, RFC 7526: protocols and relays, which older releases of Python call global.
_PROTOCOLS = (ipaddress.ip_network("192.0.0.0/24"), ipaddress.ip_network("192.88.99.0/24"))
#: Where parsers of addresses disagree about the host: WHATWG reads a backslash as a slash, RFC 3986 does not, and
#: urlsplit drops tabs and line breaks that urllib3 keeps.
_AMBIGUOUS = re.compile(r"[\x00-\x1f\x7f\\]")


class AddressRefused(ValueError):  # noqa: N818 - read as a sentence where it is raised
    """A connection to an address that is not public and not allowed."""


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, lower-case host and port of an address; addresses that can be read in two ways are refused.

    Both urllib's parser, which code commonly decides by, and urllib3's, which requests connects by, must see the
    same host: `http://other:81\\@studio/x` is one of `studio` to the first and one of `other` to the second.

    Raises:
        ValueError: the port is not a number, the address holds a backslash, a control character or a user's name,
            its host a percent sign, or the two parsers disagree.
    """
    if _AMBIGUOUS.search(url):
        raise ValueError("it holds a backslash or a control character")
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("it holds a user's name or a password before its host")
    if "%" in parts.netloc:
        raise ValueError("its host holds a percent sign")
    scheme = parts.scheme.lower()
    host, port = (parts.hostname or "").lower(), parts.port
    if scheme in DEFAULT_PORTS:
        try:
            other = parse_url(url)
        except LocationParseError as error:
            raise ValueError("its host cannot be read") from error
        connected = (other.host or "").strip("[]").lower()
        if other.auth or other.port != port or (connected != host and host.isascii()):
            raise ValueError("its host can be read in two ways")
        host = connected
    return scheme, host, port or DEFAULT_PORTS.get(scheme, 0)


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
        """Raise AddressRefused unless a connection to the address `peer` may be made for `host`."""
        host = host.lower().strip("[]")
        if "*" in self._hosts or host in self._hosts or f"{host}:{port}" in self._hosts:
            return
        address = _inner(ipaddress.ip_address(peer.split("%")[0]))
        is_public = address.is_global and not address.is_multicast
        is_public &= address in _GLOBAL_UNICAST if address.version == 6 else not any(address in n for n in _PROTOCOLS)
        if is_public or any(address in network for network in self._networks):
            return
        raise AddressRefused(f"{host}:{port} is at {address}, an address that is not public")


def _inner(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address inside an IPv6 one (mapped, NAT64, 6to4), where packets really go; else `address`."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def guarded_session(policy: AddressPolicy, deadline: Deadline) -> requests.Session:
    """A session for one download: cookies and connections of one host never meet another."""
    session = _Session()
    session.trust_env = False  # no proxy, no .netrc: the address check must see the real peer
    for prefix in ("http://", "https://"):
        session.mount(prefix, _GuardedAdapter(policy, deadline))
    return session


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002
        """None: requests would read the whole body of a redirect, and raise what its address makes urlsplit raise."""
        return


@dataclass(slots=True)
class Deadline:
    """Cuts the connections of a download when its time is over, at whatever stage they hang."""

    timeout_s: float
    is_over: bool = False
    _sockets: list[socket.socket] = field(default_factory=list)
    _end_s: float = 0.0
    _timer: threading.Timer | None = None

    def __enter__(self) -> Deadline:
        self._end_s = time.monotonic() + self.timeout_s
        self._timer = threading.Timer(self.timeout_s, self._cut)
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        for sock in self._sockets:
            sock.close()

    def left_s(self) -> float:
        """Seconds left; raises TimeoutError when there are none."""
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            self.is_over = True
            raise TimeoutError
        return left_s

    def watch(self, sock: socket.socket) -> None:
        """Cut this connection, too. A duplicate is kept: TLS takes the original away."""
        self._sockets.append(sock.dup())

    def _cut(self) -> None:
        self.is_over = True
        for sock in list(self._sockets):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed by the other side already


def _checked_addresses(policy: AddressPolicy, host: str, port: int) -> list[str]:
    """The addresses of a host that may be connected to; raises AddressRefused when there are others only."""
    try:
        entries = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{host[:80]!r} cannot be the name of a host") from error
    allowed, refusal = [], None
    for peer in dict.fromkeys(str(entry[4][0]) for entry in entries):
        try:
            policy.check(host, port, peer)
            allowed.append(peer)
        except AddressRefused as error:
            refusal = error
    if refusal and not allowed:
        raise refusal
    return allowed


class _GuardedAdapter(HTTPAdapter):
    def __init__(self, policy: AddressPolicy, deadline: Deadline) -> None:
        self._policy = policy
        self._deadline = deadline
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: object, **kwargs: object) -> None:
        super().init_poolmanager(*args, **kwargs)  # type: ignore[arg-type]
        policy, deadline = self._policy, self._deadline

        def connect(connection: HTTPConnection, make: Callable[[], socket.socket]) -> socket.socket:
            """Connect to the first checked address that answers."""
            name, port = connection.host, connection.port or DEFAULT_PORTS["http"]
            error: Exception | None = None
            for peer in _checked_addresses(policy, name, port):
                connection.host = peer
                try:
                    sock = make()
                except (OSError, HTTPError) as failure:
                    error = failure
                    continue
                finally:
                    connection.host = name  # TLS checks the certificate against it
                deadline.watch(sock)
                return sock
            raise error or OSError(f"{name} has no address")

        class Plain(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return connect(self, super()._new_conn)

        class Secure(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return connect(self, super()._new_conn)

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure

        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
