"""Says in one sentence which part of the model's environment is missing.

Free of torch, so that commands can ask before they import anything heavy.
"""

from __future__ import annotations

import importlib

SETUP = "run `make setup` in the project folder"
FIXES = {
    "torch": f"{SETUP}, or `pip install torch torchvision`",
    "torchvision": f"{SETUP}, or `pip install torchvision` in the version that matches the installed torch",
    "detectron2": f"{SETUP}; it is not on the package index under its own name",
    "safetensors": f"{SETUP}, or `pip install safetensors`",
}


class MissingRequirementError(ImportError):
    """A library the model needs is missing or broken; the message is one sentence with the fix."""


def require_model_libraries() -> None:
    """Check that torch, torchvision, detectron2 and safetensors can be imported.

    Raises:
        MissingRequirementError: naming the first one that cannot, why, and the fix.
    """
    for name, fix in FIXES.items():
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            absent = error.name or name
            what = f"{name} is not installed" if absent == name else f"{name} needs {absent}, which is not installed"
            raise MissingRequirementError(f"{what}; fix: {fix}.", name=absent) from error
        except (ImportError, OSError, RuntimeError) as error:
            # A torchvision built for another torch raises RuntimeError, a missing CUDA library OSError.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise MissingRequirementError(f"{name} cannot be loaded ({reason}); fix: {fix}.", name=name) from error
