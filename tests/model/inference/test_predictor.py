"""The predictor: order, labels, sizes, equality with detectron2's own preprocessing, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from model.checkpoints.checkpoint import save_checkpoint
from model.checkpoints.metadata import CheckpointError
from model.inference.predictor import InputSettings, Predictor, choose_device
from tests.support.small_network import CLASSES, small_config, small_model

SETTINGS = InputSettings("BGR", 64, 128)


class Recorder(nn.Module):
    """A network that remembers its inputs and returns two detections an image, the weaker first."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[dict]] = []

    def forward(self, inputs: list[dict]) -> list[dict]:
        self.batches.append(inputs)
        return [{"instances": self.two_instances(image["height"], image["width"])} for image in inputs]

    def two_instances(self, height: int, width: int) -> Instances:
        detections = Instances((height, width))
        detections.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, float(width), float(height)]]))
        detections.scores = torch.tensor([0.25, 0.75])
        detections.pred_classes = torch.tensor([1, 0])
        detections.pred_masks = torch.zeros(2, height, width, dtype=torch.bool)
        detections.pred_masks[1] = True
        detections.uncertainty = torch.tensor([0.5, 1.5])
        return detections


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "small"
    metadata = {"name": "small", "version": "7", "classes": list(CLASSES)}
    save_checkpoint(directory, small_config(), small_model(), metadata)
    return directory


def test_network_output_becomes_frozen_instances_by_falling_score() -> None:
    [[first, second]] = Predictor(Recorder(), CLASSES, "1", SETTINGS)([random_image(40, 50)])
    assert (first.label, first.score, first.box_xyxy, first.uncertainty) == ("gear", 0.75, (0, 0, 50, 40), 1.0)
    assert (second.label, second.score, second.uncertainty) == ("leaf", 0.25, 0.5)
    assert first.mask_hw.shape == (40, 50)
    assert first.mask_hw.all()
    assert not second.mask_hw.any()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
def test_results_keep_the_order_of_the_images_whatever_the_batches(batch_size: int) -> None:
    network = Recorder()
    sizes = [(40, 90), (64, 64), (41, 90), (90, 40), (64, 65)]
    results = Predictor(network, CLASSES, "1", SETTINGS, batch_size=batch_size)([random_image(*s) for s in sizes])
    assert [result[0].mask_hw.shape for result in results] == sizes
    # On a CPU they run at the same time, so any may be first.
    assert sorted(len(batch) for batch in network.batches) == sorted(
        min(batch_size, 5 - i) for i in range(0, 5, batch_size)
    )


class Halves(Recorder):
    """Two objects that claim the same half of the image, and each a quarter of its own."""

    def two_instances(self, height: int, width: int) -> Instances:
        detections = super().two_instances(height, width)
        detections.scores = torch.tensor([0.8, 0.75])
        detections.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, float(width), float(height)]] * 2))
        detections.mask_probabilities = torch.full((2, 4, 4), 0.1)
        detections.mask_probabilities[0, :, :3] = 0.9
        detections.mask_probabilities[1, :, 1:] = 0.8
        detections.pred_masks[:] = False
        detections.pred_masks[0, :, : width * 3 // 4] = detections.pred_masks[1, :, width // 4 :] = True
        return detections


@pytest.mark.parametrize("composes", [False, True])
def test_masks_are_composed_only_where_the_checkpoint_says_so(composes: bool) -> None:
    image = np.full((40, 48, 3), 128, np.uint8)
    [[first, second]] = Predictor(Halves(), CLASSES, "1", SETTINGS, composes=composes)([image])
    assert (first.mask_hw & second.mask_hw).any() == (not composes)


class SmallMemory(Recorder):
    """Runs out of memory for more than one image at a time, or for a very wide one."""

    def forward(self, inputs: list[dict]) -> list[dict]:
        if len(inputs) > 1 or inputs[0]["width"] > 200:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(inputs)


def test_a_batch_too_large_for_the_memory_runs_one_by_one() -> None:
    predictor = Predictor(SmallMemory(), CLASSES, "1", SETTINGS, batch_size=3)
    results = predictor([random_image(20, width) for width in (30, 40, 50)])
    assert [result[0].mask_hw.shape for result in results] == [(20, 30), (20, 40), (20, 50)]
    with pytest.raises(torch.OutOfMemoryError):
        predictor([random_image(20, 201)])


@pytest.mark.parametrize("channel_order", ["BGR", "RGB"])
@pytest.mark.parametrize("size", [(40, 50), (50, 40), (64, 300), (300, 10), (1, 1)])
def test_input_equals_detectron2s_default_predictor(channel_order: str, size: tuple[int, int]) -> None:
    from detectron2.data.transforms import ResizeShortestEdge

    image_rgb = random_image(*size)
    network = Recorder()
    Predictor(network, CLASSES, "1", InputSettings(channel_order, 64, 128))([image_rgb])
    network_image = image_rgb if channel_order == "RGB" else image_rgb[:, :, ::-1]
    expected = ResizeShortestEdge([64, 64], 128).get_transform(network_image).apply_image(network_image)
    item = network.batches[0][0]
    assert (item["height"], item["width"]) == size
    assert np.array_equal(item["image"].numpy(), expected.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"image 1 is float32 of shape \(4, 4, 3\), expected uint8"),
        (np.zeros((4, 4), np.uint8), r"image 1 is uint8 of shape \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        ([[0]], "image 1 is a list"),
    ],
)
def test_wrong_images_are_named_before_anything_runs(image: object, message: str) -> None:
    network = Recorder()
    with pytest.raises(ValueError, match=message):
        Predictor(network, CLASSES, "1", SETTINGS)([random_image(4, 4), image])
    assert network.batches == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_settings": InputSettings("GBR", 1, 1)}, "FORMAT is 'GBR'"),
        ({"input_settings": SETTINGS, "batch_size": 0}, "batch_size is 0"),
    ],
)
def test_wrong_settings_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor(Recorder(), CLASSES, "1", **arguments)


