"""Fetch a file over HTTP with every bound that a stranger's address needs: bytes, seconds, redirects, hosts.

Image addresses come from task data, which anyone who may import tasks can write. Without a check the backend would
fetch from machines that only it can reach (server-side request forgery). A name is looked up once, and connections are
made to the addresses that were checked, so a name that resolves differently the second time does not pass. Nothing
connects to a refused address, so nobody learns which of its ports are open.

Label Studio's credentials are sent to Label Studio only; a redirect to another host goes without them.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import parse_url

from integration.label_studio.client import ClientError, LabelStudioAuth, keep_authorization_header
from model.errors import ImageError
from model.images import DEFAULT_BUDGET_BYTES

_CHUNK_BYTES = 1 << 16
_REDIRECTS = {301, 302, 303, 307, 308}
#: Answers of proxies and restarting servers that are worth one more try.
_TRANSIENT = {502, 503, 504}
_RETRY_WAIT_S = 0.3
#: For one connection.
_CONNECT_S = 5.0


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How images may be fetched. The defaults are safe against hostile task data.

    Attributes:
        label_studio_url: as this machine reaches it; "" when there is none. May be private.
        label_studio_aliases: other addresses of the same Label Studio, e.g. the `hostname` of /setup.
        cache_dir: folder for downloaded files; None keeps none.
        timeout_s: for one image, redirects and retries included.
        private_hosts: hosts that may have private or loopback addresses; see `AddressPolicy`.
    """

    label_studio_url: str = ""
    api_key: str = ""
    label_studio_aliases: tuple[str, ...] = ()
    cache_dir: Path | None = None
    cache_bytes: int = 2 << 30
    cache_max_age_s: float = 86_400.0
    max_bytes: int = 64 << 20
    max_pixels: int = 80_000_000
    decoding_bytes: int = DEFAULT_BUDGET_BYTES
    timeout_s: float = 30.0
    max_redirects: int = 5
    private_hosts: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"FetchSettings(label_studio_url={shown_url(self.label_studio_url)!r})"  # never the key


@dataclass(frozen=True, slots=True)
class Downloader:
    """Fetches files.

    Attributes:
        auth: credentials for Label Studio's own address, or None.
    """

    settings: FetchSettings
    policy: AddressPolicy
    auth: LabelStudioAuth | None = None

    def get(self, url: str) -> bytes:
        """The body behind an http(s) address. Raises ImageError: any bound was passed, or the answer is not 200."""
        with Deadline(self.settings.timeout_s) as deadline, guarded_session(self.policy, deadline) as session:
            try:
                return self._follow(session, url, deadline)
            except AddressRefused as error:
                raise _refusal(url, error) from error
            except ClientError as error:
                raise ImageError(
                    f"cannot log in to Label Studio for {shown_url(url)}",
                    value=str(error),
                    expected="a valid API key",
                    fix=error.fix,
                ) from error
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                raise self._fetch_error(url, error, deadline) from error

    def _follow(self, session: requests.Session, url: str, deadline: Deadline) -> bytes:
        start = url
        for _ in range(self.settings.max_redirects + 1):
            _check_address(url)
            with self._ask(session, url, deadline) as answer:
                if answer.status_code not in _REDIRECTS or "location" not in answer.headers:
                    return self._body(answer, deadline)
                url = _redirect_target(url, answer.headers["location"])
        raise ImageError(
            f"{shown_url(start)} redirects too often",
            value=f"more than {self.settings.max_redirects} redirects",
            expected=f"at most {self.settings.max_redirects}",
            fix="use the final address in the task",
        )

    @contextmanager
    def _ask(self, session: requests.Session, url: str, deadline: Deadline) -> Iterator[requests.Response]:
        """Send the request; once more after a transient failure or an expired access token."""
        answer = self._send(session, url, deadline)
        if answer.status_code in _TRANSIENT:
            answer.close()
            time.sleep(min(_RETRY_WAIT_S, deadline.left_s()))
            answer = self._send(session, url, deadline)
        elif answer.status_code == 401 and self.auth is not None and self._is_label_studio(url):
            answer.close()
            self.auth.forget()
            answer = self._send(session, url, deadline)
        with answer:
            yield answer

    def _send(self, session: requests.Session, url: str, deadline: Deadline) -> requests.Response:
        left_s = deadline.left_s()
        headers = {"Accept": "image/*,*/*;q=0.5"}
        request = session.prepare_request(requests.Request("GET", url, headers=headers, auth=keep_authorization_header))
        if self.auth is not None and self._connects_to_label_studio(session, request):
            request.headers.update(self.auth.headers())
        return session.send(request, timeout=(min(_CONNECT_S, left_s), left_s), stream=True, allow_redirects=False)

    def _connects_to_label_studio(self, session: requests.Session, request: requests.PreparedRequest) -> bool:
        """Whether the connection for this request leads to Label Studio, as the pool that will make it says."""
        adapter = session.get_adapter(str(request.url))
        assert isinstance(adapter, HTTPAdapter)
        pool = adapter.get_connection_with_tls_context(request, verify=True)
        scheme = pool.scheme or ""
        destination = (scheme, pool.host.strip("[]").lower(), pool.port or DEFAULT_PORTS[scheme])
        return self.auth is not None and bool(self.auth.base_url) and destination == origin(self.auth.base_url)

    def _is_label_studio(self, url: str) -> bool:
        return self.auth is not None and bool(self.auth.base_url) and origin(url) == origin(self.auth.base_url)

    def _body(self, answer: requests.Response, deadline: Deadline) -> bytes:
        if answer.status_code != 200:
            raise _bad_status(answer, self._is_label_studio(answer.url))
        length_text = answer.headers.get("content-length", "")
        if length_text.isdigit() and int(length_text) > self.settings.max_bytes:
            raise self._too_long(answer.url, int(length_text))
        body = bytearray()
        # read1 gives what has arrived; read would wait for a full chunk, however slowly it drips in.
        while chunk := answer.raw.read1(_CHUNK_BYTES, decode_content=True):
            body += chunk
            if len(body) > self.settings.max_bytes:
                raise self._too_long(answer.url, len(body))
        if deadline.is_over:
            raise TimeoutError
        return bytes(body)

    def _too_long(self, url: str, size: int) -> ImageError:
        return ImageError(
            f"{shown_url(url)} is too large",
            value=f"{size} bytes or more",
            expected=f"at most {self.settings.max_bytes} bytes",
            fix="use a smaller file, or raise the limit of bytes (TRANSFINER_MAX_IMAGE_MIB)",
        )

    def _fetch_error(self, url: str, error: Exception, deadline: Deadline) -> ImageError:
        if deadline.is_over:
            return ImageError(
                f"{shown_url(url)} takes too long",
                value=f"more than {self.settings.timeout_s:g} s",
                expected="a complete answer within this time",
                fix="check the host, or raise the time limit for images (TRANSFINER_IMAGE_TIMEOUT_S)",
            )
        return ImageError(
            f"cannot fetch {shown_url(url)}",
            value=_words(error),
            expected="an answer of the host",
            fix="check that the host is up and reachable from the machine of this backend (in a container, "
            "localhost is the container itself)",
        )


