"""Fetch a file over HTTP with every bound that a stranger's address needs: bytes, seconds, redirects, hosts.

Label Studio's credentials are sent to Label Studio only; a redirect to another host goes without them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from integration.images.ssrf_guard import (
    DEFAULT_PORTS,
    AddressPolicy,
    AddressRefused,
    Deadline,
    guarded_session,
    origin,
)
from integration.label_studio.auth import ClientError, LabelStudioAuth, keep_authorization_header
from model.errors import ImageError
from model.images import DEFAULT_BUDGET_BYTES

_CHUNK_BYTES = 1 << 16
_REDIRECTS = {301, 302, 303, 307, 308}
#: Answers of proxies and restarting servers that are worth one more try.
_TRANSIENT = {502, 503, 504}
_RETRY_WAIT_S = 0.3


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How images may be fetched. The defaults are safe against hostile task data.

    Attributes:
        label_studio_url: as this machine reaches it; "" when there is none. May be private.
        label_studio_aliases: other addresses of the same Label Studio, e.g. the `hostname` of /setup.
        cache_dir: folder for downloaded files; None keeps none.
        timeout_s: for one image, everything together.
        connect_timeout_s: for one connection.
        private_hosts: hosts that may have private or loopback addresses; see `addresses.AddressPolicy`.
        ca_bundle: file of certificate authorities for https; None for the usual ones.
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
    connect_timeout_s: float = 5.0
    max_redirects: int = 5
    private_hosts: tuple[str, ...] = ()
    ca_bundle: Path | None = None

    def __repr__(self) -> str:
        return f"FetchSettings(label_studio_url={shown_url(self.label_studio_url)!r})"  # never the key


@dataclass(frozen=True, slots=True)
class Downloader:
    """Fetches files.

    Attributes:
        auth: credentials for Label Studio's own address, or None.
        verify: True, or the path of a file of certificate authorities.
    """

    settings: FetchSettings
    policy: AddressPolicy
    auth: LabelStudioAuth | None = None
    verify: bool | str = True

    def get(self, url: str) -> bytes:
        """The body behind an http(s) address. Raises ImageError: any bound was passed, or the answer is not 200."""
        with Deadline(self.settings.timeout_s) as deadline, guarded_session(self.policy, deadline) as session:
            try:
                return self._follow(session, url, deadline)
            except AddressRefused as error:
                raise _refused(url, error) from error
            except ClientError as error:
                raise ImageError(
                    f"cannot log in to Label Studio for {shown_url(url)}",
                    value=str(error),
                    expected="a valid API key",
                    fix=error.fix,
                ) from error
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                raise self._failed(url, error, deadline) from error

    def _follow(self, session: requests.Session, url: str, deadline: Deadline) -> bytes:
        start = url
        for _ in range(self.settings.max_redirects + 1):
            _check_address(url)
            with self._ask(session, url, deadline) as answer:
                if answer.status_code not in _REDIRECTS or "location" not in answer.headers:
                    return self._body(answer, deadline)
                url = _redirected(url, answer.headers["location"])
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
        return session.send(
            request,
            timeout=(min(self.settings.connect_timeout_s, left_s), left_s),
            stream=True,
            allow_redirects=False,
            verify=self.verify,
        )

    def _connects_to_label_studio(self, session: requests.Session, request: requests.PreparedRequest) -> bool:
        """Whether the connection for this request leads to Label Studio: asked of the pool that will make it."""
        adapter = session.get_adapter(str(request.url))
        assert isinstance(adapter, HTTPAdapter)
        pool = adapter.get_connection_with_tls_context(request, self.verify)
        scheme = pool.scheme or ""
        connected = (scheme, pool.host.strip("[]").lower(), pool.port or DEFAULT_PORTS[scheme])
        return self.auth is not None and bool(self.auth.base_url) and connected == origin(self.auth.base_url)

    def _is_label_studio(self, url: str) -> bool:
        return self.auth is not None and bool(self.auth.base_url) and origin(url) == origin(self.auth.base_url)

    def _body(self, answer: requests.Response, deadline: Deadline) -> bytes:
        if answer.status_code != 200:
            raise _bad_status(answer, self._is_label_studio(answer.url))
        announced = answer.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > self.settings.max_bytes:
            raise self._too_long(answer.url, int(announced))
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
            fix="use a smaller file, or raise the limit of bytes",
        )

    def _failed(self, url: str, error: Exception, deadline: Deadline) -> ImageError:
        if deadline.is_over:
            return ImageError(
                f"{shown_url(url)} takes too long",
                value=f"more than {self.settings.timeout_s:g} s",
                expected="a complete answer within this time",
                fix="check the host, or raise the time limit for images",
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


def _refused(url: str, error: AddressRefused) -> ImageError:
    return ImageError(
        f"{shown_url(url)} may not be fetched",
        value=str(error),
        expected="Label Studio itself, a public host, or a host on the list of private hosts",
        fix="if this is your own image server, add it to the list of private hosts",
    )


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise _ambiguous(location, error) from error


def _ambiguous(url: str, error: ValueError) -> ImageError:
    return ImageError(
        f"an image has an address that is not fetched ({without_secrets(str(error))})",
        value=shown_url(url),
        expected="http(s)://host/path without a user's name, backslashes and control characters",
        fix="correct the data of the task, or the redirect of its host",
    )


def _check_address(url: str) -> None:
    """Raise ImageError unless an address of a task or of a redirect is http(s) and names one host beyond doubt."""
    try:
        scheme, host, _ = origin(url)
    except ValueError as error:
        raise _ambiguous(url, error) from error
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
