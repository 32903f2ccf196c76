"""The model registry: immutable versions and snapshots and one ACTIVE pointer a project, in a folder or a bucket.

`registry.py` is what others use; `storage.py` speaks to the folder or bucket and keeps two writers apart, `versions.py`
is what is said of versions and snapshots, with the pointer's arithmetic.
Nothing here imports torch: the API reads it.
"""

from training.registry.registry import Registry
from training.registry.storage import RegistryError
from training.registry.versions import SnapshotInfo, VersionInfo

__all__ = ["Registry", "RegistryError", "SnapshotInfo", "VersionInfo"]