def shown_url(url: str, limit: int = 200) -> str:
    """An address for messages and logs: without credentials, query (signatures) and fragment."""
    if url[:5].lower() == "data:":
        return url[:30] + "..."
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return repr(without_secrets(url)[:limit])
    text = f"{parts.scheme}://{host}{parts.path}" if parts.scheme else parts.path
    return text[:limit] + ("?..." if parts.query else "")


def without_secrets(text: str) -> str:
    """A text with the queries (signatures), fragments and passwords of the addresses in it left out."""
    return re.sub(r"[?#][^\s'\"<>]+", "?...", re.sub(r"//[^/?#\s'\"]*@", "//", text))


def _words(error: BaseException) -> str:
    """The innermost cause in a few words; the outer ones repeat addresses with their secrets."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return without_secrets(f"{type(error).__name__}: {error}")[:200]


def _refusal(url: str, error: AddressRefused) -> ImageError:
    return ImageError(
        f"{shown_url(url)} may not be fetched",
        value=str(error),
        expected="Label Studio itself, a public host, or a host on the list of private hosts",
        fix="if this is your own image server, add it to the list of private hosts (TRANSFINER_PRIVATE_IMAGE_HOSTS)",
    )


def _redirect_target(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise _ambiguity(location, error) from error


def _ambiguity(url: str, error: ValueError) -> ImageError:
    return ImageError(
        f"an image has an address that is not fetched ({without_secrets(str(error))})",
        value=shown_url(url),
        expected="http(s)://host/path without a user's name, backslashes and control characters",
        fix="correct the data of the task, or the redirect of its host",
    )


def _check_address(url: str) -> None:
    """Raise ImageError unless an address of a task or of a redirect is http(s) and names its host unambiguously."""
    try:
        scheme, host, _ = origin(url)
    except ValueError as error:
        raise _ambiguity(url, error) from error
    if scheme not in ("http", "https") or not host:
        raise ImageError(
            "an image has or redirects to an address that is not fetched",
            value=shown_url(url),
            expected="http or https, with a host",
            fix="use the final address in the task",
        )


_FIX_OF_STATUS = {
    401: "check the API key; a legacy token only works while the organization allows legacy tokens",
    403: "for local files start Label Studio with LOCAL_FILES_SERVING_ENABLED=true and "
    "LOCAL_FILES_DOCUMENT_ROOT; otherwise give the owner of the API key access to the project",
    404: "check that the file still exists",
    500: "Label Studio answers 500 for files that are missing from its storage: check that the file exists",
}


def _bad_status(answer: requests.Response, is_label_studio: bool) -> ImageError:
    fix = _FIX_OF_STATUS.get(answer.status_code, "") if is_label_studio else ""
    return ImageError(
        f"{shown_url(answer.url)} was not delivered",
        value=f"status {answer.status_code}",
        expected="status 200",
        fix=fix or "open the address from the machine of this backend to see why",
    )


DEFAULT_PORTS = {"http": 80, "https": 443}
#: RFC 6052: the last 32 bits are the IPv4 address.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
#: RFC 4291: all other IPv6 addresses are local, carry IPv4 addresses, or are not assigned yet.
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
            urllib3_url = parse_url(url)
        except LocationParseError as error:
            raise ValueError("its host cannot be read") from error
        urllib3_host = (urllib3_url.host or "").strip("[]").lower()
        if urllib3_url.auth or urllib3_url.port != port or (urllib3_host != host and host.isascii()):
            raise ValueError("its host can be read in two ways")
        host = urllib3_host
    return scheme, host, port or DEFAULT_PORTS.get(scheme, 0)


class AddressPolicy:
    """Which addresses may be connected to: public ones, and the private ones in `allowed`.

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
    """A session for one download, which shares neither cookies nor connections with others."""
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
    """Shuts down the connections of a download when its time is over, whatever they are waiting for."""

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
        """Shut down this connection, too, when the time is over. Keeps a duplicate: TLS detaches the original."""
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
