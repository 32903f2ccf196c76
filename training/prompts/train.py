"""The training loop of the promptable network: views with box or click prompts, two stages of clicks, EMA, checkpoints.

Shape shorthand: V views of a batch, S side of a view.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils.events import EventStorage
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from model.files import replacing
from model.prompts.network import VIEW_SIDE, PromptNetwork, prompt_maps
from model.prompts.views import View, view_of_box
from training.prompts.clicks import Click, flawed_mask, next_click
from training.prompts.data import (
    MaskedObject,
    ObjectSet,
    box_view,
    covered,
    degraded,
    elsewhere,
    jittered_box,
    merged,
    part_view,
    recoloured,
    turned_box,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptTraining:
    """How the network is trained.

    Attributes:
        batch: views; seconds: wall time after which it ends with the learning rate at zero.
        click_share: of batches whose prompts are clicks alone; the rest have boxes, a third of them with a click, too.
        rounds: most click rounds before the one that is learned from.
        flawed_share: of views of click batches that begin with a flawed mask to be corrected; half of these views show
            only a part of the object, as a correction is looked at, and half of those have no click, as a large object
            is looked at again.
        merged_share: of views of click batches that mean an object and another that touches it (as RITM has them): a
            rider with the horse, two garments.
        pasted_share: of views in which another object is pasted over a part of it, and as many again whose object is
            pasted onto another photograph.
        turned_share: of views turned by one to three quarters of a circle: people upside down, things lying.
        forgotten_share: of views of click batches that show all their clicks and no mask so far, as the first few
            clicks of an object are answered together.
        degraded_share: of views that are darkened, blurred or noisy.
    """

    batch: int = 16
    seconds: float = 3600.0
    learning_rate: float = 5e-4
    trunk_factor: float = 0.3
    weight_decay: float = 0.02
    click_share: float = 0.55
    rounds: int = 4
    flawed_share: float = 0.3
    merged_share: float = 0.25
    pasted_share: float = 0.15
    turned_share: float = 0.25
    forgotten_share: float = 0.3
    degraded_share: float = 0.25
    ema_decay: float = 0.999
    bf16: bool = False
    seed: int = 1
    checkpoint_s: float = 240.0
    workers: int = 1
    iterations: int = 0  # stop after so many, too; 0: by time alone
    warm_up: int = 200  # iterations
    learned: tuple[str, ...] = ()  # prefixes of the parameters that learn; () for all


@dataclass
class Example:
    """One view: pixels (S, S, 3) uint8, mask (S, S) bool, its prompts in view pixels, the mask so far (S, S) float."""

    pixels: np.ndarray
    mask: np.ndarray
    box_xyxy: tuple[float, float, float, float] | None
    clicks: list[Click]
    earlier_mask: np.ndarray | None = None


class Views(IterableDataset[list[Example]]):
    """Endless batches of examples; objects are drawn by their weights."""

    def __init__(self, objects: ObjectSet, plan: PromptTraining) -> None:
        super().__init__()
        self.set, self.plan = objects, plan

    def __iter__(self) -> Iterator[tuple[bool, list[Example]]]:  # type: ignore[override]
        info = torch.utils.data.get_worker_info()
        # The time: a resumed run must not see the same views again.
        rng = np.random.default_rng((self.plan.seed, info.id if info else 0, int(time.time())))
        weights = np.array([item.weight for item in self.set.objects])
        weights /= weights.sum()
        while True:
            by_clicks = bool(rng.random() < self.plan.click_share)
            numbers = rng.choice(len(weights), 3 * self.plan.batch, p=weights)
            batch = []
            for number in numbers:
                example = self._example(int(number), by_clicks, rng)
                if example is not None:
                    batch.append(example)
                if len(batch) == self.plan.batch:
                    break
            yield by_clicks, batch

    def _example(self, number: int, by_clicks: bool, rng: np.random.Generator) -> Example | None:
        item = self.set.objects[number]
        if by_clicks and rng.random() < self.plan.merged_share:
            item = merged(item, self.set, rng)
        image = self.set.images[item.image]
        box = jittered_box(item.box_xyxy, 0.15 if rng.random() < 0.7 else 0.03, rng)
        is_flawed = by_clicks and bool(rng.random() < self.plan.flawed_share)
        is_part = is_flawed and bool(rng.random() < 0.5)
        if is_part:
            view = part_view(item.box_xyxy, VIEW_SIDE, rng)
        else:
            view = box_view(image.shape[:2], item.box_xyxy if by_clicks else box, VIEW_SIDE, rng, by_clicks=by_clicks)
        pixels = recoloured(view.pixels(image), rng)
        if rng.random() < self.plan.degraded_share:
            pixels = degraded(pixels, rng)
        mask = _mask_in(view, item)
        if mask.sum() < 30:
            return None
        pixels, mask = self._pasted(pixels, mask, rng)
        x0, y0, x1, y1 = view.to_view(np.array(box).reshape(2, 2)).flatten().tolist()
        if rng.random() < 0.5:
            pixels, mask = pixels[:, ::-1], mask[:, ::-1]
            x0, x1 = VIEW_SIDE - x1, VIEW_SIDE - x0
        if rng.random() < self.plan.turned_share:
            quarters = int(rng.integers(1, 4))
            pixels, mask = np.rot90(pixels, quarters), np.rot90(mask, quarters)
            x0, y0, x1, y1 = turned_box((x0, y0, x1, y1), VIEW_SIDE, quarters)
        mask = np.ascontiguousarray(mask)
        clicks: list[Click] = []
        if is_flawed:
            flawed = flawed_mask(mask, rng)
            has_click = not is_part or rng.random() < 0.5
            click = next_click(mask, flawed, rng=rng) if has_click else None
            mask_so_far = (
                gaussian_filter(flawed.astype(np.float32), rng.uniform(0.5, 3.0)) if rng.random() < 0.5 else flawed
            )
            clicks = [click] if click else []
            return Example(np.ascontiguousarray(pixels), mask, None, clicks, mask_so_far)
        if by_clicks or rng.random() < 0.25:
            click = next_click(mask, np.zeros_like(mask), rng=rng)
            clicks = [click] if click else []
        return Example(np.ascontiguousarray(pixels), mask, None if by_clicks else (x0, y0, x1, y1), clicks)

    def _pasted(self, pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Sometimes a view with a thing of another image: over its object, or all around it."""
        chance = rng.random()
        if chance >= 2 * self.plan.pasted_share:
            return pixels, mask
        item = self.set.objects[int(rng.integers(len(self.set.objects)))]
        image = self.set.images[item.image]
        view = view_of_box(item.box_xyxy, VIEW_SIDE, rng.uniform(1.2, 4.0))
        other_pixels = recoloured(view.pixels(image), rng)
        if chance < self.plan.pasted_share:
            return elsewhere(pixels, mask, other_pixels, rng)
        return covered(pixels, mask, other_pixels, _mask_in(view, item), rng)


