"""Asking a running API for predictions, as patiently as Label Studio would have to be.

An answer is the results of all tasks, or `{"results": []}`: deferred, because the API's deadline passed first. Label
Studio is then sent the predictions later; we are no Label Studio, so we watch /jobs and ask again. Nothing is computed
twice: the API knows each task by all that its prediction depends on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import requests

from backend.queue.job_store import FINAL

Json = dict[str, Any]
# While nothing is to be had, look again after this many s.
LOOK_AGAIN_S = 1.0
# Label Studio's own patience with one request, in s; the API answers or defers before it.
REQUEST_TIMEOUT_S = 120.0
MOST_JOBS = 1000
_PASSING = (502, 503, 504)


class ServedError(RuntimeError):
    """The API cannot be asked, or answers what no API of ours would; says the fix."""


@dataclass(frozen=True)
class Credentials:
    """Credentials of the API; all empty: none. The token goes before user and password."""

    user: str = ""
    password: str = ""
    token: str = ""

    def __repr__(self) -> str:
        return "Credentials(...)"  # never the secrets


@dataclass
class ServedApiClient:
    """A running API.

    Attributes:
        url: its address. credentials: see there.
        patience_s: give up when no task has ended for so long.
        project: as Label Studio names it to the API, to be served its model; "": none.
        deferred: how many answers came as "later".
    """

    url: str
    credentials: Credentials = field(default_factory=Credentials)
    patience_s: float = 600.0
    project: str = ""
    deferred: int = 0
    wait: Callable[[float], object] = time.sleep

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise ServedError(f"--served is {self.url!r}; expected the address of an API, e.g. http://127.0.0.1:9090")
        self._session = requests.Session()
        if self.credentials.token:
            self._session.headers["Authorization"] = f"Bearer {self.credentials.token}"
        elif self.credentials.user:
            self._session.auth = (self.credentials.user, self.credentials.password)

    def close(self) -> None:
        """Close its connections."""
        self._session.close()

    def versions(self) -> list[str]:
        """The model versions it serves.

        Raises:
            ServedError: nobody answers there, or not this project's API, or it wants other credentials.
        """
        versions = self._json("GET", "/versions").get("versions")
        if not isinstance(versions, list):
            raise ServedError(f"{self.url}/versions has no list of versions; is it the address of a transfiner API?")
        return [str(version) for version in versions]

    def predict(self, tasks: Sequence[Json], label_config: str, progress: Callable[[int], object] = int) -> Json:
        """The answer for tasks, waited for: `results` in their order, and perhaps `errors`.

        Args:
            progress: called with how many of them have ended, while the answer is deferred.

        Raises:
            ServedError: no task has ended for `patience_s`, or the answer is none.
        """
        body = {
            "tasks": list(tasks),
            "project": self.project,
            "label_config": label_config,
            "params": {"context": None},
        }
        most, since = 0, time.monotonic()
        while True:
            answer = self._json("POST", "/predict", body)
            results = answer.get("results")
            if isinstance(results, list) and len(results) == len(tasks):
                return answer
            if results != []:
                raise ServedError(
                    f"{self.url}/predict answered {_length(results)} for {len(tasks)} tasks; expected as many results, "
                    "or none when it defers"
                )
            self.deferred += 1
            ended = self._ended({str(task["id"]) for task in tasks})
            if ended > most:
                most, since = ended, time.monotonic()
                progress(ended)
            if time.monotonic() - since > self.patience_s:
                raise ServedError(self._why_not(ended, len(tasks)))
            self.wait(LOOK_AGAIN_S)

    def _ended(self, ids: set[str]) -> int:
        rows = self._json("GET", f"/jobs?limit={MOST_JOBS}").get("jobs", [])
        return len({row.get("task") for row in rows if row.get("task") in ids and row.get("state") in FINAL})

    def _why_not(self, ended: int, asked: int) -> str:
        facts = self._json("GET", "/jobs?limit=1")
        alive = len(facts.get("workers", {}))
        fix = "raise --patience" if alive else "start a worker with `transfiner worker`"
        return (
            f"no task has ended for {self.patience_s:.0f} s: {ended} of {asked} have, {alive} workers are alive, "
            f"waiting: {facts.get('waiting')}; {fix}"
        )

    def _json(self, method: str, path: str, body: Json | None = None) -> Json:
        """The answer to a request; what passes (a restart, a busy queue server) is waited for."""
        end = time.monotonic() + self.patience_s
        while True:
            try:
                response = self._session.request(
                    method, self.url + path, json=body, timeout=REQUEST_TIMEOUT_S, allow_redirects=False
                )
            except requests.RequestException as error:
                problem = f"{self.url} does not answer ({type(error).__name__}); is `transfiner serve` running there?"
                if path == "/versions":  # the first thing asked: nobody was there before
                    raise ServedError(problem) from error
            else:
                if response.status_code not in _PASSING:
                    return self._read(response)
                problem = _complaint(response)
            if time.monotonic() > end:
                raise ServedError(problem)
            self.wait(LOOK_AGAIN_S)

    def _read(self, response: requests.Response) -> Json:
        if response.status_code == 401:
            raise ServedError(
                f"{self.url} wants other credentials; give --user and --password, or --token (or the API's own "
                "variables TRANSFINER_BASIC_AUTH_USER, TRANSFINER_BASIC_AUTH_PASSWORD, TRANSFINER_API_TOKEN)"
            )
        if response.status_code != 200:
            raise ServedError(_complaint(response))
        try:
            answer = response.json()
        except ValueError as error:
            raise ServedError(f"{response.url} answered no JSON; is it the address of a transfiner API?") from error
        if not isinstance(answer, dict):
            raise ServedError(f"{response.url} answered {type(answer).__name__}; expected an object")
        return answer


def _complaint(response: requests.Response) -> str:
    try:
        body = response.json()
        words = f"{body['error']} {body['hint']}"
    except (ValueError, KeyError, TypeError):
        words = response.reason or ""
    return f"{response.url} answered {response.status_code}: {words.strip()}"


def _length(results: object) -> str:
    return f"{len(results)} results" if isinstance(results, list) else f"results = {results!r:.60}"
