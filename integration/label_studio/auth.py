"""Credentials for Label Studio's API: a personal access token or a legacy token, told apart by their form.

Measured on 1.23.2: a personal access token (a JWT) is only good for asking for access tokens, which live 300 s
and go as `Authorization: Bearer`; as Bearer or Token itself it is answered with 401. A legacy token goes as
`Authorization: Token`.
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import requests

#: Seconds before its end at which an access token is replaced: longer than a request waits to be sent.
REFRESH_EARLY_S = 60.0
#: Life of an access token whose own expiry cannot be read.
ASSUMED_LIFE_S = 300.0


class ClientError(RuntimeError):
    """A request to Label Studio failed.

    Attributes:
        status: of the answer; None when there was none.
    """

    def __init__(self, message: str, *, status: int | None, fix: str) -> None:
        super().__init__(message if fix in message else f"{message}; {fix}")
        self.status = status
        self.fix = fix


def keep_authorization_header(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """As `auth=` of a request: keeps requests from replacing our Authorization header by one of ~/.netrc."""
    return request


def is_personal_access_token(api_key: str) -> bool:
    """Whether a key is a JWT (three parts joined by dots); legacy tokens are 40 hexadecimal digits."""
    return api_key.count(".") == 2


class LabelStudioAuth:
    """Gives the Authorization header for requests to one Label Studio; safe to share between threads.

    Args:
        api_key: personal access token or legacy token; "" sends no header.
        timeout_s: for the exchange of a personal access token for an access token.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        timeout_s: float = 10.0,
        verify: bool | str = True,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._api_key = api_key.strip()
        self._timeout_s = timeout_s
        self._verify = verify
        self._now = now
        self._lock = threading.Lock()
        self._access = ""
        self._expires_s = 0.0

    def __repr__(self) -> str:
        return f"LabelStudioAuth({self.base_url!r})"  # never the key

    def headers(self) -> dict[str, str]:
        """The header to send, refreshed when it is about to expire; {} without a key.

        Raises:
            ClientError: the personal access token is revoked or Label Studio cannot be asked.
        """
        if not self._api_key:
            return {}
        if not is_personal_access_token(self._api_key):
            return {"Authorization": f"Token {self._api_key}"}
        with self._lock:
            if self._now() >= self._expires_s - REFRESH_EARLY_S:
                self._refresh()
            return {"Authorization": f"Bearer {self._access}"}

    def forget(self) -> None:
        """Ask for a new access token next time: call it when Label Studio answered 401."""
        with self._lock:
            self._expires_s = 0.0

    def _refresh(self) -> None:
        started = self._now()
        try:
            answer = requests.post(
                f"{self.base_url}/api/token/refresh/",
                json={"refresh": self._api_key},
                timeout=self._timeout_s,
                verify=self._verify,
                allow_redirects=False,
                auth=keep_authorization_header,
            )
        except requests.RequestException as error:
            raise ClientError(
                f"cannot exchange the personal access token at {self.base_url}: {type(error).__name__}",
                status=None,
                fix="check that Label Studio runs at this address",
            ) from error
        if answer.status_code != 200:
            raise ClientError(
                f"Label Studio at {self.base_url} refuses the personal access token ({answer.status_code})",
                status=answer.status_code,
                fix="create a new one under Account & Settings and set it as API key",
            )
        self._access = _access_token(answer)
        self._expires_s = started + life_s(self._access)


def _access_token(answer: requests.Response) -> str:
    try:
        access = answer.json()["access"]
    except (ValueError, KeyError, TypeError) as error:
        raise ClientError(
            f"{urlsplit(answer.url).netloc} answered the token exchange without an access token",
            status=answer.status_code,
            fix="check that the address is Label Studio's",
        ) from error
    return str(access)


def life_s(access_token: str) -> float:
    """Seconds from issue to expiry, from the unchecked claims of a JWT; `ASSUMED_LIFE_S` if unreadable.

    The difference of two claims does not depend on the clocks of two machines agreeing.
    """
    try:
        payload = access_token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return max(float(claims["exp"]) - float(claims["iat"]), 0.0)
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
        return ASSUMED_LIFE_S
