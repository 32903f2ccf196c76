"""The lock of a bucket: one holder at a time, and a killed one is outlived."""

from __future__ import annotations

import threading
import time
import uuid
from pathlib import Path

import pytest

from training.registry import RegistryError
from training.registry.storage import Storage, exclusively, to_json


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(tmp_path if request.param == "folder" else f"memory://{uuid.uuid4().hex}")


def test_one_holder_at_a_time(storage: Storage) -> None:
    inside, most = 0, 0

    def hold() -> None:
        nonlocal inside, most
        for _ in range(5):
            with exclusively(storage, "p/.lock"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_who_waits_too_long_is_told(storage: Storage) -> None:
    with (
        exclusively(storage, "p/.lock"),
        pytest.raises(RegistryError, match="another writer held"),
        exclusively(storage, "p/.lock", patience_s=0.05),
    ):
        pass
    with exclusively(storage, "p/.lock", patience_s=0.05):
        pass


@pytest.mark.parametrize("left", [to_json({"owner": "killed", "expires": 1.0}), b"{", b"[]"])
def test_what_a_killed_writer_left_expires(left: bytes) -> None:
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    storage.write("p/.lock", left)
    with exclusively(storage, "p/.lock", patience_s=5):
        pass
    assert storage.read("p/.lock") is None
