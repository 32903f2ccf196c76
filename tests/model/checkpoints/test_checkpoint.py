"""Checkpoints survive the round trip, and every kind of damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from model.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from model.checkpoints.metadata import CONFIG_FILE, METADATA_FILE, WEIGHTS_FILE, CheckpointError, file_digest
from model.checkpoints.state_dict import TRAINING_ONLY, compare_keys, load_weights
from tests.support.small_network import CLASSES, small_config, small_model

METADATA = {"name": "small", "version": "1", "classes": list(CLASSES), "preset": "released"}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return small_model()


@pytest.fixture
def saved(tmp_path: Path, network: nn.Module) -> Path:
    save_checkpoint(tmp_path / "small", small_config(), network, METADATA)
    return tmp_path / "small"


def test_round_trip_keeps_weights_config_and_metadata(saved: Path, network: nn.Module) -> None:
    cfg, state, metadata = load_checkpoint(saved)
    assert yaml.safe_load(cfg.dump()) == yaml.safe_load(small_config().dump())
    assert metadata.items() >= METADATA.items()
    assert metadata["digest"] == file_digest(saved / WEIGHTS_FILE)
    expected = network.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert sorted(path.name for path in saved.parent.iterdir()) == ["small"]  # nothing staged is left behind


def test_half_precision_is_stored_small_and_loaded_as_fp32(tmp_path: Path, network: nn.Module) -> None:
    save_checkpoint(tmp_path / "full", small_config(), network, METADATA)
    save_checkpoint(tmp_path / "half", small_config(), network, METADATA, half=True)
    sizes = [(tmp_path / name / WEIGHTS_FILE).stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    file_state = load_file(tmp_path / "half" / WEIGHTS_FILE)
    assert {file_state[name].dtype for name in file_state if name.endswith("running_var")} == {torch.float32}
    state = load_checkpoint(tmp_path / "half").state
    for name, tensor in network.state_dict().items():
        assert state[name].dtype == tensor.dtype
        torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-4)


def test_values_half_precision_cannot_hold_stay_fp32(tmp_path: Path, network: nn.Module) -> None:
    state = dict(network.state_dict())
    name = "roi_heads.mask_head.predictor.bias"
    state[name] = torch.full_like(state[name], 1e6)
    save_checkpoint(tmp_path / "half", small_config(), state, METADATA, half=True)
    assert torch.equal(load_checkpoint(tmp_path / "half").state[name], state[name])


def test_an_existing_checkpoint_is_replaced_only_on_request(saved: Path, network: nn.Module) -> None:
    with pytest.raises(FileExistsError, match="exists; choose another name"):
        save_checkpoint(saved, small_config(), network, METADATA)
    save_checkpoint(saved, small_config(), network, {**METADATA, "version": "2"}, overwrite=True)
    assert load_checkpoint(saved).metadata["version"] == "2"
    assert sorted(path.name for path in saved.parent.iterdir()) == ["small"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"name": "x", "version": "1"}, "lacks classes"),
        ({**METADATA, "version": ""}, "lacks version"),
        ({**METADATA, "classes": ["gear"]}, "names 1 classes, MODEL.ROI_HEADS.NUM_CLASSES is 2"),
        ({**METADATA, "classes": ["gear", "gear"]}, "classes twice: gear"),
    ],
)
def test_incomplete_metadata_is_refused(tmp_path: Path, network: nn.Module, metadata: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path / "small", small_config(), network, metadata)
    assert list(tmp_path.iterdir()) == []


def truncate(directory: Path) -> None:
    weights = (directory / WEIGHTS_FILE).read_bytes()
    (directory / WEIGHTS_FILE).write_bytes(weights[: len(weights) // 2])


def truncate_without_digest(directory: Path) -> None:
    truncate(directory)
    metadata = json.loads((directory / METADATA_FILE).read_text())
    del metadata["digest"]
    (directory / METADATA_FILE).write_text(json.dumps(metadata))


def unsafe_config(directory: Path) -> None:
    (directory / CONFIG_FILE).write_text("A: !!python/object/apply:os.getcwd []\n")


DAMAGE = [
    (lambda directory: (directory / WEIGHTS_FILE).unlink(), "model.safetensors is missing"),
    (lambda directory: (directory / CONFIG_FILE).unlink(), "config.yaml is missing"),
    (lambda directory: (directory / METADATA_FILE).unlink(), "metadata.json is missing"),
    (lambda directory: (directory / METADATA_FILE).write_text("{"), "is not JSON"),
    (lambda directory: (directory / METADATA_FILE).write_text("[]"), "holds a list, expected an object"),
    (lambda directory: (directory / METADATA_FILE).write_text('{"name": "x"}'), "lacks version, classes"),
    (lambda directory: (directory / CONFIG_FILE).write_text("MODEL: {NONSENSE: 1}"), "MODEL.NONSENSE"),
    (lambda directory: (directory / CONFIG_FILE).write_text("MODEL: 5"), "does not fit this version"),
    (lambda directory: (directory / CONFIG_FILE).write_text("[1]"), "expected a mapping of keys, got list"),
    (unsafe_config, "is not plain YAML"),
    (truncate, "the file is incomplete or was changed"),
    (truncate_without_digest, "is not a readable safetensors file"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[message for _, message in DAMAGE])
def test_damage_is_named(saved: Path, damage, message: str) -> None:
    damage(saved)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


def test_differing_keys_are_listed_and_nothing_is_loaded(network: nn.Module) -> None:
    model = small_model(seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = dict(network.state_dict())
    del state["roi_heads.mask_head.mask_fcn1.weight"]
    state["roi_heads.extra"] = torch.zeros(1)
    state["roi_heads.mask_head.mask_fcn2.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, state, source="somewhere.pth")
    for part in (
        "somewhere.pth does not fit",
        "missing (1): roi_heads.mask_head.mask_fcn1.weight",
        "unexpected (1): roi_heads.extra",
        "mask_fcn2.bias: shape (7,), expected (32,)",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_training_only_branches_may_be_absent_and_stored_constants_are_ignored(network: nn.Module) -> None:
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(TRAINING_ONLY)}
    state["pixel_mean"] = torch.zeros(3)
    report = load_weights(small_model(seed=1), state)
    assert report.fits
    assert len(report.absent_training_only) == 6
    assert "absent, needed for training only (6)" in report.describe()
    assert compare_keys(network.state_dict(), network.state_dict()).describe() == ""


def test_a_long_list_of_keys_is_shortened() -> None:
    report = compare_keys({}, {f"layer{i}": torch.zeros(1) for i in range(20)})
    assert report.describe(limit=2) == "missing (20): layer0, layer1, and 18 more"


def test_weights_of_another_file_with_the_same_names_are_noticed(saved: Path) -> None:
    state = load_file(saved / WEIGHTS_FILE)
    save_file({name: tensor + 1 for name, tensor in state.items()}, saved / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match="has sha256"):
        load_checkpoint(saved)


def test_a_checkpoint_made_with_detectron2s_main_branch_opens(saved: Path) -> None:
    config = (saved / CONFIG_FILE).read_text()
    (saved / CONFIG_FILE).write_text(config + "FLOAT32_PRECISION: ''\n")
    assert yaml.safe_load(load_checkpoint(saved).cfg.dump()).keys() >= yaml.safe_load(config).keys()
