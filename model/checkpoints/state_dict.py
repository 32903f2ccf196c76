"""Which names and shapes a state dict has, against the ones a model expects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from model.checkpoints.metadata import CheckpointError

# Branches that only losses read: a file without them predicts the same.
TRAINING_ONLY = (
    "roi_heads.mask_head.deconv_bo.",
    "roi_heads.mask_head.predictor_bo.",
    "roi_heads.mask_head.predictor_semantic_s.",
)
# Constants that older detectron2 versions stored with the weights; the configuration holds them.
CONSTANTS = ("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.cell_anchors.")


class KeyReport(NamedTuple):
    """How the names and shapes of a state dict differ from the ones a model has."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]  # "name: shape (1, 2), expected (3, 2)"
    absent_training_only: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether a model of these keys predicts with this state."""
        return self.differences == 0

    @property
    def differences(self) -> int:
        """How many names or shapes keep the state from fitting."""
        return len(self.missing) + len(self.unexpected) + len(self.mismatched)

    def describe(self, limit: int = 8) -> str:
        """One line per kind of difference, the first `limit` names each; empty when everything fits."""
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "wrong shape": self.mismatched,
            "absent, needed for training only": self.absent_training_only,
        }
        return "\n".join(f"{kind} ({len(names)}): {_shorten(names, limit)}" for kind, names in kinds.items() if names)


def compare_keys(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> KeyReport:
    """Compare a state dict with the expected one by names and shapes; constants of the config are ignored."""
    missing_names = [name for name in expected if name not in state]
    return KeyReport(
        missing=tuple(name for name in missing_names if not name.startswith(TRAINING_ONLY)),
        unexpected=tuple(name for name in state if name not in expected and not name.startswith(CONSTANTS)),
        mismatched=tuple(
            f"{name}: shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ),
        absent_training_only=tuple(name for name in missing_names if name.startswith(TRAINING_ONLY)),
    )


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, source: str = "the weights") -> KeyReport:
    """Load a state dict into a model in place, all of it or nothing.

    The branches in `TRAINING_ONLY` may be absent; they keep their initial values.

    Raises:
        CheckpointError: names are missing or unexpected, or shapes differ; the message lists them.
    """
    expected = model.state_dict()
    report = compare_keys(state, expected)
    if not report.fits:
        raise CheckpointError(f"{source} does not fit the configured model\n{report.describe()}")
    model.load_state_dict({name: state[name] for name in expected if name in state}, strict=False)
    return report


def _shorten(names: tuple[str, ...], limit: int) -> str:
    return ", ".join(names[:limit]) + (f", and {len(names) - limit} more" if len(names) > limit else "")
