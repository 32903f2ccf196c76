"""What the registry tells about versions and snapshots."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["candidate", "promoted", "rejected", "retired"]


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
        status: promoted is what serves or served, retired what a rollback took back.
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

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


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

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)
