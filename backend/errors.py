"""Exceptions of the service, each with a message (what, the value, what was expected) and a hint (the fix)."""

from __future__ import annotations


class ServiceError(Exception):
    """A failure that is reported to the caller.

    Attributes:
        status: HTTP status when it ends a request.
    """

    status = 500

    def __init__(self, error: str, hint: str = "", *, status: int | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.hint = hint
        if status is not None:
            self.status = status

    def __str__(self) -> str:
        return f"{self.error} {self.hint}".strip()


class BadRequestError(ServiceError):
    """The request cannot be understood."""

    status = 400


class UnauthorizedError(ServiceError):
    """Credentials are missing or wrong."""

    status = 401


class UnsupportedConfigError(ServiceError):
    """The label config has nothing that this model can fill."""

    status = 422


class QueueUnavailableError(ServiceError):
    """The Redis-protocol server does not answer."""

    status = 503


class ModelUnavailableError(ServiceError):
    """There is no usable checkpoint directory."""

    status = 503


class DeadlineError(ServiceError):
    """An interactive prediction was not ready in time."""

    status = 504


class StartError(ServiceError):
    """A process of the service cannot start; ends the command line with exit code 1."""


class TaskError(ServiceError):
    """One task cannot be predicted; the others of its batch can."""

    status = 422
