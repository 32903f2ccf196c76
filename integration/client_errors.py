"""What went wrong between us and Label Studio's API, and the fix."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import requests


class ClientError(RuntimeError):
    """A request to Label Studio failed.

    Attributes:
        status: of the answer; None when there was none.
        fix: what to do about it.
    """

    def __init__(self, message: str, *, status: int | None, fix: str) -> None:
        super().__init__(message if fix in message else f"{message}; {fix}")
        self.status = status
        self.fix = fix


#: Words in Label Studio's answers and what helps; the first match counts.
_FIX_OF_WORDS = (
    (
        "legacy token authentication has been disabled",
        "use a personal access token, or allow legacy tokens in the organization's settings for access tokens",
    ),
    (
        "resolves to a reserved network address",
        "start Label Studio with ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false (the second one for "
        "webhook events), or give the backend a public address",
    ),
    (
        "able to connect to ml server, but authentication parameters",
        "give Label Studio the basic auth user and password that this backend expects",
    ),
    (
        "can't connect to ml backend",
        "check that the backend runs and that Label Studio reaches its address (in a container, localhost is the "
        "container itself)",
    ),
)
_FIX_OF_STATUS = {
    400: "correct what it names",
    301: "use the address that Label Studio redirects to",
    302: "use the address that Label Studio redirects to",
    308: "use the address that Label Studio redirects to",
    401: "check the API key: a personal access token, or a legacy token where the organization allows those",
    403: "give the owner of the API key access to this project",
    404: "check the id, and that the owner of the API key may see it",
    413: "send less at once",
    429: "wait a little",
}


def refused(method: str, path: str, answer: requests.Response) -> ClientError:
    """The error for an answer that is not a success."""
    words = _words(answer)
    fix = next((fix for text, fix in _FIX_OF_WORDS if text in words.lower()), None)
    if fix is None:
        fix = _FIX_OF_STATUS.get(answer.status_code, "see the log of Label Studio")
    target = answer.headers.get("location", "")
    to = f" to {urlsplit(target).netloc}{urlsplit(target).path}" if target else ""
    return ClientError(
        f"Label Studio answered {answer.status_code}{to} to {method} {path}: {words[:500] or answer.reason}",
        status=answer.status_code,
        fix=fix,
    )


def unreachable(method: str, url: str, error: requests.RequestException) -> ClientError:
    """The error for a request that got no answer."""
    if isinstance(error, requests.exceptions.SSLError):
        fix = "check the certificate of Label Studio, or set the file of certificate authorities"
    elif isinstance(error, requests.ReadTimeout):
        fix = "Label Studio took too long: ask for less at once, or raise the time limit"
    else:
        fix = "check that Label Studio runs at this address and is reachable from this machine"
    return ClientError(f"{method} {url} got no answer: {type(error).__name__}", status=None, fix=fix)


def _words(answer: requests.Response) -> str:
    """What the answer says, without markup."""
    if "json" not in answer.headers.get("content-type", ""):
        return "" if "html" in answer.headers.get("content-type", "") else answer.text[:500]
    try:
        body: Any = answer.json()
    except ValueError:
        return answer.text[:500]
    if isinstance(body, dict) and isinstance(body.get("detail"), str):
        return " ".join([body["detail"], *_flat(body.get("validation_errors"))])
    return " ".join(_flat(body))


def _flat(body: Any) -> list[str]:
    """The texts of nested lists and objects; keys that name fields come with a colon."""
    if isinstance(body, dict):
        named = ((key, _flat(value)) for key, value in body.items() if value)
        return [text if key == "non_field_errors" else f"{key}: {text}" for key, found in named for text in found]
    if isinstance(body, list):
        return [text for value in body for text in _flat(value)]
    return [] if body is None else [str(body)]
