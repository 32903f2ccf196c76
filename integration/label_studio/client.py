"""A thin client for the parts of Label Studio's API that this project uses (measured on 1.23.2), with its credentials.

Label Studio's own SDK brings 500 MB of other packages; this needs requests only. Every failure is a ClientError
with what to do. Reading is tried again a few times; writing only where Label Studio cannot have acted on it.

A personal access token and a legacy token are told apart by their form. A personal access token (a JWT) is only good
for asking for access tokens, which live 300 s and go as `Authorization: Bearer`; as Bearer or Token itself it is
answered with 401. A legacy token goes as `Authorization: Token`.
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import NewConnectionError

#: Seconds before its end at which an access token is replaced: longer than a request waits to be sent.
REFRESH_EARLY_S = 60.0
#: For the exchange of a personal access token for an access token.
_EXCHANGE_S = 10.0
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
    """

    def __init__(self, base_url: str, api_key: str, *, now: Callable[[], float] = time.monotonic) -> None:
        self.base_url = base_url.rstrip("/")
        self._api_key = api_key.strip()
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
        start_s = self._now()
        try:
            answer = requests.post(
                f"{self.base_url}/api/token/refresh/",
                json={"refresh": self._api_key},
                timeout=_EXCHANGE_S,
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
        self._expires_s = start_s + life_s(self._access)


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


_RETRY_WAIT_S = 0.5
PAGE_SIZE = 100
#: Answers of proxies in front of a Label Studio that restarts; the request has not reached it.
_TRANSIENT = {502, 503, 504}
Json = dict[str, Any]


class LabelStudioClient:
    """Talks to one Label Studio; safe to share between threads.

    Args:
        timeout_s: for each wait within a request.
        retries: further tries of a request that may be repeated.

    Attributes:
        auth: its credentials, which an ImageFetcher can share.

    All methods raise ClientError.
    """

    def __init__(self, base_url: str, api_key: str = "", *, timeout_s: float = 60.0, retries: int = 2) -> None:
        self.base_url = base_url.rstrip("/")
        self.auth = LabelStudioAuth(self.base_url, api_key)
        self._timeout_s = timeout_s
        self._retries = retries

    # The server

    def health(self) -> Json:
        """{"status": "UP"}; needs no credentials."""
        return self._json("GET", "/health")

    def version(self) -> Json:
        """Versions of Label Studio's parts; `release` is its own."""
        return self._json("GET", "/api/version")

    def whoami(self) -> Json:
        """The user of the API key: proves that the key is accepted."""
        return self._json("GET", "/api/current-user/whoami")

    # Projects

    def list_projects(self) -> list[Json]:
        """All projects that the key may see."""
        return list(self._pages("/api/projects", "results"))

    def get_project(self, project_id: int) -> Json:
        """A project with its label config and counters."""
        return self._json("GET", f"/api/projects/{project_id}")

    def create_project(self, *, title: str, label_config: str, **fields: object) -> Json:
        """Make a project; `fields` as the API names them."""
        body = {"title": title, "label_config": label_config, **fields}
        return self._json("POST", "/api/projects", json=body)

    def update_project(self, project_id: int, **fields: object) -> Json:
        """Change some fields of a project."""
        return self._json("PATCH", f"/api/projects/{project_id}", json=fields)

    # Tasks

    def import_tasks(self, project_id: int, tasks: Sequence[Mapping[str, Any]]) -> Json:
        """Import tasks such as {"data": {"image": address}}; the answer counts them and holds `task_ids`."""
        path = f"/api/projects/{project_id}/import"
        return self._json("POST", path, json=list(tasks), params={"return_task_ids": "true"})

    def upload_files(self, project_id: int, paths: Iterable[Path]) -> Json:
        """Upload image files, one task each, in one request; the answer counts them and holds `task_ids`."""
        files = [(f"file{number}", (path.name, path.read_bytes())) for number, path in enumerate(paths)]
        path = f"/api/projects/{project_id}/import"
        return self._json("POST", path, files=files, params={"return_task_ids": "true"})

    def iter_tasks(self, project_id: int, *, query: str | None = None) -> Iterator[Json]:
        """Tasks page by page, with annotations and predictions; `query` filters as the data manager does (JSON)."""
        params = {"project": project_id, "fields": "all"} | ({"query": query} if query else {})
        return self._pages("/api/tasks", "tasks", params)

    def get_task(self, task_id: int) -> Json:
        """A task. Opening one may make Label Studio ask its backend for a prediction."""
        return self._json("GET", f"/api/tasks/{task_id}")

    def next_task(self, project_id: int) -> Json | None:
        """The task that the label stream offers next, in the project's order; None when all are done."""
        try:
            return self._json("GET", f"/api/projects/{project_id}/next")
        except ClientError as error:
            if error.status == 404:
                return None
            raise

    def create_annotation(self, task_id: int, result: Sequence[Mapping[str, Any]], **fields: object) -> Json:
        """Submit an annotation as the editor does; `fields` such as lead_time (s) and parent_prediction."""
        return self._json("POST", f"/api/tasks/{task_id}/annotations/", json={"result": list(result), **fields})

    def export_json(self, project_id: int) -> list[Json]:
        """All annotated tasks as Label Studio's lossless JSON."""
        return self._json("GET", f"/api/projects/{project_id}/export", params={"exportType": "JSON"})

    # Predictions

    def delete_predictions(self, project_id: int, model_version: str) -> None:
        """Remove a project's predictions of one version; a project that shows this version shows none then."""
        body = {"model_version": model_version}
        self._json("DELETE", f"/api/projects/{project_id}/model-versions", json=body)

    def list_predictions(self, *, project_id: int | None = None, task_id: int | None = None) -> list[Json]:
        """Stored predictions of a project or of a task."""
        filters = {"project": project_id, "task": task_id}
        params = {key: value for key, value in filters.items() if value is not None}
        return self._json("GET", "/api/predictions", params=params)

    def import_predictions(self, project_id: int, rows: Sequence[Mapping[str, Any]], *, chunk: int = 200) -> int:
        """Store predictions {task, model_version, score, result} in bulk.

        Returns:
            How many Label Studio stored: it leaves out rows with a wrong `from_name`, and does not say so.

        Not repeated after a failure: Label Studio would store the rows twice.
        """
        path = f"/api/projects/{project_id}/import/predictions"
        chunks = [list(rows[start : start + chunk]) for start in range(0, len(rows), chunk)]
        return sum(int(self._json("POST", path, json=part).get("created", 0)) for part in chunks)

    def delete_prediction(self, prediction_id: int) -> None:
        """Remove one prediction; no error if it does not exist any more."""
        try:
            self._request("DELETE", f"/api/predictions/{prediction_id}/", self._timeout_s, {})
        except ClientError as error:
            if error.status != 404:
                raise

    def retrieve_predictions(self, project_id: int, task_ids: Sequence[int] | None = None) -> Json:
        """The data manager's action: Label Studio asks its backend about tasks (None: all) and stores the answers.

        Comes back when the backend has answered, or after Label Studio's own 100 s; it reports success either way.
        """
        selection = {"all": True, "excluded": []} if task_ids is None else {"all": False, "included": task_ids}
        params = {"id": "retrieve_tasks_predictions", "project": project_id}
        body = {"selectedItems": selection, "ordering": [], "filters": {"conjunction": "and", "items": []}}
        return self._json("POST", "/api/dm/actions", params=params, json=body, timeout_s=max(150, self._timeout_s))

    # Backends and webhooks

    def list_backends(self, project_id: int) -> list[Json]:
        """Connected ML backends; asking makes Label Studio call /health and /setup of each."""
        return self._json("GET", "/api/ml", params={"project": project_id})

    def create_backend(self, project_id: int, *, url: str, title: str, **fields: object) -> Json:
        """Connect a backend; Label Studio calls it back at once, and adds a webhook for all events."""
        body = {"project": project_id, "url": url, "title": title, **fields}
        return self._json("POST", "/api/ml", json=body)

    def update_backend(self, backend: Mapping[str, Any], **fields: object) -> Json:
        """Change a backend, given as `list_backends` gives it.

        Its project, url and title always go along: Label Studio answers 500 to a title alone. A new title also
        renames the project's model version, which makes ordering by score work when it equals the version.
        """
        body = {key: backend[key] for key in ("project", "url", "title")} | fields
        return self._json("PATCH", f"/api/ml/{backend['id']}", json=body)

    def start_training(self, backend_id: int) -> None:
        """Press a backend's button: Label Studio sends it START_TRAINING and answers 200 whatever the reply."""
        self._json("POST", f"/api/ml/{backend_id}/train", json={})

    def list_webhooks(self, project_id: int | None = None) -> list[Json]:
        """Webhooks of a project, or of the organization."""
        params = {} if project_id is None else {"project": project_id}
        return self._json("GET", "/api/webhooks", params=params)

    def create_webhook(self, project_id: int, url: str, **fields: object) -> Json:
        """Have all events of a project sent to an address, as Label Studio itself does for a backend."""
        body = {"project": project_id, "url": url, "send_payload": True, "send_for_all_actions": True, **fields}
        return self._json("POST", "/api/webhooks/", json=body)

    def update_webhook(self, webhook: Mapping[str, Any], **fields: object) -> Json:
        """Change a webhook, given as `list_webhooks` gives it, e.g. its `headers`."""
        body = {"url": webhook["url"], **fields}
        return self._json("PATCH", f"/api/webhooks/{webhook['id']}/", json=body)

    # Data manager

    def list_views(self, project_id: int) -> list[Json]:
        """Tabs of a project's data manager; none before somebody has opened it."""
        return self._json("GET", "/api/dm/views", params={"project": project_id})

    def save_view(self, project_id: int, data: Mapping[str, Any], view_id: int | None = None) -> Json:
        """Make a tab, or change one; `data` as `list_views` gives it."""
        body = {"project": project_id, "data": dict(data)}
        if view_id is None:
            return self._json("POST", "/api/dm/views/", json=body)
        return self._json("PATCH", f"/api/dm/views/{view_id}/", json=body)

    # Requests

    def _pages(self, path: str, key: str, params: Mapping[str, object] | None = None) -> Iterator[Json]:
        """Items of all pages. Label Studio answers 404 (or 500 for tasks) behind the last page, so count."""
        page, item_count = 1, 0
        while True:
            answer = self._json("GET", path, params={**(params or {}), "page": page, "page_size": PAGE_SIZE})
            items = answer[key]
            yield from items
            item_count += len(items)
            if not items or item_count >= int(answer.get("count", answer.get("total", 0))):
                return
            page += 1

    def _json(self, method: str, path: str, *, timeout_s: float | None = None, **kwargs: Any) -> Any:
        answer = self._request(method, path, timeout_s or self._timeout_s, kwargs)
        if not answer.content:
            return {}
        try:
            return answer.json()
        except ValueError as error:
            raise ClientError(
                f"{method} {path} at {self.base_url} was answered with {answer.headers.get('content-type', 'no type')} "
                "instead of JSON",
                status=answer.status_code,
                fix="check that the address is Label Studio's own, with its sub-path if it has one",
            ) from error

    def _request(self, method: str, path: str, timeout_s: float, kwargs: Mapping[str, Any]) -> requests.Response:
        """Send a request, with further tries where that is harmless; raises ClientError unless it succeeds."""
        tries_left = self._retries
        has_new_token = False
        while True:
            try:
                answer = self._send(method, path, timeout_s, kwargs)
            except requests.RequestException as error:
                if tries_left <= 0 or not _may_repeat(method, error):
                    raise unreachable_error(method, self.base_url + path, error) from error
            else:
                if 200 <= answer.status_code < 300:
                    return answer
                if answer.status_code == 401 and not has_new_token:
                    self.auth.forget()  # an access token may end early: Label Studio was restarted or its clock set
                    has_new_token = True
                    continue
                if tries_left <= 0 or answer.status_code not in _TRANSIENT:
                    raise refused_error(method, path, answer)
            tries_left -= 1
            time.sleep(_RETRY_WAIT_S)

    def _send(self, method: str, path: str, timeout_s: float, kwargs: Mapping[str, Any]) -> requests.Response:
        headers = self.auth.headers() if path != "/health" else {}
        return requests.request(
            method,
            self.base_url + path,
            headers=headers,
            timeout=(min(10.0, timeout_s), timeout_s),
            allow_redirects=False,
            auth=keep_authorization_header,
            **kwargs,
        )


def _may_repeat(method: str, error: requests.RequestException) -> bool:
    """Reads always; writes only when no connection was made, so that nothing can have been stored."""
    cause = getattr(error.args[0], "reason", None) if error.args else None
    never_connected = isinstance(error, requests.ConnectTimeout) or isinstance(cause, NewConnectionError)
    return method == "GET" or never_connected


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


def refused_error(method: str, path: str, answer: requests.Response) -> ClientError:
    """The error for an answer that is not a success."""
    words = _words(answer)
    fix = next((fix for text, fix in _FIX_OF_WORDS if text in words.lower()), None)
    if fix is None:
        fix = _FIX_OF_STATUS.get(answer.status_code, "see the log of Label Studio")
    target = answer.headers.get("location", "")
    destination = f" to {urlsplit(target).netloc}{urlsplit(target).path}" if target else ""
    return ClientError(
        f"Label Studio answered {answer.status_code}{destination} to {method} {path}: {words[:500] or answer.reason}",
        status=answer.status_code,
        fix=fix,
    )


def unreachable_error(method: str, url: str, error: requests.RequestException) -> ClientError:
    """The error for a request that got no answer."""
    if isinstance(error, requests.exceptions.SSLError):
        fix = "check the certificate of Label Studio, or name its authorities in REQUESTS_CA_BUNDLE"
    elif isinstance(error, requests.ReadTimeout):
        fix = "Label Studio took too long: ask for less at once, or raise the time limit"
    else:
        fix = "check that Label Studio runs at this address and is reachable from this machine"
    return ClientError(f"{method} {url} got no answer: {type(error).__name__}", status=None, fix=fix)


def _words(answer: requests.Response) -> str:
    """Text of an answer without markup."""
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
        items = ((key, _flat(value)) for key, value in body.items() if value)
        return [text if key == "non_field_errors" else f"{key}: {text}" for key, messages in items for text in messages]
    if isinstance(body, list):
        return [text for value in body for text in _flat(value)]
    return [] if body is None else [str(body)]
