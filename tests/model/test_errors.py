"""A missing or broken library is one sentence with the fix, without anything heavy being imported to say so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from model import errors
from model.errors import MissingRequirementError, require_model_libraries

pytestmark = pytest.mark.service


def test_a_complete_environment_passes() -> None:
    require_model_libraries()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("x", name="torch"), "torch is not installed; fix: run `make setup`"),
        (ModuleNotFoundError("x", name="numpy"), "torch needs numpy, which is not installed; fix: "),
        (OSError("libcudart.so.13: cannot open\nmore"), r"torch cannot be loaded \(libcudart.so.13: cannot open\)"),
        (RuntimeError("operator torchvision::nms does not exist"), "torchvision::nms does not exist"),
        (ImportError(""), r"torch cannot be loaded \(ImportError\)"),
    ],
)
def test_each_failure_is_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(errors.importlib, "import_module", fail)
    with pytest.raises(MissingRequirementError, match=message) as caught:
        require_model_libraries()
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "module", ["model.errors", "model.checkpoints.metadata", "model.checkpoints.releases", "model.checkpoints.download"]
)
def test_what_commands_ask_first_is_free_of_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    root = Path(errors.__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
