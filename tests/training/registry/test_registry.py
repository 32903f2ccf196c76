"""Versions never change, the pointer swaps whole, garbage collection spares what may still serve."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoints.metadata import CheckpointError
from training.registry import Registry, RegistryError
from training.registry.storage import Storage
from training.registry.versions import Pointer

pytestmark = pytest.mark.service

Make = Callable[..., Path]


def publish(registry: Registry, checkpoint: Make, *names: str, **more: str) -> None:
    for name in names:
        registry.publish("12", checkpoint(name), **more)


def test_an_empty_registry_says_so(registry: Registry) -> None:
    assert (registry.versions("12"), registry.active("12"), registry.best_ever("12")) == ([], None, None)
    assert (registry.snapshots("12"), registry.projects()) == ([], [])
    assert registry.collect_garbage("12", keep=0) == []


def test_a_published_version_comes_back_as_it_was(registry: Registry, checkpoint: Make, tmp_path: Path) -> None:
    directory = checkpoint("v1")
    assert registry.publish("12", directory, parent="v0", snapshot="abc", metrics={"mask_ap": 0.5}) == "v1"
    [info] = registry.versions("12")
    assert (info.name, info.classes, info.parent, info.snapshot) == ("v1", ("cat", "dog"), "v0", "abc")
    assert (info.metrics, info.status) == ({"mask_ap": 0.5}, "candidate")
    assert info.digest == json.loads((directory / "metadata.json").read_text())["digest"]
    assert info.code.startswith("0.")
    copy = registry.fetch("12", "v1", tmp_path / "cache")
    for name in ("model.safetensors", "config.yaml", "metadata.json"):
        assert (copy / name).read_bytes() == (directory / name).read_bytes()
    assert not (copy / "state.pt").exists()
    assert registry.papers("12", "v1") == ["MODEL_CARD.md", "pictures/sheet.png"]
    assert registry.projects() == ["12"]


def test_a_name_given_at_publication_is_what_predictions_carry(
    registry: Registry, checkpoint: Make, tmp_path: Path
) -> None:
    registry.publish("12", checkpoint("v1"), version="round-1")
    copy = registry.fetch("12", "round-1", tmp_path / "cache")
    assert json.loads((copy / "metadata.json").read_text())["version"] == "round-1"


def test_a_version_never_changes(registry: Registry, checkpoint: Make) -> None:
    publish(registry, checkpoint, "v1", "v1")  # the same content again is fine
    with pytest.raises(RegistryError, match="published with other content"):
        registry.publish("12", checkpoint("v1", weights=b"other"))
    assert len(registry.versions("12")) == 1


def test_damaged_weights_are_not_published(registry: Registry, checkpoint: Make) -> None:
    directory = checkpoint("v1")
    (directory / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(CheckpointError, match="incomplete or was changed"):
        registry.publish("12", directory)
    assert registry.versions("12") == []


def test_fetch_notices_what_changed_in_the_registry(registry: Registry, checkpoint: Make, tmp_path: Path) -> None:
    publish(registry, checkpoint, "v1")
    registry.storage.write("12/versions/v1/model.safetensors", b"changed")
    with pytest.raises(RegistryError, match="it was damaged or changed"):
        registry.fetch("12", "v1", tmp_path / "cache")
    registry.storage.remove("12/versions/v1/model.safetensors")
    with pytest.raises(RegistryError, match="is gone from the registry"):
        registry.fetch("12", "v1", tmp_path / "cache")
    assert list((tmp_path / "cache" / "12").iterdir()) == []


def test_fetch_copies_once_and_mends_a_damaged_cache(registry: Registry, checkpoint: Make, tmp_path: Path) -> None:
    publish(registry, checkpoint, "v1")
    copy = registry.fetch("12", "v1", tmp_path / "cache")
    first = (copy / "model.safetensors").stat().st_ino
    assert registry.fetch("12", "v1", tmp_path / "cache") == copy
    assert (copy / "model.safetensors").stat().st_ino == first
    (copy / "model.safetensors").write_bytes(b"damaged")
    registry.fetch("12", "v1", tmp_path / "cache")
    assert (copy / "model.safetensors").read_bytes() == b"weights of v1"
    assert [path.name for path in copy.parent.iterdir()] == ["v1"]


def test_promotion_and_rollback_tell_the_status(registry: Registry, checkpoint: Make) -> None:
    publish(registry, checkpoint, "v1", "v2", "v3")
    registry.promote("12", "v1")
    registry.promote("12", "v2")
    registry.promote("12", "v2")  # nothing new
    assert registry.active("12") == "v2"
    registry.mark("12", "v3", "rejected", {"reasons": ["worse"], "metrics": {"mask_ap": 0.1}})
    assert {version.name: version.status for version in registry.versions("12")} == {
        "v1": "promoted",
        "v2": "promoted",
        "v3": "rejected",
    }
    assert json.loads(registry.paper("12", "v3", "report.json") or b"")["reasons"] == ["worse"]
    assert registry.roll_back("12") == "v1"
    assert registry.version("12", "v2").status == "retired"
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        registry.roll_back("12")
    assert [event["action"] for event in registry.pointer("12").events] == ["promote", "promote", "rollback"]


def test_a_mark_alone_promotes_nothing(registry: Registry, checkpoint: Make) -> None:
    publish(registry, checkpoint, "v1")
    registry.mark("12", "v1", "promoted", {})  # killed before the pointer was swapped
    assert registry.version("12", "v1").status == "candidate"


def test_best_ever_is_the_highest_that_was_not_taken_back(registry: Registry, checkpoint: Make) -> None:
    for name, figure in (("v1", 0.3), ("v2", 0.6), ("v3", 0.5), ("v4", 0.9)):
        registry.publish("12", checkpoint(name), metrics={"mask_ap": figure, "boundary_ap": figure})
    registry.promote("12", "v1")
    registry.promote("12", "v2")
    registry.promote("12", "v3")
    assert registry.best_ever("12") == "v2"  # v4 never served
    registry.mark("12", "v1", "promoted", {"metrics": {"mask_ap": 0.8, "boundary_ap": 0.8}})
    assert registry.best_ever("12") == "v1"


def test_garbage_spares_active_history_best_and_their_ancestors(registry: Registry, checkpoint: Make) -> None:
    publish(registry, checkpoint, "base")
    for number in range(1, 9):
        registry.publish("12", checkpoint(f"v{number}"), parent="v2" if number == 3 else "base")
    registry.promote("12", "v1")
    registry.promote("12", "v3")
    would = registry.collect_garbage("12", keep=2, dry_run=True)
    assert would == ["v4", "v5", "v6"]
    assert registry.collect_garbage("12", keep=2) == would
    assert [version.name for version in registry.versions("12")] == ["base", "v1", "v2", "v3", "v7", "v8"]
    assert registry.collect_garbage("12", keep=0) == ["v7", "v8"]


def test_garbage_takes_what_nobody_finished_for_a_day(registry: Registry, checkpoint: Make) -> None:
    registry.storage.create("12/versions/half/claim.json", b'{"content": "x", "at": "2026-01-01T00:00:00+00:00"}')
    assert registry.unfinished("12", datetime(2026, 1, 1, 12, tzinfo=UTC)) == []
    with pytest.raises(RegistryError, match="never finished"):
        publish(registry, checkpoint, "half")
    assert registry.collect_garbage("12", keep=0) == ["half"]
    publish(registry, checkpoint, "half")
    assert registry.unfinished("12", datetime.now(UTC) + timedelta(days=9)) == []


class Stops:
    """Lets a number of writes pass and then fails each, as a killed process would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.left = after
        for name in ("write", "create"):
            monkeypatch.setattr(Storage, name, self._counted(getattr(Storage, name)))

    def _counted(self, original: Callable) -> Callable:
        def counted(storage: Storage, *arguments: object) -> object:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return original(storage, *arguments)

        return counted


