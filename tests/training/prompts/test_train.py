"""The training loop of the promptable network: what learns, what stays, how a run goes on, and cues that are new."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from model.config import get_config
from model.prompts.network import PromptNetwork
from training.prompts.data import MaskedObject, ObjectSet
from training.prompts.train import Example, PromptTraining, partly_forgotten, train_prompts, with_new_cues

CUES = ["feature", "coarse", "position"]


def network(cues: list[str]) -> PromptNetwork:
    torch.manual_seed(0)
    cfg = get_config("prompts/photos")
    cfg.MODEL.DEVICE, cfg.MODEL.TRANSFINER.CUES = "cpu", cues
    return PromptNetwork(cfg)


@pytest.fixture(scope="module")
def objects() -> ObjectSet:
    """Two discs on noise."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 90, (120, 160, 3), dtype=np.uint8)
    y, x = np.mgrid[:120, :160]
    items = []
    for left, top, radius in ((60, 60, 30), (115, 50, 22)):
        mask = (x - left) ** 2 + (y - top) ** 2 <= radius**2
        image[mask] = 200
        box = (float(left - radius), float(top - radius), left + radius + 1.0, top + radius + 1.0)
        items.append(MaskedObject(0, coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))), box, 1.0))
    return ObjectSet([image], items, ["discs"])


def test_only_the_named_parameters_learn_and_a_run_goes_on(objects: ObjectSet, tmp_path: Path) -> None:
    learner = network(CUES)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    plan = PromptTraining(
        batch=2, iterations=2, workers=0, warm_up=1, rounds=1, learned=("mask_head.encoder.",), learning_rate=1e-2
    )
    train_prompts(learner, objects, plan, tmp_path)
    changed_names = {name for name, value in learner.state_dict().items() if not torch.equal(value, before[name])}
    assert changed_names
    assert all(name.startswith("mask_head.encoder.") for name in changed_names)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 2
    again = network(CUES)
    train_prompts(again, objects, PromptTraining(**{**vars(plan), "iterations": 3}), tmp_path)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 3
    average_state = torch.load(tmp_path / "ema.pt", weights_only=True)
    assert set(average_state) == set(before)


def test_a_new_cue_counts_nothing_before_it_is_learned() -> None:
    narrow = network(CUES)
    torch.nn.init.normal_(narrow.mask_head.encoder.conv_r1[2].weight)
    wider = network([*CUES, "context", "coarse_feature"])
    wider.load_state_dict(with_new_cues(narrow.state_dict(), wider))
    views, prompts = torch.rand(1, 3, 256, 256) * 255, torch.rand(1, 4, 256, 256)
    answers = [model.eval().predict(views, prompts)[0] for model in (narrow, wider)]
    assert not torch.equal(answers[0], narrow.predict(views, prompts)[1]), "nothing was refined"
    torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-4)


def test_the_log_has_a_line_every_25_steps(objects: ObjectSet, tmp_path: Path) -> None:
    steps: list[int] = []
    plan = PromptTraining(batch=1, iterations=25, workers=0, rounds=0, click_share=0.0, learned=("quality.",))
    train_prompts(network(CUES), objects, plan, tmp_path, on_step=steps.append)
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["views"] == 25
    assert steps == list(range(1, 26))


def test_a_share_of_the_masks_so_far_is_forgotten_but_never_a_flawed_one() -> None:
    view, mask = np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), bool)
    clicked = [Example(view, mask, None, [(4.0, 4.0, True)]) for _ in range(200)]
    flawed = [Example(view, mask, None, [], mask.astype(np.float32)) for _ in range(50)]
    masks = [torch.ones(8, 8) for _ in range(250)]
    left = partly_forgotten(masks, clicked + flawed, 0.3, np.random.default_rng(0))
    forgotten = sum(mask is None for mask in left[:200])
    assert 40 <= forgotten <= 80
    assert all(mask is not None for mask in left[200:])
