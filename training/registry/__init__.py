"""The model registry: immutable versions and snapshots and one ACTIVE pointer a project, in a folder or a bucket.

`registry.py` is the interface; `storage.py` reads and writes the folder or bucket and locks it, `versions.py` has the
records of versions and snapshots and the pointer's changes.
Nothing here imports torch: the API reads it.
"""

from training.registry.registry import Registry
from training.registry.storage import RegistryError
from training.registry.versions import SnapshotInfo, VersionInfo

__all__ = ["Registry", "RegistryError", "SnapshotInfo", "VersionInfo"]
