"""Learning outlines: the promptable network is trained on a project's own masks, and kept where it outlines better.

Class rows say what is where; the outlines stay the base's however often people correct them. With enough images the
layers behind the frozen trunk are trained on the masks that people left, from boxes as the detector draws them. Every
fifth image is not learned from: it says whether boundaries came nearer to what people draw.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.prompts.answers import Prompt, as_instance, first_view, look
from model.prompts.network import PromptNetwork
from training.datasets import Sample
from training.datasets.loader import SampleSet
from training.metrics.boundary import boundary_mask
from training.prompts.data import LONGEST_SIDE_PX, ObjectSet, objects_of
from training.prompts.evaluate import overlap
from training.prompts.train import PromptTraining, train_prompts

#: Images from which on outlines are learned: about as many as leave ten to judge by.
LEAST_IMAGES = 60
#: Images that are kept in memory, and objects that choose.
MOST_IMAGES, MOST_JUDGED = 1000, 120
#: Every so many images, one chooses instead of being learned from.
CHOOSING = 5
#: Seconds of a step on a quiet core, for the time that is left.
STEP_S = 1.0
LEAST_AREA_PX = 100.0
PLAN = PromptTraining(
    batch=8,
    iterations=300,
    warm_up=20,
    seconds=1800.0,
    learning_rate=2e-4,
    click_share=0.0,
    ema_decay=0.98,
    workers=0,
    checkpoint_s=60.0,
    learned=("pyramid.", "mask_head.", "quality."),
)


@dataclass(frozen=True, slots=True)
class OutlineChoice:
    """Mean boundary IoU, from true boxes, on images not learned from: of the base's outlines and of the learned ones.

    Attributes:
        images, objects: learned from. judged: objects that chose.
    """

    base: float
    learned: float
    images: int
    objects: int
    judged: int

    @property
    def is_better(self) -> bool:
        return self.learned > self.base


def learn_outlines(
    base: PromptNetwork,
    samples: SampleSet,
    folder: Path,
    *,
    plan: PromptTraining | None = None,
    on_step: Callable[[int], object] = lambda _: None,
) -> tuple[dict[str, Tensor], OutlineChoice]:
    """Train a copy of the base's layers behind its trunk.

    Args:
        samples: at least two images, read in their order, the first `MOST_IMAGES` of them.
        folder: holds the training's state, so that a killed one goes on; removed at the end.

    Returns:
        The state of the learned network, and how it compares with the base's.
    """
    reduced = [_reduced(samples[number]) for number in range(min(len(samples), MOST_IMAGES))]
    choosing = _objects(reduced[::CHOOSING])
    taught = _objects([sample for number, sample in enumerate(reduced) if number % CHOOSING])
    network = copy.deepcopy(base).requires_grad_(True)
    if taught.objects:
        train_prompts(network, taught, plan or PLAN, folder, on_step=on_step)
        network.load_state_dict(torch.load(folder / "ema.pt", weights_only=True))
    shutil.rmtree(folder, ignore_errors=True)
    network.eval().requires_grad_(False)
    choice = OutlineChoice(
        base=_boundary_iou(base, choosing),
        learned=_boundary_iou(network, choosing),
        images=len(taught.images),
        objects=len(taught.objects),
        judged=len(choosing.objects[:MOST_JUDGED]),
    )
    return network.state_dict(), choice


def _objects(samples: Sequence[Sample]) -> ObjectSet:
    return objects_of(samples, least_area_px=LEAST_AREA_PX)


def _reduced(sample: Sample) -> Sample:
    """The sample with its longer side at most `LONGEST_SIDE_PX`, so that many fit into memory."""
    picture = Image.fromarray(sample.image)
    picture.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX), Image.Resampling.BILINEAR)
    if picture.size == sample.image.shape[1::-1]:
        return sample
    masks = [Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST) for mask in sample.masks]
    stacked = np.stack([np.asarray(mask) for mask in masks]) if masks else np.zeros((0, *picture.size[::-1]), bool)
    return Sample(np.asarray(picture), stacked, sample.classes, sample.crowd, sample.image_id)


@torch.inference_mode()
def _boundary_iou(network: PromptNetwork, objects: ObjectSet) -> float:
    """Mean boundary IoU of the objects from their true boxes; 0 without objects."""
    overlaps = []
    for item in objects.objects[:MOST_JUDGED]:
        image, prompt = objects.images[item.image], Prompt(box_xyxy=item.box_xyxy)
        view = first_view(prompt, image.shape[:2])
        refined, _, scores = look(network, image, [view], [prompt], device=torch.device("cpu"))
        mask = as_instance(view, refined[0], float(scores[0]), prompt, image.shape[:2]).mask_hw
        overlaps.append(overlap(boundary_mask(item.mask()), boundary_mask(mask)))
    return float(np.mean(overlaps)) if overlaps else 0.0