def test_no_images_need_no_network() -> None:
    assert Predictor(Recorder(), CLASSES, "1", SETTINGS)([]) == []


def test_a_real_network_from_a_checkpoint(checkpoint: Path) -> None:
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    assert (predictor.labels, predictor.version) == (CLASSES, "7")
    images = [random_image(70, 100, seed=1), random_image(100, 60, seed=2)]
    results = predictor(images)
    assert any(results)
    for image, instances in zip(images, results, strict=True):
        assert len(instances) <= 5
        assert all(instance.mask_hw.shape == image.shape[:2] for instance in instances)
        assert all(0 <= instance.uncertainty <= 1 for instance in instances)
        assert all(isinstance(instance.incoherent_nodes, int) for instance in instances)
        assert [instance.score for instance in instances] == sorted((i.score for i in instances), reverse=True)


def test_predictions_do_not_depend_on_neighbours_or_earlier_calls(checkpoint: Path) -> None:
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    images = [random_image(70, 100, seed=1), random_image(100, 60, seed=2)]
    together, again = predictor(images), predictor(images)
    alone = [predictor([image])[0] for image in images]
    for a, b, c in zip(together, again, alone, strict=True):
        assert [i.score for i in a] == [i.score for i in b]
        assert all(np.array_equal(i.mask_hw, j.mask_hw) for i, j in zip(a, b, strict=True))
        # Alone an image has all threads, which may add up numbers in another order.
        assert [i.score for i in a] == pytest.approx([i.score for i in c], abs=1e-5)
        assert all((i.mask_hw != j.mask_hw).sum() <= 1 for i, j in zip(a, c, strict=True))


def test_half_precision_finds_the_same_objects(checkpoint: Path) -> None:
    image = random_image(70, 100, seed=1)
    [exact] = Predictor.from_checkpoint(checkpoint, device="cpu")([image])
    [mixed] = Predictor.from_checkpoint(checkpoint, device="cpu", mixed_precision=True)([image])
    assert len(exact) == len(mixed) > 0
    assert [i.score for i in mixed] == pytest.approx([i.score for i in exact], abs=0.02)


def test_thresholds_and_limits_reach_the_network(checkpoint: Path) -> None:
    assert Predictor.from_checkpoint(checkpoint, device="cpu", score_threshold=1.0)([random_image(64, 64)]) == [[]]
    [instances] = Predictor.from_checkpoint(checkpoint, device="cpu", max_instances=1)([random_image(64, 64)])
    assert len(instances) <= 1


def test_a_budget_of_nodes_reaches_the_network(checkpoint: Path) -> None:
    image = random_image(70, 100, seed=1)
    masks = {
        budget: [
            instance.mask_hw
            for instance in Predictor.from_checkpoint(checkpoint, device="cpu", node_budget=budget)([image])[0]
        ]
        for budget in (None, 0, 50)
    }
    assert np.array_equal(masks[None], masks[0]), "the checkpoint says: all"
    assert not np.array_equal(masks[0], masks[50])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold is 1.5"),
        ({"max_instances": 0}, "max_instances is 0"),
        ({"node_budget": -1}, "node_budget is -1"),
        ({"device": "toaster"}, "device is 'toaster'"),
        ({"device": "cuda:99"}, "device is 'cuda:99', but torch sees"),
    ],
)
def test_wrong_arguments_are_named(checkpoint: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor.from_checkpoint(checkpoint, **{"device": "cpu", **arguments})


def test_weights_that_do_not_fit_their_config_are_named(checkpoint: Path, tmp_path: Path) -> None:
    state = small_model().state_dict()
    state.pop("roi_heads.mask_head.predictor.weight")
    metadata = {"name": "broken", "version": "1", "classes": list(CLASSES)}
    save_checkpoint(tmp_path / "broken", small_config(), state, metadata)
    with pytest.raises(CheckpointError, match=r"broken does not fit .*\nmissing \(1\): roi_heads.mask_head.predictor"):
        Predictor.from_checkpoint(tmp_path / "broken", device="cpu")


def test_auto_takes_a_gpu_exactly_when_torch_sees_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_smaller_predictor_shares_the_weights_and_sees_less(checkpoint: Path) -> None:
    model = Recorder()
    predictor = Predictor(model, CLASSES, "1", SETTINGS)
    [[first, _]] = predictor.smaller(4)([random_image(40, 50)])
    assert model.batches[0][0]["image"].shape == (3, 16, 20)
    assert first.mask_hw.shape == (40, 50), "masks keep the image's size"
    predictor([random_image(40, 50)])
    assert model.batches[1][0]["image"].shape == (3, 64, 80)
    whole = Predictor.from_checkpoint(checkpoint, device="cpu")
    assert whole.weights_bytes == whole.smaller(2).weights_bytes > 1000
