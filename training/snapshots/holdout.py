"""Split a snapshot's images into training and hold-out, and check that there are enough of both.

The content hash decides what is held out: hashes below the share, and in a set so small that they are fewer than
`LEAST_HOLDOUT`, the lowest hashes. An image never moves from training to the hold-out: its place in the order of the
hashes only rises as images are added. (Sets smaller than `LEAST_IMAGES` are trained on only by the command line.) An
image that tops up a small set's hold-out may move to training later; hold-outs of earlier snapshots decide only from
`GateRules.min_images` on, where nothing was topped up.

Imports nothing heavy, so that the worker that waits for trainings stays small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

HOLDOUT_SHARE = 0.2
# Images held out of any set that has at least LEAST_IMAGES. The numbers must not depend on the set's size, see above.
LEAST_HOLDOUT = 2
LEAST_IMAGES = 4


def is_holdout(sha256: str, share: float = HOLDOUT_SHARE) -> bool:
    """Whether an image is held out of a set of any size, by its content hash: about `share` of all images."""
    return int(sha256[:16], 16) < share * 2**64


def holdout_hashes(hashes: Iterable[str], share: float = HOLDOUT_SHARE) -> frozenset[str]:
    """Choose the images of a set to hold out, by content hash: about `share` of them, at least `LEAST_HOLDOUT`.

    No image is added where the share is 0 or the set has fewer than `LEAST_IMAGES` images; see `what_is_missing`.
    """
    sorted_hashes = sorted(set(hashes))
    holdout = {sha256 for sha256 in sorted_hashes if is_holdout(sha256, share)}
    if share > 0 and len(sorted_hashes) >= LEAST_IMAGES:
        holdout.update(sorted_hashes[:LEAST_HOLDOUT])
    return frozenset(holdout)


def what_is_missing(counts: Mapping[str, Any]) -> str:
    """Say why a snapshot cannot be trained or judged on, by its manifest's counts; "" when it can."""
    train, holdout = int(counts.get("train_images", 1)), int(counts.get("holdout_images", 1))
    images = int(counts.get("images", train + holdout))
    if train and holdout:
        return ""
    lacking = "to judge by" if train else "to train on"
    missing_images = max(1, LEAST_IMAGES - images)
    return f"{images} annotated image(s) leave none {lacking}; annotate {missing_images} more"
