"""Released checkpoints: names and shapes of every variant, recognition, and import of a `.pth` file."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoints.checkpoint import load_checkpoint
from model.checkpoints.import_released import (
    count_classes,
    expected_state,
    import_released,
    known_classes,
    read_released_file,
    recognise,
)
from model.checkpoints.metadata import CheckpointError, file_digest
from model.checkpoints.releases import ARCHITECTURES, RELEASES, find_release
from tests.support.released_fixture import FIXTURES

# The authors' name for each release of ours.
THEIR_NAMES = {
    "R50-FPN-1x": "mask_rcnn_R_50_FPN_1x",
    "R50-FPN-3x": "mask_rcnn_R_50_FPN_3x",
    "R50-FPN-DCN-3x": "mask_rcnn_R_50_FPN_3x_deform",
    "R101-FPN-3x": "mask_rcnn_R_101_FPN_3x",
    "R101-FPN-DCN-3x": "mask_rcnn_R_101_FPN_3x_deform",
    "Swin-T-FPN-3x": "mask_rcnn_swint_FPN_3x",
    "Swin-B-FPN-3x": "mask_rcnn_swinb_FPN_3x",
}


@pytest.fixture(scope="module")
def recorded_keys() -> dict[str, dict[str, list[int]]]:
    return json.loads((FIXTURES / "state_dict_keys.json").read_text())


def zeros(config: str, num_classes: int, shift: int = 0) -> dict[str, Tensor]:
    """A state dict of an architecture that takes no memory: every tensor shows one stored zero."""
    return {
        name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        for name, tensor in expected_state(config, num_classes).items()
    }


@pytest.mark.parametrize(("ours", "theirs"), THEIR_NAMES.items())
def test_keys_and_shapes_equal_the_recorded_ones(ours: str, theirs: str, recorded_keys: dict) -> None:
    expected = {name: tuple(shape) for name, shape in recorded_keys[theirs].items()}
    actual = {name: tuple(tensor.shape) for name, tensor in expected_state(RELEASES[ours].config, 80).items()}
    assert actual == expected


@pytest.mark.parametrize("config", ARCHITECTURES)
@pytest.mark.parametrize("num_classes", [80, 3])
def test_every_architecture_recognises_itself(config: str, num_classes: int) -> None:
    state = zeros(config, num_classes)
    assert count_classes(state) == num_classes
    recognised, report = recognise(state)
    assert (recognised, report.describe()) == (config, "")


def test_a_near_miss_is_named_after_the_closest_architecture() -> None:
    state = zeros("released/Swin-T-FPN", 80)
    del state["backbone.bottom_up.norm0.weight"]
    recognised, report = recognise(state)
    assert recognised == "released/Swin-T-FPN"
    assert report.missing == ("backbone.bottom_up.norm0.weight",)


def test_other_weights_are_refused() -> None:
    state = zeros("released/R50-FPN", 80)
    del state["roi_heads.mask_head.predictor.weight"]
    with pytest.raises(CheckpointError, match="not the weights of a Mask Transfiner"):
        count_classes(state)


def test_releases_are_found_by_name_whatever_the_case() -> None:
    assert find_release("swin-b-fpn-3X").config == "released/Swin-B-FPN"
    with pytest.raises(ValueError, match="no released checkpoint 'R18'; expected one of R50-FPN-1x"):
        find_release("R18")
    assert len({release.url for release in RELEASES.values()}) == 8


@pytest.mark.parametrize(("count", "first", "last"), [(80, "person", "toothbrush"), (1230, "acorn", "zucchini")])
def test_class_names_of_the_data_sets_they_were_trained_on(count: int, first: str, last: str) -> None:
    names = known_classes(count)
    assert names is not None
    assert (len(names), names[0], names[-1]) == (count, first, last)
    assert known_classes(7) is None


@pytest.fixture(scope="module")
def authors_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As detectron2 writes them: weights beside the states of optimizer and scheduler, numpy numbers included."""
    file = tmp_path_factory.mktemp("authors") / "output.pth"
    torch.save(
        {
            "model": {
                **{name: tensor.clone() for name, tensor in zeros("released/R50-FPN", 2).items()},
                "pixel_mean": torch.zeros(3, 1, 1),
            },
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.02}]},
            "scheduler": {"last_epoch": 7, "base_lrs": [np.float64(0.02)], "rates": np.zeros(2)},
            "iteration": 269999,
        },
        file,
    )
    return file


def test_import_stores_a_checkpoint_with_its_origin(authors_file: Path, tmp_path: Path) -> None:
    outcome = import_released(
        authors_file, tmp_path / "mine", name="mine", classes=["cat", "dog"], half=True, source="https://host/x"
    )
    assert outcome.config == "released/R50-FPN"
    cfg, state, metadata = load_checkpoint(tmp_path / "mine")
    assert metadata == outcome.metadata
    assert metadata["classes"] == ["cat", "dog"]
    assert metadata["version"] == f"mine-{file_digest(authors_file)[:8]}"
    assert metadata["source"]["sha256"] == file_digest(authors_file)
    assert metadata["source"]["url"] == "https://host/x"
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    assert state.keys() == expected_state("released/R50-FPN", 2).keys()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (None, r"has 2 classes, whose names it does not hold; .*--classes FILE"),
        (["cat"], "has 2 classes, but 1 names were given"),
    ],
)
def test_class_names_must_be_known(authors_file: Path, tmp_path: Path, classes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        import_released(authors_file, tmp_path / "mine", name="mine", classes=classes)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_checkpoint_is_kept(authors_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine exists"):
        import_released(authors_file, tmp_path / "mine", name="mine")


class RunsCode:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def write_text(file: Path) -> None:
    file.write_text("<!DOCTYPE html><html>Google Drive - Virus scan warning</html>")


def write_code(file: Path) -> None:
    torch.save({"model": {"x": torch.zeros(1)}, "extra": RunsCode()}, file)


def write_plain_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps({"model": {"x": RunsCode()}}, protocol=2))


def write_half(file: Path) -> None:
    torch.save({"model": {"x": torch.zeros(1000)}}, file)
    file.write_bytes(file.read_bytes()[:2000])


UNREADABLE = [
    (lambda file: None, "does not exist"),
    (lambda file: file.write_bytes(b""), "is not a"),
    (write_text, "is not a"),
    (write_half, "is not a readable torch file"),
    (write_code, "nothing else is loaded, because that could run code"),
    (write_plain_pickle, "nothing else is loaded, because that could run code"),
    (lambda file: torch.save([1, 2], file), "holds no weights"),
    (lambda file: torch.save({"model": {}}, file), "holds no weights"),
    (lambda file: torch.save({"model": {"x": "y"}}, file), "holds a str as 'x', expected a tensor"),
    (lambda file: torch.save({"model": {"x": torch.zeros(1)}}, file), "not the weights of a Mask Transfiner"),
]


@pytest.mark.parametrize(("write", "message"), UNREADABLE)
def test_unreadable_files_are_named_and_nothing_runs(tmp_path: Path, capsys, write, message: str) -> None:
    file = tmp_path / "output.pth"
    write(file)
    with pytest.raises(CheckpointError, match=message):
        import_released(file, tmp_path / "mine", name="mine")
    assert "never be printed" not in capsys.readouterr().out
    assert not (tmp_path / "mine").exists()


def test_numpy_weights_are_read(tmp_path: Path) -> None:
    torch.save({"model": {"x": np.arange(3.0)}}, tmp_path / "zoo.pth")
    assert read_released_file(tmp_path / "zoo.pth")["x"].tolist() == [0, 1, 2]
