"""How long and how strongly to finetune, by how many images there are. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Schedule:
    """A preset.

    Attributes:
        epochs: over the snapshot's images (replayed ones come on top).
        fewest, most: bounds of the iterations.
        base_lr: of AdamW. backbone_lr_factor: the less there is to learn from, the less its features may move.
        ema_decay: of the averaged weights; a short run cannot afford a long memory.
    """

    epochs: float
    fewest: int
    most: int
    base_lr: float
    backbone_lr_factor: float
    ema_decay: float


SCHEDULES: dict[str, Schedule] = {
    "tens": Schedule(30, 60, 600, 2e-4, 0.1, 0.98),
    "hundreds": Schedule(15, 400, 3000, 3e-4, 0.25, 0.99),
    "thousands": Schedule(6, 2000, 40000, 4e-4, 0.5, 0.998),
}


def preset_for(images: int) -> str:
    """The preset of that many training images: "tens" below 100, "hundreds" below 1000, else "thousands"."""
    return "tens" if images < 100 else "hundreds" if images < 1000 else "thousands"


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """Wishes of a finetuning; None leaves a choice to the preset.

    Attributes:
        preset: "auto" (by the number of images), "tens", "hundreds" or "thousands".
        iterations: steps. epochs: over the snapshot's images, for steps between the preset's fewest and most.
        batch_size: images a step, over all processes. base_lr: of AdamW.
        max_minutes: the schedule is fitted to this wall-clock time if it ends earlier (0: no limit).
        replay_share: of the samples, from earlier snapshots, where there are any.
        base_share: of the samples, from base sets, where there are any.
        band_weight: factor of the places where people moved an outline.
        renamed: old class name -> new class name.
        accumulate, precision: as TRAINING.ACCUMULATE and TRAINING.PRECISION.
        threads: of the arithmetic (0: the machine's choice). data_workers: processes that prepare images.
        save_period, log_period: iterations (0: a twentieth of the run but at least 25, a fiftieth).
        device: "cpu", "cuda", or "auto".
        seed: of the order of samples and all augmentation.
        overrides: configuration keys and values, last word.
    """

    preset: str = "auto"
    iterations: int | None = None
    epochs: float | None = None
    batch_size: int = 4
    base_lr: float | None = None
    max_minutes: float = 0.0
    replay_share: float = 0.25
    base_share: float = 0.25
    band_weight: float = 3.0
    renamed: Mapping[str, str] = field(default_factory=dict)
    accumulate: int = 1
    precision: str = "fp32"
    threads: int = 0
    data_workers: int = 0
    save_period: int = 0
    log_period: int = 0
    device: str = "auto"
    seed: int = 1
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for values that cannot work."""
        if self.preset not in ("auto", *SCHEDULES):
            raise ValueError(f"the preset is {self.preset!r}; choose auto, {', '.join(SCHEDULES)}")
        if self.replay_share < 0 or self.base_share < 0 or self.replay_share + self.base_share >= 1:
            raise ValueError(
                f"replay_share {self.replay_share} and base_share {self.base_share} must be 0 or more and leave "
                "something for the new snapshot: together below 1"
            )
        if self.iterations is not None and self.epochs is not None:
            raise ValueError(f"give iterations ({self.iterations}) or epochs ({self.epochs:g}), not both")
        if self.epochs is not None and self.epochs <= 0:
            raise ValueError(f"epochs is {self.epochs:g}; it must be above 0")
        for name, least in (("batch_size", 1), ("iterations", 1), ("accumulate", 1), ("band_weight", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be {least} or more")

    def schedule(self, images: int) -> Schedule:
        """The preset's schedule for that many training images."""
        return SCHEDULES[preset_for(images) if self.preset == "auto" else self.preset]

    def steps(self, images: int, share: float) -> int:
        """Iterations for that many training images of which each batch holds a share."""
        if self.iterations is not None:
            return self.iterations
        schedule = self.schedule(images)
        epochs = schedule.epochs if self.epochs is None else self.epochs
        wanted = epochs * images / (self.batch_size * share)
        return int(min(max(wanted, schedule.fewest), schedule.most))
