"""How a round trains: few-shot from the model of common things, or by finetuning what serves. Needs no torch."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from model.checkpoints.metadata import METADATA_FILE, read_metadata

FEW_SHOT, FINETUNE = "few-shot", "finetune"
#: Preset of checkpoints whose detector learns classes few-shot; the base is such, and what was learned from it.
PRESET = "prompts/photos-detector"


def training_method(serving: Path, base: Path, labels: Collection[str], images: int, most_images: int) -> str:
    """Few-shot where there are few images, and a prompted detector serves or what serves knows none of the labels.

    Args:
        serving: checkpoint that serves the project. base: the one that few-shot learning starts from.
        images: of the snapshot. most_images: that few-shot learning is for.
    """
    if images > most_images or not is_prompted_detector(base):
        return FINETUNE
    known = set(read_metadata(serving)["classes"])
    return FEW_SHOT if is_prompted_detector(serving) or not known & set(labels) else FINETUNE


def is_prompted_detector(checkpoint: Path) -> bool:
    """Whether a checkpoint's network is a `PromptedDetector`; False where there is none."""
    return (checkpoint / METADATA_FILE).is_file() and read_metadata(checkpoint).get("preset") == PRESET
