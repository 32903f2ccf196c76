"""Records of versions, snapshots and the pointer, and which versions may be removed."""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from training.registry.storage import RegistryError

Status = Literal["candidate", "promoted", "rejected", "retired"]
_EVENTS_KEPT = 200


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One published version.

    Attributes:
        name: also the version in its metadata.json, which Label Studio shows.
        directory_url: where it lies in the registry; `Registry.fetch` makes a local checkpoint of it.
        classes: names, in the order of the head's rows.
        parent: the version it was finetuned from; "" for the first.
        snapshot: digest of the snapshot it was finetuned on; "" for none.
        metrics: fractions in 0..1 such as mask_ap and boundary_ap; those of the gate once it has judged.
        created: ISO time of publication.
        digest: sha256 of the weights.
        status: promoted if it serves or served, retired if a rollback took it out of service.
        code: version of this program that published it, with the commit when there is one.
        bytes: of all its files.
    """

    name: str
    directory_url: str
    classes: tuple[str, ...]
    parent: str
    snapshot: str
    metrics: dict[str, Any]
    created: str
    digest: str
    status: Status
    code: str = ""
    bytes: int = 0

    @property
    def figure(self) -> float | None:
        """The sum of mask AP and boundary AP, as far as they are known."""
        figures = [self.metrics.get(name) for name in ("mask_ap", "boundary_ap")]
        numbers = [float(figure) for figure in figures if isinstance(figure, (int, float))]
        return sum(numbers) if numbers else None


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """One published snapshot.

    Attributes:
        digest: sha256 of its content, its name.
        created: ISO time of its making.
        counts: images, annotations and so on, as its manifest says.
        newest_annotation_at: ISO time of its newest annotation; newer ones are not in it.
        classes: of the label config at that time.
        directory_url: where it lies in the registry.
    """

    digest: str
    created: str
    counts: dict[str, Any]
    newest_annotation_at: str
    classes: tuple[str, ...] = ()
    directory_url: str = ""


@dataclass(frozen=True, slots=True)
class Pointer:
    """Content of ACTIVE.

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
        """The pointer after a promotion; unchanged if that version serves already."""
        if version == self.version:
            return self
        earlier_entry = ({"version": self.version, "at": self.at},) if self.version else ()
        return replace(
            self,
            version=version,
            at=at,
            history=self.history + earlier_entry,
            retired=tuple(name for name in self.retired if name != version),
            events=self._with_event("promote", version, at),
        )

    def rolled_back(self, at: str) -> Pointer:
        """The pointer after a rollback to the version that served before; the present one is retired.

        Raises:
            RegistryError: none served before.
        """
        if not self.version or not self.history:
            raise RegistryError(
                f"there is nothing to roll back to: {self.version or 'no version'} is active and none served before; "
                "promote a version by name instead"
            )
        *earlier_entries, last_entry = self.history
        serves_again = any(entry["version"] == self.version for entry in earlier_entries)
        return replace(
            self,
            version=last_entry["version"],
            at=at,
            history=tuple(earlier_entries),
            retired=self.retired if serves_again else (*self.retired, self.version),
            events=self._with_event("rollback", last_entry["version"], at),
        )

    def in_service(self) -> set[str]:
        """The active version and those a rollback can reach."""
        return {entry["version"] for entry in self.history} | ({self.version} if self.version else set())

    def status_of(self, version: str, mark: Status) -> Status:
        """Status of a version by the pointer, else its recorded mark; a mark alone makes no version "promoted"."""
        if version in self.in_service():
            return "promoted"
        if version in self.retired:
            return "retired"
        return mark if mark != "promoted" else "candidate"

    def _with_event(self, action: str, version: str, at: str) -> tuple[dict[str, str], ...]:
        event = {"action": action, "version": version, "from": self.version or "", "at": at}
        return (*self.events, event)[-_EVENTS_KEPT:]


def parse_pointer(value: dict[str, Any] | None, source: str) -> Pointer:
    """Parse the JSON of ACTIVE; None stands for a project without any promotion.

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
            f"{source} lacks or misspells {error}; expected version, at and history of {{version, at}}"
        ) from error


def removable(versions: Sequence[VersionInfo], pointer: Pointer, best_name: str | None, keep: int) -> list[str]:
    """Names of versions that may be removed, oldest first.

    Kept are the active one, all a rollback can reach, the best ever, everything those were finetuned from, and the
    newest `keep` besides.
    """
    by_name = {version.name: version for version in versions}
    needed_names: set[str] = set()
    queue = [*pointer.in_service(), *([best_name] if best_name else [])]
    while queue:
        name = queue.pop()
        if name in by_name and name not in needed_names:
            needed_names.add(name)
            queue.append(by_name[name].parent)
    other_names = [version.name for version in versions if version.name not in needed_names]
    return other_names[: max(0, len(other_names) - keep)]


@cache
def code_version() -> str:
    """Version of this program, with the commit where it runs from a checkout: "0.1.0+3f2a91c"."""
    try:
        version = importlib.metadata.version("transfiner-ml-backend")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return version
    try:
        git = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
        result = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return version  # no git here: the version says enough
    return f"{version}+{result.stdout.strip()}"
