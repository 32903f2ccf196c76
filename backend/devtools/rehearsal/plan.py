"""How large a rehearsal is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# Ten finetunings (rounds, poison, controls) of this length and their judging take less than two hours on two CPU
# cores. Epochs, not minutes: on a busy machine minutes teach nothing, and the arms would differ by the load. Not
# iterations either: what a later round adds to more images must be seen as often.
EPOCHS = 16
# So few steps need the rate that the shipped model was trained with (SOLVER.BASE_LR of training/scenes-small), not a
# finetuning's usual third of it: after 80 steps on the first round's images boundary AP was 22.1 with it, 19.1 without.
BASE_LR = 6e-4
# The knee of the shipped model's curve (README); a weak model finds many doubtful objects, and each costs.
NODE_BUDGET = 4000


def finetuning(shorter_px: int, wishes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Fields of FinetuneSettings for pictures with that shorter side: learned and served at their own size.

    Args:
        wishes: fields that go before; iterations replace the epochs.
    """
    sizes = {"INPUT.MIN_SIZE_TRAIN": [shorter_px], "INPUT.MIN_SIZE_TEST": shorter_px}
    # The shipped model keeps coarse masks below 84 px where the shorter side is 288 px.
    limits = {
        "MODEL.TRANSFINER.TEST_NODE_BUDGET": NODE_BUDGET,
        "MODEL.TRANSFINER.TEST_MIN_BOX_PX": round(84 * shorter_px / 288, 1),
    }
    length = {} if "iterations" in (wishes or {}) else {"epochs": EPOCHS}
    return {**length, "base_lr": BASE_LR, "overrides": sizes | limits, **(wishes or {})}


@dataclass(frozen=True)
class Plan:
    """Sizes of a rehearsal.

    Attributes:
        rounds: of honest corrections; a poisoned one follows.
        per_round: images that the annotator corrects in each.
        pool: images in the project, `rounds + 1` times `per_round` and some that stay unlabelled.
        test: images that nobody annotates or trains on; all figures of the report are on them.
        width, height: of drawn images, in px; photographs are made small until no side is longer than the width.
        photos: names of two sets of annotated photographs, to correct and to test on, instead of drawn images.
        holdout_share: of the annotated images, kept by the loop for its gate; with 36 a round about 14 in the first,
            enough for the gate's statistics.
        controls: whether the three controls are run.
        finetune: fields of FinetuneSettings.
        rules: fields of GateRules.
        seed: of the images.
        processes: of each finetuning.
        by_hand: promote an honest round's candidate by the page's button when the gate refused it; the report says so.
    """

    rounds: int = 3
    per_round: int = 36
    pool: int = 160
    test: int = 40
    width: int = 256
    height: int = 192
    holdout_share: float = 0.4
    controls: bool = True
    finetune: dict[str, Any] = field(default_factory=lambda: finetuning(192))
    rules: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    processes: int = 1
    by_hand: bool = False
    photos: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        needed = (self.rounds + 1) * self.per_round
        if self.pool < needed:
            raise ValueError(f"{self.pool} images are too few: {self.rounds} rounds and the poisoned one take {needed}")

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)


def usual_processes(device: str) -> int:
    """Of a finetuning: two with a thread each on a CPU with several cores, else one.

    Args:
        device: as in the settings; "auto" is a GPU where there is one.
    """
    import torch

    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return 1 if on_gpu else min(2, os.cpu_count() or 1)


def tiny_plan(finetune: dict[str, Any]) -> Plan:
    """Only the plumbing: nothing is learned from so little."""
    return Plan(
        rounds=1,
        per_round=5,
        pool=12,
        test=4,
        width=128,
        height=96,
        holdout_share=0.4,
        controls=False,
        finetune={**({} if "epochs" in finetune else {"iterations": 12}), "batch_size": 2, **finetune},
        # Nothing certain comes of it, and there must be something to roll back.
        by_hand=True,
    )


def photograph_plan(train: str, test: str, **given: Any) -> Plan:
    """All photographs of two sets: as many a round as four parts of the first allow.

    Raises:
        ValueError, FileNotFoundError: a set cannot be opened.
    """
    from training.datasets import open_set

    pool = given.setdefault("pool", len(open_set(train)))
    given.setdefault("test", len(open_set(test)))
    given.setdefault("per_round", max(1, pool // (given.get("rounds", Plan.rounds) + 1)))
    return Plan(photos=(train, test), width=384, **given)
