"""What is rehearsed: sizes, the settings of each finetuning, and the pictures with their truth.

Pictures are a pool for the project, and a test set that nobody touches.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.datasets import AnySet, Sample, open_set
from training.evaluation.coco_format import TruthBuilder
from training.synthetic.scenes import SHIFTED_CLASSES, Scene, generate_shifted_scene

# Four finetunings (rounds, poison) of this length and their judging take less than an hour on two CPU cores. Epochs,
# not minutes: on a busy machine minutes teach nothing, and results would differ by the load. Not iterations either:
# what a later round adds to more images must be seen as often.
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
    overrides = {
        "INPUT.MIN_SIZE_TRAIN": [shorter_px],
        "INPUT.MIN_SIZE_TEST": shorter_px,
        "MODEL.TRANSFINER.TEST_NODE_BUDGET": NODE_BUDGET,
    }
    length = {} if "iterations" in (wishes or {}) else {"epochs": EPOCHS}
    return {**length, "base_lr": BASE_LR, "overrides": overrides, **(wishes or {})}


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
        finetune: fields of FinetuneSettings.
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
    finetune: dict[str, Any] = field(default_factory=lambda: finetuning(192))
    seed: int = 0
    processes: int = 1
    by_hand: bool = False
    photos: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        total = (self.rounds + 1) * self.per_round
        if self.pool < total:
            raise ValueError(f"{self.pool} images are too few: {self.rounds} rounds and the poisoned one take {total}")


def usual_processes(device: str) -> int:
    """Number of processes of a finetuning: two with a thread each on a CPU with several cores, else one.

    Args:
        device: as in the settings; "auto" is a GPU where there is one.
    """
    import torch

    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return 1 if on_gpu else min(2, os.cpu_count() or 1)


def tiny_plan(finetune: dict[str, Any]) -> Plan:
    """A plan that only shows that everything runs: nothing is learned from so little."""
    return Plan(
        rounds=1,
        per_round=5,
        pool=12,
        test=4,
        width=128,
        height=96,
        finetune={**({} if "epochs" in finetune else {"iterations": 12}), "batch_size": 2, **finetune},
        # The gate refuses so little data, and the rollback needs a promoted version.
        by_hand=True,
    )


def photograph_plan(train: str, test: str, **options: Any) -> Plan:
    """All photographs of two sets: as many a round as four parts of the first allow.

    Raises:
        ValueError, FileNotFoundError: a set cannot be opened.
    """
    pool = options.setdefault("pool", len(open_set(train)))
    options.setdefault("test", len(open_set(test)))
    options.setdefault("per_round", max(1, pool // (options.get("rounds", Plan.rounds) + 1)))
    return Plan(photos=(train, test), width=384, **options)


# Numbers of drawn pictures are far apart: the test set has no picture of the pool.
TEST, NEXT_SEED = 1_000_000, 10_000_000
_NAME = re.compile(r"pool-(\d+)\.png")


@dataclass(frozen=True)
class Material:
    """Pictures by number, of the pool and of the test set, with what is on them."""

    classes: tuple[str, ...]
    pool: Callable[[int], Scene]
    test: Callable[[int], Scene]


def material_of(plan: Plan) -> Material:
    """The plan's pictures: photographs where it names some, else drawn ones of a domain that the model never saw.

    The seed decides the order of photographs.

    Raises:
        ValueError: there are fewer photographs than the plan takes, or the sets have different classes.
    """
    if plan.photos is None:
        first_seed, size_px = plan.seed * NEXT_SEED, {"width": plan.width, "height": plan.height}
        return Material(
            SHIFTED_CLASSES,
            lambda number: generate_shifted_scene(first_seed + number, **size_px),
            lambda number: generate_shifted_scene(first_seed + TEST + number, **size_px),
        )
    train, test = (open_set(name) for name in plan.photos)
    if train.class_names != test.class_names:
        names = plan.photos
        raise ValueError(f"{names[0]} has the classes {train.class_names}, {names[1]} has {test.class_names}")
    for name, photographs, count in zip(plan.photos, (train, test), (plan.pool, plan.test), strict=True):
        if len(photographs) < count:
            raise ValueError(f"{name} has {len(photographs)} photographs, the plan takes {count}")
    order = np.random.default_rng(plan.seed).permutation(len(train))
    return Material(
        train.class_names,
        lambda number: _photograph(train, int(order[number]), plan.width),
        lambda number: _photograph(test, number, plan.width),
    )


def _photograph(photographs: AnySet, index: int, longest_px: int) -> Scene:
    """A photograph with its objects, shrunk for a CPU."""
    sample = photographs[index]
    height, width = sample.image.shape[:2]
    share = min(1.0, longest_px / max(height, width))
    size = (max(1, round(width * share)), max(1, round(height * share)))
    masks = [np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)) for mask in sample.masks]
    image = np.asarray(Image.fromarray(sample.image).resize(size, Image.Resampling.LANCZOS))
    labels = [photographs.class_names[number] for number in sample.classes]
    objects = zip(labels, masks, sample.crowd, strict=True)
    return Scene(image, tuple((label, mask) for label, mask, crowd in objects if mask.any() and not crowd))


def number_of(address: str) -> int:
    """The number of a task's picture in the pool, from its address in Label Studio (which prefixes the name).

    Raises:
        ValueError: the address is of no picture of the pool.
    """
    match = _NAME.search(address)
    if not match:
        raise ValueError(f"the task's image is {address!r}, expected .../<letters>-pool-<number>.png")
    return int(match[1])


def write_pool(material: Material, count: int, folder: Path) -> list[Path]:
    """Write the first pictures of the pool as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"pool-{number:04d}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(material.pool(number).image).save(path)
    return paths


def write_test_set(material: Material, count: int, folder: Path) -> Path:
    """The test set as the hold-out of a snapshot, which is what the gate's evaluator reads; its folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    truth = TruthBuilder(material.classes)
    for number in range(count):
        scene = material.test(number)
        name = f"test-{number:04d}.png"
        Image.fromarray(scene.image).save(folder / "images" / name)
        classes = np.array([material.classes.index(label) for label, _ in scene.instances], np.int64)
        masks = np.array([mask_hw for _, mask_hw in scene.instances], bool)
        truth.add(Sample(scene.image, masks, classes, np.zeros(len(masks), bool), number + 1))
        truth.images[-1]["file_name"] = name
    facts = truth.build()
    (folder / "holdout.json").write_text(json.dumps(facts, default=lambda counts: counts.decode("ascii")))
    return folder
