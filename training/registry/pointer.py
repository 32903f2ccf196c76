"""The ACTIVE pointer of a project: which version serves, which ones served before, what was taken back.

One JSON file holds it all, so that one write changes all of it or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from training.registry.storage import RegistryError

POINTER_FILE = "ACTIVE"
_EVENTS_KEPT = 200


@dataclass(frozen=True, slots=True)
class Pointer:
    """What ACTIVE says.

    Attributes:
        version: that serves; None before the first promotion.
        at: ISO time of the last change.
        history: {"version", "at"} of those that served before it, oldest first; a rollback takes the last.
        retired: versions that a rollback took out of service.
        events: {"action", "version", "from", "at"}, the newest 200, for people.
    """

    version: str | None = None
    at: str = ""
    history: tuple[dict[str, str], ...] = ()
    retired: tuple[str, ...] = ()
    events: tuple[dict[str, str], ...] = ()

    def promoted(self, version: str, at: str) -> Pointer:
        """With that version in service; unchanged if it serves already."""
        if version == self.version:
            return self
        before = ({"version": self.version, "at": self.at},) if self.version else ()
        return replace(
            self,
            version=version,
            at=at,
            history=self.history + before,
            retired=tuple(name for name in self.retired if name != version),
            events=self._with_event("promote", version, at),
        )

    def rolled_back(self, at: str) -> Pointer:
        """With the version in service that served before; the present one is retired.

        Raises:
            RegistryError: none served before.
        """
        if not self.version or not self.history:
            raise RegistryError(
                f"there is nothing to roll back to: {self.version or 'no version'} is active and none served before; "
                "promote a version by name instead"
            )
        *rest, last = self.history
        serves_again = any(entry["version"] == self.version for entry in rest)
        return replace(
            self,
            version=last["version"],
            at=at,
            history=tuple(rest),
            retired=self.retired if serves_again else (*self.retired, self.version),
            events=self._with_event("rollback", last["version"], at),
        )

    def in_service(self) -> set[str]:
        """The active version and those a rollback can reach."""
        return {entry["version"] for entry in self.history} | ({self.version} if self.version else set())

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            "version": self.version,
            "at": self.at,
            "history": list(self.history),
            "retired": list(self.retired),
            "events": list(self.events),
        }

    def _with_event(self, action: str, version: str, at: str) -> tuple[dict[str, str], ...]:
        event = {"action": action, "version": version, "from": self.version or "", "at": at}
        return (*self.events, event)[-_EVENTS_KEPT:]


def parse_pointer(value: dict[str, Any] | None, where: str) -> Pointer:
    """From the JSON of ACTIVE; None is a project that never promoted anything.

    Raises:
        RegistryError: an entry is missing or of another kind.
    """
    if value is None:
        return Pointer()
    try:
        return Pointer(
            version=str(value["version"]) if value["version"] else None,
            at=str(value["at"]),
            history=tuple({"version": entry["version"], "at": entry["at"]} for entry in value["history"]),
            retired=tuple(map(str, value.get("retired", ()))),
            events=tuple(value.get("events", ())),
        )
    except (KeyError, TypeError) as error:
        raise RegistryError(
            f"{where} lacks or misspells {error}; expected version, at and history of {{version, at}}"
        ) from error