def _mask_in(view: View, item: MaskedObject) -> np.ndarray:
    """An object's mask as a view shows it, bool S x S."""
    return view.pixels(item.mask().astype(np.uint8) * 255, 0) >= 128


def as_tensors(batch: Sequence[Example], masks_before: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    """Views (V, 3, S, S) float, prompt maps (V, 4, S, S), masks (V, S, S) bool."""
    # Channels last in memory, which convolutions on a CPU are faster with.
    views = torch.from_numpy(np.stack([example.pixels for example in batch])).permute(0, 3, 1, 2).float()
    pairs = zip(batch, masks_before, strict=True)
    maps = [prompt_maps(example.box_xyxy, example.clicks, mask_before) for example, mask_before in pairs]
    prompts = torch.stack(maps).contiguous(memory_format=torch.channels_last)
    return views, prompts, torch.from_numpy(np.stack([example.mask for example in batch]))


def masks_so_far(batch: Sequence[Example]) -> list[Tensor | None]:
    """The masks (S, S) that views begin with, None where there is none."""
    return [None if example.earlier_mask is None else torch.from_numpy(example.earlier_mask) for example in batch]


def clicked(
    network: PromptNetwork, batch: list[Example], rounds: int, rng: np.random.Generator, *, bf16: bool
) -> list[Tensor | None]:
    """Let the network answer `rounds` times, adding a click in the error each time; its last masks (S, S) or None."""
    masks = masks_so_far(batch)
    network.eval()
    for _ in range(rounds):
        views, prompts, _ = as_tensors(batch, masks)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            coarse = network.predict(views, prompts, refine=False)[1]
        coarse = torch.nn.functional.interpolate(coarse[:, None], VIEW_SIDE, mode="bilinear", align_corners=False)[:, 0]
        for number, example in enumerate(batch):
            if example.earlier_mask is not None and not example.clicks:  # a part looked at again: nobody clicks there
                continue
            masks[number] = coarse[number]
            click = next_click(example.mask, (coarse[number] > 0.5).numpy(), rng=rng)
            if click is not None:
                example.clicks.append(click)
    network.train()
    return masks


def partly_forgotten(
    masks: Sequence[Tensor | None], batch: Sequence[Example], share: float, rng: np.random.Generator
) -> list[Tensor | None]:
    """Masks so far, a share of them taken away again: clicks are then all that the network knows of an object.

    Views that began with a flawed mask keep theirs: one click corrects it.
    """
    chances = rng.random(len(batch))
    return [
        None if example.earlier_mask is None and chance < share else mask
        for mask, example, chance in zip(masks, batch, chances, strict=True)
    ]


def with_new_cues(state: Mapping[str, Tensor], network: torch.nn.Module) -> dict[str, Tensor]:
    """Weights of a network whose nodes had fewer cues; the new ones, which are the last, count nothing at first."""
    result = dict(state)
    for name, expected in network.state_dict().items():
        if name.endswith("mask_head.encoder.conv_fuse.weight") and name in state:
            missing = expected.shape[1] - state[name].shape[1]
            result[name] = torch.nn.functional.pad(state[name], (0, 0, 0, 0, 0, max(missing, 0)))
        elif ".encoder.context." in name and name not in state:
            result[name] = expected
    return result


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Take numbers too small for fp32's usual form as zero, which they slow a CPU down by; afterwards as before."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def train_prompts(
    network: PromptNetwork,
    objects: ObjectSet,
    plan: PromptTraining,
    folder: Path,
    *,
    on_step: Callable[[int], object] = lambda _: None,
) -> None:
    """Train until the time is over; the state is kept in `folder`/state.pt, averaged weights in `folder`/ema.pt."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng(plan.seed)
    ema = copy.deepcopy(network).eval()
    optimizer = _optimizer(network, plan)
    spent_s, step = 0.0, 0
    if (folder / "state.pt").is_file():
        state = torch.load(folder / "state.pt", weights_only=True)
        network.load_state_dict(state["network"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        spent_s, step = state["spent_s"], state["step"]
    prefetch = 4 if plan.workers else None
    batches = iter(
        DataLoader(Views(objects, plan), batch_size=None, num_workers=plan.workers, prefetch_factor=prefetch)
    )
    network.train()
    started, saved, losses = time.monotonic() - spent_s, time.monotonic(), dict[str, float]()
    with EventStorage(0), (folder / "log.jsonl").open("a") as lines, flushed_denormals():
        while (spent_s := time.monotonic() - started) < plan.seconds and (
            not plan.iterations or step < plan.iterations
        ):
            _set_rate(optimizer, plan, spent_s, step)
            by_clicks, batch = next(batches)
            rounds = int(rng.integers(0, plan.rounds + 1)) if by_clicks else int(rng.random() < 0.15)
            earlier_masks = clicked(network, batch, rounds, rng, bf16=plan.bf16)
            if by_clicks:
                earlier_masks = partly_forgotten(earlier_masks, batch, plan.forgotten_share, rng)
            views, prompts, masks = as_tensors(batch, earlier_masks)
            with torch.autocast("cpu", torch.bfloat16, enabled=plan.bf16):
                terms = network.losses(views, prompts, masks)
            total = torch.stack([value.float() for value in terms.values()]).sum()
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            step += 1
            on_step(step)
            _average(ema, network, min(plan.ema_decay, (step + 1) / (step + 10)))
            for name, value in terms.items():
                losses[name] = losses.get(name, 0.0) + float(value.detach())
            if step % 25 == 0:
                means = {name: round(value / 25, 4) for name, value in losses.items()}
                line: dict[str, Any] = {"step": step, "spent_s": round(spent_s, 1), "views": step * plan.batch, **means}
                lines.write(json.dumps(line) + "\n")
                lines.flush()
                losses = {}
            if time.monotonic() - saved > plan.checkpoint_s:
                _save(folder, network, ema, optimizer, spent_s, step)
                saved = time.monotonic()
    _save(folder, network, ema, optimizer, time.monotonic() - started, step)


def _rate(plan: PromptTraining, spent_s: float, step: int) -> float:
    """Share of the learning rate: a linear warm-up, then a cosine to zero by time or iterations, which ends first."""
    progress = max(spent_s / plan.seconds, step / plan.iterations if plan.iterations else 0.0)
    return min(1.0, (step + 1) / plan.warm_up) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def _set_rate(optimizer: torch.optim.Optimizer, plan: PromptTraining, spent_s: float, step: int) -> None:
    rate = _rate(plan, spent_s, step)
    for group in optimizer.param_groups:
        group["lr"] = plan.learning_rate * group["factor"] * rate


def _optimizer(network: PromptNetwork, plan: PromptTraining) -> torch.optim.AdamW:
    """AdamW with a smaller learning rate for the trunk.

    Parameters are in the network's order, by which a resumed run assigns the optimizer's state.
    """
    parameters = {name: part for name, part in network.named_parameters() if name.startswith(plan.learned or "")}
    network.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    trunk = [parameter for name, parameter in parameters.items() if name.startswith("trunk.")]
    other_parameters = [parameter for name, parameter in parameters.items() if not name.startswith("trunk.")]
    groups = [
        {"params": other_parameters, "lr": plan.learning_rate, "factor": 1.0},
        {"params": trunk, "lr": plan.learning_rate * plan.trunk_factor, "factor": plan.trunk_factor},
    ]
    return torch.optim.AdamW(groups, weight_decay=plan.weight_decay, fused=True)


@torch.no_grad()
def _average(ema: PromptNetwork, network: PromptNetwork, decay: float) -> None:
    torch._foreach_lerp_(list(ema.parameters()), list(network.parameters()), 1 - decay)


def _save(
    folder: Path,
    network: PromptNetwork,
    ema: PromptNetwork,
    optimizer: torch.optim.Optimizer,
    spent_s: float,
    step: int,
) -> None:
    state = {
        "network": network.state_dict(),
        "ema": ema.state_dict(),
        "optimizer": optimizer.state_dict(),
        "spent_s": spent_s,
        "step": step,
    }
    for name, content in (("state.pt", state), ("ema.pt", ema.state_dict())):
        with replacing(folder / name) as unfinished:
            torch.save(content, unfinished)