@pytest.mark.parametrize("step", range(7))
def test_an_interrupted_publication_shows_nothing_and_can_go_on(
    registry: Registry, checkpoint: Make, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patched:
        Stops(patched, step)  # before the claim, card, picture, weights, configuration, metadata, record
        with pytest.raises(KeyboardInterrupt):
            publish(registry, checkpoint, "v1")
    assert registry.versions("12") == []
    with pytest.raises(RegistryError, match=r"has no version 'v1' .* it has none"):
        registry.promote("12", "v1")
    publish(registry, checkpoint, "v1")
    assert [version.name for version in registry.versions("12")] == ["v1"]


def test_an_interrupted_promotion_leaves_the_old_pointer(
    registry: Registry, checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(registry, checkpoint, "v1", "v2")
    registry.promote("12", "v1")
    before = registry.pointer("12")
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            registry.promote("12", "v2")
    assert registry.pointer("12") == before
    registry.promote("12", "v2")  # the lock was given back


_PROMOTE_MANY = """
import sys
from training.registry import Registry
registry = Registry(sys.argv[1])
for number in range(8):
    registry.promote("12", f"{sys.argv[2]}{number}")
"""


def test_promotions_of_two_processes_are_all_kept(checkpoint: Make, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    names = [f"{side}{number}" for side in "ab" for number in range(8)]
    for name in names:
        registry.publish("12", checkpoint("made", weights=b"w"), version=name)
    running = [
        subprocess.Popen([sys.executable, "-c", _PROMOTE_MANY, str(tmp_path / "registry"), side]) for side in "ab"
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    pointer = registry.pointer("12")
    versions = [entry["version"] for entry in pointer.history] + [pointer.version]
    assert sorted(map(str, versions)) == sorted(names)
    assert [name for name in versions if str(name)[0] == "a"] == names[:8]


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a\\b", ".hidden", "a b", "x" * 101, "ü", "a\n"])
def test_names_that_could_leave_their_folder_are_refused(registry: Registry, checkpoint: Make, name: str) -> None:
    for call in (
        lambda: registry.publish(name, checkpoint("v1")),
        lambda: registry.active(name),
        lambda: registry.promote(name, "v1"),
        lambda: registry.fetch("12", name, Path("cache")),
        lambda: registry.fetch_snapshot("12", name, Path("cache")),
        lambda: registry.collect_garbage(name, keep=1),
    ):
        with pytest.raises(RegistryError, match="letters, digits"):
            call()


def test_only_papers_can_be_added_later(registry: Registry, checkpoint: Make, tmp_path: Path) -> None:
    publish(registry, checkpoint, "v1")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "MODEL_CARD.md").write_text("judged")
    assert registry.attach("12", "v1", tmp_path / "papers") == ["MODEL_CARD.md"]
    assert registry.paper("12", "v1", "MODEL_CARD.md") == b"judged"
    (tmp_path / "papers" / "config.yaml").write_text("changed")
    with pytest.raises(RegistryError, match=r"holds config\.yaml; only MODEL_CARD\.md"):
        registry.attach("12", "v1", tmp_path / "papers")
    for name in ("config.yaml", "pictures/../config.yaml", "../v2/MODEL_CARD.md"):
        with pytest.raises(RegistryError, match="is no paper"):
            registry.paper("12", "v1", name)


def test_a_broken_pointer_is_named(registry: Registry) -> None:
    registry.storage.write("12/ACTIVE", b"{")
    with pytest.raises(RegistryError, match=r"12/ACTIVE is not JSON"):
        registry.active("12")
    registry.storage.write("12/ACTIVE", b'{"version": "v1"}')
    with pytest.raises(RegistryError, match=r"12/ACTIVE lacks or misspells 'at'"):
        registry.active("12")


@pytest.mark.parametrize(
    ("root", "message"), [("nonsense://x", "nonsense"), ("s3://bucket/x", r"transfiner-ml-backend\[s3\]")]
)
def test_a_root_that_cannot_be_used_says_the_fix(root: str, message: str) -> None:
    if root.startswith("s3") and __import__("importlib.util").util.find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(RegistryError, match=message):
        Registry(root)


@given(st.lists(st.one_of(st.integers(0, 4), st.just("back")), max_size=30))
def test_the_pointer_is_a_stack(actions: list[int | str]) -> None:
    pointer, versions = Pointer(), []
    for number, action in enumerate(actions):
        if action != "back":
            pointer = pointer.promoted(f"v{action}", str(number))
            versions += [f"v{action}"] if versions[-1:] != [f"v{action}"] else []
        elif len(versions) > 1:
            pointer = pointer.rolled_back(str(number))
            versions.pop()
        assert pointer.version == (versions[-1] if versions else None)
        assert [entry["version"] for entry in pointer.history] == versions[:-1]
        assert not pointer.in_service() & set(pointer.retired)


def test_the_registry_does_without_torch() -> None:
    code = "import sys, training.registry; sys.exit('torch' in sys.modules or 'detectron2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
